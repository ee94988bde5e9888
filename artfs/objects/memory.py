"""The memory provider: objects in a dict, gone with the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from time import time_ns

from anyio import to_thread
from xxhash import xxh3_128_hexdigest

from artfs.errors import BusyError, ExistsError, NotFoundError, UnavailableError
from artfs.objects import Capabilities, Info, check_name


class MemoryProvider:
    """See `artfs.objects.Provider`.  An etag is the XXH3-128 of the bytes."""

    url = "memory:"
    capabilities = Capabilities(adopts=False, durable=False)

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, Info]] = {}

    def _object(self, name: str) -> tuple[bytes, Info]:
        try:
            return self._objects[check_name(name)]
        except KeyError as error:
            raise NotFoundError(f"object {name} is not in memory") from error

    async def check(self) -> None:
        pass

    async def put(self, name: str, source: Path | bytes) -> None:
        check_name(name)
        if isinstance(source, bytes):
            data = source
        else:
            try:
                data = await to_thread.run_sync(source.read_bytes)
            except OSError as error:
                raise UnavailableError(f"object {name} cannot be read from {source}: {error.strerror}") from error
        self._objects[name] = (data, Info(len(data), xxh3_128_hexdigest(data), time_ns()))

    async def create(self, name: str, data: bytes) -> None:
        if check_name(name) in self._objects:
            raise ExistsError(f"object {name} is in memory already")
        await self.put(name, data)

    async def get(self, name: str, offset: int, length: int) -> bytes:
        data = self._object(name)[0][offset : offset + length]
        if len(data) != length:
            raise UnavailableError(f"object {name} ends before {offset + length}")
        return data

    async def head(self, name: str) -> Info:
        return self._object(name)[1]

    async def copy(self, source: str, target: str, etag: str | None = None) -> None:
        data, info = self._object(source)
        if etag is not None and info.etag != etag:
            raise BusyError(f"object {source} has changed: its etag is {info.etag}, no longer {etag}")
        await self.put(target, data)

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self._objects.pop(check_name(name), None)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        for name in sorted(name for name in self._objects if name.startswith(prefix)):
            if name in self._objects:
                yield name, self._objects[name][1].size

    async def tidy(self, before: float) -> int:
        return 0  # nothing outlives its writer

    async def close(self) -> None:
        pass
