"""Path resolution: what each call says about a path that cannot be used."""

import os
from pathlib import Path

import pytest

from tests.posix.actors import ALICE, result_as
from tests.posix.calls import result
from tests.posix.matrix import (
    CALLS,
    CREATING,
    EXISTING,
    FOLLOWING,
    OTHER,
    PARENT_CHANGING,
    Call,
    ids,
    make,
    prepare,
)

pytestmark = pytest.mark.usefixtures("mnt")


@pytest.mark.parametrize("call", CALLS, ids=ids)
def test_component_errors(call: Call) -> None:
    prepare()
    Path("file").touch()
    os.symlink("loop-b", "loop-a")
    os.symlink("loop-a", "loop-b")
    os.symlink("nowhere", "dangling")
    assert result(call.run, "missing/name") == "ENOENT"
    assert result(call.run, "dangling/name") == "ENOENT"
    assert result(call.run, "file/name") == "ENOTDIR"
    assert result(call.run, "loop-a/name") == "ELOOP"
    assert result(call.run, "n" * 256 + "/name") == "ENAMETOOLONG"
    assert result(call.run, "n" * 256) == "ENAMETOOLONG"
    assert result(call.run, "./" * 2047 + "xx") == "ENAMETOOLONG"
    assert result(call.run, "") == "ENOENT"
    assert sorted(os.listdir()) == ["dangling", "file", "loop-a", "loop-b", OTHER]


@pytest.mark.parametrize("call", CALLS, ids=ids)
def test_longest_name_and_path(call: Call) -> None:
    prepare()
    name = "n" * 255
    if not call.creates:
        make(call.wants, name)
    assert result(call.run, "./" * 1920 + name) == "ok"


@pytest.mark.parametrize("call", EXISTING, ids=ids)
def test_missing_last_component(call: Call) -> None:
    assert result(call.run, "missing") == "ENOENT"
    os.mkdir("d")
    assert result(call.run, "d/missing") == "ENOENT"


@pytest.mark.parametrize("call", FOLLOWING, ids=ids)
def test_last_component_is_a_link(call: Call) -> None:
    make(call.wants, "real")
    os.symlink("real", "link")
    os.symlink("link", "link2")
    os.symlink("self", "self")
    os.symlink("nowhere", "dangling")
    if call.name != "open-path":
        assert result(call.run, "link2") == "ok"
    assert result(call.run, "self") == "ELOOP"
    assert result(call.run, "dangling") == "ENOENT"


def test_forty_links_are_followed_and_no_more() -> None:
    Path("l0").touch()
    for i in range(41):
        os.symlink(f"l{i}", f"l{i + 1}")
    assert result(os.stat, "l40") == "ok"
    assert result(os.stat, "l41") == "ELOOP"


@pytest.mark.parametrize("kind", ["file", "dir", "symlink", "fifo", "socket"])
@pytest.mark.parametrize("call", CREATING, ids=ids)
def test_last_component_exists(call: Call, kind: str) -> None:
    prepare()
    make(kind, "taken")
    before = os.lstat("taken")
    assert result(call.run, "taken") == "EEXIST"
    after = os.lstat("taken")
    assert (after.st_ino, after.st_mode, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_ctime_ns,
    )


@pytest.mark.parametrize("call", CALLS, ids=ids)
def test_no_search_permission(call: Call) -> None:
    for directory in ("d", "d/sub"):
        os.mkdir(directory)
        os.chown(directory, ALICE.uid, ALICE.gid)
    Path(OTHER).touch()
    os.chown(OTHER, ALICE.uid, ALICE.gid)
    if not call.creates:
        make(call.wants, "d/sub/name")
        if call.wants != "none":
            os.lchown("d/sub/name", ALICE.uid, ALICE.gid)
    os.chmod("d", 0o600)
    assert result_as(ALICE, call.run, "d/sub/name") == "EACCES"
    os.chmod("d", 0o000)
    assert result_as(ALICE, call.run, "d/sub/name") == "EACCES"
    os.chmod("d", 0o100)
    assert result_as(ALICE, call.run, "d/sub/name") == "ok"


@pytest.mark.parametrize("call", PARENT_CHANGING, ids=ids)
def test_no_write_permission_on_the_parent(call: Call) -> None:
    os.mkdir("d")
    os.chown("d", ALICE.uid, ALICE.gid)
    Path(OTHER).touch()
    os.chown(OTHER, ALICE.uid, ALICE.gid)
    if not call.creates:
        make(call.wants, "d/name")
        if call.wants != "none":
            os.lchown("d/name", ALICE.uid, ALICE.gid)
    os.chmod("d", 0o500)
    assert result_as(ALICE, call.run, "d/name") == "EACCES"
    os.chmod("d", 0o700)
    assert result_as(ALICE, call.run, "d/name") == "ok"


def test_dot_and_dotdot() -> None:
    os.makedirs("d/sub")
    Path("f").touch()
    assert result(os.rmdir, "d/sub/.") == "EINVAL"
    assert result(os.rmdir, "d/sub/..") == "ENOTEMPTY"
    assert result(os.mkdir, "d/.") == "EEXIST"
    assert result(os.mkdir, "d/..") == "EEXIST"
    assert result(os.unlink, "d/.") == "EISDIR"
    assert result(os.rename, "d/.", "e") == "EBUSY"
    assert result(os.rename, "d/sub/..", "e") == "EBUSY"
    assert result(os.rename, "d", "d/sub/..") in ("EBUSY", "EINVAL")
    assert result(os.symlink, "x", "d/.") == "EEXIST"
    assert os.stat("d/sub/..").st_ino == os.stat("d").st_ino
    assert os.stat("d/.").st_ino == os.stat("d").st_ino


def test_trailing_slash() -> None:
    Path("f").touch()
    os.mkdir("d")
    os.symlink("d", "to-d")
    for call in (os.stat, os.unlink, os.rmdir, os.readlink, os.chmod, os.truncate):
        extra = (0,) if call in (os.chmod, os.truncate) else ()
        assert result(call, "f/", *extra) == "ENOTDIR"
    assert result(os.rename, "f", "g/") == "ENOTDIR"
    assert result(os.link, "f", "g/") == "ENOENT"
    assert result(os.open, "g/", os.O_CREAT | os.O_WRONLY) == "EISDIR"
    assert result(os.mkdir, "new/") == "ok"
    assert result(os.rename, "new/", "newer/") == "ok"
    assert result(os.rmdir, "to-d/") == "ENOTDIR"
    assert result(os.listdir, "to-d/") == "ok"


def test_any_bytes_in_a_name() -> None:
    """Every byte but NUL and the slash; nothing normalises, folds or refuses."""
    every = bytes(b for b in range(1, 256) if b != ord("/"))
    names = {
        every,
        b"\xff\xfe",
        b"\xc3\x28",
        b"a\nb",
        "é".encode(),
        "e\u0301".encode(),
        b"A",
        b"a",
        b" ",
        b"-",
        b"\xed\xa0\x80" * 85,
    }
    for name in names:
        with open(name, "xb") as made:
            made.write(name)
    assert set(os.listdir(b".")) == names
    for name in names:
        with open(name, "rb") as made:
            assert made.read() == name
        os.rename(name, b"moved")
        os.rename(b"moved", name)
    os.symlink(b"\xff\xfe", b"link")
    assert os.readlink(b"link") == b"\xff\xfe"
    assert os.statvfs(".").f_namemax == 255
