"""What a disk may hold after power loss, from a log of what a process did (see recorder.c).

A sync makes everything durable that had been logged for its file when it began; that of a directory, its names.  Of the
rest each 4 KiB piece of a write, each truncation and each change of a name has happened or not, by chance; what has
happened did so in the order of the log.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

ENTRY = Struct("<IIQQQ")
PIECE = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """`at` is its place in the log; `offset` of a sync is where the log ended when that began."""

    at: int
    kind: str
    inode: int
    offset: int
    path: str
    data: memoryview


def read_log(path: Path) -> list[Entry]:
    raw = memoryview(path.read_bytes())
    found = []
    at = 0
    while at < len(raw):
        kind, path_length, inode, offset, length = ENTRY.unpack_from(raw, at)
        start = at + ENTRY.size + path_length
        name = bytes(raw[at + ENTRY.size : start]).decode()
        found.append(Entry(at, chr(kind), inode, offset, name, raw[start : start + length]))
        at = start + length
    return found


def parent(path: str) -> str:
    return path.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Content:
    """What a file of the disk holds before the log begins; `data` is None for a directory."""

    inode: int
    data: bytes | None


def contents(root: Path) -> dict[str, Content]:
    """By path below the root, which is called by the empty string."""
    found = {"": Content(root.stat().st_ino, None)}
    for path in sorted(root.rglob("*")):
        data = None if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(root))] = Content(path.stat().st_ino, data)
    return found


class Disk:
    """`before`: what is safely there before the log begins."""

    def __init__(self, log: list[Entry], before: dict[str, Content]) -> None:
        self.log = log
        self.before = before

    def crash(self, count: int, chance: random.Random, target: Path, lost: float) -> None:
        """Make at `target` what is left when power fails behind `count` entries; `lost`: the share of what was not
        synced that is gone."""
        log = self.log[:count]
        synced: dict[int, int] = {}
        for entry in log:
            if entry.kind == "S":
                synced[entry.inode] = max(synced.get(entry.inode, 0), entry.offset)
        folders = {path: found.inode for path, found in self.before.items() if found.data is None}
        files = {found.inode: bytearray(found.data) for found in self.before.values() if found.data is not None}
        names = {path: found.inode for path, found in self.before.items() if path}
        target.mkdir()
        for entry in log:
            if entry.kind in "NUD":
                folder = folders.get(parent(entry.path))
                safe = folder is not None and entry.at < synced.get(folder, 0)
                if entry.kind == "D":
                    folders[entry.path] = entry.inode
                if safe or chance.random() >= lost:
                    if entry.kind == "U":
                        names.pop(entry.path, None)
                    else:
                        names[entry.path] = entry.inode
            elif entry.kind in "WT":
                safe = entry.at < synced.get(entry.inode, 0)
                self._change(files.setdefault(entry.inode, bytearray()), entry, safe, chance, lost)
        made = set(folders.values())
        for path in sorted(names):
            if names[path] in made:
                (target / path).mkdir(parents=True, exist_ok=True)
        for path, inode in names.items():
            if inode not in made and (target / path).parent.is_dir():
                (target / path).write_bytes(files.get(inode, b""))

    def _change(self, file: bytearray, entry: Entry, safe: bool, chance: random.Random, lost: float) -> None:
        if entry.kind == "T":
            if safe or chance.random() >= lost:
                del file[entry.offset :]
                file.extend(bytes(entry.offset - len(file)))
            return
        for start, end in pieces(entry.offset, len(entry.data)):
            if safe or chance.random() >= lost:
                if len(file) < end:
                    file.extend(bytes(end - len(file)))
                file[start:end] = entry.data[start - entry.offset : end - entry.offset]


def pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end:
        stop = min(end, (offset // PIECE + 1) * PIECE)
        yield offset, stop
        offset = stop
