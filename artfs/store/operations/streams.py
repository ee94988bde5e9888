"""Artifacts of any size, in constant memory: streams, and whole ones that are too large for one call.

A source is read `GATHER` bytes ahead of what is hashed in a thread while it is written.  Whatever goes wrong, the
source's failure and cancellation included, nothing is left of a stream that did not end.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from mmap import mmap
from typing import Any

import anyio

from artfs.exceptions import ArtifactStoreError
from artfs.loop import LOOP, Job
from artfs.models import Progress, StreamDownloadRequest, StreamUploadRequest
from artfs.store.operations.making import LEFT_OUT, Making, checked
from artfs.store.public_errors import InvalidArgumentError

GATHER = 4 << 20
_hashing = ThreadPoolExecutor(2, "artfs-hash")


class StreamOperations(Making):
    """Both directions take constant memory.  Errors: as of `CoreStorageOperations`."""

    async def stream_upload(self, request: StreamUploadRequest | Mapping[str, Any]) -> str:
        """The id of a new artifact with the stream's bytes.  Errors: as `store`; whatever the source raises;
        InvalidArgumentError if the stream's length is not `content_length`."""
        request = checked(StreamUploadRequest, request)
        arguments = self._described(
            mime=request.mime,
            summary=request.summary,
            filename=request.filename,
            meta=request.meta,
            ttl=request.ttl if "ttl" in request.model_fields_set else LEFT_OUT,
            scope=request.scope,
            user_id=request.user_id,
        )
        source = _pieces(request.data_stream)
        try:
            handle = await self._made(
                "api_artifact_begin", session_id=request.session_id, user_id=request.user_id, **arguments
            )
            stream = _Upload(self, handle, request.content_length, request.progress_callback)
            made = await stream.run(source)
        finally:
            await source.aclose()  # type: ignore[attr-defined]
        return str(made["artifact_id"])

    def stream_download(self, request: StreamDownloadRequest | Mapping[str, Any]) -> Download:
        """An iterator over the artifact's bytes as they are when it begins, `chunk_size` at a time."""
        return Download(self, checked(StreamDownloadRequest, request))

    # whole
    async def _store_large(
        self, data: bytes, session_id: str | None, user_id: str | None, arguments: Mapping[str, Any]
    ) -> str:
        handle = await self._made("api_artifact_begin", session_id=session_id, user_id=user_id, **arguments)
        made = await _Upload(self, handle, len(data), None).run(_sliced(data))
        return str(made["artifact_id"])

    async def _rewrite(
        self, id: str, data: bytes, changes: Mapping[str, Any], session_id: str | None, user_id: str | None
    ) -> None:
        handle = await self._store._call(
            "api_artifact_rewrite", id=id, changes=changes, session_id=session_id, user_id=user_id
        )
        await _Upload(self, handle, len(data), None).run(_sliced(data))

    async def _all_of(self, opened: Mapping[str, Any]) -> bytes:
        """What a handle reads."""
        handle, size = opened["handle"], opened["size"]
        parts = []
        try:
            at = 0
            while at < size:
                part = await self._store._call("api_artifact_get", handle=handle, offset=at, length=LARGE)
                if not part:
                    break
                parts.append(part)
                at += len(part)
        finally:
            await self._let_go(handle)
        return b"".join(parts)

    async def _let_go(self, handle: int) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await self._store._call("api_artifact_abort", handle=handle)
            except ArtifactStoreError:
                return  # its owner has gone, and the stream with it


LARGE = 16 << 20


class _Upload:
    """What is gathered is copied into one of two buffers, while the other one is hashed and written."""

    def __init__(
        self, operations: StreamOperations, handle: int, length: int | None, progress: Progress | None
    ) -> None:
        self.operations = operations
        self.handle = handle
        self.length = length
        self.progress = progress
        self.done = 0
        self._hash = sha256()
        self._jobs: list[Job[Any]] = []
        # Anonymous memory costs what is used of it.
        self._buffer, self._other = mmap(-1, GATHER), mmap(-1, GATHER)
        self._filled = 0

    async def run(self, source: AsyncIterator[Any]) -> dict[str, Any]:
        try:
            async for piece in source:
                if not isinstance(piece, bytes | bytearray | memoryview):
                    raise InvalidArgumentError(f"a stream's pieces must be bytes, not {type(piece).__name__}")
                data = piece if isinstance(piece, bytes) else bytes(piece)
                self.done += len(data)
                if self.length is not None and self.done > self.length:
                    raise InvalidArgumentError(f"the stream has more bytes than content_length, {self.length}")
                await self._take(data)
                if self.done != self.length:
                    await report(self.progress, self.done, self.length)
            if self.length is not None and self.done != self.length:
                raise InvalidArgumentError(f"the stream has {self.done} bytes, content_length says {self.length}")
            await self._flush()
            await self._settled()
            made: dict[str, Any] = await self.operations._store._call(
                "api_artifact_end", handle=self.handle, sha256=self._hash.hexdigest()
            )
        except BaseException:
            for job in self._jobs:
                await job.drop()
            await self.operations._let_go(self.handle)
            raise
        await report(self.progress, self.done, self.done)
        return made

    async def _take(self, data: bytes) -> None:
        end = self._filled + len(data)
        if end > GATHER:
            await self._flush()
            end = len(data)
        if end <= GATHER:
            self._buffer[self._filled : end] = data
            self._filled = end
            return
        for at in range(0, len(data), LARGE):
            await self._send(data if len(data) <= LARGE else data[at : at + LARGE])

    async def _flush(self) -> None:
        if self._filled:
            await self._send(memoryview(self._buffer)[: self._filled])
            # The other one has been written by now.
            self._buffer, self._other = self._other, self._buffer
            self._filled = 0

    async def _send(self, data: bytes | memoryview) -> None:
        """Begin to write it, once what was sent before is written."""
        await self._settled()
        self._jobs = [
            Job(_hashing.submit(self._hash.update, data), bool),
            LOOP.begin(self.operations._store._call, "api_artifact_part", handle=self.handle, data=data),
        ]

    async def _settled(self) -> None:
        for job in self._jobs:
            await job.result()
        self._jobs = []


