"""Paths within one tree: from a path to what it names.

Symlinks are followed within the tree and never lead out of it: an absolute target begins at the tree's root,
and `..` of the root is the root.  A function of a tree, as those of `artfs.volume.tree`: plain, and it may
raise `MustWait`.
"""

from __future__ import annotations

import errno
from stat import S_IFLNK
from typing import NamedTuple

from artfs.errors import FsError
from artfs.volume.inodes import ROOT
from artfs.volume.node import Node
from artfs.volume.tree import PATH_MAX, Tree

LINKS_MAX = 40
"""Symlinks that one path may lead through, as in Linux."""


class Spot(NamedTuple):
    """Where a path ends: a name in a directory, and its node, None if there is none.  `name` is empty where
    the path ends in a directory by another way than by its name: the root, or `..`."""

    folder: Node
    name: bytes
    node: Node | None


def parts_of(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def walk(tree: Tree, path: bytes, follow: bool = True) -> Spot:
    """`follow`: also a symlink at the end.  Only the last name may be missing, that of a symlink's target
    included.
    Errors: FsError ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG; MustWait."""
    if len(path) >= PATH_MAX:
        raise FsError(errno.ENAMETOOLONG)
    if b"\0" in path:
        raise FsError(errno.EINVAL)
    todo = parts_of(path)[::-1]
    links = 0
    current = tree.root()
    while todo:
        name = todo.pop()
        if current.kids is None:
            raise FsError(errno.ENOTDIR)
        if name == b"..":
            current = current if current.ino == ROOT else tree.node(current.parent)
            continue
        child = tree.lookup(current, name)
        if child is None:
            if todo:
                raise FsError(errno.ENOENT)
            return Spot(current, name, None)
        if child.mode & 0o170000 == S_IFLNK and (todo or follow):
            links += 1
            if links > LINKS_MAX:
                raise FsError(errno.ELOOP)
            if child.target.startswith(b"/"):
                current = tree.root()
            todo += parts_of(child.target)[::-1]
        elif todo:
            current = child
        else:
            return Spot(current, name, child)
    return Spot(tree.node(current.parent), b"", current)


def found(tree: Tree, path: bytes, follow: bool = True) -> Node:
    """The node that a path names.  Errors: as `walk`; FsError ENOENT."""
    node = walk(tree, path, follow).node
    if node is None:
        raise FsError(errno.ENOENT)
    return node
