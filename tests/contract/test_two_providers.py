"""A store whose namespaces live with two providers, one of which fails: the other's go on, and a recovery is right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from artfs.errors import NotFoundError, UnavailableError
from artfs.objects.disk import DiskProvider
from artfs.settings import create_store
from artfs.store.opening import open_store
from artfs.store.store import Store
from artfs.types import Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.fsck import check
from artfs.volume.recovery import NUMBERS_GAP, Recovered, recover
from artfs.volume.saving import Saver
from tests.contract.garbage import put, read

MIB = 1 << 20
OLD, NEW = b"old" * MIB, b"new" * MIB


class World:
    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = top / "store"
        self.own = f"file://{top}/own"
        self.other = f"file://{top}/other"
        self.down = False

    @asynccontextmanager
    async def running(self, root: Path | None = None) -> AsyncIterator[tuple[Store, Saver]]:
        async with open_store(root or self.root, "test") as store:
            assert store.saver is not None
            yield store, store.saver

    async def make(self, store: Store, name: str, url: str) -> Namespace:
        namespace = await store.create_namespace("box", Scope.SANDBOX, None, name, provider=url)
        await put(store.volume(namespace), b"f", OLD)
        return namespace

    async def recover(self, name: str) -> Recovered:
        return await recover(DiskProvider(self.top / "own"), self.own, self.top / name)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    create_store(made.root)
    (made.root / "config.toml").write_text(f'provider = "{made.own}"\ncache_reserve = 0\ndrain_limit = 0.5\n')
    real = DiskProvider.put

    async def some(self: DiskProvider, name: str, source: Path | bytes) -> None:
        if made.down and self.url == made.other:
            raise UnavailableError("the other is away")
        await real(self, name, source)

    monkeypatch.setattr(DiskProvider, "put", some)
    return made


def at(store: Store, name: str) -> Namespace:
    return store.catalogue.at("box", "shared", name)


async def content(store: Store, name: str, file: bytes = b"f") -> bytes:
    return await read(store.volume(at(store, name)).tree, file)


async def test_a_sync_depends_on_its_own_provider_alone(world: World) -> None:
    async with world.running() as (store, saver):
        mine = await world.make(store, "mine", world.own)
        others = await world.make(store, "others", world.other)
        await store.sync()
        assert saver.last is not None
        assert saver.last.behind == frozenset()
        world.down = True
        await put(store.volume(others), b"f", NEW)
        await put(store.volume(mine), b"f", NEW)
        with trio.fail_after(5):
            await store.sync(mine)
        assert saver.last.behind == {world.other}
        with pytest.raises(UnavailableError, match="the other is away"):
            await store.sync(others)
        with pytest.raises(UnavailableError, match="the other is away"):
            await store.sync()
        assert await saver.save_most() == {world.other}
        world.down = False
        await store.sync(others)
        assert saver.last.behind == frozenset()


async def test_recovery_takes_the_namespaces_of_each_provider_as_it_has_them(world: World) -> None:
    async with world.running() as (store, saver):
        mine = await world.make(store, "mine", world.own)
        others = await world.make(store, "others", world.other)
        await store.checkpoint(store.volume(others), "one")
        await world.make(store, "gone", world.other)
        await store.sync()
        assert saver.last is not None
        complete = saver.last.moment
        world.down = True
        for namespace in (mine, others):
            await put(store.volume(namespace), b"f", NEW)
            await put(store.volume(namespace), b"g", NEW)
        await store.checkpoint(store.volume(others), "two")
        await world.make(store, "late", world.other)
        await store.destroy_namespace(at(store, "gone"))
        await store.rename_namespace(others, "renamed")
        await store.sync(mine)
        number = store.shard.objects.counts[others.serial]
    found = await world.recover("again")
    assert found.older == {"grid/box/shared/renamed": complete}
    assert found.partial == ("grid/box/shared/late",)
    assert complete < found.moment
    assert found.others == (world.other,)
    fsck = check(world.top / "again", data=True)
    lost = {problem.where for problem in fsck.problems}
    assert lost == {"grid/box/shared/late/f"}, "what an older copy names is all there"
    async with world.running(world.top / "again") as (store, _):
        assert await content(store, "mine") == await content(store, "mine", b"g") == NEW
        renamed = at(store, "renamed")
        assert await content(store, "renamed") == OLD
        volume = store.volume(renamed)
        assert volume.tree.lookup(volume.tree.root(), b"g") is None
        assert [checkpoint.name for checkpoint in volume.checkpoints()] == ["one"]
        with pytest.raises(NotFoundError):
            at(store, "gone")
        assert at(store, "late").provider == world.other
        await put(volume, b"new", NEW)
        await store.shard.commit()
        assert store.shard.objects.counts[renamed.serial] >= number + NUMBERS_GAP
        world.down = False
        await store.sync(renamed)
        assert await content(store, "renamed", b"new") == NEW


async def test_what_was_synced_is_there_whatever_is_synced_after_it(world: World) -> None:
    """The copy of a sync is kept as long as none for its provider is newer, although it is not complete for others."""
    async with world.running() as (store, saver):
        mine = await world.make(store, "mine", world.own)
        others = await world.make(store, "others", world.other)
        await store.sync()
        await put(store.volume(mine), b"pending", NEW)
        await put(store.volume(others), b"f", NEW)
        await store.sync(others)
        assert saver.last is not None
        assert saver.last.behind == {world.own}
        synced = saver.last.moment
        await put(store.volume(others), b"f", OLD)
        for round in range(4):
            await put(store.volume(mine), b"f", b"%d" % round * len(OLD))
            await store.sync(mine)
            assert saver.last.behind == {world.other}
    found = await world.recover("again")
    assert found.older == {"grid/box/shared/others": synced}
    async with world.running(world.top / "again") as (store, _):
        assert await content(store, "others") == NEW
        assert await content(store, "mine") == b"3" * len(OLD)
        assert await content(store, "mine", b"pending") == NEW


async def test_an_end_during_an_outage_leaves_a_copy_of_what_is_there(world: World) -> None:
    async with world.running() as (store, _):
        await world.make(store, "mine", world.own)
        await world.make(store, "others", world.other)
        world.down = True
        assert (await store.drain()).objects == 1
    found = await world.recover("again")
    assert found.partial == ("grid/box/shared/others",)
    assert found.older == {}
    async with world.running(world.top / "again") as (store, _):
        assert await content(store, "mine") == OLD
