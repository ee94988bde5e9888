"""Directories and files that are not in any namespace: they answer as a tree does, and refuse every change."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from stat import S_IFDIR, S_IFREG
from typing import Any, NoReturn

from xxhash import xxh32_intdigest

from artfs.errors import FsError
from artfs.volume.inodes import now
from artfs.volume.node import Dentry, Node
from artfs.volume.waiting import MustWait

Entries = dict[bytes, Node]
LOCKED: ContextVar[tuple[int, ...]] = ContextVar("LOCKED", default=())
"""Numbers of the inodes whose lock the kernel holds until the request that runs is answered: names in them can be
expired only after that."""


class Numbers:
    """Inode numbers of virtual nodes: serial 0.  One for a path is the same in every mount, unless two paths clash."""

    def __init__(self) -> None:
        self._taken: dict[int, str] = {}
        self._next = 0

    def of(self, path: str) -> int:
        number = xxh32_intdigest(path.encode()) | 1 << 31
        while self._taken.setdefault(number, path) != path:
            number = number + 1 & 0xFFFFFFFF | 1 << 31
        return number

    def fresh(self) -> int:
        """A number for a file whose content is fixed when it is looked up."""
        self._next = self._next % 0x7FFFFFF0 + 1
        return self._next + 1


class VirtualTree:
    """Answers like `artfs.volume.tree.Tree`; subclasses give directories their entries."""

    read_only = True
    number = 0
    lasting = False
    """The kernel may keep names and attributes: whoever changes them tells it."""

    def lookup(self, folder: Node, name: bytes) -> Node | None:
        raise FsError(errno.ENOTDIR)

    def listing(self, folder: Node) -> list[tuple[bytes, Dentry]]:
        raise FsError(errno.ENOTDIR)

    def ordered(self, folder: Node) -> list[tuple[bytes, Dentry]]:
        return self.listing(folder)

    def node(self, ino: int) -> Node:
        raise FsError(errno.ESTALE)

    def rest(self, node: Node) -> None:
        """Nothing is kept for the kernel."""

    def read(self, node: Node, offset: int, size: int) -> bytes:
        if node.kids is not None:
            raise FsError(errno.EISDIR)
        return node.target[offset : offset + size]

    def getxattr(self, node: Node, name: bytes) -> bytes:
        raise FsError(errno.ENODATA)

    def listxattr(self, node: Node) -> list[bytes]:
        return []

    def seek(self, node: Node, offset: int, whence: int) -> int:
        raise FsError(errno.EINVAL)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise FsError(errno.EPERM)

    def mkdir(self, folder: Node, name: bytes, mode: int, uid: int, gid: int) -> Node:
        raise FsError(errno.EPERM)

    def rmdir(self, folder: Node, name: bytes) -> Node:
        raise FsError(errno.EPERM)

    def rename(self, folder: Node, name: bytes, target: Node, new: bytes, flags: int = 0) -> None:
        raise FsError(errno.EPERM)

    setattr = setxattr = removexattr = write = fallocate = copy_range = _refuse
    make = create = symlink = link = unlink = make_unnamed = _refuse


def folder(tree: VirtualTree, number: int, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Node:
    """A virtual directory."""
    node = Node(tree, number, number, S_IFDIR | mode, uid, gid, 0, now())  # type: ignore[arg-type]
    node.nlink = 2
    node.parent = number
    return node


def file(tree: VirtualTree, number: int, content: bytes, mode: int = 0o444) -> Node:
    """A virtual file with that content."""
    node = Node(tree, number, number, S_IFREG | mode, 0, 0, 0, now())  # type: ignore[arg-type]
    node.target = content
    node.size = node.allocated = len(content)
    return node


def later(work: Callable[[], Awaitable[Any]], *locked: Node) -> NoReturn:
    """The operation is `work`, which is awaited; see `LOCKED`."""
    numbers = tuple(node.num for node in locked)

    async def run() -> Any:
        token = LOCKED.set(numbers)
        try:
            return await work()
        finally:
            LOCKED.reset(token)

    raise MustWait(run, final=True)
