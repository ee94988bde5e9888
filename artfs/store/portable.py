"""One namespace with its checkpoints as a single file.

What is in the file is described in `artfs.store.portable_file`; the other way is `artfs.store.importing`.

A checkpoint of our own (`PIN`) fixes the present state, and with it every chunk; the others are fixed by themselves.
Writers go on.  One that is deleted meanwhile ends the export with BusyError, for what it saw is gone.

Some pages of rows and some MiB of chunks are held at a time; besides, the rows that changed between two checkpoints.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import gmtime, strftime
from typing import Any
from uuid import uuid4

import anyio
from anyio import to_thread

from artfs.blocks import Chunk
from artfs.errors import ArtfsError, BusyError, DamagedError, NotFoundError
from artfs.meta import Checkpoint
from artfs.store.portable_file import FORMAT, Draft, unwritable
from artfs.store.store import Store
from artfs.together import all_at_once
from artfs.types import Epoch, Serial
from artfs.volume.catalogue import Namespace
from artfs.volume.rows import HEAD_KEY, Head, unpack_block
from artfs.volume.volume import Volume

log = logging.getLogger(__name__)

PIN = "~export-"
EXPORTING = "exporting"
"""The kind of records that name our checkpoints: pin → serial."""
PAGE = 2048
"""Rows that are read, or committed, at once."""
GROUP = 8 << 20
"""Bytes of chunks that are held at once."""

HAS_CHUNK = "SELECT 1 FROM chunk WHERE object = ? AND offset = ? AND length = ?"
PUT_CHUNK = "INSERT OR IGNORE INTO chunk (object, offset, length, hash, data) VALUES (?, ?, ?, ?, ?)"
Progress = Callable[[int, int], None]
Row = tuple[bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a file holds: checkpoints, rows that change, chunks and their bytes."""

    checkpoints: int
    rows: int
    chunks: int
    bytes: int


async def export(store: Store, namespace: Namespace, target: Path, progress: Progress | None = None) -> Summary:
    """Write `target`, which must not be there; it appears when it is whole and durable.  `progress` is told the bytes
    of chunks, of about how many.
    Errors: NotFoundError, ExistsError, BusyError, UnavailableError, NoSpaceError, DamagedError."""
    volume = store.volume(namespace)
    draft = await to_thread.run_sync(Draft, target)
    try:
        pin = f"{PIN}{strftime('%Y%m%dT%H%M%S', gmtime())}-{uuid4().hex[:8]}"
        try:
            await _claim(store, namespace.serial, pin)
            await store.settle(volume)
            pinned = await volume.checkpoint(pin, "holds what is being exported")
            await store.shard.commit()
            summary = await _Export(store, volume, pinned, draft.file, progress or silent).run()
        finally:
            with anyio.CancelScope(shield=True):
                await _release(store, namespace.serial, pin)
        await to_thread.run_sync(draft.publish)
    except sqlite3.Error as error:
        raise unwritable(draft.path, error) from error
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(draft.close)
    return summary


def shown(volume: Volume, all: bool = False) -> list[Checkpoint]:
    """A namespace's checkpoints without those that exports hold, unless `all`."""
    return [c for c in volume.checkpoints(all) if all or not c.name.startswith(PIN)]


async def left_pinned(store: Store) -> list[tuple[Serial, str]]:
    """What exports of earlier processes have pinned.  REQUIRES: none runs."""
    found = await to_thread.run_sync(store.shard.engine.records, EXPORTING)
    return [(Serial(int(serial)), pin) for pin, serial in found.items()]


async def release(store: Store, pins: Sequence[tuple[Serial, str]]) -> None:
    """Give up what exports had pinned that are no more."""
    for serial, pin in pins:
        await _release(store, serial, pin)


async def _claim(store: Store, serial: Serial, pin: str) -> None:
    """From here on the next owner takes the checkpoint away, should this process die."""
    store.catalogue.records[EXPORTING, pin] = str(serial)
    await store.shard.commit()


async def _release(store: Store, serial: Serial, pin: str) -> None:
    namespace = store.catalogue.by_serial.get(serial)
    try:
        if namespace is not None:
            with suppress(NotFoundError):
                await Volume(store.shard, namespace).delete_checkpoint(pin)
        store.catalogue.records[EXPORTING, pin] = None
        await store.shard.commit()
    except (ArtfsError, OSError) as error:
        log.warning("checkpoint %s of an export is left to the next owner: %s", pin, error)


