"""A store with something of everything, closed, and ways to damage and to read it."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import apsw
import trio

from artfs.errors import FsError
from artfs.meta import Batch
from artfs.meta.sqlite import SqliteEngine
from artfs.store.opening import open_store
from artfs.store.store import Store
from artfs.types import Epoch, NamespaceType, Scope, Serial
from artfs.volume.fsck import Report, check
from artfs.volume.fsck_view import Inode
from artfs.volume.node import Dentry, Node
from artfs.volume.rows import DENTRY, HEAD_KEY, Head, number
from artfs.volume.tree import Tree
from artfs.volume.waiting import run as waiting

BIG = bytes(range(256)) * 1200
ROOT = 1


class Made:
    """A store at `root`, closed; inode numbers by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ino: dict[str, int] = {}
        self.serial = Serial(0)
        self.clone = Serial(0)
        self.ids: dict[str, str] = {}

    # rows of the workspace's head
    def key(self, kind: bytes, name: str, rest: bytes = b"") -> bytes:
        return kind + number(self.ino[name]) + rest

    def get(self, key: bytes) -> bytes:
        db = apsw.Connection(str(self.root / "meta.db"))
        try:
            return bytes(db.execute("SELECT value FROM head WHERE serial = ? AND key = ?", (self.serial, key)).get)
        finally:
            db.close()

    def put(self, key: bytes, value: bytes | None) -> None:
        """Change a row of the head alone, as a bug would: what checkpoints see stays as it is."""
        engine = SqliteEngine(self.root / "meta.db", create=False)
        try:
            epoch = engine.checkpoints(self.serial)[-1].epoch + 1
            engine.commit([Batch(self.serial, Epoch(epoch), {key: value})])
        finally:
            engine.close()

    def sql(self, statement: str, *bindings: object) -> None:
        db = apsw.Connection(str(self.root / "meta.db"))
        try:
            db.execute(statement, bindings).fetchall()
            assert db.changes() > 0
        finally:
            db.close()

    def inode(self, name: str, **change: int | bytes) -> None:
        key = self.key(b"I", name)
        self.put(key, Inode.unpack(self.get(key))._replace(**change).pack())  # type: ignore[arg-type]

    def dentry(self, parent: str, name: bytes, entry: Dentry) -> None:
        self.put(self.key(b"D", parent, name), DENTRY.pack(*entry))

    def entry(self, parent: str, name: bytes) -> Dentry:
        return Dentry(*DENTRY.unpack(self.get(self.key(b"D", parent, name))))

    def head(self, **change: int) -> None:
        self.put(HEAD_KEY, Head.unpack(self.get(HEAD_KEY))._replace(**change).pack())

    def objects(self) -> list[Path]:
        return sorted(path for path in (self.root / "objects").rglob("*") if path.is_file())


def _fill(tree: Tree, made: Made) -> None:
    root = tree.root()

    def make(name: str, node: Node) -> Node:
        made.ino[name] = node.ino
        return node

    made.ino["/"] = root.ino
    folder = make("dir", tree.mkdir(root, b"dir", 0o755, 1, 1))
    deep = make("deep", tree.mkdir(folder, b"deep", 0o755, 1, 1))
    make("empty", tree.mkdir(root, b"empty", 0o755, 1, 1))
    small = make("small", tree.create(root, b"small", 0o644, 1, 1))
    tree.write(small, 0, b"small file")
    big = make("big", tree.create(deep, b"big", 0o644, 1, 1))
    tree.write(big, 0, BIG)
    tree.fallocate(big, 0, len(BIG) + 10_000, 5000)
    sparse = make("sparse", tree.create(deep, b"sparse", 0o644, 1, 1))
    tree.write(sparse, 5 << 20, b"far" * 3000)
    linked = make("linked", tree.create(folder, b"linked", 0o600, 1, 1))
    tree.write(linked, 0, BIG[:50_000])
    tree.link(linked, root, b"other name")
    make("symlink", tree.symlink(folder, b"symlink", b"../small", 1, 1))
    make("fifo", tree.make(folder, b"fi\xffo", 0o010644, 1, 1))
    tree.setxattr(small, b"user.one", b"1")
    tree.setxattr(folder, b"user.two", b"2" * 500)


async def build(made: Made) -> None:
    async with open_store(made.root, "test") as store:
        await _with_store(store, made)
    async with open_store(made.root, "test") as store:
        # A second process: other objects, rows that are retired, and blocks of several pieces.
        volume = store.volume(store.catalogue.get(made.ids["work"]))
        tree = volume.tree
        big = tree.node(made.ino["big"])
        tree.write(big, 70_000, b"patch" * 2000)
        deep = tree.node(made.ino["deep"])
        made.ino["late"] = tree.create(deep, b"late", 0o644, 1, 1).ino
        await store.checkpoint(volume, "two")
        tree.copy_range(big, 0, tree.node(made.ino["late"]), 0, 200_000)
        tree.unlink(deep, b"sparse")


async def _with_store(store: Store, made: Made) -> None:
    store.sessions.create("default", "u", ttl_seconds=3600, id="s1")
    work = await store.create_namespace("default", Scope.SESSION, "s1", "work")
    made.serial = work.serial
    made.ids["work"] = work.id
    volume = store.volume(work)
    _fill(volume.tree, made)
    await store.checkpoint(volume, "one", labels={"a": 1})
    tree = volume.tree
    tree.rename(tree.root(), b"small", tree.node(made.ino["dir"]), b"moved")
    tree.rename(tree.node(made.ino["dir"]), b"moved", tree.root(), b"small")
    clone = await store.clone(volume, "branch", "one")
    made.clone = clone.serial
    made.ids["branch"] = clone.id
    blob = await store.create_namespace("default", Scope.SANDBOX, None, "blob", type=NamespaceType.BLOB)
    made.ids["blob"] = blob.id
    blob_tree = store.volume(blob).tree
    data = blob_tree.lookup(blob_tree.root(), b"_data")
    assert data is not None
    blob_tree.write(data, 0, b"x" * 100_000)
    gone = await store.create_namespace("default", Scope.USER, "u", "gone")
    await store.checkpoint(store.volume(gone), "c")
    await store.destroy_namespace(gone)


