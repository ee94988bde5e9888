"""The workloads: each takes an empty directory and returns seconds by row name.

They know nothing of the file system below, so each runs on any peer.  Untimed in all of them: preparation,
writing back what an earlier row left dirty, and cleaning up.  Reads are compared with what was written: a
fast wrong answer raises WrongAnswer.  Cold rows need the right to drop the kernel's caches (root) and are
left out without it.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rows import MIB, Sizes

DROP = Path("/proc/sys/vm/drop_caches")
GIT_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
}


class WrongAnswer(Exception):
    """The file system gave back something other than what was written."""


class Laps:
    """Collects the seconds of named rows: `with laps("create"): …`, after writing back what is dirty."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, row: str) -> Iterator[None]:
        os.sync()
        start = time.perf_counter()
        yield
        self.seconds[row] = time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Stock:
    """What the tree workloads start from, made once per run on the native disk and read from its cache."""

    archive: Path
    repository: Path


def can_drop_caches() -> bool:
    return os.access(DROP, os.W_OK)


def drop_caches() -> None:
    os.sync()
    DROP.write_text("3")
    # The kernel's FORGETs reach a FUSE daemon after this returns; they are not part of the next row.
    time.sleep(0.3)


def names(where: Path, sizes: Sizes, stock: Stock) -> dict[str, float]:
    """One system call after the other on small files in 20 directories, by names that are as short on every peer."""
    with chdir(where):
        return _names(sizes)


def _names(sizes: Sizes) -> dict[str, float]:
    laps = Laps()
    count = sizes.files
    for i in range(20):
        os.mkdir(f"d{i}")
    paths = [f"d{i % 20}/file{i}" for i in range(count)]
    payload = os.urandom(1024)

    def read_all() -> None:
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            got = os.read(fd, 2048)
            os.close(fd)
            if got != payload:
                raise WrongAnswer(f"{path} does not hold what was written")

    with laps("create"):
        for path in paths:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, payload)
            os.close(fd)
    if can_drop_caches():
        drop_caches()
        with laps("stat_cold"):
            for path in paths:
                os.stat(path)
        drop_caches()
        with laps("read_cold"):
            read_all()
    read_all()
    with laps("read_warm"):
        for _ in range(sizes.warm_passes):
            read_all()
    for path in paths:
        os.stat(path)
    with laps("stat_warm"):
        for _ in range(sizes.warm_passes):
            for path in paths:
                os.stat(path)
    with laps("link"):
        for path in paths:
            os.link(path, path + ".l")
    for path in paths:
        os.unlink(path + ".l")
    with laps("symlink"):
        for path in paths:
            os.symlink("target", path + ".s")
    with laps("mkdir"):
        for path in paths:
            os.mkdir(path + ".d")
    with laps("rename"):
        for path in paths:
            os.rename(path, path + ".r")
    with laps("unlink"):
        for path in paths:
            os.unlink(path + ".r")
    return laps.seconds


