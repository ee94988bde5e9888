"""Sessions in the store's own database, beside the engine's tables; any process of this host may have it
open.

    session
      sandbox        TEXT     with `key` the primary key
      key            TEXT     the id without `sess-`
      id             TEXT     as it was spelled when the session was made
      user           TEXT     null: nobody's
      created        INTEGER  this and all times: nanoseconds since 1970
      expires        INTEGER  the session is live before this moment
      last_accessed  INTEGER  of the last `validate`
      metadata       TEXT     a JSON object
      status         TEXT     active, expired or deleted; active rows may have expired
      reaped         INTEGER  when the data of an expired session was gone; null before

Two connections of its own, a *writer* and a *reader*, each under a lock.  A call that changes something is
one immediate transaction; it waits up to `busy_ms` for the engine's.  `synchronous=FULL` but for the touch of
`validate`.
"""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw

from artfs.errors import BusyError, DamagedError, NoSpaceError, NotFoundError, UnavailableError
from artfs.grid import session_key
from artfs.sessions import rules
from artfs.sessions.rules import Clock, Session, Status

TABLE = """
CREATE TABLE IF NOT EXISTS session (
    sandbox TEXT NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL, user TEXT, created INTEGER NOT NULL,
    expires INTEGER NOT NULL, last_accessed INTEGER NOT NULL, metadata TEXT NOT NULL, status TEXT NOT NULL,
    reaped INTEGER, PRIMARY KEY (sandbox, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS session_active ON session (expires) WHERE status = 'active';
CREATE INDEX IF NOT EXISTS session_ended ON session (reaped) WHERE status != 'active';
"""
SELECT = "SELECT id, sandbox, user, created, expires, last_accessed, metadata, status FROM session "
PUT = "REPLACE INTO session VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)"
EXPIRED = "WHERE status = 'active' AND expires <= ?"
FORGOTTEN = "WHERE status != 'active' AND reaped <= ?"
UNREAPED = "WHERE status != 'active' AND reaped IS NULL"
ORDER = " ORDER BY created, sandbox, key"

BUSY_MS = 5_000
WAL_LIMIT = 16 << 20
"""Bytes of WAL at which this connection copies it back."""


