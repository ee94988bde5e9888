"""Grid paths and the names in them: pure rules, no I/O.

    grid/<sandbox>/{sess-<session> | user-<user> | shared}/<namespace>[/<path>]

This is the *canonical* spelling, the only one that is written here.  `parse_path` also takes a leading `/`, a
missing `grid/`, `sessions/<id>`, `users/<id>` and a bare session id for the scope, and paths that end early,
as `ls` wants.

Words: a *scope directory* is the one component `sess-…`, `user-…` or `shared`; an *owner* is whose it is: a
user's id, a session's **key**, or None for `shared`.  A session's key is its id without `sess-`: `x` and
`sess-x` are one session, however it was spelled when it was made.

A *grid key* is how artifacts spell their place: `canonical_prefix`, `artifact_key` and `parse` are about those.

Invariants:
1. `parse_path(str(path)) == path` for every path that was parsed;
2. (scope, owner) and scope directories map one to one, so that no user or session id can name another's
   scope;
3. what cannot be valid raises InvalidError, whose message names the rule.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from artfs.errors import InvalidError
from artfs.types import Scope

if TYPE_CHECKING:  # loaded at its first use: the models need pydantic
    from artfs.models import GridKeyComponents

ROOT = _ROOT = "grid"
SHARED = "shared"
RESERVED = frozenset({ROOT, SHARED, "sessions", "users", ".artfs"})
"""No sandbox, session or user has one of these as its id: they are spelled in grid paths, or at a mount's
root."""

REMEMBERED = 4096
"""Answers of pure functions that are kept."""
NAME_MAX = 255
"""Bytes of a name."""

_SESSION, _USER = "sess-", "user-"
_LONG = {"sessions": Scope.SESSION, "users": Scope.USER}
_HIDDEN = (".artfs", ".checkpoints")
_ID = re.compile(r"[A-Za-z0-9._@-]{1,128}")


@dataclass(frozen=True, slots=True)
class GridPath:
    """A place in the grid; what a path leaves out is None, and `path` is "" for a namespace's root.

    `scope` without `owner` is all sessions, or all users, of the sandbox (from `<sandbox>/sessions`).  `path`
    has no empty component, no `.` and no `..`; bytes that are not UTF-8 are in it as `os.fsdecode` puts them.
    """

    sandbox: str | None = None
    scope: Scope | None = None
    owner: str | None = None
    namespace: str | None = None
    path: str = ""

    def __str__(self) -> str:
        """The canonical spelling, without a slash at either end."""
        parts = [ROOT]
        if self.sandbox is not None:
            parts.append(self.sandbox)
        if self.scope is not None:
            whole = self.owner is None and self.scope is not Scope.SANDBOX
            parts.append(f"{self.scope}s" if whole else scope_dir(self.scope, self.owner))
        parts += filter(None, (self.namespace, self.path))
        return "/".join(parts)


def parse_path(text: str) -> GridPath:
    """Any spelling of a grid path, complete or not.  Errors: InvalidError.

    A first component `grid` is the root, as no sandbox can have that name.  Slashes may be repeated or end
    the path.
    """
    if "\0" in text:
        raise InvalidError("a grid path cannot contain NUL")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if parts[:1] == [ROOT]:
        del parts[0]
    if not parts:
        return GridPath()
    sandbox = check_id("sandbox", parts.pop(0))
    if not parts:
        return GridPath(sandbox)
    scope, owner = _take_scope(parts)
    if not parts:
        return GridPath(sandbox, scope, owner)
    namespace = check_namespace_name(parts.pop(0))
    for part in parts:
        _check_component(part)
    return GridPath(sandbox, scope, owner, namespace, "/".join(parts))


def _take_scope(parts: list[str]) -> tuple[Scope, str | None]:
    """Remove the scope's one or two components from the front of `parts`."""
    first = parts.pop(0)
    if first == SHARED:
        return Scope.SANDBOX, None
    scope = _LONG.get(first)
    if scope is not None:
        return scope, (owner_key(scope, parts.pop(0)) if parts else None)
    if first.startswith(_USER):
        return Scope.USER, check_id("user", first[len(_USER) :])
    return Scope.SESSION, session_key(first)


@lru_cache(REMEMBERED)
def scope_dir(scope: Scope, owner: str | None) -> str:
    """The scope's directory, whatever the spelling of `owner`.  Errors: InvalidError."""
    key = owner_key(scope, owner)
    if key is None:
        return SHARED
    return (_SESSION if scope is Scope.SESSION else _USER) + key


def parse_scope_dir(name: str) -> tuple[Scope, str | None] | None:
    """The (scope, owner) of a scope directory; None for any other name, other spellings of a scope included:
    a mount shows each directory under one name."""
    try:
        if name == SHARED:
            return Scope.SANDBOX, None
        if name.startswith(_USER):
            return Scope.USER, check_id("user", name[len(_USER) :])
        if name.startswith(_SESSION):
            key = session_key(name)
            return (Scope.SESSION, key) if name == _SESSION + key else None
    except InvalidError:
        pass
    return None


