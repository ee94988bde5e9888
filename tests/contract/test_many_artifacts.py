"""Tens of thousands of artifacts: in memory without a descriptor for each, and gone soon after they have expired."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import anyio
import pytest

from artfs import ArtifactExpiredError, ArtifactStore
from artfs.store.reaper import REAPED_AT_ONCE
from artfs.store.store import Store
from tests.contract.api import program
from tests.contract.loops import on_both_loops

FILES = 128
MANY = """
import os, resource, sys, anyio
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from artfs import ArtifactStore
from artfs.loop import LOOP
async def main():
    size, count = int(sys.argv[1]), int(sys.argv[2])
    async with ArtifactStore(storage_provider="memory") as store:
        before = len(os.listdir("/proc/self/fd"))
        made = {}
        for number in range(count):
            data = number.to_bytes(4, "big") * (size // 4)
            made[await store.store(data, mime="a/b", summary="s", scope="sandbox")] = data
        opened = store._handle._opened.service
        await LOOP.call(opened.store.shard.commit)
        assert opened.store.shard.trouble is None
        for id in list(made)[:: max(count // 500, 1)]:
            assert await store.retrieve(id) == made[id]
        assert len(os.listdir("/proc/self/fd")) <= before + 20, os.listdir("/proc/self/fd")
        print("done", flush=True)
anyio.run(main)
"""


@pytest.mark.parametrize(("size", "count"), [(10 << 10, 20_000), (100 << 10, 500), (2 << 20, 200)])
def test_memory_takes_no_descriptors(size: int, count: int) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > FILES
    with program(MANY, size, count) as running:
        assert running.line() == "done"


@pytest.mark.parametrize("where", ["memory", "root"])
@on_both_loops
async def test_what_expires_together_is_deleted_together(where: str, tmp_path: Path) -> None:
    """In few transactions, with calls in between that do not wait for all of them."""
    count = 3000
    async with ArtifactStore(root=tmp_path / "store" if where == "root" else None) as store:
        opened = store._handle._opened
        assert opened is not None and opened.service is not None
        inner: Store = opened.service.store
        session = await store.create_session()
        kept = await store.store(b"kept", mime="a/b", summary="s", session_id=session, ttl=None)
        items = [{"data": b"%d" % number, "mime": "a/b", "summary": "s"} for number in range(count)]
        ids = [id for id in await store.store_batch(items, session_id=session, ttl=2) if id is not None]
        large = await store.store(os.urandom(100_000), mime="a/b", summary="s", session_id=session, ttl=2)
        assert len(ids) == count
        destroyed: list[int] = []
        destroy = inner.shard.engine.destroy

        def counted(serials: list[int], records: object) -> None:
            destroyed.append(len(serials))
            destroy(serials, records)  # type: ignore[arg-type]

        inner.shard.engine.destroy = counted  # type: ignore[method-assign, assignment]
        worst = 0.0
        with anyio.fail_after(30):
            while inner.catalogue.doomed or left(inner, store.sandbox_id) > 1:
                begun = time.monotonic()
                assert await store.retrieve(kept) == b"kept"
                worst = max(worst, time.monotonic() - begun)
                await anyio.sleep(0.005)
        inner.shard.engine.destroy = destroy  # type: ignore[method-assign]
        assert sum(destroyed) == count + 1
        assert max(destroyed) <= REAPED_AT_ONCE and len(destroyed) < 2 * count / REAPED_AT_ONCE + 5
        assert worst < 1
        for id in (ids[0], ids[-1], large):
            with pytest.raises(ArtifactExpiredError):
                await store.retrieve(id)
        if where == "root":
            objects = [path for path in (tmp_path / "store" / "objects").rglob("*") if path.is_file()]
            assert objects == []


def left(store: Store, sandbox: str) -> int:
    """All stores in memory are one: others' things are not counted."""
    return sum(namespace.sandbox == sandbox for namespace in store.catalogue.by_serial.values())
