"""Real mounts by the command: up, down, dead, refused; each refusal names its remedy."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import ARTFS, ROOT, artfs, environment, ok

pytestmark = pytest.mark.fuse
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes mounts of its own, as only root may")


@pytest.fixture
def grid(store_root: Path, mount_point: Path) -> Iterator[Path]:
    """A mounted grid with a workspace default/shared/web, whose file `f` has `one`; taken away by the test, or here."""
    ok("mount", mount_point)
    (mount_point / "default/shared/web").mkdir()
    (mount_point / "default/shared/web/f").write_text("one")
    yield mount_point
    if artfs("umount", mount_point).code == 5:
        ok("umount", "-l", mount_point)


def owner() -> int:
    found = artfs("status", "--json").json
    return int(found["owner"]["pid"])


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_until_ended(pid: int) -> None:
    until = time.monotonic() + 10
    while not has_ended(pid):
        assert time.monotonic() < until, f"{pid} still runs"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "words", ["sync", "status", "ns list", "ls default/shared/web", "checkpoint create default/shared/web one"]
)
def test_a_command_beside_a_mount_loads_no_store(grid: Path, words: str) -> None:
    """It starts several times as fast."""
    heavy = {"pydantic", "apsw", "sqlite3", "trio", "pyfuse3", "artfs.settings", "artfs.store.store"}
    program = f"""
