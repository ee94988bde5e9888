"""Recovery: a store from its provider alone, as it was when it was saved last, whatever happened to the newest copy."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from artfs.errors import (
    BusyError,
    DamagedError,
    DeniedError,
    ExistsError,
    FormatError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from artfs.meta import Batch
from artfs.meta.sqlite import SqliteEngine
from artfs.objects import Home, Provider, marker
from artfs.objects.disk import DiskProvider
from artfs.objects.framed import FramedProvider
from artfs.objects.local import LocalObjects
from artfs.objects.memory import MemoryProvider
from artfs.sessions.sqlite import SqliteSessions
from artfs.settings import Settings, create_store, load_settings, read_store
from artfs.store.running import running
from artfs.store.store import Store
from artfs.types import Epoch, Scope, Serial
from artfs.volume.journal import Journal
from artfs.volume.packs import pack_name
from artfs.volume.recovery import DRAFT, NUMBERS_GAP, Recovered, recover
from artfs.volume.rows import HEAD_KEY, Head
from artfs.volume.saving import Saver
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree
from artfs.volume.waiting import run as waiting
from tests.contract import copies
from tests.contract.copies import Source, dump, files

URL = "test://place"
MIB = 1 << 20


@pytest.fixture
def place() -> copies.Place:
    return copies.Place()


@pytest.fixture
def source(tmp_path: Path, place: copies.Place) -> Iterator[Source]:
    made = Source(tmp_path / "store", place)
    trio.run(made.claim)
    yield made
    made.close()


async def bring(place: MemoryProvider, root: Path) -> Recovered:
    return await recover(place, URL, root)


async def test_what_was_saved_is_there(source: Source, place: copies.Place, tmp_path: Path) -> None:
    source.fill(5000, 300)
    for round in range(5):
        source.write({round: None, round + 7: b"other"}, {"n": str(round)})
        saved = await source.saver.save()
    source.write({3: b"never saved"})
    before = tmp_path / "new"
    steps: list[tuple[int, int]] = []
    found = await recover(place, URL, before, lambda done, total: steps.append((done, total)))
    assert (found.moment, found.sequence, found.skipped) == (saved.moment, 5, ())
    assert found.uuid == source.identity["uuid"]
    assert steps[-1][0] == steps[-1][1] == found.bytes
    source.write({3: None})
    assert dump(before / "meta.db") == source.dump()
    assert read_store(before).model_dump() == source.identity
    assert load_settings(before, {}).provider == URL
    assert files(before) == {"meta.db", "store.json", "config.toml", "saved.json", "lock"}
    engine = SqliteEngine(before / "meta.db", create=False)
    assert int(engine.record("counter", "generation") or 0) == found.generation > 0
    assert engine.record("journal", "state") is None
    assert engine.check() == []
    engine.close()


async def test_the_old_host_saves_no_more_and_the_new_one_goes_on(
    source: Source, place: copies.Place, tmp_path: Path
) -> None:
    source.fill(500, 300)
    await source.saver.save()
    found = await bring(place, tmp_path / "new")
    source.write({1: b"late"})
    with pytest.raises(BusyError, match="recovered elsewhere"):
        await source.saver.save()
    new = Source(tmp_path / "new", place, found.generation, found.uuid)
    await new.claim()
    new.write({2: b"new"})
    await new.saver.save()
    await bring(place, tmp_path / "third")
    assert dump(tmp_path / "third" / "meta.db") == new.dump()
    new.close()


async def test_what_the_old_host_saves_meanwhile_is_taken(tmp_path: Path) -> None:
    class Busy(copies.Place):
        """The old host saves while the marker is taken over."""

        async def put(self, name: str, source: Path | bytes) -> None:
            if name == marker.NAME and old.saver.saves == 1:
                old.write({1: b"meanwhile"})
                await old.saver.save()
            await super().put(name, source)

    place = Busy()
    old = Source(tmp_path / "store", place)
    await old.claim()
    await old.saver.save()
    assert (await bring(place, tmp_path / "new")).sequence == 2
    assert dump(tmp_path / "new" / "meta.db") == old.dump()
    old.close()


@pytest.mark.parametrize("cut", ["tail", "empty", "bit in the manifest", "bit in a segment", "gone", "another pack"])
async def test_a_damaged_newest_copy_is_passed_over(
    source: Source, place: copies.Place, tmp_path: Path, cut: str, caplog: pytest.LogCaptureFixture
) -> None:
    source.fill(300, 300)
    first = await source.saver.save()
    before = source.dump()
    source.fill(300, 300, 2)
    await source.saver.save()
    if cut == "gone":
        await place.forget(pack_name(2))
    elif cut == "another pack":
        await MemoryProvider.put(place, pack_name(2), place.bytes_of(pack_name(1)))
    elif cut in ("tail", "empty"):
        await place.spoil(2, 0 if cut == "empty" else -9)
    else:
        at = -100 if "manifest" in cut else 50
        await place.spoil(2, at, bytes([place.bytes_of(pack_name(2))[at] ^ 1]))
    found = await bring(place, tmp_path / "new")
    assert (found.sequence, found.moment) == (1, first.moment)
    assert dump(tmp_path / "new" / "meta.db") == before
    assert len(found.skipped) == (cut != "gone")
    assert bool([r for r in caplog.records if r.levelname == "WARNING"]) == (cut != "gone")


async def test_a_damaged_older_pack_that_all_need_is_an_error(
    source: Source, place: copies.Place, tmp_path: Path
) -> None:
    source.fill(3000, 300)
    for round in range(3):
        source.write({round: b"x"})
        await source.saver.save()
    await place.spoil(1, 1000, b"\0\1\2\3")
    with pytest.raises(DamagedError, match="no copy of the metadata is whole"):
        await bring(place, tmp_path / "new")
    assert not (tmp_path / "new" / "store.json").exists()


async def test_a_provider_that_is_away_is_no_damage(source: Source, place: copies.Place, tmp_path: Path) -> None:
    for round in range(3):
        source.write({round: b"x"})
        await source.saver.save()
    calls = 0

    def fail(call: str, name: str) -> None:
        nonlocal calls
        calls += call == "get"
        if calls > 2:
            raise UnavailableError("away")

    place.fail = fail
    with pytest.raises(UnavailableError, match="away"):
        await bring(place, tmp_path / "new")
    place.fail = lambda call, name: None
    assert (await bring(place, tmp_path / "new")).sequence == 3
    assert dump(tmp_path / "new" / "meta.db") == source.dump()
    assert not (tmp_path / "new" / DRAFT).exists()


async def test_nothing_to_recover(place: copies.Place, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no copy"):
        await bring(place, tmp_path / "new")


async def test_a_root_with_a_store_is_refused(source: Source, place: copies.Place, tmp_path: Path) -> None:
    await source.saver.save()
    create_store(tmp_path / "other")
    with pytest.raises(ExistsError, match="holds a store already"):
        await bring(place, tmp_path / "other")
    (tmp_path / "parts" / "objects").mkdir(parents=True)
    with pytest.raises(ExistsError, match="parts of a store"):
        await bring(place, tmp_path / "parts")
    found = await marker.read(place)
    assert found is not None
    assert found.generation == 0, "a recovery that is refused takes nothing over"


async def test_a_directory_of_others_is_refused(source: Source, place: copies.Place, tmp_path: Path) -> None:
    await source.saver.save()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").touch()
    with pytest.raises(InvalidError, match=r"not empty \(notes\.txt\)"):
        await bring(place, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes.txt"]


async def test_settings_that_are_there_stay(source: Source, place: copies.Place, tmp_path: Path) -> None:
    await source.saver.save()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.toml").write_text('provider = "file:///mine"\n')
    await bring(place, tmp_path / "new")
    assert load_settings(tmp_path / "new", {}).provider == "file:///mine"
    await recover(place, URL, tmp_path / "newer", config={"encryption_key": 'file:/a "b"'})
    assert load_settings(tmp_path / "newer", {}).encryption_key == 'file:/a "b"'


async def test_a_copy_of_a_newer_artfs_is_refused(source: Source, place: copies.Place, tmp_path: Path) -> None:
    source.identity["format"] = 99
    await source.saver.save()
    with pytest.raises(FormatError, match="upgrade"):
        await bring(place, tmp_path / "new")


async def test_metadata_of_another_store_than_the_marker_says(
    source: Source, place: copies.Place, tmp_path: Path
) -> None:
    await source.saver.save()
    await MemoryProvider.put(place, marker.NAME, marker.Marker("other", 0, 0).pack())
    with pytest.raises(DamagedError, match="belongs to store other"):
        await bring(place, tmp_path / "new")
    await place.forget(marker.NAME)
    await bring(place, tmp_path / "new")
    found = await marker.read(place)
    assert found is not None
    assert found.uuid == source.identity["uuid"]


async def test_it_can_be_run_again_after_any_failure(source: Source, place: copies.Place, tmp_path: Path) -> None:
    """The Nth call of the provider fails, for every N."""
    source.fill(2000, 300)
    await source.saver.save()
    source.write({1: b"x"})
    await source.saver.save()
    root = tmp_path / "new"
    for limit in range(100):
        left = limit

        def fail(call: str, name: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise UnavailableError("away")

        place.fail = fail
        try:
            await bring(place, root)
            break
        except UnavailableError:
            assert not (root / "store.json").exists()
    assert limit > 3
    assert dump(root / "meta.db") == source.dump()


async def test_an_encrypted_copy(place: copies.Place, tmp_path: Path) -> None:
    key = bytes(range(32))
    source = Source(tmp_path / "store", place, encrypted=FramedProvider(place, "aes", key, tmp_path))
    await source.claim()
    source.write({1: b"a secret" * 20})
    first = await source.saver.save()
    before = source.dump()
    source.write({1: b"another one" * 20})
    await source.saver.save()
    source.close()
    assert not [name for name in map(pack_name, place.packs()) if b"secret" in place.bytes_of(name)]
    assert await marker.read(place) is not None
    with pytest.raises(DeniedError):
        await recover(FramedProvider(place, "aes", bytes(32), tmp_path), URL, tmp_path / "new", marked=place)
    with pytest.raises(DamagedError, match="encryption_key must be set"):
        await recover(place, URL, tmp_path / "new")
    await place.spoil(2, -50, b"damage")
    found = await recover(FramedProvider(place, "aes", key, tmp_path), URL, tmp_path / "new", marked=place)
    assert found.sequence == first.sequence
    assert dump(tmp_path / "new" / "meta.db") == before


async def test_encryption_that_begins_later(source: Source, place: copies.Place, tmp_path: Path) -> None:
    source.write({1: b"a secret" * 20})
    await source.saver.save()
    framed = FramedProvider(place, "aes", bytes(range(32)), tmp_path)
    later = Source(source.root, place, id=str(source.identity["uuid"]), encrypted=framed)
    assert (await later.saver.save()).sequence == 2
    assert place.packs() == [2], "what was not encrypted is gone"
    await recover(framed, URL, tmp_path / "new", marked=place)
    assert dump(tmp_path / "new" / "meta.db") == source.dump()
    later.close()


# histories
changes = st.dictionaries(st.integers(0, 400), st.one_of(st.none(), st.integers(0, 1400)), max_size=40)
steps = st.lists(st.one_of(changes, st.sampled_from(["save", "lose", "recover", "reopen"])), max_size=30)


@settings(max_examples=60)
@given(steps)
def test_histories(history: list[dict[int, int | None] | str]) -> None:
    """Commits, saves (some of whose answers are lost), new processes and recoveries, in any order: what is recovered is
    what the database was at the last save that arrived."""
    with tempfile.TemporaryDirectory() as folder:
        trio.run(_history, Path(folder), history)


async def _history(top: Path, history: list[dict[int, int | None] | str]) -> None:
    place = copies.Place()
    source = Source(top / "0", place)
    await source.claim()
    chance = random.Random(0)
    saved: copies.Dump | None = None
    count = 0
    for step in history:
        if isinstance(step, dict):
            source.write({key: None if size is None else chance.randbytes(size) for key, size in step.items()})
        elif step == "save":
            await source.saver.save()
            saved = source.dump()
        elif step == "lose":
            packs = place.packs()
            place.lost = True
            try:
                await source.saver.save()
            except UnavailableError:
                pass
            place.lost = False
            if place.packs() != packs:
                saved = source.dump()
        elif step == "reopen":
            source.close()
            source = Source(source.root, place, source.generation, str(source.identity["uuid"]))
        elif saved is not None:
            count += 1
            found = await bring(place, top / str(count))
            assert dump(top / str(count) / "meta.db") == saved
            source.close()
            source = Source(top / str(count), place, found.generation, found.uuid)
    source.close()


# a whole store
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


@asynccontextmanager
async def opened(root: Path, provider: Provider) -> AsyncIterator[tuple[Store, Saver]]:
    chosen = Settings.model_validate(
        {"provider": URL, "cache_size": 64 * MIB, "cache_reserve": 0, "journal_size": 8 * MIB}
    )
    objects = LocalObjects(root / "objects")
    (root / "objects").mkdir(exist_ok=True)
    journal = Journal(root / "journal", chosen.journal_size)
    shard = Shard(SqliteEngine(root / "meta.db"), journal, objects, chosen, OneProvider(provider))
    store = Store(root, shard, SqliteSessions(root / "meta.db"), chosen)
    store.identity = read_store(root)
    await shard.recover()
    shard.remote.load()
    generation = int(shard.engine.record("counter", "generation") or 0)
    await marker.claim(provider, store.identity.uuid, generation)
    saver = Saver(
        root / "meta.db",
        provider,
        store.identity.model_dump(),
        generation=generation,
        interval=60.0,
        commit=shard.commit,
        push=shard.remote.push_for_copy,
        idle=lambda: False,
        scratch=root,
    )
    try:
        async with running(store):
            yield store, saver
    finally:
        saver.close()
        store.sessions.close()


async def write(tree: Tree, name: bytes, data: bytes) -> None:
    node = await waiting(tree.create, tree.root(), name, 0o644, 0, 0)
    for at in range(0, len(data), MIB):
        await waiting(tree.write, node, at, data[at : at + MIB])


async def read(tree: Tree, name: bytes) -> bytes | None:
    node = await waiting(tree.lookup, tree.root(), name)
    if node is None:
        return None
    return b"".join([await waiting(tree.read_bytes, node, at, MIB) for at in range(0, node.size, MIB)])


async def test_a_store_and_its_files(tmp_path: Path) -> None:
    provider = DiskProvider(tmp_path / "bucket")
    await provider.check()
    provider.url = URL
    create_store(tmp_path / "a")
    data = [os.urandom(size) for size in (100, 50_000, 3 * MIB)]
    async with opened(tmp_path / "a", provider) as (store, saver):
        namespace = await store.create_namespace("box", Scope.SANDBOX, None, "web", provider=URL)
        session = store.sessions.create("box", "ann", ttl_seconds=3600)
        tree = store.volume(namespace).tree
        for i, content in enumerate(data):
            await write(tree, b"f%d" % i, content)
        await store.volume(namespace).checkpoint("one")
        await saver.save()
        await write(tree, b"late", b"never saved")
        taken = {int(path.name, 16) for path in (tmp_path / "bucket").rglob("0*") if path.parent.name != "meta"}
    found = await recover(provider, URL, tmp_path / "b")
    assert found.namespaces == 1
    assert found.elsewhere == ()
    async with opened(tmp_path / "b", provider) as (store, saver):
        assert store.sessions.get("box", session.id).user == "ann"
        namespace = store.catalogue.at("box", "shared", "web")
        tree = store.volume(namespace).tree
        for i, content in enumerate(data):
            assert await read(tree, b"f%d" % i) == content
        assert await read(tree, b"late") is None
        assert [c.name for c in store.volume(namespace).checkpoints()] == ["one"]
        await write(tree, b"new", data[2])
        await saver.save()
        new = {int(path.name, 16) for path in (tmp_path / "b" / "cache").rglob("0*") if len(path.name) == 8}
        assert max(new) >= NUMBERS_GAP, "numbers of objects that may have been used are not used again"
        assert max(taken) < NUMBERS_GAP
        for i, content in enumerate(data):
            assert await read(tree, b"f%d" % i) == content
    await recover(provider, URL, tmp_path / "c")
    async with opened(tmp_path / "c", provider) as (store, _):
        tree = store.volume(store.catalogue.at("box", "shared", "web")).tree
        assert await read(tree, b"new") == data[2]
        assert await read(tree, b"f1") == data[1]


async def test_a_namespace_of_the_lost_directory_is_named(source: Source, place: copies.Place, tmp_path: Path) -> None:
    fields = {
        "serial": 1,
        "id": "ns-1",
        "type": "workspace",
        "sandbox": "box",
        "scope": "sandbox",
        "owner": None,
        "name": "web",
        "created": 1,
        "block_size": MIB,
        "prefix": "grid/box/shared/ns-1",
    }
    head = Head(1, 2, 3, 5, 0, 1)
    source.engine.commit(
        [Batch(Serial(1), Epoch(1), {HEAD_KEY: head.pack()})], {("namespace", "ns-1"): json.dumps(fields)}
    )
    await source.saver.save()
    found = await bring(place, tmp_path / "new")
    assert found.elsewhere == ("grid/box/shared/web",)
    engine = SqliteEngine(tmp_path / "new" / "meta.db", create=False)
    value = engine.get(Serial(1), HEAD_KEY)
    assert value is not None
    assert Head.unpack(value) == head._replace(objects=5 + NUMBERS_GAP)
    engine.close()
