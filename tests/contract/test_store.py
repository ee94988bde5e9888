"""A store: namespaces and their ends, branches, sessions, and who may enter."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import time_ns

import pytest
import trio

from artfs.errors import (
    BusyError,
    ExistsError,
    ExpiredError,
    FsError,
    InvalidError,
    NotFoundError,
)
from artfs.meta.memory import MemoryEngine
from artfs.objects.held import HeldObjects
from artfs.sessions.memory import MemorySessions
from artfs.settings import Settings, create_store
from artfs.store import reaper, scopes
from artfs.store import store as store_module
from artfs.store.describing import describe
from artfs.store.opening import memory_store, open_store
from artfs.store.reaper import TRASH_KEPT
from artfs.store.store import Store
from artfs.types import ADMIN, Access, NamespaceType, Principal, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.journal import NoJournal
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree
from artfs.volume.waiting import run as waiting

SECOND = 10**9
LARGE = bytes(range(256)) * 400
USER, SANDBOX, SESSION = Scope.USER, Scope.SANDBOX, Scope.SESSION


class Clock:
    """Time stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = time_ns()

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (store_module, scopes, reaper):
        monkeypatch.setattr(module, "time_ns", made)
    return made


@pytest.fixture
async def store(clock: Clock) -> AsyncIterator[Store]:
    """In memory, without its background work: nothing is reaped but by `reap`."""
    settings = Settings()
    shard = Shard(MemoryEngine(), NoJournal(), HeldObjects(), settings)
    yield Store(None, shard, MemorySessions(now=clock), settings)
    await shard.close()


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Store]:
    if not root.exists():
        create_store(root)
    async with open_store(root, "test") as store:
        yield store


def _write(tree: Tree, name: bytes, data: bytes) -> None:
    node = tree.lookup(tree.root(), name) or tree.create(tree.root(), name, 0o644, 0, 0)
    tree.write(node, 0, data)


async def _content(store: Store, namespace: Namespace, name: bytes) -> bytes:
    tree = store.volume(namespace).tree
    node = tree.lookup(tree.root(), name)
    assert node is not None, name
    return await waiting(tree.read_bytes, node, 0, node.size)


def _objects(root: Path) -> list[Path]:
    return [path for path in (root / "objects").rglob("*") if path.is_file()]


