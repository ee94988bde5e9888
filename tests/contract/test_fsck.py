"""fsck of what namespaces hold: rows, bytes, orphans, checkpoints; each rule is broken, found and mended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import apsw
import pytest

from artfs.errors import BusyError, FormatError, NotFoundError
from artfs.volume.fsck import check
from artfs.volume.fsck_view import Inode
from artfs.volume.lock import Lock
from artfs.volume.node import Dentry
from artfs.volume.rows import BLOCK_KEY, HEAD_KEY, PIECE, Head, number
from tests.contract.fsck_store import (
    BIG,
    ROOT,
    Made,
    assert_repairs,
    kinds,
    names_in,
    read_all,
    report_text,
)


# a store that is well
def test_a_healthy_store_is_clean(made: Made) -> None:
    before = {path: path.read_bytes() for path in (*made.objects(), made.root / "journal")}
    seen: list[tuple[str, int, int]] = []
    report = check(made.root, data=True, progress=lambda *call: seen.append(call))
    assert report.problems == [], report_text(report)
    assert report.ok
    assert {path: path.read_bytes() for path in (*made.objects(), made.root / "journal")} == before
    counts = report.counts
    assert counts["namespaces"] == 4
    assert counts["checkpoints"] == 3
    assert counts["sessions"] == 1
    assert counts["chunks_verified"] > 4
    assert counts["inodes"] > 20
    assert json.loads(json.dumps(asdict(report)))["problems"] == []
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
    lock.close()
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
    assert [p.where for p in found.problems if p.kind == "name"] == ["grid/default/sess-s1/work/dir/fi\\xffo"]
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
    before = names_in(made, "dir")
    assert_repairs(made, "name", "unreachable")
    after = read_all(made)
    names = {path for path in after if path.startswith("/dir/")}
    assert {f"/dir/{name}" for name in before} <= {name.rstrip("/") for name in names}


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
    assert report.ok and not report.problems, report_text(report)
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
        assert all("@" in p.where and not p.repaired for p in report.problems), report_text(report)


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
