"""SIGKILL of a store's process while uploads come, are registered, and BLOBs get URLs: what was registered is whole,
what was not is not there, and the store is clean.  `ARTFS_TEST_ROUNDS=200` makes it the long test."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artfs.settings import create_store
from artfs.store.opening import open_store
from artfs.store.upload_records import REGISTERING
from artfs.vfs import Files
from artfs.volume import fsck
from tests.crash.uploader import content

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROUNDS = int(os.environ.get("ARTFS_TEST_ROUNDS", "10"))
TOP = Path(__file__).parents[2]


async def _nobody(names: object) -> None:
    pass


async def test_what_is_registered_is_whole(tmp_path: Path) -> None:
    root = tmp_path / "store"
    create_store(root)
    chance = random.Random(os.environ.get("ARTFS_TEST_SEED", "artfs"))
    done: set[int] = set()
    number = 0
    for _ in range(ROUNDS):
        command = [sys.executable, "-m", "tests.crash.uploader", str(root), str(number)]
        with subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "begun\n"
            time.sleep(chance.uniform(0, 0.6))
            child.kill()
            done |= {int(line) for line in child.stdout}
        number = max(done | {number}) + 1
        await _look(root, done)
        report = fsck.check(root)
        assert not report.problems, report.problems
    assert done


async def _look(root: Path, done: set[int]) -> None:
    async with open_store(root, "test") as store:
        await store.blobs.uploads.wait_recovered()
        assert REGISTERING not in {record.state for record in store.blobs.uploads.records.values()}
        found = {int(name[1:]): ns for name, ns in store.catalogue.entries("default", "user-bob").items()}
        assert done <= found.keys()
        for number, namespace in found.items():
            data = await Files(store.volume(namespace), _nobody).read(b"_data", 0, 1 << 40)
            if number in done:
                assert data == content(number)
                continue
            # It died between the end of the call and the word of it, or in between: an empty BLOB is one that was
            # made and not named yet.
            assert number % 3 == 2 or data in (b"", content(number))
            await store.destroy_namespace(namespace, for_good=True)
