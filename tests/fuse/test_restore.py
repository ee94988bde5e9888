"""Restore through a mount: the exact tree at once, while programs have it open."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artfs import control
from tests.fuse.test_control import _rich_tree, full
from tests.fuse.tools import call, checkpoints, command, eventually, inside, opened
from tests.mounting import Mounted
from tests.posix.actors import Child, in_child
from tests.posix.calls import result
from tests.posix.trees import TreeRun, snapshot
from tests.programs.run import need, run

Restore = Callable[[Path, str], object]


def _by_xattr(workspace: Path, name: str) -> None:
    command(workspace, "restore", name)


DOORS: dict[str, Restore] = {"xattr": _by_xattr, "ioctl": control.restore}


@pytest.fixture(params=DOORS)
def restore(request: pytest.FixtureRequest) -> Restore:
    return DOORS[request.param]


# the tree
def test_it_brings_back_the_exact_tree(workspace: Path, restore: Restore) -> None:
    before = _rich_tree(workspace)
    control.checkpoint(workspace, "v1")
    shutil.rmtree(workspace / "d")
    for name in ("fifo", "soft", "a"):
        (workspace / name).unlink()
    (workspace / "fifo").mkdir()  # another type under a known name
    (workspace / "fifo/inner").write_text("x")
    (workspace / "sparse").write_text("short")
    (workspace / "empty").chmod(0o777)
    os.setxattr(workspace / "empty", "user.new", b"x")
    os.chown(workspace / "socket", 5, 6)
    os.utime(workspace / "null", ns=(1, 2))
    os.removexattr(workspace, "user.artfs.meta")
    (workspace / "new").mkdir()
    (workspace / "new/file").write_text("y")
    workspace.chmod(0o700)
    restore(workspace, "v1")
    eventually(lambda: set(snapshot(workspace)) == set(before))  # see the test of names
    assert full(workspace) == before
    assert full(workspace / ".checkpoints/v1") == before


def test_it_survives_a_remount(mount: Mounted) -> None:
    workspace = mount.workspace("w")
    before = _rich_tree(workspace)
    control.checkpoint(workspace, "v1")
    shutil.rmtree(workspace / "d")
    (workspace / "a").write_text("changed")
    control.restore(workspace, "v1")
    assert full(workspace) == before
    mount.stop()
    mount.start()
    assert full(workspace) == before
    mount.kill()
    mount.start()
    assert full(workspace) == before


def test_random_changes_are_undone(workspace: Path, memory_directory: Path) -> None:
    for seed in range(4):
        tops = [workspace / str(seed), memory_directory / str(seed)]
        for top in tops:
            top.mkdir()
        changes = TreeRun((tops[0], tops[1]), seed)
        changes.run(80)
        before = full(workspace)
        control.checkpoint(workspace, f"s{seed}")
        changes.run(80)
        control.restore(workspace, f"s{seed}")
        assert full(workspace) == before, changes.report("the restore is not exact")


def test_what_is_restored_can_be_changed_and_restored_again(workspace: Path, restore: Restore) -> None:
    path = workspace / "a"
    for i in range(5):
        path.write_text(f"{i}" * (i + 1))
        control.checkpoint(workspace, f"v{i}")
    for i in (0, 4, 2, 2, 3, 1):
        restore(workspace, f"v{i}")
        assert path.read_text() == f"{i}" * (i + 1)
        assert path.stat().st_size == i + 1
        with path.open("a") as file:
            file.write("+")
        assert path.read_text() == f"{i}" * (i + 1) + "+"


def test_names_that_were_gone_or_were_never_there(workspace: Path) -> None:
    """The kernel remembers names that lead nowhere, too."""
    (workspace / "d").mkdir()
    (workspace / "d/old").write_text("old")
    control.checkpoint(workspace, "v1")
    (workspace / "d/old").unlink()
    (workspace / "d/new").write_text("new")
    for _ in range(2):
        assert not (workspace / "d/old").exists()
    os.listdir(workspace / "d")
    control.restore(workspace, "v1")
    assert (workspace / "d/old").read_text() == "old"
    assert not (workspace / "d/new").exists()
    assert os.listdir(workspace / "d") == ["old"]
    # The kernel holds the lock of the directory that the attribute is set on: its names follow the reply.
    command(workspace / "d", "restore", checkpoints_all(workspace)[-1])
    eventually(lambda: not (workspace / "d/old").exists() and (workspace / "d/new").exists())
    assert (workspace / "d/new").read_text() == "new"


def checkpoints_all(workspace: Path) -> list[str]:
    """With those that restores took."""
    namespace = call(_root(workspace), "checkpoint_list", path=f"default/shared/{workspace.name}", all=True)
    return [checkpoint["id"] for checkpoint in namespace]


def _root(workspace: Path) -> Path:
    return workspace.parents[3] / "store"


def test_directories_that_were_removed_come_back_as_they_were(workspace: Path) -> None:
    """Also with a descriptor on one, and after a remount nothing is missing."""
    (workspace / "d/e").mkdir(parents=True)
    (workspace / "d/e/f").write_text("f")
    control.checkpoint(workspace, "v1")
    with opened(workspace / "d/e") as fd:
        shutil.rmtree(workspace / "d")
        control.restore(workspace, "v1")
        assert (workspace / "d/e/f").read_text() == "f"
        (workspace / "d/e/g").write_text("g")
        assert sorted(os.listdir(workspace / "d/e")) == ["f", "g"]
        assert result(os.listdir, fd) in ("ok", "ESTALE")


def test_files_that_were_removed_while_open_come_back_for_good(mount: Mounted) -> None:
    """The number of a removed file that is still open is an orphan's: it must not take the restored one along."""
    workspace = mount.workspace("w")
    (workspace / "d").mkdir()
    (workspace / "link").symlink_to("x")
    os.mkfifo(workspace / "fifo")
    (workspace / "a").write_bytes(b"x" * 2_000_000)
    before = full(workspace)
    control.checkpoint(workspace, "v1")
    paths = [workspace / "a", workspace / "d", workspace / "fifo", workspace / "link"]
    held = [os.open(path, os.O_PATH | os.O_NOFOLLOW) for path in paths]
    try:
        for path in paths:
            path.rmdir() if path.name == "d" else path.unlink()
        control.restore(workspace, "v1")
        assert full(workspace) == before
        (workspace / "d/new").write_text("new")
        (workspace / "d/new").unlink()
        os.utime(workspace / "d", ns=(1, 1))
    finally:
        for fd in held:
            os.close(fd)
    shutil.rmtree(workspace / "d")
    control.restore(workspace, "v1")
    eventually(lambda: full(workspace) == before)
    for stop in (mount.stop, mount.kill):
        stop()
        mount.start()
        assert full(workspace) == before


