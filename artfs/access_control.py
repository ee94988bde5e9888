"""Who may read and change an artifact, from its description and the caller's context alone.

The decision is that of `artfs.access`; here contexts become principals.  An artifact of session scope is opened by its
session, or by the user that the session belongs to (`owner_id`), if the context names no other session.
"""

from __future__ import annotations

from artfs import access
from artfs.errors import InvalidError
from artfs.exceptions import AccessDeniedError
from artfs.grid import session_key
from artfs.models import AccessContext, ArtifactMetadata
from artfs.types import Access, Principal, Scope


def build_context(
    *, user_id: str | None = None, session_id: str | None = None, sandbox_id: str, admin: bool = False
) -> AccessContext:
    """Who asks, for `check_access` and `can_modify`."""
    return AccessContext(user_id=user_id, session_id=session_id, sandbox_id=sandbox_id, admin=admin)


def check_access(artifact: ArtifactMetadata, context: AccessContext) -> None:
    """Errors: AccessDeniedError if the context may not read the artifact."""
    if _access(artifact, context) is Access.NONE:
        raise AccessDeniedError(_reason(artifact, context))


def can_modify(artifact: ArtifactMetadata, context: AccessContext) -> bool:
    """Whether the context may change the artifact, its metadata and its expiry."""
    return _access(artifact, context) is Access.WRITE


def _access(artifact: ArtifactMetadata, context: AccessContext) -> Access:
    owner = {Scope.SESSION: artifact.session_id, Scope.USER: artifact.owner_id, Scope.SANDBOX: None}[artifact.scope]

    def session_owner(key: str) -> str | None:
        # Of other sessions nothing is known here.
        own = artifact.scope is Scope.SESSION and key == session_key(artifact.session_id)
        return artifact.owner_id if own else None

    who = Principal(
        context.sandbox_id, user=context.user_id or None, session=context.session_id or None, admin=context.admin
    )
    try:
        return access.access(who, artifact.sandbox_id, artifact.scope, owner, session_owner=session_owner)
    except InvalidError:  # an id that nobody can have, or no owner: nobody's
        return Access.NONE


def _reason(artifact: ArtifactMetadata, context: AccessContext) -> str:
    if artifact.sandbox_id != context.sandbox_id:
        return (
            f"Access denied: Sandbox mismatch: the artifact is in {artifact.sandbox_id!r}, not {context.sandbox_id!r}"
        )
    if artifact.scope is Scope.USER:
        if not context.user_id:
            return "Access denied: user_id required to access an artifact of user scope"
        return f"Access denied: the artifact belongs to user {artifact.owner_id!r}, not to {context.user_id!r}"
    who = f"session {context.session_id!r}" if context.session_id else f"user {context.user_id!r}"
    return f"Access denied: the artifact belongs to session {artifact.session_id!r}, not to {who}"
