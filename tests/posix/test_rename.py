"""rename and renameat2: what replaces what, the two flags, stamps, and atomicity for readers."""

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.posix.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2, result
from tests.posix.matrix import make
from tests.posix.stamps import moves

pytestmark = pytest.mark.usefixtures("mnt")

KINDS = ["file", "dir", "symlink", "fifo", "socket"]


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
def test_replacing(old: str, new: str) -> None:
    make(old, "old")
    make(new, "new")
    number = os.lstat("old").st_ino
    expected = "ok"
    if old == "dir" and new != "dir":
        expected = "ENOTDIR"
    elif old != "dir" and new == "dir":
        expected = "EISDIR"
    assert result(os.rename, "old", "new") == expected
    if expected == "ok":
        assert os.listdir() == ["new"]
        assert os.lstat("new").st_ino == number
    else:
        assert sorted(os.listdir()) == ["new", "old"]


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", [*KINDS, "none"])
def test_flags(old: str, new: str) -> None:
    make(old, "old")
    make(new, "new")
    before = {name: os.lstat(name).st_ino for name in os.listdir()}
    taken = new != "none"
    assert result(renameat2, "old", "new", RENAME_NOREPLACE | RENAME_EXCHANGE) == "EINVAL"
    assert result(renameat2, "old", "new", 1 << 20) == "EINVAL"
    assert result(renameat2, "missing", "new", RENAME_EXCHANGE) == "ENOENT"
    assert result(renameat2, "old", "new", RENAME_EXCHANGE) == ("ok" if taken else "ENOENT")
    if taken:
        after = {name: os.lstat(name).st_ino for name in os.listdir()}
        assert after == {"old": before["new"], "new": before["old"]}
        assert result(renameat2, "old", "new", RENAME_NOREPLACE) == "EEXIST"
    else:
        assert result(renameat2, "old", "new", RENAME_NOREPLACE) == "ok"
        assert os.listdir() == ["new"]


def test_directories() -> None:
    os.makedirs("a/b/c")
    os.makedirs("full/x")
    os.mkdir("empty")
    for new in ("a/x", "a/b/x", "a/b/c/x", "a/b/c"):
        assert result(os.rename, "a", new) == "EINVAL", new
    assert result(os.rename, "a/b/c", "a") in ("ENOTEMPTY", "EEXIST")
    assert result(os.rename, "a", "full") in ("ENOTEMPTY", "EEXIST")
    assert result(renameat2, "a", "a/b", RENAME_EXCHANGE) == "EINVAL"
    assert result(renameat2, "a/b", "a", RENAME_EXCHANGE) in ("EINVAL", "ENOTEMPTY")
    assert result(os.rename, "a", "empty") == "ok"
    assert result(os.rename, "empty", "a") == "ok"
    assert result(renameat2, "a/b", "full", RENAME_EXCHANGE) == "ok"
    assert (os.listdir("full"), os.listdir("a/b")) == (["c"], ["x"])
    assert os.stat("full/..").st_ino == os.stat(".").st_ino
    assert os.stat("a/b/..").st_ino == os.stat("a").st_ino
    assert result(os.rename, "a", "/proc/a") == "EXDEV"


def test_exchange_of_a_file_and_a_directory_keeps_link_counts() -> None:
    for name in ("p", "q", "q/dir"):
        os.mkdir(name)
    Path("p/file").touch()
    counts = os.stat("p").st_nlink, os.stat("q").st_nlink
    renameat2("p/file", "q/dir", RENAME_EXCHANGE)
    assert Path("p/file").is_dir()
    assert Path("q/dir").is_file()
    assert (os.stat("p").st_nlink, os.stat("q").st_nlink) == counts[::-1]


def test_two_names_of_one_file() -> None:
    Path("a").touch()
    os.link("a", "b")
    with moves({"a": "", "b": ""}):
        os.rename("a", "b")
        os.rename("a", "a")
    assert sorted(os.listdir()) == ["a", "b"]
    assert os.stat("a").st_nlink == 2
    Path("c").touch()
    os.rename("c", "b")
    assert os.stat("a").st_nlink == 1


def test_stamps() -> None:
    """Both parents move. POSIX leaves the ctime of the node open; Linux file systems move it."""
    for name in ("p", "q"):
        os.mkdir(name)
    Path("p/f").touch()
    Path("q/f").touch()
    moved, replaced = os.open("p/f", os.O_RDONLY), os.open("q/f", os.O_RDONLY)
    with moves({"p": "mtime ctime", "q": "mtime ctime", moved: "ctime", replaced: "ctime"}):
        os.rename("p/f", "q/f")
    assert os.fstat(replaced).st_nlink == 0
    os.close(moved)
    os.close(replaced)
    with moves({"q": "", "p": ""}):
        assert result(os.rename, "q/missing", "q/x") == "ENOENT"
        assert result(os.rename, "q/f", "p") == "EISDIR"


def test_replaced_file_stays_usable_by_who_has_it_open() -> None:
    Path("f").write_bytes(b"old content")
    with open("f", "r+b", buffering=0) as held:
        Path("g").write_bytes(b"new")
        os.rename("g", "f")
        assert held.read() == b"old content"
        held.write(b"!")
        os.fsync(held.fileno())
        held.truncate(3)
        assert os.fstat(held.fileno()).st_size == 3
        assert os.fstat(held.fileno()).st_nlink == 0
    assert Path("f").read_bytes() == b"new"


def _until(stop: threading.Event, check: list[str], name: str, sizes: set[int]) -> None:
    while not stop.is_set():
        try:
            with open(name, "rb") as found:
                data = found.read()
        except OSError as failure:
            check.append(errno.errorcode[failure.errno or 0])
        else:
            if len(data) not in sizes or len(set(data)) != 1:
                check.append(f"torn: {len(data)} bytes")


def test_readers_never_miss_a_file_that_is_replaced() -> None:
    sizes = {100, 5000}
    Path("f").write_bytes(b"x" * 100)
    problems: list[str] = []
    stop = threading.Event()
    readers = [threading.Thread(target=_until, args=(stop, problems, "f", sizes)) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for round_number in range(300):
            temporary = f"tmp{round_number}"
            Path(temporary).write_bytes(b"ab"[round_number % 2 : round_number % 2 + 1] * (100, 5000)[round_number % 2])
            os.rename(temporary, "f")
        Path("g").write_bytes(b"c" * 100)
        for _ in range(300):
            renameat2("g", "f", RENAME_EXCHANGE)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert problems == []
