"""What rows name: one pass over the block rows of all namespaces and versions, in one snapshot.

Held in memory is a number of 8 bytes for each chunk that is named, whatever the number of rows that name it.
"""

from __future__ import annotations

from array import array
from contextlib import closing
from struct import Struct
from threading import Event
from time import sleep

from artfs.blocks import Chunk
from artfs.meta import Engine
from artfs.volume.rows import STORED, unpack_block

BLOCKS = b"B", b"b"
"""What the keys of rows that name objects begin with."""
BURST = 128
"""Rows that are read before others may have the interpreter."""
_ONE = Struct(">IIBQQI16sI")
"""A block of one piece that is stored."""
_LENGTH_BITS = 24
"""Of a length within a place; longer ranges take several."""
_LENGTH = (1 << _LENGTH_BITS) - 1


class StoppedError(Exception):
    """Nobody wants the answer any more."""


class Live:
    """The ranges of one object that rows name, each once, whatever the number of rows.  `names` counts pieces."""

    __slots__ = ("_next", "_places", "names")

    def __init__(self) -> None:
        self.names = 0
        self._places = array("Q")
        self._next = 64

    def add(self, offset: int, length: int) -> None:
        self.names += 1
        while length > _LENGTH:
            self._places.append(offset << _LENGTH_BITS | _LENGTH)
            offset += _LENGTH
            length -= _LENGTH
        self._places.append(offset << _LENGTH_BITS | length)
        if len(self._places) >= self._next:
            self._places = array("Q", set(self._places))
            self._next = 2 * len(self._places) + 64

    def bytes(self) -> int:
        return sum(place & _LENGTH for place in set(self._places))


def mark(engine: Engine, stop: Event) -> dict[int, Live]:
    """What rows name, by object.  In a thread, until it is told to `stop`.
    Errors: DamagedError: a row that cannot be read may name anything."""
    found: dict[int, Live] = {}
    with closing(engine.named(BLOCKS)) as rows:
        for count, row in enumerate(rows):
            if not count % BURST:
                sleep(0)  # the loop must not wait for the interpreter as long as it would take it by force
                if stop.is_set():
                    raise StoppedError
            for number, offset, length in named_in(row.value):
                live = found.get(number)
                if live is None:
                    live = found[number] = Live()
                live.add(offset, length)
    return found


def named_in(value: bytes) -> list[tuple[int, int, int]]:
    """(object, offset, length) of the chunks that a block's row names.  Errors: DamagedError."""
    if len(value) == _ONE.size:
        _, _, kind, number, offset, length, _, _ = _ONE.unpack(value)
        if kind == STORED:
            return [(number, offset, length)]
    return [(c.object, c.offset, c.length) for _, _, c, _ in unpack_block(value) if isinstance(c, Chunk)]
