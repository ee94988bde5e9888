"""Checkpoints by ioctl, for programs that have a file or directory of a mount open.

Every request takes and returns one struct of 560 bytes, little-endian, on any inode of a namespace:

    char     name[256];    in: the checkpoint (or, to clone, the new namespace); NUL-terminated
    char     other[256];   in: a description (checkpoint) or the checkpoint to clone from (clone)
    uint64_t epoch;        out: of the checkpoint made, deleted, or taken for safety before a restore
    uint64_t created;      out: nanoseconds since 1970
    uint64_t bytes, inodes;   out: what the namespace held then
    char     reserved[16];

Numbers: `_IOWR('A', n, struct)` with n = 1 checkpoint, 2 restore, 3 delete, 4 clone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from artfs.meta import Checkpoint

NAME = 256
Place = str | os.PathLike[str] | int
"""A path, or an open descriptor."""
REQUEST = Struct(f"<{NAME}s{NAME}sQQQQ16s")


def _number(n: int) -> int:
    return 3 << 30 | REQUEST.size << 16 | ord("A") << 8 | n


CHECKPOINT, RESTORE, DELETE, CLONE = (_number(n) for n in (1, 2, 3, 4))


@dataclass(frozen=True, slots=True)
class Result:
    """What the request returned; zeros for a clone."""

    name: str
    epoch: int
    created: int
    bytes: int
    inodes: int


def pack_names(name: str, other: str = "") -> bytes:
    """Errors: ValueError for names of 256 bytes and more."""
    first, second = os.fsencode(name), os.fsencode(other)
    if max(len(first), len(second)) >= NAME:
        raise ValueError(f"names have at most {NAME - 1} bytes")
    return REQUEST.pack(first, second, 0, 0, 0, 0, b"")


def unpack_names(data: bytes) -> tuple[str, str]:
    first, second, *_ = REQUEST.unpack(data.ljust(REQUEST.size, b"\0")[: REQUEST.size])
    return os.fsdecode(first.split(b"\0")[0]), os.fsdecode(second.split(b"\0")[0])


def pack_result(checkpoint: Checkpoint | None) -> bytes:
    if checkpoint is None:
        return bytes(REQUEST.size)
    return REQUEST.pack(
        os.fsencode(checkpoint.id)[: NAME - 1],
        b"",
        checkpoint.epoch,
        checkpoint.created,
        *checkpoint.usage,
        b"",
    )


def checkpoint(path: Place, name: str = "", description: str = "") -> Result:
    """Make a checkpoint of the namespace that holds `path` (or the open descriptor).  Errors: OSError."""
    return _call(path, CHECKPOINT, name, description)


def restore(path: Place, name: str) -> Result:
    """Restore it; returns the safety checkpoint.  Errors: OSError, ENOENT for an unknown one."""
    return _call(path, RESTORE, name)


def delete(path: Place, name: str) -> Result:
    """Errors: OSError, ENOENT for an unknown one."""
    return _call(path, DELETE, name)


def clone(path: Place, name: str, checkpoint: str = "") -> None:
    """Branch the namespace, or one of its checkpoints, as namespace `name` in the same scope.  Errors: OSError."""
    _call(path, CLONE, name, checkpoint)


def _call(path: Place, command: int, name: str, other: str = "") -> Result:
    with _descriptor(path) as fd:
        answer = fcntl.ioctl(fd, command, pack_names(name, other))
    found, _, epoch, created, size, inodes, _ = REQUEST.unpack(answer)
    return Result(os.fsdecode(found.split(b"\0")[0]), epoch, created, size, inodes)


@contextmanager
def _descriptor(path: Place) -> Iterator[int]:
    if isinstance(path, int):
        yield path
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
