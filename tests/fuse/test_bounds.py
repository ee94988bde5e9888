"""What a mount promises at sizes: times that do not grow with a namespace, memory that stays bounded, listings that
stay whole.

Times are medians, and asserted with a margin for noisy machines; each test prints what it measured (`-s`, or in the
report of a failure).  `docs/semantics.md` has the promises.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.tools import command
from tests.mounting import Mounted, mounted
from tests.posix.calls import DirStream

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.alone]

MANY = 100_000
PER_FOLDER = 1000
MARGIN = 3
"""Times are asserted at so many times what is promised."""
CHECKPOINT, RESTORE, CLONE, ANSWER = 0.010, 0.050, 1.0, 1.0
"""Seconds that are promised."""


def fill(folder: Path, count: int) -> None:
    """`count` small files in folders of a thousand."""
    for start in range(0, count, PER_FOLDER):
        part = folder / f"part{start // PER_FOLDER}"
        part.mkdir()
        fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
        for number in range(start, min(start + PER_FOLDER, count)):
            file = os.open(f"f{number}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
            if number % 10 == 0:
                os.write(file, b"content of %d\n" % number)
            os.close(file)
        os.close(fd)


def file(folder: Path, number: int) -> Path:
    return folder / f"part{number // PER_FOLDER}" / f"f{number}"


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("bounds")) as own:
        yield own


@pytest.fixture(scope="module")
def large(mount: Mounted) -> Path:
    """A workspace of 100 000 files in 100 directories."""
    workspace = mount.workspace("large")
    fill(workspace, MANY)
    os.sync()
    return workspace


def test_a_checkpoint_takes_the_same_time_at_any_size(mount: Mounted, large: Path) -> None:
    sizes = {10: mount.workspace("ten"), 10_000: mount.workspace("ten-thousand"), MANY: large}
    fill(sizes[10], 10)
    fill(sizes[10_000], 10_000)
    os.sync()
    times: dict[int, list[float]] = {count: [] for count in sizes}
    for turn in range(15):
        for count, workspace in sizes.items():
            file(workspace, turn % 10).write_bytes(b"a change of turn %d" % turn)
            name = f"c{turn}"
            times[count].append(timed(lambda w=workspace, n=name: command(w, "checkpoint", n)))  # type: ignore[misc]
    found = {count: statistics.median(all) for count, all in times.items()}
    print("checkpoint: " + ", ".join(f"{count} files {1000 * t:.2f} ms" for count, t in found.items()))
    assert all(found[count] < MARGIN * CHECKPOINT for count in sizes)
    assert found[MANY] < MARGIN * max(found[10], 0.001)


def test_a_restore_costs_what_has_changed(large: Path) -> None:
    for number in range(0, MANY, MANY // 100):
        file(large, number).write_bytes(b"content of %d\n" % number)
    command(large, "checkpoint", "before")
    times = []
    for _ in range(5):
        for number in range(0, MANY, MANY // 100):
            file(large, number).write_bytes(b"changed")
        os.sync()
        times.append(timed(lambda: command(large, "restore", "before")))
        for number in range(0, MANY, MANY // 100):
            found = file(large, number).read_bytes()
            assert found == b"content of %d\n" % number
    print(f"restore of 100 changes in {MANY} files: {1000 * statistics.median(times):.1f} ms")
    assert statistics.median(times) < MARGIN * RESTORE


def test_a_clone_of_many_files(large: Path) -> None:
    times = []
    file(large, 10).write_bytes(b"content of 10\n")
    for turn in range(3):
        name = f"copy{turn}"
        times.append(timed(lambda n=name: command(large, "clone", n)))  # type: ignore[misc]
        copy = large.with_name(name)
        assert len(os.listdir(copy)) == MANY // PER_FOLDER
        for number in range(0, MANY, MANY // 50):
            assert file(copy, number).read_bytes() == file(large, number).read_bytes()
        file(copy, 10).write_bytes(b"of the copy alone")
        assert file(large, 10).read_bytes() == b"content of 10\n"
    print(f"clone of {MANY} files: {statistics.median(times):.2f} s")
    assert statistics.median(times) < MARGIN * CLONE


def make_many(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(MANY):
        os.mknod(f"n{number}", dir_fd=fd)
    os.close(fd)


def test_a_directory_of_many_entries(mount: Mounted) -> None:
    """A listing that was begun goes on where it was, whatever is deleted and made meanwhile: each entry that stays
    comes once, and its position leads back to it."""
    folder = mount.workspace("wide")
    made = timed(lambda: make_many(folder))
    listed = timed(lambda: os.listdir(folder))
    names = {b"n%d" % number for number in range(MANY)}
    removed: set[bytes] = set()
    places: dict[bytes, int] = {}
    seen: list[bytes] = []
    with DirStream(folder) as stream:
        while True:
            place = stream.tell()
            entry = stream.read()
            if entry is None:
                break
            name = entry[0]
            if name in (b".", b".."):
                continue
            seen.append(name)
            if len(seen) % 1000 == 0 and len(places) < MANY // 1000:
                places[name] = place
                # One that was seen, one that is to come (or was seen as well), and a new one.
                for doomed in {seen[-2], b"n%d" % (MANY - 1 - len(seen) // 2)} - removed - places.keys():
                    os.unlink(os.fsencode(folder) + b"/" + doomed)
                    removed.add(doomed)
                (folder / f"new{len(seen)}").touch()
        for name in sorted(places):
            stream.seek(places[name])
            found = stream.read()
            if name not in removed:
                assert found is not None
                assert found[0] == name
    print(f"directory of {MANY}: made in {made:.1f} s, listed in {listed:.2f} s")
    assert len(removed) >= MANY // 1000
    assert len(seen) == len(set(seen))
    assert names - removed <= set(seen)
    now = set(os.listdir(os.fsencode(folder)))
    assert now == (names | {b"new%d" % (1000 * (turn + 1)) for turn in range(len(places))}) - removed
    mount.stop()
    mount.start()
    assert set(os.listdir(os.fsencode(folder))) == now


def test_a_listing_that_deletes_all_it_finds(mount: Mounted) -> None:
    folder = mount.workspace("doomed")
    make_many(folder)
    count = 0
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    start = time.perf_counter()
    with DirStream(folder) as stream:
        for name, _, _ in stream:
            if name not in (b".", b".."):
                os.unlink(name, dir_fd=fd)
                count += 1
    print(f"listed and removed {MANY} in {time.perf_counter() - start:.1f} s")
    os.close(fd)
    assert count == MANY
    assert os.listdir(folder) == []
    folder.rmdir()


WALK = """
import os, sys
count = 0
for folder, folders, files in os.walk(sys.argv[1]):
    for name in files:
        count += os.lstat(os.path.join(folder, name)).st_nlink
