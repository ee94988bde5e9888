"""What differs between two versions of a namespace, as paths."""

from __future__ import annotations

import os
from dataclasses import dataclass
from stat import S_ISDIR

from artfs.meta import Engine
from artfs.types import Epoch, Serial
from artfs.volume.inodes import ROOT
from artfs.volume.rows import DENTRY, INODE, U64


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """`change` is `added`, `removed` or `modified`; a renamed file is one removed and one added."""

    path: str
    change: str

    def reversed(self) -> Difference:
        return Difference(self.path, {"added": "removed", "removed": "added"}.get(self.change, self.change))


def difference(engine: Engine, serial: Serial, a: Epoch, b: Epoch | None) -> list[Difference]:
    """In order of paths.  A directory counts as modified by its mode, owner and attributes, not by its names."""
    changes = engine.diff(serial, a, b)
    if not changes:
        return []
    before = _Paths(engine, serial, a)
    after = _Paths(engine, serial, b)
    found: dict[str, str] = {}
    inodes: set[int] = set()
    for change in changes:
        if change.key[:1] == b"D":
            parent, name = U64.unpack_from(change.key, 1)[0], change.key[9:]
            if change.before is not None:
                found[before.path(parent, name)] = "removed"
            if change.after is not None:
                path = after.path(parent, name)
                found[path] = "modified" if path in found else "added"
        elif change.key[:1] != b"I" or not _only_times(change.before, change.after):
            inodes.add(U64.unpack_from(change.key, 1)[0])
    for parent, name in after.names(inodes):
        found.setdefault(after.path(parent, name), "modified")
    if ROOT in inodes:
        found["/"] = "modified"
    return sorted(Difference(path, change) for path, change in found.items())


def _only_times(before: bytes | None, after: bytes | None) -> bool:
    """True for a directory of which nothing but times, links and kid changed."""
    if before is None or after is None:
        return before is None and after is None
    one, two = INODE.unpack_from(before), INODE.unpack_from(after)
    return S_ISDIR(one[0]) and (one[0], one[2], one[3], one[15]) == (two[0], two[2], two[3], two[15])


class _Paths:
    """Paths at one version."""

    def __init__(self, engine: Engine, serial: Serial, at: Epoch | None) -> None:
        self._where: dict[int, list[tuple[int, bytes]]] = {}
        for key, value in engine.scan(serial, b"D", at):
            parent = U64.unpack_from(key, 1)[0]
            self._where.setdefault(DENTRY.unpack(value)[0], []).append((parent, key[9:]))

    def names(self, inodes: set[int]) -> list[tuple[int, bytes]]:
        return [place for ino in inodes for place in self._where.get(ino, ())]

    def path(self, parent: int, name: bytes) -> str:
        parts = [name]
        while parent != ROOT:
            parent, name = self._where[parent][0]
            parts.append(name)
        return "/" + os.fsdecode(b"/".join(reversed(parts)))
