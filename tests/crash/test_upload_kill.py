"""SIGKILL of a mount whose bytes go to a provider, at random moments of upload, eviction, gc, save and recovery.

Two promises: what was *synced* is there when the same root is mounted again; what was synced when `artfs sync` returned
is there when the root is lost and the store is recovered from the provider alone, byte for byte.  In both cases fsck
finds nothing wrong.  `ARTFS_TEST_ROUNDS=100` makes it the long test.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.test_sigkill import VERIFY, start
from tests.faults import workload
from tests.faults.backed import HEAL_LIMIT, ROUNDS, TOP, Backed, Work, kill
from tests.faults.messages import Kind
from tests.faults.proxy import Fault, Proxy
from tests.faults.workload import content
from tests.servers import one_serving

pytestmark = [pytest.mark.crash, pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20
BALLAST = [f"ballast{number}" for number in range(12)]
BALLAST_SIZE = 8 * MIB
"""Together more than the cache holds, so that reading them in turn evicts."""
BUSY = {
    "ARTFS_UPLOAD_DELAY": "0.05",
    "ARTFS_COMMIT_INTERVAL": "0.1",
    "ARTFS_SAVE_INTERVAL": "0.2",
    "ARTFS_GC_INTERVAL": "0.3",
    "ARTFS_GC_GRACE": "0.3",
    "ARTFS_JOURNAL_SIZE": str(8 * MIB),
    "ARTFS_DRAIN_LIMIT": "60",
}
"""So that all that goes on in the background is often under way when the process dies."""
OTHERS = ("names", "versions", "appends", "database")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backed]:
    with one_serving(tmp_path) as server, Proxy(server.address) as proxy:
        own = Backed(tmp_path / "first", proxy, server, server.place(endpoint_url=proxy.url), BUSY)
        (tmp_path / "first").mkdir()
        try:
            yield own
        finally:
            own.kill()
        assert not own.complaints(), own.log()[-3000:]


def fill(store: Backed) -> None:
    base = store.workspace("ballast")
    for name in BALLAST:
        (base / name).write_bytes(content(name, (1, BALLAST_SIZE)))
    store.ok("sync", seconds=HEAL_LIMIT)


@dataclass(slots=True)
class Reader:
    """Reads the ballast in turn, past the kernel's cache, until the mount is gone; `read` counts whole files."""

    folder: int
    read: int = 0
    wrong: str = ""

    def run(self) -> None:
        while not self.wrong:
            for name in BALLAST:
                try:
                    data = uncached(name, self.folder)
                except OSError as error:
                    if error.errno not in workload.GONE + workload.DOCUMENTED:
                        self.wrong = str(error)
                    return
                if data != content(name, (1, BALLAST_SIZE)):
                    self.wrong = f"{name}: wrong bytes"
                    return
                self.read += 1


def uncached(name: str, folder: int) -> bytes:
    """Its bytes, which the kernel forgets again."""
    fd = os.open(name, os.O_RDONLY, dir_fd=folder)
    try:
        data = b"".join(iter(lambda: os.read(fd, MIB), b""))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return data
    finally:
        os.close(fd)


@contextmanager
def reading(store: Backed) -> Iterator[Reader]:
    folder = os.open(store.path("ballast"), os.O_PATH)  # its path leads elsewhere when the mount is gone
    reader = Reader(folder)
    thread = threading.Thread(target=reader.run)
    thread.start()
    try:
        yield reader
    finally:
        store.kill()
        thread.join()
        os.close(folder)
    assert not reader.wrong


def all_right(store: Backed, states: dict[str, list[workload.Version]]) -> int:
    """In the mount: the work and the ballast, every byte; returns how many files there are for certain."""
    assert not workload.wrong(store.path("work"), states)
    for name in BALLAST:
        assert (store.path("ballast") / name).read_bytes() == content(name, (1, BALLAST_SIZE)), name
    return sum(versions[0] != workload.NONE for versions in states.values())


def empty(base: Path) -> None:
    for path in base.iterdir():
        path.unlink()


def test_nothing_synced_is_lost_with_the_process(store: Backed, tmp_path: Path) -> None:
    chance = random.Random(os.environ.get("ARTFS_TEST_SEED", "upload"))
    store.start()
    fill(store)
    store.workspace("work")
    certain = read = 0
    for number in range(ROUNDS):
        record = tmp_path / f"round{number}"
        with ExitStack() as stack:
            reader = stack.enter_context(reading(store))
            empty(store.path("work"))
            base = store.workspace(f"n{number}")
            work = Work(store.path("work"), record / "work", f"{number} {chance.random()}")
            stack.enter_context(work)
            writers = {}
            for kind in OTHERS:
                writers[kind] = start(kind, base, record, f"{number}-{chance.random()}")
                stack.callback(kill, writers[kind])
            time.sleep(chance.uniform(0.3, 2.0))
            store.kill()
            for kind, writer in writers.items():
                _, said = writer.communicate(timeout=30)
                assert writer.returncode == 0, f"round {number}: {kind} failed:\n{said.decode()}"
            found = work.end()
        read += reader.read
        store.fsck()
        store.start()
        certain += all_right(store, found.states)
        for kind in OTHERS:
            VERIFY[kind](base / kind, record / kind)
    store.stop()
    store.fsck()
    seen = store.proxy.seen
    print(f"{ROUNDS} rounds, {certain} files verified, {read} of the ballast read meanwhile; requests: {seen}")
    assert certain
    assert seen.count(Kind.PUT)
    assert seen.count(Kind.DELETE), "gc deleted nothing, so it was not tested"


def recover_in_bits(store: Backed, base: Path, chance: random.Random, kills: int) -> Backed:
    """Recover on another machine, killed that often at a random moment and run again on what is left."""
    base.mkdir()
    other = Backed(base, store.proxy, store.server, store.url)
    other.env = store.env
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "artfs", "--root", str(other.root), "recover", store.url],
            env=store.env,
            cwd=TOP,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(0.2, 1.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    if not (other.root / "store.json").exists():  # else it was done before it could be killed
        print(other.ok("recover", store.url).strip())
    return other


def test_nothing_remote_is_lost_with_the_machine(store: Backed, tmp_path: Path) -> None:
    """Each round the store moves to another machine: the root is gone, and the next is recovered from the provider."""
    chance = random.Random(os.environ.get("ARTFS_TEST_SEED", "machine"))
    now = store
    try:
        now.start()
        fill(now)
        now.workspace("work")
        certain = 0
        for number in range(max(3, ROUNDS // 3)):
            empty(now.path("work"))
            work = Work(now.path("work"), tmp_path / f"record{number}", f"{number} {chance.random()}")
            with reading(now), work:
                time.sleep(chance.uniform(0.3, 1.5))
                if chance.random() < 0.3:
                    now.proxy.misbehave(Fault.ANSWER, probability=0.2)
                    now.artfs("sync")  # one that meets a fault may say so, and promises nothing then
                    now.proxy.heal()
                before = workload.lines(work.record)
                now.ok("sync")
                time.sleep(chance.uniform(0, 1))
                now.kill()
                found = work.end()
            states = workload.known(work.record, before).states
            assert sum(v[0] != workload.NONE for v in states.values()), f"round {number}: nothing was synced"
            assert not now.complaints(), now.log()[-3000:]
            last = now
            now = recover_in_bits(now, tmp_path / f"machine{number}", chance, number % 3)
            shutil.rmtree(last.root)
            now.fsck()
            now.start()
            certain += all_right(now, states)
            print(f"round {number}: {found.steps} steps, {before} synced; verified {certain} in all")
        now.stop()
        now.fsck()
    finally:
        now.kill()
