"""What is below a path: bytes and inodes, counted as a namespace's usage is."""

from __future__ import annotations

import errno

from anyio.lowlevel import checkpoint

from artfs.errors import FsError
from artfs.vfs.files import CHECKPOINTS, SLICE, Files
from artfs.vfs.walk import found, parts_of
from artfs.volume.node import Dentry
from artfs.volume.tree import Tree
from artfs.volume.waiting import run


async def usage(files: Files, path: bytes) -> tuple[int, int]:
    """(bytes, inodes) of a file, or of a directory with all that is below; an inode with several names counts once, a
    symlink itself.  Names that come or go meanwhile are taken as they are.  Errors: as `Files`."""
    with files.naming(path):
        if parts_of(path) == [CHECKPOINTS]:
            raise FsError(errno.EISDIR)
        tree, inside = await files.version(path)
        top = await run(found, tree, inside, False)
        seen = {top.ino}
        size = top.allocated
        todo = [top.ino] if top.kids is not None else []
        while todo:
            listed = await run(_listed, tree, todo.pop())
            for at in range(0, len(listed), SLICE):
                for ino, allocated, is_folder in await run(_looked, tree, listed[at : at + SLICE]):
                    if ino not in seen:
                        seen.add(ino)
                        size += allocated
                        todo += [ino] if is_folder else []
                files.trim(tree)
                await checkpoint()
    return size, len(seen)


def _listed(tree: Tree, ino: int) -> list[tuple[bytes, Dentry]]:
    try:
        return tree.listing(tree.node(ino))
    except FsError as error:
        if error.errno != errno.ESTALE:
            raise
        return []


def _looked(tree: Tree, entries: list[tuple[bytes, Dentry]]) -> list[tuple[int, int, bool]]:
    """(inode, bytes, whether it is a directory) of each that is still there."""
    looked = []
    for _, entry in entries:
        try:
            node = tree.node(entry.ino)
        except FsError as error:
            if error.errno != errno.ESTALE:
                raise
            continue
        looked.append((node.ino, node.allocated, node.kids is not None))
    return looked
