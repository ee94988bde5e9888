"""One plain function per FUSE operation: decoded arguments in, the encoded reply out.

A function returns bytes (the reply's body), an int (a count, an offset, or nothing to say: 0), a tuple (segments of a
READ) or a list (descriptors that an fsync must sync).  It raises `FsError` for an errno and `MustWait` when it cannot
answer at once; whoever runs it (native dispatch or pyfuse3's handlers) waits and calls it again.  So there is one
driver and two ways in.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

from artfs.errors import FsError
from artfs.fuse import wire
from artfs.fuse.control import IOCTLS, XATTR_PREFIX, Control
from artfs.fuse.listings import UNKNOWN, Listings
from artfs.fuse.virtual import VirtualTree, file, later
from artfs.volume.attributes import KILL_SUIDGID, SIZE
from artfs.volume.dead import DEAD
from artfs.volume.inodes import ROOT
from artfs.volume.node import Node
from artfs.volume.tree import Tree

Caller = tuple[int, int, int]
"""(uid, gid, pid) of a request."""
Reply = bytes | int | tuple[int, ...] | list[int]
CHECKPOINTS = b".checkpoints"
META_FILES = (b"_meta.json", b".workspace")
FS_IOC_GETFLAGS = 0x80086601
S_IFMT = 0o170000
CAPABILITY = b"security.capability"
NO_CAPABILITY = b"\0\0\0\2".ljust(20, b"\0")
"""An empty set of capabilities (linux/capability.h, revision 2), that a checkpoint's files claim to have: where opening
needs no request and the kernel caches writes, a write(2) to them fails only because these cannot be removed."""


class Requests(Listings):
    """`cached`: the kernel caches writes, so that what it holds must be flushed before holes are looked for.  `remote`:
    what fsync and close wait for, if that is more than the local disk.  `probe`: a name that is a file everywhere, for
    as long as it is set."""

    def __init__(
        self,
        root: Node,
        control: Control,
        *,
        valid: int,
        cached: bool,
        space: Callable[[], str],
        descriptors: Callable[[], list[int]],
        flush: Callable[[int], Any],
        sync: Callable[[], Awaitable[None]],
        stale_blocks: Callable[[int], Any],
        refused: Callable[[int], Any],
        remote: Callable[[Tree], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(root, valid)
        self.control = control
        self.cached = cached
        self.space = space
        self.descriptors = descriptors
        self.flush = flush
        self.sync = sync
        self.stale_blocks = stale_blocks
        self.refused = refused
        self.remote = remote
        self.probe: bytes | None = None
        self.negative = wire.negative(valid)
        self.attr_head = wire.ATTR_HEAD.pack(valid, 0, 0)
        self.no_attr_head = wire.ATTR_HEAD.pack(0, 0, 0)

    # names
    def lookup(self, ino: int, name: bytes) -> bytes:
        folder = self.held[ino]
        node = folder.tree.lookup(folder, name)
        if node is None:
            return self._missing(folder, name)
        node.looks += 1
        self.held[node.num] = node
        return node.entry or self.encode(node)

    def _missing(self, folder: Node, name: bytes) -> bytes:
        if name == self.probe:
            return self.enter(file(VirtualTree(), self.control.numbers.fresh(), b""))
        if not isinstance(folder.tree, Tree):
            return UNKNOWN
        if folder.ino == ROOT and (name == CHECKPOINTS or name in META_FILES):
            node = self.control.special(folder, name)
            return self.enter(node) if node is not None else UNKNOWN
        return self.negative

    def getattr(self, ino: int) -> bytes:
        node = self.held[ino]
        if node.tree is DEAD:
            raise FsError(errno.ESTALE)
        reply = node.entry or self.encode(node)
        return (self.attr_head if node.tree.lasting else self.no_attr_head) + reply[wire.ENTRY_HEAD :]

    def setattr(
        self,
        ino: int,
        valid: int,
        size: int,
        atime: int,
        mtime: int,
        ctime: int,
        mode: int,
        uid: int,
        gid: int,
    ) -> bytes:
        node = self.held[ino]
        node.tree.setattr(node, valid, size, atime, mtime, ctime, mode, uid, gid)
        return self.attr_head + self.encode(node)[wire.ENTRY_HEAD :]

    def readlink(self, ino: int) -> bytes:
        node = self.node(ino)
        if node.mode & S_IFMT != 0o120000:
            raise FsError(errno.EINVAL)
        return node.target

    def symlink(self, ino: int, name: bytes, target: bytes, uid: int, gid: int) -> bytes:
        folder = self.node(ino)
        return self.enter(folder.tree.symlink(folder, name, target, uid, gid))

    def mknod(self, ino: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> bytes:
        folder = self.node(ino)
        return self.enter(folder.tree.make(folder, name, mode, uid, gid, rdev))

    def mkdir(self, ino: int, name: bytes, mode: int, uid: int, gid: int) -> bytes:
        folder = self.held[ino]
        return self.enter(folder.tree.mkdir(folder, name, mode, uid, gid))

    def create(self, ino: int, name: bytes, mode: int, flags: int, uid: int, gid: int) -> bytes:
        folder = self.held[ino]
        node = folder.tree.lookup(folder, name) if not flags & os.O_EXCL else None
        if node is None:
            node = folder.tree.create(folder, name, mode, uid, gid)
        elif node.kids is not None:
            raise FsError(errno.EISDIR)
        elif flags & os.O_TRUNC:
            node.tree.setattr(node, SIZE, 0, 0, 0, 0, 0, 0, 0)
        return self.enter(node) + self.opened(node)

    def tmpfile(self, ino: int, name: bytes, mode: int, flags: int, uid: int, gid: int) -> bytes:
        folder = self.node(ino)
        node = folder.tree.make_unnamed(folder, mode, uid, gid)
        return self.enter(node) + self.opened(node)

    def unlink(self, ino: int, name: bytes) -> int:
        folder = self.held[ino]
        folder.tree.unlink(folder, name)
        return 0

    def rmdir(self, ino: int, name: bytes) -> int:
        folder = self.held[ino]
        folder.tree.rmdir(folder, name)
        return 0

    def rename(self, ino: int, name: bytes, new_ino: int, new: bytes, flags: int) -> int:
        folder, target = self.held[ino], self.held[new_ino]
        if folder.tree is not target.tree:
            raise FsError(errno.EXDEV)
        folder.tree.rename(folder, name, target, new, flags)
        return 0

    def link(self, ino: int, name: bytes, old: int) -> bytes:
        folder, node = self.node(ino), self.node(old)
        if folder.tree is not node.tree:
            raise FsError(errno.EXDEV)
        folder.tree.link(node, folder, name)
        return self.enter(node)

    # files
    def opened(self, node: Node) -> bytes:
        return wire.opened(wire.FOPEN_KEEP_CACHE if isinstance(node.tree, Tree) else wire.FOPEN_DIRECT_IO)

    def open(self, caller: Caller, ino: int, flags: int) -> bytes:
        node = self.node(ino)
        if node.tree is DEAD:
            raise FsError(errno.ESTALE)
        if flags & os.O_ACCMODE and node.tree.read_only:
            raise FsError(errno.EROFS)
        if flags & os.O_TRUNC:
            node.tree.setattr(node, SIZE | (KILL_SUIDGID if caller[0] else 0), 0, 0, 0, 0, 0, 0, 0)
        return self.opened(node)

    def opendir(self, ino: int, flags: int) -> bytes:
        node = self.node(ino)
        if node.tree is DEAD:
            raise FsError(errno.ESTALE)
        return wire.opened(0)

    def nothing(self, ino: int) -> int:
        """RELEASE, RELEASEDIR: nothing hangs on a handle."""
        return 0

    def close_file(self, ino: int) -> int:
        """FLUSH: somebody closes a descriptor."""
        self._reach_remote(self.node(ino))
        return 0

    def _reach_remote(self, node: Node) -> None:
        """Where that is what durability means: wait until the provider has everything."""
        tree = node.tree
        if self.remote is not None and isinstance(tree, Tree) and tree.backed and not tree.read_only:
            remote = self.remote

            async def work() -> int:
                await self.sync()
                await remote(tree)
                return 0

            later(work)

    def read(self, ino: int, offset: int, size: int) -> bytes | tuple[int, ...]:
        node = self.held[ino]
        return node.tree.read(node, offset, size)

    def write(self, ino: int, offset: int, data: bytes | memoryview, flags: int) -> int:
        node = self.held[ino]
        allocated = node.allocated
        try:
            length = node.tree.write(node, offset, data, flags)
        except FsError as error:
            if error.errno == errno.EROFS:  # the kernel shows the bytes that it wrote to its cache, unless told
                self.refused(ino)
            raise
        if node.allocated != allocated:
            self.grown.add(ino)
        return length

    def fsync(self, ino: int, datasync: int) -> list[int]:
        self.tell_blocks(ino)
        if self.remote is not None:
            self._reach_remote(self.node(ino))
        return self.descriptors()

    def tell_blocks(self, ino: int) -> None:
        """Make the kernel ask for st_blocks again, if it has to."""
        if ino in self.grown:
            self.grown.discard(ino)
            self.stale_blocks(ino)

    def statfs(self, ino: int) -> bytes:
        node = self.node(ino)
        tree = node.tree
        return wire.statfs(self.space(), tree.used_inodes if isinstance(tree, Tree) else len(self.held))

    def lseek(self, ino: int, offset: int, whence: int) -> int:
        node = self.node(ino)
        if not self.cached or not isinstance(node.tree, Tree) or node.tree.read_only:
            return node.tree.seek(node, offset, whence)

        async def work() -> int:
            await self.flush(ino)
            return node.tree.seek(node, offset, whence)

        later(work)

    def fallocate(self, caller: Caller, ino: int, mode: int, offset: int, length: int) -> int:
        node = self.node(ino)
        space = os.statvfs(self.space())
        node.tree.fallocate(node, mode, offset, length, space.f_bavail * space.f_frsize, kill=caller[0] != 0)
        return 0

    def copy_file_range(
        self, caller: Caller, ino: int, start: int, out: int, offset: int, length: int, flags: int
    ) -> int:
        source, target = self.node(ino), self.node(out)
        if source.tree is not target.tree:
            raise FsError(errno.EXDEV)
        return source.tree.copy_range(source, start, target, offset, length, kill=caller[0] != 0)

    def ioctl(self, caller: Caller, ino: int, command: int, flags: int, data: bytes, out_size: int) -> bytes | int:
        if command in IOCTLS:
            node = self.node(ino)
            self._may_control(caller, node)
            later(lambda: self.control.ioctl(node, command, data))
        if command == FS_IOC_GETFLAGS:
            return bytes(out_size)
        raise FsError(errno.ENOTTY)

    # attributes
    def getxattr(self, ino: int, name: bytes) -> bytes:
        node = self.held[ino]
        if name.startswith(XATTR_PREFIX):
            value = self.control.getxattr(node, name)
            if value is not None:
                return value
        try:
            return node.tree.getxattr(node, name)
        except FsError:
            if name == CAPABILITY and node.tree.read_only and node.is_file and node.tree is not DEAD:
                return NO_CAPABILITY
            raise

    def listxattr(self, ino: int) -> bytes:
        node = self.node(ino)
        return b"".join(name + b"\0" for name in node.tree.listxattr(node))

    def _may_control(self, caller: Caller, node: Node) -> None:
        """Where nobody else decides (a checked mount's guard does), a namespace's versions are its owner's and root's:
        the kernel knows of the permissions of the inode at hand alone."""
        if not self.cached or not caller[0] or not isinstance(node.tree, Tree):
            return
        if caller[0] != node.tree.root().uid:
            raise FsError(errno.EACCES)

    def setxattr(self, caller: Caller, ino: int, name: bytes, value: bytes, flags: int) -> int:
        node = self.node(ino)
        if name.startswith(XATTR_PREFIX):
            work = self.control.setxattr(node, name, value)
            if work is not None:
                self._may_control(caller, node)
                later(work, node)
        node.tree.setxattr(node, name, value, flags)
        return 0

    def removexattr(self, ino: int, name: bytes) -> int:
        node = self.node(ino)
        if name == CAPABILITY and node.tree.read_only and node.tree is not DEAD:
            raise FsError(errno.EROFS)
        node.tree.removexattr(node, name)
        return 0
