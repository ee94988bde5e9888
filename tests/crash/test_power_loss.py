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
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from artfs.store.opening import open_store
from artfs.volume import fsck
from artfs.volume.tree import Tree
from tests.crash.disk import Content, Disk, Entry, contents, read_log
from tests.crash.workload import LINE, digest
from tests.model.machine import read
from tests.reference import HOLE, WRITTEN, File, Reference

pytestmark = [pytest.mark.crash, pytest.mark.slow]

SOURCE = Path(__file__).with_name("recorder.c")
OPERATIONS = 400
MOMENTS = int(os.environ.get("ARTFS_TEST_ROUNDS", "12"))


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("recorder") / "recorder.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True)
    return library


@dataclass(frozen=True, slots=True)
class Life:
    """One process's time with a store: what it did, what was there before, and the namespace that it worked in."""

    log: list[Entry]
    before: dict[str, Content]
    namespace: str


def live(recorder: Path, root: Path, seed: int, namespace: str) -> Life:
    """Let a process work on the store at `root`, from its beginning to its end."""
    root.mkdir(exist_ok=True)
    before = contents(root)
    log = root.with_suffix(f".{namespace}")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(recorder),
        "RECORD_ROOT": str(root),
        "RECORD_LOG": str(log),
        "ARTFS_JOURNAL_SIZE": str(8 << 20),
        "ARTFS_COMMIT_INTERVAL": "0.05",
        "ARTFS_UMASK": "0",
    }
    command = [sys.executable, "-m", "tests.crash.workload", str(root), str(seed), str(OPERATIONS), namespace]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return Life(read_log(log), before, namespace)


def marks(life: Life) -> list[tuple[int, str, bool]]:
    """(place in the log, digest, durable) of each operation that returned."""
    log = life.log
    inode = next(entry.inode for entry in log if entry.path == f"marks-{life.namespace}")
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


async def recovered(root: Path) -> dict[str, str]:
    """Digests of the namespaces, by name."""
    found = {}
    async with open_store(root, "test") as store:
        assert store.shard.failure is None
        for namespace in list(store.catalogue.by_serial.values()):
            tree = store.volume(namespace).tree
            # In a thread: it waits as one waits without a loop.
            found[namespace.entry] = digest(await trio.to_thread.run_sync(as_reference, tree))
    return found


def lose_power(life: Life, root: Path, chance: random.Random, lost: float) -> dict[str, str]:
    """Make at `root` what is left of the disk, and check what a store that is opened from it holds.  Returns that."""
    done = marks(life)
    assert len(done) == OPERATIONS
    count = chance.randrange(done[0][0] + 1, len(life.log))
    promised = max(i for i, (place, _, durable) in enumerate(done) if durable and place < count)
    begun = min((i for i, (place, _, _) in enumerate(done) if place >= count), default=OPERATIONS - 1)
    Disk(life.log, life.before).crash(count, chance, root, lost)
    report = fsck.check(root, data=True)
    assert not report.problems, f"power lost at {count} of {len(life.log)}: {report.problems}"
    all = trio.run(recovered, root)
    found = all[life.namespace]
    states = [value for _, value, _ in done]
    assert found in states[promised : begun + 1], (
        f"power lost at {count} of {len(life.log)}: the state is that after operation "
        f"{states.index(found) if found in states else 'none'}, promised was {promised}, under way {begun}"
    )
    assert not fsck.check(root, data=True).problems
    return all


@pytest.fixture(scope="module", params=[1, 2])
def life(recorder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Life]:
    top = tmp_path_factory.mktemp("power")
    yield live(recorder, top / "store", request.param, "one")
    shutil.rmtree(top)


@pytest.mark.parametrize("lost", [1.0, 0.5, 0.1])
def test_power_loss(life: Life, tmp_path: Path, lost: float) -> None:
    chance = random.Random(f"{life.log[-1].at} {lost}")
    for moment in range(MOMENTS):
        lose_power(life, tmp_path / f"{moment}", chance, lost)
        shutil.rmtree(tmp_path / f"{moment}")


def test_power_loss_after_power_loss(recorder: Path, life: Life, tmp_path: Path) -> None:
    """A journal that holds the rest of an earlier life, and objects that ended with it."""
    chance = random.Random(5)
    for moment in range(max(MOMENTS // 12, 1)):
        root = tmp_path / f"{moment}"
        first = lose_power(life, root, chance, 0.5)
        second = live(recorder, root, moment, "two")
        for again in range(6):
            both = lose_power(second, tmp_path / f"{moment}-{again}", chance, 0.5)
            assert both["one"] == first["one"]
            shutil.rmtree(tmp_path / f"{moment}-{again}")
        shutil.rmtree(root)
