"""Attributes and extended attributes: the POSIX rules of chmod, chown, truncate, utimensat and of xattr(7)."""

from __future__ import annotations

import errno
import json
from stat import S_ISGID, S_ISUID, S_IXGRP

from artfs.errors import FsError
from artfs.volume.data import Data
from artfs.volume.inodes import now
from artfs.volume.node import Node

# Which attributes a setattr changes: the numbers of FUSE's FATTR_*.
MODE, UID, GID, SIZE, ATIME, MTIME = 1, 2, 4, 8, 16, 32
ATIME_NOW, MTIME_NOW, CTIME, KILL_SUIDGID = 128, 256, 1024, 2048
HANDLE = 64 | 512
"""FATTR_FH and FATTR_LOCKOWNER: through which open file; handles carry nothing."""

XATTR_CREATE, XATTR_REPLACE = 1, 2
XATTR_NAME_MAX, XATTR_SIZE_MAX = 255, 65536
XATTR_SPACES = (b"user.", b"trusted.", b"security.")
META = b"user.artfs.meta"
"""Custom metadata: one JSON object."""


class Attributes(Data):
    def setattr(
        self,
        node: Node,
        valid: int,
        size: int,
        atime: int,
        mtime: int,
        ctime: int,
        mode: int,
        uid: int,
        gid: int,
    ) -> None:
        """`valid` says which of the others count.  Errors: FsError EISDIR, EINVAL, EFBIG."""
        if valid & SIZE:
            self.check_size(node, size)
        valid &= ~HANDLE
        if not valid & ~CTIME and node.is_file:
            # chown(2) of neither owner nor group: where the kernel writes times of its own back, an mtime is with them.
            valid |= KILL_SUIDGID
        if not valid & ~(ATIME | MTIME | ATIME_NOW | MTIME_NOW | CTIME):
            if valid in (CTIME, MTIME | CTIME) and ctime == node.ctime and (valid == CTIME or mtime == node.mtime):
                return  # the kernel's own times behind a change that set the same
            if not node.nlink:
                _set_times(node, valid, atime, mtime, ctime, now())  # nobody sees them after a crash
                node.entry = None
                return
        # A ctime comes from the kernel alone, which sends it behind every unlink and rename of a file and waits for it.
        time = self.begin(frees=bool(valid & CTIME or (valid & SIZE and size < node.size)))
        entries = b""
        if valid & MODE:
            node.mode = node.mode & 0o170000 | mode & 0o7777
        if valid & UID:
            node.uid = uid
        if valid & GID:
            node.gid = gid
        if valid & (UID | GID | KILL_SUIDGID) and not valid & MODE and node.kids is None:
            entries += self.kill_privileges(node)
        if valid & SIZE:
            if size != node.size:
                entries += self.resize(node, size)
            node.mtime = time
        _set_times(node, valid, atime, mtime, ctime, time)
        self.log(entries + self.save(node))

    def kill_privileges(self, node: Node) -> bytes:
        """Clear the set-id bits (set-group-id only where the group may execute) and the file capability."""
        node.mode &= ~S_ISUID
        if node.mode & S_IXGRP:
            node.mode &= ~S_ISGID
        key = self._xattr_key(node, b"security.capability")
        if node.xattrs and self.get(key) is not None:
            node.xattrs -= 1
            return self.row(key, None)
        return b""

    # extended attributes
    def _xattr_key(self, node: Node, name: bytes) -> bytes:
        return (b"X" if node.key[0] == 73 else b"x") + node.key[1:] + name

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """Errors: FsError ENODATA, EOPNOTSUPP."""
        if not node.xattrs:
            raise FsError(errno.EOPNOTSUPP if name.startswith(b"system.") else errno.ENODATA)
        value = self.get(self._xattr_key(node, name))
        if value is None:
            raise FsError(errno.EOPNOTSUPP if name.startswith(b"system.") else errno.ENODATA)
        return value

    def listxattr(self, node: Node) -> list[bytes]:
        """Names, in order."""
        if not node.xattrs:
            return []
        prefix = self._xattr_key(node, b"")
        return [key[len(prefix) :] for key, _ in self.scan(prefix)]

    def setxattr(self, node: Node, name: bytes, value: bytes, flags: int = 0) -> None:
        """Errors: FsError EOPNOTSUPP (a space that is not kept), ERANGE, E2BIG, EEXIST, ENODATA, EINVAL."""
        if not name.startswith(XATTR_SPACES):
            raise FsError(errno.EOPNOTSUPP)
        if name in XATTR_SPACES:
            raise FsError(errno.EINVAL)
        if len(name) > XATTR_NAME_MAX:
            raise FsError(errno.ERANGE)
        if len(value) > XATTR_SIZE_MAX:
            raise FsError(errno.E2BIG)
        if name.startswith(b"user.artfs."):
            _check_own(name, value)
        key = self._xattr_key(node, name)
        old = self.get(key) if node.xattrs else None
        if flags & XATTR_CREATE and old is not None:
            raise FsError(errno.EEXIST)
        if flags & XATTR_REPLACE and old is None:
            raise FsError(errno.ENODATA)
        time = self.begin()
        if old is None:
            node.xattrs += 1
        node.ctime = time
        self.log(self.row(key, value) + self.save(node))

    def removexattr(self, node: Node, name: bytes) -> None:
        """Errors: FsError ENODATA, EOPNOTSUPP."""
        self.getxattr(node, name)
        time = self.begin(frees=True)
        node.xattrs -= 1
        node.ctime = time
        self.log(self.row(self._xattr_key(node, name), None) + self.save(node))


def _set_times(node: Node, valid: int, atime: int, mtime: int, ctime: int, time: int) -> None:
    if valid & ATIME:
        node.atime = time if valid & ATIME_NOW else atime
    if valid & MTIME:
        node.mtime = time if valid & MTIME_NOW else mtime
    node.ctime = ctime if valid & CTIME else time


def _check_own(name: bytes, value: bytes) -> None:
    if name != META:
        raise FsError(errno.EINVAL)
    try:
        document = json.loads(value)
    except ValueError:
        raise FsError(errno.EINVAL) from None
    if not isinstance(document, dict):
        raise FsError(errno.EINVAL)
