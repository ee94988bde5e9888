"""Bodies of S3 requests: what is sent, and what is received in a thread (`artfs.objects.s3_session`)."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from hashlib import md5
from typing import Any

STEP = 256 << 10
"""Bytes that are given to a connection at once: it waits until they have left, so that no body is in memory twice."""
MESSAGE = 64 << 10
"""Most bytes that are read of an answer which is an error."""


def content_md5(data: bytes) -> str:
    """Every server of the protocol refuses a body that does not match this header.  MD5 takes 1.5 ms per MiB, CRC32 a
    quarter of that, but that is refused by some servers and ignored by others; what an ETag is depends on encryption.
    The C code lets other threads run."""
    return b64encode(md5(data, usedforsecurity=False).digest()).decode()


class Body:
    """Bytes on their way: what botocore takes for a file, and aiohttp for pieces that come one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.md5 = content_md5(data)

    def __len__(self) -> int:
        return len(self._data)

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, len(self._data), STEP):
            yield self._data[start : start + STEP]

    def read(self, size: int = -1) -> bytes:
        """Of a file at its end: nobody reads but through the iterator, which always begins at the start."""
        return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Before the body is sent again."""
        return 0

    def tell(self) -> int:
        return 0


class Reception:
    """The body of an answer.  `data`: up to `limit` bytes of it, and one more if there are more; `message`: what was
    said instead of it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.data = self.message = b""
        self._raw: Any = None
        self._stopped = False

    def take(self, raw: Any, status: int) -> None:
        """Of urllib3's response, in a thread.  Errors: urllib3's."""
        self._raw = raw
        self.data = self.message = b""
        if not self._stopped:
            if status >= 300:
                self.message = raw.read(MESSAGE)
            else:
                self.data = raw.read(self.limit + 1)
        if raw.length_remaining or self._stopped:
            raw.close()  # no other request can use the connection

    def stop(self) -> None:
        """Nobody waits for it any more, so that the thread should end."""
        self._stopped = True
        if self._raw is not None:
            with suppress(Exception):  # it may have ended just now
                self._raw.shutdown()


wanted: ContextVar[Reception | None] = ContextVar("artfs.objects.s3_bodies.wanted", default=None)
"""Of the request that is being made; without one the loop receives the body."""


@contextmanager
def receiving(limit: int) -> Iterator[Reception]:
    """The body of the request that is made meanwhile is received in a thread."""
    body = Reception(limit)
    token = wanted.set(body)
    try:
        yield body
    finally:
        wanted.reset(token)
