"""Streams of artifacts: whole or not at all, in constant memory, with progress."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import (
    AccessDeniedError,
    ArtifactNotFoundError,
    ArtifactStore,
    ArtifactStoreError,
    StorageScope,
    StreamDownloadRequest,
    StreamUploadRequest,
)
from artfs.store.operations.streams import AHEAD, GATHER
from tests.contract.api import everywhere, program
from tests.contract.loops import on_both_loops

PIECE = os.urandom(65536)
DATA = PIECE * 150


async def pieces(data: bytes = DATA, size: int = 65536, fail: int = -1) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        if at == fail:
            raise RuntimeError("the source failed")
        yield data[at : at + size]


def plain(data: bytes = DATA) -> Iterator[bytes]:
    yield data[:100]
    yield data[100:]


async def download(store: ArtifactStore, id: str, **arguments: Any) -> list[bytes]:
    request = StreamDownloadRequest(artifact_id=id, **arguments)
    return [chunk async for chunk in store.stream_download(request)]


@on_both_loops
@everywhere
async def test_there_and_back(store: ArtifactStore) -> None:
    for source, length in ((pieces(), len(DATA)), (pieces(), None), (plain(), len(DATA)), ([DATA], None)):
        said: list[tuple[int, int | None]] = []

        def tell(done: int, total: int | None, said: list[tuple[int, int | None]] = said) -> None:
            said.append((done, total))

        request = StreamUploadRequest(
            data_stream=source,
            mime="video/mp4",
            filename="a.mp4",
            user_id="alice",
            meta={"k": 1},
            content_length=length,
            progress_callback=tell,
        )
        made = await store.stream_upload(request)
        assert said[-1] == (len(DATA), len(DATA))
        assert [done for done, _ in said] == sorted(done for done, _ in said)
        assert {total for _, total in said[:-1]} <= {length}
        found = await store.metadata(made)
        assert (found.bytes, found.sha256, found.mime) == (len(DATA), hashlib.sha256(DATA).hexdigest(), "video/mp4")
        assert (found.ttl, found.meta, found.owner_id) == (900, {"k": 1}, "alice")
        assert b"".join(await download(store, made)) == DATA
    said = []

    async def told(done: int, total: int | None) -> None:
        await anyio.sleep(0)
        said.append((done, total))

    for size in (1000, 65536, 5 << 20, 32 << 20):
        said.clear()
        chunks = await download(store, made, chunk_size=size, progress_callback=told)
        assert b"".join(chunks) == DATA
        assert {len(chunk) for chunk in chunks[:-1]} <= {size}
        assert said[-1] == (len(DATA), len(DATA))


@on_both_loops
@everywhere
async def test_an_empty_stream(store: ArtifactStore) -> None:
    said: list[tuple[int, int | None]] = []
    made = await store.stream_upload(
        StreamUploadRequest(
            data_stream=pieces(b""), content_length=0, progress_callback=lambda *now: said.append(now), session_id="s"
        )
    )
    assert said == [(0, 0)]
    assert await store.retrieve(made) == b""
    assert await download(store, made) == []
    assert (await store.metadata(made)).mime == "application/octet-stream"


@on_both_loops
@everywhere
async def test_what_fails_leaves_nothing(store: ArtifactStore) -> None:
    for source, length, error in (
        (pieces(fail=0), None, "the source failed"),
        (pieces(fail=65536 * 100), None, "the source failed"),
        (pieces(), len(DATA) + 1, "content_length"),
        (pieces(), len(DATA) - 1, "content_length"),
        (pieces(b""), 5, "content_length"),
        (iter([b"x", "text"]), None, "pieces must be bytes"),
    ):
        with pytest.raises((RuntimeError, ArtifactStoreError), match=error):
            await store.stream_upload(
                StreamUploadRequest(data_stream=source, content_length=length, session_id="s", filename="a")
            )

    def refuse(done: int, total: int | None) -> None:
        raise LookupError("no more")

    with pytest.raises(LookupError):
        await store.stream_upload(StreamUploadRequest(data_stream=pieces(), session_id="s", progress_callback=refuse))
    with pytest.raises(ArtifactStoreError):
        await store.stream_upload(StreamUploadRequest(data_stream=pieces(), session_id="s", filename="../a"))
    assert await store.search() == []
    assert store.list_namespaces() == []
    assert (await store.get_stats()).total_bytes == 0


@on_both_loops
@everywhere
async def test_pieces_of_all_sizes(store: ArtifactStore) -> None:
    whole = bytes(range(256)) * (20 << 12)
    for sizes in ((1, GATHER - 1, 1, GATHER), (GATHER + 1, 7, 3 * GATHER), (10, 17 << 20, 0, 100), (AHEAD, AHEAD)):
        data, at = [], 0
        for size in sizes:
            data.append(whole[at : at + size])
            at += size
        made = await store.stream_upload(StreamUploadRequest(data_stream=data, session_id="s"))
        assert (await store.metadata(made)).sha256 == hashlib.sha256(b"".join(data)).hexdigest()
        assert await store.retrieve(made) == b"".join(data)


@on_both_loops
@everywhere
async def test_a_part_that_cannot_be_written_ends_the_stream(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others are on their way: none is written behind it."""
    call = store._call
    parts = 0

    async def failing(method: str, /, **arguments: Any) -> Any:
        nonlocal parts
        if method == "api_artifact_part":
            parts += 1
            if parts == 2:
                await anyio.sleep(0.05)
                raise ArtifactStoreError("no room")
        return await call(method, **arguments)

    monkeypatch.setattr(store, "_call", failing)
    with pytest.raises(ArtifactStoreError, match="no room"):
        await store.stream_upload(StreamUploadRequest(data_stream=[PIECE] * 500, session_id="s"))
    assert parts == 2
    assert store.list_namespaces() == []
    assert (await store.get_stats()).total_bytes == 0


