"""The secret that URLs are signed with: <root>/urls.key, 32 random bytes that only the store's owner can read.

It is in no database and in no saved metadata: who reads a backup can sign nothing.  Without it, or with another, the
URLs that were given before end; nothing else depends on it.
"""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_bytes, token_hex

from artfs.durable import sync_directory
from artfs.errors import DamagedError
from artfs.store.upload_records import disk_errors

KEY_FILE = "urls.key"
SIZE = 32


def load_key(root: Path | None) -> bytes:
    """Of the store there, made if there is none; of its own for a store in memory.
    Errors: DamagedError, NoSpaceError, UnavailableError."""
    if root is None:
        return token_bytes(SIZE)
    path = root / KEY_FILE
    with disk_errors():
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
    if len(key) != SIZE:
        raise DamagedError(f"{path} is damaged; delete it, and URLs that were given end")
    return key


def _make_key(path: Path) -> None:
    draft = path.with_name(f".{path.name}.{token_hex(8)}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(token_bytes(SIZE))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_directory(path.parent)
