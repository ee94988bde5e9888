"""A process that does one peer's share of the rows of the Python API.

`python -m tests.bench.api_worker PACKAGE KIND DIR`.  PACKAGE: `artfs` or `chuk_artifacts`; KIND: `filesystem` (an
embedded store in DIR), `sqlite`, `memory`, `redis` (from SESSION_REDIS_URL) or `alone` (an embedded store, for `artfs`
alone).  Each line of stdin is a JSON list of a work's name and its sizes; for each comes a line on stdout:
`{"seconds": {row: …}, "own": {bar: [value, …]}}` or `{"error": …}`.

The packages have one API, so the code that is measured is the same for both.  It runs in an interpreter that may have
nothing but its package: this module imports that and the standard library.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, TextIO

PAYLOAD = os.urandom(1024)
MIB = 1 << 20
OURS = "artfs"
LONG = 24 * 3600


class Laps:
    """Collects the seconds of named rows, and values of named bars."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.own: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, row: str, peer: str = "") -> Any:
        """`peer`: another one than this process."""
        gc.collect()
        os.sync()
        start = time.perf_counter()
        yield
        self.seconds[f"{row}@{peer}" if peer else row] = time.perf_counter() - start


class Worker:
    def __init__(self, package: str, kind: str, place: Path) -> None:
        self.ours = package == OURS
        self.kind = kind
        self.place = place
        self.api = import_module(package)
        self.sessions_api = import_module("artfs.sessions" if self.ours else "chuk_sessions")
        self.numbers = count()
        self.trees: dict[int, Any] = {}

    @cached_property
    def store(self) -> Any:
        if self.ours:
            return self.api.ArtifactStore() if self.kind == "memory" else self.api.ArtifactStore(root=self.place)
        os.environ["ARTIFACT_FS_ROOT"] = str(self.place / "artifacts")
        os.environ["ARTIFACT_SQLITE_PATH"] = str(self.place / "artifacts.db")
        return self.api.ArtifactStore(storage_provider=f"vfs-{self.kind}")

    async def namespace(self, kind: str = "WORKSPACE") -> str:
        """A new one of this process's kind; its id."""
        where: dict[str, Any] = {}
        if not self.ours:
            at = self.place / f"n{next(self.numbers)}"
            config = {"filesystem": {"root_path": str(at)}, "sqlite": {"db_path": f"{at}.db"}, "memory": {}}
            where = {"provider_type": f"vfs-{self.kind}", "provider_config": config[self.kind]}
        type_ = getattr(self.api.NamespaceType, kind)
        made = await self.store.create_namespace(type=type_, scope=self.api.StorageScope.SESSION, **where)
        return str(made.namespace_id)

    # the works
    async def files(self, laps: Laps, row: str, files: int) -> None:
        """New files in one directory, then each is read."""
        store, space = self.store, await self.namespace()
        paths = [f"/file{i}" for i in range(files)]
        with laps(f"{row}_new"):
            for path in paths:
                await store.write_namespace(space, path=path, data=PAYLOAD)
        with laps(f"{row}_read"):
            for path in paths:
                if await store.read_namespace(space, path=path) != PAYLOAD:
                    raise ValueError(f"{path} does not hold what was written")

    async def namespaces(self, laps: Laps, files: int) -> None:
        with laps("api_namespace"):
            for _ in range(files):
                await self.namespace("BLOB")

    async def batch(self, laps: Laps, files: int) -> None:
        items = [{"data": PAYLOAD, "mime": "text/plain", "summary": "one of many"} for _ in range(files)]
        session = f"batch{next(self.numbers)}"
        with laps("api_batch"):
            found = await self.store.store_batch(items, session_id=session)
        if len(set(found)) != files or None in found:
            raise ValueError("store_batch failed")

    async def artifacts(self, laps: Laps, row: str, files: int) -> None:
        store, session = self.store, f"artifacts{next(self.numbers)}"
        found = []
        with laps(f"{row}_store"):
            for _ in range(files):
                found.append(await store.store(PAYLOAD, mime="text/plain", summary="one", session_id=session))
        with laps(f"{row}_retrieve"):
            for artifact in found:
                if await store.retrieve(artifact) != PAYLOAD:
                    raise ValueError(f"{artifact} does not hold what was stored")

    async def tree(self, laps: Laps, row: str, files: int) -> None:
        """A checkpoint of a tree, and the way back to it after one change."""
        store = self.store
        if files not in self.trees:
            space = self.trees[files] = await self.namespace()
            vfs = store.get_namespace_vfs(space)
            for i in range(0, files, 100):
                await vfs.mkdir(f"/d{i // 100}")
            for i in range(files):
                await vfs.write_file(f"/d{i // 100}/f{i}", PAYLOAD)
        space = self.trees[files]
        with laps(f"{row}_checkpoint"):
            made = await store.checkpoint_namespace(space, name=f"c{next(self.numbers)}")
        await store.write_namespace(space, path="/d0/f7", data=b"changed")
        with laps(f"{row}_restore"):
            await store.restore_namespace(space, made.checkpoint_id)
        if await store.read_namespace(space, path="/d0/f7") != PAYLOAD:
            raise ValueError("a restored tree does not hold what was checkpointed")

    async def large(self, laps: Laps, files: int, mib: int) -> None:
        store, space = self.store, await self.namespace()
        data = os.urandom(mib * MIB)
        with laps("api_large_write"):
            for i in range(files):
                await store.write_namespace(space, path=f"/large{i}", data=data)
        with laps("api_large_read"):
            for i in range(files):
                if len(await store.read_namespace(space, path=f"/large{i}")) != len(data):
                    raise ValueError(f"/large{i} does not hold what was written")
        if await store.read_namespace(space, path="/large0") != data:
            raise ValueError("/large0 does not hold what was written")
        vfs = store.get_namespace_vfs(space)
        for i in range(files):
            await vfs.rm(f"/large{i}")

    async def sessions(self, laps: Laps, row: str, files: int) -> None:
        manager = self.sessions_api.SessionManager(sandbox_id=f"bench{next(self.numbers)}")
        await manager.allocate_session(user_id="alice")  # a library may be loaded, and connect
        found = []
        with laps(f"{row}_allocate"):
            for _ in range(files):
                found.append(await manager.allocate_session(user_id="alice"))
        with laps(f"{row}_validate"):
            for session in found:
                if not await manager.validate_session(session):
                    raise ValueError(f"{session} is not valid")


async def serve(worker: Worker, answers: TextIO) -> None:
    works: dict[str, Callable[..., Awaitable[None]]] = {}
    if worker.kind == "alone":
        from tests.bench.api_alone import Alone

        alone = Alone(worker)
        works = {name: getattr(alone, name) for name in alone.WORKS}
    for line in sys.stdin:
        name, *sizes = json.loads(line)
        laps = Laps()
        try:
            await (works[name] if works else getattr(worker, name))(laps, *sizes)
        except Exception as error:
            answer: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"}
        else:
            answer = {"seconds": laps.seconds, "own": laps.own}
        print(json.dumps(answer), file=answers, flush=True)
    if "store" in vars(worker):
        await worker.store.close()


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # what a package prints is not an answer
    asyncio.run(serve(Worker(sys.argv[1], sys.argv[2], Path(sys.argv[3])), answers))
