"""Files of one namespace by path, on any loop that anyio knows.

Paths are bytes, from the namespace's root; see `artfs.vfs.walk` for what they may lead through.
`.checkpoints/NAME` is what a checkpoint saw, read-only.  Nothing here asks who calls.

Each step is one plain function of the tree: others see it whole or not at all.  What consists of many steps
(`remove` with `recursive`, `copy` of a directory) is not one moment, but a copy shows up only when it is
complete.

What a call makes belongs to the namespace's uid and gid, less its umask.  Whoever caches names is told
(`changed`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from contextlib import contextmanager
from stat import S_IFDIR
from typing import ParamSpec, TypeVar

from anyio.lowlevel import checkpoint

from artfs.errors import FsError
from artfs.types import NamespaceType
from artfs.vfs.open import Reading, Writing
from artfs.vfs.stat import Stat, path_error, stat_of
from artfs.vfs.walk import found, parts_of, walk
from artfs.volume.catalogue import Namespace
from artfs.volume.inodes import ROOT
from artfs.volume.node import Dentry, Node
from artfs.volume.tree import BLOB_DATA, NOREPLACE, Tree
from artfs.volume.volume import Volume
from artfs.volume.waiting import run

CHECKPOINTS = b".checkpoints"
LISTED = b".workspace"
"""The one of `VIRTUAL` that listings show, in a WORKSPACE."""
META_FILE = b"_meta.json"
VIRTUAL = {NamespaceType.WORKSPACE: frozenset([LISTED, META_FILE]), NamespaceType.BLOB: frozenset([META_FILE])}
"""Names in the root of a namespace that stand for its description, as JSON."""
SLICE = 256
"""Names that one step of a long call handles."""
Changed = Callable[[list[tuple[Node, bytes]]], Awaitable[None]]
P = ParamSpec("P")
T = TypeVar("T")


class Files:
    """Errors of all calls: NotFoundError (ENOENT), ExistsError (EEXIST), PathError (any other errno)."""

    def __init__(self, volume: Volume, changed: Changed) -> None:
        self.volume = volume
        self.tree: Tree = volume.tree
        self.changed = changed

    @property
    def namespace(self) -> Namespace:
        return self.volume.namespace

    @contextmanager
    def naming(self, path: bytes) -> Iterator[None]:
        """Errors of the rules become errors about `path`."""
        try:
            yield
        except FsError as error:
            where = os.fsdecode(b"/".join(parts_of(path)))
            raise path_error(error, "/".join(filter(None, (self.namespace.grid_path, where)))) from error

    # looking
    async def entries(self, path: bytes = b"") -> list[Stat]:
        """The entries of a directory, in the order of their making; one entry for anything else."""
        with self.naming(path):
            if parts_of(path) == [CHECKPOINTS]:
                return await self._checkpoints()
            tree, inside = await self.version(path)
            listed = await run(self._listing, tree, inside)
            if isinstance(listed, Stat):
                return [listed]
            stats: list[Stat] = []
            for at in range(0, len(listed), SLICE):
                stats += await run(self._stats, tree, listed[at : at + SLICE])
                await checkpoint()
            self.trim(tree)
            return stats

    def _listing(self, tree: Tree, path: bytes) -> list[tuple[bytes, Dentry]] | Stat:
        spot = walk(tree, path)
        if spot.node is None:
            raise FsError(errno.ENOENT)
        return tree.listing(spot.node) if spot.node.kids is not None else stat_of(spot.name, spot.node)

    def _stats(self, tree: Tree, names: list[tuple[bytes, Dentry]]) -> list[Stat]:
        stats = []
        for name, entry in names:
            try:
                stats.append(stat_of(name, tree.node(entry.ino)))
            except FsError as error:  # removed since the names were listed
                if error.errno != errno.ESTALE:
                    raise
        return stats

    async def _checkpoints(self) -> list[Stat]:
        return [await self._view(c.id) for c in self.volume.checkpoints(all=True)]

    async def _view(self, name: str) -> Stat:
        tree = await self.volume.view(name)
        return await run(lambda: stat_of(os.fsencode(name), tree.root()))

    async def stat(self, path: bytes, follow: bool = True) -> Stat:
        with self.naming(path):
            if parts_of(path) == [CHECKPOINTS]:
                return await run(lambda: stat_of(CHECKPOINTS, self.tree.root()))
            tree, inside = await self.version(path)
            stat = await run(lambda: stat_of(walk(tree, inside, follow).name, found(tree, inside, follow)))
            self.trim(tree)
            return stat

    async def read(self, path: bytes, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer mean the end."""
        reading = await self.open(path)
        try:
            with self.naming(path):
                return await reading.read(offset, length)
        finally:
            reading.release()

    async def open(self, path: bytes) -> Reading:
        """A regular file, to be read and then released."""
        with self.naming(path):
            tree, inside = await self.version(path)

            def work() -> Reading:
                node = found(tree, inside)
                if not node.is_file:
                    raise FsError(errno.EISDIR if node.kids is not None else errno.EINVAL)
                return Reading(tree, node)

            return await run(work)

    async def version(self, path: bytes) -> tuple[Tree, bytes]:
        """The tree that the path is in, and the path there.  Errors: NotFoundError."""
        parts = parts_of(path)
        if parts[:1] != [CHECKPOINTS]:
            return self.tree, path
        if len(parts) == 1:
            raise FsError(errno.EISDIR)
        return await self.volume.view(os.fsdecode(parts[1])), b"/".join(parts[2:])

    def writable(self, path: bytes) -> None:
        """Errors: FsError EROFS, EPERM for what belongs to checkpoints, EPERM for what is virtual."""
        parts = parts_of(path)
        if parts and parts[0] in VIRTUAL[self.namespace.type]:
            raise FsError(errno.EPERM)
        if parts[:1] == [CHECKPOINTS]:
            raise FsError(errno.EROFS if len(parts) > 1 else errno.EPERM)

    # writing
    async def begin(self, path: bytes, *, parents: bool = False, mode: int = 0o666) -> Writing:
        """Begin to write a file, which takes the place of one that is there, with its mode, owner and
        attributes. `parents`: make the directories that it lacks."""
        with self.naming(path):
            self.writable(path)
            if parents and len(parts_of(path)) > 1:
                await self._mkdirs(b"/".join(parts_of(path)[:-1]))

            def work() -> Writing:
                spot = walk(self.tree, path)
                if not spot.name or (spot.node is not None and not spot.node.is_file):
                    raise FsError(errno.EISDIR if spot.node is None or spot.node.kids is not None else errno.EINVAL)
                return self.begin_at(spot.folder, spot.name, mode, spot.node)

            return await run(work)

    def begin_at(self, folder: Node, name: bytes, mode: int, old: Node | None) -> Writing:
        """The plain part of `begin`."""
        namespace = self.namespace
        if folder.ino == ROOT and self.tree.blob and name != BLOB_DATA:
            raise FsError(errno.EPERM)
        if old is not None:
            mode, uid, gid = old.mode & 0o777, old.uid, old.gid
        else:
            mode, uid, gid = mode & ~namespace.umask, namespace.uid, namespace.gid
        return Writing(self, folder.ino, name, self.tree.make_unnamed(folder, mode, uid, gid))

    async def write(self, path: bytes, source: bytes | AsyncIterable[bytes], *, parents: bool = False) -> Stat:
        """All of `source` as a file, at once; nothing is left if the source fails."""
        writing = await self.begin(path, parents=parents)
        try:
            with self.naming(path):
                if isinstance(source, bytes):
                    await writing.write(source)
                else:
                    async for part in source:
                        await writing.write(part)
            return await writing.finish()
        finally:
            writing.abort()

    # names
    async def mkdir(self, path: bytes, *, parents: bool = False, mode: int = 0o777) -> None:
        """With `parents` those that are missing are made, and a directory that is there is no error."""
        with self.naming(path):
            self.writable(path)
            if parents:
                await self._mkdirs(path, mode)
                return

            def work() -> list[tuple[Node, bytes]]:
                spot = walk(self.tree, path, follow=False)
                if not spot.name or spot.node is not None:
                    raise FsError(errno.EEXIST)
                self.mkdir_at(spot.folder, spot.name, mode)
                return [(spot.folder, spot.name)]

            await self.changed(await run(work))
            self.trim(self.tree)

    async def symlink(self, path: bytes, target: bytes) -> None:
        """A symlink to `target`, whatever that is, in place of anything but a directory."""
        with self.naming(path):
            self.writable(path)

            def clear() -> list[tuple[Node, bytes]]:
                spot = walk(self.tree, path, follow=False)
                if not spot.name or (spot.node is not None and spot.node.kids is not None):
                    raise FsError(errno.EISDIR)
                if spot.node is not None:
                    self.tree.unlink(spot.folder, spot.name)
                return [(spot.folder, spot.name)]

            def make() -> list[tuple[Node, bytes]]:
                spot = walk(self.tree, path, follow=False)
                namespace = self.namespace
                self.tree.symlink(spot.folder, spot.name, target, namespace.uid, namespace.gid)
                return [(spot.folder, spot.name)]

            await self.changed(await run(clear) + await run(make))

    def mkdir_at(self, folder: Node, name: bytes, mode: int = 0o777) -> Node:
        namespace = self.namespace
        return self.tree.mkdir(folder, name, mode & ~namespace.umask, namespace.uid, namespace.gid)

    async def _mkdirs(self, path: bytes, mode: int = 0o777) -> None:
        parts = parts_of(path)

        def work(inside: bytes, last: bool) -> list[tuple[Node, bytes]]:
            spot = walk(self.tree, inside)
            if spot.node is None:
                if walk(self.tree, inside, follow=False).node is not None:  # a symlink that leads nowhere
                    raise FsError(errno.EEXIST)
                self.mkdir_at(spot.folder, spot.name, mode)
                return [(spot.folder, spot.name)]
            if spot.node.kids is None:
                raise FsError(errno.EEXIST if last else errno.ENOTDIR)
            return []

        for count in range(1, len(parts) + 1):
            await self.changed(await run(work, b"/".join(parts[:count]), count == len(parts)))
        self.trim(self.tree)

    async def rename(self, source: bytes, target: bytes, *, replace: bool = True) -> None:
        """rename(2): of the names themselves, not of what symlinks lead to; `replace=False`: ExistsError if
        there is a `target`."""
        with self.naming(source):
            self.writable(source)
        with self.naming(target):
            self.writable(target)

            def work() -> list[tuple[Node, bytes]]:
                tree = self.tree
                with self.naming(source):
                    here = walk(tree, source, follow=False)
                there = walk(tree, target, follow=False)
                with self.naming(source):
                    if here.node is None:
                        raise FsError(errno.ENOENT)
                if not here.name or not there.name:
                    raise FsError(errno.EBUSY)
                tree.rename(here.folder, here.name, there.folder, there.name, 0 if replace else NOREPLACE)
                return [(here.folder, here.name), (there.folder, there.name)]

            await self.changed(await run(work))

    async def remove(self, path: bytes, *, recursive: bool = False) -> None:
        """A file, a symlink itself, an empty directory, or with `recursive` all that is below."""
        with self.naming(path):
            self.writable(path)
            folder, name, ino = await run(self._doomed, path)
            if ino is not None and recursive:
                await self.remove_all(folder, name, ino)
            else:
                await self.changed(await run(self._remove, folder, name, ino))

    def _doomed(self, path: bytes) -> tuple[int, bytes, int | None]:
        """(folder, name, its inode if it is a directory)."""
        spot = walk(self.tree, path, follow=False)
        if spot.node is None:
            raise FsError(errno.ENOENT)
        if not spot.name:
            raise FsError(errno.EBUSY)
        return spot.folder.ino, spot.name, spot.node.ino if spot.node.kids is not None else None

    def _remove(self, folder: int, name: bytes, ino: int | None) -> list[tuple[Node, bytes]]:
        parent = self.tree.node(folder)
        if ino is None:
            self.tree.unlink(parent, name)
        else:
            self.tree.rmdir(parent, name)
        return [(parent, name)]

    async def remove_all(self, folder: int, name: bytes, ino: int) -> None:
        """Depth first; names that come or go meanwhile are taken as they are."""
        stack = [(folder, name, ino)]
        while stack:
            names: list[tuple[Node, bytes]] = []
            below = await run(self._empty, stack[-1][2], names)
            if names:
                await self.changed(names)
            await checkpoint()
            if below:
                stack += below
                continue
            if names:
                continue
            try:
                await self.changed(await run(self._remove, *stack[-1]))
            except FsError as error:
                if error.errno == errno.ENOTEMPTY:
                    continue
                if error.errno not in (errno.ENOENT, errno.ESTALE) or len(stack) == 1:
                    raise
            stack.pop()

    def _empty(self, ino: int, names: list[tuple[Node, bytes]]) -> list[tuple[int, bytes, int]]:
        """Remove some of a directory's files, and put them into `names`; a directory in it, if only those are
        left."""
        tree = self.tree
        try:
            folder = tree.node(ino)
        except FsError:
            return []
        below: list[tuple[int, bytes, int]] = []
        for name, entry in tree.listing(folder):
            if len(names) >= SLICE:
                break
            if entry.type == S_IFDIR >> 12:
                below = below or [(ino, name, entry.ino)]
            else:
                tree.unlink(folder, name)
                names.append((folder, name))
        return [] if names else below

    def trim(self, tree: Tree) -> None:
        """Let nodes go that were looked at, if there are too many."""
        if len(tree.idle) > tree.owner.node_cache:
            tree.rest(tree.root())
