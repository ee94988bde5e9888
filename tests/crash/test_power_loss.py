"""Power loss below the process: what was not synced is lost in parts, and nothing that was promised is.

A store process runs under a recorder of its system calls.  From the record the disk is made as it may be after power
loss at some moment: the store that is opened from it must hold exactly what it held after some operation, none earlier
than the last one that was promised.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from artfs.store.opening import open_store
from artfs.types import Serial
from artfs.volume import fsck
from artfs.volume.tree import Tree
from tests.crash.disk import Disk, Entry, read_log
from tests.crash.workload import LINE, digest
from tests.model.machine import read
from tests.reference import HOLE, WRITTEN, File, Reference

pytestmark = pytest.mark.crash

SOURCE = Path(__file__).with_name("recorder.c")
OPERATIONS = 400
MOMENTS = int(os.environ.get("ARTFS_TEST_ROUNDS", "25"))


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("recorder") / "recorder.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True)
    return library


def record(recorder: Path, root: Path, seed: int) -> tuple[list[Entry], int]:
    """The log of a store process from its beginning to its end, and the inode of its root."""
    root.mkdir()
    log = root.with_suffix(".log")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(recorder),
        "RECORD_ROOT": str(root),
        "RECORD_LOG": str(log),
        "ARTFS_JOURNAL_SIZE": str(8 << 20),
        "ARTFS_COMMIT_INTERVAL": "0.05",
        "ARTFS_UMASK": "0",
    }
    command = [sys.executable, "-m", "tests.crash.workload", str(root), str(seed), str(OPERATIONS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return read_log(log), root.stat().st_ino


def marks(log: list[Entry]) -> list[tuple[int, str, bool]]:
    """(place in `log`, digest, durable) of each operation that returned."""
    inode = next(entry.inode for entry in log if entry.path == "marks")
    found = []
    for place, entry in enumerate(log):
        if entry.kind == "W" and entry.inode == inode:
            assert len(entry.data) == LINE
            value, durable = bytes(entry.data).decode().split()
            found.append((place, value, durable == "1"))
    return found


def as_reference(tree: Tree) -> Reference:
    """What a tree holds, times apart."""
    reference = Reference()
    known: dict[int, File] = {}
    todo = [(tree.root(), reference.root)]
    while todo:
        node, file = todo.pop()
        file.mode, file.uid, file.gid, file.nlink = node.mode, node.uid, node.gid, node.nlink
        file.target = node.target
        file.xattrs = {name: tree.getxattr(node, name) for name in tree.listxattr(node)}
        if node.is_file:
            file.data = bytearray(read(tree, node))
            file.kinds = bytearray((WRITTEN,)) * node.allocated + bytearray((HOLE,))
        for name, entry in tree.listing(node) if node.kids is not None else ():
            below = tree.node(entry.ino)
            fresh = entry.ino not in known
            known.setdefault(entry.ino, File(below.mode, 0, 0))
            assert file.kids is not None
            file.kids[name] = known[entry.ino]
            if fresh:
                todo.append((below, known[entry.ino]))
    return reference


async def recovered(root: Path) -> str:
    async with open_store(root, "test") as store:
        assert store.shard.failure is None
        namespaces = store.catalogue.by_serial
        assert len(namespaces) == 1
        tree = store.volume(namespaces[min(namespaces, default=Serial(0))]).tree
        return digest(await trio.to_thread.run_sync(as_reference, tree))  # it waits as one waits without a loop


@pytest.fixture(scope="module", params=[1, 2])
def recorded(
    recorder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[list[Entry], int, int]]:
    top = tmp_path_factory.mktemp("power")
    log, inode = record(recorder, top / "store", request.param)
    yield log, inode, request.param
    shutil.rmtree(top)


@pytest.mark.parametrize("lost", [1.0, 0.5, 0.1])
def test_power_loss(recorded: tuple[list[Entry], int, int], tmp_path: Path, lost: float) -> None:
    log, inode, seed = recorded
    done = marks(log)
    assert len(done) == OPERATIONS
    chance = random.Random(f"{seed} {lost}")
    disk = Disk(log)
    for moment in range(MOMENTS):
        count = chance.randrange(done[0][0] + 1, len(log))
        promised = max(i for i, (place, _, durable) in enumerate(done) if durable and place < count)
        begun = min((i for i, (place, _, _) in enumerate(done) if place >= count), default=OPERATIONS - 1)
        root = tmp_path / f"{moment}"
        disk.crash(count, chance, root, inode, lost)
        report = fsck.check(root, data=True)
        assert not report.problems, f"power lost at {count} of {len(log)}: {report.problems}"
        found = trio.run(recovered, root)
        states = [value for _, value, _ in done]
        assert found in states[promised : begun + 1], (
            f"power lost at {count} of {len(log)}: the state is that after operation "
            f"{states.index(found) if found in states else 'none'}, promised was {promised}, under way {begun}"
        )
        report = fsck.check(root, data=True)
        assert not report.problems
        shutil.rmtree(root)
