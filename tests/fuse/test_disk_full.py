"""A full disk below the store: the writer hears of it, everything before is safe, and writing works again when there is
room, without a remount.

The store lies on a tmpfs of its own, which is filled by a file beside it.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.fuse.tools import command, eventually, opened
from tests.mounting import Mounted
from tests.posix.calls import result

pytestmark = pytest.mark.fuse

MIB = 1 << 20
SIZE = 96 * MIB
WAIT_LIMIT = 2.0
SETTINGS = {"ARTFS_WAIT_LIMIT": str(WAIT_LIMIT), "ARTFS_JOURNAL_SIZE": str(8 * MIB), "ARTFS_COMMIT_INTERVAL": "0.2"}
PATIENCE = 20.0
"""Seconds until a store has noticed that there is room again."""


class SmallDisk:
    """`directory`, of which `fill` leaves `left` bytes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.filler = directory / "filler"

    def free(self) -> int:
        found = os.statvfs(self.directory)
        return found.f_bavail * found.f_frsize

    def fill(self, left: int = 0) -> None:
        """Whatever the store writes meanwhile."""
        with opened(self.filler, os.O_RDWR | os.O_CREAT) as fd:
            while (room := self.free() - left) > 0:
                with suppress(OSError):
                    os.posix_fallocate(fd, os.fstat(fd).st_size, room)

    def drain(self) -> None:
        self.filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid():
        pytest.skip("mounting a tmpfs needs root")
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", directory], check=True)
    try:
        yield SmallDisk(directory)
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@contextmanager
def mounted_on(disk: SmallDisk, tmp_path: Path) -> Iterator[Mounted]:
    mount = Mounted(disk.directory / "store", tmp_path / "mnt", ("-o", "allow_other"), SETTINGS)
    try:
        mount.start()
        yield mount
        mount.stop()
    finally:
        mount.kill()


