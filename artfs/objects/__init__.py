"""Providers: dumb stores of objects, and the local directory in which objects grow.

An *object* is one immutable thing: the concatenation of chunks.  Its number is (serial of the namespace that it was
born in) << 32 | count; its name `<prefix>/<count, 8 hex digits>` lies under the path that the namespace had when it was
made, for ever.  A provider knows names and bytes, nothing else; what it can do beyond that is data (`Capabilities`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

OBJECT_LIMIT = 64 << 20
"""An object that has reached this many bytes takes no more chunks."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider is.  `adopts`: the local directory is its store, so that putting a file there moves nothing.
    `durable`: what it has taken survives the process."""

    adopts: bool
    durable: bool


class Provider(Protocol):
    """Where objects end up.  Errors: NotFoundError, NoSpaceError, UnavailableError."""

    capabilities: Capabilities

    async def put(self, name: str, source: Path) -> None:
        """Store the file's bytes under `name`, durably, all or nothing."""

    async def get(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on."""

    async def size(self, name: str) -> int: ...

    async def delete(self, name: str) -> None:
        """Absent afterwards; no error if it was absent before."""

    def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """(name, size) of each object whose name begins with `prefix`, in order of names."""

    async def close(self) -> None: ...


def object_number(serial: int, count: int) -> int:
    return serial << 32 | count
