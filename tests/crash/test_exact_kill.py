"""SIGKILL at one exact step of upload, fetching, eviction, garbage collection, saving and recovery: right before it is
done, or right after, so that nobody has heard of it yet.

What must hold is as in `test_upload_kill`, where moments are random.  `ARTFS_TEST_ROUNDS=100` makes it the long test.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.test_upload_kill import BUSY, MIB, all_right, empty, fill, reading, store
from tests.faults import workload
from tests.faults.backed import HEAL_LIMIT, ROUNDS, TOP, Backed, Work, patched
from tests.faults.messages import Kind
from tests.faults.proxy import Fault
from tests.faults.workload import content

__all__ = ["store"]

pytestmark = [pytest.mark.crash, pytest.mark.fuse, pytest.mark.slow]

DEADLY = f"{Path(__file__).with_name('deadly')}{os.pathsep}{TOP}"
PATIENCE = 20.0
"""Seconds in which the step must come."""
LARGE = 24 * MIB
"""Of a file whose object is uploaded in parts."""
SLOWLY = BUSY | {"ARTFS_UPLOAD_DELAY": "0.5"}
"""So that objects become large enough for that."""


@dataclass(frozen=True, slots=True)
class Step:
    """A call on a file whose path has `part`, or a request; `most`: it is one of the first so many."""

    call: str = ""
    part: str = ""
    request: Kind | None = None
    most: int = 8
    env: tuple[tuple[str, str], ...] = ()


LARGE_OBJECTS = tuple(SLOWLY.items())
STEPS = {
    "an object becomes a copy": Step("rename", "/objects/"),
    "a piece comes into the cache": Step("write_all", "/cache/"),
    "a copy is evicted": Step("unlink", "/cache/"),
    "bytes are appended": Step("pwritev", "/objects/", most=40),
    "bytes are synced": Step("fdatasync", "/objects/", most=40),
    "an object or a copy of metadata is put": Step(request=Kind.PUT, most=20),
    "an upload in parts begins": Step(request=Kind.BEGIN, most=2, env=LARGE_OBJECTS),
    "a part is sent": Step(request=Kind.PART, most=6, env=LARGE_OBJECTS),
    "an upload in parts is completed": Step(request=Kind.COMPLETE, most=2, env=LARGE_OBJECTS),
    "garbage or an old copy of metadata is deleted": Step(request=Kind.DELETE),
    "a piece is fetched": Step(request=Kind.GET, most=20),
}


@contextmanager
def deadly(store: Backed, step: Step, number: int, when: str, gate: Path) -> Iterator[Callable[[], None]]:
    """Mounted, by a process that is killed at the number-th time that the step is done after what is returned was
    called."""
    call = {"PYTHONPATH": DEADLY, "DEADLY": f"{step.call}:{step.part}:{number}:{when}", "DEADLY_GATE": str(gate)}
    with patched(store.env, **dict(step.env), **(call if step.request is None else {})):
        store.start()
    passed = 0
    lock = threading.Lock()

    def now() -> None:
        nonlocal passed
        with lock:
            passed += 1
            if passed == number and store.process is not None:
                os.kill(store.process.pid, signal.SIGKILL)

    def arm() -> None:
        gate.touch()
        if step.request is not None:
            fault = Fault.RESET_BEFORE if when == "before" else Fault.RESET_AFTER
            # One in two is reset; so that the others go on, and the store gets to all of its requests.
            store.proxy.misbehave(fault, {step.request}, probability=0.5, also=now)

    try:
        yield arm
    finally:
        store.proxy.heal()


@dataclass(slots=True)
class Writer:
    """Replaces one large file until the mount is gone; `synced` is the last version that is there for certain."""

    folder: int
    synced: int = 0
    tried: int = 0

    def run(self) -> None:
        try:
            while True:
                self.tried += 1
                self._replace(content("large", (self.tried, LARGE)))
                self.synced = self.tried
        except OSError as error:
            assert error.errno in workload.GONE + workload.DOCUMENTED, error

    def _replace(self, data: bytes) -> None:
        fd = os.open("draft", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=self.folder)
        try:
            for at in range(0, LARGE, MIB):
                os.write(fd, data[at : at + MIB])
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename("draft", "large", src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def check(self, base: Path) -> None:
        if self.synced:
            data = (base / "large").read_bytes()
            assert data in (content("large", (n, LARGE)) for n in (self.synced, self.tried)), self


@contextmanager
def writing(base: Path) -> Iterator[Writer]:
    folder = os.open(base, os.O_PATH)  # its path leads elsewhere when the mount is gone
    writer = Writer(folder)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        yield writer
    finally:
        thread.join()
        os.close(folder)


def died(store: Backed) -> bool:
    """Within PATIENCE; then, or else, the mount is taken away."""
    assert store.process is not None
    try:
        code = store.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        store.kill()
        return False
    assert code == -signal.SIGKILL, store.log()[-3000:]
    store.process = None
    store.kill()
    return True


@pytest.mark.parametrize("name", STEPS)
def test_nothing_synced_is_lost_at_a_step(store: Backed, tmp_path: Path, name: str) -> None:
    step = STEPS[name]
    chance = random.Random(os.environ.get("ARTFS_TEST_SEED", name))
    store.start()
    fill(store)
    for place in ("work", "large"):
        store.workspace(place)
    store.stop()
    deaths = []
    for number in range(max(2, ROUNDS // 5)):
        when = ("before", "after")[number % 2]
        at = chance.randrange(1, step.most + 1)
        with deadly(store, step, at, when, tmp_path / f"gate{number}") as arm:
            work = Work(store.path("work"), tmp_path / f"record{number}", f"{number} {chance.random()}")
            with work, writing(store.path("large")) as writer, reading(store) as reader:
                arm()
                if died(store):
                    deaths.append(f"{when} {at}")
                found = work.end()
        store.fsck()
        store.start()
        certain = all_right(store, found.states)
        writer.check(store.path("large"))
        healed = store.healed()
        empty(store.path("work"))
        store.stop()
        print(f"{when} {at}: {certain} files, {writer.synced} large ones, {reader.read} read; healed in {healed:.1f} s")
    assert deaths, "the step was never done"
    store.fsck()


def test_recovery_at_any_step(store: Backed, tmp_path: Path) -> None:
    """Killed before or after each of its changes, and run again on what that left."""
    store.start()
    (store.workspace("work") / "f").write_bytes(content("f", (1, 3 * MIB)))
    for number in range(30):
        (store.path("work") / f"small{number}").write_bytes(content(f"small{number}", (1, 1000)))
    states = {"f": [(1, 3 * MIB)]} | {f"small{number}": [(1, 1000)] for number in range(30)}
    store.ok("sync", seconds=HEAL_LIMIT)
    store.stop()
    log = tmp_path / "calls"
    _recover(store, tmp_path / "counting", f"::{0}:before", log)
    calls = log.read_text().splitlines()
    assert len(calls) > 10, calls
    moments = [(number, when) for number in range(1, len(calls) + 1) for when in ("before", "after")]
    chosen = random.Random(os.environ.get("ARTFS_TEST_SEED", "recover")).sample(moments, min(ROUNDS, len(moments)))
    done = 0
    for number, when in chosen:
        base = tmp_path / f"{number}{when}"
        code = _recover(store, base, f"::{number}:{when}")
        assert code == -signal.SIGKILL, f"{when} {number}, {calls[number - 1]}: {code}"
        other = Backed(base, store.proxy, store.server, store.url)
        other.env = store.env
        again = other.artfs("recover", store.url)
        if (other.root / "store.json").exists() and again.returncode:  # it was whole, but for cleaning up
            assert "holds a store already" in again.stderr, again.stderr
            done += 1
        else:
            assert again.returncode == 0, f"{when} {number}, {calls[number - 1]}: {again.stderr}"
        with other.running():
            assert not workload.wrong(other.path("work"), states)
        other.fsck()
    print(f"{len(calls)} calls; killed at {len(chosen)} moments, {done} of them when the store was whole")


def _recover(store: Backed, base: Path, deadly: str, log: Path | None = None) -> int:
    base.mkdir()
    env = store.env | {"PYTHONPATH": DEADLY, "DEADLY": deadly.replace("::", f":{base}/:", 1)}
    env |= {"DEADLY_LOG": str(log)} if log is not None else {}
    command = [sys.executable, "-m", "artfs", "--root", str(base / "store"), "recover", store.url]
    return subprocess.run(command, env=env, cwd=TOP, capture_output=True, check=False).returncode
