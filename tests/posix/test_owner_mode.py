"""chmod and chown: who may, what changes, and when setuid and setgid bits are cleared."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.actors import ALICE, BOB, MEMBER, User, in_child, result_as
from tests.posix.calls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate, result
from tests.posix.matrix import make
from tests.posix.stamps import moves

pytestmark = pytest.mark.usefixtures("mnt")

KINDS = ["file", "dir", "fifo", "socket"]


def _mode(path: str) -> str:
    return oct(stat.S_IMODE(os.lstat(path).st_mode))


def _owned(path: str, user: User = ALICE, mode: int = 0o644) -> None:
    Path(path).touch()
    os.chown(path, user.uid, user.gid)
    os.chmod(path, mode)


@pytest.mark.parametrize("kind", KINDS)
def test_chmod(kind: str) -> None:
    make(kind, "n")
    os.symlink("n", "l")
    for mode in (0o000, 0o111, 0o644, 0o777, 0o1755, 0o4711, 0o2755, 0o7777):
        os.chmod("n", mode)
        assert _mode("n") == oct(mode)
    with moves({"n": "ctime", "l": "", ".": ""}):
        os.chmod("l", 0o540)
    assert _mode("n") == oct(0o540)
    with moves({"n": ""}):
        assert result_as(ALICE, os.chmod, "n", 0o777) == "EPERM"
    with moves({"n": "ctime"}):
        os.chmod("n", 0o540)


def test_who_may_chmod() -> None:
    _owned("f")
    assert result_as(ALICE, os.chmod, "f", 0o640) == "ok"
    assert result_as(BOB, os.chmod, "f", 0o777) == "EPERM"
    assert result_as(MEMBER, os.chmod, "f", 0o777) == "EPERM"
    assert _mode("f") == oct(0o640)


def test_chmod_by_a_stranger_to_the_group_drops_setgid() -> None:
    _owned("f")
    os.chown("f", ALICE.uid, BOB.gid)
    assert result_as(ALICE, os.chmod, "f", 0o2755) == "ok"
    assert _mode("f") == oct(0o755)
    os.chown("f", ALICE.uid, ALICE.gid)
    assert result_as(ALICE, os.chmod, "f", 0o2755) == "ok"
    assert _mode("f") == oct(0o2755)


@pytest.mark.parametrize("kind", [*KINDS, "symlink"])
def test_chown(kind: str) -> None:
    make(kind, "n")
    with moves({"n": "ctime", ".": ""}):
        os.lchown("n", 123, 456)
    assert (os.lstat("n").st_uid, os.lstat("n").st_gid) == (123, 456)
    os.lchown("n", -1, 7)
    os.lchown("n", 8, -1)
    assert (os.lstat("n").st_uid, os.lstat("n").st_gid) == (8, 7)
    os.lchown("n", 2**32 - 2, 2**31)
    assert (os.lstat("n").st_uid, os.lstat("n").st_gid) == (2**32 - 2, 2**31)


def test_chown_follows_links_and_lchown_does_not() -> None:
    Path("f").touch()
    os.symlink("f", "l")
    with moves({"f": "ctime", "l": ""}):
        os.chown("l", 5, 6)
    with moves({"f": "", "l": "ctime"}):
        os.lchown("l", 7, 8)
    assert (os.stat("f").st_uid, os.lstat("l").st_uid) == (5, 7)
    fd = os.open("f", os.O_RDONLY)
    os.unlink("f")
    os.fchown(fd, 9, 10)
    os.fchmod(fd, 0o111)
    found = os.fstat(fd)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (9, 10, 0o111)
    os.close(fd)


def test_who_may_chown() -> None:
    in_both = User(ALICE.uid, ALICE.gid, (BOB.gid,))
    _owned("f")
    table: list[tuple[User, int, int, str]] = [
        (ALICE, BOB.uid, -1, "EPERM"),
        (ALICE, BOB.uid, ALICE.gid, "EPERM"),
        (ALICE, -1, BOB.gid, "EPERM"),
        (ALICE, ALICE.uid, ALICE.gid, "ok"),
        (in_both, -1, BOB.gid, "ok"),
        (in_both, ALICE.uid, ALICE.gid, "ok"),
        (in_both, BOB.uid, BOB.gid, "EPERM"),
        (BOB, BOB.uid, BOB.gid, "EPERM"),
        (BOB, -1, BOB.gid, "EPERM"),
        (MEMBER, -1, ALICE.gid, "EPERM"),
    ]
    for user, uid, gid, expected in table:
        assert result_as(user, os.chown, "f", uid, gid) == expected, (user, uid, gid)
    assert (os.stat("f").st_uid, os.stat("f").st_gid) == (ALICE.uid, ALICE.gid)


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o6755, 0o755), (0o4755, 0o755), (0o2755, 0o755), (0o2745, 0o2745), (0o4644, 0o644), (0o1755, 0o1755)],
)
def test_chown_clears_setuid_and_setgid_of_programs(before: int, after: int) -> None:
    """setgid without group execution was mandatory locking once: it stays.

    Root's chown clears as well on Linux, and directories keep their bits.
    """
    member = User(ALICE.uid, ALICE.gid, (BOB.gid,))
    _owned("f", mode=before)
    assert result_as(member, os.chown, "f", -1, BOB.gid) == "ok"
    # A caller outside the new group loses setgid in every case; this one is inside.
    assert _mode("f") == oct(after)
    os.chmod("f", before)
    os.chown("f", 0, 0)
    assert _mode("f") == oct(after)
    os.mkdir("d")
    os.chmod("d", 0o6755)
    os.chown("d", 5, 5)
    assert _mode("d") == oct(0o6755)


def _write(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"x")
    os.fsync(fd)
    os.close(fd)


def _ftruncate(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.ftruncate(fd, 3)
    os.close(fd)


def _punch(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 4096)
    os.close(fd)


CHANGERS: dict[str, Callable[[str], None]] = {
    "write": _write,
    "truncate": lambda path: os.truncate(path, 5),
    "ftruncate": _ftruncate,
    "open-trunc": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "punch": _punch,
}


@pytest.mark.parametrize("changer", CHANGERS)
def test_a_write_by_others_clears_setuid(changer: str) -> None:
    """Root's own changes keep the bits; those of a caller without CAP_FSETID clear them."""
    change = CHANGERS[changer]
    for mode, after in [(0o6777, 0o777), (0o4777, 0o777), (0o2777, 0o777), (0o777, 0o777)]:
        name = f"f{mode:o}"
        Path(name).write_bytes(b"content " * 1000)
        os.chmod(name, mode)
        change(name)
        assert _mode(name) == oct(mode), "root's change"
        in_child(lambda name=name: change(name), user=BOB)  # type: ignore[misc]
        assert _mode(name) == oct(after), "another user's change"


