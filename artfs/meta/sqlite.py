"""The sqlite engine: one database file in WAL mode, `schema.py` holds its tables and statements.

Two connections: the *writer* runs every transaction, from any thread, and the reads that may take long
(differences, checks); the *reader* answers `get`, `scan`, `checkpoints` and records while a transaction runs,
and sees the last one that has ended.  Others (the session store's) may write to their own tables in between.

Invariants, besides those of `artfs.meta`:
1. a transaction begins IMMEDIATE, so it meets another writer at its beginning or never;
2. every statement on the reader is run to its end at once: an unfinished one keeps the WAL from being reset;
3. synchronous=FULL: COMMIT returns when the WAL is on the disk;
4. a failed transaction is rolled back, and the engine is usable after it;
5. on a full disk the ballast goes to copying back the WAL and to transactions that free rows, to nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw

from artfs.errors import (
    ArtfsError,
    DamagedError,
    ExistsError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.meta import Batch, Change, Checkpoint
from artfs.meta import schema as sql
from artfs.meta.ballast import SIZE, Ballast
from artfs.meta.rules import FIRST, PLAIN, changes, prefix_range, require_newer, require_valid
from artfs.types import NEVER, Epoch, Serial

BUSY_MS = 5_000
"""How long a transaction waits for another connection's."""

WAL_LIMIT = SIZE
"""Bytes of WAL at which it is copied back, and to which it is cut when one transaction made it longer; not more
than the ballast, see `_shrink_wal`."""

CACHE_KIB = 16_384
CHUNK = 256
WRONG_LINES = 20

_DAMAGE = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.FormatError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.SQLError,
)
_BAD_IO = {apsw.SQLITE_IOERR_CORRUPTFS, apsw.SQLITE_IOERR_DATA}


