"""The grid above the namespaces, as a mount shows it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artfs import control
from artfs.errors import NotFoundError
from tests.fuse.tools import ask, call, command, eventually, opened
from tests.mounting import Mounted, mounted
from tests.posix.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2, result
from tests.programs.run import run


@pytest.fixture
def shared(mount: Mounted) -> Path:
    """The sandbox's own scope of a new store."""
    return mount.point / "default/shared"


# what is there
def test_a_new_store(mount: Mounted) -> None:
    assert os.listdir(mount.point) == ["default"]
    assert os.listdir(mount.point / "default") == ["shared"]
    assert os.listdir(mount.point / "default/shared") == []
    paths = [mount.point, mount.point / "default", mount.point / "default/shared"]
    assert run("find", mount.point).splitlines() == [str(path) for path in paths]
    assert not (mount.point / "other").exists()
    assert not (mount.point / "default/sess-unknown").exists()


def test_listings_are_true(shared: Path) -> None:
    for name in ("b", "a", "c"):
        (shared / name).mkdir()
    for folder in (shared, shared.parent, shared.parent.parent):
        for entry in os.scandir(folder):
            assert entry.is_dir(follow_symlinks=False)
            assert entry.inode() == os.stat(entry.path).st_ino
        assert len({entry.inode() for entry in os.scandir(folder)}) == len(os.listdir(folder))
    assert sorted(os.listdir(shared)) == ["a", "b", "c"]


def test_numbers_are_the_same_after_a_remount(mount: Mounted) -> None:
    def numbers() -> dict[str, int]:
        paths = run("find", mount.point).splitlines()
        return {path: os.stat(path).st_ino for path in paths}

    (mount.workspace("w") / "d").mkdir()
    before = numbers()
    mount.stop()
    mount.start()
    assert numbers() == before


# namespaces by mkdir, rmdir, rename
def test_mkdir_makes_a_namespace(mount: Mounted, shared: Path) -> None:
    (shared / "web").mkdir(mode=0o750)
    assert (shared / "web").stat().st_mode & 0o777 == 0o750
    assert json.loads(ask(shared / "web", "namespace"))["grid_path"] == "grid/default/shared/web"
    assert [ns["grid_path"] for ns in call(mount, "ns_list")] == ["grid/default/shared/web"]
    assert result(os.mkdir, shared / "web") == "EEXIST"
    (mount.point / "default/user-bob/own").mkdir()
    assert json.loads(ask(mount.point / "default/user-bob/own", "namespace"))["scope"] == "user"
    assert sorted(os.listdir(mount.point / "default")) == ["shared", "user-bob"]


def test_names_of_namespaces(shared: Path) -> None:
    for good in ("a b", "é" * 100, "x" * 255, "-", "~2", "...", "_data"):
        (shared / good).mkdir()
        assert (shared / good / "f").write_text("x") == 1
    assert len(os.listdir(shared)) == 7
    bad: dict[str | bytes, str] = {".artfs": "EINVAL", ".checkpoints": "EINVAL", ".artfs-x": "EINVAL"}
    for name, want in bad.items():
        assert result(os.mkdir, shared / os.fsdecode(name)) == want, name
    assert result(os.mkdir, shared / ("x" * 256)) == "ENAMETOOLONG"
    assert len(os.listdir(shared)) == 7


def test_names_that_are_not_utf8_are_refused(shared: Path) -> None:
    name = shared / os.fsdecode(b"\xff\xfe")
    assert not name.exists()
    assert result(os.mkdir, name) == "EILSEQ"
    (shared / "w").mkdir()
    assert result(os.rename, shared / "w", name) == "EILSEQ"
    assert result(os.rmdir, name) == "ENOENT"
    assert os.listdir(shared) == ["w"]
    # Inside of a namespace any bytes will do.
    (shared / "w" / name.name).write_text("x")
    assert os.listdir(os.fsencode(shared / "w")) == [b"\xff\xfe"]


def test_rmdir_destroys_an_empty_namespace(mount: Mounted, shared: Path) -> None:
    (shared / "w").mkdir()
    (shared / "w/f").write_text("x")
    assert result(os.rmdir, shared / "w") == "ENOTEMPTY"
    (shared / "w/f").unlink()
    (shared / "w").rmdir()
    assert os.listdir(shared) == [] and not (shared / "w").exists()
    assert call(mount, "ns_list") == call(mount, "ns_list", trash=True) == []
    assert result(os.rmdir, shared / "w") == "ENOENT"


