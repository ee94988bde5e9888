"""The object directory against the chunks that rows name: is every byte there, is it the right one, what is garbage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from xxhash import xxh3_128_digest

from artfs.blocks import Chunk
from artfs.volume.fsck_view import Finding

Tick = Callable[[int, int], None]
Key = tuple[int, int, int, bytes]
"""(object, offset, length, hash) of a chunk."""


class Objects:
    """`prefixes`: serial → path below `root`.  Chunks are noted one by one, then `verify` looks at the disk once, and
    `trouble` answers for each.  Without `data` only the lengths of objects are looked at."""

    def __init__(self, root: Path, prefixes: dict[int, str], data: bool) -> None:
        self.root = root
        self.prefixes = prefixes
        self.data = data
        self.ends: dict[int, int] = {}
        self.sizes: dict[int, int | None] = {}
        self.chunks: set[Key] = set()
        self.wrong: set[Key] = set()
        self.verified: set[Key] = set()

    def note(self, chunk: Chunk) -> None:
        end = chunk.offset + chunk.length
        if end > self.ends.get(chunk.object, -1):
            self.ends[chunk.object] = end
        if self.data:
            self.chunks.add(_key(chunk))

    def path(self, number: int) -> Path | None:
        prefix = self.prefixes.get(number >> 32)
        return None if prefix is None else self.root / prefix / f"{number & 0xFFFFFFFF:08x}"

    def verify(self, tick: Tick) -> bool:
        """Whether every chunk noted so far is there (and right).  What was read before is not read again."""
        good = True
        for number, end in self.ends.items():
            if number not in self.sizes:
                self.sizes[number] = self._size(number)
            size = self.sizes[number]
            good &= size is not None and size >= end
        if self.data:
            self._hash(tick)
        return good and not self.wrong

    def _size(self, number: int) -> int | None:
        path = self.path(number)
        try:
            return None if path is None else path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _hash(self, tick: Tick) -> None:
        todo = sorted(self.chunks - self.verified)
        total = sum(length for _, _, length, _ in todo)
        done = 0
        opened, fd = -1, -1
        try:
            for key in todo:
                number, offset, length, digest = key
                path = self.path(number)
                if path is None or self.sizes[number] is None:
                    continue
                if number != opened:
                    if fd >= 0:
                        os.close(fd)
                    opened, fd = number, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if xxh3_128_digest(_read(fd, offset, length)) != digest:
                    self.wrong.add(key)
                self.verified.add(key)
                done += length
                tick(done, total)
        finally:
            if fd >= 0:
                os.close(fd)

    def trouble(self, chunk: Chunk) -> str:
        """What is wrong with the chunk's bytes, or an empty string.  REQUIRES: `verify` was called since `note`."""
        number = chunk.object
        path = self.path(number)
        if path is None:
            return f"object {number:x} belongs to no known namespace"
        size = self.sizes[number]
        name = path.relative_to(self.root)
        if size is None:
            return f"object {name} is missing"
        if chunk.offset + chunk.length > size:
            return f"object {name} ends at {size}, before {chunk.offset}+{chunk.length}"
        if _key(chunk) in self.wrong:
            return f"object {name} is damaged at {chunk.offset}+{chunk.length}"
        return ""

    def unnamed(self, also_named: set[int]) -> Iterator[tuple[Path, int]]:
        """(path, bytes) of every file that no chunk is in, and that is none of `also_named`."""
        named = {self.path(number) for number in self.ends.keys() | also_named}
        for folder, _, files in os.walk(self.root):
            for file in sorted(files):
                path = Path(folder, file)
                if path not in named:
                    yield path, path.stat().st_size


def damaged_inodes(objects: Objects, named: list[tuple[int, Chunk]], place: Callable[[int], str]) -> list[Finding]:
    """A finding for each inode and trouble; `named` are the view's (inode, chunk)."""
    found: dict[Finding, None] = {}
    for ino, chunk in named:
        trouble = objects.trouble(chunk)
        if trouble:
            found[Finding("data", place(ino), f"{trouble}; reading it gives an error")] = None
    return list(found)


def _key(chunk: Chunk) -> Key:
    return chunk.object, chunk.offset, chunk.length, chunk.hash


def _read(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
