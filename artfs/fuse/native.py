"""The native extension: its loader, what it can do, and the kernel's numbers that go with it.

`load()` gives the extension, typed as `Native`, or None where it is not built; then everything goes through
pyfuse3's async handlers, slower and without the operations that pyfuse3 lacks. Order: `load()`,
`configure()`, `handler()` and `constant()`, then `pyfuse3.init()`. An opcode without a function or constant
stays pyfuse3's.

A **function** takes the decoded request and returns the answer (docs of `Native.handler`). It runs on the
loop's thread and must not wait. Words: a request *waits* after its function raised the `must_wait` class,
until `reply()`; a *job* is a READ or a sync that C threads finish without Python.

Invariants: every request is answered once; an exception in a function never ends the loop; after at most
`burst_us` the event loop has its turn.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag
from typing import Any, Protocol, TypedDict, cast

__all__ = ["Function", "InitFlag", "Native", "Opcode", "Result", "Stats", "load", "why_missing"]


class Opcode(IntEnum):
    """FUSE opcodes (linux/fuse.h) that a function can answer (RENAME and BATCH_FORGET within)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    IOCTL = 39
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51


class InitFlag(IntFlag):
    """Flags of the INIT handshake (linux/fuse.h); those from bit 32 on travel in `flags2`."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    EXPIRE_ONLY = 1 << 35
    HAS_RESEND = 1 << 39


Result = int | bytes | bytearray | memoryview | tuple[int, ...] | list[int] | None
Function = Callable[..., Result]


class Stats(TypedDict):
    """Counters since the start or the last reset; times in ns, only with `configure(profile=True)`."""

    requests: dict[int, int]
    waited: int
    passed: int
    failed: int
    ns_python: int
    ns_reply: int
    ns_idle: int
    ns_read: int
    joined: int
    rescued: int


class Native(Protocol):
    """The functions of `artfs.fuse._native`. All but the `notify_*` are called on the loop's thread."""

    def attach(self, path: str, /) -> tuple[int, int]:
        """Joins the pyfuse3 loaded from `path`: (slots seen, rebound). ImportError: libfuse < 3.13."""

    def configure(
        self,
        *,
        init_set: int = ...,
        init_clear: int = ...,
        max_background: int = ...,
        congestion_threshold: int = ...,
        max_readahead: int = ...,
        time_gran: int = ...,
        spin_us: float = ...,
        wait_us: float = ...,
        burst_us: float = ...,
        profile: bool = ...,
        fs_error: type[BaseException] | tuple[type[BaseException], ...] | None = ...,
        must_wait: type[BaseException] | tuple[type[BaseException], ...] | None = ...,
        on_wait: Callable[[int, int, Function, tuple[Any, ...], BaseException], object] | None = ...,
        on_interrupt: Callable[[int], object] | None = ...,
        on_error: Callable[[BaseException], object] | None = ...,
        on_sync_error: Callable[[int], object] | None = ...,
    ) -> None:
        """Changes what is given and leaves the rest.

        `init_set` and `init_clear` are `InitFlag`s over what libfuse negotiates; a flag that the kernel does
        not offer is never set. The four INIT numbers are libfuse's where 0. After an answer the extension
        polls busily for up to `spin_us` (less where requests come sooner, or later) and sleeps up to `wait_us`
        for the next request, `burst_us` in all (0, 0 and 2000); neither while requests wait. Where a single
        thread makes all requests, it does not poll, but sleeps on that thread's processor, unless `wait_us` is 0.

        `fs_error`: exceptions whose `errno` is the answer. `must_wait`: the request waits, `on_wait(unique,
        opcode, function, args, exception)` gets it, with bytes in place of a WRITE's memoryview and the
        caller, if any, in `args`; unique 0 means a FORGET, which needs no `reply()`. `on_interrupt(unique)`:
        its caller was killed or interrupted; it still needs its reply. `on_error(exc)`: any other exception
        (its request got EIO); None: it goes to sys.unraisablehook. KeyboardInterrupt and SystemExit arrive
        there too. `on_sync_error(errno)`: the first failed fdatasync, called on the sync thread before the
        failed requests are answered; it must not wait for the loop, which may be waiting for this very job.
        """

    def handler(self, opcode: int, function: Function | None, with_caller: bool = ..., /) -> None:
        """Registers the function that answers `opcode`; None gives the opcode back to pyfuse3.

        Arguments (after a tuple (uid, gid, pid) when `with_caller`); names and data are bytes, times ints of
        nanoseconds, modes have the umask applied, WRITE's data is a memoryview that dies with the call (no
        slice of it may be kept): LOOKUP UNLINK RMDIR REMOVEXATTR (ino, name) · FORGET (ino, n) · GETATTR
        READLINK STATFS RELEASE RELEASEDIR FLUSH SYNCFS LISTXATTR (ino) · SETATTR (ino, FATTR_* mask, size,
        atime, mtime, ctime, mode, uid, gid) · SYMLINK (ino, name, target, uid, gid) · MKNOD (ino, name, mode,
        rdev, uid, gid) · MKDIR (ino, name, mode, uid, gid) · RENAME2 (ino, name, newparent, newname, flags) ·
        LINK (parent, name, ino) · OPEN OPENDIR (ino, flags) · READ READDIR READDIRPLUS (ino, off, size) ·
        WRITE (ino, off, data, write_flags) · FSYNC FSYNCDIR (ino, datasync) · SETXATTR (ino, name, value,
        flags) · GETXATTR (ino, name) · ACCESS (ino, mask) · CREATE TMPFILE (ino, name, mode, flags, uid, gid)
        · IOCTL (ino, cmd, flags, data, out_size) · LSEEK (ino, off, whence) · FALLOCATE (ino, mode, off, len)
        · COPY_FILE_RANGE (ino, off, ino_out, off_out, len, flags).

        Results: None or 0 = success without a body · negative int = -errno · positive int = bytes done
        (WRITE, COPY_FILE_RANGE), offset (LSEEK), result value (IOCTL) · bytes-like = the body as the kernel
        wants it; the whole value for GETXATTR and LISTXATTR (the size rules are kept here), the data out for
        IOCTL · tuple (fd, pos, len, fd, pos, len, …) = a READ body gathered from files, fd -1 for zeros; a
        short file is EIO · list [fd, …] = success once each is fdatasynced, and everything that earlier such
        answers listed.

        Raises ValueError for an opcode that is not in `Opcode`.
        """

    def constant(self, opcode: int, value: int, /) -> None:
        """`opcode` is answered with `value` (0 or -errno) without Python, until handler() is called."""

    def reply(self, unique: int, opcode: int, result: Result, /) -> None:
        """Answers a waiting request, as its function would. RuntimeError if it does not wait (any more)."""

    def pending(self) -> int:
        """How many requests wait."""

    def jobs(self) -> tuple[int, int]:
        """(queued, done): every job with a number <= done is finished.

        A descriptor that no later answer will name may be closed when done has reached the `queued` of now.
        """

    def pwritev(self, fd: int, parts: Sequence[bytes | memoryview], position: int, /) -> int:
        """os.pwritev that keeps the interpreter's lock, for a few KiB into the page cache.  Raises OSError."""

    def write_all(self, fd: int, data: bytes | memoryview, position: int, piece: int, /) -> None:
        """All of it, in writes that end at multiples of `piece`, without the interpreter's lock in between; one caller
        at a time.  From any thread.  Raises OSError."""

    def sync_error(self, *, clear: bool = ...) -> int:
        """errno of the first failed fdatasync, 0 if none. While it is set every sync is answered with EIO."""

    def close(self) -> None:
        """Waits for the jobs (10 s at most) and lets go of the session, as an unmount does by itself."""

    def notify_inode(self, ino: int, off: int, length: int, /) -> bool:
        """The kernel drops attributes and pages [off, off + length) of an inode (off < 0: attributes only).

        From any thread but the loop's: it waits for dirty pages. False: the kernel does not have it. Raises
        OSError.
        """

    def notify_entry(self, parent: int, name: bytes, expire: bool, /) -> bool:
        """The kernel looks the name up again next time (`expire`), or drops it with what is mounted below it.

        From any thread but the loop's: it may wait for the directory's lock. False: not cached. Raises
        OSError.
        """

    def notify_resend(self) -> bool:
        """The kernel sends what is unanswered again, bit 63 of its number set. OSError: Linux < 6.9."""

    def init_request(self) -> bytes:
        """The bytes of the kernel's INIT request; empty before it came."""

    def init_flags(self) -> tuple[int, int]:
        """`InitFlag`s (offered by the kernel, set in our reply); zeros before."""

    def stats(self, *, reset: bool = ...) -> Stats:
        """Requests by opcode; some `waited`, were `passed` to pyfuse3, `failed` unexpectedly. `joined`: how often the
        loop's thread went to the processor of a caller that was alone; `rescued`: it had no turn there."""


