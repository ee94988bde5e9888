"""Listing: complete, without repeats, with stable positions, also while entries come and go."""

import os
import stat
from pathlib import Path

import pytest

from tests.posix.calls import DirStream
from tests.posix.matrix import make

pytestmark = pytest.mark.usefixtures("mnt")

COUNT = 10_000


def _names(count: int) -> set[bytes]:
    return {b"entry-%06d" % number for number in range(count)}


def _fill(directory: str, count: int) -> None:
    os.mkdir(directory)
    fd = os.open(directory, os.O_RDONLY)
    for name in _names(count):
        os.mknod(name, stat.S_IFREG | 0o644, dir_fd=fd)
    os.close(fd)


def test_a_listing_that_deletes_what_it_finds() -> None:
    """What rm -rf does: every entry is seen exactly once although the directory shrinks."""
    _fill("d", COUNT)
    seen: list[bytes] = []
    with DirStream("d") as stream:
        for name, _, _ in stream:
            if name not in (b".", b".."):
                seen.append(name)
                os.unlink(b"d/" + name)
    assert len(seen) == COUNT
    assert set(seen) == _names(COUNT)
    os.rmdir("d")


def test_entries_that_stay_are_seen_once_while_others_change() -> None:
    _fill("d", 3000)
    staying = {name for name in _names(3000) if int(name[-6:]) % 3}
    doomed = sorted(_names(3000) - staying)
    seen: list[bytes] = []
    with DirStream("d") as stream:
        for turn, (name, _, _) in enumerate(stream):
            seen.append(name)
            if turn % 3 == 0 and doomed:
                os.unlink(b"d/" + doomed.pop())
                Path(f"d/new-{turn}").touch()
    stayed = [name for name in seen if name in staying]
    assert len(stayed) == len(staying)
    assert len(set(seen)) == len(seen)


def test_positions() -> None:
    """telldir's value leads back to the entry that followed, in any order and after deletions."""
    _fill("d", 500)
    with DirStream("d") as stream:
        places: list[tuple[int, bytes]] = []
        while True:
            position = stream.tell()
            entry = stream.read()
            if entry is None:
                break
            places.append((position, entry[0]))
        assert {name for _, name in places} == _names(500) | {b".", b".."}
        for position, name in places[::-7]:
            stream.seek(position)
            entry = stream.read()
            assert entry is not None
            assert entry[0] == name
        removed = {name for _, name in places[100:200] if name not in (b".", b"..")}
        for name in removed:
            os.unlink(b"d/" + name)
        stream.seek(places[300][0])
        rest = [name for name, _, _ in stream]
        assert rest == [name for _, name in places[300:]]
        stream.seek(places[0][0])
        assert {name for name, _, _ in stream} >= _names(500) - removed


def test_types_and_inode_numbers() -> None:
    """d_type may be unknown (0) in POSIX's eyes; where it is given it is right, and d_ino is st_ino."""
    for kind in ("file", "dir", "symlink", "fifo", "socket"):
        make(kind, kind)
    with DirStream(".") as stream:
        entries = {os.fsdecode(name): (number, kind) for name, number, kind in stream}
    assert entries["."][0] == os.stat(".").st_ino
    for name in ("file", "dir", "symlink", "fifo", "socket"):
        number, d_type = entries[name]
        assert number == os.lstat(name).st_ino
        assert d_type in (0, stat.S_IFMT(os.lstat(name).st_mode) >> 12)
    with os.scandir(".") as entries_of_python:
        for entry in entries_of_python:
            assert entry.is_dir() == (entry.name == "dir")
            assert entry.is_symlink() == (entry.name == "symlink")


def test_changes_are_listed_at_once() -> None:
    _fill("d", 10)
    with DirStream("d") as stream:
        assert len(list(stream)) == 12
        Path("d/added").touch()
        os.unlink("d/entry-000000")
        os.rename("d/entry-000001", "d/renamed")
        stream.seek(0)  # what rewinddir does, except for its cookie: listings below use a new stream
    expected = {name.decode() for name in _names(10)} - {"entry-000000", "entry-000001"} | {
        "added",
        "renamed",
    }
    assert set(os.listdir("d")) == expected


def test_long_names_fill_many_buffers() -> None:
    os.mkdir("d")
    names = {f"{number:04d}" + "é" * 125 + "x" for number in range(400)}
    for name in names:
        assert len(name.encode()) == 255
        Path("d", name).touch()
    assert set(os.listdir("d")) == names


def test_deep_trees() -> None:
    """A path longer than PATH_MAX can be made and removed step by step, as rm -rf does."""
    depth, name = 40, "n" * 200
    fds = [os.open(".", os.O_RDONLY)]
    for _ in range(depth):
        os.mkdir(name, dir_fd=fds[-1])
        fds.append(os.open(name, os.O_RDONLY, dir_fd=fds[-1]))
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fds[-1]))
    os.unlink("leaf", dir_fd=fds[-1])
    os.close(fds.pop())
    while fds:
        os.rmdir(name, dir_fd=fds[-1])
        os.close(fds.pop())
    assert os.listdir() == []
