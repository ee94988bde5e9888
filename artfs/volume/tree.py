"""A namespace's tree: the POSIX rules of names, once.

Plain functions over nodes, without I/O of their own and without await, so that nothing can come between the parts of an
operation.  Permissions are the caller's business: the kernel checks them for mounts, the access rules for the API.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from stat import S_IFDIR, S_IFLNK, S_IFREG, S_ISGID

from artfs.blocks import Block
from artfs.errors import FsError
from artfs.meta import Checkpoint
from artfs.types import Epoch, Serial
from artfs.volume.data import DIRECT
from artfs.volume.directories import Directories
from artfs.volume.inodes import ROOT, Owner
from artfs.volume.journal import WRITE
from artfs.volume.node import Node

PATH_MAX = 4096
LINK_MAX = 1 << 31
NOREPLACE, EXCHANGE = 1, 2
RESERVED = frozenset((b".checkpoints",))
VIRTUAL = RESERVED | {b"_meta.json", b".workspace"}
"""What a mount shows in the root of a namespace, and nobody stores."""
"""Names in a namespace's root that belong to the control surface."""
BLOB_DATA = b"_data"
"""The one file of a BLOB."""
SECOND = 10**9
CAPABILITY = b"security.capability"
NOTHING: Mapping[bytes, bytes] = {}


