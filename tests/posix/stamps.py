"""Which time stamps a call moved: `moves`, and `clock`, which bounds what a stamp may be."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

TICK = 0.012
"""Seconds; longer than a tick of the kernel's coarse clock, so that two stamps differ."""


_COARSE = 5
"""CLOCK_REALTIME_COARSE, which the kernel's own stamps may come from; `time` has no name for it."""


def _stamps(path: str | int) -> dict[str, int]:
    found = os.stat(path) if isinstance(path, int) else os.lstat(path)
    return {"atime": found.st_atime_ns, "mtime": found.st_mtime_ns, "ctime": found.st_ctime_ns}


@contextmanager
def moves(expected: Mapping[str | int, str]) -> Iterator[None]:
    """Assert that inside the block exactly these stamps move, and that they move forward.

    `expected` maps a path (or a descriptor) to words of "mtime", "ctime", "atime". atime is looked
    at only where it is named: mounts may use relatime or noatime.
    """
    before = {path: _stamps(path) for path in expected}
    time.sleep(TICK)
    yield
    for path, words in expected.items():
        now = _stamps(path)
        watched = {"mtime", "ctime", *words.split()}
        moved = {word for word in watched if now[word] != before[path][word]}
        assert moved == set(words.split()), f"{path}: moved {sorted(moved)}, expected {words!r}"
        for word in moved:
            assert now[word] > before[path][word], f"{path}: {word} went back"


@contextmanager
def clock() -> Iterator[list[int]]:
    """Collects bounds [earliest, latest] in ns of any stamp that is taken inside the block."""
    bounds = [time.clock_gettime_ns(_COARSE)]
    yield bounds
    bounds.append(time.time_ns())
