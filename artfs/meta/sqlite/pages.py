"""The bytes of a live database as they are at one moment, and a database made of such bytes.

An *image* is what the database file would hold if all of its WAL were copied back: a whole number of pages.

How a moment is held.  Three connections of its own: one takes the write lock, so that nobody commits; one begins a
read transaction, which pins that moment; one copies back as much of the WAL as readers allow and learns from that how
many frames it has.  Then the write lock is given back: it was held for a few milliseconds, whatever the size of the
database.  As long as the read transaction lasts,

1. no checkpoint changes a page of the file to what a later transaction wrote, and
2. if frames are left that are not copied back, the WAL does not start anew: they stay where they are.

So the image is the file, with the pages of those frames in place of what the file has.  What is copied back meanwhile
are only such pages.  The bytes come through sqlite's own handles (opening the file besides would lose sqlite's locks
when it is closed), in pieces of any size: no pass through its cache, and no copy of the database anywhere.

Transactions go on meanwhile and the WAL grows with them, so an image is closed soon; the next checkpoint cuts it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

import apsw

from artfs.errors import ArtfsError, DamagedError, NoSpaceError, NotFoundError, UnavailableError
from artfs.meta.schema import VERSIONED_TABLES

BUSY_MS = 5_000
TRIES = 10_000
TRY = 0.0005
"""Tries to get the write lock, and seconds between them."""
WAL_HEADER = 32
FRAME = Struct(">II")
"""A frame's page number and, if it ends a transaction, the pages of the database; 24 bytes with salts and checksums."""
FRAME_HEADER = 24
ATTEMPTS = 600
PAUSE = 0.05
"""Looks at the WAL while another connection copies it back, and seconds between them."""
_FULL = {apsw.SQLITE_FULL, apsw.SQLITE_IOERR_SHMSIZE}


class Pages:
    """The database `path` as something to take images of.  One thread at a time.
    Errors, of every call: NotFoundError, DamagedError, UnavailableError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise NotFoundError(f"{path}: no such database")
        self._connections: list[apsw.Connection] = []
        try:
            with _errors(path):
                for _ in range(3):
                    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
                    self._connections.append(connection)
                    connection.set_busy_timeout(BUSY_MS)
                    connection.execute("PRAGMA synchronous = FULL").fetchall()
                    connection.execute("PRAGMA cache_size = -256").fetchall()
        except BaseException:
            self.close()
            raise
        self._lock, self._reader, self._copier = self._connections
        # sqlite's own wait sleeps for so long that a busy writer never leaves it a gap.
        self._lock.set_busy_handler(_wait)

    def version(self) -> int:
        """Another number than before if anything was committed in between, by whomever."""
        with _errors(self.path):
            return _number(self._copier.execute("PRAGMA data_version").get)

    @contextmanager
    def image(self) -> Iterator[Image]:
        """The database as it is now, until the end of the context."""
        reader = self._reader
        try:
            with _errors(self.path):
                frames = self._pin()
                size = _number(reader.execute("PRAGMA page_size").get)
                count = _number(reader.execute("PRAGMA page_count").get)
                image = Image(self.path, reader, size, count, frames)
            yield image
        finally:
            if reader.in_transaction:
                reader.execute("ROLLBACK")

    def _pin(self) -> int:
        """Begin the read transaction.  Returns how many of the WAL's frames are to be laid over the file."""
        self._copy_back()  # most of it, and its fsyncs, while others may write
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE)
            self._lock.execute("BEGIN IMMEDIATE")
            try:
                self._reader.execute("BEGIN")
                self._reader.execute("SELECT count(*) FROM sqlite_schema").fetchall()
                frames, copied = self._copy_back()
            finally:
                self._lock.execute("ROLLBACK")
            if frames >= 0:
                return frames if copied < frames else 0
            self._reader.execute("ROLLBACK")  # another checkpoint runs, so that ours could not even look
        raise UnavailableError(f"{self.path}: another process keeps its log busy; it is tried again")

    def _copy_back(self) -> tuple[int, int]:
        """(frames in the WAL, frames that the file has); (-1, -1) if nobody could say."""
        busy, frames, copied = map(_number, self._copier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()[0])
        return (-1, -1) if busy or frames < 0 else (frames, copied)

    def close(self) -> None:
        for connection in self._connections:
            connection.close(True)
        self._connections = []


