"""Who makes a call of the Python API, and what that caller may do: the rules are those of `artfs.access`.

An identity comes as `who`: None is the trusted owner of the process; else {"session", "user", "admin"}, what the caller
claims or its view is bound to, perhaps with {"with_session", "with_user"}, what a call of a bound view names beside
that, and {"shared"}: the sandbox's scope is writable.  A session and a user that are claimed together must belong
together; in a view, what is named beside it must be its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artfs import access as rules
from artfs.errors import DeniedError, NotFoundError
from artfs.exceptions import SessionError
from artfs.grid import check_id, session_key
from artfs.store.store import Store
from artfs.types import Access, Principal, Scope
from artfs.volume.catalogue import Namespace

Who = Mapping[str, Any] | None

READS = """api_info api_read api_read_begin api_names api_look api_find api_batch_read api_stats api_url
    api_checkpoints api_diff api_artifact_metadata api_artifact_read api_artifact_exists api_artifact_open
    api_artifact_presign"""
WRITES = """api_create api_destroy api_clone api_write api_write_begin api_batch_write api_batch_remove api_mkdir
    api_remove api_move api_copy api_touch api_set_metadata api_checkpoint api_restore api_checkpoint_delete
    api_artifact_update api_artifact_rewrite api_artifact_delete api_artifact_copy api_artifact_move"""
WANTED: dict[str, Access] = {
    **dict.fromkeys(READS.split(), Access.READ),
    **dict.fromkeys(WRITES.split(), Access.WRITE),
}
"""What a call on one namespace needs of its caller.  A checkpoint, and what is done with it, changes the namespace."""


class Identity:
    """Decides for one store.  REQUIRES: on the store's loop, or under its lock."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def principal(self, who: Mapping[str, Any], sandbox: str) -> Principal:
        """Errors: DeniedError for claims that do not belong together; SessionError for a session that is not live."""
        session, user = who.get("session"), who.get("user")
        if user is not None:
            check_id("user", user)
        admin = bool(who.get("admin"))
        bound = "with_session" in who
        if session is not None and user is not None and not admin:
            owner = self.owner(sandbox, session)
            if owner not in (None, user):
                raise DeniedError(f"Access denied: session {session!r} does not belong to user {user!r}")
        if bound and not admin:
            self._within(who, sandbox, session, user)
            if session is None:
                session = who["with_session"]
        return Principal(sandbox, user=user, session=session, admin=admin)

    def _within(self, who: Mapping[str, Any], sandbox: str, session: str | None, user: str | None) -> None:
        """What a call of a view names beside it is the view's own."""
        named_user, named_session = who["with_user"], who["with_session"]
        mine = user
        if mine is None and session is not None:
            mine = self.owner(sandbox, session)
        if named_user is not None and named_user != mine:
            raise DeniedError(f"Access denied: this view is not of user {named_user!r}")
        if named_session is None or (session is not None and session_key(session) == session_key(named_session)):
            return
        if session is not None or mine is None or self.owner(sandbox, named_session) != mine:
            raise DeniedError(f"Access denied: this view is not of session {named_session!r}")

    def owner(self, sandbox: str, session: str) -> str | None:
        """The user of a live session.  Errors: SessionError."""
        try:
            return self.store.session_owner(sandbox, session)
        except NotFoundError as error:
            raise SessionError(str(error)) from error

    def access(self, who: Who, sandbox: str, scope: Scope, owner: str | None, of: str | None = None) -> Access:
        """What the caller may do in a scope of sandbox `of` (None: its own)."""
        of = of or sandbox
        if of != sandbox:
            return Access.NONE
        if who is None:
            return Access.WRITE
        try:
            principal = self.principal(who, sandbox)
            if principal.session is not None:
                self.store.session(sandbox, principal.session)
            return rules.access(
                principal,
                of,
                scope,
                owner,
                session_owner=lambda key: self.store.session_owner(sandbox, key),
                shared_writable=self.store.settings.shared_writable or bool(who.get("shared")),
            )
        except NotFoundError:
            return Access.NONE
        except SessionError:
            return Access.NONE

    def require(self, who: Who, sandbox: str, namespace: Namespace, wanted: Access) -> None:
        """Errors: DeniedError; NotFoundError for a namespace of another sandbox, which does not exist."""
        if namespace.sandbox != sandbox:
            raise NotFoundError(f"Namespace not found: {namespace.id}")
        if who is not None:
            self.require_scope(who, sandbox, namespace.scope, namespace.owner, wanted)

    def require_scope(self, who: Who, sandbox: str, scope: Scope, owner: str | None, wanted: Access) -> None:
        """Errors: DeniedError."""
        if who is None:
            return
        have = self.access(who, sandbox, scope, owner)
        if have is Access.NONE or (wanted is Access.WRITE and have is not Access.WRITE):
            raise DeniedError(self._reason(who, sandbox, scope, have))

    def _reason(self, who: Mapping[str, Any], sandbox: str, scope: Scope, have: Access) -> str:
        session, user = who.get("session"), who.get("user")
        name = f"session {session!r}" if session else f"user {user!r}" if user else "the caller"
        if have is Access.READ:
            return f"Access denied: insufficient permissions: {scope} scope is read-only for {name}; act as an admin"
        try:
            if session:
                self.store.session(sandbox, session)
        except NotFoundError:
            return f"Access denied: there is no {name}, or it has ended"
        return f"Access denied: it does not belong to {name}"