class Download:
    """An asynchronous iterator, which fetches a part ahead; `aclose` ends it early.  Errors of its steps: as
    `retrieve`."""

    def __init__(self, operations: StreamOperations, request: StreamDownloadRequest) -> None:
        self._operations = operations
        self._request = request
        self._handle: int | None = None
        self._begun = False
        self._size = self._asked = self._given = 0
        self._coming: Job[Any] | None = None
        self._ready = b""
        self._at = 0

    def __aiter__(self) -> Download:
        return self

    async def __anext__(self) -> bytes:
        try:
            if not self._begun:
                await self._begin()
            size = self._request.chunk_size
            while len(self._ready) - self._at < size and self._coming is not None:
                await self._fetch(self._coming)
            chunk = self._ready[self._at : self._at + size]
            if not chunk:
                raise StopAsyncIteration
            self._at += len(chunk)
            self._given += len(chunk)
            await report(self._request.progress_callback, self._given, self._size)
            return chunk
        except BaseException:
            await self.aclose()
            raise

    async def _begin(self) -> None:
        request = self._request
        self._begun = True
        opened = await self._operations._store._call(
            "api_artifact_open", id=request.artifact_id, session_id=request.session_id, user_id=request.user_id
        )
        self._handle, self._size = opened["handle"], opened["size"]
        self._ask()
        if not self._size:
            await report(request.progress_callback, 0, 0)

    def _ask(self) -> None:
        """For the next part: as many whole chunks as go into it."""
        size = self._request.chunk_size
        length = min(max(GATHER // size, 1) * size, LARGE, self._size - self._asked)
        self._coming = None
        if length:
            call = self._operations._store._call
            self._coming = LOOP.begin(call, "api_artifact_get", handle=self._handle, offset=self._asked, length=length)
            self._asked += length

    async def _fetch(self, coming: Job[Any]) -> None:
        part = await coming.result()
        if not part:
            raise ArtifactStoreError(f"artifact {self._request.artifact_id} ended early")
        rest = self._ready[self._at :]
        self._ready, self._at = rest + part if rest else part, 0
        self._ask()

    async def aclose(self) -> None:
        self._begun = True
        self._ready, self._at = b"", 0
        coming, self._coming = self._coming, None
        handle, self._handle = self._handle, None
        if coming is not None:
            await coming.drop()
        if handle is not None:
            await self._operations._let_go(handle)

    def __del__(self) -> None:
        if self._coming is not None:
            self._coming.cancel()
        if self._handle is not None:  # its reader left it in the middle
            store = self._operations._store
            arguments = {"handle": self._handle, "who": None, "sandbox": store.sandbox_id}
            LOOP.start_soon(_forget, store._handle, arguments)


async def _forget(handle: Any, arguments: Mapping[str, Any]) -> None:
    try:
        await handle.do("api_artifact_abort", **arguments)
    except Exception:  # the owner has gone, and the stream with it
        pass


async def report(progress: Progress | None, done: int, total: int | None) -> None:
    """Call a callback, plain or async."""
    if progress is not None:
        result = progress(done, total)
        if inspect.isawaitable(result):
            await result


async def _pieces(source: Any) -> AsyncIterator[Any]:
    """Of an asynchronous or a plain iterable; closed with this."""
    try:
        if hasattr(source, "__aiter__"):
            async for piece in source:
                yield piece
        else:
            for piece in source:
                yield piece
    finally:
        with anyio.CancelScope(shield=True):
            if hasattr(source, "aclose"):
                await source.aclose()


async def _sliced(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), LARGE):
        yield data if len(data) <= LARGE else data[at : at + LARGE]
