"""The sqlite engine: rows, checkpoints and records as statements on one database.

`schema.py` has the tables; `database.py` the connections and the transactions, and with them the durability.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from artfs.errors import DamagedError, ExistsError, NotFoundError
from artfs.meta import Batch, Change, Checkpoint, Row
from artfs.meta import schema as sql
from artfs.meta.rules import FIRST, PLAIN, changes, prefix_range, require_newer, require_valid
from artfs.meta.sqlite.database import Database
from artfs.types import NEVER, Epoch, Serial

__all__ = ["SqliteEngine"]

CHUNK = 256
"""Rows that one statement writes before the next has its turn."""

WRONG_LINES = 20
"""How many rows a check names for each thing that is wrong."""


class _OtherValueError(Exception):
    """A row is not what `swap` was told: the transaction is rolled back."""


def _is_small(batch: Batch) -> bool:
    """Of a namespace without checkpoints: whether it only puts a few rows, so that neighbours can go with it."""
    return len(batch.rows) <= CHUNK and batch.checkpoint is None and None not in batch.rows.values()


def _head_rows(batch: Batch) -> Iterator[tuple[Serial, bytes, Epoch, bytes | None]]:
    for key, value in sorted(batch.rows.items()):
        yield batch.serial, key, batch.epoch if key < PLAIN else FIRST, value


class SqliteEngine:
    """An `artfs.meta.Engine` in the database `path`; its directory must exist.

    With `create` a missing or empty database is made; without, it is a NotFoundError or a DamagedError.
    Also raises FormatError, DamagedError, NoSpaceError, UnavailableError.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._db = Database(path, create=create)

    # rows
    def get(self, serial: Serial, key: bytes, at: Epoch | None = None) -> bytes | None:
        found: bytes | None
        if at is None:
            found = self._db.value(sql.GET, (serial, key))
        elif key >= PLAIN:
            found = None
        else:
            found = self._db.value(sql.GET_AT_HEAD, (serial, key, at))
            if found is None:
                found = self._db.value(sql.GET_AT_RETIRED, (serial, key, at))
        return found

    def scan(
        self, serial: Serial, prefix: bytes, at: Epoch | None = None, after: bytes = b"", limit: int = -1
    ) -> list[tuple[bytes, bytes]]:
        first, end = prefix_range(prefix, after)
        if at is not None:
            return self._db.read(sql.SCAN_AT, (serial, first, min(end or PLAIN, PLAIN), limit, at))
        if end is not None:
            return self._db.read(sql.SCAN, (serial, first, end, limit))
        return self._db.read(sql.SCAN_ON, (serial, first, limit))

    def commit(
        self,
        batches: Sequence[Batch],
        records: Mapping[tuple[str, str], str | None] = {},
        *,
        freeing: bool = False,
    ) -> None:
        def work() -> None:
            pinned = self._pinned({batch.serial for batch in batches})
            newest = require_valid(batches, lambda serial: pinned.get(serial, Epoch(0)))
            for small, indexes in groupby(range(len(batches)), lambda i: not newest[i] and _is_small(batches[i])):
                if small:
                    self._db.run_many(sql.PUT, (row for i in indexes for row in _head_rows(batches[i])))
                    continue
                for i in indexes:
                    batch = batches[i]
                    self._apply(batch.serial, batch.rows, batch.epoch, newest[i])
                    if batch.checkpoint is not None:
                        self._put_checkpoint(batch.serial, batch.checkpoint)
            self._record(records)

        if batches or records:
            self._db.transact(work, freeing=freeing)

    def _apply(self, serial: Serial, rows: Mapping[bytes, bytes | None], epoch: Epoch, newest: Epoch) -> None:
        many = self._db.run_many
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
        self._db.run_many(sql.DELETE_RECORD, [name for name, text in records.items() if text is None])
        puts = ((kind, id, text) for (kind, id), text in sorted(records.items()) if text is not None)
        self._db.run_many(sql.PUT_RECORD, puts)

    # versions
    def _pinned(self, serials: set[Serial]) -> dict[Serial, Epoch]:
        """The newest checkpoint's epoch of those that have one."""
        return dict(self._db.query(sql.PINNED, (json.dumps(list(serials)),)))

    def _newest(self, serial: Serial) -> Epoch:
        return Epoch(self._db.query(sql.NEWEST, (serial,))[0][0])

    def _require_checkpoint(self, serial: Serial, at: Epoch) -> None:
        if not self._db.query(sql.HAS_CHECKPOINT, (serial, at)):
            raise NotFoundError(f"namespace {serial} has no checkpoint of epoch {at}")

    def _put_checkpoint(self, serial: Serial, made: Checkpoint) -> None:
        labels = json.dumps(dict(made.labels), ensure_ascii=False)
        row = (serial, made.epoch, made.id, made.name, made.created, made.serial, *made.usage)
        self._db.run(sql.PUT_CHECKPOINT, (*row, made.description, labels))

    def checkpoints(self, serial: Serial) -> list[Checkpoint]:
        return [
            Checkpoint(epoch, id, name, created, view, (size, inodes), description, json.loads(labels))
            for epoch, id, name, created, view, size, inodes, description, labels in self._db.read(
                sql.CHECKPOINTS, (serial,)
            )
        ]

    def update_checkpoint(self, serial: Serial, checkpoint: Checkpoint) -> None:
        def work() -> None:
            self._require_checkpoint(serial, checkpoint.epoch)
            self._put_checkpoint(serial, checkpoint)

        self._db.transact(work)

    def changed_by_restore(self, serial: Serial, at: Epoch) -> list[Change]:
        return [Change(c.key, c.after, c.before) for c in self.diff(serial, at, None)]

    def restore(self, serial: Serial, at: Epoch, epoch: Epoch, then: Mapping[bytes, bytes | None]) -> None:
        def work() -> None:
            self._require_checkpoint(serial, at)
            newest = self._newest(serial)
            require_newer(serial, epoch, newest)
            self._db.run(sql.RESTORE_RETIRE, (serial, at, epoch, newest))
            self._db.run(sql.RESTORE_DELETE, (serial, at))
            self._db.run(sql.RESTORE_PUT, (serial, at, epoch))
            self._apply(serial, then, epoch, newest)

        self._db.transact(work)

    def delete_checkpoint(self, serial: Serial, at: Epoch) -> None:
        def work() -> None:
            self._require_checkpoint(serial, at)
            before, after = self._db.query(sql.NEIGHBOURS, (serial, at))[0]
            # Only `at` sees what was born after its predecessor and had died when its successor was made.
            self._db.run(sql.FREE, (serial, at, NEVER if after is None else after, before, at))
            self._db.run(sql.DELETE_CHECKPOINT, (serial, at))

        self._db.transact(work, freeing=True)

    def diff(self, serial: Serial, a: Epoch, b: Epoch | None) -> list[Change]:
        with self._db.lock:
            for epoch in (a, b):
                if epoch is not None:
                    self._require_checkpoint(serial, epoch)
            bindings = (serial, a, NEVER if b is None else b)
            return changes(dict(self._db.query(sql.GONE, bindings)), dict(self._db.query(sql.CAME, bindings)))

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
            if self._db.query(sql.OCCUPIED, (target,))[0][0]:
                raise ExistsError(f"namespace {target} is not empty")
            seen = NEVER if at is None else at
            self._db.run(sql.CLONE_HEAD, (serial, target, seen))
            self._db.run(sql.CLONE_RETIRED, (serial, target, seen))
            self._apply(target, rows, FIRST, Epoch(0))
            self._record(records)

        self._db.transact(work)

    def destroy(self, serials: Collection[Serial], records: Mapping[tuple[str, str], str | None] = {}) -> None:
        def work() -> None:
            for table in sql.VERSIONED_TABLES:
                self._db.run_many(f"DELETE FROM {table} WHERE serial = ?", [(serial,) for serial in serials])
            self._record(records)

        self._db.transact(work, freeing=True)

    def serials(self) -> set[Serial]:
        return {
            serial for table in sql.VERSIONED_TABLES for (serial,) in self._db.query(sql.SERIALS.format(table=table))
        }

    # every version at once
    def named(self, prefixes: Sequence[bytes], serials: Collection[Serial] | None = None) -> Generator[Row, None, None]:
        with self._db.snapshot() as read:
            if serials is None:
                serials = {serial for table in sql.NAMED for (serial,) in read(sql.SERIALS.format(table=table), ())}
            for serial in sorted(serials):
                for prefix in prefixes:
                    for table in sql.NAMED if prefix < PLAIN else ("head",):
                        for row in read(sql.NAMED[table], (serial, prefix, bytes([prefix[0] + 1]))):
                            yield Row._make(row)

    def swap(self, rows: Sequence[tuple[Row, bytes]], records: Mapping[tuple[str, str], str | None] = {}) -> bool:
        def work() -> None:
            for row, value in rows:
                if not any(self._db.changes(statement, (*row, value)) for statement in sql.SWAP.values()):
                    raise _OtherValueError
            self._record(records)

        try:
            self._db.transact(work)
        except _OtherValueError:
            return False
        return True

    # records
    def record(self, kind: str, id: str) -> str | None:
        found = self._db.read(sql.GET_RECORD, (kind, id))
        return found[0][0] if found else None

    def records(self, kind: str) -> dict[str, str]:
        return dict(self._db.read(sql.GET_RECORDS, (kind,)))

    def check(self) -> list[str]:
        wrong: list[str] = []
        try:
            wrong += [f"database: {line}" for (line,) in self._db.query("PRAGMA quick_check") if line != "ok"]
            for what, query in sql.CHECKS.items():
                for serial, key, epoch in self._db.query(f"{query} LIMIT {WRONG_LINES}"):
                    name = key.hex() if isinstance(key, bytes) else key
                    wrong.append(f"{what}: namespace {serial}, {name}, epoch {epoch}")
        except DamagedError as error:
            wrong.append(str(error))
        return wrong

    def statistics(self) -> Mapping[str, int]:
        """Counts its tables row by row: a pass over the database.  Also has ballast_bytes."""
        rows, retired, checkpoints = (
            self._db.query(f"SELECT count(*) FROM {table}")[0][0] for table in sql.VERSIONED_TABLES
        )
        return {
            "rows": rows,
            "retired": retired,
            "checkpoints": checkpoints,
            "bytes": self._db.path.stat().st_size,
            "wal_bytes": self._db.wal_bytes(),
            "ballast_bytes": self._db.ballast.size if self._db.ballast.held else 0,
        }

    def close(self) -> None:
        self._db.close()
