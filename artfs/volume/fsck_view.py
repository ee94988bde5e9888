"""One view of a namespace (its head, or a checkpoint's) read row by row, and what is wrong in it.

Nothing here trusts a row: a value that cannot be read is noted in `strange` and left out.  What `View` holds is kept
small (packed inodes, no block contents), so that a view of a million files can be held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from typing import NamedTuple

from artfs.blocks import Chunk
from artfs.errors import DamagedError
from artfs.grid import NAME_MAX
from artfs.meta import Engine
from artfs.types import Epoch
from artfs.volume.attributes import XATTR_NAME_MAX
from artfs.volume.catalogue import Namespace
from artfs.volume.inodes import KEY, ROOT
from artfs.volume.node import Dentry
from artfs.volume.rows import BLOCK_KEY, DENTRY, HEAD_KEY, INODE, NS, U64, unpack_block
from artfs.volume.tree import RESERVED

PAGE = 4096
"""Rows read at once."""
FIRST_COOKIE, END_COOKIE = 3, 1 << 62
"""1 and 2 are those of `.` and `..`; listings have 63 bits for them, which nobody uses up."""
TYPES = frozenset((S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK))


class Finding(NamedTuple):
    """A rule that does not hold: its kind (see `artfs.volume.fsck`), the place, a sentence."""

    kind: str
    where: str
    what: str


class Inode(NamedTuple):
    """An inode's row, as it is."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    kid: int
    parent: int
    size: int
    allocated: int
    atime: int
    atime_ns: int
    mtime: int
    mtime_ns: int
    ctime: int
    ctime_ns: int
    xattrs: int
    target: bytes = b""

    @classmethod
    def unpack(cls, value: bytes) -> Inode:
        return cls._make((*INODE.unpack_from(value), value[INODE.size :]))

    def pack(self) -> bytes:
        return INODE.pack(*self[:-1]) + self.target


@dataclass(slots=True)
class View:
    """`inodes` packed; `names` by directory; `covered` and `ends` (bytes that blocks cover, end of the last) by inode;
    `broken`: inodes with a block that cannot be read; `empty`: keys of blocks without extents."""

    namespace: Namespace
    label: str
    inodes: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[bytes, Dentry]] = field(default_factory=dict)
    covered: Counter[int] = field(default_factory=Counter)
    ends: dict[int, int] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)
    xattrs: Counter[int] = field(default_factory=Counter)
    empty: list[bytes] = field(default_factory=list)
    orphans: list[bytes] = field(default_factory=list)
    strange: list[tuple[bytes, str]] = field(default_factory=list)
    blocks: int = 0
    _owners: dict[int, tuple[int, bytes]] | None = None

    def is_folder(self, ino: int) -> bool:
        value = self.inodes.get(ino)
        return value is not None and _type(value) == S_IFDIR

    def used(self) -> tuple[int, int]:
        """(bytes, inodes) that its usage must be; a broken block counts as its inode says."""
        used = sum(size for ino, size in self.covered.items() if ino in self.inodes and ino not in self.broken)
        used += sum(Inode.unpack(self.inodes[ino]).allocated for ino in self.broken if ino in self.inodes)
        return used, len(self.inodes)

    def limits(self) -> tuple[int, int]:
        """The greatest inode number or kid, and the greatest cookie, that is used."""
        number = max((max(ino, Inode.unpack(value).kid) for ino, value in self.inodes.items()), default=0)
        number = max(number, max(self.covered, default=0))
        for key in self.orphans:
            number = max(number, U64.unpack_from(key, 1)[0])
        cookies = (entry.cookie for kids in self.names.values() for entry in kids.values())
        cookie = max((cookie for cookie in cookies if cookie < END_COOKIE), default=0)
        return number, cookie

    def reach(self, start: int = ROOT, seen: set[int] | None = None) -> set[int]:
        """Adds to `seen` what can be reached from `start`."""
        seen = set() if seen is None else seen
        todo = [start] if start in self.inodes else []
        while todo:
            ino = todo.pop()
            if ino in seen:
                continue
            seen.add(ino)
            if self.is_folder(ino):
                todo += [e.ino for e in self.names.get(ino, {}).values() if e.ino in self.inodes]
        return seen

    def place(self, ino: int) -> str:
        """A path to the inode, for people; its number, if no name leads there."""
        if self._owners is None:
            self._owners = {e.ino: (p, name) for p, kids in self.names.items() for name, e in kids.items()}
        parts: list[str] = []
        at = ino
        while at != ROOT:
            if at not in self._owners or len(parts) > 4096:
                return f"{self.label}: inode {ino}"
            at, name = self._owners[at]
            parts.append(printable(name))
        return f"{self.label}/" + "/".join(reversed(parts))

    def name(self, folder: int, name: bytes) -> str:
        return f"{self.place(folder).rstrip('/')}/{printable(name)}"


