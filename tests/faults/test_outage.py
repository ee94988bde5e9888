"""A provider that is away for long: what waits has a bound, nothing that waits is lost, and all goes on by itself."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import workload
from tests.faults.backed import (
    CALL_LIMIT,
    HEAL_LIMIT,
    ROUNDS,
    SETTINGS,
    WAIT_LIMIT,
    Backed,
    Work,
    drop_kernel_cache,
    until,
)
from tests.faults.proxy import Fault
from tests.faults.workload import content

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20
CACHE = int(SETTINGS["ARTFS_CACHE_SIZE"])
SLACK = 24 * MIB
"""What may be acknowledged beyond the bound: what is in the journal and in the kernel's hands."""
OUTAGE = 5.0 if ROUNDS < 100 else 240.0
"""Seconds; in the long test some minutes, so that the pauses between attempts have become the longest."""


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


def test_an_outage_of_minutes_under_writers(store: Backed, tmp_path: Path) -> None:
    """They go on as far as the cache lets them, get the documented errors in time, and all heals without hands."""
    with store.running():
        with Work(store.workspace("w"), tmp_path / "record", "minutes") as work:
            time.sleep(1)
            with store.proxy.outage():
                time.sleep(OUTAGE)
            took = until(lambda: not store.stats()["waiting"]["error"], HEAL_LIMIT, "uploads go on")
            print(f"uploads go on after {took:.1f} s")
            found = work.end()
        print(f"{found.steps} steps, {found.errors or 'no errors'}, longest call {found.seconds:.1f} s")
        assert found.synced() > 10
        store.healed()
        store.ok("cache", "drop")
        drop_kernel_cache()
        assert not workload.wrong(store.path("w"), found.states)
        store.ok("sync")
    store.fsck()
    with store.recovered(tmp_path / "other").running() as other:
        assert not workload.wrong(other.path("w"), found.states)


def with_descriptor(path: Path, call: Callable[[int], object]) -> Callable[[], object]:
    def work() -> object:
        fd = os.open(path, os.O_RDWR)
        try:
            return call(fd)
        finally:
            os.close(fd)

    return work


def copied(source: Path, target: Path) -> Callable[[], object]:
    def call(fd: int) -> object:
        with target.open("wb") as file:
            return os.copy_file_range(fd, file.fileno(), MIB)

    return with_descriptor(source, call)


def mapped(path: Path) -> int:
    """SIGBUS, where the page cannot be had, is a program's end."""
    program = f"import mmap; f = open({str(path)!r}, 'rb'); mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[{MIB}]"
    return subprocess.run([sys.executable, "-c", program], check=False).returncode


