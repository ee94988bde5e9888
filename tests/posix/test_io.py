"""Reading and writing: offsets, append, vectors, mmap, O_DIRECT, several processes at once."""

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.posix.actors import Child, in_child
from tests.posix.calls import result
from tests.posix.stamps import moves

pytestmark = pytest.mark.usefixtures("mnt")

MIB = 1 << 20


@pytest.mark.parametrize("size", [1, 511, 4095, 4096, 4097, 65_536, MIB - 1, MIB, MIB + 1, 3 * MIB + 17])
def test_round_trip(size: int) -> None:
    data = os.urandom(size)
    Path("f").write_bytes(data)
    assert Path("f").read_bytes() == data
    assert os.stat("f").st_size == size
    with open("f", "r+b", buffering=0) as f:
        f.seek(size - 1)
        f.write(b"ab")
        assert os.pread(f.fileno(), size + 5, 0) == data[:-1] + b"ab"
        assert os.pread(f.fileno(), 5, size + 1) == b""


def test_gaps_read_as_zeros() -> None:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 5 * MIB)
    os.pwrite(fd, b"middle", 2 * MIB - 3)
    expected = bytes(2 * MIB - 3) + b"middle" + bytes(3 * MIB - 3) + b"end"
    assert os.pread(fd, 6 * MIB, 0) == expected
    assert os.pwritev(fd, [b"a", b"", b"bc" * 5000], 100) == 10_001
    into = bytearray(5), bytearray(9_996)
    assert os.preadv(fd, into, 100) == 10_001
    assert into[0] + into[1] == b"a" + b"bc" * 5000
    assert result(os.pread, fd, 1, -1) == "EINVAL"
    os.close(fd)
    fd = os.open("f", os.O_RDONLY)
    assert result(os.write, fd, b"x") == "EBADF"
    os.close(fd)
    fd = os.open(".", os.O_RDONLY)
    assert result(os.read, fd, 1) == "EISDIR"
    os.close(fd)


def test_append_ignores_the_offset() -> None:
    Path("f").write_bytes(b"start")
    fd = os.open("f", os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"-more")
    assert os.lseek(fd, 0, os.SEEK_CUR) == 10
    os.ftruncate(fd, 2)
    os.write(fd, b"!")
    assert os.pread(fd, 100, 0) == b"st!"
    os.close(fd)


def test_append_by_several_processes_loses_nothing() -> None:
    writers, lines = 4, 400

    def writer(number: int) -> Callable[[], None]:
        def act() -> None:
            fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            for line in range(lines):
                os.write(fd, f"{number} {line} {'x' * (line % 97)}\n".encode())
            os.close(fd)

        return act

    children = [Child(writer(number)) for number in range(writers)]
    for child in children:
        child.join()
    seen: dict[int, int] = dict.fromkeys(range(writers), 0)
    for text in Path("log").read_text().splitlines():
        number, line, padding = text.split(" ")
        assert int(line) == seen[int(number)]
        assert len(padding) == int(line) % 97
        seen[int(number)] += 1
    assert set(seen.values()) == {lines}


def test_writers_of_disjoint_ranges() -> None:
    os.close(os.open("f", os.O_WRONLY | os.O_CREAT))
    step, count = 5_003, 60

    def writer(number: int) -> Callable[[], None]:
        def act() -> None:
            fd = os.open("f", os.O_WRONLY)
            for slot in range(number, count, 4):
                os.pwrite(fd, bytes([slot + 1]) * step, slot * step)
            os.close(fd)

        return act

    for child in [Child(writer(number)) for number in range(4)]:
        child.join()
    assert Path("f").read_bytes() == b"".join(bytes([slot + 1]) * step for slot in range(count))


