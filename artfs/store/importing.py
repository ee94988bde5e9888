"""The import of a namespace from a file that `artfs.store.portable` wrote (see `artfs.store.portable_file`).

Everything is checked before a row is written.  The chunks go into objects of a serial that nothing knows yet: a record
(`importing`) names it, so that the next owner takes them away if this process dies.  Then one transaction brings all
rows and the namespace, which is in the trash at this moment, and gets its name when it is brought back from there.

Some pages of rows and some MiB of chunks are held at a time; the check holds the inodes and names of one version.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import time_ns
from typing import Any, TypeVar, overload
from uuid import uuid4

import anyio
from anyio import to_thread
from xxhash import xxh3_128_digest

from artfs.blocks import Chunk
from artfs.errors import ArtfsError, DamagedError, ExistsError, UnavailableError
from artfs.grid import GridPath, check_id, check_namespace_name, owner_key, scope_dir
from artfs.meta import Batch, Checkpoint
from artfs.store.portable import GROUP, PAGE, Progress, silent
from artfs.store.portable_file import open_export, unwritable
from artfs.store.store import Store
from artfs.types import Epoch, NamespaceType, Scope, Serial
from artfs.volume.catalogue import KIND, Namespace
from artfs.volume.fsck_view import problems, read_view
from artfs.volume.rows import HEAD_KEY, Head, pack_block, unpack_block

log = logging.getLogger(__name__)

IMPORTING = "importing"
PROBLEMS = 3
"""How many an error names."""

CHANGES = "SELECT key, value FROM change WHERE version = ? AND key > ? ORDER BY version, key LIMIT ?"
SEEN = """SELECT key, value FROM change AS c WHERE key > ?1 AND value IS NOT NULL AND version =
    (SELECT max(version) FROM change AS d WHERE d.key = c.key AND d.version <= ?2) ORDER BY key LIMIT ?3"""

MOVED = """
PRAGMA journal_mode = OFF;
CREATE TABLE moved (object, offset, length, hash, number, place, PRIMARY KEY (object, offset, length)) WITHOUT ROWID;
"""
"""Where an import has put chunks: (old address) → object's number and place in it."""
PUT_MOVED = "INSERT INTO moved VALUES (?, ?, ?, ?, ?, ?)"
GET_MOVED = "SELECT hash, number, place FROM moved WHERE object = ? AND offset = ? AND length = ?"

T = TypeVar("T")


async def import_(
    store: Store, source: Path, place: GridPath | None = None, progress: Progress | None = None
) -> Namespace:
    """A new namespace from an exported file: in `place`, which may leave its name open, else where it was.  A name that
    is not asked for and taken gets ~2.  It lives for ever, and where new namespaces of its scope do.
    Errors: InvalidError and FormatError (not such a file), DamagedError, ExistsError, NotFoundError and ExpiredError
    (the session), NoSpaceError, UnavailableError."""
    with closing(await to_thread.run_sync(open_export, source)) as file:
        work = _Import(store, source, file, progress or silent)
        return await work.run(place)


