"""The driver's thread goes to the processor of a caller that is alone, and is nowhere but where it was afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.tools import eventually
from tests.mounting import Mounted, mounted

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.alone,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor"),
    pytest.mark.skipif(os.geteuid() != 0, reason="without privileges a thread cannot leave SCHED_IDLE"),
]
MIB = 1 << 20
REQUESTS = 2000
BUSY = 2.0
LONGEST = 1.0
"""Seconds that a request may take while every processor is busy: a hundred times what it should."""


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path) as found:
        yield found


def look_up(mount: Mounted, count: int) -> float:
    """So many requests, one after the other; seconds of the longest."""
    longest = 0.0
    for number in range(count):
        begun = time.monotonic()
        assert not os.path.lexists(mount.point / f"default/shared/none{number}")
        longest = max(longest, time.monotonic() - begun)
    return longest


def displaced(mount: Mounted) -> list[str]:
    """The daemon's threads that are not where they belong."""
    assert mount.process is not None
    mine = os.sched_getaffinity(0)
    found = []
    for task in Path(f"/proc/{mount.process.pid}/task").iterdir():
        tid, name = int(task.name), (task / "comm").read_text().strip()
        idle = os.sched_getscheduler(tid) != os.SCHED_OTHER
        if idle or (name != "artfs-guard" and os.sched_getaffinity(tid) != mine):
            found.append(name)
    return found


def test_a_caller_that_is_alone_is_joined(mount: Mounted) -> None:
    look_up(mount, REQUESTS)
    eventually(lambda: mount.stats()["joined"] > 0)
    eventually(lambda: not displaced(mount))


def test_threads_that_start_meanwhile_are_free(mount: Mounted) -> None:
    """Of large reads, of syncs, of commits."""
    workspace = mount.workspace("w")
    look_up(mount, REQUESTS)
    large = workspace / "large"
    with large.open("wb") as file:
        file.write(os.urandom(4 * MIB))
        os.fsync(file.fileno())
    subprocess.run(["sync", "-f", workspace], check=True)
    large.rename(workspace / "other")
    look_up(mount, REQUESTS)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    assert len((workspace / "other").read_bytes()) == 4 * MIB
    look_up(mount, REQUESTS)
    eventually(lambda: not displaced(mount))


def test_busy_processors_keep_nobody_waiting(mount: Mounted) -> None:
    look_up(mount, REQUESTS)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        until = time.monotonic() + BUSY
        while time.monotonic() < until:
            assert look_up(mount, 50) < LONGEST
    finally:
        for process in busy:
            process.kill()
            process.wait()
    eventually(lambda: not displaced(mount))
