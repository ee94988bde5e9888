"""A BLOB's bytes as one object with exactly them, so that a URL can be given to it.

A BLOB that was written from start to end is one already.  Any other is copied once into a new object, and its blocks
name that instead: the same bytes, so nothing else about the file changes, its times neither.  The change needs no
record in the journal, as losing it loses nothing; it is committed before anything relies on it.

An object that is being made is named by nothing: `Making` is what keeps garbage collection off it.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from anyio import to_thread
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from artfs.blocks import Chunk
from artfs.errors import BusyError, DamagedError, FsError, InvalidError
from artfs.vfs.open import Reading
from artfs.volume.node import Node
from artfs.volume.tree import BLOB_DATA, Tree
from artfs.volume.waiting import run

SLICE = 1024
"""Blocks that one step looks at, or changes."""
ATTEMPTS = 3
STEP = 64 << 20
"""Bytes of a file that one call of a thread hashes."""
Commit = Callable[[], Awaitable[None]]
Shape = tuple[tuple[int, int, object, int], ...]


@dataclass(frozen=True, slots=True)
class Exact:
    """Object `number` is the concatenation of `chunks`, `size` bytes; `etag` tells them from any others."""

    number: int
    size: int
    etag: str
    chunks: tuple[Chunk, ...]


class Making:
    """Numbers of objects that nothing names yet, by how many work at them."""

    def __init__(self) -> None:
        self.numbers: Counter[int] = Counter()

    @contextmanager
    def keep(self, number: int) -> Iterator[None]:
        self.numbers[number] += 1
        try:
            yield
        finally:
            self.numbers[number] -= 1
            if not self.numbers[number]:
                del self.numbers[number]


class _Changed(Exception):
    """Somebody wrote meanwhile."""


def described(number: int, chunks: Sequence[Chunk]) -> Exact:
    size = sum(chunk.length for chunk in chunks)
    return Exact(number, size, xxh3_128_hexdigest(b"".join(chunk.hash for chunk in chunks)), tuple(chunks))


def data_node(tree: Tree) -> Node:
    """The one file of a BLOB.  Plain, as a function of a tree.  Errors: InvalidError, DamagedError."""
    if not tree.blob:
        raise InvalidError("only a BLOB is one object; this is a WORKSPACE")
    node = tree.lookup(tree.root(), BLOB_DATA)
    if node is None:
        raise DamagedError("a BLOB has no _data; run: artfs fsck")
    return node


async def find(tree: Tree) -> Exact | None:
    """The object that has exactly the file's bytes, as far as its rows tell; None: there is none, or it is empty."""
    chunks: list[Chunk] = []
    first = size = 0
    while True:
        found, whole = await run(_part, tree, first, size, chunks[0].object if chunks else None)
        if found is None:
            return None
        chunks += found
        first += SLICE
        size += sum(chunk.length for chunk in found)
        if first * tree.block_size >= whole:
            return described(chunks[0].object, chunks) if chunks and size == whole else None


def _part(tree: Tree, first: int, offset: int, number: int | None) -> tuple[list[Chunk] | None, int]:
    node = data_node(tree)
    return _contiguous(tree, node, first, offset, number), node.size


