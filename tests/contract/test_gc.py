"""Garbage: all of it goes, and nothing else, whatever happens meanwhile."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from threading import Event
from typing import Any

import anyio
import pytest
import trio

from artfs.blocks import Chunk
from artfs.errors import DamagedError, FsError, UnavailableError
from artfs.meta import Batch
from artfs.meta.memory import MemoryEngine
from artfs.types import Epoch, Serial
from artfs.volume.marks import Live, StoppedError, mark, named_in
from artfs.volume.rows import CHUNK, HEAD_KEY, PIECE, Head, pack_block
from tests.contract.garbage import KINDS, URL, World, close_open, put, read, read_node

MIB = 1 << 20
NOISE = random.Random(4).randbytes(8 * MIB)


def noise(seed: int, size: int) -> bytes:
    at = seed * 7919 % (len(NOISE) - size)
    return seed.to_bytes(4, "big") + NOISE[at : at + size - 4]


@pytest.fixture(params=KINDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, request.param)
    yield made
    await made.close()


# what goes, and what stays
async def test_deleted_files_are_freed_and_nothing_else(world: World) -> None:
    volume = await world.make()
    await put(volume, b"old", noise(1, 3 * MIB))
    await world.settle()
    old = set(await world.objects())
    await put(volume, b"kept", noise(2, 2 * MIB))
    await put(volume, b"small", noise(3, 5000))
    await world.settle()
    volume.tree.unlink(volume.tree.root(), b"old")
    await world.settle()
    report = await world.collect()
    assert (report.condemned, report.deleted) == (len(old), 0)
    assert report.dead_bytes == 3 * MIB and report.live_bytes == 2 * MIB + 5000
    assert old <= (await world.objects()).keys()
    report = await world.collect()
    assert (report.condemned, report.deleted, report.deleted_bytes) == (0, len(old), 3 * MIB)
    await world.exactly_what_is_named()
    assert not world.engine.records("condemned")
    assert await read(volume.tree, b"kept") == noise(2, 2 * MIB)
    assert await read(volume.tree, b"small") == noise(3, 5000)
    assert (await world.collect()).deleted == 0


async def test_files_of_the_provider_and_of_both_directories_are_gone(tmp_path: Path) -> None:
    world = World(tmp_path, "backed")
    volume = await world.make()
    await put(volume, b"old", noise(1, MIB))
    await world.settle()
    assert _files(tmp_path / "provider") and _files(tmp_path / "cache") and not _files(tmp_path / "objects")
    volume.tree.unlink(volume.tree.root(), b"old")
    await world.collect(2)
    assert not [*_files(tmp_path / "provider"), *_files(tmp_path / "cache"), *_files(tmp_path / "objects")]
    await world.close()


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def test_what_checkpoints_name_stays_until_they_are_deleted(world: World) -> None:
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await volume.checkpoint("one")
    await world.settle()
    await put(volume, b"f", noise(2, MIB))
    await world.settle()
    await world.collect(3)
    assert await read(await volume.view("one"), b"f") == noise(1, MIB)
    await volume.restore("one")
    await world.settle()
    await world.collect(3)
    assert await read(volume.tree, b"f") == noise(1, MIB)
    for checkpoint in volume.checkpoints(all=True):
        await volume.delete_checkpoint(checkpoint.id)
    await world.settle()
    await world.collect(3)
    await world.exactly_what_is_named()
    assert sum((await world.objects()).values()) == MIB
    assert await read(volume.tree, b"f") == noise(1, MIB)


async def test_a_clone_outlives_its_source(world: World) -> None:
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await put(volume, b"g", noise(2, 2 * MIB))
    await world.settle()
    clone = world.store.volume(await world.store.clone(volume, "branch"))
    serial = volume.tree.serial
    await world.store.destroy_namespace(volume.namespace, for_good=True)
    await world.settle()
    await world.collect(3)
    assert await read(clone.tree, b"f") == noise(1, MIB)
    assert await read(clone.tree, b"g") == noise(2, 2 * MIB)
    # What was lent goes when nobody uses it any more, and then so do the records of its place.
    await put(clone, b"f", noise(3, MIB))
    clone.tree.unlink(clone.tree.root(), b"g")
    await world.settle()
    assert world.engine.record("prefix", str(serial)) and world.engine.record("lent", str(serial)) is not None
    await world.collect(3)
    await world.exactly_what_is_named()
    for kind in ("prefix", "lent", "home"):
        assert world.engine.record(kind, str(serial)) is None
    assert await read(clone.tree, b"f") == noise(3, MIB)


async def test_an_open_file_without_a_name_keeps_its_bytes(world: World) -> None:
    volume = await world.make()
    node = await put(volume, b"f", noise(1, MIB))
    node.looks += 1
    volume.tree.unlink(volume.tree.root(), b"f")
    await world.settle()
    await world.collect(3)
    assert await read_node(volume.tree, node) == noise(1, MIB)
    volume.tree.link(node, volume.tree.root(), b"again")
    await world.settle()
    await world.collect(3)
    assert await read(volume.tree, b"again") == noise(1, MIB)
    volume.tree.unlink(volume.tree.root(), b"again")
    node.looks -= 1
    volume.tree.rest(node)
    await world.settle()
    await world.collect(3)
    assert await world.objects() == {}


async def test_the_trash_keeps_what_may_come_back(world: World) -> None:
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await volume.checkpoint("one")
    namespace = volume.namespace
    assert await world.store.destroy_namespace(namespace)
    await world.settle()
    await world.collect(3)
    back = world.store.volume(await world.store.undelete_namespace(namespace.id))
    assert await read(back.tree, b"f") == noise(1, MIB)


async def test_objects_that_grow_are_closed_when_they_are_mostly_garbage(world: World) -> None:
    volume = await world.make()
    for seed in range(4):
        await put(volume, b"f", noise(seed, MIB))
    await world.collect()
    open_now = world.shard.objects.open_objects().keys()
    await put(volume, b"f", noise(9, MIB))
    assert world.shard.objects.open_objects().keys() - open_now
    await world.collect(4)
    assert await read(volume.tree, b"f") == noise(9, MIB)
    await world.exactly_what_is_named()


async def test_objects_that_nobody_knows_are_found(tmp_path: Path) -> None:
    """They were uploaded, or written, before a crash."""
    for kind in ("local", "backed"):
        (root := tmp_path / kind).mkdir()
        world = World(root, kind)
        volume = await world.make()
        await put(volume, b"f", noise(1, MIB))
        await world.settle()
        place = root / ("provider" if kind == "backed" else "objects") / volume.namespace.prefix
        (place / "0000ffff").write_bytes(b"unknown")
        (place / "not an object").write_bytes(b"?")
        assert (await world.collect()).condemned == 1
        assert (await world.collect()).deleted == 1
        assert not (place / "0000ffff").exists() and (place / "not an object").exists()
        assert await read(volume.tree, b"f") == noise(1, MIB)
        assert Head.unpack(world.engine.get(volume.tree.serial, HEAD_KEY)).objects > 0xFFFF
        await world.close()


async def test_numbers_of_deleted_objects_are_never_used_again(tmp_path: Path) -> None:
    world = World(tmp_path, "local")
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await world.reopen(crash=True)
    volume = world.volume()
    before = max(await world.objects())
    volume.tree.unlink(volume.tree.root(), b"f")
    await world.collect(3)
    assert await world.objects() == {}
    await world.reopen(crash=True)
    await put(world.volume(), b"g", noise(2, MIB))
    await world.settle()
    assert min(await world.objects()) > before
    await world.close()


async def test_the_number_of_an_object_that_is_not_here_is_never_used_again(tmp_path: Path) -> None:
    """A commit makes it, and no file is left to tell when the next process looks."""
    world = World(tmp_path, "backed", inline_limit=0)
    await put(await world.make(), b"small", b"x" * 5000)
    await world.settle()
    await world.shard.remote.drop()
    await world.reopen(crash=True)
    await put(world.volume(), b"other", noise(1, MIB))
    await world.settle()
    assert len(await world.objects()) == 2
    assert await read(world.volume().tree, b"small") == b"x" * 5000
    await world.close()


# the two marks
async def test_the_grace_passes_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, "local", gc_grace=600.0)
    now = 10**18
    monkeypatch.setattr("artfs.volume.gc.time_ns", lambda: now)
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await world.reopen()
    volume = world.volume()
    volume.tree.unlink(volume.tree.root(), b"f")
    assert (await world.collect()).condemned == 1
    for seconds, want in ((1, 0), (599, 0), (600, 1)):
        now = 10**18 + seconds * 10**9
        report = await world.collect()
        assert (report.deleted, report.waiting) == (want, 1 - want)
    await world.close()


async def test_a_clock_that_was_set_back_delays_by_one_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, "local", gc_grace=600.0)
    now = 2 * 10**18
    monkeypatch.setattr("artfs.volume.gc.time_ns", lambda: now)
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await world.reopen()
    volume = world.volume()
    volume.tree.unlink(volume.tree.root(), b"f")
    await world.collect()
    now = 10**18
    assert (await world.collect()).waiting == 1
    now += 601 * 10**9
    assert (await world.collect()).deleted == 1
    await world.close()


async def test_deleting_from_a_provider_waits_for_saved_metadata(tmp_path: Path) -> None:
    world = World(tmp_path, "backed")
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await world.settle()
    volume.tree.unlink(volume.tree.root(), b"f")
    await world.collect()
    assert world.saves == 0
    world.save_fails = UnavailableError("the provider is away")
    report = await world.collect()
    assert (report.deleted, report.waiting, world.saves) == (0, 1, 1)
    assert len(await world.objects()) == 1
    world.save_fails = None
    assert (await world.collect()).deleted == 1
    assert world.saves == 2
    await world.close()


async def test_objects_stay_that_an_older_copy_is_needed_for(tmp_path: Path) -> None:
    """Recovery takes the namespaces of a provider that is behind from it, and that may be another one tomorrow."""
    world = World(tmp_path, "backed")
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await world.settle()
    volume.tree.unlink(volume.tree.root(), b"f")
    world.save_behind = {URL}
    report = await world.collect(2)
    assert (report.deleted, report.waiting, len(await world.objects())) == (0, 1, 1)
    serial = await doom(world, "ws")
    assert await world.collector.bury() == 0
    world.save_behind = {"another:"}
    assert await world.collector.bury() == 0
    world.save_behind = set()
    assert await world.collector.bury() == 1
    assert serial not in world.shard.catalogue.doomed
    await world.close()


async def test_what_is_pinned_stays(world: World) -> None:
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await world.settle()
    world.pins = set(await world.objects())
    volume.tree.unlink(volume.tree.root(), b"f")
    await world.collect(3)
    assert (await world.objects()).keys() == world.pins
    assert not world.engine.records("condemned")
    world.pins = set()
    await world.collect()
    world.pins = set(await world.objects())
    assert (await world.collect()).lifted == 1
    world.pins = set()
    await world.collect(2)
    assert await world.objects() == {}


async def test_what_is_condemned_and_named_is_lifted(world: World) -> None:
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await world.settle()
    (number,) = await world.objects()
    world.engine.commit([], {("condemned", f"{number:x}"): "5", ("condemned", f"{number + 7:x}"): "5"})
    report = await world.collect()
    assert (report.lifted, report.deleted) == (1, 0)
    assert world.engine.records("condemned") == {}
    assert await read(volume.tree, b"f") == noise(1, MIB)


async def test_a_dry_run_changes_nothing(world: World) -> None:
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await put(volume, b"g", noise(2, MIB))
    await world.settle()
    other = await world.make("doomed")
    await put(other, b"f", noise(3, MIB))
    volume.tree.unlink(volume.tree.root(), b"f")
    await world.settle()
    report = await world.collector.collect(dry_run=True)
    assert report.dry_run and report.deleted == 0
    before = await world.objects()
    assert not world.engine.records("condemned")
    await world.collector.collect(compact=False)
    records = world.engine.records("condemned")
    report = await world.collector.collect(dry_run=True)
    assert report.deleted == len(records)
    assert await world.objects() == before and world.engine.records("condemned") == records


# destroyed namespaces
async def doom(world: World, name: str) -> int:
    """As a store destroys it: rows and document go, and a record says what is left to do."""
    volume = world.volume(name)
    serial = volume.tree.serial
    world.store.volumes.pop(serial, None)
    await volume.destroy()
    return serial


async def test_a_destroyed_namespace_is_buried_by_prefix(world: World) -> None:
    volume = await world.make("gone")
    kept = await world.make("kept")
    await put(kept, b"f", noise(1, MIB))
    for seed in range(3):
        await put(volume, b"f", noise(seed, MIB))
        await world.settle()
    await put(volume, b"f", noise(5, MIB))
    serial = await doom(world, "gone")
    assert await world.collector.bury() == 1
    assert {number >> 32 for number in await world.objects()} == {kept.tree.serial}
    for kind in ("doomed", "prefix", "home", "lent"):
        assert world.engine.record(kind, str(serial)) is None
    assert await read(kept.tree, b"f") == noise(1, MIB)
    assert await world.collector.bury() == 0


async def test_what_was_lent_is_never_deleted_by_prefix(world: World) -> None:
    volume = await world.make("source")
    await put(volume, b"f", noise(1, MIB))
    await world.settle()
    clone = world.store.volume(await world.store.clone(volume, "branch"))
    serial = await doom(world, "source")
    assert serial not in world.shard.catalogue.doomed
    await world.collector.bury()
    assert not world.engine.records("doomed")
    await world.collect(3)
    assert await read(clone.tree, b"f") == noise(1, MIB)


async def test_a_burial_waits_for_the_provider_and_for_saved_metadata(tmp_path: Path) -> None:
    world = World(tmp_path, "backed")
    volume = await world.make("gone")
    await put(volume, b"f", noise(1, MIB))
    await world.settle()
    serial = await doom(world, "gone")
    world.save_fails = UnavailableError("the provider is away")
    assert await world.collector.bury() == 0
    assert _files(tmp_path / "provider")
    world.save_fails = None
    provider = world.providers.provider
    real, calls = provider.delete, [0]

    async def fails(names: Any) -> None:
        calls[0] += 1
        raise UnavailableError("not now")

    provider.delete = fails  # type: ignore[method-assign]
    assert await world.collector.bury() == 0
    assert calls[0] == 1 and world.engine.record("doomed", str(serial)) == ""
    provider.delete = real  # type: ignore[method-assign]
    await world.reopen(crash=True)
    assert await world.collector.bury() == 1
    assert not _files(tmp_path / "provider")
    await world.close()


async def test_a_provider_that_is_away_keeps_everything(tmp_path: Path) -> None:
    world = World(tmp_path, "backed")
    volume = await world.make()
    await world.make("other")
    await put(volume, b"f", noise(1, MIB))
    await world.settle()
    volume.tree.unlink(volume.tree.root(), b"f")
    await world.collect()
    records = world.engine.records("condemned")
    provider = world.providers.provider
    real = provider.list

    asked = []

    async def away(prefix: str) -> AsyncIterator[tuple[str, int]]:
        asked.append(prefix)
        raise UnavailableError("away")
        yield "", 0

    provider.list = away  # type: ignore[method-assign]
    report = await world.collect()
    assert (report.unreachable, report.deleted) == (2, 0)
    assert len(asked) == 1  # of several namespaces in one provider
    assert world.engine.records("condemned") == records != {}
    provider.list = real  # type: ignore[method-assign]
    assert (await world.collect()).deleted == 1
    await world.close()


async def test_an_import_that_goes_on_is_left_alone(world: World) -> None:
    volume = await world.make()
    records = world.shard.catalogue.records
    records["prefix", "777"] = "grid/box/shared/ns-importing"
    records["importing", "777"] = ""
    world.shard.objects.register(777, "grid/box/shared/ns-importing", 0)
    chunk = world.shard.objects.append_all(777, [noise(1, MIB)])[0]
    await world.settle()
    await world.collect(3)
    assert world.shard.objects.read(chunk) == noise(1, MIB)
    assert world.engine.record("prefix", "777")
    assert volume.tree.read_only is False


# what goes on meanwhile
@pytest.mark.parametrize("kind", KINDS)
async def test_an_append_while_the_commit_of_a_mark_is_under_way(kind: str, tmp_path: Path) -> None:
    """Its object is closed when the rows are read, and only the next commit names it: it was not there when closed
    objects were listed, as that came before."""
    world = World(tmp_path, kind)
    volume = await world.make()
    node = await put(volume, b"f", b"first" * 20_000)
    engine = world.engine
    real, late = engine.commit, [noise(1, MIB)]

    def commit(*args: Any, **kwargs: Any) -> None:
        if late:  # in the thread of a commit that has taken its batches
            trio.from_thread.run_sync(volume.tree.write, node, 0, late.pop())
            close_open(world.shard.objects)
        real(*args, **kwargs)

    engine.commit = commit
    assert (await world.collect()).condemned == 0
    engine.commit = real
    assert not late and volume.tree.open_batch
    assert await read(volume.tree, b"f") == noise(1, MIB)
    await world.collect(3)
    assert await read(volume.tree, b"f") == noise(1, MIB)
    await world.exactly_what_is_named()
    await world.close()


async def test_a_name_that_moves_while_rows_are_read_is_not_missed(world: World) -> None:
    """A copy appears among rows that the mark has passed, and the original goes before it gets there."""
    volume = await world.make()
    for name in (b"a", b"z"):
        await put(volume, name, noise(1, 100_000) if name == b"z" else noise(2, 100_000))
    await world.settle()
    engine = world.engine
    real = engine.named

    def named(*args: Any) -> Any:
        rows = real(*args)
        first = next(rows)

        async def move() -> None:
            tree = volume.tree
            source, target = tree.lookup(tree.root(), b"z"), tree.lookup(tree.root(), b"a")
            assert source is not None and target is not None
            tree.copy_range(source, 0, target, 0, 100_000)
            tree.unlink(tree.root(), b"z")
            await world.shard.commit()

        if moves:
            moves.pop()
            trio.from_thread.run(move)
        yield first
        yield from rows

    moves = [1]
    engine.named = named
    await world.collect(3)
    assert not moves
    assert await read(volume.tree, b"a") == noise(1, 100_000)
    engine.named = real
    await world.exactly_what_is_named()


async def test_two_runs_at_once(world: World) -> None:
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await put(volume, b"g", noise(2, MIB))
    await world.settle()
    volume.tree.unlink(volume.tree.root(), b"f")
    await put(volume, b"g", noise(3, MIB))
    await world.settle()
    reports = []

    async def one() -> None:
        reports.append(await world.collector.collect())

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(one)
            tasks.start_soon(world.collector.bury)
    assert sum(report.deleted for report in reports) == sum(report.condemned for report in reports) > 0
    await world.exactly_what_is_named()
    assert await read(volume.tree, b"g") == noise(3, MIB)


async def test_a_view_of_a_deleted_checkpoint_is_stale_not_damaged(world: World) -> None:
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await volume.checkpoint("one")
    await world.settle()
    view = await volume.view("one")
    world.views.append(view)
    node = view.lookup(view.root(), b"f")
    assert node is not None and await read_node(view, node) == noise(1, MIB)
    await put(volume, b"f", noise(2, MIB))
    await volume.delete_checkpoint("one")
    await world.settle()
    await world.collect(3)
    with pytest.raises(FsError) as caught:
        node.tree.read(node, 0, 10)
    assert caught.value.errno == errno.ESTALE
    assert world.shard.failure is None


# failures
async def test_rows_that_cannot_be_read_stop_everything(world: World) -> None:
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await world.settle()
    volume.tree.unlink(volume.tree.root(), b"f")
    await world.shard.commit()
    serial, epoch = volume.tree.serial, volume.tree.epoch
    broken = b"B" + (999).to_bytes(8, "big") + bytes(4)
    world.engine.commit([Batch(serial, Epoch(epoch), {broken: b"\x01nonsense"})])
    before = await world.objects()
    for _ in range(3):
        with pytest.raises(DamagedError):
            await world.collector.collect()
    assert await world.objects() == before
    world.engine.commit([Batch(serial, Epoch(epoch), {broken: None})])
    await world.collect(2)
    assert await world.objects() == {}


async def test_a_store_that_takes_no_changes_deletes_nothing(world: World) -> None:
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await world.settle()
    volume.tree.unlink(volume.tree.root(), b"f")
    await world.collect()
    world.shard.failure = DamagedError("as asked")
    with pytest.raises(DamagedError):
        await world.collector.collect()
    assert await world.objects()
    world.shard.failure = None
    await world.collect()


class _Crash(Exception):
    pass


def crash_after(world: World, count: int) -> Callable[[], int]:
    """Raise `_Crash` at the `count`-th step that touches the disk or the provider; returns how many were made."""
    steps = [0]

    def wrap(target: Any, name: str) -> None:
        real = getattr(target, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            if steps[0] == count:
                raise _Crash
            steps[0] += 1
            return real(*args, **kwargs)

        setattr(target, name, step)

    for target, names in (
        (world.engine, ("commit", "swap")),
        (world.shard.objects, ("remove", "append_all", "sync")),
        (world.shard.remote, ("objects", "discard", "discard_namespaces")),
    ):
        for name in names:
            wrap(target, name)
    return lambda: steps[0]


@pytest.mark.parametrize("kind", ["local", "backed"])
async def test_a_crash_at_any_step_leaves_only_garbage(kind: str, tmp_path: Path) -> None:
    count = 0
    finished = False
    while not finished:
        (root := tmp_path / str(count)).mkdir()
        world = World(root, kind)
        volume = await world.make()
        gone = await world.make("gone")
        await put(gone, b"f", noise(8, 100_000))
        for seed in range(10):
            await put(volume, b"f%d" % seed, noise(seed, 100_000))
        await put(volume, b"big", noise(20, MIB))
        await world.settle()
        await volume.checkpoint("one")
        await put(volume, b"kept", noise(21, MIB))
        await world.settle()
        clone = world.store.volume(await world.store.clone(volume, "branch"))
        await volume.delete_checkpoint("one")
        for tree in (volume.tree, clone.tree):
            for name in (b"big", *(b"f%d" % seed for seed in range(1, 10))):
                tree.unlink(tree.root(), name)
        await doom(world, "gone")
        await world.settle()
        steps = crash_after(world, count)
        try:
            await world.collect(3)
            finished = True
        except BaseExceptionGroup as group:  # by way of a task group
            assert group.subgroup(_Crash)
        except _Crash:
            pass
        assert steps() <= count or finished
        await world.reopen(crash=True)
        for space in ("ws", "branch"):
            tree = world.volume(space).tree
            assert await read(tree, b"f0") == noise(0, 100_000)
            assert await read(tree, b"kept") == noise(21, MIB)
        await world.settle()
        await world.collect(4)
        await world.exactly_what_is_named()
        await world.settle()
        # Both namespaces name one copy, or each its own where it crashed between them.
        assert sum((await world.objects()).values()) in (100_000 + MIB, 200_000 + MIB)
        assert world.engine.check() == []
        await world.close()
        count += 1
    assert count > 12


# the background
@pytest.mark.parametrize("kind", KINDS)
async def test_the_background_collects_when_something_has_changed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artfs.volume.gc.FORCED", 1000)
    world = World(tmp_path, kind, gc_interval=0.02)
    volume = await world.make()
    runs = 0
    real = world.collector.collect

    async def collect(**kwargs: Any) -> Any:
        nonlocal runs
        runs += 1
        return await real(**kwargs)

    world.collector.collect = collect  # type: ignore[method-assign]
    async with trio.open_nursery() as tasks:
        tasks.start_soon(world.collector.run)
        for seed in range(2):
            await put(volume, b"f", noise(seed, MIB))
            await world.settle()
            volume.tree.unlink(volume.tree.root(), b"f")
            await world.shard.commit()
            with trio.fail_after(30):
                while await world.objects() or world.engine.records("condemned"):
                    await trio.sleep(0.01)
                before = -1
                while before != runs:  # the last look of all finds nothing to do
                    before = runs
                    await trio.sleep(0.2)  # ten intervals
            assert runs > seed
        tasks.cancel_scope.cancel()
    await world.close()


@pytest.mark.logs_errors
@pytest.mark.parametrize("kind", KINDS)
async def test_the_background_outlives_failures(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, kind, gc_interval=0.02)
    volume = await world.make()
    await put(volume, b"f", noise(1, MIB))
    await world.settle()
    volume.tree.unlink(volume.tree.root(), b"f")
    real, fails = world.engine.named, [1, 1]

    def named(*args: Any) -> Any:
        if fails:
            fails.pop()
            raise UnavailableError("as asked")
        return real(*args)

    world.engine.named = named
    async with trio.open_nursery() as tasks:
        tasks.start_soon(world.collector.run)
        with trio.fail_after(20):
            while await world.objects():
                await trio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert not fails
    assert sum("it is tried again" in record.message for record in caplog.records) == 2
    await world.close()


async def test_a_doomed_namespace_is_buried_at_once(world: World) -> None:
    volume = await world.make("gone")
    await put(volume, b"f", noise(1, MIB))
    async with trio.open_nursery() as tasks:
        tasks.start_soon(world.collector.run)
        await trio.sleep(0.01)
        serial = await doom(world, "gone")
        world.collector.kick()
        with trio.fail_after(20):
            while world.engine.record("prefix", str(serial)) is not None:
                await trio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert await world.objects() == {}


# marks
def test_a_mark_counts_each_range_once() -> None:
    live = Live()
    for _ in range(1000):
        for at in range(50):
            live.add(at * 100, 60)
    live.add(1 << 33, 5 << 24)
    assert live.bytes() == 50 * 60 + (5 << 24)
    assert live.names == 50_001
    assert len(live._places) < 5000


def test_names_in_rows_of_every_shape() -> None:
    chunk, other = Chunk(5 << 32 | 1, 10, 100, bytes(16)), Chunk(6 << 32, 0, 50, bytes(16))
    assert named_in(pack_block([(0, 100, chunk, 0)])) == [(chunk.object, 10, 100)]
    mixed = pack_block([(0, 9, b"inline by", 0), (10, 20, None, 0), (30, 60, other, 20), (60, 70, chunk, 90)])
    assert named_in(mixed) == [(other.object, 0, 50), (chunk.object, 10, 100)]
    inline = pack_block([(0, CHUNK.size, bytes(CHUNK.size), 0)])
    assert len(inline) == PIECE.size + CHUNK.size and named_in(inline) == []
    with pytest.raises(DamagedError):
        named_in(mixed[:-1])


def test_a_mark_ends_when_it_is_told_to() -> None:
    engine = MemoryEngine()
    rows: dict[bytes, bytes | None] = {b"B" + i.to_bytes(12, "big"): b"" for i in range(1000)}
    engine.commit([Batch(Serial(1), Epoch(1), rows)])
    stop = Event()
    assert mark(engine, stop) == {}
    stop.set()
    with pytest.raises(StoppedError):
        mark(engine, stop)
