"""Compaction: the live chunks of mostly dead objects move to a new object, so that the old one is garbage.

Each step leaves what a crash may find: chunks are copied (verified) and durable before a row names them; rows change
their address alone, in one transaction; the old object stays until two marks have found it unnamed, so who holds an
old chunk reads the right bytes from it.

Rows are swapped namespace by namespace, with changes of the namespace held up and nothing pending, and what nodes in
memory hold of these blocks is dropped before changes go on: no list that names the old object can be written back.
A row that has changed since it was read is left alone; it names what exists, the old object or another.

The new object is born where the old one was.  Where that namespace is gone, it is born in one that names the old one;
if there are several, that one has lent it to the others from then on.

REQUIRES: no mark runs meanwhile (the new object has no name until the swap), see `artfs.volume.gc`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from time import sleep

from anyio import to_thread

from artfs.blocks import Block, Chunk
from artfs.errors import DamagedError, FsError
from artfs.meta import Engine, Row
from artfs.types import NamespaceType, Serial
from artfs.volume.catalogue import Namespace
from artfs.volume.marks import BLOCKS, BURST
from artfs.volume.rows import BLOCK_KEY, pack_block, unpack_block
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree
from artfs.volume.volume import Volume

log = logging.getLogger(__name__)

LIVE_SHARE = 0.3
"""An object of which less is live is rewritten,"""
DEAD_BYTES = 256 << 10
"""if at least this many bytes are won."""
ROUND = 100_000
"""Pieces that are moved after one look at all rows."""
SLICE = 5_000
"""Rows that are swapped while changes wait."""
WRITE_SIZE = 8 << 20

Place = tuple[int, int, int, bytes]
"""(object, offset, length, hash) of a chunk."""


def is_wasteful(size: int, live: int) -> bool:
    """Whether most of an object's bytes are garbage, and enough of them."""
    return live < size * LIVE_SHARE and size - live >= DEAD_BYTES


def is_sparse(namespace: Namespace | None, size: int, live: int) -> bool:
    """Whether an object that was born there (None: a namespace that is gone) is worth to be rewritten.  A BLOB's object
    is exactly its bytes, and URLs lead to it: never."""
    return not (namespace and namespace.type is NamespaceType.BLOB) and live > 0 and is_wasteful(size, live)


@dataclass(slots=True)
class _Found:
    """`rows` that name chunks of the objects, those chunks, and the namespaces that name each."""

    rows: list[Row] = field(default_factory=list)
    chunks: dict[Place, Chunk] = field(default_factory=dict)
    namers: dict[Place, set[Serial]] = field(default_factory=dict)


