"""A program that works in a mount whose provider may fail, and keeps elsewhere what it knows to be there.

    python -m tests.faults.workload DIRECTORY RECORD SEED

It ends with 0 when RECORD/stop appears or the mount is gone, and with 1 when it read something wrong.  A call that
fails as documented (EIO, ENOSPC) is recorded, and it goes on.  Every system call is timed.

The record, RECORD/log, is a line of JSON for each step: `try` before a name may change, `done` when that is synced.  So
a name holds what its last `done` says, or what a later `try` says, whole: files are written beside and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV)
DOCUMENTED = (errno.EIO, errno.ENOSPC)
NAMES = 40
STEP = 1 << 20
SIZES = ((1, 1_500), (2_000, 60_000), (60_000, 300_000), (300_000, 3_000_000))
"""Kept in rows; sealed by commits; appended at once; of several blocks."""
PAUSE = 0.05
Version = tuple[int, int]
"""(number, size); (0, 0): there is no such file."""
NONE: Version = (0, 0)


def content(name: str, version: Version) -> bytes:
    return random.Random(f"{name} {version[0]}").randbytes(version[1])


@dataclass(slots=True)
class Known:
    """What a record says.  `states`: name → what it may hold, what is synced first; `seconds`: the longest call."""

    states: dict[str, list[Version]] = field(default_factory=dict)
    steps: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    slowest: str = ""

    def synced(self) -> int:
        """How many files are there for certain."""
        return sum(states[0] != NONE for states in self.states.values())


def known(record: Path, lines: int | None = None) -> Known:
    """`lines`: what came later may be there or not, as after a recovery to that moment."""
    found = Known()
    if not (record / "log").exists():  # the mount was gone before it began
        return found
    for number, line in enumerate((record / "log").read_text().splitlines()):
        step: dict[str, Any] = json.loads(line)
        states = found.states.setdefault(step["name"], [NONE]) if "name" in step else []
        if step["step"] == "try":
            states.append(tuple(step["version"]))
        elif step["step"] == "done":
            if lines is None or number < lines:
                states[:] = [tuple(step["version"])]
            found.steps += 1
        elif step["step"] == "error":
            name = errno.errorcode[step["errno"]]
            found.errors[name] = found.errors.get(name, 0) + 1
        if step.get("seconds", 0.0) > found.seconds:
            found.seconds, found.slowest = step["seconds"], step["call"]
    return found


def lines(record: Path) -> int:
    return len((record / "log").read_text().splitlines())


def wrong(base: Path, states: dict[str, list[Version]]) -> list[str]:
    """What is not as it must be in `base`; reads every byte."""
    found = []
    for name, versions in sorted(states.items()):
        try:
            data: bytes | None = (base / name).read_bytes()
        except FileNotFoundError:
            data = None
        except OSError as error:
            found.append(f"{name}: {error}")
            continue
        if not any(data == (None if v == NONE else content(name, v)) for v in versions):
            size = None if data is None else len(data)
            found.append(f"{name}: {size} bytes, {describe(data, name, versions)}; may be {versions}")
    extra = set(os.listdir(base)) - states.keys() - {"draft"}
    return [*found, *(f"{name} should not be there" for name in sorted(extra))]


def describe(data: bytes | None, name: str, versions: Iterable[Version]) -> str:
    for version in versions:
        want = content(name, version)
        if data is not None and len(data) == len(want):
            differing = [at for at in range(len(want)) if data[at] != want[at]]
            zeros = not any(data[at] for at in differing)
            return f"{len(differing)} differ from {differing[0]} to {differing[-1]}{', all zero' if zeros else ''}"
    return "of no such size"


class Worker:
    def __init__(self, base: Path, record: Path, seed: str) -> None:
        self.base = base
        self.record = record
        self.chance = random.Random(seed)
        self.now: dict[str, Version] = {}
        self.unsure: set[str] = set()
        self.number = 0
        self.log = os.open(record / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, **step: object) -> None:
        os.write(self.log, json.dumps(step).encode() + b"\n")

    def timed(self, name: str, call: Callable[[], T]) -> T:
        start = time.monotonic()
        try:
            return call()
        except OSError as error:
            if error.errno in DOCUMENTED:
                self.note(step="error", errno=error.errno, call=name, seconds=time.monotonic() - start)
            raise
        finally:
            if (seconds := time.monotonic() - start) > 0.5:
                self.note(step="slow", call=name, seconds=seconds)

    def run(self) -> None:
        while not (self.record / "stop").exists():
            step = self.chance.choices((self.replace, self.remove, self.read), (6, 1, 4))[0]
            try:
                step()
            except OSError as error:
                if error.errno not in DOCUMENTED:
                    raise
                time.sleep(PAUSE)

    def replace(self) -> None:
        name = f"f{self.chance.randrange(NAMES)}"
        self.number += 1
        version = (self.number, self.chance.randrange(*self.chance.choice(SIZES)))
        data = content(name, version)
        draft = self.base / "draft"
        fd = self.timed("open", lambda: os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        try:
            for at in range(0, len(data), STEP):
                self.timed("write", lambda at=at: os.write(fd, data[at : at + STEP]))  # type: ignore[misc]
            self.timed("fsync", lambda: os.fsync(fd))
        finally:
            self.timed("close", lambda: os.close(fd))
        self.change(name, version, lambda: os.rename(draft, self.base / name))

    def remove(self) -> None:
        name = f"f{self.chance.randrange(NAMES)}"
        if self.now.get(name, NONE) != NONE and name not in self.unsure:
            self.change(name, NONE, lambda: os.unlink(self.base / name))

    def change(self, name: str, version: Version, call: Callable[[], None]) -> None:
        self.note(step="try", name=name, version=version)
        self.unsure.add(name)
        self.timed("rename" if version != NONE else "unlink", call)
        self.unsure.discard(name)
        self.now[name] = version
        self.note(step="done", name=name, version=version)

    def read(self) -> None:
        name = f"f{self.chance.randrange(NAMES)}"
        if name in self.unsure or self.now.get(name, NONE) == NONE:
            return
        fd = self.timed("open", lambda: os.open(self.base / name, os.O_RDONLY))
        pieces = []
        try:
            while piece := self.timed("read", lambda: os.read(fd, STEP)):
                pieces.append(piece)
        finally:
            self.timed("close", lambda: os.close(fd))
        data = b"".join(pieces)
        if data != content(name, self.now[name]):
            raise AssertionError(f"{name}: {describe(data, name, [self.now[name]])}; is {self.now[name]}")


def main(directory: str, record: str, seed: str) -> int:
    try:
        os.chdir(directory)  # by its path one would get to what lies below, when the mount is gone
        Worker(Path(), Path(record), seed).run()
    except OSError as error:
        if error.errno not in GONE:
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
