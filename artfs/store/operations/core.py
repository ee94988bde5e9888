"""Artifacts: stored, read, changed, copied and moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artfs.models import ArtifactMetadata
from artfs.store.artifact_rules import NOTHING
from artfs.store.operations.making import LEFT_OUT, Data, check_data, check_id, digest
from artfs.store.operations.streams import StreamOperations
from artfs.store.operations.transfer import decoded, encoded
from artfs.store.public_errors import InvalidArgumentError
from artfs.types import DEFAULT_TTL, StorageScope
from artfs.volume.trees import SMALL


class CoreStorageOperations(StreamOperations):
    """Errors of all: ArtifactNotFoundError, ArtifactExpiredError, AccessDeniedError, SessionError, ProviderError, and
    InvalidArgumentError (a ValueError) for what can never be right.  Times to live are seconds."""

    async def store(
        self,
        data: Data,
        *,
        mime: str | None = None,
        summary: str = "",
        meta: Mapping[str, Any] | None = None,
        filename: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        ttl: float | None = LEFT_OUT,
        scope: StorageScope | str = StorageScope.SESSION,
    ) -> str:
        """The id of a new artifact.  It belongs to the session that is named, which is made if it is unknown, else to
        the store's own session of that user; in user scope to the user.

        `ttl` in seconds; None: no expiry; left out: 900 in session scope, none in the others.  `mime` is guessed from
        `filename`, which is relative, and no more than metadata; `meta` is a JSON object of at most 512 KiB.
        Errors: InvalidArgumentError, SessionError (a session that has ended), AccessDeniedError, ProviderError.
        """
        data = check_data(data)
        arguments = self._described(
            mime=mime, summary=summary, filename=filename, meta=meta, ttl=ttl, scope=scope, user_id=user_id
        )
        if len(data) > SMALL:
            return await self._store_large(data, session_id, user_id, arguments)
        arguments["own"]["sha256"] = digest(data)
        made: str = await self._made(
            "api_artifact_store", data=data, session_id=session_id, user_id=user_id, **arguments
        )
        return made

    async def write_file(
        self,
        content: str | Data,
        *,
        filename: str,
        mime: str | None = None,
        summary: str = "",
        session_id: str | None = None,
        user_id: str | None = None,
        meta: Mapping[str, Any] | None = None,
        encoding: str = "utf-8",
        scope: StorageScope | str = StorageScope.SESSION,
        ttl: float | None = LEFT_OUT,
    ) -> str:
        """`store` of a text or of bytes, as a file."""
        if mime is None and isinstance(content, str):
            mime = "text/plain"
        if ttl is LEFT_OUT:
            ttl = DEFAULT_TTL if scope == StorageScope.SESSION else None
        return await self.store(
            data=encoded(content, encoding) if isinstance(content, str) else content,
            mime=mime,
            summary=summary or f"File: {filename}",
            filename=filename,
            session_id=session_id,
            user_id=user_id,
            meta=meta,
            scope=scope,
            ttl=ttl,
        )

    async def retrieve(self, artifact_id: str, *, user_id: str | None = None, session_id: str | None = None) -> bytes:
        """All of its bytes, as they are now.  Errors: ArtifactNotFoundError, ArtifactExpiredError, AccessDeniedError,
        ProviderError, ArtifactCorruptedError."""
        found = await self._store._call(
            "api_artifact_read", id=check_id(artifact_id), session_id=session_id, user_id=user_id
        )
        return found if isinstance(found, bytes) else await self._all_of(found)

    async def read_file(
        self,
        artifact_id: str,
        *,
        encoding: str = "utf-8",
        as_text: bool = False,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> Any:
        """Bytes, or with `as_text` a string.  Errors: also UnicodeDecodeError."""
        who = {name: value for name, value in (("user_id", user_id), ("session_id", session_id)) if value is not None}
        data = await self.retrieve(artifact_id, **who)
        return decoded(data, encoding) if as_text else data

    async def update_file(
        self,
        artifact_id: str,
        data: Data | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
        filename: str | None = None,
        summary: str | None = None,
        mime: str | None = None,
        ttl: float | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> bool:
        """Change its content, its metadata (merged), or both at once: others see all of the change or nothing.  `ttl`
        begins now.  True."""
        changes = self._changes(mime=mime, summary=summary, filename=filename, meta=meta, ttl=ttl)
        if data is None and not changes:
            raise InvalidArgumentError(NOTHING)
        if data is not None:
            data = check_data(data)
            if len(data) > SMALL:
                await self._rewrite(check_id(artifact_id), data, changes, session_id, user_id)
                return True
            changes["sha256"] = digest(data)
        await self._update(artifact_id, changes, data, session_id, user_id)
        return True

    async def _update(
        self,
        artifact_id: str,
        changes: Mapping[str, Any],
        data: bytes | None,
        session_id: str | None,
        user_id: str | None,
    ) -> ArtifactMetadata:
        found = await self._store._call(
            "api_artifact_update",
            id=check_id(artifact_id),
            changes=changes,
            data=data,
            session_id=session_id,
            user_id=user_id,
        )
        return ArtifactMetadata(**found)

    async def copy_file(
        self,
        artifact_id: str,
        *,
        new_filename: str | None = None,
        target_session_id: str | None = None,
        new_meta: Mapping[str, Any] | None = None,
        summary: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> str:
        """The id of a copy, in the same scope, with the source's time to live, which begins now; its metadata say
        `copied_from`.  Errors: AccessDeniedError for a `target_session_id` that is another."""
        source = await self._store._call(
            "api_artifact_metadata", id=check_id(artifact_id), session_id=session_id, user_id=user_id
        )
        name = new_filename
        if name is None and source["filename"]:
            name = f"{source['filename']}_copy"
        text = summary if summary is not None else f"Copy of {source['summary']}"[: 64 << 10]
        copied: str = await self._store._call(
            "api_artifact_copy",
            id=artifact_id,
            changes=self._changes(filename=name, summary=text, meta=new_meta),
            session=target_session_id,
            session_id=session_id,
            user_id=user_id,
        )
        return copied

    async def move_file(
        self,
        artifact_id: str,
        *,
        new_filename: str | None = None,
        new_session_id: str | None = None,
        new_meta: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> ArtifactMetadata:
        """Give it another file name; its id stays.  Errors: AccessDeniedError for a `new_session_id` that is
        another."""
        found = await self._store._call(
            "api_artifact_move",
            id=check_id(artifact_id),
            changes=self._changes(filename=new_filename, meta=new_meta),
            session=new_session_id,
            session_id=session_id,
            user_id=user_id,
        )
        return ArtifactMetadata(**found)
