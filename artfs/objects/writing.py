"""Bytes on their way into the files of objects: in pieces, and into an object of one writer's own.

A large write is divided into writes of `PIECE` bytes.  The kernel takes memory for the pages of one write in pieces as
large as the write allows; such memory is scarce, or is only had from the host of a virtual machine when it is touched:
1 MiB at once takes 2 to 8 times as long as 64 KiB sixteen times (Linux 6.18, ext4), which are never slower.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from xxhash import xxh3_128_digest

from artfs.blocks import Chunk

if TYPE_CHECKING:
    from artfs.objects.local import LocalObjects

PIECE = 64 << 10
"""Bytes of one write, at most; they end at multiples of it."""
VECTOR = 512
"""Buffers of one write, at most."""

Bytes = bytes | memoryview


def write_all(fd: int, datas: Sequence[Bytes], at: int) -> None:
    """All of them, one behind the other, from `at` on.  Errors: OSError."""
    for parts in _pieces(datas, at):
        want = sum(map(len, parts))
        done = os.pwritev(fd, parts, at)
        while done < want:
            done += os.pwrite(fd, b"".join(parts)[done:], at + done)
        at += want


def _pieces(datas: Sequence[Bytes], at: int) -> Iterator[list[Bytes]]:
    """What one write takes each."""
    room = PIECE - at % PIECE
    parts: list[Bytes] = []
    for data in datas:
        rest = data
        while len(rest) >= room:
            view = memoryview(rest)
            yield [*parts, view[:room]]
            parts, rest, room = [], view[room:], PIECE
        if len(rest):
            parts.append(rest)
            room -= len(rest)
        if len(parts) == VECTOR:
            yield parts
            parts = []
    if parts:
        yield parts


class ExactObject:
    """An object that holds one stream of bytes and nothing else: each `write` is a chunk.  Nothing may name the chunks
    before `LocalObjects.sync`, unless a journal record does; `close` when everything that names them is logged."""

    def __init__(self, local: LocalObjects, number: int, fd: int) -> None:
        self.number = number
        self.size = 0
        self._local = local
        self._fd = fd
        self._over = False

    def write(self, data: Bytes) -> Chunk:
        """From any thread.  Errors: OSError."""
        local = self._local
        chunk = Chunk(self.number, self.size, len(data), xxh3_128_digest(data), 1)
        write_all(self._fd, (data,), self.size)
        self.size += len(data)
        local._wrote(self._fd, False)
        if self.number >> 32 in local.backed:
            with local._lock:
                local.waiting += len(data)
        return chunk

    def close(self) -> None:
        """It takes no more, and may be uploaded; nothing if that was said before."""
        local = self._local
        if self._over:
            return
        self._over = True
        with local._lock:
            local._exact.discard(self.number)
            local._let_go(self._fd)
            if self.number >> 32 in local.backed:
                local._writing[self.number] = 0
                local._close(self.number, self.size)

    def abort(self) -> None:
        """Nothing names it: it is gone."""
        self.close()
        self._local.remove(self.number)
