"""Objects against the chunks that rows name: is every byte there, is it the right one, what is garbage.

An object is in `objects/`, or, where its namespace has a home, in a provider; what is in `cache/` is a copy that may be
lost, so a wrong one is no problem: it is only to be deleted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from xxhash import xxh3_128_digest

from artfs.blocks import Chunk
from artfs.objects import Home
from artfs.volume.fsck_provider import Kept
from artfs.volume.fsck_view import Finding

Tick = Callable[[int, int], None]
Key = tuple[int, int, int, bytes]
"""(object, offset, length, hash) of a chunk."""
PIECE = 8 << 20
"""Bytes that are asked of a provider at once,"""
GAP = 1 << 20
"""with no more between two chunks that nobody wants."""


class Objects:
    """`prefixes`: serial → path below `root`; `homes`: serial → home, where it is not `root`.  Chunks are noted one by
    one, then `verify` looks once, and `trouble` answers for each.  Without `data` only the lengths of objects are
    looked at.  `stale`: files in the cache that have other bytes than they should."""

    def __init__(self, root: Path, kept: Kept, data: bool) -> None:
        self.root = root
        self.cache = root.parent / "cache"
        self.kept = kept
        self.data = data
        self.prefixes: dict[int, str] = {}
        self.homes: dict[int, Home] = {}
        self.ends: dict[int, int] = {}
        self.sizes: dict[int, int | None] = {}
        self.chunks: set[Key] = set()
        self.wrong: set[Key] = set()
        self.verified: set[Key] = set()
        self.stale: set[Path] = set()

    def note(self, chunk: Chunk) -> None:
        end = chunk.offset + chunk.length
        if end > self.ends.get(chunk.object, -1):
            self.ends[chunk.object] = end
        if self.data:
            self.chunks.add(_key(chunk))

    def name(self, number: int) -> str | None:
        prefix = self.prefixes.get(number >> 32)
        return None if prefix is None else f"{prefix}/{number & 0xFFFFFFFF:08x}"

    def home(self, number: int) -> Home | None:
        return self.homes.get(number >> 32)

    def is_unknown(self, number: int) -> bool:
        """Its provider does not answer."""
        home = self.home(number)
        return home is not None and home in self.kept.unknown

    def verify(self, tick: Tick) -> bool:
        """Whether every chunk noted so far is there (and right).  What was read before is not read again."""
        good = True
        for number, end in self.ends.items():
            if number not in self.sizes:
                self.sizes[number] = self._size(number)
            size = self.sizes[number]
            good &= (size is not None and size >= end) or self.is_unknown(number)
        if self.data:
            self._hash(tick)
        return good and not self.wrong

    def _size(self, number: int) -> int | None:
        name = self.name(number)
        if name is None:
            return None
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            home = self.home(number)
            return None if home is None else self.kept.size(home, self.prefixes[number >> 32], name)

    def _hash(self, tick: Tick) -> None:
        todo = sorted(self.chunks - self.verified)
        total = sum(length for _, _, length, _ in todo)
        done = 0
        for number, keys in groupby(todo, key=lambda key: key[0]):
            name = self.name(number)
            size = self.sizes[number]
            if name is None or size is None:
                continue
            some = list(keys)
            for key, data in self._read(number, name, size, some):
                if xxh3_128_digest(data) != key[3]:
                    self.wrong.add(key)
                self.verified.add(key)
                done += key[2]
                tick(done, total)
            if self.home(number) is not None:
                self._look_at_copy(self.cache / name, some)

    def _read(self, number: int, name: str, size: int, keys: list[Key]) -> Iterator[tuple[Key, bytes]]:
        """The bytes of each chunk, as far as they are there; nothing from where a provider ceases to answer."""
        home = self.home(number)
        try:
            fd = os.open(self.root / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            assert home is not None
            yield from self._read_remote(home, name, size, keys)
            return
        try:
            for key in keys:
                yield key, _pread(fd, key[1], key[2])
        finally:
            os.close(fd)

    def _read_remote(self, home: Home, name: str, size: int, keys: list[Key]) -> Iterator[tuple[Key, bytes]]:
        for group in _neighbours(keys):
            start, end = group[0][1], min(max(key[1] + key[2] for key in group), size)
            data = self.kept.read(home, name, start, end - start) if start < end else b""
            if home in self.kept.unknown:
                return
            if len(data) < end - start and len(group) > 1:  # a part that cannot be decoded: whose is it?
                for key in group:
                    yield from self._read_remote(home, name, size, [key])
                continue
            for key in group:
                yield key, data[key[1] - start : key[1] - start + key[2]]

    def _look_at_copy(self, path: Path, keys: list[Key]) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            end = os.fstat(fd).st_size
            for key in keys:
                _, offset, length, digest = key
                if key in self.wrong or offset + length > end or os.lseek(fd, offset, os.SEEK_HOLE) < offset + length:
                    continue  # not fetched yet
                if xxh3_128_digest(_pread(fd, offset, length)) != digest:
                    self.stale.add(path)
                    return
        finally:
            os.close(fd)

    def trouble(self, chunk: Chunk) -> str:
        """What is wrong with the chunk's bytes, or an empty string.  REQUIRES: `verify` was called since `note`."""
        number = chunk.object
        name = self.name(number)
        if name is None:
            return f"object {number:x} belongs to no known namespace"
        size = self.sizes[number]
        home = self.home(number)
        where = f" in {home.provider}" if home is not None else ""
        if self.is_unknown(number) and (size is None or _key(chunk) not in self.wrong):
            return ""
        if size is None:
            return f"object {name} is missing{where}"
        if chunk.offset + chunk.length > size:
            return f"object {name} ends at {size}{where}, before {chunk.offset}+{chunk.length}"
        if _key(chunk) in self.wrong:
            return f"object {name} is damaged{where} at {chunk.offset}+{chunk.length}"
        return ""

    def unnamed(self, also_named: set[int], doomed: set[int]) -> Iterator[tuple[str, int]]:
        """(name, bytes) of every object that no chunk is in, and that is none of `also_named`; but for those of
        namespaces whose objects are about to be deleted anyhow."""
        named = {self.name(number) for number in self.ends.keys() | also_named}
        skipped = {self.prefixes[serial] for serial in doomed if serial in self.prefixes}
        for folder, _, files in os.walk(self.root):
            prefix = os.path.relpath(folder, self.root)
            for file in sorted(files):
                if f"{prefix}/{file}" not in named and prefix not in skipped:
                    yield f"{prefix}/{file}", Path(folder, file).stat().st_size
        for serial, home in self.homes.items():
            if serial in self.prefixes and serial not in doomed:
                for name, size in self.kept.sizes(home, self.prefixes[serial]).items():
                    if name not in named and not (self.root / name).exists():
                        yield name, size


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


def _neighbours(keys: list[Key]) -> Iterator[list[Key]]:
    """Chunks of one object, in order, in groups that one request reads; a large one is a group of its own."""
    group: list[Key] = []
    start = end = 0
    for key in keys:
        stop = key[1] + key[2]
        if group and (max(end, stop) - start > PIECE or key[1] > end + GAP):
            yield group
            group = []
        if not group:
            start, end = key[1], stop
        group.append(key)
        end = max(end, stop)
    if group:
        yield group


def _pread(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
