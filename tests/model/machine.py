"""One namespace beside its reference, and operations as values that are done to both.

An *operation* is a tuple (kind, arguments …); directories and files are named in it by their place in a list that both
sides agree on, so that any tuple is valid at any time. A *held* inode is what a kernel would hold: it stays usable when
it has lost its name, until it is let go or the process ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from stat import S_IFIFO, S_IFLNK
from typing import Any

import trio
from hypothesis import strategies as st

from artfs.errors import FsError
from artfs.volume.attributes import GID, KILL_SUIDGID, MODE, MTIME, SIZE, UID
from artfs.volume.data import WRITE_KILL
from artfs.volume.node import Node
from artfs.volume.rows import number
from artfs.volume.tree import Tree
from artfs.volume.volume import Volume
from artfs.volume.waiting import MustWait
from tests.reference import HOLE, File, Reference

BLOCK = 128 << 10
NAMES = st.sampled_from(["a", "a", "b", "b", "c", "strange", "long", "too long", ".checkpoints"])
LONG_NAMES = {"strange": b"\xff\n", "long": b"x" * 255, "too long": b"x" * 256}
FEW = st.integers(0, 7)
MODES = st.sampled_from([0o644, 0o755, 0o4755, 0o2755, 0o2644, 0o1777])
OFFSETS = st.one_of(
    st.integers(0, 9000),
    st.sampled_from([4096, 65536, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 18 * BLOCK]),
    st.integers(0, 3 * BLOCK),
)
LENGTHS = st.one_of(
    st.integers(0, 5000), st.sampled_from([1, 4096, 65535, 65536, 65537, BLOCK, 2 * BLOCK + 7]), st.integers(0, 200_000)
)
XATTRS = st.sampled_from(["user.a", "user.b", "trusted.t", "security.capability", "system.no"])
SIZES = st.sampled_from([0, 1, 5000])
MAYBE_ID = st.sampled_from([None, None, 0, 7])

OPERATIONS = st.one_of(
    st.tuples(st.just("create"), FEW, NAMES, MODES),
    st.tuples(st.just("mkdir"), FEW, NAMES, MODES),
    st.tuples(st.just("symlink"), FEW, NAMES, st.sampled_from([0, 1, 4095, 4096])),
    st.tuples(st.just("fifo"), FEW, NAMES),
    st.tuples(st.just("unnamed"), FEW, MODES),
    st.tuples(st.just("link"), FEW, FEW, NAMES),
    st.tuples(st.just("replace"), FEW, FEW, NAMES),
    st.tuples(st.just("unlink"), FEW, NAMES),
    st.tuples(st.just("rmdir"), FEW, NAMES),
    st.tuples(st.just("remove"), FEW, st.booleans()),
    st.tuples(st.just("remove"), FEW, st.booleans()),
    st.tuples(st.just("rename"), FEW, NAMES, FEW, NAMES, st.sampled_from([0, 0, 0, 1, 2, 3])),
    st.tuples(st.just("move"), FEW, FEW, st.none() | FEW, st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("write"), FEW, OFFSETS, LENGTHS, st.integers(0, 255), st.sampled_from([0, WRITE_KILL])),
    st.tuples(st.just("write"), FEW, OFFSETS, LENGTHS, st.integers(0, 255), st.just(0)),
    st.tuples(st.just("scatter"), FEW, st.integers(0, 3000), st.integers(1, 80), st.integers(0, 255)),
    st.tuples(st.just("truncate"), FEW, st.one_of(st.just(0), OFFSETS), st.booleans()),
    st.tuples(
        st.just("fallocate"),
        FEW,
        st.sampled_from([0, 1, 2, 3, 16, 17]),
        OFFSETS,
        st.integers(1, 300_000),
        st.booleans(),
    ),
    st.tuples(st.just("copy"), FEW, OFFSETS, FEW, OFFSETS, LENGTHS, st.booleans()),
    st.tuples(st.just("seek"), FEW, OFFSETS, st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE])),
    st.tuples(st.just("setattr"), FEW, st.none() | MODES, MAYBE_ID, MAYBE_ID, st.sampled_from([None, -1, 10**18 + 1])),
    st.tuples(st.just("setxattr"), FEW, XATTRS, SIZES, st.sampled_from([0, 0, 1, 2])),
    st.tuples(st.just("removexattr"), FEW, XATTRS),
    st.tuples(st.just("hold"), FEW),
    st.tuples(st.just("hold"), FEW),
    st.tuples(st.just("release"), FEW),
    st.tuples(st.just("evict")),
)
Operation = tuple[Any, ...]


def named(name: str) -> bytes:
    return LONG_NAMES.get(name, name.encode())


def pattern(seed: int, length: int) -> bytes:
    """Bytes that differ by place and by seed; never all zeros."""
    return (bytes((seed, *range(1, 252))) * (length // 252 + 1))[:length]


@dataclass(slots=True)
class Held:
    node: Node
    file: File


@dataclass(slots=True)
class Space:
    """A namespace, what it must hold, and what each of its checkpoints must."""

    volume: Volume
    reference: Reference
    saved: dict[str, Reference] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)

    @property
    def tree(self) -> Tree:
        return self.volume.tree

    # finding the same thing on both sides
    def nodes(self) -> list[tuple[Node, File]]:
        """Everything that can be named or is held, in an order that the reference gives."""
        found = [(self.at(path), file) for path, file in self.reference.walk()]
        return found + [(held.node, held.file) for held in self.held]

    def at(self, path: bytes) -> Node:
        node = self.tree.root()
        for name in path.split(b"/")[1:]:
            below = self.tree.lookup(node, name)
            assert below is not None, f"{path!r} is not there"
            node = below
        return node

    def pick(self, index: int, wanted: Callable[[File], bool] = lambda file: True) -> tuple[Node, File]:
        found = [pair for pair in self.nodes() if wanted(pair[1])]
        return found[index % len(found)]

    def folder(self, index: int) -> tuple[Node, File]:
        return self.pick(index, lambda file: file.kids is not None)

    def file(self, index: int) -> tuple[Node, File]:
        """A file where there is one, else anything."""
        kinds = {file.kids is not None for _, file in self.nodes()}
        return self.pick(index, lambda file: file.kids is None or False not in kinds)

    # doing the same thing on both sides
    def apply(self, operation: Operation) -> None:
        arguments = [named(value) if isinstance(value, str) else value for value in operation[1:]]
        getattr(self, "do_" + operation[0])(*arguments)

    def both(self, real: Callable[[], Any], model: Callable[[], Any]) -> tuple[Any, Any]:
        """What both answer, (None, None) if both refuse.  Fails where one refuses, or they do for other reasons."""
        wanted = got = None
        answer = result = None
        try:
            answer = model()
        except OSError as error:
            wanted = error.errno
        try:
            result = real()
        except FsError as error:
            got = error.errno
        assert got == wanted, f"errno {got}, the reference says {wanted}"
        return result, answer

    def do_create(self, folder: int, name: bytes, mode: int) -> None:
        (node, file) = self.folder(folder)
        self.both(
            lambda: self.tree.create(node, name, mode, 5, 6),
            lambda: self.reference.make(file, name, 0o100000 | mode, 5, 6),
        )

    def do_mkdir(self, folder: int, name: bytes, mode: int) -> None:
        (node, file) = self.folder(folder)
        self.both(
            lambda: self.tree.mkdir(node, name, mode, 5, 6),
            lambda: self.reference.make(file, name, 0o040000 | mode, 5, 6),
        )

    def do_symlink(self, folder: int, name: bytes, length: int) -> None:
        (node, file) = self.folder(folder)
        target = b"t" * length
        self.both(
            lambda: self.tree.symlink(node, name, target, 5, 6),
            lambda: self.reference.make(file, name, S_IFLNK | 0o777, 5, 6, target),
        )

    def do_fifo(self, folder: int, name: bytes) -> None:
        (node, file) = self.folder(folder)
        self.both(
            lambda: self.tree.make(node, name, S_IFIFO | 0o600, 5, 6),
            lambda: self.reference.make(file, name, S_IFIFO | 0o600, 5, 6),
        )

    def do_unnamed(self, folder: int, mode: int) -> None:
        (node, file) = self.folder(folder)
        new, made = self.both(
            lambda: self.tree.make_unnamed(node, mode, 5, 6),
            lambda: self.reference.make_unnamed(file, mode, 5, 6),
        )
        new.looks += 1
        self.held.append(Held(new, made))

    def do_link(self, source: int, folder: int, name: bytes) -> None:
        (node, file), (into, under) = self.pick(source), self.folder(folder)
        self.both(lambda: self.tree.link(node, into, name), lambda: self.reference.link(file, under, name))

    def do_unlink(self, folder: int, name: bytes) -> None:
        (node, file) = self.folder(folder)
        self.both(lambda: self.tree.unlink(node, name), lambda: self.reference.unlink(file, name))

    def do_rmdir(self, folder: int, name: bytes) -> None:
        (node, file) = self.folder(folder)
        self.both(lambda: self.tree.rmdir(node, name), lambda: self.reference.rmdir(file, name))

    def do_rename(self, folder: int, name: bytes, target: int, new: bytes, flags: int) -> None:
        (node, file), (into, under) = self.folder(folder), self.folder(target)
        self.both(
            lambda: self.tree.rename(node, name, into, new, flags),
            lambda: self.reference.rename(file, name, under, new, flags),
        )

    def do_remove(self, index: int, held: bool) -> None:
        """Of a name that is there; `held`: the kernel goes on using what it led to."""
        folder, name, file = self.entry(index)
        if name:
            if held:
                node = self.node(file)
                node.looks += 1
                self.held.append(Held(node, file))
            folders = [other for _, other in self.nodes() if other.kids is not None]
            (self.do_unlink if file.kids is None else self.do_rmdir)(folders.index(folder), name)

    def do_move(self, index: int, target: int, over: int | None, flags: int) -> None:
        """Of a name that is there, perhaps onto one that is."""
        folder, name, _ = self.entry(index)
        if not name:
            return
        (into, under), new = self.folder(target), b"moved"
        if over is not None:
            under, new, _ = self.entry(over)
            into = self.node(under)
        node = self.node(folder)
        self.both(
            lambda: self.tree.rename(node, name, into, new, flags),
            lambda: self.reference.rename(folder, name, under, new, flags),
        )

    def entry(self, index: int) -> tuple[File, bytes, File]:
        """(directory, name, inode) of a name that is there; the name is empty where there is none."""
        found = [
            (file, name, below)
            for _, file in self.reference.walk()
            for name, below in sorted((file.kids or {}).items())
        ]
        return found[index % len(found)] if found else (self.reference.root, b"", self.reference.root)

    def node(self, file: File) -> Node:
        return next(node for node, other in self.nodes() if other is file)

    def do_replace(self, index: int, folder: int, name: bytes) -> None:
        """A held inode without a name takes another's place."""
        held = [held for held in self.held if held.file.regular and not held.file.nlink]
        if held:
            one = held[index % len(held)]
            (into, under) = self.folder(folder)
            self.both(
                lambda: self.tree.replace(one.node, into, name),
                lambda: self.reference.replace(one.file, under, name),
            )

    def do_write(self, index: int, offset: int, length: int, seed: int, flags: int) -> None:
        (node, file) = self.file(index)
        data = pattern(seed, length)
        self.both(
            lambda: self.tree.write(node, offset, data, flags),
            lambda: self.reference.write(file, offset, data, kill=bool(flags & WRITE_KILL)),
        )

    def do_scatter(self, index: int, gap: int, count: int, seed: int) -> None:
        for i in range(count):
            self.do_write(index, i * (gap + 16), 16, (seed + i) % 256, 0)

    def do_truncate(self, index: int, size: int, kill: bool) -> None:
        (node, file) = self.file(index)
        valid = SIZE | (KILL_SUIDGID if kill else 0)
        self.both(
            lambda: self.tree.setattr(node, valid, size, 0, 0, 0, 0, 0, 0),
            lambda: self.reference.truncate(file, size, kill=kill),
        )

    def do_fallocate(self, index: int, mode: int, offset: int, length: int, kill: bool) -> None:
        (node, file) = self.file(index)
        self.both(
            lambda: self.tree.fallocate(node, mode, offset, length, kill=kill),
            lambda: self.reference.fallocate(file, mode, offset, length, kill=kill),
        )

    def do_copy(self, source: int, start: int, target: int, offset: int, length: int, kill: bool) -> None:
        (node, file), (into, copy) = self.file(source), self.file(target)
        result, answer = self.both(
            lambda: self.tree.copy_range(node, start, into, offset, length, kill=kill),
            lambda: self.reference.copy_range(file, start, copy, offset, length, kill=kill),
        )
        assert result == answer

    def do_seek(self, index: int, offset: int, whence: int) -> None:
        (node, file) = self.file(index)
        if file.regular:
            result, answer = self.both(
                lambda: self.tree.seek(node, offset, whence), lambda: self.reference.seek(file, offset, whence)
            )
            assert result == answer

    def do_setattr(self, index: int, mode: int | None, uid: int | None, gid: int | None, mtime: int | None) -> None:
        (node, file) = self.pick(index)
        given = (MODE, mode), (UID, uid), (GID, gid), (MTIME, mtime)
        valid = sum(bit for bit, value in given if value is not None)
        self.both(
            lambda: self.tree.setattr(node, valid, 0, 0, mtime or 0, 0, mode or 0, uid or 0, gid or 0),
            lambda: self.reference.setattr(file, mode=mode, uid=uid, gid=gid, mtime=mtime),
        )

    def do_setxattr(self, index: int, name: bytes, size: int, flags: int) -> None:
        (node, file) = self.pick(index)
        value = pattern(1, size)
        self.both(
            lambda: self.tree.setxattr(node, name, value, flags),
            lambda: self.reference.setxattr(file, name, value, flags),
        )

    def do_removexattr(self, index: int, name: bytes) -> None:
        (node, file) = self.pick(index)
        self.both(lambda: self.tree.removexattr(node, name), lambda: self.reference.removexattr(file, name))

    def do_hold(self, index: int) -> None:
        (node, file) = self.pick(index)
        node.looks += 1
        self.held.append(Held(node, file))

    def do_release(self, index: int) -> None:
        if self.held:
            self.let_go(self.held.pop(index % len(self.held)))

    def let_go(self, held: Held) -> None:
        held.node.looks -= 1
        if not held.node.looks:
            held.node.tree.rest(held.node)

    def do_evict(self) -> None:
        """As if more inodes than the cache has room for had been used since."""
        for ino, node in list(self.tree.nodes.items()):
            if not node.looks and node.nlink:
                del self.tree.nodes[ino]
                self.tree.idle.pop(ino, None)

    # comparing
    def check(self) -> None:
        usage = self.reference.usage()
        assert (self.tree.used_bytes, self.tree.used_inodes) == usage
        inos = compare(self.tree, self.reference)
        expected = {b"h"}
        for path, file in self.reference.walk():
            expected |= keys(file, inos[id(file)], b"IBX")
            for name in file.kids or ():
                expected.add(b"D" + number(inos[id(file)]) + name)
            if path:
                node = self.at(path)
                assert not node.kids or node.kids.keys() <= (file.kids or {}).keys()
        for held in self.held:
            compare_inode(self.tree, held.node, held.file)
            if id(held.file) in inos:
                assert self.tree.nodes[held.node.ino] is held.node
                assert inos[id(held.file)] == held.node.ino
            else:
                expected |= keys(held.file, held.node.ino, b"ibx")
        found = row_keys(self.tree) | {b"h"}
        assert found == expected, f"rows {found - expected} too many, {expected - found} are missing"
        if not self.tree.open_batch and not self.tree.closed_batches:
            assert self.tree.engine.check() == []

    def check_views(self) -> None:
        """REQUIRES: checkpoints are committed."""
        assert [c.id for c in self.volume.checkpoints(all=True)] == list(self.saved)
        for id, saved in self.saved.items():
            view = trio.run(self.volume.view, id)
            compare(view, saved)
            assert self.volume.find(id).usage == saved.usage()


