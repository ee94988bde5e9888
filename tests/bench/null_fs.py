"""The yardstick "null": what stock pyfuse3 costs when the file system behind it does nothing.

`python null_fs.py MOUNTPOINT` serves an empty tree from a dict until it is unmounted.  No extension, no
writeback cache, no journal, nothing on disk; names and attributes are cached for a day, pages as pyfuse3
does by default (dropped at open).  A node lives until it has neither a name nor a lookup of the kernel's.
It follows POSIX only as far as the workloads need.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FUSEError,
    InodeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

DAY = 86_400.0


class Node:
    """A file, directory or symbolic link; `lookups` is the kernel's count, given back by forget."""

    __slots__ = ("attributes", "children", "content", "lookups")

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        now = time.time_ns()
        a = EntryAttributes()
        a.st_ino = ino
        a.st_mode = mode
        a.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        a.st_uid, a.st_gid = uid, gid
        a.st_atime_ns = a.st_mtime_ns = a.st_ctime_ns = now
        a.st_blksize = 4096
        a.entry_timeout = a.attr_timeout = DAY
        self.attributes = a
        self.children: dict[bytes, Node] = {}
        self.content = bytearray()
        self.lookups = 0

    def resize(self, size: int) -> None:
        if size < len(self.content):
            del self.content[size:]
        else:
            self.content.extend(bytes(size - len(self.content)))
        self._measure()

    def put(self, offset: int, data: bytes) -> int:
        if offset > len(self.content):
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data
        self._measure()
        return len(data)

    def _measure(self) -> None:
        self.attributes.st_size = len(self.content)
        self.attributes.st_blocks = (len(self.content) + 511) // 512
        self.attributes.st_mtime_ns = time.time_ns()


class NullOperations(pyfuse3.Operations):
    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        root = Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, 0, 0)
        self._nodes: dict[int, Node] = {pyfuse3.ROOT_INODE: root}
        self._last = pyfuse3.ROOT_INODE

    def _child(self, parent: int, name: bytes) -> Node:
        node = self._nodes[parent].children.get(name)
        if node is None:
            raise FUSEError(errno.ENOENT)
        return node

    def _make(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> Node:
        siblings = self._nodes[parent].children
        if name in siblings:
            raise FUSEError(errno.EEXIST)
        self._last += 1
        node = Node(self._last, mode, ctx.uid, ctx.gid)
        self._nodes[self._last] = siblings[name] = node
        node.lookups = 1
        return node

    def _unname(self, parent: int, name: bytes) -> None:
        node = self._nodes[parent].children.pop(name)
        node.attributes.st_nlink -= 2 if stat.S_ISDIR(node.attributes.st_mode) else 1
        self._collect(node)

    def _collect(self, node: Node) -> None:
        if node.lookups <= 0 and node.attributes.st_nlink <= 0:
            self._nodes.pop(node.attributes.st_ino, None)

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        if name in (b".", b".."):
            raise FUSEError(errno.ENOENT)
        node = self._child(parent_inode, name)
        node.lookups += 1
        return node.attributes

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for ino, count in inode_list:
            node = self._nodes.get(ino)
            if node is not None:
                node.lookups -= count
                self._collect(node)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._nodes[inode].attributes

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._nodes[inode]
        a = node.attributes
        if fields.update_size:
            node.resize(attr.st_size)
        if fields.update_mode:
            a.st_mode = attr.st_mode
        if fields.update_uid:
            a.st_uid = attr.st_uid
        if fields.update_gid:
            a.st_gid = attr.st_gid
        if fields.update_atime:
            a.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            a.st_mtime_ns = attr.st_mtime_ns
        return a

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: pyfuse3.ModeT, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        a = self._make(parent_inode, name, mode, ctx).attributes
        return FileInfo(fh=a.st_ino), a

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: pyfuse3.ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._make(parent_inode, name, mode, ctx).attributes

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.put(0, target)
        return node.attributes

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return bytes(self._nodes[inode].content)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._nodes[inode]
        siblings = self._nodes[new_parent_inode].children
        if new_name in siblings:
            raise FUSEError(errno.EEXIST)
        siblings[new_name] = node
        node.attributes.st_nlink += 1
        node.lookups += 1
        return node.attributes

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._child(parent_inode, name)
        self._unname(parent_inode, name)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        if self._child(parent_inode, name).children:
            raise FUSEError(errno.ENOTEMPTY)
        self._unname(parent_inode, name)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        node = self._child(parent_inode_old, name_old)
        if name_new in self._nodes[parent_inode_new].children:
            self._unname(parent_inode_new, name_new)
        del self._nodes[parent_inode_old].children[name_old]
        self._nodes[parent_inode_new].children[name_new] = node

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_TRUNC:
            self._nodes[inode].resize(0)
        return FileInfo(fh=inode)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return bytes(memoryview(self._nodes[fh].content)[off : off + size])

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return self._nodes[fh].put(off, buf)

    async def flush(self, fh: FileHandleT) -> None:
        return None

    async def release(self, fh: FileHandleT) -> None:
        return None

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        return None

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        return None

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return inode

    async def releasedir(self, fh: FileHandleT) -> None:
        return None

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        # Cookies are inode numbers: a name that goes away meanwhile moves no other entry.
        children = self._nodes[fh].children
        rest = [(n.attributes.st_ino, name) for name, n in children.items() if n.attributes.st_ino > start_id]
        for ino, name in sorted(rest):
            node = children[name]
            if not pyfuse3.readdir_reply(token, name, node.attributes, ino):
                return
            node.lookups += 1

    async def getxattr(self, inode: InodeT, name: FileNameT, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENODATA)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        s = StatvfsData()
        s.f_bsize = s.f_frsize = 4096
        s.f_blocks = s.f_bfree = s.f_bavail = 1 << 28
        s.f_files = s.f_ffree = s.f_favail = 1 << 30
        s.f_namemax = 255
        return s


def main(mountpoint: str) -> None:
    pyfuse3.init(NullOperations(), mountpoint, {"fsname=null", "default_permissions", "allow_other"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(sys.argv[1])
