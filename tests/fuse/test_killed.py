"""Programs that are killed or interrupted while they wait, a mount that is taken away while it is used, and many
programs at once."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.fuse.tools import eventually, opened
from tests.mounting import Mounted, mounted
from tests.posix.calls import result

pytestmark = pytest.mark.fuse

MIB = 1 << 20
SOON = 3.0
"""Seconds within which a program must be gone; waiting for room would take `WAIT_LIMIT`."""
WAIT_LIMIT = 60
SETTINGS = {"ARTFS_WAIT_LIMIT": str(WAIT_LIMIT), "ARTFS_JOURNAL_SIZE": str(8 * MIB), "ARTFS_COMMIT_INTERVAL": "0.2"}


@contextmanager
def full_journal(mount: Mounted, workspace: Path) -> Iterator[None]:
    """Nothing can be changed, for as long as this holds the database: changes wait."""
    status = mount.point / ".artfs" / "status"
    with closing(sqlite3.connect(mount.root / "meta.db", isolation_level=None, timeout=20)) as database:
        database.execute("begin immediate")
        try:
            filler = child(FILLER, workspace / "filler")
            last, since = "", time.monotonic()
            while time.monotonic() - since < 0.5:
                now = status.read_text()
                if now != last:
                    last, since = now, time.monotonic()
                time.sleep(0.02)
            assert filler.poll() is None
            filler.kill()
            filler.communicate(timeout=SOON)
            yield
        finally:
            database.execute("rollback")


FILLER = """
import os, sys
open(sys.argv[1], "w").close()
number = 0
while True:
    os.setxattr(sys.argv[1], "user.k%d" % (number % 40), os.urandom(30000))
    number += 1
"""

WAITER = """
import os, signal, sys
class Stopped(Exception):
    pass
def stop(*_):
    raise Stopped
signal.signal(signal.SIGTERM, stop)
print("here", flush=True)
try:
    {}
except Stopped:
    print("stopped")
except OSError as error:
    print(error.errno)
else:
    print("done")
