"""Recovery: a store from its provider alone, on a machine that has nothing.

The newest copy of the metadata that is whole becomes `meta.db`; the journal begins anew; objects are fetched when they
are read.  Every segment is checked by its hash, and the database by sqlite.  A copy that is torn or damaged is passed
over for the one before, and that is said.  A provider that does not answer is an error, not damage: an older copy is
taken only when a newer one is known to be bad.

What is below `root` becomes a store with its last file, store.json, which appears whole or not at all; before that it
is a draft in `.recover`, and recovery can be run again.  The marker in the provider (see `artfs.objects.marker`) is
taken over when a copy is here: from then on the old host, if it still runs, writes nothing there, and what it saved
until then is taken.

Where the newest copy is not complete for another provider, namespaces that live there are taken from an older one, see
`artfs.volume.grafting`.

Numbers of objects are not used twice: the counters of the copy may be older than the rows beside them, and the
directories that would show it are empty here, so each namespace goes on well behind what any row names.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from artfs.blocks import Chunk
from artfs.durable import sync_directory
from artfs.errors import DamagedError, ExistsError, FormatError, InvalidError, NotFoundError
from artfs.meta import Batch
from artfs.meta.sqlite import SqliteEngine
from artfs.meta.sqlite.pages import Restoring
from artfs.objects import Provider, marker
from artfs.settings import CONFIG_FILE, FORMAT, STORE_FILE, Identity, require_free
from artfs.types import Epoch, Serial
from artfs.volume.catalogue import Catalogue
from artfs.volume.grafting import Copy, graft
from artfs.volume.lock import Lock
from artfs.volume.noted import Note, write_note
from artfs.volume.packs import SEGMENT, Manifest, Place, list_packs, open_segment, pack_name, read_manifest, stand_ins
from artfs.volume.rows import HEAD_KEY, Head, unpack_block

log = logging.getLogger(__name__)

DRAFT = ".recover"
RANGE = 8 << 20
"""Bytes of a pack that are fetched at once, at most."""
GAP = 64 << 10
"""Bytes that nobody needs are fetched with the rest, if they are no more."""
FETCHES = 4
NUMBERS_GAP = 1 << 16
"""So many numbers of objects are left out behind the last that is known."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Recovered:
    """`moment`: nanoseconds since 1970; everything that was acknowledged before it is in the store.  `skipped`: newer
    copies that are damaged, newest first.  `namespaces`: how many there are; `elsewhere`: grid paths of those whose
    bytes were only in the lost machine's directory: they cannot be read; `others`: URLs of other providers that
    namespaces live with, which it has not looked at.  Where one of them had not got all at that moment: `older`, grid
    path → moment of each namespace that is from an older copy, and grid paths of those of which only a `partial` state
    was anywhere, so that some of their bytes may be lost."""

    moment: int
    sequence: int
    uuid: str
    generation: int
    namespaces: int
    elsewhere: tuple[str, ...]
    others: tuple[str, ...]
    bytes: int
    skipped: tuple[str, ...]
    older: Mapping[str, int]
    partial: tuple[str, ...]


async def recover(
    provider: Provider,
    url: str,
    root: Path,
    progress: Progress | None = None,
    *,
    marked: Provider | None = None,
    config: Mapping[str, str] | None = None,
) -> Recovered:
    """Make a store in `root` of what is in `provider`; `marked`: the same place without any codec, if that is another.
    `url` (and `config`, settings that are strings) go into config.toml if there is none.  `progress`: bytes of the
    database that are there, of how many.  Errors: ExistsError if there is a store in `root`; NotFoundError if none is
    in the provider; DamagedError, FormatError, UnavailableError, DeniedError, NoSpaceError, BusyError."""
    marked = provider if marked is None else marked
    await to_thread.run_sync(_prepare, root)
    lock = Lock(root, "recover")
    try:
        return await _recover(provider, marked, url, root, progress or (lambda done, total: None), dict(config or {}))
    finally:
        lock.close()


