"""Artifacts through the Python API: in memory, on a root, and through another process; on asyncio and on trio."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import (
    AccessDeniedError,
    ArtifactExpiredError,
    ArtifactNotFoundError,
    ArtifactStore,
    ArtifactStoreError,
    NamespaceType,
    SessionError,
)
from artfs.settings import create_store
from artfs.store.opening import open_store
from artfs.store.service import Service
from artfs.volume.trees import IDLE_TREES, SMALL
from tests.contract.api import a_store, everywhere, owned_elsewhere, program
from tests.contract.loops import on_both_loops

LARGE = bytes(range(256)) * (3 * SMALL // 256) + b"end"
DENIED = AccessDeniedError, ArtifactNotFoundError, SessionError


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# bytes
@on_both_loops
@everywhere
async def test_every_size_comes_back(store: ArtifactStore) -> None:
    for data in (b"", b"x", b"y" * 70_000, LARGE[:SMALL], LARGE[: SMALL + 1], LARGE, LARGE * 12):
        made = await store.store(data, session_id="s")
        assert await store.retrieve(made) == data
        found = await store.metadata(made)
        assert (found.bytes, found.sha256) == (len(data), digest(data))
        assert await store.read_namespace(made) == data
        copy = await store.copy_file(made)
        assert await store.retrieve(copy) == data
        assert (await store.metadata(copy)).meta["copied_from"] == made
        for new in (b"new", LARGE, data):
            assert await store.update_file(made, new) is True
            assert await store.retrieve(made) == new
            assert (await store.metadata(made)).sha256 == digest(new)
        assert await store.retrieve(copy) == data


@on_both_loops
@everywhere
async def test_an_artifact_is_a_blob(store: ArtifactStore) -> None:
    made = await store.store(b"one", session_id="s", summary="it", mime="text/plain", meta={"k": 1})
    info = store.get_namespace_info(made)
    assert (info.type, info.metadata, info.namespace_id) == (NamespaceType.BLOB, {"k": 1}, made)
    checkpoint = await store.checkpoint_namespace(made, "v1")
    await store.update_file(made, b"two")
    await store.write_namespace(made, b"three!")
    found = await store.metadata(made)
    assert (found.bytes, found.sha256, found.summary) == (6, None, "it")
    await store.restore_namespace(made, checkpoint.checkpoint_id)
    assert await store.retrieve(made) == b"one"
    assert (await store.metadata(made)).bytes == 3
    blob = await store.create_namespace("blob", session_id="s", metadata={"k": 2})
    await store.write_namespace(blob.namespace_id, b"plain")
    assert await store.retrieve(blob.namespace_id) == b"plain"
    found = await store.metadata(blob.namespace_id)
    assert (found.bytes, found.mime, found.meta) == (5, "application/octet-stream", {"k": 2})
    assert {one.bytes for one in await store.list_by_session("s")} == {3, 5}
    space = await store.create_namespace("workspace", session_id="s")
    with pytest.raises(ArtifactStoreError, match="path required for workspace"):
        await store.retrieve(space.namespace_id)


# descriptions
@on_both_loops
@everywhere
async def test_updates_change_what_they_say(store: ArtifactStore) -> None:
    made = await store.store(b"x", session_id="s", filename="a.txt", summary="one", meta={"a": 1, "b": [1]})
    assert (await store.metadata(made)).mime == "text/plain"
    found = await store.update_metadata(made, summary="two", meta={"b": {"c": None}})
    assert (found["summary"], found.meta) == ("two", {"a": 1, "b": {"c": None}})
    assert found.updated_at is not None
    found = await store.update_metadata(made, meta={"z": 0}, merge=False, mime="image/png")
    assert (found.meta, found.mime, found.summary) == ({"z": 0}, "image/png", "two")
    moved = await store.move_file(made, new_filename="b/c.txt", new_meta={"y": 1})
    assert (moved.filename, moved.meta, moved.artifact_id) == ("b/c.txt", {"z": 0, "y": 1}, made)
    assert await store.metadata(made) == moved
    for call in (store.update_metadata, store.update_file):
        with pytest.raises(ValueError, match="At least one update parameter"):
            await call(made)
    others: list[dict[str, Any]] = [{"owner_id": "bob"}, {"scope": "user"}, {"sandbox_id": "x"}, {"bytes": 1}]
    for other in others:
        with pytest.raises(ArtifactStoreError, match="cannot be changed"):
            await store.update_metadata(made, **other)
    assert await store.retrieve(made) == b"x"


@on_both_loops
@everywhere
async def test_bad_input_is_refused(store: ArtifactStore) -> None:
    made = await store.store(b"x", session_id="s")
    bad: list[Any] = ["/etc/passwd", "../x", "a/../../b", "..", "", "a\0b", "\\x", "C:\\x", "a\\..\\b", "x" * 2000, 3]
    for name in bad:
        for call in (
            store.store(b"x", session_id="s", filename=name),
            store.write_file(b"x", session_id="s", filename=name),
            store.update_metadata(made, filename=name),
            store.copy_file(made, new_filename=name) if name else store.update_file(made, filename=name),
        ):
            with pytest.raises(ArtifactStoreError):
                await call
    bad = ["text", [1], {1: 2}, {"": 1}, {"../x": 1}, {"a": float("nan")}, {"a": object()}, {"artfs": 1}]
    for meta in bad:
        with pytest.raises(ArtifactStoreError):
            await store.store(b"x", session_id="s", meta=meta)
        with pytest.raises(ArtifactStoreError):
            await store.update_metadata(made, meta=meta)
    for data in ("text", None, 3, ["x"]):
        with pytest.raises(ArtifactStoreError, match="data must be bytes"):
            await store.store(data, session_id="s")  # type: ignore[arg-type]
    for ttl in (0, -1, float("inf"), float("nan"), True, "9"):
        with pytest.raises(ArtifactStoreError, match="ttl"):
            await store.store(b"x", session_id="s", ttl=ttl)  # type: ignore[arg-type]
    bad = [
        {"mime": "no type"},
        {"mime": 3},
        {"summary": 3},
        {"scope": "galaxy"},
        {"scope": "user"},
        {"session_id": "../x"},
        {"session_id": "a/b"},
        {"user_id": "shared"},
        {"meta": {"a": "x" * (2 << 20)}},
    ]
    for arguments in bad:
        with pytest.raises(ArtifactStoreError):
            await store.store(b"x", **arguments)
    for id in ("nothing", "../x", "a/b", "\0"):
        with pytest.raises(ArtifactNotFoundError):
            await store.retrieve(id)
        assert not await store.exists(id)
    bad = [None, "", 3]
    for id in bad:
        with pytest.raises(ValueError, match="id must be"):
            await store.retrieve(id)
    assert len(await store.list_by_session("s")) == 1


# time
@on_both_loops
@everywhere
async def test_times_to_live(store: ArtifactStore) -> None:
    ids = {
        "default": await store.store(b"x", session_id="s"),
        "none": await store.store(b"x", session_id="s", ttl=None),
        "user": await store.store(b"x", user_id="alice", scope="user"),
        "shared": await store.store(b"x", scope="sandbox"),
        "given": await store.store(b"x", user_id="alice", scope="user", ttl=3600),
    }
    found = {name: (await store.metadata(id)).ttl for name, id in ids.items()}
    assert found == {"default": 900, "none": None, "user": None, "shared": None, "given": 3600}
    assert (await store.extend_ttl(ids["given"], 60)).ttl == 3660
    assert (await store.extend_ttl(ids["none"], 60)).ttl is None
    assert (await store.update_metadata(ids["default"], ttl=5)).ttl == 5
    for more in (0, -5, None):
        with pytest.raises(ValueError, match="above 0"):
            await store.extend_ttl(ids["given"], more)  # type: ignore[arg-type]
    short = await store.store(b"x", session_id="s", ttl=0.2)
    other = await store.store(b"x", session_id="s", ttl=0.2)
    await store.extend_ttl(other, 60)
    with anyio.fail_after(10):
        while await store.exists(short):
            await anyio.sleep(0.02)
    for _ in range(2):  # expired, and then gone
        with pytest.raises(ArtifactExpiredError):
            await store.retrieve(short)
        assert short not in {one.artifact_id for one in await store.list_by_session("s")}
        await store.cleanup_expired_sessions()
    assert await store.retrieve(other) == b"x"


@on_both_loops
@everywhere
async def test_a_session_takes_its_artifacts_along(store: ArtifactStore) -> None:
    session = await store.create_session("alice", ttl_hours=0.4 / 3600)
    made = await store.store(b"x", session_id=session, ttl=None)
    kept = await store.store(b"y", session_id=session, user_id="alice", scope="user")
    assert (await store.metadata(kept)).session_id == session
    with anyio.fail_after(10):
        while await store.validate_session(session):
            await anyio.sleep(0.02)
    with pytest.raises(ArtifactExpiredError):
        await store.retrieve(made)
    assert await store.list_by_session(session) == []
    assert await store.retrieve(kept, user_id="alice") == b"y"
    deleted = await store.create_session("alice")
    gone = await store.store(b"x", session_id=deleted)
    await store.delete_session(deleted)
    with pytest.raises(ArtifactExpiredError):
        await store.retrieve(gone)
    with pytest.raises(SessionError):
        await store.store(b"x", session_id=session)


@on_both_loops
async def test_expired_ids_are_known_after_a_restart(tmp_path: Path) -> None:
    async with a_store("root", tmp_path) as store:
        made = await store.store(b"x", user_id="alice", scope="user", ttl=0.05)
        await anyio.sleep(0.1)
        await store.cleanup_expired_sessions()
    async with a_store("root", tmp_path) as store:
        with pytest.raises(ArtifactExpiredError):
            await store.metadata(made)


# identity: see also test_identity
@on_both_loops
@everywhere
async def test_who_makes_what(store: ArtifactStore) -> None:
    session = await store.create_session("alice")
    with pytest.raises(AccessDeniedError):
        await store.store(b"x", session_id=session, user_id="bob")
    bob, alice = store.as_principal(user_id="bob"), store.as_principal(user_id="alice")
    admin = store.as_principal(admin=True)
    foreign: list[dict[str, Any]] = [
        {"session_id": session},
        {"user_id": "alice", "scope": "user"},
        {"scope": "sandbox"},
    ]
    for arguments in foreign:
        with pytest.raises(DENIED):
            await bob.store(b"x", **arguments)
    assert await store.search() == []
    made = await alice.store(b"x", session_id=session)
    own = await alice.store(b"x", scope="user")
    assert ((await store.metadata(made)).owner_id, (await store.metadata(own)).owner_id) == ("alice", "alice")
    assert {one.artifact_id for one in await alice.search()} == {made, own}
    assert await bob.search() == []
    with pytest.raises(AccessDeniedError, match="Cannot delete artifact: insufficient permissions"):
        await bob.delete(made)
    shared = await admin.store(b"x", scope="sandbox")
    assert await bob.retrieve(shared) == b"x"
    with pytest.raises(AccessDeniedError):
        await bob.delete(shared)
    unknown = await store.store(b"x", session_id="tenant_7")
    found = await store.metadata(unknown)
    assert (found.session_id, found.owner_id) == ("tenant_7", None)
    assert await store.validate_session("tenant_7")
    one, two = [await store.metadata(await store.store(b"x", user_id="carol")) for _ in range(2)]
    assert one.session_id == two.session_id
    await store.delete_session(one.session_id)
    assert (await store.metadata(await store.store(b"x", user_id="carol"))).session_id != one.session_id


@on_both_loops
@everywhere
async def test_sessions_are_not_crossed(store: ArtifactStore) -> None:
    made = await store.store(b"x", session_id="one", filename="a")
    await store.store(b"x", session_id="two")
    for call in (store.copy_file(made, target_session_id="two"), store.move_file(made, new_session_id="two")):
        with pytest.raises(ArtifactStoreError, match="Cross-session"):
            await call
    copy = await store.copy_file(made, target_session_id="one")
    assert (await store.metadata(copy)).filename == "a_copy"
    assert (await store.metadata(await store.copy_file(made))).session_id == "one"


# many, and after a crash
@on_both_loops
@everywhere
async def test_a_batch(store: ArtifactStore, caplog: pytest.LogCaptureFixture) -> None:
    items: list[dict[str, Any]] = [
        {"data": b"1", "mime": "text/plain", "filename": "a/1", "summary": "s", "meta": {"n": 1}},
        {"data": b""},
        {"data": "text"},
        {"data": b"2", "filename": "../x"},
        {"data": LARGE},
        {"data": b"3", "meta": {"artfs": 1}},
        {"data": b"4", "unknown": 1},
    ]
    ids = await store.store_batch(items, session_id="s")
    assert [id is not None for id in ids] == [True, True, False, False, True, False, False]
    assert sum("was not stored" in record.getMessage() for record in caplog.records) == 4
    assert [await store.retrieve(id) for id in ids if id] == [b"1", b"", LARGE]
    first = await store.metadata(ids[0] or "")
    assert (first.batch_operation, first.batch_index, first.meta, first.ttl) == (True, 0, {"n": 1}, 900)
    assert await store.store_batch([], session_id="s") == []
    many = await store.store_batch([{"data": b"%d" % i} for i in range(2500)], session_id="t", ttl=None)
    assert len(set(many)) == 2500
    assert await store.retrieve(many[2400] or "") == b"2400"


CRASHED = """
import sys, anyio, os, signal
from artfs import ArtifactStore
async def main():
    store = ArtifactStore(root=sys.argv[1])
    made = [await store.store(b"%d" % i, session_id="s", meta={"i": i}) for i in range(200)]
    for i, id in enumerate(made[:100]):
        await store.update_metadata(id, summary=f"again {i}")
        await store.update_file(id, b"new %d" % i)
    await store.update_metadata(made[150], meta={"late": True})
    await store.delete(made[199])
    handle = await store._call("api_artifact_begin", own={"mime": "a/b", "summary": ""}, session="s", ttl=None)
    await store._call("api_artifact_part", handle=handle, data=b"x" * 3_000_000)
    print(*made, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
anyio.run(main)
"""


@on_both_loops
async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with program(CRASHED, root) as running:
        made = running.line().split()
        running.process.wait(30)
    assert len(made) == 200
    async with ArtifactStore(root=root) as store:
        for i, id in enumerate(made[:199]):
            found = await store.metadata(id)
            data = b"new %d" % i if i < 100 else b"%d" % i
            assert await store.retrieve(id) == data
            assert (found.summary, found.sha256) == (f"again {i}" if i < 100 else "", digest(data))
        assert (await store.metadata(made[150])).meta == {"i": 150, "late": True}
        assert not await store.exists(made[199])
        assert len(await store.list_by_session("s")) == 199
        assert [one.artifact_id for one in await store.search(meta_filter={"late": True})] == [made[150]]
    async with open_store(root, "test") as opened:
        with anyio.fail_after(10):
            while list(opened.catalogue.making()):
                await anyio.sleep(0.01)


@on_both_loops
async def test_two_processes_see_the_same(tmp_path: Path) -> None:
    root = tmp_path / "store"
    async with owned_elsewhere(root):
        one, two = ArtifactStore(root=root), ArtifactStore(root=root)
        made = await one.store(b"x", session_id="s", meta={"k": "v"})
        assert await two.retrieve(made) == b"x"
        await two.update_file(made, LARGE, meta={"k": "w"})
        assert await one.retrieve(made) == LARGE
        assert [m.artifact_id for m in await one.search(meta_filter={"k": "w"})] == [made]
        assert await two.delete(made) and not await one.exists(made)
        await one.close()
        await two.close()
    with pytest.raises(ArtifactStoreError, match="Store is closed"):
        await one.store(b"x")


@on_both_loops
async def test_trees_that_nobody_uses_are_let_go(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    async with open_store(tmp_path / "store", "test") as opened:
        service = Service(opened)
        count = IDLE_TREES + 300
        session = (await opened.create_session("default", ttl=600)).id
        ids = []
        for at in range(count):
            ids.append(
                await service.call(
                    "api_artifact_store", data=b"%d" % at, own={"mime": "a/b"}, session=session, sandbox="default"
                )
            )
        await opened.shard.commit()
        assert len(opened.shard.trees) <= IDLE_TREES
        for at in (0, 1, count - 1):
            found = await service.call("api_artifact_read", id=ids[at], sandbox="default")
            assert found == b"%d" % at
        volume = opened.volume(opened.catalogue.get(ids[0]))
        for id in ids:
            await service.call("api_artifact_read", id=id, sandbox="default")
        assert opened.shard.trees[volume.tree.serial] is volume.tree
        assert len(opened.shard.trees) <= 2 * IDLE_TREES + 1