class Compaction:
    """`views`: open trees of checkpoints."""

    def __init__(self, shard: Shard, views: Callable[[], Iterable[Tree]]) -> None:
        self.shard = shard
        self.views = views

    async def run(self, objects: dict[int, int]) -> int:
        """Rewrite these objects (number → pieces that name it); returns how many.
        Errors: NoSpaceError, UnavailableError, OSError; what was moved by then stays moved."""
        count = 0
        some: set[int] = set()
        pieces = 0
        for number, names in sorted(objects.items()):
            if some and pieces + names > ROUND:
                count += await self._round(some)
                some, pieces = set(), 0
            some.add(number)
            pieces += names
        return count + (await self._round(some) if some else 0)

    async def _round(self, objects: set[int]) -> int:
        shard = self.shard
        found = await to_thread.run_sync(_find, shard.engine, objects)
        moved, left = await self._copy(found)
        if not moved:
            return 0
        # Also commits, and so syncs what was appended.
        await self.shard.keep_numbers({chunk.object for chunk in moved.values()})
        for serial, rows in groupby(sorted(found.rows), key=lambda row: row.serial):
            changes = [(row, new) for row in rows if (new := _rewritten(row.value, moved)) != row.value]
            for start in range(0, len(changes), SLICE):
                await self._swap(serial, changes[start : start + SLICE])
        return len(objects - left)

    async def _copy(self, found: _Found) -> tuple[dict[Place, Chunk], set[int]]:
        """The new chunk for each place, and the objects that have to stay as they are."""
        moved: dict[Place, Chunk] = {}
        left: set[int] = set()
        targets = {place: self._target(place, found.namers[place]) for place in found.chunks}
        for target, places in groupby(sorted(found.chunks, key=lambda place: (targets[place], place)), targets.get):
            assert target is not None
            group: list[Place] = []
            size = 0
            for place in places:
                if group and size + place[2] > WRITE_SIZE:
                    await self._copy_group(found, target, group, moved, left)
                    group, size = [], 0
                group.append(place)
                size += place[2]
            await self._copy_group(found, target, group, moved, left)
        return {place: chunk for place, chunk in moved.items() if place[0] not in left}, left

    def _target(self, place: Place, namers: Collection[Serial]) -> Serial:
        """Where a chunk goes."""
        born = Serial(place[0] >> 32)
        return born if born in self.shard.catalogue.by_serial else min(namers)

    async def _copy_group(
        self, found: _Found, serial: Serial, group: list[Place], moved: dict[Place, Chunk], left: set[int]
    ) -> None:
        shard = self.shard
        datas: list[bytes] = []
        good: list[Place] = []
        for place in group:
            try:
                if place[0] not in left:
                    datas.append(await shard.remote.read(found.chunks[place]))
                    good.append(place)
            except DamagedError as error:
                log.error("an object is not compacted: %s", error)
                left.add(place[0])
        namespace = shard.catalogue.by_serial.get(serial)
        if namespace is None or namespace.type is NamespaceType.BLOB:  # destroyed; a clone of one that is gone
            left.update(place[0] for place in group)
            return
        if good:
            if any(found.namers[place] != {serial} for place in good):
                shard.catalogue.lend(namespace)
            shard.tree(namespace)  # has its numbers registered
            chunks = await to_thread.run_sync(shard.objects.append_all, serial, datas)
            if serial in shard.catalogue.by_serial:
                moved.update(zip(good, chunks, strict=True))
            else:
                if serial not in shard.catalogue.lent:
                    await shard.remote.discard_namespaces([serial])  # once more: it may have been buried in between
                left.update(place[0] for place in group)

    async def _swap(self, serial: Serial, changes: Sequence[tuple[Row, bytes]]) -> None:
        shard = self.shard
        namespace = shard.catalogue.by_serial.get(serial)
        if namespace is None:
            return
        volume = Volume(shard, namespace)
        try:
            async with volume.exclusive():
                async with shard.committing():
                    await to_thread.run_sync(_swap_rows, shard.engine, changes)
                keys = {row.key for row, _ in changes}
                for tree in (volume.tree, *(view for view in self.views() if view.serial == serial)):
                    _drop(tree, keys)
        except FsError as error:
            log.warning("%s is not compacted: %s", namespace.grid_path, error)


def _find(engine: Engine, objects: Collection[int]) -> _Found:
    found = _Found()
    with closing(engine.named(BLOCKS)) as rows:
        for count, row in enumerate(rows):
            if not count % BURST:
                sleep(0)
            named = [c for _, _, c, _ in unpack_block(row.value) if isinstance(c, Chunk) and c.object in objects]
            if named:
                found.rows.append(row)
                for chunk in named:
                    found.chunks[_place(chunk)] = chunk
                    found.namers.setdefault(_place(chunk), set()).add(Serial(row.serial))
    return found


def _place(chunk: Chunk) -> Place:
    return chunk.object, chunk.offset, chunk.length, chunk.hash


def _rewritten(value: bytes, moved: dict[Place, Chunk]) -> bytes:
    block: Block = []
    for start, end, source, skip in unpack_block(value):
        if isinstance(source, Chunk):
            source = moved.get(_place(source), source)  # noqa: PLW2901
        block.append((start, end, source, skip))
    return pack_block(block)


def _swap_rows(engine: Engine, changes: Sequence[tuple[Row, bytes]]) -> None:
    """All of them but those that have changed."""
    if engine.swap(changes) or len(changes) == 1:
        return
    middle = len(changes) // 2
    _swap_rows(engine, changes[:middle])
    _swap_rows(engine, changes[middle:])


def _drop(tree: Tree, keys: Iterable[bytes]) -> None:
    """Have these blocks read again."""
    for key in keys:
        ino, index = BLOCK_KEY.unpack_from(key, 1)
        node = tree.nodes.get(ino)
        if node is not None and node.blocks is not None:
            node.blocks.pop(index, None)
