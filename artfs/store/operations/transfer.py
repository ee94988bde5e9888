"""Whole files to and from a store, whatever their size, each seen by others whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio

from artfs.store.public_errors import InvalidArgumentError

if TYPE_CHECKING:
    from artfs.store.artifact_store import ArtifactStore

PART = 16 << 20
"""Bytes of one call, at most."""


def encoded(text: str, encoding: str) -> bytes:
    """Errors: UnicodeEncodeError; InvalidArgumentError for an encoding that there is not."""
    try:
        return text.encode(encoding)
    except LookupError as error:
        raise InvalidArgumentError(str(error)) from None


def decoded(data: bytes, encoding: str, errors: str = "strict") -> str:
    """Errors: UnicodeDecodeError; InvalidArgumentError for an encoding, or errors, that there are not."""
    try:
        return data.decode(encoding, errors)
    except LookupError as error:
        raise InvalidArgumentError(str(error)) from None


def octets(content: Any) -> bytes:
    """Bytes of a string, or of whatever has bytes.  Errors: InvalidArgumentError."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    try:
        return bytes(memoryview(content))  # bytes(5) would be five zeros
    except TypeError:
        raise InvalidArgumentError(f"a file's content is bytes or a string, not {type(content).__name__}") from None


async def write_all(
    store: ArtifactStore,
    id: str,
    path: str | None,
    data: bytes,
    *,
    mime: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    session_id: str | None = None,
    user_id: str | None = None,
) -> None:
    """Put a file in the place of one that is there; `path` None: the BLOB's own."""
    if len(data) <= PART:
        await store._call(
            "api_write",
            id=id,
            path=path,
            data=data,
            mime=mime,
            metadata=metadata,
            session_id=session_id,
            user_id=user_id,
        )
        return
    handle = await store._call(
        "api_write_begin", id=id, path=path, mime=mime, metadata=metadata, session_id=session_id, user_id=user_id
    )
    try:
        view = memoryview(data)
        for at in range(0, len(view), PART):
            await store._call("api_write_part", handle=handle, data=bytes(view[at : at + PART]))
        await store._call("api_write_end", handle=handle)
    except BaseException:
        await abandon(store, "api_write_abort", handle)
        raise


async def read_all(
    store: ArtifactStore,
    id: str,
    path: str | None,
    *,
    session_id: str | None = None,
    user_id: str | None = None,
) -> bytes:
    """A file's bytes, all of one version."""
    found = await store._call("api_read", id=id, path=path, session_id=session_id, user_id=user_id)
    if isinstance(found, bytes):
        return found
    handle = found["handle"]
    try:
        parts = []
        at, size = 0, found["size"]
        while at < size:
            part = await store._call("api_read_part", handle=handle, offset=at, length=min(PART, size - at))
            if not part:
                break
            parts.append(part)
            at += len(part)
    finally:
        await abandon(store, "api_read_end", handle)
    return b"".join(parts)


async def abandon(store: ArtifactStore, method: str, handle: Any) -> None:
    """Let a handle go, also when the caller is being cancelled, or the owner has gone."""
    from artfs.exceptions import ArtifactStoreError

    with anyio.CancelScope(shield=True):
        try:
            await store._call(method, handle=handle)
        except ArtifactStoreError:
            return
