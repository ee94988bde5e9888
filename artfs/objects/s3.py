"""The S3 provider: objects in a bucket of AWS or of any server that speaks its protocol, through aioboto3.

Every call is made on asyncio (`artfs.aio`), ends within `2 × timeout` and a second for each MiB that it moves, and
raises no error of a library (`artfs.objects.s3_errors`).

* What is sent carries its MD5, and a server refuses what does not match.  What is received is exactly what was asked
  for: status, range and length are compared.
* A file above `MULTIPART` goes in parts of `part_size` or more, `uploads` of them at once and in memory, for all
  providers with this endpoint together.  An upload that fails or is cancelled is aborted; one whose process is killed
  stays until a lifecycle rule of the bucket (AbortIncompleteMultipartUpload) ends it.
* Not every server knows conditional requests, and some ignore them: `create` and `copy` look before and after, which is
  all that such a server can give.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

import anyio
from anyio import to_thread

from artfs.aio import Bridge
from artfs.errors import ArtfsError, BusyError, ExistsError, InvalidError, NotFoundError, UnavailableError
from artfs.objects import Capabilities, Info, check_name
from artfs.objects.s3_client import Body, Client, Endpoint, Place, client_for, release
from artfs.objects.s3_errors import attempts_of, code_of, ours, status_of, translated

MIB = 1 << 20
MULTIPART = 16 * MIB
PARTS = 10_000
LARGEST = 5 << 40
COPY_PART = 1 << 30
"""A larger object is copied in parts of this size, so that none takes long."""
SLOWEST = MIB
"""Bytes per second below which a request counts as stuck."""
DELETED_AT_ONCE = 1000
EXPIRES = 7 * 86_400
"""Seconds that a signed URL may be valid, at most."""

P = ParamSpec("P")
R = TypeVar("R")


class S3Provider:
    """See `artfs.objects.Provider` and `Signer`.  `timeout`: seconds without an answer after which the endpoint counts as
    unreachable; `part_size` in bytes."""

    capabilities = Capabilities(adopts=False, durable=True, signs=True)

    def __init__(self, url: str, place: Place, timeout: float = 30.0, part_size: int = 8 * MIB, uploads: int = 4) -> None:
        self.url = url
        self.place = place
        self.timeout = timeout
        self.part_size = part_size
        self._endpoint = Endpoint.of(place, timeout, uploads)
        self._where = f"bucket {place.bucket} at {place.endpoint_url or 'AWS'}"
        self._prefix = f"{place.prefix}/" if place.prefix else ""
        self._sse = {"ServerSideEncryption": place.sse} if place.sse else {}
        if place.kms_key:
            self._sse["SSEKMSKeyId"] = place.kms_key
        self._bridge = Bridge()

    def _object(self, name: str) -> dict[str, str]:
        """The parameters that name it.  Errors: InvalidError."""
        return {"Bucket": self.place.bucket, "Key": self._prefix + check_name(name)}

    async def _client(self) -> Client:
        return await client_for(self._endpoint, self)

    async def _limited(
        self, what: str, size: int, function: Callable[Concatenate[Any, P], Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """`function(api, …)`, about `what`, which moves `size` bytes.  On asyncio."""
        with translated(what, self._where), anyio.fail_after(2 * self.timeout + size / SLOWEST):
            return await function((await self._client()).api, *args, **kwargs)

    async def _call(
        self, what: str, size: int, function: Callable[Concatenate[Any, P], Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """The same, on any loop."""
        return await self._bridge.call(lambda: self._limited(what, size, function, *args, **kwargs))

    # being there
    async def check(self) -> None:
        await self._call(f"prefix {self.place.prefix or '(none)'}", 0, self._check)

    async def _check(self, api: Any) -> None:
        bucket, data = {"Bucket": self.place.bucket}, token_hex(16).encode()
        probe = {**bucket, "Key": f"{self._prefix}.check-{token_hex(8)}"}
        await api.list_objects_v2(**bucket, Prefix=self._prefix, MaxKeys=1)
        with self._doing("put an object there"):
            await api.put_object(**probe, Body=Body(data), ContentMD5=Body(data).md5, **self._sse)
        try:
            with self._doing("get an object there"):
                answer = await api.get_object(**probe)
                async with answer["Body"] as body:
                    if await body.read() != data:
                        raise UnavailableError(f"{self._where}: what was put there is not what is got from there")
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self.timeout), self._doing("delete an object there"):
                await api.delete_object(**probe)

    @contextmanager
    def _doing(self, what: str) -> Any:
        with translated(f"trying to {what}", self._where):
            yield

    # writing
    async def put(self, name: str, source: Path | bytes) -> None:
        await self._bridge.call(self._put, name, self._object(name), source)

    async def _put(self, name: str, target: dict[str, str], source: Path | bytes) -> None:
        try:
            if isinstance(source, bytes):
                whole = memoryview(source)
                await self._send(name, target, len(whole), lambda at, length: Body(whole[at : at + length]), False)
                return
            with _reading(name, source):
                fd, size = await to_thread.run_sync(_opened, source)
            try:
                await self._send(name, target, size, lambda at, length: Body.of_file(fd, source, at, length), True)
            finally:
                os.close(fd)
        except (NotFoundError, InvalidError) as error:
            # Not of the object, which is only being made: the server has lost the upload, or parts of it.
            if code_of(error.__cause__) in ("NoSuchUpload", "NoSuchKey", "InvalidPart", "InvalidPartOrder"):
                raise UnavailableError(str(error)) from error
            raise

    async def _send(self, name: str, target: dict[str, str], size: int, read: Reader, waits: bool) -> None:
        """`waits`: until there is room in memory for what `read` returns."""
        what = f"object {name}"
        if size > MULTIPART:
            await self._send_parts(what, target, size, read)
            return

        async def put(api: Any, body: Body) -> None:
            await api.put_object(**target, Body=body, ContentMD5=body.md5, **self._sse)

        with translated(what, self._where):
            slots = (await self._client()).slots
        if not waits:
            await self._limited(what, size, put, read(0, size))
            return
        async with slots:
            with _reading(name):
                body = await to_thread.run_sync(read, 0, size)
            await self._limited(what, size, put, body)
