"""What makes names outlive a loss of power: the directory that they are in is synced, as well as what they name."""

from __future__ import annotations

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """fsync of a directory: what was made, renamed and removed in it stays so.  Errors: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
