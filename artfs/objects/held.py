"""The objects of a store in memory: bytes that are held as they came, without a copy and without a descriptor.

A chunk is what one write brought; reading it, or a part of it, gives those bytes.  Nothing here ends up on a disk, so
there is nothing to sync, to upload or to evict.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from xxhash import xxh3_128_digest

from artfs.blocks import Chunk
from artfs.errors import DamagedError
from artfs.objects import OBJECT_LIMIT, object_number
from artfs.objects.local import LocalObjects
from artfs.objects.writing import ExactObject

ADOPTED = 1 << 20
"""Bytes of one piece of an object that was a file."""


class HeldObjects(LocalObjects):
    """As `LocalObjects`; from any thread."""

    def __init__(self) -> None:
        super().__init__(None)
        self._held: dict[int, dict[int, dict[int, bytes]]] = {}

    def _append(self, serial: int, datas: Sequence[bytes | memoryview], sealing: bool) -> list[Chunk]:
        key = serial, sealing
        size = sum(len(data) for data in datas)
        digests = [xxh3_128_digest(data) for data in datas]
        chunks = []
        with self._lock:
            _, number, at = self._open.get(key) or (-1, self._number(serial), 0)
            if at + size > OBJECT_LIMIT and at and serial not in self.unbounded:
                number, at = self._number(serial), 0
            pieces = self._held[serial][number]
            for data, digest in zip(datas, digests, strict=True):
                pieces[at] = bytes(data)
                chunks.append(Chunk(number, at, len(data), digest, 1))
                at += len(data)
            self._open[key] = -1, number, at
        return chunks

    def _number(self, serial: int) -> int:
        """Of a new object.  REQUIRES: the lock."""
        number = object_number(serial, self.counts[serial])
        self.counts[serial] += 1
        self._held.setdefault(serial, {})[number] = {}
        return number

    def begin_exact(self, serial: int) -> ExactObject:
        with self._lock:
            self._use(-1)
            return _HeldExact(self, self._number(serial))

    def allocate(self, serial: int) -> int:
        with self._lock:
            return self._number(serial)

    def adopt(self, number: int, source: Path | int, size: int) -> None:
        assert isinstance(source, int)
        for at in range(0, size, ADOPTED):
            self.hold(number, at, os.pread(source, ADOPTED, at))

    def hold(self, number: int, at: int, data: bytes) -> None:
        with self._lock:
            self._held[number >> 32][number][at] = data

    def sync(self) -> None:
        pass

    # reading
    def piece(self, chunk: Chunk, skip: int, count: int) -> bytes:
        """Errors: DamagedError."""
        pieces = self._held.get(chunk.object >> 32, {}).get(chunk.object)
        if pieces is None:
            raise DamagedError(f"object {chunk.object:x} is not in memory")
        start = chunk.offset + skip
        piece = pieces.get(chunk.offset)
        if piece is not None and len(piece) >= skip + count:
            return piece if count == len(piece) else piece[skip : skip + count]
        found = []
        with self._lock:
            places = sorted(pieces)
        for place in places[max(bisect_right(places, start) - 1, 0) :]:
            if place >= start + count:
                break
            found.append(pieces[place][max(start - place, 0) : start + count - place])
        data = b"".join(found)
        if len(data) != count:
            raise DamagedError(f"object {chunk.object:x} ends before {start + count}")
        return data

    def read(self, chunk: Chunk) -> bytes:
        data = self.piece(chunk, 0, chunk.length)
        if not chunk.verified:
            if xxh3_128_digest(data) != chunk.hash:
                raise DamagedError(f"object {chunk.object:x} is damaged at {chunk.offset}+{chunk.length}")
            chunk.verified = 1
        return data

    def size(self, number: int) -> int:
        with self._lock:
            return _end(self._held[number >> 32][number])

    def sizes(self, serial: int) -> dict[int, int]:
        """Number → size of the namespace's objects."""
        with self._lock:
            return {number: _end(pieces) for number, pieces in self._held.get(serial, {}).items()}

    # ending
    def _drop(self, number: int) -> None:
        with self._lock:
            self.copies[number] = self.copies.get(number, 1) + 1
            self._held.get(number >> 32, {}).pop(number, None)

    def delete(self, serial: int) -> None:
        """The namespace's objects are gone; no row names a chunk of them."""
        with self._lock:
            self._held.pop(serial, None)

    def close(self) -> None:
        self._held.clear()
        self._open.clear()


class _HeldExact(ExactObject):
    def __init__(self, held: HeldObjects, number: int) -> None:
        super().__init__(held, number, -1)
        self._held = held

    def write(self, data: bytes | memoryview) -> Chunk:
        chunk = Chunk(self.number, self.size, len(data), xxh3_128_digest(data), 1)
        self._held.hold(self.number, self.size, bytes(data))
        self.size += len(data)
        return chunk


def _end(pieces: dict[int, bytes]) -> int:
    return max((at + len(data) for at, data in pieces.items()), default=0)
