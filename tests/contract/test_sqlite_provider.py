"""The sqlite provider: what no other provider has to do. What all do is in test_providers.py."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from artfs.errors import (
    BusyError,
    DamagedError,
    ExistsError,
    FormatError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.objects import sqlite as module
from artfs.objects.sqlite import BATCH, PIECE, SqliteProvider
from artfs.objects.sqlite.database import FORMAT

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[SqliteProvider]:
    made = SqliteProvider(tmp_path / "objects.db")
    yield made
    await made.close()


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """More than two batches of pieces, no two alike, the last one short."""
    path = tmp_path / "long"
    with path.open("wb") as file:
        for number in range(2 * BATCH + 1):
            file.write(number.to_bytes(4, "big") * (PIECE // 4))
        file.write(b"end")
    return path


QUERY = """
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
json.dump(db.execute(sys.argv[2]).fetchall(), sys.stdout)
"""


def rows(path: Path, statement: str) -> list[list[object]]:
    """As another program sees them, now.  Another sqlite in this process would take away each other's locks."""
    done = subprocess.run([sys.executable, "-c", QUERY, path, statement], stdout=subprocess.PIPE, check=True)
    found: list[list[object]] = json.loads(done.stdout)
    return found


async def _listed(provider: SqliteProvider) -> list[tuple[str, int]]:
    return [item async for item in provider.list("")]


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, BATCH * PIECE, BATCH * PIECE + 1])
async def test_sizes_about_pieces_and_batches(provider: SqliteProvider, size: int) -> None:
    data = os.urandom(size)
    await provider.put("a", data)
    assert await provider.get("a", 0, size) == data
    assert (await provider.head("a")).size == size
    lengths = [length for [length] in rows(provider.path, "SELECT length(data) FROM piece ORDER BY number")]
    assert lengths == [min(PIECE, size - at) for at in range(0, size, PIECE)]


async def test_ranges_about_pieces(provider: SqliteProvider, long: Path) -> None:
    data = long.read_bytes()
    await provider.put("a", long)
    for offset in (0, 1, PIECE - 1, PIECE, 3 * PIECE + 7, len(data) - 3, len(data)):
        for length in (0, 1, PIECE, 2 * PIECE + 1):
            if offset + length <= len(data):
                assert await provider.get("a", offset, length) == data[offset : offset + length]


async def test_another_program_reads_it_while_it_is_open(provider: SqliteProvider, long: Path) -> None:
    await provider.put("grid/a", long)
    [[data]] = rows(
        provider.path,
        "SELECT group_concat(hex(data), '') FROM (SELECT data FROM object JOIN piece USING (id)"
        " WHERE name = 'grid/a' ORDER BY number)",
    )
    assert bytes.fromhex(str(data)) == long.read_bytes()
    assert rows(provider.path, "PRAGMA integrity_check") == [["ok"]]
    assert rows(provider.path, "PRAGMA user_version") == [[FORMAT]]


async def test_a_closed_file_is_all_there_is(tmp_path: Path) -> None:
    provider = SqliteProvider(tmp_path / "here.db")
    await provider.put("a", b"bytes")
    await provider.close()
    assert [path.name for path in tmp_path.iterdir()] == ["here.db"]
    (tmp_path / "here.db").rename(tmp_path / "there.db")
    moved = SqliteProvider(tmp_path / "there.db")
    assert await moved.get("a", 0, 5) == b"bytes"
    await moved.close()


async def test_two_instances_see_and_replace_each_others_objects(provider: SqliteProvider) -> None:
    other = SqliteProvider(provider.path)
    await provider.put("a", b"one")
    assert await other.get("a", 0, 3) == b"one"
    with pytest.raises(ExistsError):
        await other.create("a", b"no")
    await other.put("a", b"two")
    assert await provider.get("a", 0, 3) == b"two"
    await provider.delete(["a"])
    with pytest.raises(NotFoundError, match="a"):
        await other.head("a")
    await other.close()


