"""What the path API says about a file, and how it fails."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK

from artfs.errors import ArtfsError, ExistsError, FsError, NotFoundError, PathError
from artfs.volume.node import Node

TYPES = {
    S_IFREG: "file",
    S_IFDIR: "directory",
    S_IFLNK: "symlink",
    S_IFIFO: "fifo",
    S_IFSOCK: "socket",
    S_IFCHR: "char",
    S_IFBLK: "block",
}


def path_error(error: FsError, path: str) -> ArtfsError:
    """The error of the rules as callers see it: ENOENT and EEXIST by their own classes."""
    if isinstance(error, PathError):
        return error
    if error.errno == errno.ENOENT:
        return NotFoundError(f"{path}: no such file or directory")
    if error.errno == errno.EEXIST:
        return ExistsError(f"{path} exists already")
    return PathError(error.errno, path)


@dataclass(frozen=True, slots=True)
class Stat:
    """`mode` with the type's bits; `ino` as a mount shows it; times in nanoseconds since 1970; `allocated` in
    bytes; `target` of a symlink, else empty."""

    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    allocated: int
    atime: int
    mtime: int
    ctime: int
    target: bytes

    @property
    def type(self) -> str:
        """file, directory, symlink, fifo, socket, char or block."""
        return TYPES[S_IFMT(self.mode)]


def stat_of(name: bytes, node: Node) -> Stat:
    return Stat(
        name,
        node.num,
        node.mode,
        node.uid,
        node.gid,
        node.rdev,
        node.nlink,
        node.size,
        node.allocated,
        node.atime,
        node.mtime,
        node.ctime,
        node.target,
    )
