"""Extents of a block: pure arithmetic.

A *block* is a fixed-size piece of a file.  Its content is a list of **extents** `(start, end, source, offset)`: bytes
`start..end` of the block are those of `source` from `offset` on.  The list is sorted, without overlap; what no extent
covers is a hole.  A source is `bytes` (not sealed yet, or inline), a `Chunk` (immutable bytes in an object), or `None`:
zeros that are allocated (fallocate).

A list that a batch has frozen is never changed again: a writer copies it first.  Nothing here does I/O.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


class Chunk:
    """Immutable bytes `(object, offset, length)` with their XXH3-128; `verified`: the local copy of the object whose
    bytes matched in this process, counted from 1 (see `artfs.objects.local`); 0: none."""

    __slots__ = ("hash", "length", "object", "offset", "verified")

    def __init__(self, object: int, offset: int, length: int, hash: bytes, verified: int = 0) -> None:
        self.object = object
        self.offset = offset
        self.length = length
        self.hash = hash
        self.verified = verified


Source = bytes | Chunk | None
Extent = tuple[int, int, Source, int]
Block = list[Extent]


def _first(block: Block, start: int) -> int:
    """Index of the first extent that ends behind `start`."""
    # (start,) sorts before every extent that begins there: no key function, no Python call per comparison.
    at = bisect_left(block, (start,))
    return at - 1 if at and block[at - 1][1] > start else at


def put(block: Block, start: int, end: int, source: Source, offset: int = 0) -> int:
    """Cover `start..end` with `source`; returns how many bytes were a hole before."""
    if not block or block[-1][1] <= start:
        block.append((start, end, source, offset))
        return end - start
    return (end - start) - _replace(block, start, end, [(start, end, source, offset)])


def cut(block: Block, start: int, end: int) -> int:
    """Make `start..end` a hole; returns how many bytes were covered before."""
    if not block or block[-1][1] <= start:
        return 0
    return _replace(block, start, end, [])


def _replace(block: Block, start: int, end: int, new: Block) -> int:
    first = _first(block, start)
    last = first
    covered = 0
    head: Block = []
    tail: Block = []
    while last < len(block) and block[last][0] < end:
        s, e, source, offset = block[last]
        covered += min(e, end) - max(s, start)
        if s < start:
            head = [(s, start, source, offset)]
        if e > end:
            tail = [(end, e, source, offset + end - s)]
        last += 1
    block[first:last] = head + new + tail
    return covered


def pieces(block: Block, start: int, end: int) -> Iterator[tuple[int, Source, int]]:
    """`start..end` in order as (length, source, offset in the source); a hole is `(length, None, 0)`.
    REQUIRES: start < end."""
    at = start
    for i in range(_first(block, start), len(block)):
        s, e, source, offset = block[i]
        if s >= end:
            break
        if s > at:
            yield s - at, None, 0
            at = s
        stop = min(e, end)
        yield stop - at, source, offset + at - s
        at = stop
    if at < end:
        yield end - at, None, 0


def covered(block: Block) -> int:
    """Bytes that are not a hole."""
    return sum(e - s for s, e, _, _ in block)


def next_data(block: Block, start: int) -> int | None:
    """The first offset from `start` on that holds data (allocated zeros are none), or None."""
    for s, e, source, _ in block:
        if e > start and source is not None:
            return max(s, start)
    return None


def next_hole(block: Block, start: int) -> int:
    """The first offset from `start` on that holds no data."""
    at = start
    for s, e, source, _ in block:
        if e <= at:
            continue
        if s > at or source is None:
            break
        at = e
    return at


def runs(block: Block) -> Iterator[Block]:
    """The extents in groups that touch each other and hold data; allocated zeros are groups of their own."""
    group: Block = []
    for extent in block:
        if group and (group[-1][1] != extent[0] or (group[-1][2] is None) != (extent[2] is None)):
            yield group
            group = []
        group.append(extent)
    if group:
        yield group
