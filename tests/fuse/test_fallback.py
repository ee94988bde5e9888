"""Without the native extension everything goes through pyfuse3's handlers: slower and equally right, less what pyfuse3
has no handler for.  `MISSING` is the list of that."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from artfs import control
from tests.fuse.test_control import _rich_tree, full
from tests.fuse.tools import ask, call, checkpoints, command, eventually, inside, opened
from tests.mounting import Mounted, mounted
from tests.posix.actors import User, in_child, result_as
from tests.posix.calls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate, result
from tests.posix.trees import TreeRun
from tests.programs.run import need, run

_numbers = count()
REPOSITORY = Path(__file__).parents[2]
PLAIN = {"ARTFS_NO_NATIVE": "1"}
NEEDS_NATIVE = (
    "test_holes.py::test_seek_data_and_hole",
    "test_holes.py::test_seek_in_a_file_without_data_and_in_a_full_one",
    "test_holes.py::test_punching_frees_space",
    "test_holes.py::test_keep_size_and_errors",
    "test_owner_mode.py::test_a_write_by_others_clears_setuid[punch]",
)
"""Tests of the posix suite that use what is missing."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("plain"), env=PLAIN) as mount:
        assert json.loads((mount.point / ".artfs/stats").read_bytes())["native"] is False
        yield mount


@pytest.fixture
def workspace(plain: Mounted) -> Path:
    return plain.workspace(f"w{next(_numbers)}")


# what is missing
def _punch(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 4096)


