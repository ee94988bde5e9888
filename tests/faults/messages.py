"""HTTP/1.1 as far as a relay needs it: heads, bodies by length, in chunks or to the end, and what an S3 request is.

A `Reader` belongs to one connection and one thread.  Bodies are iterators that must be used up before the next head is
read; a connection that ends in the middle of a message raises `Broken`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qs, urlsplit

PIECE = 256 << 10
HEAD_LIMIT = 64 << 10


class Broken(OSError):
    """The other side ended its connection inside a message."""


class Kind(StrEnum):
    """What a request asks of an S3 server."""

    PUT = "put"
    COPY = "copy"
    BEGIN = "begin"
    PART = "part"
    PARTS = "parts"
    COMPLETE = "complete"
    ABORT = "abort"
    GET = "get"
    HEAD = "head"
    LIST = "list"
    DELETE = "delete"
    BUCKET = "bucket"


UPLOADS = frozenset({Kind.PUT, Kind.BEGIN, Kind.PART, Kind.COMPLETE})


@dataclass(frozen=True, slots=True)
class Head:
    """`first` is the request or status line; names of headers as they came."""

    first: str
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        """The value, or nothing."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def chunked(self) -> bool:
        return "chunked" in self.get("transfer-encoding").lower()

    @property
    def length(self) -> int | None:
        """Of the body, where the head says it."""
        return int(found) if (found := self.get("content-length")) and not self.chunked else None

    def encode(self, connection: str, without: tuple[str, ...] = ()) -> bytes:
        """With another Connection header, and without some others."""
        left_out = ("connection", "keep-alive", *without)
        lines = [self.first, *(f"{key}: {value}" for key, value in self.headers if key.lower() not in left_out)]
        return ("\r\n".join([*lines, f"Connection: {connection}"]) + "\r\n\r\n").encode("latin-1")


def parse_head(data: bytes) -> Head:
    first, *lines = data.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return Head(first, tuple((name.strip(), value.strip()) for name, _, value in pairs))


def classify(method: str, target: str, head: Head) -> Kind:
    """Path-style addressing: `/bucket/key`."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    key = parts.path.lstrip("/").partition("/")[2]
    if method == "POST":
        return Kind.BEGIN if "uploads" in query else Kind.COMPLETE if "uploadId" in query else Kind.DELETE
    if method == "DELETE":
        return Kind.ABORT if "uploadId" in query else Kind.DELETE
    if not key:
        return Kind.LIST if method == "GET" and ("list-type" in query or not query) else Kind.BUCKET
    if method == "PUT":
        return Kind.PART if "partNumber" in query else Kind.COPY if head.get("x-amz-copy-source") else Kind.PUT
    if method == "GET":
        return Kind.PARTS if "uploadId" in query else Kind.GET
    return Kind.HEAD


class Reader:
    """The bytes of a connection, in order."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def head(self) -> Head | None:
        """None when the other side has ended between two messages."""
        data = self._until(b"\r\n\r\n")
        return parse_head(data) if data is not None else None

    def body(self, head: Head, *, to_end: bool = False) -> Iterator[bytes]:
        """What follows `head`; `to_end`: up to the end of the connection, where the head does not say how much."""
        if head.chunked:
            while True:
                line = self._until(b"\r\n")
                if line is None:
                    raise Broken("no next chunk")
                size = int(line.partition(b";")[0], 16)
                yield from self._exactly(size)
                if not size:
                    break
                b"".join(self._exactly(2))
            while self._until(b"\r\n"):  # trailers
                pass
        elif (length := head.length) is not None:
            yield from self._exactly(length)
        elif to_end:
            while self._buffer or self._fill():
                yield self._take(len(self._buffer))

    def _fill(self) -> bool:
        data = self._connection.recv(PIECE)
        self._buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _until(self, mark: bytes) -> bytes | None:
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > HEAD_LIMIT:
                raise Broken("a head without end")
            if not self._fill():
                if self._buffer:
                    raise Broken("the connection ended inside a head")
                return None
        data = self._take(at + len(mark))
        return data[: -len(mark)]

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._buffer and not self._fill():
                raise Broken(f"{size} bytes are missing")
            piece = self._take(min(size, PIECE, len(self._buffer)))
            size -= len(piece)
            yield piece
