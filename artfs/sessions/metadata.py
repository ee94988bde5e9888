"""A session as callers see it: a model, or a dict with the same keys, of one moment.

Times are ISO 8601 in UTC, to the microsecond.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from artfs.sessions.rules import NS, Session
from artfs.types.responses import Keyed


class SessionStatus(StrEnum):
    """What a manager shows is ACTIVE: it knows no other sessions.  The others are for callers' own records."""

    ACTIVE = "active"
    EXPIRED = "expired"
    INVALIDATED = "invalidated"
    TERMINATED = "terminated"


class SessionMetadata(Keyed):
    """A session as it was; changing this changes no session."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    session_id: str = Field(min_length=1)
    sandbox_id: str = Field(min_length=1)
    user_id: str | None = None
    created_at: str | None = None
    expires_at: str | None = None
    status: SessionStatus = SessionStatus.ACTIVE
    last_accessed: str | None = None
    custom_metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _made_now(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        created = fields.get("created_at") or iso(time.time_ns())
        return {**fields, "created_at": created, "last_accessed": fields.get("last_accessed") or created}

    def is_expired(self) -> bool:
        """Whether `expires_at` has come; False without one."""
        return self.expires_at is not None and datetime.fromisoformat(self.expires_at) <= datetime.now(UTC)

    def touch(self) -> None:
        """Set `last_accessed` to now, here alone."""
        self.last_accessed = iso(time.time_ns())

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        return cls.model_validate(dict(fields))


def info(session: Session) -> dict[str, Any]:
    """What callers see of a session."""
    return {
        "session_id": session.id,
        "sandbox_id": session.sandbox,
        "user_id": session.user,
        "created_at": iso(session.created_ns),
        "expires_at": iso(session.expires_ns),
        "status": SessionStatus.ACTIVE,
        "last_accessed": iso(session.last_accessed_ns),
        "custom_metadata": deepcopy(dict(session.metadata)),
    }


def iso(ns: int) -> str:
    """Nanoseconds since 1970 as ISO 8601 in UTC, to the microsecond below."""
    second = datetime.fromtimestamp(ns // NS, UTC).replace(microsecond=ns % NS // 1000, tzinfo=None)
    return second.isoformat(timespec="microseconds") + "Z"
