"""The journal: what was appended comes back, in order, up to the first record that did not reach the disk whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from artfs.errors import DamagedError, NoSpaceError
from artfs.volume import journal as journals
from artfs.volume.journal import LARGEST, RECORD, SKIP, TOGETHER, ZERO, Journal, entries

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def open_at(path: Path, state: str, size: int = SIZE) -> Journal:
    journal = Journal(path, size)
    journal.seek(state)
    return journal


def started(path: Path) -> tuple[Journal, str]:
    journal = Journal(path, SIZE)
    journal.restart()
    return journal, journal.state()


def test_records_come_back_in_order_with_their_data(path: Path) -> None:
    journal, state = started(path)
    wanted = [(serial, b"entries %d" % serial, bytes(serial)) for serial in range(1, 50)]
    for serial, body, data in wanted:
        journal.append(serial, body, memoryview(data))
    journal.close()
    again = open_at(path, state)
    assert list(again.replay()) == wanted
    assert again.used == again.position - again.tail == sum(RECORD.size + len(b) + len(d) for _, b, d in wanted)
    again.close()


def test_replay_goes_on_from_the_state_in_between(path: Path) -> None:
    journal, _ = started(path)
    journal.append(1, b"committed")
    state = journal.state()
    journal.append(2, b"not yet")
    journal.close()
    again = open_at(path, state)
    assert [serial for serial, _, _ in again.replay()] == [2]
    again.close()


def test_the_file_is_full_of_zeros_so_that_fdatasync_writes_data_alone(path: Path) -> None:
    journal, _ = started(path)
    stat = os.stat(path)
    assert stat.st_size == SIZE
    assert stat.st_blocks * 512 >= SIZE
    journal.close()


@pytest.mark.parametrize("together", [0, 1, 2, 20])
def test_it_wraps_around_many_times(path: Path, together: int) -> None:
    """Each lap ends elsewhere, so that the end of the ring is skipped with room for a header and without.  So many
    records are written together."""
    journal, state = started(path)
    kept: list[tuple[int, bytes, bytes]] = []
    for i in range(1, 800):
        record = (i, b"r" * (1 + i % 900), b"d" * (i * 977 % 65_536))
        if together and i % together == 0:
            journal.hold()
        journal.append(*record)
        kept.append(record)
        if together and i % together == together - 1:
            journal.release()
        if together and i % 40 == 0:
            journal.release()
        if i % 40 == 0:
            again = open_at(path, state)
            assert list(again.replay()) == kept
            assert again.position == journal.position
            again.close()
            journal.free(journal.position)
            state, kept = journal.state(), []
    assert journal.position > 2 * SIZE
    journal.close()


def test_records_that_are_written_together_take_few_writes(path: Path) -> None:
    alone, state = started(path)
    wanted = [(serial, b"entries %d" % serial, bytes(serial)) for serial in range(1, 1000)]
    for record in wanted:
        alone.append(*record)
    alone.close()
    bytes_alone = path.read_bytes()
    path.write_bytes(bytes(SIZE))
    journal = open_at(path, state)
    writes: list[int] = []

    def pwritev(fd: int, parts: Sequence[bytes | memoryview], at: int) -> int:
        writes.append(at)
        return os.pwritev(fd, parts, at)

    journal.pwritev = pwritev
    journal.hold()
    for record in wanted:
        journal.append(*record)
    journal.release()
    journal.release()
    assert len(writes) == -(-journal.position // TOGETHER)
    assert path.read_bytes() == bytes_alone
    assert journal.state() == alone.state()
    journal.append(1, b"alone again")
    assert writes[-1] == alone.position
    journal.close()


@pytest.mark.parametrize("rest", [0, 1, RECORD.size - 1, RECORD.size, RECORD.size + 1, RECORD.size + 9])
def test_the_end_of_the_ring(path: Path, rest: int) -> None:
    journal, _ = started(path)
    while SIZE - journal.position > MIB:
        journal.append(1, b"x", bytes(MIB - 4096))
    journal.append(1, b"x", bytes(SIZE - journal.position - 2 * RECORD.size - 1 - 1 - 100 - rest))
    state = journal.state()
    journal.append(2, b"y", bytes(100))
    assert journal.position == SIZE - rest
    journal.free(journal.position)
    for i in range(3):
        journal.append(3 + i, b"12345678", b"9")
    again = open_at(path, state)
    assert [serial for serial, _, _ in again.replay()] == [2, 3, 4, 5]
    assert again.position == journal.position
    again.close()
    journal.close()


def test_a_record_torn_at_any_byte_ends_the_replay(path: Path) -> None:
    journal, state = started(path)
    journal.append(1, b"whole", b"data")
    start = journal.position
    journal.append(2, b"torn entries", b"torn data")
    end = journal.position
    journal.append(3, b"behind it")
    behind = os.pread(journal.fd, journal.position - start, start)
    fd = os.open(path, os.O_RDWR)
    for at in range(start, end):
        for damaged in (bytes(end - at), bytes((behind[at - start] ^ 1,))):
            os.pwrite(fd, behind, start)
            os.pwrite(fd, damaged, at)
            if os.pread(fd, end - start, start) == behind[: end - start]:
                continue  # zeros where zeros were: nothing is torn
            again = open_at(path, state)
            assert [serial for serial, _, _ in again.replay()] == [1], f"torn at {at - start}"
            again.close()
    os.close(fd)
    journal.close()


def test_a_record_that_never_arrived_hides_what_follows_it(path: Path) -> None:
    journal, state = started(path)
    journal.append(1, b"one")
    start = journal.position
    journal.append(2, b"two")
    end = journal.position
    journal.append(3, b"three")
    os.pwrite(journal.fd, bytes(end - start), start)
    again = open_at(path, state)
    assert [serial for serial, _, _ in again.replay()] == [1]
    again.close()
    journal.close()


def test_after_a_restart_nothing_old_can_follow_something_new(path: Path) -> None:
    """Records of an earlier chain lie exactly where the next one would: same lengths, same bytes."""
    journal, state = started(path)
    for serial in range(1, 20):
        journal.append(serial, b"same length")
    journal.close()
    again = open_at(path, state)
    for serial, _, _ in again.replay():
        if serial == 4:
            break
    again.restart()
    new = again.state()
    again.append(5, b"same length")
    again.close()
    last = open_at(path, new)
    assert [serial for serial, _, _ in last.replay()] == [5]
    last.close()


def test_a_stopped_replay_stands_before_the_record_that_was_not_taken(path: Path) -> None:
    journal, state = started(path)
    for serial in (1, 2, 3):
        journal.append(serial, b"record")
    again = open_at(path, state)
    records = again.replay()
    next(records), next(records)
    assert again.position == RECORD.size + len(b"record")
    again.close()
    journal.close()


def test_a_ring_full_of_records_of_an_earlier_lap_ends(path: Path) -> None:
    journal, state = started(path)
    os.pwrite(journal.fd, RECORD.pack(SKIP, 0, 0, 0), 0)
    again = open_at(path, state)
    assert list(again.replay()) == []
    again.close()
    journal.close()


def test_acknowledged_records_survive_a_larger_setting(path: Path) -> None:
    """Positions are places by the size of the ring that they were written into."""
    journal, _ = started(path)
    for _ in range(9):
        journal.append(1, b"x", bytes(MIB))
        journal.free(journal.position)
    state = journal.state()
    journal.append(2, b"acknowledged")
    assert journal.position > SIZE
    journal.close()
    again = open_at(path, state, 2 * SIZE)
    assert [serial for serial, _, _ in again.replay()] == [2]
    again.restart()
    state = again.state()
    again.append(3, b"in the larger one")
    again.close()
    last = open_at(path, state, 2 * SIZE)
    assert [serial for serial, _, _ in last.replay()] == [3]
    last.close()


def test_used_is_what_is_not_freed(path: Path) -> None:
    journal, _ = started(path)
    journal.append(1, b"a")
    between = journal.position
    journal.append(1, b"bc")
    journal.free(between)
    assert journal.used == RECORD.size + 2
    journal.free(journal.position)
    assert journal.used == 0
    assert journal.soft < journal.hard <= SIZE - journals.LARGEST
    journal.close()


def test_no_room_for_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes, at: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoSpaceError, match="free some space"):
        Journal(path, SIZE)
    assert os.path.getsize(path) == 0


def test_entries_that_cannot_be_read_are_damage() -> None:
    whole = ZERO.pack(b"Z", 1, 2, 3, 0)
    assert list(entries(whole + whole)) == [(b"Z", 0, len(whole)), (b"Z", len(whole), 2 * len(whole))]
    for body in (whole[:-1], b"?", whole + b"R\0"):
        with pytest.raises(DamagedError):
            list(entries(body))


def test_a_record_that_replay_would_refuse_is_not_written(path: Path) -> None:
    journal, state = started(path)
    journal.append(1, b"before")
    with pytest.raises(OSError, match="longer"):
        journal.append(2, b"x" * (LARGEST + 1))
    journal.append(3, b"after")
    journal.close()
    again = open_at(path, state)
    assert [serial for serial, _, _ in again.replay()] == [1, 3]
    again.close()
