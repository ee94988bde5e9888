"""What a session is and which rules hold for all: who works in a sandbox, until when.  A store of them is a
`SessionStore`.

A session is *live* until its expiry or its deletion, and *ended* from that moment: a call sees it at the time
of the call, whether the reaper has come by or not.  What an ended session leaves behind is *reaped* by
whoever asks `expire_due`; until `reaped` says so, every `expire_due` names it again, also after a crash.  An
expired session's id stays known as expired for `REMEMBERED` after that; a deleted one's is forgotten at once.

Invariants:
1. sessions are named by (sandbox, key): `x` and `sess-x` are one, and those of another sandbox do not exist;
2. an id is not used again while data of its former session may be left, or while it is remembered;
3. a session that has ended never becomes live again, also if the clock goes back once `expire_due` has seen
   it.

Times are nanoseconds since 1970.  All calls are plain and may come from any thread; those that change
something may wait for the disk.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from artfs.errors import ExistsError, ExpiredError, InvalidError, NotFoundError
from artfs.grid import check_id, session_key

NS = 1_000_000_000
REMEMBERED = 24 * 3600 * NS
METADATA_MAX = 1 << 20
"""Bytes of a session's metadata as JSON."""

Clock = Callable[[], int]


class Status(StrEnum):
    ACTIVE = "active"
    EXPIRED = "expired"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Session:
    """`id` is spelled as it was when the session was made; `metadata` is any JSON object, not to be
    changed."""

    id: str
    sandbox: str
    user: str | None
    created_ns: int
    expires_ns: int
    last_accessed_ns: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    status: Status = Status.ACTIVE

    @property
    def key(self) -> str:
        """What grid paths call it."""
        return session_key(self.id)

    def live(self, now: int) -> bool:
        return self.status is Status.ACTIVE and now < self.expires_ns


class SessionStore(Protocol):
    """`id` is taken in any spelling.  Errors of all calls: InvalidError, UnavailableError; of those on one
    session: ExpiredError if it has expired, NotFoundError if there is none, it was deleted, or is another
    sandbox's."""

    def create(
        self,
        sandbox: str,
        user: str | None = None,
        *,
        ttl_seconds: float,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Session:
        """A new live session, durable; without `id` one is made up.  Errors: ExistsError."""

    def get(self, sandbox: str, id: str) -> Session:
        """The live session."""

    def validate(self, sandbox: str, id: str) -> Session:
        """The live session, its last access set to now (which a power loss may undo); its expiry stays."""

    def extend(self, sandbox: str, id: str, seconds: float) -> Session:
        """Let it expire that much later than it would."""

    def update(self, sandbox: str, id: str, metadata: Mapping[str, Any], *, merge: bool = True) -> Session:
        """Merge `metadata` into its own, key by key, or put it in their place.  Errors: InvalidError if there is
        nothing to merge."""

    def delete(self, sandbox: str, id: str) -> Session:
        """End it now; returns what it was, as deleted."""

    def expire_due(self) -> Sequence[Session]:
        """Every session that has ended and is not reaped, by creation; also forgets what was remembered for
        long enough."""

    def reaped(self, sandbox: str, id: str) -> None:
        """Nothing of this ended session is left.  Nothing happens if that was said before, or there is none.
        Errors: BusyError if it is live."""

    def next_expiry(self) -> int | None:
        """When `expire_due` has work again: the first expiry among sessions not yet known to have ended."""

    def list(self, sandbox: str | None = None) -> Sequence[Session]:
        """The live sessions, of all sandboxes if None, by creation."""

    def close(self) -> None: ...


# rules
def new_session(
    sandbox: str,
    user: str | None,
    ttl_seconds: float,
    id: str | None,
    metadata: Mapping[str, Any] | None,
    now: int,
) -> Session:
    check_id("sandbox", sandbox)
    if user is not None:
        check_id("user", user)
    if id is None:
        id = new_id(user, now)
    session_key(id)
    return Session(id, sandbox, user, now, later(now, ttl_seconds), now, checked_metadata(metadata) if metadata else {})


def new_id(user: str | None, now: int) -> str:
    """`sess-<letters and digits of the user, at most 8>-<seconds since 1970>-<32 hex digits>`; a user with
    none, or no user, is left out."""
    short = "".join(filter(str.isalnum, user or ""))[:8]
    return "-".join(filter(None, ("sess", short, str(now // NS), secrets.token_hex(16))))


def later(start: int, seconds: float) -> int:
    """Errors: InvalidError unless `seconds` is above zero and the result has 63 bits."""
    end = start + round(seconds * NS) if math.isfinite(seconds) else 0
    if not start < end < 2**63:
        raise InvalidError(f"a time to live of {seconds} s is not valid: it must be above 0, and finite")
    return end


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that shares nothing with the caller's.  Errors: InvalidError if it is no JSON object, or too
    large."""
    if not all(isinstance(key, str) for key in metadata):
        raise InvalidError("the keys of a session's metadata must be strings")
    try:
        text = json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(f"a session's metadata must be JSON: {error}") from None
    if len(text) > METADATA_MAX:
        raise InvalidError(f"a session's metadata has {len(text)} bytes as JSON, {METADATA_MAX} are allowed")
    copy: dict[str, Any] = json.loads(text)
    return copy


def updated(session: Session, metadata: Mapping[str, Any], merge: bool) -> Session:
    if merge and not metadata:
        raise InvalidError("nothing to update: give at least one key")
    return replace(session, metadata=checked_metadata({**session.metadata, **metadata} if merge else metadata))


def require_live(session: Session | None, sandbox: str, id: str, now: int) -> Session:
    """`session` itself.  Errors: NotFoundError, ExpiredError."""
    if session is None or session.status is Status.DELETED:
        raise NotFoundError(f"Invalid session: there is no {id!r} in sandbox {sandbox!r}")
    if not session.live(now):
        raise ExpiredError(f"Invalid session: {id!r} has expired; create another")
    return session


def require_free(holder: Session | None, id: str, now: int) -> None:
    """Errors: ExistsError if the id cannot be given to a new session."""
    if holder is None:
        return
    if holder.live(now):
        raise ExistsError(f"session {id!r} exists already")
    raise ExistsError(f"session {id!r} has ended, its id cannot be used again yet; choose another")