def test_rm_rf_destroys(mount: Mounted, shared: Path) -> None:
    shutil.copytree(Path(json.__file__).parent, shared / "w")
    os.sync()
    run("rm", "-rf", shared / "w")
    assert not (shared / "w").exists()
    assert call(mount, "ns_list") == []
    prefix = mount.root / "objects/grid/default/shared"
    eventually(lambda: not list(prefix.glob("*")))


def test_with_checkpoints_it_goes_to_the_trash(mount: Mounted, shared: Path) -> None:
    (shared / "w").mkdir()
    (shared / "w/f").write_text("precious")
    command(shared / "w", "checkpoint", "v1")
    run("rm", "-rf", shared / "w")
    assert os.listdir(shared) == []
    (trashed,) = call(mount, "ns_list", trash=True)
    assert trashed["grid_path"] == "grid/default/shared/w" and trashed["trashed"]
    (shared / "w").mkdir()  # the name is free
    call(mount, "ns_undelete", path_or_id=trashed["id"])
    assert sorted(os.listdir(shared)) == ["w", "w~2"]
    control.restore(shared / "w~2", "v1")
    assert (shared / "w~2/f").read_text() == "precious"


def test_what_is_open_in_a_destroyed_namespace_is_stale(shared: Path, mount: Mounted) -> None:
    (shared / "w/d").mkdir(parents=True)
    (shared / "w/f").write_text("x")
    with opened(shared / "w/f", os.O_RDWR) as fd, opened(shared / "w/d") as folder:
        os.write(fd, b"dirty")
        call(mount, "ns_delete", path="default/shared/w", for_good=True)
        for attempt in (
            lambda: os.pread(fd, 1, 0),
            lambda: os.fstat(fd),
            lambda: os.listdir(folder),
            lambda: os.stat("x", dir_fd=folder),
            lambda: os.mkdir("x", dir_fd=folder),
        ):
            assert result(attempt) in ("ESTALE", "ENOENT"), attempt
        assert result(os.fstat, fd) == "ESTALE"
    assert not (shared / "w").exists() and os.listdir(shared) == []


def test_rename_within_the_scope(mount: Mounted, shared: Path) -> None:
    (shared / "a").mkdir()
    (shared / "a/f").write_text("x")
    number = (shared / "a/f").stat().st_ino
    with opened(shared / "a/f", os.O_RDWR) as fd:
        os.rename(shared / "a", shared / "b")
        assert os.pwrite(fd, b"y", 0) == 1
    assert os.listdir(shared) == ["b"] and not (shared / "a").exists()
    assert (shared / "b/f").read_text() == "y" and (shared / "b/f").stat().st_ino == number
    assert json.loads(ask(shared / "b", "namespace"))["name"] == "b"
    assert [ns["grid_path"] for ns in call(mount, "ns_list")] == ["grid/default/shared/b"]
    os.rename(shared / "b", shared / "b")
    assert result(os.rename, shared / "missing", shared / "c") == "ENOENT"
    assert result(os.rename, shared / "b", shared / ".artfs") == "EINVAL"
    mount.stop()
    mount.start()
    assert (shared / "b/f").read_text() == "y"


def test_rename_onto_a_namespace(mount: Mounted, shared: Path) -> None:
    for name in ("a", "full", "empty"):
        (shared / name).mkdir()
        if name != "empty":
            (shared / name / "f").write_text(name)
    assert result(renameat2, shared / "a", shared / "empty", RENAME_NOREPLACE) == "EEXIST"
    assert result(renameat2, shared / "a", shared / "empty", RENAME_EXCHANGE) == "EINVAL"
    assert result(os.rename, shared / "a", shared / "full") == "ENOTEMPTY"
    os.rename(shared / "a", shared / "empty")
    assert sorted(os.listdir(shared)) == ["empty", "full"]
    assert (shared / "empty/f").read_text() == "a"
    assert len(call(mount, "ns_list")) == 2


def test_nothing_moves_across_namespaces_or_scopes(mount: Mounted, shared: Path) -> None:
    for name in ("a", "b"):
        (shared / name).mkdir()
        (shared / name / "f").write_text(name)
        (shared / name / "d").mkdir()
    other = mount.point / "default/user-bob"
    (other / "c").mkdir()
    for old, new in (
        (shared / "a/f", shared / "b/g"),
        (shared / "a/d", shared / "b/e"),
        (shared / "a/d", shared / "new"),
        (shared / "b", shared / "a/inner"),
        (shared / "b", other / "b"),
        (shared / "a/f", other / "c/f"),
    ):
        assert result(os.rename, old, new) == "EXDEV", (old, new)
    assert result(os.link, shared / "a/f", shared / "b/g") == "EXDEV"
    with opened(shared / "a/f") as source, opened(shared / "b/f", os.O_RDWR) as target:
        assert result(os.copy_file_range, source, target, 1) in ("EXDEV", "ok")  # the kernel may copy by itself
    run("mv", shared / "a/f", shared / "b/moved")  # mv copies then
    assert (shared / "b/moved").read_text() == "a" and not (shared / "a/f").exists()


