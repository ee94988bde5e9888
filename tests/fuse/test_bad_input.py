"""What a mount does about what it should never get: damaged objects and databases, an engine that does not answer,
values that are too long, names that are no names.

Damage is answered with EIO and a log line that names the remedy, never with wrong bytes; the store takes no changes
from then on, and what is sound can still be read.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.fuse.tools import ask, checkpoints, command, eventually, opened
from tests.mounting import Mounted, mounted
from tests.posix.calls import result

pytestmark = pytest.mark.fuse

MIB = 1 << 20
WAIT_LIMIT = 2.0
SMALL = {"ARTFS_WAIT_LIMIT": str(WAIT_LIMIT), "ARTFS_JOURNAL_SIZE": str(8 * MIB), "ARTFS_COMMIT_INTERVAL": "0.2"}
"""Settings that make a journal full soon, and waiting short."""


def objects(mount: Mounted) -> list[Path]:
    return sorted(path for path in (mount.root / "objects").rglob("*") if path.is_file())


def flip(path: Path, at: int) -> None:
    """Change one bit of a file, below everybody's caches."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 4]))


def read(path: Path) -> str:
    return result(path.read_bytes)


@pytest.mark.parametrize("size", [20_000, 5 * MIB], ids=["small", "large"])
def test_a_damaged_object(mount: Mounted, size: int) -> None:
    workspace = mount.workspace("w")
    content = os.urandom(size)
    (workspace / "sound").write_bytes(b"sound " * 5000)
    os.sync()
    mount.stop()  # so that what follows has an object of its own
    mount.start()
    (workspace / "hurt").write_bytes(content)
    os.sync()
    mount.stop()
    flip(objects(mount)[-1], size // 2)
    mount.start()
    assert read(workspace / "sound") == "ok"
    with opened(workspace / "hurt") as fd:
        got = b""
        with pytest.raises(OSError, match="Input/output error"):
            while piece := os.pread(fd, 128 << 10, len(got)):
                got += piece
        assert content.startswith(got)
    assert "run: artfs fsck" in mount.log()
    assert str(objects(mount)[-1]) in mount.log()
    # The store is read-only from here on.
    assert result((workspace / "new").touch) == "EROFS"
    assert result((workspace / "sound").unlink) == "EROFS"
    assert result(command, workspace, "checkpoint", "c") == "EROFS"
    assert (workspace / "sound").read_bytes() == b"sound " * 5000
    assert "artfs fsck" in (mount.point / ".artfs" / "status").read_text()
    # The damage is on the disk: it is there after a restart, and still no wrong bytes come.
    mount.stop()
    mount.start()
    assert read(workspace / "hurt") == "EIO"
    assert read(workspace / "sound") == "ok"


def test_a_missing_object(mount: Mounted) -> None:
    workspace = mount.workspace("w")
    (workspace / "f").write_bytes(os.urandom(MIB))
    os.sync()
    mount.stop()
    for path in objects(mount):
        path.unlink()
    mount.start()
    assert read(workspace / "f") == "EIO"
    assert "is missing; run: artfs fsck" in mount.log()
    assert result((workspace / "new").touch) == "EROFS"
    assert (workspace / "f").stat().st_size == MIB


def test_an_object_that_was_cut_short(mount: Mounted) -> None:
    workspace = mount.workspace("w")
    (workspace / "f").write_bytes(os.urandom(MIB))
    os.sync()
    mount.stop()
    os.truncate(objects(mount)[-1], 100_000)
    mount.start()
    assert read(workspace / "f") == "EIO"
    assert "run: artfs fsck" in mount.log()


def test_a_damaged_database(mount: Mounted) -> None:
    """Pages of rows are overwritten: names may be gone and errors come, but no wrong bytes and no hang."""
    workspace = mount.workspace("w")
    for number in range(3000):
        (workspace / f"file{number}").write_bytes(b"content of %d" % number)
    os.sync()
    mount.stop()
    with closing(sqlite3.connect(mount.root / "meta.db")) as database:
        database.execute("pragma wal_checkpoint(truncate)")
    size = (mount.root / "meta.db").stat().st_size
    with (mount.root / "meta.db").open("r+b") as file:
        for at in range(size // 4 // 4096 * 4096, size - 4096, 4 * 4096):
            file.seek(at)
            file.write(b"\xff" * 4096)
    try:
        mount.start()
    except RuntimeError as error:  # it may be noticed at once
        assert "artfs fsck" in str(error)
        return
    outcomes = set()
    for number in range(3000):
        path = workspace / f"file{number}"
        outcome = read(path)
        outcomes.add(outcome)
        if outcome == "ok":
            assert path.read_bytes() == b"content of %d" % number
    assert "EIO" in outcomes
    assert outcomes <= {"ok", "EIO", "ENOENT", "ESTALE"}
    assert result((workspace / "new").touch) in ("EIO", "EROFS")
    assert "artfs fsck" in mount.log()


def test_no_database_at_all(mount: Mounted) -> None:
    """A store that has lost it is not quietly a new one."""
    mount.workspace("w")
    mount.stop()
    for path in mount.root.glob("meta.db*"):
        path.write_bytes(b"this is no database " * 1000)
    with pytest.raises(RuntimeError, match="artfs fsck"):
        mount.start()


@contextmanager
def held_engine(mount: Mounted) -> Iterator[None]:
    """Another program has the database locked: no commit gets through."""
    with closing(sqlite3.connect(mount.root / "meta.db", isolation_level=None, timeout=20)) as database:
        database.execute("begin immediate")
        try:
            yield
        finally:
            database.execute("rollback")


def test_an_engine_that_does_not_answer(tmp_path: Path) -> None:
    """Changes go on until the journal is full; then they wait, get EIO at the limit, and work again by themselves.
    What was acknowledged is there."""
    with mounted(tmp_path, env=SMALL) as mount:
        workspace = mount.workspace("w")
        (workspace / "warm").touch()
        done: dict[str, bytes] = {}
        with held_engine(mount):
            failed = ""
            for number in range(500):
                value = os.urandom(40_000)
                path = workspace / f"f{number}"
                start = time.monotonic()
                try:
                    path.touch()
                    os.setxattr(path, "user.value", value)
                except OSError as error:
                    failed = os.strerror(error.errno or 0)
                    waited = time.monotonic() - start
                    break
                done[path.name] = value
            assert failed == "Input/output error"
            assert WAIT_LIMIT * 0.9 <= waited <= WAIT_LIMIT * 3
            assert len(done) > 50
            # What is there can be read meanwhile, and removing is still allowed.
            assert os.getxattr(workspace / "f3", "user.value") == done["f3"]
            (workspace / "warm").unlink()
        eventually(lambda: result((workspace / "again").touch) == "ok", 20)
        mount.kill()
        mount.start()
        assert not (workspace / "warm").exists()
        assert (workspace / "again").exists()
        for name, value in done.items():
            assert os.getxattr(workspace / name, "user.value") == value


def test_a_full_journal_makes_writers_wait(tmp_path: Path) -> None:
    """Several times the journal's size goes through an engine that is slow, and nobody gets an error."""
    with mounted(tmp_path, env={**SMALL, "ARTFS_WAIT_LIMIT": "30"}) as mount:
        workspace = mount.workspace("w")
        stop = threading.Event()

        def slow_down() -> None:
            while not stop.is_set():
                with held_engine(mount):
                    stop.wait(0.5)
                stop.wait(0.1)

        brake = threading.Thread(target=slow_down)
        brake.start()
        longest = 0.0
        try:
            for number in range(600):
                start = time.monotonic()
                path = workspace / f"f{number}"
                path.touch()
                os.setxattr(path, "user.value", bytes([number % 256]) * 40_000)
                path.write_bytes(bytes([number % 256]) * 10_000)
                longest = max(longest, time.monotonic() - start)
        finally:
            stop.set()
            brake.join()
        assert longest > 0.05  # or the journal was never full, and this test shows nothing
        os.sync()
        for number in range(600):
            path = workspace / f"f{number}"
            assert os.getxattr(path, "user.value") == bytes([number % 256]) * 40_000
            assert path.read_bytes() == bytes([number % 256]) * 10_000


def test_names_and_values_that_are_too_long(workspace: Path) -> None:
    path = workspace / "f"
    path.touch()
    assert result((workspace / ("n" * 255)).touch) == "ok"
    assert result((workspace / ("n" * 256)).touch) == "ENAMETOOLONG"
    assert result((workspace / ("é" * 128)).mkdir) == "ENAMETOOLONG"
    assert result(os.rename, path, workspace / ("n" * 256)) == "ENAMETOOLONG"
    assert result(os.symlink, "t" * 4096, workspace / "link") == "ENAMETOOLONG"
    assert result(os.setxattr, path, "user.k", bytes(65_536)) in ("ok", "ENOSPC")
    assert result(os.setxattr, path, "user.k", bytes(65_537)) == "E2BIG"
    assert result(os.setxattr, path, "user." + "k" * 250, b"") == "ok"
    assert result(os.setxattr, path, "user." + "k" * 251, b"") == "ERANGE"
    assert path.exists()


def test_checkpoints_that_do_not_exist(workspace: Path) -> None:
    for what in ("restore", "delete"):
        assert result(command, workspace, what, "nothing") == "ENOENT"
        assert result(command, workspace, what, "") in ("ENOENT", "EINVAL")
    assert result(command, workspace, "clone", "copy nothing") == "ENOENT"
    assert not workspace.with_name("copy").exists()
    assert result(os.rmdir, workspace / ".checkpoints" / "nothing") == "ENOENT"
    assert result(os.listdir, workspace / ".checkpoints" / "nothing") == "ENOENT"
    assert checkpoints(workspace) == []


def test_a_checkpoint_of_a_name_that_is_taken(workspace: Path) -> None:
    """Names may come again, ids do not; mkdir, which makes one entry of that name, refuses."""
    path = workspace / "f"
    path.write_bytes(b"one")
    command(workspace, "checkpoint", "v1")
    path.write_bytes(b"two")
    command(workspace, "checkpoint", "v1")
    assert checkpoints(workspace) == ["v1", "v1~2"]
    assert result(os.mkdir, workspace / ".checkpoints" / "v1") == "EEXIST"
    path.write_bytes(b"three")
    command(workspace, "restore", "v1~2")
    assert path.read_bytes() == b"two"
    assert (workspace / ".checkpoints" / "v1" / "f").read_bytes() == b"one"
    assert result(command, workspace, "clone", workspace.name) == "EEXIST"


@pytest.mark.parametrize("name", ["a/b", ".hidden", "n" * 256, "..", "."])
def test_names_that_no_checkpoint_can_have(workspace: Path, name: str) -> None:
    assert result(command, workspace, "checkpoint", name) in ("EINVAL", "ENAMETOOLONG")
    assert checkpoints(workspace) == []


def test_any_other_name_of_a_checkpoint(workspace: Path) -> None:
    names = ["a:b", "with blank", "ünïcode", "n" * 255, "~tilde"]
    for name in names:
        command(workspace, "checkpoint", name)
    assert checkpoints(workspace) == names
    assert sorted(os.listdir(workspace / ".checkpoints")) == sorted(names)


def test_unknown_commands_and_wrong_places(shared_mount: Mounted, workspace: Path) -> None:
    assert result(command, workspace, "nonsense", "x") in ("ok", "EINVAL", "EOPNOTSUPP")
    for name in ("checkpoints", "namespace", "usage", "dirty"):
        assert ask(workspace, name) is not None
        assert result(os.setxattr, workspace, f"user.artfs.{name}", b"mine") in (
            "EINVAL",
            "EPERM",
            "EACCES",
            "EOPNOTSUPP",
        )
    for name in ("checkpoint", "restore", "delete", "clone"):
        assert result(os.getxattr, workspace, f"user.artfs.{name}") == "ENODATA"
    scope = shared_mount.point / "default" / "shared"
    assert result(command, scope, "checkpoint", "c") in ("EINVAL", "EPERM")
    assert result(os.getxattr, scope, "user.artfs.checkpoints") == "ENODATA"


@pytest.mark.parametrize(
    "name", [".hidden", "has blank", "ünïcode", "star*", "n" * 129, b"\xff\xfe", "new\nline", ".checkpoints"]
)
def test_directories_that_can_be_no_workspace(shared_mount: Mounted, name: str | bytes) -> None:
    scope = shared_mount.point / "default" / "shared"
    before = os.listdir(scope)
    path = os.fsencode(scope) + b"/" + os.fsencode(name)
    outcome = result(os.mkdir, path)
    if outcome == "ok":  # whatever is a name is listed as it was made, and can be removed
        assert stat.S_ISDIR(os.stat(path).st_mode)
        assert os.fsencode(name) in os.listdir(os.fsencode(scope))
        os.rmdir(path)
    else:
        assert outcome in ("EINVAL", "ENAMETOOLONG", "EILSEQ", "EPERM")
    assert os.listdir(scope) == before


def test_what_cannot_be_made_above_the_workspaces(shared_mount: Mounted) -> None:
    sandbox = shared_mount.point / "default"
    for path in (shared_mount.point, sandbox, sandbox / "shared"):
        assert result((path / "file").touch) in ("EPERM", "EACCES", "EINVAL")
        assert result(os.symlink, "x", path / "link") in ("EPERM", "EACCES", "EINVAL")
    for path in (sandbox / "nonsense", sandbox / "user-", sandbox / "sess-a b", shared_mount.point / "bad name"):
        assert result(os.mkdir, path) in ("EINVAL", "EPERM", "EACCES", "ENOENT")
        assert not path.exists()
    assert result(os.mkdir, sandbox / "shared") == "EEXIST"
    assert result(os.rmdir, sandbox / "shared") in ("EPERM", "ENOTEMPTY", "EBUSY", "EACCES")
