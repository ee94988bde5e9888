"""A process that does random things to a store, and notes in a file of the store's directory what it must hold.

    python -m tests.crash.workload ROOT SEED COUNT NAMESPACE

`marks-<NAMESPACE>` gets a line `<digest> <durable>` for each operation when it has returned; `durable` is 1 where
everything up to it is promised to survive power loss.  The digest is that of the reference (see `digest`).
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import trio
from xxhash import xxh3_64_hexdigest

from artfs.settings import create_store
from artfs.store.opening import open_store
from artfs.store.store import Store
from artfs.types import Scope
from artfs.volume import data
from tests.model.machine import BLOCK, Space
from tests.reference import Reference

LINE = 19
NAMES = ["a", "b", "c", "d"]


def digest(reference: Reference) -> str:
    """Of everything that a user sees, times apart."""
    idents: dict[int, int] = {}
    lines = []
    for path, file in reference.walk():
        number = idents.setdefault(id(file), len(idents))
        lines.append(
            b"%r %d %o %d %d %d %d %r"
            % (
                path,
                number,
                file.mode,
                file.uid,
                file.nlink,
                len(file.data),
                file.allocated,
                sorted(file.xattrs.items()),
            )
            + file.target
            + bytes(file.data)
        )
    return str(xxh3_64_hexdigest(b"\n".join(lines)))


def operation(chance: random.Random) -> tuple[object, ...]:
    """See `tests.model.machine`.  A write stays within a block or is large: it is one record of the journal then."""
    which, name, other = chance.randrange(8), chance.choice(NAMES), chance.choice(NAMES)
    small = chance.randrange(6000)
    kinds: list[tuple[object, ...]] = [
        ("create", which, name, 0o644),
        ("mkdir", which, name, 0o755),
        ("symlink", which, name, 9),
        ("link", which, chance.randrange(8), name),
        ("remove", which, chance.random() < 0.3),
        ("rename", which, name, chance.randrange(8), other, chance.choice((0, 0, 1, 2))),
        ("write", which, chance.randrange(BLOCK - 6000), small, chance.randrange(256), 0),
        ("write", which, chance.randrange(20_000), small, chance.randrange(256), 0),
        ("write", which, 0, chance.randrange(data.DIRECT, BLOCK), chance.randrange(256), 0),
        ("write", which, BLOCK, BLOCK + chance.randrange(1, 5000), chance.randrange(256), 0),
        ("truncate", which, chance.randrange(BLOCK), False),
        ("fallocate", which, chance.choice((0, 1, 3, 16)), chance.randrange(BLOCK), small + 1, False),
        ("copy", which, chance.randrange(5000), chance.randrange(8), chance.randrange(BLOCK), 50_000, False),
        ("setattr", which, 0o600 | chance.randrange(64), None, None, None),
        ("setxattr", which, "user.a", chance.choice((0, 1, 5000)), 0),
        ("release", which),
        ("evict",),
    ]
    return chance.choice(kinds)


async def work(root: Path, seed: int, count: int, name: str) -> None:
    if not (root / "store.json").exists():
        create_store(root, block_size=BLOCK)
    marks = os.open(root / f"marks-{name}", os.O_RDWR | os.O_CREAT)
    chance = random.Random(seed)
    async with open_store(root, "test") as store:
        namespace = await store.create_namespace("box", Scope.SANDBOX, None, name, mode=0o755)
        await store.shard.sync()  # what was acknowledged so far is promised from here on
        space = Space(store.volume(namespace), Reference(0o755, os.getuid(), os.getgid()))

        def mark(durable: bool, number: int) -> None:
            line = f"{digest(space.reference)} {durable:d}\n".encode()
            assert len(line) == LINE
            os.pwrite(marks, line, number * LINE)

        mark(True, 0)
        for number in range(1, count):
            durable = await step(store, space, chance)
            mark(durable, number)
            if chance.random() < 0.1:
                await trio.sleep(0)


async def step(store: Store, space: Space, chance: random.Random) -> bool:
    """One operation; whether everything so far is durable after it."""
    dice = chance.random()
    if dice < 0.06:
        await store.shard.sync()
        return True
    if dice < 0.09:
        await store.shard.commit()
        return True
    if dice < 0.11:
        saved = await store.checkpoint(space.volume)
        space.saved[saved.id] = space.reference.copy()
        return False
    if dice < 0.12 and space.saved:
        name = chance.choice(sorted(space.saved))
        for held in list(space.held):
            space.let_go(held)
        space.held = []
        await store.restore(space.volume, name)
        space.reference = space.saved[name].copy()
        return True
    space.apply(operation(chance))
    return False


if __name__ == "__main__":
    trio.run(work, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
