"""One namespace with its checkpoints as a single file.

The file is an sqlite database (`SCHEMA`; docs/operations.md explains it).  A *version* is a checkpoint, or the present
state, which is the last one.  What a version holds is what the one before it holds, with its own `change`s applied; the
first begins with nothing.  Each chunk that a block of any version names is there once, under the address that the
blocks name it by; an import gives it another.

Export: a checkpoint of our own (`PIN`) fixes the present state, and with it every chunk; the others are fixed by
themselves.  Writers go on.  One that is deleted meanwhile ends the export with BusyError, for what it saw is gone.

Some pages of rows and some MiB of chunks are held at a time; besides, the rows that changed between two checkpoints.
The other way is `artfs.store.importing`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from functools import partial
from pathlib import Path
from time import gmtime, strftime
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import anyio
from anyio import to_thread

from artfs.blocks import Chunk
from artfs.errors import (
    ArtfsError,
    BusyError,
    DamagedError,
    DeniedError,
    ExistsError,
    FormatError,
    FsError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.meta import Checkpoint
from artfs.store.store import Store
from artfs.types import Epoch
from artfs.volume.catalogue import Namespace
from artfs.volume.rows import HEAD_KEY, Head, unpack_block
from artfs.volume.volume import Volume

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the file."""
APPLICATION = 0x61727466
"""What file(1) can tell such a file by."""
PIN = "~export-"
PAGE = 2048
"""Rows that are read, or committed, at once."""
GROUP = 8 << 20
"""Bytes of chunks that are held at once."""

SCHEMA = f"""
PRAGMA page_size = 16384;
PRAGMA application_id = {APPLICATION};
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE about (                 -- format, namespace (a JSON object), numbers and cookies (its counters), complete
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE version (               -- the oldest first
    number      INTEGER PRIMARY KEY, -- 1, 2, 3 …
    id          TEXT,                -- the checkpoint's; the present state, which is the last, has none
    name        TEXT,
    created     INTEGER NOT NULL,    -- nanoseconds since 1970
    bytes       INTEGER NOT NULL,
    inodes      INTEGER NOT NULL,
    description TEXT NOT NULL,
    labels      TEXT NOT NULL        -- a JSON object
);
CREATE TABLE change (
    key     BLOB NOT NULL,           -- of a row: an inode, a name, a block or an attribute
    version INTEGER NOT NULL,        -- since which it is this
    value   BLOB,                    -- NULL: the row is gone
    PRIMARY KEY (key, version)
) WITHOUT ROWID;
CREATE INDEX change_version ON change (version, key);
CREATE TABLE chunk (
    id     INTEGER PRIMARY KEY,
    object INTEGER NOT NULL,         -- with offset and length, the address that blocks name
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    hash   BLOB NOT NULL,            -- XXH3-128
    data   BLOB NOT NULL,
    UNIQUE (object, offset, length)
);
"""
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
    draft = await to_thread.run_sync(_Draft, target)
    try:
        await store.settle(volume)
        stamp = strftime("%Y%m%dT%H%M%S", gmtime())
        pin = await volume.checkpoint(f"{PIN}{stamp}-{uuid4().hex[:8]}", "holds what is being exported")
        try:
            await store.shard.commit()
            summary = await _Export(store, volume, pin, draft.file, progress or silent).run()
        finally:
            with anyio.CancelScope(shield=True), suppress(NotFoundError, FsError):
                await volume.delete_checkpoint(pin.id)
        await to_thread.run_sync(draft.publish)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(draft.close)
    return summary


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

        await _all([partial(read, chunk) for chunk in await to_thread.run_sync(missing)])
        found.sort(key=lambda item: item[:2])
        await to_thread.run_sync(self.file.executemany, PUT_CHUNK, found)
        self.chunks += len(found)
        self.bytes += sum(item[2] for item in found)
        self.progress(self.bytes, max(self.bytes, self.pin.usage[0]))

    async def _engine(self, call: str, *args: Any) -> Any:
        return await to_thread.run_sync(getattr(self.shard.engine, call), self.serial, *args)


# files
class _Draft:
    """`FILE.part`, an export in the making.  Errors: ExistsError, BusyError, NotFoundError, DeniedError, NoSpaceError,
    UnavailableError."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        if os.path.lexists(target):
            raise ExistsError(f"{target} exists already; choose another name, or remove it")
        self._fd = -1
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            flock(self._fd, LOCK_EX | LOCK_NB)
            os.ftruncate(self._fd, 0)
            self.file = sqlite3.connect(self.path, check_same_thread=False)
            self.file.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            if self._fd >= 0:
                os.close(self._fd)
            raise unwritable(self.path, error) from error

    def publish(self) -> None:
        self.file.close()
        os.fsync(self._fd)
        try:
            os.link(self.path, self.target)  # unlike rename, it never replaces another's
        except FileExistsError:
            raise ExistsError(f"{self.target} exists by now; choose another name") from None
        except OSError:  # not every file system has links
            os.rename(self.path, self.target)
        folder = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Nothing is left of the draft."""
        self.file.close()
        self.path.unlink(missing_ok=True)
        os.close(self._fd)


def open_export(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise NotFoundError(f"{path}: there is no such file")
    file = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, check_same_thread=False)
    try:
        found = file.execute("SELECT value FROM about WHERE name = 'format'").fetchone()
        if file.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
            found = None
    except sqlite3.Error:
        found = None
    if found is None or not str(found[0]).isdigit():
        file.close()
        raise InvalidError(f"{path} is no export of artfs, or an incomplete one; `artfs export` makes one")
    if int(found[0]) > FORMAT:
        file.close()
        raise FormatError(f"{path} has format {found[0]}, this artfs reads up to {FORMAT}: upgrade artfs")
    return file


def unwritable(path: Path, error: Exception) -> ArtfsError:
    if isinstance(error, BlockingIOError):
        return BusyError(f"{path} is being written by another export")
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path.parent} does not exist; make it, or choose another place")
    if isinstance(error, PermissionError):
        return DeniedError(f"{path} cannot be written by the store's owner; choose another place")
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error):
        return NoSpaceError(f"{path}: the disk is full; free some space, or choose another place")
    return UnavailableError(f"{path} cannot be written: {error}")


async def _all(calls: Sequence[Callable[[], Any]]) -> None:
    """At once; the first error as it is."""
    failures: list[Exception] = []

    async def one(call: Callable[[], Any]) -> None:
        try:
            await call()
        except Exception as error:
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(one, call)
    if failures:
        raise failures[0]


def silent(done: int, total: int) -> None:
    pass
