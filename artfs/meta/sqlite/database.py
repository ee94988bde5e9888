"""The sqlite engine's database: connections, transactions, errors, and what happens on a full disk.

Invariants:
1. a transaction begins IMMEDIATE, so it meets another writer at its beginning or never;
2. every statement on the reader is run to its end at once: an unfinished one keeps the WAL from being reset, as a
   `snapshot` does for as long as it is open;
3. synchronous=FULL: COMMIT returns when the WAL is on the disk;
4. a failed transaction is rolled back, and the database is usable after it;
5. on a full disk the ballast goes to copying back the WAL and to transactions that free rows, nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apsw

from artfs.durable import sync_directory
from artfs.errors import (
    ArtfsError,
    DamagedError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.meta import schema as sql
from artfs.meta.ballast import SIZE, Ballast

BUSY_MS = 5_000
"""How long a transaction waits for another connection's."""

WAL_LIMIT = SIZE
"""Bytes of WAL at which it is copied back, and to which it is cut when one transaction made it longer;
not more than the ballast, see `_shrink_wal`."""

CACHE_KIB = 16_384

_DAMAGE = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.FormatError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.SQLError,
)
_BAD_IO = {apsw.SQLITE_IOERR_CORRUPTFS, apsw.SQLITE_IOERR_DATA}
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Database:
    """The database file `path`, its WAL and its ballast; the directory must exist.

    The *writer* runs every transaction, from any thread, and the queries that may take long.  The *reader*
    answers short ones while a transaction runs, and sees the last that has ended.  Errors: see
    SqliteEngine.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._reading = threading.RLock()
        self.ballast = Ballast(path.with_suffix(".ballast"))
        if not create and not path.exists():
            raise NotFoundError(f"{path}: no such database")
        opened: list[apsw.Connection] = []
        try:
            opened.append(apsw.Connection(str(path)))
            self.writer = opened[0]
            self._prepare(create)
            opened.append(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE))
            self._reader = opened[1]
            self._configure(self._reader)
            self._cursor = self._reader.cursor()
            sync_directory(path.parent)
        except BaseException as error:
            failure = self._failure(error, opened[0] if opened else None)
            for connection in opened:
                connection.close(True)
            raise failure from error
        self.ballast.fill()

    def _prepare(self, create: bool) -> None:
        """Look at the format before anything is written, and make the tables if there are none."""
        writer = self.writer
        writer.set_busy_timeout(BUSY_MS)
        if self._has_tables():
            found = str(writer.execute("SELECT value FROM meta WHERE name = 'format'").get)
            if not found.isdigit():
                raise DamagedError(f"{self.path}: format {found!r} is no number: run `artfs fsck`")
            if int(found) > sql.FORMAT:
                raise FormatError(f"{self.path} has format {found}, this artfs reads up to {sql.FORMAT}: upgrade artfs")
        elif not create:
            raise DamagedError(f"{self.path}: the database has lost its tables: run `artfs fsck`")
        else:
            writer.execute(f"PRAGMA page_size = {sql.PAGE_SIZE}")
        writer.execute("PRAGMA journal_mode = WAL").fetchall()
        self._configure(writer)
        if not self._has_tables():
            self._attempt(lambda: writer.execute(sql.TABLES).fetchall())
        elif int(found) < sql.FORMAT:  # nothing to be changed, but an older artfs must not touch it any more
            self._attempt(lambda: writer.execute("UPDATE meta SET value = ? WHERE name = 'format'", (str(sql.FORMAT),)))

    def _has_tables(self) -> bool:
        return bool(self.writer.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'").get)

    def _configure(self, connection: apsw.Connection) -> None:
        connection.set_busy_timeout(BUSY_MS)
        page_size = connection.execute("PRAGMA page_size").get
        for name, value in {
            "synchronous": "FULL",
            "cache_size": -CACHE_KIB,
            "wal_autocheckpoint": WAL_LIMIT // page_size,
            "journal_size_limit": WAL_LIMIT,
            "temp_store": "MEMORY",
        }.items():
            connection.execute(f"PRAGMA {name} = {value}").fetchall()

    # errors and transactions
    def _failure(self, error: BaseException, connection: apsw.Connection | None) -> BaseException:
        """The error of artfs that says what sqlite's or the system's means; others stay as they are."""
        if isinstance(error, ArtfsError):
            return error
        system = 0
        if isinstance(error, OSError):
            system = error.errno or 0
        elif isinstance(error, apsw.IOError) and connection is not None:
            system = connection.system_errno
        elif not isinstance(error, apsw.Error):
            return error
        # A quota, or the WAL's index that cannot grow, is not reported as a full disk.
        detail = getattr(error, "extendedresult", 0)
        if isinstance(error, apsw.FullError) or system in _FULL or detail == apsw.SQLITE_IOERR_SHMSIZE:
            return NoSpaceError(f"{self.path}: the disk is full: free some space")
        if isinstance(error, _DAMAGE) or detail in _BAD_IO:
            return DamagedError(f"{self.path} is damaged ({error}): run `artfs fsck`")
        return UnavailableError(f"{self.path}: {error}" + (f" ({os.strerror(system)})" if system else ""))

    def _attempt(self, work: Callable[[], object]) -> None:
        writer = self.writer
        try:
            writer.execute("BEGIN IMMEDIATE")
            try:
                work()
                writer.execute("COMMIT")
            except BaseException as error:
                failure = self._failure(error, writer)
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                if failure is error:
                    raise
                raise failure from error
        except apsw.Error as error:
            raise self._failure(error, None) from error

    def transact(self, work: Callable[[], object], *, freeing: bool = False) -> None:
        """Run `work` in a transaction; REQUIRES: it can run twice.  `freeing` may use up the ballast."""
        with self.lock:
            try:
                self._attempt(work)
            except NoSpaceError:
                self._shrink_wal()
                if not freeing:
                    raise
                try:
                    self._attempt(work)
                except NoSpaceError:
                    self._shrink_wal()
                    raise
            finally:
                self.ballast.fill()

    def _shrink_wal(self) -> None:
        """After a transaction that met a full disk: give back what it wrote, and the rest of the WAL.

        Copying the WAL back may make the database grow by as much before anything is given back: the
        ballast makes room for that.
        """
        self.ballast.drop()
        # If there is no room even so, or another connection reads, the caller's NoSpaceError says it all.
        with contextlib.suppress(apsw.Error):
            self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # queries
    def value(self, statement: str, bindings: tuple[Any, ...]) -> Any:
        """The one value that the reader finds, or None."""
        with self._reading:
            try:
                return self._cursor.execute(statement, bindings).get
            except apsw.Error as error:
                raise self._failure(error, None) from error

    def read(self, statement: str, bindings: tuple[Any, ...]) -> list[Any]:
        """All rows, from the reader."""
        with self._reading:
            try:
                return self._cursor.execute(statement, bindings).fetchall()
            except apsw.Error as error:
                raise self._failure(error, None) from error

    def query(self, statement: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
        """All rows, from the writer: for what a transaction is about, and for what may take long."""
        with self.lock:
            try:
                return self.writer.execute(statement, bindings).fetchall()
            except apsw.Error as error:
                raise self._failure(error, None) from error

    def run(self, statement: str, bindings: tuple[Any, ...]) -> None:
        """A statement of the transaction that is running."""
        self.writer.execute(statement, bindings)

    def run_many(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """A statement of the transaction that is running, for each of `rows`."""
        self.writer.executemany(statement, rows)

    def changes(self, statement: str, bindings: tuple[Any, ...]) -> int:
        """The same of one statement: how many rows it changed."""
        self.writer.execute(statement, bindings)
        return self.writer.changes()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Callable[[str, tuple[Any, ...]], Iterator[Any]]]:
        """A call that reads the rows of statements one by one, all of them as the database is at the first.  A
        connection of its own: transactions go on, and the WAL grows with them until the end."""
        connection: apsw.Connection | None = None
        try:
            connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
            self._configure(connection)
            connection.execute("BEGIN")
            yield connection.execute
        except apsw.Error as error:
            raise self._failure(error, None) from error
        finally:
            if connection is not None:
                connection.close(True)

    def wal_bytes(self) -> int:
        wal = self.path.with_name(self.path.name + "-wal")
        return wal.stat().st_size if wal.exists() else 0

    def close(self) -> None:
        with self.lock, self._reading:
            self._reader.close(True)
            self.writer.close(True)
