"""The owner's lock: one process at a time serves a store; and the claim of those that come first when it is free.

Both are locks on the file `<root>/lock` and die with their process: flock(2) of all of it is the owner's, a shared lock
of its first byte (of the open file description, fcntl(2)) is a claim.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from artfs.errors import BusyError
from artfs.volume.forking import keep, let_go

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock: type, whence, start, length, pid."""


class Lock:
    """Holds `<root>/lock`; the file says who.  Errors: BusyError naming the holder."""

    def __init__(self, root: Path, role: str) -> None:
        self._fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(self._fd)
            raise BusyError(
                f"the store {root} is in use by {holder}; unmount it or end that process, then try again"
            ) from None
        keep(self._fd)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"process {os.getpid()} ({role})\n".encode(), 0)

    def close(self) -> None:
        if self._fd >= 0:
            let_go(self._fd)
            os.close(self._fd)
            self._fd = -1


class Claim:
    """While it is held, whoever can do without owning the store leaves it to others (see `is_claimed`)."""

    def __init__(self, root: Path) -> None:
        self._fd = keep(os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0))

    def close(self) -> None:
        let_go(self._fd)
        os.close(self._fd)


def is_claimed(root: Path) -> bool:
    """Errors: PermissionError."""
    try:
        fd = os.open(root / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        asked = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(asked)[0] != fcntl.F_UNLCK)
