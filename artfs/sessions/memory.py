"""Sessions in memory: the twin of the sqlite store, for stores that live in memory, and for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from artfs.errors import BusyError
from artfs.grid import session_key
from artfs.sessions import rules
from artfs.sessions.rules import Clock, Session, Status


class MemorySessions:
    """A `SessionStore` that ends with its process.  `now` gives nanoseconds since 1970."""

    def __init__(self, *, now: Clock = time.time_ns) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._sessions: dict[tuple[str, str], Session] = {}
        self._reaped: dict[tuple[str, str], int] = {}

    def create(
        self,
        sandbox: str,
        user: str | None = None,
        *,
        ttl_seconds: float,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Session:
        with self._lock:
            now = self._now()
            session = rules.new_session(sandbox, user, ttl_seconds, id, metadata, now)
            place = sandbox, session.key
            rules.require_free(self._sessions.get(place), session.id, now)
            self._sessions[place] = session
            return session

    def get(self, sandbox: str, id: str) -> Session:
        return rules.require_live(self._sessions.get((sandbox, session_key(id))), sandbox, id, self._now())

    def _change(self, sandbox: str, id: str, **changes: Any) -> Session:
        session = self._sessions[sandbox, session_key(id)] = replace(self.get(sandbox, id), **changes)
        return session

    def validate(self, sandbox: str, id: str) -> Session:
        with self._lock:
            return self._change(sandbox, id, last_accessed_ns=self._now())

    def extend(self, sandbox: str, id: str, seconds: float) -> Session:
        with self._lock:
            return self._change(sandbox, id, expires_ns=rules.later(self.get(sandbox, id).expires_ns, seconds))

    def update(self, sandbox: str, id: str, metadata: Mapping[str, Any], *, merge: bool = True) -> Session:
        with self._lock:
            updated = rules.updated(self.get(sandbox, id), metadata, merge)
            return self._change(sandbox, id, metadata=updated.metadata)

    def delete(self, sandbox: str, id: str) -> Session:
        with self._lock:
            return self._change(sandbox, id, status=Status.DELETED)

    def expire_due(self) -> Sequence[Session]:
        with self._lock:
            now = self._now()
            for place, reaped in list(self._reaped.items()):
                if reaped + rules.REMEMBERED <= now:
                    del self._reaped[place], self._sessions[place]
            for place, session in self._sessions.items():
                if session.status is Status.ACTIVE and not session.live(now):
                    self._sessions[place] = replace(session, status=Status.EXPIRED)
            return _by_creation(
                session
                for place, session in self._sessions.items()
                if session.status is not Status.ACTIVE and place not in self._reaped
            )

    def reaped(self, sandbox: str, id: str) -> None:
        with self._lock:
            now = self._now()
            place = sandbox, session_key(id)
            session = self._sessions.get(place)
            if session is None:
                return
            if session.live(now):
                raise BusyError(f"session {id!r} has not ended")
            if session.status is Status.DELETED:
                del self._sessions[place]
                return
            self._sessions[place] = replace(session, status=Status.EXPIRED)
            self._reaped.setdefault(place, now)

    def next_expiry(self) -> int | None:
        with self._lock:
            active = (s.expires_ns for s in self._sessions.values() if s.status is Status.ACTIVE)
            return min(active, default=None)

    def list(self, sandbox: str | None = None) -> Sequence[Session]:
        with self._lock:
            now = self._now()
            return _by_creation(
                session
                for session in self._sessions.values()
                if session.live(now) and sandbox in (None, session.sandbox)
            )

    def close(self) -> None:
        """Nothing to close."""


def _by_creation(sessions: Iterable[Session]) -> Sequence[Session]:
    return sorted(sessions, key=lambda session: (session.created_ns, session.sandbox, session.key))