def printable(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _type(value: bytes) -> int:
    return S_IFMT(int.from_bytes(value[:4], "big"))


# reading
def read_view(
    engine: Engine,
    namespace: Namespace,
    label: str,
    at: Epoch | None,
    on_chunk: Callable[[int, Chunk], None],
) -> View:
    """Every row of the view.  `on_chunk` is told each chunk that an inode (or an orphan) names.  Errors: as Engine."""
    view = View(namespace, label)
    for key, value in rows(engine, namespace, at):
        try:
            _take(view, key, value, on_chunk)
        except _StrangeError as error:
            view.strange.append((key, str(error)))
    return view


def rows(engine: Engine, namespace: Namespace, at: Epoch | None) -> Iterator[tuple[bytes, bytes]]:
    after = b""
    while True:
        page = engine.scan(namespace.serial, b"", at, after, PAGE)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1][0]


class _StrangeError(Exception):
    pass


def _take(view: View, key: bytes, value: bytes, on_chunk: Callable[[int, Chunk], None]) -> None:
    kind = key[:1]
    if key == HEAD_KEY:
        return
    if kind not in (b"I", b"D", b"B", b"X", b"i", b"b", b"x"):
        raise _StrangeError("is no row of this format")
    if len(key) < KEY:
        raise _StrangeError("has a key that is too short")
    ino = U64.unpack_from(key, 1)[0]
    rest = key[KEY:]
    if len(rest) != {b"B": 4, b"b": 4, b"I": 0, b"i": 0}.get(kind, len(rest)):
        raise _StrangeError("has a key of the wrong length")
    if kind in (b"i", b"b", b"x"):
        view.orphans.append(key)
    if kind == b"I":
        _check_inode(value)
        view.inodes[ino] = value
    elif kind == b"D":
        if len(value) != DENTRY.size:
            raise _StrangeError("is a name whose row cannot be read")
        view.names.setdefault(ino, {})[rest] = Dentry(*DENTRY.unpack(value))
    elif kind in (b"B", b"b"):
        _take_block(view, key, ino, value, on_chunk)
    elif kind == b"X":
        if not 1 <= len(rest) <= XATTR_NAME_MAX:
            raise _StrangeError("is an extended attribute whose name is too long, or empty")
        view.xattrs[ino] += 1


def _check_inode(value: bytes) -> None:
    if len(value) < INODE.size:
        raise _StrangeError("is an inode whose row is cut short")
    inode = Inode.unpack(value)
    if S_IFMT(inode.mode) not in TYPES or inode.mode >> 16:
        raise _StrangeError(f"is an inode of no known type (mode {inode.mode:o})")
    if max(inode.atime_ns, inode.mtime_ns, inode.ctime_ns) >= NS:
        raise _StrangeError("is an inode with impossible times")
    if inode.target and S_IFMT(inode.mode) != S_IFLNK:
        raise _StrangeError("is an inode that is too long")


def _take_block(view: View, key: bytes, ino: int, value: bytes, on_chunk: Callable[[int, Chunk], None]) -> None:
    head = key[:1] == b"B"
    index = BLOCK_KEY.unpack_from(key, 1)[1]
    try:
        block = unpack_block(value)
        if block and block[-1][1] > view.namespace.block_size:
            raise DamagedError(f"reaches past the block size of {view.namespace.block_size}")
    except DamagedError as error:
        if head:
            view.broken.add(ino)
            # Its inode is there as long as it has a block, even one that says nothing.
            view.ends.setdefault(ino, 0)
            view.covered.setdefault(ino, 0)
        raise _StrangeError(f"is block {index} of inode {ino}: {error}") from error
    for _, _, source, _ in block:
        if isinstance(source, Chunk):
            on_chunk(ino, source)
    if not head:
        return
    view.blocks += 1
    if not block:
        view.empty.append(key)
        return
    view.covered[ino] += sum(end - start for start, end, _, _ in block)
    view.ends[ino] = max(view.ends.get(ino, 0), index * view.namespace.block_size + block[-1][1])


