"""Random histories: one file against a bytearray, a tree against tmpfs."""

import os
import random
from pathlib import Path

import pytest

from tests.posix.fsx import Fsx, Mismatch
from tests.posix.trees import TreeRun, snapshot

SEEDS = [1, 2, 3, random.randrange(1 << 32)]
"""Three fixed histories and a new one in each run; a failure prints its seed."""


@pytest.mark.parametrize("use_mmap", [True, False], ids=["mmap", "no-mmap"])
@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_one_file(mnt: Path, number: int, use_mmap: bool) -> None:
    run = Fsx(str(mnt / "f"), SEEDS[number], use_mmap=use_mmap)
    run.run(600)
    assert sum(run.done.values()) == 600
    assert (run.done["map_write"] > 0) == use_mmap


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_small_file(mnt: Path, number: int) -> None:
    """Around one and two pages, where small files may be stored differently."""
    Fsx(str(mnt / "f"), SEEDS[number], limit=9000).run(800)


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_a_tree(mnt: Path, memory_directory: Path, number: int) -> None:
    for root in (mnt, memory_directory):
        os.chmod(root, 0o755)
    tree = TreeRun((mnt, memory_directory), SEEDS[number]).run(1500)
    assert len(tree) > 5


def test_the_model_notices_a_wrong_file(mnt: Path) -> None:
    """A suite that cannot fail proves nothing: bytes and sizes changed behind it must be found."""
    run = Fsx(str(mnt / "f"), 1)
    run.model.extend(b"not in the file")
    with pytest.raises(Mismatch, match="seed 1"):
        run.run(1)


def test_snapshots_notice_differences(mnt: Path) -> None:
    for name in ("a", "b"):
        os.mkdir(mnt / name)
        (mnt / name / "f").write_bytes(b"same")
    assert snapshot(mnt / "a") == snapshot(mnt / "b")
    os.setxattr(mnt / "b" / "f", "user.k", b"v")
    assert snapshot(mnt / "a") != snapshot(mnt / "b")
    os.removexattr(mnt / "b" / "f", "user.k")
    os.link(mnt / "b" / "f", mnt / "g")
    assert snapshot(mnt / "a") != snapshot(mnt / "b")