class _Loaded:
    """What `load()` found, once per process."""

    native: Native | None = None
    why: str | None = None


def _attached() -> Native:
    """Imports the extension, then pyfuse3, and joins them. Raises ImportError, its text fit for the user."""
    flags = sys.getdlopenflags()
    # Global: this is how pyfuse3's import of fuse_session_mount finds ours.
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        module = cast(Native, importlib.import_module("artfs.fuse._native"))
    except ImportError as e:
        raise ImportError(f"the native extension is not built ({e})") from e
    finally:
        sys.setdlopenflags(flags)
    try:
        spec = importlib.import_module("pyfuse3").__spec__
    except ImportError as e:
        raise ImportError(f"pyfuse3 cannot be imported ({e})") from e
    if spec is None or spec.origin is None or not module.attach(spec.origin)[0]:
        raise ImportError("pyfuse3 is built in a way that the native extension cannot join")
    return module


def load() -> Native | None:
    """The extension, attached to pyfuse3 (which this imports); None where there is none, see `why_missing()`.

    ARTFS_NO_NATIVE=1 in the environment gives None too. A failure is remembered for the process.
    """
    if os.environ.get("ARTFS_NO_NATIVE", "") not in ("", "0"):
        return None
    if _Loaded.native is None and _Loaded.why is None:
        try:
            _Loaded.native = _attached()
        except ImportError as e:
            _Loaded.why = str(e)
    return _Loaded.native


def why_missing() -> str | None:
    """Why `load()` gives None, as a sentence for `artfs doctor`; None if it does not."""
    if os.environ.get("ARTFS_NO_NATIVE", "") not in ("", "0"):
        return "ARTFS_NO_NATIVE is set in the environment"
    load()
    return _Loaded.why
