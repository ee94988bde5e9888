"""READDIR and READDIRPLUS: listings by cookies, which stay what they are while entries come and go."""

from __future__ import annotations

from bisect import bisect_right

from artfs.fuse import wire
from artfs.fuse.held import Held
from artfs.fuse.virtual import VirtualTree
from artfs.volume.inodes import ROOT
from artfs.volume.node import Dentry, Node
from artfs.volume.tree import Tree

UNKNOWN = wire.negative(0)
"""The entry reply for a name of which the kernel is to keep nothing."""


class Listings(Held):
    def readdir(self, ino: int, offset: int, size: int) -> bytes:
        return self._list(ino, offset, size, False)

    def readdirplus(self, ino: int, offset: int, size: int) -> bytes:
        return self._list(ino, offset, size, True)

    def _list(self, ino: int, offset: int, size: int, plus: bool) -> bytes:
        folder = self.held[ino]
        tree = folder.tree
        order = tree.ordered(folder)
        kids = folder.kids if isinstance(tree, Tree) else None
        parts: list[bytes] = []
        for cookie, name, num in ((1, b".", folder.num), (2, b"..", self._parent(folder))):
            if offset < cookie:
                part = (UNKNOWN if plus else b"") + wire.dirent(num, cookie, name, 4)
                parts.append(part)
                size -= len(part)
        low = bisect_right(order, offset, key=_cookie) if offset > 2 else 0
        fixed = wire.DIRENT.size + (wire.ENTRY.size if plus else 0)
        for i in range(low, len(order)):
            name, entry = order[i]
            if kids is not None and kids.get(name) is not entry:
                continue
            child, cookie, type = entry
            length = len(name)
            size -= fixed + length + (-length & 7)
            if size < 0:
                break
            node = tree.nodes.get(child) if isinstance(tree, Tree) else None
            if node is None:
                node = tree.node(child)
            if plus:
                parts.append(self.enter(node))
            parts.append(wire.dirent(node.num, cookie, name, type))
        return b"".join(parts)

    def entries(self, ino: int, offset: int) -> list[tuple[bytes, int, Node]]:
        """(name, cookie, node) behind `offset`, for a driver that encodes listings itself."""
        folder = self.node(ino)
        dots = [(b".", 1, folder), (b"..", 2, folder)]
        rest = [
            (name, entry.cookie, folder.tree.node(entry.ino))
            for name, entry in folder.tree.listing(folder)
            if entry.cookie > offset
        ]
        return [item for item in dots if item[1] > offset] + rest

    def _parent(self, folder: Node) -> int:
        tree = folder.tree
        if isinstance(tree, VirtualTree) or folder.ino == ROOT:
            return folder.num
        parent = tree.nodes.get(folder.parent)
        return parent.num if parent is not None else tree.number << 32 | folder.parent


def _cookie(item: tuple[bytes, Dentry]) -> int:
    return item[1].cookie
