"""Who may do what: a checked mount, whose callers are told apart by uid, and mounts that are bound to one principal."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from artfs import control
from artfs.settings import create_store
from tests.fuse.tools import ask, call, checkpoints, command, eventually, inside, opened
from tests.mounting import Mounted, mounted
from tests.posix.actors import User, in_child, result_as
from tests.posix.calls import fallocate, result

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming other users needs root")

ALICE, BOB, SESSION, OPERATOR, NOBODY = (User(uid, uid) for uid in (61001, 61002, 61003, 61004, 61005))
CONFIG = """
[uid_map]
61001 = "user:alice"
61002 = "user:bob"
61003 = "session:s1"
61004 = "admin"
"""
SCOPES = {ALICE: "user-alice", BOB: "user-bob", SESSION: "sess-s1"}


def _prepare(base: Path, config: str = CONFIG) -> None:
    create_store(base / "store")
    (base / "store/config.toml").write_text(config)
    call(base / "store", "session_create", id="s1", user="carol")
    call(base / "store", "session_create", id="alices", user="alice")


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[Mounted]:
    """A checked mount with a workspace `w` of each of the three, and one that all may read."""
    _prepare(tmp_path)
    with mounted(tmp_path, ("--checked",)) as mount, inside(mount.point):
        for user, folder in SCOPES.items():
            in_child(partial(_fill, Path("default", folder, "w")), user=user)
        _fill(Path("default/shared/w"))
        # What is refused below is refused for who asks, not by these.
        for folder in ("shared", *SCOPES.values()):
            for directory, _, files in os.walk(f"default/{folder}/w"):
                os.chmod(directory, 0o777)
                for name in files:
                    if name != "link":
                        os.chmod(f"{directory}/{name}", 0o666)
        yield mount


def _fill(workspace: Path) -> None:
    workspace.mkdir()
    (workspace / "f").write_text("secret")
    (workspace / "d").mkdir()
    (workspace / "d/inner").write_text("x")
    os.symlink("f", workspace / "link")
    os.setxattr(workspace / "f", "user.k", b"v")
    command(workspace, "checkpoint", "v1")


# what everyone sees
@pytest.mark.parametrize("user", [ALICE, BOB, SESSION])
def test_everyone_works_in_their_own(checked: Mounted, user: User) -> None:
    own = Path("default", SCOPES[user])

    def work() -> None:
        workspace = own / "w"
        (workspace / "f").write_text("mine")
        assert (workspace / "f").read_text() == "mine" and os.stat(workspace / "f").st_uid == user.uid
        (workspace / "new").mkdir()
        os.rename(workspace / "new", workspace / "moved")
        os.rmdir(workspace / "moved")
        assert sorted(os.listdir(workspace)) == ["d", "f", "link"]
        control.checkpoint(workspace, "v2")
        (workspace / ".checkpoints/v3").mkdir()
        command(workspace, "checkpoint", "v4")
        assert checkpoints(workspace) == ["v1", "v2", "v3", "v4"]
        (workspace / "f").write_text("later")
        control.restore(workspace, "v3")
        assert (workspace / "f").read_text() == "mine"
        assert (workspace / ".checkpoints/v1/f").read_text() == "secret"
        (workspace / ".checkpoints/v3").rmdir()
        (own / "second").mkdir()
        os.rename(own / "second", own / "renamed")
        (own / "renamed").rmdir()
        assert Path("default/shared/w/f").read_text() == "secret"

    in_child(work, user=user)


def test_listings_show_what_the_caller_may_enter(checked: Mounted) -> None:
    def listings() -> tuple[list[str], list[str]]:
        return sorted(os.listdir(".")), sorted(os.listdir("default"))

    assert in_child(listings, user=BOB) == (["default"], ["shared", "user-bob"])
    assert in_child(listings, user=ALICE) == (["default"], ["sess-alices", "shared", "user-alice"])
    assert in_child(listings, user=SESSION) == (["default"], ["sess-s1", "shared"])
    everything = ["sess-alices", "sess-s1", "shared", "user-alice", "user-bob"]
    assert in_child(listings, user=OPERATOR) == listings() == (["default"], everything)
    assert in_child(listings, user=NOBODY) == ([], [])


def test_scope_directories_are_their_owners_and_stay_so(checked: Mounted) -> None:
    for user, folder in SCOPES.items():
        found = os.stat(f"default/{folder}")
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (user.uid, 0o700)
        for change in (lambda p: os.chmod(p, 0o777), lambda p: os.chown(p, NOBODY.uid, -1)):
            assert result(change, f"default/{folder}") == "EPERM"
            assert result_as(user, change, f"default/{folder}") == "EPERM"
    assert stat.S_IMODE(os.stat("default/shared").st_mode) == 0o755
    assert os.stat("default/sess-alices").st_uid == ALICE.uid


@pytest.mark.parametrize("caller", [ALICE, BOB, SESSION, NOBODY])
def test_no_one_enters_what_is_anothers(checked: Mounted, caller: User) -> None:
    def attempts(folder: str) -> dict[str, str]:
        path = f"default/{folder}"
        return {
            "list": result(os.listdir, path),
            "stat": result(os.stat, f"{path}/w"),
            "read": result(os.open, f"{path}/w/f", os.O_RDONLY),
            "make": result(os.mkdir, f"{path}/x"),
            "remove": result(os.rmdir, f"{path}/w"),
            "checkpoint": result(command, f"{path}/w", "checkpoint", "x"),
        }

    for owner, folder in SCOPES.items():
        if owner is not caller:
            in_child(lambda folder=folder: os.stat(f"default/{folder}/w/f"), user=owner)  # type: ignore[misc]
            found = in_child(lambda folder=folder: attempts(folder), user=caller)  # type: ignore[misc]
            assert set(found.values()) == {"EACCES"}, (folder, found)
            # Nor did it make the owner lose what the kernel knows.
            assert in_child(lambda folder=folder: os.listdir(f"default/{folder}"), user=owner) == ["w"]  # type: ignore[misc]


@pytest.mark.parametrize("caller", [OPERATOR, User(0, 0)])
def test_admins_may_do_everything(checked: Mounted, caller: User) -> None:
    def work() -> None:
        for folder in ("shared", *SCOPES.values()):
            workspace = Path("default", folder, "w")
            assert (workspace / "d/inner").read_text() == "x"
            (workspace / "f").write_text("admin")
            if caller.uid == 0:  # the kernel knows only one superuser
                command(workspace, "checkpoint", "by-admin")

    if caller.uid:  # scope directories are one user's: an admin who is not root reaches the sandbox's own
        assert result_as(caller, os.mkdir, "default/shared/made") in ("ok", "EACCES")
        assert in_child(lambda: Path("default/shared/w/f").read_text(), user=caller) == "secret"
        in_child(lambda: Path("default/shared/w/f").write_text("admin"), user=caller)
        return
    in_child(work, user=caller)


def test_nobody_gets_nothing(checked: Mounted) -> None:
    def work() -> dict[str, str]:
        return {
            "read": result(os.open, "default/shared/w/f", os.O_RDONLY),
            "list": result(os.listdir, "default/shared/w"),
            "attribute": result(os.getxattr, "default/shared/w/f", "user.k"),
            "write": result(os.open, "default/shared/w/f", os.O_WRONLY),
            "make": result(os.mkdir, "default/shared/x"),
            "settings": result(os.open, ".artfs/config", os.O_RDONLY),
            "state": result(os.open, ".artfs/status", os.O_RDONLY),
        }

    assert set(in_child(work, user=NOBODY).values()) == {"EACCES"}


def test_a_session_and_its_user_are_each_in_their_own(tmp_path: Path) -> None:
    """Both may enter what is the session's; the kernel lets one owner in, so that each has what is theirs."""
    _prepare(tmp_path, '[uid_map]\n61001 = "user:carol"\n61003 = "session:s1"\n')
    carol = User(61001, 61001)
    with mounted(tmp_path, ("--checked",)) as mount, inside(mount.point):
        for user, folder in ((carol, "user-carol"), (SESSION, "sess-s1")):
            in_child(partial(_fill, Path("default", folder, "w")), user=user)