def test_sticky_directory() -> None:
    """Only the owner of the entry, of the directory, or root removes or renames in it."""
    os.mkdir("tmp")
    os.chown("tmp", MEMBER.uid, MEMBER.gid)
    os.chmod("tmp", 0o1777)
    os.mkdir("open")
    os.chmod("open", 0o777)
    for name in ("a", "b", "c", "victim"):
        _owned(f"tmp/{name}", ALICE, 0o666)
    os.mkdir("tmp/dir")
    os.chown("tmp/dir", ALICE.uid, ALICE.gid)
    os.chmod("tmp/dir", 0o777)
    _owned("tmp/bobs", BOB, 0o666)
    refused: list[tuple[Callable[..., None], tuple[str, ...]]] = [
        (os.unlink, ("tmp/a",)),
        (os.rmdir, ("tmp/dir",)),
        (os.rename, ("tmp/a", "tmp/x")),
        (os.rename, ("tmp/a", "open/x")),
        (os.rename, ("tmp/bobs", "tmp/victim")),
        (os.rename, ("tmp/dir", "open/dir")),
    ]
    for call, args in refused:
        assert result_as(BOB, call, *args) == "EPERM", args
    assert result_as(BOB, os.open, "tmp/a", os.O_WRONLY) == "ok"
    assert result_as(ALICE, os.unlink, "tmp/a") == "ok"
    assert result_as(ALICE, os.rename, "tmp/dir", "open/dir") == "ok"
    assert result_as(MEMBER, os.unlink, "tmp/b") == "ok"
    assert result_as(MEMBER, os.rename, "tmp/c", "tmp/victim") == "ok"
    assert result(os.unlink, "tmp/victim") == "ok"


def test_moving_a_directory_needs_write_permission_on_it() -> None:
    """Its `..` changes; only a move to another parent does that."""
    for name in ("from", "to"):
        os.mkdir(name)
        os.chmod(name, 0o777)
    os.mkdir("from/d")
    os.chown("from/d", BOB.uid, BOB.gid)
    os.chmod("from/d", 0o555)
    assert result_as(BOB, os.rename, "from/d", "from/e") == "ok"
    assert result_as(BOB, os.rename, "from/e", "to/e") == "EACCES"
    os.chmod("from/e", 0o755)
    assert result_as(BOB, os.rename, "from/e", "to/e") == "ok"
