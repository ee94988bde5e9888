"""The engine in memory: the twin of the sqlite engine, for tests and memory stores, with the same answers.

A namespace is a `_Space`: a dict of head rows, a dict of retired ones, its checkpoints.  A checkpoint is O(1); a
restore, a difference and the deletion of a checkpoint cost the keys that were changed since, not the rows.

Invariants, besides those of `artfs.meta`:
1. every call holds the lock from its beginning to its end, and checks everything before it changes anything;
2. an `_Order` names every head key once (and keys that are gone);
3. `touched` has, for each checkpoint, the versioned keys that were put or deleted between it and the next.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence

from artfs.errors import ExistsError, NotFoundError, UnavailableError
from artfs.meta import Batch, Change, Checkpoint, Row
from artfs.meta.rules import FIRST, PLAIN, changes, prefix_range, require_newer, require_valid
from artfs.types import NEVER, Epoch, Serial

SMALL = 64
"""Rows of a namespace that are put in order each time."""


class _Order:
    """Keys in order, `sorted` and those that came since; `known` are all of them."""

    __slots__ = ("fresh", "known", "sorted")

    def __init__(self, keys: Collection[bytes]) -> None:
        self.sorted = sorted(keys)
        self.fresh: list[bytes] = []
        self.known = set(keys)

    def add(self, key: bytes) -> None:
        if key not in self.known:
            self.known.add(key)
            self.fresh.append(key)

    def all(self) -> list[bytes]:
        if self.fresh:
            self.sorted.extend(self.fresh)
            self.sorted.sort()
            self.fresh = []
        return self.sorted


class _Space:
    """One namespace.  There may be very many small ones: those have no `order`."""

    __slots__ = ("checkpoints", "head", "order", "retired", "touched")

    def __init__(self) -> None:
        self.head: dict[bytes, tuple[Epoch, bytes]] = {}
        self.retired: dict[bytes, list[tuple[Epoch, Epoch, bytes]]] = {}
        self.checkpoints: dict[Epoch, Checkpoint] = {}
        self.touched: dict[Epoch, set[bytes]] = {}
        self.order: _Order | None = None

    def newest(self) -> Epoch:
        return max(self.checkpoints, default=Epoch(0))

    def pin(self, checkpoint: Checkpoint) -> None:
        self.checkpoints[checkpoint.epoch] = checkpoint
        self.touched[checkpoint.epoch] = set()

    def unpin(self, at: Epoch) -> None:
        """Forget the checkpoint, and the retired rows that it alone sees: those have died before the next one."""
        del self.checkpoints[at]
        touched = self.touched.pop(at)
        epochs = sorted(self.checkpoints)
        for key in touched & self.retired.keys():
            kept = [row for row in self.retired[key] if _sees(epochs, row[0], row[1])]
            if kept:
                self.retired[key] = kept
            else:
                del self.retired[key]
        if before := [epoch for epoch in epochs if epoch < at]:
            self.touched[before[-1]] |= touched

    def apply(self, rows: Mapping[bytes, bytes | None], epoch: Epoch) -> None:
        newest = self.newest()
        if newest:
            self.touched[newest].update(key for key in rows if key < PLAIN)
        for key, value in rows.items():
            old = self.head.get(key)
            if old is not None and key < PLAIN and old[0] <= newest:
                self.retired.setdefault(key, []).append((old[0], epoch, old[1]))
            if value is None:
                self.head.pop(key, None)
                continue
            self.head[key] = (epoch, value)
            if self.order is not None:
                self.order.add(key)

    def keys(self, first: bytes, end: bytes | None) -> Iterator[bytes]:
        """Head keys of [first, end), in order."""
        order = self.order
        if order is None and len(self.head) <= SMALL:
            yield from sorted(key for key in self.head if first <= key and (end is None or key < end))
            return
        if order is None or len(order.known) > 2 * len(self.head) + SMALL:
            order = self.order = _Order(self.head)
        keys = order.all()
        for index in range(bisect_left(keys, first), len(keys)):
            key = keys[index]
            if end is not None and key >= end:
                return
            if key in self.head:
                yield key

    def value_at(self, key: bytes, at: Epoch) -> bytes | None:
        row = self.head.get(key)
        if row is not None and key < PLAIN and row[0] <= at:
            return row[1]
        return next((v for born, died, v in self.retired.get(key, ()) if born <= at < died), None)

    def view(self, at: Epoch | None) -> dict[bytes, bytes]:
        """The versioned rows that checkpoint `at`, or the head, sees."""
        if at is None:
            return {key: value for key, (_, value) in self.head.items() if key < PLAIN}
        rows = {key: value for key, (born, value) in self.head.items() if key < PLAIN and born <= at}
        for key, versions in self.retired.items():
            rows.update((key, value) for born, died, value in versions if born <= at < died)
        return rows

    def changes(self, a: Epoch, b: Epoch | None) -> list[Change]:
        """From what checkpoint `a` sees to what `b`, a later one, or the head (None) does."""
        keys = {key for epoch, keys in self.touched.items() if a <= epoch and (b is None or epoch < b) for key in keys}
        return changes(self.seen(keys, a), self.seen(keys, b))

    def seen(self, keys: Iterable[bytes], at: Epoch | None) -> dict[bytes, bytes]:
        if at is None:
            return {key: self.head[key][1] for key in keys if key in self.head}
        return {key: value for key in keys if (value := self.value_at(key, at)) is not None}


def _sees(epochs: list[Epoch], born: Epoch, died: Epoch) -> bool:
    index = bisect_left(epochs, born)
    return index < len(epochs) and epochs[index] < died


class MemoryEngine:
    """An `artfs.meta.Engine` whose rows end with it."""

    def __init__(self) -> None:
        self._spaces: dict[Serial, _Space] = {}
        self._records: dict[tuple[str, str], str] = {}
        self._lock = threading.RLock()
        self._closed = False

    def _require_open(self) -> None:
        if self._closed:
            raise UnavailableError("the memory engine is closed")

    def _space(self, serial: Serial) -> _Space:
        """What to read: an empty namespace if there is none."""
        self._require_open()
        return self._spaces.get(serial) or _Space()

    def _pinned(self, serial: Serial, at: Epoch) -> _Space:
        space = self._space(serial)
        if at not in space.checkpoints:
            raise NotFoundError(f"namespace {serial} has no checkpoint of epoch {at}")
        return space

    def _record(self, records: Mapping[tuple[str, str], str | None]) -> None:
        for name, text in records.items():
            if text is None:
                self._records.pop(name, None)
            else:
                self._records[name] = text

    # rows
    def get(self, serial: Serial, key: bytes, at: Epoch | None = None) -> bytes | None:
        with self._lock:
            space = self._space(serial)
            if at is not None:
                return space.value_at(key, at)
            row = space.head.get(key)
            return None if row is None else row[1]

    def scan(
        self, serial: Serial, prefix: bytes, at: Epoch | None = None, after: bytes = b"", limit: int = -1
    ) -> list[tuple[bytes, bytes]]:
        first, end = prefix_range(prefix, after)
        with self._lock:
            space = self._space(serial)
            found: list[tuple[bytes, bytes]] = []
            if at is None:
                for key in space.keys(first, end):
                    if len(found) == limit:
                        break
                    found.append((key, space.head[key][1]))
                return found
            keys = {key for key in space.keys(first, end) if key < PLAIN}
            keys.update(key for key in space.retired if first <= key and (end is None or key < end))
            for key in sorted(keys):
                if len(found) == limit:
                    break
                if (value := space.value_at(key, at)) is not None:
                    found.append((key, value))
            return found

    def commit(
        self,
        batches: Sequence[Batch],
        records: Mapping[tuple[str, str], str | None] = {},
        *,
        freeing: bool = False,
    ) -> None:
        with self._lock:
            self._require_open()
            require_valid(batches, lambda serial: self._space(serial).newest())
            for batch in batches:
                space = self._spaces.setdefault(batch.serial, _Space())
                space.apply(batch.rows, batch.epoch)
                if batch.checkpoint is not None:
                    space.pin(batch.checkpoint)
            self._record(records)

    # versions
    def checkpoints(self, serial: Serial) -> list[Checkpoint]:
        with self._lock:
            return [found for _, found in sorted(self._space(serial).checkpoints.items())]

    def update_checkpoint(self, serial: Serial, checkpoint: Checkpoint) -> None:
        with self._lock:
            self._pinned(serial, checkpoint.epoch).checkpoints[checkpoint.epoch] = checkpoint

    def changed_by_restore(self, serial: Serial, at: Epoch) -> list[Change]:
        with self._lock:
            space = self._pinned(serial, at)
            return [Change(c.key, c.after, c.before) for c in space.changes(at, None)]

    def restore(self, serial: Serial, at: Epoch, epoch: Epoch, then: Mapping[bytes, bytes | None]) -> None:
        with self._lock:
            space = self._pinned(serial, at)
            require_newer(serial, epoch, space.newest())
            space.apply({c.key: c.before for c in space.changes(at, None)}, epoch)
            space.apply(then, epoch)

    def delete_checkpoint(self, serial: Serial, at: Epoch) -> None:
        with self._lock:
            space = self._pinned(serial, at)
            space.unpin(at)

    def diff(self, serial: Serial, a: Epoch, b: Epoch | None) -> list[Change]:
        with self._lock:
            space = self._pinned(serial, a)
            if b is not None:
                self._pinned(serial, b)
            return space.changes(a, b)

    def clone(
        self,
        serial: Serial,
        at: Epoch | None,
        target: Serial,
        rows: Mapping[bytes, bytes | None],
        records: Mapping[tuple[str, str], str | None],
    ) -> None:
        with self._lock:
            source = self._space(serial) if at is None else self._pinned(serial, at)
            if target in self.serials():
                raise ExistsError(f"namespace {target} is not empty")
            space = self._spaces[target] = _Space()
            space.apply(source.view(at), FIRST)
            space.apply(rows, FIRST)
            self._record(records)

    def destroy(self, serials: Collection[Serial], records: Mapping[tuple[str, str], str | None] = {}) -> None:
        with self._lock:
            self._require_open()
            for serial in serials:
                self._spaces.pop(serial, None)
            self._record(records)

    def serials(self) -> set[Serial]:
        with self._lock:
            return {n for n, space in self._spaces.items() if space.head or space.retired or space.checkpoints}

    # every version at once
    def named(self, prefixes: Sequence[bytes], serials: Collection[Serial] | None = None) -> Generator[Row, None, None]:
        with self._lock:
            self._require_open()
            found: list[Row] = []
            for serial, space in self._spaces.items():
                if serials is not None and serial not in serials:
                    continue
                for key, (born, value) in space.head.items():
                    if key[:1] in prefixes:
                        found.append(Row(serial, key, born if key < PLAIN else FIRST, value))
                for key, versions in space.retired.items():
                    if key[:1] in prefixes:
                        found += [Row(serial, key, born, value) for born, _, value in versions]
        yield from found

    def swap(self, rows: Sequence[tuple[Row, bytes]], records: Mapping[tuple[str, str], str | None] = {}) -> bool:
        with self._lock:
            self._require_open()
            if not all(self._has(row) for row, _ in rows):
                return False
            for (serial, key, born, _), value in rows:
                space = self._spaces[serial]
                head = space.head.get(key)
                if head is not None and (key >= PLAIN or head[0] == born):
                    space.head[key] = (head[0], value)
                else:
                    versions = space.retired[key]
                    versions[:] = [(b, d, value if b == born else v) for b, d, v in versions]
            self._record(records)
            return True

    def _has(self, row: Row) -> bool:
        space = self._space(row.serial)
        head = space.head.get(row.key)
        if head is not None and (row.key >= PLAIN or head[0] == row.born):
            return head[1] == row.value
        return any(b == row.born and v == row.value for b, _, v in space.retired.get(row.key, ()))

    # records
    def record(self, kind: str, id: str) -> str | None:
        with self._lock:
            self._require_open()
            return self._records.get((kind, id))

    def records(self, kind: str) -> dict[str, str]:
        with self._lock:
            self._require_open()
            return {id: text for (found, id), text in self._records.items() if found == kind}

    def check(self) -> list[str]:
        with self._lock:
            wrong: list[str] = []
            for serial, space in self._spaces.items():
                epochs = sorted(space.checkpoints)
                for key, versions in space.retired.items():
                    died = Epoch(0)
                    head = [(space.head[key][0], Epoch(NEVER))] if key in space.head else []
                    for born, end in [(b, d) for b, d, _ in versions] + head:
                        if born < died or born >= end:
                            wrong.append(f"ranges overlap: namespace {serial}, key {key.hex()}, born {born}")
                        if end != NEVER and not _sees(epochs, born, end):
                            wrong.append(f"seen by no checkpoint: namespace {serial}, key {key.hex()}, born {born}")
                        died = end
            return wrong

    def statistics(self) -> Mapping[str, int]:
        with self._lock:
            spaces = self._spaces.values()
            return {
                "rows": sum(len(space.head) for space in spaces),
                "retired": sum(len(versions) for space in spaces for versions in space.retired.values()),
                "checkpoints": sum(len(space.checkpoints) for space in spaces),
                "bytes": 0,
                "wal_bytes": 0,
            }

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._spaces.clear()
            self._records.clear()
