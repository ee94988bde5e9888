"""Files that stay open over more than one call.

Nodes are only looked at within one plain function; what stays open is *pinned* (`looks`), so that it is not
evicted and an inode without a name is not dropped.  A restore or the end of the namespace makes it void:
ESTALE.

What is being written is an inode without a name, in the place of which nothing shows until `finish`; a crash
before that leaves an orphan, which the next owner drops.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from anyio import to_thread

from artfs.errors import FsError
from artfs.vfs.stat import Stat, stat_of
from artfs.volume.attributes import SIZE
from artfs.volume.node import Node
from artfs.volume.reading import joined
from artfs.volume.tree import Tree
from artfs.volume.waiting import run

if TYPE_CHECKING:
    from artfs.vfs.files import Files

PART = 1 << 20
"""Bytes that are read or written at once."""
INLINE = 64 << 10
"""Reads up to this size are done on the loop, larger ones in a thread."""
CAPABILITY = b"security.capability"


class Pinned:
    """A node that stays as it is until `release`."""

    def __init__(self, tree: Tree, node: Node) -> None:
        self.tree = tree
        self._node: Node | None = node
        node.looks += 1

    def node(self) -> Node:
        """Errors: FsError ESTALE if it is void, EBADF if it was released."""
        node = self._node
        if node is None:
            raise FsError(errno.EBADF)
        if node.tree is not self.tree or self.tree.nodes.get(node.ino) is not node:
            raise FsError(errno.ESTALE)
        return node

    def release(self) -> None:
        """Once, or again without effect."""
        node, self._node = self._node, None
        if node is None:
            return
        node.looks -= 1
        if node.looks <= 0 and self.tree.nodes.get(node.ino) is node:
            self.tree.rest(node)


class Reading(Pinned):
    """A regular file, as it is from read to read; replacing it under its name does not change what is read
    here."""

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes.  Errors: FsError ESTALE, EIO."""
        found = await run(self._grab, offset, length)
        if isinstance(found, bytes):
            return found
        try:
            return await to_thread.run_sync(_gather, found)
        finally:
            for fd in {fd for fd, _, _ in found if fd >= 0}:
                os.close(fd)

    def _grab(self, offset: int, length: int) -> bytes | list[tuple[int, int, int]]:
        """Bytes, or segments with descriptors that are the caller's to close."""
        node = self.node()
        if min(length, node.size - offset) <= INLINE:
            return self.tree.read_bytes(node, offset, length)
        found = self.tree.read(node, offset, length)
        if isinstance(found, bytes):
            return found
        own: dict[int, int] = {-1: -1}
        for fd in found[::3]:
            if fd not in own:
                own[fd] = os.dup(fd)
        return [(own[fd], position, length) for fd, position, length in joined(found)]

    def data(self, offset: int) -> tuple[int, int]:
        """(start, end) of the next bytes that are no hole, both the size if there are none."""
        node = self.node()
        try:
            start = self.tree.seek(node, offset, os.SEEK_DATA)
        except FsError as error:
            if error.errno != errno.ENXIO:
                raise
            return node.size, node.size
        return start, self.tree.seek(node, start, os.SEEK_HOLE)


def _gather(segments: list[tuple[int, int, int]]) -> bytes:
    parts = []
    for fd, position, length in segments:
        part = bytes(length) if fd < 0 else os.pread(fd, length, position)
        if len(part) != length:
            raise FsError(errno.EIO)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Writing(Pinned):
    """A file that is being written from its start; see `Files.begin`."""

    def __init__(self, files: Files, folder: int, name: bytes, node: Node) -> None:
        super().__init__(files.tree, node)
        self.files = files
        self.folder = folder
        self.name = name
        self.size = 0

    async def write(self, data: bytes | memoryview) -> int:
        """The next bytes; returns how many there are by now.  Errors: FsError ENOSPC, EFBIG, EROFS, ESTALE,
        EIO."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PART):
            self.size += await run(self._write, view[at : at + PART])
        return self.size

    def _write(self, data: memoryview) -> int:
        return self.tree.write(self.node(), self.size, data)

    async def grow(self, size: int) -> None:
        """Go on at `size`; what is left out is a hole."""
        if size > self.size:
            await run(lambda: self.tree.setattr(self.node(), SIZE, size, 0, 0, 0, 0, 0, 0))
            self.size = size

    async def finish(self, place: Callable[[], tuple[Node, bytes]] | None = None) -> Stat:
        """Give the file its name, at once in place of the file that has it; released in any case.  `place`: makes the
        directory, in the same step, that the file goes to, instead of the one that it was begun in; with its name
        there.
        Errors: NotFoundError, PathError; nothing has changed then."""

        def work() -> tuple[Stat, Node]:
            if place is not None:
                folder, self.name = place()
                self.folder = folder.ino
            return self._finish()

        try:
            with self.files.naming(self.name):
                stat, folder = await run(work)
        finally:
            self.release()
        await self.files.changed([(folder, self.name)])
        return stat

    def _finish(self) -> tuple[Stat, Node]:
        tree, node = self.tree, self.node()
        folder = tree.node(self.folder)
        old = tree.lookup(folder, self.name)
        if old is not None and old.is_file:
            self._take_attributes(old, node)
        tree.replace(node, folder, self.name)
        return stat_of(self.name, node), folder

    def _take_attributes(self, old: Node, node: Node) -> None:
        """The extended attributes belong to the name, not to the bytes: they stay."""
        tree = self.tree
        kept = set(tree.listxattr(node))
        for name in tree.listxattr(old):
            if name not in kept and name != CAPABILITY:
                tree.setxattr(node, name, tree.getxattr(old, name))

    def abort(self) -> None:
        """Leave everything as it was.  Without effect after `finish`."""
        self.release()
