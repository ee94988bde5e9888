"""A run of the tests leaves nothing behind: no mount, no process, no store in the working directory, and no variable in
the environment that would tell the next test where its store is.

What is *ours*: a mount whose mount point lies below this run's temporary directory; a process that is a child
of this one, or carries this run's mark in the environment that it was started with (a daemon keeps it). Other
runs and other people's mounts on the same machine are never touched.

Invariants: a mount left in a test's own directory, a store in the working directory and a variable that a store reads
fail their test; anything left at the end fails the run.
All but that store are cleaned up all the same, so that the next run starts from nothing. A process has `PATIENCE` to
end by itself.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

MARK = "ARTFS_TEST_RUN"
VARIABLES = ("ARTFS_", "ARTIFACT_", "AWS_", "CHUK_", "IBM_COS_", "REDIS_", "S3_", "SESSION_", "SQLITE_", "VFS_")
"""How the names begin of what stores and sessions read."""
STORES = "artifacts*"
"""Where stores are that nobody named a place for."""
PATIENCE = 10.0
"""Seconds that a process whose mount is gone, or which was told to stop, may take to end."""
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Python's own children, which end with the interpreter."""


@dataclass(frozen=True, slots=True)
class Mount:
    point: str
    type: str


def parse_mounts(mountinfo: str) -> list[Mount]:
    """The mounts in a text of the form of /proc/self/mountinfo (proc(5)), in its order: lower ones first."""
    found = []
    for line in filter(None, mountinfo.split("\n")):
        left, _, right = line.partition(" - ")
        # Blank, tab, newline and backslash come as \\040 and so on; other bytes come as they are.
        raw = left.split(" ")[4].encode(errors="surrogateescape")
        for code in (b"040", b"011", b"012", b"134"):
            raw = raw.replace(b"\\" + code, bytes([int(code, 8)]))
        found.append(Mount(os.fsdecode(raw), right.split(" ")[0]))
    return found


def mounts_below(directory: Path) -> list[Mount]:
    """What is mounted in `directory` or at it, the topmost first: the order in which it can be unmounted."""
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    top = os.path.realpath(directory)
    return [m for m in reversed(parse_mounts(text)) if m.point == top or m.point.startswith(f"{top}/")]


def unmount(mount: Mount) -> None:
    """Takes a mount away, dead and busy ones too; raises RuntimeError if it stays."""
    tools = [["umount", "--lazy", mount.point], ["fusermount3", "-u", "-z", mount.point]]
    said = ""
    for command in tools if os.geteuid() == 0 else tools[::-1]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:
            return
        said += done.stderr
    raise RuntimeError(f"cannot unmount {mount.point}: {said}")


def started_with(process: Path) -> tuple[bytes, bytes]:
    """Environment and command line of a process, its directory in /proc given; OSError if it has ended or is a thread
    of the kernel.

    Both are empty for a moment while it begins to execute a program.
    """
    until = time.monotonic() + 1.0
    while True:
        environment, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        if environment or command or time.monotonic() > until:
            return environment, command
        (process / "exe").readlink()  # the kernel's threads have none
        time.sleep(0.001)  # until the kernel has the program: nothing tells when


def own_processes(mark: str) -> dict[int, str]:
    """Running processes of the run that is marked `mark`: pid → command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or (pid := int(entry.name)) == os.getpid():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            environment, arguments = started_with(entry)
        except OSError:  # it has just ended, or is somebody else's
            continue
        command = arguments.replace(b"\0", b" ").decode(errors="replace").strip()
        marks = next((e for e in environment.split(b"\0") if e.startswith(f"{MARK}=".encode())), b"").partition(b"=")[2]
        if state == "Z" or any(helper in command for helper in HELPERS):
            continue
        if int(parent) == os.getpid() or mark.encode() in marks.split(b":"):
            found[pid] = command
    return found


def wait_for_end(pids: dict[int, str], seconds: float) -> dict[int, str]:
    """Those of `pids` that still run after `seconds`."""
    until = time.monotonic() + seconds
    left = {}
    for pid, command in pids.items():
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                left[pid] = command
        finally:
            os.close(descriptor)
    return left


def end(pids: dict[int, str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        pids = wait_for_end(pids, PATIENCE / 2)


def take_away(mounts: list[Mount]) -> list[str]:
    """Unmounts, and describes what was there and whether it went."""
    lines = []
    for mount in mounts:
        lines.append(f"left mounted: {mount.point} ({mount.type})")
        try:
            unmount(mount)
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            lines.append(str(error))
    return lines


def variables() -> dict[str, str]:
    """Of the environment, what stores read."""
    return {name: value for name, value in os.environ.items() if name.startswith(VARIABLES) and name != MARK}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


class Guard:
    """The plugin that conftest.py registers."""

    def __init__(self, config: pytest.Config, patience: float = PATIENCE) -> None:
        self.config = config
        self.patience = patience
        self.lines: list[str] = []
        self.mark = f"{os.getpid()}-{time.time_ns()}"
        outer = os.environ.get(MARK)
        os.environ[MARK] = f"{outer}:{self.mark}" if outer else self.mark

    @pytest.fixture(autouse=True)
    def _no_mount_left_in_tmp_path(self, request: pytest.FixtureRequest) -> Iterator[None]:
        if "tmp_path" not in request.fixturenames:
            yield
            return
        # Asked for first, so that every other fixture is torn down before this looks.
        directory = cast(Path, request.getfixturevalue("tmp_path"))
        yield
        left = take_away(mounts_below(directory))
        if left:
            pytest.fail("\n".join(left), pytrace=False)

    @pytest.fixture(autouse=True)
    def _nothing_left_for_the_next_test(self) -> Iterator[None]:
        before = variables()
        place = Path.cwd()
        stores = set(place.glob(STORES))
        yield
        left = changed(before, variables())
        lines = [f"left in the environment: {name}" for name in left]
        for name in left:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in left if name in before})
        if Path.cwd() != place:
            lines.append(f"left in another working directory: {Path.cwd()}")
            os.chdir(place)
        # It stays: whoever runs tests may have a store of that name.
        lines += [f"left in the working directory: {path.name}" for path in sorted(set(place.glob(STORES)) - stores)]
        if lines:
            pytest.fail("\n".join(lines), pytrace=False)

    def leftovers(self) -> list[str]:
        factory = getattr(self.config, "_tmp_path_factory", None)
        # Asking a factory that made nothing yet would make its directory.
        base = factory._basetemp if factory is not None else None
        lines = take_away(mounts_below(base)) if base is not None else []
        left = wait_for_end(own_processes(self.mark), self.patience)
        lines += [f"left running: {pid} {command}" for pid, command in left.items()]
        end(left)
        return lines

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.lines = self.leftovers()
        if self.lines:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.lines:
            terminalreporter.section("left behind by this run (cleaned up now)", red=True)
            for line in self.lines:
                terminalreporter.line(line, red=True)
