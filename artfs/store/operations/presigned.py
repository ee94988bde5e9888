"""URLs of artifacts, and uploads through URLs, whole or in parts.

They are the provider's own where it signs URLs and has the plain bytes, else those of the store's own HTTP endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artfs.models import MultipartUploadCompleteRequest, MultipartUploadInitRequest
from artfs.store.operations.making import LEFT_OUT, Making, check_id, checked
from artfs.types import DEFAULT_PRESIGN_EXPIRES, StorageScope
from artfs.types.responses import MultipartUploadInitResponse

SHORT, MEDIUM, LONG = 900, 3600, 24 * 3600


class PresignedURLOperations(Making):
    """`expires` in seconds, at most 7 days.  Errors: as of `CoreStorageOperations`."""

    async def presign(
        self,
        artifact_id: str,
        expires: float = DEFAULT_PRESIGN_EXPIRES,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> str:
        """A URL that gives what the artifact holds now to anybody, at most as long as it lives."""
        url: str = await self._store._call(
            "api_artifact_presign", id=check_id(artifact_id), expires=expires, session_id=session_id, user_id=user_id
        )
        return url

    async def presign_short(
        self, artifact_id: str, *, user_id: str | None = None, session_id: str | None = None
    ) -> str:
        """For 15 minutes."""
        return await self.presign(artifact_id, SHORT, user_id=user_id, session_id=session_id)

    async def presign_medium(
        self, artifact_id: str, *, user_id: str | None = None, session_id: str | None = None
    ) -> str:
        """For an hour."""
        return await self.presign(artifact_id, MEDIUM, user_id=user_id, session_id=session_id)

    async def presign_long(self, artifact_id: str, *, user_id: str | None = None, session_id: str | None = None) -> str:
        """For 24 hours."""
        return await self.presign(artifact_id, LONG, user_id=user_id, session_id=session_id)

    # uploads in one piece
    async def presign_upload(
        self,
        session_id: str | None = None,
        filename: str | None = None,
        mime_type: str | None = None,
        expires: float = DEFAULT_PRESIGN_EXPIRES,
        *,
        user_id: str | None = None,
        scope: StorageScope | str = StorageScope.SESSION,
        ttl: float | None = LEFT_OUT,
    ) -> tuple[str, str]:
        """(URL, artifact id): the URL takes the artifact's bytes by PUT, with that Content-Type if there is one; then
        it is to be registered."""
        made = await self._begin(
            filename, mime_type, mime_type, "", None, ttl, scope, session_id, user_id, expires, auto=False
        )
        return made["url"], made["artifact_id"]

    async def _begin(
        self,
        filename: str | None,
        mime: str | None,
        sent: str | None,
        summary: str,
        meta: Mapping[str, Any] | None,
        ttl: float | None,
        scope: StorageScope | str,
        session_id: str | None,
        user_id: str | None,
        expires: float,
        auto: bool,
    ) -> dict[str, Any]:
        described = self._described(
            mime=mime, summary=summary, filename=filename, meta=meta, ttl=ttl, scope=scope, user_id=user_id
        )
        made: dict[str, Any] = await self._made(
            "api_upload_begin",
            parts=False,
            mime=sent,
            expires=expires,
            auto=auto,
            session_id=session_id,
            user_id=user_id,
            **described,
        )
        return made

    async def register_uploaded_artifact(
        self,
        artifact_id: str,
        *,
        mime: str | None = None,
        summary: str | None = None,
        meta: Mapping[str, Any] | None = None,
        filename: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        ttl: float | None = LEFT_OUT,
    ) -> bool:
        """What was uploaded becomes the artifact: True.  What is left out is as `presign_upload` said.
        Errors: ArtifactNotFoundError if nothing was uploaded."""
        await self._register(artifact_id, mime, summary, meta, filename, ttl, None, session_id, session_id, user_id)
        return True

    async def _register(
        self,
        upload_id: str,
        mime: str | None,
        summary: str | None,
        meta: Mapping[str, Any] | None,
        filename: str | None,
        ttl: float | None,
        parts: list[tuple[int, str]] | None,
        session: str | None,
        session_id: str | None,
        user_id: str | None,
    ) -> str:
        given = self._changes(
            mime=mime, summary=summary, filename=filename, meta=meta, ttl=None if ttl is LEFT_OUT else ttl
        )
        changes: dict[str, Any] = {
            "own": {name: given.get(name) for name in ("mime", "summary", "filename")},
            "meta": given.get("meta"),
        }
        if ttl is not LEFT_OUT:
            changes["ttl"] = given.get("ttl")
        registered: str = await self._store._call(
            "api_upload_register",
            upload_id=check_id(upload_id),
            changes=changes,
            parts=parts,
            session=session,
            session_id=session_id,
            user_id=user_id,
        )
        return registered

    async def presign_upload_and_register(
        self,
        *,
        mime: str | None = None,
        summary: str = "",
        meta: Mapping[str, Any] | None = None,
        filename: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        ttl: float | None = LEFT_OUT,
        expires: float = DEFAULT_PRESIGN_EXPIRES,
        scope: StorageScope | str = StorageScope.SESSION,
    ) -> tuple[str, str]:
        """(URL, artifact id), as `presign_upload`; the artifact is there, as described here, once its bytes are."""
        made = await self._begin(
            filename, mime, mime, summary, meta, ttl, scope, session_id, user_id, expires, auto=True
        )
        return made["url"], made["artifact_id"]

    # uploads in parts
    async def initiate_multipart_upload(
        self, request: MultipartUploadInitRequest | Mapping[str, Any]
    ) -> MultipartUploadInitResponse:
        """Begin one: its `upload_id`, and the `artifact_id` that it will have."""
        request = checked(MultipartUploadInitRequest, request)
        described = self._described(
            mime=request.mime_type,
            summary="",
            filename=request.filename,
            meta=request.meta,
            ttl=request.ttl if "ttl" in request.model_fields_set else LEFT_OUT,
            scope=request.scope,
            user_id=request.user_id,
        )
        made = await self._made(
            "api_upload_begin",
            parts=True,
            mime=request.mime_type,
            window=request.upload_ttl,
            session_id=request.session_id,
            user_id=request.user_id,
            **described,
        )
        return MultipartUploadInitResponse(
            upload_id=made["upload_id"],
            artifact_id=made["artifact_id"],
            key=made["key"],
            session_id=made["session_id"],
            expires_in=request.upload_ttl,
        )

    async def get_part_upload_url(
        self,
        upload_id: str,
        part_number: int,
        expires: float = DEFAULT_PRESIGN_EXPIRES,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> str:
        """Where part `part_number` (1 to 10 000) goes by PUT; the answer's ETag is wanted at completion."""
        url: str = await self._store._call(
            "api_upload_part",
            upload_id=check_id(upload_id),
            part_number=part_number,
            expires=expires,
            session_id=session_id,
            user_id=user_id,
        )
        return url

    async def complete_multipart_upload(
        self,
        request: MultipartUploadCompleteRequest | Mapping[str, Any],
        *,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> str:
        """The parts become the artifact, whose id this is; its time to live begins.  All but the last have 5 MiB or
        more.  In memory alone a completion without any part that arrived makes an empty artifact, `incomplete`."""
        request = checked(MultipartUploadCompleteRequest, request)
        parts = [(part.PartNumber, part.ETag) for part in request.parts]
        return await self._register(
            request.upload_id, None, request.summary, None, None, LEFT_OUT, parts, None, session_id, user_id
        )

    async def abort_multipart_upload(
        self, upload_id: str, *, user_id: str | None = None, session_id: str | None = None
    ) -> bool:
        """Nothing is left of it, and its URLs are dead: True, also if nothing was there."""
        await self._store._call(
            "api_upload_abort", upload_id=check_id(upload_id), session_id=session_id, user_id=user_id
        )
        return True
