"""What the rows of the Python API measure of artfs alone, in a worker of kind `alone`; `plain` and `bare` are its own
peers."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.api_rows import BARE, PLAIN

if TYPE_CHECKING:
    from tests.bench.api_worker import Laps, Worker

PAYLOAD = os.urandom(1024)
MIB = 1 << 20
CHUNK = 65_536
REPEATS = 20
FEW, SOME = 20, 100


class Alone:
    WORKS = ("batches", "keys", "many", "stream")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.store: Any = worker.store

    async def batches(self, laps: Laps, files: int) -> None:
        """Each call for many, beside as many calls for one."""
        vfs = self.store.get_namespace_vfs(await self.worker.namespace())
        for i in range(4):
            await vfs.mkdir(f"/d{i}")
        singly, written, created, rewritten = ([f"/d{d}/f{i}" for i in range(files)] for d in range(4))
        with laps("api_batch_create", PLAIN):
            for path in singly:
                await vfs.write_file(path, PAYLOAD)
        with laps("api_batch_create"):
            self._all(await vfs.batch_create_files([{"path": path, "content": PAYLOAD} for path in created]))
        with laps("api_batch_write", PLAIN):
            for path in rewritten:
                await vfs.write_file(path, PAYLOAD)
        with laps("api_batch_write"):
            self._all(await vfs.batch_write_files(dict.fromkeys(written, PAYLOAD)))
        with laps("api_batch_read", PLAIN):
            one_by_one = {path: await vfs.read_file(path) for path in created}
        with laps("api_batch_read"):
            together = await vfs.batch_read_files(created)
        if one_by_one != together or set(together.values()) != {PAYLOAD}:
            raise ValueError("files do not hold what was written")
        with laps("api_batch_delete", PLAIN):
            for path in singly:
                await vfs.rm(path)
        with laps("api_batch_delete"):
            self._all(await vfs.batch_delete_paths(written))
        session = f"batches{next(self.worker.numbers)}"
        with laps("api_batch_store", PLAIN):
            for _ in range(files):
                await self.store.store(PAYLOAD, mime="text/plain", summary="one", session_id=session)
        with laps("api_batch_store"):
            items = [{"data": PAYLOAD, "mime": "text/plain", "summary": "one"} for _ in range(files)]
            if None in await self.store.store_batch(items, session_id=session):
                raise ValueError("store_batch failed")

    def _all(self, results: list[Any]) -> None:
        if bad := [result for result in results if not result.success]:
            raise ValueError(f"a batch call failed: {bad[0]}")

    async def keys(self, laps: Laps, files: int) -> None:
        manager = self.worker.sessions_api.SessionManager(sandbox_id="bench")
        session = await manager.allocate_session(user_id="alice")
        await self.store.list_by_session(session)
        sandbox, names = manager.sandbox_id, [f"artifact{i}" for i in range(files)]
        for row, function in (
            ("api_key", self.store.generate_artifact_key),
            ("api_session_key", manager.generate_artifact_key),
        ):
            with laps(row, PLAIN):
                for name in names:
                    f"grid/{sandbox}/{session}/{name}"
            with laps(row):
                for name in names:
                    function(session, name)

    async def many(self, laps: Laps, files: int) -> None:
        """Listings and searches among that many artifacts, in one session; twenty more are in another."""
        store, session = self.store, f"many{next(self.worker.numbers)}"
        groups = max(1, files // SOME)
        for first in range(0, files, 1000):
            numbers = range(first, min(first + 1000, files))
            items = [
                {
                    "data": b"x",
                    "mime": "text/plain",
                    "summary": "one of many",
                    "filename": f"docs/{i}.txt",
                    "meta": {"group": f"{session}-{i % groups}", "number": i},
                }
                for i in numbers
            ]
            if None in await store.store_batch(items, session_id=session, ttl=None):
                raise ValueError("store_batch failed")
        small = f"{session}-few"
        few = [{"data": b"x", "mime": "text/plain", "summary": "one of few"} for _ in range(FEW)]
        await store.store_batch(few, session_id=small)
        for turn in range(REPEATS):
            group, number = f"{session}-{turn % groups}", files // REPEATS * turn
            await self._timed(laps, "api_list", FEW, store.list_files(session, limit=FEW))
            await self._timed(laps, "api_list_session", FEW, store.list_by_session(small))
            expected = len(range(turn % groups, files, groups))
            call = store.search(session_id=session, scope="session", meta_filter={"group": group})
            await self._timed(laps, "api_search", expected, call)
            call = store.search(session_id=session, scope="session", meta_filter={"number": number})
            await self._timed(laps, "api_search_rare", 1, call)

    async def _timed(self, laps: Laps, bar: str, expected: int, call: Awaitable[Any]) -> None:
        start = time.perf_counter()
        got = await call
        laps.own.setdefault(bar, []).append((time.perf_counter() - start) * 1e3)
        if len(got) != expected:
            raise ValueError(f"{bar}: {len(got)} artifacts instead of {expected}")

    async def stream(self, laps: Laps, mib: int) -> None:
        source, target = self.worker.place.parent / "source", self.worker.place.parent / "target"
        block = os.urandom(MIB)
        with source.open("wb") as file:
            for i in range(mib):
                file.write(i.to_bytes(8, "little") + block[8:])
        try:
            await self._stream(laps, source, target)
        finally:
            source.unlink()
            target.unlink(missing_ok=True)

    async def _stream(self, laps: Laps, source: Path, target: Path) -> None:
        api, size = self.worker.api, source.stat().st_size

        async def chunks(path: Path) -> AsyncIterator[bytes]:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    yield chunk

        def request(path: Path, length: int) -> Any:
            return api.StreamUploadRequest(
                data_stream=chunks(path),
                mime="video/mp4",
                summary="streamed",
                filename="large.mp4",
                session_id="streams",
                content_length=length,
            )

        small = source.with_name("small")
        small.write_bytes(bytes(4 * CHUNK))
        await self.store.delete(await self.store.stream_upload(request(small, 4 * CHUNK)))
        small.unlink()
        # Each is measured behind its peers: what they let go of is memory that all find alike.
        with laps("api_stream_up", PLAIN):
            shutil.copyfile(source, target)
        target.unlink()
        with laps("api_stream_up", BARE):
            _copy_and_hash(source, target)
        target.unlink()
        before = _peak(fresh=True)
        with laps("api_stream_up"):
            artifact = await self.store.stream_upload(request(source, size))
        laps.own["api_up_rss"] = [_peak() - before]
        with laps("api_stream_down", PLAIN):
            shutil.copyfile(source, target)
        target.unlink()
        before = _peak(fresh=True)
        with laps("api_stream_down"), target.open("wb", buffering=0) as file:
            async for chunk in self.store.stream_download(api.StreamDownloadRequest(artifact_id=artifact)):
                file.write(chunk)
        laps.own["api_down_rss"] = [_peak() - before]
        await self.store.delete(artifact)
        if target.stat().st_size != size or not _same(source, target):
            raise ValueError("what was streamed down is not what was streamed up")


def _copy_and_hash(source: Path, target: Path) -> str:
    """What an upload has to do: 64 KiB are read at a time; one thread hashes, another one writes."""
    digest, jobs = sha256(), deque[Future[object]]()
    with (
        source.open("rb", buffering=0) as file,
        target.open("wb", buffering=0) as out,
        ThreadPoolExecutor(1) as hashing,
        ThreadPoolExecutor(1) as writing,
    ):

        def write(chunks: list[bytes]) -> None:
            for chunk in chunks:
                out.write(chunk)

        while chunks := [chunk for _ in range(2 * MIB // CHUNK) if (chunk := file.read(CHUNK))]:
            jobs += hashing.submit(digest.update, b"".join(chunks)), writing.submit(write, chunks)
            while len(jobs) > 4:
                jobs.popleft().result()
        for job in jobs:
            job.result()
    return digest.hexdigest()


def _same(a: Path, b: Path) -> bool:
    with a.open("rb") as first, b.open("rb") as second:
        while block := first.read(MIB):
            if block != second.read(MIB):
                return False
    return True


def _peak(fresh: bool = False) -> float:
    """The most that this process had in memory, MiB; `fresh`: counted from now on."""
    if fresh:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