def _allocate(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        fallocate(fd, 0, 0, 4096)


def _unnamed(path: Path) -> None:
    os.close(os.open(path.parent, os.O_TMPFILE | os.O_RDWR))


def _flags(path: Path) -> None:
    with opened(path) as fd:
        fcntl.ioctl(fd, 0x80086601, bytes(8))


MISSING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "checkpoints by ioctl": (lambda path: control.checkpoint(path, "v1"), "ENOTTY"),
    "flags of files": (_flags, "ENOTTY"),
    "fallocate": (_allocate, "EOPNOTSUPP"),
    "punching holes": (_punch, "EOPNOTSUPP"),
    "files without a name": (_unnamed, "EOPNOTSUPP"),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_says_so(workspace: Path, what: str) -> None:
    (workspace / "f").write_text("x")
    act, errno = MISSING[what]
    assert result(act, workspace / "f") == errno
    assert (workspace / "f").read_text() == "x" and checkpoints(workspace) == []


def test_what_is_missing_is_there_with_the_extension(shared_mount: Mounted) -> None:
    path = shared_mount.workspace("has-native") / "f"
    path.write_text("x" * 8192)
    for what, (act, _) in MISSING.items():
        assert result(act, path) == "ok", what


def test_what_is_done_by_the_kernel_instead(workspace: Path) -> None:
    """Holes are not found, so files look full; a copy is a copy of bytes.  Neither gives wrong content."""
    path = workspace / "f"
    with path.open("wb") as file:
        file.truncate(2_000_000)
        file.seek(1_000_000)
        file.write(b"middle")
    with opened(path) as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 2_000_000
    run("cp", "--reflink=auto", "--sparse=auto", path, workspace / "copy")
    with opened(path) as source, opened(workspace / "other", os.O_RDWR | os.O_CREAT) as target:
        copied = 0
        while copied < 2_000_000:
            copied += os.copy_file_range(source, target, 2_000_000 - copied)
    assert (workspace / "copy").read_bytes() == (workspace / "other").read_bytes() == path.read_bytes()


# what works
@pytest.mark.slow
def test_the_posix_suite_passes(plain: Mounted) -> None:
    """All of it but what uses the list above."""
    directory = plain.workspace("posix")
    deselected = [f"--deselect=tests/posix/{name}" for name in NEEDS_NATIVE]
    command = [sys.executable, "-m", "pytest", "-q", "tests/posix", f"--mnt={directory}", *deselected]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_random_changes_and_restores(workspace: Path, memory_directory: Path) -> None:
    for seed in range(3):
        tops = [workspace / str(seed), memory_directory / str(seed)]
        for top in tops:
            top.mkdir()
        changes = TreeRun((tops[0], tops[1]), seed)
        changes.run(60)
        before = full(workspace)
        command(workspace, "checkpoint", f"s{seed}")
        changes.run(60)
        command(tops[0], "restore", f"s{seed}")
        eventually(lambda names=set(before): set(full(workspace)) == names)  # type: ignore[misc]
        assert full(workspace) == before, changes.report("the restore is not exact")


def test_checkpoints_by_both_doors(workspace: Path) -> None:
    before = _rich_tree(workspace)
    (workspace / ".checkpoints/v1").mkdir()
    command(workspace, "checkpoint", "v2")
    assert checkpoints(workspace) == os.listdir(workspace / ".checkpoints") == ["v1", "v2"]
    shutil.rmtree(workspace / "d")
    (workspace / "a").write_text("changed")
    assert full(workspace / ".checkpoints/v1") == before
    assert result(os.open, workspace / ".checkpoints/v1/a", os.O_WRONLY) == "EROFS"
    command(workspace, "clone", f"{workspace.name}-clone v1")
    assert full(workspace.parent / f"{workspace.name}-clone").keys() == before.keys()
    command(workspace, "restore", "v1")
    eventually(lambda: full(workspace) == before)
    (workspace / ".checkpoints/v1").rmdir()
    assert checkpoints(workspace) == ["v2"]


def test_a_changed_file_that_is_open_is_stale(workspace: Path) -> None:
    path = workspace / "f"
    path.write_text("one")
    command(workspace, "checkpoint", "v1")
    path.write_text("second")
    with opened(path, os.O_RDWR) as fd:
        command(path, "restore", "v1")
        assert path.read_text() == "one"
        assert result(os.fstat, fd) == result(os.pread, fd, 1, 0) == "ESTALE"
    assert path.read_text() == "one" and path.stat().st_size == 3


def test_the_grid_and_sessions(plain: Mounted) -> None:
    shared = plain.point / "default/shared"
    (shared / "grid-a").mkdir()
    os.rename(shared / "grid-a", shared / "grid-b")
    assert json.loads(ask(shared / "grid-b", "namespace"))["name"] == "grid-b"
    assert result(os.rename, shared / "grid-b", plain.point / "default/user-x/grid-b") == "EXDEV"
    run("rm", "-rf", shared / "grid-b")
    assert not (shared / "grid-b").exists()
    path = plain.point / "default/sess-s1"
    assert not path.exists()
    call(plain, "session_create", id="s1")
    (path / "w").mkdir()
    (path / "w/f").write_text("x")
    with opened(path / "w/f") as fd:
        call(plain, "session_delete", id="s1")
        eventually(lambda: not (path / "w/f").exists() and not path.exists())
        assert result(os.fstat, fd) == "ESTALE"


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    with mounted(tmp_path, env=PLAIN) as mount:
        workspace = mount.workspace("w")
        before = _rich_tree(workspace)
        for path in workspace.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with opened(path) as fd:
                    os.fsync(fd)
        mount.kill()
        mount.start()
        assert full(workspace) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming other users needs root")
def test_a_checked_mount(tmp_path: Path) -> None:
    """Callers are told apart also where pyfuse3 does not say who lists a directory."""
    alice, bob = User(61001, 61001), User(61002, 61002)
    with mounted(tmp_path, env=PLAIN) as mount:
        mount.stop()
        (mount.root / "config.toml").write_text('[uid_map]\n61001 = "user:alice"\n61002 = "user:bob"\n')
    with mounted(tmp_path, ("--checked",), env=PLAIN) as mount, inside(mount.point):
        for user, name in ((alice, "alice"), (bob, "bob")):
            in_child(lambda name=name: os.mkdir(f"default/user-{name}/w"), user=user)  # type: ignore[misc]
        assert sorted(os.listdir("default")) == ["shared", "user-alice", "user-bob"]
        assert in_child(lambda: sorted(os.listdir("default")), user=bob) == ["shared", "user-bob"]
        in_child(lambda: Path("default/user-alice/w/f").write_text("x"), user=alice)
        assert result_as(bob, os.stat, "default/user-alice/w") == "EACCES"
        os.chmod("default/user-alice/w", 0o777)
        os.chmod("default/user-alice/w/f", 0o666)
        with inside(Path("default/user-alice/w")):
            for act in (
                lambda: os.stat("f"),
                lambda: os.listdir("."),
                lambda: os.open("f", os.O_RDONLY),
                lambda: os.open("f", os.O_RDONLY | os.O_TRUNC),
                lambda: os.open("new", os.O_CREAT | os.O_WRONLY),
                lambda: os.unlink("f"),
                lambda: command(".", "checkpoint", "x"),
            ):
                assert result_as(bob, act) == "EACCES"


def test_git_works(workspace: Path) -> None:
    need("git")
    identity = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    run("git", "init", "-q", workspace)
    shutil.copytree(REPOSITORY / "artfs" / "volume", workspace / "src")
    run("git", "add", ".", cwd=workspace)
    run("git", "commit", "-qm", "one", cwd=workspace, env=identity)
    run("git", "clone", "-q", workspace, workspace / "clone")
    run("git", "fsck", "--strict", cwd=workspace / "clone")
    assert run("git", "status", "--porcelain", cwd=workspace) == "?? clone/\n"
