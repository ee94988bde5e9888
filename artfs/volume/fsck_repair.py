"""What a head's rows should be, given what they are: pure, one batch for a namespace.

Invariants of a repair:
1. no byte of a file is made up or thrown away: a block that cannot be read, or whose object is damaged, stays as it is,
   so that reading it fails; blocks that lost their inode become a file;
2. what has lost its name gets one in the root, `lost+found-<inode>`;
3. numbers and cookies are taken from the counters' upper end, never reused;
4. a view that `problems` finds nothing wrong in gives no rows, besides its orphans' if they are swept.
"""

from __future__ import annotations

from collections.abc import Callable
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from time import time_ns

from artfs.volume.fsck_view import END_COOKIE, FIRST_COOKIE, Inode, View, name_trouble
from artfs.volume.inodes import ROOT
from artfs.volume.node import Dentry
from artfs.volume.rows import DENTRY, HEAD_KEY, NS, Head, number

Rows = dict[bytes, bytes | None]
Scan = Callable[[bytes], list[tuple[bytes, bytes]]]
"""The head's rows by prefix."""

LOST = b"lost+found-"


def plan(view: View, head: Head, old_head: bytes | None, scan: Scan, sweep: bool) -> Rows:
    """Rows to change so that the view keeps every rule.  `head`: the counters as they must be at least; `sweep`:
    orphans are deleted.  An orphan's rows are left alone otherwise: a journal may name it."""
    return _Repair(view, head, scan).run(old_head, sweep)


