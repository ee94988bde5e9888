"""The memory provider: objects in a dict, gone with the process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from artfs.errors import NotFoundError, UnavailableError
from artfs.objects import Capabilities


class MemoryProvider:
    """See `artfs.objects.Provider`."""

    capabilities = Capabilities(adopts=False, durable=False)

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    def _object(self, name: str) -> bytes:
        try:
            return self._objects[name]
        except KeyError as error:
            raise NotFoundError(f"object {name} is not in memory") from error

    async def put(self, name: str, source: Path) -> None:
        try:
            self._objects[name] = source.read_bytes()
        except OSError as error:
            raise UnavailableError(f"object {name} cannot be read from {source}: {error}") from error

    async def get(self, name: str, offset: int, length: int) -> bytes:
        data = self._object(name)[offset : offset + length]
        if len(data) != length:
            raise UnavailableError(f"object {name} ends before {offset + length}")
        return data

    async def size(self, name: str) -> int:
        return len(self._object(name))

    async def delete(self, name: str) -> None:
        self._objects.pop(name, None)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        for name in sorted(self._objects):
            if name.startswith(prefix):
                yield name, len(self._objects[name])

    async def close(self) -> None:
        self._objects.clear()