async def _recover(
    provider: Provider, marked: Provider, url: str, root: Path, progress: Progress, config: dict[str, str]
) -> Recovered:
    found = await marker.read(marked)
    draft = root / DRAFT / "meta.db"
    newest, manifest, skipped = await _fetch(provider, url, draft, progress)
    identity = _identity(manifest)
    if found is not None and found.uuid != identity.uuid:
        raise DamagedError(f"{url} belongs to store {found.uuid}, but its metadata to store {identity.uuid}")
    generation = await marker.take_over(marked, identity.uuid, manifest.generation)
    if max(await list_packs(provider)) != newest:  # the old host has saved meanwhile; it does not any more
        newest, manifest, skipped = await _fetch(provider, url, draft, progress)
    copies = [Copy(None, 0, manifest.behind)] if manifest.behind else []
    copies += await _fetch_older(provider, manifest, root / DRAFT)
    older, partial = await to_thread.run_sync(graft, draft, copies)
    namespaces, homes = await to_thread.run_sync(_adapt, draft, generation)
    note = Note(manifest.sequence, manifest.moment)
    await to_thread.run_sync(_finish, root, identity, {"provider": url, **config}, note)
    return Recovered(
        moment=manifest.moment,
        sequence=manifest.sequence,
        uuid=identity.uuid,
        generation=generation,
        namespaces=namespaces,
        elsewhere=tuple(sorted(homes.pop("", ()))),
        others=tuple(sorted(homes.keys() - {url})),
        bytes=manifest.size,
        skipped=skipped,
        older=older,
        partial=partial,
    )


def _identity(manifest: Manifest) -> Identity:
    try:
        identity = Identity.model_validate(dict(manifest.identity))
    except ValueError as error:
        raise DamagedError(f"{pack_name(manifest.sequence)}: the identity of the store cannot be read") from error
    assert identity.format <= FORMAT  # `_fetch` has looked
    return identity


def _prepare(root: Path) -> None:
    if (root / STORE_FILE).exists():
        raise ExistsError(f"{root} holds a store already; recover into another --root")
    if root.exists() and not root.is_dir():
        raise InvalidError(f"{root} is no directory; choose another --root")
    if not (root / DRAFT).is_dir():
        for name in ("meta.db", "journal", "objects", "cache"):
            if (root / name).exists():
                raise ExistsError(f"{root} holds parts of a store ({name}); recover into another --root")
        if root.exists():
            require_free(root)
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    (root / DRAFT).mkdir(mode=0o700, exist_ok=True)
    for directory in (root, *(path.parent for path in missing)):
        sync_directory(directory)


# fetching
async def _fetch(
    provider: Provider, url: str, draft: Path, progress: Progress
) -> tuple[int, Manifest, tuple[str, ...]]:
    """The newest copy that is whole, as the database `draft`; before it, the newest sequence that there is."""
    packs = await list_packs(provider)
    if not packs:
        raise NotFoundError(f"{url} holds no copy of a store's metadata; is the prefix right?")
    skipped: list[str] = []
    for sequence in reversed(packs):
        try:
            manifest = await read_manifest(provider, sequence)
            if manifest.identity.get("format", 0) > FORMAT:
                raise FormatError(f"{url} holds a store of a newer artfs: upgrade artfs")
            await _build(provider, manifest, draft, progress)
        except DamagedError as error:
            log.warning("%s; looking for the copy before it", error)
            skipped.append(str(error))
            continue
        if skipped:
            log.warning("the newest copy of the metadata is damaged; this is an older one, see its moment")
        return max(packs), manifest, tuple(skipped)
    raise DamagedError(f"{url}: no copy of the metadata is whole: {'; '.join(skipped)}")


async def _fetch_older(provider: Provider, newest: Manifest, folder: Path) -> list[Copy]:
    """The copies that are complete where that one is not, each as a database in `folder`."""
    found: list[Copy] = []
    missing = newest.behind
    for sequence in reversed(await list_packs(provider)) if missing else ():
        try:
            if missing and sequence < newest.sequence:
                manifest = await read_manifest(provider, sequence)
                for _, providers in stand_ins(replace(newest, behind=missing), [manifest]):
                    draft = folder / f"older-{sequence}.db"
                    await _build(provider, manifest, draft, lambda done, total: None)
                    found.append(Copy(draft, manifest.moment, providers))
                    missing -= providers
        except DamagedError as error:
            log.warning("%s; looking for the copy before it", error)
    return found


async def _build(provider: Provider, manifest: Manifest, draft: Path, progress: Progress) -> None:
    wanted: dict[int, list[tuple[int, Place]]] = {}
    for index, place in enumerate(manifest.places):
        wanted.setdefault(place.pack, []).append((index, place))
    for sequence, places in wanted.items():
        await _require(provider, sequence, max(place.offset + place.length for _, place in places))
    restoring = await to_thread.run_sync(Restoring, draft)
    limit = anyio.Semaphore(FETCHES)
    done = 0
    failures: list[Exception] = []

    async def one(sequence: int, places: list[tuple[int, Place]]) -> None:
        nonlocal done
        start = places[0][1].offset
        length = max(place.offset + place.length for _, place in places) - start
        try:
            async with limit:
                if failures:
                    return
                data = await provider.get(pack_name(sequence), start, length)
                written = await to_thread.run_sync(partial(_write, restoring, sequence, places, data, start))
            done += written  # not across an await
            progress(min(done, manifest.size), manifest.size)
        except Exception as error:
            failures.append(error)

    try:
        async with anyio.create_task_group() as tasks:
            for sequence, places in wanted.items():
                for run in _runs(places):
                    tasks.start_soon(one, sequence, run)
        if failures:
            gone = [error for error in failures if isinstance(error, NotFoundError)]
            raise DamagedError(f"a pack has gone: {gone[0]}") if gone else failures[0]
        await to_thread.run_sync(restoring.finish)
    finally:
        restoring.close()
    if draft.stat().st_size != manifest.size:
        raise DamagedError(f"{pack_name(manifest.sequence)}: its segments have another size than it says")


