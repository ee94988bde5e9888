"""What a program reaches that talks to the S3 server itself: the peer of the rows of objects.

aioboto3 with its best settings: one pooled client, parts and ranges in parallel, no signed payloads, no checksums
beyond what is required.  Each function returns seconds, without the time to make the client and its connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aioboto3  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]

MIB = 1 << 20
PART = 16 * MIB
RANGE = 8 * MIB
AT_ONCE = 8
SMALL_AT_ONCE = 64
MARK = 8
"""The first bytes of each MiB are its number, so that a reader sees that it got what it asked for."""


class Plain:
    """`keys`: the environment variables of the credentials."""

    def __init__(self, endpoint: str, bucket: str, keys: Mapping[str, str]) -> None:
        self.endpoint = endpoint
        self.bucket = bucket
        self.keys = keys

    def write(self, key: str, mib: int, block: bytes) -> float:
        """One object of `mib` times `block`, in parts."""
        return self._run(lambda client: self._write(client, key, mib, block))

    def read(self, key: str, mib: int) -> float:
        """All of it by ranges, in parallel."""
        return self._run(lambda client: self._read(client, key, mib))

    def put_many(self, prefix: str, count: int, body: bytes) -> float:
        """`count` objects, each by a request of its own."""
        return self._run(lambda client: self._put_many(client, prefix, count, body))

    def _run(self, work: Callable[[Any], Awaitable[None]]) -> float:
        async def timed() -> float:
            async with self._client() as client:
                await _at_once([lambda: client.head_bucket(Bucket=self.bucket)] * SMALL_AT_ONCE, SMALL_AT_ONCE)
                start = time.perf_counter()
                await work(client)
                return time.perf_counter() - start

        return asyncio.run(timed())

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        config = Config(
            max_pool_connections=SMALL_AT_ONCE,
            s3={"addressing_style": "path", "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        session = aioboto3.Session(
            aws_access_key_id=self.keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.keys["AWS_SECRET_ACCESS_KEY"],
            region_name=self.keys["AWS_REGION"],
        )
        async with session.client("s3", endpoint_url=self.endpoint, config=config) as client:
            yield client

    async def _write(self, client: Any, key: str, mib: int, block: bytes) -> None:
        place = {"Bucket": self.bucket, "Key": key}
        upload = (await client.create_multipart_upload(**place))["UploadId"]
        etags: dict[int, str] = {}
        per_part = PART // MIB

        async def part(number: int) -> None:
            first = number * per_part
            body = b"".join(_marked(block, i) for i in range(first, min(first + per_part, mib)))
            found = await client.upload_part(**place, UploadId=upload, PartNumber=number + 1, Body=body)
            etags[number + 1] = found["ETag"]

        await _at_once([lambda n=n: part(n) for n in range(-(-mib // per_part))], AT_ONCE)  # type: ignore[misc]
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(etags.items())]
        await client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})

    async def _read(self, client: Any, key: str, mib: int) -> None:
        async def piece(offset: int) -> None:
            end = min(offset + RANGE, mib * MIB) - 1
            answer = await client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes={offset}-{end}")
            data = await answer["Body"].read()
            if len(data) != end + 1 - offset or data[:MARK] != (offset // MIB).to_bytes(MARK, "little"):
                raise OSError(f"{key} at {offset} does not hold what was written")

        await _at_once([lambda o=o: piece(o) for o in range(0, mib * MIB, RANGE)], AT_ONCE)  # type: ignore[misc]

    async def _put_many(self, client: Any, prefix: str, count: int, body: bytes) -> None:
        async def one(number: int) -> None:
            await client.put_object(Bucket=self.bucket, Key=f"{prefix}/{number}", Body=body)

        await _at_once([lambda n=n: one(n) for n in range(count)], SMALL_AT_ONCE)  # type: ignore[misc]


def _marked(block: bytes, number: int) -> bytes:
    return number.to_bytes(MARK, "little") + block[MARK:]


async def _at_once(calls: Iterable[Callable[[], Awaitable[None]]], count: int) -> None:
    left = iter(calls)

    async def worker() -> None:
        for call in left:
            await call()

    await asyncio.gather(*(worker() for _ in range(count)))
