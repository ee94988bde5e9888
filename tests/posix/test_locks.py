"""fcntl, open-file-description and flock locks between processes."""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.actors import Child, in_child
from tests.posix.calls import result

OFD_SETLK = 37
"""F_OFD_SETLK, which `fcntl` of Python 3.11 does not name."""


@pytest.fixture
def fd(mnt: Path) -> Iterator[int]:
    """The file `f` of 100 bytes, open for reading and writing."""
    (mnt / "f").write_bytes(bytes(100))
    opened = os.open("f", os.O_RDWR)
    yield opened
    os.close(opened)


def _try_posix(kind: int, length: int = 0, start: int = 0) -> str:
    """The outcome of a non-blocking fcntl lock by a process of its own."""

    def act() -> str:
        own = os.open("f", os.O_RDWR)
        return result(fcntl.lockf, own, kind | fcntl.LOCK_NB, length, start)

    return in_child(act)


def _try_flock(kind: int) -> str:
    return in_child(lambda: result(fcntl.flock, os.open("f", os.O_RDWR), kind | fcntl.LOCK_NB))


def test_posix_locks_exclude_by_range(fd: int) -> None:
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)
    busy = ("EAGAIN", "EACCES")
    assert _try_posix(fcntl.LOCK_EX, 5, 25) in busy
    assert _try_posix(fcntl.LOCK_SH, 5, 25) in busy
    assert _try_posix(fcntl.LOCK_EX) in busy
    assert _try_posix(fcntl.LOCK_EX, 20, 0) == "ok"
    assert _try_posix(fcntl.LOCK_EX, 0, 30) == "ok"
    fcntl.lockf(fd, fcntl.LOCK_SH, 10, 20)
    assert _try_posix(fcntl.LOCK_SH) == "ok"
    assert _try_posix(fcntl.LOCK_EX) in busy
    fcntl.lockf(fd, fcntl.LOCK_UN, 5, 22)
    assert _try_posix(fcntl.LOCK_EX, 5, 22) == "ok"
    assert _try_posix(fcntl.LOCK_EX, 2, 20) in busy
    other = os.open("f", os.O_RDONLY)
    os.close(other)  # POSIX: closing any descriptor of the file drops the process's locks
    assert _try_posix(fcntl.LOCK_EX) == "ok"


def test_lock_owner_is_reported(fd: int) -> None:
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)

    def ask() -> tuple[int, int, int, int]:
        query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, query))
        return kind, start, length, pid

    assert in_child(ask) == (fcntl.F_WRLCK, 20, 10, os.getpid())


def test_flock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert _try_flock(fcntl.LOCK_EX) == "EAGAIN"
    assert _try_flock(fcntl.LOCK_SH) == "EAGAIN"
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert _try_flock(fcntl.LOCK_SH) == "ok"
    assert _try_flock(fcntl.LOCK_EX) == "EAGAIN"
    os.close(os.open("f", os.O_RDONLY))  # unlike POSIX locks, another descriptor's close changes nothing
    assert _try_flock(fcntl.LOCK_EX) == "EAGAIN"
    fcntl.flock(fd, fcntl.LOCK_UN)
    assert _try_flock(fcntl.LOCK_EX) == "ok"


def test_open_file_description_locks(fd: int) -> None:
    """Two descriptors of one process exclude each other, which plain POSIX locks do not."""
    other = os.open("f", os.O_RDWR)
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, OFD_SETLK, whole)
    assert result(fcntl.fcntl, other, OFD_SETLK, whole) in ("EAGAIN", "EACCES")
    fcntl.fcntl(fd, OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    assert result(fcntl.fcntl, other, OFD_SETLK, whole) == "ok"
    os.close(other)


@pytest.mark.parametrize("call", [fcntl.lockf, fcntl.flock], ids=["fcntl", "flock"])
def test_locks_of_a_killed_process_are_released(fd: int, call: object) -> None:
    lock = fcntl.lockf if call is fcntl.lockf else fcntl.flock

    def hold() -> None:
        own = os.open("f", os.O_RDWR)
        lock(own, fcntl.LOCK_EX)
        os.mkdir("ready")
        time.sleep(60)

    holder = Child(hold)
    while not os.path.exists("ready"):
        time.sleep(0.005)
    assert result(lock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB) in ("EAGAIN", "EACCES")
    holder.kill()
    assert result(lock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB) == "ok"


@pytest.mark.parametrize("call", [fcntl.lockf, fcntl.flock], ids=["fcntl", "flock"])
def test_waiting_for_a_lock(fd: int, call: object) -> None:
    """Four processes increment a number in a file under a blocking lock; none is lost."""
    lock = fcntl.lockf if call is fcntl.lockf else fcntl.flock
    os.pwrite(fd, struct.pack("q", 0), 0)

    def add() -> None:
        own = os.open("f", os.O_RDWR)
        for _ in range(100):
            lock(own, fcntl.LOCK_EX)
            (value,) = struct.unpack("q", os.pread(own, 8, 0))
            os.pwrite(own, struct.pack("q", value + 1), 0)
            lock(own, fcntl.LOCK_UN)

    for child in [Child(add) for _ in range(4)]:
        child.join()
    assert struct.unpack("q", os.pread(fd, 8, 0)) == (400,)


def test_lock_survives_rename_and_unlink(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.rename("f", "g")
    os.link("g", "f")
    assert _try_flock(fcntl.LOCK_EX) == "EAGAIN"
    os.unlink("g")
    os.unlink("f")
    Path("f").touch()
    assert _try_flock(fcntl.LOCK_EX) == "ok"