class Image:
    """`size` bytes, in pages of `page_size`.  REQUIRES: it is read within its context."""

    def __init__(self, path: Path, reader: apsw.Connection, page_size: int, count: int, frames: int) -> None:
        self.path = path
        self.page_size = page_size
        self.size = page_size * count
        self._reader = reader
        self._overlay = self._frames(frames)

    def _frames(self, count: int) -> dict[int, int]:
        """Page, counted from 0 → where its newest bytes are in the WAL."""
        found: dict[int, int] = {}
        at = WAL_HEADER
        for _ in range(count):
            page, _ = FRAME.unpack(self._bytes(1, at, FRAME.size))
            found[page - 1] = at + FRAME_HEADER
            at += FRAME_HEADER + self.page_size
        return found

    def _bytes(self, which: int, offset: int, length: int) -> bytes:
        with _errors(self.path):
            whole, data = self._reader.read("main", which, offset, length)
        if not whole:
            raise DamagedError(f"{self.path} ends before {offset + length}: run `artfs fsck`")
        return data

    def read(self, offset: int, length: int) -> bytes:
        """Whole pages; fewer at the end.  REQUIRES: `offset` and `length` are multiples of the page size."""
        length = min(length, self.size - offset)
        first = offset // self.page_size
        pages = range(first, first + length // self.page_size)
        laid = [page for page in pages if page in self._overlay] if self._overlay else ()
        if not laid:
            return self._bytes(0, offset, length)
        if len(laid) == len(pages):  # the file may not reach this far yet
            return b"".join(self._bytes(1, self._overlay[page], self.page_size) for page in pages)
        parts = [
            self._bytes(1, self._overlay[page], self.page_size)
            if page in self._overlay
            else self._bytes(0, page * self.page_size, self.page_size)
            for page in pages
        ]
        return b"".join(parts)


class Restoring:
    """The database `path`, made of the pieces of an image in any order; what was there is gone.
    Errors, of every call: NoSpaceError, UnavailableError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        with _errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, offset: int, data: bytes) -> None:
        """From any thread."""
        with _errors(self.path):
            view = memoryview(data)
            while view:
                written = os.pwrite(self._fd, view, offset)
                view = view[written:]
                offset += written

    def finish(self) -> None:
        """All of it is on the disk, and a database.  Errors: DamagedError if it is none."""
        with _errors(self.path):
            os.fsync(self._fd)
            self.close()
            connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                found = [str(line) for (line,) in connection.execute("PRAGMA quick_check")]
            finally:
                connection.close(True)
        if found != ["ok"]:
            raise DamagedError(f"{self.path}: what was saved is no whole database: {found[0]}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)  # no connection is open: there are no locks to lose
            self._fd = -1


def transplant(path: Path, source: Path, serials: Iterable[int]) -> None:
    """In the database `path` these namespaces have the rows and checkpoints that they have in `source`; all of them, or
    nothing is done.  Errors: DamagedError, NoSpaceError, UnavailableError."""
    with _errors(path):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.execute("ATTACH ? AS source", (str(source),))
            with connection:
                for table in VERSIONED_TABLES:
                    for serial in serials:
                        connection.execute(f"DELETE FROM main.{table} WHERE serial = ?", (serial,))
                        rows = f"SELECT * FROM source.{table} WHERE serial = ?"
                        connection.execute(f"INSERT INTO main.{table} {rows}", (serial,))
        finally:
            connection.close(True)


def _wait(tries: int) -> bool:
    time.sleep(TRY)
    return tries < TRIES


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError, apsw.FormatError, apsw.SQLError) as error:
        raise DamagedError(f"{path} is damaged ({error}): run `artfs fsck`") from error
    except ArtfsError:
        raise
    except apsw.Error as error:
        if getattr(error, "extendedresult", 0) in _FULL or isinstance(error, apsw.FullError):
            raise NoSpaceError(f"{path}: the disk is full: free some space") from error
        raise UnavailableError(f"{path}: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"{path}: the disk is full: free some space") from error
        raise UnavailableError(f"{path}: {error}") from error
