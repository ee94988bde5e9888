"""Requests per operation on a warm bound mount: the kernel asks for what it cannot know, and for nothing else.

The counts are the driver's own, by opcode, from `.artfs/stats`.  Reading that file makes requests too: an idle
difference is subtracted.  FORGETs are left out, because they come when it suits the kernel and nobody waits for them.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artfs.fuse.native import Opcode
from tests.mounting import Mounted, mounted

pytestmark = [pytest.mark.fuse, pytest.mark.alone]

MORE_NAMES = {12: "RENAME", 52: "STATX", 53: "COPY_FILE_RANGE"}
"""Of opcodes that the extension folds into others: linux/fuse.h."""
UNSEEN = {Opcode.FORGET, 42}
MIB = 1 << 20
TICK = 0.02
"""Seconds: longer than a tick of the kernel's coarse clock, so that a time that is set now is another."""


class Counts:
    """`of(work)`: which requests `work` made."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self._read()
        before = self._read()
        self.idle = self._read() - before

    def _read(self) -> Counter[int]:
        return Counter({int(opcode): n for opcode, n in self.mount.stats()["requests"].items()})

    def of(self, work: Callable[[], Any]) -> dict[str, int]:
        before = self._read()
        work()
        made = self._read()
        made.subtract(before + self.idle)
        found: Counter[str] = Counter()
        for opcode, count in made.items():
            if count and opcode not in UNSEEN:
                found[MORE_NAMES.get(opcode) or Opcode(opcode).name] += count
        return dict(found)

    def again(self, work: Callable[[], Any]) -> dict[str, int]:
        """What it still makes when everything is cached.  Whoever else runs on this machine may drop the kernel's
        caches at any moment, hence the fewest of three."""
        work()
        return min((self.of(work) for _ in range(3)), key=len)


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("requests")) as own:
        yield own


@pytest.fixture(scope="module")
def counts(mount: Mounted) -> Counts:
    return Counts(mount)


@pytest.fixture
def place(mount: Mounted, request: pytest.FixtureRequest) -> Iterator[str]:
    """A workspace, the working directory, with a file `f` of 1 KiB and a directory `d`, all known to the kernel."""
    workspace = mount.workspace(request.node.name.replace("[", "-").replace("]", ""))
    before = os.open(".", os.O_PATH)
    os.chdir(workspace)
    try:
        make("f")
        os.mkdir("d")
        warm()
        yield str(workspace)
    finally:
        os.fchdir(before)
        os.close(before)


def make(name: str, size: int = 1024) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    time.sleep(TICK)
    os.write(fd, bytes(size))
    os.close(fd)


def read(name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY)
    try:
        return os.read(fd, MIB)
    finally:
        os.close(fd)


def warm() -> None:
    """Make the kernel ask now for what an earlier change made it doubt."""
    for _ in range(3):
        for name in os.listdir():
            os.lstat(name)
    os.stat(".")


@pytest.mark.parametrize(
    "work",
    [
        lambda: os.stat("f"),
        lambda: os.access("f", os.R_OK),
        lambda: os.stat("d"),
        lambda: read("f"),
        lambda: os.listdir("d"),
        lambda: [entry.stat() for entry in os.scandir(".")],
    ],
    ids=["stat", "access", "stat of a directory", "open read close", "listdir", "scandir and stat"],
)
def test_what_is_cached_costs_nothing(counts: Counts, place: str, work: Callable[[], Any]) -> None:
    work()  # listing makes the kernel doubt the directory's atime, once
    assert counts.again(lambda: [work() for _ in range(10)]) == {}


def test_links_are_cached(counts: Counts, place: str) -> None:
    os.symlink("f", "link")
    warm()
    assert counts.of(lambda: os.readlink("link")) == {"READLINK": 1}
    assert counts.again(lambda: [(os.readlink("link"), os.stat("link")) for _ in range(10)]) == {}


def test_a_missing_name_is_asked_for_once(counts: Counts, place: str) -> None:
    def look() -> None:
        assert not os.path.exists("missing")

    assert counts.of(look) == {"LOOKUP": 1}
    assert counts.again(look) == {}
    Path("missing").touch()
    assert os.path.exists("missing")


def test_statx_of_what_is_cached(counts: Counts, place: str) -> None:
    """`stat` asks with statx(2), for the time of birth too: that there is none the kernel learns once."""

    def work() -> None:
        subprocess.run(["stat", "-c", "%w %s", "f"], check=True, capture_output=True)

    assert counts.again(work) == {}


def test_create_write_close(counts: Counts, place: str) -> None:
    """The directory's GETATTR is of the walk to the next file: its times have changed."""
    assert counts.of(lambda: make("new")) == {
        "LOOKUP": 1,
        "CREATE": 1,
        "GETXATTR": 1,
        "WRITE": 1,
        "SETATTR": 1,
    }
    assert counts.of(lambda: make("newer")) == {
        "LOOKUP": 1,
        "CREATE": 1,
        "GETXATTR": 1,
        "WRITE": 1,
        "SETATTR": 1,
        "GETATTR": 1,
    }
    count = 50

    def make_many() -> None:
        for number in range(count):
            make(f"many-{number}")

    many = counts.of(make_many)
    assert many == dict.fromkeys(("LOOKUP", "CREATE", "GETXATTR", "WRITE", "SETATTR", "GETATTR"), count)


def test_a_closed_file_is_asked_for_once(counts: Counts, place: str) -> None:
    make("new")
    os.stat(".")
    assert counts.of(lambda: os.stat("new")) == {"GETATTR": 1}
    assert counts.again(lambda: [os.stat("new") for _ in range(10)]) == {}