class _Repair:
    def __init__(self, view: View, head: Head, scan: Scan) -> None:
        self.view = view
        self.scan = scan
        self.head = head
        self.numbers = head.numbers
        self.cookies = max(head.cookies, FIRST_COOKIE - 1)
        self.rows: Rows = {}
        self.made: set[int] = set()

    def run(self, old_head: bytes | None, sweep: bool) -> Rows:
        view = self.view
        for key, _ in view.strange:
            # A name that cannot be read leads nowhere, and its inode turns up below as one that has none; an inode
            # that cannot be read is made again, if anything belongs to it.
            if key[:1] in (b"D", b"I"):
                self.rows[key] = None
        for key in view.empty:
            self.rows[key] = None
        self._inodes()
        self._names()
        self._lost()
        self._attributes()
        self._stray()
        if sweep:
            self.rows.update((key, None) for key in view.orphans)
        # Broken blocks count as their inode says: see View.used.
        counters = Head(
            self.head.epoch, self.numbers, self.cookies, self.head.objects, self.used_bytes, len(view.inodes)
        )
        if counters.pack() != old_head:
            self.rows[HEAD_KEY] = counters.pack()
        return self.rows

    # inodes that are not there
    def _inodes(self) -> None:
        view = self.view
        if not view.is_folder(ROOT):
            self._make(ROOT, S_IFDIR | 0o700, ROOT)
        for ino in sorted(view.covered):
            if ino not in view.inodes:
                self._make(ino, S_IFREG | 0o600, 0, view.ends[ino])
            elif _kind(view.inodes[ino]) != S_IFREG:
                self._move_blocks(ino, self._number())
        for folder in sorted(view.names.keys() - view.inodes.keys()):
            self._make(folder, S_IFDIR | 0o700, ROOT)

    def _move_blocks(self, ino: int, new: int) -> None:
        """Something that is no file has blocks: they become a file of their own."""
        view = self.view
        for key, value in self.scan(b"B" + number(ino)):
            self.rows[key] = None
            self.rows[b"B" + number(new) + key[9:]] = value
        view.covered[new] = view.covered.pop(ino)
        view.ends[new] = view.ends.pop(ino)
        if ino in view.broken:
            view.broken.remove(ino)
            view.broken.add(new)
        self._make(new, S_IFREG | 0o600, 0, view.ends[new])

    def _make(self, ino: int, mode: int, parent: int, size: int = 0) -> None:
        view = self.view
        kid = ROOT if ino == ROOT else self._number()
        now = divmod(time_ns(), NS)
        uid, gid = view.namespace.uid, view.namespace.gid
        view.inodes[ino] = Inode(mode, 2, uid, gid, 0, kid, parent, size, 0, *now, *now, *now, 0).pack()
        self.rows[b"I" + number(ino)] = view.inodes[ino]
        self.made.add(ino)

    def _number(self) -> int:
        self.numbers += 1
        return self.numbers - 1

    # names
    def _names(self) -> None:
        view = self.view
        parents: dict[int, int] = {ROOT: 0}
        for folder in list(view.names):
            kids = view.names[folder]
            cookies: set[int] = set()
            for name, entry in list(kids.items()):
                value = view.inodes.get(entry.ino)
                # A file made of blocks has a guessed size: it must not pass for what had the name.
                guessed = entry.ino in self.made and not view.is_folder(entry.ino)
                if value is None or guessed or not view.is_folder(folder) or name_trouble(view, folder, name):
                    self._leave(folder, name)
                    continue
                if view.is_folder(entry.ino):
                    if entry.ino in parents and not self._is_home(entry.ino, folder):
                        self._leave(folder, name)
                        continue
                    self._only_home(parents, entry.ino, folder)
                right = entry._replace(type=_kind(value) >> 12)
                if not FIRST_COOKIE <= entry.cookie < END_COOKIE or entry.cookie in cookies:
                    right = right._replace(cookie=self._cookie())
                cookies.add(right.cookie)
                if right != entry:
                    self._enter(folder, name, right)

    def _is_home(self, ino: int, folder: int) -> bool:
        return ino != ROOT and Inode.unpack(self.view.inodes[ino]).parent == folder

    def _only_home(self, parents: dict[int, int], ino: int, folder: int) -> None:
        """The directory is to be in `folder`: names of it elsewhere, and a second one here, go."""
        before = parents.get(ino)
        parents[ino] = folder
        if before is None:
            return
        names = [name for name, entry in self.view.names[before].items() if entry.ino == ino]
        for name in names[: 1 if before == folder else len(names)]:
            self._leave(before, name)

    def _cookie(self) -> int:
        self.cookies += 1
        return self.cookies

    def _leave(self, folder: int, name: bytes) -> None:
        del self.view.names[folder][name]
        self.rows[b"D" + number(folder) + name] = None

    def _enter(self, folder: int, name: bytes, entry: Dentry) -> None:
        self.view.names.setdefault(folder, {})[name] = entry
        self.rows[b"D" + number(folder) + name] = DENTRY.pack(*entry)

    # what no path leads to
    def _lost(self) -> None:
        view = self.view
        reached = view.reach()
        while lost := view.inodes.keys() - reached:
            named = {e.ino: (f, n) for f in lost for n, e in view.names.get(f, {}).items() if view.is_folder(f)}
            tops = sorted(lost - named.keys())
            if not tops:
                # Directories in a circle: one of them comes out.
                tops = [_in_circle(min(lost), {ino: folder for ino, (folder, _) in named.items()})]
                self._leave(*named[tops[0]])
            for ino in tops:
                entry = Dentry(ino, self._cookie(), _kind(view.inodes[ino]) >> 12)
                self._enter(ROOT, self._free_name(ino), entry)
                view.reach(ino, reached)

    def _free_name(self, ino: int) -> bytes:
        wanted = name = LOST + str(ino).encode()
        count = 1
        while name in self.view.names.get(ROOT, {}):
            count += 1
            name = wanted + b"~%d" % count
        return name

    # attributes
    def _attributes(self) -> None:
        view = self.view
        links: dict[int, int] = {}
        folders: dict[int, int] = {}
        homes: dict[int, int] = {ROOT: ROOT}
        for folder, kids in view.names.items():
            for entry in kids.values():
                links[entry.ino] = links.get(entry.ino, 0) + 1
                if view.is_folder(entry.ino):
                    folders[folder] = folders.get(folder, 0) + 1
                    homes[entry.ino] = folder
        seen: set[int] = set()
        self.used_bytes = 0
        for ino, value in view.inodes.items():
            old = Inode.unpack(value)
            kind = S_IFMT(old.mode)
            new = old._replace(xattrs=view.xattrs[ino])
            if kind == S_IFDIR:
                new = new._replace(nlink=2 + folders.get(ino, 0), parent=homes[ino])
            else:
                new = new._replace(nlink=links[ino])
            if ino not in view.broken:
                new = new._replace(allocated=view.covered[ino] if kind == S_IFREG else 0)
            if kind == S_IFLNK:
                new = new._replace(size=len(old.target))
            if not old.kid or old.kid in seen:
                new = new._replace(kid=self._number())
            seen.add(new.kid)
            self.used_bytes += new.allocated
            if new != old:
                view.inodes[ino] = self.rows[b"I" + number(ino)] = new.pack()

    def _stray(self) -> None:
        """Attributes of what is not there."""
        for ino in self.view.xattrs.keys() - self.view.inodes.keys():
            self.rows.update((key, None) for key, _ in self.scan(b"X" + number(ino)))


def _kind(value: bytes) -> int:
    return S_IFMT(int.from_bytes(value[:4], "big"))


def _in_circle(start: int, folder_of: dict[int, int]) -> int:
    """A directory that lies in itself, above `start`."""
    seen: set[int] = set()
    while start not in seen:
        seen.add(start)
        start = folder_of[start]
    return start
