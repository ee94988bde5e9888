"""A mounted store whose bytes live in an S3 server behind the misbehaving proxy, and what tests do with it.

The server checks signatures: rclone's, or the one that was given (see `tests.servers`).  `Backed` is the mount: `artfs
mount` in a process of its own, with the provider in its environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults import workload
from tests.faults.proxy import Proxy
from tests.mounting import Mounted
from tests.servers import Server

TOP = Path(__file__).parents[2]
RESOLVER = Path(__file__).with_name("resolver")
WAIT_LIMIT = 2.0
PROVIDER_TIMEOUT = 3.0
CALL_LIMIT = 3 * WAIT_LIMIT + 4
"""Seconds for a system call, at most, whatever the provider does (docs/semantics.md), on a busy machine."""
HEAL_LIMIT = 60.0 + 15
"""Seconds for a store to have uploaded all that waits, after a fault has ended: the longest pause between attempts, and
an attempt."""
SETTINGS = {
    "ARTFS_WAIT_LIMIT": str(WAIT_LIMIT),
    "ARTFS_PROVIDER_TIMEOUT": str(PROVIDER_TIMEOUT),
    "ARTFS_UPLOAD_DELAY": "0.2",
    "ARTFS_COMMIT_INTERVAL": "0.2",
    "ARTFS_SAVE_INTERVAL": "1",
    "ARTFS_CACHE_RESERVE": "0",
    "ARTFS_CACHE_SIZE": str(64 << 20),
}


class Backed(Mounted):
    """`url`: its provider, everything goes through `proxy`."""

    def __init__(
        self, base: Path, proxy: Proxy, server: Server, url: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.proxy = proxy
        self.server = server
        self.url = url
        settings = {**server.env, **SETTINGS, "ARTFS_PROVIDER": url, **(env or {})}
        super().__init__(base / "store", base / "mnt", ("-o", "allow_other"), settings)

    def artfs(self, *words: str, seconds: float = 90.0, root: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command on this store (or another's root), in the same environment."""
        return subprocess.run(
            [sys.executable, "-m", "artfs", "--root", str(root or self.root), *words],
            env={**self.env, "PYTHONPATH": os.pathsep.join(filter(None, (str(TOP), self.env.get("PYTHONPATH"))))},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def ok(self, *words: str, seconds: float = 90.0, root: Path | None = None) -> str:
        done = self.artfs(*words, seconds=seconds, root=root)
        assert done.returncode == 0, f"artfs {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok("status", "--json"))
        return found

    def stop(self, seconds: float = 90.0) -> None:
        """Unmount, and wait for the drain."""
        if self.process is not None:
            subprocess.run(["umount", str(self.point)], check=True, capture_output=True)
            assert self.process.wait(seconds) == 0, self.log()
            self.process = None

    def kill(self) -> None:
        """SIGKILL, to a process that lives: one that has died by itself is a failure, not a round."""
        code = None if self.process is None else self.process.poll()
        super().kill()
        assert code is None, f"the mount had ended by itself, with {code}:\n{self.log()[-3000:]}"

    def complaints(self) -> list[str]:
        """Lines of its log that tell of a bug, whatever it did to go on."""
        path = self.root.parent / f"{self.root.name}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if "Traceback" in line or "a bug of artfs" in line]

    def path(self, name: str) -> Path:
        return self.point / "default" / "shared" / name

    def fsck(self) -> None:
        """REQUIRES: it is not mounted, and its provider is well: a list of many objects may take its time."""
        with patched(self.env, ARTFS_PROVIDER_TIMEOUT="30"):
            found = self.artfs("fsck", "--data", seconds=300)
        assert found.returncode == 0, found.stdout + found.stderr

    def recovered(self, base: Path) -> Backed:
        """The same, rebuilt from the provider alone on another machine: a new root below `base`."""
        base.mkdir(exist_ok=True)
        other = Backed(base, self.proxy, self.server, self.url)
        other.env = self.env
        other.ok("recover", self.url)
        return other

    def healed(self) -> float:
        """REQUIRES: it is mounted, and its provider is well again.  Wait for all to be uploaded, without touching
        anything; returns how long it took."""
        return until(lambda: not self.stats()["waiting"]["bytes"], HEAL_LIMIT, "everything is uploaded")

    def waiting_files(self) -> list[Path]:
        """Objects that are only here."""
        return [path for path in (self.root / "objects").rglob("*") if path.is_file()]

    def cache_files(self) -> list[Path]:
        found = (path for path in (self.root / "cache").rglob("*") if path.is_file())
        return [path for path in found if "scratch" not in path.parts]

    def cached(self) -> int:
        """Bytes on the disk below objects/ and cache/."""
        total = 0
        for path in [*self.waiting_files(), *self.cache_files()]:
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:  # evicted or uploaded at this moment
                pass
        return total

    @contextmanager
    def running(self) -> Iterator[Backed]:
        """Mounted; whatever happens, gone at the end."""
        try:
            self.start()
            yield self
            self.stop()
        finally:
            self.kill()
        assert not self.complaints(), self.log()[-3000:]


@contextmanager
def patched(env: dict[str, str], **values: str) -> Iterator[None]:
    before = dict(env)
    env.update(values)
    try:
        yield
    finally:
        env.clear()
        env.update(before)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Also if it has ended."""
    process.kill()
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


class Work:
    """The workload as a process."""

    def __init__(self, base: Path, record: Path, seed: str) -> None:
        self.base = base
        self.record = record
        base.mkdir(exist_ok=True)
        record.mkdir(parents=True)
        command = [sys.executable, "-m", "tests.faults.workload", str(base), str(record), seed]
        self.process = subprocess.Popen(command, cwd=TOP, stderr=subprocess.PIPE)
        # It begins now, or the mount has gone before it could.
        until(lambda: (record / "log").exists() or self.process.poll() is not None, 60, "the workload begins")

    def end(self, seconds: float = 8 * CALL_LIMIT) -> workload.Known:
        """Let it end, and see that it found nothing wrong, and that no call took too long."""
        (self.record / "stop").touch()
        try:
            _, said = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"a step does not end within {seconds:.0f} s") from None
        assert self.process.returncode == 0, said.decode()
        found = workload.known(self.record)
        assert found.seconds < CALL_LIMIT, f"{found.slowest} took {found.seconds:.1f} s"
        return found

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        kill(self.process)


ROUNDS = int(os.environ.get("ARTFS_TEST_ROUNDS", "10"))
"""100 in the long test."""


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Returns how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - start


def drop_kernel_cache() -> None:
    """Pages, names and inodes: the next reads ask the mount."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
