"""What is known of artifacts: looked up, changed, listed, searched; and their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artfs.errors import ArtfsError
from artfs.exceptions import ArtifactExpiredError, ArtifactNotFoundError
from artfs.models import ArtifactMetadata
from artfs.store.artifact_rules import NOTHING, check_filename
from artfs.store.operations.making import Making, check_id
from artfs.store.public_errors import InvalidArgumentError, public
from artfs.types import StorageScope


class MetadataOperations(Making):
    """Listings have the newest first, and are complete unless there is a `limit`.  Errors: as of
    `CoreStorageOperations`."""

    async def metadata(
        self, artifact_id: str, *, user_id: str | None = None, session_id: str | None = None
    ) -> ArtifactMetadata:
        """Its description: size in bytes, type, summary, file name, custom metadata, whose it is and until when."""
        found = await self._store._call(
            "api_artifact_metadata", id=check_id(artifact_id), session_id=session_id, user_id=user_id
        )
        return ArtifactMetadata(**found)

    async def exists(self, artifact_id: str, *, user_id: str | None = None, session_id: str | None = None) -> bool:
        """Whether the caller can read it."""
        store = self._store
        try:
            found: bool = await store._call(
                "api_artifact_exists", id=check_id(artifact_id), session_id=session_id, user_id=user_id
            )
        except ArtifactNotFoundError:  # it is to be uploaded
            return False
        if not found and store._elsewhere:
            who = store._who(session_id, user_id)
            try:
                return await store._elsewhere.exists({"id": artifact_id, "who": who, "sandbox": store.sandbox_id})
            except ArtfsError as error:
                raise public(error) from error
        return found

    async def delete(self, artifact_id: str, *, user_id: str | None = None, session_id: str | None = None) -> bool:
        """Whether it was there: it is gone.  Errors: AccessDeniedError, ProviderError."""
        try:
            await self._store._call(
                "api_artifact_delete", id=check_id(artifact_id), session_id=session_id, user_id=user_id
            )
        except (ArtifactNotFoundError, ArtifactExpiredError):
            return False
        return True

    async def update_metadata(
        self,
        artifact_id: str,
        *,
        summary: str | None = None,
        meta: Mapping[str, Any] | None = None,
        merge: bool = True,
        mime: str | None = None,
        filename: str | None = None,
        ttl: float | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
        **others: Any,
    ) -> ArtifactMetadata:
        """`meta` is merged into the present one key by key, or takes its place; `ttl` begins now.  Whose the artifact
        is, and where, cannot be changed."""
        if others:
            raise InvalidArgumentError(f"{', '.join(sorted(others))} of an artifact cannot be changed")
        changes = self._changes(mime=mime, summary=summary, filename=filename, meta=meta, merge=merge, ttl=ttl)
        if not changes:
            raise InvalidArgumentError(NOTHING)
        return await self._changed(artifact_id, changes, session_id, user_id)

    async def extend_ttl(
        self,
        artifact_id: str,
        additional_seconds: float,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> ArtifactMetadata:
        """Let it expire that much later than it would; what has no expiry stays so."""
        more = self._changes(ttl=additional_seconds).get("ttl")
        if more is None:
            raise InvalidArgumentError("additional_seconds must be a number above 0")
        return await self._changed(artifact_id, {"more_ttl": more}, session_id, user_id)

    async def _changed(
        self, artifact_id: str, changes: Mapping[str, Any], session_id: str | None, user_id: str | None
    ) -> ArtifactMetadata:
        found = await self._store._call(
            "api_artifact_update", id=check_id(artifact_id), changes=changes, session_id=session_id, user_id=user_id
        )
        return ArtifactMetadata(**found)

    # finding
    async def search(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        scope: StorageScope | str | None = None,
        mime_prefix: str | None = None,
        meta_filter: Mapping[str, Any] | None = None,
        limit: int | None = None,
    ) -> list[ArtifactMetadata]:
        """Those that the caller may read and that have all of this: `user_id`: of that user, or made in one of their
        sessions; `session_id`: in that session's scope; `meta_filter`: these keys of the metadata are exactly so.
        Session scope without a session: none."""
        bound = self._store._bound or {}
        session = session_id
        if scope == StorageScope.SESSION and session is None:
            session = bound.get("session")
            if session is None:
                return []
        if meta_filter is not None and not isinstance(meta_filter, Mapping):
            raise InvalidArgumentError(f"meta_filter must be a mapping, not {type(meta_filter).__name__}")
        return await self._search(
            limit,
            session=session,
            user=user_id,
            scope=None if scope is None else str(scope),
            mime_prefix=mime_prefix,
            meta=None if meta_filter is None else dict(meta_filter),
            session_id=session_id,
            user_id=user_id,
        )

    async def _search(self, limit: int | None, **arguments: Any) -> list[ArtifactMetadata]:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise InvalidArgumentError(f"limit must be a number from 0, or None for all, not {limit!r}")
        found: list[ArtifactMetadata] = []
        before = None
        while limit is None or len(found) < limit:
            left = None if limit is None else limit - len(found)
            page = await self._store._call("api_artifact_search", limit=left, before=before, **arguments)
            found += [ArtifactMetadata(**item) for item in page["items"]]
            before = page["next"]
            if before is None:
                break
        return found

    async def list_by_session(
        self, session_id: str, limit: int | None = None, *, user_id: str | None = None
    ) -> list[ArtifactMetadata]:
        """What is in the session's scope; nothing, if it is not live."""
        return await self.list_files(session_id, "", limit, user_id=user_id)

    async def list_files(
        self, session_id: str, prefix: str = "", limit: int | None = None, *, user_id: str | None = None
    ) -> list[ArtifactMetadata]:
        """What is in the session's scope with a file name that begins with `prefix`."""
        view = self._store._bound is not None
        return await self._search(
            limit,
            session=check_id(session_id),
            scope=str(StorageScope.SESSION),
            name_prefix=prefix,
            session_id=session_id if view or user_id is not None else None,
            user_id=user_id,
        )

    async def get_directory_contents(
        self,
        session_id: str,
        directory_prefix: str = "",
        limit: int | None = None,
        *,
        user_id: str | None = None,
    ) -> list[ArtifactMetadata]:
        """What is in the session's scope with a file name below that directory, at any depth."""
        prefix = directory_prefix
        if prefix:
            try:
                check_filename(prefix)
            except ArtfsError as error:
                raise public(error) from error
            prefix = prefix if prefix.endswith("/") else f"{prefix}/"
        return await self.list_files(session_id, prefix, limit, user_id=user_id)
