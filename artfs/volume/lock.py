"""The owner's lock: one process at a time serves a store.  It dies with the process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from artfs.errors import BusyError
from artfs.volume.forking import keep, let_go


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
