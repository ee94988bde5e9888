"""System calls that the `os` module does not offer, and `result`, which names a call's outcome.

Every wrapper raises OSError with the errno of the call, as `os` does.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_COLLAPSE_RANGE = 0x08
FALLOC_ZERO_RANGE = 0x10
FALLOC_INSERT_RANGE = 0x20

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

Name = str | bytes | os.PathLike[str]


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.opendir.argtypes = [ctypes.c_char_p]
_libc.readdir.restype = ctypes.POINTER(_Dirent)
_libc.readdir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.seekdir.restype = None
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.closedir.argtypes = [ctypes.c_void_p]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _check(returned: int, name: Name = "") -> int:
    if returned == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(name))
    return returned


def renameat2(old: Name, new: Name, flags: int) -> None:
    """rename(2) with RENAME_* flags."""
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), old)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); `mode` is a set of FALLOC_* bits."""
    _check(_libc.fallocate(fd, mode, offset, length))


def linkat_fd(fd: int, new: Name) -> None:
    """Give the file open at `fd` the name `new`, as open(2) shows it for O_TMPFILE."""
    old = f"/proc/self/fd/{fd}".encode()
    _check(_libc.linkat(AT_FDCWD, old, AT_FDCWD, os.fsencode(new), AT_SYMLINK_FOLLOW), new)


def utimensat(path: Name, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True) -> None:
    """utimensat(2); a time is (seconds, nanoseconds), nanoseconds may be UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags), path)


def xattr_size(path: Name, name: str | None, room: int) -> int:
    """getxattr(2), or listxattr(2) when `name` is None, with a buffer of `room` bytes (0 asks the size)."""
    buffer = ctypes.create_string_buffer(room) if room else None
    where = os.fsencode(path)
    if name is None:
        return _check(_libc.listxattr(where, buffer, ctypes.c_size_t(room)), path)
    return _check(_libc.getxattr(where, name.encode(), buffer, ctypes.c_size_t(room)), path)


class DirStream:
    """An open directory stream of libc: readdir, telldir and seekdir as a C program sees them."""

    def __init__(self, path: Name) -> None:
        self._stream: int | None = _libc.opendir(os.fsencode(path))
        if not self._stream:
            _check(-1, path)

    def __enter__(self) -> "DirStream":
        return self

    def __exit__(self, *_: object) -> None:
        _libc.closedir(self._stream)

    def read(self) -> tuple[bytes, int, int] | None:
        """The next entry as (name, inode number, DT_* type); None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir(self._stream)
        if entry:
            return entry.contents.d_name, entry.contents.d_ino, entry.contents.d_type
        if ctypes.get_errno():
            _check(-1)
        return None

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        while (entry := self.read()) is not None:
            yield entry

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)


def result(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The outcome of a call by name: "ok", or the name of its errno; an opened descriptor is closed.

    EOPNOTSUPP and ENOTSUP are one number on Linux; it is called EOPNOTSUPP here.
    """
    try:
        returned = call(*args, **kwargs)
    except OSError as failure:
        name = errno.errorcode[failure.errno or 0]
        return "EOPNOTSUPP" if name == "ENOTSUP" else name
    if call is os.open:
        os.close(returned)
    return "ok"
