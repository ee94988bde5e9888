"""What comes from a provider, on its way into the copy of its object.

Bytes come in order, a step at a time, on the thread that receives them: while they are in the processor's cache they
are hashed and written, so that a chunk can be read as soon as its last byte has come, and nothing is in memory longer.
Nothing waits for the disk: a copy may vanish.

A chunk is marked as verified only when it is right and written.  Pieces that something was here of are not written
again: chunks in them may have been verified, and readers be at them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from threading import Lock

from xxhash import xxh3_128, xxh3_128_digest

from artfs.blocks import Chunk
from artfs.objects.writing import PIECE, write_all

Write = Callable[[int, bytes | memoryview, int, int], object]
"""write(descriptor, data, position, piece): all of the data, in pieces that end at multiples of `piece`."""

_one_writes = Lock()


def write(fd: int, data: bytes | memoryview, at: int, piece: int = PIECE) -> None:
    """One caller at a time: whoever waits for the lock that the kernel has of a file spins.  Errors: OSError."""
    with _one_writes:
        write_all(fd, (data,), at)


class Incoming:
    """Takes the bytes of an object of `size` bytes from `start` on, for its copy, which is number `copy`.  `skipped`:
    pieces of `piece` bytes that are not written; `chunks`, which may grow meanwhile, are verified as they come, and
    `came` is called after some were.  `error`: why no more was written.

    Concurrency: called by one thread at a time; `close` when that is over."""

    def __init__(
        self,
        path: Path,
        size: int,
        start: int,
        piece: int,
        skipped: AbstractSet[int],
        chunks: Sequence[Chunk],
        copy: int,
        came: Callable[[], object],
        write: Write = write,
    ) -> None:
        self.end = start
        self.error: OSError | None = None
        self._path = path
        self._size = size
        self._start = start
        self._piece = piece
        self._skipped = skipped
        self._chunks = chunks
        self._copy = copy
        self._came = came
        self._put = write
        self._fd = -1
        self._known = 0
        self._unfinished: list[tuple[Chunk, xxh3_128 | None]] = []

    def __call__(self, at: int, data: bytes) -> None:
        """The bytes `at` bytes behind the start; those that came before, of a request that broke off, are left."""
        at += self._start
        if self.error is not None or at + len(data) <= self.end:
            return
        view = memoryview(data)[self.end - at :]
        right = self._right(self.end, view)
        try:
            self._write(self.end, view)
        except OSError as error:
            self.error = error
            return
        self.end += len(view)
        for chunk in right:
            chunk.verified = self._copy
        if right:
            self._came()

    def _right(self, at: int, data: memoryview) -> list[Chunk]:
        """The chunks that end in these bytes, and are what they should be."""
        end = at + len(data)
        right = []
        chunks = self._begun(at)
        for i, (chunk, hasher) in enumerate(chunks):
            if chunk.offset >= end:
                self._unfinished += chunks[i:]
                break
            last = chunk.offset + chunk.length
            part = data[max(chunk.offset - at, 0) : last - at]
            if last <= end and hasher is None:
                digest = xxh3_128_digest(part)
            else:
                so_far = hasher or xxh3_128()
                so_far.update(part)
                if last > end:
                    self._unfinished.append((chunk, so_far))
                    continue
                digest = so_far.digest()
            if digest == chunk.hash:
                right.append(chunk)
        return right

    def _begun(self, at: int) -> list[tuple[Chunk, xxh3_128 | None]]:
        """The chunks that are not finished, in order, and those that became known since the last step and will come;
        takes them."""
        found, self._unfinished = self._unfinished, []
        if len(self._chunks) > self._known:
            new = self._chunks[self._known :]
            self._known += len(new)
            known = {id(chunk) for chunk, _ in found}
            for chunk in {id(chunk): chunk for chunk in new}.values():
                pieces = range(
                    chunk.offset // self._piece, (chunk.offset + max(chunk.length, 1) - 1) // self._piece + 1
                )
                if chunk.offset >= at and id(chunk) not in known and self._skipped.isdisjoint(pieces):
                    found.append((chunk, None))
            found.sort(key=lambda item: item[0].offset)
        return found

    def _write(self, at: int, data: memoryview) -> None:
        if self._fd < 0:
            self._fd = _opened(self._path, self._size)
        while data:
            count = min(self._piece - at % self._piece, len(data)) if self._skipped else len(data)
            if not (self._skipped and at // self._piece in self._skipped):
                self._put(self._fd, data[:count], at, PIECE)
            at, data = at + count, data[count:]

    def close(self) -> int:
        """Returns the bytes that the copy takes on the disk; 0 if nothing came."""
        if self._fd < 0:
            return 0
        fd, self._fd = self._fd, -1
        try:
            return os.fstat(fd).st_blocks * 512
        finally:
            os.close(fd)


def write_chunk(path: Path, size: int, offset: int, data: bytes) -> int:
    """Into the copy of an object of `size` bytes.  Returns the bytes that the copy takes on the disk."""
    fd = _opened(path, size)
    try:
        write(fd, data, offset)
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def _opened(path: Path, size: int) -> int:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)  # an earlier one may be longer, or cut short
    except OSError:
        os.close(fd)
        raise
    return fd
