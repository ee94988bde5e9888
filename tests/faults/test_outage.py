"""A provider that is away for long: what waits has a bound, nothing that waits is lost, and all goes on by itself."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.faults.backed import CALL_LIMIT, HEAL_LIMIT, SETTINGS, WAIT_LIMIT, Backed, drop_kernel_cache, until
from tests.faults.workload import content

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20
CACHE = int(SETTINGS["ARTFS_CACHE_SIZE"])
SLACK = 24 * MIB
"""What may be acknowledged beyond the bound: what is in the journal and in the kernel's hands."""


def write(path: Path, size: int = MIB) -> float:
    """Write and sync the content that its name stands for; returns how long the slowest call took.  Errors: OSError."""
    slowest = 0.0
    data = content(path.name, (1, size))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for call in (lambda: os.write(fd, data), lambda: os.fsync(fd)):
            start = time.monotonic()
            try:
                call()
            finally:
                slowest = max(slowest, time.monotonic() - start)
    finally:
        try:
            os.close(fd)
        except OSError:  # close says again what fsync said
            pass
    assert slowest < CALL_LIMIT, f"{slowest:.1f} s"
    return slowest


def right(base: Path, names: list[str], size: int = MIB) -> None:
    for name in names:
        assert (base / name).read_bytes() == content(name, (1, size)), name


def test_writers_see_an_error_before_the_disk_is_full_and_go_on_afterwards(store: Backed) -> None:
    with store.running():
        base = store.workspace("w")
        write(base / "before")
        store.ok("sync")
        store.proxy.refuse()
        synced = ["before"]
        failure: OSError | None = None
        for number in range(2 * CACHE // MIB):
            start = time.monotonic()
            try:
                write(base / f"f{number}")
            except OSError as error:
                failure = error
                break
            synced.append(f"f{number}")
        assert failure is not None, f"{len(synced)} MiB were taken"
        assert failure.errno in (errno.ENOSPC, errno.EIO), failure
        took = time.monotonic() - start
        print(f"{len(synced)} MiB synced, then {failure.strerror} after {took:.1f} s")
        assert took < 3 * WAIT_LIMIT + 5  # write, fsync and close may each wait
        assert CACHE // 2 < len(synced) * MIB < CACHE + SLACK
        assert store.cached() < CACHE + SLACK
        found = store.status()
        assert found["owner"]["pid"]
        drop_kernel_cache()
        right(base, synced[1:])  # what waits can be read; what is uploaded has made room for it
        # The outage ends.
        store.proxy.accept()

        def taken() -> bool:
            try:
                write(base / "after")
            except OSError:
                return False
            return True

        print(f"writers go on after {until(taken, HEAL_LIMIT, 'writers go on'):.1f} s")
        store.ok("sync", seconds=HEAL_LIMIT)
        assert not store.waiting_files()
        drop_kernel_cache()
        right(base, [*synced, "after"])
    store.fsck()


def test_what_waits_is_visible(store: Backed) -> None:
    with store.running():
        base = store.workspace("w")
        write(base / "before")
        store.ok("sync")
        store.proxy.refuse()
        write(base / "later", 3 * MIB)
        until(lambda: bool(store.status()["waiting"]["error"]), 20, "the error shows")
        waiting = store.status()["waiting"]
        print(waiting)
        assert waiting["bytes"] >= 3 * MIB
        assert waiting["objects"] >= 1
        assert waiting["oldest"]
        assert store.artfs("sync", seconds=60).returncode == 1
        store.proxy.accept()
        until(lambda: not store.status()["waiting"]["bytes"], HEAL_LIMIT, "nothing waits")
        assert not store.status()["waiting"]["error"]


@pytest.mark.parametrize("ended", ["unmounted", "killed"])
def test_what_waits_outlives_the_process(store: Backed, ended: str) -> None:
    """Ended during the outage, mounted again during it, and after it."""
    store.env["ARTFS_DRAIN_LIMIT"] = "1"
    names = [f"f{number}" for number in range(10)]
    try:
        store.start()
        base = store.workspace("w")
        write(base / "before")
        store.ok("sync")
        store.proxy.refuse()
        for name in names:
            write(base / name)
        if ended == "unmounted":
            start = time.monotonic()
            store.stop()
            assert time.monotonic() - start < 30
            assert "wait" in store.log(), "what is left is not said"
        else:
            store.kill()
        assert sum(path.stat().st_size for path in store.waiting_files()) >= 10 * MIB
        with store.running():
            right(base, names)
            write(base / "again")
        store.proxy.accept()
        with store.running():
            until(lambda: not store.waiting_files(), HEAL_LIMIT, "all is uploaded by itself")
            store.ok("sync")
            store.ok("cache", "drop")
            drop_kernel_cache()
            right(base, ["before", *names, "again"])
    finally:
        store.kill()
    store.fsck()


def test_what_is_cached_can_be_read_without_the_provider(store: Backed) -> None:
    with store.running():
        base = store.workspace("w")
        names = [f"f{number}" for number in range(10)]
        for name in names:
            write(base / name)
        store.ok("sync")
        drop_kernel_cache()
        with store.proxy.outage(), store.proxy.counting() as seen:
            right(base, names)
        assert not seen.requests
