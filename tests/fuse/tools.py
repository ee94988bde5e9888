"""What the driver's tests share: calls on the store behind a mount, outcomes by errno, and waiting for what a thread
of the mount does after its reply."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from artfs.store.connecting import connect
from tests.mounting import Mounted

GRACE = 5.0
"""Seconds for what the mount does in a thread after it has replied."""


def call(mount: Mounted | Path, method: str, /, **arguments: Any) -> Any:
    """A call on the store, through its owner if it has one."""
    root = mount.root if isinstance(mount, Mounted) else mount

    async def work() -> Any:
        async with connect(root, "test") as caller:
            return await caller.call(method, **arguments)

    return trio.run(work)


def eventually(condition: Callable[[], bool], limit: float = GRACE) -> float:
    """Wait until it holds; returns the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit, f"not within {limit} s: {condition}"
        time.sleep(0.002)
    return time.monotonic() - start


@contextmanager
def inside(directory: Path) -> Iterator[None]:
    """With `directory` as the working directory: other users reach what is below it by relative paths."""
    before = os.open(".", os.O_PATH)
    os.chdir(directory)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY, mode: int = 0o666) -> Iterator[int]:
    """A descriptor, closed at the end whatever its file has become."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        try:
            os.close(fd)
        except OSError:  # close reports a late error, and the descriptor is gone all the same
            pass


def command(path: Path | str, what: str, value: str = "") -> None:
    """Set an xattr of the control surface."""
    os.setxattr(path, f"user.artfs.{what}", os.fsencode(value))


def ask(path: Path | str, what: str) -> bytes:
    """Get an xattr of the control surface."""
    return os.getxattr(path, f"user.artfs.{what}")


def checkpoints(workspace: Path) -> list[str]:
    return ask(workspace, "checkpoints").decode().splitlines()