def synced(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return ctypes.CDLL(None).syncfs(fd)  # type: ignore[no-any-return]
    finally:
        os.close(fd)


FAILS = {errno.EIO, errno.ENOSPC, errno.EROFS}
FINE = object()


def calls(base: Path) -> dict[str, tuple[Callable[[], object], object]]:
    """Name → (call, what it must give): FINE, EIO, or None for either.  What is cold is nowhere but with the provider;
    `warm` was written meanwhile."""
    cold = [base / f"cold{number}" for number in range(9)]
    warm = base / "warm"
    scope = base.parent
    punch, keep = 2, 1

    def fallocate(fd: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate64(fd, punch | keep, ctypes.c_longlong(5000), ctypes.c_longlong(MIB)):
            raise OSError(ctypes.get_errno(), "fallocate")

    def store_into_map(fd: int) -> None:
        with mmap.mmap(fd, 0) as shared:
            shared[10:14] = b"here"
            shared.flush()

    return {
        "write": (lambda: warm.write_bytes(content("warm", (1, MIB))), FINE),
        "fsync": (with_descriptor(warm, os.fsync), FINE),
        "read": (warm.read_bytes, FINE),
        "store into a mapping": (with_descriptor(warm, store_into_map), FINE),
        "stat": (cold[0].stat, FINE),
        "statfs": (lambda: os.statvfs(base), FINE),
        "list": (lambda: sorted(os.listdir(base)), FINE),
        "list namespaces": (lambda: os.listdir(scope), FINE),
        "mkdir": ((base / "d").mkdir, FINE),
        "symlink": (lambda: os.symlink("cold0", base / "s"), FINE),
        "link": (lambda: os.link(cold[0], base / "l"), FINE),
        "rename": (lambda: os.rename(cold[1], base / "renamed"), FINE),
        "unlink": (cold[2].unlink, FINE),
        "chmod": (lambda: cold[0].chmod(0o600), FINE),
        "setxattr": (lambda: os.setxattr(cold[0], "user.a", b"b"), FINE),
        "getxattr of what waits": (lambda: json.loads(os.getxattr(base, "user.artfs.dirty")), FINE),
        "statistics": ((base.parents[2] / ".artfs" / "stats").read_bytes, FINE),
        "SEEK_HOLE": (with_descriptor(cold[0], lambda fd: os.lseek(fd, 0, os.SEEK_HOLE)), FINE),
        "syncfs": (lambda: synced(base), FINE),
        "sync to the disk": (lambda: os.setxattr(base, "user.artfs.sync", b"local"), FINE),
        "a checkpoint": (lambda: os.setxattr(base, "user.artfs.checkpoint", b"during"), FINE),
        "a listing of a checkpoint": (lambda: os.listdir(base / ".checkpoints" / "during"), FINE),
        "a restore": (lambda: os.setxattr(base, "user.artfs.restore", b"before"), FINE),
        "a clone": (lambda: os.setxattr(base, "user.artfs.clone", b"branch"), FINE),
        "a copy": (copied(cold[3], base / "copy"), None),
        "write into a cold block": (with_descriptor(cold[4], lambda fd: os.pwrite(fd, b"x", 5000)), None),
        "fsync of that": (with_descriptor(cold[4], os.fsync), None),
        "truncate within a cold block": (lambda: os.truncate(cold[5], 5000), None),
        "fallocate within cold blocks": (with_descriptor(cold[6], fallocate), None),
        "a new namespace": ((scope / "another").mkdir, None),
        "a namespace is removed": ((scope / "another").rmdir, None),
        "a cold read": (cold[7].read_bytes, errno.EIO),
        "a cold read by a mapping": (lambda: mapped(cold[8]), -7),
        "a cold read in a checkpoint": ((base / ".checkpoints" / "during" / "cold8").read_bytes, errno.EIO),
        "sync to the provider": (lambda: os.setxattr(base, "user.artfs.sync", b"remote"), errno.EIO),
    }


@pytest.mark.parametrize("fault", ["refused", "silent"])
def test_every_call_returns_in_time(store: Backed, fault: str) -> None:
    with store.running():
        base = store.workspace("w")
        for number in range(9):
            write(base / f"cold{number}", 3 * MIB)
        os.setxattr(base, "user.artfs.checkpoint", b"before")
        store.ok("sync", seconds=HEAL_LIMIT)
        store.ok("cache", "drop")
        drop_kernel_cache()
        if fault == "refused":
            store.proxy.refuse()
        else:
            store.proxy.misbehave(Fault.HANG)
        wrong = []
        for name, (call, wanted) in calls(base).items():
            start = time.monotonic()
            found: Any = FINE
            try:
                result = call()
                found = result if name.endswith("mapping") and isinstance(result, int) else FINE
            except OSError as error:
                found = error.errno
            took = time.monotonic() - start
            print(f"{name}: {took:.2f} s, {'done' if found is FINE else found}")
            as_wanted = found == wanted or (wanted is None and (found is FINE or found in FAILS))
            if took > CALL_LIMIT or not as_wanted:
                wrong.append(f"{name}: {took:.1f} s, {'done' if found is FINE else found}")
        assert not wrong
        store.proxy.heal()
        store.healed()
        drop_kernel_cache()
        right(base, ["cold0", "cold3", "cold7", "cold8"], 3 * MIB)
    store.fsck()
