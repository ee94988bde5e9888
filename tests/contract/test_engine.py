"""What every engine promises, each engine a parameter; then what only a database on a disk can get wrong."""

from __future__ import annotations

import os
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from artfs.errors import (
    DamagedError,
    ExistsError,
    FormatError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.meta import Batch, Change, Checkpoint, Engine, Row
from artfs.meta.memory import MemoryEngine
from artfs.meta.sqlite import SqliteEngine
from artfs.meta.sqlite.database import WAL_LIMIT
from artfs.types import Epoch, Serial

NS, OTHER = Serial(1), Serial(2)


@pytest.fixture(params=["memory", "sqlite"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    made: Engine = MemoryEngine() if request.param == "memory" else SqliteEngine(tmp_path / "meta.db")
    yield made
    made.close()


def put(engine: Engine, epoch: int, rows: dict[bytes, bytes | None], serial: Serial = NS, pin: bool = False) -> None:
    made = pinned(epoch) if pin else None
    engine.commit([Batch(serial, Epoch(epoch), rows, made)])


def pinned(epoch: int, name: str = "") -> Checkpoint:
    labels = {"why": ["tést", epoch]}
    at = Epoch(epoch)
    return Checkpoint(at, f"id{epoch}", name or f"v{epoch}", 7, Serial(100 + epoch), (5, 6), "d", labels)


def rows(engine: Engine, at: int | None = None, serial: Serial = NS) -> dict[bytes, bytes]:
    return dict(engine.scan(serial, b"", None if at is None else Epoch(at)))


def test_rows_are_put_replaced_and_deleted(engine: Engine) -> None:
    put(engine, 1, {b"A": b"1", b"B": b"", b"x": b"plain"})
    put(engine, 1, {b"A": b"2", b"B": None, b"missing": None})
    assert engine.get(NS, b"A") == b"2"
    assert engine.get(NS, b"B") is None
    assert rows(engine) == {b"A": b"2", b"x": b"plain"}
    assert engine.get(OTHER, b"A") is None


def test_an_empty_value_is_a_value(engine: Engine) -> None:
    put(engine, 1, {b"A": b""})
    assert engine.get(NS, b"A") == b""
    assert engine.scan(NS, b"A") == [(b"A", b"")]


@pytest.mark.parametrize(
    ("prefix", "after", "limit", "want"),
    [
        (b"D", b"", -1, [b"D", b"D\x00", b"Da", b"D\xff", b"D\xff\xff"]),
        (b"D", b"", 2, [b"D", b"D\x00"]),
        (b"D", b"", 0, []),
        (b"D", b"D", 2, [b"D\x00", b"Da"]),
        (b"D", b"D\x01", -1, [b"Da", b"D\xff", b"D\xff\xff"]),
        (b"D\xff", b"", -1, [b"D\xff", b"D\xff\xff"]),
        (b"D", b"E", -1, []),
        (b"D", b"C", 1, [b"D"]),
        (b"\xff", b"", -1, [b"\xff", b"\xff\xff"]),
        (b"", b"E", -1, [b"\xff", b"\xff\xff"]),
    ],
)
def test_scan(engine: Engine, prefix: bytes, after: bytes, limit: int, want: list[bytes]) -> None:
    keys = [b"D\xff\xff", b"\xff\xff", b"C", b"D", b"E", b"Da", b"D\xff", b"D\x00", b"\xff"]
    put(engine, 1, {key: key for key in keys})
    assert engine.scan(NS, prefix, after=after, limit=limit) == [(key, key) for key in want]
    put(engine, 1, {}, pin=True)
    put(engine, 2, {key: b"new" if key[1:] else None for key in keys})
    # A checkpoint sees the same rows, but for the plain ones.
    seen = [key for key in want if key < b"\x60"]
    assert engine.scan(NS, prefix, Epoch(1), after, limit) == [(key, key) for key in seen]


def test_a_scan_sees_keys_that_came_back(engine: Engine) -> None:
    put(engine, 1, {b"K%03d" % n: b"1" for n in range(200)})
    assert len(engine.scan(NS, b"K")) == 200
    put(engine, 1, {b"K%03d" % n: None for n in range(1, 200)})
    assert engine.scan(NS, b"K") == [(b"K000", b"1")]
    put(engine, 1, {b"K150": b"2", b"K0005": b"3"})
    assert engine.scan(NS, b"K") == [(b"K000", b"1"), (b"K0005", b"3"), (b"K150", b"2")]


def test_a_checkpoint_sees_what_was_and_plain_rows_are_in_none(engine: Engine) -> None:
    put(engine, 1, {b"A": b"1", b"B": b"1", b"x": b"1"}, pin=True)
    put(engine, 2, {b"A": b"2", b"B": None, b"C": b"2", b"x": b"2"}, pin=True)
    put(engine, 3, {b"A": None})
    assert rows(engine, 1) == {b"A": b"1", b"B": b"1"}
    assert rows(engine, 2) == {b"A": b"2", b"C": b"2"}
    assert rows(engine) == {b"C": b"2", b"x": b"2"}
    assert [engine.get(NS, b"A", Epoch(e)) for e in (1, 2)] == [b"1", b"2"]
    assert engine.get(NS, b"x", Epoch(1)) is None
    assert engine.check() == []


def test_a_row_private_to_the_head_is_not_retired(engine: Engine) -> None:
    put(engine, 1, {b"A": b"0"}, pin=True)
    for n in range(50):
        put(engine, 2, {b"A": b"%d" % n, b"B": b"%d" % n})
    assert engine.statistics()["retired"] == 1


def test_one_commit_of_several_batches_and_records(engine: Engine) -> None:
    first = Batch(NS, Epoch(1), {b"A": b"1"}, pinned(1))
    second = Batch(NS, Epoch(2), {b"A": b"2"})
    engine.commit([first, second, Batch(OTHER, Epoch(4), {b"A": b"x"})], {("ns", "1"): "doc", ("ns", "2"): "d"})
    assert (rows(engine, 1), rows(engine)) == ({b"A": b"1"}, {b"A": b"2"})
    assert rows(engine, serial=OTHER) == {b"A": b"x"}
    engine.commit([], {("ns", "2"): None, ("lease", "2"): "é"})
    assert engine.records("ns") == {"1": "doc"}
    assert (engine.record("lease", "2"), engine.record("ns", "2")) == ("é", None)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_that_a_checkpoint_sees_is_refused_before_anything_changes(engine: Engine, epoch: int) -> None:
    put(engine, 2, {b"A": b"1"}, pin=True)
    with pytest.raises(InvalidError):
        engine.commit([Batch(OTHER, Epoch(1), {b"A": b"1"}), Batch(NS, Epoch(epoch), {b"A": b"2"})], {("k", "i"): "d"})
    with pytest.raises(InvalidError):
        engine.restore(NS, Epoch(2), Epoch(epoch), {})
    assert (rows(engine), rows(engine, serial=OTHER)) == ({b"A": b"1"}, {})
    assert engine.record("k", "i") is None


def test_batches_after_a_checkpoint_in_one_commit_need_a_newer_epoch(engine: Engine) -> None:
    with pytest.raises(InvalidError):
        engine.commit([Batch(NS, Epoch(1), {}, pinned(1)), Batch(NS, Epoch(1), {b"A": b"1"})])
    with pytest.raises(InvalidError):
        engine.commit([Batch(NS, Epoch(1), {}, pinned(2))])
    assert engine.checkpoints(NS) == []


def test_checkpoints_keep_every_field_and_can_be_described_anew(engine: Engine) -> None:
    for epoch in (3, 4):
        put(engine, epoch, {}, pin=True)
    assert engine.checkpoints(NS) == [pinned(3), pinned(4)]
    engine.update_checkpoint(NS, pinned(3, "renamed"))
    assert engine.checkpoints(NS) == [pinned(3, "renamed"), pinned(4)]
    assert engine.checkpoints(OTHER) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.restore(NS, Epoch(9), Epoch(10), {}),
        lambda e: e.delete_checkpoint(NS, Epoch(9)),
        lambda e: e.update_checkpoint(NS, pinned(9)),
        lambda e: e.changed_by_restore(NS, Epoch(9)),
        lambda e: e.diff(NS, Epoch(1), Epoch(9)),
        lambda e: e.diff(NS, Epoch(9), None),
        lambda e: e.clone(NS, Epoch(9), OTHER, {b"A": b"1"}, {}),
    ],
    ids=["restore", "delete", "update", "changed", "diff to", "diff from", "clone"],
)
def test_an_unknown_checkpoint(engine: Engine, call: Callable[[Engine], object]) -> None:
    put(engine, 1, {b"A": b"1"}, pin=True)
    with pytest.raises(NotFoundError):
        call(engine)
    assert rows(engine) == {b"A": b"1"}
    assert engine.serials() == {NS}


def test_restore_and_what_it_would_change(engine: Engine) -> None:
    put(engine, 1, {b"A": b"1", b"B": b"1", b"C": b"1", b"x": b"1"}, pin=True)
    put(engine, 2, {b"A": b"2", b"B": None, b"D": b"2", b"x": b"2"}, pin=True)
    put(engine, 3, {b"C": b"3", b"E": b"3"})
    put(engine, 3, {b"C": b"1"})  # as it was: no change
    assert engine.changed_by_restore(NS, Epoch(1)) == [
        Change(b"A", b"2", b"1"),
        Change(b"B", None, b"1"),
        Change(b"D", b"2", None),
        Change(b"E", b"3", None),
    ]
    engine.restore(NS, Epoch(1), Epoch(3), {b"A": b"kid", b"C": None, b"x": b"3"})
    assert rows(engine) == {b"A": b"kid", b"B": b"1", b"x": b"3"}
    assert rows(engine, 2) == {b"A": b"2", b"C": b"1", b"D": b"2"}
    assert engine.changed_by_restore(NS, Epoch(2))[0] == Change(b"A", b"kid", b"2")
    engine.restore(NS, Epoch(2), Epoch(4), {})
    assert rows(engine) == {b"A": b"2", b"C": b"1", b"D": b"2", b"x": b"3"}
    assert engine.check() == []


def test_a_restore_costs_what_was_changed(engine: Engine) -> None:
    """And so do a difference and the deletion of a checkpoint: a copy of all rows would be megabytes."""
    put(engine, 1, {b"K%06d" % i: b"v" for i in range(20_000)}, pin=True)
    put(engine, 2, {b"K000007": b"changed", b"L": b"new"}, pin=True)
    tracemalloc.start()
    try:
        assert engine.diff(NS, Epoch(1), None) == [Change(b"K000007", b"v", b"changed"), Change(b"L", None, b"new")]
        assert len(engine.changed_by_restore(NS, Epoch(1))) == 2
        engine.restore(NS, Epoch(1), Epoch(3), {})
        engine.delete_checkpoint(NS, Epoch(2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000
    assert engine.statistics()["retired"] == 1
    assert engine.get(NS, b"K000007") == b"v"


def test_deleting_a_checkpoint_frees_what_it_alone_sees(engine: Engine) -> None:
    for epoch in (1, 2, 3):
        put(engine, epoch, {b"A": b"%d" % epoch}, pin=True)
    put(engine, 4, {b"A": None})
    engine.delete_checkpoint(NS, Epoch(2))
    assert engine.statistics()["retired"] == 2
    assert (rows(engine, 1), rows(engine, 3)) == ({b"A": b"1"}, {b"A": b"3"})
    engine.delete_checkpoint(NS, Epoch(3))
    engine.delete_checkpoint(NS, Epoch(1))
    assert engine.statistics()["retired"] == 0
    assert engine.check() == []


def test_diff(engine: Engine) -> None:
    put(engine, 1, {b"A": b"1", b"B": b"1", b"C": b"1"}, pin=True)
    put(engine, 2, {b"A": b"2", b"B": None, b"D": b"2", b"x": b"2"}, pin=True)
    put(engine, 3, {b"A": b"1", b"B": b"1", b"D": None, b"F": b"3"})
    forth = [Change(b"A", b"1", b"2"), Change(b"B", b"1", None), Change(b"D", None, b"2")]
    assert engine.diff(NS, Epoch(1), Epoch(2)) == forth
    assert engine.diff(NS, Epoch(1), None) == [Change(b"F", None, b"3")]
    assert engine.diff(NS, Epoch(2), Epoch(2)) == []


def test_diff_leaves_out_what_came_and_went_in_between(engine: Engine) -> None:
    put(engine, 1, {b"B": b"1"}, pin=True)
    put(engine, 2, {b"A": b"2", b"B": b"2"}, pin=True)
    put(engine, 3, {b"A": None, b"B": b"1"}, pin=True)
    put(engine, 4, {b"A": b"4"})
    assert engine.diff(NS, Epoch(1), Epoch(3)) == []
    assert engine.diff(NS, Epoch(2), Epoch(3)) == [Change(b"A", b"2", None), Change(b"B", b"2", b"1")]


@pytest.mark.parametrize("at", [None, 1])
def test_clone(engine: Engine, at: int | None) -> None:
    put(engine, 1, {b"A": b"1", b"B": b"1", b"x": b"1"}, pin=True)
    put(engine, 2, {b"A": b"2", b"C": b"2"})
    engine.clone(NS, None if at is None else Epoch(at), OTHER, {b"B": None, b"y": b"p"}, {("ns", "2"): "doc"})
    want = {b"A": b"2", b"C": b"2"} if at is None else {b"A": b"1"}
    assert rows(engine, serial=OTHER) == {**want, b"y": b"p"}
    assert engine.checkpoints(OTHER) == []
    assert engine.record("ns", "2") == "doc"
    put(engine, 1, {b"A": b"own"}, OTHER, pin=True)
    put(engine, 2, {b"A": b"newer"}, OTHER)
    assert rows(engine, 1, OTHER)[b"A"] == b"own"
    assert engine.get(NS, b"A") == b"2"
    assert engine.check() == []


def test_a_clone_onto_something_is_refused(engine: Engine) -> None:
    put(engine, 1, {b"A": b"1"})
    put(engine, 1, {b"x": b"1"}, OTHER)
    with pytest.raises(ExistsError):
        engine.clone(NS, None, OTHER, {}, {("k", "i"): "d"})
    assert rows(engine, serial=OTHER) == {b"x": b"1"}
    assert engine.record("k", "i") is None


def test_destroy_takes_everything_of_one_namespace(engine: Engine) -> None:
    for serial in (NS, OTHER):
        put(engine, 1, {b"A": b"1", b"x": b"1"}, serial, pin=True)
        put(engine, 2, {b"A": b"2"}, serial)
    assert engine.serials() == {NS, OTHER}
    engine.destroy([NS], {("trash", "1"): "gone"})
    assert engine.serials() == {OTHER}
    assert (rows(engine), rows(engine, 1), engine.checkpoints(NS)) == ({}, {}, [])
    assert rows(engine, 1, OTHER) == {b"A": b"1"}
    assert engine.record("trash", "1") == "gone"


def test_statistics_count(engine: Engine) -> None:
    put(engine, 1, {b"A": b"1", b"B": b"1"}, pin=True)
    put(engine, 2, {b"A": b"2"})
    found = engine.statistics()
    assert (found["rows"], found["retired"], found["checkpoints"]) == (2, 1, 1)
    assert found["bytes"] >= 0 and found["wal_bytes"] >= 0


def test_a_closed_engine_says_so(engine: Engine) -> None:
    engine.close()
    for call in (
        lambda: engine.get(NS, b"A"),
        lambda: put(engine, 1, {b"A": b"1"}),
        lambda: engine.record("k", "i"),
    ):
        with pytest.raises(UnavailableError):
            call()


def test_readers_see_whole_transactions_while_another_thread_commits(engine: Engine) -> None:
    keys = [b"K%02d" % n for n in range(40)]
    put(engine, 1, dict.fromkeys(keys, b"0"))
    done = threading.Event()

    def write() -> None:
        for n in range(60):
            put(engine, 1, dict.fromkeys(keys, b"%d" % n))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not done.is_set() or seen == 0:
        assert len({value for _, value in engine.scan(NS, b"K")}) == 1
        assert engine.get(NS, keys[0]) is not None
        seen += 1
    writer.join()
    assert set(rows(engine).values()) == {b"59"}


# sqlite alone


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "meta.db")
    engine.commit([Batch(NS, Epoch(1), {b"A": b"1", b"x": b"p"}, pinned(1))], {("k", "i"): "d"})
    put(engine, 2, {b"A": b"2"})
    engine.close()
    engine.close()
    engine = SqliteEngine(tmp_path / "meta.db", create=False)
    assert (rows(engine), rows(engine, 1)) == ({b"A": b"2", b"x": b"p"}, {b"A": b"1"})
    assert engine.checkpoints(NS) == [pinned(1)]
    assert engine.record("k", "i") == "d"
    engine.close()


def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    """A file system in between counts what sqlite has synced when the call returns."""
    synced: list[str] = []

    class Counting(apsw.VFS):
        def __init__(self) -> None:
            super().__init__("counting", "", makedefault=True)

        def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
            return CountingFile(name, flags)

    class CountingFile(apsw.VFSFile):
        def __init__(self, name: Any, flags: list[int]) -> None:
            self.name = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
            super().__init__("unix", name, flags)

        def xSync(self, flags: int) -> None:
            synced.append(self.name)
            super().xSync(flags)

    vfs = Counting()
    try:
        engine = SqliteEngine(tmp_path / "meta.db")
        calls: list[Callable[[], None]] = [
            lambda: put(engine, 1, {b"A": b"1"}, pin=True),
            lambda: engine.restore(NS, Epoch(1), Epoch(2), {b"A": b"2"}),
            lambda: engine.delete_checkpoint(NS, Epoch(1)),
            lambda: engine.clone(NS, None, OTHER, {}, {}),
            lambda: engine.destroy([NS]),
            lambda: engine.commit([], {("k", "i"): "d"}),
        ]
        for call in calls:
            synced.clear()
            call()
            assert any(name.endswith("meta.db-wal") for name in synced)
        engine.close()
    finally:
        vfs.unregister()


def test_the_wal_stays_bounded(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "meta.db")
    value = os.urandom(500)
    longest = 0
    for n in range(0, 100_000, 1_000):
        keys = [b"%08d" % i for i in range(n, n + 1_000)]
        put(engine, 1, dict.fromkeys(keys, value))
        put(engine, 1, dict.fromkeys(keys))
        longest = max(longest, engine.statistics()["wal_bytes"])
    assert WAL_LIMIT // 4 < longest < WAL_LIMIT + (4 << 20)
    assert engine.statistics()["bytes"] < 4 << 20
    # One transaction longer than the limit does not leave its length behind.
    put(engine, 1, {b"%08d" % i: os.urandom(1_000) for i in range(40_000)})
    for n in range(3):
        put(engine, 1, {b"A": b"%d" % n})
    assert engine.statistics()["wal_bytes"] <= WAL_LIMIT + (1 << 20)
    engine.close()


def test_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    SqliteEngine(path).close()
    with apsw.Connection(str(path)) as raw:
        raw.execute("UPDATE meta SET value = '99' WHERE name = 'format'")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(FormatError, match=r"format 99.*up to 2.*upgrade"):
        SqliteEngine(path)
    assert path.read_bytes() == before


def test_what_is_no_database_or_lost_its_tables_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    path.write_bytes(b"not a database at all" * 1_000)
    with pytest.raises(DamagedError, match="artfs fsck"):
        SqliteEngine(path)
    path.write_bytes(b"")
    with pytest.raises(DamagedError, match="artfs fsck"):
        SqliteEngine(path, create=False)
    with pytest.raises(NotFoundError):
        SqliteEngine(tmp_path / "other.db", create=False)
    with pytest.raises(UnavailableError):
        SqliteEngine(tmp_path / "no such directory" / "meta.db")


def test_overwritten_pages_are_damage_never_rows(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    engine = SqliteEngine(path)
    put(engine, 1, {b"%06d" % n: b"v" * 100 for n in range(5_000)})
    engine.close()
    with path.open("r+b") as file:
        size = path.stat().st_size
        file.seek(3 * 8192)
        file.write(os.urandom(size - 3 * 8192))
    engine = SqliteEngine(path)
    assert engine.check() != []
    with pytest.raises(DamagedError, match="artfs fsck"):
        engine.scan(NS, b"")
    engine.close()


def test_check_names_what_breaks_an_invariant(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    engine = SqliteEngine(path)
    put(engine, 2, {b"A": b"1", b"x": b"1"}, pin=True)
    assert engine.check() == []
    with apsw.Connection(str(path)) as raw:
        raw.execute("INSERT INTO retired VALUES (1, x'41', 1, 3, x'')")
        raw.execute("INSERT INTO retired VALUES (1, x'42', 5, 6, x''), (1, x'42', 4, 6, x''), (1, x'43', 2, 2, x'')")
        raw.execute("UPDATE head SET born = 7 WHERE key = x'78'")
        raw.execute("UPDATE checkpoint SET labels = '[]'")
    raw.close()
    found = "\n".join(engine.check())
    assert "head row overlaps a retired one: namespace 1, 41, epoch 2" in found
    assert "ranges of retired rows overlap: namespace 1, 42, epoch 4" in found
    assert "retired row is seen by no checkpoint: namespace 1, 42, epoch 5" in found
    assert "range is empty: namespace 1, 43, epoch 2" in found
    assert "plain row is versioned: namespace 1, 78, epoch 7" in found
    assert "labels are no JSON object: namespace 1, v2, epoch 2" in found
    engine.close()


def test_another_writer_that_does_not_end_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artfs.meta.sqlite.database.BUSY_MS", 50)
    engine = SqliteEngine(tmp_path / "meta.db")
    raw = apsw.Connection(str(tmp_path / "meta.db"))
    raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError):
        put(engine, 1, {b"A": b"1"})
    assert rows(engine) == {}
    raw.execute("ROLLBACK")
    put(engine, 1, {b"A": b"1"})
    assert rows(engine) == {b"A": b"1"}
    raw.close()
    engine.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a disk that can be filled is a tmpfs of its own: mounting one needs root")
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    engine = SqliteEngine(small_disk / "meta.db")
    assert engine.statistics()["ballast_bytes"] == 8 << 20
    kept = 0
    with pytest.raises(NoSpaceError, match="free some space"):
        for n in range(1_000):
            put(engine, 1, {b"%04d%04d" % (n, i): os.urandom(1_000) for i in range(400)})
            kept += 400
    # The failed transaction left no rows and no log, the others are whole, and more of the same is refused.
    assert len(engine.scan(NS, b"")) == kept > 0
    assert engine.statistics()["wal_bytes"] == 0
    assert engine.statistics()["ballast_bytes"] == 8 << 20
    fill = small_disk / "fill"
    with pytest.raises(OSError, match="No space"), fill.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    more: dict[bytes, bytes | None] = {b"more%04d" % i: os.urandom(1_000) for i in range(400)}
    with pytest.raises(NoSpaceError):
        put(engine, 1, more)
    # What frees rows has the ballast for it, and there is room again for what comes next.
    gone: dict[bytes, bytes | None] = dict.fromkeys(key for key, _ in engine.scan(NS, b"", limit=kept // 2))
    with pytest.raises(NoSpaceError):
        put(engine, 1, gone)
    engine.commit([Batch(NS, Epoch(1), gone)], freeing=True)
    assert len(engine.scan(NS, b"")) == kept - kept // 2
    put(engine, 1, more)
    engine.destroy([NS])
    assert engine.check() == []
    engine.close()
    fill.unlink()
    engine = SqliteEngine(small_disk / "meta.db", create=False)
    assert engine.statistics()["ballast_bytes"] == 8 << 20
    put(engine, 1, more)
    assert rows(engine) == more
    engine.close()


# every version at once
def named(engine: Engine, prefixes: tuple[bytes, ...] = (b"B", b"b"), serials: set[int] | None = None) -> list[Row]:
    wanted = None if serials is None else {Serial(serial) for serial in serials}
    return sorted(engine.named(prefixes, wanted))


def test_named_gives_every_version_of_all_namespaces(engine: Engine) -> None:
    put(engine, 1, {b"B1": b"old", b"B2": b"same", b"A": b"no", b"C": b"no", b"h": b"no", b"b1": b"plain"}, pin=True)
    put(engine, 2, {b"B1": b"new", b"B3": b"third", b"b1": b"plain now"})
    put(engine, 1, {b"B": b"other", b"\x42\xff": b"last"}, OTHER)
    assert named(engine) == [
        Row(NS, b"B1", Epoch(1), b"old"),
        Row(NS, b"B1", Epoch(2), b"new"),
        Row(NS, b"B2", Epoch(1), b"same"),
        Row(NS, b"B3", Epoch(2), b"third"),
        Row(NS, b"b1", Epoch(1), b"plain now"),
        Row(OTHER, b"B", Epoch(1), b"other"),
        Row(OTHER, b"B\xff", Epoch(1), b"last"),
    ]
    assert {row.key for row in named(engine, (b"b",))} == {b"b1"}
    assert {row.serial for row in named(engine, serials={OTHER, 99})} == {OTHER}
    assert named(engine, serials=set()) == []


def test_named_sees_one_moment_and_keeps_nobody_waiting(engine: Engine) -> None:
    put(engine, 1, {b"B%03d" % i: b"v" for i in range(500)})
    found = engine.named((b"B",))
    seen = [next(found)]
    put(engine, 1, {b"B%03d" % i: None for i in range(500)} | {b"B999": b"late"})
    put(engine, 1, {b"B": b"late"}, OTHER)
    engine.destroy([NS])
    seen += found
    assert sorted(row.key for row in seen) == [b"B%03d" % i for i in range(500)]
    assert [row.key for row in named(engine)] == [b"B"]


def test_named_can_be_given_up(engine: Engine) -> None:
    put(engine, 1, {b"B1": b"", b"B2": b""})
    found = engine.named((b"B",))
    next(found)
    found.close()
    put(engine, 1, {b"B1": None})
    assert [row.key for row in named(engine)] == [b"B2"]


def test_swap_replaces_values_where_they_are(engine: Engine) -> None:
    put(engine, 1, {b"B1": b"a", b"B2": b"b", b"b3": b"c"}, pin=True)
    put(engine, 2, {b"B1": b"d"}, pin=True)
    put(engine, 3, {b"B1": b"e"})
    swapped = [(row, b"new " + row.value) for row in named(engine)]
    assert len(swapped) == 5
    assert engine.swap(swapped, {("kind", "id"): "doc"})
    assert rows(engine) == {b"B1": b"new e", b"B2": b"new b", b"b3": b"new c"}
    assert rows(engine, 1) == {b"B1": b"new a", b"B2": b"new b"}
    assert rows(engine, 2) == {b"B1": b"new d", b"B2": b"new b"}
    assert {(row.key, row.born) for row in named(engine)} == {(row.key, row.born) for row, _ in swapped}
    assert engine.record("kind", "id") == "doc"
    assert engine.check() == []
    engine.restore(NS, Epoch(1), Epoch(3), {})
    assert rows(engine) == {b"B1": b"new a", b"B2": b"new b", b"b3": b"new c"}


def test_a_row_that_was_retired_in_between_is_swapped(engine: Engine) -> None:
    put(engine, 1, {b"B1": b"a"}, pin=True)
    (row,) = named(engine)
    put(engine, 2, {b"B1": b"b"})
    assert engine.swap([(row, b"moved")])
    assert rows(engine, 1) == {b"B1": b"moved"} and rows(engine) == {b"B1": b"b"}


@pytest.mark.parametrize("what", ["gone", "changed", "reborn", "never"])
def test_swap_changes_all_or_nothing(engine: Engine, what: str) -> None:
    put(engine, 1, {b"B1": b"a", b"B2": b"b"})
    one, two = named(engine)
    if what == "gone":
        put(engine, 1, {b"B2": None})
    elif what == "changed":
        put(engine, 1, {b"B2": b"c"})
    elif what == "reborn":
        put(engine, 2, {b"B2": b"b"})
    else:
        two = Row(OTHER, b"B9", Epoch(1), b"")
    before = rows(engine)
    assert not engine.swap([(one, b"new"), (two, b"new")], {("kind", "id"): "doc"})
    assert rows(engine) == before
    assert engine.record("kind", "id") is None
    assert engine.swap([(one, b"new")])


def test_a_snapshot_lets_the_wal_go_when_it_is_closed(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "meta.db")
    put(engine, 1, {b"B%d" % i: bytes(1000) for i in range(100)})
    found = engine.named((b"B",))
    next(found)
    for i in range(40):
        put(engine, 1, {b"C%d" % i: os.urandom(1 << 20)})
    assert engine.statistics()["wal_bytes"] > 2 * WAL_LIMIT
    found.close()
    for i in range(20):
        put(engine, 1, {b"C%d" % i: os.urandom(1 << 20)})
    assert engine.statistics()["wal_bytes"] < 2 * WAL_LIMIT
    engine.close()
