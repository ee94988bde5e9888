"""Between the local directories and a provider: write-back, fetching, eviction, and what failures cost."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from shutil import copytree

import anyio
import pytest
import trio

from artfs.blocks import Chunk
from artfs.errors import DamagedError, FsError, NotFoundError, UnavailableError
from artfs.meta.sqlite import SqliteEngine
from artfs.objects import Capabilities, Home, Info, Provider
from artfs.objects.local import LocalObjects
from artfs.sessions.memory import MemorySessions
from artfs.settings import Settings
from artfs.store.running import running
from artfs.store.store import Store
from artfs.types import NamespaceType, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.journal import Journal
from artfs.volume.node import Node
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree
from artfs.volume.waiting import MustWait
from artfs.volume.waiting import run as waiting
from artfs.volume.warming import warm_up

MIB = 1 << 20
URL = "test:"


class FakeProvider:
    """In memory; `fail(name)` may raise, `spoil(name, data)` may change what is read; counts calls."""

    url = URL
    capabilities = Capabilities(adopts=False, durable=True)

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.gets: list[tuple[str, int, int]] = []
        self.active = self.most = 0
        self.fail: Callable[[str], None] = lambda name: None
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self.delay = 0.0

    async def check(self) -> None: ...

    async def put(self, name: str, source: Path | bytes) -> None:
        self.puts.append(name)
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            await trio.sleep(self.delay)
            self.fail(name)
            self.objects[name] = source if isinstance(source, bytes) else source.read_bytes()
        finally:
            self.active -= 1

    async def create(self, name: str, data: bytes) -> None:
        self.objects.setdefault(name, data)

    async def get(self, name: str, offset: int, length: int) -> bytes:
        self.gets.append((name, offset, length))
        await trio.sleep(self.delay)
        self.fail(name)
        if name not in self.objects:
            raise NotFoundError(name)
        data = self.objects[name][offset : offset + length]
        assert len(data) == length
        return self.spoil(data)

    async def head(self, name: str) -> Info:
        self.fail(name)
        if name not in self.objects:
            raise NotFoundError(name)
        return Info(len(self.objects[name]), "", 0)

    async def copy(self, source: str, target: str, etag: str | None = None) -> None:
        self.objects[target] = self.objects[source]

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self.fail(name)
            self.objects.pop(name, None)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        for name in sorted(self.objects):
            if name.startswith(prefix):
                yield name, len(self.objects[name])

    async def tidy(self, before: float) -> int:
        return 0

    async def close(self) -> None: ...


class OneProvider:
    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    def canonical(self, url: str) -> str:
        return url

    def get(self, home: Home) -> Provider:
        return self.provider

    def key_id(self) -> str:
        return ""

    async def close(self) -> None: ...


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


def settings(**changes: object) -> Settings:
    return Settings.model_validate(
        {
            "provider": URL,
            "cache_size": 64 * MIB,
            "cache_reserve": 0,
            "upload_delay": 3600.0,
            "wait_limit": 2.0,
            **changes,
        }
    )


@asynccontextmanager
async def opened(root: Path, provider: FakeProvider, **changes: object) -> AsyncIterator[Store]:
    root.mkdir(exist_ok=True)
    chosen = settings(**changes)
    shard = Shard(
        SqliteEngine(root / "meta.db"),
        Journal(root / "journal", chosen.journal_size),
        LocalObjects(root / "objects"),
        chosen,
        OneProvider(provider),
    )
    (root / "objects").mkdir(exist_ok=True)
    store = Store(root, shard, MemorySessions(), chosen)
    await shard.recover()
    shard.remote.load()
    async with running(store):
        yield store


async def make(
    store: Store, name: str = "web", type: NamespaceType = NamespaceType.WORKSPACE
) -> tuple[Namespace, Tree]:
    namespace = await store.create_namespace("box", Scope.SANDBOX, None, name, provider=URL, type=type)
    return namespace, store.volume(namespace).tree


async def write(tree: Tree, name: bytes, data: bytes) -> Node:
    node = await waiting(tree.create, tree.root(), name, 0o644, 0, 0)
    for at in range(0, len(data), MIB):
        await waiting(tree.write, node, at, data[at : at + MIB])
    return node


async def read(tree: Tree, name: bytes) -> bytes:
    node = await waiting(tree.lookup, tree.root(), name)
    assert node is not None
    return b"".join([await waiting(tree.read_bytes, node, at, MIB) for at in range(0, node.size, MIB)])


def random(size: int) -> bytes:
    return os.urandom(size)


def local_files(root: Path, top: str) -> list[str]:
    return sorted(str(path.relative_to(root / top)) for path in (root / top).rglob("*") if path.is_file())


async def test_what_is_synced_is_in_the_provider_and_only_a_copy_is_here(
    tmp_path: Path, provider: FakeProvider
) -> None:
    data = random(3 * MIB + 100_000)
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
        assert store.shard.remote.waiting().bytes == len(data)
        await store.sync(namespace)
        assert store.shard.remote.waiting().bytes == 0
        assert local_files(tmp_path / "s", "objects") == []
        assert local_files(tmp_path / "s", "cache") == sorted(provider.objects)
        assert await read(tree, b"a") == data
        assert provider.gets == []


async def test_what_was_evicted_is_fetched(tmp_path: Path, provider: FakeProvider) -> None:
    data = random(9 * MIB)
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
        await store.sync(namespace)
        assert await store.shard.remote.drop() >= len(data)
        assert local_files(tmp_path / "s", "cache") == []
        assert await read(tree, b"a") == data
        fetched = sum(length for _, _, length in provider.gets)
        assert len(data) <= fetched <= len(data) + MIB
        before = len(provider.gets)
        assert await read(tree, b"a") == data
        assert len(provider.gets) == before


async def test_a_hundred_readers_fetch_a_piece_once(tmp_path: Path, provider: FakeProvider) -> None:
    data = random(MIB)
    async with opened(tmp_path / "s", provider, read_ahead=0) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
        await store.sync(namespace)
        await store.shard.remote.drop()
        provider.delay = 0.05
        found: list[bytes] = []

        async def reader() -> None:
            found.append(await read(tree, b"a"))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(reader)
        assert found == [data] * 100
        assert len(provider.gets) == 1


async def test_those_who_wait_for_a_fetch_that_fails_fail_with_it(tmp_path: Path, provider: FakeProvider) -> None:
    def fail(name: str) -> None:
        raise UnavailableError("the provider is down")

    async with opened(tmp_path / "s", provider, read_ahead=0) as store:
        namespace, tree = await make(store)
        node = await write(tree, b"a", random(4 * MIB))
        await store.sync(namespace)
        await store.shard.remote.drop()
        await warm_up(store.volume(namespace))
        await store.shard.remote.drop()
        blocks = [source for index in range(4) for _, _, source, _ in tree.block(node, index)]
        chunks = [chunk for chunk in blocks if isinstance(chunk, Chunk)]
        assert len(chunks) >= 4
        provider.gets.clear()
        provider.delay, provider.fail = 0.1, fail
        failed = 0

        async def reader(chunk: Chunk) -> None:
            nonlocal failed
            with pytest.raises(UnavailableError, match="down"):
                await store.shard.remote.bring(chunk)
            failed += 1

        async with trio.open_nursery() as nursery:
            for chunk in chunks * 5:
                nursery.start_soon(reader, chunk)
        assert failed == 5 * len(chunks)
        assert len(provider.gets) == 1  # not one after the other, each as long as a time-out
        provider.fail = lambda name: None
        await warm_up(store.volume(namespace))


async def test_a_new_process_goes_on_with_what_waits(tmp_path: Path, provider: FakeProvider) -> None:
    data = random(MIB)
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
    assert provider.objects == {}
    async with opened(tmp_path / "s", provider, upload_delay=0) as store:
        assert store.shard.remote.waiting().bytes == len(data)
        with anyio.fail_after(5):
            while store.shard.remote.waiting().bytes:
                await anyio.sleep(0.01)
        assert list(provider.objects.values()) == [data]
        again = store.catalogue.get(namespace.id)
        assert await read(store.volume(again).tree, b"a") == data


async def test_what_a_replay_has_sealed_is_known_already(tmp_path: Path, provider: FakeProvider) -> None:
    """Its object still takes chunks, so that it is not one of those that an earlier process left."""
    first, second = random(20_000), random(30_000)
    async with opened(tmp_path / "s", provider, commit_interval=60) as store:
        namespace, tree = await make(store)
        await store.shard.commit()
        await write(tree, b"a", first)
        copytree(tmp_path / "s", tmp_path / "killed")
    async with opened(tmp_path / "killed", provider) as store:
        assert store.shard.remote.waiting().bytes == len(first)
        await anyio.sleep(0.1)
        assert provider.objects == {}
        tree = store.volume(store.catalogue.get(namespace.id)).tree
        await write(tree, b"b", second)
        await store.sync(namespace)
        assert store.shard.remote.waiting().bytes == 0
        assert list(provider.objects.values()) == [first + second]
        await store.shard.remote.drop()
        assert await read(tree, b"a") + await read(tree, b"b") == first + second


async def test_nothing_is_uploaded_before_a_replay_could_do_without_it(tmp_path: Path, provider: FakeProvider) -> None:
    async with opened(tmp_path / "s", provider, commit_interval=60) as store:
        _, tree = await make(store)
        await write(tree, b"a", random(MIB))
        local = store.shard.objects
        local.close_objects()
        assert local.ready() == {}
        await store.shard.commit()
        assert len(local.ready()) == 1


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed", "holes"])
async def test_a_damaged_copy_is_fetched_again(tmp_path: Path, provider: FakeProvider, damage: str) -> None:
    data = random(2 * MIB)
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
        await store.sync(namespace)
    [path] = [p for p in (tmp_path / "s" / "cache").rglob("*") if p.is_file()]
    if damage == "flipped":
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "truncated":
        os.truncate(path, MIB + 7)
    elif damage == "removed":
        path.unlink()
    else:
        os.truncate(path, 0)
        os.truncate(path, len(data))
    async with opened(tmp_path / "s", provider) as store:
        again = store.catalogue.get(namespace.id)
        assert await read(store.volume(again).tree, b"a") == data


async def test_a_sound_copy_of_an_earlier_process_is_not_fetched(tmp_path: Path, provider: FakeProvider) -> None:
    data = random(2 * MIB)
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
        await store.sync(namespace)
    async with opened(tmp_path / "s", provider) as store:
        assert await read(store.volume(store.catalogue.get(namespace.id)).tree, b"a") == data
    assert provider.gets == []


async def test_wrong_bytes_are_never_given_to_anybody(tmp_path: Path, provider: FakeProvider) -> None:
    data = random(MIB)
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
        await store.sync(namespace)
        await store.shard.remote.drop()
        spoilt = [2]

        def spoil(found: bytes) -> bytes:
            spoilt[0] -= 1
            return found[:-1] + bytes([found[-1] ^ 1]) if spoilt[0] >= 0 else found

        provider.spoil = spoil
        assert await read(tree, b"a") == data
        assert store.shard.remote.refetched == 2


@pytest.mark.logs_errors
async def test_wrong_bytes_in_the_provider_are_an_error_of_that_read_alone(
    tmp_path: Path, provider: FakeProvider
) -> None:
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", random(MIB))
        await store.sync(namespace)
        await store.shard.remote.drop()
        provider.spoil = lambda found: b"\0" * len(found)
        with pytest.raises(FsError, match="Input/output"):
            await read(tree, b"a")
        assert store.shard.failure is None
        provider.spoil = lambda found: found
        await write(tree, b"b", b"goes on")
        await read(tree, b"a")


async def test_a_provider_that_fails_is_asked_again_and_nothing_is_lost(tmp_path: Path, provider: FakeProvider) -> None:
    data = random(MIB)

    def down(name: str) -> None:
        raise UnavailableError("down")

    async with opened(tmp_path / "s", provider, upload_delay=0) as store:
        namespace, tree = await make(store)
        provider.fail = down
        await write(tree, b"a", data)
        with pytest.raises(UnavailableError, match="down"):
            await store.sync(namespace)
        waiting_now = store.shard.remote.waiting()
        assert waiting_now.bytes == len(data) and "down" in waiting_now.error and waiting_now.retry_at
        assert await read(tree, b"a") == data
        provider.fail = lambda name: None
        with anyio.fail_after(10):
            while store.shard.remote.waiting().bytes:
                await anyio.sleep(0.01)
        assert store.shard.remote.waiting().error == ""
        assert list(provider.objects.values()) == [data]


async def test_a_missing_bucket_loses_nothing(tmp_path: Path, provider: FakeProvider) -> None:
    def gone(name: str) -> None:
        raise NotFoundError("there is no bucket")

    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        provider.fail = gone
        data = random(MIB)
        await write(tree, b"a", data)
        with pytest.raises(NotFoundError):
            await store.sync(namespace)
        assert len(local_files(tmp_path / "s", "objects")) == 1
        assert await read(tree, b"a") == data


async def test_writers_wait_when_too_much_waits_and_then_get_an_error(tmp_path: Path, provider: FakeProvider) -> None:
    def down(name: str) -> None:
        raise UnavailableError("down")

    async with opened(tmp_path / "s", provider, upload_delay=0, wait_limit=1.5) as store:
        _, tree = await make(store)
        provider.fail = down
        with pytest.raises(FsError, match="Input/output"):
            for i in range(100):
                await write(tree, b"%d" % i, random(MIB))
                await anyio.sleep(0.01)
        assert 55 * MIB < store.shard.objects.waiting < 64 * MIB
        await waiting(tree.unlink, tree.root(), b"0")  # what frees is allowed
        provider.fail = lambda name: None
        with anyio.fail_after(20):
            while True:
                try:
                    await write(tree, b"again", b"x")
                    break
                except FsError:
                    await anyio.sleep(0.05)


async def test_copies_stay_below_the_limit_and_what_waits_is_never_evicted(
    tmp_path: Path, provider: FakeProvider
) -> None:
    files = {b"%d" % i: random(3 * MIB) for i in range(30)}
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        for name, data in files.items():
            await write(tree, name, data)
            await store.sync(namespace)
        await write(tree, b"waits", b"w" * MIB)
        for _ in range(2):
            for name, data in files.items():
                assert await read(tree, name) == data
                used = sum(p.stat().st_blocks * 512 for p in (tmp_path / "s" / "cache").rglob("*") if p.is_file())
                assert used <= 64 * MIB
        assert await read(tree, b"waits") == b"w" * MIB
        assert store.shard.remote.evicted > 10


async def test_uploads_run_at_once_within_their_bound(tmp_path: Path, provider: FakeProvider) -> None:
    provider.delay = 0.05
    async with opened(tmp_path / "s", provider, uploads=3) as store:
        for i in range(9):
            _, tree = await make(store, f"n{i}")
            await write(tree, b"a", random(MIB))
        await store.sync()
        assert provider.most == 3


async def test_a_sync_waits_for_nothing_but_the_uploads(
    tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No look at the uploads is waited for that time brings."""
    monkeypatch.setattr("artfs.objects.uploads.LOOK", 60.0)
    monkeypatch.setattr("artfs.objects.uploads.TICK", 60.0)
    async with opened(tmp_path / "s", provider, uploads=1) as store:
        for i in range(5):
            _, tree = await make(store, f"n{i}")
            await write(tree, b"a", random(MIB))
        with trio.fail_after(30):
            await store.sync()
        assert len(provider.objects) == 5


