"""Engines: transactional stores of rows.  They know no POSIX and no meaning of a key or a value.

A *row* is (serial, key, value).  A key whose first byte is below 0x60 (an upper-case letter) is **versioned**: it is
valid for a half-open range of epochs, [born, died); the head sees the rows that have not died.  Checkpoint c sees
`born <= c < died`.  A key whose first byte is 0x60 or above (a lower-case letter) is **plain**: one value, replaced
in place, in no checkpoint, restore, clone or difference.

Invariants:
1. per (serial, key) ranges never overlap, and at most one row has not died;
2. a head row born at or before the namespace's newest checkpoint is never changed, only retired (died := epoch of the
   batch); one born after it is replaced or deleted in place; `swap` alone puts another value in a row's place;
3. a retired row is seen by at least one checkpoint, else it is gone;
4. a call that changes something is one transaction: all of it or nothing, durable when it returns.

Concurrency: the calls that change something run in one thread at a time (any thread); `get`, `scan`, `records`,
`record` and `named` may run meanwhile in another and see the last transaction that has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from artfs.types import Epoch, Serial


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A named, pinned epoch of a namespace.

    `serial` numbers its view's inodes; `usage` is (bytes, inodes) of the head when it was made; `created` is in
    nanoseconds since 1970; `labels` any JSON object.
    """

    epoch: Epoch
    id: str
    name: str
    created: int
    serial: Serial
    usage: tuple[int, int]
    description: str = ""
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Batch:
    """Changes of one namespace within one epoch; `None` as a value deletes the row.

    Versioned rows are born at `epoch`; what they replace is retired at `epoch` if a checkpoint sees it.  `checkpoint`,
    if any, is made after the rows and has this epoch, so that what comes later belongs to `epoch + 1`.
    """

    serial: Serial
    epoch: Epoch
    rows: dict[bytes, bytes | None]
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What a restore or a difference does to one versioned key."""

    key: bytes
    before: bytes | None
    after: bytes | None


class Row(NamedTuple):
    """A row of the head, or a retired one: (serial, key, born) is one row's alone."""

    serial: Serial
    key: bytes
    born: Epoch
    value: bytes


class Engine(Protocol):
    """Where rows live.  Errors: NoSpaceError, DamagedError, UnavailableError."""

    # rows
    def get(self, serial: Serial, key: bytes, at: Epoch | None = None) -> bytes | None:
        """The value of `key` in the head, or as checkpoint epoch `at` saw it."""

    def scan(
        self, serial: Serial, prefix: bytes, at: Epoch | None = None, after: bytes = b"", limit: int = -1
    ) -> list[tuple[bytes, bytes]]:
        """(key, value) of every row whose key begins with `prefix` and is greater than `after`, in order of keys."""

    def commit(
        self,
        batches: Sequence[Batch],
        records: Mapping[tuple[str, str], str | None] = {},
        *,
        freeing: bool = False,
    ) -> None:
        """All batches, in order, and the records (see `records`), in one transaction.

        `freeing` says that it frees space: on a full disk it may use what the engine keeps in reserve for that.
        Raises InvalidError, before anything is changed, for an epoch not newer than the newest checkpoint.
        """

    # versions
    def checkpoints(self, serial: Serial) -> list[Checkpoint]:
        """In order of epochs."""

    def update_checkpoint(self, serial: Serial, checkpoint: Checkpoint) -> None:
        """Replace the description of the checkpoint with that epoch."""

    def changed_by_restore(self, serial: Serial, at: Epoch) -> list[Change]:
        """What `restore` would do to the versioned keys of the head; costs the rows born or died since `at`."""

    def restore(self, serial: Serial, at: Epoch, epoch: Epoch, then: Mapping[bytes, bytes | None]) -> None:
        """Make the head's versioned rows what checkpoint `at` saw, new ones born at `epoch`; then apply `then`,
        as a batch at `epoch` would.  REQUIRES: `epoch` is greater than every checkpoint's."""

    def delete_checkpoint(self, serial: Serial, at: Epoch) -> None:
        """Forget the checkpoint and free the retired rows that no remaining one sees."""

    def diff(self, serial: Serial, a: Epoch, b: Epoch | None) -> list[Change]:
        """Keys whose value at `a` differs from that at `b` (None: the head), in order of keys; costs the rows born or
        died in between.  REQUIRES: a <= b."""

    def clone(
        self,
        serial: Serial,
        at: Epoch | None,
        target: Serial,
        rows: Mapping[bytes, bytes | None],
        records: Mapping[tuple[str, str], str | None],
    ) -> None:
        """Copy the versioned rows seen at `at` (None: the head) to the empty namespace `target`, born at epoch 1;
        then `rows` and `records`, in the same transaction."""

    def destroy(self, serials: Collection[Serial], records: Mapping[tuple[str, str], str | None] = {}) -> None:
        """Delete every row and checkpoint of the namespaces, and apply `records`, in the same transaction."""

    def serials(self) -> set[Serial]:
        """Every namespace that has a row or a checkpoint (for fsck)."""

    # every version at once, for the collection of garbage
    def named(self, prefixes: Sequence[bytes], serials: Collection[Serial] | None = None) -> Generator[Row, None, None]:
        """Every row, retired ones too, whose key begins with one of `prefixes` (a byte each), of all namespaces or of
        these, as they are at one moment: that of the first `next`.  Changes go on meanwhile.  REQUIRES: it is closed
        or run to its end, soon: until then the engine keeps what later transactions replace."""

    def swap(self, rows: Sequence[tuple[Row, bytes]], records: Mapping[tuple[str, str], str | None] = {}) -> bool:
        """Put a value in the place of each row's, wherever the row is by now, head or retired; and the records.
        False, and nothing has changed, if one of the rows is gone or has another value."""

    # records: the catalogue's documents, (kind, id) -> text
    def record(self, kind: str, id: str) -> str | None: ...

    def records(self, kind: str) -> dict[str, str]: ...

    def check(self) -> list[str]:
        """What is wrong with the database itself and with the invariants above, a line each."""

    def statistics(self) -> Mapping[str, int]:
        """rows, retired, checkpoints, bytes (on disk), wal_bytes."""

    def close(self) -> None: ...


def merged(*layers: Iterable[tuple[bytes, bytes | None]]) -> list[tuple[bytes, bytes]]:
    """Rows of several layers, the first the newest, as one list in order of keys; a `None` hides what lies below."""
    rows: dict[bytes, bytes | None] = {}
    for layer in reversed(layers):
        rows.update(layer)
    return sorted((key, value) for key, value in rows.items() if value is not None)