def owner_key(scope: Scope, owner: str | None) -> str | None:
    """`owner` as a GridPath has it: a session's key, a user's id, None for the sandbox.  Errors:
    InvalidError."""
    if scope is Scope.SANDBOX:
        if owner is not None:
            raise InvalidError("sandbox scope has no owner")
        return None
    if owner is None:
        raise InvalidError(f"{scope}_id is required for {scope.upper()} scope")
    return session_key(owner) if scope is Scope.SESSION else check_id("user", owner)


@lru_cache(REMEMBERED)
def session_key(id: str) -> str:
    """What names the session however its id is spelled: `sess-x` and `x` give `x`.  Errors: InvalidError."""
    if not isinstance(id, str):
        raise InvalidError(f"session id must be a string, not {id!r}")
    key = id
    while key.startswith(_SESSION):
        key = key[len(_SESSION) :]
    return check_id("session", key)


def check_id(kind: str, id: str) -> str:
    """`id` itself, if a `kind` (sandbox, session, user) may be called so.  Errors: InvalidError."""
    if not isinstance(id, str):
        raise InvalidError(f"{kind} id must be a string, not {id!r}")
    if not id:
        raise InvalidError(f"{kind} id cannot be empty")
    if id in (".", "..") or not _ID.fullmatch(id):
        raise InvalidError(
            f"{kind} id {id!r} is not valid: 1–128 of the characters A–Z a–z 0–9 . _ @ -, and not . or .."
        )
    if id in RESERVED:
        raise InvalidError(f"{kind} id {id!r} is a reserved word ({', '.join(sorted(RESERVED))})")
    return id


def check_namespace_name(name: str) -> str:
    """`name` itself, if a namespace may have it: UTF-8, 1–255 bytes, no `/` or NUL, not `.` or `..`, not
    beginning with `.artfs` or `.checkpoints`.  Errors: InvalidError."""
    _check_name("namespace name", name)
    if name in (".", ".."):
        raise InvalidError(f"namespace name cannot be {name!r}")
    if name.startswith(_HIDDEN):
        raise InvalidError(f"namespace name {name!r} cannot begin with {' or '.join(_HIDDEN)}")
    return name


def check_checkpoint_name(name: str) -> str:
    """`name` itself, if a checkpoint may have it: UTF-8, 1–255 bytes, no `/` or NUL, no leading dot.
    Errors: InvalidError."""
    _check_name("checkpoint name", name)
    if name.startswith("."):
        raise InvalidError(f"checkpoint name {name!r} cannot begin with a dot")
    return name


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str):
        raise InvalidError(f"{what} must be a string, not {name!r}")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidError(f"{what} {name!r} is not valid UTF-8") from None
    if not length:
        raise InvalidError(f"{what} cannot be empty")
    if length > NAME_MAX:
        raise InvalidError(f"{what} has {length} bytes, {NAME_MAX} are allowed")
    if "/" in name or "\0" in name:
        raise InvalidError(f"{what} {name!r} cannot contain '/' or NUL characters")


def _check_component(name: str) -> None:
    """A component of a path inside a namespace; any bytes, but no `..`: what that means is up to symlinks."""
    if name == "..":
        raise InvalidError("a grid path cannot contain '..'")
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise InvalidError(f"{name!r} is no file name: it has lone surrogates") from None
    if length > NAME_MAX:
        raise InvalidError(f"file name {name[:32]!r}… has {length} bytes, {NAME_MAX} are allowed")


# grid keys
class GridError(InvalidError):
    """What was given cannot be part of a grid key, or is none."""


def canonical_prefix(sandbox_id: str, session_id: str, use_legacy_format: bool = False) -> str:
    """`grid/<sandbox>/sessions/<session>/`; in the legacy format `grid/<sandbox>/<session>/`, unless the id would be
    read as a user's directory.  The id stays as it is spelled.  Errors: GridError."""
    sandbox = _checked_id("sandbox", sandbox_id)
    session = _checked_id("session", session_id)
    bare = use_legacy_format and not session.startswith(_USER)
    return f"{ROOT}/{sandbox}/{session}/" if bare else f"{ROOT}/{sandbox}/sessions/{session}/"


