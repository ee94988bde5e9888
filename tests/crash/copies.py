"""Children of test_recovery_kill: one that saves, one that recovers.  `python -m tests.crash.copies save|recover …`"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import anyio

from artfs.objects.disk import DiskProvider
from artfs.volume.recovery import recover
from tests.contract.copies import Source

SPREAD = range(0, 4000, 61)
ROWS = 4000


def say(*words: object) -> None:
    print(*words, flush=True)


async def save(root: Path, place: Path, id: str, generation: int, seed: str) -> None:
    """For ever: a transaction that writes one number into rows everywhere, then a save; before it `saving <number>`,
    after it `saved <number>`."""
    source = Source(root, DiskProvider(place), generation, id)
    await source.claim()
    number = int(source.engine.record("test", "n") or 0)
    if not number:
        source.fill(ROWS, 400)
    chance = random.Random(seed)
    say("ready")
    while True:
        for _ in range(chance.randrange(1, 4)):
            number += 1
            size = chance.randrange(20, 600)
            source.write(dict.fromkeys(SPREAD, str(number).encode().rjust(size, b"0")), {"n": str(number)})
        say("saving", number)
        await source.saver.save()
        say("saved", number)


async def bring(root: Path, place: Path) -> None:
    say("ready")
    found = await recover(DiskProvider(place), f"file://{place}", root)
    say("recovered", found.generation)


if __name__ == "__main__":
    if sys.argv[1] == "save":
        anyio.run(save, Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]), sys.argv[6])
    else:
        anyio.run(bring, Path(sys.argv[2]), Path(sys.argv[3]))