@on_both_loops
@everywhere
async def test_a_cancelled_stream_leaves_nothing(store: ArtifactStore) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield PIECE
        await anyio.sleep_forever()

    with anyio.move_on_after(0.5):
        await store.stream_upload(StreamUploadRequest(data_stream=endless(), session_id="s"))
    assert await store.search() == []
    assert await store._call("api_artifact_stats") == {"total_artifacts": 0, "total_bytes": 0}
    made = await store.store(b"x", session_id="s")
    assert await store.retrieve(made) == b"x"


@on_both_loops
@everywhere
async def test_a_reader_sees_one_version(store: ArtifactStore) -> None:
    made = await store.stream_upload(StreamUploadRequest(data_stream=pieces(), session_id="s"))
    stream = store.stream_download(StreamDownloadRequest(artifact_id=made))
    first = await anext(stream)
    await store.update_file(made, b"new")
    await store.update_file(made, DATA[::-1])
    rest = [chunk async for chunk in stream]
    assert first + b"".join(rest) == DATA
    assert await store.retrieve(made) == DATA[::-1]
    left = store.stream_download(StreamDownloadRequest(artifact_id=made))
    assert await anext(left) == DATA[::-1][:65536]
    await left.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(left)
    async for _ in store.stream_download(StreamDownloadRequest(artifact_id=made)):
        break
    assert await store.delete(made)


@on_both_loops
@everywhere
async def test_streams_are_checked(store: ArtifactStore) -> None:
    made = await store.stream_upload(
        StreamUploadRequest(data_stream=pieces(b"mine"), user_id="alice", scope=StorageScope.USER, ttl=None)
    )
    assert await download(store, made, user_id="alice") == [b"mine"]
    with pytest.raises(AccessDeniedError):
        await download(store, made, user_id="bob")
    with pytest.raises(ArtifactNotFoundError):
        await download(store, "nosuch")
    bob = store.as_principal(user_id="bob")
    with pytest.raises(AccessDeniedError):
        await bob.stream_upload(StreamUploadRequest(data_stream=pieces(), user_id="alice", scope=StorageScope.USER))
    with pytest.raises(ValueError, match="user_id"):
        await store.stream_upload(StreamUploadRequest(data_stream=pieces(), scope=StorageScope.USER))


@on_both_loops
@everywhere
async def test_several_at_once(store: ArtifactStore) -> None:
    made: dict[int, str] = {}

    async def one(number: int) -> None:
        data = bytes([number]) * (GATHER + number)
        request = StreamUploadRequest(data_stream=pieces(data), session_id="s", content_length=len(data))
        made[number] = await store.stream_upload(request)
        assert b"".join(await download(store, made[number])) == data

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(one, number)
    assert len(set(made.values())) == 5


MEMORY = """
import sys, anyio, resource
from artfs import ArtifactStore, StreamUploadRequest, StreamDownloadRequest
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
async def pieces(count):
    for _ in range(count):
        yield bytes(1 << 20)
async def main():
    async with ArtifactStore(root=sys.argv[1]) as store:
        async def both(count):
            made = await store.stream_upload(StreamUploadRequest(data_stream=pieces(count), session_id="s"))
            size = 0
            async for chunk in store.stream_download(StreamDownloadRequest(artifact_id=made)):
                size += len(chunk)
            assert size == count << 20
        await both(32)
        before = peak()
        await both(400)
        print(round(peak() - before), flush=True)
anyio.run(main)
"""


@pytest.mark.slow
def test_memory_is_constant(tmp_path: Path) -> None:
    with program(MEMORY, tmp_path / "store") as running:
        assert int(running.line()) < 32
