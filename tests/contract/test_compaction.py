"""Compaction: bytes move to other objects, and no reader, writer, version or crash can tell."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from artfs.blocks import Chunk
from artfs.errors import UnavailableError
from artfs.meta import Row
from artfs.types import NamespaceType
from artfs.volume import compaction
from artfs.volume.rows import unpack_block
from artfs.volume.tree import BLOB_DATA
from artfs.volume.volume import Volume
from artfs.volume.waiting import MustWait
from artfs.volume.waiting import run as waiting
from tests.contract.garbage import KINDS, World, put, read, read_node

MIB = 1 << 20
SIZE = 70_000
FILES = 40
KEPT = range(0, FILES, 8)
RND = random.Random(5)
CONTENT = [RND.randbytes(SIZE) for _ in range(FILES)]


@pytest.fixture(params=KINDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, request.param)
    yield made
    await made.close()


def name(number: int) -> bytes:
    return b"f%d" % number


async def fill(world: World) -> Volume:
    volume = await world.make()
    for number in range(FILES):
        await put(volume, name(number), CONTENT[number])
    await world.settle()
    return volume


async def thin(world: World, *volumes: Volume) -> None:
    """Delete all but an eighth."""
    for volume in volumes:
        for number in set(range(FILES)) - set(KEPT):
            volume.tree.unlink(volume.tree.root(), name(number))
    await world.settle()


async def check(volume: Volume) -> None:
    for number in KEPT:
        assert await read(volume.tree, name(number)) == CONTENT[number]


def addresses(world: World, volume: Volume) -> set[int]:
    rows = world.engine.named((b"B", b"b"), [volume.tree.serial])
    return {c.object for row in rows for _, _, c, _ in unpack_block(row.value) if isinstance(c, Chunk)}


async def test_a_mostly_dead_object_is_rewritten(world: World) -> None:
    volume = await fill(world)
    (old,) = await world.objects()
    await thin(world, volume)
    report = await world.collect()
    assert report.compacted == 1 and report.live_bytes == len(KEPT) * SIZE
    assert old in await world.objects() and old not in addresses(world, volume)
    await check(volume)
    await world.collect(2)
    await world.settle()
    assert await world.objects() == {number: len(KEPT) * SIZE for number in addresses(world, volume)}
    await check(volume)
    assert world.engine.check() == []
    await world.reopen(crash=True)
    await check(world.volume())


@pytest.mark.parametrize("kept", [20, FILES - 1])
async def test_one_that_is_worth_its_place_is_left(world: World, kept: int) -> None:
    volume = await fill(world)
    before = await world.objects()
    for number in range(kept, FILES):
        volume.tree.unlink(volume.tree.root(), name(number))
    await world.settle()
    assert (await world.collect(3)).compacted == 0
    assert await world.objects() == before


async def test_little_is_not_worth_it(world: World) -> None:
    volume = await world.make()
    for number in range(3):
        await put(volume, name(number), CONTENT[number])
    await world.settle()
    for number in (1, 2):
        volume.tree.unlink(volume.tree.root(), name(number))
    await world.settle()
    assert (await world.collect()).compacted == 0


async def test_the_object_of_a_blob_is_never_rewritten(world: World) -> None:
    volume = await world.make("blob", NamespaceType.BLOB)
    await put(volume, BLOB_DATA, b"".join(CONTENT))
    await world.settle()
    before = addresses(world, volume)
    node = volume.tree.lookup(volume.tree.root(), BLOB_DATA)
    assert node is not None
    volume.tree.fallocate(node, 3, 0, SIZE * (FILES - 1))
    await world.settle()
    assert (await world.collect(3)).compacted == 0
    assert addresses(world, volume) == before & addresses(world, volume)


async def test_every_version_and_every_clone_follows(world: World) -> None:
    volume = await fill(world)
    await thin(world, volume)
    await volume.checkpoint("one")
    await put(volume, name(0), b"new " + CONTENT[1])
    await volume.checkpoint("two")
    clone = world.store.volume(await world.store.clone(volume, "branch"))
    await put(clone, name(8), b"other " + CONTENT[2])
    views = [await volume.view("one"), await volume.view("two")]
    world.views += views
    nodes = [[view.lookup(view.root(), name(number)) for number in KEPT] for view in views]
    held = volume.tree.lookup(volume.tree.root(), name(16))
    assert held is not None
    held.looks += 1
    volume.tree.unlink(volume.tree.root(), name(16))
    await world.settle()

    async def all_is_well() -> None:
        for view, found in zip(views, nodes, strict=True):
            for number, node in zip(KEPT, found, strict=True):
                assert node is not None
                new = number == 0 and view is views[1]
                want = b"new " + CONTENT[1] if new else CONTENT[number]
                assert await read_node(view, node) == want
        assert await read(volume.tree, name(0)) == b"new " + CONTENT[1]
        assert await read_node(volume.tree, held) == CONTENT[16]
        assert await read(clone.tree, name(8)) == b"other " + CONTENT[2]
        assert await read(clone.tree, name(24)) == CONTENT[24]

    await all_is_well()
    assert (await world.collect()).compacted == 1
    await all_is_well()
    await world.collect(3)
    await all_is_well()
    await world.exactly_what_is_named()
    volume.tree.link(held, volume.tree.root(), b"back")
    await volume.restore("one")
    await check(volume)
    await world.collect(3)
    await check(volume)
    await check_differs_only(world)


async def check_differs_only(world: World) -> None:
    assert world.shard.failure is None
    assert world.engine.check() == []


async def test_writers_wait_and_nothing_is_lost(world: World) -> None:
    """Files are changed, copied and cloned while their bytes move."""
    volume = await fill(world)
    await thin(world, volume)
    expected = {name(number): bytearray(CONTENT[number]) for number in KEPT}
    stop = trio.Event()

    async def write() -> None:
        rnd = random.Random(1)
        tree = volume.tree
        count = 0
        while not stop.is_set():
            at, data = rnd.randrange(SIZE - 10), rnd.randbytes(10)
            target = rnd.choice(sorted(expected))
            node = tree.lookup(tree.root(), target)
            assert node is not None
            await waiting(tree.write, node, at, data)
            expected[target][at : at + 10] = data
            if rnd.random() < 0.1:
                count += 1
                copy = await waiting(tree.create, tree.root(), b"copy%d" % count, 0o644, 0, 0)
                await waiting(tree.copy_range, node, 0, copy, 0, SIZE)
                expected[b"copy%d" % count] = bytearray(expected[target])
            await trio.sleep(0.001)

    async with trio.open_nursery() as tasks:
        tasks.start_soon(write)
        tasks.start_soon(world.shard.run)
        for _ in range(3):
            await world.collect()
            await world.shard.commit()
        clone = world.store.volume(await world.store.clone(volume, "branch"))
        for _ in range(3):
            await world.collect()
        stop.set()
        await trio.sleep(0.01)
        tasks.cancel_scope.cancel()
    for key, data in expected.items():
        assert await read(volume.tree, key) == bytes(data)
    for key, _ in clone.tree.listing(clone.tree.root()):
        await read(clone.tree, key)
    await world.settle()
    await world.collect(4)
    await world.exactly_what_is_named()
    await check_differs_only(world)


async def test_rows_are_swapped_with_nothing_pending_and_changes_held_up(world: World) -> None:
    volume = await fill(world)
    await thin(world, volume)
    real = world.engine.swap
    seen = []

    def swap(*args: Any) -> bool:
        tree = volume.tree
        seen.append(tree.gate is not None and not tree.open_batch and not tree.closed_batches)
        with pytest.raises(MustWait):
            tree.begin()
        return bool(real(*args))

    world.engine.swap = swap
    node = volume.tree.lookup(volume.tree.root(), name(0))
    assert node is not None
    volume.tree.write(node, 5, b"pending")
    await world.collect()
    assert seen and all(seen)
    volume.tree.begin()


async def test_rows_that_change_meanwhile_are_left_alone(world: World) -> None:
    volume = await fill(world)
    await thin(world, volume)
    real = world.shard.remote.read
    changed: list[int] = []

    async def slow(chunk: Chunk) -> bytes:
        if not changed:
            changed.append(1)
            await put(volume, name(0), b"changed " + CONTENT[1])
            await volume.checkpoint("meanwhile")
            volume.tree.unlink(volume.tree.root(), name(8))
            await world.shard.commit()
        return await real(chunk)

    world.shard.remote.read = slow  # type: ignore[method-assign]
    assert (await world.collect()).compacted == 1
    assert await read(volume.tree, name(0)) == b"changed " + CONTENT[1]
    view = await volume.view("meanwhile")
    assert await read(view, name(8)) == CONTENT[8]
    await world.collect(3)
    assert await read(await volume.view("meanwhile"), name(8)) == CONTENT[8]
    for number in (16, 24, 32):
        assert await read(volume.tree, name(number)) == CONTENT[number]
    await check_differs_only(world)


@pytest.mark.logs_errors
async def test_damaged_bytes_stay_where_they_are(tmp_path: Path) -> None:
    world = World(tmp_path, "local")
    volume = await fill(world)
    (number,) = await world.objects()
    await thin(world, volume)
    path = world.shard.objects.path(number)
    await world.reopen()
    with path.open("r+b") as file:
        file.seek(SIZE * 8 + 5)
        file.write(b"damage")
    before = addresses(world, world.volume())
    assert (await world.collect()).compacted == 0
    assert addresses(world, world.volume()) == before
    assert world.shard.failure is None
    assert await read(world.volume().tree, name(0)) == CONTENT[0]
    await world.close()


async def test_a_namespace_that_is_destroyed_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await fill(world)
    await thin(world, volume)
    kept = await world.make("kept")
    await put(kept, b"f", CONTENT[0])
    await world.settle()
    serial = volume.tree.serial
    real = world.shard.objects.append_all

    def append_all(target: int, datas: Any) -> Any:
        if target == serial and serial in world.shard.catalogue.by_serial:
            trio.from_thread.run(volume.destroy)
            trio.from_thread.run(world.shard.remote.discard_namespaces, [serial])
        return real(target, datas)

    monkeypatch.setattr(world.shard.objects, "append_all", append_all)
    assert (await world.collect()).compacted == 0
    await world.collect(2)
    await world.settle()
    assert {number >> 32 for number in await world.objects()} == {kept.tree.serial}
    assert world.engine.record("prefix", str(serial)) is None
    assert await read(kept.tree, b"f") == CONTENT[0]


@pytest.mark.parametrize("clones", [1, 3])
async def test_what_clones_name_of_a_namespace_that_is_gone_moves_to_them(world: World, clones: int) -> None:
    volume = await fill(world)
    serial = volume.tree.serial
    branches = []
    for number in range(clones):
        branch = world.store.volume(await world.store.clone(volume, f"branch-{number}"))
        await branch.checkpoint("all")
        branches.append(branch)
    await world.store.destroy_namespace(volume.namespace, for_good=True)
    await thin(world, *branches)
    await world.collect()
    assert world.engine.record("prefix", str(serial)) is not None
    for branch in branches:
        await branch.delete_checkpoint("all")
    old = sum((await world.objects()).values())
    await world.collect()
    await world.settle()
    await world.collect(3)
    found = await world.objects()
    assert sum(found.values()) < old / 3
    assert {number >> 32 for number in found} == {min(branch.tree.serial for branch in branches)}
    for kind in ("prefix", "lent", "home"):
        assert world.engine.record(kind, str(serial)) is None
    await world.exactly_what_is_named()
    # The first has lent to the others what it holds now.
    for branch in branches:
        await check(branch)
    for branch in branches[:-1]:
        await world.store.destroy_namespace(branch.namespace, for_good=True)
        await world.collect(3)
        await check(branches[-1])
    await world.store.destroy_namespace(branches[-1].namespace, for_good=True)
    await world.collect(4)
    assert await world.objects() == {}
    await check_differs_only(world)


async def test_what_was_lent_stays_if_its_namespace_is_destroyed_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await fill(world)
    clone = world.store.volume(await world.store.clone(volume, "branch"))
    await thin(world, volume, clone)
    serial = volume.tree.serial
    real = world.shard.objects.append_all

    def append_all(target: int, datas: Any) -> Any:
        if target == serial and serial in world.shard.catalogue.by_serial:
            trio.from_thread.run(volume.destroy)
        return real(target, datas)

    monkeypatch.setattr(world.shard.objects, "append_all", append_all)
    assert (await world.collect()).compacted == 0
    await check(clone)
    assert (await world.collect()).compacted == 1
    await world.settle()
    await world.collect(3)
    await check(clone)
    assert {number >> 32 for number in await world.objects()} == {clone.tree.serial}


async def test_the_object_that_a_clone_of_a_blob_names_is_left(world: World) -> None:
    volume = await world.make("blob", NamespaceType.BLOB)
    await put(volume, BLOB_DATA, b"".join(CONTENT))
    await world.settle()
    clone = world.store.volume(await world.store.clone(volume, "branch"))
    await world.store.destroy_namespace(volume.namespace, for_good=True)
    before = addresses(world, clone)
    node = clone.tree.lookup(clone.tree.root(), BLOB_DATA)
    assert node is not None
    clone.tree.fallocate(node, 3, 0, SIZE * (FILES - 1))
    await world.settle()
    assert (await world.collect(3)).compacted == 0
    assert addresses(world, clone) == before & addresses(world, clone)
    assert addresses(world, clone)


async def test_a_provider_that_goes_away_leaves_all_as_it_was(tmp_path: Path) -> None:
    world = World(tmp_path, "backed")
    volume = await fill(world)
    await thin(world, volume)
    before = addresses(world, volume)

    async def away(chunk: Chunk) -> bytes:
        raise UnavailableError("away")

    real = world.shard.remote.read
    world.shard.remote.read = away  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await world.collect()
    assert addresses(world, volume) == before
    world.shard.remote.read = real  # type: ignore[method-assign]
    assert (await world.collect()).compacted == 1
    await check(volume)
    await world.close()


async def test_rounds_and_slices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "ROUND", 3)
    monkeypatch.setattr(compaction, "SLICE", 2)
    monkeypatch.setattr(compaction, "WRITE_SIZE", 100_000)
    volume = await fill(world)
    other = await world.make("other")
    for number in range(FILES):
        await put(other, name(number), CONTENT[number])
    await world.settle()
    await thin(world, volume, other)
    assert (await world.collect()).compacted == 2
    await world.collect(3)
    await world.exactly_what_is_named()
    for one in (volume, other):
        await check(one)


def test_only_rows_that_have_changed_are_left_out() -> None:
    class Engine:
        def __init__(self) -> None:
            self.rows = {row.key: row.value for row in given}

        def swap(self, changes: Any) -> bool:
            if any(self.rows[row.key] != row.value for row, _ in changes):
                return False
            self.rows.update((row.key, value) for row, value in changes)
            return True

    given = [Row(1, b"B%d" % i, 1, b"old") for i in range(50)]  # type: ignore[arg-type]
    engine = Engine()
    engine.rows[b"B7"] = engine.rows[b"B33"] = b"changed"
    compaction._swap_rows(engine, [(row, b"new") for row in given])  # type: ignore[arg-type]
    assert {key for key, value in engine.rows.items() if value != b"new"} == {b"B7", b"B33"}
