"""Artifacts of any size, in constant memory: streams, and whole ones that are too large for one call.

What a source gives is gathered, hashed in a thread, and written on the stores' loop, all at once: up to `AHEAD` bytes
are on their way while more is gathered.  Whatever goes wrong, the source's failure and cancellation included, nothing
is left of a stream that did not end.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from mmap import mmap
from threading import Lock
from typing import Any

import anyio

from artfs.exceptions import ArtifactStoreError
from artfs.loop import LOOP, Job
from artfs.models import Progress, StreamDownloadRequest, StreamUploadRequest
from artfs.store.operations.making import LEFT_OUT, Making, checked
from artfs.store.public_errors import InvalidArgumentError

GATHER = 4 << 20
AHEAD = 2 * GATHER
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
        made = await _Upload(self, handle, len(data), None).run(_whole(data))
        return str(made["artifact_id"])

    async def _rewrite(
        self, id: str, data: bytes, changes: Mapping[str, Any], session_id: str | None, user_id: str | None
    ) -> None:
        handle = await self._store._call(
            "api_artifact_rewrite", id=id, changes=changes, session_id=session_id, user_id=user_id
        )
        await _Upload(self, handle, len(data), None).run(_whole(data))

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


class _Digest:
    """SHA-256 of what it is given, in that order, by one thread at a time."""

    def __init__(self) -> None:
        self._hash = sha256()
        self._todo: deque[tuple[bytes | memoryview, Future[None]]] = deque()
        self._working = False
        self._lock = Lock()

    def add(self, data: bytes | memoryview) -> Job[None]:
        done: Future[None] = Future()
        with self._lock:
            self._todo.append((data, done))
            begin, self._working = not self._working, True
        if begin:
            _hashing.submit(self._work)
        return Job(done, bool)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._todo:
                    self._working = False
                    return
                data, done = self._todo.popleft()
            self._hash.update(data)
            done.set_result(None)

    def hexdigest(self) -> str:
        """REQUIRES: all is done."""
        return self._hash.hexdigest()


class _Upload:
    """What comes in small pieces is copied into one of a few buffers.  Parts are `(hashing, writing, size, buffer)`,
    the oldest first; each begins to be written when the one before it is."""

    def __init__(
        self, operations: StreamOperations, handle: int, length: int | None, progress: Progress | None
    ) -> None:
        self.operations = operations
        self.handle = handle
        self.length = length
        self.progress = progress
        self.done = 0
        self._digest = _Digest()
        self._parts: deque[tuple[Job[None], Job[None], int, mmap | None]] = deque()
        self._ahead = 0
        # Anonymous memory costs what is used of it.
        self._buffer = mmap(-1, GATHER)
        self._spare: list[mmap] = []
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
                end = self._filled + len(data)
                if end <= GATHER:
                    self._buffer[self._filled : end] = data
                    self._filled = end
                else:
                    await self._take(data)
                if self.progress is not None and self.done != self.length:
                    await report(self.progress, self.done, self.length)
            if self.length is not None and self.done != self.length:
                raise InvalidArgumentError(f"the stream has {self.done} bytes, content_length says {self.length}")
            await self._flush()
            while self._parts:
                await self._settled()
            made: dict[str, Any] = await self.operations._store._call(
                "api_artifact_end", handle=self.handle, sha256=self._digest.hexdigest()
            )
        except BaseException:
            for _, writing, _, _ in reversed(self._parts):
                await writing.drop()
            await self.operations._let_go(self.handle)
            raise
        await report(self.progress, self.done, self.done)
        return made

    async def _take(self, data: bytes) -> None:
        """What the buffer has no room for."""
        await self._flush()
        if len(data) <= GATHER:
            self._buffer[: len(data)] = data
            self._filled = len(data)
            return
        whole = memoryview(data)
        for at in range(0, len(data), LARGE):
            await self._send(whole[at : at + LARGE], None)

    async def _flush(self) -> None:
        if self._filled:
            await self._send(memoryview(self._buffer)[: self._filled], self._buffer)
            self._buffer = self._spare.pop() if self._spare else mmap(-1, GATHER)
            self._filled = 0

    async def _send(self, data: memoryview, buffer: mmap | None) -> None:
        """Begin to hash and to write it; `buffer`: what it lies in."""
        while self._parts and self._ahead + len(data) > AHEAD:
            await self._settled()
        before = self._parts[-1][1] if self._parts else None
        self._parts.append((self._digest.add(data), LOOP.begin(self._write, before, data), len(data), buffer))
        self._ahead += len(data)

    async def _write(self, before: Job[None] | None, data: memoryview) -> None:
        if before is not None:
            await before.result()
        await self.operations._store._call("api_artifact_part", handle=self.handle, data=data)

    async def _settled(self) -> None:
        """The oldest part is."""
        hashing, writing, size, buffer = self._parts[0]
        await writing.result()
        await hashing.result()
        self._parts.popleft()
        self._ahead -= size
        if buffer is not None:
            self._spare.append(buffer)


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


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data
