"""Sessions in a mount: a session's directory is there from its beginning to its end, and not a moment longer."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from artfs.errors import ExistsError, NotFoundError
from tests.fuse.tools import call, command, eventually, opened
from tests.mounting import Mounted, mounted
from tests.posix.calls import result

LATE = 0.5
"""Seconds after the end of a session in which the mount must have noticed."""


def begin(mount: Mounted, id: str = "s1", ttl: float = 3600, user: str | None = None) -> Path:
    session = call(mount, "session_create", id=id, ttl_seconds=ttl, user=user)
    return mount.point / Path(session["grid_path"]).relative_to("grid")


def test_its_directory_appears_with_it(mount: Mounted) -> None:
    path = mount.point / "default/sess-s1"
    assert not path.exists() and os.listdir(mount.point / "default") == ["shared"]
    assert begin(mount) == path
    assert path.is_dir() and os.listdir(path) == []
    assert sorted(os.listdir(mount.point / "default")) == ["sess-s1", "shared"]
    (path / "w").mkdir()
    (path / "w/f").write_text("x")
    assert not (mount.point / "default/s1").exists(), "a directory has one name"
    assert call(mount, "fs_read", path="default/s1/w/f") == b"x"


def test_the_spelling_of_its_id_makes_no_difference(mount: Mounted) -> None:
    assert begin(mount, "sess-s1") == mount.point / "default/sess-s1"
    with pytest.raises(ExistsError):
        begin(mount, "s1")


def is_gone(path: Path) -> bool:
    return result(os.open, path, os.O_RDONLY) == "ENOENT"


@pytest.mark.parametrize("end", ["deleted", "expired"])
def test_its_end_is_the_end_of_everything_in_it(mount: Mounted, end: str) -> None:
    """Names, pages and descriptors that the kernel holds, in every directory below, go at once; then the bytes."""
    ttl = 2.0 if end == "expired" else 3600.0
    expires = time.time() + ttl
    path = begin(mount, ttl=ttl)
    stay = begin(mount, "other")
    for name in ("w", "v"):
        (path / name / "d/e").mkdir(parents=True)
        for i in range(50):
            (path / name / "d" / f"f{i}").write_bytes(os.urandom(20_000))
    command(path / "w", "checkpoint", "v1")
    (stay / "w").mkdir()
    (stay / "w/f").write_text("stays")
    for file in (path / "w/d").glob("f*"):
        file.read_bytes()
    prefix = mount.root / "objects/grid/default/sess-s1"
    eventually(lambda: bool(list(prefix.glob("*/*"))))
    assert not (path / "w/d/missing").exists()
    with (
        opened(path / "w/d/f1", os.O_RDWR) as fd,
        opened(path / "w/d/e") as folder,
        opened(path) as scope,
        opened(path / "w/.checkpoints/v1/d/f1") as view,
    ):
        os.pread(fd, 100, 0)
        os.pread(view, 100, 0)
        if end == "expired":
            assert time.time() < expires, "the machine is too slow for this test"
            time.sleep(expires - time.time())
        else:
            call(mount, "session_delete", id="s1")
        took = eventually(lambda: result(os.stat, path / "w/d/f2") == "ENOENT", LATE)
        took += eventually(lambda: result(os.pread, fd, 100, 0) == "ESTALE", LATE - took)
        print(f"{end}: gone after {took * 1000:.0f} ms")
        for gone in (path / "w/d/f1", path / "w/d", path / "w", path, path / "w/.checkpoints/v1/d/f1"):
            took += eventually(partial(is_gone, gone), LATE - took)
        for stale in (fd, folder, view):
            assert result(os.fstat, stale) == "ESTALE"
        assert result(os.pread, view, 100, 0) == "ESTALE"
        assert result(os.stat, "x", dir_fd=folder) in ("ESTALE", "ENOENT")
        assert result(os.stat, "w", dir_fd=scope) == "ENOENT"
        assert result(os.mkdir, "new", dir_fd=scope) != "ok"
        assert result(os.write, fd, b"late") in ("ESTALE", "ok")  # the cache may take it; it goes nowhere
        assert result(os.fsync, fd) != "ok" or end
    assert sorted(os.listdir(mount.point / "default")) == ["sess-other", "shared"]
    eventually(lambda: not list(prefix.glob("*")))
    assert (stay / "w/f").read_text() == "stays"
    with pytest.raises(NotFoundError):
        call(mount, "ns_info", path="default/sess-s1/w")
    assert {ns["grid_path"] for ns in call(mount, "ns_list")} == {"grid/default/sess-other/w"}
    assert call(mount, "ns_list", trash=True) == []
    # What was late in the kernel is no failure of anybody else.
    command(stay / "w", "checkpoint", "v1")


def test_its_id_is_remembered_and_not_given_again(mount: Mounted) -> None:
    begin(mount, ttl=0.3)
    time.sleep(0.4)
    with pytest.raises(ExistsError):
        begin(mount)
    assert not (mount.point / "default/sess-s1").exists()


def test_an_extension_counts(mount: Mounted) -> None:
    path = begin(mount, ttl=1.0)
    (path / "w").mkdir()
    call(mount, "session_extend", id="s1", seconds=3600)
    time.sleep(1.5)
    assert (path / "w").is_dir() and os.listdir(path) == ["w"]


def test_a_namespace_with_its_own_time_to_live(mount: Mounted) -> None:
    call(mount, "ns_create", path="default/shared/brief", ttl_seconds=1.5)
    path = mount.point / "default/shared/brief"
    limit = time.time() + 1.5
    (path / "f").write_text("x")
    with opened(path / "f") as fd:
        assert os.pread(fd, 1, 0) == b"x"
        time.sleep(max(limit - time.time(), 0))
        eventually(lambda: result(os.open, path / "f", os.O_RDONLY) == "ENOENT", LATE)
        eventually(lambda: result(os.pread, fd, 1, 0) == "ESTALE", LATE)
    assert os.listdir(mount.point / "default/shared") == []


def test_what_expired_while_nothing_was_mounted_is_gone(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        path = begin(mount, ttl=1.5)
        (path / "w").mkdir()
        (path / "w/f").write_bytes(os.urandom(100_000))
        mount.stop()
        time.sleep(1.6)
        mount.start()
        assert not path.exists() and os.listdir(mount.point / "default") == ["shared"]
        eventually(lambda: not list((mount.root / "objects/grid/default/sess-s1").glob("*")))


def test_many_files_go_quickly(mount: Mounted) -> None:
    """2 000 files whose names, attributes and pages the kernel holds."""
    path = begin(mount)
    (path / "w").mkdir()
    for i in range(2000):
        (path / "w" / f"f{i}").write_bytes(b"x" * 100)
    fds = [os.open(path / "w" / f"f{i}", os.O_RDONLY) for i in range(0, 2000, 20)]
    try:
        call(mount, "session_delete", id="s1")
        start = time.monotonic()
        assert not (path / "w/f7").exists()
        eventually(lambda: all(result(os.pread, fd, 1, 0) == "ESTALE" for fd in fds), LATE)
        print(f"gone after {(time.monotonic() - start) * 1000:.0f} ms")
    finally:
        for fd in fds:
            os.close(fd)
