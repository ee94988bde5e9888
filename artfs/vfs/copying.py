"""Copies of files and trees, within a namespace by sharing their bytes, else part by part.

Modes (without set-id bits), times and `user.` attributes come along, holes stay holes; owners are those of
what the API makes; names of one file become files of their own.  A directory is built under a name of its own
beside its target and then renamed, so that it shows up whole; on failure that is removed again.
"""

from __future__ import annotations

import errno
import os
from secrets import token_hex
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG

import anyio
from anyio.lowlevel import checkpoint

from artfs.errors import ArtfsError, FsError
from artfs.vfs.files import Files
from artfs.vfs.open import PART, Reading, Writing
from artfs.vfs.walk import found, walk
from artfs.volume.attributes import ATIME, MODE, MTIME
from artfs.volume.inodes import ROOT
from artfs.volume.node import Dentry, Node
from artfs.volume.tree import NOREPLACE, Tree
from artfs.volume.waiting import run

SHARE = 64 << 20
"""Bytes that one step shares."""
STAGING = b".artfs-copy-"


async def copy(origin: Files, source: bytes, files: Files, target: bytes) -> None:
    """`target`, or a name in it if it is a directory, becomes a copy of what `source` leads to.  A file that
    is there is replaced at once.  Errors: NotFoundError, ExistsError (a directory onto a name that is taken),
    PathError EISDIR (a file onto a directory), EINVAL (onto itself, into itself, a special file), and as
    `Files`."""
    await Copying(origin, files).copy(source, target)


