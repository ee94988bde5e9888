"""The peers: directories to measure, and the processes behind them.

`with start(spec, …) as peer:` gives a peer whose `directory` is ready; leaving it, also by an error or a
signal that became an exception, unmounts what was mounted and ends, by process id, what was started.  A
peer whose process stops answering is killed by `Peer.guard`: the kernel then fails the calls that hang, and
the run goes on without it.

artfs is a command line: `CMD --root R mount DIR` returns when the mount answers and leaves a process
behind; its pid is found by its command line, which names the scratch directory that only this run uses.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NULL_FS = Path(__file__).with_name("null_fs.py")
START_LIMIT = 30.0
STOP_LIMIT = 60.0
WORKSPACE = "default/shared/bench"


class PeerError(Exception):
    """A peer could not be started; the message says why, with what it printed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A place to work in; `pids()` are the processes that serve it, none for a native directory."""

    name: str
    directory: Path
    pids: Callable[[], list[int]] = list

    @contextlib.contextmanager
    def guard(self, seconds: float) -> Iterator[None]:
        """Kills what serves the peer when the body takes longer; calls that hang get ENOTCONN."""

        def kill() -> None:
            for pid in self.pids():
                _signal(pid, signal.SIGKILL)

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextlib.contextmanager
def start(spec: str, scratch: Path, artfs: Sequence[str]) -> Iterator[Peer]:
    """The peer called `spec` (native, null, bindfs, artfs), or `NAME=DIR`: a directory that is there.

    Raises PeerError when it does not start, ValueError for another name.
    """
    name, _, directory = spec.partition("=")
    if directory:
        place = Path(directory) / f"bench-{os.getpid()}"
        place.mkdir()
        try:
            yield Peer(name, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    elif name == "native":
        place = scratch / "native"
        place.mkdir()
        yield Peer(name, place)
    elif name == "null":
        mount = scratch / "null"
        with _foreground(name, [sys.executable, str(NULL_FS), str(mount)], mount, scratch) as peer:
            yield peer
    elif name == "bindfs":
        below, mount = scratch / "bindfs-below", scratch / "bindfs"
        below.mkdir()
        with _foreground(name, ["bindfs", "-f", str(below), str(mount)], mount, scratch) as peer:
            yield peer
    elif name == "artfs":
        grid = ArtfsMount(artfs, scratch / "artfs-store", scratch / "artfs")
        with grid.mounted():
            yield Peer(name, grid.workspace(WORKSPACE), grid.pids)
    else:
        raise ValueError(f"no peer is called {name!r}: native, null, bindfs, artfs, or NAME=DIR")


@dataclass(frozen=True, slots=True)
class ArtfsMount:
    """A store of its own and its mount; unmounted, the store stays and can be mounted again."""

    command: Sequence[str]
    root: Path
    mount: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        self.mount.mkdir(exist_ok=True)
        try:
            self.run("--root", str(self.root), "mount", str(self.mount))
            if not is_mounted(self.mount):
                raise PeerError(f"`artfs mount` returned, but nothing is mounted on {self.mount}")
            yield
        finally:
            if is_mounted(self.mount):
                with contextlib.suppress(PeerError):
                    self.run("umount", str(self.mount))
            _detach(self.mount)
            _end(self.pids)

    def workspace(self, path: str) -> Path:
        place = self.mount / path
        place.mkdir()
        return place

    def destroy(self, path: str) -> None:
        """A namespace, whatever it holds."""
        self.run("--root", str(self.root), "ns", "delete", path)

    def pids(self) -> list[int]:
        return [pid for pid in _all_pids() if str(self.mount) in _command_line(pid)]

    def run(self, *arguments: str) -> None:
        """A command of artfs.  Raises PeerError when it fails."""
        # A file, not a pipe: the process that stays behind would keep a pipe open.
        log = self.mount.with_name(self.mount.name + ".log")
        with log.open("wb") as out:
            try:
                code = subprocess.run(
                    [*self.command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    timeout=STOP_LIMIT,
                    env={**os.environ, **self.environment},
                    check=False,
                ).returncode
            except (OSError, subprocess.TimeoutExpired) as error:
                raise PeerError(str(error)) from error
        if code:
            raise PeerError(f"`artfs {arguments[-2]}` exited with {code}: {_tail(log)}")


@contextlib.contextmanager
def _foreground(name: str, command: Sequence[str], mount: Path, scratch: Path) -> Iterator[Peer]:
    """A file system that serves `mount` as a child that stays in front."""
    mount.mkdir()
    log = scratch / f"{name}.log"
    with log.open("wb") as out:
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        except OSError as error:
            raise PeerError(f"{command[0]}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + START_LIMIT
        while not is_mounted(mount):
            if child.poll() is not None:
                raise PeerError(f"{name} exited with {child.returncode}: {_tail(log)}")
            if time.monotonic() > deadline:
                raise PeerError(f"{name} did not mount within {START_LIMIT:.0f} s: {_tail(log)}")
            time.sleep(0.02)
        yield Peer(name, mount, lambda: [child.pid] if child.poll() is None else [])
    finally:
        _detach(mount)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def is_mounted(mount: Path) -> bool:
    """Whether something is mounted there, also when it no longer answers (os.path.ismount would say no)."""
    escaped = str(mount).replace("\\", r"\134").replace(" ", r"\040")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return any(line.split(" ")[4] == escaped for line in lines)


def resident_mib(pids: Sequence[int]) -> float:
    """What the processes have in memory now, together, in MiB."""
    return _status_mib(pids, "VmRSS:")


def peak_mib(pids: Sequence[int]) -> float:
    """The most that each of the processes had, together, in MiB."""
    return _status_mib(pids, "VmHWM:")


def _status_mib(pids: Sequence[int], key: str) -> float:
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key):
                total += int(line.split()[1])
    return total / 1024


def _detach(mount: Path) -> None:
    """Unmounts; when it is busy, lazily.  A peer is always left without its mount."""
    for flags in (["-u"], ["-u", "-z"]):
        if not is_mounted(mount):
            return
        subprocess.run(["fusermount3", *flags, str(mount)], capture_output=True, check=False)


def _end(pids: Callable[[], list[int]]) -> None:
    """Waits for the processes to go by themselves (they may be draining), then ends them."""
    for limit, number in ((10.0, signal.SIGTERM), (5.0, signal.SIGKILL)):
        deadline = time.monotonic() + limit
        while pids() and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in pids():
            _signal(pid, number)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _command_line(pid: int) -> list[str]:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or "it printed nothing"
