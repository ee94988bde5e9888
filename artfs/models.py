"""What artifacts are described by, and the requests that calls of the Python API take.

Descriptions are `Keyed`: read by attribute and by key.  Requests are checked where they are made and know no fields
but their own.  A time to live is in seconds; None is no expiry, and left out it is `DEFAULT_TTL` in session scope and
none in the others.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from artfs.types import DEFAULT_TTL, StorageScope
from artfs.types.responses import Keyed

Progress = Callable[[int, int | None], Awaitable[None] | None]
"""Called with (bytes done, bytes in all, if known); plain or async."""

NonEmpty = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(gt=0)]
# of requests: nothing else is taken for one
Text = Annotated[str, Field(strict=True)]
Name = Annotated[str, Field(min_length=1, strict=True)]
Count = Annotated[int, Field(gt=0, strict=True)]

PART_MAX = 10_000
UPLOAD_TTL = 24 * 3600


# descriptions
class ArtifactEnvelope(Keyed):
    """What a tool may answer when it has stored something; `bytes` is its size."""

    success: bool = True
    artifact_id: str
    mime_type: str
    bytes: int
    summary: str
    meta: dict[str, Any] = Field(default_factory=dict)


class ArtifactMetadata(Keyed):
    """An artifact.  `session_id` is the session that made it; `owner_id` the user that it, or its session, belongs
    to; `key` its grid path; `ttl` None without expiry."""

    artifact_id: str
    session_id: str
    sandbox_id: str
    key: str
    mime: str
    summary: str
    meta: dict[str, Any] = Field(default_factory=dict)
    filename: str | None = None
    bytes: int = Field(ge=0)
    sha256: str | None = None
    stored_at: str
    ttl: Positive | None = None
    storage_provider: str
    session_provider: str
    scope: StorageScope = StorageScope.SESSION
    owner_id: str | None = None
    batch_operation: bool | None = None
    batch_index: int | None = None
    uploaded_via_presigned: bool | None = None
    updated_at: str | None = None


class GridKeyComponents(Keyed):
    """A grid path taken apart.  `session_id` is whose scope it is: the session, the user, or `shared`; `scope`, which
    says which of them, is no part of the path and not in `model_dump`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sandbox_id: NonEmpty
    session_id: NonEmpty
    artifact_id: NonEmpty
    subpath: str | None = None
    scope: StorageScope = Field(default=StorageScope.SESSION, exclude=True)

    @field_validator("sandbox_id", "session_id", "artifact_id")
    @classmethod
    def _one_component(cls, value: str) -> str:
        if "/" in value:
            raise ValueError(f"a component of a grid path cannot contain '/' characters: {value!r}")
        return value


class AccessContext(Keyed):
    """Who asks, and in which sandbox."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: str | None = None
    session_id: str | None = None
    sandbox_id: str
    admin: bool = False


# requests
class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, defer_build=True)


class _Storing(_Request):
    """What is common to requests that make an artifact."""

    meta: dict[str, Any] | None = None
    session_id: Text | None = None
    user_id: Text | None = None
    scope: StorageScope = StorageScope.SESSION
    ttl: Count | None = DEFAULT_TTL

    @model_validator(mode="after")
    def _left_out(self) -> Self:
        if "ttl" not in self.model_fields_set and self.scope is not StorageScope.SESSION:
            self.ttl = None
        return self


class BatchStoreItem(_Request):
    """One of `store_batch`.  An empty file is a file."""

    data: Annotated[bytes, Field(strict=True)]
    mime: Name | None = None
    summary: Text
    meta: dict[str, Any] | None = None
    filename: Text | None = None


class StreamUploadRequest(_Storing):
    """`content_length` in bytes: a stream of another length fails."""

    # Not checked by pydantic, which would wrap an iterator in one of its own.
    data_stream: Any
    mime: Name | None = None
    summary: Text = ""
    filename: Text | None = None
    content_length: int | None = Field(default=None, ge=0)
    progress_callback: Progress | None = None
    chunk_size: Count = 65536

    @field_validator("data_stream")
    @classmethod
    def _a_stream(cls, value: Any) -> AsyncIterable[builtins.bytes] | Iterable[builtins.bytes]:
        if isinstance(value, str | bytes) or not isinstance(value, AsyncIterable | Iterable):
            raise ValueError("data_stream must be an async (or plain) iterator of bytes")
        return value


class StreamDownloadRequest(_Request):
    """Of `stream_download`; chunks have `chunk_size` bytes, the last one what is left."""

    artifact_id: Name
    user_id: Text | None = None
    session_id: Text | None = None
    chunk_size: Count = 65536
    progress_callback: Progress | None = None


class MultipartUploadInitRequest(_Storing):
    """`upload_ttl`: seconds in which the parts must arrive; the artifact's own `ttl` begins at completion."""

    filename: Name
    mime_type: Text = "application/octet-stream"
    upload_ttl: Count = UPLOAD_TTL


class MultipartUploadPart(Keyed):
    """One part, by the names that S3 gives its fields; the tag with or without quotes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    PartNumber: int
    ETag: Name

    @field_validator("PartNumber")
    @classmethod
    def _in_range(cls, value: int) -> int:
        if not 1 <= value <= PART_MAX:
            raise ValueError(f"Part number must be between 1 and {PART_MAX:,}")
        return value


class MultipartUploadCompleteRequest(_Request):
    """All parts of an upload, in any order; of a part that was sent again the last tag counts."""

    upload_id: Name
    parts: list[MultipartUploadPart] = Field(min_length=1)
    summary: Text = "Multipart upload"