class _Import:
    def __init__(self, store: Store, source: Path, file: sqlite3.Connection, progress: Progress) -> None:
        self.store = store
        self.shard = store.shard
        self.source = source
        self.file = file
        self.progress = progress
        self.moved = sqlite3.connect("", check_same_thread=False)  # a temporary file of sqlite's own
        self.moved.executescript(MOVED)
        self.about: dict[str, str] = {}
        self.versions: list[tuple[Any, ...]] = []

    async def run(self, place: GridPath | None) -> Namespace:
        try:
            namespace = await self._prepare(place)
            await to_thread.run_sync(self._check, namespace)
            return await self._bring(namespace, place is not None and place.namespace is not None)
        finally:
            self.moved.close()

    async def _prepare(self, place: GridPath | None) -> Namespace:
        """The namespace that it will be, with a serial of its own."""
        store = self.store
        await to_thread.run_sync(self._guarded, self._read)
        namespace = self._guarded(partial(self._described, place or GridPath()))
        store.alive_session(namespace)
        home = store.home_for(namespace.scope, namespace.type, None, None)
        if home is None:
            return namespace
        await store.use_provider(home)
        return replace(namespace, provider=home.provider, codec=home.codec)

    def _read(self) -> None:
        self.about = dict(self.file.execute("SELECT name, value FROM about"))
        self.versions = self.file.execute("SELECT * FROM version ORDER BY number").fetchall()
        if self.about.get("complete") != "1" or not self.versions or self.versions[-1][1] is not None:
            raise DamagedError(f"{self.source} is not complete; export the namespace again")

    def _described(self, place: GridPath) -> Namespace:
        document = json.loads(self.about["namespace"])
        sandbox, scope, owner = document["sandbox"], Scope(document["scope"]), document["owner"]
        if place.sandbox is not None and place.scope is not None:
            sandbox, scope, owner = place.sandbox, place.scope, place.owner
        size = document["block_size"]
        if size.bit_count() != 1 or not 1 << 17 <= size <= 1 << 22 or not isinstance(document["metadata"], dict):
            raise ValueError("its description cannot be read")
        id = f"ns-{uuid4().hex[:12]}"
        owner = owner_key(scope, owner)
        return Namespace(
            serial=self.store.catalogue.next_serial(),
            id=id,
            type=NamespaceType(document["type"]),
            sandbox=check_id("sandbox", sandbox),
            scope=scope,
            owner=owner,
            name=check_namespace_name(place.namespace or document["name"] or document["id"]),
            created=time_ns(),
            block_size=size,
            prefix=f"grid/{sandbox}/{scope_dir(scope, owner)}/{id}",
            uid=int(document["uid"]),
            gid=int(document["gid"]),
            umask=int(document["umask"]),
            metadata=document["metadata"],
        )

    def _guarded(self, work: Callable[[], T]) -> T:
        """What it does with a file that may hold anything.  Errors: DamagedError."""
        try:
            return work()
        except ArtfsError:
            raise
        except (sqlite3.Error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{self.source} is damaged ({error}); export the namespace again") from error

    # checks
    def _check(self, namespace: Namespace) -> None:
        """In a thread: every version follows the rules of a store.  Errors: DamagedError."""
        self._guarded(partial(self._check_versions, namespace))

    def _check_versions(self, namespace: Namespace) -> None:
        wrong: list[str] = []
        numbers, cookies = int(self.about["numbers"]), int(self.about["cookies"])
        for number, id, name, created, size, inodes, _, labels in self.versions:
            label = f"{namespace.entry}@{id}" if id else namespace.entry
            view = read_view(_File(self.file), namespace, label, Epoch(number), lambda ino, chunk: None)  # type: ignore[arg-type]
            wrong += [f"{where}: {what}" for _, where, what in problems(view)]
            wrong += [f"{label}: an inode without a name" for _ in view.orphans[:1]]
            if view.used() != (size, inodes):
                wrong.append(f"{label}: it counts {size} bytes in {inodes} inodes and holds {view.used()}")
            limits = view.limits()
            if not limits[0] < numbers <= 1 << 32 or not limits[1] <= cookies < 1 << 62:
                wrong.append(f"{label}: numbers beyond its counters are in use")
            if not isinstance(json.loads(labels), dict) or not isinstance(created, int) or (id and not name):
                wrong.append(f"{label}: it cannot be read")
            if wrong:
                raise DamagedError(f"{self.source} is damaged: {'; '.join(wrong[:PROBLEMS])}; export again")
        ids = [version[1] for version in self.versions]
        if len(set(ids)) != len(ids) or [v[0] for v in self.versions] != list(range(1, len(ids) + 1)):
            raise DamagedError(f"{self.source} is damaged: versions are missing; export the namespace again")

    # bringing it in
    async def _bring(self, namespace: Namespace, exact: bool) -> Namespace:
        store, shard = self.store, self.shard
        if exact and namespace.entry in store.catalogue.entries(*namespace.place):
            raise ExistsError(f"{namespace.grid_path} exists already; choose another name")
        serial = namespace.serial
        shard.catalogue.put_place(namespace)
        shard.catalogue.records[IMPORTING, str(serial)] = ""
        try:
            await shard.commit()
            shard.remote.settle(serial, namespace.home)
            shard.objects.register(serial, namespace.prefix, 0)
            if namespace.type is NamespaceType.BLOB:
                shard.objects.unbounded.add(serial)
            await self._put_chunks(serial)
            await self._written(shard.objects.sync)
            staged = await self._commit(namespace)
        except BaseException:
            with anyio.CancelScope(shield=True), suppress(ArtfsError, OSError):  # the next owner tries again
                await _clear(store, serial)
            raise
        with anyio.CancelScope(shield=True):
            try:
                named = await store.undelete_namespace(staged.id)  # under its name, or the next free one
            except ArtfsError:
                await store.destroy_namespace(staged, for_good=True)
                raise
        return named

    async def _put_chunks(self, serial: Serial) -> None:
        total = await to_thread.run_sync(lambda: self.file.execute("SELECT total(length) FROM chunk").fetchone()[0])
        done = last = 0
        while group := await to_thread.run_sync(self._guarded, partial(self._next_chunks, last)):
            if not await self.shard.remote.wait_room(self.shard.settings.wait_limit):
                raise UnavailableError("too much waits for upload; `artfs status` says why; try again")
            await self._written(self._move, serial, group)
            last = group[-1][0]
            done += sum(row[3] for row in group)
            self.progress(done, int(total))

    async def _written(self, call: Callable[..., None], *args: Any) -> None:
        """Errors: NoSpaceError, UnavailableError."""
        try:
            await to_thread.run_sync(call, *args)
        except (OSError, sqlite3.Error) as error:
            raise unwritable(self.shard.objects.root or Path("a temporary file"), error) from error

    def _next_chunks(self, last: int) -> list[tuple[int, int, int, int, bytes, bytes]]:
        found: list[tuple[int, int, int, int, bytes, bytes]] = []
        size = 0
        for row in self.file.execute("SELECT * FROM chunk WHERE id > ? ORDER BY id", (last,)):
            id, object, offset, length, hash, data = row
            if len(data) != length or xxh3_128_digest(data) != hash:
                raise DamagedError(f"{self.source} is damaged: chunk {id} is not what was exported; export again")
            found.append((id, object, offset, length, hash, data))
            size += length
            if size >= GROUP:
                break
        return found

    def _move(self, serial: Serial, group: list[tuple[int, int, int, int, bytes, bytes]]) -> None:
        chunks = self.shard.objects.append_all(serial, [row[5] for row in group])
        rows = [(*row[1:5], c.object, c.offset) for row, c in zip(group, chunks, strict=True)]
        self.moved.executemany(PUT_MOVED, rows)

    async def _commit(self, namespace: Namespace) -> Namespace:
        """One transaction; returns the namespace as it is then, in the trash."""
        catalogue, shard = self.store.catalogue, self.shard
        views = [catalogue.next_serial() for _ in self.versions[:-1]]
        size, inodes = self.versions[-1][4:6]
        numbers, cookies = int(self.about["numbers"]), int(self.about["cookies"])
        head = Head(len(self.versions), numbers, cookies, shard.objects.counts[namespace.serial], size, inodes)
        batches = await to_thread.run_sync(_Batches, self, namespace.serial, views, head)
        staged = replace(namespace, trashed=time_ns())
        async with shard.committing():
            records = catalogue.records
            catalogue.records = {}
            own = {(KIND, namespace.id): json.dumps(asdict(staged)), (IMPORTING, str(namespace.serial)): None}
            try:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(shard.engine.commit, batches, records | own)
            except BaseException:
                catalogue.records = records | catalogue.records
                raise
            catalogue.put(staged)
        return staged

    def rewritten(self, value: bytes) -> bytes:
        """A block's row that names chunks where they are now.  Errors: DamagedError."""
        block = unpack_block(value)
        for index, (start, end, source, offset) in enumerate(block):
            if isinstance(source, Chunk):
                address = source.object, source.offset, source.length
                found = self.moved.execute(GET_MOVED, address).fetchone()
                if found is None or found[0] != source.hash:
                    raise DamagedError(f"{self.source} is damaged: it lacks a chunk; export the namespace again")
                block[index] = start, end, Chunk(found[1], found[2], source.length, source.hash), offset
        return pack_block(block)


class _Batches(Sequence[Batch]):
    """The rows of all versions, a page at a time: an engine takes them in one transaction without holding them."""

    def __init__(self, work: _Import, serial: Serial, views: list[Serial], head: Head) -> None:
        self.work = work
        self.serial = serial
        self.views = views
        self.head = head
        self.pages: list[tuple[int, bytes, bool]] = []
        for version in range(1, len(work.versions) + 1):
            starts = [b""]
            while len(page := work.file.execute(CHANGES, (version, starts[-1], PAGE)).fetchall()) == PAGE:
                starts.append(page[-1][0])
            self.pages += [(version, start, start == starts[-1]) for start in starts]

    def __len__(self) -> int:
        return len(self.pages)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return self.work._guarded(partial(self._batch, *self.pages[index]))

    def _batch(self, version: int, start: bytes, last: bool) -> Batch:
        rows: dict[bytes, bytes | None] = {}
        for key, value in self.work.file.execute(CHANGES, (version, start, PAGE)):
            rows[key] = self.work.rewritten(value) if value is not None and key[:1] == b"B" else value
        checkpoint = None
        if last and version == len(self.work.versions):
            rows[HEAD_KEY] = self.head.pack()
        elif last:
            checkpoint = self._checkpoint(version)
        return Batch(self.serial, Epoch(version), rows, checkpoint)

    def _checkpoint(self, version: int) -> Checkpoint:
        number, id, name, created, size, inodes, description, labels = self.work.versions[version - 1]
        view = self.views[version - 1]
        return Checkpoint(Epoch(number), id, name, created, view, (size, inodes), description, json.loads(labels))


class _File:
    """As much of an engine as reading a view needs; epochs are versions."""

    def __init__(self, file: sqlite3.Connection) -> None:
        self.file = file

    def scan(self, serial: Serial, prefix: bytes, at: Epoch, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return self.file.execute(SEEN, (after, at, limit)).fetchall()


async def left_behind(store: Store) -> list[Serial]:
    """What imports of earlier processes had begun.  REQUIRES: none runs."""
    return [Serial(int(id)) for id in await to_thread.run_sync(store.shard.engine.records, IMPORTING)]


async def take_away(store: Store, serials: Sequence[Serial]) -> None:
    """What imports had begun that are no more."""
    for serial in serials:
        try:
            await _clear(store, serial)
        except (ArtfsError, OSError) as error:
            log.warning("what is left of an import is not taken away, the next owner tries again: %s", error)


async def _clear(store: Store, serial: Serial) -> None:
    shard = store.shard
    shard.objects.forget(serial, gone=True)
    await shard.remote.discard_namespaces([serial])
    for kind in (IMPORTING, "prefix", "home"):
        shard.catalogue.records[kind, str(serial)] = None
    await shard.commit()
