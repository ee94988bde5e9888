"""Fetching from a provider that gives bytes as they come: who need not wait, and what remains of a stream that ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from artfs.blocks import Chunk
from artfs.errors import NoSpaceError, UnavailableError
from artfs.objects import Capabilities, Sink, incoming
from artfs.store.store import Store
from artfs.volume.node import Node
from artfs.volume.tree import Tree
from tests.contract.test_remote import MIB, FakeProvider, make, opened, random, read, write

STEP = 256 << 10


async def at_once(at: int) -> None: ...


class Streaming(FakeProvider):
    """`before(at)` is awaited before each step, and may raise."""

    capabilities = Capabilities(adopts=False, durable=True, streams=True)

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[int], Awaitable[None]] = at_once

    async def receive(self, name: str, offset: int, length: int, sink: Sink) -> None:
        self.gets.append((name, offset, length))
        for at in range(0, length, STEP):
            await self.before(at)
            data = self.objects[name][offset + at : offset + min(at + STEP, length)]
            await trio.to_thread.run_sync(sink, at, self.spoil(data))


@pytest.fixture
def provider() -> Streaming:
    return Streaming()


async def cold(store: Store, data: bytes) -> tuple[Tree, Node, list[Chunk]]:
    """A file that nothing is here of, and its chunks."""
    namespace, tree = await make(store)
    node = await write(tree, b"a", data)
    await store.sync(namespace)
    await store.shard.remote.drop()
    blocks = [source for index in range(len(data) // MIB) for _, _, source, _ in tree.block(node, index)]
    chunks = [source for source in blocks if isinstance(source, Chunk)]
    await store.shard.remote._size_of(chunks[0].object)
    return tree, node, chunks


async def test_who_waits_for_a_chunk_does_not_wait_for_the_run(tmp_path: Path, provider: Streaming) -> None:
    data = random(4 * MIB)
    async with opened(tmp_path / "s", provider, read_ahead=0) as store:
        tree, node, chunks = await cold(store, data)
        go_on = trio.Event()

        async def before(at: int) -> None:
            if at >= 2 * MIB:
                await go_on.wait()

        provider.before = before
        remote = store.shard.remote
        remote.ahead(chunks)
        with trio.fail_after(10):
            while not provider.gets:  # who begins a fetch waits for all of it
                await trio.sleep(0)
            await remote.bring_all(chunks[:2])
        assert tree.read_bytes(node, 0, 2 * MIB) == data[: 2 * MIB]
        with trio.move_on_after(0.1) as scope:
            await remote.bring(chunks[2])
        assert scope.cancelled_caught
        go_on.set()
        assert await read(tree, b"a") == data
        assert len(provider.gets) == 1


async def test_what_came_of_a_stream_that_broke_is_kept(tmp_path: Path, provider: Streaming) -> None:
    data = random(4 * MIB)
    async with opened(tmp_path / "s", provider, read_ahead=0, piece_size=MIB) as store:
        tree, _, chunks = await cold(store, data)
        broken: list[int] = []

        async def before(at: int) -> None:
            if at == 2 * MIB + STEP and not broken:
                broken.append(at)
                raise UnavailableError("the connection broke")

        provider.before = before
        remote = store.shard.remote
        remote.ahead(chunks)
        with trio.fail_after(10):
            while not broken or remote._flights:
                await trio.sleep(0.01)
        assert [chunk.verified == remote.local.copies.get(chunk.object, 1) for chunk in chunks] == [True] * 2 + [
            False
        ] * 2
        assert await read(tree, b"a") == data
        assert sorted((offset, length) for _, offset, length in provider.gets[1:]) == [(2 * MIB, MIB), (3 * MIB, MIB)]


async def test_wrong_bytes_of_a_stream_are_fetched_again(tmp_path: Path, provider: Streaming) -> None:
    data = random(2 * MIB)
    async with opened(tmp_path / "s", provider) as store:
        tree, _, _ = await cold(store, data)
        spoilt = []

        def spoil(found: bytes) -> bytes:
            spoilt.append(found)
            return bytes(len(found)) if len(spoilt) == 2 else found

        provider.spoil = spoil
        assert await read(tree, b"a") == data
        assert store.shard.remote.refetched == 1


@pytest.mark.parametrize("often", [1, 1000])
async def test_a_full_disk(tmp_path: Path, provider: Streaming, monkeypatch: pytest.MonkeyPatch, often: int) -> None:
    """Copies are evicted and it is tried again; what cannot be written is an error, and nothing wrong is read."""
    data = random(4 * MIB)
    left = often

    def write_here(fd: int, data: bytes | memoryview, at: int, piece: int) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        incoming.write(fd, data, at, piece)

    async with opened(tmp_path / "s", provider, read_ahead=0) as store:
        tree, _, chunks = await cold(store, data)
        store.shard.remote.write = write_here
        if often > 1:
            with pytest.raises(NoSpaceError, match="no room to cache"):
                await store.shard.remote.bring(chunks[0])
            left = 0
        assert await read(tree, b"a") == data


async def test_a_reader_that_gives_up_ends_its_stream(tmp_path: Path, provider: Streaming) -> None:
    data = random(4 * MIB)
    async with opened(tmp_path / "s", provider, read_ahead=0) as store:
        tree, _, chunks = await cold(store, data)

        async def before(at: int) -> None:
            if at >= MIB + STEP:
                await trio.sleep_forever()

        provider.before = before
        with trio.move_on_after(0.5) as scope:
            await store.shard.remote.bring(chunks[3])
        assert scope.cancelled_caught and not store.shard.remote._flights
        provider.before = at_once
        assert await read(tree, b"a") == data