print(count)
"""


def test_memory_after_a_walk(mount: Mounted, large: Path) -> None:
    """Of 200 000 files, each of which the kernel was told about."""
    command(large, "clone", "twin")
    mount.stop()
    mount.start()
    for name in ("large", "twin"):
        done = subprocess.run(
            [sys.executable, "-c", WALK, str(large.with_name(name))], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) >= MANY
    assert mount.process is not None
    status = Path(f"/proc/{mount.process.pid}/status").read_text()
    kib = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")}
    held = mount.stats()["nodes_held"]
    print(f"{int(kib['VmRSS']) >> 10} MiB after a walk over {2 * MANY} files, of which the kernel holds {held}")
    assert int(kib["VmRSS"]) < 400 << 10


def test_from_start_to_first_answer(mount: Mounted, large: Path) -> None:
    """Of a store that holds more than 100 000 files, and of one that does not exist yet."""
    times = []
    for _ in range(3):
        mount.stop()

        def come_up() -> None:
            mount.start()
            os.stat(large)

        times.append(timed(come_up))
    fresh = Mounted(mount.root.with_name("fresh"), mount.point.with_name("fresh-point"), mount.options)
    try:
        first = timed(fresh.start)
        fresh.stop()
    finally:
        fresh.kill()
    print(f"mount to first answer: {statistics.median(times):.2f} s, of a new store {first:.2f} s")
    assert statistics.median(times) < MARGIN * ANSWER
    assert first < MARGIN * ANSWER
