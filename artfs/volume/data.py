"""Bytes of files: blocks, holes, and what copies share.

Small writes go into the journal and stay in memory until a commit seals them; a segment of `DIRECT` bytes or more goes
straight into an object, and only its address into the journal.

A block's list of extents may be changed in place only while the open batch holds that very list (`_own`): lists in
closed batches are being sealed, lists in no batch are what the engine has.
"""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Iterator
from functools import partial

from anyio import to_thread

from artfs.blocks import Block, Chunk, Source, covered, cut, next_data, next_hole, pieces, put
from artfs.errors import DamagedError, FsError
from artfs.objects.held import HeldObjects
from artfs.volume.inodes import Inodes
from artfs.volume.journal import SHARE, STORE, WRITE, ZERO
from artfs.volume.node import Node
from artfs.volume.waiting import MustWait

DIRECT = 64 << 10
MAX_SIZE = (1 << 63) - 1
FEW = 16
"""Files of up to this many blocks have them enumerated by number instead of by a scan."""
WRITE_CACHED, WRITE_KILL = 1, 4
"""FUSE's FUSE_WRITE_CACHE and FUSE_WRITE_KILL_SUIDGID."""
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
SHARE_LIMIT = 1 << 30
"""Most bytes that one copy_file_range shares."""
VERIFY_INLINE = 64 << 10
"""Chunks up to this size are verified at once, larger ones in a thread."""
SLACK = 4 << 20
"""A reader that is no further than this from where the last read ended is sequential."""
STREAMS = 64
"""Sequential readers that are remembered."""

Segments = tuple[int, ...]
"""(descriptor or -1 for zeros, position, length) again and again."""


