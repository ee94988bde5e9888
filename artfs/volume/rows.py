"""Keys and values of metadata rows; docs/format.md describes them field by field.

    I <ino>            inode: attributes, and the target of a symlink
    D <parent> <name>  dentry: inode, cookie (its place in listings, never used again), type
    B <ino> <index>    block: extents
    X <ino> <name>     extended attribute
    i b x              the same of an inode without a name that is still open: an *orphan*, never versioned
    h                  the namespace's counters: epoch, next numbers, usage

Numbers are big-endian, so that keys sort as numbers do.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from artfs.blocks import Block, Chunk
from artfs.errors import DamagedError

INODE = Struct(">IIIIIIQQQqIqIqIH")
"""mode nlink uid gid rdev kid parent size allocated (seconds nanoseconds) of atime, mtime, ctime, xattrs"""
KID_AT = 20
DENTRY = Struct(">QQB")
HEAD = Struct(">QQQQQq")
U64 = Struct(">Q")
U32 = Struct(">I")
BLOCK_KEY = Struct(">QI")
PIECE = Struct(">IIB")
CHUNK = Struct(">QQI16sI")
NS = 1_000_000_000
INLINE, STORED, ZERO = 0, 1, 2
HEAD_KEY = b"h"


class Head(NamedTuple):
    """Counters of a namespace.  `numbers` is the next inode number and kid; `usage` (bytes, inodes) is the head's."""

    epoch: int
    numbers: int
    cookies: int
    objects: int
    used_bytes: int
    used_inodes: int

    def pack(self) -> bytes:
        return HEAD.pack(*self)

    @classmethod
    def unpack(cls, value: bytes) -> Head:
        """Errors: DamagedError."""
        try:
            return cls(*HEAD.unpack(value))
        except StructError as error:
            raise DamagedError(f"a namespace's counters cannot be read ({error}); run: artfs fsck") from error


def number(ino: int) -> bytes:
    return U64.pack(ino)


def pack_block(block: Block) -> bytes:
    """A block's row value.  REQUIRES: sealed, so that each source is inline bytes, a chunk or zeros."""
    parts: list[bytes] = []
    for start, end, source, offset in block:
        if source is None:
            parts.append(PIECE.pack(start, end, ZERO))
        elif source.__class__ is bytes:
            parts.append(PIECE.pack(start, end, INLINE) + source[offset : offset + end - start])
        else:
            assert isinstance(source, Chunk)
            parts.append(
                PIECE.pack(start, end, STORED)
                + CHUNK.pack(source.object, source.offset, source.length, source.hash, offset)
            )
    return b"".join(parts)


def unpack_block(value: bytes) -> Block:
    """The extents of a block's row.  Errors: DamagedError."""
    block: Block = []
    at = 0
    last = 0
    size = len(value)
    try:
        while at < size:
            start, end, kind = PIECE.unpack_from(value, at)
            at += PIECE.size
            if start < last or end <= start:
                raise DamagedError("a block row's extents are out of order; run: artfs fsck")
            last = end
            if kind == ZERO:
                block.append((start, end, None, 0))
            elif kind == INLINE:
                data = value[at : at + end - start]
                if len(data) != end - start:
                    raise DamagedError("a block row is cut short; run: artfs fsck")
                block.append((start, end, data, 0))
                at += end - start
            elif kind == STORED:
                obj, offset, length, digest, skip = CHUNK.unpack_from(value, at)
                if skip + end - start > length:
                    raise DamagedError("a block row reaches past its chunk; run: artfs fsck")
                block.append((start, end, Chunk(obj, offset, length, digest), skip))
                at += CHUNK.size
            else:
                raise DamagedError(f"a block row holds an unknown kind {kind}; run: artfs fsck")
    except Exception as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"a block row cannot be read ({error}); run: artfs fsck") from error
    return block


def allocated(value: bytes | None) -> int:
    """Bytes that a block's row covers."""
    return sum(end - start for start, end, _, _ in unpack_block(value)) if value else 0