def _contiguous(tree: Tree, node: Node, first: int, offset: int, number: int | None) -> list[Chunk] | None:
    """Of the blocks from `first` on: their chunks, if they lie in one object from `offset` on, and cover the blocks."""
    chunks = []
    count = -(-node.size // tree.block_size)
    for index in range(first, min(first + SLICE, count)):
        at = 0
        for start, end, source, skip in tree.block(node, index):
            if not isinstance(source, Chunk) or start != at or skip or source.length != end - start:
                return None
            number = source.object if number is None else number
            if source.object != number or source.offset != offset:
                return None
            chunks.append(source)
            offset += source.length
            at = end
        if at != min(tree.block_size, node.size - index * tree.block_size):
            return None
    return chunks


async def rewrite(tree: Tree, making: Making, commit: Commit) -> Exact:
    """Copy the file's bytes into a new object, which its blocks name from then on; committed when this returns.
    Errors: BusyError if somebody goes on writing; FsError EROFS, ENOSPC, EIO; OSError; as `commit`."""
    for _ in range(ATTEMPTS):
        await commit()  # what is not sealed yet would look changed when it is
        try:
            return await _copied(tree, making, commit)
        except _Changed:
            pass
    raise BusyError("the BLOB is being written; try again when its writer is done")


async def _copied(tree: Tree, making: Making, commit: Commit) -> Exact:
    size = (await run(data_node, tree)).size
    reading = Reading(tree, await run(data_node, tree))
    target = tree.objects.begin_exact(tree.serial)
    named = False
    try:
        with making.keep(target.number):
            shapes: list[Shape] = []
            chunks: list[Chunk] = []
            for index in range(-(-size // tree.block_size)):
                offset = index * tree.block_size
                shape = await run(_shape, reading, index, size)
                data = await reading.read(offset, min(tree.block_size, size - offset))
                if await run(_shape, reading, index, size) != shape or offset + len(data) < min(
                    offset + tree.block_size, size
                ):
                    raise _Changed
                shapes.append(shape)
                chunks.append(await to_thread.run_sync(target.write, data))
            for first in range(0, len(chunks), SLICE):
                await run(_swap, reading, size, first, shapes[first : first + SLICE], chunks[first : first + SLICE])
                named = True
            target.close()
            await commit()
    except BaseException as error:
        if not named:
            target.abort()
        else:
            target.close()
        if isinstance(error, FsError) and error.errno == errno.ESTALE:
            raise _Changed from error
        raise
    finally:
        reading.release()
    return described(target.number, chunks)


def _shape(reading: Reading, index: int, size: int) -> Shape:
    """What a block consists of, to be compared."""
    node = reading.node()
    if node.size != size:
        raise _Changed
    return tuple(
        (start, end, (source.object, source.offset, source.length) if isinstance(source, Chunk) else source, skip)
        for start, end, source, skip in reading.tree.block(node, index)
    )


def _swap(reading: Reading, size: int, first: int, shapes: list[Shape], chunks: list[Chunk]) -> None:
    tree, node = reading.tree, reading.node()
    for index, shape in enumerate(shapes, first):
        if _shape(reading, index, size) != shape:
            raise _Changed
    tree.begin()
    for index, chunk in enumerate(chunks, first):
        tree.replay_store(node.ino, index * tree.block_size, chunk)
    tree.save(node)
    tree.owner.changed.add(tree)


async def fill(tree: Tree, chunks: Sequence[Chunk]) -> None:
    """Make `chunks`, a block each, the content of a BLOB that is empty.  Nothing of this is in the journal: it is there
    when a commit has it.  Errors: FsError EROFS, ENOSPC, EIO."""

    def step(first: int) -> None:
        node = data_node(tree)
        time = tree.begin()
        for index, chunk in enumerate(chunks[first : first + SLICE], first):
            tree.replay_store(node.ino, index * tree.block_size, chunk)
            node.size += chunk.length
        node.mtime = node.ctime = time
        tree.save(node)
        tree.owner.changed.add(tree)

    for first in range(0, len(chunks), SLICE):
        await run(step, first)


# files that become objects as they are
class Digests:
    """The hashes of a stream's blocks: `add` any pieces, in order, then `finish`."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.found: list[tuple[int, bytes]] = []
        self._rest = bytearray()

    def add(self, data: bytes) -> None:
        self._rest += data
        size = self.block_size
        if len(self._rest) >= size:
            whole = len(self._rest) // size * size
            with memoryview(self._rest) as view:
                self.found += [(size, xxh3_128_digest(view[at : at + size])) for at in range(0, whole, size)]
            del self._rest[:whole]

    def finish(self) -> list[tuple[int, bytes]]:
        """(length, hash) of each block."""
        if self._rest:
            self.found.append((len(self._rest), xxh3_128_digest(bytes(self._rest))))
            self._rest.clear()
        return self.found


def chunks_of(number: int, digests: Sequence[tuple[int, bytes]]) -> list[Chunk]:
    chunks = []
    offset = 0
    for length, digest in digests:
        chunks.append(Chunk(number, offset, length, digest))
        offset += length
    return chunks


async def digest_file(fd: int, size: int, block_size: int) -> list[tuple[int, bytes]]:
    """Of the file's first `size` bytes.  Errors: OSError."""
    digests = Digests(block_size)
    step = max(STEP // block_size, 1) * block_size

    def work(offset: int) -> None:
        for at in range(offset, min(offset + step, size), block_size):
            digests.add(os.pread(fd, min(block_size, size - at), at))

    for offset in range(0, size, step):
        await to_thread.run_sync(work, offset)
    return digests.finish()