def stream(where: Path, sizes: Sizes, stock: Stock) -> dict[str, float]:
    """One large file, written and read from end to end in steps of 1 MiB."""
    laps = Laps()
    path = where / "stream"
    block = bytearray(os.urandom(MIB))

    def read_back() -> None:
        buffer = bytearray(MIB)
        fd = os.open(path, os.O_RDONLY)
        total = 0
        while got := os.readv(fd, [buffer]):
            if buffer[:8] != (total // MIB).to_bytes(8, "little"):
                raise WrongAnswer(f"{path} at {total} does not hold what was written")
            total += got
        os.close(fd)
        if total != sizes.stream_mib * MIB:
            raise WrongAnswer(f"{path} has {total} bytes")

    with laps("stream_write"):
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        for i in range(sizes.stream_mib):
            block[:8] = i.to_bytes(8, "little")
            os.write(fd, block)
        os.fsync(fd)
        os.close(fd)
    if can_drop_caches():
        drop_caches()
        with laps("stream_cold"):
            read_back()
    read_back()
    with laps("stream_warm"):
        read_back()
    return laps.seconds


def random_write(where: Path, sizes: Sizes, stock: Stock) -> dict[str, float]:
    """4 KiB writes at random places of a file that is there, then one fsync."""
    laps = Laps()
    fd = os.open(where / "random", os.O_CREAT | os.O_RDWR)
    block = os.urandom(MIB)
    for _ in range(sizes.random_mib):
        os.write(fd, block)
    os.fsync(fd)
    places = random.Random(20).choices(range(sizes.random_mib * MIB // 4096), k=sizes.random_writes)
    payload = os.urandom(4096)
    with laps("random_write"):
        for place in places:
            os.pwrite(fd, payload, place * 4096)
        os.fsync(fd)
    if os.pread(fd, 4096, places[0] * 4096) != payload:
        raise WrongAnswer("a random write cannot be read back")
    os.close(fd)
    return laps.seconds


def trees(where: Path, sizes: Sizes, stock: Stock) -> dict[str, float]:
    """tar, cp and rm on a tree of a few thousand source files."""
    laps = Laps()
    tree, copy = where / "tree", where / "copy"
    tree.mkdir()
    with laps("untar"):
        subprocess.run(["tar", "-xf", stock.archive, "-C", tree], check=True)
    with laps("copy_tree"):
        subprocess.run(["cp", "-a", tree, copy], check=True)
    found = sum(len(files) for _, _, files in os.walk(copy))
    if found != sizes.tree_files:
        raise WrongAnswer(f"{found} files of {sizes.tree_files} in {copy}")
    with laps("remove_tree"):
        subprocess.run(["rm", "-rf", copy], check=True)
    return laps.seconds


def git_clone(where: Path, sizes: Sizes, stock: Stock) -> dict[str, float]:
    """A clone from the native disk: one pack is copied (never hard-linked) and the files are checked out."""
    laps = Laps()
    target = where / "clone"
    with laps("git_clone"):
        _git("clone", "-q", "--no-hardlinks", str(stock.repository), str(target))
    if changed := _git("-C", str(target), "status", "--porcelain"):
        raise WrongAnswer(f"git status after the clone: {changed[:200]}")
    return laps.seconds


def sqlite(where: Path, sizes: Sizes, stock: Stock) -> dict[str, float]:
    """Small transactions with a rollback journal and synchronous=FULL: create, write, fsync, unlink each."""
    laps = Laps()
    db = sqlite3.connect(where / "bench.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, body BLOB)")
    body = os.urandom(200)
    with laps("sqlite"):
        for i in range(sizes.transactions):
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO item VALUES (?, ?)", (i, body))
            db.execute("UPDATE item SET body = ? WHERE id = ?", (body, i // 2))
            db.execute("COMMIT")
    (count,) = db.execute("SELECT count(*) FROM item").fetchone()
    db.close()
    if count != sizes.transactions:
        raise WrongAnswer(f"{count} rows of {sizes.transactions}")
    return laps.seconds


Work = Callable[[Path, Sizes, Stock], dict[str, float]]
WORKS: dict[Work, tuple[str, ...]] = {
    names: (
        *("create", "rename", "unlink", "mkdir", "symlink", "link"),
        *("stat_cold", "read_cold", "read_warm", "stat_warm"),
    ),
    stream: ("stream_write", "stream_cold", "stream_warm"),
    random_write: ("random_write",),
    trees: ("untar", "copy_tree", "remove_tree"),
    git_clone: ("git_clone",),
    sqlite: ("sqlite",),
}
"""Each workload with the rows that it measures."""


def make_stock(where: Path, sizes: Sizes) -> Stock:
    """The archive and the repository, from the source files of the running Python's library.

    Raises ValueError when the library has fewer files than asked for.
    """
    sources = _library_files(max(sizes.tree_files, sizes.repository_files))
    library = Path(os.__file__).parent
    archive = where / "library.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sources[: sizes.tree_files]:
            tar.add(path, arcname=str(path.relative_to(library)))
    repository = where / "repository"
    for path in sources[: sizes.repository_files]:
        target = repository / path.relative_to(library)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    _git("-C", str(repository), "init", "-q")
    _git("-C", str(repository), "add", "-A", "-f")
    _git("-C", str(repository), "commit", "-q", "-m", "files")
    _git("-C", str(repository), "gc", "-q")
    return Stock(archive, repository)


def _library_files(count: int) -> list[Path]:
    """`count` regular files of the library in a fixed order, compiled ones and other packages' left out."""
    found: list[Path] = []
    for directory, subdirectories, files in os.walk(Path(os.__file__).parent):
        left_out = ("__pycache__", "site-packages", "dist-packages", ".git")
        subdirectories[:] = sorted(d for d in subdirectories if d not in left_out)
        for file in sorted(files):
            path = Path(directory, file)
            if path.is_file() and not path.is_symlink() and path.stat().st_size < MIB:
                found.append(path)
                if len(found) == count:
                    return found
    raise ValueError(f"the Python library has {len(found)} files, {count} are needed: use a smaller --scale")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], env=os.environ | GIT_ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout
