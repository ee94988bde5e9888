"""Sessions as a manager wants them: asynchronous, over a provider or over a store's own.

    SessionManager ── Sessions (here) ──┬── ProviderSessions ── provider: memory, sqlite, redis, a caller's own
                                        └── StoreSessions ───── SessionStore: where a store keeps its own

`Sessions` has the calls of `SessionStore`, without those of the reaper.  A `SessionManager` takes either: made from
`SESSION_PROVIDER` or `session_factory=` it has the first, an `ArtifactStore` gives its own manager the second, or
something of its own that also tells mounts what has ended.  Over a provider a session is one value:

    {"accessed": "<20 digits>", "change": …, "id": …, "user": …, "created": …, "expires": …, "metadata": {…}}

under `artfs:session:<sandbox>:<key>`.  Times are nanoseconds since 1970; the first, of constant width, is what
`validate` overwrites in place.  `change` is new with each other change: who got no answer sees if it was made.
`expires` decides, to the nanosecond; the provider's time to live, which is never
shorter, only clears up.  Nothing of a session is cached, so what one process deletes no other finds.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from anyio import to_thread

from artfs.errors import ArtfsError, BusyError, DamagedError
from artfs.exceptions import SessionProviderError
from artfs.grid import session_key
from artfs.sessions import rules
from artfs.sessions.provider import AtomicProvider, ProviderFactory, RunLock, atomic
from artfs.sessions.rules import NS, Clock, Session, SessionStore

KEY = "artfs:session:"
HEAD = '{"accessed": "'
WIDTH = 20
TRIES = 100


class Sessions(Protocol):
    """`id` in any spelling.  Errors of all: InvalidError, SessionProviderError; of those on one session: ExpiredError,
    NotFoundError."""

    async def create(
        self,
        sandbox: str,
        user: str | None,
        *,
        ttl_seconds: float,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Session:
        """Errors: ExistsError."""

    async def get(self, sandbox: str, id: str) -> Session: ...

    async def validate(self, sandbox: str, id: str) -> Session:
        """The live session, its last access set to now."""

    async def extend(self, sandbox: str, id: str, seconds: float) -> Session: ...

    async def update(self, sandbox: str, id: str, metadata: Mapping[str, Any], *, merge: bool = True) -> Session:
        """Key by key, or in the place of what is there."""

    async def delete(self, sandbox: str, id: str) -> Session: ...

    async def sweep(self, sandbox: str) -> Sequence[str]:
        """Clear what has ended; the keys of those sessions, where they are still known."""


def encode(session: Session, change: str) -> str:
    rest = {
        "change": change,
        "id": session.id,
        "user": session.user,
        "created": session.created_ns,
        "expires": session.expires_ns,
        "metadata": session.metadata,
    }
    return f'{HEAD}{session.last_accessed_ns:0{WIDTH}d}", {json.dumps(rest)[1:]}'


def decode(sandbox: str, text: str) -> Session:
    """Errors: DamagedError."""
    try:
        fields = json.loads(text)
        return Session(
            fields["id"],
            sandbox,
            fields["user"],
            fields["created"],
            fields["expires"],
            int(fields["accessed"]),
            fields["metadata"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"a session of sandbox {sandbox!r} is damaged ({error}): delete it") from None


class ProviderSessions:
    """`Sessions` over what `factory` gives; `now` is nanoseconds since 1970."""

    def __init__(self, factory: ProviderFactory, *, now: Clock = time.time_ns) -> None:
        self._factory = factory
        self._now = now
        self._lock = RunLock()

    @asynccontextmanager
    async def _provider(self) -> AsyncIterator[AtomicProvider]:
        try:
            async with self._factory() as provider:
                yield atomic(provider, self._lock)
        except ArtfsError:
            raise
        except Exception as error:  # a caller's own provider may raise anything
            raise SessionProviderError(f"Session storage failed: {error}") from error

    async def create(
        self,
        sandbox: str,
        user: str | None,
        *,
        ttl_seconds: float,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Session:
        now = self._now()
        session = rules.new_session(sandbox, user, ttl_seconds, id, metadata, now)
        change = secrets.token_hex(8)
        key, value, ttl = _key(sandbox, session.id), encode(session, change), _ttl(session, now)
        async with self._provider() as provider:
            for _ in range(TRIES):
                if await provider.add(key, ttl, value):
                    return session
                old = await provider.get(key)
                if old is None:
                    continue
                if change in old:  # the answer to an earlier attempt was lost
                    return session
                if decode(sandbox, old).live(now):
                    rules.require_free(decode(sandbox, old), session.id, now)
                if await provider.swap(key, old, value, ttl):
                    return session
        raise _contended(session.id)

    async def get(self, sandbox: str, id: str) -> Session:
        async with self._provider() as provider:
            return self._live(sandbox, id, await provider.get(_key(sandbox, id)))

    def _live(self, sandbox: str, id: str, text: str | None) -> Session:
        return rules.require_live(None if text is None else decode(sandbox, text), sandbox, id, self._now())

    async def validate(self, sandbox: str, id: str) -> Session:
        async with self._provider() as provider:
            patch = f"{self._now():0{WIDTH}d}"
            return self._live(sandbox, id, await provider.patch(_key(sandbox, id), len(HEAD), patch))

    async def extend(self, sandbox: str, id: str, seconds: float) -> Session:
        return await self._change(
            sandbox, id, lambda session: replace(session, expires_ns=rules.later(session.expires_ns, seconds))
        )

    async def update(self, sandbox: str, id: str, metadata: Mapping[str, Any], *, merge: bool = True) -> Session:
        return await self._change(sandbox, id, lambda session: rules.updated(session, metadata, merge))

    async def _change(self, sandbox: str, id: str, change: Callable[[Session], Session]) -> Session:
        key = _key(sandbox, id)
        async with self._provider() as provider:
            mark = secrets.token_hex(8)
            for _ in range(TRIES):
                old = await provider.get(key) or ""
                session = self._live(sandbox, id, old or None)
                if mark in old:  # the answer to an earlier attempt was lost
                    return session
                changed = change(session)
                if await provider.swap(key, old, encode(changed, mark), _ttl(changed, self._now())):
                    return changed
        raise _contended(id)

    async def delete(self, sandbox: str, id: str) -> Session:
        async with self._provider() as provider:
            session = self._live(sandbox, id, await provider.take(_key(sandbox, id)))
        return replace(session, status=rules.Status.DELETED)

    async def sweep(self, sandbox: str) -> Sequence[str]:
        prefix = _key(sandbox, "x")[:-1]
        async with self._provider() as provider:
            return [key.removeprefix(prefix) for key in await provider.sweep(prefix)]


def _key(sandbox: str, id: str) -> str:
    return f"{KEY}{sandbox}:{session_key(id)}"


def _ttl(session: Session, now: int) -> float:
    return max(session.expires_ns - now, 0) / NS + 1


def _contended(id: str) -> BusyError:
    return BusyError(f"session {id!r} is changed by too many at once: try again")


class StoreSessions:
    """`Sessions` over a store's own, which clears what has ended by itself."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    async def create(
        self,
        sandbox: str,
        user: str | None,
        *,
        ttl_seconds: float,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Session:
        create = partial(self._store.create, sandbox, user, ttl_seconds=ttl_seconds, id=id, metadata=metadata)
        return await to_thread.run_sync(create)

    async def get(self, sandbox: str, id: str) -> Session:
        return await to_thread.run_sync(self._store.get, sandbox, id)

    async def validate(self, sandbox: str, id: str) -> Session:
        return await to_thread.run_sync(self._store.validate, sandbox, id)

    async def extend(self, sandbox: str, id: str, seconds: float) -> Session:
        return await to_thread.run_sync(self._store.extend, sandbox, id, seconds)

    async def update(self, sandbox: str, id: str, metadata: Mapping[str, Any], *, merge: bool = True) -> Session:
        return await to_thread.run_sync(partial(self._store.update, sandbox, id, metadata, merge=merge))

    async def delete(self, sandbox: str, id: str) -> Session:
        return await to_thread.run_sync(self._store.delete, sandbox, id)

    async def sweep(self, sandbox: str) -> Sequence[str]:
        return ()