def write(path: Path, content: bytes) -> int:
    """Make the file and fsync it; the errno of what failed, or 0.  close reports late errors too."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    except OSError as failure:
        return failure.errno or -1
    try:
        os.write(fd, content)
        os.fsync(fd)
    except OSError as failure:
        return failure.errno or -1
    finally:
        os.close(fd)
    return 0


@pytest.mark.parametrize("size", [3 * MIB, 20_000, 500], ids=["large", "small", "tiny"])
def test_a_full_disk(disk: SmallDisk, tmp_path: Path, size: int) -> None:
    with mounted_on(disk, tmp_path) as mount:
        workspace = mount.workspace("w")
        before = {f"before{number}": os.urandom(size) for number in range(4)}
        for name, content in before.items():
            assert write(workspace / name, content) == 0
        command(workspace, "checkpoint", "safe")
        disk.fill(left=2 * size if size > MIB else 0)
        done = {}
        failure = 0
        for number in range(30_000):
            content = os.urandom(size)
            start = time.monotonic()
            failure = write(workspace / f"f{number}", content)
            if failure:
                break
            done[f"f{number}"] = content
        assert failure == errno.ENOSPC
        assert time.monotonic() - start < 4 * WAIT_LIMIT
        for name, content in {**before, **done}.items():
            assert (workspace / name).read_bytes() == content
        # What was there survives a daemon that dies in this state.
        mount.kill()
        disk.drain()
        mount.start()
        for name, content in {**before, **done}.items():
            assert (workspace / name).read_bytes() == content, name


@pytest.mark.parametrize("size", [2 * MIB, 30_000], ids=["large", "small"])
def test_it_recovers_without_a_remount(disk: SmallDisk, tmp_path: Path, size: int) -> None:
    with mounted_on(disk, tmp_path) as mount:
        workspace = mount.workspace("w")
        content = os.urandom(size)
        for turn in range(2):
            assert write(workspace / f"before{turn}", content) == 0
            disk.fill()
            number = 0
            while (failure := write(workspace / f"f{turn}-{number}", content)) == 0:
                number += 1
            assert failure == errno.ENOSPC
            disk.drain()
            eventually(lambda t=turn: write(workspace / f"after{t}", content) == 0, PATIENCE)  # type: ignore[misc]
            assert (workspace / f"before{turn}").read_bytes() == content
            assert (workspace / f"after{turn}").read_bytes() == content
        if size < MIB:  # what is small waits in the journal, and a commit is what fails
            assert "disk is full" in mount.log()
        mount.stop()
        mount.start()
        for turn in range(2):
            assert (workspace / f"before{turn}").read_bytes() == content
            assert (workspace / f"after{turn}").read_bytes() == content


def test_an_unmount_says_what_could_not_be_committed(disk: SmallDisk, tmp_path: Path) -> None:
    with mounted_on(disk, tmp_path) as mount:
        workspace = mount.workspace("w")
        content = os.urandom(20_000)
        disk.fill()
        number = 0
        while write(workspace / f"f{number}", content) == 0:
            number += 1
        umount = [sys.executable, "-m", "artfs", "umount", str(mount.point)]
        done = subprocess.run(umount, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1 and "could not be committed" in done.stderr + done.stdout, done
        mount.stop()
        disk.drain()
        mount.start()
        assert number > 10
        assert all((workspace / f"f{n}").read_bytes() == content for n in range(number))
        done = subprocess.run(umount, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and "could not" not in done.stderr, done
        mount.stop()


def test_removing_makes_room_on_a_full_disk(disk: SmallDisk, tmp_path: Path) -> None:
    """Names can be removed when nothing else works, and without waiting for room."""
    with mounted_on(disk, tmp_path) as mount:
        workspace = mount.workspace("w")
        for number in range(300):
            assert write(workspace / f"f{number}", b"x" * 3000) == 0
        command(workspace, "checkpoint", "old")
        disk.fill()
        number = 0
        while write(workspace / f"more{number}", os.urandom(60_000)) == 0:
            number += 1
        start = time.monotonic()
        for number in range(300):
            assert result((workspace / f"f{number}").unlink) == "ok"
        assert time.monotonic() - start < 10 * WAIT_LIMIT
        # To delete a checkpoint is to commit what is before it, bytes too, and those have no room.
        assert result(command, workspace, "delete", "old") == "ENOSPC"
        disk.drain()
        eventually(lambda: write(workspace / "again", b"y" * 3000) == 0, PATIENCE)
        assert result(command, workspace, "delete", "old") == "ok"
        assert not any(path.name.startswith("f") for path in workspace.iterdir())


def test_buffered_writes_that_find_no_room_are_reported(disk: SmallDisk, tmp_path: Path) -> None:
    """write(2) succeeds, because the kernel caches it; fsync says that it did not last, once for each descriptor."""
    with mounted_on(disk, tmp_path) as mount:
        workspace = mount.workspace("w")
        with opened(workspace / "f", os.O_RDWR | os.O_CREAT) as fd:
            disk.fill()
            assert os.write(fd, os.urandom(16 * MIB)) == 16 * MIB
            with pytest.raises(OSError, match="No space left") as caught:
                os.fsync(fd)
            assert caught.value.errno == errno.ENOSPC
        disk.drain()
        eventually(lambda: write(workspace / "g", b"z" * MIB) == 0, PATIENCE)


def test_a_store_is_not_made_on_a_full_disk(disk: SmallDisk, tmp_path: Path) -> None:
    disk.fill(left=2 * MIB)
    mount = Mounted(disk.directory / "store", tmp_path / "mnt", ("-o", "allow_other"), SETTINGS)
    try:
        with pytest.raises(RuntimeError, match="free some space"):
            mount.start()
        disk.drain()
        mount.start()
        assert write(mount.workspace("w") / "f", b"x") == 0
        mount.stop()
    finally:
        mount.kill()