async def _require(provider: Provider, sequence: int, size: int) -> None:
    try:
        found = (await provider.head(pack_name(sequence))).size
    except NotFoundError as error:
        raise DamagedError(f"{pack_name(sequence)} is gone") from error
    if found < size:
        raise DamagedError(f"{pack_name(sequence)} is cut short: {found} of {size} bytes")


def _runs(places: list[tuple[int, Place]]) -> list[list[tuple[int, Place]]]:
    """What is fetched at once."""
    ordered = sorted(places, key=lambda item: item[1].offset)
    found: list[list[tuple[int, Place]]] = []
    end = start = 0
    for item in ordered:
        place = item[1]
        if not found or place.offset > end + GAP or place.offset + place.length - start > RANGE:
            found.append([])
            start = place.offset
        found[-1].append(item)
        end = max(end, place.offset + place.length)
    return found


def _write(restoring: Restoring, sequence: int, places: list[tuple[int, Place]], data: bytes, start: int) -> int:
    written = 0
    for index, place in places:
        at = place.offset - start
        segment = open_segment(data[at : at + place.length], place, pack_name(sequence))
        restoring.write(index * SEGMENT, segment)
        written += len(segment)
    return written


# making it a store
def _adapt(path: Path, generation: int) -> tuple[int, dict[str, list[str]]]:
    """What differs from the copy.  Returns how many namespaces there are, and their grid paths by provider."""
    engine = SqliteEngine(path, create=False)
    try:
        catalogue = Catalogue(engine)
        last: dict[int, int] = {}
        for row in engine.named((b"B", b"b")):
            for _, _, source, _ in unpack_block(row.value):
                if isinstance(source, Chunk):
                    serial = source.object >> 32
                    last[serial] = max(last.get(serial, 0), source.object & 0xFFFFFFFF)
        batches = []
        for serial in catalogue.by_serial:
            value = engine.get(serial, HEAD_KEY)
            if value is not None:
                head = Head.unpack(value)
                numbers = max(head.objects, last.get(serial, -1) + 1) + NUMBERS_GAP
                row_value = head._replace(objects=min(numbers, 1 << 32)).pack()
                batches.append(Batch(Serial(serial), Epoch(head.epoch), {HEAD_KEY: row_value}))
        engine.commit(batches, {("counter", "generation"): str(generation), ("journal", "state"): None})
        homes: dict[str, list[str]] = {}
        for namespace in catalogue.by_serial.values():
            homes.setdefault(namespace.provider, []).append(namespace.grid_path)
        return len(catalogue.by_serial), homes
    finally:
        engine.close()
        path.with_suffix(".ballast").unlink(missing_ok=True)


def _finish(root: Path, identity: Identity, config: Mapping[str, str], note: Note) -> None:
    """Each step on the disk before the next; the last one makes it a store."""
    draft = root / DRAFT
    if not (root / CONFIG_FILE).exists():
        lines = "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in config.items())
        _write_synced(draft / CONFIG_FILE, lines)
        os.rename(draft / CONFIG_FILE, root / CONFIG_FILE)
    _write_synced(draft / STORE_FILE, json.dumps(identity.model_dump(), indent=2) + "\n")
    with (draft / "meta.db").open("rb") as file:
        os.fsync(file.fileno())
    for suffix in ("-wal", "-shm"):  # of an attempt that was interrupted
        (root / f"meta.db{suffix}").unlink(missing_ok=True)
    os.rename(draft / "meta.db", root / "meta.db")
    write_note(root, note)
    sync_directory(root)
    try:
        os.link(draft / STORE_FILE, root / STORE_FILE)
    except FileExistsError:
        raise ExistsError(f"{root} holds a store by now; recover into another --root") from None
    sync_directory(root)
    for path in draft.iterdir():
        path.unlink()
    draft.rmdir()
    sync_directory(root)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
