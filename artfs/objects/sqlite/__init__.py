"""The sqlite provider: objects as rows of one portable file, which plain `sqlite3` can read while it is open.

    object  name, size, etag, modified, id      an object; its bytes are the pieces `id`
    piece   id, number, data                    1 MiB each, the last one shorter; none of an empty object
    loose   id, owner, touched                  pieces that belong to no object: of a put under way, or given up

Several threads and processes may use one file.  Invariants:
1. pieces are written and deleted in transactions of a few (`BATCH`, `DELETED`), so that nobody waits long for another;
2. pieces belong to an object or are loose; one transaction makes a finished put's pieces those of its name, and the
   pieces that had that name loose.  Copies share pieces;
3. only that transaction waits for the disk (synchronous=FULL), and so for all that came before it in the WAL;
4. loose pieces are deleted by whoever made them loose, else by the next one who opens the file or deletes: those
   without an owner, and those whose owner has ended.  A put whose pieces were taken away all the same fails;
5. a put leaves `RESERVE` bytes of the disk free, so that deleting has room for its WAL.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO
from urllib.parse import quote

import apsw
from anyio import CancelScope, to_thread
from xxhash import xxh3_128

from artfs.errors import ArtfsError, BusyError, DamagedError, ExistsError, NoSpaceError, NotFoundError, UnavailableError
from artfs.objects import Capabilities, Info, check_name
from artfs.objects.sqlite.database import PAGE_SIZE, WAL_LIMIT, ObjectFile
from artfs.objects.sqlite.owner import has_ended, process

PIECE = 1 << 20
BATCH = 4
DELETED = 64
RESERVE = 2 * WAL_LIMIT

SPARE = 16 << 20
"""Bytes of free pages that a delete leaves in the file, for the next puts."""

PAGE = 1000
"""Names that are listed at once."""


class SqliteProvider:
    """See `artfs.objects.Provider`.  The file is made if its directory is there, and opened by the first call.  An etag
    is the XXH3-128 of the bytes.

    Errors, also of every call: DamagedError, FormatError, InvalidError (the file is something else), NotFoundError (of
    its directory), DeniedError, NoSpaceError, UnavailableError."""

    capabilities = Capabilities(adopts=False, durable=True)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite://{quote(str(path))}"
        self._db = ObjectFile(path)
        self._owner = f"{process(os.getpid())} {token_hex(8)}"
        self._putting: set[int] = set()
        self._swept = False

    async def check(self) -> None:
        def begin() -> None:
            with self._db.transaction():
                pass

        await to_thread.run_sync(begin)
        await self._open()

    async def _open(self) -> None:
        """Once: delete what others have left."""
        if not self._swept:
            await to_thread.run_sync(self._sweep)
            self._swept = True

    # writing
    async def put(self, name: str, source: Path | bytes) -> None:
        await self._store(check_name(name), source, True)

    async def create(self, name: str, data: bytes) -> None:
        await self._store(check_name(name), data, False)

    async def _store(self, name: str, source: Path | bytes, replaces: bool) -> None:
        def begin() -> _Put:
            try:
                file = BytesIO(source) if isinstance(source, bytes) else source.open("rb")
            except OSError as error:
                raise UnavailableError(f"object {name} cannot be read from {source!r}: {error.strerror}") from error
            return _Put(name, file, replaces)

        put = await to_thread.run_sync(begin)
        try:
            await self._open()
            while not await to_thread.run_sync(self._step, put):
                pass
        finally:
            put.file.close()
            if put.id is not None:
                with CancelScope(shield=True):
                    await to_thread.run_sync(self._give_up, put.id)
        if put.replaced:
            await to_thread.run_sync(self._sweep_later)

    def _step(self, put: _Put) -> bool:
        """Store the next pieces of `put`; true if they were the last ones."""
        try:
            data = memoryview(put.file.read(BATCH * PIECE))
        except OSError as error:
            raise UnavailableError(f"object {put.name} cannot be read: {error.strerror}") from error
        put.hash.update(data)
        first, last = put.size // PIECE, len(data) < BATCH * PIECE
        put.size += len(data)
        now = time.time_ns()
        with self._db.transaction(durable=last) as db:
            self._leave_room(len(data))
            if put.id is None:
                id = int(db.execute("INSERT INTO loose VALUES (NULL, ?, ?) RETURNING id", (self._owner, now)).get)
            else:
                id = put.id
                db.execute("UPDATE loose SET touched = ? WHERE id = ?", (now, id))
                if not db.changes():
                    raise UnavailableError(f"object {put.name} took so long that its pieces were taken for left over")
            pieces = range(0, len(data), PIECE)
            rows = [(id, first + at // PIECE, data[at : at + PIECE]) for at in pieces]
            db.executemany("INSERT INTO piece VALUES (?, ?, ?)", rows)
            if last:
                db.execute("DELETE FROM loose WHERE id = ?", (id,))
                put.replaced = _name(db, put.name, (put.size, put.hash.hexdigest(), now, id), put.replaces)
            else:
                self._putting.add(id)
        put.id = None if last else id
        if last:
            self._putting.discard(id)
        return last

    def _leave_room(self, size: int) -> None:
        """Errors: NoSpaceError if the disk is too full for `size` bytes and what deleting may need."""
        disk = os.statvfs(self.path.parent)
        if disk.f_bavail * disk.f_frsize < RESERVE + 2 * size:
            raise NoSpaceError(f"{self.path}: the disk is full but for the last {RESERVE >> 20} MiB; free some space")

    def _give_up(self, id: int) -> None:
        self._putting.discard(id)
        self._sweep_later()

    def _sweep_later(self) -> None:
        """Now if possible; what stays is loose.  The call that made it so has its own result to report."""
        with suppress(ArtfsError):
            self._sweep()

    async def copy(self, source: str, target: str, etag: str | None = None) -> None:
        check_name(source)
        check_name(target)
        if await to_thread.run_sync(self._copy, source, target, etag):
            await to_thread.run_sync(self._sweep_later)

    def _copy(self, source: str, target: str, etag: str | None) -> bool:
        with self._db.transaction() as db:
            row = db.execute("SELECT size, etag, id FROM object WHERE name = ?", (source,)).get
            if row is None:
                raise NotFoundError(f"object {source} is not in {self.path}")
            size, found, id = row
            if etag not in (None, found):
                raise BusyError(f"object {source} has changed: its etag is {found}, no longer {etag}")
            return source != target and _name(db, target, (size, found, time.time_ns(), id), True)

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            check_name(name)
        for at in range(0, len(names), PAGE):
            await to_thread.run_sync(self._delete, names[at : at + PAGE])
        await to_thread.run_sync(self._sweep)
        while await to_thread.run_sync(self._shrink):
            pass

    def _delete(self, names: Iterable[str]) -> None:
        with self._db.transaction() as db:
            for name in names:
                id = db.execute("DELETE FROM object WHERE name = ? RETURNING id", (name,)).get
                if id is not None:
                    _loosen(db, id)

    def _sweep(self) -> None:
        """Delete the loose pieces that nobody is writing."""
        for id, owner, touched in self._db.read("SELECT id, owner, touched FROM loose", ()):
            ours = owner == self._owner
            if id in self._putting if ours else owner is not None and not has_ended(owner, touched):
                continue
            more = True
            while more:
                with self._db.transaction(durable=False) as db:
                    if db.execute("SELECT 1 FROM loose WHERE id = ?", (id,)).get is None:
                        break  # its put has ended meanwhile, or another sweep
                    db.execute(
                        "DELETE FROM piece WHERE rowid IN (SELECT rowid FROM piece WHERE id = ? LIMIT ?)", (id, DELETED)
                    )
                    more = db.changes() == DELETED
                    if not more:
                        db.execute("DELETE FROM loose WHERE id = ?", (id,))

    def _shrink(self) -> bool:
        """Give some free pages back to the disk; false if there are few.  An eighth of the file may stay free: giving
        back a page moves another into its place."""
        with self._db.transaction(durable=False) as db:
            free, pages = db.execute("PRAGMA freelist_count").get, db.execute("PRAGMA page_count").get
            enough = free <= max(SPARE // PAGE_SIZE, pages // 8)
            if not enough:
                db.execute(f"PRAGMA incremental_vacuum({BATCH * PIECE // PAGE_SIZE})").fetchall()
        if enough:
            self._db.checkpoint()
        return not enough

    # reading
    async def get(self, name: str, offset: int, length: int) -> bytes:
        return await to_thread.run_sync(self._get, check_name(name), offset, length)

    def _get(self, name: str, offset: int, length: int) -> bytes:
        first, end = offset // PIECE, offset + length
        last = (end - 1) // PIECE if length else first - 1
        rows = self._db.read(
            "SELECT object.size, piece.number, piece.data FROM object LEFT JOIN piece "
            "ON piece.id = object.id AND piece.number BETWEEN ? AND ? WHERE object.name = ? ORDER BY piece.number",
            (first, last, name),
        )
        if not rows:
            raise NotFoundError(f"object {name} is not in {self.path}")
        size = rows[0][0]
        if end > size:
            raise UnavailableError(f"object {name} ends before {end}")
        if not length:
            return b""
        pieces = []
        for number, row in zip(range(first, last + 1), rows, strict=False):
            if row[1] != number or not isinstance(row[2], bytes) or len(row[2]) != min(PIECE, size - number * PIECE):
                break
            pieces.append(memoryview(row[2]))
        if len(pieces) != last - first + 1:
            raise DamagedError(f"object {name} of {self.path} lacks bytes; restore the file from a backup")
        pieces[-1] = pieces[-1][: end - last * PIECE]
        pieces[0] = pieces[0][offset - first * PIECE :]
        return b"".join(pieces)

    async def head(self, name: str) -> Info:
        statement = "SELECT size, etag, modified FROM object WHERE name = ?"
        rows = await to_thread.run_sync(self._db.read, statement, (check_name(name),))
        if not rows:
            raise NotFoundError(f"object {name} is not in {self.path}")
        return Info(*rows[0])

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        after, comparison = prefix, ">="
        while True:
            statement = f"SELECT name, size FROM object WHERE name {comparison} ? ORDER BY name LIMIT {PAGE}"
            rows = await to_thread.run_sync(self._db.read, statement, (after,))
            for name, size in rows:
                if not name.startswith(prefix):
                    return
                yield name, size
            if len(rows) < PAGE:
                return
            after, comparison = rows[-1][0], ">"

    async def tidy(self, before: float) -> int:
        return 0  # whoever opens it does that

    async def close(self) -> None:
        await to_thread.run_sync(self._db.close)


class _Put:
    """One that is under way.  `id`: of its pieces, while they are loose; `size`: bytes read; `replaced`: that there
    was an object of this name."""

    def __init__(self, name: str, file: BinaryIO, replaces: bool) -> None:
        self.name = name
        self.file = file
        self.replaces = replaces
        self.replaced = False
        self.id: int | None = None
        self.size = 0
        self.hash = xxh3_128()


def _name(db: apsw.Connection, name: str, row: tuple[int, str, int, int], replaces: bool) -> bool:
    """Give (size, etag, modified, id) its name; whether there was another.  Errors: ExistsError unless `replaces`."""
    old = db.execute("SELECT id FROM object WHERE name = ?", (name,)).get
    if old is not None and not replaces:
        raise ExistsError(f"object {name} exists already")
    db.execute("REPLACE INTO object VALUES (?, ?, ?, ?, ?)", (name, *row))
    if old is not None:
        _loosen(db, old)
    return old is not None


def _loosen(db: apsw.Connection, id: int) -> None:
    """An object has lost pieces `id`; others may have them."""
    if db.execute("SELECT 1 FROM object WHERE id = ?", (id,)).get is None:
        db.execute("INSERT INTO loose VALUES (?, NULL, ?)", (id, time.time_ns()))