async def test_a_full_object_is_uploaded_at_once(
    tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the writer goes on: neither a commit nor a look at what is ready is waited for that time brings."""
    monkeypatch.setattr("artfs.objects.uploads.TICK", 60.0)
    monkeypatch.setattr("artfs.objects.local.OBJECT_LIMIT", 4 * MIB)
    async with opened(tmp_path / "s", provider, commit_interval=60.0) as store:
        _, tree = await make(store)
        await write(tree, b"a", random(9 * MIB))
        with trio.fail_after(20):
            while len(provider.objects) < 2:
                await trio.sleep(0.01)
        assert {len(data) for data in provider.objects.values()} == {4 * MIB}


async def test_a_destroyed_namespace_leaves_nothing(tmp_path: Path, provider: FakeProvider) -> None:
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", random(MIB))
        await store.sync(namespace)
        await write(tree, b"b", random(MIB))
        await store.destroy_namespace(namespace)
        with anyio.fail_after(5):
            while provider.objects:
                await anyio.sleep(0.01)
        assert local_files(tmp_path / "s", "objects") == local_files(tmp_path / "s", "cache") == []
        assert store.shard.remote.waiting().bytes == 0


async def test_a_clone_reads_what_its_source_uploaded(tmp_path: Path, provider: FakeProvider) -> None:
    data = random(MIB)
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
        copy = await store.clone(store.volume(namespace), "copy")
        await store.destroy_namespace(namespace)
        await store.sync(copy)
        await store.shard.remote.drop()
        assert await read(store.volume(copy).tree, b"a") == data


async def test_a_sequential_reader_finds_what_comes_next(tmp_path: Path, provider: FakeProvider) -> None:
    data = random(40 * MIB)
    async with opened(tmp_path / "s", provider, read_ahead=16 * MIB, piece_size=MIB, cache_size=1 << 30) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
        await store.sync(namespace)
        await store.shard.remote.drop()
        node = await waiting(tree.lookup, tree.root(), b"a")
        assert node is not None
        for at in range(0, 10 * MIB, MIB):
            await waiting(tree.read_bytes, node, at, MIB)
            await anyio.sleep(0.02)
        fetched = sorted((offset, offset + length) for _, offset, length in provider.gets)
        assert all(end <= start for (_, end), (start, _) in pairwise(fetched)), "nothing is fetched twice"
        assert sum(end - start for start, end in fetched) >= 18 * MIB
        assert max(end - start for start, end in fetched) > 4 * MIB, "pieces are fetched together"
        before = len(provider.gets)
        with anyio.fail_after(10):
            for at in range(10 * MIB, 18 * MIB, MIB):
                while not _is_here(tree, node, at):  # nobody fetches what is asked for here: it comes by itself
                    await anyio.sleep(0.01)
        assert len(provider.gets) >= before


def _is_here(tree: Tree, node: Node, at: int) -> bool:
    try:
        tree.read_bytes(node, at, MIB)
    except MustWait:
        return False
    return True


async def test_chunks_that_reach_over_pieces_are_fetched_once(tmp_path: Path, provider: FakeProvider) -> None:
    """Also where one of the pieces is here already."""
    data = random(6 * MIB)
    async with opened(tmp_path / "s", provider, read_ahead=4 * MIB, piece_size=MIB, cache_size=1 << 30) as store:
        namespace, tree = await make(store)
        await write(tree, b"first", random(100_000))
        await write(tree, b"a", data)
        await store.sync(namespace)
        await store.shard.remote.drop()
        assert await read(tree, b"a") == data
        fetched = sorted((name, offset, offset + length) for name, offset, length in provider.gets)
        assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(fetched)), "nothing is fetched twice"
        assert store.shard.remote.statistics().refetched == 0


async def test_a_reader_that_gives_up_leaves_the_others_what_it_fetched(tmp_path: Path, provider: FakeProvider) -> None:
    data = random(3 * MIB)
    async with opened(tmp_path / "s", provider, read_ahead=0) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
        await store.sync(namespace)
        await store.shard.remote.drop()
        node = await waiting(tree.lookup, tree.root(), b"a")
        assert node is not None
        provider.delay = 0.2
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.05):
                nursery.start_soon(read, tree, b"a")
                await waiting(tree.read_bytes, node, 0, MIB)
        assert await read(tree, b"a") == data
        assert store.shard.remote.statistics().refetched == 0


async def test_a_chunk_that_no_provider_has_is_an_error(tmp_path: Path, provider: FakeProvider) -> None:
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", random(MIB))
        await store.sync(namespace)
        await store.shard.remote.drop()
        provider.objects.clear()
        chunk = next(source for _, _, source, _ in tree.block(tree.node(2), 0) if isinstance(source, Chunk))
        with pytest.raises((NotFoundError, DamagedError)):
            await store.shard.remote.read(chunk)


async def test_a_number_is_never_used_again_though_no_file_is_left(tmp_path: Path, provider: FakeProvider) -> None:
    """The row of counters is written before sealing makes its object: nothing but a copy knew of it."""
    data = random(20_000)
    async with opened(tmp_path / "s", provider) as store:
        namespace, tree = await make(store)
        await write(tree, b"a", data)
        await store.sync(namespace)
        await store.shard.remote.drop()
    async with opened(tmp_path / "s", provider) as store:
        tree = store.volume(store.catalogue.get(namespace.id)).tree
        await write(tree, b"b", random(20_000))
        await store.sync(namespace)
        await store.shard.remote.drop()
        assert len(provider.objects) == 2
        assert await read(tree, b"a") == data


async def test_the_limit_holds_when_it_was_reached_while_changes_were_held_up(
    tmp_path: Path, provider: FakeProvider
) -> None:
    """A restore and the like commit first, which may be what fills the cache."""
    async with opened(tmp_path / "s", provider, wait_limit=0.3) as store:
        namespace, tree = await make(store)

        def fail(name: str) -> None:
            raise UnavailableError("the provider is down")

        provider.fail = fail
        node = await write(tree, b"f", random(60 * MIB))
        for number in range(40):
            await waiting(tree.write, node, 60 * MIB + number * 60_000, random(50_000))
        assert not store.shard.crowded
        async with store.volume(namespace).exclusive():
            pass
        assert store.shard.crowded
        with pytest.raises(FsError):
            await write(tree, b"g", random(MIB))