# open files
def test_a_changed_file_that_is_open_is_stale(workspace: Path, restore: Restore) -> None:
    path = workspace / "a"
    path.write_text("one")
    control.checkpoint(workspace, "v1")
    path.write_text("two, longer")
    with opened(path, os.O_RDWR) as fd, opened(path, os.O_WRONLY | os.O_APPEND) as append:
        os.write(append, b" and more")
        restore(workspace, "v1")
        assert path.read_text() == "one" and path.stat().st_size == 3
        for attempt in (
            lambda: os.read(fd, 10),
            lambda: os.pread(fd, 10, 5),
            lambda: os.fstat(fd),
            lambda: os.ftruncate(fd, 0),
            lambda: os.fchmod(fd, 0o600),
            lambda: os.getxattr(fd, "user.x"),
        ):
            assert result(attempt) == "ESTALE"
        assert _write_and_sync(fd) == "ESTALE"
        assert _write_and_sync(append) == "ESTALE"
        assert path.read_text() == "one"
    assert path.read_text() == "one" and path.stat().st_size == 3
    with path.open("a") as file:
        file.write("+")
    assert path.read_text() == "one+"


def _write_and_sync(fd: int) -> str:
    def work() -> None:
        os.write(fd, b"late")
        os.fsync(fd)

    return result(work)


