"""The local directories of objects: where chunks are appended, and read from.

    objects/<prefix>/<count>    the only copy: of a namespace that lives here, or not yet uploaded
    cache/<prefix>/<count>      a copy of what a provider has, whole or in pieces; it may vanish at any time

Each namespace has two open objects, one for large writes and one for what commits seal, so that an fsync waits for the
first alone.  They take chunks until they are full, are closed to be uploaded, or the process ends: nothing is ever
appended to an object of an earlier process, so a torn tail is never built upon.

A chunk is *verified* against one copy of its object; when the copy is evicted the next one has another number
(`copies`), and the chunk must be verified again.

Concurrency: `append` from any thread (the place is reserved under a lock, the bytes are written outside it);
`descriptor`, `close_objects`, `uploaded` and `evict` from the loop's thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shutil import copyfile
from time import time_ns

from xxhash import xxh3_128_digest

from artfs.blocks import Chunk
from artfs.errors import DamagedError
from artfs.objects import OBJECT_LIMIT, object_number
from artfs.objects.growing import GrowingObjects
from artfs.objects.writing import ExactObject, write_all

DESCRIPTORS = 512


class LocalObjects(GrowingObjects):
    """`prefixes`: serial → path below `root`, for every namespace that ever had objects here; `unbounded`: serials
    whose objects may have any size (BLOBs).  `copies`: object → the number of its present copy, if not 1; `used`:
    objects that were read of late."""

    def __init__(self, root: Path | None) -> None:
        super().__init__()
        self.root = root
        self.cache = root.parent / "cache" if root is not None else None
        self.unbounded: set[int] = set()
        self.copies: dict[int, int] = {}
        self.used: dict[int, None] = {}
        self.prefixes: dict[int, str] = {}
        self.counts: dict[int, int] = {}
        self._folders: dict[int, int] = {}
        self._exact: set[int] = set()

    def register(self, serial: int, prefix: str, count: int, fresh: bool = False) -> None:
        """Make `prefix` the place of the namespace's objects; numbers below `count` are taken.  `fresh`: there is none
        yet."""
        self.prefixes[serial] = prefix
        if fresh or serial in self.counts:  # what is there is counted
            self.counts[serial] = max(count, self.counts.get(serial, 0))
            return
        for top in (self.root, self.cache):
            directory = top / prefix if top is not None else None
            if directory is not None and directory.is_dir():
                for entry in os.scandir(directory):
                    count = max(count, int(entry.name, 16) + 1) if _is_count(entry.name) else count
        self.counts[serial] = count

    def name(self, number: int) -> str:
        """Of an object, below any place where it may be.  Errors: DamagedError."""
        prefix = self.prefixes.get(number >> 32)
        if prefix is None:
            raise DamagedError(f"object {number:x} belongs to no known namespace; run: artfs fsck")
        return f"{prefix}/{number & 0xFFFFFFFF:08x}"

    def path(self, number: int) -> Path:
        """Where the file of an object's only copy is.  Errors: DamagedError."""
        name = self.name(number)
        if self.root is None:
            raise DamagedError(f"object {number:x} is not in memory")
        return self.root / name

    def cache_path(self, number: int) -> Path:
        """Where a copy of what a provider has is.  Errors: DamagedError."""
        name = self.name(number)
        assert self.cache is not None
        return self.cache / name

    # writing
    def append(self, serial: int, data: bytes | memoryview) -> Chunk:
        """One chunk that an acknowledged change is about to name: on its way to the disk, not there (`unsynced`)."""
        return self._append(serial, (data,), False)[0]

    def append_all(self, serial: int, datas: Sequence[bytes | memoryview]) -> list[Chunk]:
        """A chunk for each, next to each other; nothing may name them before `sync`.  Errors: OSError."""
        return self._append(serial, datas, True)

    def _append(self, serial: int, datas: Sequence[bytes | memoryview], sealing: bool) -> list[Chunk]:
        size = sum(len(data) for data in datas)
        backed = serial in self.backed
        with self._lock:
            fd, number, at = self._open.get((serial, sealing)) or self._create(serial, sealing)
            if at + size > OBJECT_LIMIT and at and serial not in self.unbounded:
                self._close(number, at)
                fd, number, at = self._create(serial, sealing)
            self._open[serial, sealing] = (fd, number, at + size)
            self._use(fd)
            if backed:
                self.waiting += size
                self._writing[number] = self._writing.get(number, 0) + 1
        try:
            return self._write(fd, number, at, datas, sealing)
        finally:
            with self._lock:
                self._let_go(fd)
                if number in self._writing:
                    self._writing[number] -= 1

    def _write(self, fd: int, number: int, at: int, datas: Sequence[bytes | memoryview], sealing: bool) -> list[Chunk]:
        chunks = []
        write_all(fd, datas, at)
        self._wrote(fd, sealing)
        for data in datas:
            chunks.append(Chunk(number, at, len(data), xxh3_128_digest(data), 1))
            at += len(data)
        return chunks

    def _create(self, serial: int, sealing: bool) -> tuple[int, int, int]:
        number = object_number(serial, self.counts[serial])
        self.counts[serial] += 1  # also if this fails: the file may be there
        path = self.path(number)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        if serial not in self._folders:
            path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        folder = self._folder(serial, path.parent)
        fd = os.open(path, flags, 0o600)
        self._writes += 1
        (self.sealing if sealing else self.unsynced)[folder] = self._writes
        self._table[number] = fd
        if serial in self.backed:
            self._born[number] = time_ns()
        return fd, number, 0

    def uploaded(self, number: int) -> None:
        """The provider has it: from now on its file is a copy."""
        target = self.cache_path(number)
        target.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        os.rename(self.path(number), target)
        self._no_longer_waiting(number)

    def evict(self, number: int) -> None:
        """The copy is gone; whoever reads it now may finish."""
        with suppress(FileNotFoundError):
            self.cache_path(number).unlink()
        self._drop(number)

    def remove(self, number: int) -> None:
        """No row names the object: its files are gone."""
        if self.root is not None:
            for path in (self.path(number), self.cache_path(number)):
                with suppress(FileNotFoundError):
                    path.unlink()
        self._no_longer_waiting(number)
        self._drop(number)

    def _drop(self, number: int) -> None:
        with self._lock:
            self.copies[number] = self.copies.get(number, 1) + 1
            fd = self._table.pop(number, None)
            if fd is not None:
                self.unsynced.pop(fd, None)
                self.sealing.pop(fd, None)
                self._buried.append((fd, self.readers()[0]))

    def _folder(self, serial: int, path: Path) -> int:
        """The descriptor of a namespace's directory, whose own name is durable."""
        fd = self._folders.get(serial)
        if fd is None:
            assert self.root is not None
            _sync_directories(path, self.root)  # an earlier process may have ended between making and syncing it
            fd = self._folders[serial] = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        return fd

    def doubt(self, number: int) -> None:
        """The object was written by a process that may have ended before it synced it: the next sync does.
        Errors: DamagedError, OSError."""
        fd = self.descriptor(number)
        folder = self._folder(number >> 32, self.path(number).parent)
        with self._lock:
            self._writes += 1
            self.unsynced[fd] = self.unsynced[folder] = self._writes

    def begin_exact(self, serial: int) -> ExactObject:
        """A new object of one writer's own."""
        with self._lock:
            fd, number, _ = self._create(serial, False)
            self._exact.add(number)
            self._use(fd)
            if serial in self.backed:
                self._writing[number] = 1
        return ExactObject(self, number, fd)

    def allocate(self, serial: int) -> int:
        """The number of a new object, of which nothing is here."""
        with self._lock:
            number = object_number(serial, self.counts[serial])
            self.counts[serial] += 1
        return number

    def adopt(self, number: int, source: Path | int, size: int) -> None:
        """The object is this file (a descriptor, where objects are in memory), which nobody changes any more and which
        is on the disk; its name is when `sync` has run.  REQUIRES: `allocate`.  Errors: OSError."""
        assert isinstance(source, Path)
        serial = number >> 32
        path = self.path(number)
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        folder = self._folder(serial, path.parent)
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise
            copyfile(source, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        with self._lock:
            self._writes += 1
            self.sealing[folder] = self._writes
        if serial in self.backed:
            self.found(number, size, time_ns())

    # reading
    def descriptor(self, number: int) -> int:
        """A descriptor to read the object with; valid until the caller returns to its loop, or as long as `readers`
        counts it.  Errors: DamagedError."""
        fd = self._table.get(number)
        if fd is None:
            fd = self._reopened(number)
            with self._lock:
                self._table[number] = fd
            if len(self._table) > DESCRIPTORS:
                self._trim()
        return fd

    def size(self, number: int) -> int:
        """Bytes of an object that is here.  Errors: DamagedError."""
        return os.fstat(self.descriptor(number)).st_size

    def _reopened(self, number: int) -> int:
        paths = [self.path(number)]
        if number >> 32 in self.backed:
            paths.append(self.cache_path(number))  # in this order: an upload moves it from the first to the second
        for path in paths:
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                pass
        raise DamagedError(f"object {paths[0]} is missing; run: artfs fsck")

    def has(self, chunk: Chunk) -> bool:
        """Whether all of the chunk is here, and right.  From any thread."""
        try:
            self.read(chunk)
        except DamagedError:
            return False
        return True

    def read(self, chunk: Chunk) -> bytes:
        """All of the chunk, verified.  From any thread.  Errors: DamagedError."""
        copy = self.copies.get(chunk.object, 1)
        with self._lock:  # a descriptor of our own: the table's may be closed meanwhile, and its number given away
            fd = self._table.get(chunk.object, -1)
            if fd >= 0:
                fd = os.dup(fd)
        if fd < 0:
            fd = self._reopened(chunk.object)
        try:
            data = os.pread(fd, chunk.length, chunk.offset)
        finally:
            os.close(fd)
        if chunk.verified != copy:
            if len(data) != chunk.length or xxh3_128_digest(data) != chunk.hash:
                name = self.path(chunk.object) if self.root else f"{chunk.object:x}"
                raise DamagedError(f"object {name} is damaged at {chunk.offset}+{chunk.length}; run: artfs fsck --data")
            chunk.verified = copy
        return data

    def _trim(self) -> None:
        with self._lock:
            open_now = self._exact.union(number for _, number, _ in self._open.values())
            for number in list(self._table)[: DESCRIPTORS // 4]:
                fd = self._table[number]
                if number not in open_now and fd not in self.unsynced and fd not in self.sealing:
                    del self._table[number]
                    self._buried.append((fd, self.readers()[0]))

    def forget(self, serial: int, *, gone: bool) -> None:
        """Close the namespace's objects, when what was written to them is synced, which does not matter if it is gone.
        Who reads a chunk of them (it was lent to a clone, or the namespace comes back) opens them again."""
        with self._lock:
            for key in ((serial, False), (serial, True)):
                found = self._open.pop(key, None)
                if found is not None:
                    self._close(found[1], found[2])
            fds = [self._table.pop(number) for number in list(self._table) if number >> 32 == serial]
            if serial in self._folders:
                fds.append(self._folders.pop(serial))
            if gone:
                for fd in fds:
                    self.unsynced.pop(fd, None)
                    self.sealing.pop(fd, None)
            self._buried += [(fd, None) for fd in fds]

    def close(self) -> None:
        for fd in {*self._table.values(), *self._folders.values(), *(fd for fd, _ in self._buried)}:
            os.close(fd)
        self._folders.clear()
        self._table.clear()
        self._open.clear()
        self._buried.clear()


def _is_count(name: str) -> bool:
    return len(name) == 8 and all(c in "0123456789abcdef" for c in name)


def _sync_directories(path: Path, top: Path) -> None:
    """fsync of a directory and of those above it up to `top`."""
    while True:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if path == top or path == path.parent:
            return
        path = path.parent