class SqliteSessions:
    """A `SessionStore` in the database at `path`.  REQUIRES: the engine has made it.

    Errors, also of every call: NotFoundError without the file, DamagedError, NoSpaceError, UnavailableError.
    """

    def __init__(self, path: Path, *, now: Clock = time.time_ns, busy_ms: int = BUSY_MS) -> None:
        if not path.exists():
            raise NotFoundError(f"{path}: no such database; `artfs init` makes one")
        self._path = path
        self._now = now
        self._writing, self._reading = threading.Lock(), threading.Lock()
        with self._errors():
            self._reader = self._connect(busy_ms)
            try:
                self._writer = self._connect(busy_ms)
            except BaseException:
                self._reader.close()
                raise
        try:
            with self._errors():
                made = self._reader.execute("SELECT 1 FROM sqlite_schema WHERE name = 'session_ended'").get
            if not made:
                with self._transaction():
                    self._writer.execute(TABLE)
        except BaseException:
            self.close()
            raise

    def _connect(self, busy_ms: int) -> apsw.Connection:
        connection = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_timeout(busy_ms)
            pages = WAL_LIMIT // connection.execute("PRAGMA page_size").get
            connection.execute(f"PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = {pages}").fetchall()
            connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        with self._writing, self._reading:
            self._writer.close()
            self._reader.close()

    # transactions
    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except apsw.FullError:
            raise NoSpaceError(f"{self._path}: the disk is full: free some space") from None
        except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, apsw.ConstraintError) as error:
            raise DamagedError(f"{self._path} is damaged ({error}): run `artfs fsck`") from error
        except apsw.Error as error:
            raise UnavailableError(f"{self._path}: {error}") from error

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[int]:
        """The writer's; gives the time at which it holds."""
        writer = self._writer
        with self._writing, self._errors():
            if not durable:
                writer.execute("PRAGMA synchronous = NORMAL")
            try:
                writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._now()
                    writer.execute("COMMIT")
                except BaseException as error:
                    full = writer.system_errno in (errno.ENOSPC, errno.EDQUOT)
                    if writer.in_transaction:
                        writer.execute("ROLLBACK")
                    if full and isinstance(error, apsw.IOError):
                        raise NoSpaceError(f"{self._path}: the disk is full: free some space") from error
                    raise
            finally:
                if not durable:
                    writer.execute("PRAGMA synchronous = FULL")

    def _find(self, connection: apsw.Connection, sandbox: str, id: str) -> Session | None:
        bindings = sandbox, session_key(id)
        rows = connection.execute(SELECT + "WHERE sandbox = ? AND key = ?", bindings).fetchall()
        return self._session(rows[0]) if rows else None

    def _session(self, row: tuple[Any, ...]) -> Session:
        id, sandbox, user, created, expires, accessed, metadata, status = row
        try:
            return Session(id, sandbox, user, created, expires, accessed, json.loads(metadata), Status(status))
        except ValueError as error:
            raise DamagedError(f"{self._path}: session {id!r} is damaged ({error}): run `artfs fsck`") from error

    def _live(self, sandbox: str, id: str, now: int) -> Session:
        return rules.require_live(self._find(self._writer, sandbox, id), sandbox, id, now)

    def _put(self, session: Session) -> Session:
        s = session
        times = s.created_ns, s.expires_ns, s.last_accessed_ns
        metadata = json.dumps(s.metadata)
        self._writer.execute(PUT, (s.sandbox, s.key, s.id, s.user, *times, metadata, str(s.status)))
        return session

    # the store
    def create(
        self,
        sandbox: str,
        user: str | None = None,
        *,
        ttl_seconds: float,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Session:
        with self._transaction() as now:
            session = rules.new_session(sandbox, user, ttl_seconds, id, metadata, now)
            rules.require_free(self._find(self._writer, sandbox, session.id), session.id, now)
            return self._put(session)

    def get(self, sandbox: str, id: str) -> Session:
        with self._reading, self._errors():
            session = self._find(self._reader, sandbox, id)
        return rules.require_live(session, sandbox, id, self._now())

    def validate(self, sandbox: str, id: str) -> Session:
        with self._transaction(durable=False) as now:
            return self._put(replace(self._live(sandbox, id, now), last_accessed_ns=now))

    def extend(self, sandbox: str, id: str, seconds: float) -> Session:
        with self._transaction() as now:
            session = self._live(sandbox, id, now)
            return self._put(replace(session, expires_ns=rules.later(session.expires_ns, seconds)))

    def update(self, sandbox: str, id: str, metadata: Mapping[str, Any], *, merge: bool = True) -> Session:
        with self._transaction() as now:
            return self._put(rules.updated(self._live(sandbox, id, now), metadata, merge))

    def delete(self, sandbox: str, id: str) -> Session:
        with self._transaction() as now:
            return self._put(replace(self._live(sandbox, id, now), status=Status.DELETED))

    def expire_due(self) -> Sequence[Session]:
        now = self._now()
        expired, forgotten = (now,), (now - rules.REMEMBERED,)
        # Most often nothing is due: that must not wait for the engine's transaction.
        if self._read(
            f"SELECT 1 FROM session {EXPIRED} UNION ALL SELECT 1 FROM session {FORGOTTEN} LIMIT 1",
            expired + forgotten,
        ):
            with self._transaction():
                self._writer.execute(f"DELETE FROM session {FORGOTTEN}", forgotten)
                self._writer.execute(f"UPDATE session SET status = 'expired' {EXPIRED}", expired)
        return [self._session(row) for row in self._read(SELECT + UNREAPED + ORDER)]

    def reaped(self, sandbox: str, id: str) -> None:
        with self._transaction() as now:
            session = self._find(self._writer, sandbox, id)
            if session is not None and session.live(now):
                raise BusyError(f"session {id!r} has not ended")
            where = "WHERE sandbox = ? AND key = ?"
            place = sandbox, session_key(id)
            self._writer.execute(f"DELETE FROM session {where} AND status = 'deleted'", place)
            self._writer.execute(
                f"UPDATE session SET status = 'expired', reaped = ? {where} AND reaped IS NULL", (now, *place)
            )

    def next_expiry(self) -> int | None:
        rows = self._read("SELECT min(expires) FROM session WHERE status = 'active'")
        first: int | None = rows[0][0]
        return first

    def list(self, sandbox: str | None = None) -> Sequence[Session]:
        live = "WHERE status = 'active' AND expires > ?"
        bindings: tuple[Any, ...] = (self._now(),)
        if sandbox is not None:
            live += " AND sandbox = ?"
            bindings += (sandbox,)
        return [self._session(row) for row in self._read(SELECT + live + ORDER, bindings)]

    def _read(self, statement: str, bindings: tuple[Any, ...] = ()) -> Sequence[Any]:
        with self._reading, self._errors():
            return self._reader.execute(statement, bindings).fetchall()
