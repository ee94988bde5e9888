"""A process that works on one namespace through both doors: the mount, and the Python API on the same root.

    python -m tests.fuse.doors ROOT NAMESPACE FOLDER BACKEND

Reads a call a line, a JSON list [name, argument, …], and answers each with a line: ["ok", result], or ["error", text].
Bytes are in latin-1.  The names are those of `Doors`; paths are relative to the namespace.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import anyio

from artfs import ArtifactStore


class Doors:
    """`put_*` and the like change, `get_*` look; a look gives None for what is not there."""

    def __init__(self, store: ArtifactStore, namespace: str, folder: Path) -> None:
        self.store = store
        self.namespace = namespace
        self.folder = folder
        self.vfs = store.get_namespace_vfs(namespace)

    # changing, through the API
    async def api_write(self, name: str, data: str) -> None:
        await self.store.write_namespace(self.namespace, data.encode("latin-1"), f"/{name}")

    async def api_vfs_write(self, name: str, data: str) -> None:
        assert await self.vfs.write_file(f"/{name}", data.encode("latin-1"))

    async def api_batch(self, name: str, data: str) -> None:
        (done,) = await self.vfs.batch_write_files({f"/{name}": data.encode("latin-1")})
        assert done.success, done

    async def api_stream(self, name: str, data: str) -> None:
        half = len(data) // 2
        assert await self.vfs.stream_write(f"/{name}", [data[:half].encode("latin-1"), data[half:].encode("latin-1")])

    async def api_remove(self, name: str) -> None:
        assert await self.vfs.rm(f"/{name}")

    async def api_move(self, name: str, target: str) -> None:
        assert await self.vfs.mv(f"/{name}", f"/{target}")

    async def api_checkpoint(self, name: str) -> None:
        await self.store.checkpoint_namespace(self.namespace, name)

    async def api_restore(self, name: str) -> None:
        await self.store.restore_namespace(self.namespace, name)

    # changing, through the mount
    def mount_write(self, name: str, data: str) -> None:
        (self.folder / name).write_bytes(data.encode("latin-1"))

    def mount_replace(self, name: str, data: str) -> None:
        beside = self.folder / f".{name}.tmp{os.getpid()}"
        beside.write_bytes(data.encode("latin-1"))
        beside.rename(self.folder / name)

    def mount_append(self, name: str, data: str) -> None:
        with (self.folder / name).open("ab") as file:
            file.write(data.encode("latin-1"))

    def mount_patch(self, name: str, offset: int, data: str) -> None:
        fd = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, data.encode("latin-1"), offset)
        finally:
            os.close(fd)

    def mount_map(self, name: str, offset: int, data: str) -> None:
        """Through a mapping; REQUIRES: the file is that long."""
        with (self.folder / name).open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[offset : offset + len(data)] = data.encode("latin-1")

    def mount_truncate(self, name: str, size: int) -> None:
        os.truncate(self.folder / name, size)

    def mount_remove(self, name: str) -> None:
        (self.folder / name).unlink()

    def mount_move(self, name: str, target: str) -> None:
        (self.folder / name).rename(self.folder / target)

    # looking
    async def get_read_namespace(self, name: str) -> str | None:
        try:
            return (await self.store.read_namespace(self.namespace, f"/{name}")).decode("latin-1")
        except FileNotFoundError:
            return None

    async def get_vfs_read(self, name: str) -> str | None:
        data = await self.vfs.read_file(f"/{name}")
        return None if data is None else data.decode("latin-1")

    async def get_stream(self, name: str) -> str | None:
        try:
            return b"".join([part async for part in self.vfs.stream_read(f"/{name}")]).decode("latin-1")
        except FileNotFoundError:
            return None

    async def get_info_size(self, name: str) -> int | None:
        info = await self.vfs.get_node_info(f"/{name}")
        return None if info is None else info.size

    async def get_ls(self, _: str) -> list[str]:
        return sorted(name for name in await self.vfs.ls("/") if not name.startswith("."))

    def get_open(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_bytes().decode("latin-1")
        except FileNotFoundError:
            return None

    def get_mapped(self, name: str) -> str | None:
        try:
            with (self.folder / name).open("rb") as file:
                if not os.fstat(file.fileno()).st_size:
                    return ""
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    return mapped[:].decode("latin-1")
        except FileNotFoundError:
            return None

    def get_stat_size(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def get_listdir(self, _: str) -> list[str]:
        return sorted(name for name in os.listdir(self.folder) if not name.startswith("."))


async def main(root: str, namespace: str, folder: str) -> None:
    async with ArtifactStore(root=root) as store:
        doors = Doors(store, namespace, Path(folder))
        print(json.dumps(["ok", os.getpid()]), flush=True)
        for line in sys.stdin:  # this process has nothing else to do
            name, *arguments = json.loads(line)
            answer: list[Any]
            try:
                result = getattr(doors, name)(*arguments)
                answer = ["ok", await result if hasattr(result, "__await__") else result]
            except Exception as error:
                answer = ["error", f"{type(error).__name__}: {error}"]
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], backend=sys.argv[4])
