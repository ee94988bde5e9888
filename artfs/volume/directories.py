"""What directories hold: names, and the order in which they are listed.

A directory in memory has some of its names (`kids`), or all (`complete`); they are in order of cookies then.
"""

from __future__ import annotations

import errno

from artfs.errors import DamagedError, FsError
from artfs.grid import NAME_MAX
from artfs.volume.attributes import Attributes
from artfs.volume.inodes import ROOT
from artfs.volume.node import Dentry, Node
from artfs.volume.rows import DENTRY

SPARE = 64
"""A listing's list is made anew when it holds this many names more than twice those that are left."""


class Directories(Attributes):
    def root(self) -> Node:
        return self.node(ROOT)

    def find(self, folder: Node, name: bytes) -> Dentry | None:
        """Errors: FsError ENOTDIR, ENAMETOOLONG."""
        kids = folder.kids
        if kids is None:
            raise FsError(errno.ENOTDIR)
        entry = kids.get(name)
        if entry is None:
            if len(name) > NAME_MAX:
                raise FsError(errno.ENAMETOOLONG)
            if not folder.complete:
                value = self.get(b"D" + folder.key[1:] + name)
                if value is not None:
                    entry = kids[name] = self.dentry(value)
        return entry

    def dentry(self, value: bytes) -> Dentry:
        try:
            return Dentry.unpack(value)
        except DamagedError as error:
            self.damaged(error)
            raise

    def lookup(self, folder: Node, name: bytes) -> Node | None:
        """The node of a name, or None.  Errors: FsError ENOTDIR, ENAMETOOLONG."""
        entry = self.find(folder, name)
        if entry is None:
            return None
        node = self.nodes.get(entry.ino)
        return node if node is not None else self.node(entry.ino)

    def ordered(self, folder: Node) -> list[tuple[bytes, Dentry]]:
        """Names in order of cookies, those among them that are gone by now (`folder.kids[name] is entry` tells): a
        listing goes on in the same list while names are removed and added.  Errors: FsError ENOTDIR."""
        kids = self._complete(folder)
        order = folder.order
        if order is None or len(order) > 2 * len(kids) + SPARE:
            order = folder.order = list(kids.items())
        return order

    def listing(self, folder: Node) -> list[tuple[bytes, Dentry]]:
        """Every name, in order of cookies; the list is the caller's.  Errors: FsError ENOTDIR."""
        return list(self._complete(folder).items())

    def _complete(self, folder: Node) -> dict[bytes, Dentry]:
        if folder.kids is None:
            raise FsError(errno.ENOTDIR)
        if not folder.complete:
            rows = [(key[9:], self.dentry(value)) for key, value in self.scan(b"D" + folder.key[1:])]
            rows.sort(key=_cookie)
            folder.kids = dict(rows)
            folder.complete = True
            folder.order = None
        return folder.kids

    def is_empty(self, folder: Node) -> bool:
        return not self._complete(folder)

    def _enter(self, folder: Node, name: bytes, node: Node) -> bytes:
        self.cookies += 1
        entry = Dentry(node.ino, self.cookies, node.mode >> 12)
        assert folder.kids is not None
        folder.kids[name] = entry
        if folder.order is not None:
            folder.order.append((name, entry))
        return self.row(b"D" + folder.key[1:] + name, DENTRY.pack(*entry))

    def _leave(self, folder: Node, name: bytes) -> bytes:
        assert folder.kids is not None
        folder.kids.pop(name, None)
        return self.row(b"D" + folder.key[1:] + name, None)


def _cookie(item: tuple[bytes, Dentry]) -> int:
    return item[1].cookie
