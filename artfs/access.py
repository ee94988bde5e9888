"""Who may do what: one pure decision, which every door asks (driver, API, command line).

`relation` says how near a principal is to a scope, `RULES` what that nearness allows.  Principals are
believed: who claims one is checked where it enters.  So is life: a session that has ended must be refused
before, or by `session_owner`, which may raise.

Session scope is for that session only; a principal that acts for a user without being in a session may enter
the sessions of that user.  User scope is for that user, from any of their sessions.  The sandbox's own scope
is read by all of the sandbox.  Another sandbox does not exist.  An admin is bound by its sandbox, if it has
one, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from artfs.grid import owner_key, session_key
from artfs.types import Access, Principal, Scope

SessionOwner = Callable[[str], str | None]
"""Session key -> the user that has it, None if nobody; asked only about sessions of the principal's
sandbox."""


class Relation(StrEnum):
    """How near a principal is to a scope."""

    STRANGER = "stranger"
    """Not of this sandbox."""
    MEMBER = "member"
    """Of this sandbox, and no more."""
    OWNER = "owner"
    """That session or that user."""
    ADMIN = "admin"


RULES: dict[Scope, dict[Relation, Access]] = {
    Scope.SESSION: {
        Relation.STRANGER: Access.NONE,
        Relation.MEMBER: Access.NONE,
        Relation.OWNER: Access.WRITE,
        Relation.ADMIN: Access.WRITE,
    },
    Scope.USER: {
        Relation.STRANGER: Access.NONE,
        Relation.MEMBER: Access.NONE,
        Relation.OWNER: Access.WRITE,
        Relation.ADMIN: Access.WRITE,
    },
    Scope.SANDBOX: {
        Relation.STRANGER: Access.NONE,
        Relation.MEMBER: Access.READ,  # WRITE where the store is shared_writable
        Relation.ADMIN: Access.WRITE,
    },
}


def access(
    principal: Principal,
    sandbox: str,
    scope: Scope,
    owner: str | None,
    *,
    session_owner: SessionOwner,
    shared_writable: bool = False,
) -> Access:
    """What `principal` may do in the namespaces of that scope; `owner` in any spelling.

    Errors: InvalidError if the scope wants an owner and there is none; whatever `session_owner` raises.
    """
    near = relation(principal, sandbox, scope, owner, session_owner=session_owner)
    if shared_writable and scope is Scope.SANDBOX and near is Relation.MEMBER:
        return Access.WRITE
    return RULES[scope][near]


def relation(
    principal: Principal, sandbox: str, scope: Scope, owner: str | None, *, session_owner: SessionOwner
) -> Relation:
    key = owner_key(scope, owner)
    if principal.sandbox != sandbox and not (principal.admin and principal.sandbox is None):
        return Relation.STRANGER
    if principal.admin:
        return Relation.ADMIN
    if key is None:
        return Relation.MEMBER
    if scope is Scope.USER:
        mine = _user(principal, session_owner) == key
    elif principal.session is not None:
        mine = session_key(principal.session) == key
    else:
        mine = principal.user is not None and principal.user == session_owner(key)
    return Relation.OWNER if mine else Relation.MEMBER


def _user(principal: Principal, session_owner: SessionOwner) -> str | None:
    """The user that the principal is, or whose session it is in."""
    if principal.user is None and principal.session is not None:
        return session_owner(session_key(principal.session))
    return principal.user
