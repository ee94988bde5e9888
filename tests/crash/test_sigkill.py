"""SIGKILL of the mount's process at random moments, under writers: nothing that it had acknowledged is lost or torn.

What counts as acknowledged (docs/semantics.md): names and attributes when the call has returned, bytes when fsync has.
`ARTFS_TEST_ROUNDS=200` makes it the long test.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISLNK

import pytest

from artfs.volume import fsck
from tests.crash.writers import KINDS, PAGE, PAGES, apply, page
from tests.mounting import Mounted

pytestmark = [pytest.mark.crash, pytest.mark.fuse, pytest.mark.slow]

ROUNDS = int(os.environ.get("ARTFS_TEST_ROUNDS", "10"))
TOP = Path(__file__).parents[2]
SETTINGS = {"ARTFS_COMMIT_INTERVAL": "0.1", "ARTFS_JOURNAL_SIZE": str(8 << 20)}
"""So that commits and the journal's end are often under way when the process dies."""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Mounted]:
    mount = Mounted(tmp_path / "store", tmp_path / "mnt", ("-o", "allow_other"), SETTINGS)
    try:
        yield mount
        mount.stop()
    finally:
        mount.kill()


def test_nothing_acknowledged_is_lost(own: Mounted, tmp_path: Path) -> None:
    chance = random.Random(os.environ.get("ARTFS_TEST_SEED", "artfs"))
    own.start()
    acknowledged = dict.fromkeys(KINDS, 0)
    for number in range(ROUNDS):
        record = tmp_path / f"round-{number}"
        base = own.workspace(f"n{number}")
        writers = {kind: start(kind, base, record, f"{number}-{chance.random()}") for kind in KINDS}
        time.sleep(chance.uniform(0.1, 1.2))
        own.kill()
        for kind, writer in writers.items():
            _, said = writer.communicate(timeout=30)
            assert writer.returncode == 0, f"round {number}: {kind} failed:\n{said.decode()}"
        report = fsck.check(own.root)
        assert not report.problems, f"round {number}: {report.problems}"
        own.start()
        for kind in KINDS:
            acknowledged[kind] += VERIFY[kind](base / kind, record / kind)
    assert all(acknowledged.values()), f"some writers got nothing done, so nothing was tested: {acknowledged}"


def start(kind: str, base: Path, record: Path, seed: str) -> subprocess.Popen[bytes]:
    (base / kind).mkdir()
    (record / kind).mkdir(parents=True)
    command = [sys.executable, "-m", "tests.crash.writers", kind, str(base / kind), str(record / kind), seed]
    return subprocess.Popen(command, cwd=TOP, stderr=subprocess.PIPE)


def listing(top: Path) -> dict[str, object]:
    """Names, types, modes, targets, attributes, and which names are one inode."""
    found: dict[str, object] = {}
    first: dict[int, str] = {}
    for folder, folders, files in sorted(os.walk(top)):
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            stat = os.lstat(path)
            key = os.path.relpath(path, top)
            links = 0 if S_ISDIR(stat.st_mode) else stat.st_nlink
            target = os.readlink(path) if S_ISLNK(stat.st_mode) else ""
            names = [n for n in os.listxattr(path, follow_symlinks=False) if n == "user.x"]
            values = [os.getxattr(path, n, follow_symlinks=False) for n in names]
            found[key] = (stat.st_mode, links, target, values, first.setdefault(stat.st_ino, key))
    return found


# Each returns how much it found that had been acknowledged.
def verify_names(base: Path, record: Path) -> int:
    shadow = record / "tree"
    if not shadow.is_dir():
        return 0  # killed before the writer began
    have = listing(base)
    if have == listing(shadow):
        return len(have)
    apply(shadow, json.loads((record / "intent").read_text()))  # what was under way may have happened
    want = listing(shadow)
    differing = {k: (have.get(k), want.get(k)) for k in have.keys() | want.keys() if have.get(k) != want.get(k)}
    assert not differing, f"(mount, acknowledged): {differing}"
    return len(have)


def last(path: Path) -> int:
    """The number of the last line that says what was acknowledged."""
    return int(path.read_text().split()[-1]) if path.exists() and path.stat().st_size else 0


def verify_versions(base: Path, record: Path) -> int:
    states = {"synced": [0] * PAGES, "written": [0] * PAGES}
    if (record / "versions").exists():
        for line in (record / "versions").read_text().splitlines():
            kind, state = json.loads(line)
            states[kind] = state
    if not any(states["synced"]):
        return 0
    data = (base / "file").read_bytes()
    for index, (synced, written) in enumerate(zip(states["synced"], states["written"], strict=True)):
        have = data[index * PAGE : (index + 1) * PAGE]
        allowed = {page(index, version) for version in range(max(synced, 1), written + 1)}
        if not synced:
            allowed |= {b"", bytes(PAGE)}
        assert have in allowed, f"page {index}: {have[:32]!r}, synced was version {synced}, written {written}"
    return sum(states["synced"])


def verify_appends(base: Path, record: Path) -> int:
    count = last(record / "lines")
    data = (base / "log").read_bytes() if count else b""
    assert data[: count * 10] == b"".join(b"%9d\n" % number for number in range(count))
    return count


def verify_replaces(base: Path, record: Path) -> int:
    number = last(record / "replaced")
    if number:
        lines = set((base / "current").read_bytes().splitlines())
        assert len(lines) == 1 and lines <= {b"%9d" % number, b"%9d" % (number + 1)}, f"{lines}, was {number}"
    return number


def verify_database(base: Path, record: Path) -> int:
    rows = last(record / "rows")
    if rows:
        connection = sqlite3.connect(base / "data.db")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]
        connection.close()
        assert found[:rows] == list(range(1, rows + 1))
    return rows


VERIFY = {
    "names": verify_names,
    "versions": verify_versions,
    "appends": verify_appends,
    "replaces": verify_replaces,
    "database": verify_database,
}
