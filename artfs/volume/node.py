"""An inode in memory."""

from __future__ import annotations

from stat import S_IFDIR, S_IFREG
from struct import error as StructError
from typing import TYPE_CHECKING, NamedTuple

from artfs.blocks import Block
from artfs.errors import DamagedError
from artfs.volume.rows import DENTRY, INODE, NS, number

if TYPE_CHECKING:
    from artfs.volume.tree import Tree

_pack = INODE.pack


class Dentry(NamedTuple):
    """A name's inode number, its cookie in listings, and the type bits of its inode (mode >> 12)."""

    ino: int
    cookie: int
    type: int

    @classmethod
    def unpack(cls, value: bytes) -> Dentry:
        """Errors: DamagedError."""
        try:
            return cls(*DENTRY.unpack(value))
        except StructError as error:
            raise DamagedError(f"the row of a name cannot be read ({error}); run: artfs fsck") from error


class Node:
    """One inode's attributes; times are nanoseconds since 1970 and may be negative.

    `num` is what the kernel sees: serial << 32 | kid.  `key` is the row's key, that of an orphan once it has no name.
    `kids` (directories) holds the names seen so far, all of them if `complete`; its order is that of cookies then.
    `blocks` (regular files) holds the blocks read or written so far.  `looks` counts the kernel's references and
    `entry` keeps the encoded reply: both belong to the driver.
    """

    __slots__ = (
        "allocated",
        "atime",
        "blocks",
        "complete",
        "ctime",
        "entry",
        "gid",
        "ino",
        "key",
        "kids",
        "looks",
        "mode",
        "mtime",
        "nlink",
        "num",
        "order",
        "parent",
        "rdev",
        "size",
        "target",
        "tree",
        "uid",
        "xattrs",
    )

    def __init__(self, tree: Tree, ino: int, num: int, mode: int, uid: int, gid: int, rdev: int, now: int) -> None:
        self.tree = tree
        self.ino = ino
        self.num = num
        self.key = b"I" + number(ino)
        self.mode = mode
        self.nlink = 1
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.parent = 0
        self.size = 0
        self.allocated = 0
        self.atime = self.mtime = self.ctime = now
        self.xattrs = 0
        self.target = b""
        self.kids: dict[bytes, Dentry] | None = {} if mode & 0o170000 == S_IFDIR else None
        self.complete = False
        self.order: list[tuple[bytes, Dentry]] | None = None
        self.blocks: dict[int, Block] | None = None
        self.entry: bytes | None = None
        self.looks = 0

    @property
    def is_file(self) -> bool:
        return self.mode & 0o170000 == S_IFREG

    def pack(self) -> bytes:
        """The inode's row value."""
        c, cn = divmod(self.ctime, NS)
        m, mn = (c, cn) if self.mtime == self.ctime else divmod(self.mtime, NS)
        a, an = (c, cn) if self.atime == self.ctime else divmod(self.atime, NS)
        # fmt: off
        return _pack(
            self.mode, self.nlink, self.uid, self.gid, self.rdev, self.num & 0xFFFFFFFF, self.parent,
            self.size, self.allocated, a, an, m, mn, c, cn, self.xattrs,
        ) + self.target
        # fmt: on

    def unpack(self, value: bytes) -> None:
        """Take the attributes of a row.  Errors: DamagedError."""
        try:
            fields = INODE.unpack_from(value)
        except StructError as error:
            raise DamagedError(f"the row of inode {self.ino} cannot be read ({error}); run: artfs fsck") from error
        # fmt: off
        (
            self.mode, self.nlink, self.uid, self.gid, self.rdev, kid, self.parent,
            self.size, self.allocated, a, an, m, mn, c, cn, self.xattrs,
        ) = fields
        # fmt: on
        self.num = self.tree.number << 32 | kid
        self.atime = a * NS + an
        self.mtime = m * NS + mn
        self.ctime = c * NS + cn
        self.target = value[INODE.size :]
        if self.mode & 0o170000 == S_IFDIR:
            if self.kids is None:
                self.kids = {}
        else:
            self.kids = None
        self.entry = None
