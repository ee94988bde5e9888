"""Sealing: the bytes of closed batches become chunks in objects, and their blocks rows.

Runs in a thread over lists that nobody changes any more.  A `Sealed` says where each source went, so that later batches
and the tree's own lists, which may still hold the same bytes, name the chunk instead of writing them again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from artfs.blocks import Block, Chunk, Extent, runs
from artfs.errors import DamagedError
from artfs.objects.local import LocalObjects
from artfs.volume.rows import pack_block

MAX_PIECES = 256
"""A block with more pieces than this has its runs rewritten as one chunk each, so that reading it stays cheap."""
INLINE_PIECES = 8
WRITE_SIZE = 8 << 20


class Sealed:
    """`places`: id of a source → (the source itself, [(from, to, chunk, offset in it)])."""

    def __init__(self) -> None:
        self.places: dict[int, tuple[bytes, list[tuple[int, int, Chunk, int]]]] = {}

    def note(self, source: bytes, start: int, end: int, chunk: Chunk, offset: int) -> None:
        found = self.places.setdefault(id(source), (source, []))
        found[1].append((start, end, chunk, offset))

    def swap(self, block: Block) -> None:
        """Name the chunks of what is sealed by now, in place."""
        for i, (start, end, source, offset) in enumerate(block):
            if source.__class__ is not bytes:
                continue
            for low, high, chunk, at in self.places.get(id(source), (b"", []))[1]:
                if low <= offset and offset + end - start <= high:
                    block[i] = (start, end, chunk, at + offset - low)
                    break


@dataclass(slots=True)
class _Group:
    """Touching extents that become one chunk; `origins` (source, from, to, place in `data`)."""

    start: int
    end: int
    data: bytes
    origins: list[tuple[bytes, int, int, int]]
    chunk: Chunk | None = field(default=None)

    def sealed(self) -> Extent:
        return self.start, self.end, self.chunk, 0


def seal(
    objects: LocalObjects, serial: int, blocks: dict[bytes, Block], inline_limit: int, sealed: Sealed
) -> tuple[dict[bytes, bytes | None], dict[bytes, Block]]:
    """The rows of `blocks`, and their sealed lists.  REQUIRES: `objects.sync` before the rows are committed.
    Errors: OSError, DamagedError."""
    plans: dict[bytes, list[Extent | _Group]] = {}
    groups: list[_Group] = []
    for key, block in blocks.items():
        current = block.copy()
        sealed.swap(current)
        plan = plans[key] = _plan(objects, current, inline_limit)
        groups += [part for part in plan if isinstance(part, _Group)]
    _append(objects, serial, groups, sealed)
    done = {key: [part.sealed() if isinstance(part, _Group) else part for part in plan] for key, plan in plans.items()}
    return {key: pack_block(block) or None for key, block in done.items()}, done


def _plan(objects: LocalObjects, block: Block, inline_limit: int) -> list[Extent | _Group]:
    """What stays as it is, and what becomes a chunk."""
    loose = [extent for extent in block if extent[2].__class__ is bytes]
    if not loose or (len(loose) <= INLINE_PIECES and sum(e - s for s, e, _, _ in loose) <= inline_limit):
        return list(block)
    plan: list[Extent | _Group] = []
    rewrite = len(block) - len(loose) > MAX_PIECES
    for run in runs(block):
        if rewrite and len(run) > 1 and run[0][2] is not None:
            whole = _rewritten(objects, run)
            if whole is not None:
                plan.append(whole)
                continue
        touching: list[Extent] = []
        for extent in run:
            if extent[2].__class__ is bytes:
                touching.append(extent)
                continue
            if touching:
                plan.append(_group(objects, touching))
                touching = []
            plan.append(extent)
        if touching:
            plan.append(_group(objects, touching))
    return plan


def _rewritten(objects: LocalObjects, run: list[Extent]) -> _Group | None:
    """None: that is for later, because a provider would have to be asked for some of it.  Errors: DamagedError."""
    try:
        return _group(objects, run)
    except DamagedError:  # a copy that is not here, or no longer
        if not objects.backed:
            raise
        return None


def _group(objects: LocalObjects, extents: list[Extent]) -> _Group:
    parts: list[bytes] = []
    origins: list[tuple[bytes, int, int, int]] = []
    first = extents[0][0]
    for start, end, source, offset in extents:
        if isinstance(source, Chunk):
            parts.append(objects.read(source)[offset : offset + end - start])
        else:
            assert source is not None
            parts.append(source[offset : offset + end - start])
            origins.append((source, offset, offset + end - start, start - first))
    return _Group(first, extents[-1][1], parts[0] if len(parts) == 1 else b"".join(parts), origins)


def _append(objects: LocalObjects, serial: int, groups: list[_Group], sealed: Sealed) -> None:
    at = 0
    while at < len(groups):
        size = 0
        stop = at
        while stop < len(groups) and (stop == at or size + len(groups[stop].data) <= WRITE_SIZE):
            size += len(groups[stop].data)
            stop += 1
        chunks = objects.append_all(serial, [group.data for group in groups[at:stop]])
        for group, chunk in zip(groups[at:stop], chunks, strict=True):
            group.chunk = chunk
            for source, start, end, place in group.origins:
                sealed.note(source, start, end, chunk, place)
        at = stop