def keys(file: File, ino: int, kinds: bytes) -> set[bytes]:
    """The keys of the rows of an inode: `kinds` are the letters of inode, block and attribute."""
    inode, block, xattr = (kinds[i : i + 1] + number(ino) for i in range(3))
    blocks = (
        index
        for index in range(-(-len(file.kinds) // BLOCK))
        if file.kinds.count(HOLE, index * BLOCK, (index + 1) * BLOCK)
        != len(file.kinds[index * BLOCK : (index + 1) * BLOCK])
    )
    return {inode} | {block + i.to_bytes(4, "big") for i in blocks} | {xattr + name for name in file.xattrs}


def row_keys(tree: Tree) -> set[bytes]:
    """The keys that a reader of the tree's rows sees."""
    found = {key for key, _ in tree.engine.scan(tree.serial, b"")}
    for batch in (*tree.closed_batches, tree.open_batch):
        for key, value in batch.rows.items():
            (found.discard if value is None else found.add)(key)
        for key, block in batch.blocks.items():
            (found.add if block else found.discard)(key)
    return found


def compare(tree: Tree, reference: Reference) -> dict[int, int]:
    """Fails unless both hold the same.  Returns the inode numbers by id of the reference's inode."""
    inos: dict[int, int] = {}
    todo = [(tree.root(), reference.root, b"")]
    while todo:
        node, file, path = todo.pop()
        assert inos.setdefault(id(file), node.ino) == node.ino, f"{path!r} is another inode than its hard link"
        compare_inode(tree, node, file, path)
        if file.kids is None:
            continue
        listing = tree.listing(node)
        assert sorted(name for name, _ in listing) == sorted(file.kids), f"names in {path!r}"
        cookies = [entry.cookie for _, entry in listing]
        assert sorted(set(cookies)) == cookies
        for name, entry in listing:
            below = tree.lookup(node, name)
            assert below is not None and below.ino == entry.ino and below.mode >> 12 == entry.type
            todo.append((below, file.kids[name], path + b"/" + name))
    assert len(set(inos.values())) == len(inos)
    return inos


def compare_inode(tree: Tree, node: Node, file: File, path: bytes = b"(held)") -> None:
    want = (file.mode, file.uid, file.gid, file.nlink, file.allocated, file.target)
    have = (node.mode, node.uid, node.gid, node.nlink, node.allocated, node.target)
    assert have == want, f"attributes of {path!r}: {have}, the reference says {want}"
    assert file.mtime is None or node.mtime == file.mtime, f"mtime of {path!r}"
    names = tree.listxattr(node)
    assert len(names) == node.xattrs
    assert {name: tree.getxattr(node, name) for name in names} == file.xattrs, f"xattrs of {path!r}"
    if file.regular:
        assert node.size == len(file.data), f"size of {path!r}"
        data = read(tree, node)
        if data != file.data:
            at = next(i for i in range(len(data)) if data[i] != file.data[i])
            raise AssertionError(f"bytes of {path!r} differ from {at} on")
    elif file.target:
        assert node.size == len(file.target)


def read(tree: Tree, node: Node) -> bytes:
    parts = []
    for at in range(0, node.size, 1 << 20):
        parts.append(wait(tree.read_bytes, node, at, 1 << 20))
    return b"".join(parts)


def wait(function: Callable[..., Any], *args: Any) -> Any:
    """Call a plain function that may have to wait; no loop runs here."""
    while True:
        try:
            return function(*args)
        except MustWait as must:
            trio.run(must.wait)
