"""BLOBs of few bytes as rows, without a tree: most are made, not looked at for a while, and then read once.

The rows of a new one, and the journal's entries, are those that `Tree.make_blob` gives.  Whoever opens the tree before
the engine has the rows takes them over (`RowSet.first`).
"""

from __future__ import annotations

from collections.abc import Callable
from stat import S_IFDIR, S_IFREG
from struct import error as StructError

from artfs.errors import DamagedError
from artfs.volume.inodes import ROOT
from artfs.volume.journal import ROW, WRITE
from artfs.volume.node import Dentry
from artfs.volume.rows import BLOCK_KEY, DENTRY, HEAD_KEY, INLINE, INODE, NS, PIECE, Head, number, pack_block
from artfs.volume.rowset import NEW
from artfs.volume.tree import BLOB_DATA

FILE = ROOT + 1
COOKIE = NEW.cookies + 1
_ROOT_KEY, _FILE_KEY = b"I" + number(ROOT), b"I" + number(FILE)
_NAME_KEY = b"D" + number(ROOT) + BLOB_DATA
_BLOCK_KEY = b"B" + BLOCK_KEY.pack(FILE, 0)
_NAME = DENTRY.pack(*Dentry(FILE, COOKIE, S_IFREG >> 12))
_SIZE = 7
"""Its place in an inode's row."""
# Journal entries, or how they begin.
_ROOT_ENTRY = ROW.pack(b"R", len(_ROOT_KEY), INODE.size) + _ROOT_KEY
_FILE_ENTRY = ROW.pack(b"R", len(_FILE_KEY), INODE.size) + _FILE_KEY
_NAME_ENTRY = ROW.pack(b"R", len(_NAME_KEY), len(_NAME)) + _NAME_KEY + _NAME


def blob_rows(
    mode: int, data_mode: int, uid: int, gid: int, time: int, data: bytes
) -> tuple[bytes, dict[bytes, bytes | None]]:
    """(the journal's entries, the rows) of a root directory and its one file with `data`, which goes into its row; all
    times are `time`.  The bytes of the record are `data`.  REQUIRES: no set-group-id bit in `mode`."""
    times = divmod(time, NS) * 3
    size = len(data)
    root = INODE.pack(S_IFDIR | mode, 2, uid, gid, 0, ROOT, ROOT, 0, 0, *times, 0)
    file = INODE.pack(S_IFREG | data_mode, 1, uid, gid, 0, FILE, 0, size, size, *times, 0)
    rows: dict[bytes, bytes | None] = {_ROOT_KEY: root, _FILE_KEY: file, _NAME_KEY: _NAME}
    rows[HEAD_KEY] = Head(NEW.epoch, FILE + 1, COOKIE, 0, size, 2).pack()
    if not data:
        return _ROOT_ENTRY + root + _FILE_ENTRY + file + _NAME_ENTRY, rows
    rows[_BLOCK_KEY] = pack_block([(0, size, data, 0)])
    # Replay needs the inode before its bytes.
    empty = INODE.pack(S_IFREG | data_mode, 1, uid, gid, 0, FILE, 0, 0, 0, *times, 0)
    write = WRITE.pack(b"W", FILE, 0, size)
    return _ROOT_ENTRY + root + _FILE_ENTRY + empty + _NAME_ENTRY + write + _FILE_ENTRY + file, rows


def blob_bytes(get: Callable[[bytes], bytes | None]) -> bytes | None:
    """The bytes of a BLOB's file, by its rows; None if they are not all in one row, or something is wrong with it, so
    that a tree has to say."""
    try:
        ino = DENTRY.unpack(get(_NAME_KEY) or b"")[0]
        size = INODE.unpack_from(get(b"I" + number(ino)) or b"")[_SIZE]
        if not size:
            return b""
        value = get(b"B" + BLOCK_KEY.pack(ino, 0)) or b""
        if PIECE.unpack_from(value) == (0, size, INLINE) and len(value) == PIECE.size + size:
            return value[PIECE.size :]
    except (StructError, DamagedError):
        pass
    return None
