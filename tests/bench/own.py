"""artfs' own figures: checkpoints, restore, clone, memory, time to mount, and the split of a request.

All on a store of their own, so that the size of the store is known.  Everything goes through the mount: the
xattrs `user.artfs.checkpoint`, `user.artfs.restore` (value: the name) and `user.artfs.clone` (value: the
new namespace's name) on the namespace's root, and the file `.artfs/stats`.  Each step that fails becomes
one line in the results.

The split reads from `.artfs/stats` (JSON) the counters `requests` (a number, or a mapping from opcode to
number), `ns_python` (in our functions, the journal included) and `ns_journal`; a figure whose counter is
missing is left out.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.peers import ArtfsMount, Peer, PeerError, resident_mib
from tests.bench.report import Results
from tests.bench.rows import Sizes
from tests.bench.works import WrongAnswer

PER_DIRECTORY = 1000
LIMIT = 900.0


def measure(
    results: Results, wanted: set[str], command: Sequence[str], scratch: Path, sizes: Sizes, rounds: int
) -> None:
    """Adds the wanted figures to `results.own`; names as in `rows.bars`."""
    grid = ArtfsMount(command, scratch / "own-store", scratch / "own")

    def step(name: str, action: Callable[[], None]) -> bool:
        try:
            with Peer("artfs", grid.mount, grid.pids).guard(LIMIT):
                action()
        except (OSError, WrongAnswer, PeerError) as error:
            results.failures[f"{name} @ artfs"] = f"{type(error).__name__}: {error}"
            return False
        return True

    checkpoints = {"checkpoint_few", "checkpoint_some", "checkpoint_many", "checkpoint_growth"}
    full = {"restore", "clone", "first_answer", "rss"}
    if any(name.startswith("split_") for name in wanted):
        # Measuring costs a little: in a mount of its own.
        with replace(grid, environment={"ARTFS_PROFILE": "1"}).mounted():
            step("split", lambda: split(results, wanted, grid, sizes))
    with grid.mounted():
        counts = {"few": sizes.few, "some": sizes.some, "many": sizes.many}
        if not wanted & checkpoints:
            counts = {"many": sizes.many} if wanted & full else {}
        trees = {name: grid.mount / "default/shared" / name for name in counts}
        if not all(
            step(f"{name} tree", lambda n=name: fill(trees[n], counts[n]))  # type: ignore[misc]
            for name in counts
        ):
            return
        if wanted & checkpoints:
            step("checkpoint", lambda: checkpoint(results, wanted, trees, rounds))
        if "restore" in wanted:
            step("restore", lambda: restore(results, trees["many"], sizes, rounds))
        # The walk below needs the clone: `many` files twice.
        if wanted & (full - {"restore"}) and not step(
            "clone", lambda: clone(results, wanted, grid, trees["many"], sizes.many, rounds)
        ):
            return
    if "first_answer" in wanted:
        for _ in range(rounds):
            step("first_answer", lambda: first_answer(results, grid))
    if "rss" in wanted:
        with grid.mounted():
            step("rss", lambda: walk(results, grid, trees["many"], 2 * sizes.many))


def fill(tree: Path, count: int) -> None:
    """A new workspace of `count` files of 64 bytes, a thousand to a directory."""
    tree.mkdir()
    payload = os.urandom(64)
    for i in range(count):
        if i % PER_DIRECTORY == 0:
            os.mkdir(f"{tree}/{i // PER_DIRECTORY}")
        fd = os.open(_file(tree, i), os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(fd, payload)
        os.close(fd)
    os.sync()


def checkpoint(results: Results, wanted: set[str], trees: Mapping[str, Path], rounds: int) -> None:
    """Checkpoints of trees of three sizes in turn, each after one small change; five to a round."""
    found: dict[str, list[float]] = {name: [] for name in trees}
    for turn in range(5 * rounds):
        for name, tree in trees.items():
            Path(_file(tree, turn % 10)).write_bytes(b"changed")
            os.sync()
            start = time.perf_counter()
            os.setxattr(tree, "user.artfs.checkpoint", f"c{turn}".encode())
            found[name].append((time.perf_counter() - start) * 1e3)
    for name, values in found.items():
        for value in values if f"checkpoint_{name}" in wanted else ():
            results.add_own(f"checkpoint_{name}", value)
    if "checkpoint_growth" in wanted:
        middle = [median(values) for values in found.values()]
        results.add_own("checkpoint_growth", max(middle) / min(middle))


def restore(results: Results, tree: Path, sizes: Sizes, rounds: int) -> None:
    """Back to a checkpoint after changes all over the tree, still dirty when the restore is asked for."""
    step = max(1, sizes.many // sizes.changes)
    changed = [_file(tree, i * step) for i in range(sizes.changes)]
    before = [Path(path).read_bytes() for path in changed]
    for turn in range(rounds):
        name = f"r{turn}".encode()
        os.setxattr(tree, "user.artfs.checkpoint", name)
        for path in changed:
            Path(path).write_bytes(b"changed after the checkpoint")
        start = time.perf_counter()
        os.setxattr(tree, "user.artfs.restore", name)
        results.add_own("restore", (time.perf_counter() - start) * 1e3)
        if [Path(path).read_bytes() for path in changed] != before:
            raise WrongAnswer("a restored tree does not hold what was checkpointed")


def clone(results: Results, wanted: set[str], grid: ArtfsMount, tree: Path, count: int, rounds: int) -> None:
    """A branch of the whole namespace; all but the last are removed again, untimed."""
    for turn in range(rounds):
        branch = tree.with_name(f"clone{turn}")
        start = time.perf_counter()
        os.setxattr(tree, "user.artfs.clone", branch.name.encode())
        seconds = time.perf_counter() - start
        last = count - 1
        if Path(_file(branch, last)).read_bytes() != Path(_file(tree, last)).read_bytes():
            raise WrongAnswer("a clone differs from its source")
        if "clone" in wanted:
            results.add_own("clone", seconds)
        if turn < rounds - 1:
            grid.destroy(f"default/shared/{branch.name}")


def first_answer(results: Results, grid: ArtfsMount) -> None:
    """From the start of the command to the listing of a scope through the new mount."""
    start = time.perf_counter()
    with grid.mounted():
        os.listdir(grid.mount / "default/shared")
        results.add_own("first_answer", time.perf_counter() - start)


def walk(results: Results, grid: ArtfsMount, tree: Path, expected: int) -> None:
    """Stats every file of the tree and of its clone in a fresh mount, then reads its process' memory."""
    scope = tree.parent
    roots = [tree, *(p for p in sorted(scope.iterdir()) if p.name.startswith("clone"))]
    seen = 0
    for root in roots:
        for directory, _, files in os.walk(root):
            for file in files:
                os.stat(f"{directory}/{file}")
            seen += len(files)
    if seen < expected:
        raise WrongAnswer(f"{seen} files of {expected} found")
    pids = grid.pids()
    if not pids:
        raise WrongAnswer("no process names the mount in its command line")
    results.add_own("rss", resident_mib(pids))


