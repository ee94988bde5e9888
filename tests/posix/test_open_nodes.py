"""Nodes without a name: O_TMPFILE, unlinked and replaced files, removed directories, O_PATH."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.posix.actors import ALICE, BOB, in_child, result_as
from tests.posix.calls import linkat_fd, result
from tests.posix.stamps import moves

pytestmark = pytest.mark.usefixtures("mnt")

MIB = 1 << 20


def _temporary(directory: str, lacks: Callable[[str], NoReturn], flags: int = 0) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | flags, 0o640)
    except OSError as failure:
        if failure.errno in (errno.EOPNOTSUPP, errno.EISDIR):
            lacks("O_TMPFILE")
        raise


def test_tmpfile_gets_a_name(lacks: Callable[[str], NoReturn]) -> None:
    os.mkdir("d")
    with moves({"d": ""}):
        fd = _temporary("d", lacks)
    assert os.listdir("d") == []
    assert (os.fstat(fd).st_nlink, stat.S_IMODE(os.fstat(fd).st_mode)) == (0, 0o640)
    os.write(fd, b"content " * 50_000)
    os.setxattr(fd, "user.k", b"v")
    os.fsync(fd)
    with moves({".": "mtime ctime", "d": "", fd: "ctime"}):
        linkat_fd(fd, "named")
    os.rmdir("d")
    assert os.fstat(fd).st_nlink == os.stat("named").st_nlink == 1
    assert os.stat("named").st_ino == os.fstat(fd).st_ino
    os.write(fd, b"more")
    os.close(fd)
    assert Path("named").read_bytes() == b"content " * 50_000 + b"more"
    assert os.getxattr("named", "user.k") == b"v"


def test_tmpfile_rules(lacks: Callable[[str], NoReturn]) -> None:
    os.mkdir("d")
    fd = _temporary("d", lacks, os.O_EXCL)
    assert result(linkat_fd, fd, "named") == "ENOENT"
    os.close(fd)
    fd = _temporary("d", lacks)
    os.write(fd, b"x")
    Path("taken").touch()
    assert result(linkat_fd, fd, "taken") == "EEXIST"
    os.rmdir("d")
    os.write(fd, b"y")
    assert os.pread(fd, 5, 0) == b"xy"
    os.close(fd)
    os.mkdir("private", 0o700)
    assert result_as(BOB, os.open, "private", os.O_TMPFILE | os.O_RDWR) == "EACCES"
    assert result(os.open, "taken", os.O_TMPFILE | os.O_RDWR) == "ENOTDIR"
    assert result(os.open, ".", os.O_TMPFILE) == "EINVAL"


def test_unlinked_file_is_a_whole_file() -> None:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"before")
    with moves({fd: "ctime"}):
        os.unlink("f")
    os.pwrite(fd, b"x" * 2 * MIB, 1000)
    os.fsync(fd)
    found = os.fstat(fd)
    assert (found.st_nlink, found.st_size) == (0, 2 * MIB + 1000)
    os.ftruncate(fd, 3)
    assert os.pread(fd, 10, 0) == b"bef"
    os.fchmod(fd, 0o123)
    os.fchown(fd, ALICE.uid, ALICE.gid)
    os.utime(fd, ns=(1, 2))
    os.setxattr(fd, "user.k", b"v")
    os.posix_fallocate(fd, 0, 100)
    found = os.fstat(fd)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_size) == (0o123, ALICE.uid, 100)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.pwrite(again, b"AGAIN", 0)
    assert os.pread(fd, 5, 0) == b"AGAIN"
    assert result(linkat_fd, fd, "back") == "ENOENT"
    os.close(again)
    os.close(fd)
    assert os.listdir() == []


def test_inode_numbers_are_not_used_again_while_held() -> None:
    """A descriptor of a removed file must never come to mean a new file."""
    held = []
    for number in range(50):
        fd = os.open(f"f{number}", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"private %d" % number)
        os.unlink(f"f{number}")
        held.append(fd)
    numbers = {os.fstat(fd).st_ino for fd in held}
    assert len(numbers) == 50
    for number in range(200):
        Path(f"new{number}").write_bytes(b"public")
        assert os.stat(f"new{number}").st_ino not in numbers
    for number, fd in enumerate(held):
        os.pwrite(fd, b"still mine", 100)
        assert os.pread(fd, 20, 0).rstrip(b"\0") == b"private %d" % number
        os.close(fd)
    assert all(Path(f"new{number}").read_bytes() == b"public" for number in range(200))


def test_removed_open_directory() -> None:
    os.mkdir("d")
    fd = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir("d")
    assert os.fstat(fd).st_nlink in (0, 1)  # 1 where directories have no counts
    assert [name for name in os.listdir(fd) if name not in (".", "..")] == []
    assert result(os.open, "f", os.O_CREAT | os.O_WRONLY, dir_fd=fd) == "ENOENT"
    assert result(os.mkdir, "sub", dir_fd=fd) == "ENOENT"
    assert result(os.stat, "x", dir_fd=fd) == "ENOENT"
    Path("f").touch()
    assert result(os.rename, "f", "g", dst_dir_fd=fd) == "ENOENT"
    os.fchmod(fd, 0o700)
    os.fsync(fd)
    os.mkdir("d")
    assert os.stat("d").st_ino != os.fstat(fd).st_ino
    os.close(fd)


def test_removed_working_directory(mnt: Path) -> None:
    os.mkdir("d")

    def act() -> list[str]:
        os.chdir("d")
        os.rmdir(mnt / "d")
        seen = [result(os.getcwd), result(os.stat, "."), result(os.listdir, ".")]
        seen += [result(os.open, "f", os.O_CREAT | os.O_WRONLY), result(os.mkdir, "sub")]
        return [*seen, result(os.stat, "..")]

    seen = in_child(act)
    # listdir gives nothing or ENOENT: the kernel refuses readdir of a dead directory.
    assert seen[2] in ("ok", "ENOENT")
    assert seen[:2] + seen[3:] == ["ENOENT", "ok", "ENOENT", "ENOENT", "ok"]


def test_path_descriptors() -> None:
    Path("f").write_bytes(b"abc")
    os.chmod("f", 0o644)
    fd = os.open("f", os.O_PATH)
    os.rename("f", "g")
    assert os.fstat(fd).st_size == 3
    assert result(os.read, fd, 1) == "EBADF"
    assert result(os.fchmod, fd, 0o600) == "EBADF"
    assert result(os.ftruncate, fd, 0) in ("EBADF", "EINVAL")
    os.chmod(f"/proc/self/fd/{fd}", 0o600)
    assert stat.S_IMODE(os.stat("g").st_mode) == 0o600
    os.unlink("g")
    assert os.fstat(fd).st_nlink == 0
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.read(again, 10) == b"abc"
    os.close(again)
    os.close(fd)
    os.symlink("nowhere", "l")
    fd = os.open("l", os.O_PATH | os.O_NOFOLLOW)
    os.unlink("l")
    assert stat.S_ISLNK(os.fstat(fd).st_mode)
    assert os.readlink("", dir_fd=fd) == "nowhere"
    os.close(fd)
    os.mkdir("d")
    Path("d/f").write_bytes(b"inside")
    fd = os.open("d", os.O_PATH | os.O_DIRECTORY)
    os.rename("d", "e")
    inner = os.open("f", os.O_RDONLY, dir_fd=fd)
    assert os.read(inner, 10) == b"inside"
    os.close(inner)
    os.close(fd)


def test_many_open_unlinked_files_are_independent() -> None:
    held: list[int] = []
    for number in range(100):
        fd = os.open("same-name", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.write(fd, bytes([number]) * 5000)
        os.unlink("same-name")
        held.append(fd)
    for number, fd in enumerate(held):
        assert os.pread(fd, 6000, 0) == bytes([number]) * 5000
        os.close(fd)