class SqliteEngine:
    """An `artfs.meta.Engine` in the database `path`; its directory must exist.

    With `create` a missing or empty database is made; without, it is a NotFoundError or a DamagedError.
    Also raises FormatError, DamagedError, NoSpaceError, UnavailableError.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._reading = threading.RLock()
        self._ballast = Ballast(path.with_suffix(".ballast"))
        if not create and not path.exists():
            raise NotFoundError(f"{path}: no such database")
        opened: list[apsw.Connection] = []
        try:
            opened.append(apsw.Connection(str(path)))
            self._writer = opened[0]
            self._prepare(create)
            opened.append(self._connect())
            self._reader = opened[1]
            self._cursor = self._reader.cursor()
            self._sync_directory()
        except BaseException as error:
            failure = self._failure(error, opened[0] if opened else None)
            for connection in opened:
                connection.close(True)
            if failure is None:
                raise
            raise failure from error
        self._ballast.fill()

    # opening
    def _connect(self, connection: apsw.Connection | None = None) -> apsw.Connection:
        connection = connection or apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
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
        return connection

    def _prepare(self, create: bool) -> None:
        """Look at the format before anything is written, and make the tables if there are none."""
        writer = self._writer
        writer.set_busy_timeout(BUSY_MS)
        if self._has_tables():
            found = writer.execute("SELECT value FROM meta WHERE name = 'format'").get
            if not str(found).isdigit():
                raise DamagedError(f"{self._path}: format {found!r} is no number: run `artfs fsck`")
            if int(found) > sql.FORMAT:
                raise FormatError(
                    f"{self._path} has format {found}, this artfs reads up to {sql.FORMAT}: upgrade artfs"
                )
        elif not create:
            raise DamagedError(f"{self._path}: the database has lost its tables: run `artfs fsck`")
        else:
            writer.execute(f"PRAGMA page_size = {sql.PAGE_SIZE}")
        writer.execute("PRAGMA journal_mode = WAL").fetchall()
        self._connect(writer)
        if not self._has_tables():
            self._attempt(lambda: writer.execute(sql.TABLES).fetchall())

    def _has_tables(self) -> bool:
        return bool(self._writer.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'").get)

    def _sync_directory(self) -> None:
        fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # errors and transactions
    def _failure(self, error: BaseException, connection: apsw.Connection | None) -> ArtfsError | None:
        """The error of the tree that says what sqlite's means; None if it is not sqlite's."""
        full = f"{self._path}: the disk is full: free some space"
        if not isinstance(error, apsw.Error):
            return None
        if isinstance(error, apsw.FullError):
            return NoSpaceError(full)
        if isinstance(error, apsw.IOError):
            # A quota, or the WAL's index that cannot grow, is not reported as a full disk.
            system = 0 if connection is None else connection.system_errno
            detail = getattr(error, "extendedresult", 0)
            if system in (errno.ENOSPC, errno.EDQUOT) or detail == apsw.SQLITE_IOERR_SHMSIZE:
                return NoSpaceError(full)
            if detail not in _BAD_IO:
                return UnavailableError(f"{self._path}: {error} ({os.strerror(system)})")
        if isinstance(error, (*_DAMAGE, apsw.IOError)):
            return DamagedError(f"{self._path} is damaged ({error}): run `artfs fsck`")
        return UnavailableError(f"{self._path}: {error}")

    def _attempt(self, work: Callable[[], object]) -> None:
        writer = self._writer
        try:
            writer.execute("BEGIN IMMEDIATE")
            try:
                work()
                writer.execute("COMMIT")
            except BaseException as error:
                failure = self._failure(error, writer)
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                if failure is None:
                    raise
                raise failure from error
        except apsw.Error as error:
            raise self._failure(error, None) or error from error

    def _transact(self, work: Callable[[], object], *, freeing: bool = False) -> None:
        """Run `work` in a transaction; REQUIRES: it can run twice.  `freeing` may use up the ballast."""
        with self._lock:
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
                self._ballast.fill()

    def _shrink_wal(self) -> None:
        """After a transaction that met a full disk: give back what it wrote, and the rest of the WAL.

        Copying the WAL back may make the database grow by as much, before anything is given back: the ballast
        makes room for that.
        """
        self._ballast.drop()
        with contextlib.suppress(
            apsw.Error
        ):  # still no room, or another connection reads: the caller says so
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _read(self, statement: str, bindings: tuple[Any, ...]) -> list[Any]:
        """All rows, from the reader."""
        with self._reading:
            try:
                return self._cursor.execute(statement, bindings).fetchall()
            except apsw.Error as error:
                raise self._failure(error, None) or error from error

    def _query(self, statement: str, bindings: tuple[Any, ...]) -> list[Any]:
        """All rows, from the writer: those that a transaction is about, or that may take long."""
        with self._lock:
            try:
                return self._writer.execute(statement, bindings).fetchall()
            except apsw.Error as error:
                raise self._failure(error, None) or error from error

    # rows
    def get(self, serial: Serial, key: bytes, at: Epoch | None = None) -> bytes | None:
        with self._reading:
            try:
                execute = self._cursor.execute
                if at is None:
                    value: bytes | None = execute(sql.GET, (serial, key)).get
                    return value
                if key >= PLAIN:
                    return None
                value = execute(sql.GET_AT_HEAD, (serial, key, at)).get
                if value is None:
                    value = execute(sql.GET_AT_RETIRED, (serial, key, at)).get
                return value
            except apsw.Error as error:
                raise self._failure(error, None) or error from error

    def scan(
        self, serial: Serial, prefix: bytes, at: Epoch | None = None, after: bytes = b"", limit: int = -1
    ) -> list[tuple[bytes, bytes]]:
        first, end = prefix_range(prefix, after)
        if at is not None:
            return self._read(sql.SCAN_AT, (serial, first, min(end or PLAIN, PLAIN), limit, at))
        if end is not None:
            return self._read(sql.SCAN, (serial, first, end, limit))
        return self._read(sql.SCAN_ON, (serial, first, limit))

    def commit(
        self,
        batches: Sequence[Batch],
        records: Mapping[tuple[str, str], str | None] = {},
        *,
        freeing: bool = False,
    ) -> None:
        def work() -> None:
            newest = require_valid(batches, self._newest)
            for index, batch in enumerate(batches):
                self._apply(batch.serial, batch.rows, batch.epoch, newest[index])
                if batch.checkpoint is not None:
                    self._put_checkpoint(batch.serial, batch.checkpoint)
            self._record(records)

        if batches or records:
            self._transact(work, freeing=freeing)

    def _apply(self, serial: Serial, rows: Mapping[bytes, bytes | None], epoch: Epoch, newest: Epoch) -> None:
        many = self._writer.executemany
        ordered = sorted(rows)
        # Neighbours share a page, and the page is still in the cache when the next statement wants it.
        for start in range(0, len(ordered), CHUNK):
            keys = ordered[start : start + CHUNK]
            if newest:
                versioned = keys[: bisect_left(keys, PLAIN)]
                many(sql.RETIRE, [(serial, key, epoch, newest) for key in versioned])
            values = [(key, value) for key in keys if (value := rows[key]) is not None]
            many(sql.PUT, [(serial, key, epoch if key < PLAIN else FIRST, value) for key, value in values])
            many(sql.DELETE, [(serial, key) for key in keys if rows[key] is None])

    def _record(self, records: Mapping[tuple[str, str], str | None]) -> None:
        for (kind, id), text in records.items():
            if text is None:
                self._writer.execute(sql.DELETE_RECORD, (kind, id))
            else:
                self._writer.execute(sql.PUT_RECORD, (kind, id, text))

    # versions
    def _newest(self, serial: Serial) -> Epoch:
        return Epoch(self._writer.execute(sql.NEWEST, (serial,)).get)

    def _require_checkpoint(self, serial: Serial, at: Epoch) -> None:
        if not self._query(sql.HAS_CHECKPOINT, (serial, at)):
            raise NotFoundError(f"namespace {serial} has no checkpoint of epoch {at}")

    def _put_checkpoint(self, serial: Serial, made: Checkpoint) -> None:
        labels = json.dumps(dict(made.labels), ensure_ascii=False)
        row = (serial, made.epoch, made.id, made.name, made.created, made.serial, *made.usage)
        self._writer.execute(sql.PUT_CHECKPOINT, (*row, made.description, labels))

    def checkpoints(self, serial: Serial) -> list[Checkpoint]:
        return [
            Checkpoint(epoch, id, name, created, view, (size, inodes), description, json.loads(labels))
            for epoch, id, name, created, view, size, inodes, description, labels in self._read(
                sql.CHECKPOINTS, (serial,)
            )
        ]

    def update_checkpoint(self, serial: Serial, checkpoint: Checkpoint) -> None:
        def work() -> None:
            self._require_checkpoint(serial, checkpoint.epoch)
            self._put_checkpoint(serial, checkpoint)

        self._transact(work)

    def changed_by_restore(self, serial: Serial, at: Epoch) -> list[Change]:
        return [Change(c.key, c.after, c.before) for c in self.diff(serial, at, None)]

    def restore(self, serial: Serial, at: Epoch, epoch: Epoch, then: Mapping[bytes, bytes | None]) -> None:
        def work() -> None:
            self._require_checkpoint(serial, at)
            newest = self._newest(serial)
            require_newer(serial, epoch, newest)
            self._writer.execute(sql.RESTORE_RETIRE, (serial, at, epoch, newest))
            self._writer.execute(sql.RESTORE_DELETE, (serial, at))
            self._writer.execute(sql.RESTORE_PUT, (serial, at, epoch))
            self._apply(serial, then, epoch, newest)

        self._transact(work)

    def delete_checkpoint(self, serial: Serial, at: Epoch) -> None:
        def work() -> None:
            self._require_checkpoint(serial, at)
            before, after = self._query(sql.NEIGHBOURS, (serial, at))[0]
            # Only `at` sees what was born after its predecessor and had died when its successor was made.
            self._writer.execute(sql.FREE, (serial, at, NEVER if after is None else after, before, at))
            self._writer.execute(sql.DELETE_CHECKPOINT, (serial, at))

        self._transact(work, freeing=True)

    def diff(self, serial: Serial, a: Epoch, b: Epoch | None) -> list[Change]:
        with self._lock:
            for epoch in (a, b):
                if epoch is not None:
                    self._require_checkpoint(serial, epoch)
            bindings = (serial, a, NEVER if b is None else b)
            return changes(dict(self._query(sql.GONE, bindings)), dict(self._query(sql.CAME, bindings)))

    def clone(
        self,
        serial: Serial,
        at: Epoch | None,
        target: Serial,
        rows: Mapping[bytes, bytes | None],
        records: Mapping[tuple[str, str], str | None],
    ) -> None:
        def work() -> None:
            if at is not None:
                self._require_checkpoint(serial, at)
            if self._writer.execute(sql.OCCUPIED, (target,)).get:
                raise ExistsError(f"namespace {target} is not empty")
            seen = NEVER if at is None else at
            self._writer.execute(sql.CLONE_HEAD, (serial, target, seen))
            self._writer.execute(sql.CLONE_RETIRED, (serial, target, seen))
            self._apply(target, rows, FIRST, Epoch(0))
            self._record(records)

        self._transact(work)

    def destroy(self, serial: Serial, records: Mapping[tuple[str, str], str | None] = {}) -> None:
        def work() -> None:
            for table in sql.VERSIONED_TABLES:
                self._writer.execute(f"DELETE FROM {table} WHERE serial = ?", (serial,))
            self._record(records)

        self._transact(work, freeing=True)

    def serials(self) -> set[Serial]:
        return {
            serial
            for table in sql.VERSIONED_TABLES
            for (serial,) in self._query(sql.SERIALS.format(table=table), ())
        }

    # records
    def record(self, kind: str, id: str) -> str | None:
        found = self._read(sql.GET_RECORD, (kind, id))
        return found[0][0] if found else None

    def records(self, kind: str) -> dict[str, str]:
        return dict(self._read(sql.GET_RECORDS, (kind,)))

    def check(self) -> list[str]:
        wrong: list[str] = []
        with self._lock:
            try:
                found = self._writer.execute("PRAGMA quick_check").fetchall()
                wrong += [f"database: {line}" for (line,) in found if line != "ok"]
                for what, query in sql.CHECKS.items():
                    rows = self._writer.execute(f"{query} LIMIT {WRONG_LINES}").fetchall()
                    for serial, key, epoch in rows:
                        name = key.hex() if isinstance(key, bytes) else key
                        wrong.append(f"{what}: namespace {serial}, {name}, epoch {epoch}")
            except apsw.Error as error:
                failure = self._failure(error, None)
                if not isinstance(failure, DamagedError):
                    raise failure or error from error
                wrong.append(str(failure))
        return wrong

    def statistics(self) -> Mapping[str, int]:
        """Counts its tables row by row: a pass over the database."""
        counts = [self._query(f"SELECT count(*) FROM {table}", ())[0][0] for table in sql.VERSIONED_TABLES]
        wal = self._path.with_name(self._path.name + "-wal")
        return {
            "rows": counts[0],
            "retired": counts[1],
            "checkpoints": counts[2],
            "bytes": self._path.stat().st_size,
            "wal_bytes": wal.stat().st_size if wal.exists() else 0,
            "ballast_bytes": self._ballast.size if self._ballast.held else 0,
        }

    def close(self) -> None:
        with self._lock, self._reading:
            self._reader.close(True)
            self._writer.close(True)