def test_what_may_not_be_made_above_namespaces(mount: Mounted, shared: Path) -> None:
    (shared / "w").mkdir()
    (shared / "w/f").write_text("x")
    places = (mount.point, mount.point / "default", shared)
    attempts: list[tuple[Callable[..., Any], Callable[[Path], tuple[Any, ...]]]] = [
        (os.open, lambda p: (p / "file", os.O_CREAT | os.O_WRONLY)),
        (os.open, lambda p: (p, os.O_TMPFILE | os.O_RDWR)),
        (os.symlink, lambda p: ("x", p / "link")),
        (os.mkfifo, lambda p: (p / "fifo",)),
        (os.chmod, lambda p: (p, 0o777)),
        (os.chown, lambda p: (p, 1, 1)),
        (os.utime, lambda p: (p,)),
        (os.setxattr, lambda p: (p, "user.x", b"y")),
        (os.removexattr, lambda p: (p, "user.x")),
    ]
    for place in places:
        for function, arguments in attempts:
            outcome = result(function, *arguments(place))
            assert outcome in ("EPERM", "EOPNOTSUPP", "ENODATA"), (function, place, outcome)
        assert result(os.link, shared / "w/f", place / "hard") in ("EXDEV", "EPERM")
        assert os.listxattr(place) == []
    assert result(os.mkdir, mount.point / "sandbox") == "EPERM"
    assert result(os.mkdir, mount.point / "default/folder") == "EPERM"
    assert result(os.mkdir, mount.point / "default/sess-new") == "EPERM"
    assert result(os.mkdir, mount.point / "default/user-x y") == "EPERM"
    for folder in (mount.point / "default", shared):
        assert result(os.rmdir, folder) in ("EPERM", "ENOTEMPTY")
        assert result(os.rename, folder, folder.with_name("x")) in ("EPERM", "EXDEV", "ENOENT")
    assert result(os.unlink, shared / "w") == "EISDIR"
    assert run("find", mount.point, "-maxdepth", "3").split() == [
        str(p) for p in (mount.point, mount.point / "default", shared, shared / "w")
    ]


# changes from elsewhere
def test_what_other_processes_make_appears_at_once(mount: Mounted, shared: Path) -> None:
    for i in range(10):
        path = shared / f"w{i}"
        assert not path.exists() and os.listdir(shared) == [f"w{k}" for k in range(i)]
        call(mount, "ns_create", path=f"default/shared/w{i}")
        assert path.is_dir() and path.name in os.listdir(shared)
        (path / "f").write_text("x")
    assert not (mount.point / "default/user-eve" / "w").exists()
    call(mount, "ns_create", path="default/user-eve/w")
    assert (mount.point / "default/user-eve/w").is_dir()
    assert "user-eve" in os.listdir(mount.point / "default")
    assert "second" not in os.listdir(mount.point)
    call(mount, "ns_create", path="second/shared/w")
    assert sorted(os.listdir(mount.point)) == ["default", "second"]
    assert os.listdir(mount.point / "second/shared") == ["w"]


def test_what_other_processes_destroy_or_rename_vanishes_at_once(mount: Mounted, shared: Path) -> None:
    for i in range(10):
        path = shared / f"w{i}"
        path.mkdir()
        (path / "f").write_text("x")
        os.listdir(shared)
        if i % 2:
            call(mount, "ns_delete", path=f"default/shared/w{i}")
        else:
            call(mount, "ns_rename", path=f"default/shared/w{i}", name=f"renamed{i}")
            assert (shared / f"renamed{i}/f").read_text() == "x"
        assert not (path / "f").exists() and not path.exists()
        assert path.name not in os.listdir(shared)


def test_files_that_other_processes_write_appear_at_once(mount: Mounted, shared: Path) -> None:
    (shared / "w").mkdir()
    path = shared / "w/f"
    for content in (b"one", b"x" * 3_000_000, b"three"):
        os.listdir(shared / "w")
        path.exists()
        handle = call_write(mount, "default/shared/w/f", content)
        assert handle["size"] == len(content)
        assert path.read_bytes() == content and os.listdir(shared / "w") == ["f"]
    call(mount, "fs_remove", path="default/shared/w/f")
    assert not path.exists() and os.listdir(shared / "w") == []