# judging
def problems(view: View) -> Iterator[Finding]:
    """What is wrong inside the view; what concerns its namespace's counters is the caller's business."""
    for key, what in view.strange:
        yield Finding("row", f"{view.label}: row {printable(key[:1])} {key[1:].hex()}", f"this {what}")
    for key in view.empty:
        yield Finding("row", view.place(U64.unpack_from(key, 1)[0]), "a block's row holds nothing")
    if not view.is_folder(ROOT):
        yield Finding("root", view.label, "there is no root directory")
    links: Counter[int] = Counter()
    folders: Counter[int] = Counter()
    parents: dict[int, list[int]] = {}
    for folder, kids in view.names.items():
        yield from _names(view, folder, kids)
        if not view.is_folder(folder):
            continue
        for entry in kids.values():
            links[entry.ino] += 1
            if view.is_folder(entry.ino):
                folders[folder] += 1
                parents.setdefault(entry.ino, []).append(folder)
    reached = view.reach()
    kids_seen: set[int] = set()
    for ino, value in view.inodes.items():
        inode = Inode.unpack(value)
        where = view.place(ino)
        if inode.kid in kids_seen or not inode.kid:
            yield Finding("number", where, f"its number {inode.kid} is another inode's, or no number")
        kids_seen.add(inode.kid)
        if ino not in reached:
            yield Finding("unreachable", where, f"no path leads from the root to inode {ino}")
        if S_IFMT(inode.mode) == S_IFDIR:
            yield from _folder(ino, inode, where, folders[ino], parents.get(ino, []))
        elif inode.nlink != links[ino]:
            yield Finding("links", where, f"it counts {inode.nlink} links and has {links[ino]} names")
        yield from _content(view, ino, inode, where)
    for ino in sorted((view.covered.keys() | view.xattrs.keys()) - view.inodes.keys()):
        yield Finding("inode", f"{view.label}: inode {ino}", "blocks or attributes of an inode that is not there")


def name_trouble(view: View, folder: int, name: bytes) -> str:
    """Why no entry of the directory can be called so; empty if one can."""
    if not name or len(name) > NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
        return "no file can have this name"
    if folder == ROOT and name in RESERVED:
        return "the root cannot hold this name"
    return ""


def _names(view: View, folder: int, kids: dict[bytes, Dentry]) -> Iterator[Finding]:
    usable = view.is_folder(folder)
    cookies: set[int] = set()
    for name, entry in kids.items():
        trouble = name_trouble(view, folder, name)
        if trouble:
            yield Finding("name", view.name(folder, name), trouble)
        if not usable:
            yield Finding("name", view.name(folder, name), f"it lies in inode {folder}, which is no directory")
        value = view.inodes.get(entry.ino)
        if value is None:
            yield Finding("name", view.name(folder, name), f"it names inode {entry.ino}, which is not there")
        elif _type(value) != entry.type << 12:
            yield Finding("type", view.name(folder, name), "its type is not that of its inode")
        if not FIRST_COOKIE <= entry.cookie < END_COOKIE or entry.cookie in cookies:
            yield Finding("cookie", view.name(folder, name), f"its cookie {entry.cookie} is not its own")
        cookies.add(entry.cookie)


def _folder(ino: int, inode: Inode, where: str, folders: int, parents: list[int]) -> Iterator[Finding]:
    if ino == ROOT:
        if parents:
            yield Finding("parent", where, "a name leads back to the root")
        if inode.parent != ROOT:
            yield Finding("parent", where, f"the root says that it lies in inode {inode.parent}")
    elif len(parents) > 1:
        yield Finding("parent", where, f"directory {ino} has {len(parents)} names")
    elif parents and inode.parent != parents[0]:
        yield Finding("parent", where, f"it says that it lies in inode {inode.parent}, not in {parents[0]}")
    if inode.nlink != 2 + folders:
        yield Finding("links", where, f"it counts {inode.nlink} links and should count {2 + folders}")


def _content(view: View, ino: int, inode: Inode, where: str) -> Iterator[Finding]:
    kind = S_IFMT(inode.mode)
    if kind == S_IFLNK and inode.size != len(inode.target):
        yield Finding("size", where, f"its size is {inode.size}, its target has {len(inode.target)} bytes")
    if kind == S_IFREG and inode.size >= 1 << 63:
        yield Finding("size", where, f"no file can have {inode.size} bytes")
    if kind != S_IFREG and ino in view.covered:
        yield Finding("blocks", where, "it has blocks and is no file")
    if inode.allocated != view.covered[ino] and ino not in view.broken:
        yield Finding("blocks", where, f"it counts {inode.allocated} bytes, its blocks {view.covered[ino]}")
    if inode.xattrs != view.xattrs[ino]:
        yield Finding("xattrs", where, f"it counts {inode.xattrs} attributes and has {view.xattrs[ino]}")