# every call, past what the kernel's permission bits allow
Act = Callable[[], Any]


def _open(path: str, flags: int) -> Act:
    return lambda: os.close(os.open(path, flags, 0o666))


def _on(path: str, flags: int, act: Callable[[int], Any]) -> Act:
    def work() -> None:
        with opened(path, flags) as fd:
            act(fd)

    return work


READS: dict[str, Act] = {
    "getattr": lambda: os.stat("f"),
    "getattr of a directory": lambda: os.stat("d"),
    "lookup and getattr below": lambda: os.stat("d/inner"),
    "open": _open("f", os.O_RDONLY),
    "opendir": lambda: os.listdir("d"),
    "readlink": lambda: os.readlink("link"),
    "getxattr": lambda: os.getxattr("f", "user.k"),
    "listxattr": lambda: os.listxattr("f"),
    "the surface": lambda: ask(".", "namespace"),
    "its list": lambda: ask("f", "checkpoints"),
    "a checkpoint": lambda: Path(".checkpoints/v1/f").read_text(),
    "the list of checkpoints": lambda: os.listdir(".checkpoints"),
    "exec": lambda: os.execv("f", ["f"]),
}
CHANGES: dict[str, Act] = {
    "open to write": _open("f", os.O_WRONLY),
    "open to read and write": _open("f", os.O_RDWR),
    "open to append": _open("f", os.O_WRONLY | os.O_APPEND),
    "open and truncate": _open("f", os.O_RDONLY | os.O_TRUNC),
    "create": _open("new", os.O_CREAT | os.O_WRONLY),
    "create what is there": _open("f", os.O_CREAT | os.O_WRONLY),
    "unnamed": _open(".", os.O_TMPFILE | os.O_RDWR),
    "truncate": lambda: os.truncate("f", 0),
    "chmod": lambda: os.chmod("f", 0o600),
    "chown": lambda: os.chown("f", -1, os.getgid()),
    "utime": lambda: os.utime("f"),
    "mkdir": lambda: os.mkdir("new"),
    "mknod": lambda: os.mknod("new", stat.S_IFREG | 0o666),
    "symlink": lambda: os.symlink("x", "new"),
    "link": lambda: os.link("f", "new"),
    "unlink": lambda: os.unlink("f"),
    "unlink below": lambda: os.unlink("d/inner"),
    "rmdir": lambda: os.rmdir("empty"),
    "rename": lambda: os.rename("f", "new"),
    "rename into": lambda: os.rename("f", "d/new"),
    "setxattr": lambda: os.setxattr("f", "user.k", b"new"),
    "removexattr": lambda: os.removexattr("f", "user.k"),
    "fallocate": _on("f", os.O_WRONLY, lambda fd: fallocate(fd, 0, 0, 100)),
    "checkpoint": lambda: command(".", "checkpoint", "new"),
    "restore": lambda: command("f", "restore", "v1"),
    "delete": lambda: command("d", "delete", "v1"),
    "clone": lambda: command(".", "clone", "new"),
    "checkpoint by ioctl": lambda: control.checkpoint(".", "new"),
    "restore by ioctl": lambda: control.restore("f", "v1"),
    "delete by ioctl": lambda: control.delete(".", "v1"),
    "clone by ioctl": lambda: control.clone(".", "new"),
    "checkpoint by mkdir": lambda: os.mkdir(".checkpoints/new"),
    "delete by rmdir": lambda: os.rmdir(".checkpoints/v1"),
}


