"""The file of an exported namespace: an sqlite database.

A *version* is a checkpoint, or the present state, which is the last one.  What a version holds is what the one before
it holds, with its own `change`s applied; the first begins with nothing.  Each chunk that a block of any version names
is there once, under the address that the blocks name it by; an import gives it another.  See docs/operations.md.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from urllib.parse import quote

from artfs.durable import sync_directory
from artfs.errors import (
    ArtfsError,
    BusyError,
    DeniedError,
    ExistsError,
    FormatError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)

FORMAT = 1
"""Of the file."""
APPLICATION = 0x61727466
"""What file(1) can tell such a file by."""

SCHEMA = f"""
PRAGMA page_size = 16384;
PRAGMA application_id = {APPLICATION};
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE about (                 -- format, namespace (a JSON object), numbers and cookies (its counters), complete
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE version (               -- the oldest first
    number      INTEGER PRIMARY KEY, -- 1, 2, 3 …
    id          TEXT,                -- the checkpoint's; the present state, which is the last, has none
    name        TEXT,
    created     INTEGER NOT NULL,    -- nanoseconds since 1970
    bytes       INTEGER NOT NULL,
    inodes      INTEGER NOT NULL,
    description TEXT NOT NULL,
    labels      TEXT NOT NULL        -- a JSON object
);
CREATE TABLE change (
    key     BLOB NOT NULL,           -- of a row: an inode, a name, a block or an attribute
    version INTEGER NOT NULL,        -- since which it is this
    value   BLOB,                    -- NULL: the row is gone
    PRIMARY KEY (key, version)
) WITHOUT ROWID;
CREATE INDEX change_version ON change (version, key);
CREATE TABLE chunk (
    id     INTEGER PRIMARY KEY,
    object INTEGER NOT NULL,         -- with offset and length, the address that blocks name
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    hash   BLOB NOT NULL,            -- XXH3-128
    data   BLOB NOT NULL,
    UNIQUE (object, offset, length)
);
"""


class Draft:
    """`FILE.part`, an export in the making.  Errors: ExistsError, BusyError, NotFoundError, DeniedError, NoSpaceError,
    UnavailableError."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        if os.path.lexists(target):
            raise ExistsError(f"{target} exists already; choose another name, or remove it")
        self._fd = -1
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            flock(self._fd, LOCK_EX | LOCK_NB)
            os.ftruncate(self._fd, 0)
            self.file = sqlite3.connect(self.path, check_same_thread=False)
            self.file.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            if self._fd >= 0:
                os.close(self._fd)
            raise unwritable(self.path, error) from error

    def publish(self) -> None:
        self.file.close()
        os.fsync(self._fd)
        try:
            os.link(self.path, self.target)  # unlike rename, it never replaces another's
        except FileExistsError:
            raise ExistsError(f"{self.target} exists by now; choose another name") from None
        except OSError:  # not every file system has links
            os.rename(self.path, self.target)
        sync_directory(self.target.parent)

    def close(self) -> None:
        """Nothing is left of the draft."""
        self.file.close()
        self.path.unlink(missing_ok=True)
        os.close(self._fd)


def open_export(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise NotFoundError(f"{path}: there is no such file")
    file = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, check_same_thread=False)
    try:
        found = file.execute("SELECT value FROM about WHERE name = 'format'").fetchone()
        if file.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
            found = None
    except sqlite3.Error:
        found = None
    if found is None or not str(found[0]).isdigit():
        file.close()
        raise InvalidError(f"{path} is no export of artfs, or an incomplete one; `artfs export` makes one")
    if int(found[0]) > FORMAT:
        file.close()
        raise FormatError(f"{path} has format {found[0]}, this artfs reads up to {FORMAT}: upgrade artfs")
    return file


def unwritable(path: Path, error: Exception) -> ArtfsError:
    if isinstance(error, BlockingIOError):
        return BusyError(f"{path} is being written by another export")
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path.parent} does not exist; make it, or choose another place")
    if isinstance(error, PermissionError):
        return DeniedError(f"{path} cannot be written by the store's owner; choose another place")
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error):
        return NoSpaceError(f"{path}: the disk is full; free some space, or choose another place")
    return UnavailableError(f"{path} cannot be written: {error}")
