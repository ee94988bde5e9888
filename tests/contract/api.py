"""Stores of the Python API for tests: in memory, on a root, and through another process that owns the root."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from artfs.store import ArtifactStore

ROOT = Path(__file__).parents[2]
WHERE = ("memory", "root", "client")
TIMEOUT = 30.0

OWNER = """
import sys, anyio
from artfs.store import ArtifactStore
async def main():
    store = ArtifactStore(root=sys.argv[1])
    held = await store._call("api_ping")
    from artfs.store import handle
    opened = store._handle._opened
    assert opened.service is not None
    opened.is_idle = lambda: False
    print("ready", flush=True)
    await anyio.to_thread.run_sync(sys.stdin.read)
anyio.run(main)
"""


class Program:
    """A Python program of its own; what it prints is read line by line."""

    def __init__(self, text: str, *arguments: object) -> None:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("ARTFS_", "ARTIFACT_"))
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", text, *map(str, arguments)],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, text: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def send(self, number: int) -> None:
        """A program that is stopped has stopped when this returns, in all its threads."""
        self.process.send_signal(number)
        while number == signal.SIGSTOP and not self._is_stopped():
            time.sleep(0.001)

    def _is_stopped(self) -> bool:
        stats = [path.read_text() for path in Path(f"/proc/{self.process.pid}/task").glob("*/stat")]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)

    def end(self) -> int:
        """Wait until it has ended by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(TIMEOUT)


@contextmanager
def program(text: str, *arguments: object) -> Iterator[Program]:
    running = Program(text, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGCONT)
            running.kill()
        for stream in (running.process.stdin, running.process.stdout):
            assert stream is not None
            stream.close()


@asynccontextmanager
async def owned_elsewhere(root: Path) -> AsyncIterator[Program]:
    """Another process owns the store at `root`, and keeps it."""
    with program(OWNER, root) as owner:
        assert owner.line() == "ready"
        yield owner


@asynccontextmanager
async def a_store(where: str, tmp_path: Path, **options: Any) -> AsyncIterator[ArtifactStore]:
    if where == "memory":
        async with ArtifactStore(**options) as store:
            yield store
    elif where == "root":
        async with ArtifactStore(root=tmp_path / "store", **options) as store:
            yield store
    else:
        async with (
            owned_elsewhere(tmp_path / "store"),
            ArtifactStore(root=tmp_path / "store", **options) as store,
        ):
            yield store


def everywhere(test: Callable[..., Any]) -> Callable[..., Any]:
    """The test, whose first argument is a store, in each of `WHERE`; fixtures come by name."""

    @wraps(test)
    async def run(where: str, tmp_path: Path, **fixtures: Any) -> None:
        async with a_store(where, tmp_path) as store:
            await test(store, **fixtures)

    parameters = list(inspect.signature(test).parameters.values())[1:]
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, kind) for name in ("where", "tmp_path")]
    fixtures = [parameter.replace(kind=kind) for parameter in parameters]
    run.__signature__ = inspect.Signature(more + fixtures)  # type: ignore[attr-defined]
    marked: Callable[..., Any] = pytest.mark.parametrize("where", WHERE)(run)
    return marked