class Seen:
    """A surface that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    async def settle(self, volume: object) -> None:
        self.told.append(("settle", ""))

    async def restored(self, volume: object, restored: object) -> None:
        self.told.append(("restored", ""))

    async def gone(self, namespace: Namespace, nodes: list[object]) -> None:
        self.told.append(("gone", namespace.entry))

    async def grid_changed(self, namespace: Namespace) -> None:
        self.told.append(("grid", namespace.entry))

    async def checkpoint_changed(self, namespace: Namespace, checkpoint: object) -> None:
        self.told.append(("checkpoint", namespace.entry))

    async def scope_changed(self, sandbox: str, folder: str) -> None:
        self.told.append(("scope", folder))

    async def names_changed(self, names: object) -> None:
        self.told.append(("names", ""))


def _watch(store: Store) -> list[tuple[str, str]]:
    seen = Seen()
    store.surfaces.append(seen)  # type: ignore[arg-type]
    return seen.told


# namespaces
async def test_a_namespace_is_found_by_its_place(store: Store) -> None:
    told = _watch(store)
    made = await store.create_namespace("box", USER, "ann", "ws", metadata={"k": [1]})
    assert made.grid_path == "grid/box/user-ann/ws"
    assert store.namespace_at("box", "user-ann", "ws") == made
    assert store.catalogue.get(made.id) == made
    assert told == [("grid", "ws")]
    assert store.sandboxes() == {"box", "default"}
    assert store.folders("box") == {(SANDBOX, None), (USER, "ann")}
    for place in [("box", "user-ann", "x"), ("box", "shared", "ws"), ("other", "user-ann", "ws")]:
        with pytest.raises(NotFoundError, match="Namespace not found"):
            store.namespace_at(*place)


async def test_without_a_name_its_id_is_its_entry(store: Store) -> None:
    one = await store.create_namespace("box", SANDBOX, None)
    two = await store.create_namespace("box", SANDBOX, None)
    assert one.entry == one.id != two.id
    assert store.namespace_at("box", "shared", two.id) == two
    assert one.serial != two.serial


async def test_a_taken_name_is_refused_and_changes_nothing(store: Store) -> None:
    first = await store.create_namespace("box", SANDBOX, None, "ws")
    with pytest.raises(ExistsError, match="grid/box/shared/ws exists already"):
        await store.create_namespace("box", SANDBOX, None, "ws")
    assert list(store.catalogue.by_serial.values()) == [first]
    assert (await store.create_namespace("box", USER, "ann", "ws")).serial > first.serial


@pytest.mark.parametrize(
    ("sandbox", "scope", "owner", "name", "ttl"),
    [
        ("a/b", SANDBOX, None, "ws", None),
        ("grid", SANDBOX, None, "ws", None),
        ("box", USER, None, "ws", None),
        ("box", USER, "a/b", "ws", None),
        ("box", SANDBOX, None, "a/b", None),
        ("box", SANDBOX, None, "..", None),
        ("box", SANDBOX, None, "ws", 0.0),
        ("box", SANDBOX, None, "ws", -1.0),
    ],
)
async def test_bad_values_are_refused(
    store: Store, sandbox: str, scope: Scope, owner: str | None, name: str, ttl: float | None
) -> None:
    with pytest.raises(InvalidError):
        await store.create_namespace(sandbox, scope, owner, name, ttl=ttl)
    assert store.catalogue.by_serial == {}


async def test_a_blob_has_its_one_file(store: Store) -> None:
    blob = await store.create_namespace("box", SANDBOX, None, "b", type=NamespaceType.BLOB)
    tree = store.volume(blob).tree
    assert [name for name, _ in tree.listing(tree.root())] == [b"_data"]
    with pytest.raises(FsError):
        tree.create(tree.root(), b"more", 0o644, 0, 0)


async def test_rename_within_the_scope(store: Store) -> None:
    made = await store.create_namespace("box", SANDBOX, None, "old")
    await store.create_namespace("box", SANDBOX, None, "taken")
    volume = store.volume(made)
    told = _watch(store)
    renamed = await store.rename_namespace(made, "new")
    assert (renamed.serial, renamed.prefix) == (made.serial, made.prefix)  # its objects stay where they are
    assert store.namespace_at("box", "shared", "new") == renamed
    with pytest.raises(NotFoundError):
        store.namespace_at("box", "shared", "old")
    assert store.volume(made) is volume and volume.namespace == renamed
    assert told == [("grid", "old"), ("grid", "new")]
    with pytest.raises(ExistsError):
        await store.rename_namespace(renamed, "taken")
    with pytest.raises(InvalidError):
        await store.rename_namespace(renamed, "a/b")
    assert store.namespace_at("box", "shared", "new") == renamed


async def test_what_it_holds_is_told_without_opening_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:
        made = await store.create_namespace("box", SANDBOX, None, "ws", metadata={"a": 1})
        _write(store.volume(made).tree, b"f", LARGE)
        assert store.shard.usage(made) == (len(LARGE), 2)
    async with opened(tmp_path / "s") as store:
        found = store.namespace_at("box", "shared", "ws")
        assert store.shard.usage(found) == (len(LARGE), 2)
        assert store.shard.trees == {}
        shown = json.loads(json.dumps(describe(store, found)))
        assert (shown["id"], shown["bytes"], shown["metadata"]) == (made.id, len(LARGE), {"a": 1})


# expiry
async def test_expiry_is_exact(store: Store, clock: Clock) -> None:
    made = await store.create_namespace("box", SANDBOX, None, "ws", ttl=1.5)
    volume = store.volume(made)
    assert made.expires == clock.now + SECOND * 3 // 2
    clock.now = made.expires - 1
    assert store.volume(made) is volume
    assert await store.reaper.reap() == 0
    clock.now += 1
    for look in (
        lambda: store.alive(made),
        lambda: store.volume(made),
        lambda: store.volume_of(volume.tree),
        lambda: store.namespace_at("box", "shared", "ws"),
    ):
        with pytest.raises(ExpiredError, match="grid/box/shared/ws has expired"):
            look()
    with pytest.raises(ExpiredError):
        await store.rename_namespace(made, "later")
    with pytest.raises(ExpiredError):
        await store.clone(volume, "copy")
    told = _watch(store)
    assert await store.reaper.reap() == 1
    assert told == [("gone", "ws"), ("grid", "ws")]
    with pytest.raises(NotFoundError):
        store.namespace_at("box", "shared", "ws")
    assert store.catalogue.by_serial == {}


async def test_what_expires_does_not_go_to_the_trash(store: Store, clock: Clock) -> None:
    made = await store.create_namespace("box", SANDBOX, None, "ws", ttl=1)
    await store.checkpoint(store.volume(made), "one")
    clock.now += SECOND
    assert await store.reaper.reap() == 1
    assert store.catalogue.by_serial == {}


async def test_the_background_waits_for_the_moment() -> None:
    async with memory_store() as store:
        made = await store.create_namespace("box", SANDBOX, None, "ws", ttl=0.2)
        with trio.fail_after(3):
            while made.serial in store.catalogue.by_serial:
                await trio.sleep(0.01)
        assert made.expires is not None and time_ns() >= made.expires


# the trash
async def test_with_checkpoints_it_goes_to_the_trash_and_comes_back(store: Store, clock: Clock) -> None:
    made = await store.create_namespace("box", SANDBOX, None, "ws")
    volume = store.volume(made)
    _write(volume.tree, b"f", b"first")
    await store.checkpoint(volume, "one")
    _write(volume.tree, b"f", b"after")
    old = volume.tree.root()
    assert await store.destroy_namespace(made) is True
    with pytest.raises(NotFoundError):
        store.volume(made)
    with pytest.raises(FsError):  # who still holds a node of it gets ESTALE
        old.tree.lookup(old, b"f")
    taken = await store.create_namespace("box", SANDBOX, None, "ws")  # its name is free
    back = await store.undelete_namespace(made.id)
    assert (back.serial, back.entry) == (made.serial, "ws~2")
    assert store.namespace_at("box", "shared", "ws") == taken
    assert await _content(store, back, b"f") == b"after"
    await store.restore(store.volume(back), "one")
    assert await _content(store, back, b"f") == b"first"
    with pytest.raises(NotFoundError, match="ns list --trash"):
        await store.undelete_namespace(made.id)


async def test_without_checkpoints_it_is_gone(store: Store) -> None:
    made = await store.create_namespace("box", SANDBOX, None, "ws")
    assert await store.destroy_namespace(made) is False
    with pytest.raises(NotFoundError):
        await store.undelete_namespace(made.id)
    assert store.shard.engine.serials() == set()
    again = await store.create_namespace("box", SANDBOX, None, "ws")
    assert again.serial > made.serial  # a serial is never used again


async def test_the_trash_is_kept_for_a_day(store: Store, clock: Clock) -> None:
    made = await store.create_namespace("box", SANDBOX, None, "ws")
    await store.checkpoint(store.volume(made), "one")
    await store.destroy_namespace(made)
    clock.now += TRASH_KEPT - 1
    assert await store.reaper.reap() == 0
    clock.now += 1
    assert await store.reaper.reap() == 1
    with pytest.raises(NotFoundError):
        await store.undelete_namespace(made.id)
    assert store.shard.engine.serials() == set()


async def test_its_time_to_live_goes_on_in_the_trash(store: Store, clock: Clock) -> None:
    made = await store.create_namespace("box", SANDBOX, None, "ws", ttl=10)
    await store.checkpoint(store.volume(made), "one")
    await store.destroy_namespace(made)
    clock.now += 10 * SECOND
    assert await store.reaper.reap() == 1
    assert store.catalogue.by_serial == {}


# branches
async def test_a_branch_of_a_branch_outlives_both(tmp_path: Path) -> None:
    root = tmp_path / "s"
    async with opened(root) as store:
        one = await store.create_namespace("box", SANDBOX, None, "one")
        _write(store.volume(one).tree, b"large", LARGE)
        _write(store.volume(one).tree, b"small", b"s" * 5000)
        two = await store.clone(store.volume(one), "two")
        _write(store.volume(two).tree, b"mine", b"of two" * 1000)
        three = await store.clone(store.volume(two), "three")
        _write(store.volume(two).tree, b"mine", b"changed")
        _write(store.volume(one).tree, b"large", b"changed")
        assert await store.destroy_namespace(one) is False
        assert await store.destroy_namespace(two) is False
        assert await _content(store, three, b"large") == LARGE
    async with opened(root) as store:
        three = store.namespace_at("box", "shared", "three")
        assert await _content(store, three, b"large") == LARGE
        assert await _content(store, three, b"small") == b"s" * 5000
        assert await _content(store, three, b"mine") == b"of two" * 1000
        assert store.shard.usage(three) == (len(LARGE) + 5000 + 6000, 4)
        four = await store.clone(store.volume(three), "four")
        assert await _content(store, four, b"large") == LARGE


async def test_in_memory_too(store: Store) -> None:
    one = await store.create_namespace("box", SANDBOX, None, "one")
    _write(store.volume(one).tree, b"f", LARGE)
    two = await store.clone(store.volume(one), "two")
    await store.destroy_namespace(one)
    await store.checkpoint(store.volume(two), "c")
    await store.destroy_namespace(two)
    store.shard.objects.reap()
    back = await store.undelete_namespace(two.id)
    assert await _content(store, back, b"f") == LARGE


async def test_a_branch_of_a_checkpoint_is_what_it_saw(store: Store) -> None:
    made = await store.create_namespace("box", USER, "ann", "ws", metadata={"a": 1})
    volume = store.volume(made)
    _write(volume.tree, b"f", b"first")
    await store.checkpoint(volume, "one")
    _write(volume.tree, b"f", b"after")
    _write(volume.tree, b"g", b"new")
    branch = await store.clone(volume, "branch", "one")
    assert (branch.scope, branch.owner, branch.metadata) == (USER, "ann", {"a": 1})
    tree = store.volume(branch).tree
    assert [name for name, _ in tree.listing(tree.root())] == [b"f"]
    assert await _content(store, branch, b"f") == b"first"
    assert tree.checkpoints == []
    assert await _content(store, made, b"f") == b"after"


async def test_a_branch_that_cannot_be_made_leaves_nothing(store: Store) -> None:
    made = await store.create_namespace("box", SANDBOX, None, "ws")
    volume = store.volume(made)
    with pytest.raises(ExistsError):
        await store.clone(volume, "ws")
    with pytest.raises(NotFoundError, match="no checkpoint 'none'"):
        await store.clone(volume, "copy", "none")
    with pytest.raises(InvalidError):
        await store.clone(volume, "a/b")
    assert list(store.catalogue.by_serial.values()) == [made]
    assert store.shard.engine.serials() == {made.serial}
    _write(volume.tree, b"f", b"goes on")


async def test_objects_that_were_not_lent_go_with_their_namespace(tmp_path: Path) -> None:
    root = tmp_path / "s"
    async with opened(root) as store:
        made = await store.create_namespace("box", SANDBOX, None, "ws")
        _write(store.volume(made).tree, b"f", LARGE)
        await store.shard.commit()
        assert len(_objects(root)) == 1
        await store.destroy_namespace(made)
        assert await store.collector.bury() == 1
        assert _objects(root) == []
        assert store.shard.engine.records("prefix") == {}


# sessions
async def test_a_session_takes_its_namespaces_with_it(tmp_path: Path) -> None:
    root = tmp_path / "s"
    async with opened(root) as store:
        session = store.sessions.create("box", "ann", ttl_seconds=3600, id="s1")
        plain = await store.create_namespace("box", SESSION, session.id, "plain")
        pinned = await store.create_namespace("box", SESSION, session.id, "pinned")
        trashed = await store.create_namespace("box", SESSION, session.id, "trashed")
        kept = await store.create_namespace("box", USER, "ann", "kept")
        for namespace in (plain, pinned, trashed, kept):
            _write(store.volume(namespace).tree, b"f", LARGE)
        for namespace in (pinned, trashed):
            await store.checkpoint(store.volume(namespace), "one")
        await store.destroy_namespace(trashed)
        await store.shard.commit()
        assert len(_objects(root)) == 4
        told = _watch(store)
        await store.delete_session("box", "s1")
        assert ("scope", "sess-s1") in told
        assert {what for what in told if what[0] == "gone"} == {
            ("gone", "plain"), ("gone", "pinned"), ("gone", "trashed"),
        }  # fmt: skip
        assert [namespace.id for namespace in store.catalogue.by_serial.values()] == [kept.id]
        await store.collector.bury()
        assert [path.parent.name for path in _objects(root)] == [kept.id]
        assert store.shard.engine.serials() == {kept.serial}
        assert store.folders("box") == {(SANDBOX, None), (USER, "ann")}
        with pytest.raises(NotFoundError):
            await store.undelete_namespace(trashed.id)
    async with opened(root) as store:
        assert [namespace.id for namespace in store.catalogue.by_serial.values()] == [kept.id]


async def test_an_expired_session_is_over_before_it_is_reaped(store: Store, clock: Clock) -> None:
    store.sessions.create("box", "ann", ttl_seconds=5, id="s1")
    made = await store.create_namespace("box", SESSION, "s1", "ws")
    await store.checkpoint(store.volume(made), "one")
    clock.now += 5 * SECOND - 1
    assert store.alive(made) == made
    clock.now += 1
    with pytest.raises(ExpiredError):
        store.alive(made)
    with pytest.raises(ExpiredError):
        await store.create_namespace("box", SESSION, "s1", "late")
    assert await store.reaper.reap() == 1
    assert store.catalogue.by_serial == {}
    assert await store.reaper.reap() == 0
    with pytest.raises(ExpiredError):  # it stays known as expired
        store.session("box", "s1")


async def test_a_session_must_live_to_get_a_namespace(store: Store) -> None:
    with pytest.raises(NotFoundError, match="Invalid session"):
        await store.create_namespace("box", SESSION, "nobody", "ws")
    store.sessions.create("box", ttl_seconds=5, id="s1")
    with pytest.raises(NotFoundError):  # another sandbox's does not exist
        await store.create_namespace("other", SESSION, "s1", "ws")
    made = await store.create_namespace("box", SESSION, "sess-s1", "ws")  # either spelling
    assert made.owner == "s1"


async def test_nothing_comes_back_from_the_trash_of_an_ended_session(store: Store, clock: Clock) -> None:
    store.sessions.create("box", ttl_seconds=5, id="s1")
    made = await store.create_namespace("box", SESSION, "s1", "ws")
    await store.checkpoint(store.volume(made), "one")
    await store.destroy_namespace(made)
    clock.now += 5 * SECOND
    with pytest.raises(ExpiredError):
        await store.undelete_namespace(made.id)
    assert [namespace.trashed is not None for namespace in store.catalogue.by_serial.values()] == [True]


# access
async def test_who_may_enter(store: Store, clock: Clock) -> None:
    store.sessions.create("box", "ann", ttl_seconds=5, id="s1")
    store.sessions.create("box", "bob", ttl_seconds=50, id="s2")
    of_session = await store.create_namespace("box", SESSION, "s1", "a")
    of_user = await store.create_namespace("box", USER, "ann", "b")
    shared = await store.create_namespace("box", SANDBOX, None, "c")

    def may(principal: Principal) -> list[Access]:
        return [store.access(principal, n.sandbox, n.scope, n.owner) for n in (of_session, of_user, shared)]

    none, read, write = Access.NONE, Access.READ, Access.WRITE
    assert may(ADMIN) == [write] * 3
    assert may(Principal("box", session="s1")) == [write, write, read]
    assert may(Principal("box", session="s2")) == [none, none, read]
    assert may(Principal("box", user="ann")) == [write, write, read]
    assert may(Principal("box")) == [none, none, read]
    assert may(Principal("other", user="ann")) == [none] * 3
    assert may(Principal("box", session="nobody")) == [none] * 3
    clock.now += 5 * SECOND
    assert may(Principal("box", session="s1")) == [none] * 3
    assert may(Principal("box", user="ann")) == [none, write, read]


async def test_shared_may_be_writable_for_all() -> None:
    async with memory_store(Settings(shared_writable=True)) as store:
        assert store.access(Principal("box"), "box", SANDBOX, None) is Access.WRITE
        assert store.access(Principal("other"), "box", SANDBOX, None) is Access.NONE


# one owner
async def test_a_store_has_one_owner_at_a_time(tmp_path: Path) -> None:
    async with opened(tmp_path / "s"):
        with pytest.raises(BusyError, match="is in use by process"):
            async with opened(tmp_path / "s"):
                raise AssertionError("two owners")
    async with opened(tmp_path / "s") as store:
        assert store.recovered == 0


async def test_what_is_said_of_a_checkpoint_has_a_bound(store: Store) -> None:
    namespace = await store.create_namespace("box", Scope.SANDBOX, None, "web")
    volume = store.volume(namespace)
    for description, labels in (("x" * (64 << 10), {}), ("", {"key": "x" * (64 << 10)})):
        with pytest.raises(InvalidError, match="shorten"):
            await store.checkpoint(volume, "v1", description, labels)
    assert volume.checkpoints() == []
    assert (await store.checkpoint(volume, "v1", "x" * 1000)).description == "x" * 1000
