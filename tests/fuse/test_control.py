"""The control surface: xattrs, ioctls and `.checkpoints/`, three doors to one set of functions."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from artfs import control
from tests.fuse.tools import ask, checkpoints, command, eventually, opened
from tests.mounting import Mounted, mounted
from tests.posix.calls import result
from tests.posix.trees import Tree, snapshot
from tests.programs.run import need, run

SETTERS = ("checkpoint", "restore", "delete", "clone", "sync")
GETTERS = ("checkpoints", "namespace", "usage", "dirty")


def _file(folder: Path, name: str = "a", content: str = "one") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def _doors() -> dict[str, tuple[Callable[[Path, str], Any], Callable[[Path, str], Any]]]:
    return {
        "xattr": (lambda w, name: command(w, "checkpoint", name), lambda w, name: command(w, "delete", name)),
        "ioctl": (control.checkpoint, control.delete),
        "directory": (
            lambda w, name: (w / ".checkpoints" / name).mkdir(),
            lambda w, name: (w / ".checkpoints" / name).rmdir(),
        ),
    }


DOORS = _doors()


# three doors, one room
@pytest.mark.parametrize("maker", DOORS)
@pytest.mark.parametrize("deleter", DOORS)
def test_a_checkpoint_of_any_door_is_seen_and_deleted_by_every_other(workspace: Path, maker: str, deleter: str) -> None:
    _file(workspace)
    DOORS[maker][0](workspace, "v1")
    assert checkpoints(workspace) == ["v1"]
    assert os.listdir(workspace / ".checkpoints") == ["v1"]
    assert (workspace / ".checkpoints/v1/a").read_text() == "one"
    DOORS[deleter][1](workspace, "v1")
    assert checkpoints(workspace) == []
    assert os.listdir(workspace / ".checkpoints") == []
    eventually(lambda: not (workspace / ".checkpoints/v1/a").exists())


@pytest.mark.parametrize("door", ["xattr", "ioctl"])
def test_a_restore_by_either_door(workspace: Path, door: str) -> None:
    path = _file(workspace)
    command(workspace, "checkpoint", "v1")
    path.write_text("two, and longer")
    if door == "xattr":
        command(workspace, "restore", "v1")
    else:
        assert control.restore(workspace, "v1").name.startswith("~restore-")
    assert path.read_text() == "one"


@pytest.mark.parametrize("door", DOORS)
def test_an_unknown_checkpoint_is_enoent(workspace: Path, door: str) -> None:
    command(workspace, "checkpoint", "known")
    assert result(DOORS[door][1], workspace, "v1") == "ENOENT"
    assert checkpoints(workspace) == ["known"]


@pytest.mark.parametrize("call", [control.restore, lambda w, n: command(w, "restore", n)])
def test_restoring_an_unknown_checkpoint_changes_nothing(workspace: Path, call: Callable[..., Any]) -> None:
    path = _file(workspace)
    assert result(call, workspace, "v1") == "ENOENT"
    assert path.read_text() == "one"
    assert not [name for name in checkpoints(workspace) if name.startswith("~")]


@pytest.mark.parametrize("name", [".hidden", "a/b", "x" * 256, b"\xff\xfe".decode(errors="surrogateescape")])
def test_names_that_no_checkpoint_may_have(workspace: Path, name: str) -> None:
    assert result(command, workspace, "checkpoint", name) == "EINVAL"
    assert checkpoints(workspace) == []


def test_names_that_a_checkpoint_may_have(workspace: Path) -> None:
    names = ["a b", "v1:rc", "é" * 100, "x" * 255]
    for name in names:
        command(workspace, "checkpoint", name)
    assert checkpoints(workspace) == names
    assert sorted(os.listdir(workspace / ".checkpoints")) == sorted(names)


def test_a_taken_name_is_numbered_by_xattr_and_refused_by_mkdir(workspace: Path) -> None:
    path = _file(workspace, content="first")
    command(workspace, "checkpoint", "v1")
    path.write_text("second")
    command(workspace, "checkpoint", "v1")
    assert control.checkpoint(workspace, "v1").name == "v1~3"
    assert checkpoints(workspace) == ["v1", "v1~2", "v1~3"]
    for name in ("v1", "v1~2"):
        assert result(os.mkdir, workspace / ".checkpoints" / name) == "EEXIST"
    assert (workspace / ".checkpoints/v1/a").read_text() == "first"
    assert (workspace / ".checkpoints/v1~2/a").read_text() == "second"
    # What a directory shows under a name, is that id: with `v1` deleted, its namesake is not `v1`.
    (workspace / ".checkpoints/v1").rmdir()
    eventually(lambda: not (workspace / ".checkpoints/v1").exists())
    assert result(os.rmdir, workspace / ".checkpoints/v1") == "ENOENT"
    assert checkpoints(workspace) == ["v1~2", "v1~3"]
    (workspace / ".checkpoints/v1").mkdir()
    assert checkpoints(workspace) == ["v1~2", "v1~3", "v1"]


def test_a_checkpoint_without_a_name_gets_one(workspace: Path) -> None:
    made = control.checkpoint(workspace)
    assert checkpoints(workspace) == [made.name]
    command(workspace, "checkpoint")
    assert len(set(checkpoints(workspace))) == 2


def test_the_surface_acts_from_any_inode_of_the_namespace(workspace: Path) -> None:
    (workspace / "d/e").mkdir(parents=True)
    path = _file(workspace / "d/e")
    command(path, "checkpoint", "from-file")
    command(workspace / "d/e", "checkpoint", "from-folder")
    fd = os.open(path, os.O_RDONLY)
    try:
        assert control.checkpoint(fd, "from-descriptor").name == "from-descriptor"
    finally:
        os.close(fd)
    assert checkpoints(path) == checkpoints(workspace) == ["from-file", "from-folder", "from-descriptor"]


# xattrs
def test_the_surface_is_not_listed(workspace: Path) -> None:
    path = _file(workspace)
    command(path, "checkpoint", "v1")
    assert os.listxattr(path) == os.listxattr(workspace) == []
    os.setxattr(path, "user.artfs.meta", b'{"k": 1}')
    os.setxattr(path, "user.mine", b"x")
    assert sorted(os.listxattr(path)) == ["user.artfs.meta", "user.mine"]


def test_what_can_be_asked(workspace: Path) -> None:
    _file(workspace, content="x" * 10_000)
    os.sync()
    namespace = json.loads(ask(workspace, "namespace"))
    assert namespace["grid_path"] == f"grid/default/shared/{workspace.name}"
    assert namespace["type"] == "workspace"
    assert json.loads(ask(workspace, "usage")) == {"bytes": 10_000, "inodes": 2} or (
        json.loads(ask(workspace, "usage"))["bytes"] >= 10_000
    )
    assert json.loads(ask(workspace, "usage"))["inodes"] == 2
    nothing = {"bytes": 0, "objects": 0, "age": None, "error": ""}
    assert set(json.loads(ask(workspace, "dirty"))) == {"rows", "blocks", "waiting"}
    eventually(lambda: json.loads(ask(workspace, "dirty")) == {"rows": 0, "blocks": 0, "waiting": nothing})
    assert ask(workspace, "checkpoints") == b""


def test_what_can_only_be_set_has_no_value_and_what_can_only_be_asked_takes_none(workspace: Path) -> None:
    for what in SETTERS:
        assert result(ask, workspace, what) == "ENODATA"
    for what in GETTERS:
        assert result(command, workspace, what, "x") == "EINVAL"


@pytest.mark.parametrize("name", ["user.artfs.", "user.artfs.chekpoint", "user.artfs.meta2", "user.artfs.x.y"])
def test_unknown_names_are_refused(workspace: Path, name: str) -> None:
    path = _file(workspace)
    assert result(os.setxattr, path, name, b"v1") == "EINVAL"
    assert result(os.getxattr, path, name) == "ENODATA"
    assert result(os.removexattr, path, name) == "ENODATA"


@pytest.mark.parametrize("name", [f"user.artfs.{what}" for what in (*SETTERS, *GETTERS)])
def test_the_surface_cannot_be_removed(workspace: Path, name: str) -> None:
    assert result(os.removexattr, workspace, name) == "ENODATA"


def test_custom_metadata_is_a_json_object(workspace: Path) -> None:
    path = _file(workspace)
    document = '{"author": "x", "tags": ["a", "é"], "n": {"deep": [1, 2.5, null]}}'.encode()
    for target in (path, workspace):
        os.setxattr(target, "user.artfs.meta", document)
        assert os.getxattr(target, "user.artfs.meta") == document
    for wrong in (b"", b"{", b"[1]", b'"text"', b"17", b"\xff", b'{"a": 1} x'):
        assert result(os.setxattr, path, "user.artfs.meta", wrong) == "EINVAL"
    assert os.getxattr(path, "user.artfs.meta") == document
    os.removexattr(path, "user.artfs.meta")
    assert result(os.getxattr, path, "user.artfs.meta") == "ENODATA"


def test_custom_metadata_is_versioned(workspace: Path) -> None:
    path = _file(workspace)
    os.setxattr(path, "user.artfs.meta", b'{"v": 1}')
    command(workspace, "checkpoint", "v1")
    os.setxattr(path, "user.artfs.meta", b'{"v": 2}')
    assert os.getxattr(workspace / ".checkpoints/v1/a", "user.artfs.meta") == b'{"v": 1}'
    command(workspace, "restore", "v1")
    assert os.getxattr(path, "user.artfs.meta") == b'{"v": 1}'


def test_setfattr_and_getfattr(workspace: Path) -> None:
    need("setfattr")
    _file(workspace)
    run("setfattr", "-n", "user.artfs.checkpoint", "-v", "v1", workspace)
    assert run("getfattr", "--only-values", "-n", "user.artfs.checkpoints", workspace) == "v1\n"
    assert run("getfattr", "-d", "-m", "-", workspace) == ""


# ioctls
def test_the_struct_is_as_documented(workspace: Path) -> None:
    """Without artfs.control: what a program in another language would do."""
    _file(workspace, content="x" * 5000)
    request = b"v1".ljust(256, b"\0") + b"a description".ljust(256, b"\0") + bytes(48)
    number = 3 << 30 | 560 << 16 | ord("A") << 8 | 1
    fd = os.open(workspace, os.O_RDONLY)
    try:
        reply = fcntl.ioctl(fd, number, request)
    finally:
        os.close(fd)
    assert reply[:256].rstrip(b"\0") == b"v1"
    epoch, created, size, inodes = struct.unpack_from("<4Q", reply, 512)
    assert epoch >= 1 and size >= 5000 and inodes == 2
    assert abs(created - os.stat(workspace).st_mtime_ns) < 60 * 10**9
    deleted = control.delete(workspace, "v1")
    assert (deleted.name, deleted.epoch, deleted.created) == ("v1", epoch, created)


def test_other_ioctls_are_enotty(workspace: Path) -> None:
    with _file(workspace).open("rb") as file:
        for number in (0x5401, 3 << 30 | 560 << 16 | ord("A") << 8 | 9, 3 << 30 | 8 << 16 | ord("A") << 8 | 1):
            assert result(fcntl.ioctl, file, number, bytes(560)) == "ENOTTY"


def test_the_surface_works_only_in_a_namespace(workspace: Path) -> None:
    for place in (workspace.parent, workspace.parent.parent, workspace / ".checkpoints"):
        assert result(command, place, "checkpoint", "x") in ("EINVAL", "EPERM", "EOPNOTSUPP")
        assert result(ask, place, "checkpoints") in ("ENODATA", "EOPNOTSUPP")
        assert result(control.checkpoint, place, "x") in ("EINVAL", "ENOTTY")


# clones
def test_a_clone_is_independent_in_both_directions(workspace: Path) -> None:
    (workspace / "d").mkdir()
    a, b = _file(workspace, "a", "one"), _file(workspace / "d", "b", "x" * 3_000_000)
    os.link(a, workspace / "hard")
    os.symlink("a", workspace / "soft")
    os.setxattr(a, "user.k", b"v")
    before = snapshot(workspace)
    name = f"{workspace.name}-clone"
    command(a, "clone", name)
    clone = workspace.parent / name
    assert snapshot(clone) == before == snapshot(workspace)
    assert name in os.listdir(workspace.parent)
    assert os.stat(clone / "a").st_ino != os.stat(a).st_ino
    a.write_text("changed here")
    b.unlink()
    assert snapshot(clone) == before
    here = snapshot(workspace)
    (clone / "hard").write_text("changed there")
    with (clone / "d/b").open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"there")
    (clone / "new").mkdir()
    assert snapshot(workspace) == here
    assert (clone / "a").read_text() == "changed there"
    assert checkpoints(clone) == []
    command(clone, "checkpoint", "own")
    assert checkpoints(workspace) == []


def test_a_clone_lives_on_without_its_source(workspace: Path) -> None:
    content = os.urandom(3_000_000)
    (workspace / "a").write_bytes(content)
    control.clone(workspace, f"{workspace.name}-clone")
    clone = workspace.parent / f"{workspace.name}-clone"
    (workspace / "a").unlink()
    workspace.rmdir()
    assert not workspace.exists()
    with (clone / "a").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == content


@pytest.mark.parametrize("door", ["xattr", "ioctl"])
def test_a_clone_of_a_checkpoint(workspace: Path, door: str) -> None:
    a = _file(workspace)
    command(workspace, "checkpoint", "v1")
    a.write_text("two")
    _file(workspace, "later")
    name = f"{workspace.name}-clone"
    if door == "xattr":
        command(workspace, "clone", f"{name} v1")
    else:
        control.clone(workspace, name, "v1")
    clone = workspace.parent / name
    assert os.listdir(clone) == ["a"]
    assert (clone / "a").read_text() == "one"
    assert a.read_text() == "two"


def test_a_clone_holds_what_was_written_but_not_yet_flushed(workspace: Path) -> None:
    with (workspace / "a").open("wb", buffering=0) as file:
        file.write(b"x" * 2_000_000)
        control.clone(workspace, f"{workspace.name}-clone")
    assert (workspace.parent / f"{workspace.name}-clone/a").read_bytes() == b"x" * 2_000_000


def test_clones_that_are_refused(workspace: Path) -> None:
    assert result(control.clone, workspace, workspace.name) == "EEXIST"
    assert result(control.clone, workspace, f"{workspace.name}-c", "missing") == "ENOENT"
    for name in ("", ".", "..", "a/b", ".artfs", ".checkpoints", "x" * 255 + "y"):
        assert result(command, workspace, "clone", name) == "EINVAL", name
    assert not [n for n in os.listdir(workspace.parent) if n.startswith(f"{workspace.name}-c")]


# the directory
def _rich_tree(top: Path) -> Tree:
    """Every type, with modes, owners, times and attributes; what `snapshot` says of it, and the times."""
    (top / "d/empty").mkdir(parents=True)
    (top / "d").chmod(0o2751)
    for name, content in (("a", b"one"), ("d/big", os.urandom(2_500_000)), ("empty", b"")):
        (top / name).write_bytes(content)
    with (top / "sparse").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
    os.link(top / "a", top / "d/hard")
    os.symlink("d/big", top / "soft")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (top / "a").chmod(0o4755)
    os.lchown(top / "soft", 7, 8)
    os.chown(top / "empty", 1000, 1001)
    os.setxattr(top / "a", "user.k", b"\0binary\xff")
    os.setxattr(top / "d", "trusted.t", b"v")
    os.setxattr(top, "user.artfs.meta", b"{}")
    (top / os.fsdecode(b"not\xffutf8")).write_text("x")
    os.utime(top / "empty", ns=(-123_456_789_012_345_678, 13_569_465_600_000_000_001))
    os.utime(top / "soft", ns=(5, 6), follow_symlinks=False)
    os.utime(top / "d", ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    return full(top)


def full(top: Path) -> Tree:
    """`snapshot` with times to the nanosecond (not access times, which reading changes), and what is allocated."""
    tree = snapshot(top)
    for relative, known in tree.items():
        found = (top / relative).lstat()
        blocks = found.st_blocks if stat.S_ISREG(found.st_mode) else None
        tree[relative] = (*known, found.st_mtime_ns, found.st_ctime_ns, blocks)
    return tree


def test_a_checkpoint_shows_everything_as_it_was(workspace: Path) -> None:
    before = _rich_tree(workspace)
    (workspace / ".checkpoints/v1").mkdir()
    shutil.rmtree(workspace / "d")
    (workspace / "a").write_text("changed")
    (workspace / "empty").chmod(0o777)
    assert full(workspace / ".checkpoints/v1") == before


def test_a_checkpoint_is_read_only(workspace: Path) -> None:
    before = _rich_tree(workspace)
    command(workspace, "checkpoint", "v1")
    view = workspace / ".checkpoints/v1"
    attempts: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (os.open, (view / "a", os.O_WRONLY)),
        (os.open, (view / "a", os.O_RDWR | os.O_TRUNC)),
        (os.open, (view / "new", os.O_CREAT | os.O_WRONLY)),
        (os.truncate, (view / "a", 0)),
        (os.unlink, (view / "a",)),
        (os.rmdir, (view / "d/empty",)),
        (os.mkdir, (view / "new",)),
        (os.mkfifo, (view / "new",)),
        (os.symlink, ("x", view / "new")),
        (os.link, (view / "a", view / "new")),
        (os.rename, (view / "a", view / "new")),
        (os.chmod, (view / "a", 0o777)),
        (os.chown, (view / "a", 1, 1)),
        (os.utime, (view / "a",)),
        (os.setxattr, (view / "a", "user.k", b"x")),
        (os.removexattr, (view / "a", "user.k")),
        (command, (view, "checkpoint", "x")),
        (control.restore, (view, "v1")),
    ]
    for call, args in attempts:
        if call is os.open and args[1] == os.O_WRONLY:  # opening needs no request: it is the write that fails
            assert _write(args[0]) == "EROFS"
            continue
        assert result(call, *args) == "EROFS", (call, args)
    for outside in (workspace / "x", workspace.parent / "x"):
        assert result(os.rename, view / "a", outside) in ("EROFS", "EXDEV")
        assert result(os.link, view / "a", outside) in ("EROFS", "EXDEV")
    assert full(view) == before


def _write(path: Path) -> str:
    """How a write(2) to a file ends."""
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        return result(os.write, fd, b"x")


def test_a_mapping_of_a_checkpoint_cannot_change_it(workspace: Path) -> None:
    """A store into a mapping is refused only when it is written back: what it left in the cache goes then."""
    _file(workspace, content="x" * 8192)
    command(workspace, "checkpoint", "v1")
    path = workspace / ".checkpoints/v1/a"
    with opened(path, os.O_RDWR) as fd:
        with mmap.mmap(fd, 8192) as mapping:
            mapping[:3] = b"new"
            assert result(mapping.flush) in ("EROFS", "EIO")
        assert result(os.fsync, fd) in ("ok", "EROFS", "EIO")
    eventually(lambda: path.read_text() == "x" * 8192)
    command(workspace, "checkpoint", "after")
    assert (workspace / "a").read_text() == "x" * 8192


def test_programs_run_from_a_checkpoint(workspace: Path) -> None:
    shutil.copy("/bin/true", workspace / "true")
    command(workspace, "checkpoint", "v1")
    run(workspace / ".checkpoints/v1/true")
    assert os.listxattr(workspace / ".checkpoints/v1/true") == []


def test_inode_numbers_of_a_checkpoint_are_its_own(workspace: Path) -> None:
    _rich_tree(workspace)
    for name in ("v1", "v2"):
        (workspace / ".checkpoints" / name).mkdir()
    tops = [workspace, workspace / ".checkpoints/v1", workspace / ".checkpoints/v2"]
    numbers = [{os.lstat(os.path.join(d, n)).st_ino for d, ds, fs in os.walk(t) for n in (*ds, *fs)} for t in tops]
    assert len(set.union(*numbers)) == sum(map(len, numbers))
    for top in tops:  # what a listing says is what stat says
        assert {e.name: e.inode() for e in os.scandir(top)} == {n: os.lstat(top / n).st_ino for n in os.listdir(top)}


def test_the_directory_is_hidden_and_nobody_can_make_move_or_remove_it(workspace: Path) -> None:
    _file(workspace)
    (workspace / "d").mkdir()
    control_folder = workspace / ".checkpoints"
    (control_folder / "v1").mkdir()
    assert sorted(os.listdir(workspace)) == ["a", "d"]
    assert sorted(e.name for e in os.scandir(workspace)) == ["a", "d"]
    refused = {
        "mkdir": result(os.mkdir, control_folder),
        "rmdir": result(os.rmdir, control_folder),
        "unlink": result(os.unlink, control_folder),
        "rename": result(os.rename, control_folder, workspace / "x"),
        "rename onto": result(os.rename, workspace / "d", control_folder),
        "rename a file onto": result(os.rename, workspace / "a", control_folder),
        "symlink": result(os.symlink, "x", control_folder),
        "create": result(os.open, control_folder, os.O_CREAT | os.O_WRONLY),
        "chmod": result(os.chmod, control_folder, 0o700),
    }
    assert "ok" not in refused.values(), refused
    for call, args in (
        (os.open, (control_folder / "file", os.O_CREAT | os.O_WRONLY)),
        (os.symlink, ("x", control_folder / "link")),
        (os.mkfifo, (control_folder / "fifo",)),
        (os.rename, (control_folder / "v1", control_folder / "v2")),
        (os.unlink, (control_folder / "v1",)),
    ):
        assert result(call, *args) in ("EPERM", "EISDIR"), (call, args)
    assert os.listdir(control_folder) == ["v1"]
    assert (workspace / "a").read_text() == "one"
    # Elsewhere the name is anybody's.
    (workspace / "d/.checkpoints").mkdir()
    assert os.listdir(workspace / "d") == [".checkpoints"]
    assert result(os.rename, workspace / "d/.checkpoints", control_folder) != "ok"


def test_many_checkpoints_are_listed_in_order(workspace: Path) -> None:
    names = [f"c{i:03}" for i in range(300)]
    for name in names:
        command(workspace, "checkpoint", name)
    assert checkpoints(workspace) == names
    assert os.listdir(workspace / ".checkpoints") == names
    for name in names[::2]:
        (workspace / ".checkpoints" / name).rmdir()
    assert os.listdir(workspace / ".checkpoints") == names[1::2]


def test_a_missing_checkpoint_that_is_made_later_is_found(workspace: Path) -> None:
    for door, (make, _) in DOORS.items():
        path = workspace / ".checkpoints" / door
        assert not path.exists() and not path.exists()
        make(workspace, door)
        eventually(path.exists)


def test_git_does_not_see_the_surface(workspace: Path) -> None:
    need("git")
    run("git", "init", "-q", workspace)
    _file(workspace)
    command(workspace, "checkpoint", "v1")
    os.listdir(workspace / ".checkpoints")
    (workspace / "_meta.json").read_bytes()
    assert run("git", "status", "--porcelain", "--ignored", cwd=workspace) == "?? a\n"


def test_rsync_and_tar_do_not_see_the_surface(workspace: Path, tmp_path: Path) -> None:
    need("rsync")
    before = _rich_tree(workspace)
    command(workspace, "checkpoint", "v1")
    os.listdir(workspace / ".checkpoints")
    (workspace / ".workspace").read_bytes()
    run("rsync", "-aHAX", f"{workspace}/", tmp_path / "copy")
    assert os.listdir(tmp_path / "copy") != [] and set(snapshot(tmp_path / "copy")) == set(before)
    listed = subprocess.run(["tar", "-cf", "-", "."], cwd=workspace, capture_output=True, check=False)
    names = subprocess.run(["tar", "-tf", "-"], input=listed.stdout, capture_output=True, check=True).stdout
    for hidden in (b".checkpoints", b"_meta.json", b".workspace"):
        assert hidden not in names


def test_errors_keep_their_number(workspace: Path) -> None:
    """ENOENT and the like reach the caller as they are, not as EIO."""
    with pytest.raises(OSError) as caught:
        control.restore(workspace, "nothing")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(ValueError, match="255 bytes"):
        control.checkpoint(workspace, "x" * 256)


# levels of durability
@pytest.mark.parametrize("level", ["local", "remote"])
def test_a_level_of_durability_is_waited_for(workspace: Path, level: str) -> None:
    """Of a namespace without a provider there is no more than this disk."""
    path = _file(workspace, content="x" * 100_000)
    command(path, "sync", level)
    assert json.loads(ask(path, "usage"))["bytes"] == 100_000


@pytest.mark.parametrize("level", ["", "both", "remote now", "Remote"])
def test_levels_that_there_are_not(workspace: Path, level: str) -> None:
    assert result(command, workspace, "sync", level) == "EINVAL"


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """The directory of a provider."""
    (tmp_path / "far").mkdir()
    return tmp_path / "far"


@contextmanager
def _backed(base: Path, far: Path, more: str = "") -> Iterator[Mounted]:
    (base / "store").mkdir()
    settings = f'provider = "file://{far}"\nupload_delay = 600.0\ndrain_limit = 1.0\n{more}'
    (base / "store/config.toml").write_text(settings)
    with mounted(base) as own:
        yield own


@pytest.fixture
def backed(tmp_path: Path, far: Path) -> Iterator[Mounted]:
    """A mount whose namespaces live with a provider, and that would upload nothing by itself for a long time."""
    with _backed(tmp_path, far) as own:
        yield own


def _stored(far: Path) -> int:
    return sum(path.stat().st_size for path in (far / "grid").rglob("*") if path.is_file())


def test_remote_means_that_the_provider_has_it(backed: Mounted, far: Path) -> None:
    workspace = backed.workspace("w")
    path = _file(workspace, content="x" * 100_000)
    command(path, "sync", "local")
    assert _stored(far) == 0
    dirty = json.loads(ask(workspace, "dirty"))["waiting"]
    assert dirty["bytes"] >= 100_000 and dirty["objects"] >= 1 and dirty["age"] >= 0 and dirty["error"] == ""
    assert backed.stats()["waiting"]["bytes"] == dirty["bytes"]
    command(path, "sync", "remote")
    assert _stored(far) >= 100_000
    assert json.loads(ask(workspace, "dirty"))["waiting"] == {"bytes": 0, "objects": 0, "age": None, "error": ""}
    assert backed.stats()["cache"]["uploads"] >= 1
    # The metadata is there, too.
    assert [path for path in (far / "meta").rglob("*") if path.is_file()]


def test_remote_fails_with_the_provider_and_holds_again_after_it(backed: Mounted, far: Path) -> None:
    workspace = backed.workspace("w")
    command(workspace, "sync", "remote")
    path = _file(workspace, content="y" * 100_000)
    far.rename(far.with_name("away"))
    far.write_text("no directory")
    assert result(command, path, "sync", "remote") == "EIO"
    assert json.loads(ask(path, "dirty"))["waiting"]["error"]
    assert path.read_text() == "y" * 100_000
    far.unlink()
    far.with_name("away").rename(far)
    command(path, "sync", "remote")
    assert _stored(far) >= 100_000
    assert json.loads(ask(path, "dirty"))["waiting"]["error"] == ""


def test_fsync_and_close_wait_for_the_provider_if_told_to(tmp_path: Path, far: Path) -> None:
    with _backed(tmp_path, far, 'durability = "remote"\nwait_limit = 2.0\n') as own:
        path = own.workspace("w") / "a"
        with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
            os.write(fd, b"1" * 100_000)
            os.fsync(fd)
            assert _stored(far) >= 100_000
        path.write_bytes(b"2" * 200_000)
        assert _stored(far) >= 300_000
        with opened(path, os.O_WRONLY) as fd:
            os.write(fd, b"3" * 300_000)
            far.rename(far.with_name("away"))
            far.write_text("no directory")
            start = time.monotonic()
            assert result(os.fsync, fd) == "EIO"
            assert time.monotonic() - start < 10
            far.unlink()
            far.with_name("away").rename(far)
            assert result(os.fsync, fd) == "ok"
        assert _stored(far) >= 500_000
