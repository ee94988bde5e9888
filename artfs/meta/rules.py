"""The rules that every engine shares, as pure functions: what is versioned, what a batch may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from artfs.errors import InvalidError
from artfs.meta import Batch, Change
from artfs.types import Epoch, Serial

PLAIN = b"\x60"
"""Keys from here on are plain, keys below are versioned."""

FIRST = Epoch(1)
"""The epoch at which a namespace, and a clone, begins."""


def prefix_range(prefix: bytes, after: bytes) -> tuple[bytes, bytes | None]:
    """(first, end) of the keys that begin with `prefix` and are greater than `after`; `None` is no end."""
    first = after + b"\0" if after >= prefix else prefix
    stem = prefix.rstrip(b"\xff")
    return first, stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def require_newer(serial: Serial, epoch: Epoch, newest: Epoch) -> None:
    """A row that a checkpoint sees must never change, so nothing is born at or before the newest one."""
    if epoch < FIRST or epoch <= newest:
        raise InvalidError(f"epoch {epoch} of namespace {serial} is not newer than its newest checkpoint ({newest})")


def require_valid(batches: Sequence[Batch], newest: Callable[[Serial], Epoch]) -> dict[int, Epoch]:
    """Check all batches before the first changes something; the newest checkpoint that each of them meets.

    `newest(serial)` is the epoch of the newest checkpoint, 0 if there is none.  Raises InvalidError.
    """
    latest: dict[Serial, Epoch] = {}
    met: dict[int, Epoch] = {}
    for index, batch in enumerate(batches):
        met[index] = latest[batch.serial] if batch.serial in latest else newest(batch.serial)
        require_newer(batch.serial, batch.epoch, met[index])
        latest[batch.serial] = met[index]
        if batch.checkpoint is not None:
            if batch.checkpoint.epoch != batch.epoch:
                raise InvalidError(f"checkpoint {batch.checkpoint.epoch} in a batch of epoch {batch.epoch}")
            latest[batch.serial] = batch.epoch
    return met


def changes(before: Mapping[bytes, bytes], after: Mapping[bytes, bytes]) -> list[Change]:
    """The keys whose values differ, in order of keys."""
    keys: Iterable[bytes] = sorted(before.keys() | after.keys())
    pairs = ((key, before.get(key), after.get(key)) for key in keys)
    return [Change(key, old, new) for key, old, new in pairs if old != new]
