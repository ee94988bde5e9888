"""Where uploads wait until they are registered: files below <root>/uploads, or anonymous ones for a store in memory.

    uploads/<id>/<part, 5 digits>-<MD5 of its bytes, hex>    a part that is whole, and on the disk (00000: all in one)
    uploads/<id>/.<token>                                    one that is still coming; of no use to another process

The name says all that is known about a part, so that none needs a record; where two have one number, the younger
counts.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from secrets import token_hex
from typing import IO

from anyio import to_thread

from artfs.durable import sync_directory

_NAME = re.compile(r"(\d{5})-([0-9a-f]{32})")
COPY = 64 << 20
"""Bytes that one call of a thread copies."""


@dataclass(frozen=True, slots=True)
class Part:
    """`etag`: the MD5 of its bytes, hex.  Its file is at `path`, or is `file`."""

    number: int
    etag: str
    size: int
    path: Path | None = None
    file: IO[bytes] | None = None

    def open(self) -> int:
        """A descriptor to read it with, which is the caller's.  Errors: OSError."""
        if self.path is not None:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        assert self.file is not None
        return os.dup(self.file.fileno())


class Incoming:
    """A part that is coming: `write`, then `sync`, then `Spool.keep`; else `discard`."""

    def __init__(self, folder: Path | None) -> None:
        self.size = 0
        self.path = folder / f".{token_hex(8)}" if folder is not None else None
        self._file: IO[bytes] = self.path.open("xb", buffering=0) if self.path else _anonymous()
        self._hash = md5(usedforsecurity=False)

    def write(self, data: bytes | bytearray) -> None:
        """From any thread.  Errors: OSError."""
        view = memoryview(data)
        self._hash.update(view)
        self.size += len(view)
        while view:
            view = view[self._file.write(view) :]

    def sync(self) -> None:
        if self.path is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    @property
    def digest(self) -> bytes:
        return self._hash.digest()

    def kept(self, number: int) -> Part:
        etag = self.digest.hex()
        if self.path is None:
            return Part(number, etag, self.size, file=self._file)
        target = self.path.with_name(f"{number:05d}-{etag}")
        self.path.rename(target)
        return Part(number, etag, self.size, target)

    def discard(self) -> None:
        self._file.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class Spool:
    """REQUIRES: one process; calls that are not async may wait for the disk shortly."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._parts: dict[str, dict[int, Part]] = {}

    def load(self, known: Collection[str]) -> None:
        """Take over what an earlier process left, of the uploads that are known; the rest is deleted."""
        if self.root is None or not self.root.is_dir():
            return
        for folder in self.root.iterdir():
            if folder.name not in known or not folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
                continue
            files = [(path, path.stat()) for path in folder.iterdir()]
            for path, info in sorted(files, key=lambda item: item[1].st_mtime_ns):
                name = _NAME.fullmatch(path.name)
                if name is None:
                    path.unlink(missing_ok=True)
                else:
                    self._keep(folder.name, Part(int(name[1]), name[2], info.st_size, path))

    def parts(self, id: str) -> dict[int, Part]:
        """By number; the caller's copy."""
        return dict(sorted(self._parts.get(id, {}).items()))

    def begin(self, id: str) -> Incoming:
        """Errors: OSError."""
        if self.root is None:
            return Incoming(None)
        folder = self.root / id
        if not folder.is_dir():
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            for above in (self.root, self.root.parent):
                sync_directory(above)
        return Incoming(folder)

    def keep(self, id: str, number: int, incoming: Incoming) -> Part:
        """The part is this from now on, and an earlier one of its number is gone.  REQUIRES: it is synced.
        `sync_directory` of its directory makes that durable.  Errors: OSError."""
        return self._keep(id, incoming.kept(number))

    def _keep(self, id: str, part: Part) -> Part:
        parts = self._parts.setdefault(id, {})
        old = parts.get(part.number)
        parts[part.number] = part
        if old is not None:
            if old.file is not None:
                old.file.close()
            elif old.path is not None and old.path != part.path:
                old.path.unlink(missing_ok=True)
        return part

    async def join(self, id: str, parts: Collection[Part]) -> Part:
        """All of them as one, which is on the disk: number 0.  Errors: OSError."""
        incoming = await to_thread.run_sync(self.begin, id)
        try:
            for part in parts:
                fd = part.open()
                try:
                    for offset in range(0, part.size, COPY):
                        await to_thread.run_sync(_copy, fd, offset, min(COPY, part.size - offset), incoming)
                finally:
                    os.close(fd)
            await to_thread.run_sync(incoming.sync)
            return self.keep(id, 0, incoming)
        except BaseException:
            incoming.discard()
            raise

    def drop(self, id: str) -> None:
        """Nothing of the upload is left."""
        for part in self._parts.pop(id, {}).values():
            if part.file is not None:
                part.file.close()
        if self.root is not None:
            shutil.rmtree(self.root / id, ignore_errors=True)

    def close(self) -> None:
        """Anonymous files are gone; the others stay."""
        for parts in self._parts.values():
            for part in parts.values():
                if part.file is not None:
                    part.file.close()
        self._parts.clear()


def _anonymous() -> IO[bytes]:
    return os.fdopen(os.memfd_create("artfs-upload", os.MFD_CLOEXEC), "r+b", buffering=0)


def _copy(fd: int, offset: int, length: int, incoming: Incoming) -> None:
    end = offset + length
    while offset < end:
        data = os.pread(fd, min(1 << 20, end - offset), offset)
        if not data:
            raise OSError(f"a part of an upload ends before {end}")
        incoming.write(data)
        offset += len(data)
