"""unlink, rmdir, link, symlink: errors, link counts and stamps."""

import os
from pathlib import Path

import pytest

from tests.posix.actors import ALICE, BOB, result_as
from tests.posix.calls import result
from tests.posix.matrix import make
from tests.posix.stamps import moves

pytestmark = pytest.mark.usefixtures("mnt")

KINDS = ["file", "symlink", "fifo", "socket"]


@pytest.mark.parametrize("kind", KINDS)
def test_unlink(kind: str) -> None:
    os.mkdir("d")
    make(kind, "d/n")
    assert result(os.rmdir, "d/n") == "ENOTDIR"
    held = os.open("d/n", os.O_PATH | os.O_NOFOLLOW)
    with moves({"d": "mtime ctime", held: "ctime"}):
        os.unlink("d/n")
    assert os.fstat(held).st_nlink == 0
    os.close(held)
    assert result(os.unlink, "d/n") == "ENOENT"
    assert os.listdir("d") == []


@pytest.mark.parametrize("kind", KINDS)
def test_link(kind: str) -> None:
    make(kind, "n")
    os.mkdir("d")
    for count, name in enumerate(("d/1", "d/2"), start=2):
        with moves({"n": "ctime", "d": "mtime ctime"}):
            os.link("n", name, follow_symlinks=False)
        assert os.lstat("n").st_nlink == os.lstat(name).st_nlink == count
        assert os.lstat("n").st_ino == os.lstat(name).st_ino
    with moves({"d/2": "ctime", "d": ""}):
        os.unlink("n")
    assert os.lstat("d/1").st_nlink == 2
    with moves({"d/2": "ctime", "d": "mtime ctime"}):
        os.unlink("d/1")
    assert os.lstat("d/2").st_nlink == 1


def test_link_shares_everything() -> None:
    Path("a").write_bytes(b"one")
    os.link("a", "b")
    with open("b", "ab") as other:
        other.write(b" two")
    os.chmod("b", 0o604)
    os.chown("a", 3, 4)
    os.setxattr("b", "user.k", b"v")
    a, b = os.stat("a"), os.stat("b")
    assert a == b
    assert Path("a").read_bytes() == b"one two"
    assert os.getxattr("a", "user.k") == b"v"


def test_link_errors() -> None:
    os.mkdir("d")
    Path("f").touch()
    assert result(os.link, "d", "e") == "EPERM"
    assert result(os.link, "f", "d") == "EEXIST"
    assert result(os.link, "f", "f") == "EEXIST"
    assert result(os.link, "missing", "e") == "ENOENT"
    assert result(os.link, "/proc/version", "e") == "EXDEV"
    assert result_as(ALICE, os.link, "d", "e") == "EPERM"
    assert sorted(os.listdir()) == ["d", "f"]


def test_many_links() -> None:
    Path("f").touch()
    for number in range(200):
        os.link("f", f"l{number}")
    assert os.stat("f").st_nlink == 201
    for number in range(200):
        os.unlink(f"l{number}")
    assert os.stat("f").st_nlink == 1


def test_directories_are_not_unlinked() -> None:
    """Linux says EISDIR where POSIX would have EPERM."""
    os.makedirs("d/sub")
    assert result(os.unlink, "d") == "EISDIR"
    assert result_as(ALICE, os.unlink, "d") == "EISDIR"
    assert result(os.unlink, "d/sub") == "EISDIR"
    os.symlink("d", "l")
    assert result(os.rmdir, "l") == "ENOTDIR"
    os.unlink("l")
    assert os.path.isdir("d/sub")


@pytest.mark.parametrize("kind", [*KINDS, "dir"])
def test_rmdir(kind: str) -> None:
    os.makedirs("p/d")
    make(kind, "p/d/entry")
    with moves({"p": "", "p/d": ""}):
        assert result(os.rmdir, "p/d") in ("ENOTEMPTY", "EEXIST")
    (os.rmdir if kind == "dir" else os.unlink)("p/d/entry")
    with moves({"p": "mtime ctime"}):
        os.rmdir("p/d")
    assert result(os.rmdir, "p/d") == "ENOENT"


def test_symlinks() -> None:
    for length in (1, 59, 60, 61, 255, 1023, 4095):
        target = ("0123456789" * 410)[:length]
        os.symlink(target, f"l{length}")
        assert os.readlink(f"l{length}") == target
        assert os.lstat(f"l{length}").st_size == length
    assert result(os.symlink, "t" * 4096, "long") == "ENAMETOOLONG"
    assert result(os.symlink, "", "empty") == "ENOENT"
    assert os.lstat("l1").st_mode & 0o7777 == 0o777
    Path("f").touch()
    assert result(os.readlink, "f") == "EINVAL"
    assert result_as(BOB, os.symlink, "anything", "bobs") == "ok"
    assert (os.lstat("bobs").st_uid, os.lstat("bobs").st_gid) == (BOB.uid, BOB.gid)