def kinds(report: Report) -> set[str]:
    return {problem.kind for problem in report.problems}


def report_text(report: Report) -> str:
    return "\n".join(f"{p.kind} | {p.where} | {p.what} | {p.repaired}" for p in report.problems)


def assert_repairs(made: Made, *expected: str) -> Report:
    """The damage is found, nothing is changed by looking; repair mends it, and then all is well."""
    found = check(made.root)
    assert not found.ok
    assert kinds(found) >= set(expected), report_text(found)
    assert kinds(check(made.root)) == kinds(found)
    mended = check(made.root, repair=True)
    assert mended.ok, report_text(mended)
    assert kinds(mended) >= set(expected), report_text(mended)
    after = check(made.root, data=True)
    assert after.problems == [], report_text(after)
    return mended


def read_all(made: Made) -> dict[str, bytes]:
    """Every file of the workspace by path, through a store that opens it."""
    found: dict[str, bytes] = {}

    async def walk(tree: Tree, folder: Node, path: str) -> None:
        for name, entry in tree.listing(folder):
            node = tree.node(entry.ino)
            here = f"{path}/{os.fsdecode(name)}"
            if node.kids is not None:
                found[here + "/"] = b""
                await walk(tree, node, here)
            elif node.is_file:
                try:
                    # A damaged size may say anything.
                    places = range(0, min(node.size, 16 << 20), 1 << 20)
                    parts = [await waiting(tree.read_bytes, node, at, 1 << 20) for at in places]
                    found[here] = b"".join(parts)
                except FsError as error:
                    found[here] = f"errno {error.errno}".encode()
            else:
                found[here] = node.target

    async def run() -> None:
        async with open_store(made.root, "test") as store:
            tree = store.volume(store.catalogue.get(made.ids["work"])).tree
            await walk(tree, tree.root(), "")

    trio.run(run)
    return found


def names_in(made: Made, folder: str) -> set[str]:
    engine = SqliteEngine(made.root / "meta.db", create=False)
    try:
        return {os.fsdecode(key[9:]) for key, _ in engine.scan(made.serial, made.key(b"D", folder))}
    finally:
        engine.close()


async def random_work(made: Made, seed: int) -> None:
    """600 changes of the workspace, with commits, checkpoints, restores and a clone; nearly every call of a tree."""
    rnd = random.Random(seed)
    async with open_store(made.root, "test") as store:
        volume = store.volume(store.catalogue.get(made.ids["work"]))
        for ino in made.ino.values():
            with contextlib.suppress(FsError):
                volume.tree.node(ino)
        for step in range(600):
            with contextlib.suppress(FsError):
                _change(volume.tree, rnd, b"f%d" % step)
            if step % 50 == 0:
                await store.shard.commit()
            if step % 90 == 0:
                await store.checkpoint(volume, f"c{step}")
            if step % 200 == 199:
                await store.restore(volume, rnd.choice(volume.checkpoints()).id)
            if step % 250 == 249:
                await store.delete_checkpoint(volume, rnd.choice(volume.checkpoints()).id)
            if step == 300:
                await store.clone(volume, "half-way")


def _change(tree: Tree, rnd: random.Random, spare: bytes) -> None:
    """Errors: FsError, as the change is a random one."""
    nodes = [node for node in list(tree.nodes.values()) if node.nlink]
    folders = [tree.root(), *(node for node in nodes if node.kids is not None)]
    files = [node for node in nodes if node.is_file] or [tree.create(tree.root(), spare, 0o644, 1, 1)]
    folder, other = rnd.choice(folders), rnd.choice(folders)
    name, new = b"n%d" % rnd.randrange(8), b"n%d" % rnd.randrange(8)
    file, second = rnd.choice(files), rnd.choice(files)
    offset, length = rnd.randrange(3 << 20), rnd.randint(1, 2 << 20)
    calls: list[Callable[[], object]] = [
        lambda: tree.create(folder, name, 0o644, 1, 1),
        lambda: tree.mkdir(folder, name, 0o755, 1, 1),
        lambda: tree.symlink(folder, name, b"t" * rnd.randint(1, 300), 1, 1),
        lambda: tree.link(file, folder, name),
        lambda: tree.unlink(folder, name),
        lambda: tree.rmdir(folder, name),
        lambda: tree.rename(folder, name, other, new, rnd.choice((0, 0, 1, 2))),
        lambda: tree.write(file, offset, rnd.randbytes(rnd.choice((10, 5000, 200_000)))),
        lambda: tree.fallocate(file, rnd.choice((0, 1, 3, 16, 17)), offset, length),
        lambda: tree.copy_range(file, rnd.randrange(1 << 20), second, offset, length),
        lambda: tree.setattr(file, 8, offset, 0, 0, 0, 0, 0, 0),
        lambda: tree.setxattr(rnd.choice((file, folder)), b"user." + name, rnd.randbytes(50)),
        lambda: tree.removexattr(file, b"user." + name),
        lambda: tree.make_unnamed(folder, 0o600, 1, 1),
    ]
    rnd.choice(calls)()
