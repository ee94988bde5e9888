"""Where file systems of this kind were seen to fail, as far as it takes a mount that dies or grows old.

What any directory can show (numbers of held inodes, O_TMPFILE, link counts, deletion during a listing, atomic
replacement, ctime of setxattr) is in the posix suite, which runs on a mount too.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from artfs.meta.sqlite.database import WAL_LIMIT
from tests.fuse.tools import command, eventually, opened
from tests.mounting import Mounted, mounted
from tests.posix.calls import linkat_fd

pytestmark = pytest.mark.fuse

AGED = 200_000
"""Files that were made and removed on an old volume."""
COARSE = 5
"""CLOCK_REALTIME_COARSE, for which `time` has no name."""
RELEASED = 10.0
"""Seconds for programs and the daemon to end once the daemon was killed."""


def grid(mount: Mounted, name: str) -> Path:
    return mount.point / "default" / "shared" / name


def restart(mount: Mounted) -> None:
    mount.kill()
    mount.start()


def child(code: str, *args: object) -> subprocess.Popen[bytes]:
    """A Python program with a pipe to each of its ends; it is told that it may go on by a byte."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
    )


def end(program: subprocess.Popen[bytes]) -> bytes:
    """Kill it, if it runs, and return what it has said; it must end."""
    program.kill()
    return program.communicate(timeout=RELEASED)[0]


def synced(path: Path, content: bytes) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        os.write(fd, content)
        os.fsync(fd)


def test_numbers_of_removed_inodes_are_not_used_again_after_a_kill(mount: Mounted) -> None:
    workspace = mount.workspace("w")
    used = set()
    for number in range(100):
        (workspace / f"old{number}").touch()
        used.add((workspace / f"old{number}").stat().st_ino)
        (workspace / f"old{number}").unlink()
    for _ in range(2):
        restart(mount)
        for number in range(100):
            path = workspace / f"new{number}"
            path.touch()
            found = path.stat().st_ino
            assert found not in used
            used.add(found)
            path.unlink()


def test_open_files_without_a_name_do_not_outlive_the_daemon(mount: Mounted) -> None:
    """Their space is free after the restart; one that was given a name in time keeps it, although the directory that
    it was made in is gone."""
    workspace = mount.workspace("w")
    before = os.getxattr(workspace, "user.artfs.usage")
    (workspace / "d").mkdir()
    with (
        opened(workspace / "d", os.O_TMPFILE | os.O_RDWR) as named,
        opened(workspace / "d", os.O_TMPFILE | os.O_RDWR) as unnamed,
        opened(workspace / "gone", os.O_RDWR | os.O_CREAT) as unlinked,
    ):
        for fd in (named, unnamed, unlinked):
            os.write(fd, b"content " * 50_000)
            os.fsync(fd)
        linkat_fd(named, workspace / "kept")
        (workspace / "gone").unlink()
        (workspace / "d").rmdir()
        restart(mount)
    assert os.listdir(workspace) == ["kept"]
    assert (workspace / "kept").read_bytes() == b"content " * 50_000
    assert (workspace / "kept").stat().st_nlink == 1
    (workspace / "kept").unlink()
    assert os.getxattr(workspace, "user.artfs.usage") == before
    mount.stop()
    rows = sqlite3.connect(mount.root / "meta.db")
    with closing(rows):
        tables = [name for (name,) in rows.execute("select name from sqlite_schema where type = 'table'")]
        held = [
            key
            for table in tables
            for (key,) in rows.execute(f"select key from {table}" if _has_keys(rows, table) else "select 1 where 0")
        ]
    assert held
    assert [key for key in held if key[:1] in (b"i", b"b", b"x")] == []


def _has_keys(rows: sqlite3.Connection, table: str) -> bool:
    return any(column[1] == "key" for column in rows.execute(f"pragma table_info({table})"))


LOCKER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
fcntl.lockf(fd, fcntl.LOCK_EX)
sys.stdout.write("locked"); sys.stdout.flush()
sys.stdin.read(1)
"""


def test_locks_of_a_killed_daemon_are_gone_at_remount(mount: Mounted) -> None:
    """They were the dead mount's, although the programs that took them still run."""
    path = mount.workspace("w") / "f"
    path.touch()
    holder = child(LOCKER, path)
    try:
        assert holder.stdout is not None
        assert holder.stdout.read(6) == b"locked"
        with opened(path, os.O_RDWR) as fd:
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with pytest.raises(BlockingIOError):
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        restart(mount)
        with opened(path, os.O_RDWR) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert holder.poll() is None
    finally:
        end(holder)


