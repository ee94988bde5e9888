"""Bodies of S3 requests: what is sent, and what is received in a thread (`artfs.objects.s3_session`)."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from hashlib import md5
from threading import Lock
from typing import Any

from artfs.objects import Sink

STEP = 256 << 10
"""Bytes that are given to a connection at once: it waits until they have left, so that no body is in memory twice."""
TAKEN = 512 << 10
"""Bytes that are taken from a connection at once."""
MESSAGE = 64 << 10
"""Most bytes that are read of an answer which is an error."""


def content_md5(data: bytes) -> str:
    """What the header of that name says: every server of the protocol refuses a body that does not match it.  MD5 takes
    1.5 ms per MiB, CRC32 a quarter of that, but that is refused by some servers and ignored by others."""
    return encoded(md5(data, usedforsecurity=False).digest())


def encoded(digest: bytes) -> str:
    """For that header."""
    return b64encode(digest).decode()


class Body:
    """Bytes on their way: what botocore takes for a file, and aiohttp for pieces that come one after the other.
    `read(at, count)` gives them, at any time, from any thread."""

    def __init__(self, read: Callable[[int, int], bytes | memoryview], length: int) -> None:
        self._read = read
        self._length = length

    @classmethod
    def of(cls, data: bytes) -> Body:
        view = memoryview(data)
        return cls(lambda at, count: view[at : at + count], len(data))

    def md5(self) -> bytes:
        """Takes its time: in a thread."""
        found = md5(usedforsecurity=False)
        for at in range(0, self._length, STEP):
            found.update(self._read(at, min(STEP, self._length - at)))
        return found.digest()

    def __len__(self) -> int:
        return self._length

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        for at in range(0, self._length, STEP):
            yield self._read(at, min(STEP, self._length - at))

    def read(self, size: int = -1) -> bytes:
        """Of a file at its end: nobody reads but through the iterator, which always begins at the start."""
        return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Before the body is sent again."""
        return 0

    def tell(self) -> int:
        return 0


class Whole:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def __call__(self, at: int, data: bytes) -> None:
        if at == 0:
            self._parts.clear()
        self._parts.append(data)

    def data(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


class Reception:
    """The body of the answer to a request for `length` bytes from `offset` on.  `sink` gets it in steps, if the answer
    says that it is that, and not after `stop`; `taken`: how many bytes came, and one more if there are more; `message`:
    what was said instead of it."""

    def __init__(self, offset: int, length: int, sink: Sink) -> None:
        self.taken = 0
        self.message = b""
        self._offset = offset
        self._length = length
        self._sink = sink
        self._raw: Any = None
        self._stopped = False
        self._giving = Lock()

    def take(self, raw: Any, status: int) -> None:
        """Of urllib3's response, in a thread.  Errors: urllib3's."""
        self._raw, self.taken, self.message = raw, 0, b""
        if status >= 300:
            self.message = raw.read(MESSAGE)
        elif is_range(raw.headers.get("content-range", ""), self._offset, self._length):
            while not self._stopped and self.taken <= self._length:
                data = raw.read(min(TAKEN, self._length - self.taken) or 1)
                if not data:
                    break
                if self.taken < self._length:
                    self._give(data)
                self.taken += len(data)
                del data  # so that the next gets its memory: new pages take longer than all else
        if raw.length_remaining or self._stopped:
            raw.close()  # no other request can use the connection

    def _give(self, data: bytes) -> None:
        with self._giving:
            if not self._stopped:
                self._sink(self.taken, data)

    def stop(self) -> None:
        """Nobody waits for it any more, so that the thread should end."""
        self._stopped = True
        if self._raw is not None:
            with suppress(Exception):  # it may have ended just now
                self._raw.shutdown()
        with self._giving:
            pass


def is_range(said: str, offset: int, length: int) -> bool:
    """Whether an answer with that Content-Range is these bytes."""
    return said.startswith(f"bytes {offset}-{offset + length - 1}/") if said else offset == 0


wanted: ContextVar[Reception | None] = ContextVar("artfs.objects.s3_bodies.wanted", default=None)
"""Of the request that is being made; without one the loop receives the body."""


@contextmanager
def receiving(offset: int, length: int, sink: Sink) -> Iterator[Reception]:
    """The body of the request that is made meanwhile is received in a thread."""
    body = Reception(offset, length, sink)
    token = wanted.set(body)
    try:
        yield body
    finally:
        wanted.reset(token)