"""

WAITING = {
    "mkdir": "os.mkdir(sys.argv[1] + '/new')",
    "create": "open(sys.argv[1] + '/new', 'w')",
    "setxattr": "os.setxattr(sys.argv[1] + '/f', 'user.k', b'v')",
    "rename": "os.rename(sys.argv[1] + '/f', sys.argv[1] + '/new')",
    "fsync": "fd = os.open(sys.argv[1] + '/f', os.O_RDWR); os.write(fd, b'x'); os.fsync(fd)",
}


def child(code: str, *args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/"
    )


def waiting(call: str, workspace: Path) -> subprocess.Popen[bytes]:
    """A program that waits in a system call."""
    program = child(WAITER.format(WAITING[call]), workspace)
    assert program.stdout is not None
    assert program.stdout.readline() == b"here\n"
    time.sleep(0.3)
    assert program.poll() is None, program.communicate()[0]
    return program


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("killed"), env=SETTINGS) as own:
        yield own


@pytest.mark.parametrize("call", ["mkdir", "create", "setxattr", "rename"])
def test_a_program_that_is_killed_while_it_waits(mount: Mounted, call: str) -> None:
    """It is gone at once, others go on, and what it asked for does not happen behind its back."""
    workspace = mount.workspace(f"killed-{call}")
    (workspace / "f").write_bytes(b"content")
    with full_journal(mount, workspace):
        program = waiting(call, workspace)
        program.kill()
        start = time.monotonic()
        program.communicate(timeout=SOON)
        print(f"{call}: dead after {1000 * (time.monotonic() - start):.1f} ms")
        assert (workspace / "f").read_bytes() == b"content"
    (workspace / "again").write_bytes(b"x")
    assert not (workspace / "new").exists()
    assert os.listxattr(workspace / "f") == []


@pytest.mark.parametrize("call", ["mkdir", "setxattr"])
def test_a_signal_interrupts_what_waits(mount: Mounted, call: str) -> None:
    """The handler runs although the call has not been answered by the engine."""
    workspace = mount.workspace(f"signal-{call}")
    (workspace / "f").touch()
    with full_journal(mount, workspace):
        program = waiting(call, workspace)
        program.send_signal(signal.SIGTERM)
        assert program.communicate(timeout=SOON)[0] == b"stopped\n"


def test_what_waits_goes_on_when_there_is_room(mount: Mounted) -> None:
    workspace = mount.workspace("goes-on")
    (workspace / "f").touch()
    with full_journal(mount, workspace):
        programs = {call: waiting(call, workspace) for call in ("setxattr", "mkdir")}
        assert all(program.poll() is None for program in programs.values())
    for program in programs.values():
        assert program.communicate(timeout=20)[0] == b"done\n"
    assert (workspace / "new").is_dir()
    assert os.getxattr(workspace / "f", "user.k") == b"v"


def test_many_programs_wait_and_are_killed(mount: Mounted) -> None:
    workspace = mount.workspace("crowd")
    (workspace / "f").touch()
    with full_journal(mount, workspace):
        programs = [waiting("setxattr" if number % 2 else "mkdir", workspace) for number in range(8)]
        for program in programs:
            program.kill()
        for program in programs:
            program.communicate(timeout=SOON)
    eventually(lambda: result((workspace / "after").touch) == "ok", 20)


def test_unmounting_while_it_is_used(mount: Mounted) -> None:
    workspace = mount.workspace("busy")
    with opened(workspace / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"before")
        done = subprocess.run(["umount", mount.point], capture_output=True, text=True, check=False)
        assert done.returncode
        assert "busy" in done.stderr
        os.write(fd, b" and after")
        os.fsync(fd)
        assert (workspace / "f").read_bytes() == b"before and after"


def test_detaching_while_it_is_used(tmp_path: Path) -> None:
    """umount -l: who has a file open goes on with it; when the last is done, the daemon ends with all of it safe."""
    with mounted(tmp_path) as mount:
        workspace = mount.workspace("w")
        daemon = mount.process
        assert daemon is not None
        with opened(workspace / "f", os.O_RDWR | os.O_CREAT) as fd:
            subprocess.run(["umount", "-l", mount.point], check=True)
            os.write(fd, b"after the detachment")
            time.sleep(0.3)
            assert daemon.poll() is None
            assert os.pread(fd, 100, 0) == b"after the detachment"
        assert daemon.wait(20) == 0
        mount.start()
        assert (workspace / "f").read_bytes() == b"after the detachment"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_daemon_that_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    """It unmounts and drains, also what the kernel had not sent yet."""
    with mounted(tmp_path) as mount:
        workspace = mount.workspace("w")
        content = os.urandom(5 * MIB)
        (workspace / "f").write_bytes(content)
        assert mount.process is not None
        mount.process.send_signal(number)
        mount.process.wait(20)
        assert not os.path.ismount(mount.point)
        mount.start()
        assert (workspace / "f").read_bytes() == content


def test_a_killed_daemon_releases_everybody(tmp_path: Path) -> None:
    """Calls that wait end with an error, and so does every later one, until the mount is taken away."""
    with mounted(tmp_path, env=SETTINGS) as mount:
        workspace = mount.workspace("w")
        (workspace / "f").touch()
        with full_journal(mount, workspace):
            programs = [waiting(call, workspace) for call in ("mkdir", "setxattr")]
            assert mount.process is not None
            mount.process.kill()
            mount.process.wait(SOON)
            for program in programs:
                said = int(program.communicate(timeout=SOON)[0])
                assert said in (errno.ECONNABORTED, errno.ENOTCONN)
            assert result((workspace / "other").touch) == "ENOTCONN"
        mount.kill()
        mount.start()
        assert (workspace / "f").exists()


def stress(folder: Path, seed: int, seconds: float) -> list[str]:
    """Make, rename, read and remove files, some in a directory that all share; returns what went wrong.  What another
    has just moved or removed may be missing."""
    wrong = []
    turns = random.Random(seed)
    own = folder / f"own{seed}"
    own.mkdir()
    shared = folder / "shared"
    mine: dict[str, bytes] = {}
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        count += 1
        name = f"f{turns.randrange(50)}"
        step = turns.randrange(6)
        try:
            if step < 2:
                content = bytes([seed]) * turns.choice((0, 10, 5000, 200_000))
                (own / "new").write_bytes(content)
                os.rename(own / "new", own / name)
                mine[name] = content
            elif step == 2:
                if (found := (own / name).read_bytes() if name in mine else b"") != mine.get(name, b""):
                    wrong.append(f"{own / name}: {len(found)} bytes, not {len(mine[name])}")
            elif step == 3:
                if mine.pop(name, None) is not None:
                    (own / name).unlink()
            elif step == 4 and sorted(os.listdir(own)) != sorted(mine):
                wrong.append(f"{own}: {sorted(os.listdir(own))}, not {sorted(mine)}")
        except OSError as failure:
            wrong.append(f"step {step}: {failure}")
        try:
            step = turns.randrange(5)
            if step == 0:
                (shared / f"tmp{seed}").write_bytes(bytes([turns.randrange(256)]) * 3000)
                os.rename(shared / f"tmp{seed}", shared / name)
            elif step == 1:
                os.rename(shared / name, shared / f"f{turns.randrange(50)}")
            elif step == 2:
                found = (shared / name).read_bytes()
                if len(found) != 3000 or len(set(found)) != 1:
                    wrong.append(f"shared {name} is torn: {len(found)} bytes")
            elif step == 3:
                (shared / name).unlink()
            else:
                os.link(shared / name, shared / f"f{turns.randrange(50)}")
        except (FileNotFoundError, FileExistsError):
            pass
        except OSError as failure:
            wrong.append(f"shared, step {step}: {failure}")
    if count < 50:
        wrong.append(f"only {count} turns")
    return wrong


@pytest.mark.slow
def test_eight_programs_for_ten_seconds(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        workspace = mount.workspace("w")
        (workspace / "shared").mkdir()
        code = (
            "import sys; from pathlib import Path; from tests.fuse.test_killed import stress;"
            "print(stress(Path(sys.argv[1]), int(sys.argv[2]), 10))"
        )
        programs = [
            subprocess.Popen(
                [sys.executable, "-c", code, workspace, str(seed)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],
            )
            for seed in range(8)
        ]
        said = [program.communicate(timeout=90)[0] for program in programs]
        assert said == [b"[]\n"] * 8
        before = {path.relative_to(workspace): path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
        mount.kill()
        mount.start()
        after = {path.relative_to(workspace) for path in workspace.rglob("*") if path.is_file()}
        assert after == before.keys()
        assert "Traceback" not in mount.log()