SQLITE_WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma journal_mode = " + sys.argv[2])
db.execute("pragma synchronous = " + ("full" if sys.argv[2] == "wal" else "extra"))
db.execute("create table if not exists t (number integer primary key, padding blob)")
number = db.execute("select coalesce(max(number), -1) + 1 from t").fetchone()[0]
while True:
    db.execute("begin immediate")
    for _ in range(3):
        db.execute("insert into t values (?, ?)", (number, bytes(1500)))
        number += 1
    db.execute("commit")
    print(number, flush=True)
"""


@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.crash
def test_sqlite_after_a_killed_daemon(mount: Mounted, mode: str) -> None:
    """Every transaction that was committed is there, whole, and the database is sound."""
    path = mount.workspace("w") / "db"
    sure = 0
    for seconds in (0.6, 0.35, 0.9, 0.5):
        writer = child(SQLITE_WRITER, path, mode)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(seconds)
        mount.kill()
        said = end(writer).decode()
        numbers = [int(line) for line in said.splitlines() if line.isdigit()]
        assert numbers, said
        sure = max(sure, numbers[-1])
        mount.start()
        with closing(sqlite3.connect(path, timeout=20)) as database:
            assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
            found = [number for (number,) in database.execute("select number from t order by number")]
        # One more may have been committed without our hearing of it.
        assert found in (list(range(sure)), list(range(sure + 3)))
        sure = len(found)


TOUCHER = """
import os, sys
names = [os.path.join(sys.argv[1], n) for n in os.listdir(sys.argv[1])]
held = [os.open(n, os.O_RDONLY) for n in names[:50]]
sys.stdout.write("going"); sys.stdout.flush()
end = None
while end is None:
    for name in names:
        try:
            open(name, "rb").read()
        except OSError as error:
            if error.errno in (103, 107):  # ECONNABORTED, ENOTCONN: the daemon is gone
                end = error.errno
                break