def split(results: Results, wanted: set[str], grid: ArtfsMount, sizes: Sizes) -> None:
    """Small creates by one client, so that wall time can be divided among the requests."""
    tree = grid.workspace("default/shared/split")
    before = stats(grid.mount)
    start = time.perf_counter()
    for i in range(sizes.files):
        fd = os.open(f"{tree}/{i}", os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(fd, bytes(1024))
        os.close(fd)
    os.sync()
    seconds = time.perf_counter() - start
    for name, value in shares(before, stats(grid.mount), seconds, sizes.files).items():
        if name in wanted:
            results.add_own(name, value)


def stats(mount: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((mount / ".artfs/stats").read_text())
    return found


def shares(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float, operations: int) -> dict[str, float]:
    """µs of each request in kernel and loop, in our function without the journal, and in the journal.

    `seconds` is wall time during which one client made `operations` operations.  Figures whose counters are
    missing from `after`, or stood still although requests came, are left out.
    """

    def grown(key: str) -> float | None:
        def number(document: Mapping[str, Any]) -> float:
            value = document.get(key, 0)
            return float(sum(value.values()) if isinstance(value, Mapping) else value)

        return number(after) - number(before) if key in after else None

    requests, python, journal = grown("requests"), grown("ns_python"), grown("ns_journal")
    out: dict[str, float] = {}
    if not requests:
        return out
    out["split_requests"] = requests / operations
    if python:
        out["split_kernel"] = (seconds * 1e9 - python) / requests / 1e3
        if journal is not None:
            out["split_function"] = (python - journal) / requests / 1e3
    if journal:
        out["split_journal"] = journal / requests / 1e3
    return out


def _file(tree: Path, index: int) -> str:
    return f"{tree}/{index // PER_DIRECTORY}/{index}"
