"""The rows of the Python API: artfs beside the packages whose API it is, each in a process of its own.

The packages live in a virtual environment of their own, which is made where it is missing.  In each round every work
visits its peers one after the other, in an order that is rotated.  A peer that fails a work is left out of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.api_rows import FILESYSTEM, MEMORY, REDIS, SEEDS, SQLITE, ApiSizes
from tests.bench.peers import PeerError
from tests.bench.report import SUBJECT, Results, turns

HERE = Path(__file__).resolve().parents[2]
LIMIT = 900.0
OURS, THEIRS = "artfs", "chuk_artifacts"


def python_of(directory: Path) -> Path:
    """The interpreter of the environment with the packages.  Raises PeerError when they cannot be installed."""
    python = directory / "bin" / "python"
    check = (
        "import sys; from importlib.metadata import version\nfor a in sys.argv[1:]: assert version(a[0:a.index('=')])"
    )
    if python.exists():
        found = subprocess.run([str(python), "-c", check, *SEEDS], capture_output=True, check=False)
        if not found.returncode:
            return python
    print(f"installing {' '.join(SEEDS)} into {directory}", file=sys.stderr, flush=True)
    try:
        venv.create(directory, with_pip=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *SEEDS]
        subprocess.run(install, check=True, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise PeerError(f"pip install {' '.join(SEEDS)}: {said[-1]}") from error
    return python


@dataclass(frozen=True, slots=True)
class Peer:
    """A worker.  `name`: as in the tables; `kind`: of its stores."""

    name: str
    kind: str
    process: subprocess.Popen[str]
    log: Path

    def do(self, work: str, *sizes: Any) -> dict[str, Any]:
        """Raises PeerError when it fails, ends, or takes too long (then it is killed)."""
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.daemon = True
        timer.start()
        assert self.process.stdin is not None and self.process.stdout is not None
        line = ""
        try:
            self.process.stdin.write(json.dumps([work, *sizes]) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise PeerError(f"the process ended with {self.process.wait()} and said: {said[-1]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer


@contextmanager
def peer(python: Path, package: str, kind: str, name: str, place: Path, env: dict[str, str]) -> Iterator[Peer]:
    place.mkdir(parents=True)
    log = place.with_suffix(".log")
    command = [str(python), "-m", "tests.bench.api_worker", package, kind, str(place / "store")]
    (place / "store").mkdir()
    # What is set on this machine for either package is not for here.
    foreign = ("ARTIFACT_", "SESSION_", "ARTFS_", "AWS_", "S3_", "CHUK_", "VFS_", "SQLITE_", "REDIS_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    with log.open("wb") as out:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": out}
        process = subprocess.Popen(command, cwd=HERE, text=True, env={**kept, **env}, **pipes)  # type: ignore[call-overload]
    try:
        yield Peer(name, kind, process, log)
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            process.stdin.close()
            process.wait(60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


Work = tuple[set[str], str, list[Any], dict[str, str]]


def works(s: ApiSizes) -> list[Work]:
    """(rows and bars, work, its sizes, {peer: kind of its worker}); the subject is among the peers."""

    def beside(kind: str, *more: str) -> dict[str, str]:
        return {SUBJECT: kind, **{other: other for other in (kind, *more)}}

    disk, memory, alone = FILESYSTEM, MEMORY, {SUBJECT: "alone"}
    return [
        ({"api_new", "api_read"}, "files", ["api", s.files], beside(disk, SQLITE)),
        ({"api_namespace"}, "namespaces", [s.namespaces], beside(disk)),
        ({"api_batch"}, "batch", [s.batch], beside(disk)),
        ({"api_store", "api_retrieve"}, "artifacts", ["api", s.files], beside(disk)),
        ({"api_checkpoint", "api_restore"}, "tree", ["api", s.tree], beside(disk)),
        ({"api_large_write", "api_large_read"}, "large", [s.large, s.large_mib], beside(disk)),
        ({"api_memory_new"}, "files", ["api_memory", s.memory_files], beside(memory)),
        ({"api_memory_store"}, "artifacts", ["api_memory", s.memory_files], beside(memory)),
        ({"api_memory_checkpoint", "api_memory_restore"}, "tree", ["api_memory", s.tree], beside(memory)),
        ({"api_allocate", "api_validate"}, "sessions", ["api", s.sessions], beside(memory)),
        ({"api_redis_allocate", "api_redis_validate"}, "sessions", ["api_redis", s.redis_sessions], beside(REDIS)),
        ({f"api_batch_{n}" for n in ("create", "write", "read", "delete", "store")}, "batches", [s.batch], alone),
        ({"api_key", "api_session_key"}, "keys", [s.keys], alone),
        ({"api_stream_up", "api_stream_down", "api_up_rss", "api_down_rss"}, "stream", [s.stream_mib], alone),
    ]


MANY = ("api_list", "api_list_session", "api_search", "api_search_rare")


def measure(results: Results, wanted: set[str], environment: Path, scratch: Path, sizes: ApiSizes, rounds: int) -> None:
    """Adds samples of the wanted rows and bars; names as in `api_rows`.  Raises PeerError when nothing can begin."""
    todo = [work for work in works(sizes) if wanted & work[0]]
    place = scratch / "api"
    with ExitStack() as stack:
        redis: dict[str, str] = {}
        kinds = {pair for work in todo for pair in work[3].items()}
        if any(kind == REDIS for _, kind in kinds):
            redis = {"SESSION_PROVIDER": "redis", "SESSION_REDIS_URL": stack.enter_context(_redis(place / "redis"))}
        if wanted.intersection(MANY):
            kinds.add((SUBJECT, "alone"))
        theirs = python_of(environment) if any(name != SUBJECT for name, _ in kinds) else Path(sys.executable)
        peers = {}
        for name, kind in sorted(kinds):
            python, package = (Path(sys.executable), OURS) if name == SUBJECT else (theirs, THEIRS)
            at, env = place / f"{name}-{kind}", redis if kind == REDIS else {}
            peers[name, kind] = stack.enter_context(peer(python, package, kind, name, at, env))
        out: set[tuple[str, str, str]] = set()
        for number in range(rounds):
            for rows, work, given, who in todo:
                for name in turns(list(who), rounds)[number]:
                    key = (name, who[name], f"{work} {given}")
                    if key not in out:
                        print(f"round {number + 1}/{rounds}  api {work}  {name}", file=sys.stderr, flush=True)
                        if not _do(results, wanted & rows, peers[name, who[name]], work, given):
                            out.add(key)
        if wanted.intersection(MANY):
            print("api many  artfs", file=sys.stderr, flush=True)
            _do(results, wanted.intersection(MANY), peers[SUBJECT, "alone"], "many", [sizes.artifacts])


def _do(results: Results, wanted: set[str], peer: Peer, work: str, sizes: list[Any]) -> bool:
    try:
        answer = peer.do(work, *sizes)
    except PeerError as error:
        results.failures[f"{work} ({peer.kind}) @ {peer.name}"] = str(error)
        return False
    for key, seconds in answer["seconds"].items():
        row, _, other = key.partition("@")
        if row in wanted:
            results.add(other or peer.name, {row: seconds})
    for bar, values in answer["own"].items():
        for value in values if bar in wanted else ():
            results.add_own(bar, value)
    return True


@contextmanager
def _redis(place: Path) -> Iterator[str]:
    from tests.contract.redis_server import redis_server

    with redis_server(place) as server:
        yield server.url
