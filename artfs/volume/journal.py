"""The owner's log: every acknowledged change, before its reply.

A zero-filled file of fixed size, used as a ring.  Positions grow for ever; position p lies at `p % size`.  A record is

    u32 length of the entries | u32 length of the data | u32 serial of the namespace | u64 check | entries | data

and `check` is the XXH3-64 of all of it, seeded by its predecessor's check, so that a record is valid only behind the
one that it was written behind.  A record never wraps: where the rest of the ring is too short, a length of
0xFFFFFFFF skips it.  The entries:

    R u16 key length, u32 value length (0xFFFFFFFF: deleted), key, value        a row
    O u64 ino, u32 value length, value                                          an inode that lost its last name
    W u64 ino, u64 offset, u32 length                                           bytes written: the next of the data
    B u64 ino, u64 offset, u32 length, u64 object, u64 offset in it, 16 bytes hash     bytes written into an object
    Z u64 ino, u64 start, u64 end, u8 kind                                      a hole (0) or allocated zeros (1)
    C u64 from, u64 offset, u64 to, u64 offset, u64 length                      blocks shared by copy_file_range
    K u32 length, JSON                                                          a checkpoint
    N u32 length, JSON                                                          a new namespace
    U u32 length, JSON                                                          a namespace's new document

Invariants:
1. `append`, or the `release` behind it, has handed the record to the kernel when it returns: it survives a killed
   process, and power loss after the next fdatasync of `fd`;
2. replay starts at the state (position, check) that the engine stored with its last batch and stops at the first record
   whose check fails; whoever replays then commits all of it and calls `restart`, which begins a new chain with a random
   check, so that nothing written before can follow what is written after;
3. `free` lets go of what the engine has; the last eighth of the ring takes only changes that free space.

One thread appends; `free` is called by the same one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from secrets import randbits
from struct import Struct
from struct import error as StructError
from time import perf_counter_ns
from typing import Protocol

from xxhash import xxh3_64_intdigest

from artfs.errors import DamagedError, NoSpaceError

RECORD = Struct("<IIIQ")
SKIP = 0xFFFFFFFF
ROW = Struct(">cHI")
DELETED = 0xFFFFFFFF
ORPHAN = Struct(">cQI")
WRITE = Struct(">cQQI")
STORE = Struct(">cQQIQQ16s")
ZERO = Struct(">cQQQB")
SHARE = Struct(">cQQQQQ")
CHECKPOINT = Struct(">cI")
NAMESPACE = Struct(">cI")
LARGEST = 2 << 20
"""No record is longer than this: a write of 1 MiB with its rows."""

TOGETHER = 64 << 10
"""Bytes of records that are written at once, about."""
PAGE = 4096
ZEROS = bytes(PAGE)


class Log(Protocol):
    """What a tree needs of a journal."""

    fd: int
    used: int
    soft: int
    hard: int

    def append(self, serial: int, body: bytes, data: bytes | memoryview = b"") -> None: ...

    def hold(self) -> None: ...

    def release(self) -> None: ...


class NoJournal:
    """The log of a store that lives in memory alone: nothing to replay, no bound but the caller's memory."""

    fd = -1
    used = 0
    soft = hard = 1 << 62

    def append(self, serial: int, body: bytes, data: bytes | memoryview = b"") -> None:
        pass

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass


class Journal:
    """See the module.  `used` grows by `append` and shrinks by `free`; at `soft` writers wait, at `hard` all do.
    The ring has the `size` that it had when the engine's state was stored until `restart`, which takes in all the file.
    `pwritev` may be one that keeps the interpreter's lock: giving it away for each record costs more than the record
    while another thread computes."""

    # fmt: off
    __slots__ = (
        "_file_size", "_held", "_held_at", "_held_size",
        "check", "fd", "hard", "path", "position", "pwritev", "size", "soft", "tail", "used",
    )
    # fmt: on

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        before = os.fstat(self.fd).st_size
        self._file_size = max(size, before)
        if before < size:
            self._fill(before, size)
        self.position = self.tail = self.used = 0
        self.check = 0
        self._held: list[bytes | memoryview] | None = None
        self._held_at = self._held_size = 0
        self.pwritev: Callable[[int, Sequence[bytes | memoryview], int], int] = os.pwritev
        self._resize(self._file_size)

    def _resize(self, size: int) -> None:
        self.size = size
        self.hard = size - LARGEST
        self.soft = size - max(size // 8, 2 * LARGEST)

    def _fill(self, before: int, size: int) -> None:
        """Zeros written, not only allocated: later writes change no metadata, so that fdatasync writes data alone."""
        zeros = bytes(1 << 20)
        try:
            for at in range(before, size, len(zeros)):
                os.pwrite(self.fd, zeros[: size - at], at)
            os.fsync(self.fd)
        except OSError as error:
            os.ftruncate(self.fd, before)
            os.close(self.fd)
            raise NoSpaceError(
                f"no room for the journal {self.path} ({size >> 20} MiB): {error.strerror}; free some space"
            ) from error

    def append(self, serial: int, body: bytes, data: bytes | memoryview = b"") -> None:
        """REQUIRES: `used` is below `hard`."""
        rows = len(body)
        length = len(data)
        if rows + length > LARGEST:
            raise OSError(errno.EMSGSIZE, "a record of the journal is longer than replay takes")
        need = RECORD.size + rows + length
        at = self.position % self.size
        rest = self.size - at
        if rest < need:
            self._write_held()
            if rest >= RECORD.size:
                os.pwrite(self.fd, RECORD.pack(SKIP, 0, 0, 0), at)
            self.position += rest
            self.used += rest
            at = 0
        check = xxh3_64_intdigest(body, self.check ^ rows ^ length << 32 ^ serial)
        if length:
            check = xxh3_64_intdigest(data, check)
        head = RECORD.pack(rows, length, serial, check)
        if self._held is None:
            self._write((head, body, data), at, need)
        else:
            if not self._held:
                self._held_at = at
            self._held += (head, body, data)
            self._held_size += need
        self.check = check
        self.position += need
        self.used += need
        if self._held_size >= TOGETHER:
            self._write_held()

    def _write(self, parts: tuple[bytes | memoryview, ...], at: int, size: int) -> None:
        # The rest of a page that is entered is written with it: a page that is written in part, and is not cached,
        # waits for the disk to read it (80 us instead of 3).  What lies behind is free: `hard` keeps that room.
        rest = -(at + size) & (PAGE - 1) if (at + size - 1) >> 12 != (at - 1) >> 12 else 0
        if self.pwritev(self.fd, (*parts, ZEROS[:rest]), at) != size + rest:
            raise OSError(5, "short write to the journal")

    def hold(self) -> None:
        """Until `release` records are written together, and are not acknowledged before.  REQUIRES: no await in
        between, and nobody else who looks at the file or its `state`."""
        self._held = []

    def release(self) -> None:
        """Errors: OSError; what was appended since `hold` may be lost then."""
        try:
            self._write_held()
        finally:
            self._held = None

    def _write_held(self) -> None:
        if self._held:
            parts, size = (b"".join(self._held),), self._held_size
            self._held, self._held_size = [], 0
            self._write(parts, self._held_at, size)

    def free(self, position: int) -> None:
        """All before `position` is in the engine."""
        self.tail = position
        self.used = self.position - position

    def state(self) -> str:
        """What `seek` needs to go on from here, as text."""
        return f"{self.position} {self.check} {self.size}"

    def seek(self, state: str) -> None:
        position, check, size = state.split()
        self.position = self.tail = int(position)
        self.used = 0
        self.check = int(check)
        self._resize(min(int(size), self._file_size))

    def restart(self) -> None:
        """Begin a new chain: no record that lies in the ring can follow one that is appended from here on.
        REQUIRES: what `replay` gave is applied, and the next thing that is committed is `state`."""
        self.check = randbits(64)
        self._resize(self._file_size)

    def replay(self) -> Iterator[tuple[int, bytes, bytes]]:
        """(serial, entries, data) of each valid record from here on; the position moves behind each that is taken."""
        start = self.position
        while self.position - start < self.size:
            at = self.position % self.size
            rest = self.size - at
            if rest < RECORD.size:
                self.position += rest
                continue
            rows, length, serial, check = RECORD.unpack(os.pread(self.fd, RECORD.size, at))
            if rows == SKIP:
                self.position += rest
                continue
            if not rows or rows + length > LARGEST or rows + length + RECORD.size > rest:
                return
            body = os.pread(self.fd, rows, at + RECORD.size)
            data = os.pread(self.fd, length, at + RECORD.size + rows)
            found = xxh3_64_intdigest(body, self.check ^ rows ^ length << 32 ^ serial)
            if check != (xxh3_64_intdigest(data, found) if length else found):
                return
            yield serial, body, data
            self.check = check
            self.position += RECORD.size + rows + length
            self.used = self.position - self.tail

    def sync(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class TimedJournal(Journal):
    """Counts the nanoseconds that appending takes."""

    __slots__ = ("nanoseconds",)

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, size)
        self.nanoseconds = 0

    def append(self, serial: int, body: bytes, data: bytes | memoryview = b"") -> None:
        start = perf_counter_ns()
        super().append(serial, body, data)
        self.nanoseconds += perf_counter_ns() - start


def entries(body: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each entry.  Errors: DamagedError."""
    at = 0
    while at < len(body):
        kind = body[at : at + 1]
        try:
            if kind == b"R":
                _, key, value = ROW.unpack_from(body, at)
                end = at + ROW.size + key + (0 if value == DELETED else value)
            elif kind == b"O":
                end = at + ORPHAN.size + ORPHAN.unpack_from(body, at)[2]
            elif kind in (b"K", b"N", b"U"):
                end = at + CHECKPOINT.size + CHECKPOINT.unpack_from(body, at)[1]
            else:
                end = at + {b"W": WRITE, b"B": STORE, b"Z": ZERO, b"C": SHARE}[kind].size
        except (KeyError, StructError) as error:
            raise DamagedError(f"a journal record cannot be read: {error!r}") from error
        if end > len(body):
            raise DamagedError("a journal record is cut short")
        yield kind, at, end
        at = end