async def test_many_tasks_of_two_instances_write_at_once(provider: SqliteProvider) -> None:
    other = SqliteProvider(provider.path)
    data = {f"n/{number}": os.urandom(number * PIECE // 2 + 1) for number in range(12)}
    async with trio.open_nursery() as nursery:
        for number, name in enumerate(data):
            nursery.start_soon((provider, other)[number % 2].put, name, data[name])
    for name, expected in data.items():
        assert await provider.get(name, 0, len(expected)) == expected
    assert rows(provider.path, "SELECT * FROM loose") == []
    await other.close()


async def test_who_comes_while_the_tables_are_made(tmp_path: Path) -> None:
    for round in range(30):
        instances = [SqliteProvider(tmp_path / f"{round}.db") for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for number, each in enumerate(instances):
                nursery.start_soon(each.put, f"{number}", b"data")
        assert len(await _listed(instances[0])) == 4
        for each in instances:
            await each.close()


async def test_a_put_is_invisible_until_it_is_whole(provider: SqliteProvider, long: Path) -> None:
    await provider.put("a", b"old")
    fifo = long.with_name("fifo")
    os.mkfifo(fifo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.put, "a", fifo)
        with await trio.to_thread.run_sync(fifo.open, "wb", 0) as file:
            await trio.to_thread.run_sync(file.write, long.read_bytes()[: 2 * BATCH * PIECE])
            with trio.fail_after(30):
                while rows(provider.path, "SELECT count(*) FROM piece") != [[1 + 2 * BATCH]]:
                    await trio.sleep(0.01)
            # Nobody waits for a put that waits for its bytes, and nobody takes its pieces for left over.
            assert await _listed(provider) == [("a", 3)]
            other = SqliteProvider(provider.path)
            await other.check()
            await other.put("b", b"other")
            await other.delete(["b"])
            await other.close()
            await trio.to_thread.run_sync(file.write, b"end")
    assert (await provider.head("a")).size == 2 * BATCH * PIECE + 3
    assert rows(provider.path, "SELECT count(*) FROM loose") == [[0]]
    assert rows(provider.path, "SELECT count(*) FROM piece") == [[2 * BATCH + 1]]


async def test_a_put_that_is_cancelled_leaves_nothing(provider: SqliteProvider, long: Path) -> None:
    fifo = long.with_name("fifo")
    os.mkfifo(fifo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.put, "a", fifo)
        with await trio.to_thread.run_sync(fifo.open, "wb", 0) as file:
            await trio.to_thread.run_sync(file.write, long.read_bytes()[: BATCH * PIECE])
            with trio.fail_after(30):
                while not provider.path.exists() or rows(provider.path, "SELECT * FROM loose") == []:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert await _listed(provider) == []
    assert rows(provider.path, "SELECT count(*) FROM loose") == rows(provider.path, "SELECT count(*) FROM piece")
    assert rows(provider.path, "SELECT count(*) FROM piece") == [[0]]


CHILD = """
import sys, trio
from pathlib import Path
from artfs.objects.sqlite import SqliteProvider
trio.run(SqliteProvider(Path(sys.argv[1])).put, "grid/new", Path(sys.argv[2]))
"""


@pytest.mark.parametrize("pieces", [1, BATCH + 1])
async def test_a_process_that_is_killed_in_a_put_leaves_nothing(
    provider: SqliteProvider, tmp_path: Path, pieces: int
) -> None:
    await provider.put("grid/old", b"old")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    child = subprocess.Popen([sys.executable, "-c", CHILD, provider.path, fifo], cwd=ROOT)
    try:
        with await trio.to_thread.run_sync(fifo.open, "wb", 0) as file:
            await trio.to_thread.run_sync(file.write, bytes(pieces * PIECE))
            with trio.fail_after(30):
                wanted = pieces // BATCH * BATCH
                while rows(provider.path, "SELECT count(*) FROM piece") != [[1 + wanted]]:
                    await trio.sleep(0.01)
            child.send_signal(signal.SIGKILL)
            child.wait()
    finally:
        child.kill()
        child.wait()
    assert await _listed(provider) == [("grid/old", 3)]
    opened = SqliteProvider(provider.path)
    await opened.check()
    assert await _listed(opened) == [("grid/old", 3)]
    assert await opened.get("grid/old", 0, 3) == b"old"
    assert rows(provider.path, "SELECT count(*) FROM piece") == [[1]]
    assert rows(provider.path, "SELECT * FROM loose") == []
    await opened.close()


async def test_a_deleted_object_gives_its_space_back(provider: SqliteProvider) -> None:
    data = os.urandom(8 * PIECE)
    for number in range(8):
        await provider.put(f"a/{number}", data)
    await provider.put("b", b"stays")
    before = provider.path.stat().st_size
    await provider.delete([f"a/{number}" for number in range(8)] + ["absent"])
    assert await _listed(provider) == [("b", 5)]
    assert before > 64 * MIB
    assert provider.path.stat().st_size <= module.SPARE + 2 * MIB
    assert await provider.get("b", 0, 5) == b"stays"


async def test_copies_share_pieces_until_the_last_is_gone(provider: SqliteProvider) -> None:
    await provider.put("a", bytes(PIECE + 1))
    await provider.put("b", b"old")
    info = await provider.head("a")
    await provider.copy("a", "b", info.etag)
    await provider.copy("a", "a")
    assert rows(provider.path, "SELECT count(*) FROM piece") == [[2]]
    await provider.put("a", b"new")
    assert await provider.get("b", 0, PIECE + 1) == bytes(PIECE + 1)
    with pytest.raises(BusyError, match="a has changed"):
        await provider.copy("a", "c", info.etag)
    with pytest.raises(NotFoundError, match="absent"):
        await provider.copy("absent", "c")
    await provider.delete(["b"])
    assert rows(provider.path, "SELECT count(*) FROM piece") == [[1]]


async def test_a_long_listing_is_whole(provider: SqliteProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    names = [*sorted(f"g/{number}" for number in range(20)), "h"]
    for name in names:
        await provider.put(name, b"x")
    assert [name for name, _ in await _listed(provider)] == names
    assert [name async for name, _ in provider.list("g/1")] == [name for name in names if name.startswith("g/1")]
    await provider.delete(names[:10])
    assert [name for name, _ in await _listed(provider)] == names[10:]


# what cannot be used
async def _refused(path: Path, expected: type[Exception], match: str) -> None:
    before = path.read_bytes()
    for _ in range(2):
        provider = SqliteProvider(path)
        with pytest.raises(expected, match=match):
            await provider.check()
        with pytest.raises(expected, match=match):
            await provider.get("a", 0, 1)
        await provider.close()
    assert path.read_bytes() == before


async def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database\n" * 200)
    await _refused(path, InvalidError, "is no sqlite database")
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


async def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE object (name)")
    db.commit()
    db.close()
    await _refused(path, InvalidError, "a database of something else")


async def test_a_newer_format_is_refused(provider: SqliteProvider) -> None:
    await provider.check()
    await provider.close()
    db = sqlite3.connect(provider.path)
    db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    db.close()
    await _refused(provider.path, FormatError, "upgrade artfs")


async def test_a_missing_directory_is_not_made(tmp_path: Path) -> None:
    provider = SqliteProvider(tmp_path / "missing" / "objects.db")
    with pytest.raises(NotFoundError, match="missing: no such directory"):
        await provider.check()
    assert list(tmp_path.iterdir()) == []
    directory = SqliteProvider(tmp_path)
    with pytest.raises(InvalidError, match="is a directory"):
        await directory.check()


async def test_damage_is_said_so(provider: SqliteProvider) -> None:
    await provider.put("a", os.urandom(4 * PIECE))
    await provider.close()
    size = provider.path.stat().st_size
    with provider.path.open("r+b") as file:
        file.seek(32 << 10)
        file.write(os.urandom(size - (32 << 10)))
    with pytest.raises(DamagedError, match="is damaged"):
        await provider.get("a", 0, 4 * PIECE)


async def test_a_missing_piece_is_damage(provider: SqliteProvider) -> None:
    await provider.put("a", bytes(3 * PIECE))
    db = sqlite3.connect(provider.path)
    db.execute("DELETE FROM piece WHERE number = 1")
    db.commit()
    db.close()
    assert await provider.get("a", 0, PIECE) == bytes(PIECE)
    with pytest.raises(DamagedError, match="object a"):
        await provider.get("a", 0, 3 * PIECE)


async def test_a_file_that_was_taken_away_takes_no_puts(provider: SqliteProvider, tmp_path: Path) -> None:
    await provider.put("a", b"x")
    provider.path.rename(tmp_path / "away.db")
    with pytest.raises(UnavailableError, match="is gone"):
        await provider.put("b", b"y")
    provider.path.touch()
    with pytest.raises(UnavailableError, match="another file"):
        await provider.put("b", b"y")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("mounting a tmpfs needs root")
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@pytest.mark.parametrize("reserve", [module.RESERVE, 0])
async def test_a_full_disk_is_said_so_and_deleting_makes_room(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserve: int
) -> None:
    """`reserve` 0: sqlite itself meets the full disk, as under a quota that statvfs does not show."""
    monkeypatch.setattr(module, "RESERVE", reserve)
    if not reserve:
        monkeypatch.setattr(SqliteProvider, "_leave_room", lambda self, size: None)
    provider = SqliteProvider(small_disk / "objects.db")
    data = os.urandom(8 * PIECE)
    there = []
    with pytest.raises(NoSpaceError, match="the disk is full"):
        for number in range(20):
            await provider.put(f"a/{number}", data)
            there.append((f"a/{number}", len(data)))
    assert len(there) > 2
    assert await _listed(provider) == there
    for name, _ in there:
        assert await provider.get(name, 0, len(data)) == data
    if not reserve:
        return await provider.close()
    await provider.delete([name for name, _ in there])
    await provider.put("b", data)
    assert await _listed(provider) == [("b", len(data))]
    assert rows(provider.path, "SELECT count(*) FROM piece") == [[8]]
    await provider.close()


async def test_a_put_that_ends_while_pieces_are_swept_keeps_its_own(
    provider: SqliteProvider, long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep has seen them as loose; the last step of the put comes before it gets to them."""
    listed, ended = threading.Event(), threading.Event()
    read, step = provider._db.read, provider._step

    def reading(statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        found = read(statement, values)
        if "FROM loose" in statement and found and not listed.is_set():
            listed.set()
            assert ended.wait(10)
        return found

    def stepping(put: Any) -> bool:
        if put.id is not None:
            assert listed.wait(10)
        last = step(put)
        if last and put.name == "long":
            ended.set()
        return last

    await provider.put("other", b"x")
    monkeypatch.setattr(provider._db, "read", reading)
    monkeypatch.setattr(provider, "_step", stepping)
    with trio.fail_after(20):
        async with trio.open_nursery() as tasks:
            tasks.start_soon(provider.put, "long", long)
            while not provider._putting:
                await trio.sleep(0.01)
            await provider.delete(["other"])
    data = long.read_bytes()
    assert await provider.get("long", 0, len(data)) == data
    assert rows(provider.path, "SELECT * FROM loose") == []
