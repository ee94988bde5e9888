"""The disk provider: objects are files below a directory, under their names.  With a store's local object directory as
its root it adopts the files where they are."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import copyfile

from anyio import to_thread

from artfs.errors import NoSpaceError, NotFoundError, UnavailableError
from artfs.objects import Capabilities

Listing = list[tuple[str, int]]


class DiskProvider:
    """See `artfs.objects.Provider`."""

    capabilities = Capabilities(adopts=True, durable=True)

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, name: str) -> Path:
        path = self.root / name
        if name.startswith("/") or ".." in path.parts:
            raise NotFoundError(f"no object can be called {name!r}")
        return path

    async def put(self, name: str, source: Path) -> None:
        path = self._path(name)
        if source != path:
            await to_thread.run_sync(self._put, path, source)

    def _put(self, path: Path, source: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        try:
            copyfile(source, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.rename(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpaceError(f"no room for object {path}; free some space") from error
            raise UnavailableError(f"object {path} cannot be written: {error}") from error
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    async def get(self, name: str, offset: int, length: int) -> bytes:
        def read() -> bytes:
            try:
                with self._path(name).open("rb") as file:
                    return os.pread(file.fileno(), length, offset)
            except FileNotFoundError as error:
                raise NotFoundError(f"object {name} is not on the disk") from error

        data = await to_thread.run_sync(read)
        if len(data) != length:
            raise UnavailableError(f"object {name} ends before {offset + length}")
        return data

    async def size(self, name: str) -> int:
        try:
            return (await to_thread.run_sync(self._path(name).stat)).st_size
        except FileNotFoundError as error:
            raise NotFoundError(f"object {name} is not on the disk") from error

    async def delete(self, name: str) -> None:
        await to_thread.run_sync(lambda: self._path(name).unlink(missing_ok=True))

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        for name, size in await to_thread.run_sync(self._walk, prefix):
            yield name, size

    def _walk(self, prefix: str) -> Listing:
        start = self._path(prefix.rpartition("/")[0])
        found = []
        for folder, _, files in os.walk(start):
            for file in files:
                path = Path(folder, file)
                name = str(path.relative_to(self.root))
                if name.startswith(prefix) and not file.endswith(".part"):
                    found.append((name, path.stat().st_size))
        return sorted(found)

    async def close(self) -> None:
        pass
