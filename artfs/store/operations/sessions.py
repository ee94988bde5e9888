"""Sessions of the store: the same that mounts and other processes see.  A deleted one is gone at once, everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artfs.exceptions import ArtifactNotFoundError, SessionError
from artfs.store.operations.base import Operations
from artfs.types.responses import SessionInfo

HOUR = 3600.0


class SessionOperations(Operations):
    """A session that has ended, or is of another sandbox, is unknown.  A checked caller sees its own sessions."""

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
        hours = self._store.session_ttl_hours if ttl_hours is None else ttl_hours
        made = await self._store._call(
            "api_session_create",
            user=user_id,
            ttl_seconds=hours * HOUR,
            id=session_id,
            metadata=None if custom_metadata is None else dict(custom_metadata),
        )
        return str(made["session_id"])

    async def validate_session(self, session_id: str) -> bool:
        """Whether it is live; if so, its last access is set to now, its expiry stays."""
        return await self._found("api_session_validate", session_id) is not None

    async def get_session_info(self, session_id: str) -> SessionInfo | None:
        found = await self._found("api_session_info", session_id)
        return None if found is None else SessionInfo(**found)

    async def update_session_metadata(
        self, session_id: str, custom_metadata: Mapping[str, Any], merge: bool = True
    ) -> bool:
        """Put keys of its metadata beside those that are there, or in their place; whether it is live."""
        found = await self._found("api_session_update", session_id, metadata=dict(custom_metadata), merge=merge)
        return found is not None

    async def extend_session_ttl(self, session_id: str, additional_hours: float) -> bool:
        """Let it end that much later than it would; whether it is live."""
        return await self._found("api_session_extend", session_id, seconds=additional_hours * HOUR) is not None

    async def delete_session(self, session_id: str) -> bool:
        """End it now, with all that is in its scope; whether it was live."""
        found = await self._found("api_session_delete", session_id)
        for user, own in list(self._store._own_sessions.items()):
            if found is not None and own == found["session_id"]:
                del self._store._own_sessions[user]
        return found is not None

    async def cleanup_expired_sessions(self) -> int:
        """Delete what has expired by now; how many sessions and namespaces that were."""
        return int(await self._store._call("api_cleanup"))

    async def _found(self, method: str, session_id: str, **arguments: Any) -> dict[str, Any] | None:
        store = self._store
        try:
            found: dict[str, Any] = await store._call(method, id=session_id, **arguments)
            if store._elsewhere and method in ("api_session_extend", "api_session_delete"):
                await store._elsewhere.everywhere(
                    method, {"id": session_id, "sandbox": store.sandbox_id, "who": store._who(None, None), **arguments}
                )
        except SessionError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        except ArtifactNotFoundError:
            return None
        return found
