"""Changes of the bytes of files: blocks, holes, and what copies share; `artfs.volume.reading` has the other half.

Small writes go into the journal and stay in memory until a commit seals them; a segment of `DIRECT` bytes or more goes
straight into an object, and only its address into the journal.

A block's list of extents may be changed in place only while the open batch holds that very list (`_own`): lists in
closed batches are being sealed, lists in no batch are what the engine has.
"""

from __future__ import annotations

import errno
from abc import abstractmethod

from artfs.blocks import Block, Chunk, Source, covered, cut, pieces, put
from artfs.errors import FsError
from artfs.volume.journal import SHARE, STORE, WRITE, ZERO
from artfs.volume.node import Node
from artfs.volume.reading import Reading
from artfs.volume.rows import BLOCK_KEY
from artfs.volume.rowset import Pending
from artfs.volume.seal import Sealed

DIRECT = 64 << 10
MAX_SIZE = (1 << 63) - 1
WRITE_CACHED, WRITE_KILL = 1, 4
"""FUSE's FUSE_WRITE_CACHE and FUSE_WRITE_KILL_SUIDGID."""
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
SHARE_LIMIT = 1 << 30
"""Most bytes that one copy_file_range shares."""


class Data(Reading):
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

    # commits
    def committed(self, batches: list[Pending], sealed: Sealed, lists: dict[int, Block]) -> None:
        """The engine has these batches, the oldest of the closed ones; `lists` gives their blocks' sealed extents."""
        del self.closed_batches[: len(batches)]
        for batch in batches:
            for key, old in batch.blocks.items():
                ino, index = BLOCK_KEY.unpack_from(key, 1)
                node = self.nodes.get(ino)
                if node is not None and node.blocks is not None and node.blocks.get(index) is old:
                    node.blocks[index] = lists[id(old)]
                for later in (*self.closed_batches, self.open_batch):
                    block = later.blocks.get(key)
                    if block is not None:
                        sealed.swap(block)

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
