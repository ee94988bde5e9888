"""Reading the bytes of files: which block holds what, where it lies, and having it here, verified.

A list of extents that is read here is not changed (see `artfs.volume.data`).  What is stored in objects is not read at
all where it need not be: a caller gets descriptors and positions.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from functools import partial

from anyio import to_thread

from artfs.blocks import Block, Chunk, covered, next_data, next_hole, pieces
from artfs.errors import DamagedError, FsError
from artfs.objects.held import HeldObjects
from artfs.volume.inodes import Inodes
from artfs.volume.node import Node
from artfs.volume.waiting import MustWait

FEW = 16
"""Files of up to this many blocks have them enumerated by number instead of by a scan."""
VERIFY_INLINE = 64 << 10
"""Chunks up to this size are verified at once, larger ones in a thread."""
SLACK = 4 << 20
"""A reader that is no further than this from where the last read ended is sequential."""
STREAMS = 64
"""Sequential readers that are remembered."""

Segments = tuple[int, ...]
"""(descriptor or -1 for zeros, position, length) again and again."""


class Reading(Inodes):
    # blocks
    def _key(self, node: Node, index: int) -> bytes:
        return (b"B" if node.key[0] == 73 else b"b") + node.key[1:] + index.to_bytes(4, "big")

    def block(self, node: Node, index: int) -> Block:
        blocks = node.blocks
        if blocks is None:
            blocks = node.blocks = {}
        block = blocks.get(index)
        if block is None:
            if not node.allocated:
                block = blocks[index] = []
                return block
            try:
                block = blocks[index] = self.get_block(self._key(node, index))
            except DamagedError as error:
                self.owner.damaged(error)
                raise
        return block

    def indexes(self, node: Node) -> list[int]:
        """Indexes of the blocks that may hold something."""
        if not node.allocated:
            return []
        count = -(-node.size // self.block_size)
        if count <= FEW and node.allocated <= node.size:
            few = list(range(count))
            if sum([covered(self.block(node, index)) for index in few]) == node.allocated:
                return few  # else some lie behind the end
        return self.block_indexes((b"B" if node.key[0] == 73 else b"b") + node.key[1:])

    def _split(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(index, start, end) of each block that the range touches."""
        size = self.block_size
        index, start = divmod(offset, size)
        while length > 0:
            end = min(size, start + length)
            yield index, start, end
            length -= end - start
            index += 1
            start = 0

    # bytes
    def read(self, node: Node, offset: int, size: int) -> bytes | Segments:
        """Up to `size` bytes, or the segments of objects that hold them.  Errors: FsError EISDIR, EIO; MustWait."""
        if node.kids is not None:
            raise FsError(errno.EISDIR)
        size = min(size, node.size - offset)
        if size <= 0:
            return b""
        if self.backed:
            self._fetch(node, offset, size)
        segments: list[int] = []
        parts: list[bytes | tuple[int, int, int]] = []
        stored = True
        for index, start, end in self._split(offset, size):
            for count, source, skip in pieces(self.block(node, index), start, end):
                if source is None:
                    parts.append((-1, 0, count))
                elif isinstance(source, bytes):
                    stored = False
                    parts.append(source[skip : skip + count])
                elif isinstance(self.objects, HeldObjects):
                    stored = False
                    parts.append(self.objects.piece(source, skip, count))
                else:
                    parts.append(self._segment(source, skip, count))
        if stored:
            for part in parts:
                segments += part
            return tuple(segments)
        return b"".join([_bytes(part) if isinstance(part, tuple) else part for part in parts])

    def _fetch(self, node: Node, offset: int, size: int) -> None:
        """Have the chunks here that a provider keeps, and those that a sequential reader wants next."""
        objects = self.objects
        absent = []
        for chunk in self._chunks(node, offset, size):
            if chunk.verified != objects.copies.get(chunk.object, 1):
                if chunk.length > VERIFY_INLINE or not objects.has(chunk):
                    absent.append(chunk)
            else:
                objects.used[chunk.object] = None
        self._read_ahead(node, offset, offset + size)
        if absent:
            raise MustWait(partial(self.owner.fetch, absent))

    def _chunks(self, node: Node, offset: int, size: int) -> Iterator[Chunk]:
        for index, start, end in self._split(offset, size):
            for _, source, _ in pieces(self.block(node, index), start, end):
                if isinstance(source, Chunk):
                    yield source

    def _read_ahead(self, node: Node, offset: int, end: int) -> None:
        """`streams`: inode → (where its reader goes on, how far was fetched ahead, how much at a time)."""
        limit = self.owner.read_ahead
        if offset == 0 and end >= node.size:
            return
        at, until, window = self.streams.pop(node.ino, (0, 0, 0))
        if not at - SLACK <= offset <= at + SLACK:
            at = until = window = 0
        elif end > at:
            window = min(max(window * 2, self.block_size), limit)
        at = max(at, end) if window else end
        goal = min(at + window, node.size)
        if window and goal - until > window // 4:
            first = max(until, at)
            if goal > first:
                self.owner.fetch_ahead(self._chunks(node, first, goal - first))
            until = goal
        self.streams[node.ino] = at, until, window
        if len(self.streams) > STREAMS:
            del self.streams[next(iter(self.streams))]

    def _segment(self, chunk: Chunk, skip: int, count: int) -> tuple[int, int, int]:
        if not chunk.verified:
            if chunk.length > VERIFY_INLINE:
                raise MustWait(lambda: to_thread.run_sync(self.verify, chunk))
            self.verify(chunk)
        return self.objects.descriptor(chunk.object), chunk.offset + skip, count

    def verify(self, chunk: Chunk) -> None:
        """Errors: FsError EIO, and the owner takes no more changes, if the bytes are not those that were written."""
        try:
            self.objects.read(chunk)
        except DamagedError as error:
            self.owner.damaged(error)
            raise FsError(errno.EIO) from error

    def read_bytes(self, node: Node, offset: int, size: int) -> bytes:
        """Like `read`, as bytes."""
        found = self.read(node, offset, size)
        if isinstance(found, bytes):
            return found
        parts = [_bytes(segment) for segment in joined(found)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, node: Node, offset: int, whence: int) -> int:
        """SEEK_DATA or SEEK_HOLE.  Errors: FsError ENXIO, EINVAL."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FsError(errno.EINVAL)
        if offset < 0 or offset >= node.size:
            raise FsError(errno.ENXIO)
        size = self.block_size
        first = offset // size
        if whence == os.SEEK_DATA:
            for index in self.indexes(node):
                if index < first:
                    continue
                found = next_data(self.block(node, index), offset - index * size if index == first else 0)
                if found is not None and index * size + found < node.size:
                    return index * size + found
            raise FsError(errno.ENXIO)
        index = first
        at = offset - index * size
        while index * size < node.size:
            hole = next_hole(self.block(node, index), at)
            if hole < size:
                return min(index * size + hole, node.size)
            index += 1
            at = 0
        return node.size


def joined(segments: Segments) -> list[tuple[int, int, int]]:
    """One for those that lie one behind the other: what is read at once need not be put together."""
    joined: list[tuple[int, int, int]] = []
    for i in range(0, len(segments), 3):
        fd, position, length = segments[i : i + 3]
        if joined and fd >= 0 and joined[-1][0] == fd and joined[-1][1] + joined[-1][2] == position:
            joined[-1] = fd, joined[-1][1], joined[-1][2] + length
        else:
            joined.append((fd, position, length))
    return joined


def _bytes(segment: tuple[int, int, int]) -> bytes:
    fd, position, length = segment
    if fd < 0:
        return bytes(length)
    data = os.pread(fd, length, position)
    if len(data) != length:
        raise FsError(errno.EIO)
    return data
