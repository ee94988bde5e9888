"""The file of a sqlite provider: its tables, its connections, and what its errors mean.

One *writer* runs every transaction, under a lock; *readers* see the last transaction that has ended, and do not wait.
A transaction begins IMMEDIATE, so it meets another process at its beginning or never.  Every statement of a reader is
run to its end at once: an unfinished one keeps the WAL from being reset.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from artfs.durable import sync_directory
from artfs.errors import (
    ArtfsError,
    DamagedError,
    FormatError,
    InvalidError,
    NoAccessError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)

APPLICATION = 0x61_66_6F_62
"""`PRAGMA application_id`: "afob"."""

FORMAT = 1
"""`PRAGMA user_version`."""

PAGE_SIZE = 32 << 10
WAL_LIMIT = 16 << 20
"""Bytes of WAL at which it is copied back, and to which it is cut."""

READERS = 4
"""Connections that are kept for the next readers."""

BUSY_MS = 10_000

TABLES = """
CREATE TABLE object (name TEXT PRIMARY KEY NOT NULL, size INTEGER NOT NULL, etag TEXT NOT NULL,
                     modified INTEGER NOT NULL, id INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX object_id ON object (id);
CREATE TABLE piece (id INTEGER NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (id, number));
CREATE TABLE loose (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, owner TEXT, touched INTEGER NOT NULL);
"""

_DAMAGE = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.FormatError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.SQLError,
)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ObjectFile:
    """The file at `path`; made if its directory is there, and opened by the first call.  Errors: see SqliteProvider."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = threading.Lock()
        self._pool = threading.Lock()
        self._writer: apsw.Connection | None = None
        self._readers: list[apsw.Connection] = []
        self._file = (0, 0)

    # opening
    def _connection(self) -> apsw.Connection:
        """The writer's.  REQUIRES: `_writing` is held."""
        if self._writer is None:
            try:
                writer = self._connect(create=True)
                try:
                    self._prepare(writer)
                    sync_directory(self.path.parent)
                    self._file = self._on_disk()
                except BaseException:
                    writer.close()
                    raise
            except apsw.NotADBError as error:
                raise InvalidError(f"{self.path} is no sqlite database; give objects a file of their own") from error
            self._writer = writer
        return self._writer

    def _connect(self, create: bool = False) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
        try:
            connection = apsw.Connection(str(self.path), flags=flags)
        except apsw.CantOpenError as error:
            if not self.path.parent.is_dir():
                raise NotFoundError(f"{self.path.parent}: no such directory; make it, or mount its disk") from error
            if self.path.is_dir():
                raise InvalidError(f"{self.path} is a directory; objects need a file") from error
            raise
        connection.set_busy_timeout(BUSY_MS)
        return connection

    def _prepare(self, writer: apsw.Connection) -> None:
        """Look before anything is written; make the tables if there is nothing yet."""
        if self._is_empty(writer):
            writer.execute(f"PRAGMA page_size = {PAGE_SIZE}; PRAGMA auto_vacuum = INCREMENTAL").fetchall()
            writer.execute("BEGIN IMMEDIATE")
            with writer:
                if self._is_empty(writer):
                    writer.execute(TABLES).fetchall()
                    writer.execute(f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT}").fetchall()
            if writer.in_transaction:
                writer.execute("COMMIT")
        deadline = time.monotonic() + BUSY_MS / 1000
        while True:
            # Where sqlite sees that waiting could be for ever it does not wait.
            try:
                mode = writer.execute("PRAGMA journal_mode = WAL").get
                break
            except apsw.BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        if mode != "wal":
            raise UnavailableError(f"{self.path}: its file system has no shared memory; use a local disk")
        pages = WAL_LIMIT // writer.execute("PRAGMA page_size").get
        writer.execute(f"PRAGMA wal_autocheckpoint = {pages}; PRAGMA journal_size_limit = {WAL_LIMIT}").fetchall()

    def _is_empty(self, writer: apsw.Connection) -> bool:
        """Errors: InvalidError, FormatError, DamagedError if there is something that this module cannot use."""
        with writer:  # another process may be making them
            application = writer.execute("PRAGMA application_id").get
            format = writer.execute("PRAGMA user_version").get
            tables = {name for (name,) in writer.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if application != APPLICATION:
            if application or format or tables:
                raise InvalidError(f"{self.path} is a database of something else; give objects a file of their own")
            return True
        if format > FORMAT:
            raise FormatError(f"{self.path} has format {format}, this artfs reads up to {FORMAT}: upgrade artfs")
        if format < 1 or not tables >= {"object", "piece", "loose"}:
            raise DamagedError(f"{self.path} has lost its tables; restore it from a backup")
        return False

    def _on_disk(self) -> tuple[int, int]:
        try:
            found = self.path.stat()
        except OSError as error:
            raise UnavailableError(f"{self.path} is gone ({error.strerror}); put it back, then restart") from error
        return found.st_dev, found.st_ino

    # transactions
    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ArtfsError:
            raise
        except (apsw.Error, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: apsw.Error | OSError) -> ArtfsError:
        system = error.errno if isinstance(error, OSError) else 0
        if isinstance(error, apsw.IOError) and self._writer is not None:
            system = self._writer.system_errno
        if isinstance(error, apsw.FullError) or system in _FULL:
            return NoSpaceError(f"{self.path}: the disk is full; free some space")
        if isinstance(error, apsw.ReadOnlyError | apsw.PermissionsError | apsw.CantOpenError):
            return NoAccessError(
                f"{self.path} cannot be written ({error}); let this user read and write it, and beside it"
            )
        if isinstance(error, _DAMAGE):
            return DamagedError(
                f"{self.path} is damaged ({error}); restore it from a backup, or try sqlite3's .recover"
            )
        if isinstance(error, apsw.BusyError | apsw.LockedError):
            return UnavailableError(f"{self.path}: another process has been writing for {BUSY_MS // 1000} s")
        return UnavailableError(f"{self.path}: {error}" + (f" ({os.strerror(system)})" if system else ""))

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[apsw.Connection]:
        with self._writing, self._errors():
            writer = self._connection()
            if self._on_disk() != self._file:
                raise UnavailableError(f"{self.path} is another file than before; put it back, then restart")
            writer.execute("PRAGMA synchronous = " + ("FULL" if durable else "NORMAL")).fetchall()
            writer.execute("BEGIN IMMEDIATE")
            try:
                yield writer
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise

    def read(self, statement: str, bindings: tuple[Any, ...]) -> list[Any]:
        """All rows, as of one moment."""
        with self._errors():
            with self._pool:
                reader = self._readers.pop() if self._readers else None
            if reader is None:
                with self._writing:
                    self._connection()
                reader = self._connect()
            kept = False
            try:
                rows = reader.execute(statement, bindings).fetchall()
                with self._pool:
                    kept = len(self._readers) < READERS and self._writer is not None
                    if kept:
                        self._readers.append(reader)
                return rows
            finally:
                if not kept:
                    reader.close(True)

    def checkpoint(self) -> None:
        """Copy the WAL back, which alone makes the file shorter.  One that meets a reader is made up for by a later."""
        with self._writing, self._errors():
            self._connection().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        with self._writing, self._pool, self._errors():
            for reader in self._readers:
                reader.close(True)
            self._readers.clear()
            if self._writer is not None:
                self._writer.close(True)
                self._writer = None
