"""SessionManager: the sessions of one sandbox, and the grid paths of what they own.

Where sessions live, and what is atomic, is the business of `artfs.sessions.records`.  The manager adds what callers
see: True, False, None and dicts where the rules raise; hours; ISO times; grid paths.  A session that has ended or is
another sandbox's is unknown: False or None.  Errors of all that awaits: SessionProviderError (a SessionError and a
ProviderError) if the provider fails, InvalidError for arguments that can never be right.

The only thing that is remembered is what never changes: the grid prefix of each id, and when it would have ended
at the last look, which `cleanup_expired_sessions` goes by.  Both are bounded by `REMEMBERED_IDS`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import Any, TypeVar

from artfs import grid
from artfs.errors import ExistsError, InvalidError, NotFoundError
from artfs.exceptions import SessionError
from artfs.grid import Prefixes, check_id, session_key
from artfs.sessions.metadata import SessionMetadata as SessionMetadata
from artfs.sessions.metadata import SessionStatus as SessionStatus
from artfs.sessions.metadata import info
from artfs.sessions.provider import ProviderFactory
from artfs.sessions.provider_factory import factory_for_env, names_memory
from artfs.sessions.records import ProviderSessions, Sessions
from artfs.sessions.rules import Clock, Session, checked_metadata, later
from artfs.types import DEFAULT_SANDBOX_PREFIX, DEFAULT_SESSION_TTL_HOURS

HOUR = 3600
REMEMBERED_IDS = 10_000
SANDBOX_VARIABLES = ("ARTIFACT_SANDBOX_ID", "CHUK_SANDBOX_ID")
DEFAULT_SANDBOX = "default"

T = TypeVar("T")


class SessionManager:
    """Made without I/O, outside of any event loop if need be; used from any number of them, in turn or at once.

    `sandbox_id` is, left out, ARTIFACT_SANDBOX_ID, CHUK_SANDBOX_ID or `default`.  Sessions are kept by what
    `session_factory` gives, else what SESSION_PROVIDER names now; or by `sessions`, for a store's own.
    """

    def __init__(
        self,
        sandbox_id: str | None = None,
        session_factory: ProviderFactory | None = None,
        default_ttl_hours: float = DEFAULT_SESSION_TTL_HOURS,
        *,
        sessions: Sessions | None = None,
        now: Clock = time.time_ns,
    ) -> None:
        if session_factory is not None and sessions is not None:
            raise InvalidError("give session_factory or sessions, not both")
        if session_factory is not None and not callable(session_factory):
            raise InvalidError(f"session_factory is called for a provider, which {session_factory!r} cannot be")
        alone = session_factory is None and sessions is None and names_memory()
        self.sandbox_id = default_sandbox(alone) if sandbox_id is None else _text("sandbox_id", sandbox_id)
        check_id("sandbox", self.sandbox_id)
        self.default_ttl_hours = default_ttl_hours
        self._now = now
        self._seconds(default_ttl_hours)
        self.session_factory = session_factory
        if sessions is None:
            self.session_factory = session_factory or factory_for_env()
            sessions = ProviderSessions(self.session_factory, now=now)
        self._sessions = sessions
        self._prefixes = Prefixes(self.sandbox_id, REMEMBERED_IDS)
        self._expiries: dict[str, int] = {}
        self._asked = 0

    # life
    async def allocate_session(
        self,
        session_id: str | None = None,
        user_id: str | None = None,
        ttl_hours: float | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """The id of a new session; of the live one that has `session_id`, if there is one, which is touched and stays
        otherwise as it is.  `ttl_hours=None`: the manager's.

        Errors: SessionError if that one belongs to another user, or the id cannot be used again yet.
        """
        seconds = self._seconds(self.default_ttl_hours if ttl_hours is None else ttl_hours)
        metadata = None if custom_metadata is None else checked_metadata(_mapping(custom_metadata))
        if user_id is not None:
            check_id("user", _text("user_id", user_id))
        if session_id is not None:
            session_key(_text("session_id", session_id))
            found = await self._found(self._sessions.validate, session_id)
            if found is not None:
                return self._allocated(found, user_id)
        try:
            made = await self._sessions.create(
                self.sandbox_id, user_id, ttl_seconds=seconds, id=session_id, metadata=metadata
            )
        except ExistsError as error:
            # Somebody was faster, or it has ended and its id must rest.
            found = None if session_id is None else await self._found(self._sessions.validate, session_id)
            if found is None:
                raise SessionError(str(error)) from None
            return self._allocated(found, user_id)
        return self._allocated(made, user_id)

    def _allocated(self, session: Session, user: str | None) -> str:
        if user is not None and session.user is not None and session.user != user:
            raise SessionError(f"session {session.id!r} belongs to another user")
        self.get_canonical_prefix(session.id)
        self._remember(session)
        return session.id

    async def validate_session(self, session_id: str) -> bool:
        """Whether the session is live; if so, its last access is set to now, its expiry stays."""
        return await self._found(self._sessions.validate, session_id) is not None

    async def get_session_info(self, session_id: str) -> dict[str, Any] | None:
        """What is known of it (times in ISO 8601, `custom_metadata` a copy); None if it is not live."""
        session = await self._found(self._sessions.get, session_id)
        return None if session is None else info(session)

    async def get_session_metadata(self, session_id: str) -> SessionMetadata | None:
        """The same as a model."""
        found = await self.get_session_info(session_id)
        return None if found is None else SessionMetadata(**found)

    async def update_session_metadata(
        self, session_id: str, custom_metadata: Mapping[str, Any], merge: bool = True
    ) -> bool:
        """Put keys of its metadata, beside those that are there, or in their place; whether the session is live.
        Keys inside of values are not merged."""
        metadata = _mapping(custom_metadata)
        if merge and not metadata:
            return await self._found(self._sessions.get, session_id) is not None

        async def update(sandbox: str, id: str) -> Session:
            return await self._sessions.update(sandbox, id, metadata, merge=merge)

        return await self._found(update, session_id) is not None

    async def extend_session_ttl(self, session_id: str, additional_hours: float) -> bool:
        """Let it end that much later than it would; whether it is live."""
        seconds = self._seconds(additional_hours)

        async def extend(sandbox: str, id: str) -> Session:
            return await self._sessions.extend(sandbox, id, seconds)

        session = await self._found(extend, session_id)
        if session is not None:
            self._remember(session)
        return session is not None

    async def delete_session(self, session_id: str) -> bool:
        """End it now, in every process; whether it was live."""
        session = await self._found(self._sessions.delete, session_id)
        if session is None:
            return False
        for id in {session_id, session.id}:
            self._prefixes.pop(id, None)
            self._expiries.pop(id, None)
        return True

    async def cleanup_expired_sessions(self) -> int:
        """Forget what has ended; how many of the sandbox's sessions were found to have ended since the last time.
        Those count that the provider still knew, and those that this manager made or extended."""
        gone = {session_key(key) for key in await self._sessions.sweep(self.sandbox_id)}
        now = self._now()
        for id in [id for id, expires in self._expiries.items() if expires <= now]:
            # Another process may have extended it.
            session = await self._found(self._sessions.get, id)
            if session is not None:
                self._remember(session)
                continue
            gone.add(session_key(id))
            self._expiries.pop(id, None)
            self._prefixes.pop(id, None)
        return len(gone)

    async def _found(self, call: Callable[[str, str], Any], id: str) -> Session | None:
        """What `call` gives for the session; None if it is not live, or nothing can have that id."""
        try:
            self.get_canonical_prefix(id)
        except InvalidError:
            return None
        try:
            session: Session = await call(self.sandbox_id, id)
        except NotFoundError:
            return None
        return session

    def _seconds(self, hours: float) -> float:
        """Errors: InvalidError unless above zero."""
        if isinstance(hours, bool) or not isinstance(hours, int | float):
            raise InvalidError(f"a number of hours is wanted, not {hours!r}")
        seconds = hours * HOUR
        later(self._now(), seconds)
        return seconds

    def _remember(self, session: Session) -> None:
        _bounded(self._expiries)[session.id] = session.expires_ns

    def get_cache_stats(self) -> dict[str, Any]:
        """Of the remembered ids: how many there are, and how often one was asked for and was there."""
        total, misses = self._asked, self._prefixes.made
        return {
            "cached_sessions": len(self._prefixes),
            "cache_hits": total - misses,
            "cache_misses": misses,
            "total_requests": total,
            "hit_rate": (total - misses) / total if total else 0.0,
            "sandbox_id": self.sandbox_id,
            "default_ttl_hours": self.default_ttl_hours,
        }

    # grid
    def get_canonical_prefix(self, session_id: str) -> str:
        """`grid/<sandbox>/<session>/`, the id as it is given.  Errors: GridError."""
        self._asked += 1
        return self._prefixes.of(session_id)

    def generate_artifact_key(self, session_id: str, artifact_id: str) -> str:
        """`grid/<sandbox>/<session>/<artifact>`.  Errors: GridError."""
        self._asked += 1
        return self._prefixes.key(session_id, artifact_id)

    def parse_grid_key(self, grid_key: str) -> dict[str, Any] | None:
        """`sandbox_id`, `session_id` (in user scope the user's, for `shared` that word), `artifact_id`, and `subpath`
        if there is one; None for what is no grid key, in any spelling."""
        found = grid.parse(grid_key)
        if found is None:
            return None
        parts = {"sandbox_id": found.sandbox_id, "session_id": found.session_id, "artifact_id": found.artifact_id}
        return parts if found.subpath is None else {**parts, "subpath": found.subpath}

    def get_session_prefix_pattern(self) -> str:
        """What the grid paths of all sessions of the sandbox begin with."""
        return f"{grid.ROOT}/{self.sandbox_id}/"


def default_sandbox(alone: bool = False) -> str:
    """Of those who name none.  What lives in the memory of this process alone has a sandbox of its own."""
    named = next(filter(None, map(os.environ.get, SANDBOX_VARIABLES)), None)
    if named is not None:
        return named
    return f"{DEFAULT_SANDBOX_PREFIX}-{token_hex(4)}" if alone else DEFAULT_SANDBOX


def _bounded(remembered: dict[str, T]) -> dict[str, T]:
    """`remembered`, with room for one more: the oldest goes."""
    if len(remembered) >= REMEMBERED_IDS:
        del remembered[next(iter(remembered))]
    return remembered


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidError(f"{name} must be a string, not {type(value).__name__}")
    return value


def _mapping(metadata: object) -> Mapping[str, Any]:
    if not isinstance(metadata, Mapping):
        raise InvalidError(f"a session's metadata is a mapping, not {type(metadata).__name__}")
    return metadata