"""


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.05])
@pytest.mark.crash
def test_kill_during_the_invalidation_after_a_restore(mount: Mounted, delay: float) -> None:
    """The daemon dies although threads of it wait for the kernel, programs get errors, and a remount shows the state
    before or after the restore."""
    workspace = mount.workspace("w")
    (workspace / "d").mkdir()
    count = 3000
    for number in range(count):
        (workspace / "d" / f"{number}").write_bytes(b"old")
    command(workspace, "checkpoint", "first")
    for number in range(count):
        (workspace / "d" / f"{number}").write_bytes(b"newer")
    os.sync()
    programs = [child(TOUCHER, workspace / "d") for _ in range(3)]
    restorer = None
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.read(5) == b"going"
        # Pages that are dirty, which an invalidation would have to wait for.
        with (workspace / "d" / "0").open("r+b") as dirty:
            dirty.write(b"dirty")
            dirty.flush()
            code = "import os, sys; os.setxattr(sys.argv[1], 'user.artfs.restore', b'first')"
            restorer = child(code, workspace)
            restorer.wait(60)
            time.sleep(delay)
            daemon = mount.process
            assert daemon is not None
            daemon.kill()
            assert daemon.wait(RELEASED) == -9
            for program in programs:
                program.wait(RELEASED)
    finally:
        for program in programs:
            end(program)
        if restorer is not None:
            end(restorer)
        mount.kill()
    mount.start()
    content = {(workspace / "d" / f"{number}").read_bytes() for number in range(count)}
    assert content == {b"old"}
    assert (workspace / "d" / "0").read_bytes() == b"old"


def test_one_clock(workspace: Path) -> None:
    """Times that the kernel takes (of writes that it caches) and times that the driver takes are of the same clock, the
    kernel's coarse one.  The kernel's own may be ahead of it, up to the fine clock, since other file systems make it
    look closer (multigrain timestamps); neither is ever behind."""
    (workspace / "d").mkdir()

    def coarse() -> int:
        return time.clock_gettime_ns(COARSE)

    with opened(workspace / "f", os.O_RDWR | os.O_CREAT) as fd:
        for turn in range(300):
            before = coarse()
            os.write(fd, b"x")
            written = os.fstat(fd).st_mtime_ns
            assert before <= written <= time.time_ns()
            before = coarse()
            (workspace / "d" / f"{turn}").mkdir()
            made = (workspace / "d").stat().st_mtime_ns
            assert before <= made <= coarse()
            before = coarse()
            os.setxattr(fd, "user.k", b"v")
            changed = os.fstat(fd).st_ctime_ns
            assert max(before, written) <= changed <= time.time_ns()
            if turn % 10 == 0:
                os.fsync(fd)
                assert (os.fstat(fd).st_mtime_ns, os.fstat(fd).st_ctime_ns) == (written, changed)
            time.sleep(turn % 7 / 5000)


def churn(folder: Path, start: int, count: int) -> float:
    """Make and remove `count` files; seconds for it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        began = time.perf_counter()
        for number in range(start, start + count):
            os.close(os.open(f"f{number}", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        for number in range(start, start + count):
            os.unlink(f"f{number}", dir_fd=fd)
        return time.perf_counter() - began
    finally:
        os.close(fd)


@pytest.mark.slow
@pytest.mark.alone
def test_an_aged_volume_is_as_fast_as_a_fresh_one(tmp_path: Path) -> None:
    with mounted(tmp_path / "old") as old:
        aged = old.workspace("w")
        wal = old.root / "meta.db-wal"
        longest = 0
        # With a checkpoint here and there, so that rows are retired and freed too.
        for part in range(20):
            churn(aged, part * AGED // 20, AGED // 20)
            command(aged, "checkpoint", f"c{part}")
            if part >= 2:
                command(aged, "delete", f"c{part - 2}")
            longest = max(longest, wal.stat().st_size)
        assert os.listdir(aged) == []
        with mounted(tmp_path / "new") as new:
            fresh = new.workspace("w")
            times: dict[Path, list[float]] = {aged: [], fresh: []}
            for turn in range(7):
                for folder in (aged, fresh) if turn % 2 else (fresh, aged):
                    times[folder].append(churn(folder, 10**7 + turn * 2000, 2000))
        ratio = statistics.median(times[aged]) / statistics.median(times[fresh])
        print(f"aged / fresh = {ratio:.2f}; the engine's WAL had at most {longest >> 20} MiB")
        assert ratio < 1.5
        # One transaction may exceed the limit; then the WAL is cut back.
        assert longest <= 4 * WAL_LIMIT
        eventually(lambda: wal.stat().st_size <= 2 * WAL_LIMIT)


def test_a_directory_is_listed_while_another_program_empties_it(workspace: Path) -> None:
    """Names are seen once at most, those that stay exactly once, and nothing that was never there."""
    count = 4_000
    staying = {f"stay{number}" for number in range(500)}
    fd = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(count):
        os.mknod(f"go{number}", dir_fd=fd)
        if number % (count // 500) == 0:
            os.mknod(f"stay{number * 500 // count}", dir_fd=fd)

    def remove() -> None:
        for number in range(count):
            os.unlink(f"go{number}", dir_fd=fd)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        rounds = 0
        while remover.is_alive() or rounds < 2:
            seen = os.listdir(workspace)
            assert len(seen) == len(set(seen))
            assert staying <= set(seen)
            assert all(name in staying or name.startswith("go") for name in seen)
            rounds += 1
    finally:
        remover.join()
        os.close(fd)
    assert set(os.listdir(workspace)) == staying


def test_a_chown_of_nothing_clears_the_bits(workspace: Path) -> None:
    """The kernel sends it as a new ctime alone; what else makes one, or writes times back, keeps them."""
    file = workspace / "f"
    file.write_bytes(b"x")
    file.chmod(0o6775)
    os.link(file, workspace / "g")
    os.unlink(workspace / "g")
    os.rename(file, workspace / "g")
    os.rename(workspace / "g", file)
    os.setxattr(file, "user.a", b"1")
    os.utime(file, ns=(1, 1))
    with file.open("rb") as opened:
        os.fsync(opened)
    os.sync()
    assert file.stat().st_mode == 0o106775
    os.chown(file, -1, -1)
    assert file.stat().st_mode == 0o100775
    file.chmod(0o6755)
    fd = os.open(file, os.O_RDONLY)
    os.fchown(fd, -1, -1)
    os.close(fd)
    assert file.stat().st_mode == 0o100755
    folder = workspace / "d"
    folder.mkdir()
    folder.chmod(0o2775)
    os.chown(folder, -1, -1)
    assert folder.stat().st_mode == 0o042775