def test_what_was_written_before_never_reaches_the_restored_file(workspace: Path, restore: Restore) -> None:
    """Dirty pages, appends and stores into a mapping of before."""
    path = workspace / "a"
    path.write_bytes(b"a" * 100_000)
    control.checkpoint(workspace, "v1")
    with (
        opened(path, os.O_RDWR) as fd,
        opened(path, os.O_WRONLY | os.O_APPEND) as append,
        mmap.mmap(fd, 100_000) as mapping,
    ):
        os.pwrite(fd, b"b" * 50_000, 25_000)
        os.write(append, b"c" * 200_000)
        mapping[:10] = b"d" * 10
        restore(workspace, "v1")
        assert path.read_bytes() == b"a" * 100_000
        for late in (lambda: os.pwrite(fd, b"late", 0), lambda: os.write(append, b"late"), lambda: os.fsync(fd)):
            result(late)
        os.sync()
        assert path.read_bytes() == b"a" * 100_000
    os.sync()
    command(workspace, "checkpoint", "v2")
    assert (workspace / ".checkpoints/v2/a").read_bytes() == path.read_bytes() == b"a" * 100_000


@pytest.mark.parametrize("store", [False, True])
def test_a_mapping_of_a_changed_file_gives_sigbus(workspace: Path, store: bool) -> None:
    path = workspace / "a"
    path.write_bytes(b"a" * 8192)
    control.checkpoint(workspace, "v1")
    path.write_bytes(b"b" * 8192)
    program = (
        "import mmap,os,sys\n"
        f"m = mmap.mmap(os.open({str(path)!r}, os.O_RDWR), 8192)\n"
        "assert m[:1] == b'b'\nprint('ready', flush=True)\ninput()\n"
        + ("m[5000] = 0\n" if store else "m[5000]\n")
        + "print('went on', flush=True)\n"
    )

    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    control.restore(workspace, "v1")
    out, _ = child.communicate(b"\n", timeout=20)
    assert (out, child.returncode) == (b"", -signal.SIGBUS)
    assert path.read_bytes() == b"a" * 8192


def test_everything_else_goes_on(workspace: Path, restore: Restore) -> None:
    """Descriptors and mappings of unchanged files, working directories, open directories, locks, FIFOs."""
    (workspace / "d/e").mkdir(parents=True)
    kept, changed = workspace / "d/kept", workspace / "d/changed"
    kept.write_text("kept")
    changed.write_text("one")
    os.mkfifo(workspace / "fifo")
    control.checkpoint(workspace, "v1")
    changed.write_text("two")
    (workspace / "d/new").write_text("new")
    with (
        opened(kept, os.O_RDWR) as fd,
        opened(kept, os.O_WRONLY | os.O_APPEND) as append,
        opened(workspace / "d", os.O_DIRECTORY) as folder,
        opened(workspace / "fifo", os.O_RDWR) as fifo,
        mmap.mmap(fd, 4) as mapping,
        inside(workspace / "d/e"),
    ):
        os.write(fifo, b"in flight")
        restore(workspace, "v1")
        assert os.pread(fd, 10, 0) == b"kept" and mapping[:] == b"kept"
        assert sorted(os.listdir(folder)) == ["changed", "e", "kept"]
        assert os.stat("changed", dir_fd=folder).st_size == 3
        assert Path("../changed").read_text() == "one"
        Path("made-here").write_text("x")
        assert os.listdir(workspace / "d/e") == ["made-here"]
        os.write(append, b"+")
        os.fsync(append)
        assert kept.read_text() == "kept+"
        assert os.read(fifo, 20) == b"in flight"
        assert not Path("../new").exists()


def test_writers_in_other_processes_are_cut_off_cleanly(workspace: Path) -> None:
    """A program that appends all the time meets ESTALE, opens again, and goes on behind the restored content."""
    path = workspace / "log"
    path.write_text("start\n")
    control.checkpoint(workspace, "v1")

    def writer() -> int:
        stale = 0
        limit = time.monotonic() + 2.0
        while time.monotonic() < limit:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            try:
                for _ in range(200):
                    os.write(fd, b"x" * 99 + b"\n")
                os.fsync(fd)
            except OSError as error:
                assert error.strerror == "Stale file handle", error
                stale += 1
            finally:
                result(os.close, fd)
        return stale

    child = Child(writer)
    for _ in range(10):
        time.sleep(0.1)
        control.restore(workspace, "v1")
        found = path.read_bytes()
        assert found.startswith(b"start\n") and not found.strip(b"xstar\n"), "not the restored file, or torn"
        assert b"\0" not in found
    assert child.join() > 0
    control.restore(workspace, "v1")
    assert path.read_text() == "start\n"


