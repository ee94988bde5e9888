"""SIGKILL of a store's owner at random moments, with other processes as its clients: somebody takes over, and nothing
that was acknowledged to anybody is lost or torn.

`ARTFS_TEST_ROUNDS=200` makes it the long test, `ARTFS_TEST_SEED` another one.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from artfs import ArtifactStore
from artfs.volume import fsck
from tests.crash.api_writer import Known, missing
from tests.mounting import Mounted

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROUNDS = int(os.environ.get("ARTFS_TEST_ROUNDS", "10"))
SEED = os.environ.get("ARTFS_TEST_SEED", "owner")
TOP = Path(__file__).parents[2]
SOON = 10.0
"""Seconds within which every writer goes on after its owner has died."""
SETTINGS = {"ARTFS_COMMIT_INTERVAL": "0.1", "ARTFS_JOURNAL_SIZE": str(8 << 20)}
"""So that commits and the journal's end are often under way when a process dies."""


class Writers:
    """Processes of `tests.crash.api_writer`, by pid, and their records."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self.base = base
        self.running: dict[int, tuple[subprocess.Popen[bytes], Path]] = {}
        self.count = 0

    def start(self) -> None:
        self.count += 1
        record = self.base / f"record-{self.count}"
        record.touch()
        program = [sys.executable, "-m", "tests.crash.api_writer", str(self.root), str(record)]
        with (self.base / f"log-{self.count}").open("wb") as log:
            process = subprocess.Popen(
                [*program, f"{SEED}-{self.count}", ("asyncio", "trio")[self.count % 2]],
                cwd=TOP,
                env={**os.environ, **SETTINGS},
                stderr=log,
            )
        self.running[process.pid] = process, record

    def kill(self, pid: int) -> Path:
        process, record = self.running.pop(pid)
        process.kill()
        process.wait()
        return record

    def end(self) -> list[Path]:
        return [self.kill(pid) for pid in list(self.running)]

    def go_on(self) -> None:
        """Each acknowledges something more, soon."""
        before = {pid: Known(record).done for pid, (_, record) in self.running.items()}
        limit = time.monotonic() + SOON
        for pid, (process, record) in self.running.items():
            while Known(record).done <= before[pid]:
                number = int(record.name.partition("-")[2])
                said = (self.base / f"log-{number}").read_text()
                assert process.poll() is None, said
                assert time.monotonic() < limit, f"writer {number} hangs: {record.read_text()[-500:]}{said}"
                time.sleep(0.02)


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    running = Writers(tmp_path / "store", tmp_path)
    try:
        yield running
    finally:
        running.end()


def owner(root: Path) -> int:
    found = re.match(r"process (\d+) ", (root / "lock").read_text())
    return int(found[1]) if found else 0


async def look(root: Path, records: list[Path]) -> None:
    """All that these records know of is there."""
    async with ArtifactStore(root=root) as store:
        for record in records:
            known = Known(record)
            if known.workspace:
                assert await missing(store, known) == [], record
            for error in known.unknown:
                assert "gone" in error or "has no owner that stays" in error, error


def test_a_killed_owners_store_is_taken_over(writers: Writers, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    for _ in range(3):
        writers.start()
    writers.go_on()
    acknowledged = 0
    for number in range(ROUNDS):
        time.sleep(chance.uniform(0.05, 0.8))
        while (pid := owner(writers.root)) not in writers.running:
            time.sleep(0.001)
        record = writers.kill(pid)
        if chance.random() < 0.3:  # and who has just taken over, too
            time.sleep(chance.uniform(0, 0.1))
            if owner(writers.root) in writers.running:
                anyio.run(look, writers.root, [writers.kill(owner(writers.root))])
                writers.start()
        writers.go_on()
        anyio.run(look, writers.root, [record], backend=("asyncio", "trio")[number % 2])
        acknowledged += Known(record).done
        writers.start()
    records = writers.end()
    anyio.run(look, writers.root, records)
    report = fsck.check(writers.root)
    assert not report.problems, report.problems
    print(f"{acknowledged} calls were acknowledged to those that died")
    assert acknowledged > 10 * ROUNDS


@pytest.mark.fuse
def test_a_killed_mounts_store_is_taken_over(writers: Writers, tmp_path: Path) -> None:
    """By its clients; and the next mount gets it back, and shows what they did."""
    chance = random.Random(SEED)
    mount = Mounted(writers.root, tmp_path / "mnt", ("-o", "allow_other"), SETTINGS)
    try:
        mount.start()
        for _ in range(2):
            writers.start()
        writers.go_on()
        for _ in range(max(ROUNDS // 3, 3)):
            assert mount.process is not None and owner(writers.root) == mount.process.pid
            time.sleep(chance.uniform(0.05, 0.8))
            mount.kill()
            writers.go_on()
            assert owner(writers.root) in writers.running
            mount.start()
            writers.go_on()
        records = writers.end()
        anyio.run(look, writers.root, records)
        for record in records:
            known = Known(record)
            names = {path.name: path.read_bytes() for path in (mount.point / "default/shared").glob("*-1/*")}
            assert names
            assert len(known.files) > 0
    finally:
        mount.kill()
    report = fsck.check(writers.root)
    assert not report.problems, report.problems
