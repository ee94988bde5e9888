"""What the endpoint answers: BLOBs for reading, uploads for writing, each only through a URL that the store signed."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncGenerator
from time import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from artfs.blocks import Chunk
from artfs.errors import NotFoundError
from artfs.store.connection import Reply, Request, problem
from artfs.store.ranges import Unsatisfiable, matches, wanted_range
from artfs.store.upload_records import disk_errors
from artfs.store.urls import WRITE, Signed, verify
from artfs.types import Serial

if TYPE_CHECKING:
    from artfs.store.blobs import Blobs, Pin

METHODS = "GET, HEAD, PUT, OPTIONS"
KNOWN = 32
"""Pinned objects whose chunks are kept in memory."""


class BlobSite:
    """See `artfs.store.endpoint.Site`."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self._chunks: OrderedDict[str, tuple[list[int], list[Chunk]]] = OrderedDict()

    async def answer(self, request: Request) -> Reply:
        if request.method == "OPTIONS":
            return _preflight(request)
        if request.method not in ("GET", "HEAD", "PUT"):
            return problem(405, f"only {METHODS} are answered here", {"Allow": METHODS})
        signed = verify(await self.blobs.key(), request.method, request.target, time())
        if signed.kind == WRITE:
            return await self.blobs.uploads.receive(signed, request)
        return self._read(signed, request)

    def _read(self, signed: Signed, request: Request) -> Reply:
        """Errors: NotFoundError, ExpiredError."""
        pin = self.blobs.pins.get(signed.id)
        namespace = self.blobs.store.catalogue.by_serial.get(Serial(pin.serial)) if pin is not None else None
        if pin is None or namespace is None:
            raise NotFoundError("what this URL gave is gone")
        self.blobs.store.alive(namespace)
        headers = {"ETag": f'"{pin.etag}"', "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
        asked = request.headers
        if "if-match" in asked and not matches(asked["if-match"], pin.etag, weak=False):
            return problem(412, "what this URL gives has another ETag", headers)
        if matches(asked.get("if-none-match"), pin.etag, weak=True):
            return Reply(304, headers)
        try:
            part = wanted_range(asked.get("range"), asked.get("if-range"), pin.etag, pin.size)
        except Unsatisfiable:
            headers["Content-Range"] = f"bytes */{pin.size}"
            return problem(416, f"the range begins behind the end, at {pin.size} bytes", headers)
        headers |= _described(signed)
        if part is None:
            return Reply(200, headers, self._parts(pin, 0, pin.size), pin.size)
        start, end = part
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{pin.size}"
        return Reply(206, headers, self._parts(pin, start, end), end - start)

    async def _parts(self, pin: Pin, start: int, end: int) -> AsyncGenerator[bytes, None]:
        if start == end:
            return
        offsets, chunks = self._known(pin)
        at = bisect_right(offsets, start) - 1
        while start < end:
            chunk = chunks[at]
            with disk_errors():
                data = await self.blobs.store.shard.remote.read(chunk)
            low = start - chunk.offset
            high = min(end - chunk.offset, chunk.length)
            yield data if not low and high == chunk.length else data[low:high]
            start = chunk.offset + high
            at += 1

    def _known(self, pin: Pin) -> tuple[list[int], list[Chunk]]:
        known = self._chunks.pop(pin.id, None)
        if known is None:
            chunks = self.blobs.chunks(pin)
            known = [chunk.offset for chunk in chunks], chunks
        self._chunks[pin.id] = known
        if len(self._chunks) > KNOWN:
            self._chunks.popitem(last=False)
        return known


def _described(signed: Signed) -> dict[str, str]:
    headers = {"Content-Type": signed.type or "application/octet-stream", "X-Content-Type-Options": "nosniff"}
    headers["Content-Security-Policy"] = "sandbox"  # what was uploaded is no program of this origin
    if signed.name:
        plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in signed.name)
        headers["Content-Disposition"] = (
            f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(signed.name, safe='')}"
        )
    return headers


def _preflight(request: Request) -> Reply:
    wanted = request.headers.get("access-control-request-headers", "*")
    headers = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": wanted if wanted.isascii() else "*",
        "Access-Control-Max-Age": "86400",
        "Allow": METHODS,
    }
    if request.headers.get("access-control-request-private-network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return Reply(204, headers)
