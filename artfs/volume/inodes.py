"""Inodes of a namespace in memory, and the way into the journal.

Every operation of a tree follows one pattern, so that it is all or nothing and never awaits:

1. look up what it needs and check the rules (errors leave everything as it was);
2. `begin()`: raises `MustWait` or an error if the namespace takes no changes now;
3. change nodes, put rows (`save`, `row`), and hand their journal entries to `log` in one record.

Concurrency: one thread, the owner's loop.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import clock_gettime_ns
from typing import TYPE_CHECKING, Protocol

from artfs.blocks import Block, Chunk
from artfs.errors import ArtfsError, DamagedError, FsError
from artfs.meta import Engine
from artfs.objects.local import LocalObjects
from artfs.types import Epoch, Serial
from artfs.volume.journal import DELETED, ORPHAN, ROW, Log
from artfs.volume.node import Node
from artfs.volume.rows import HEAD_KEY, Head, number
from artfs.volume.rowset import Pending, RowSet
from artfs.volume.waiting import MustWait

if TYPE_CHECKING:
    from artfs.volume.tree import Tree

ROOT = 1
CLOCK_REALTIME_COARSE = 5
KEY = 9
"""Length of an inode's key, and of the prefix of its blocks' and attributes' keys."""


TOGETHER = 256 << 10
"""Bytes of operations that share a record, about."""


class Owner(Protocol):
    """What a tree needs of the process that owns the store."""

    engine: Engine
    log: Log
    objects: LocalObjects
    changed: set[Tree]
    failure: ArtfsError | None
    node_cache: int
    inline_limit: int
    read_ahead: int
    crowded: bool

    async def wait_room(self, need: int = 0) -> None:
        """Until the journal takes `need` bytes and one change more.  Errors: FsError ENOSPC or EIO after the limit."""

    async def wait_uploads(self) -> None:
        """Until providers have taken enough (not `crowded`).  Errors: FsError ENOSPC or EIO after the limit."""

    async def fetch(self, chunks: Sequence[Chunk]) -> None:
        """Have them here, verified.  Errors: FsError EIO."""

    def stored(self) -> None:
        """More bytes wait for a provider."""

    def fetch_ahead(self, chunks: Iterable[Chunk]) -> None:
        """They are wanted soon."""

    def damaged(self, error: ArtfsError) -> None:
        """Bytes or rows failed their check: report it, and take no more changes."""


def now() -> int:
    """Nanoseconds since 1970 by the kernel's coarse clock, so that its times and ours agree."""
    return clock_gettime_ns(CLOCK_REALTIME_COARSE)


