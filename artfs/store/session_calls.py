"""The calls of the Python API on a store's sessions, checked for who makes them.  `who`, `sandbox`: see
`artfs.store.identity`; `id`: a session's, in any spelling."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from anyio import to_thread

from artfs.errors import DeniedError, ExistsError, NotFoundError
from artfs.exceptions import SessionError
from artfs.sessions import NS, Session
from artfs.sessions.metadata import iso
from artfs.store.file_calls import FileCalls
from artfs.store.identity import Identity, Who
from artfs.types import Access, Scope

Info = dict[str, Any]


class SessionCalls(FileCalls):
    """Part of `Service`."""

    @property
    def identity(self) -> Identity:
        return Identity(self.store)

    # finding
    def _live_session(self, sandbox: str, id: str) -> Session:
        """Errors: SessionError."""
        try:
            return self.store.session(sandbox, id)
        except NotFoundError as error:
            raise SessionError(str(error)) from error

    def _maybe_session(self, sandbox: str, id: str) -> Session | None:
        try:
            return self.store.session(sandbox, id)
        except NotFoundError:
            return None

    def _session_rights(self, session: Session, who: Who, sandbox: str) -> Session:
        """Errors: NotFoundError, as for one that is not there, unless it is the caller's own."""
        if who is not None:
            with suppress(DeniedError):
                self.identity.require_scope(who, sandbox, Scope.SESSION, session.id, Access.READ)
                return session
            raise NotFoundError(f"Invalid session: there is no {session.id!r} in sandbox {sandbox!r}")
        return session

    def _own_session(self, id: str, who: Who, sandbox: str) -> Session:
        return self._session_rights(self.store.session(sandbox, id), who, sandbox)

    # calls
    async def api_session_create(
        self,
        user: str | None = None,
        ttl_seconds: float = 86400.0,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> Info:
        """The live session `id`, touched, if there is one.  Errors: SessionError (another user's, an id that must
        rest), DeniedError for a session of somebody else."""
        found = None if id is None else self._maybe_session(sandbox, id)
        if found is not None and id is not None:
            self.identity.require_scope(who, sandbox, Scope.SESSION, found.id, Access.WRITE)
            if user is not None and found.user not in (None, user):
                raise SessionError(f"session {id!r} belongs to another user")
            return _session(await to_thread.run_sync(self.store.sessions.validate, sandbox, id))
        if who is not None and not who.get("admin"):
            principal = self.identity.principal(who, sandbox)
            mine = principal.user
            if mine is None and principal.session is not None:
                mine = self.identity.owner(sandbox, principal.session)
            user = user if user is not None else mine
            if user != mine or user is None:
                raise DeniedError("Access denied: sessions are made for oneself")
        try:
            made = await self.store.create_session(sandbox, user, ttl=ttl_seconds, id=id, metadata=metadata)
        except ExistsError as error:
            raise SessionError(str(error)) from error
        return _session(made)

    async def api_session_validate(self, id: str, who: Who = None, sandbox: str = "") -> Info:
        self._own_session(id, who, sandbox)
        return _session(await to_thread.run_sync(self.store.sessions.validate, sandbox, id))

    def api_session_info(self, id: str, who: Who = None, sandbox: str = "") -> Info:
        return _session(self._own_session(id, who, sandbox))

    async def api_session_update(
        self, id: str, metadata: Mapping[str, Any], merge: bool = True, who: Who = None, sandbox: str = ""
    ) -> Info:
        session = self._own_session(id, who, sandbox)
        if merge and not metadata:
            return _session(session)
        update = partial(self.store.sessions.update, sandbox, id, metadata, merge=merge)
        return _session(await to_thread.run_sync(update))

    async def api_session_extend(self, id: str, seconds: float, who: Who = None, sandbox: str = "") -> Info:
        self._own_session(id, who, sandbox)
        return _session(await to_thread.run_sync(self.store.sessions.extend, sandbox, id, seconds))

    async def api_session_delete(self, id: str, who: Who = None, sandbox: str = "") -> Info:
        session = self._own_session(id, who, sandbox)
        await self.store.delete_session(sandbox, id)
        return _session(session)

    async def api_cleanup(self, who: Who = None, sandbox: str = "") -> int:
        """Delete what has expired; how many sessions and namespaces of the sandbox that were since the last time."""
        if who is not None and not who.get("admin"):
            raise DeniedError("Access denied: only an admin cleans a store up")
        return await self.store.reaper.reaped(sandbox)


def _session(session: Session) -> Info:
    return {
        "session_id": session.id,
        "sandbox_id": session.sandbox,
        "user_id": session.user,
        "created_at": iso(session.created_ns),
        "expires_at": iso(session.expires_ns),
        "last_accessed": iso(session.last_accessed_ns),
        "ttl_hours": (session.expires_ns - session.created_ns) / NS / 3600,
        "status": str(session.status),
        "metadata": dict(session.metadata),
    }
