"""Sparse files: st_blocks, SEEK_DATA and SEEK_HOLE, fallocate modes, copy_file_range."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.posix.calls import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    fallocate,
    result,
)
from tests.posix.stamps import moves

pytestmark = pytest.mark.usefixtures("mnt")

MIB = 1 << 20
Lacks = Callable[[str], NoReturn]


@pytest.fixture
def fd(mnt: Path) -> Iterator[int]:
    """An empty file `f`, open for reading and writing."""
    opened = os.open(mnt / "f", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def _data_ranges(fd: int) -> list[tuple[int, int]]:
    """What SEEK_DATA and SEEK_HOLE say is data, as (start, end); checks their own rules on the way."""
    size, position, ranges = os.fstat(fd).st_size, 0, []
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as failure:
            assert failure.errno == errno.ENXIO
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        assert position <= start < end <= size
        assert os.lseek(fd, start, os.SEEK_DATA) == start
        ranges.append((start, end))
        position = end
    return ranges


def _assert_truthful(fd: int, content: bytes) -> list[tuple[int, int]]:
    """Outside of the reported data there are only zeros, so a copy of the data alone is a true copy."""
    ranges = _data_ranges(fd)
    rebuilt = bytearray(len(content))
    for start, end in ranges:
        rebuilt[start:end] = os.pread(fd, end - start, start)
    assert os.fstat(fd).st_size == len(content)
    assert rebuilt == content, "SEEK_DATA hides bytes"
    assert os.pread(fd, len(content) + 1, 0) == content
    return ranges


@pytest.mark.parametrize("synced", [False, True], ids=["dirty", "synced"])
def test_seek_data_and_hole(fd: int, synced: bool) -> None:
    content = bytearray(40 * MIB)
    for offset, length in ((0, 5), (3 * MIB - 7, 20), (17 * MIB + 100_000, 3 * MIB), (40 * MIB - 1, 1)):
        content[offset : offset + length] = b"d" * length
        os.pwrite(fd, b"d" * length, offset)
    if synced:
        os.fsync(fd)
    ranges = _assert_truthful(fd, bytes(content))
    assert ranges[0][0] == 0
    assert sum(end - start for start, end in ranges) < 12 * MIB, "the holes are not reported"
    assert os.lseek(fd, 0, os.SEEK_HOLE) <= 3 * MIB - 7
    for position in (40 * MIB, 41 * MIB):
        assert result(os.lseek, fd, position, os.SEEK_DATA) == "ENXIO"
        assert result(os.lseek, fd, position, os.SEEK_HOLE) == "ENXIO"


def test_seek_in_a_file_without_data_and_in_a_full_one(fd: int) -> None:
    assert result(os.lseek, fd, 0, os.SEEK_DATA) == "ENXIO"
    os.ftruncate(fd, 5 * MIB)
    assert _data_ranges(fd) == []
    assert os.lseek(fd, 7, os.SEEK_HOLE) == 7
    os.pwrite(fd, b"x" * 5 * MIB, 0)
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 5 * MIB
    assert _data_ranges(fd) == [(0, 5 * MIB)]


def test_blocks_of_sparse_files(fd: int) -> None:
    os.ftruncate(fd, 1 << 30)
    assert os.fstat(fd).st_blocks * 512 <= 64 * 1024
    os.pwrite(fd, b"x" * 4 * MIB, 512 * MIB)
    os.fsync(fd)
    assert 4 * MIB <= os.fstat(fd).st_blocks * 512 <= 8 * MIB
    os.ftruncate(fd, 0)
    assert os.fstat(fd).st_blocks * 512 <= 64 * 1024
    os.pwrite(fd, b"x" * 100_000, 0)
    os.fsync(fd)
    assert os.fstat(fd).st_blocks * 512 >= 100_000


def test_old_bytes_do_not_come_back_when_a_file_grows_again(fd: int) -> None:
    for cut in (1, 4095, 4096, 5000, MIB + 1):
        os.pwrite(fd, b"o" * 3 * MIB, 0)
        os.ftruncate(fd, cut)
        os.ftruncate(fd, 2 * MIB)
        assert os.pread(fd, 3 * MIB, 0) == b"o" * cut + bytes(2 * MIB - cut)
        os.ftruncate(fd, cut)
        os.pwrite(fd, b"n", 2 * MIB)
        assert os.pread(fd, 3 * MIB, 0) == b"o" * cut + bytes(2 * MIB - cut) + b"n"


@pytest.mark.parametrize("synced", [False, True], ids=["dirty", "synced"])
@pytest.mark.parametrize(
    ("mode", "name"),
    [(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, "punch"), (FALLOC_ZERO_RANGE, "zero")],
    ids=["punch", "zero"],
)
def test_clearing_ranges(fd: int, mode: int, name: str, synced: bool, lacks: Lacks) -> None:
    size = 3 * MIB + 123
    content = bytearray(os.urandom(size))
    os.pwrite(fd, content, 0)
    for offset, length in ((0, 1), (10, 5000), (4096, 8192), (MIB - 1, 2), (MIB, MIB), (2 * MIB + 5, MIB)):
        if synced:
            os.fsync(fd)
        try:
            with moves({"f": "mtime ctime"}):
                fallocate(fd, mode, offset, length)
        except OSError as failure:
            if failure.errno == errno.EOPNOTSUPP:
                lacks(f"fallocate: {name}")
            raise
        content[offset : offset + length] = bytes(length)
        _assert_truthful(fd, bytes(content))
    fallocate(fd, mode | FALLOC_KEEP_SIZE, size - 10, MIB)
    content[-10:] = bytes(10)
    _assert_truthful(fd, bytes(content))
    if name == "zero":
        fallocate(fd, mode, size - 10, MIB)
        _assert_truthful(fd, bytes(content) + bytes(MIB - 10))


def test_punching_frees_space(fd: int) -> None:
    os.pwrite(fd, b"x" * 8 * MIB, 0)
    os.fsync(fd)
    fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, MIB, 6 * MIB)
    os.fsync(fd)
    assert os.fstat(fd).st_blocks * 512 <= 4 * MIB
    assert os.lseek(fd, 0, os.SEEK_HOLE) <= 2 * MIB


def test_keep_size_and_errors(fd: int) -> None:
    os.pwrite(fd, b"abc", 0)
    fallocate(fd, FALLOC_KEEP_SIZE, 0, MIB)
    assert os.fstat(fd).st_size == 3
    assert os.pread(fd, 100, 0) == b"abc"
    fallocate(fd, 0, 0, MIB)
    assert os.pread(fd, 2 * MIB, 0) == b"abc" + bytes(MIB - 3)
    assert result(fallocate, fd, FALLOC_PUNCH_HOLE, 0, 10) == "EOPNOTSUPP"
    assert result(fallocate, fd, FALLOC_KEEP_SIZE, 0, 0) == "EINVAL"
    assert result(fallocate, fd, FALLOC_KEEP_SIZE, -1, 5) == "EINVAL"
    assert result(fallocate, fd, 1 << 20, 0, 5) == "EOPNOTSUPP"
    reader = os.open("f", os.O_RDONLY)
    assert result(fallocate, reader, 0, 0, 5) == "EBADF"
    os.close(reader)


@pytest.mark.parametrize("synced", [False, True], ids=["dirty", "synced"])
def test_copy_file_range(fd: int, synced: bool) -> None:
    source = bytearray(os.urandom(5 * MIB + 77))
    source[MIB : 3 * MIB] = bytes(2 * MIB)
    os.pwrite(fd, source[:MIB], 0)
    os.pwrite(fd, source[3 * MIB :], 3 * MIB)
    target = os.open("g", os.O_RDWR | os.O_CREAT)
    model = bytearray()
    cases = [
        (0, 0, 5 * MIB + 77),
        (MIB, 2 * MIB, MIB),
        (7, 4 * MIB + 3, 123_456),
        (3 * MIB, 0, 2 * MIB),
        (0, 6 * MIB, 10),
    ]
    for start, to, length in cases:
        if synced:
            os.fsync(fd)
            os.fsync(target)
        done = 0
        with moves({"f": "", "g": "mtime ctime"}):
            while done < length:
                count = os.copy_file_range(fd, target, length - done, start + done, to + done)
                assert count > 0
                done += count
        model.extend(bytes(max(0, to + length - len(model))))
        model[to : to + length] = source[start : start + length]
        assert os.pread(target, 8 * MIB, 0) == model
    os.pwrite(fd, b"changed", 0)
    os.pwrite(target, b"also changed", 3 * MIB)
    model[3 * MIB : 3 * MIB + 12] = b"also changed"
    assert os.pread(target, 8 * MIB, 0) == model
    assert os.pread(fd, 20, 3 * MIB) == source[3 * MIB : 3 * MIB + 20]
    assert os.copy_file_range(fd, target, 100, 6 * MIB, 0) == 0
    assert result(os.copy_file_range, fd, fd, 100, 0, 50) == "EINVAL"
    assert os.copy_file_range(fd, fd, 100, 0, 4 * MIB) == 100
    assert os.pread(fd, 7, 4 * MIB) == b"changed"
    os.close(target)