def test_python_reads_a_file(counts: Counts, place: str) -> None:
    """Python asks whether what it opens is a terminal; the rest comes from the cache."""
    Path("f").read_bytes()
    found = counts.of(lambda: Path("f").read_bytes())
    assert found.pop("IOCTL", 0) <= 1
    assert found in ({}, {"GETATTR": 1})


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda: os.mkdir("new"), {"LOOKUP": 1, "MKDIR": 1}),
        (lambda: os.symlink("f", "new"), {"LOOKUP": 1, "SYMLINK": 1}),
        (lambda: os.mkfifo("new"), {"LOOKUP": 1, "MKNOD": 1}),
        (lambda: os.link("f", "new"), {"LOOKUP": 1, "LINK": 1, "SETATTR": 1}),
        (lambda: os.rename("f", "new"), {"LOOKUP": 1, "RENAME": 1, "SETATTR": 1}),
        (lambda: os.rename("d", "new"), {"LOOKUP": 1, "RENAME": 1}),
        (lambda: os.unlink("f"), {"UNLINK": 1, "SETATTR": 1}),
        (lambda: os.rmdir("d"), {"RMDIR": 1}),
        (lambda: os.chmod("f", 0o600), {"SETATTR": 1}),
        (lambda: os.utime("f"), {"SETATTR": 1}),
        (lambda: os.truncate("f", 10), {"GETXATTR": 1, "SETATTR": 1}),
    ],
    ids=[
        "mkdir",
        "symlink",
        "mkfifo",
        "link",
        "rename",
        "rename-directory",
        "unlink",
        "rmdir",
        "chmod",
        "utime",
        "truncate",
    ],
)
def test_a_change_is_one_request(
    counts: Counts, place: str, work: Callable[[], None], expected: dict[str, int]
) -> None:
    """A new name is looked up first, though it is known to be missing; the kernel sends the ctime of regular files
    behind; and before it changes content it asks whether the file has capabilities to lose."""
    assert counts.of(work) == expected


def test_small_writes_are_sent_as_large_ones(counts: Counts, place: str) -> None:
    fd = os.open("big", os.O_RDWR | os.O_CREAT)
    piece = os.urandom(4096)
    os.write(fd, piece)

    def write() -> None:
        for _ in range(1024):
            os.write(fd, piece)

    try:
        assert counts.of(write) == {}
        sent = counts.of(lambda: os.fsync(fd))
        assert sent.pop("SETATTR", 0) <= 1
        # 4 MiB and one page, from page 0 on: one request for each MiB that is touched.
        assert sent == {"WRITE": 5, "FSYNC": 1}
        assert read("big") == piece * 256
    finally:
        os.close(fd)


def test_a_mapping_is_read_and_written_without_requests(counts: Counts, place: str) -> None:
    make("f", 64 << 10)
    fd = os.open("f", os.O_RDWR)
    try:
        with mmap.mmap(fd, 64 << 10) as view:
            view[:] = b"a" * len(view)

            def work() -> None:
                for at in range(0, len(view), 512):
                    view[at] = view[-1 - at] + 1 & 0xFF

            assert counts.again(work) == {}
    finally:
        os.close(fd)


def test_a_truncating_open_says_so(counts: Counts, place: str) -> None:
    """Nothing is asked when a file is opened, so O_TRUNC has to come as a SETATTR."""
    found = counts.of(lambda: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC)))
    assert found.pop("SETATTR") == 1
    assert found in ({}, {"GETXATTR": 1})
    assert os.stat("f").st_size == 0


def test_each_use_of_an_attribute_is_one_request(counts: Counts, place: str) -> None:
    os.setxattr("f", "user.k", b"value")
    warm()
    assert counts.of(lambda: os.getxattr("f", "user.k")) == {"GETXATTR": 1}
    assert counts.of(lambda: os.listxattr("f")) == {"LISTXATTR": 1}
    assert counts.of(lambda: os.setxattr("f", "user.k", b"other")) == {"SETXATTR": 1, "SETATTR": 1}


def test_copies_move_no_bytes(counts: Counts, place: str) -> None:
    content = os.urandom(4 * MIB)
    Path("from").write_bytes(content)
    os.sync()
    warm()

    def share() -> None:
        source, target = os.open("from", os.O_RDONLY), os.open("by-call", os.O_RDWR | os.O_CREAT)
        try:
            assert os.copy_file_range(source, target, len(content)) == len(content)
        finally:
            os.close(source)
            os.close(target)

    def copy() -> None:
        subprocess.run(["cp", "--reflink=auto", "from", "by-cp"], check=True)

    for work in (share, copy):
        found = counts.of(work)
        assert found["COPY_FILE_RANGE"] >= 1
        assert not found.keys() & {"READ", "WRITE"}, found
    assert Path("by-call").read_bytes() == Path("by-cp").read_bytes() == content


def test_listing_a_directory_once(counts: Counts, place: str) -> None:
    """Names and attributes of a directory come together: no LOOKUP and no GETATTR for each file."""
    folder = "d"
    fd = os.open(folder, os.O_RDONLY)
    for number in range(300):
        os.mknod(f"{number}", dir_fd=fd)
    os.close(fd)
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("2\n")
    code = "import os, sys; print(sum(e.stat().st_nlink for e in os.scandir(sys.argv[1])))"

    def walk() -> None:
        done = subprocess.run([sys.executable, "-c", code, folder], check=True, capture_output=True, text=True)
        assert done.stdout == "300\n"

    found = counts.of(walk)
    # After the first READDIRPLUS the kernel may guess that nobody wants the attributes of the next part.
    asked = found.get("LOOKUP", 0) + found.get("GETATTR", 0)
    assert found["READDIRPLUS"] >= 1
    assert asked <= 150, found
    assert counts.again(walk) == {}
