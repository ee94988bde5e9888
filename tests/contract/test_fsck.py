"""fsck against a store that is made through the Python objects and then damaged, in each way that a rule speaks of."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from stat import S_IFDIR, S_IFREG

import apsw
import pytest
import trio

from artfs.errors import BusyError, FormatError, FsError, NotFoundError
from artfs.meta import Batch
from artfs.meta.sqlite import SqliteEngine
from artfs.settings import create_store
from artfs.store.lock import Lock
from artfs.store.opening import open_store
from artfs.store.store import Store
from artfs.types import Epoch, NamespaceType, Scope, Serial
from artfs.volume.catalogue import Namespace
from artfs.volume.fsck import Report, check
from artfs.volume.fsck_view import Inode
from artfs.volume.journal import RECORD
from artfs.volume.node import Dentry, Node
from artfs.volume.rows import BLOCK_KEY, DENTRY, HEAD_KEY, PIECE, Head, number
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
            db.execute(statement, bindings).fetchall()  # type: ignore[arg-type]
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


async def _build(made: Made) -> None:
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


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = Made(tmp_path_factory.mktemp("fsck") / "store")
    create_store(made.root)
    (made.root / "config.toml").write_text("journal_size = 8388608\n")
    trio.run(_build, made)
    return made


@pytest.fixture
def made(template: Made, tmp_path: Path) -> Made:
    copy = Made(tmp_path / "store")
    shutil.copytree(template.root, copy.root)
    copy.ino, copy.serial, copy.clone = dict(template.ino), template.serial, template.clone
    copy.ids = dict(template.ids)
    return copy


def kinds(report: Report) -> set[str]:
    return {problem.kind for problem in report.problems}


def text(report: Report) -> str:
    return "\n".join(f"{p.kind} | {p.where} | {p.what} | {p.repaired}" for p in report.problems)


def assert_repairs(made: Made, *expected: str) -> Report:
    """The damage is found, nothing is changed by looking; repair mends it, and then all is well."""
    found = check(made.root)
    assert not found.ok
    assert kinds(found) >= set(expected), text(found)
    assert kinds(check(made.root)) == kinds(found)
    mended = check(made.root, repair=True)
    assert mended.ok, text(mended)
    assert kinds(mended) >= set(expected), text(mended)
    after = check(made.root, data=True)
    assert after.problems == [], text(after)
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


# a store that is well
def test_a_healthy_store_is_clean(made: Made) -> None:
    before = {path: path.read_bytes() for path in (made.root / "objects", made.root / "journal") if path.is_file()}
    seen: list[tuple[str, int, int]] = []
    report = check(made.root, data=True, progress=lambda *call: seen.append(call))
    assert report.problems == [], text(report)
    assert report.ok
    assert {path: path.read_bytes() for path in before} == before
    counts = report.counts
    assert counts["namespaces"] == 4
    assert counts["checkpoints"] == 3
    assert counts["sessions"] == 1
    assert counts["chunks_verified"] > 4
    assert counts["inodes"] > 20
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True
    assert {what for what, _, _ in seen} >= {"database", "data"}
    assert all(0 <= done <= total for _, done, total in seen)


def test_repair_of_a_healthy_store_changes_nothing(made: Made) -> None:
    def rows() -> list[object]:
        db = apsw.Connection(str(made.root / "meta.db"))
        try:
            return [*db.execute("SELECT * FROM head"), *db.execute("SELECT * FROM retired")]
        finally:
            db.close()

    before = rows()
    report = check(made.root, repair=True)
    assert report.problems == []
    assert rows() == before


def test_no_store_newer_store_store_in_use(made: Made, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        check(tmp_path / "nothing")
    lock = Lock(made.root, "mount")
    with pytest.raises(BusyError, match=f"process {os.getpid()}"):
        check(made.root)
    lock.release()
    made.sql("UPDATE meta SET value = '99' WHERE name = 'format'")
    with pytest.raises(FormatError):
        check(made.root)


# rows of a head
Damage = Callable[[Made], object]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        pytest.param("links", lambda m: m.inode("linked", nlink=7), id="link count of a file"),
        pytest.param("links", lambda m: m.inode("dir", nlink=9), id="link count of a directory"),
        pytest.param("parent", lambda m: m.inode("deep", parent=m.ino["empty"]), id="parent of a directory"),
        pytest.param("parent", lambda m: m.inode("/", parent=m.ino["dir"]), id="parent of the root"),
        pytest.param("size", lambda m: m.inode("symlink", size=3), id="size of a symlink"),
        pytest.param("blocks", lambda m: m.inode("big", allocated=1), id="allocated bytes"),
        pytest.param("xattrs", lambda m: m.inode("small", xattrs=4), id="count of attributes"),
        pytest.param("xattrs", lambda m: m.put(m.key(b"X", "dir", b"user.two"), None), id="an attribute is gone"),
        pytest.param("number", lambda m: m.inode("big", kid=m.ino["dir"]), id="two inodes with a number"),
        pytest.param("number", lambda m: m.inode("big", kid=0), id="an inode without a number"),
        pytest.param(
            "type", lambda m: m.dentry("dir", b"linked", m.entry("dir", b"linked")._replace(type=4)), id="type"
        ),
        pytest.param(
            "cookie",
            lambda m: m.dentry("/", b"dir", m.entry("/", b"empty")._replace(ino=m.ino["dir"])),
            id="two names with a cookie",
        ),
        pytest.param(
            "cookie", lambda m: m.dentry("/", b"dir", m.entry("/", b"dir")._replace(cookie=1)), id="a low cookie"
        ),
        pytest.param("counters", lambda m: m.head(used_bytes=5), id="used bytes"),
        pytest.param("counters", lambda m: m.head(used_inodes=5000), id="used inodes"),
        pytest.param("counters", lambda m: m.head(numbers=3), id="next number"),
        pytest.param("counters", lambda m: m.head(cookies=4), id="last cookie"),
        pytest.param("counters", lambda m: m.head(epoch=1), id="epoch"),
        pytest.param("counters", lambda m: m.put(HEAD_KEY, None), id="no counters"),
        pytest.param("counters", lambda m: m.put(HEAD_KEY, b"short"), id="unreadable counters"),
        pytest.param("row", lambda m: m.put(m.key(b"B", "small", b"\0\0\0\x09"), b""), id="an empty block"),
        pytest.param("row", lambda m: m.put(m.key(b"D", "dir", b"symlink"), b"123"), id="unreadable name"),
        pytest.param("row", lambda m: m.put(m.key(b"I", "fifo"), b"123"), id="unreadable inode"),
        pytest.param("row", lambda m: m.inode("fifo", mode=0o150644), id="an inode of no type"),
        pytest.param("row", lambda m: m.inode("fifo", atime_ns=10**9), id="an impossible time"),
        pytest.param("inode", lambda m: m.put(b"X" + number(9999) + b"user.a", b"1"), id="attribute of nothing"),
    ],
)
def test_what_follows_from_other_rows_is_put_right(made: Made, kind: str, damage: Damage) -> None:
    before = read_all(made)
    damage(made)
    assert_repairs(made, kind)
    after = read_all(made)
    changed = {path for path in before if before[path] != after.get(path)}
    # The name whose row was overwritten, or whose inode was, is all that may differ.
    assert changed <= {"/dir/symlink", os.fsdecode(b"/dir/fi\xffo")}
    assert BIG[:70_000] == after["/dir/deep/big"][:70_000]


def test_a_name_without_an_inode_goes(made: Made) -> None:
    made.put(made.key(b"I", "fifo"), None)
    found = check(made.root)
    assert [p.where for p in found.problems if p.kind == "name"] == [
        "grid/default/sess-s1/work/dir/fi\\xffo"
    ]
    assert_repairs(made, "name", "counters")
    assert os.fsdecode(b"/dir/fi\xffo") not in read_all(made)


def test_blocks_without_an_inode_become_a_file_of_their_own(made: Made) -> None:
    content = read_all(made)["/dir/deep/big"]
    ino = made.ino["big"]
    made.put(made.key(b"I", "big"), None)
    assert_repairs(made, "name", "inode")
    after = read_all(made)
    assert "/dir/deep/big" not in after
    assert after[f"/lost+found-{ino}"][: len(content)] == content


def test_a_directory_without_an_inode_comes_back_in_its_place(made: Made) -> None:
    made.put(made.key(b"I", "dir"), None)
    before = read_all_names(made, "dir")
    assert_repairs(made, "name", "unreachable")
    after = read_all(made)
    names = {path for path in after if path.startswith("/dir/")}
    assert {f"/dir/{name}" for name in before} <= {name.rstrip("/") for name in names}


def read_all_names(made: Made, folder: str) -> set[str]:
    prefix = made.key(b"D", folder)
    db = apsw.Connection(str(made.root / "meta.db"))
    try:
        rows = db.execute("SELECT key FROM head WHERE serial = ?", (made.serial,)).fetchall()
    finally:
        db.close()
    return {os.fsdecode(key[9:]) for (key,) in rows if key.startswith(prefix)}


def test_an_inode_without_a_name_is_found_again_in_the_root(made: Made) -> None:
    content = read_all(made)["/dir/deep/big"]
    made.put(made.key(b"D", "dir", b"deep"), None)
    assert_repairs(made, "unreachable", "links")
    after = read_all(made)
    assert after[f"/lost+found-{made.ino['deep']}/big"] == content


def test_a_taken_lost_name_gets_a_number(made: Made) -> None:
    name = b"lost+found-%d" % made.ino["deep"]
    made.dentry("/", name, made.entry("/", b"small"))
    made.put(made.key(b"D", "/", b"small"), None)
    made.put(made.key(b"D", "dir", b"deep"), None)
    assert_repairs(made, "unreachable")
    after = read_all(made)
    assert after["/" + name.decode()] == b"small file"
    assert f"/{name.decode()}~2/" in after


def test_directories_in_a_circle_come_out(made: Made) -> None:
    made.put(made.key(b"D", "/", b"dir"), None)
    made.dentry("deep", b"up", Dentry(made.ino["dir"], 400, 4))
    made.inode("dir", parent=made.ino["deep"])
    made.head(cookies=500)
    assert_repairs(made, "unreachable")
    after = read_all(made)
    assert [path for path in after if path.endswith("/big")]
    assert [path for path in after if path.endswith("/linked")]


def test_a_directory_keeps_the_name_that_it_knows(made: Made) -> None:
    made.dentry("empty", b"again", Dentry(made.ino["deep"], 400, 4))
    made.head(cookies=500)
    assert_repairs(made, "parent")
    after = read_all(made)
    assert "/dir/deep/big" in after
    assert "/empty/again/" not in after


def test_a_root_below_itself_and_a_root_that_is_gone(made: Made) -> None:
    made.dentry("empty", b"top", Dentry(ROOT, 400, 4))
    made.head(cookies=500)
    assert_repairs(made, "parent")
    before = read_all(made)
    made.put(made.key(b"I", "/"), None)
    assert_repairs(made, "root")
    assert read_all(made) == before


@pytest.mark.parametrize("name", [b".", b"..", b"a/b", b"nul\0", b"n" * 256, b".checkpoints"])
def test_an_impossible_name_goes_and_its_file_stays(made: Made, name: bytes) -> None:
    entry = made.entry("/", b"small")
    made.put(made.key(b"D", "/", b"small"), None)
    made.dentry("/", name, entry)
    assert_repairs(made, "name")
    assert read_all(made)[f"/lost+found-{made.ino['small']}"] == b"small file"


def test_a_file_that_says_it_is_a_fifo_keeps_its_bytes(made: Made) -> None:
    content = read_all(made)["/dir/deep/big"]
    made.inode("big", mode=0o010644)
    assert_repairs(made, "blocks", "type")
    lost = [data for path, data in read_all(made).items() if path.startswith("/lost+found-")]
    assert [data[: len(content)] for data in lost] == [content]


def test_names_in_a_file_go(made: Made) -> None:
    made.dentry("small", b"inside", Dentry(made.ino["fifo"], 400, 1))
    made.put(made.key(b"D", "dir", b"fi\xffo"), None)
    made.head(cookies=500)
    assert_repairs(made, "name")
    assert f"/lost+found-{made.ino['fifo']}" in read_all(made)


def test_a_row_of_another_format_is_reported_and_left(made: Made) -> None:
    made.put(b"Q" + number(1), b"?")
    report = check(made.root, repair=True)
    assert not report.ok
    assert [(p.kind, p.repaired) for p in report.problems] == [("row", False)]
    assert made.get(b"Q" + number(1)) == b"?"


# bytes
@pytest.mark.logs_errors
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"\0\0\0", id="cut short"),
        pytest.param(PIECE.pack(0, 100, 9), id="unknown kind"),
        pytest.param(PIECE.pack(0, 2 << 20, 2), id="past the block"),
        pytest.param(PIECE.pack(50, 60, 2) + PIECE.pack(0, 10, 2), id="out of order"),
    ],
)
def test_a_broken_block_is_reported_and_never_replaced(made: Made, value: bytes) -> None:
    key = made.key(b"B", "linked", b"\0\0\0\0")
    made.put(key, value)
    for repair in (False, True):
        report = check(made.root, repair=repair)
        assert not report.ok
        assert [(p.kind, p.repaired) for p in report.problems if p.kind == "row"] == [("row", False)]
    assert made.get(key) == value
    assert BLOCK_KEY.unpack_from(key, 1) == (made.ino["linked"], 0)


@pytest.mark.logs_errors
def test_a_flipped_bit_is_found_by_its_hash(made: Made) -> None:
    before = read_all(made)
    hit = None
    for path in made.objects():
        data = bytearray(path.read_bytes())
        at = data.find(BIG[:1000])
        if at >= 0:
            data[at + 500] ^= 4
            path.write_bytes(data)
            hit = path
            break
    assert hit is not None
    assert check(made.root).ok
    report = check(made.root, repair=True, data=True)
    assert not report.ok
    assert kinds(report) == {"data"}
    places = {p.where for p in report.problems}
    assert "grid/default/sess-s1/work/dir/deep/big" in places
    assert "grid/default/sess-s1/work@one/dir/deep/big" in places
    assert "grid/default/sess-s1/branch/dir/deep/big" in places
    assert not any(p.repaired for p in report.problems)
    after = read_all(made)
    assert after["/dir/deep/big"] == b"errno 5"
    assert after["/small"] == before["/small"]


@pytest.mark.logs_errors
@pytest.mark.parametrize("how", ["missing", "short"])
def test_an_object_that_is_not_whole(made: Made, how: str) -> None:
    path = max(made.objects(), key=lambda path: path.stat().st_size)
    if how == "missing":
        path.unlink()
    else:
        os.truncate(path, 10)
    for repair in (False, True):
        report = check(made.root, repair=repair)
        assert kinds(report) == {"data"}
        assert not any(p.repaired for p in report.problems)
        assert all(("is missing" if how == "missing" else "ends at 10") in p.what for p in report.problems)


def test_an_object_of_nobody_is_garbage_and_no_problem(made: Made) -> None:
    folder = made.objects()[0].parent
    (folder / "000000ff").write_bytes(b"left over")
    report = check(made.root, repair=True)
    assert report.ok and not report.problems
    assert report.counts["garbage_objects"] == 1
    assert report.counts["garbage_bytes"] == 9
    assert any("named by nothing" in note for note in report.notes)
    assert (folder / "000000ff").exists()


# orphans
def test_orphans_are_information_and_swept_by_repair(made: Made) -> None:
    value = Inode.unpack(made.get(made.key(b"I", "linked")))._replace(nlink=0).pack()
    ino = Head.unpack(made.get(HEAD_KEY)).numbers
    made.head(numbers=ino + 1)
    made.put(b"i" + number(ino), value)
    made.put(b"b" + number(ino) + b"\0\0\0\0", made.get(made.key(b"B", "linked", b"\0\0\0\0")))
    made.put(b"x" + number(ino) + b"user.a", b"1")
    report = check(made.root)
    assert report.ok and not report.problems, text(report)
    assert report.counts["orphans"] == 1
    report = check(made.root, repair=True)
    assert report.ok and not report.problems
    assert check(made.root).counts.get("orphans", 0) == 0


# checkpoints
def test_a_checkpoint_is_reported_and_left(made: Made) -> None:
    made.sql("UPDATE checkpoint SET bytes = bytes + 1 WHERE serial = ? AND name = 'one'", made.serial)
    key = made.key(b"I", "sparse")
    made.sql("UPDATE retired SET value = substr(value, 1, 20) WHERE serial = ? AND key = ?", made.serial, key)
    for repair in (False, True):
        report = check(made.root, repair=repair)
        assert {"checkpoint", "row", "name"} <= kinds(report)
        assert all("@" in p.where and not p.repaired for p in report.problems), text(report)


def test_a_row_that_a_checkpoint_shares_is_put_right_in_the_head_alone(made: Made) -> None:
    key = made.key(b"I", "linked")
    value = Inode.unpack(made.get(key))._replace(nlink=9).pack()
    made.sql("UPDATE head SET value = ? WHERE serial = ? AND key = ?", value, made.serial, key)
    report = check(made.root, repair=True)
    repaired = {problem.where: problem.repaired for problem in report.problems}
    assert repaired == {
        "grid/default/sess-s1/work/dir/linked": True,
        "grid/default/sess-s1/work@one/dir/linked": False,
        "grid/default/sess-s1/work@two/dir/linked": False,
    }
    assert made.get(key) != value


def test_the_engines_invariants_count(made: Made) -> None:
    made.sql("UPDATE retired SET died = born WHERE serial = ?", made.serial)
    report = check(made.root, repair=True)
    assert not report.ok
    assert any(p.kind == "database" and "range is empty" in p.what for p in report.problems)


# the catalogue
def _document(made: Made, name: str) -> dict[str, object]:
    db = apsw.Connection(str(made.root / "meta.db"))
    try:
        found: dict[str, object] = json.loads(
            db.execute("SELECT doc FROM record WHERE kind = 'namespace' AND id = ?", (made.ids[name],)).get
        )
        return found
    finally:
        db.close()


def _set_document(made: Made, name: str, text: str) -> None:
    made.sql("UPDATE record SET doc = ? WHERE kind = 'namespace' AND id = ?", text, made.ids[name])


@pytest.mark.parametrize("how", ["lost", "no json", "wrong type", "unknown field", "wrong id", "bad owner"])
def test_a_document_is_made_again_from_its_prefix(made: Made, how: str) -> None:
    before = read_all(made)
    document = _document(made, "work")
    if how == "lost":
        made.sql("DELETE FROM record WHERE kind = 'namespace' AND id = ?", made.ids["work"])
    elif how == "no json":
        _set_document(made, "work", "{")
    else:
        document |= {
            "wrong type": {"serial": str(document["serial"])},
            "unknown field": {"colour": 3},
            "wrong id": {"id": "ns-other"},
            "bad owner": {"owner": None},
        }[how]
        _set_document(made, "work", json.dumps(document))
    assert_repairs(made, "catalogue")
    assert read_all(made) == before
    assert _document(made, "work")["owner"] == "s1"


def test_two_namespaces_at_one_place(made: Made) -> None:
    _set_document(made, "branch", json.dumps(_document(made, "branch") | {"name": "work"}))
    assert_repairs(made, "catalogue")
    assert _document(made, "work")["name"] == "work"
    assert _document(made, "branch")["name"] == "work~2"


@pytest.mark.parametrize("value", ["1", "many"])
def test_the_serial_counter(made: Made, value: str) -> None:
    made.sql("UPDATE record SET doc = ? WHERE kind = 'counter'", value)
    assert_repairs(made, "catalogue")


def test_a_lost_prefix(made: Made) -> None:
    made.sql("DELETE FROM record WHERE kind = 'prefix' AND id = ?", str(made.serial))
    assert_repairs(made, "catalogue")


def test_rows_that_belong_nowhere(made: Made) -> None:
    made.sql("INSERT INTO head VALUES (4711, x'68', 1, x'00')")
    report = check(made.root, repair=True)
    assert [(p.kind, p.where, p.repaired) for p in report.problems] == [("catalogue", "namespace 4711", False)]


# sessions
@pytest.mark.parametrize(
    ("column", "value"), [("metadata", "{"), ("status", "asleep"), ("metadata", "[1]"), ("user", "a b"), ("id", "")]
)
def test_a_session_that_cannot_be_read(made: Made, column: str, value: str) -> None:
    made.sql(f"UPDATE session SET {column} = ?", value)
    report = check(made.root)
    assert kinds(report) == {"session"}, text(report)


def test_a_namespace_whose_session_is_gone_is_noted(made: Made) -> None:
    made.sql("DELETE FROM session")
    report = check(made.root)
    assert report.ok
    assert sum("a session that is not there" in note for note in report.notes) == 2


# files
def test_a_damaged_store_file(made: Made) -> None:
    (made.root / "store.json").write_text("{")
    for repair in (False, True):
        report = check(made.root, repair=repair)
        assert kinds(report) == {"store"}, text(report)
        assert not report.ok


def test_a_damaged_database_is_not_written_to(made: Made) -> None:
    path = made.root / "meta.db"
    data = bytearray(path.read_bytes())
    for page in range(3, len(data) // 8192):
        data[page * 8192 : page * 8192 + 64] = random.Random(page).randbytes(64)
    path.write_bytes(data)
    made.root.joinpath("meta.db-wal").unlink(missing_ok=True)
    report = check(made.root, repair=True)
    assert not report.ok
    assert "database" in kinds(report)
    assert path.read_bytes() == data
    path.write_bytes(b"this is no database, and long enough to be taken for one" * 100)
    assert kinds(check(made.root, repair=True)) == {"database"}
    path.unlink()
    assert kinds(check(made.root, repair=True)) == {"database"}


# the journal
async def _crashed(made: Made) -> dict[str, int]:
    """Changes that are acknowledged and not committed; the process ends."""
    try:
        async with open_store(made.root, "test") as store:
            tree = store.volume(store.catalogue.get(made.ids["work"])).tree
            await store.shard.commit()
            async with store.shard.committing():
                node = tree.create(tree.root(), b"uncommitted", 0o644, 1, 1)
                tree.write(node, 0, b"y" * 100_000)
                tree.write(node, 100_000, b"tail")
                orphan = tree.create(tree.root(), b"orphan", 0o644, 1, 1)
                orphan.looks = 1
                tree.unlink(tree.root(), b"orphan")
                store.shard.failure = NotFoundError("the process is gone")
                raise _GoneError
    except _GoneError:
        pass
    return {}


class _GoneError(Exception):
    pass


def test_what_waits_in_the_journal_is_noted_and_recovered(made: Made) -> None:
    trio.run(_crashed, made)
    report = check(made.root)
    assert report.ok, text(report)
    assert report.counts["journal_records"] == 5
    assert report.counts["garbage_objects"] == 0
    assert check(made.root).counts["journal_records"] == 5
    report = check(made.root, repair=True)
    assert report.ok and not report.problems, text(report)
    assert "5 records of the journal were recovered" in report.notes
    assert check(made.root).counts["journal_records"] == 0
    assert read_all(made)["/uncommitted"] == b"y" * 100_000 + b"tail"


def test_a_damaged_head_is_mended_before_and_after_recovery(made: Made) -> None:
    trio.run(_crashed, made)
    made.put(HEAD_KEY, b"short")
    report = check(made.root, repair=True)
    assert report.ok, text(report)
    assert check(made.root).problems == []
    assert read_all(made)["/uncommitted"] == b"y" * 100_000 + b"tail"


@pytest.mark.parametrize("how", ["missing", "state"])
def test_a_journal_that_cannot_be_followed(made: Made, how: str) -> None:
    if how == "missing":
        (made.root / "journal").unlink()
    else:
        made.sql("UPDATE record SET doc = 'somewhere' WHERE kind = 'journal'")
    assert_repairs(made, "journal")


def test_a_torn_record_ends_the_journal(made: Made) -> None:
    trio.run(_crashed, made)
    db = apsw.Connection(str(made.root / "meta.db"))
    position = int(db.execute("SELECT doc FROM record WHERE kind = 'journal'").get.split()[0])
    db.close()
    path = made.root / "journal"
    with path.open("r+b") as file:
        file.seek(position % path.stat().st_size)
        rows, data, _, _ = RECORD.unpack(file.read(RECORD.size))
        file.seek(rows + data, os.SEEK_CUR)
        file.write(b"\xff" * RECORD.size)
    report = check(made.root, repair=True)
    assert report.ok
    assert "1 records of the journal were recovered" in report.notes


# a store at work
async def _random_work(made: Made, seed: int) -> None:
    rnd = random.Random(seed)
    async with open_store(made.root, "test") as store:
        volume = store.volume(store.catalogue.get(made.ids["work"]))
        tree = volume.tree
        for ino in made.ino.values():
            with contextlib.suppress(FsError):
                tree.node(ino)
        names = [b"n%d" % i for i in range(8)]
        for step in range(600):
            folders = [tree.root()]
            folders += [node for node in list(tree.nodes.values()) if node.kids is not None and node.nlink]
            files = [node for node in list(tree.nodes.values()) if node.is_file and node.nlink] or [
                tree.create(tree.root(), b"f%d" % step, 0o644, 1, 1)
            ]
            folder, other = rnd.choice(folders), rnd.choice(folders)
            name, new = rnd.choice(names), rnd.choice(names)
            file, second = rnd.choice(files), rnd.choice(files)
            offset = rnd.randrange(3 << 20)
            calls: list[Callable[[], object]] = [
                lambda: tree.create(folder, name, 0o644, 1, 1),
                lambda: tree.mkdir(folder, name, 0o755, 1, 1),
                lambda: tree.symlink(folder, name, b"t" * rnd.randint(1, 300), 1, 1),
                lambda: tree.link(file, folder, name),
                lambda: tree.unlink(folder, name),
                lambda: tree.rmdir(folder, name),
                lambda: tree.rename(folder, name, other, new, rnd.choice((0, 0, 1, 2))),
                lambda: tree.write(file, offset, rnd.randbytes(rnd.choice((10, 5000, 200_000)))),
                lambda: tree.fallocate(file, rnd.choice((0, 1, 3, 16, 17)), offset, rnd.randint(1, 2 << 20)),
                lambda: tree.copy_range(file, rnd.randrange(1 << 20), second, offset, rnd.randint(1, 2 << 20)),
                lambda: tree.setattr(file, 8, offset, 0, 0, 0, 0, 0, 0),
                lambda: tree.setxattr(rnd.choice((file, folder)), b"user." + name, rnd.randbytes(50)),
                lambda: tree.removexattr(file, b"user." + name),
                lambda: tree.make_unnamed(folder, 0o600, 1, 1),
            ]
            try:
                rnd.choice(calls)()
            except FsError:
                pass
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


@pytest.mark.parametrize("seed", range(4))
def test_a_store_at_work_is_clean(made: Made, seed: int) -> None:
    trio.run(_random_work, made, seed)
    report = check(made.root, data=True)
    assert report.problems == [], text(report)
    report = check(made.root, repair=True)
    assert report.problems == [], text(report)


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_is_mended_or_reported(made: Made, seed: int) -> None:
    """Whatever happens to rows of a head: fsck ends, a second repair finds nothing that the first could mend."""
    trio.run(_random_work, made, seed)
    rnd = random.Random(seed)
    engine = SqliteEngine(made.root / "meta.db", create=False)
    rows = engine.scan(made.serial, b"")
    head = Head.unpack(made.get(HEAD_KEY))
    for key, value in rnd.sample(rows, len(rows) // 5):
        if key[:1] not in b"IDXB":
            continue
        damaged = bytearray(value)
        if damaged:
            damaged[rnd.randrange(len(damaged))] ^= 1 << rnd.randrange(8)
        new = None if key[:1] == b"B" or rnd.random() < 0.5 else bytes(damaged)
        engine.commit([Batch(made.serial, Epoch(head.epoch), {key: new})])
    engine.close()
    assert not check(made.root).ok
    report = check(made.root, repair=True)
    assert report.ok, text(Report([p for p in report.problems if not p.repaired], []))
    assert check(made.root, data=True).problems == []
    read_all(made)


def test_namespaces_of_the_test_are_what_it_thinks(made: Made) -> None:
    document = _document(made, "work")
    assert Namespace(**document).owner == "s1"  # type: ignore[arg-type]
    assert S_IFDIR != S_IFREG