def _refused(workspace: Path, user: User, calls: dict[str, Act]) -> dict[str, str]:
    """The calls' outcomes for a user who was given the workspace as its working directory."""
    with inside(workspace):
        return {name: result_as(user, act) for name, act in calls.items()}


@pytest.mark.parametrize("caller", [BOB, NOBODY])
def test_every_call_is_refused_to_a_stranger(checked: Mounted, caller: User) -> None:
    """Even past the directory that keeps strangers out: with a working directory that somebody has handed over."""
    workspace = checked.point / "default/user-alice/w"
    (workspace / "empty").mkdir()
    (workspace / "empty").chmod(0o777)
    before = in_child(lambda: _state(workspace))
    found = _refused(workspace, caller, READS | CHANGES)
    wrong = {name: outcome for name, outcome in found.items() if outcome not in ("EACCES", "EPERM")}
    assert not wrong
    assert in_child(lambda: _state(workspace)) == before


@pytest.mark.parametrize("caller", [ALICE, SESSION])
def test_shared_is_read_only_but_for_admins(checked: Mounted, caller: User) -> None:
    workspace = checked.point / "default/shared/w"
    (workspace / "empty").mkdir()
    (workspace / "empty").chmod(0o777)
    before = in_child(lambda: _state(workspace))
    found = _refused(workspace, caller, CHANGES)
    wrong = {name: outcome for name, outcome in found.items() if outcome not in ("EACCES", "EPERM")}
    assert not wrong
    assert in_child(lambda: _state(workspace)) == before
    reads = {name: act for name, act in READS.items() if name != "exec"}
    assert set(_refused(workspace, caller, reads).values()) == {"ok"}
    for act in (lambda: os.mkdir("x"), lambda: os.rmdir("w"), lambda: os.rename("w", "v")):
        with inside(checked.point / "default/shared"):
            assert result_as(caller, act) == "EACCES"


