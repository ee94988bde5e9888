"""sqlite: two writers and a reader, in both journal modes; a killed writer; its own integrity check."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.posix.actors import Child

MODES = ["wal", "delete", "truncate", "persist"]


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=60, isolation_level=None)


def _create(path: Path, mode: str) -> None:
    with closing(_open(path)) as connection:
        assert connection.execute(f"pragma journal_mode = {mode}").fetchone() == (mode,)
        connection.execute("create table t (writer integer, number integer, padding blob)")
        connection.execute("create index i on t (writer, number)")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("begin immediate")
    yield
    connection.execute("commit")


def _writer(path: Path, number: int, transactions: int) -> Callable[[], None]:
    def act() -> None:
        with closing(_open(path)) as connection:
            for turn in range(transactions):
                with _transaction(connection):
                    rows = [(number, 3 * turn + row, bytes(row * 500)) for row in range(3)]
                    connection.executemany("insert into t values (?, ?, ?)", rows)

    return act


@pytest.mark.parametrize("mode", MODES)
def test_two_writers_and_a_reader(mnt: Path, mode: str) -> None:
    path, transactions = mnt / "db", 60
    _create(path, mode)

    def reader() -> None:
        """A snapshot never holds a part of a transaction."""
        with closing(_open(path)) as connection:
            count = 0
            while count < 6 * transactions:
                (count,) = connection.execute("select count(*) from t").fetchone()
                assert count % 3 == 0

    children = [Child(_writer(path, number, transactions)) for number in range(2)]
    children.append(Child(reader))
    for child in children:
        child.join()
    with closing(_open(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        found = connection.execute("select writer, number from t order by writer, number").fetchall()
        assert found == [(writer, number) for writer in range(2) for number in range(3 * transactions)]
        connection.execute("delete from t where number % 2")
        connection.execute("vacuum")
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_writer_loses_nothing_committed(mnt: Path, mode: str) -> None:
    path, log = mnt / "db", mnt / "committed"
    _create(path, mode)

    def act() -> None:
        with closing(_open(path)) as connection, open(log, "ab", buffering=0) as committed:
            for turn in range(1_000_000):
                with _transaction(connection):
                    connection.execute("insert into t values (0, ?, ?)", (turn, bytes(2000)))
                committed.write(b".")

    child = Child(act)
    while not log.exists() or log.stat().st_size < 40:
        pass
    child.kill()
    sure = log.stat().st_size
    with closing(_open(path)) as connection:
        numbers = [number for (number,) in connection.execute("select number from t order by number")]
        assert numbers in (list(range(sure)), list(range(sure + 1)))
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]


def test_memory_mapped_database(mnt: Path) -> None:
    _create(mnt / "db", "wal")
    with closing(_open(mnt / "db")) as connection:
        connection.execute("pragma mmap_size = 100000000")
        for turn in range(30):
            with _transaction(connection):
                connection.executemany(
                    "insert into t values (?, ?, ?)", [(turn, row, bytes(1000)) for row in range(30)]
                )
        connection.execute("pragma wal_checkpoint(truncate)")
        assert connection.execute("select count(*), sum(length(padding)) from t").fetchone() == (900, 900_000)
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