class Inodes(RowSet, ABC):
    """`number` is the upper half of the kernel's inode numbers: the namespace's serial, or that of a checkpoint's
    view.  `orphans`: inodes without a name, with the batch in which they lost it if no other has rows of them.
    `gate` holds changes up while a restore runs; `locked` says that a change must look at `_refuse` first; `backed`:
    a provider keeps its objects."""

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
        super().__init__(owner.engine, serial, at, fresh, first)
        self.owner = owner
        self.objects = owner.objects
        self.journal = owner.log
        self.backed = serial in owner.objects.backed
        self.streams: dict[int, tuple[int, int, int]] = {}
        self.block_size = block_size
        self.number = int(serial) if number is None else number
        self.locked = at is not None or (self.backed and owner.crowded)
        self.read_only = at is not None
        self.gate: Callable[[], Awaitable[None]] | None = None
        self._held: list[tuple[bytes, bytes | memoryview]] | None = None
        self._held_size = 0
        self.nodes: dict[int, Node] = {}
        self.idle: dict[int, None] = {}
        self.orphans: dict[int, Pending | None] = {}
        self.numbers = self.head.numbers
        self.cookies = self.head.cookies
        self.used_bytes = self.head.used_bytes
        self.used_inodes = self.head.used_inodes

    def damaged(self, error: ArtfsError) -> None:
        self.owner.damaged(error)

    def cut(self) -> None:
        """Close the open batch, if it holds anything, with the counters as they are."""
        if self.open_batch:
            self.rows[HEAD_KEY] = self.counters().pack()
        super().cut()

    def counters(self) -> Head:
        objects = self.objects.counts.get(self.serial, 0)
        return Head(self.epoch, self.numbers, self.cookies, objects, self.used_bytes, self.used_inodes)

    # nodes
    def node(self, ino: int) -> Node:
        """Errors: FsError ESTALE if there is no such inode."""
        node = self.nodes.get(ino)
        if node is None:
            key = b"I" + number(ino)
            value = self.get(key)
            if value is None:
                key = b"i" + key[1:]
                value = self.get(key)
            if value is None:
                raise FsError(errno.ESTALE)
            node = Node(self, ino, 0, 0, 0, 0, 0, 0)  # type: ignore[arg-type]
            try:
                node.unpack(value)
            except DamagedError as error:
                self.damaged(error)
                raise
            node.key = key
            self.nodes[ino] = node
            self.idle[ino] = None
        return node

    def rest(self, node: Node) -> None:
        """The kernel holds the node no more: keep it as long as there is room, or drop an inode without a name."""
        if node.nlink == 0:
            if self.nodes.get(node.ino) is node:
                self.drop(node)
            return
        self.idle[node.ino] = None
        if len(self.idle) > self.owner.node_cache:
            for ino in list(self.idle)[: len(self.idle) // 8]:
                del self.idle[ino]
                old = self.nodes.get(ino)
                if old is not None and not old.looks:
                    del self.nodes[ino]

    def drop(self, node: Node) -> None:
        """Delete an inode that has no name and that nobody has open."""
        if self.read_only:
            del self.nodes[node.ino]
            self.idle.pop(node.ino, None)
            return
        keys = self.orphan_keys(node)
        del self.nodes[node.ino]
        self.idle.pop(node.ino, None)
        unseen = self.orphans.pop(node.ino, None) is self.open_batch
        for key in keys:
            self.blocks.pop(key, None)
            if unseen:
                self.rows.pop(key, None)
            else:
                self.rows[key] = None
        self.owner.changed.add(self)  # type: ignore[arg-type]

    def orphan_keys(self, node: Node) -> list[bytes]:
        """Of all its rows.  REQUIRES: it has no name."""
        keys = [b"b" + node.key[1:] + index.to_bytes(4, "big") for index in self.indexes(node)]
        if node.xattrs:
            keys += [key for key, _ in self.scan(b"x" + node.key[1:])]
        return [*keys, node.key]

    @abstractmethod
    def indexes(self, node: Node) -> list[int]:
        """Indexes of the blocks that may hold something."""

    @abstractmethod
    def block(self, node: Node, index: int) -> Block:
        """The block's extents.  Errors: DamagedError; MustWait."""

    # changes
    def begin(self, frees: bool = False) -> int:
        """The time of a change that is about to be made.  `frees`: it makes room, so it may use the reserve.
        Errors: FsError, MustWait."""
        journal = self.journal
        if self.locked or journal.used >= journal.soft:
            self._refuse(frees)
        return clock_gettime_ns(CLOCK_REALTIME_COARSE)

    def _refuse(self, frees: bool) -> None:
        if self.read_only:
            raise FsError(errno.EROFS)
        if self.gate is not None:
            raise MustWait(self.gate)
        if self.owner.failure is not None:
            raise FsError(errno.EROFS)
        if self.backed and self.owner.crowded and not frees:
            raise MustWait(self.owner.wait_uploads)
        if self.journal.used >= (self.journal.hard if frees else self.journal.soft):
            raise MustWait(self.owner.wait_room)

    def save(self, node: Node) -> bytes:
        """Put the inode's row; returns its journal entry."""
        value = node.pack()
        key = node.key
        self.rows[key] = value
        node.entry = None
        return ROW.pack(b"R", KEY, len(value)) + key + value

    def row(self, key: bytes, value: bytes | None) -> bytes:
        """Put or delete a row; returns its journal entry."""
        self.rows[key] = value
        if value is None:
            return ROW.pack(b"R", len(key), DELETED) + key
        return ROW.pack(b"R", len(key), len(value)) + key + value

    def log(self, entries: bytes, data: bytes | memoryview = b"") -> None:
        """The record of one operation.  Errors: OSError, after which the owner takes no more changes."""
        self.owner.changed.add(self)  # type: ignore[arg-type]
        if self._held is not None:
            self._held.append((entries, data))
            self._held_size += len(entries) + len(data)
            if self._held_size > TOGETHER:
                self._release()
            return
        self._append(entries, data)

    def _append(self, entries: bytes, data: bytes | memoryview) -> None:
        try:
            self.journal.append(self.serial, entries, data)
        except OSError as error:
            self.owner.damaged(ArtfsError(f"the journal cannot be written: {error}"))
            raise

    @contextmanager
    def together(self) -> Iterator[None]:
        """Operations share records of the journal, each whole in one.  REQUIRES: no await inside."""
        self._held = []
        try:
            yield
        finally:
            self._release()
            self._held = None

    def _release(self) -> None:
        held, self._held, self._held_size = self._held, [], 0
        if held:
            self._append(b"".join([entries for entries, _ in held]), b"".join([data for _, data in held]))

    def orphan(self, node: Node) -> bytes:
        """Take the inode out of the versioned rows: it has lost its last name.  Returns the journal entry."""
        self._move_parts(node, b"B", b"b", b"X", b"x")
        self.rows[node.key] = None
        node.key = b"i" + node.key[1:]
        # One that this batch has adopted before has rows to be deleted, too.
        self.orphans[node.ino] = None if node.key in self.rows else self.open_batch
        value = node.pack()
        self.rows[node.key] = value
        node.entry = None
        self.used_inodes -= 1
        self.used_bytes -= node.allocated
        return ORPHAN.pack(b"O", node.ino, len(value)) + value

    def adopt(self, node: Node) -> None:
        """The opposite: an inode without a name gets one.  The caller saves the node."""
        self._move_parts(node, b"b", b"B", b"x", b"X")
        self.orphans.pop(node.ino, None)
        self.rows[node.key] = None
        node.key = b"I" + node.key[1:]
        self.used_inodes += 1
        self.used_bytes += node.allocated

    def _move_parts(self, node: Node, block: bytes, new_block: bytes, xattr: bytes, new_xattr: bytes) -> None:
        tail = node.key[1:]
        for index in self.indexes(node):
            at = tail + index.to_bytes(4, "big")
            content = self.block(node, index).copy()
            self.blocks.pop(block + at, None)
            self.rows[block + at] = None
            if content:
                self.rows.pop(new_block + at, None)
                self.blocks[new_block + at] = content
            assert node.blocks is not None
            node.blocks[index] = content
        if node.xattrs:
            for key, value in self.scan(xattr + tail):
                self.rows[key] = None
                self.rows[new_xattr + key[1:]] = value
