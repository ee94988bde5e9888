"""Processes that write into a mount until it dies, and keep elsewhere what they know to be there.

    python -m tests.crash.writers KIND DIRECTORY RECORD SEED

RECORD is a directory on the host's own file system.  A writer ends with 0 when the mount is gone, with 1 when it saw
something wrong.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from stat import S_ISLNK

GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV)
"""What a system call answers when the daemon dies or is dead."""
PAGE = 4096
PAGES = 64
NAMES = ("a", "b", "c", "d", "e", "f")
Operation = list[str | int]


# names: each operation is done in the mount, and when it has returned in a directory beside
def draw(chance: random.Random) -> Operation:
    def path() -> str:
        return "/".join(chance.choice(NAMES) for _ in range(chance.randrange(1, 3)))

    kinds: list[Operation] = [
        ["create", path()],
        ["create", path()],
        ["mkdir", path()],
        ["symlink", path(), str(chance.random())],
        ["link", path(), path()],
        ["rename", path(), path()],
        ["rename", path(), path()],
        ["unlink", path()],
        ["rmdir", path()],
        ["chmod", path(), chance.randrange(0o700, 0o1000)],
        ["setxattr", path(), str(chance.random())],
    ]
    return chance.choice(kinds)


def is_link(path: str) -> bool:
    """Errors: OSError, where os.path.islink takes a mount that has gone for a name that is none, and the kernel goes on
    with what it remembers."""
    return S_ISLNK(os.lstat(path).st_mode)


def apply(base: Path, operation: Operation) -> int:
    """Returns 0 or the errno."""
    kind, first, *rest = operation
    path = os.path.join(base, str(first))
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)),
        "mkdir": lambda: os.mkdir(path),
        "symlink": lambda: os.symlink(str(rest[0]), path),
        "link": lambda: os.link(path, os.path.join(base, str(rest[0])), follow_symlinks=False),
        "rename": lambda: os.rename(path, os.path.join(base, str(rest[0]))),
        "unlink": lambda: os.unlink(path),
        "rmdir": lambda: os.rmdir(path),
        "chmod": lambda: None if is_link(path) else os.chmod(path, int(rest[0])),
        "setxattr": lambda: None if is_link(path) else os.setxattr(path, "user.x", str(rest[0]).encode()),
    }
    try:
        calls[str(kind)]()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def names(base: Path, record: Path, chance: random.Random) -> None:
    shadow = record / "tree"
    shadow.mkdir()
    intent = record / "intent"
    while True:
        operation = draw(chance)
        intent.write_text(json.dumps(operation))
        got = apply(base, operation)
        if got in GONE:
            return
        wanted = apply(shadow, operation)
        if got != wanted:
            again = apply(base, operation)
            if again in GONE:
                return  # while a daemon dies the kernel has been seen to answer ENOENT
            raise AssertionError(f"{operation}: errno {got}, elsewhere {wanted}, done again {again}")


# bytes: pages of a file carry their version
def page(index: int, version: int) -> bytes:
    return b"%15d " % (index * 1_000_000 + version) * (PAGE // 16)


def versions(base: Path, record: Path, chance: random.Random) -> None:
    written = [0] * PAGES
    log = os.open(record / "versions", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    fd = os.open(base / "file", os.O_RDWR | os.O_CREAT)
    while True:
        for _ in range(chance.randrange(1, 40)):
            first = chance.randrange(PAGES)
            count = min(chance.choice((1, 1, 3, 20, 64)), PAGES - first)
            for index in range(first, first + count):
                written[index] += 1
            os.write(log, json.dumps(["written", written]).encode() + b"\n")
            os.pwrite(fd, b"".join(page(i, written[i]) for i in range(first, first + count)), first * PAGE)
        os.fsync(fd)
        os.write(log, json.dumps(["synced", written]).encode() + b"\n")


# an append-only file, and one that is replaced at once
def appends(base: Path, record: Path, chance: random.Random) -> None:
    log = os.open(record / "lines", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    fd = os.open(base / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = 0
    while True:
        for _ in range(chance.randrange(1, 30)):
            os.write(fd, b"%9d\n" % number)
            number += 1
        os.fsync(fd)
        os.write(log, b"%9d\n" % number)


def replaces(base: Path, record: Path, chance: random.Random) -> None:
    log = os.open(record / "replaced", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = 0
    while True:
        number += 1
        with open(base / "draft", "wb") as file:
            file.write(b"%9d\n" % number * chance.randrange(1, 20_000))
            file.flush()
            os.fsync(file.fileno())
        os.rename(base / "draft", base / "current")
        os.write(log, b"%9d\n" % number)


def database(base: Path, record: Path, chance: random.Random) -> None:
    log = os.open(record / "rows", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    connection = sqlite3.connect(base / "data.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, v TEXT)")
    number = 0
    while True:
        connection.execute("BEGIN")
        for _ in range(chance.randrange(1, 5)):
            number += 1
            connection.execute("INSERT INTO t VALUES (?, ?)", (number, str(number) * chance.randrange(1, 300)))
        connection.execute("COMMIT")
        os.write(log, b"%9d\n" % number)


KINDS = {function.__name__: function for function in (names, versions, appends, replaces, database)}


def main(kind: str, directory: str, record: str, seed: str) -> int:
    try:
        os.chdir(directory)  # by its path one would get to what lies below, when the mount is gone
        KINDS[kind](Path(), Path(record), random.Random(seed))
    except OSError as error:
        if error.errno not in GONE:
            raise
    except sqlite3.OperationalError as error:
        if "I/O error" not in str(error) and "unable to open" not in str(error):
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
