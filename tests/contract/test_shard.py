"""The owner of a store: what is durable before what, what failures cost, what a reopening finds."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import trio

from artfs.blocks import Chunk
from artfs.errors import ArtfsError, FsError, InvalidError, NoSpaceError, UnavailableError
from artfs.meta import Batch
from artfs.meta.sqlite import SqliteEngine
from artfs.objects.local import LocalObjects
from artfs.sessions.memory import MemorySessions
from artfs.settings import Settings
from artfs.store.store import Store
from artfs.types import NamespaceType, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.journal import ROW, Journal
from artfs.volume.rows import unpack_block
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree
from artfs.volume.waiting import MustWait
from artfs.volume.waiting import run as waiting

JOURNAL = 8 << 20
LARGE = bytes(range(256)) * 512  # goes straight into an object


class Engine(SqliteEngine):
    """Writes down its commits; `fail` is raised instead of a commit, `hold` keeps one waiting."""

    steps: list[str]
    objects: Objects
    fail: Exception | None = None
    states: list[str]

    def commit(
        self,
        batches: Sequence[Batch],
        records: Mapping[tuple[str, str], str | None] = {},
        *,
        freeing: bool = False,
    ) -> None:
        if self.fail is not None:
            self.steps.append("failed commit")
            raise self.fail
        for batch in batches:
            for key, value in batch.rows.items():
                if key[:1] in b"Bb" and value:
                    for _, _, source, _ in unpack_block(value):
                        if isinstance(source, Chunk):
                            self.objects.check_durable(source)
        super().commit(batches, records, freeing=freeing)
        self.steps.append("commit")
        state = records.get(("journal", "state"))
        if state is not None:
            self.states.append(state)


class Objects(LocalObjects):
    """Knows which of its bytes a power loss would leave: `durable`, sizes of objects by number."""

    steps: list[str]
    durable: dict[int, int]

    def sync(self) -> None:
        sizes = {number: os.fstat(fd).st_size for number, fd in self._table.items()}
        grown = {*self.unsynced, *self.sealing}
        super().sync()
        self.durable.update((number, size) for number, size in sizes.items() if self._table[number] in grown)
        self.steps.append("sync")

    def check_durable(self, chunk: Chunk) -> None:
        assert chunk.offset + chunk.length <= self.durable.get(chunk.object, 0), (
            "a row names bytes that are not durable"
        )


class Log(Journal):
    __slots__ = ("steps",)
    steps: list[str]

    def free(self, position: int) -> None:
        super().free(position)
        self.steps.append("free")


class World:
    """A shard on the disk with one namespace `ws`; `reopen` is what a new process does after the old one was killed."""

    def __init__(self, root: Path, **changes: object) -> None:
        self.root = root
        self.settings = Settings(journal_size=JOURNAL, wait_limit=0.2, umask=0, uid=0, gid=0).model_copy(update=changes)
        self.replayed = 0
        self.durable: dict[int, int] = {}
        self.open()

    def open(self) -> None:
        self.steps: list[str] = []
        self.engine = Engine(self.root / "meta.db", create=not (self.root / "journal").exists())
        self.journal = Log(self.root / "journal", self.settings.journal_size)
        self.objects = Objects(self.root / "objects")
        self.objects.durable = self.durable
        self.engine.objects = self.objects
        self.engine.states = []
        self.engine.steps = self.journal.steps = self.objects.steps = self.steps
        self.shard = Shard(self.engine, self.journal, self.objects, self.settings)
        self.store = Store(self.root, self.shard, MemorySessions(), self.settings)

    async def make(self, name: str = "ws") -> Tree:
        namespace = await self.store.create_namespace("box", Scope.SANDBOX, None, name, mode=0o755)
        await self.shard.commit()
        self.steps.clear()
        return self.store.volume(namespace).tree

    async def reopen(self) -> Tree:
        if self.journal.fd >= 0:
            self.shard.abandon()
        self.open()
        self.replayed = await self.shard.recover()
        self.steps.clear()
        return self.tree()

    def namespace(self, name: str = "ws") -> Namespace:
        return self.store.namespace_at("box", "shared", name)

    def tree(self, name: str = "ws") -> Tree:
        return self.shard.tree(self.namespace(name))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return _made(tmp_path)


_worlds: list[World] = []


def _made(root: Path, **changes: object) -> World:
    (root / "objects").mkdir()
    world = World(root, **changes)
    _worlds.append(world)
    return world


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _worlds:
        world = _worlds.pop()
        if world.journal.fd >= 0:
            world.shard.abandon()


def _write(tree: Tree, name: bytes, data: bytes) -> None:
    node = tree.lookup(tree.root(), name) or tree.create(tree.root(), name, 0o644, 0, 0)
    tree.write(node, 0, data)


async def _content(tree: Tree, name: bytes) -> bytes:
    node = tree.lookup(tree.root(), name)
    assert node is not None, name
    return await waiting(tree.read_bytes, node, 0, node.size)


def _names(tree: Tree) -> list[bytes]:
    return [name for name, _ in tree.listing(tree.root())]


def _refused(number: int, tree: Tree) -> None:
    changes: list[Callable[[], object]] = [
        lambda: tree.create(tree.root(), b"refused", 0o644, 0, 0),
        lambda: tree.unlink(tree.root(), b"kept"),
    ]
    for change in changes:
        with pytest.raises(FsError) as caught:
            change()
        assert caught.value.errno == number
    assert b"refused" not in _names(tree)


# the order of a commit
async def test_bytes_are_durable_before_rows_and_rows_before_the_journal_is_free(world: World) -> None:
    tree = await world.make()
    _write(tree, b"large", LARGE)
    _write(tree, b"small", b"s" * 5000)
    assert world.journal.used > 0
    await world.shard.commit()
    assert world.steps == ["sync", "commit", "free"]
    assert world.journal.used == 0
    assert world.objects.durable
    assert await _content(tree, b"large") == LARGE


async def test_the_position_is_in_the_same_transaction_and_covers_what_was_logged(world: World) -> None:
    tree = await world.make()
    _write(tree, b"f", b"1")
    state = world.journal.state()
    world.engine.states.clear()
    await world.shard.commit()
    assert world.engine.states == [state]
    assert world.engine.record("journal", "state") == state


async def test_what_is_written_during_a_commit_waits_for_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = await world.make()
    _write(tree, b"f", b"first" * 1000)
    sync = world.objects.sync

    def meanwhile() -> None:
        trio.from_thread.run_sync(_write, tree, b"g", LARGE)
        trio.from_thread.run_sync(_write, tree, b"f", b"again" * 1000)
        monkeypatch.setattr(world.objects, "sync", sync)
        sync()

    monkeypatch.setattr(world.objects, "sync", meanwhile)
    await world.shard.commit()
    assert world.journal.used > 0
    assert await _content(tree, b"f") == b"again" * 1000
    await world.shard.commit()
    assert world.journal.used == 0
    tree = await world.reopen()
    assert world.replayed == 0
    assert (await _content(tree, b"f"), await _content(tree, b"g")) == (b"again" * 1000, LARGE)


async def test_commits_share_one(world: World) -> None:
    tree = await world.make()
    _write(tree, b"f", b"1")
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(world.shard.commit)
    assert world.steps == ["sync", "commit", "free"]
    assert world.shard.statistics().commits == 2  # and one made the namespace


async def test_a_commit_of_nothing_is_none(world: World) -> None:
    tree = await world.make()
    await world.shard.commit()
    assert world.steps == []
    _write(tree, b"f", b"1")
    await world.shard.commit()
    await world.shard.commit()
    assert world.steps == ["sync", "commit", "free"]


async def test_a_call_sees_what_was_logged_before_it(world: World) -> None:
    """Also while a commit that does not have it is under way."""
    tree = await world.make()
    _write(tree, b"f", b"1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.shard.commit)
        await trio.testing.wait_all_tasks_blocked(0.0)
        _write(tree, b"g", b"2")
        await world.shard.commit()
        assert world.journal.used == 0


@pytest.mark.parametrize("type", list(NamespaceType))
async def test_a_namespace_that_only_the_journal_has_is_made_again(world: World, type: NamespaceType) -> None:
    await world.shard.recover()
    made = await world.store.create_namespace("box", Scope.SANDBOX, None, "new", type=type, metadata={"a": 1})
    world.shard.abandon()
    world.open()
    assert world.shard.catalogue.by_serial == {}
    await world.shard.recover()
    found = world.namespace("new")
    assert found == made
    tree = world.shard.tree(found)
    assert [name for name, _ in await waiting(tree.listing, tree.root())] == [b"_data"] * (type == "blob")
    assert world.shard.catalogue.next_serial() > made.serial


async def test_a_document_that_no_record_could_hold_is_refused(world: World) -> None:
    with pytest.raises(InvalidError, match="shorten it"):
        await world.store.create_namespace("box", Scope.SANDBOX, None, "new", metadata={"a": "x" * (1 << 20)})
    assert world.shard.catalogue.by_serial == {}


# a commit that fails
async def test_a_commit_that_fails_keeps_everything(world: World) -> None:
    tree = await world.make()
    _write(tree, b"f", LARGE)
    volume = world.store.volume(world.namespace())
    await volume.checkpoint("one")
    _write(tree, b"f", LARGE[::-1])
    used = world.journal.used
    world.engine.fail = UnavailableError("the engine is asleep")
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await world.shard.commit()
    assert world.journal.used == used
    assert world.steps == ["sync", "failed commit"] * 2
    assert world.shard.statistics().trouble == "the engine is asleep"
    assert world.shard.failure is None
    _write(tree, b"g", b"goes on")
    world.engine.fail = None
    await world.shard.commit()
    assert (world.journal.used, world.shard.statistics().trouble) == (0, "")
    tree = await world.reopen()
    assert world.replayed == 0
    assert (await _content(tree, b"f"), await _content(tree, b"g")) == (LARGE[::-1], b"goes on")
    view = await world.store.volume(world.namespace()).view("one")
    assert await _content(view, b"f") == LARGE


async def test_a_kill_after_a_commit_that_failed_loses_nothing(world: World) -> None:
    tree = await world.make()
    _write(tree, b"f", LARGE)
    _write(tree, b"g", b"small")
    world.engine.fail = UnavailableError("the engine is asleep")
    with pytest.raises(UnavailableError):
        await world.shard.commit()
    tree = await world.reopen()
    assert world.replayed > 0
    assert (await _content(tree, b"f"), await _content(tree, b"g")) == (LARGE, b"small")


async def test_the_catalogue_of_a_commit_that_failed_is_in_the_next(world: World) -> None:
    await world.make()
    world.engine.fail = UnavailableError("the engine is asleep")
    with pytest.raises(UnavailableError):
        await world.store.rename_namespace(world.namespace(), "renamed")
    assert world.shard.catalogue.records
    assert ("journal", "state") not in world.shard.catalogue.records
    world.engine.fail = None
    await world.shard.commit()
    world.shard.abandon()
    world.open()
    assert world.namespace("renamed").name == "renamed"


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EIO, UnavailableError)])
async def test_a_disk_that_takes_no_bytes_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[ArtfsError]
) -> None:
    tree = await world.make()
    _write(tree, b"f", b"x" * 5000)

    def fails(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched, pytest.raises(kind):
        patched.setattr(os, "pwritev", fails)
        await world.shard.commit()
    await world.shard.commit()
    assert world.journal.used == 0
    assert await _content(await world.reopen(), b"f") == b"x" * 5000


@pytest.mark.logs_errors
async def test_the_background_tries_again(world: World) -> None:
    tree = await world.make()
    world.engine.fail = UnavailableError("the engine is asleep")
    _write(tree, b"f", b"1")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.shard.run)
            world.shard.kick()
            while world.shard.trouble is None:
                await trio.sleep(0.005)
            world.engine.fail = None
            while world.journal.used:
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
    assert await _content(await world.reopen(), b"f") == b"1"


# a full journal
def _fill(tree: Tree) -> int:
    """Small writes until the tree would have to wait; how many."""
    _write(tree, b"kept", b"")
    node = tree.lookup(tree.root(), b"kept")
    assert node is not None
    for count in range(1000):
        try:
            tree.write(node, count * 60_000, b"%05d" % count * 12_000)
        except MustWait:
            return count
    raise AssertionError("the journal is never full")


@pytest.mark.logs_errors
@pytest.mark.parametrize(
    ("failure", "number"),
    [(NoSpaceError("the disk is full"), errno.ENOSPC), (UnavailableError("the engine is asleep"), errno.EIO)],
)
async def test_a_writer_waits_for_room_and_is_refused_at_the_limit(
    world: World, failure: ArtfsError, number: int
) -> None:
    tree = await world.make()
    world.engine.fail = failure
    count = _fill(tree)
    node = tree.lookup(tree.root(), b"kept")
    assert node is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.shard.run)
        began = trio.current_time()
        with pytest.raises(FsError) as caught:
            await waiting(tree.write, node, count * 60_000, b"x" * 100)
        assert caught.value.errno == number
        assert trio.current_time() - began >= world.settings.wait_limit
        assert (await _content(tree, b"kept"))[-5:] == b"%05d" % (count - 1)  # what was acknowledged can be read
        world.engine.fail = None
        with trio.fail_after(10):
            while world.journal.used >= world.journal.soft:
                await trio.sleep(0.01)
            await waiting(tree.write, node, count * 60_000, b"y" * 100)
        nursery.cancel_scope.cancel()
    data = await _content(await world.reopen(), b"kept")
    assert data == b"".join(b"%05d" % n * 12_000 for n in range(count)) + b"y" * 100


async def test_a_writer_goes_on_as_soon_as_there_is_room(tmp_path: Path) -> None:
    world = _made(tmp_path, wait_limit=30.0, commit_interval=60.0)
    tree = await world.make()
    count = _fill(tree)
    node = tree.lookup(tree.root(), b"kept")
    assert node is not None
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.shard.run)
            await waiting(tree.write, node, count * 60_000, b"z")
            nursery.cancel_scope.cancel()
    assert world.steps[:3] == ["sync", "commit", "free"]


async def test_the_last_part_of_the_journal_is_for_what_frees_space(world: World) -> None:
    tree = await world.make()
    _write(tree, b"other", b"x")
    _fill(tree)
    with pytest.raises(MustWait):
        tree.create(tree.root(), b"more", 0o644, 0, 0)
    tree.unlink(tree.root(), b"other")
    assert _names(tree) == [b"kept"]
    assert _names(await world.reopen()) == [b"kept"]


# failures for good
@pytest.mark.logs_errors
async def test_a_journal_that_cannot_be_written_ends_changes(world: World) -> None:
    tree = await world.make()
    _write(tree, b"kept", b"acknowledged")

    def fails(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    told: list[ArtfsError] = []
    world.shard.on_damage = told.append
    world.journal.pwritev = fails
    with pytest.raises(OSError):
        tree.create(tree.root(), b"lost", 0o644, 0, 0)
    world.journal.pwritev = os.pwritev
    assert told == [world.shard.failure]
    _refused(errno.EROFS, tree)
    assert await _content(tree, b"kept") == b"acknowledged"
    await world.shard.close()
    tree = await world.reopen()
    assert await _content(tree, b"kept") == b"acknowledged"
    _write(tree, b"new", b"goes on")


@pytest.mark.logs_errors
async def test_what_is_logged_together_is_there_or_ends_changes(world: World) -> None:
    tree = await world.make()
    with world.shard.together():
        _write(tree, b"kept", b"acknowledged")
        _write(tree, b"too", b"as well")

    def fails(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    world.journal.pwritev = fails
    with pytest.raises(FsError) as caught, world.shard.together():
        tree.create(tree.root(), b"lost", 0o644, 0, 0)
        assert world.shard.failure is None
    assert caught.value.errno == errno.EIO
    world.journal.pwritev = os.pwritev
    _refused(errno.EROFS, tree)
    await world.shard.close()
    tree = await world.reopen()
    assert [await _content(tree, name) for name in (b"kept", b"too")] == [b"acknowledged", b"as well"]
    assert tree.lookup(tree.root(), b"lost") is None


@pytest.mark.logs_errors
async def test_an_fsync_that_fails_ends_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = await world.make()
    _write(tree, b"kept", LARGE)

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched, pytest.raises(FsError) as caught:
        patched.setattr(os, "fdatasync", fails)
        await world.shard.sync()
    assert caught.value.errno == errno.EIO
    assert "check the disk" in world.shard.statistics().failure
    _refused(errno.EROFS, tree)
    other = world.shard.tree(world.namespace())
    assert other.locked
    assert await _content(tree, b"kept") == LARGE


async def test_fsync_covers_objects_first_and_the_journal_last(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = await world.make()
    await world.shard.sync()
    _write(tree, b"f", LARGE)
    synced: list[int] = []
    fdatasync = os.fdatasync

    def watched(fd: int) -> None:
        fdatasync(fd)
        synced.append(fd)

    monkeypatch.setattr(os, "fdatasync", watched)
    await world.shard.sync()
    assert synced == [*world.objects.unsynced, world.journal.fd]
    assert len(synced) == 3  # the object, its directory, the journal


@pytest.mark.logs_errors
async def test_a_commit_that_cannot_sync_objects_ends_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another try would succeed without the bytes.  The journal keeps what it holds, for the next start."""
    tree = await world.make()
    await world.shard.commit()
    _write(tree, b"kept", LARGE)
    used = world.journal.used
    fdatasync = os.fdatasync

    def fails(fd: int) -> None:
        if fd in world.objects.unsynced:
            raise OSError(errno.EIO, "Input/output error")
        fdatasync(fd)

    with monkeypatch.context() as patched, pytest.raises(UnavailableError, match="check the disk"):
        patched.setattr(os, "fdatasync", fails)
        await world.shard.commit()
    assert "check the disk" in world.shard.statistics().failure
    assert world.journal.used == used
    _refused(errno.EROFS, tree)
    with pytest.raises(UnavailableError):
        await world.shard.commit()
    with pytest.raises(FsError, match="Input/output"):
        await world.shard.sync()


# ends and beginnings
async def test_close_commits(world: World) -> None:
    tree = await world.make()
    _write(tree, b"f", LARGE)
    await world.shard.close()
    assert world.steps == ["sync", "commit", "free"]
    tree = await world.reopen()
    assert (world.replayed, await _content(tree, b"f")) == (0, LARGE)


async def test_close_lets_go_also_when_its_commit_fails(world: World) -> None:
    tree = await world.make()
    _write(tree, b"f", b"1")
    world.engine.fail = UnavailableError("the engine is asleep")
    with pytest.raises(UnavailableError):
        await world.shard.close()
    assert world.journal.fd == -1
    tree = await world.reopen()
    assert (world.replayed, await _content(tree, b"f")) == (2, b"1")


async def test_what_was_acknowledged_survives_a_kill(world: World) -> None:
    tree = await world.make()
    root = tree.root()
    _write(tree, b"small", b"s" * 5000)
    _write(tree, b"large", LARGE)
    await world.shard.commit()
    _write(tree, b"small", b"S" * 100)
    _write(tree, b"new", LARGE + b"tail")
    tree.rename(root, b"large", root, b"moved")
    tree.unlink(root, b"small")
    folder = tree.mkdir(root, b"folder", 0o700, 1, 2)
    tree.setxattr(folder, b"user.a", b"value")
    counters = tree.counters()
    tree = await world.reopen()
    assert world.replayed > 0
    assert sorted(_names(tree)) == [b"folder", b"moved", b"new"]
    assert (await _content(tree, b"moved"), await _content(tree, b"new")) == (LARGE, LARGE + b"tail")
    found = tree.lookup(tree.root(), b"folder")
    assert found is not None and tree.getxattr(found, b"user.a") == b"value"
    again = tree.counters()
    assert (again.used_bytes, again.used_inodes) == (counters.used_bytes, counters.used_inodes)
    assert again.numbers >= counters.numbers and again.cookies >= counters.cookies
    await world.reopen()
    assert world.replayed == 0  # recovery commits what it found


async def test_recovery_can_be_killed_too(world: World) -> None:
    tree = await world.make()
    _write(tree, b"f", LARGE)
    _write(tree, b"g", b"small")
    world.shard.abandon()
    world.open()
    world.engine.fail = UnavailableError("killed")
    with pytest.raises(UnavailableError):
        await world.shard.recover()
    tree = await world.reopen()
    assert world.replayed == 4
    assert (await _content(tree, b"f"), await _content(tree, b"g")) == (LARGE, b"small")


async def test_records_of_a_namespace_that_is_gone_are_passed_over(world: World) -> None:
    tree = await world.make()
    _write(tree, b"before", b"1")
    key = b"I" + bytes(8)
    world.journal.append(4711, ROW.pack(b"R", len(key), 3) + key + b"???")
    _write(tree, b"after", b"2")
    tree = await world.reopen()
    assert (await _content(tree, b"before"), await _content(tree, b"after")) == (b"1", b"2")
    assert world.replayed == 4


@pytest.mark.parametrize("damage", ["missing", "short", "other bytes"])
async def test_replay_ends_at_bytes_that_did_not_reach_the_disk(
    world: World, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tree = await world.make()
    _write(tree, b"before", b"1")
    _write(tree, b"torn", LARGE)
    _write(tree, b"after", b"2")
    (path,) = [path for path in (world.root / "objects").rglob("*") if path.is_file()]
    world.shard.abandon()
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        os.truncate(path, 100)
    else:
        path.write_bytes(bytes(len(LARGE)))
    tree = await world.reopen()
    assert "did not reach the disk" in caplog.text
    assert _names(tree) == [b"before", b"torn"]
    assert (await _content(tree, b"before"), await _content(tree, b"torn")) == (b"1", b"")
    _write(tree, b"later", b"3")
    tree = await world.reopen()  # and nothing of the old chain comes back behind what is new
    assert sorted(_names(tree)) == [b"before", b"later", b"torn"]
    assert await _content(tree, b"later") == b"3"


async def test_inodes_without_a_name_end_with_their_process(world: World) -> None:
    tree = await world.make()
    _write(tree, b"f", LARGE)
    node = tree.lookup(tree.root(), b"f")
    assert node is not None
    node.looks = 1  # a kernel has it open
    await world.shard.commit()
    tree.unlink(tree.root(), b"f")
    await world.shard.commit()
    assert tree.scan(b"i") != []
    tree = await world.reopen()
    assert tree.scan(b"i") == []
    await world.shard.commit()
    assert world.engine.scan(tree.serial, b"i") == world.engine.scan(tree.serial, b"b") == []
    assert tree.used_bytes == 0


# another size of the journal
def _turn(tree: Tree, world: World, rounds: int) -> None:
    node = tree.lookup(tree.root(), b"f")
    assert node is not None
    for n in range(rounds):
        tree.write(node, n * 60_000, b"%05d" % n * 12_000)


async def test_a_larger_journal_finds_the_records_of_the_smaller(world: World) -> None:
    tree = await world.make()
    _write(tree, b"f", b"")
    for _ in range(4):  # until positions are beyond the first ring
        _turn(tree, world, 50)
        await world.shard.commit()
    assert world.journal.position > JOURNAL
    _write(tree, b"late", b"acknowledged")
    world.settings = world.settings.model_copy(update={"journal_size": 3 * JOURNAL})
    tree = await world.reopen()
    assert (world.replayed, await _content(tree, b"late")) == (2, b"acknowledged")
    assert world.shard.statistics().journal_size == 3 * JOURNAL
    for _ in range(4):
        _turn(tree, world, 200)
        await world.shard.commit()
    _write(tree, b"later", b"too")
    tree = await world.reopen()
    assert (world.replayed, await _content(tree, b"later")) == (2, b"too")
    world.settings = world.settings.model_copy(update={"journal_size": JOURNAL})
    _write(tree, b"last", b"again")
    tree = await world.reopen()  # it does not shrink
    assert (await _content(tree, b"last"), world.journal.size) == (b"again", 3 * JOURNAL)


async def test_a_journal_that_cannot_grow_keeps_its_records(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = await world.make()
    _write(tree, b"f", b"acknowledged")
    world.shard.abandon()
    pwrite = os.pwrite

    def full(fd: int, data: bytes, at: int) -> int:
        if at >= JOURNAL + (2 << 20):
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, data, at)

    with monkeypatch.context() as patched, pytest.raises(NoSpaceError, match="free some space"):
        patched.setattr(os, "pwrite", full)
        Journal(world.root / "journal", 2 * JOURNAL)
    assert (world.root / "journal").stat().st_size == JOURNAL
    assert await _content(await world.reopen(), b"f") == b"acknowledged"