def call_write(mount: Mounted, path: str, content: bytes) -> Any:
    """Write a file through the store's calls: a handle belongs to its connection."""
    import trio

    from artfs.store.connecting import connect

    async def work() -> Any:
        async with connect(mount.root, "test") as caller:
            handle = await caller.call("fs_write_begin", path=path)
            for start in range(0, len(content), 1 << 20):
                part = content[start : start + (1 << 20)]
                await caller.call("fs_write_part", handle=handle, data=part)
            return await caller.call("fs_write_end", handle=handle)

    return trio.run(work)


# virtual files
def test_the_state_of_the_store_can_be_read(mount: Mounted) -> None:
    info = mount.point / ".artfs"
    assert sorted(os.listdir(info)) == ["config", "stats", "status"]
    assert ".artfs" not in os.listdir(mount.point)
    status, stats, config = (json.loads((info / n).read_bytes()) for n in ("status", "stats", "config"))
    assert status["root"] == str(mount.root) and status["failure"] == "" and status["journal_size"] > 0
    assert stats["nodes_held"] > 0 and stats["requests"]
    assert config["block_size"] == 1 << 20
    assert json.loads(run("cat", info / "status"))["root"] == str(mount.root)
    for _ in range(3):
        (mount.point / "default/shared" / f"w{_}").mkdir()
        found = json.loads((info / "status").read_bytes())
        assert found["open_namespaces"] == _ + 1, "as it is when it is opened"
    assert not (mount.point / "default/.artfs").exists()


def test_the_state_of_the_store_cannot_be_changed(mount: Mounted) -> None:
    info = mount.point / ".artfs"
    assert result(os.unlink, info / "status") == "EPERM"
    assert result(os.open, info / "new", os.O_CREAT | os.O_WRONLY) == "EPERM"
    assert result(os.truncate, info / "config", 0) == "EROFS"
    assert result(os.rename, info / "config", info / "x") == "EPERM"
    assert result(os.mkdir, info / "x") == "EPERM"
    assert result(os.rmdir, info) in ("EPERM", "ENOTEMPTY")
    assert result(os.chmod, info / "config", 0o777) in ("EPERM", "EROFS")


def test_virtual_files_of_a_workspace(mount: Mounted, shared: Path) -> None:
    (shared / "w").mkdir()
    (shared / "w/d").mkdir()
    for name in ("_meta.json", ".workspace"):
        found = json.loads((shared / "w" / name).read_bytes())
        assert found["grid_path"] == "grid/default/shared/w" and found["type"] == "workspace"
        assert not (shared / "w/d" / name).exists()
        assert result(os.unlink, shared / "w" / name) != "ok"
        assert result(os.truncate, shared / "w" / name, 0) == "EROFS"
        (shared / "w/d/x").touch()
        assert result(os.rename, shared / "w/d/x", shared / "w" / name) == "EPERM"
        (shared / "w/d/x").unlink()
    os.rename(shared / "w", shared / "v")
    assert json.loads((shared / "v/_meta.json").read_bytes())["name"] == "v", "as it is when it is opened"
    assert os.listdir(shared / "v") == ["d"]
    (shared / "v/d").rmdir()
    (shared / "v").rmdir()  # nothing virtual keeps it


# a part of the grid
@pytest.mark.parametrize("path", ["grid/default/shared/w", "default/shared", "default"])
def test_a_part_of_the_grid_can_be_mounted(tmp_path: Path, path: str) -> None:
    with mounted(tmp_path) as whole:
        (whole.workspace("w") / "d").mkdir()
    with mounted(tmp_path, ("--path", path)) as part:
        workspace = part.point / Path("default/shared/w").relative_to(path.removeprefix("grid/"))
        (workspace / "d/f").write_text("x")
        command(workspace, "checkpoint", "v1")
        (workspace / "d/f").write_text("later")
        control.restore(workspace, "v1")
        assert (workspace / "d/f").read_text() == "x"
        assert os.listdir(workspace / ".checkpoints") == ["v1"]
        call(part, "ns_create", path="default/shared/elsewhere")
        if path == "default/shared":
            assert sorted(os.listdir(part.point)) == ["elsewhere", "w"]


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    with mounted(tmp_path) as whole:
        whole.workspace("w")
    for path in ("default/shared/missing", "default/shared/w/missing"):
        with pytest.raises(RuntimeError, match="missing"), mounted(tmp_path, ("--path", path)):
            pass


def test_a_namespace_that_is_not_there_is_said_to_be_so(mount: Mounted) -> None:
    with pytest.raises(NotFoundError, match="Namespace not found"):
        call(mount, "ns_info", path="default/shared/none")
