"""Frames between an owner and its clients, and errors in them.

A frame is two lengths (32 bits each, little-endian), a JSON document, and bytes.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import anyio
from anyio.abc import SocketStream

from artfs.errors import ArtfsError, FsError, InvalidError, PathError

LENGTHS = struct.Struct("<II")
RECEIVE = 1 << 18


def encode(document: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    return LENGTHS.pack(len(text), len(data)) + text + data


class Frames:
    """Frames of a stream.  `limit`: the longest that is read."""

    def __init__(self, stream: SocketStream, limit: int = 1 << 33) -> None:
        self.stream = stream
        self.limit = limit
        self._buffer = bytearray()

    async def read(self, silence: float | None = None) -> tuple[dict[str, Any], bytes]:
        """Errors: anyio.EndOfStream, anyio.BrokenResourceError; InvalidError for what is no frame;
        TimeoutError after `silence` seconds without a byte."""
        await self._fill(LENGTHS.size, silence)
        first, second = LENGTHS.unpack_from(self._buffer)
        if first + second > self.limit:
            raise InvalidError(f"a message of {first + second} bytes is too long; {self.limit} are allowed")
        end = LENGTHS.size + first + second
        await self._fill(end, silence)
        text = bytes(self._buffer[LENGTHS.size : LENGTHS.size + first])
        data = bytes(self._buffer[LENGTHS.size + first : end])
        del self._buffer[:end]
        try:
            document = json.loads(text)
        except ValueError:
            raise InvalidError("a message that is no JSON") from None
        if not isinstance(document, dict):
            raise InvalidError("a message that is no JSON object")
        return document, data

    async def _fill(self, size: int, silence: float | None) -> None:
        while len(self._buffer) < size:
            with anyio.fail_after(silence):
                self._buffer += await self.stream.receive(RECEIVE)


def pack_error(error: ArtfsError) -> dict[str, Any]:
    known = next(cls for cls in type(error).__mro__ if cls.__module__ == ArtfsError.__module__)
    return {
        "class": type(error).__name__,
        "kind": known.__name__,
        "message": str(error),
        "errno": error.errno,
        "path": getattr(error, "path", None),
    }


def unpack_error(document: dict[str, Any]) -> ArtfsError:
    """The error as it was raised at the other end; of a class that is not loaded here, the nearest one that is."""
    classes = _classes(ArtfsError)
    cls = classes.get(str(document.get("class"))) or classes.get(str(document.get("kind")), ArtfsError)
    if issubclass(cls, PathError):
        return PathError(int(document["errno"]), str(document["path"]))
    if issubclass(cls, FsError):
        return FsError(int(document["errno"]))
    error = cls(str(document.get("message")))
    error.errno = int(document.get("errno", error.errno))
    return error


def _classes(cls: type[ArtfsError]) -> dict[str, type[ArtfsError]]:
    found = {cls.__name__: cls}
    for below in cls.__subclasses__():
        found |= _classes(below)
    return found
