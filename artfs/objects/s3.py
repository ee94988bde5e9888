"""The S3 provider: objects in a bucket of AWS or of any server that speaks its protocol, through aioboto3.

Every operation is made on asyncio (`artfs.aio`), of calls that end in bounded time (`artfs.objects.s3_uploads`), and
raises no error of a library (`artfs.objects.s3_errors`).

What is sent carries its MD5, and a server refuses what does not match; or the server says what came.  What is received
is exactly what was asked for:
status, range and length are compared.  Not every server knows conditional requests, and some ignore them: `create` and
`copy` look before and after too, which is all that such a server can give.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import anyio

from artfs.aio import Bridge
from artfs.errors import BusyError, ExistsError, InvalidError, NotFoundError, UnavailableError
from artfs.objects import Capabilities, Info, Sink, check_name
from artfs.objects.s3_bodies import Body, Whole, content_md5, is_range, receiving
from artfs.objects.s3_client import Client, Place, release
from artfs.objects.s3_errors import Refused, attempts_of, code_of, ours, status_of, translated
from artfs.objects.s3_uploads import MIB, Key, Uploads

COPY_PART = 1 << 30
"""A larger object is copied in parts of this size, so that none takes long."""
COPY_RATE = 16
"""How many bytes a server copies in the time in which one would be sent."""
DELETED_AT_ONCE = 1000
PROBE = "check-"
"""What the names of objects begin with that are put to see whether they can be."""
OURS = ("grid/", "meta/")
"""What the names begin with of all that nobody but the store uploads."""
LONGEST = 7 * 86_400
"""Seconds that a signed URL may be valid."""

Parts = list[tuple[int, str, int]]


class S3Provider:
    """See `artfs.objects.Provider`, `Signer` and `Streamer`.  `timeout`: seconds without an answer after which the
    endpoint counts as unreachable; `part_size` in bytes; `uploads`: parts that are sent at once."""

    capabilities = Capabilities(adopts=False, durable=True, signs=True, streams=True)

    def __init__(
        self, url: str, place: Place, timeout: float = 30.0, part_size: int = 8 * MIB, uploads: int = 4
    ) -> None:
        self.url = url
        self.place = place
        self._calls = Uploads(place, timeout, part_size, uploads)
        self._prefix = f"{place.prefix}/" if place.prefix else ""
        self._bridge = Bridge()

    def _key(self, name: str) -> Key:
        """Errors: InvalidError."""
        return {"Bucket": self.place.bucket, "Key": self._prefix + check_name(name)}

    async def _request(self, what: str, operation: str, parameters: Mapping[str, Any]) -> Any:
        return await self._bridge.call(self._calls.request, what, operation, parameters)

    async def check(self) -> None:
        await self._bridge.call(self._check)

    async def _check(self) -> None:
        calls, data = self._calls, token_hex(16).encode()
        probe = {"Bucket": self.place.bucket, "Key": f"{self._prefix}{PROBE}{token_hex(8)}"}
        await self._page("trying to list", {"Bucket": self.place.bucket, "Prefix": self._prefix, "MaxKeys": 1})
        put = {**probe, **calls.sse, "Body": Body.of(data), "ContentMD5": content_md5(data)}
        await calls.request("trying to put", "put_object", put)
        try:
            if await calls.limited("trying to get", 0, lambda client: self._read(client, probe, "", len(data))) != data:
                raise UnavailableError(f"{calls.where}: what is got from there is not what was put there")
        finally:
            with anyio.CancelScope(shield=True):
                await calls.request("trying to delete", "delete_object", probe)

    # writing
    async def put(self, name: str, source: Path | bytes) -> None:
        await self._bridge.call(self._calls.send, name, self._key(name), source)

    async def create(self, name: str, data: bytes) -> None:
        await self._bridge.call(self._create, name, self._key(name), data)

    async def _create(self, name: str, key: Key, data: bytes) -> None:
        calls, what = self._calls, f"object {name}"
        exists = ExistsError(f"{what}, {calls.where}: it exists already")
        try:
            await calls.info(what, key)
        except NotFoundError as error:
            if code_of(error.__cause__) == "NoSuchBucket":
                raise
        else:
            raise exists

        async def put(client: Client) -> None:
            own = {**key, **calls.sse, "Body": Body.of(data), "ContentMD5": content_md5(data)}
            try:
                await client.api.put_object(**own, IfNoneMatch="*")
            except Exception as error:
                if status_of(error) == 501 or code_of(error) == "NotImplemented":
                    await client.api.put_object(**own)
                elif status_of(error) != 412:
                    raise
                # If it was sent again, the first time may have been a success whose answer was lost.
                elif not attempts_of(error) or await self._read(client, key, name, len(data)) != data:
                    raise exists from error

        await calls.limited(what, len(data), put)

    async def copy(self, source: str, target: str, etag: str | None = None) -> None:
        await self._bridge.call(self._copy, source, self._key(source), self._key(target), etag)

    async def _copy(self, name: str, source: Key, target: Key, etag: str | None) -> None:
        calls, what = self._calls, f"object {name}"
        size = await self._unchanged(what, source, etag)
        copied: dict[str, Any] = {
            **target,
            "CopySource": source,
            **({"CopySourceIfMatch": f'"{etag}"'} if etag else {}),
        }

        async def copy_part(upload: str, number: int) -> str:
            start = (number - 1) * COPY_PART
            wanted = {**copied, "CopySourceRange": f"bytes={start}-{min(start + COPY_PART, size) - 1}"}
            wanted |= {"UploadId": upload, "PartNumber": number}
            answer = await calls.request(what, "upload_part_copy", wanted, COPY_PART // COPY_RATE)
            return str(answer["CopyPartResult"]["ETag"])

        if size > COPY_PART:
            await calls.in_parts(what, target, size, -(-size // COPY_PART), copy_part)
        else:
            await calls.request(what, "copy_object", {**copied, **calls.sse}, size // COPY_RATE)
        await self._unchanged(what, source, etag)

    async def _unchanged(self, what: str, key: Key, etag: str | None) -> int:
        info = await self._calls.info(what, key)
        if etag is not None and info.etag != etag.strip('"'):
            raise BusyError(f"{what}, {self._calls.where}: it has changed meanwhile")
        return info.size

    async def delete(self, names: Sequence[str]) -> None:
        keys = [self._key(name) for name in names]
        if len(keys) == 1:
            await self._request(f"object {names[0]}", "delete_object", keys[0])
            return
        for start in range(0, len(keys), DELETED_AT_ONCE):
            await self._bridge.call(self._delete, keys[start : start + DELETED_AT_ONCE])

    async def _delete(self, keys: Sequence[Key]) -> None:
        calls, what = self._calls, f"{len(keys)} objects"
        wanted: dict[str, Any] = {"Objects": [{"Key": key["Key"]} for key in keys], "Quiet": True}
        answer = await calls.request(what, "delete_objects", {"Bucket": self.place.bucket, "Delete": wanted})
        for failed in answer.get("Errors", ()):
            if failed.get("Code") != "NoSuchKey":
                raise ours(Refused({"Error": failed}), f"object {failed.get('Key', '?')}", calls.where)

    async def tidy(self, before: float) -> int:
        return await self._bridge.call(self._tidy, before)

    async def _tidy(self, before: float) -> int:
        """Uploads in parts, but for those of clients, which end with their windows; and what `check` has put."""
        bucket, ended = self.place.bucket, 0
        for prefix in OURS:
            ended += await self._calls.end_abandoned(bucket, self._prefix + prefix, before)
        answer = await self._page(f"objects {PROBE}*", {"Bucket": bucket, "Prefix": self._prefix + PROBE})
        probes = [row for row in answer.get("Contents", ()) if row["LastModified"].timestamp() < before]
        for row in probes:
            await self._calls.request("trying to delete", "delete_object", {"Bucket": bucket, "Key": row["Key"]})
        return ended + len(probes)

    # reading
    async def get(self, name: str, offset: int, length: int) -> bytes:
        return await self._bridge.call(self._get, name, self._key(name), offset, length)

    async def _get(self, name: str, key: Key, offset: int, length: int) -> bytes:
        if length == 0:  # which no range can say
            if offset > (await self._calls.info(f"object {name}", key)).size:
                raise self._short(name, offset)
            return b""
        body = Whole()
        await self._receive(name, key, offset, length, body)
        return body.data()

    async def receive(self, name: str, offset: int, length: int, sink: Sink) -> None:
        await self._bridge.call(self._receive, name, self._key(name), offset, length, sink)

    async def _receive(self, name: str, key: Key, offset: int, length: int, sink: Sink) -> None:
        what = f"object {name}"
        await self._calls.limited(what, length, lambda client: self._take(client, key, name, offset, length, sink))

    def _short(self, name: str, end: int) -> UnavailableError:
        return UnavailableError(f"object {name} ends before {end}, {self._calls.where}")

    async def _read(self, client: Client, key: Key, name: str, length: int) -> bytes:
        body = Whole()
        await self._take(client, key, name, 0, length, body)
        return body.data()

    async def _take(self, client: Client, key: Key, name: str, offset: int, length: int, sink: Sink) -> None:
        end = offset + length
        with receiving(offset, length, sink) as body:
            try:
                answer = await client.api.get_object(**key, Range=f"bytes={offset}-{end - 1}")
            except Exception as error:
                if status_of(error) == 416:
                    raise self._short(name, end) from error
                raise
        # Some servers say 200, but mean 206.
        range_, size = answer.get("ContentRange", ""), answer.get("ContentLength", length)
        if size < length and (not range_ or range_.startswith(f"bytes {offset}-")):
            raise self._short(name, end)
        if size > length or not is_range(range_, offset, length) or body.taken > length:
            raise UnavailableError(f"object {name}, {self._calls.where}: the answer is not the range asked for")
        if body.taken < length:
            raise UnavailableError(f"object {name}, {self._calls.where}: {body.taken} bytes came of {length}")

    async def head(self, name: str) -> Info:
        return await self._bridge.call(self._calls.info, f"object {name}", self._key(name))

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        if prefix.startswith("/") or ".." in prefix.split("/"):
            raise InvalidError(f"no object's name begins with {prefix!r}")
        wanted = {"Bucket": self.place.bucket, "Prefix": self._prefix + prefix}
        while True:
            answer = await self._bridge.call(self._page, f"objects {prefix}*", wanted)
            for row in answer.get("Contents", ()):
                name = row["Key"][len(self._prefix) :]
                if name and not name.endswith("/"):  # some programs make objects that stand for directories
                    yield name, int(row["Size"])
            if not answer["IsTruncated"]:
                return
            if wanted.get("ContinuationToken") == answer["NextContinuationToken"]:
                raise UnavailableError(f"{self._calls.where}: a listing does not get on")
            wanted["ContinuationToken"] = answer["NextContinuationToken"]

    async def _page(self, what: str, wanted: Mapping[str, Any]) -> Any:
        answer = await self._calls.request(what, "list_objects_v2", wanted)
        if "IsTruncated" not in answer:  # nothing listed is not the same as no listing
            where = self._calls.where
            raise UnavailableError(
                f"{what}, {where}: what answers does not speak the protocol of S3; check endpoint_url"
            )
        return answer

    # URLs
    async def sign_get(self, name: str, expires: int, *, mime: str | None = None, filename: str | None = None) -> str:
        shown: dict[str, str] = {"ResponseContentType": mime} if mime else {}
        if filename:
            plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in filename)
            utf8 = quote(filename, safe="")
            shown["ResponseContentDisposition"] = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{utf8}"
        return await self._signed("get_object", name, expires, **shown)

    async def sign_put(self, name: str, expires: int, *, mime: str | None = None) -> str:
        return await self._signed("put_object", name, expires, **({"ContentType": mime} if mime else {}))

    async def sign_part(self, name: str, upload: str, number: int, expires: int) -> str:
        return await self._signed("upload_part", name, expires, UploadId=upload, PartNumber=number)

    async def _signed(self, operation: str, name: str, expires: int, **more: Any) -> str:
        if not 1 <= expires <= LONGEST:
            raise InvalidError(f"a signed URL is valid for 1 to {LONGEST} seconds, not {expires}")
        parameters = {**self._key(name), **more}

        async def sign(client: Client) -> str:
            return str(await client.api.generate_presigned_url(operation, parameters, expires))

        return await self._bridge.call(self._calls.limited, f"object {name}", 0, sign)

    async def begin_parts(self, name: str, *, mime: str | None = None) -> str:
        more = {"ContentType": mime} if mime else {}
        return await self._bridge.call(lambda: self._calls.begin(f"object {name}", self._key(name), **more))

    async def list_parts(self, name: str, upload: str) -> Parts:
        found: Parts = []
        wanted: dict[str, Any] = {**self._key(name), "UploadId": upload}
        while True:
            answer = await self._request(f"upload of {name}", "list_parts", wanted)
            found += [(p["PartNumber"], p["ETag"].strip('"'), int(p["Size"])) for p in answer.get("Parts", ())]
            if not answer.get("IsTruncated") or not answer.get("Parts"):
                return sorted(found)
            wanted["PartNumberMarker"] = found[-1][0]

    async def complete_parts(self, name: str, upload: str, parts: Sequence[tuple[int, str]]) -> Info:
        quoted = sorted((number, f'"{etag.strip(chr(34))}"') for number, etag in parts)
        return await self._bridge.call(self._calls.complete, f"upload of {name}", self._key(name), upload, quoted)

    async def abort_parts(self, name: str, upload: str) -> None:
        await self._bridge.call(self._calls.abort, f"upload of {name}", self._key(name), upload)

    async def close(self) -> None:
        await self._bridge.call(self._close)

    async def _close(self) -> None:
        with translated("closing", self._calls.where):
            await release(self._calls.endpoint, self._calls)
