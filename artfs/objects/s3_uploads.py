"""How bytes get to an S3 endpoint: in one request, or in parts, several at once.

All of this runs on asyncio, below `artfs.aio.Bridge`.  A *call* is one request with the client's own retries; it ends
within `2 × timeout` and a second for each `SLOWEST` bytes that it moves.

* A file above `MULTIPART` goes in parts of `part_size`, or more where `PARTS` would not suffice.  At most `uploads`
  parts are sent at once, for all providers with this endpoint together, each as it is read: none is in memory.
* A part is hashed by a thread while it is sent.  Where a server says the MD5 of what came, as its ETag, that is
  compared; else the part is sent again with its MD5, which the server compares.  Most servers compute one MD5 of a
  part in any case, and another to compare.  An object in one request carries its MD5: it must never be wrong.
* An upload in parts is an object only when all are there, and when its size is the file's.  One that fails or is
  cancelled is aborted; one whose process was killed is found by a later one (`end_abandoned`).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import to_thread

from artfs.errors import ArtfsError, InvalidError, NotFoundError, UnavailableError
from artfs.objects import Info
from artfs.objects.s3_bodies import Body, encoded
from artfs.objects.s3_client import Client, Endpoint, Place, client_for, failed
from artfs.objects.s3_errors import attempts_of, code_of, translated

MIB = 1 << 20
MULTIPART = 16 * MIB
PARTS = 10_000
LARGEST = 5 << 40
SLOWEST = MIB
"""Bytes per second below which a request counts as stuck."""

Result = TypeVar("Result")
Key = dict[str, str]
"""The parameters that name an object: Bucket and Key."""


def part_length(size: int, part_size: int) -> int:
    """Of an object of `size` bytes.  A multiple of 1 MiB if it is not `part_size`.  Errors: InvalidError."""
    if size > LARGEST:
        raise InvalidError(f"an object of {size} bytes is too large for S3: at most {LARGEST} bytes (5 TiB)")
    least = -(-size // PARTS)
    return part_size if least <= part_size else -(-least // MIB) * MIB


class Source:
    """A file or bytes, in parts that may be read in any order, from any thread."""

    def __init__(self, name: str, source: Path | bytes) -> None:
        self._name = name
        self._source = source
        self._fd = -1
        self.size = len(source) if isinstance(source, bytes) else 0

    async def __aenter__(self) -> Source:
        if not isinstance(self._source, bytes):
            await to_thread.run_sync(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _open(self) -> None:
        try:
            self._fd = os.open(self._source, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size
        except OSError as error:
            raise self._unreadable(str(error.strerror)) from error

    def _unreadable(self, reason: str) -> UnavailableError:
        return UnavailableError(f"object {self._name} cannot be read from {self._source!s}: {reason}")

    def part(self, offset: int, length: int) -> Body:
        return Body(lambda at, count: self._read(offset + at, count), length)

    def _read(self, offset: int, length: int) -> bytes | memoryview:
        """Errors: UnavailableError if the file has been shortened or cannot be read."""
        if isinstance(self._source, bytes):
            return memoryview(self._source)[offset : offset + length]
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as error:
            raise self._unreadable(str(error.strerror)) from error
        if len(data) < length:
            raise self._unreadable(f"it ends at {offset + len(data)}, before its size of {self.size}")
        return data


class Uploads:
    """The calls that a provider consists of, and uploads made of them."""

    def __init__(self, place: Place, timeout: float, part_size: int, uploads: int) -> None:
        self.place = place
        self.timeout = timeout
        self.part_size = part_size
        self.endpoint = Endpoint.of(place, timeout, uploads)
        self.going_on: set[str] = set()
        self.where = f"bucket {place.bucket} at {place.endpoint_url or 'AWS'}"
        self.sse = {"ServerSideEncryption": place.sse} if place.sse else {}
        if place.kms_key:
            self.sse["SSEKMSKeyId"] = place.kms_key

    async def limited(self, what: str, size: int, function: Callable[[Client], Awaitable[Result]]) -> Result:
        """A call, about `what`, which moves `size` bytes."""
        failures: list[Exception] = []
        token = failed.set(failures)
        try:
            with translated(what, self.where):
                client = await client_for(self.endpoint, self)  # which imports a lot, and asks no provider
                try:
                    with anyio.fail_after(2 * self.timeout + size / SLOWEST):
                        return await function(client)
                except TimeoutError as error:
                    if failures:  # it was about to be tried again; this is why
                        raise failures[-1] from error
                    raise
        finally:
            failed.reset(token)

    async def request(self, what: str, operation: str, parameters: Mapping[str, Any], size: int = 0) -> Any:
        """A call that is one operation."""
        return await self.limited(what, size, lambda client: getattr(client.api, operation)(**parameters))

    async def info(self, what: str, key: Key) -> Info:
        answer = await self.request(what, "head_object", key)
        modified = int(answer["LastModified"].timestamp()) * 10**9
        return Info(int(answer["ContentLength"]), answer.get("ETag", "").strip('"'), modified)

    async def send(self, name: str, key: Key, data: Path | bytes) -> None:
        """All of it or nothing."""
        what = f"object {name}"
        async with Source(name, data) as source:
            try:
                if source.size > MULTIPART:
                    await self._send_parts(what, key, source)
                elif isinstance(data, bytes):  # few and small
                    await self._put(what, key, source.part(0, source.size))
                else:
                    client = await self._client(what)
                    async with client.sending:
                        await self._put(what, key, source.part(0, source.size))
                    client.has_sent()
            except (NotFoundError, InvalidError) as error:
                # The object is only being made, so the server has lost the upload, or parts of it.
                if code_of(error.__cause__) in ("NoSuchUpload", "NoSuchKey", "InvalidPart", "InvalidPartOrder"):
                    raise UnavailableError(
                        f"{what}, {self.where}: the server has lost the upload; try again"
                    ) from error
                raise

    async def _client(self, what: str) -> Client:
        async def client(client: Client) -> Client:
            return client

        return await self.limited(what, 0, client)

    async def _put(self, what: str, key: Key, body: Body) -> None:
        digest = encoded(await to_thread.run_sync(body.md5))
        await self.request(what, "put_object", {**key, **self.sse, "Body": body, "ContentMD5": digest}, len(body))

    async def _send_parts(self, what: str, key: Key, source: Source) -> None:
        client, length = await self._client(what), part_length(source.size, self.part_size)

        async def send(upload: str, number: int) -> str:
            start = (number - 1) * length
            body = source.part(start, min(length, source.size - start))
            async with client.sending:
                etag = await self._send_part(client, what, {**key, "UploadId": upload, "PartNumber": number}, body)
            client.has_sent()
            return etag

        await self.in_parts(what, key, source.size, -(-source.size // length), send)

    async def _send_part(self, client: Client, what: str, own: Mapping[str, Any], body: Body) -> str:
        if client.says_md5 and not self.place.sse.startswith("aws:kms"):
            digest, etag = await self._send_and_hash(what, own, body)
            if etag.strip('"') == digest.hex():
                return etag
        else:
            digest = await to_thread.run_sync(body.md5)
        compared = {**own, "Body": body, "ContentMD5": encoded(digest)}
        etag = str((await self.request(what, "upload_part", compared, len(body)))["ETag"])
        client.says_md5 = etag.strip('"') == digest.hex()
        return etag

    async def _send_and_hash(self, what: str, own: Mapping[str, Any], body: Body) -> tuple[bytes, str]:
        """The MD5 of a part that is sent without it, and its ETag."""
        digest, etag = b"", ""
        failures: list[ArtfsError] = []

        async def hash() -> None:
            nonlocal digest
            digest = await to_thread.run_sync(body.md5)

        async def send() -> None:
            nonlocal etag
            etag = str((await self.request(what, "upload_part", {**own, "Body": body}, len(body)))["ETag"])

        async def ending(call: Callable[[], Awaitable[None]]) -> None:
            try:
                await call()
            except ArtfsError as error:  # also of a file that has been shortened, which no request can say
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(ending, hash)
            group.start_soon(ending, send)
        if failures:
            raise failures[0]
        return digest, etag

    async def in_parts(
        self, what: str, key: Key, size: int, count: int, send: Callable[[str, int], Awaitable[str]]
    ) -> None:
        """An object of `count` parts, each of which `send(upload, number)` sends, for its etag; all begin at once."""
        upload = await self.begin(what, key)
        self.going_on.add(upload)
        etags: dict[int, str] = {}
        failures: list[ArtfsError] = []

        async def one(number: int) -> None:
            try:
                etags[number] = await send(upload, number)
            except ArtfsError as error:
                failures.append(error)
                group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                for number in range(1, count + 1):
                    group.start_soon(one, number)
            if failures:
                raise failures[0]
            found = await self.complete(what, key, upload, sorted(etags.items()))
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self.timeout), suppress(ArtfsError):
                await self.abort(what, key, upload)
            raise
        finally:
            self.going_on.discard(upload)
        if found.size != size:
            raise UnavailableError(f"{what}, {self.where}: it has {found.size} bytes of {size}; try again")

    async def begin(self, what: str, key: Key, **more: str) -> str:
        return str((await self.request(what, "create_multipart_upload", {**key, **self.sse, **more}))["UploadId"])

    async def complete(self, what: str, key: Key, upload: str, parts: Sequence[tuple[int, str]]) -> Info:
        wanted = [{"PartNumber": number, "ETag": etag} for number, etag in parts]

        async def complete(client: Client) -> None:
            try:
                await client.api.complete_multipart_upload(**key, UploadId=upload, MultipartUpload={"Parts": wanted})
            except Exception as error:
                # It was sent again: the first time may have been a success whose answer was lost.  `info` tells.
                if code_of(error) != "NoSuchUpload" or not attempts_of(error):
                    raise

        await self.limited(what, 0, complete)
        return await self.info(what, key)

    async def abort(self, what: str, key: Key, upload: str) -> None:
        with suppress(NotFoundError):
            await self.request(what, "abort_multipart_upload", {**key, "UploadId": upload})

    async def end_abandoned(self, bucket: str, prefix: str, before: float) -> int:
        """Abort the uploads of keys with that prefix which were begun before that moment (seconds since 1970), and do
        not go on here; how many there were."""
        what, ended = f"uploads in parts of {prefix}*", 0
        wanted: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        while True:
            answer = await self.request(what, "list_multipart_uploads", wanted)
            for found in answer.get("Uploads", ()):
                old = found["Initiated"].timestamp() < before and found["UploadId"] not in self.going_on
                if old and found["Key"].startswith(prefix):
                    await self.abort(what, {"Bucket": bucket, "Key": found["Key"]}, found["UploadId"])
                    ended += 1
            if not answer.get("IsTruncated") or not answer.get("NextKeyMarker"):
                return ended
            wanted |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}