def _state(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"checkpoints": checkpoints(workspace), "siblings": os.listdir(workspace.parent)}
    for directory, folders, files in os.walk(workspace):
        for name in (*folders, *files):
            path = Path(directory, name)
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
            values = (status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)
            found[str(path)] = (*values, content, os.listxattr(path, follow_symlinks=False))
    return found


def test_a_shared_scope_that_everyone_may_write(tmp_path: Path) -> None:
    _prepare(tmp_path, "shared_writable = true\n" + CONFIG)
    with mounted(tmp_path, ("--checked",)) as mount, inside(mount.point):

        def work() -> None:
            os.mkdir("default/shared/mine")
            Path("default/shared/mine/f").write_text("x")
            control.checkpoint("default/shared/mine", "v1")

        in_child(work, user=ALICE)
        assert in_child(lambda: Path("default/shared/mine/f").read_text(), user=BOB) == "x"
        # Whose it is remains the kernel's business.
        assert result_as(BOB, os.unlink, "default/shared/mine/f") == "EACCES"
        assert result_as(BOB, os.rename, "default/shared/mine", "default/shared/stolen") in ("EPERM", "EACCES")
        assert result_as(NOBODY, os.listdir, "default/shared/mine") == "EACCES"


def test_special_files_are_not_served(checked: Mounted) -> None:
    for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        assert result(os.mknod, "default/shared/w/special", kind | 0o666, os.makedev(1, 3)) == "EPERM"
    assert not os.path.lexists("default/shared/w/special")
    os.mknod("default/shared/w/plain", stat.S_IFREG | 0o666)


def test_special_files_that_are_there_cannot_be_used(tmp_path: Path) -> None:
    _prepare(tmp_path)
    with mounted(tmp_path) as bound:
        (bound.point / "default/user-alice/w").mkdir()
        os.mkfifo(bound.point / "default/user-alice/w/fifo", 0o666)
        (bound.point / "default/user-alice/w").chmod(0o777)
    with mounted(tmp_path, ("--checked",)) as mount, inside(mount.point):
        flags = os.O_RDWR | os.O_NONBLOCK
        assert result_as(ALICE, os.open, "default/user-alice/w/fifo", flags) == "EPERM"
        assert os.listdir("default/user-alice/w") == ["fifo"]


def test_what_others_change_is_seen_at_once(checked: Mounted) -> None:
    """Nothing is cached beyond a call: neither names nor attributes nor content."""
    path = Path("default/user-alice/w/f")
    for i in range(20):
        in_child(lambda i=i: path.write_text(f"{i}" * (i + 1)), user=ALICE)  # type: ignore[misc]
        assert path.read_text() == f"{i}" * (i + 1)
        assert in_child(lambda: path.stat().st_size, user=ALICE) == len(f"{i}") * (i + 1)
    call(checked, "ns_create", path="default/user-alice/new")
    assert "new" in in_child(lambda: os.listdir("default/user-alice"), user=ALICE)