def test_shared_mapping() -> None:
    """Stores are seen by read(2) and by other processes; msync and the end of the map keep them."""
    Path("f").write_bytes(bytes(3 * MIB))
    with open("f", "r+b") as f, mmap.mmap(f.fileno(), 3 * MIB) as mapped:
        mapped[MIB - 2 : MIB + 3] = b"store"
        assert os.pread(f.fileno(), 5, MIB - 2) == b"store"
        os.pwrite(f.fileno(), b"write", 2 * MIB)
        assert mapped[2 * MIB : 2 * MIB + 5] == b"write"
        assert in_child(lambda: Path("f").read_bytes()[MIB - 2 : MIB + 3]) == b"store"

        def store() -> None:
            with open("f", "r+b") as g, mmap.mmap(g.fileno(), 0) as other:
                other[10:15] = b"child"

        in_child(store)
        assert mapped[10:15] == b"child"
        mapped.flush()
        mapped[0:4] = b"last"
    expected = bytearray(3 * MIB)
    expected[0:4], expected[10:15], expected[MIB - 2 : MIB + 3] = b"last", b"child", b"store"
    expected[2 * MIB : 2 * MIB + 5] = b"write"
    assert Path("f").read_bytes() == expected


def test_mapping_moves_mtime_and_outlives_the_name() -> None:
    Path("f").write_bytes(bytes(MIB))
    with open("f", "r+b") as f:
        mapped = mmap.mmap(f.fileno(), MIB)
    with moves({"f": "mtime ctime"}):
        mapped[5] = 1
        mapped.flush()
    os.unlink("f")
    mapped[6] = 2
    mapped.flush()
    assert mapped[4:8] == b"\0\1\2\0"
    mapped.close()


def test_private_mapping_stays_private() -> None:
    Path("f").write_bytes(b"public" + bytes(5000))
    with open("f", "r+b") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:6] = b"secret"
        assert os.pread(f.fileno(), 6, 0) == b"public"
    assert Path("f").read_bytes()[:6] == b"public"


def test_partial_page_behind_the_end_is_zero() -> None:
    Path("f").write_bytes(b"x" * 100)
    with open("f", "r+b") as f:
        mapped = mmap.mmap(f.fileno(), 100)
        os.ftruncate(f.fileno(), 50)
        os.ftruncate(f.fileno(), 100)
        assert mapped[:] == b"x" * 50 + bytes(50)
        mapped.close()


def test_direct_io(lacks: Callable[[str], NoReturn]) -> None:
    """Aligned direct I/O and cached I/O see each other. File systems may refuse O_DIRECT."""
    Path("f").write_bytes(b"c" * 3 * 4096)
    try:
        fd = os.open("f", os.O_RDWR | os.O_DIRECT)
    except OSError as failure:
        assert failure.errno == errno.EINVAL
        lacks("O_DIRECT")
    with mmap.mmap(-1, 8192) as aligned:
        aligned[:] = b"d" * 8192
        assert os.pwritev(fd, [aligned], 4096) == 8192
        assert Path("f").read_bytes() == b"c" * 4096 + b"d" * 8192
        with open("f", "r+b", buffering=0) as cached:
            cached.write(b"e" * 4096)
            assert os.preadv(fd, [aligned], 0) == 8192
        assert aligned[:] == b"e" * 4096 + b"d" * 4096
    os.close(fd)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes(flag: int) -> None:
    fd = os.open("f", os.O_WRONLY | os.O_CREAT | flag)
    assert os.write(fd, b"x" * 10_000) == 10_000
    os.fdatasync(fd)
    os.close(fd)
    directory = os.open(".", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert Path("f").read_bytes() == b"x" * 10_000


def test_sendfile_and_splice() -> None:
    data = os.urandom(2 * MIB + 9)
    Path("f").write_bytes(data)
    source, target = os.open("f", os.O_RDONLY), os.open("g", os.O_RDWR | os.O_CREAT)
    done = 0
    while done < len(data):
        done += os.sendfile(target, source, done, len(data) - done)
    assert os.pread(target, len(data) + 1, 0) == data
    os.close(source)
    os.close(target)
