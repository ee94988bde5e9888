"""Replies as the kernel reads them (linux/fuse.h), little-endian."""

from __future__ import annotations

import os
from struct import Struct

from artfs.volume.node import Node
from artfs.volume.rows import NS

ENTRY = Struct("<QQQQIIQQQqqq10I")
"""fuse_entry_out: nodeid, generation, entry and attr valid (s), the same (ns), then fuse_attr."""
_pack_entry = ENTRY.pack
ENTRY_HEAD = 40
ATTR_HEAD = Struct("<QII")
OPEN = Struct("<QII")
DIRENT = Struct("<QQII")
STATFS = Struct("<5Q4I6I")
FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_CACHE_DIR = 1, 2, 8
PADDING = [bytes(n) for n in range(8)]
BLKSIZE = 4096
FOLDER_SIZE = 4096


def entry(node: Node, valid: int) -> bytes:
    """fuse_entry_out of a node; names and attributes may be kept for `valid` seconds."""
    c, cn = divmod(node.ctime, NS)
    m, mn = (c, cn) if node.mtime == node.ctime else divmod(node.mtime, NS)
    a, an = (c, cn) if node.atime == node.ctime else divmod(node.atime, NS)
    num = node.num
    size = node.size
    allocated = node.allocated
    if node.kids is not None:
        size = allocated = FOLDER_SIZE
    # fmt: off
    return _pack_entry(
        num, 0, valid, valid, 0, 0,
        num, size, (allocated + 511) >> 9, a, m, c, an, mn, cn,
        node.mode, node.nlink, node.uid, node.gid, node.rdev, BLKSIZE, 0,
    )
    # fmt: on


def negative(valid: int) -> bytes:
    """fuse_entry_out of a name that does not exist."""
    return ENTRY.pack(0, 0, valid, 0, 0, 0, *([0] * 16))


def opened(flags: int) -> bytes:
    """fuse_open_out; handles carry nothing."""
    return OPEN.pack(0, flags, 0)


def dirent(num: int, cookie: int, name: bytes, type: int) -> bytes:
    """fuse_dirent, padded."""
    length = len(name)
    return DIRENT.pack(num, cookie, length, type) + name + PADDING[-length & 7]


def statfs(root: str, inodes: int) -> bytes:
    """fuse_statfs_out: the space of the file system that holds `root`."""
    s = os.statvfs(root)
    free = 1 << 32
    return STATFS.pack(
        s.f_blocks,
        s.f_bfree,
        s.f_bavail,
        inodes + free,
        free,
        s.f_frsize,
        255,
        s.f_frsize,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