def test_an_ended_session_is_nobody(checked: Mounted) -> None:
    with opened("default/sess-s1/w/f", os.O_RDWR) as fd:
        call(checked, "session_delete", id="s1")
        eventually(lambda: result(os.fstat, fd) == "ESTALE")
        assert result(os.pread, fd, 1, 0) != "ok"
    assert not os.path.exists("default/sess-s1")
    assert in_child(lambda: os.listdir("."), user=SESSION) == []
    assert result_as(SESSION, os.listdir, "default/shared/w") == "EACCES"
    assert result_as(SESSION, os.stat, "default/sess-s1/w") == "ENOENT"


def test_programs_run_in_a_checked_mount(checked: Mounted) -> None:
    def work() -> int:
        os.chdir("default/user-alice/w")
        done = subprocess.run(
            ["sh", "-ec", "echo a > x; cp x y; mv y z; cat z x > s; mkdir -p p/q; ln z p/h; rm -r p; tar cf t x z"],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Path("t").stat().st_size

    assert in_child(work, user=ALICE) > 0


# bound mounts
@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store in which everyone has a workspace."""
    _prepare(tmp_path)
    with mounted(tmp_path) as mount:
        for folder in ("shared", "sess-alices", *SCOPES.values()):
            workspace = mount.point / "default" / folder / "w"
            _fill(workspace)
            (workspace / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("who", "sees"),
    [
        ("session:s1", ["sess-s1", "shared"]),
        ("session:sess-alices", ["sess-alices", "shared", "user-alice"]),
        ("user:bob", ["shared", "user-bob"]),
        ("user:alice", ["sess-alices", "shared", "user-alice"]),
        ("admin", ["sess-alices", "sess-s1", "shared", "user-alice", "user-bob"]),
    ],
)
def test_a_mount_for_one_principal_shows_what_is_its_own(filled: Path, who: str, sees: list[str]) -> None:
    with mounted(filled, ("--as", who, "-o", "allow_other")) as mount:
        assert sorted(os.listdir(mount.point / "default")) == sees
        for folder in ("sess-alices", "sess-s1", "shared", "user-alice", "user-bob"):
            path = mount.point / "default" / folder
            assert path.exists() == (folder in sees)
            if folder not in sees:
                assert result(os.open, path / "w/f", os.O_RDONLY) == "ENOENT"
                assert result(os.mkdir, path) in ("EPERM", "EACCES")
                assert result(os.mkdir, path / "x") == "ENOENT"
            elif folder != "shared" or who == "admin":
                (path / "w/f").write_text("mine")
                (path / "new").mkdir()
                control.checkpoint(path / "w", "v2")
                (path / "new").rmdir()
                assert (path / "w/f").read_text() == "mine"


@pytest.mark.parametrize("who", ["session:s1", "user:bob"])
def test_such_a_mount_only_reads_what_is_shared(filled: Path, who: str) -> None:
    """Also root, whom permission bits do not stop."""
    with mounted(filled, ("--as", who)) as mount:
        workspace = mount.point / "default/shared/w"
        before = in_child(lambda: _state(workspace))
        with inside(workspace):
            found = {name: result(in_child, act) for name, act in CHANGES.items()}
        wrong = {name: outcome for name, outcome in found.items() if outcome not in ("EACCES", "EPERM", "EROFS")}
        assert not wrong
        assert in_child(lambda: _state(workspace)) == before
        assert result(os.mkdir, mount.point / "default/shared/new") == "EACCES"
        assert result(os.rmdir, mount.point / "default/shared/w") == "EACCES"
        assert (workspace / "f").read_text() == "secret"


def test_a_mount_of_an_ended_session_shows_nothing(filled: Path) -> None:
    with mounted(filled, ("--as", "session:s1")) as mount:
        path = mount.point / "default/shared/w/f"
        assert path.read_text() == "secret"
        with opened(mount.point / "default/sess-s1/w/f") as fd:
            call(mount, "session_delete", id="s1")
            eventually(lambda: result(os.pread, fd, 1, 0) == "ESTALE")
            assert not (mount.point / "default/sess-s1").exists()
        assert os.listdir(mount.point) == [] and not path.exists()