class Copying:
    """From `origin` into `files`; they may be the same namespace.  `tree` is what is read: a checkpoint's,
    perhaps."""

    def __init__(self, origin: Files, files: Files) -> None:
        self.origin = origin
        self.files = files
        self.tree: Tree = origin.tree

    async def copy(self, source: bytes, target: bytes) -> None:
        with self.origin.naming(source):
            self.tree, inside = await self.origin.version(source)
            await run(found, self.tree, inside)
        with self.files.naming(target):
            self.files.writable(target)
            ino, is_folder, folder, name = await run(self._plan, inside, target)
            if is_folder:
                await self._copy_folder(ino, folder, name)
            else:
                await self._copy_file(ino, folder, name)

    def _plan(self, source: bytes, target: bytes) -> tuple[int, bool, int, bytes]:
        """(inode to copy, whether it is a directory, directory to copy into, name there)."""
        tree = self.files.tree
        here, there = walk(self.tree, source), walk(tree, target)
        node = here.node
        if node is None:
            raise FsError(errno.ENOENT)
        is_folder = node.kids is not None
        if not is_folder and not node.is_file:
            raise FsError(errno.EINVAL)
        folder, name, old = there.folder, there.name, there.node
        if old is not None and old.kids is not None:
            folder = old
            name = here.name or os.fsencode(self.origin.namespace.entry)
            old = tree.lookup(folder, name)
        if old is node or (old is not None and (is_folder or old.kids is not None)):
            raise FsError(errno.EINVAL if old is node else errno.EEXIST if is_folder else errno.EISDIR)
        if is_folder and self.tree is tree:
            self._not_below(node, folder)
        return node.ino, is_folder, folder.ino, name

    def _not_below(self, node: Node, folder: Node) -> None:
        while folder is not node:
            if folder.ino == ROOT:
                return
            folder = self.files.tree.node(folder.parent)
        raise FsError(errno.EINVAL)

    # one file
    async def _copy_file(self, ino: int, folder: int, name: bytes) -> None:
        reading, writing = await run(self._begin, ino, folder, name)
        try:
            if self.tree is self.files.tree:
                await self._share(reading, writing)
            else:
                await self._stream(reading, writing)
            await run(lambda: self._dress(reading.node(), writing.node()))
            await writing.finish()
        finally:
            reading.release()
            writing.abort()

    def _begin(self, ino: int, folder: int, name: bytes) -> tuple[Reading, Writing]:
        node, parent = self.tree.node(ino), self.files.tree.node(folder)
        writing = self.files.begin_at(parent, name, 0o666, self.files.tree.lookup(parent, name))
        return Reading(self.tree, node), writing

    async def _share(self, reading: Reading, writing: Writing) -> None:
        def step(at: int) -> int:
            return self.tree.copy_range(reading.node(), at, writing.node(), at, SHARE)

        at = 0
        while count := await run(step, at):
            at += count
            await checkpoint()

    async def _stream(self, reading: Reading, writing: Writing) -> None:
        at = 0
        while True:
            start, end = await run(reading.data, at)
            await writing.grow(start)
            at = start
            if start == end:
                return
            while at < end:
                part = await reading.read(at, min(PART, end - at))
                if not part:  # it has just been cut short
                    return
                at = await writing.write(part)

    def _dress(self, source: Node, target: Node) -> None:
        """Mode, times and user attributes."""
        tree = self.files.tree
        for name in self.tree.listxattr(source):
            if name.startswith(b"user."):
                tree.setxattr(target, name, self.tree.getxattr(source, name))
        tree.setattr(target, MODE | ATIME | MTIME, 0, source.atime, source.mtime, 0, source.mode & 0o777, 0, 0)

    # a directory
    async def _copy_folder(self, ino: int, folder: int, name: bytes) -> None:
        staging = STAGING + token_hex(8).encode()
        top = await self._make_folder(folder, staging)
        try:
            await self._fill(ino, top)

            def work() -> list[tuple[Node, bytes]]:
                parent = self.files.tree.node(folder)
                self.files.tree.rename(parent, staging, parent, name, NOREPLACE)
                return [(parent, staging), (parent, name)]

            names = await run(work)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._discard(folder, staging, top)
            raise
        await self.files.changed(names)

    async def _discard(self, folder: int, staging: bytes, top: int) -> None:
        try:
            await self.files.remove_all(folder, staging, top)
        except (ArtfsError, OSError):  # what made the copy fail is what the caller must hear
            return

    async def _make_folder(self, folder: int, name: bytes) -> int:
        def work() -> int:
            return self.files.mkdir_at(self.files.tree.node(folder), name, 0o700).ino

        return await run(work)

    async def _fill(self, top: int, target: int) -> None:
        todo = [(top, target)]
        done = []
        while todo:
            pair = todo.pop()
            done.append(pair)
            for name, entry in await run(self._names, pair[0]):
                await checkpoint()
                if not await run(self._exists, entry.ino):  # removed since the names were listed
                    continue
                if entry.type == S_IFREG >> 12:
                    await self._copy_file(entry.ino, pair[1], name)
                elif entry.type == S_IFDIR >> 12:
                    todo.append((entry.ino, await self._make_folder(pair[1], name)))
                else:
                    await run(self._copy_special, entry.ino, pair[1], name)
        for source, made in reversed(done):
            await run(self._dress_folder, source, made)

    def _names(self, ino: int) -> list[tuple[bytes, Dentry]]:
        return self.tree.listing(self.tree.node(ino)) if self._exists(ino) else []

    def _exists(self, ino: int) -> bool:
        try:
            self.tree.node(ino)
        except FsError as error:
            if error.errno != errno.ESTALE:
                raise
            return False
        return True

    def _dress_folder(self, source: int, target: int) -> None:
        if self._exists(source):
            self._dress(self.tree.node(source), self.files.tree.node(target))

    def _copy_special(self, ino: int, folder: int, name: bytes) -> None:
        node, tree, namespace = self.tree.node(ino), self.files.tree, self.files.namespace
        parent = tree.node(folder)
        if S_IFMT(node.mode) == S_IFLNK:
            tree.symlink(parent, name, node.target, namespace.uid, namespace.gid)
        else:
            tree.make(parent, name, node.mode & ~0o7000, namespace.uid, namespace.gid, node.rdev)
