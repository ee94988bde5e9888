"""Sessions of the store: the same that mounts and other processes see.  A deleted one is gone at once, everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artfs.exceptions import ArtifactNotFoundError, SessionError
from artfs.store.operations.base import Operations
from artfs.store.public_errors import InvalidArgumentError
from artfs.types.responses import SessionInfo

HOUR = 3600.0
HOURS_MAX = 1e6


class SessionOperations(Operations):
    """A session that has ended, or is of another sandbox, is unknown.  A checked caller sees its own sessions.
    Errors of all: InvalidArgumentError, ProviderError, AccessDeniedError (`cleanup_expired_sessions` is an admin's)."""

    async def create_session(
        self,
        user_id: str | None = None,
        ttl_hours: float | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
        *,
        session_id: str | None = None,
    ) -> str:
        """The id of a new session; of the live one that has `session_id`, if there is one.  `ttl_hours=None`: the
        store's.  Errors: SessionError if that one belongs to another user, or the id must rest; InvalidError."""
        made = await self._store._call(
            "api_session_create",
            user=user_id,
            ttl_seconds=_seconds("ttl_hours", self._store.session_ttl_hours if ttl_hours is None else ttl_hours),
            id=session_id,
            metadata=None if custom_metadata is None else _mapping(custom_metadata),
        )
        return str(made["session_id"])

    async def validate_session(self, session_id: str) -> bool:
        """Whether it is live; if so, its last access is set to now, its expiry stays."""
        return await self._found("api_session_validate", session_id) is not None

    async def get_session_info(self, session_id: str) -> SessionInfo | None:
        """What is known of it; None if it is not live.  Its last access stays."""
        found = await self._found("api_session_info", session_id)
        return None if found is None else SessionInfo(**found)

    async def update_session_metadata(
        self,
        session_id: str,
        custom_metadata: Mapping[str, Any] | None = None,
        merge: bool = True,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Put keys of its metadata beside those that are there, or in their place; whether it is live.  `metadata` and
        `custom_metadata` are one."""
        if (custom_metadata is None) is (metadata is None):
            raise InvalidArgumentError("give a session's metadata, once")
        given = _mapping(metadata if custom_metadata is None else custom_metadata)
        return await self._found("api_session_update", session_id, metadata=given, merge=merge) is not None

    async def extend_session_ttl(self, session_id: str, additional_hours: float) -> bool:
        """Let it end that much later than it would; whether it is live."""
        seconds = _seconds("additional_hours", additional_hours)
        return await self._found("api_session_extend", session_id, seconds=seconds) is not None

    async def delete_session(self, session_id: str) -> bool:
        """End it now, with all that is in its scope; whether it was live."""
        found = await self._found("api_session_delete", session_id)
        if found is not None:
            self._store._session_ended(found["session_id"])
        return found is not None

    async def cleanup_expired_sessions(self) -> int:
        """Delete what has expired by now; how many sessions and namespaces that were, with those that the store's owner
        deleted by itself since the last time."""
        return int(await self._store._call("api_cleanup"))

    async def _found(self, method: str, session_id: str, **arguments: Any) -> dict[str, Any] | None:
        store = self._store
        if not isinstance(session_id, str):
            raise InvalidArgumentError(f"a session's id must be a string, not {session_id!r}")
        try:
            found: dict[str, Any] = await store._call(method, id=session_id, **arguments)
            if store._elsewhere and method in ("api_session_extend", "api_session_delete"):
                await store._elsewhere.everywhere(
                    method, {"id": session_id, "sandbox": store.sandbox_id, "who": store._who(None, None), **arguments}
                )
        except SessionError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            store._sessions_asked[False] += 1
            return None
        except ArtifactNotFoundError:
            store._sessions_asked[False] += 1
            return None
        store._sessions_asked[True] += 1
        return found


def _seconds(name: str, hours: float) -> float:
    """Errors: InvalidArgumentError unless above zero."""
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours < HOURS_MAX:
        raise InvalidArgumentError(f"{name} must be a number of hours above 0, not {hours!r}")
    return hours * HOUR


def _mapping(metadata: Any) -> dict[str, Any]:
    """Errors: InvalidArgumentError."""
    if not isinstance(metadata, Mapping):
        raise InvalidArgumentError(f"a session's metadata is a mapping, not {type(metadata).__name__}")
    return dict(metadata)
