"""SIGKILL at random moments of saving and of recovering: what can be recovered is always a state that was saved, whole,
and never older than the last save that returned.  `ARTFS_TEST_ROUNDS=100` makes it the long test."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from artfs.errors import BusyError
from artfs.meta.sqlite import SqliteEngine
from artfs.objects.disk import DiskProvider
from artfs.types import Serial
from tests.contract.copies import Source
from tests.crash.copies import SPREAD

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROUNDS = int(os.environ.get("ARTFS_TEST_ROUNDS", "10"))
TOP = Path(__file__).parents[2]


def child(seconds: float, *arguments: object) -> tuple[list[str], bool]:
    """What it said, and whether it came to its end before it was killed, so long after it was ready."""
    command = [sys.executable, "-m", "tests.crash.copies", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    first = process.stdout.readline()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    said, errors = process.stdout.read(), process.stderr.read()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    assert process.returncode in (0, -9), errors
    assert first == "ready\n", errors
    return said.splitlines(), process.returncode == 0


def numbers(said: list[str], word: str) -> list[int]:
    """Of whole lines alone."""
    return [int(line.split()[1]) for line in said if line.startswith(f"{word} ")]


async def test_what_was_saved_survives(tmp_path: Path) -> None:
    chance = random.Random(os.environ.get("ARTFS_TEST_SEED", "artfs"))
    place, id = tmp_path / "place", str(uuid.uuid4())
    await DiskProvider(place).check()
    generation = 0
    root = tmp_path / "host-0"
    least = saves = interrupted = 0
    for round in range(1, ROUNDS + 1):
        said, _ = child(chance.uniform(0.02, 0.8), "save", root, place, id, generation, f"{round}-{chance.random()}")
        saving, saved = numbers(said, "saving"), numbers(said, "saved")
        saves += len(saved)
        least = max([least, *saved])
        possible = {least, *saving}
        fresh = tmp_path / f"host-{round}"
        if least:
            ended = False
            while not ended:
                patience = chance.uniform(0.0, 0.06) if interrupted < round * 3 else 60.0
                said, ended = child(patience, "recover", fresh, place)
                if not ended:
                    interrupted += 1
                    if (fresh / "store.json").exists():
                        break  # killed behind the last step
            number, generation = recovered(fresh)
            assert number in possible, f"round {round}: {number} was never saved; {sorted(possible)}"
            assert number >= least, f"round {round}: {number} is older than the last save, {least}"
            least = number
            await refused(root, place, id)
            shutil.rmtree(root)
            root = fresh
    assert saves > ROUNDS / 2, "hardly anything was saved, so hardly anything was tested"
    assert interrupted > ROUNDS / 2, "hardly any recovery was interrupted"


def recovered(root: Path) -> tuple[int, int]:
    """The number that all rows of the store say, and its generation."""
    engine = SqliteEngine(root / "meta.db", create=False)
    try:
        assert engine.check() == []
        number = int(engine.record("test", "n") or 0)
        for index in SPREAD:
            value = engine.get(Serial(1), b"I" + index.to_bytes(8, "big"))
            assert value is not None
            assert int(value) == number, "the state is torn"
        assert len(engine.scan(Serial(1), b"I")) == 4000
        return number, int(engine.record("counter", "generation") or 0)
    finally:
        engine.close()


async def refused(root: Path, place: Path, id: str) -> None:
    """The host that was killed comes back."""
    engine = SqliteEngine(root / "meta.db", create=False)
    generation = int(engine.record("counter", "generation") or 0)
    engine.close()
    source = Source(root, DiskProvider(place), generation, id)
    try:
        with pytest.raises(BusyError, match="recovered elsewhere"):
            await source.saver.save()
    finally:
        source.close()