def test_readers_see_one_of_two_states(workspace: Path) -> None:
    """Readers that list, stat and read while restores swap two states see one or the other in each file."""
    for i in range(20):
        (workspace / f"f{i}").write_text("one")
    control.checkpoint(workspace, "one")
    for i in range(20):
        (workspace / f"f{i}").write_text("two, and longer")
    control.checkpoint(workspace, "two")

    def reader() -> tuple[int, int]:
        rounds = stale = 0
        limit = time.monotonic() + 2.0
        while time.monotonic() < limit:
            rounds += 1
            assert len(os.listdir(workspace)) == 20
            for i in range(20):
                try:
                    found = (workspace / f"f{i}").read_text()
                except OSError as error:
                    assert error.strerror == "Stale file handle", error
                    stale += 1
                    continue
                assert found in ("one", "two, and longer"), found
        return rounds, stale

    child = Child(reader)
    for i in range(20):
        control.restore(workspace, ("one", "two")[i % 2])
        time.sleep(0.05)
    assert child.join()[0] > 0


# safety
def test_a_restore_can_be_undone(workspace: Path) -> None:
    before = _rich_tree(workspace)
    control.checkpoint(workspace, "v1")
    shutil.rmtree(workspace / "d")
    (workspace / "a").write_text("work of an hour")
    after = full(workspace)
    safety = control.restore(workspace, "v1")
    assert safety.name.startswith("~restore-")
    assert full(workspace) == before
    assert full(workspace / ".checkpoints" / safety.name) == after
    control.restore(workspace, safety.name)
    assert full(workspace) == after


def test_the_last_three_safety_checkpoints_are_kept_and_not_listed(workspace: Path) -> None:
    (workspace / "a").write_text("x")
    control.checkpoint(workspace, "v1")
    taken = [control.restore(workspace, "v1").name for _ in range(6)]
    assert len(set(taken)) == 6
    assert checkpoints(workspace) == ["v1"]
    assert os.listdir(workspace / ".checkpoints") == ["v1"]
    assert checkpoints_all(workspace) == ["v1", *taken[-3:]]
    assert result(control.restore, workspace, taken[0]) == "ENOENT"
    assert result(control.restore, workspace, taken[-3]) == "ok"


def test_the_oldest_safety_checkpoint_can_be_restored(workspace: Path) -> None:
    """The one that the restore itself would push out."""
    path = workspace / "a"
    for i in range(4):
        path.write_text(f"{i}")
        control.checkpoint(workspace, f"v{i}")
    path.write_text("lost?")
    first = control.restore(workspace, "v0").name
    for i in (1, 2):
        control.restore(workspace, f"v{i}")
    control.restore(workspace, first)
    assert path.read_text() == "lost?"


def test_usage_goes_back(workspace: Path) -> None:
    (workspace / "a").write_bytes(b"x" * 100_000)
    control.checkpoint(workspace, "v1")
    before = os.getxattr(workspace, "user.artfs.usage")
    (workspace / "b").write_bytes(b"x" * 1_000_000)
    os.sync()
    assert os.getxattr(workspace, "user.artfs.usage") != before
    control.restore(workspace, "v1")
    assert os.getxattr(workspace, "user.artfs.usage") == before


# neighbours
def test_a_restore_leaves_other_namespaces_alone(mount: Mounted) -> None:
    one, other = mount.workspace("one"), mount.workspace("other")
    for workspace in (one, other):
        (workspace / "a").write_text("before")
        control.checkpoint(workspace, "v1")
        (workspace / "a").write_text("after")
    with opened(other / "a", os.O_RDWR) as fd:
        os.write(fd, b"dirty!")
        control.restore(one, "v1")
        assert (one / "a").read_text() == "before"
        assert os.pread(fd, 10, 0) == b"dirty!"
        assert result(os.fsync, fd) == "ok"
        # A late write that was refused there is no failure of a checkpoint here.
        assert control.checkpoint(other, "v2").name == "v2"


