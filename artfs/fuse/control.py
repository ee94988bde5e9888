"""The control surface: three doors (xattrs, ioctls, `.checkpoints/`) to one set of functions.

xattrs, on any inode of a namespace; what they act on is that inode's own namespace:

    set user.artfs.checkpoint NAME      make a checkpoint          get user.artfs.checkpoints   names, a line each
    set user.artfs.restore NAME         restore it                 get user.artfs.namespace     JSON: what this is
    set user.artfs.delete NAME          delete it                  get user.artfs.usage         JSON: bytes and inodes
    set user.artfs.clone NEW [FROM]     branch, in the same scope  get user.artfs.dirty         JSON: what waits
    set user.artfs.sync local|remote    returns when what was written before is on the disk, or with its provider

They are not listed.  ioctls: see `artfs.control`, the client's side.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Awaitable, Callable
from time import time_ns
from typing import Any

from artfs.control import CHECKPOINT, CLONE, DELETE, RESTORE, pack_result, unpack_names
from artfs.errors import ArtfsError, FsError, NoSpaceError
from artfs.fuse.virtual import Numbers, VirtualTree, file, folder, later
from artfs.grid import NAME_MAX
from artfs.meta import Checkpoint
from artfs.store.describing import describe
from artfs.store.portable import shown
from artfs.store.store import Store
from artfs.volume.catalogue import Namespace
from artfs.volume.node import Dentry, Node
from artfs.volume.tree import Tree
from artfs.volume.volume import Volume
from artfs.volume.waiting import MustWait

log = logging.getLogger(__name__)

XATTR_PREFIX = b"user.artfs."
IOCTLS = frozenset((CHECKPOINT, RESTORE, CLONE, DELETE))
SETTERS = {b"checkpoint", b"restore", b"delete", b"clone", b"sync"}
LEVELS = {"local", "remote"}
NS = 10**9
DIR_TYPE = 4


class Control:
    def __init__(self, store: Store, numbers: Numbers) -> None:
        self.store = store
        self.numbers = numbers
        self._folders: dict[int, Node] = {}

    def special(self, root: Node, name: bytes) -> Node | None:
        """`.checkpoints`, `_meta.json`, `.workspace` in the root of a namespace; None in that of a view."""
        tree = root.tree
        if tree.read_only and tree.at is not None:
            return None
        volume = self.store.volume_of(tree)
        if name == b".checkpoints":
            node = self._folders.get(tree.number)
            if node is None:
                node = CheckpointsTree(self, volume).folder
                self._folders[tree.number] = node
            # Who may write the namespace's root may make checkpoints.
            node.mode, node.uid, node.gid = root.mode, root.uid, root.gid
            node.entry = None
            return node
        is_blob = volume.namespace.type == "blob"
        if name == b".workspace" and is_blob:
            return None
        return self.meta_file(volume.namespace)

    def folder(self, namespace: Namespace) -> Node | None:
        """Its `.checkpoints`, if that has been looked at."""
        return self._folders.get(int(namespace.serial))

    def forget(self, namespace: Namespace) -> None:
        """It is gone."""
        self._folders.pop(int(namespace.serial), None)

    def meta_file(self, namespace: Namespace) -> Node:
        content = json.dumps(describe(self.store, namespace), indent=2).encode() + b"\n"
        return file(VirtualTree(), self.numbers.fresh(), content)

    # xattrs
    def getxattr(self, node: Node, name: bytes) -> bytes | None:
        """The value of one of ours; None if it is not one."""
        what = name[len(XATTR_PREFIX) :]
        if what not in (b"checkpoints", b"namespace", b"usage", b"dirty"):
            if what in SETTERS:
                raise FsError(errno.ENODATA)
            return None
        if not isinstance(node.tree, Tree):
            raise FsError(errno.ENODATA)
        volume = self.store.volume_of(node.tree)
        tree = volume.tree
        if what == b"checkpoints":
            return b"".join(os.fsencode(c.id) + b"\n" for c in shown(volume))
        if what == b"namespace":
            return json.dumps(describe(self.store, volume.namespace)).encode()
        if what == b"usage":
            return json.dumps({"bytes": tree.used_bytes, "inodes": tree.used_inodes}).encode()
        return json.dumps(self._dirty(volume)).encode()

    def _dirty(self, volume: Volume) -> dict[str, Any]:
        """`rows` and `blocks` that no commit has; `waiting`: bytes and objects of the store that no provider has yet,
        seconds since the first of them came (null: nothing waits), and why the last upload failed, if it did."""
        batches = [*volume.tree.closed_batches, volume.tree.open_batch]
        waiting = self.store.shard.remote.waiting()
        age = None if waiting.oldest is None else max(time_ns() - waiting.oldest, 0) / NS
        return {
            "rows": sum(len(b.rows) for b in batches),
            "blocks": sum(len(b.blocks) for b in batches),
            "waiting": {"bytes": waiting.bytes, "objects": waiting.objects, "age": age, "error": waiting.error},
        }

    def setxattr(self, node: Node, name: bytes, value: bytes) -> Callable[[], Awaitable[None]] | None:
        """The work that setting one of ours asks for; None if it is not one."""
        what = name[len(XATTR_PREFIX) :]
        if what not in SETTERS:
            return None
        if not isinstance(node.tree, Tree):
            raise FsError(errno.EINVAL)
        if node.tree.read_only:
            raise FsError(errno.EROFS)
        try:
            text = os.fsdecode(value.rstrip(b"\0\n"))
        except ValueError:
            raise FsError(errno.EINVAL) from None
        if what == b"sync":
            return self._sync(self.store.volume_of(node.tree), text)
        command = {b"checkpoint": CHECKPOINT, b"restore": RESTORE, b"delete": DELETE, b"clone": CLONE}[what]
        first, _, second = text.partition(" ") if command == CLONE else (text, "", "")
        volume = self.store.volume_of(node.tree)

        async def work() -> None:
            await self._act(volume, command, first, second or None)

        return work

    def _sync(self, volume: Volume, level: str) -> Callable[[], Awaitable[None]]:
        if level not in LEVELS:
            raise FsError(errno.EINVAL)

        async def work() -> None:
            store = self.store
            try:
                if level == "remote":
                    await store.sync(volume.namespace)
                else:
                    await store.settle(volume)
                    await store.shard.sync()
            except FsError:
                raise
            except NoSpaceError as error:
                raise FsError(error.errno) from error
            except ArtfsError as error:  # a bucket that is not there is no ENOENT of this file
                log.warning("%s is not synced: %s", volume.namespace.grid_path, error)
                raise FsError(errno.EIO) from error

        return work

    # ioctls
    async def ioctl(self, node: Node, command: int, data: bytes) -> bytes:
        """See `artfs.control`.  Errors: FsError EINVAL outside a namespace, and as the call."""
        if not isinstance(node.tree, Tree):
            raise FsError(errno.EINVAL)
        if node.tree.read_only:
            raise FsError(errno.EROFS)
        first, second = unpack_names(data)
        return pack_result(await self._act(self.store.volume_of(node.tree), command, first, second or None))

    async def _act(self, volume: Volume, command: int, first: str, second: str | None) -> Checkpoint | None:
        try:
            if command == CHECKPOINT:
                return await self.store.checkpoint(volume, first or None, second or "")
            if command == RESTORE:
                return await self.store.restore(volume, first)
            if command == DELETE:
                return await self.store.delete_checkpoint(volume, first)
            await self.store.clone(volume, first, second)
            return None
        except FsError:
            raise
        except ArtfsError as error:
            raise FsError(error.errno) from error


class CheckpointsTree(VirtualTree):
    """`.checkpoints/` of one namespace: mkdir makes a checkpoint, rmdir deletes it, its entries are read-only trees."""

    read_only = False

    def __init__(self, control: Control, volume: Volume) -> None:
        self.control = control
        self.volume = volume
        self.views: dict[int, Tree] = {}
        self.folder = folder(self, control.numbers.of(f"{volume.namespace.id}/.checkpoints"))
        self.folder.tree = self  # type: ignore[assignment]

    def lookup(self, folder: Node, name: bytes) -> Node | None:
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        checkpoint = self._named(name)
        return None if checkpoint is None else self._view(checkpoint)

    def _named(self, name: bytes) -> Checkpoint | None:
        """By its id: a directory has each checkpoint under one name."""
        id = os.fsdecode(name)
        return next((c for c in self.volume.tree.checkpoints if c.id == id), None)

    def _view(self, checkpoint: Checkpoint) -> Node:
        view = self.views.get(checkpoint.serial)
        if view is None:
            raise MustWait(lambda: self._open([checkpoint]))
        return view.root()

    async def _open(self, checkpoints: list[Checkpoint]) -> None:
        for checkpoint in checkpoints:
            self.views[checkpoint.serial] = await self.volume.view(checkpoint.id)

    def listing(self, folder: Node) -> list[tuple[bytes, Dentry]]:
        checkpoints = shown(self.volume)
        closed = [c for c in checkpoints if c.serial not in self.views]
        if closed:
            raise MustWait(lambda: self._open(closed))
        return [(os.fsencode(c.id), Dentry(c.serial, c.epoch + 2, DIR_TYPE)) for c in checkpoints]

    def node(self, ino: int) -> Node:
        """The root of the view with that serial."""
        if ino not in self.views:
            raise FsError(errno.ESTALE)
        return self.views[ino].root()

    def mkdir(self, folder: Node, name: bytes, mode: int, uid: int, gid: int) -> Node:
        if self._named(name) is not None:
            raise FsError(errno.EEXIST)

        async def work() -> Node:
            checkpoint = await self.control._act(self.volume, CHECKPOINT, os.fsdecode(name), None)
            assert checkpoint is not None
            await self._open([checkpoint])
            return self.views[checkpoint.serial].root()

        later(work, folder)

    def rmdir(self, folder: Node, name: bytes) -> Node:
        checkpoint = self._named(name)
        if checkpoint is None:
            raise FsError(errno.ENOENT)

        async def work() -> None:
            await self.control._act(self.volume, DELETE, checkpoint.id, None)
            self.views.pop(checkpoint.serial, None)  # nodes that are open go on until they are forgotten

        later(work, folder)
