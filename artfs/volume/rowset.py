"""A namespace's rows as its owner sees them: what is not committed yet over what the engine has.

Changes gather in a `Pending` batch.  `cut` closes it (for a commit, or because a checkpoint ends its epoch) and opens
the next; from then on its dicts and the lists in it are never changed, so that a thread may seal and commit it while
the tree goes on.  Reads go through the open batch, the closed ones (newest first), and the engine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from artfs.blocks import Block
from artfs.errors import ArtfsError, DamagedError
from artfs.meta import Checkpoint, Engine, merged
from artfs.types import Epoch, Serial
from artfs.volume.rows import BLOCK_KEY, HEAD_KEY, Head, unpack_block
from artfs.volume.waiting import MustWait

NEW = Head(1, 1, 2, 0, 0, 0)
"""The counters of a namespace in which nothing is."""


class Pending:
    """Changes within one epoch: rows (None: deleted), and blocks whose extents are not sealed, by key."""

    __slots__ = ("blocks", "checkpoint", "epoch", "rows")

    def __init__(self, epoch: int, rows: dict[bytes, bytes | None] | None = None) -> None:
        self.epoch = epoch
        self.rows: dict[bytes, bytes | None] = {} if rows is None else rows
        self.blocks: dict[bytes, Block] = {}
        self.checkpoint: Checkpoint | None = None

    def __bool__(self) -> bool:
        return bool(self.rows or self.blocks or self.checkpoint)


class RowSet:
    """`fresh`: the engine has no row of it yet; `first`: those on their way there.  `at` is the epoch of a checkpoint
    whose rows are seen instead of the head's; nothing is pending then.  While a restore changes the engine's rows,
    `moving` is what a reader of them waits for: nodes in memory are of before."""

    def __init__(
        self,
        engine: Engine,
        serial: Serial,
        at: Epoch | None = None,
        fresh: bool = False,
        first: dict[bytes, bytes | None] | None = None,
    ) -> None:
        self.engine = engine
        self.serial = serial
        self.at = at
        value = first[HEAD_KEY] if first else None if fresh else engine.get(serial, HEAD_KEY)
        self.head = Head.unpack(value) if value else NEW
        self.epoch = self.head.epoch
        self.closed_batches: list[Pending] = []
        if first:
            self.closed_batches.append(Pending(self.epoch, first))
        self.open_batch = Pending(self.epoch)
        self.rows = self.open_batch.rows
        self.blocks = self.open_batch.blocks
        self.moving: Callable[[], Awaitable[None]] | None = None

    def damaged(self, error: ArtfsError) -> None:
        """The engine's rows cannot be read: whoever owns them hears of it before the caller does."""

    def _stored(self, key: bytes) -> bytes | None:
        if self.moving is not None:
            raise MustWait(self.moving)
        try:
            return self.engine.get(self.serial, key, self.at)
        except DamagedError as error:
            self.damaged(error)
            raise

    def _listed(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        if self.moving is not None:
            raise MustWait(self.moving)
        try:
            return self.engine.scan(self.serial, prefix, self.at)
        except DamagedError as error:
            self.damaged(error)
            raise

    def get(self, key: bytes) -> bytes | None:
        """REQUIRES: not the key of a block that is being written."""
        rows = self.rows
        if key in rows:
            return rows[key]
        for batch in reversed(self.closed_batches):
            if key in batch.rows:
                return batch.rows[key]
        return self._stored(key)

    def get_block(self, key: bytes) -> Block:
        """The block's extents; the list belongs to whatever batch it comes from."""
        for batch in (self.open_batch, *reversed(self.closed_batches)):
            block = batch.blocks.get(key)
            if block is not None:
                return block
            if key in batch.rows:
                value = batch.rows[key]
                return unpack_block(value) if value else []
        value = self._stored(key)
        return unpack_block(value) if value else []

    def scan(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Rows by prefix, in order of keys.  REQUIRES: not a prefix of blocks (see `block_indexes`)."""
        below = self._listed(prefix)
        above = [
            [(k, v) for k, v in batch.rows.items() if k.startswith(prefix)]
            for batch in (self.open_batch, *reversed(self.closed_batches))
            if batch.rows
        ]
        return merged(*above, below) if any(above) else below

    def block_indexes(self, prefix: bytes) -> list[int]:
        """Indexes of the blocks of the inode whose keys begin with `prefix` (9 bytes)."""
        found = {key for key, _ in self._listed(prefix)}
        for batch in (*self.closed_batches, self.open_batch):
            for key, value in batch.rows.items():
                if key.startswith(prefix):
                    if value is None:
                        found.discard(key)
                    else:
                        found.add(key)
            found.update(key for key in batch.blocks if key.startswith(prefix))
        return sorted(BLOCK_KEY.unpack_from(key, 1)[1] for key in found)

    def cut(self) -> None:
        """Close the open batch, if it holds anything."""
        if self.open_batch:
            self.closed_batches.append(self.open_batch)
            self.open_batch = Pending(self.epoch)
            self.rows = self.open_batch.rows
            self.blocks = self.open_batch.blocks
