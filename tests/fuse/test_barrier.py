"""The checkpoint barrier: a checkpoint holds every write(2) and every store into a mapping that had finished before it
was asked for, however much the kernel still had to hand over, and whoever wrote it."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from artfs import control
from tests.fuse.tools import command
from tests.mounting import Mounted, mounted
from tests.posix.actors import Child

MIB = 1 << 20
SLOTS = 2048
STORES = 64 * 512
"""Slots of the mapping, 8 bytes each: 64 pages."""
NUMBER = struct.Struct("<Q")


class Manifest:
    """What a writer in another process has finished, by kind, in memory that both share."""

    kinds = ("slots", "stores", "appends", "files", "renames")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4096)

    def finished(self, kind: str, number: int) -> None:
        NUMBER.pack_into(self._memory, self.kinds.index(kind) * 8, number)

    def read(self) -> dict[str, int]:
        return {kind: NUMBER.unpack_from(self._memory, i * 8)[0] for i, kind in enumerate(self.kinds)}

    def stop(self) -> None:
        self._memory[2048] = 1

    @property
    def stopped(self) -> bool:
        return self._memory[2048] == 1


def write_all_kinds(folder: Path, manifest: Manifest) -> None:
    """Until told to stop: numbered writes, each entered into the manifest once it has returned."""
    slots = os.open(folder / "slots", os.O_RDWR)
    appends = os.open(folder / "appends", os.O_WRONLY | os.O_APPEND)
    mapping = mmap.mmap(os.open(folder / "stores", os.O_RDWR), STORES * 8)
    number = 0
    while not manifest.stopped:
        number += 1
        os.pwrite(slots, NUMBER.pack(number), number % SLOTS * 8)
        manifest.finished("slots", number)
        NUMBER.pack_into(mapping, number * 512 % STORES * 8 + number // 64 % 512 * 8, number)
        manifest.finished("stores", number)
        os.write(appends, NUMBER.pack(number))
        manifest.finished("appends", number)
        if number % 16 == 0:
            path = folder / "files" / str(number % 512)
            path.write_bytes(NUMBER.pack(number) * 200)
            manifest.finished("files", number)
            path.rename(folder / "moved" / path.name)
            manifest.finished("renames", number)
        if number % 64 == 0:
            time.sleep(0.001)


def check(view: Path, done: dict[str, int], later: dict[str, int] | None = None) -> None:
    """The checkpoint holds all that was finished; what came meanwhile it may hold.  `later`: what was finished when the
    checkpoint was there; a file that the writer came back to meanwhile may be of that time."""
    slots = memoryview((view / "slots").read_bytes()).cast("Q")
    for number in range(max(1, done["slots"] - SLOTS + 1), done["slots"] + 1):
        assert slots[number % SLOTS] >= number, f"write {number} of {done['slots']} is missing"
    stores = memoryview((view / "stores").read_bytes()).cast("Q")
    for number in range(max(1, done["stores"] - 64 * 512 + 1), done["stores"] + 1):
        slot = number * 512 % STORES + number // 64 % 512
        assert stores[slot] >= number, f"store {number} of {done['stores']} is missing"
    appends = (view / "appends").stat().st_size
    assert appends >= done["appends"] * 8 and appends % 8 == 0
    with (view / "appends").open("rb") as file:
        first = max(done["appends"] - 1000, 0)
        file.seek(first * 8)
        assert (
            list(memoryview(file.read(8000)).cast("Q")) == list(range(first + 1, first + 1001))[: appends // 8 - first]
        )
    for kind, folder in (("files", "files"), ("renames", "moved")):
        if done[kind] and (later is None or later[kind] + 16 < done[kind] + 512):
            path = view / folder / str(done[kind] % 512)
            if kind == "files" and not path.exists():  # it has been moved meanwhile
                path = view / "moved" / path.name
            content = path.read_bytes()
            assert len(content) == 1600 and NUMBER.unpack_from(content)[0] >= done[kind]


def prepare(folder: Path) -> None:
    for name in ("files", "moved"):
        (folder / name).mkdir()
    (folder / "slots").write_bytes(bytes(SLOTS * 8))
    (folder / "stores").write_bytes(bytes(STORES * 8))
    (folder / "appends").write_bytes(b"")


def test_a_checkpoint_holds_what_another_process_had_finished(workspace: Path) -> None:
    """200 checkpoints under a writer that does not pause for them."""
    prepare(workspace)
    manifest = Manifest()
    writer = Child(lambda: write_all_kinds(workspace, manifest))
    try:
        for i in range(200):
            done = manifest.read()
            control.checkpoint(workspace, f"c{i}")
            check(workspace / f".checkpoints/c{i}", done)
            if i >= 3:
                control.delete(workspace, f"c{i - 3}")
    finally:
        manifest.stop()
        writer.join()
    assert manifest.read()["files"] > 0


@contextmanager
def slowed(mount: Mounted) -> Iterator[None]:
    """The daemon is stopped most of the time: what the kernel sends to it queues up."""
    ended = threading.Event()
    process = mount.process
    assert process is not None

    def work() -> None:
        while not ended.is_set():
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.02)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.005)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        process.send_signal(signal.SIGCONT)


ONE_BY_ONE = {"ARTFS_BURST_US": "0", "ARTFS_SPIN_US": "0", "ARTFS_WAIT_US": "0"}
"""Settings with which other tasks of the mount have their turn after each request: then a checkpoint could overtake the
writes that are queued in the kernel."""


@pytest.mark.parametrize(
    ("slow", "settings"), [(False, {}), (True, {}), (False, ONE_BY_ONE), (True, ONE_BY_ONE)], ids=str
)
def test_a_checkpoint_holds_much_that_is_dirty(tmp_path: Path, slow: bool, settings: dict[str, str]) -> None:
    """64 MiB by write(2) and 16 MiB by stores into a mapping, none of it synced; five rounds over the same files."""
    with mounted(tmp_path, env=settings) as mount:
        _much_that_is_dirty(mount, mount.workspace("w"), slow)


def _much_that_is_dirty(mount: Mounted, workspace: Path, slow: bool) -> None:
    with (workspace / "stores").open("wb") as file:
        file.truncate(16 * MIB)
    writes = os.open(workspace / "writes", os.O_RDWR | os.O_CREAT)
    stores = os.open(workspace / "stores", os.O_RDWR)
    try:
        with mmap.mmap(stores, 16 * MIB) as mapping:
            for i in range(5):
                block = os.urandom(MIB)
                for k in range(64):
                    assert os.pwrite(writes, block[k:] + block[:k], k * MIB) == MIB
                for k in range(16):
                    mapping[k * MIB : (k + 1) * MIB] = block[k:] + block[:k]
                with _maybe(slowed(mount) if slow else None):
                    command(workspace, "checkpoint", f"c{i}")
                # Work goes on at once, over what the checkpoint has.
                os.pwrite(writes, b"later", i * MIB)
                mapping[i * MIB : i * MIB + 5] = b"later"
                view = workspace / f".checkpoints/c{i}"
                for name, count in (("writes", 64), ("stores", 16)):
                    with (view / name).open("rb", buffering=0) as found:
                        for k in range(count):
                            assert _all(found.fileno(), k * MIB) == block[k:] + block[:k], (i, name, k)
    finally:
        os.close(writes)
        os.close(stores)


def _all(fd: int, offset: int) -> bytes:
    parts = []
    size = MIB
    while size:
        part = os.pread(fd, size, offset)
        assert part, "shorter than it was written"
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


@contextmanager
def _maybe(context: object) -> Iterator[None]:
    if context is None:
        yield
    else:
        with context:  # type: ignore[attr-defined]
            yield


@pytest.mark.parametrize("door", ["restore", "clone", "directory"])
def test_the_other_calls_settle_too(workspace: Path, door: str) -> None:
    """The safety checkpoint of a restore, a clone, and a checkpoint by mkdir hold what was just written."""
    path = workspace / "a"
    path.write_bytes(b"old")
    control.checkpoint(workspace, "v1")
    content = os.urandom(8 * MIB)
    with path.open("r+b", buffering=0) as file:
        file.write(content)
        if door == "restore":
            found = workspace / ".checkpoints" / control.restore(workspace, "v1").name
        elif door == "clone":
            control.clone(workspace, f"{workspace.name}-clone")
            found = workspace.parent / f"{workspace.name}-clone"
        else:
            found = workspace / ".checkpoints/v2"
            found.mkdir()
        assert (found / "a").read_bytes() == content


def test_checkpoints_of_two_namespaces_at_once(mount: Mounted) -> None:
    one, other = mount.workspace("one"), mount.workspace("other")
    for workspace in (one, other):
        (workspace / "a").write_bytes(bytes(MIB))

    def rounds(workspace: Path) -> None:
        for i in range(30):
            content = bytes([i]) * MIB
            with (workspace / "a").open("r+b", buffering=0) as file:
                file.write(content)
                control.checkpoint(workspace, f"c{i}")
            assert (workspace / f".checkpoints/c{i}/a").read_bytes() == content

    children = [Child(lambda workspace=workspace: rounds(workspace)) for workspace in (one, other)]  # type: ignore[misc]
    for child in children:
        child.join()


def test_times_and_sizes_are_those_of_the_moment(workspace: Path) -> None:
    """The kernel keeps size and modification time of a file that it caches to itself, until the barrier."""
    for i in range(20):
        path = workspace / f"f{i}"
        with path.open("wb", buffering=0) as file:
            for _ in range(i + 1):
                file.write(b"x" * 1000)
            os.utime(file.fileno(), ns=(10**18 + i, 10**18 + i)) if i % 2 else None
            want = os.fstat(file.fileno())
            control.checkpoint(workspace, f"c{i}")
        found = (workspace / f".checkpoints/c{i}/f{i}").stat()
        assert (found.st_size, found.st_mtime_ns) == (want.st_size, want.st_mtime_ns)
