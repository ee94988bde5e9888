"""A file that does nothing but occupy space, so that on a full disk there is something to give back.

A transaction that frees rows needs space first, for its own log.  When there is none, the ballast is dropped,
the transaction runs, and the ballast is made again after the first transaction that leaves room for it.
"""

from __future__ import annotations

import os
from pathlib import Path

SIZE = 8 << 20


class Ballast:
    """`size` bytes of disk at `path`.  Not thread-safe: its owner's lock covers it."""

    def __init__(self, path: Path, size: int = SIZE) -> None:
        self._path = path
        self.size = size
        self.held = False

    def fill(self) -> bool:
        """Occupy the space, if it is not yet and the disk has it; whether it is occupied now."""
        if self.held:
            return True
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self.size)
            finally:
                os.close(fd)
            self.held = True
        except OSError:
            # A full disk: what fallocate got before it failed is better left to others.
            self.drop()
        return self.held

    def drop(self) -> bool:
        """Give the space back; whether there was any."""
        had, self.held = self.held, False
        self._path.unlink(missing_ok=True)
        return had