import sys
from artfs.cli import main
code = main(sys.argv[1:])
print("loaded", *sorted({heavy!r} & set(sys.modules)))
sys.exit(code)
"""
    command = [ARTFS[0], "-c", program, *words.split()]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "loaded"), done


def test_up_and_down(store_root: Path, mount_point: Path) -> None:
    done = artfs("mount", mount_point, "--json")
    assert done.code == 0, done
    found = done.json
    assert (found["point"], found["root"], found["path"], found["made"]) == (
        str(mount_point), str(store_root), "grid", True,
    )  # fmt: skip
    assert "there was no store at" in done.err
    assert os.listdir(mount_point) == ["default"]
    assert owner() == found["pid"]
    assert os.readlink(f"/proc/{found['pid']}/cwd") == "/"
    assert os.getsid(found["pid"]) == found["pid"]
    (mount_point / "default/shared/web").mkdir()
    (mount_point / "default/shared/web/f").write_text("kept")
    ok("umount", mount_point)
    # It has drained and ended: the store is free at once.
    wait_until_ended(found["pid"])
    assert ok("cat", "default/shared/web/f") == "kept"
    assert os.listdir(mount_point) == []
    assert "done" in (store_root / "mount.log").read_text().splitlines()[-1]


def test_commands_take_paths_inside_the_mount(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARTFS_ROOT")
    web = grid / "default/shared/web"
    assert ok("checkpoint", "create", ".", "v1", cwd=web) == "v1\n"
    (web / "f").write_text("two")
    assert ok("checkpoint", "diff", "../web", "v1", cwd=web) == "M /f\n"
    assert ok("cat", ".checkpoints/v1/f", cwd=web) == "one"
    ok("checkpoint", "restore", web, "v1")
    assert (web / "f").read_text() == "one"
    assert ok("ns", "create", "new", cwd=web.parent) == "grid/default/shared/new\n"
    assert ok("ls", grid / "default/shared").split() == ["new/", "web/"]
    assert ok("ls", "grid/default/shared", cwd=grid.parent).split() == ["new/", "web/"]
    ok("cp", "f", "g", cwd=web)
    assert (web / "g").read_text() == "one"
    assert artfs("stats", grid, "--json").json["mounts"][str(grid)]["native"] in (True, False)
    done = artfs("ls", ".", "--root", "/nonexistent", cwd=web)
    assert done.code == 2 and "use one store at a time" in done.err


def test_a_part_of_the_grid_read_only(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (grid / "default/shared/web/src").mkdir()
    (grid / "default/shared/web/src/x").write_text("x")
    ok("umount", grid)
    ok("mount", "--path", "default/shared/web/src", "-o", "ro", grid)
    monkeypatch.delenv("ARTFS_ROOT")
    assert os.listdir(grid) == ["x"]
    with pytest.raises(OSError, match="Read-only"):
        (grid / "y").write_text("")
    assert ok("ls", ".", cwd=grid) == "x\n"
    assert ok("cat", "x", cwd=grid) == "x"
    assert "default/shared/web" in ok("ns", "info", grid.parent / "grid")


def test_a_dead_mount_is_seen_and_cleaned_up(grid: Path) -> None:
    pid = owner()
    os.kill(pid, signal.SIGKILL)
    wait_until_ended(pid)
    done = artfs("mount", grid)
    assert done.code == 5 and f"has died; clean it up with `artfs umount {grid}`" in done.err
    done = artfs("ls", grid / "default")
    assert done.code == 5 and f"`artfs umount {grid}`" in done.err
    done = artfs("umount", grid)
    assert done.code == 0 and "was dead and is cleaned up" in done.err
    ok("mount", grid)
    assert (grid / "default/shared/web/f").read_text() == "one"


def test_a_busy_mount_stays_until_it_is_taken_away_lazily(grid: Path) -> None:
    with (grid / "default/shared/web/f").open("a") as file:
        done = artfs("umount", grid)
        assert done.code == 5 and f"`artfs umount -l {grid}`" in done.err
        pid = owner()
        ok("umount", "-l", grid)
        assert not os.path.ismount(grid)
        file.write(" more")
    wait_until_ended(pid)
    assert ok("cat", "default/shared/web/f") == "one more"


def test_sigterm_unmounts_and_keeps_what_was_written(grid: Path) -> None:
    pid = owner()
    with (grid / "default/shared/web/g").open("w") as file:
        file.write("written")
        file.flush()
        os.kill(pid, signal.SIGTERM)
        wait_until_ended(pid)
    assert not os.path.ismount(grid)
    assert ok("cat", "default/shared/web/g") == "written"


def test_in_the_foreground(store_root: Path, mount_point: Path) -> None:
    with subprocess.Popen(
        [*ARTFS, "mount", "-f", str(mount_point)], env=environment(), stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        while f"{mount_point} shows grid" not in child.stderr.readline():
            assert child.poll() is None
        assert os.listdir(mount_point) == ["default"]
        child.send_signal(signal.SIGINT)
        child.stderr.read()
        assert child.wait() == 0
    assert not os.path.ismount(mount_point)


def test_mount_points_that_cannot_be(grid: Path, store_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    other = tmp_path / "other"
    other.mkdir()
    cases: list[tuple[list[str | Path], int, str]] = [
        (["mount", tmp_path / "nix"], 3, f"make it with `mkdir -p {tmp_path / 'nix'}`"),
        (["mount", tmp_path / "file"], 2, "is no directory"),
        (["mount", grid], 5, f"mounted already (it shows {store_root}); `artfs umount {grid}`"),
        (["mount", store_root / "objects"], 2, "are inside each other"),
        (["mount", tmp_path], 2, "are inside each other"),
        (["--root", grid / "default/shared/web/s", "mount", other], 2, "inside an artfs mount"),
        (["mount", other], 5, f"in use by process {owner()} (artfs mount {grid}); unmount it"),
        (["mount", other, "-o", "bogus"], 2, "no mount option 'bogus'"),
        (["mount", other, "--as", "nobody"], 2, "use admin, user:<id> or session:<id>"),
        (["mount", other, "-o", "checked,as=admin"], 2, "leave --as"),
        (["--root", tmp_path / "none", "mount", "--no-init", other], 3, "make one with `artfs init"),
        (["umount", other], 3, "nothing is mounted at"),
        (["umount", "/proc"], 2, "is not artfs'"),
    ]
    for words, code, said in cases:
        done = artfs(*words)
        assert done.code == code and said in done.err and "Traceback" not in done.err, (words, done)


def test_errors_of_the_process_in_the_background_come_to_the_front(store_root: Path, mount_point: Path) -> None:
    ok("init")
    for words, code, said in (
        (["--as", "session:nix"], 3, "Invalid session: there is no 'nix'"),
        (["--path", "default/shared/nix"], 3, "Namespace not found"),
    ):
        done = artfs("mount", mount_point, *words, "--json")
        assert done.code == code and said in done.err, done
        assert done.json["code"] == code
    file = store_root / "store.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 99'))
    done = artfs("mount", mount_point)
    assert done.code == 6 and "upgrade artfs" in done.err
    assert not os.path.ismount(mount_point)


@needs_root
def test_no_fuse_device(store_root: Path, mount_point: Path) -> None:
    hide = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh")
    done = artfs("mount", mount_point, prefix=hide)
    assert done.code == 1 and "`modprobe fuse`" in done.err and "--device /dev/fuse" in done.err


def test_no_permission(store_root: Path, mount_point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user, seen from inside: whether an interpreter can be started as one depends on the machine."""
    from artfs.cli import mounting
    from artfs.errors import DeniedError

    device = store_root.parent / "fuse"
    device.touch()
    monkeypatch.setattr(mounting, "FUSE_DEVICE", str(device))
    monkeypatch.setattr(mounting, "FUSE_CONF", str(store_root.parent / "no.conf"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    plan = mounting.Plan(store_root, mount_point)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeniedError, match="install fuse3"):
        mounting.check_machine(plan)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/fusermount3")
    mounting.check_machine(plan)
    with pytest.raises(DeniedError, match="user_allow_other"):
        mounting.check_machine(mounting.Plan(store_root, mount_point, allow_other=True))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DeniedError, match="must be writable for you"):
        mounting.check_point(plan, [])


