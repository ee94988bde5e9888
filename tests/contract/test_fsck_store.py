"""fsck of a store as a whole: catalogue, sessions, files, journal; and of one after random work and damage."""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import Path

import apsw
import pytest
import trio

from artfs.errors import ArtfsError
from artfs.meta import Batch
from artfs.meta.sqlite import SqliteEngine
from artfs.settings import create_store
from artfs.store.opening import open_store
from artfs.types import Epoch
from artfs.volume.fsck import Report, check
from artfs.volume.journal import RECORD
from artfs.volume.rows import HEAD_KEY, Head
from tests.contract.fsck_store import (
    Made,
    assert_repairs,
    kinds,
    random_work,
    read_all,
    report_text,
)


# the catalogue
def document(made: Made, name: str) -> dict[str, object]:
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
    fields = document(made, "work")
    if how == "lost":
        made.sql("DELETE FROM record WHERE kind = 'namespace' AND id = ?", made.ids["work"])
    elif how == "no json":
        _set_document(made, "work", "{")
    else:
        changes: dict[str, dict[str, object]] = {
            "wrong type": {"serial": str(fields["serial"])},
            "unknown field": {"colour": 3},
            "wrong id": {"id": "ns-other"},
            "bad owner": {"owner": None},
        }
        _set_document(made, "work", json.dumps(fields | changes[how]))
    assert_repairs(made, "catalogue")
    assert read_all(made) == before
    assert document(made, "work")["owner"] == "s1"


def test_two_namespaces_at_one_place(made: Made) -> None:
    _set_document(made, "branch", json.dumps(document(made, "branch") | {"name": "work"}))
    assert_repairs(made, "catalogue")
    assert document(made, "work")["name"] == "work"
    assert document(made, "branch")["name"] == "work~2"


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
    assert kinds(report) == {"session"}, report_text(report)


def test_a_namespace_whose_session_is_gone_is_noted(made: Made) -> None:
    made.sql("DELETE FROM session")
    report = check(made.root)
    assert report.ok
    assert sum("a session that is not there" in note for note in report.notes) == 2


# files
def test_a_store_that_nobody_has_opened_yet(tmp_path: Path) -> None:
    create_store(tmp_path / "new")
    for repair in (False, True):
        report = check(tmp_path / "new", repair=repair)
        assert report.ok
        assert report.notes == ["nothing has been stored here yet"]
    assert not (tmp_path / "new" / "meta.db").exists()


def test_a_damaged_store_file(made: Made) -> None:
    (made.root / "store.json").write_text("{")
    for repair in (False, True):
        report = check(made.root, repair=repair)
        assert kinds(report) == {"store"}, report_text(report)
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
async def _crash(made: Made) -> None:
    """Leave changes that are acknowledged and not committed, as a process that is killed does."""
    with contextlib.suppress(_KilledError):
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
                store.shard.failure = _KilledError()  # closing commits nothing then
                raise store.shard.failure


class _KilledError(ArtfsError):
    pass


def test_what_waits_in_the_journal_is_noted_and_recovered(made: Made) -> None:
    trio.run(_crash, made)
    report = check(made.root)
    assert report.ok, report_text(report)
    assert report.counts["journal_records"] == 5
    assert report.counts["garbage_objects"] == 0
    assert check(made.root).counts["journal_records"] == 5
    report = check(made.root, repair=True)
    assert report.ok and not report.problems, report_text(report)
    assert "5 records of the journal were recovered" in report.notes
    assert check(made.root).counts["journal_records"] == 0
    assert read_all(made)["/uncommitted"] == b"y" * 100_000 + b"tail"


@pytest.mark.logs_errors
def test_a_damaged_head_is_mended_before_and_after_recovery(made: Made) -> None:
    trio.run(_crash, made)
    made.put(HEAD_KEY, b"short")
    report = check(made.root, repair=True)
    assert report.ok, report_text(report)
    assert check(made.root).problems == []
    assert read_all(made)["/uncommitted"] == b"y" * 100_000 + b"tail"


@pytest.mark.parametrize("how", ["missing", "short", "state", "no size"])
def test_a_journal_that_cannot_be_followed(made: Made, how: str) -> None:
    if how == "missing":
        (made.root / "journal").unlink()
    elif how == "short":
        os.truncate(made.root / "journal", 4 << 20)
    else:
        state = "somewhere" if how == "state" else "1 1 0"
        made.sql("UPDATE record SET doc = ? WHERE kind = 'journal'", state)
    assert_repairs(made, "journal")


def test_a_torn_record_ends_the_journal(made: Made) -> None:
    trio.run(_crash, made)
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
@pytest.mark.parametrize("seed", range(4))
def test_a_store_at_work_is_clean(made: Made, seed: int) -> None:
    trio.run(random_work, made, seed)
    report = check(made.root, data=True)
    assert report.problems == [], report_text(report)
    report = check(made.root, repair=True)
    assert report.problems == [], report_text(report)


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_is_mended_or_reported(made: Made, seed: int) -> None:
    """Whatever happens to rows of a head: fsck ends, a second repair finds nothing that the first could mend."""
    trio.run(random_work, made, seed)
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
    assert report.ok, report_text(Report([p for p in report.problems if not p.repaired], []))
    assert check(made.root, data=True).problems == []
    read_all(made)