class Tree(Directories):
    """One namespace's files, or with `at` those that a checkpoint saw, read-only.  `checkpoints` is in order of
    epochs, those that are not committed yet included.  `volumes`: who has hold of the tree from step to step."""

    def __init__(
        self,
        owner: Owner,
        serial: Serial,
        block_size: int,
        *,
        at: Epoch | None = None,
        number: int | None = None,
        fresh: bool = False,
        first: dict[bytes, bytes | None] | None = None,
    ) -> None:
        super().__init__(owner, serial, block_size, at=at, number=number, fresh=fresh, first=first)
        self.blob = False
        self.lasting = True
        self.volumes: Collection[object] = ()
        self.checkpoints = self.engine.checkpoints(serial) if at is None and not fresh else []

    def make_root(self, mode: int, uid: int, gid: int, before: bytes = b"") -> None:
        """The root directory of a new namespace.  `before`: journal entries of the same record."""
        root = self._root(mode, uid, gid, self.begin())
        self.log(before + self.save(root))

    def _root(self, mode: int, uid: int, gid: int, time: int) -> Node:
        root = Node(self, ROOT, self.number << 32 | ROOT, S_IFDIR | mode, uid, gid, 0, time)
        root.nlink = 2
        root.parent = ROOT
        root.complete = True
        self.numbers = ROOT + 1
        self.used_inodes += 1
        self.nodes[ROOT] = root
        return root

    def make_blob(
        self, mode: int, data_mode: int, uid: int, gid: int, time: int, before: bytes, data: bytes = b""
    ) -> Node:
        """The root directory of a new BLOB and its one file with its bytes, in one record with `before`: all of it is
        there after a crash, or nothing.  All times are `time`.  Returns the file."""
        self.begin()
        root = self._root(mode, uid, gid, time)
        node = self._new(root, S_IFREG | data_mode & 0o7777, uid, gid, 0, time)
        self.used_inodes += 1
        entries = before + self.save(root) + self.save(node) + self._enter(root, BLOB_DATA, node)
        loose = b""
        if data:
            written, loose = self._write_parts(node, 0, data)
            node.size = len(data)
            entries += written + self.save(node)
        self.log(entries, loose)
        return node

    # versions
    def apply_checkpoint(self, checkpoint: Checkpoint) -> None:
        """End the epoch under the checkpoint's name."""
        self.open_batch.checkpoint = checkpoint
        self.epoch = checkpoint.epoch + 1
        self.checkpoints.append(checkpoint)
        self.cut()

    # making
    def _vacant(self, folder: Node, name: bytes) -> None:
        if folder.ino == ROOT and (name in RESERVED or (self.blob and name != BLOB_DATA)):
            raise FsError(errno.EPERM)
        if self.find(folder, name) is not None:
            raise FsError(errno.EEXIST)
        if folder.nlink == 0:
            raise FsError(errno.ENOENT)

    def make(
        self, folder: Node, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0, target: bytes = b""
    ) -> Node:
        """A new inode of any type (`mode` holds it) under a new name.
        Errors: FsError EEXIST, ENOENT (a removed directory), ENOTDIR, ENAMETOOLONG, ENOSPC."""
        self._vacant(folder, name)
        time = self.begin()
        node = self._new(folder, mode, uid, gid, rdev, time)
        if node.kids is not None:
            node.nlink = 2
            node.parent = folder.ino
            node.complete = True
            folder.nlink += 1
        elif target:
            node.target = target
            node.size = len(target)
        folder.mtime = folder.ctime = time
        self.used_inodes += 1
        self.log(self.save(folder) + self.save(node) + self._enter(folder, name, node))
        return node

    def _new(self, folder: Node, mode: int, uid: int, gid: int, rdev: int, time: int) -> Node:
        ino = self.numbers
        if ino > 0xFFFFFFFF:
            raise FsError(errno.ENOSPC)
        self.numbers = ino + 1
        if folder.mode & S_ISGID:
            gid = folder.gid
            if mode & 0o170000 == S_IFDIR:
                mode |= S_ISGID
        node = Node(self, ino, self.number << 32 | ino, mode, uid, gid, rdev, time)
        self.nodes[ino] = node
        self.idle[ino] = None
        return node

    def create(self, folder: Node, name: bytes, mode: int, uid: int, gid: int) -> Node:
        return self.make(folder, name, S_IFREG | mode & 0o7777, uid, gid)

    def mkdir(self, folder: Node, name: bytes, mode: int, uid: int, gid: int) -> Node:
        return self.make(folder, name, S_IFDIR | mode & 0o7777, uid, gid)

    def symlink(self, folder: Node, name: bytes, target: bytes, uid: int, gid: int) -> Node:
        """Errors: also FsError ENAMETOOLONG, ENOENT (an empty target)."""
        if len(target) >= PATH_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if not target:
            raise FsError(errno.ENOENT)
        return self.make(folder, name, S_IFLNK | 0o777, uid, gid, target=target)

    def make_unnamed(self, folder: Node, mode: int, uid: int, gid: int) -> Node:
        """O_TMPFILE: a regular file without a name, which `link` may give it."""
        if folder.kids is None:
            raise FsError(errno.ENOTDIR)
        time = self.begin()
        node = self._new(folder, S_IFREG | mode & 0o7777, uid, gid, 0, time)
        node.nlink = 0
        node.key = b"i" + node.key[1:]
        self.orphans[node.ino] = self.open_batch
        self.log(self.save(node))
        return node

    def link(self, node: Node, folder: Node, name: bytes) -> None:
        """Errors: FsError EPERM (a directory), EEXIST, ENOENT, EMLINK, ENAMETOOLONG."""
        if node.kids is not None:
            raise FsError(errno.EPERM)
        self._vacant(folder, name)
        if node.nlink >= LINK_MAX:
            raise FsError(errno.EMLINK)
        time = self.begin()
        if node.nlink == 0:
            self.adopt(node)
        node.nlink += 1
        node.ctime = folder.mtime = folder.ctime = time
        self.log(self.save(folder) + self.save(node) + self._enter(folder, name, node))

    def replace(self, node: Node, folder: Node, name: bytes, before: bytes = b"") -> Node | None:
        """Give an inode without a name this one, at once in place of the file that has it; returns that one.
        `before`: journal entries of the same record.
        Errors: FsError EISDIR, ENOENT (a removed directory), ENAMETOOLONG."""
        other = self.lookup(folder, name)
        if other is None:
            self._vacant(folder, name)
        elif other.kids is not None:
            raise FsError(errno.EISDIR)
        time = self.begin()
        entries = b""
        if other is not None:
            entries = self._leave(folder, name) + self._unlinked(other, time)
            if self.blob and not before:
                _date_after(node, other)
        self.adopt(node)
        node.nlink = 1
        node.ctime = folder.mtime = folder.ctime = time
        self.log(before + entries + self.save(folder) + self.save(node) + self._enter(folder, name, node))
        if other is not None:
            self._let_go(other)
        return other

    def put_file(
        self,
        folder: Node,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        data: bytes | memoryview,
        attributes: Mapping[bytes, bytes] = NOTHING,
    ) -> Node:
        """A file with these bytes, 1 MiB at most, and extended attributes, at once in place of the file that has the
        name, whose attributes it takes over: `make_unnamed`, `write` and `replace` in one record.
        Errors: FsError EISDIR, EPERM, ENOENT (a removed directory), ENAMETOOLONG, ENOSPC."""
        other = self.lookup(folder, name)
        if other is None:
            if folder.ino == ROOT and name in RESERVED:
                raise FsError(errno.EPERM)
            if folder.nlink == 0:
                raise FsError(errno.ENOENT)
        elif not other.is_file:
            raise FsError(errno.EISDIR if other.kids is not None else errno.EPERM)
        elif other.xattrs:
            kept = {each: self.getxattr(other, each) for each in self.listxattr(other) if each != CAPABILITY}
            attributes = {**kept, **attributes}
        time = self.begin()
        node = self._new(folder, S_IFREG | mode & 0o7777, uid, gid, 0, time)
        if other is not None and self.blob:
            _date_after(node, other)
        entries = self.save(node)  # replay needs the inode before its bytes
        loose = b""
        if 0 < len(data) < DIRECT:
            loose = bytes(data)
            entries += WRITE.pack(b"W", node.ino, 0, len(loose))
            block: Block = [(0, len(loose), loose, 0)]
            node.blocks = {0: block}
            self.blocks[self._key(node, 0)] = block
            node.size = node.allocated = len(loose)
            self.used_bytes += len(loose)
        elif data:
            try:
                written, loose = self._write_parts(node, 0, data)
            except BaseException:
                del self.nodes[node.ino], self.idle[node.ino], self.rows[node.key]
                raise
            entries += written
            node.size = len(data)
        self.used_inodes += 1
        for each, value in attributes.items():
            entries += self.row(self._xattr_key(node, each), value)
        node.xattrs = len(attributes)
        if other is not None:
            entries += self._leave(folder, name) + self._unlinked(other, time)
        folder.mtime = folder.ctime = time
        self.log(entries + self.save(folder) + self.save(node) + self._enter(folder, name, node), loose)
        if other is not None:
            self._let_go(other)
        return node

    # removing
    def unlink(self, folder: Node, name: bytes) -> Node:
        """Returns the node, whose link count may be 0 now.  Errors: FsError ENOENT, EISDIR."""
        node = self.lookup(folder, name)
        if node is None:
            raise FsError(errno.ENOENT)
        if node.kids is not None:
            raise FsError(errno.EISDIR)
        time = self.begin(frees=True)
        folder.mtime = folder.ctime = time
        entries = self._leave(folder, name) + self.save(folder) + self._unlinked(node, time)
        self.log(entries)
        self._let_go(node)
        return node

    def _unlinked(self, node: Node, time: int) -> bytes:
        node.ctime = time
        if node.kids is not None:
            node.nlink = 0
        else:
            node.nlink -= 1
        return self.save(node) if node.nlink else self.orphan(node)

    def _let_go(self, node: Node) -> None:
        if node.nlink == 0 and not node.looks:
            self.drop(node)

    def rmdir(self, folder: Node, name: bytes) -> Node:
        """Errors: FsError ENOENT, ENOTDIR, ENOTEMPTY."""
        node = self.lookup(folder, name)
        if node is None:
            raise FsError(errno.ENOENT)
        if node.kids is None:
            raise FsError(errno.ENOTDIR)
        if not self.is_empty(node):
            raise FsError(errno.ENOTEMPTY)
        time = self.begin(frees=True)
        folder.nlink -= 1
        folder.mtime = folder.ctime = node.mtime = time
        self.log(self._leave(folder, name) + self.save(folder) + self._unlinked(node, time))
        self._let_go(node)
        return node

    # renaming
    def rename(self, folder: Node, name: bytes, target: Node, new: bytes, flags: int = 0) -> None:
        """renameat2(2).  Errors: FsError ENOENT, EEXIST, EINVAL, EISDIR, ENOTDIR, ENOTEMPTY, ENAMETOOLONG."""
        if flags & ~(NOREPLACE | EXCHANGE) or flags == NOREPLACE | EXCHANGE:
            raise FsError(errno.EINVAL)
        node = self.lookup(folder, name)
        if node is None:
            raise FsError(errno.ENOENT)
        other = self.lookup(target, new)
        if target.ino == ROOT and (new in VIRTUAL or self.blob):
            raise FsError(errno.EPERM)
        if target.nlink == 0:
            raise FsError(errno.ENOENT)
        if other is not None and flags & NOREPLACE:
            raise FsError(errno.EEXIST)
        if other is None and flags & EXCHANGE:
            raise FsError(errno.ENOENT)
        if folder is not target:
            self._no_loop(node, target)
            if flags & EXCHANGE:
                self._no_loop(other, folder)
        if other is node:
            return
        if flags & EXCHANGE:
            assert other is not None
            self._exchange(folder, name, node, target, new, other)
            return
        if other is not None:
            self._replaceable(node, other)
        time = self.begin(frees=other is not None)
        entries = self._leave(folder, name)
        if other is not None:
            entries += self._leave(target, new)
            if other.kids is not None:
                target.nlink -= 1
            entries += self._unlinked(other, time)
        self._move(node, folder, target)
        folder.mtime = folder.ctime = target.mtime = target.ctime = node.ctime = time
        entries += self._enter(target, new, node) + self.save(folder) + self.save(node)
        if target is not folder:
            entries += self.save(target)
        self.log(entries)
        if other is not None:
            self._let_go(other)

    def _no_loop(self, node: Node | None, folder: Node) -> None:
        if node is None or node.kids is None:
            return
        while True:
            if folder is node:
                raise FsError(errno.EINVAL)
            if folder.ino == ROOT:
                return
            folder = self.node(folder.parent)

    def _replaceable(self, node: Node, other: Node) -> None:
        if other.kids is None:
            if node.kids is not None:
                raise FsError(errno.ENOTDIR)
        elif node.kids is None:
            raise FsError(errno.EISDIR)
        elif not self.is_empty(other):
            raise FsError(errno.ENOTEMPTY)

    def _move(self, node: Node, folder: Node, target: Node) -> None:
        if node.kids is not None and folder is not target:
            folder.nlink -= 1
            target.nlink += 1
            node.parent = target.ino

    def _exchange(self, folder: Node, name: bytes, node: Node, target: Node, new: bytes, other: Node) -> None:
        time = self.begin()
        entries = self._leave(folder, name) + self._leave(target, new)
        self._move(node, folder, target)
        self._move(other, target, folder)
        for changed in (folder, target, node, other):
            changed.ctime = time
        folder.mtime = target.mtime = time
        entries += self._enter(target, new, node) + self._enter(folder, name, other)
        entries += self.save(node) + self.save(other) + self.save(folder)
        if target is not folder:
            entries += self.save(target)
        self.log(entries)


def _date_after(node: Node, other: Node) -> None:
    """What takes the place of a BLOB's bytes is younger, however soon it comes: the document tells by their size and
    time whether it knows them, and the clock is coarse."""
    if node.mtime <= other.mtime < node.mtime + SECOND:
        node.mtime = other.mtime + 1