@needs_root
@pytest.mark.skipif(shutil.which("mount.fuse3") is None, reason="mount.fuse3 of fuse3 is not installed")
def test_mount_8_and_fstab(store_root: Path, mount_point: Path, tmp_path: Path) -> None:
    """mount(8) looks for helpers in the system's directories alone, so one is put there, for this test only."""
    ok("init")
    ok("ns", "create", "default/shared/web")
    tools = tmp_path / "tools"
    tools.mkdir()
    python = ARTFS[0]
    (tools / "artfs").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {python} -m artfs "$@"\n')
    (tools / "artfs").chmod(0o755)
    fstab = tmp_path / "fstab"
    program = f"""set -e
    mount --make-rprivate /
    mount --bind {tools} /usr/local/sbin
    mount -t fuse.artfs -o allow_other,_netdev,nofail,x-test {store_root} {mount_point}
    ls {mount_point}/default/shared
    mount -o remount,ro {mount_point}
    ! touch {mount_point}/default/shared/web/f 2>/dev/null
    mount -o remount,rw,noexec {mount_point}
    touch {mount_point}/default/shared/web/f
    grep -c ' {mount_point} rw,.*noexec,.* - fuse.artfs ' /proc/self/mountinfo
    ! {python} -m artfs mount --checked -o remount {mount_point} || exit 1
    ! {python} -m artfs mount -o remount,path=default/shared {mount_point} || exit 1
    ! {python} -m artfs mount -o remount {tmp_path} || exit 1
    umount {mount_point}
    for i in $(seq 100); do flock -n {store_root}/lock true && break; sleep 0.05; done
    echo '{store_root} {mount_point} fuse.artfs defaults,ro,noauto,path=default/shared 0 0' >{fstab}
    mount -T {fstab} {mount_point}
    ls {mount_point}
    ! touch {mount_point}/web/f 2>/dev/null
    umount {mount_point}
    for i in $(seq 100); do flock -n {store_root}/lock true && break; sleep 0.05; done
    echo 'artfs#{store_root} {mount_point} fuse defaults,allow_other,_netdev 0 0' >{fstab}
    mount -T {fstab} {mount_point}
    ls {mount_point}
    umount {mount_point}
    ! mount -t fuse.artfs {tmp_path}/none {mount_point}
    """
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done
    assert done.stdout.split() == ["web", "1", "web", "default"]
    assert "holds no store" in done.stderr and "no mount of artfs is at" in done.stderr
    assert "remount changes the kernel's options alone" in done.stderr


def test_run_in_a_mount_of_its_own(store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ok("init")
    ok("session", "create", "--id", "s", "--user", "u")
    ok("ns", "create", "default/sess-s/work")
    ok("ns", "create", "default/shared/web")
    ok("ns", "create", "default/user-u/notes")
    ok("ns", "create", "default/user-other/secret")
    program = """basename "$PWD"; ls "$ARTFS_GRID/default"; echo x >work/f; echo $ARTFS_SESSION
    echo x >"$ARTFS_GRID/default/shared/web/f" || exit 9"""
    done = artfs("run", "--session", "s", "--", "sh", "-c", program)
    assert done.code == 9 and done.out.split() == ["sess-s", "sess-s", "shared", "user-u", "s"], done
    assert ok("cat", "default/sess-s/work/f") == "x\n"
    assert artfs("run", "--session", "s", "--", "sh", "-c", "kill -9 $$").code == 137
    assert artfs("run", "--session", "s", "--", "no-such-program").code == 127
    assert artfs("run", "--session", "nix", "--", "true").code == 3
    assert not list(tmp_path.glob("artfs-run-*"))


@needs_root
def test_run_in_a_view_of_the_mount(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ok("session", "create", "--id", "s")
    ok("ns", "create", "default/sess-s/work")
    ok("ns", "create", "default/user-other/secret")
    program = """pwd; ls "$ARTFS_GRID" "$ARTFS_GRID/default"; echo x >work/f
    cat "$ARTFS_GRID/default/shared/web/f"; echo x >"$ARTFS_GRID/default/shared/web/f" || exit 9"""
    done = artfs("run", "--session", "s", "--", "sh", "-c", program)
    home = grid / "default/sess-s"
    assert done.code == 9 and "Read-only" in done.err, done
    assert done.out.split() == [str(home), f"{grid}:", "default", f"{grid}/default:", "sess-s", "shared", "one"]
    # Outside nothing has changed but what was written.
    assert (home / "work/f").read_text() == "x\n"
    assert sorted(os.listdir(grid / "default")) == ["sess-s", "shared", "user-other"]
    assert artfs("run", "--session", "s", "--", "no-such-program").code == 127
    # Commands inside the view know where they are.
    inside = artfs("run", "--session", "s", "--", *ARTFS, "checkpoint", "create", "work", "v1")
    assert (inside.code, inside.out) == (0, "v1\n"), inside
    assert not list(tmp_path.glob("artfs-view-*"))


def test_doctor_as_a_document(store_root: Path) -> None:
    done = artfs("doctor", "--json")
    assert {"findings", "problems", "warnings"} <= set(json.loads(done.out))
    assert done.code == (1 if done.json["problems"] else 0)
