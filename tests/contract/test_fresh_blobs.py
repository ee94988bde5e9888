"""BLOBs that are made without a tree: the same as those that are made with one, whatever comes before their commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from artfs.errors import UnavailableError
from artfs.meta.schema import PINNED
from artfs.types import NamespaceType, Scope
from artfs.volume.attributes import SIZE
from artfs.volume.catalogue import Namespace
from artfs.volume.fresh import blob_rows
from artfs.volume.inodes import now
from artfs.volume.journal import NoJournal
from artfs.volume.rows import HEAD_KEY, pack_block
from tests.contract.test_shard import World

DATA = b"some bytes of it"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "objects").mkdir()
    world = World(tmp_path)
    yield world
    if world.journal.fd >= 0:
        world.shard.abandon()


async def make(world: World, data: bytes = DATA, **options: Any) -> Namespace:
    options = {"type": NamespaceType.BLOB, "data": data, **options}
    return await world.store.create_namespace("box", Scope.SANDBOX, None, "new", **options)


def content(world: World) -> bytes:
    tree = world.shard.tree(world.namespace("new"))
    node = tree.lookup(tree.root(), b"_data")
    assert node is not None
    assert world.store.shard.usage(world.namespace("new")) == (node.size, 2)
    return tree.read_bytes(node, 0, node.size)


@pytest.mark.parametrize("data", [b"", DATA, b"x" * 4096])
async def test_its_rows_and_its_record_are_those_of_a_tree(world: World, data: bytes) -> None:
    """What a tree makes of the same is the definition."""
    log = world.shard.log = _Records()
    time = now()
    namespace = await make(world, data, created=time, mode=0o750, making=True)
    tree = world.shard.trees[namespace.serial]
    tree.cut()
    (batch,) = tree.closed_batches
    rows = batch.rows | {key: pack_block(block) for key, block in batch.blocks.items()}
    entries, made = blob_rows(0o750, 0o666, 0, 0, time, data)
    assert made == rows
    ((body, more),) = log.records
    assert more == data
    assert body.endswith(entries)


class _Records(NoJournal):
    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes]] = []

    def append(self, serial: int, body: bytes, data: bytes | memoryview = b"") -> None:
        self.records.append((body, bytes(data)))


async def test_nobody_opens_it_until_somebody_looks(world: World) -> None:
    namespace = await make(world)
    assert not world.shard.trees
    assert not world.shard.idle()
    assert world.store.shard.usage(namespace) == (len(DATA), 2)
    await world.shard.commit()
    assert not world.shard.trees
    assert world.shard.idle()
    assert world.engine.get(namespace.serial, HEAD_KEY) is not None
    assert content(world) == DATA


@pytest.mark.parametrize("data", [b"", DATA, b"x" * 1024])
async def test_its_bytes_are_read_from_its_row(world: World, data: bytes) -> None:
    namespace = await make(world, data)
    shard = world.shard
    assert shard.bytes_in_row(namespace) == data
    await shard.commit()
    assert shard.bytes_in_row(namespace) == data
    assert not shard.trees
    assert content(world) == data
    assert shard.bytes_in_row(namespace) is None  # its tree knows better
    tree = shard.trees[namespace.serial]
    node = tree.make_unnamed(tree.root(), 0o600, 0, 0)
    tree.write(node, 0, b"another file")
    tree.replace(node, tree.root(), b"_data")
    await shard.commit()
    shard.close_tree(namespace.serial)
    assert shard.bytes_in_row(namespace) == b"another file"


@pytest.mark.parametrize(
    "change",
    [
        lambda tree, node: tree.write(node, 4096, b"x"),
        lambda tree, node: tree.write(node, 2 << 20, b"x"),
        lambda tree, node: tree.setattr(node, SIZE, 20, 0, 0, 0, 0, 0, 0),
        lambda tree, node: tree.fallocate(node, 3, 2, 3),
        lambda tree, node: tree.write(node, 0, bytes(1 << 20)),
    ],
)
async def test_what_is_more_than_a_row_of_bytes_is_for_a_tree(world: World, change: Any) -> None:
    namespace = await make(world)
    tree = world.shard.tree(namespace)
    node = tree.lookup(tree.root(), b"_data")
    assert node is not None
    change(tree, node)
    await world.shard.commit()
    world.shard.close_tree(namespace.serial)
    assert world.shard.bytes_in_row(namespace) is None


async def test_a_row_that_is_damaged_is_for_a_tree(world: World) -> None:
    namespace = await make(world)
    rows = world.shard.fresh[namespace.serial]
    for key in list(rows):
        value, rows[key] = rows[key], b"?"
        assert world.shard.bytes_in_row(namespace) == (DATA if key[:1] in b"h" or key[-1:] == b"\1" else None)
        del rows[key]
        assert world.shard.bytes_in_row(namespace) == (DATA if key[:1] in b"h" or key[-1:] == b"\1" else None)
        rows[key] = value


@pytest.mark.parametrize("when", ["before", "after", "changed"])
async def test_it_is_there_after_a_kill(world: World, when: str) -> None:
    await world.shard.recover()
    await make(world)
    if when == "after":
        await world.shard.commit()
    if when == "changed":
        assert content(world) == DATA
        tree = world.shard.tree(world.namespace("new"))
        node = tree.lookup(tree.root(), b"_data")
        assert node is not None
        tree.write(node, 5, b"other")
    world.shard.abandon()
    world.open()
    await world.shard.recover()
    assert content(world) == (b"some other of it" if when == "changed" else DATA)
    assert world.engine.check() == []


@pytest.mark.parametrize("fails", [False, True])
async def test_it_is_opened_and_changed_while_a_commit_takes_it(
    world: World, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    namespace = await make(world)
    sync = world.objects.sync

    def meanwhile() -> None:
        def change() -> None:
            assert content(world) == DATA
            tree = world.shard.trees[namespace.serial]
            node = tree.lookup(tree.root(), b"_data")
            assert node is not None
            tree.write(node, 5, b"other")

        trio.from_thread.run_sync(change)
        monkeypatch.setattr(world.objects, "sync", sync)
        sync()
        if fails:
            raise UnavailableError("as asked")

    monkeypatch.setattr(world.objects, "sync", meanwhile)
    if fails:
        with pytest.raises(UnavailableError):
            await world.shard.commit()
    else:
        await world.shard.commit()
    assert content(world) == b"some other of it"
    await world.shard.commit()
    assert not world.shard.trees[namespace.serial].closed_batches
    world.shard.abandon()
    world.open()
    assert await world.shard.recover() == 0
    assert content(world) == b"some other of it"


async def test_a_commit_that_fails_keeps_it(world: World) -> None:
    namespace = await make(world)
    world.engine.fail = UnavailableError("as asked")
    with pytest.raises(UnavailableError):
        await world.shard.commit()
    world.engine.fail = None
    assert not world.shard.idle()
    await world.shard.commit()
    assert world.engine.get(namespace.serial, HEAD_KEY) is not None
    assert content(world) == DATA


async def test_it_is_destroyed_before_its_commit(world: World) -> None:
    await world.shard.recover()
    namespace = await make(world)
    await world.store.destroy_namespace(namespace)
    assert world.engine.serials() == set()
    world.shard.abandon()
    world.open()
    await world.shard.recover()
    assert world.shard.catalogue.by_serial == {}


async def test_what_a_row_cannot_hold_has_a_tree(world: World) -> None:
    namespace = await make(world, bytes(5000))
    assert set(world.shard.trees) == {namespace.serial}
    assert content(world) == bytes(5000)


def test_checkpoints_are_found_by_their_key(world: World) -> None:
    """A commit of thousands of namespaces asks once, and looks at no other namespace."""
    plan = world.engine._db.query(f"EXPLAIN QUERY PLAN {PINNED}", ("[1]",))
    assert any("SEARCH checkpoint USING PRIMARY KEY (serial=?)" in row[-1] for row in plan)
