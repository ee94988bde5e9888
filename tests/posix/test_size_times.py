"""truncate, posix_fallocate and utimensat; which call moves which stamp; the range of times."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.actors import ALICE, BOB, in_child, result_as
from tests.posix.calls import UTIME_NOW, UTIME_OMIT, result, utimensat
from tests.posix.matrix import make
from tests.posix.stamps import TICK, clock, moves

pytestmark = pytest.mark.usefixtures("mnt")

YEAR_2400 = 13_569_465_600


def _ftruncate(path: str, size: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


@pytest.mark.parametrize("truncate", [os.truncate, _ftruncate])
def test_truncate(truncate: Callable[[str, int], None]) -> None:
    Path("f").write_bytes(b"0123456789" * 1000)
    for size in (9_999, 4096, 4097, 1, 0, 5, 1_234_567):
        before = Path("f").read_bytes()
        with moves({"f": "mtime ctime"}):
            truncate("f", size)
        assert Path("f").read_bytes() == before[:size].ljust(size, b"\0")
        assert os.stat("f").st_size == size
    assert result(truncate, "f", -1) == "EINVAL"
    assert os.stat("f").st_size == 1_234_567


def test_truncate_to_the_same_size_is_a_change() -> None:
    """Linux file systems move both stamps; truncate(2) to the same size may leave them, POSIX says."""
    Path("f").write_bytes(b"abc")
    with moves({"f": "mtime ctime"}):
        _ftruncate("f", 3)


def test_truncate_errors() -> None:
    os.mkdir("d")
    Path("f").touch()
    os.chown("f", ALICE.uid, ALICE.gid)
    assert result(os.truncate, "d", 0) == "EISDIR"
    assert result_as(BOB, os.truncate, "f", 0) == "EACCES"
    fd = os.open("f", os.O_RDONLY)
    assert result(os.ftruncate, fd, 0) in ("EINVAL", "EBADF")
    os.close(fd)
    os.mkfifo("p")
    assert result(os.truncate, "p", 0) == "EINVAL"


def test_a_descriptor_keeps_its_right_after_chmod() -> None:
    def act() -> None:
        fd = os.open("f", os.O_CREAT | os.O_RDWR, 0o000)
        os.ftruncate(fd, 100)
        os.write(fd, b"x")
        assert os.pread(fd, 1, 0) == b"x"
        assert result(os.open, "f", os.O_RDONLY) == "EACCES"

    in_child(act, user=ALICE)
    assert os.stat("f").st_size == 100


def test_too_large_sizes() -> None:
    Path("f").touch()
    assert result(os.truncate, "f", 2**63 - 1) in ("EFBIG", "EINVAL", "ok")
    os.truncate("f", 3)
    assert os.stat("f").st_size == 3


def test_posix_fallocate() -> None:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"abc")
    with moves({"f": "mtime ctime"}):
        os.posix_fallocate(fd, 0, 100_000)
    assert os.pread(fd, 200_000, 0) == b"abc" + bytes(99_997)
    os.posix_fallocate(fd, 10, 20)
    assert os.fstat(fd).st_size == 100_000
    for offset, length in ((0, 0), (-1, 10), (0, -5)):
        assert result(os.posix_fallocate, fd, offset, length) == "EINVAL"
    assert result(os.posix_fallocate, fd, 2**62, 2**62 + 2**61) in ("EFBIG", "EINVAL")
    os.close(fd)
    fd = os.open("f", os.O_RDONLY)
    assert result(os.posix_fallocate, fd, 0, 1) == "EBADF"
    os.close(fd)


@pytest.mark.parametrize("kind", ["file", "dir", "symlink", "fifo", "socket"])
def test_utimensat(kind: str) -> None:
    make(kind, "n")

    def stamps() -> tuple[int, int]:
        found = os.lstat("n")
        return found.st_atime_ns, found.st_mtime_ns

    with moves({".": ""}):
        utimensat("n", (1_000_000_000, 123_456_789), (1_100_000_000, 987_654_321), follow=False)
    assert stamps() == (1_000_000_000_123_456_789, 1_100_000_000_987_654_321)
    time.sleep(TICK)
    with moves({"n": ""}):
        utimensat("n", (0, UTIME_OMIT), (0, UTIME_OMIT), follow=False)
    before = os.lstat("n").st_ctime_ns
    utimensat("n", (5, 6), (0, UTIME_OMIT), follow=False)
    assert stamps() == (5_000_000_006, 1_100_000_000_987_654_321)
    assert os.lstat("n").st_ctime_ns > before
    with clock() as bounds:
        utimensat("n", (0, UTIME_OMIT), (0, UTIME_NOW), follow=False)
    assert stamps()[0] == 5_000_000_006
    assert bounds[0] <= stamps()[1] <= bounds[1]
    with clock() as bounds:
        utimensat("n", (0, UTIME_NOW), (7, 8), follow=False)
    assert bounds[0] <= stamps()[0] <= bounds[1]
    assert stamps()[1] == 7_000_000_008
    assert result(utimensat, "n", (0, 1_000_000_000), (0, 0), follow=False) == "EINVAL"
    assert result(utimensat, "n", (0, 0), (0, -1), follow=False) == "EINVAL"


@pytest.mark.parametrize(
    ("seconds", "nanoseconds"),
    [(0, 0), (-1, 0), (-1, 999_999_999), (-2_147_483_647, 1), (2**31, 5), (2**32, 6), (YEAR_2400, 7)],
)
def test_range_of_times(seconds: int, nanoseconds: int) -> None:
    """ext4 ends in 2446, so 2400 can be asked of anyone; it begins in 1901."""
    Path("f").touch()
    utimensat("f", (seconds, nanoseconds), (seconds, nanoseconds))
    expected = seconds * 1_000_000_000 + nanoseconds
    found = os.stat("f")
    assert (found.st_atime_ns, found.st_mtime_ns) == (expected, expected)


def test_who_may_set_times() -> None:
    """Any time: the owner. Now: who may write as well. Both omitted: nobody needs a right."""
    now, omit = (0, UTIME_NOW), (0, UTIME_OMIT)
    for mode, bobs_now in ((0o644, "EACCES"), (0o666, "ok")):
        Path("f").touch()
        os.chown("f", ALICE.uid, ALICE.gid)
        os.chmod("f", mode)
        assert result_as(ALICE, utimensat, "f", (1, 1), (1, 1)) == "ok"
        assert result_as(BOB, utimensat, "f", (1, 1), (1, 1)) == "EPERM"
        assert result_as(BOB, utimensat, "f", now, (1, 1)) == "EPERM"
        assert result_as(BOB, utimensat, "f", now, omit) == "EPERM"
        assert result_as(BOB, utimensat, "f", omit, omit) == "ok"
        assert result_as(BOB, utimensat, "f", now, now) == bobs_now
    os.chmod("f", 0o000)
    assert result_as(ALICE, utimensat, "f", now, now) == "ok"


def test_reading_and_writing() -> None:
    Path("f").write_bytes(b"x" * 10_000)
    os.mkdir("d")
    with moves({"f": "", "d": "", ".": ""}):
        Path("f").read_bytes()
        os.listdir("d")
        os.stat("f")
        os.access("f", os.R_OK)
        os.close(os.open("f", os.O_RDWR))
    fd = os.open("f", os.O_RDWR)
    with moves({"f": "mtime ctime", ".": ""}), clock() as bounds:
        os.pwrite(fd, b"y", 5)
    found = os.stat("f")
    assert bounds[0] <= found.st_mtime_ns <= bounds[1]
    assert found.st_mtime_ns == found.st_ctime_ns, "mtime and ctime of one write differ"
    with moves({"f": ""}):
        os.write(fd, b"")
    with moves({"f": ""}):
        os.fsync(fd)
        os.close(fd)


def test_a_set_time_survives_close_and_writeback() -> None:
    """tar and rsync set the time through the descriptor, with dirty pages behind it."""
    fd = os.open("f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x" * 300_000)
    os.utime(fd, ns=(1, 2))
    os.close(fd)
    assert os.stat("f").st_mtime_ns == 2
    fd = os.open("f", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    assert os.stat("f").st_mtime_ns == 2
