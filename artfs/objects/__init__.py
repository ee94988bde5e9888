"""Providers: dumb stores of objects, and the local directories in which objects grow and are cached.

An *object* is one immutable thing: the concatenation of chunks.  Its number is (serial of the namespace that it was
born in) << 32 | count; its name `<prefix>/<count, 8 hex digits>` lies under the path that the namespace had when it was
made, for ever.  A provider knows names and bytes, nothing else; what it can do beyond that is data (`Capabilities`).

A provider is named by a URL, which holds no secret.  The empty URL is the store's own directory.  Where the bytes of a
namespace live, and in what form, is its *home*; it never changes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from artfs.errors import InvalidError

OBJECT_LIMIT = 64 << 20
"""An object that has reached this many bytes takes no more chunks."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider is.  `adopts`: the local directory is its store, so that putting a file there moves nothing.
    `durable`: what it has taken survives the process.  `signs`: it makes URLs that anybody can use (`Signer`).
    `streams`: it gives bytes as they come (`Streamer`)."""

    adopts: bool
    durable: bool
    signs: bool = False
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Info:
    """`etag` without quotes; `modified` in nanoseconds since 1970."""

    size: int
    etag: str
    modified: int


@dataclass(frozen=True, slots=True)
class Home:
    """`provider`: a URL; `codec`: how objects look there, a key of `CODECS`."""

    provider: str
    codec: str = ""


CODECS = ("", "zstd", "aes", "zstd+aes")


class Provider(Protocol):
    """Where objects end up.  Errors: NotFoundError, DeniedError, NoSpaceError, UnavailableError."""

    url: str
    capabilities: Capabilities

    async def check(self) -> None:
        """That it is there and that we may do all of the below.  Errors: NotFoundError (a bucket), DeniedError
        (credentials, permissions), InvalidError (region, clock), UnavailableError; each with its remedy."""

    async def put(self, name: str, source: Path | bytes) -> None:
        """Store the bytes under `name`, durably, all or nothing; replaces what was there."""

    async def create(self, name: str, data: bytes) -> None:
        """Like `put`, but never replaces.  Errors: ExistsError."""

    async def get(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on.  Errors: UnavailableError if they are not there."""

    async def head(self, name: str) -> Info: ...

    async def copy(self, source: str, target: str, etag: str | None = None) -> None:
        """Within the provider.  Errors: BusyError if `source` has another `etag` by now."""

    async def delete(self, names: Sequence[str]) -> None:
        """Absent afterwards; no error if one was absent before."""

    def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """(name, size) of each object whose name begins with `prefix`, in order of names."""

    async def tidy(self, before: float) -> int:
        """End what writers began before that moment (seconds since 1970) and cannot finish, because they were killed;
        how many there were.  REQUIRES: no writer that lives has begun before it."""

    async def close(self) -> None: ...


Sink = Callable[[int, bytes], object]
"""Is given bytes, with how many of what was asked for are before them."""


class Streamer(Protocol):
    """What a provider with `Capabilities.streams` has besides."""

    async def receive(self, name: str, offset: int, length: int, sink: Sink) -> None:
        """Like `get`: `sink` gets all of it, in order, on threads, one at a time and none after this has returned; from
        the beginning again when the connection broke."""


class Providers(Protocol):
    """`get` opens a provider once, and checks nothing.  `canonical`: the one spelling of a URL."""

    def canonical(self, url: str) -> str: ...

    def get(self, home: Home) -> Provider: ...

    def key_id(self) -> str:
        """What tells the key for encryption from others, and is no secret."""

    async def close(self) -> None: ...


class Signer(Protocol):
    """What a provider with `Capabilities.signs` has besides.  Times are seconds from now, parts count from 1."""

    async def sign_get(self, name: str, expires: int, *, mime: str | None = None, filename: str | None = None) -> str:
        """A URL to read it; `mime` and `filename` are what the answer's headers say."""

    async def sign_put(self, name: str, expires: int, *, mime: str | None = None) -> str:
        """A URL to write it; with `mime` the writer must send that Content-Type."""

    async def begin_parts(self, name: str, *, mime: str | None = None) -> str:
        """The id of an upload in parts."""

    async def sign_part(self, name: str, upload: str, number: int, expires: int) -> str: ...

    async def list_parts(self, name: str, upload: str) -> list[tuple[int, str, int]]:
        """(number, etag, size), in order.  Errors: NotFoundError."""

    async def complete_parts(self, name: str, upload: str, parts: Sequence[tuple[int, str]]) -> Info:
        """Errors: InvalidError (a part or an etag that is not there, a part that is too small), NotFoundError."""

    async def abort_parts(self, name: str, upload: str) -> None: ...


def object_number(serial: int, count: int) -> int:
    return serial << 32 | count


def check_name(name: str) -> str:
    """Errors: InvalidError for what could lead out of a provider's place."""
    if not name or name.startswith("/") or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InvalidError(f"no object can be called {name!r}")
    return name
