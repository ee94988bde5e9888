"""Values in a sqlite database, for the processes of one host.

    value
      key      TEXT PRIMARY KEY
      value    TEXT NOT NULL
      until    REAL   seconds since 1970; null: it stays

The file is SESSION_SQLITE_PATH, else `sessions.db` in the store's root (ARTFS_ROOT, ~/.local/share/artfs); it is made
when it is missing, readable by its owner alone.  One connection for each file and process, used by one thread at a
time; a step is one immediate transaction, durable when it returns but for `patch`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import apsw
from anyio import to_thread

from artfs.exceptions import SessionProviderError
from artfs.root import find_root
from artfs.sessions.provider import AtomicProvider, checked_value

TABLE = """
CREATE TABLE IF NOT EXISTS value (key TEXT PRIMARY KEY, value TEXT NOT NULL, until REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS value_until ON value (until) WHERE until IS NOT NULL;
"""
BUSY_MS = 5_000
SWEEP_EVERY = 1000
"""Values that are put between sweeps."""


class _Database:
    """All calls are plain and may come from any thread.  Errors: SessionProviderError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = None
        self._puts = 0
        self._parents: apsw.Connection | None = None
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        # A connection must not cross a fork: the child makes its own, and leaves the parent's alone, open.
        self._lock, self._connection, self._parents = threading.Lock(), None, self._connection

    def _connected(self) -> apsw.Connection:
        if self._connection is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            connection = apsw.Connection(str(self._path))
            connection.set_busy_timeout(BUSY_MS)
            connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
            connection.execute(TABLE)
            self._connection = connection
        return self._connection

    @contextmanager
    def step(self, *, durable: bool = True) -> Iterator[apsw.Connection]:
        with self._lock:
            try:
                connection = self._connected()
                if not durable:
                    connection.execute("PRAGMA synchronous = NORMAL")
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    try:
                        yield connection
                        connection.execute("COMMIT")
                    except BaseException:
                        if connection.in_transaction:
                            connection.execute("ROLLBACK")
                        raise
                finally:
                    if not durable:
                        connection.execute("PRAGMA synchronous = FULL")
            except (apsw.Error, OSError) as error:
                raise SessionProviderError(f"{self._path}: {error}") from error

    def get(self, key: str) -> str | None:
        with self._lock:
            try:
                return _find(self._connected(), key)
            except (apsw.Error, OSError) as error:
                raise SessionProviderError(f"{self._path}: {error}") from error

    def put(self, key: str, value: str, until: float | None) -> None:
        with self.step() as connection:
            self._put(connection, key, value, until)

    def _put(self, connection: apsw.Connection, key: str, value: str, until: float | None) -> None:
        connection.execute("REPLACE INTO value VALUES (?, ?, ?)", (key, checked_value(value), until))
        self._puts += 1
        if self._puts % SWEEP_EVERY == 0:
            connection.execute("DELETE FROM value WHERE until <= ?", (time.time(),))

    def put_if(self, key: str, old: str | None, value: str, until: float) -> bool:
        with self.step() as connection:
            if _find(connection, key) != old:
                return False
            self._put(connection, key, value, until)
            return True

    def patch(self, key: str, at: int, text: str) -> str | None:
        with self.step(durable=False) as connection:
            value = _find(connection, key)
            if value is None:
                return None
            value = value[:at] + text + value[at + len(text) :]
            connection.execute("UPDATE value SET value = ? WHERE key = ?", (value, key))
            return value

    def take(self, key: str) -> str | None:
        with self.step() as connection:
            value = _find(connection, key)
            connection.execute("DELETE FROM value WHERE key = ?", (key,))
            return value

    def sweep(self, prefix: str) -> Sequence[str]:
        with self.step() as connection:
            over = connection.execute("DELETE FROM value WHERE until <= ? RETURNING key", (time.time(),)).fetchall()
            return [str(key) for (key,) in over if str(key).startswith(prefix)]


def _find(connection: apsw.Connection, key: str) -> str | None:
    now = time.time()
    rows = connection.execute("SELECT value FROM value WHERE key = ? AND (until > ? OR until IS NULL)", (key, now))
    return next((value for (value,) in rows), None)


class SqliteProvider(AtomicProvider):
    def __init__(self, database: _Database) -> None:
        self._database = database

    async def __aenter__(self) -> SqliteProvider:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    async def _call(self, call: Callable[..., Any], *args: Any) -> Any:
        return await to_thread.run_sync(partial(call, *args))

    async def setex(self, key: str, ttl: float, value: str) -> None:
        await self._call(self._database.put, key, value, time.time() + ttl)

    async def set(self, key: str, value: str) -> None:
        await self._call(self._database.put, key, value, None)

    async def get(self, key: str) -> str | None:
        value: str | None = await self._call(self._database.get, key)
        return value

    async def delete(self, key: str) -> bool:
        return await self.take(key) is not None

    async def add(self, key: str, ttl: float, value: str) -> bool:
        done: bool = await self._call(self._database.put_if, key, None, value, time.time() + ttl)
        return done

    async def swap(self, key: str, old: str, new: str, ttl: float) -> bool:
        done: bool = await self._call(self._database.put_if, key, old, new, time.time() + ttl)
        return done

    async def patch(self, key: str, at: int, text: str) -> str | None:
        value: str | None = await self._call(self._database.patch, key, at, text)
        return value

    async def take(self, key: str) -> str | None:
        value: str | None = await self._call(self._database.take, key)
        return value

    async def sweep(self, prefix: str) -> Sequence[str]:
        over: Sequence[str] = await self._call(self._database.sweep, prefix)
        return over


_databases: dict[Path, _Database] = {}
"""Never forgotten: there is one for each file that a process was ever configured for."""


def factory(path: str | os.PathLike[str] | None = None) -> Callable[[], SqliteProvider]:
    """Opens nothing yet."""
    chosen = path or os.environ.get("SESSION_SQLITE_PATH") or find_root() / "sessions.db"
    where = Path(os.path.abspath(os.path.expanduser(chosen)))
    if where not in _databases:
        _databases[where] = _Database(where)
    provider = SqliteProvider(_databases[where])
    return lambda: provider
