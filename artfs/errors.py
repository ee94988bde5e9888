"""Every error of artfs, one tree:

    ArtfsError                      EIO      exit 1
    ├── FsError                     (any)    one errno of the POSIX rules, from a tree
    │   └── PathError               (any)    with the path that it is about
    ├── InvalidError                EINVAL   exit 2   bad id, name, value or option
    ├── NotFoundError               ENOENT   exit 3   (also FileNotFoundError)
    │   └── ExpiredError            ENOENT   exit 3   it was there; its session or time to live has ended
    ├── ExistsError                 EEXIST   exit 1   (also FileExistsError)
    ├── DeniedError                 EACCES   exit 4   (also PermissionError)
    ├── BusyError                   EBUSY    exit 5   in use, or locked by another process
    ├── DamagedError                EIO      exit 6   bytes or rows that fail their check; read-only from here on
    ├── FormatError                 EPROTO   exit 6   a store written by a newer artfs
    ├── NoSpaceError                ENOSPC   exit 1   the disk is full
    └── UnavailableError            EIO      exit 1   an engine or a provider does not answer

Each class carries `errno` (what a system call answers), `exit_code` (the command line) and `http_status`.
A message names the thing and the remedy.  Drivers translate in one place; nothing swallows.
"""

from __future__ import annotations

import errno as _errno
import os


class ArtfsError(Exception):
    """Base of all: `str(error)` is one line for a person."""

    errno: int = _errno.EIO
    exit_code: int = 1
    http_status: int = 500


class FsError(ArtfsError):
    """One errno, raised by the POSIX rules of a tree; `FsError(errno.ENOENT)`."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno

    def __str__(self) -> str:
        return os.strerror(self.errno)


class PathError(FsError):
    """An errno with the path that it is about."""

    def __init__(self, errno: int, path: str) -> None:
        super().__init__(errno)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {os.strerror(self.errno)}"


class InvalidError(ArtfsError, ValueError):
    errno = _errno.EINVAL
    exit_code = 2
    http_status = 400


class NotFoundError(ArtfsError, FileNotFoundError, ValueError):
    errno = _errno.ENOENT
    exit_code = 3
    http_status = 404


class ExpiredError(NotFoundError):
    http_status = 410


class ExistsError(ArtfsError, FileExistsError):
    errno = _errno.EEXIST
    http_status = 409


class DeniedError(ArtfsError, PermissionError):
    errno = _errno.EACCES
    exit_code = 4
    http_status = 403


class NoAccessError(DeniedError):
    """This process itself is refused: by a provider, a disk or what has a key."""

    http_status = 502


class BusyError(ArtfsError):
    errno = _errno.EBUSY
    exit_code = 5
    http_status = 409


class DamagedError(ArtfsError):
    errno = _errno.EIO
    exit_code = 6


class FormatError(ArtfsError):
    errno = _errno.EPROTO
    exit_code = 6


class NoSpaceError(ArtfsError):
    errno = _errno.ENOSPC
    http_status = 507


class UnavailableError(ArtfsError):
    errno = _errno.EIO
    http_status = 502