@pytest.mark.skipif(os.geteuid() != 0, reason="binding needs root")
def test_what_is_mounted_below_stays(workspace: Path, restore: Restore, tmp_path: Path) -> None:
    """A container's nested volume: in a directory whose neighbours change, and in the root that is restored."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/inside").write_text("inside")
    for name in ("d/nested", "nested"):
        (workspace / name).mkdir(parents=True)
    control.checkpoint(workspace, "v1")
    (workspace / "d/new").write_text("x")
    (workspace / "new").write_text("x")
    points = [workspace / "d/nested", workspace / "nested"]
    try:
        for point in points:
            run("mount", "--bind", tmp_path / "volume", point)
        restore(workspace, "v1")
        eventually(lambda: not (workspace / "new").exists() and not (workspace / "d/new").exists())
        for point in points:
            assert point.is_mount() and (point / "inside").read_text() == "inside"
    finally:
        for point in points:
            subprocess.run(["umount", str(point)], check=False, capture_output=True)
    assert os.listdir(workspace / "nested") == []


def test_git_goes_on_after_a_restore(workspace: Path) -> None:
    need("git")
    run("git", "init", "-q", workspace)
    identity = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    (workspace / "a").write_text("one")
    run("git", "add", ".", cwd=workspace)
    run("git", "commit", "-qm", "one", cwd=workspace, env=identity)
    head = run("git", "rev-parse", "HEAD", cwd=workspace)
    control.checkpoint(workspace, "v1")
    for i in range(3):
        (workspace / "a").write_text(f"more {i}")
        run("git", "commit", "-qam", f"{i}", cwd=workspace, env=identity)
    run("git", "gc", "-q", cwd=workspace)
    control.restore(workspace, "v1")
    assert run("git", "rev-parse", "HEAD", cwd=workspace) == head
    assert run("git", "status", "--porcelain", cwd=workspace) == ""
    run("git", "fsck", "--strict", cwd=workspace)
    (workspace / "a").write_text("another way")
    run("git", "commit", "-qam", "after", cwd=workspace, env=identity)


def test_two_restores_at_once_end(workspace: Path) -> None:
    """Each holds the lock of a directory in which the other has names to tell the kernel about."""
    for name in ("d", "e"):
        (workspace / name).mkdir()
        (workspace / name / "old").write_text("x")
    control.checkpoint(workspace, "v1")
    for _ in range(2):
        for name in ("d", "e"):
            (workspace / name / "new").write_text("y")
        children = [
            Child(lambda name=name: command(workspace / name, "restore", "v1"))  # type: ignore[misc]
            for name in ("d", "e")
        ]
        for child in children:
            child.join()
        eventually(lambda: not (workspace / "d/new").exists() and not (workspace / "e/new").exists())


def test_a_restore_that_is_interrupted_is_whole_or_not_there(workspace: Path) -> None:
    """SIGKILL of the caller at random moments: the tree is one state or the other, and the kernel shows it."""
    for i in range(200):
        (workspace / f"f{i}").write_text("one")
    control.checkpoint(workspace, "one")
    for i in range(200):
        (workspace / f"f{i}").write_text("second")
    control.checkpoint(workspace, "two")
    for round in range(10):
        child = Child(lambda round=round: control.restore(workspace, ("one", "two")[round % 2]))  # type: ignore[misc]
        time.sleep(0.001 * round)
        child.kill()
        # The next request of the namespace waits for the restore, if that was begun.
        control.checkpoint(workspace, f"after{round}")
        view = workspace / f".checkpoints/after{round}"
        want = {(view / f"f{i}").read_text() for i in range(200)}
        assert len(want) == 1
        eventually(lambda want=want: {(workspace / f"f{i}").read_text() for i in range(200)} == want)  # type: ignore[misc]


def test_a_fresh_process_sees_it_at_once(workspace: Path) -> None:
    path = workspace / "a"
    path.write_text("one")
    control.checkpoint(workspace, "v1")
    for i in range(50):
        path.write_text(f"{i}" * 100)
        control.restore(workspace, "v1")
        assert in_child(lambda: (path.read_text(), path.stat().st_size)) == ("one", 3)
