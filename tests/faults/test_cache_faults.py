"""The local cache: damaged entries are fetched again, and it keeps to its size whatever is read and written."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.backed import HEAL_LIMIT, ROUNDS, SETTINGS, Backed, drop_kernel_cache
from tests.faults.messages import Kind
from tests.faults.proxy import Fault
from tests.faults.test_outage import right, write

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20
CACHE = int(SETTINGS["ARTFS_CACHE_SIZE"])
SLACK = 8 * 4 * MIB
"""Pieces on their way when the bound is reached: `fetches` of `piece_size`."""


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(1 + len(data) // 20_000):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(chance.randrange(path.stat().st_size))


def lengthen(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.write(b"what was never there")


def blank(path: Path, chance: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def remove(path: Path, chance: random.Random) -> None:
    path.unlink()


DAMAGES: list[Callable[[Path, random.Random], None]] = [flip, cut, lengthen, blank, remove]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__)
def test_a_damaged_entry_is_fetched_again(store: Backed, damage: Callable[[Path, random.Random], None]) -> None:
    chance = random.Random(damage.__name__)
    names = [f"f{number}" for number in range(20)]
    with store.running():
        base = store.workspace("w")
        for name in names:
            write(base / name, 700_000)
        store.ok("sync")
    for _ in range(max(1, ROUNDS // 10)):
        files = store.cache_files()
        assert files, "nothing is cached"
        for path in files:
            damage(path, chance)
        with store.running(), store.proxy.counting() as seen:
            right(base, names, 700_000)
            assert not store.status()["failure"]
        print(f"{damage.__name__}: {len(files)} entries, {seen}")
        if damage is not lengthen:
            assert seen.count(Kind.GET)
    store.fsck()


def test_a_damaged_entry_while_the_provider_is_away(store: Backed) -> None:
    """It is EIO until the provider is back, and no failure of the store."""
    with store.running():
        base = store.workspace("w")
        write(base / "f", 700_000)
        store.ok("sync")
    for path in store.cache_files():
        flip(path, random.Random("away"))
    with store.running():
        with store.proxy.outage(), pytest.raises(OSError, match="Input/output error"):
            (base / "f").read_bytes()
        right(base, ["f"], 700_000)
        write(base / "g")


@contextmanager
def watched(store: Backed) -> Iterator[list[int]]:
    """What objects and copies take on the disk, every few milliseconds."""
    sizes: list[int] = []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.02):
            sizes.append(store.cached())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        end.set()
        thread.join()


def test_a_working_set_that_is_larger_than_the_cache(store: Backed) -> None:
    """Written, and read twice in another order; never more than the limit on the disk."""
    chance = random.Random("eviction")
    names = [f"f{number}" for number in range(30)]
    size = 6 * MIB
    with store.running():
        base = store.workspace("w")
        with watched(store) as sizes:
            for name in names:
                write(base / name, size)
            store.ok("sync", seconds=HEAL_LIMIT)
            with store.proxy.counting() as seen:
                for _ in range(2):
                    drop_kernel_cache()
                    chance.shuffle(names)
                    right(base, names, size)
            print(f"at most {max(sizes) / MIB:.0f} MiB of {CACHE / MIB:.0f}, {seen}")
        assert seen.count(Kind.GET)
        assert max(sizes) < CACHE + SLACK
        drop_kernel_cache()
        right(base, names[-3:], size)
    store.fsck()


def test_what_is_not_uploaded_is_not_evicted(store: Backed) -> None:
    """With the provider taking nothing, cold reads press on the cache; what waits stays and is uploaded later."""
    old = [f"old{number}" for number in range(16)]
    new = [f"new{number}" for number in range(6)]
    with store.running():
        base = store.workspace("w")
        for name in old:
            write(base / name, 6 * MIB)
        store.ok("sync", seconds=HEAL_LIMIT)
        store.proxy.misbehave(Fault.ANSWER, {Kind.PUT, Kind.BEGIN, Kind.PART, Kind.COMPLETE})
        for name in new:
            write(base / name, 6 * MIB)
        waiting = {path.relative_to(store.root): path.stat().st_size for path in store.waiting_files()}
        assert sum(waiting.values()) >= len(new) * 6 * MIB
        drop_kernel_cache()
        right(base, old, 6 * MIB)
        drop_kernel_cache()
        right(base, new, 6 * MIB)
        left = {path.relative_to(store.root): path.stat().st_size for path in store.waiting_files()}
        assert waiting.items() <= left.items()
        store.proxy.heal()
        time.sleep(0.5)
        store.ok("sync", seconds=HEAL_LIMIT)
        assert not store.waiting_files()
        store.ok("cache", "drop")
        drop_kernel_cache()
        right(base, [*old, *new], 6 * MIB)
    store.fsck()


def test_what_was_verified_stays_right_when_its_neighbour_is_fetched_again(store: Backed) -> None:
    """A chunk that lies in two pieces is wrong in the second, so both are fetched again, wrong by now.  The first holds
    chunks that were verified before."""
    store.env["ARTFS_READ_AHEAD"] = "0"
    sizes = {"first": 3 * MIB + MIB // 2, "across": MIB, "last": 100_000}
    with store.running():
        base = store.workspace("w")
        for name, size in sizes.items():
            write(base / name, size)
        store.ok("sync")
        store.ok("cache", "drop")
        drop_kernel_cache()
        right(base, ["first"], sizes["first"])
        store.proxy.misbehave(Fault.CORRUPT, {Kind.GET})
        with store.proxy.counting() as seen, pytest.raises(OSError, match="Input/output error"):
            (base / "across").read_bytes()
        assert seen.struck(), seen
        store.proxy.heal()
        drop_kernel_cache()
        for name, size in sizes.items():
            right(base, [name], size)
