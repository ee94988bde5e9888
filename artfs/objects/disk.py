"""The disk provider: objects are files below a directory, under their names.  With a store's local object directory as
its root it *adopts* the files where they are: putting one that lies in its place does nothing.

A file gets its name when its bytes are on the disk; a name is on the disk, and all directories above it are, before
`put` returns.  Until then it is called `<random>.part` and locked by its writer, so that `list`, which never
shows such files, removes those that a crash left.  No object's name ends in `.part`.

The directory is made where the one above it is there: an unmounted disk is an error, not an empty provider.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from time import time
from typing import TypeVar
from urllib.parse import quote

from anyio import to_thread

from artfs.durable import sync_directory
from artfs.errors import (
    ArtfsError,
    BusyError,
    ExistsError,
    InvalidError,
    NoAccessError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.objects import Capabilities, Info, check_name

PART = ".part"

PART_AGE = 10.0
"""Seconds during which nobody takes a file for left over: its writer may be about to lock it."""

STEP = 64 << 20
"""Bytes that are copied before a caller may give up."""

_UNCOPYABLE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)

Result = TypeVar("Result")
Entries = list[tuple[str, int | None]]


class DiskProvider:
    """See `artfs.objects.Provider`.  An etag is size, time of change and inode of the file, in hex: it changes with
    every put, and when an adopted file grows."""

    def __init__(self, root: Path, adopts: bool = False) -> None:
        self.root = root
        self.url = "" if adopts else f"file://{quote(str(root))}"
        self.capabilities = Capabilities(adopts=adopts, durable=True)
        self._device: int | None = None

    def _path(self, name: str) -> Path:
        if check_name(name).endswith(PART):
            raise InvalidError(f"no object can be called {name!r}: names that end in {PART} are taken")
        return self.root / name

    async def _run(self, name: str, work: Callable[[], Result], *, writing: bool = False) -> Result:
        """In a thread.  Errors of the system become ours, about object `name`."""
        try:
            return await to_thread.run_sync(work)
        except ArtfsError:
            raise
        except OSError as error:
            raise _failure(error, f"object {name} of {self.root}", writing) from error

    async def check(self) -> None:
        """Makes the directory if the one above it is there."""
        try:
            await to_thread.run_sync(self._check)
        except ArtfsError:
            raise
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.root.parent}: no such directory; make it, or mount its disk") from error
        except (NotADirectoryError, FileExistsError) as error:
            raise InvalidError(f"{self.root} is no directory; objects need one") from error
        except OSError as error:
            raise _failure(error, f"{self.root}", True) from error

    def _check(self) -> None:
        self._make(self.root)
        self._device = self.root.stat().st_dev
        probe = self.root / f"check.{token_hex(8)}{PART}"
        try:
            with probe.open("xb") as file:
                file.write(b"artfs")
                file.flush()
                os.fsync(file.fileno())
            os.listdir(self.root)
        finally:
            with suppress(FileNotFoundError):
                probe.unlink()

    # writing
    async def put(self, name: str, source: Path | bytes) -> None:
        path = self._path(name)
        if isinstance(source, bytes):
            await self._run(name, lambda: self._write(path, source, self._replace), writing=True)
        elif not self.capabilities.adopts or source != path:
            await self._copy(name, path, source, None)

    async def create(self, name: str, data: bytes) -> None:
        path = self._path(name)

        def name_it(part: Path, path: Path) -> None:
            try:
                os.link(part, path)
            except FileExistsError as error:
                raise ExistsError(f"object {name} of {self.root} exists already") from error
            part.unlink()

        await self._run(name, lambda: self._write(path, data, name_it), writing=True)

    async def copy(self, source: str, target: str, etag: str | None = None) -> None:
        path = self._path(source)
        await self.head(source)
        await self._copy(target, self._path(target), path, etag)

    async def _copy(self, name: str, path: Path, source: Path, etag: str | None) -> None:
        def begin() -> int:
            try:
                return os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise UnavailableError(f"object {name} cannot be read from {source}: {error.strerror}") from error

        def unchanged() -> None:
            if etag is not None and (found := _info(os.fstat(reading)).etag) != etag:
                raise BusyError(f"object {source} has changed: its etag is {found}, no longer {etag}")

        def end() -> None:
            unchanged()
            self._finish(part, path, writing, self._replace)

        reading = await self._run(name, begin)
        try:
            await self._run(name, unchanged)
            part, writing = await self._run(name, lambda: self._begin(path), writing=True)
            try:
                while await self._run(name, lambda: _copy_some(reading, writing), writing=True):
                    pass
                await self._run(name, end, writing=True)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def _write(self, path: Path, data: bytes, name_it: Callable[[Path, Path], None]) -> None:
        part, fd = self._begin(path)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            self._finish(part, path, fd, name_it)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def _begin(self, path: Path) -> tuple[Path, int]:
        """A new file for what will be at `path`, locked."""
        self._same_disk()
        part = path.with_name(f"{token_hex(8)}{PART}")
        while True:
            # Somebody may remove a directory, which is empty, before there is something in it.
            with suppress(FileNotFoundError):
                self._make(path.parent)
                fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                break
        fcntl.flock(fd, fcntl.LOCK_EX)
        return part, fd

    def _finish(self, part: Path, path: Path, fd: int, name_it: Callable[[Path, Path], None]) -> None:
        os.fsync(fd)
        name_it(part, path)
        # Who has deleted the object since may have removed its directory.
        with suppress(FileNotFoundError):
            sync_directory(path.parent)

    @staticmethod
    def _replace(part: Path, path: Path) -> None:
        part.rename(path)

    def _make(self, directory: Path) -> None:
        """Make `directory` and what is missing above it up to the root, durably.  Errors: FileNotFoundError if the
        directory above the root is not there."""
        if directory.is_dir():
            return
        if directory != self.root:
            self._make(directory.parent)
        try:
            directory.mkdir()
        except FileExistsError as error:
            if not stat.S_ISDIR(directory.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory)) from error
        sync_directory(directory.parent)

    def _same_disk(self) -> None:
        try:
            device = self.root.stat().st_dev
        except FileNotFoundError as error:
            if self._device is not None or not self.root.parent.is_dir():
                raise UnavailableError(f"{self.root}: no such directory any more; mount its disk") from error
            return
        if self._device not in (None, device):
            raise UnavailableError(f"{self.root} lies on another disk than before: mount the one that it was on")

    # reading
    async def get(self, name: str, offset: int, length: int) -> bytes:
        path = self._path(name)

        def read() -> bytes:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(fd, length, offset)
                while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
                    data += more
                return data
            finally:
                os.close(fd)

        data = await self._run(name, read)
        if len(data) != length:
            raise UnavailableError(f"object {name} ends before {offset + length}")
        return data

    async def head(self, name: str) -> Info:
        path = self._path(name)
        found = await self._run(name, path.stat)
        if not stat.S_ISREG(found.st_mode):
            raise NotFoundError(f"object {name} of {self.root}: not there")
        return _info(found)

    async def delete(self, names: Sequence[str]) -> None:
        paths = {name: self._path(name) for name in names}
        for name, path in paths.items():
            await self._run(name, lambda path=path: self._remove(path))  # type: ignore[misc]

    def _remove(self, path: Path) -> None:
        # A directory of that name is where other objects are: there is no object that could go.
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()
        if not self.capabilities.adopts:
            with suppress(OSError):
                for directory in path.relative_to(self.root).parents[:-1]:
                    (self.root / directory).rmdir()

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        top = prefix.rpartition("/")[0]

        async def scan(directory: str) -> Iterator[tuple[str, int | None]]:
            return iter(await self._run(directory, lambda: self._scan(directory, prefix)))

        levels = [await scan(check_name(top) if top else "")]
        while levels:
            name, size = next(levels[-1], (None, None))
            if name is None:
                levels.pop()
            elif size is None:
                levels.append(await scan(name))
            else:
                yield name, size

    def _scan(self, directory: str, prefix: str) -> Entries:
        """(name, size, or None of a directory) in the order that all names below have."""
        found: Entries = []
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.root / directory) as entries:
            for entry in entries:
                name = f"{directory}/{entry.name}" if directory else entry.name
                with suppress(FileNotFoundError):
                    if entry.name.endswith(PART):
                        _remove_left_over(Path(entry.path))
                    elif not name.startswith(prefix):
                        pass
                    elif entry.is_dir(follow_symlinks=False):
                        found.append((name, None))
                    else:
                        found.append((name, entry.stat().st_size))
        return sorted(found, key=lambda item: item[0] + "/" if item[1] is None else item[0])

    async def tidy(self, before: float) -> int:
        return 0  # whoever lists does that

    async def close(self) -> None:
        pass


def _info(found: os.stat_result) -> Info:
    return Info(found.st_size, f"{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ino:x}", found.st_mtime_ns)


def _copy_some(source: int, target: int) -> int:
    """How many bytes were copied; 0 at the end."""
    try:
        return os.copy_file_range(source, target, STEP)
    except OSError as error:
        if error.errno not in _UNCOPYABLE:
            raise
        return os.sendfile(target, source, None, STEP)


def _remove_left_over(part: Path) -> None:
    """If nobody is writing it any more."""
    if time() - part.stat().st_mtime < PART_AGE:
        return
    # What cannot be removed is no object either.
    with suppress(OSError):
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
        finally:
            os.close(fd)


def _failure(error: OSError, what: str, writing: bool) -> ArtfsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"no room for {what}; free some space")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NoAccessError(f"{what}: {error.strerror}; let this user read and write there")
    if error.errno == errno.ENAMETOOLONG or (writing and error.errno in (errno.ENOTDIR, errno.EISDIR)):
        return InvalidError(f"{what} cannot have this name: {error.strerror}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR) and not writing:
        return NotFoundError(f"{what}: not there")
    return UnavailableError(f"{what}: {error.strerror}")