class Data(Inodes):
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

    def _own(self, node: Node, index: int) -> Block:
        """The block's list, to be changed."""
        key = self._key(node, index)
        block = self.block(node, index)
        if self.blocks.get(key) is not block:
            block = block.copy()
            assert node.blocks is not None
            node.blocks[index] = self.blocks[key] = block
            self.rows.pop(key, None)
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

    # writing
    def check_size(self, node: Node, size: int) -> None:
        if node.kids is not None:
            raise FsError(errno.EISDIR)
        if not node.is_file:
            raise FsError(errno.EINVAL)
        if size > MAX_SIZE or size // self.block_size >= 1 << 32:
            raise FsError(errno.EFBIG)

    def write(self, node: Node, offset: int, data: bytes | memoryview, flags: int = 0) -> int:
        """All of `data` at `offset`; returns its length.  Errors: FsError EISDIR, EFBIG, EROFS, ENOSPC."""
        length = len(data)
        self.check_size(node, offset + length)
        time = self.begin()
        if not length:
            return 0
        before = node.size, node.allocated
        if length < DIRECT and offset % self.block_size + length <= self.block_size:
            index, start = divmod(offset, self.block_size)
            loose = bytes(data)
            entries = WRITE.pack(b"W", node.ino, offset, length)
            self._put(node, index, start, start + length, loose, 0)
        else:
            entries, loose = self._write_parts(node, offset, data)
        if offset + length > node.size:
            node.size = offset + length
        if flags & WRITE_KILL:
            entries += self.kill_privileges(node)
        if not flags & WRITE_CACHED:
            node.mtime = node.ctime = time
            entries += self.save(node)
        elif (node.size, node.allocated) != before or flags & WRITE_KILL:
            entries += self.save(node)
        self.log(entries, loose)
        return length

    def _write_parts(self, node: Node, offset: int, data: bytes | memoryview) -> tuple[bytes, bytes]:
        """Large segments into objects, small ones into the journal; returns the entries and the bytes of the record
        that is left to log: one for all, or a crash between two would leave half of a write."""
        length = len(data)
        parts: list[tuple[int, int, int, bytes | Chunk]] = []
        at = 0
        for index, start, end in self._split(offset, length):
            part = data[at : at + end - start]
            parts.append((index, start, end, bytes(part) if end - start < DIRECT else self._store(part)))
            at += end - start
        entries = b""
        loose: list[bytes] = []
        place = offset
        for index, start, end, source in parts:
            if isinstance(source, Chunk):
                entries += STORE.pack(b"B", node.ino, place, end - start, source.object, source.offset, source.hash)
            else:
                loose.append(source)
                entries += WRITE.pack(b"W", node.ino, place, end - start)
            self._put(node, index, start, end, source, 0)
            place += end - start
        return entries, b"".join(loose)

    def _store(self, data: bytes | memoryview) -> Chunk:
        try:
            chunk = self.objects.append(self.serial, data)
        except OSError as error:
            raise FsError(error.errno or errno.EIO) from error
        if self.backed:
            self.owner.stored()
        return chunk

    @abstractmethod
    def kill_privileges(self, node: Node) -> bytes:
        """Clear what a change by somebody else takes away; returns the journal entry."""

    def _put(self, node: Node, index: int, start: int, end: int, source: Source, offset: int) -> None:
        self._count(node, put(self._own(node, index), start, end, source, offset))

    def _cut(self, node: Node, index: int, start: int, end: int) -> None:
        block = self.block(node, index)
        if not block:
            return
        if not start and end >= block[-1][1]:
            self._count(node, -covered(block))
            key = self._key(node, index)
            self.blocks.pop(key, None)
            self.rows[key] = None
            assert node.blocks is not None
            node.blocks[index] = []
        else:
            self._count(node, -cut(self._own(node, index), start, end))

    def _count(self, node: Node, more: int) -> None:
        node.allocated += more
        if node.nlink:
            self.used_bytes += more

    def resize(self, node: Node, size: int) -> bytes:
        """Set the size; what lies behind it becomes a hole.  Returns the journal entry.  The caller saves the node."""
        entry = b""
        if size < node.size and node.allocated:
            entry = ZERO.pack(b"Z", node.ino, size, MAX_SIZE, 0)
            self._clear(node, size, MAX_SIZE)
        node.size = size
        return entry

    def _clear(self, node: Node, start: int, end: int) -> None:
        size = self.block_size
        for index in self.indexes(node):
            low, high = index * size, (index + 1) * size
            if high > start and low < end:
                self._cut(node, index, max(start - low, 0), min(end - low, size))

    def _fill(self, node: Node, start: int, end: int, over: bool) -> None:
        """Allocate zeros: everywhere (`over`), or in the holes alone."""
        for index, low, high in self._split(start, end - start):
            if over:
                self._put(node, index, low, high, None, 0)
                continue
            at = low
            for extent in [e for e in self.block(node, index) if e[1] > low and e[0] < high]:
                if extent[0] > at:
                    self._put(node, index, at, extent[0], None, 0)
                at = extent[1]
            if at < high:
                self._put(node, index, at, high, None, 0)

    def fallocate(
        self, node: Node, mode: int, offset: int, length: int, space: int = MAX_SIZE, *, kill: bool = False
    ) -> None:
        """fallocate(2) without COLLAPSE, INSERT and UNSHARE.  Allocated zeros are counted, not reserved on the disk;
        more than `space` bytes are refused.  `kill`: the caller's changes clear set-id bits.
        Errors: FsError EOPNOTSUPP, EINVAL, EFBIG, ENOSPC."""
        if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE) or (mode & PUNCH_HOLE and mode != PUNCH_HOLE | KEEP_SIZE):
            raise FsError(errno.EOPNOTSUPP)
        if offset < 0 or length <= 0:
            raise FsError(errno.EINVAL)
        end = offset + length
        self.check_size(node, end)
        if not mode & PUNCH_HOLE and length > space:
            raise FsError(errno.ENOSPC)
        time = self.begin(frees=bool(mode & PUNCH_HOLE))
        kind = 0 if mode & PUNCH_HOLE else 1 if mode & ZERO_RANGE else 2
        self._shape(node, offset, end, kind)
        if not mode & KEEP_SIZE:
            node.size = max(node.size, end)
        node.mtime = node.ctime = time
        entries = ZERO.pack(b"Z", node.ino, offset, end, kind)
        if kill:
            entries += self.kill_privileges(node)
        self.log(entries + self.save(node))

    def _shape(self, node: Node, start: int, end: int, kind: int) -> None:
        if kind:
            self._fill(node, start, end, kind == 1)
        else:
            self._clear(node, start, end)

    # sharing
    def copy_range(
        self, source: Node, start: int, target: Node, offset: int, length: int, *, kill: bool = False
    ) -> int:
        """copy_file_range(2) without copying: the target's blocks name the source's chunks.  Returns how many bytes.
        Errors: FsError EISDIR, EINVAL, EFBIG."""
        if not source.is_file or not target.is_file:
            raise FsError(errno.EISDIR if source.kids is not None or target.kids is not None else errno.EINVAL)
        length = min(length, SHARE_LIMIT, max(source.size - start, 0))
        if length <= 0:
            return 0
        self.check_size(target, offset + length)
        if source is target and start < offset + length and offset < start + length:
            raise FsError(errno.EINVAL)
        time = self.begin()
        self._share(source, start, target, offset, length)
        target.size = max(target.size, offset + length)
        target.mtime = target.ctime = time
        entries = self.kill_privileges(target) if kill else b""
        entries += SHARE.pack(b"C", source.ino, start, target.ino, offset, length)
        self.log(entries + self.save(target))
        return length

    def _share(self, source: Node, start: int, target: Node, offset: int, length: int) -> None:
        for index, low, high in self._split(start, length):
            for count, piece, place in list(pieces(self.block(source, index), low, high)):
                skip = place
                for to, first, last in self._split(offset, count):
                    if piece is None:
                        self._cut(target, to, first, last)
                    else:
                        self._put(target, to, first, last, piece, skip)
                        skip += last - first
                offset += count

    # reading
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

    # replay: the same changes, from a journal
    def replay_write(self, ino: int, offset: int, data: bytes) -> None:
        node = self.node(ino)
        at = 0
        for index, start, end in self._split(offset, len(data)):
            self._put(node, index, start, end, data[at : at + end - start], 0)
            at += end - start

    def replay_store(self, ino: int, offset: int, chunk: Chunk) -> None:
        node = self.node(ino)
        for index, start, end in self._split(offset, chunk.length):
            self._put(node, index, start, end, chunk, 0)

    def replay_zero(self, ino: int, start: int, end: int, kind: int) -> None:
        self._shape(self.node(ino), start, end, kind)

    def replay_share(self, source: int, start: int, target: int, offset: int, length: int) -> None:
        self._share(self.node(source), start, self.node(target), offset, length)


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