class _Export:
    def __init__(
        self, store: Store, volume: Volume, pin: Checkpoint, file: sqlite3.Connection, progress: Progress
    ) -> None:
        self.shard = store.shard
        self.volume = volume
        self.serial = volume.tree.serial
        self.pin = pin
        self.file = file
        self.progress = progress
        self.rows = self.chunks = self.bytes = 0

    async def run(self) -> Summary:
        checkpoints = [c for c in await self._engine("checkpoints") if c.epoch <= self.pin.epoch]
        checkpoints = [c for c in checkpoints if c == self.pin or not c.name.startswith(PIN)]
        for number, checkpoint in enumerate(checkpoints, 1):
            await to_thread.run_sync(self._put_version, number, checkpoint)
            before = checkpoints[number - 2].epoch if number > 1 else None
            try:
                await self._put_changes(number, before, checkpoint.epoch)
            except NotFoundError as error:
                raise self._changed(str(error)) from error
            except DamagedError:
                await self._require(checkpoints)  # that, not damage, is the reason if one of them was deleted
                raise
        await self._require(checkpoints)
        await self._finish()
        return Summary(len(checkpoints) - 1, self.rows, self.chunks, self.bytes)

    async def _require(self, checkpoints: list[Checkpoint]) -> None:
        """All of them are still there."""
        left = {c.epoch for c in await self._engine("checkpoints")}
        for checkpoint in checkpoints:
            if checkpoint.epoch not in left:
                raise self._changed(f"checkpoint {checkpoint.id!r} was deleted")

    def _changed(self, what: str) -> BusyError:
        return BusyError(f"{self.volume.namespace.grid_path} was not exported: {what} meanwhile; try again")

    async def _finish(self) -> None:
        head = Head.unpack(await self._engine("get", HEAD_KEY) or b"")
        document = asdict(self.volume.namespace)
        for local in ("serial", "prefix", "provider", "codec", "trashed"):
            document.pop(local)
        about = {
            "format": str(FORMAT),
            "namespace": json.dumps(document),
            "numbers": str(head.numbers),
            "cookies": str(head.cookies),
            "complete": "1",
        }

        def work() -> None:
            self.file.executemany("INSERT INTO about VALUES (?, ?)", about.items())
            self.file.commit()

        await to_thread.run_sync(work)

    def _put_version(self, number: int, c: Checkpoint) -> None:
        named = (None, None) if c == self.pin else (c.id, c.name)
        described = ("", "{}") if c == self.pin else (c.description, json.dumps(dict(c.labels)))
        values = (number, *named, c.created, *c.usage, *described)
        self.file.execute("INSERT INTO version VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    async def _put_changes(self, number: int, before: Epoch | None, epoch: Epoch) -> None:
        if before is not None:
            changes = await self._engine("diff", before, epoch)
            for at in range(0, len(changes), PAGE):
                await self._put(number, epoch, [(c.key, c.after) for c in changes[at : at + PAGE]])
            return
        after = b""
        while page := await self._engine("scan", b"", epoch, after, PAGE):
            await self._put(number, epoch, page)
            after = page[-1][0]

    async def _put(self, number: int, epoch: Epoch, rows: Sequence[Row]) -> None:
        """The chunks first: a row whose chunk was moved meanwhile is another now."""
        done: list[tuple[bytes, int, bytes | None]] = []
        group: list[Chunk] = []
        pending: list[Row] = []
        for key, value in rows:
            pending.append((key, value))
            if value is not None and key[:1] == b"B":
                group += [source for _, _, source, _ in unpack_block(value) if isinstance(source, Chunk)]
            if sum(chunk.length for chunk in group) >= GROUP:
                done += await self._settled(number, epoch, pending, group)
                pending, group = [], []
        done += await self._settled(number, epoch, pending, group)
        await to_thread.run_sync(self.file.executemany, "INSERT INTO change VALUES (?, ?, ?)", done)
        self.rows += len(done)

    async def _settled(
        self, number: int, epoch: Epoch, rows: list[Row], chunks: list[Chunk]
    ) -> list[tuple[bytes, int, bytes | None]]:
        try:
            await self._put_chunks(chunks)
        except (DamagedError, NotFoundError):
            fresh = [(key, await self._engine("get", key, epoch) if value else value) for key, value in rows]
            if fresh == rows:
                raise
            rows = fresh
            blocks = [value for key, value in rows if value is not None and key[:1] == b"B"]
            await self._put_chunks([s for v in blocks for _, _, s, _ in unpack_block(v) if isinstance(s, Chunk)])
        return [(key, number, value) for key, value in rows]

    async def _put_chunks(self, chunks: list[Chunk]) -> None:
        """Those that are not there yet."""
        wanted = {(c.object, c.offset, c.length): c for c in chunks}

        def missing() -> list[Chunk]:
            return [c for address, c in wanted.items() if not self.file.execute(HAS_CHUNK, address).fetchone()]

        found: list[tuple[int, int, int, bytes, bytes]] = []

        async def read(chunk: Chunk) -> None:
            data = await self.shard.remote.read(chunk)
            found.append((chunk.object, chunk.offset, chunk.length, chunk.hash, data))

        await all_at_once([partial(read, chunk) for chunk in await to_thread.run_sync(missing)])
        found.sort(key=lambda item: item[:2])
        await to_thread.run_sync(self.file.executemany, PUT_CHUNK, found)
        self.chunks += len(found)
        self.bytes += sum(item[2] for item in found)
        self.progress(self.bytes, max(self.bytes, self.pin.usage[0]))

    async def _engine(self, call: str, *args: Any) -> Any:
        return await to_thread.run_sync(getattr(self.shard.engine, call), self.serial, *args)


def silent(done: int, total: int) -> None:
    pass