class Prefixes(dict[str, str]):
    """The legacy prefix of each session id of a sandbox, made at its first use, and kept, `limit` at most; `made`: how
    many were."""

    def __init__(self, sandbox_id: str, limit: int = 10_000) -> None:
        self.sandbox_id = sandbox_id
        self.limit = limit
        self.made = 0

    def __missing__(self, session_id: str) -> str:
        """Errors: GridError."""
        self.made += 1
        prefix = canonical_prefix(self.sandbox_id, session_id, use_legacy_format=True)
        if len(self) >= self.limit:
            self.pop(next(iter(self)), None)  # another thread may have been faster
        self[session_id] = prefix
        return prefix

    def of(self, session_id: str) -> str:
        """Errors: GridError."""
        try:
            return self[session_id]
        except TypeError:
            return canonical_prefix(self.sandbox_id, session_id, use_legacy_format=True)

    def key(self, session_id: str, artifact_id: str) -> str:
        """`artifact_key` in session scope, of ordinary ids without a closer look.  Errors: GridError."""
        try:
            prefix = self[session_id]
            if (
                "/" not in artifact_id
                and artifact_id[0] != "."
                and artifact_id.isascii()
                and len(artifact_id) <= NAME_MAX
                and "\0" not in artifact_id
            ):
                return prefix + artifact_id
        except (AttributeError, LookupError, TypeError):
            pass
        return artifact_key(self.sandbox_id, session_id, artifact_id, use_legacy_session_format=True)


def artifact_key(
    sandbox_id: str,
    session_id: str | None,
    artifact_id: str,
    scope: Scope | str = Scope.SESSION,
    owner_id: str | None = None,
    use_legacy_session_format: bool = False,
) -> str:
    """The grid key of an artifact: below `canonical_prefix` in session scope, `users/<owner_id>/` in user scope,
    `shared/` in sandbox scope; only the first needs `session_id`.  Errors: GridError."""
    try:
        scope = Scope(scope)
    except ValueError:
        raise GridError(f"Invalid scope: {scope!r}: it must be one of {', '.join(Scope)}") from None
    check_artifact_id(artifact_id)
    if scope is Scope.SESSION:
        # An empty or missing id is refused there.
        return canonical_prefix(sandbox_id, session_id, use_legacy_session_format) + artifact_id  # type: ignore[arg-type]
    sandbox = _checked_id("sandbox", sandbox_id)
    if scope is Scope.SANDBOX:
        return f"{ROOT}/{sandbox}/{SHARED}/{artifact_id}"
    if not owner_id:
        raise GridError("owner_id (the user's id) required for user scope")
    return f"{ROOT}/{sandbox}/users/{_checked_id('user', owner_id)}/{artifact_id}"


def parse(key: str) -> GridKeyComponents | None:
    """A grid key taken apart, in any spelling of its scope; None for whatever is no whole key of an artifact.

    `session_id` is as it is spelled, the user's id in user scope, `shared` in sandbox scope.  Raises nothing.
    """
    from artfs.models import GridKeyComponents

    if not isinstance(key, str) or not key.startswith(f"{ROOT}/"):
        return None
    parts = key.split("/")
    try:
        path = parse_path(key)
    except InvalidError:
        return None
    if path.namespace is None or path.sandbox is None or path.scope is None:
        return None
    long = parts[2] in _LONG
    if any(part in ("", ".") for part in parts[: 5 if long else 4]):
        return None
    owner = parts[3] if long else parts[2]
    if path.scope is not Scope.SESSION:
        owner = path.owner or SHARED
    return GridKeyComponents(
        sandbox_id=path.sandbox,
        session_id=owner,
        artifact_id=path.namespace,
        subpath=path.path or None,
        scope=path.scope,
    )


def is_valid_grid_key(key: str) -> bool:
    """Whether `parse` can take it apart."""
    return parse(key) is not None


def validate_grid_key(key: str) -> GridKeyComponents:
    """Errors: GridError where `parse` gives None."""
    found = parse(key)
    if found is None:
        raise GridError(
            f"Invalid grid key: {key!r}: it is grid/<sandbox>/<scope>/<artifact>, where the scope is a session's id, "
            "sessions/<id>, users/<id> or shared"
        )
    return found


def check_artifact_id(id: str) -> str:
    """`id` itself, if an artifact may have it, which is a namespace's name.  Errors: GridError."""
    _validate_component(id, "artifact_id")
    try:
        return check_namespace_name(id)
    except InvalidError as error:
        raise GridError(f"artifact_id: {error}") from None


def _checked_id(kind: str, id: str) -> str:
    _validate_component(id, f"{kind}_id")
    try:
        if kind == "session":
            session_key(id)
        else:
            check_id(kind, id)
    except InvalidError as error:
        raise GridError(str(error)) from None
    return id


def _validate_component(component: str, name: str) -> None:
    """Errors: GridError if `component` cannot stand between two slashes."""
    if not isinstance(component, str):
        raise GridError(f"{name} must be a string, not {type(component).__name__}")
    if not component:
        raise GridError(f"{name} cannot be empty")
    if "/" in component:
        raise GridError(f"{name} cannot contain '/' characters: {component!r}")
    if component in (".", "..") or "\0" in component:
        raise GridError(f"{name} cannot be {component!r}")
