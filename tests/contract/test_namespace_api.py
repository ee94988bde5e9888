"""Namespaces through the Python API: in memory, on a root, and through another process; on asyncio and on trio."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from functools import partial
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
    ProviderError,
    SessionError,
    StorageScope,
)
from artfs.namespace import NamespaceOperations
from tests.contract.api import everywhere
from tests.contract.loops import on_both_loops

BLOB, WORKSPACE = NamespaceType.BLOB, NamespaceType.WORKSPACE
SESSION, USER, SANDBOX = StorageScope.SESSION, StorageScope.USER, StorageScope.SANDBOX


@on_both_loops
@everywhere
async def test_each_type_in_each_scope(store: ArtifactStore) -> None:
    for type in NamespaceType:
        for scope in StorageScope:
            made = await store.create_namespace(type, scope, user_id="alice" if scope is USER else None)
            path = None if type is BLOB else "/a/b.txt"
            await store.write_namespace(made.namespace_id, b"data", path)
            assert await store.read_namespace(made.namespace_id, path) == b"data"
            folder = {SESSION: made.session_id, USER: "user-alice", SANDBOX: "shared"}[scope]
            assert made.grid_path == f"grid/{store.sandbox_id}/{folder}/{made.namespace_id}"
            assert store.get_namespace_info(made.namespace_id).grid_path == made.grid_path
            assert (made.type, made.scope, made["scope"]) == (type, scope, scope)
            assert await store.read_namespace(made.grid_path, path) == b"data"
    assert len(store.list_namespaces()) == 6
    assert len(store.list_namespaces(type=BLOB)) == 3
    assert len(store.list_namespaces(type="workspace", scope="user")) == 1


@on_both_loops
@everywhere
async def test_what_is_said_of_one(store: ArtifactStore) -> None:
    made = await store.create_namespace(WORKSPACE, USER, "docs", "alice", metadata={"team": {"name": "red"}})
    assert (made.name, made.user_id, made.owner_id, made.sandbox_id) == ("docs", "alice", "alice", store.sandbox_id)
    assert (made.expires_at, made.ttl_seconds, made.current_path) == (None, 0, "/")
    assert made.metadata == {"team": {"name": "red"}}
    assert store.get_namespace_info(made.namespace_id) == made
    assert made.provider_type in ("vfs-memory", "vfs-filesystem")
    again = await store.create_namespace(WORKSPACE, USER, "docs", "alice")
    assert again.grid_path.endswith("/user-alice/docs~2")


@on_both_loops
@everywhere
async def test_namespaces_are_found_by_their_metadata(store: ArtifactStore) -> None:
    shop = await store.create_namespace(WORKSPACE, SANDBOX, "shop", metadata={"team": "web", "n": 1, "tags": ["a"]})
    blog = await store.create_namespace(BLOB, USER, "blog", user_id="alice", metadata={"team": "web", "n": True})
    await store.create_namespace(BLOB, SANDBOX, "bare")
    for wanted, names in (
        ({"team": "web"}, ["shop", "blog"]),
        ({"team": "web", "n": 1}, ["shop"]),
        ({"n": True}, ["blog"]),
        ({"tags": ["a"]}, ["shop"]),
        ({"tags": "a"}, []),
        ({"team": None}, []),
        ({}, ["shop", "blog", "bare"]),
    ):
        assert [info.name for info in store.list_namespaces(metadata=wanted)] == names, wanted
    assert store.list_namespaces(metadata={"team": "web"}, type=BLOB) == [blog]
    assert store.as_principal(user_id="bob").list_namespaces(metadata={"team": "web"}) == [shop]
    wrong: list[Any] = [{"artfs": {}}, "team"]
    for bad in wrong:
        with pytest.raises(ValueError, match="metadata"):
            store.list_namespaces(metadata=bad)


@on_both_loops
@everywhere
async def test_sessions_own_what_is_made_in_them(store: ArtifactStore) -> None:
    session = await store.create_session("alice")
    made = await store.create_namespace(BLOB, session_id=session, user_id="alice")
    own = await store.create_namespace(BLOB, user_id="bob")
    assert made.session_id == session and made.user_id == "alice"
    assert own.session_id.startswith("sess-bob-") and own.user_id == "bob"
    assert (await store.create_namespace(BLOB, user_id="bob")).session_id == own.session_id
    assert [info.namespace_id for info in store.list_namespaces(session_id=session)] == [made.namespace_id]
    assert {info.namespace_id for info in store.list_namespaces(user_id="alice")} == {made.namespace_id}
    assert await store.delete_session(session)
    with pytest.raises(ArtifactExpiredError):
        await store.read_namespace(made.namespace_id)
    with pytest.raises(SessionError, match="Invalid session"):
        await store.create_namespace(BLOB, session_id=session)
    assert not await store.delete_session(session)
    assert await store.delete_session(own.session_id)
    anew = await store.create_namespace(BLOB, user_id="bob")
    assert anew.session_id != own.session_id


@on_both_loops
@everywhere
async def test_checkpoints(store: ArtifactStore) -> None:
    made = await store.create_namespace(WORKSPACE, SANDBOX)
    id = made.namespace_id
    await store.write_namespace(id, b"one", "/a")
    first = await store.checkpoint_namespace(id, "v1", "the first")
    await store.write_namespace(id, b"two", "/a")
    await store.write_namespace(id, b"new", "/dir/b")
    second = await store.checkpoint_namespace(id, name="v1")
    assert (first.checkpoint_id, second.checkpoint_id) == ("v1", "v1~2")
    assert (first.name, first.description, second.description) == ("v1", "the first", "")
    assert first.namespace_id == first.workspace_id == id
    assert [c.checkpoint_id for c in await store.list_checkpoints(id)] == ["v1", "v1~2"]
    changed = await store.diff_namespace(id, "v1", "v1~2")
    assert {item["path"] for item in changed} >= {"/a", "/dir/b"}
    assert await store.restore_namespace(id, "v1") is True
    assert await store.read_namespace(id, "/a") == b"one"
    vfs = store.get_namespace_vfs(id)
    assert await vfs.find() == ["/a"]
    assert await vfs.read_file("/.checkpoints/v1~2/dir/b") == b"new"
    branch = await store.clone_namespace(id, "branch", "v1~2")
    assert await store.read_namespace(branch.namespace_id, "/dir/b") == b"new"
    assert await store.delete_checkpoint(id, "v1~2") is True
    for call in (store.restore_namespace, store.delete_checkpoint):
        with pytest.raises(ValueError, match="v9"):
            await call(id, "v9")
    unnamed = await store.checkpoint_namespace(id)
    assert unnamed.name and datetime.now(UTC).strftime("%Y") in unnamed.name


@on_both_loops
@everywhere
async def test_times_to_live_are_exact(store: ArtifactStore) -> None:
    brief = await store.create_namespace(BLOB, USER, user_id="alice", ttl_hours=0.4 / 3600)
    await store.write_namespace(brief.namespace_id, b"soon gone")
    assert brief.expires_at is not None and brief.ttl_seconds == 1
    assert await store.read_namespace(brief.namespace_id) == b"soon gone"
    await anyio.sleep(0.41)
    with pytest.raises(ArtifactExpiredError):
        await store.read_namespace(brief.namespace_id)
    await anyio.sleep(0.2)
    with pytest.raises(ArtifactExpiredError):  # an id stays known as expired
        await store.read_namespace(brief.namespace_id)
    for wrong in (0, -1, "1", True, float("nan")):
        with pytest.raises(ValueError):
            await store.create_namespace(BLOB, USER, user_id="alice", ttl_hours=wrong)  # type: ignore[arg-type]


@on_both_loops
@everywhere
async def test_bad_arguments(store: ArtifactStore) -> None:
    with pytest.raises(ValueError, match="user_id required for USER scope"):
        await store.create_namespace(WORKSPACE, USER)
    with pytest.raises(SessionError, match="Invalid session"):
        await store.create_namespace(BLOB, session_id="nobody-s")
    for name in ("", "a/b", "..", ".artfs", "\0", "x" * 256, 7):
        with pytest.raises(ValueError):
            await store.create_namespace(WORKSPACE, SANDBOX, name)  # type: ignore[arg-type]
    for wrong in ({"type": "tree"}, {"type": BLOB, "scope": "world"}, {"type": BLOB, "provider_type": "tape"}):
        with pytest.raises(ValueError):
            await store.create_namespace(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        await store.create_namespace(BLOB, metadata={"artfs": 1})
    made = await store.create_namespace(WORKSPACE, SANDBOX)
    with pytest.raises(ValueError, match="path required for workspace"):
        await store.write_namespace(made.namespace_id, b"x")
    with pytest.raises(ValueError, match="path required for workspace"):
        await store.read_namespace(made.namespace_id)
    for path in ("/../x", "..", "/a/../../x", "/nul\0"):
        with pytest.raises(ArtifactStoreError):
            await store.write_namespace(made.namespace_id, b"x", path)
    with pytest.raises(FileNotFoundError):
        await store.read_namespace(made.namespace_id, "/nothing")
    for call in (store.destroy_namespace, store.list_checkpoints, store.read_namespace, store.checkpoint_namespace):
        with pytest.raises(ArtifactNotFoundError, match="Namespace not found"):
            await call("ns-000000000000")
    with pytest.raises(ValueError, match="Namespace not found"):
        store.get_namespace_info("ns-000000000000")
    with pytest.raises(ValueError, match="Namespace not found"):
        store.get_namespace_vfs("ns-000000000000")


@on_both_loops
@everywhere
async def test_a_destroyed_one_is_gone(store: ArtifactStore) -> None:
    made = await store.create_namespace(BLOB)
    assert await store.destroy_namespace(made.namespace_id) is True
    with pytest.raises(ArtifactNotFoundError):
        await store.read_namespace(made.namespace_id)
    assert store.list_namespaces() == []


@on_both_loops
@everywhere
async def test_whole_files_of_any_size(store: ArtifactStore) -> None:
    made = await store.create_namespace(BLOB)
    for size in (0, 1, 65_535, 65_536, (1 << 20) + 1, (16 << 20) + 5):
        data = os.urandom(size)
        await store.write_namespace(made.namespace_id, data)
        assert await store.read_namespace(made.namespace_id) == data
    await store.write_namespace(made.namespace_id, b"beside", "/more/notes.txt")
    assert await store.read_namespace(made.namespace_id, path="/more/notes.txt") == b"beside"


@on_both_loops
@everywhere
async def test_concurrent_callers(store: ArtifactStore) -> None:
    made = await store.create_namespace(WORKSPACE, SANDBOX)

    async def one(number: int) -> None:
        path = f"/f{number}"
        await store.write_namespace(made.namespace_id, b"%d" % number, path)
        assert await store.read_namespace(made.namespace_id, path) == b"%d" % number

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(one, number)
    assert len(await store.get_namespace_vfs(made.namespace_id).find()) == 50


@on_both_loops
async def test_a_root_where_none_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "store", Path("/proc/store")):
        store = ArtifactStore(root=root)
        for call in (store.get_stats, partial(store.store, b"x")):
            with pytest.raises(ProviderError, match=f"no store can be at {root}"):
                await call()
        assert (await store.validate_configuration()).overall == "error"
        await store.close()
    assert os.listdir(tmp_path) == ["file"]


@on_both_loops
async def test_a_store_without_with_and_closed(tmp_path: Path) -> None:
    store = ArtifactStore(root=tmp_path / "store")
    made = await store.create_namespace(BLOB)
    await store.write_namespace(made.namespace_id, b"x")
    await store.close()
    await store.close()
    for call in (store.read_namespace, store.destroy_namespace):
        with pytest.raises(ArtifactStoreError, match="Store is closed"):
            await call(made.namespace_id)
    with pytest.raises(ArtifactStoreError, match="Store is closed"):
        store.list_namespaces()
    with pytest.raises(ArtifactStoreError, match="Store is closed"):
        ArtifactStore.as_principal(store, admin=True).list_namespaces()
    async with ArtifactStore(root=tmp_path / "store") as again:
        assert await again.read_namespace(made.namespace_id) == b"x"
        assert again.list_namespaces() == [again.get_namespace_info(made.namespace_id)]


def test_one_store_on_several_loops_in_turn(tmp_path: Path) -> None:
    for root in (None, tmp_path / "store"):
        store = ArtifactStore(root=root)
        made = asyncio.run(store.create_namespace(BLOB))
        asyncio.run(store.write_namespace(made.namespace_id, b"x"))
        assert anyio.run(store.read_namespace, made.namespace_id, backend="trio") == b"x"
        assert [info.namespace_id for info in store.list_namespaces()] == [made.namespace_id]
        asyncio.run(store.close())


def test_plain_calls_open_the_store(tmp_path: Path) -> None:
    async def make() -> str:
        async with ArtifactStore(root=tmp_path / "store") as store:
            return str((await store.create_namespace(BLOB)).namespace_id)

    id = anyio.run(make)
    store = ArtifactStore(root=tmp_path / "store")
    assert store.get_namespace_info(id).namespace_id == id
    anyio.run(store.close)


@on_both_loops
async def test_stores_in_memory_share_one_memory_parted_by_sandbox() -> None:
    one, same, other = (ArtifactStore(sandbox_id=name) for name in ("parted", "parted", "other"))
    made = await one.create_namespace(BLOB)
    await one.write_namespace(made.namespace_id, b"x")
    assert await same.read_namespace(made.namespace_id) == b"x"
    with pytest.raises(ArtifactNotFoundError, match="Namespace not found"):
        await other.read_namespace(made.namespace_id)
    assert other.list_namespaces() == []
    assert not await other.validate_session(made.session_id)
    assert ArtifactStore().sandbox_id != ArtifactStore().sandbox_id
    assert ArtifactStore().sandbox_id.startswith("sandbox-")
    await one.destroy_namespace(made.namespace_id)


def test_the_environment_is_read_at_construction(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("ARTFS_", "ARTIFACT_", "VFS_", "SQLITE_", "CHUK_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert (ArtifactStore().root, ArtifactStore().storage_provider) == (None, "vfs-memory")
    monkeypatch.setenv("VFS_ROOT_PATH", str(tmp_path / "vfs"))
    assert ArtifactStore().root is None
    store = ArtifactStore(storage_provider="vfs-filesystem")
    assert store.root == str(tmp_path / "vfs")
    monkeypatch.setenv("ARTIFACT_PROVIDER", "filesystem")
    monkeypatch.setenv("ARTIFACT_FS_ROOT", str(tmp_path / "fs"))
    assert ArtifactStore().root == str(tmp_path / "fs")
    assert ArtifactStore(storage_provider="memory").root is None
    monkeypatch.setenv("ARTFS_ROOT", str(tmp_path / "root"))
    assert ArtifactStore().root == str(tmp_path / "root")
    monkeypatch.setenv("CHUK_SANDBOX_ID", "web")
    assert ArtifactStore().sandbox_id == "web"
    monkeypatch.setenv("ARTIFACT_SANDBOX_ID", "app")
    assert ArtifactStore().sandbox_id == "app"
    assert list(tmp_path.iterdir()) == []
    for wrong in ({"storage_provider": "tape"}, {"sandbox_id": "a/b"}, {"session_ttl_hours": 0}, {"root": ""}):
        with pytest.raises(ValueError):
            ArtifactStore(**wrong)


@on_both_loops
async def test_the_operations_by_themselves() -> None:
    store = ArtifactStore()
    operations = NamespaceOperations(store)
    made = await operations.create_namespace(BLOB)
    await operations.write_namespace(made.namespace_id, b"x")
    assert await store.namespace.read_namespace(made.namespace_id) == b"x"
    await operations.destroy_namespace(made.namespace_id)


@on_both_loops
@everywhere
async def test_sessions(store: ArtifactStore) -> None:
    id = await store.create_session("alice", ttl_hours=1, custom_metadata={"a": 1})
    assert id.startswith("sess-alice-")
    assert await store.create_session(session_id=id) == id
    with pytest.raises(SessionError):
        await store.create_session("bob", session_id=id)
    info = await store.get_session_info(id)
    assert info is not None and (info.user_id, info["custom_metadata"], info.metadata) == ("alice", {"a": 1}, {"a": 1})
    assert await store.update_session_metadata(id, {"b": 2})
    assert await store.extend_session_ttl(id, 1)
    later = await store.get_session_info(id)
    assert later is not None and later.metadata == {"a": 1, "b": 2} and later.ttl_hours == pytest.approx(2)
    assert await store.update_session_metadata(id, {"c": 3}, merge=False)
    replaced = await store.get_session_info(id)
    assert replaced is not None and replaced.metadata == {"c": 3}
    assert await store.validate_session(id)
    assert await store.delete_session(id)
    assert not await store.validate_session(id)
    assert await store.get_session_info(id) is None
    assert not await store.update_session_metadata(id, {"c": 3})
    assert not await store.extend_session_ttl(id, 1)
    brief = await store.create_session(ttl_hours=0.2 / 3600)
    await anyio.sleep(0.21)
    assert not await store.validate_session(brief)
    assert isinstance(await store.cleanup_expired_sessions(), int)


def test_grid_paths() -> None:
    store = ArtifactStore(sandbox_id="web")
    assert store.get_canonical_prefix("s1") == "grid/web/s1/"
    assert store.get_session_prefix_pattern() == "grid/web/"
    key = store.generate_artifact_key("sess-1", "a1")
    parts = store.parse_grid_key(key)
    assert parts is not None and (parts.sandbox_id, parts.session_id, parts["artifact_id"]) == ("web", "sess-1", "a1")
    assert store.parse_grid_key("nothing") is None
    with pytest.raises(ValueError):
        store.generate_artifact_key("a/b", "x")


def test_a_view_of_a_view_shows_no_more() -> None:
    store = ArtifactStore()
    alice = store.as_principal(user_id="alice")
    for wider in ({"user_id": "bob"}, {"admin": True}, {"session_id": "s"}):
        with pytest.raises(AccessDeniedError):
            alice.as_principal(**wider)
    assert alice.as_principal(user_id="alice")._bound == alice._bound


@on_both_loops
async def test_other_providers_of_a_store_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARTIFACT_FS_ROOT", str(tmp_path / "fs"))
    async with ArtifactStore(sandbox_id="mixed") as store:
        here = await store.create_namespace(BLOB, provider_type="vfs-memory")
        there = await store.create_namespace(WORKSPACE, USER, user_id="alice", provider_type="vfs-filesystem")
        brief = await store.create_namespace(BLOB, provider_type="filesystem")
        one = await store.create_namespace(
            BLOB, SANDBOX, provider_type="sqlite", provider_config={"db_path": str(tmp_path / "a.db")}
        )
        assert [info.provider_type for info in (here, there, one)] == ["vfs-memory", "vfs-filesystem", "vfs-sqlite"]
        vfs = store.get_namespace_vfs(there.namespace_id)
        assert await vfs.write_file("/f", b"x" * 100) and await vfs.read_file("/f") == b"x" * 100
        large = os.urandom(17 << 20)
        await store.write_namespace(there.namespace_id, large, "/large")
        assert await store.read_namespace(there.namespace_id, "/large") == large
        for made in (brief, one):
            await store.write_namespace(made.namespace_id, b"y")
            assert await store.read_namespace(made.namespace_id) == b"y"
        assert {i.namespace_id for i in store.list_namespaces()} == {m.namespace_id for m in (here, there, brief, one)}
        assert brief.session_id == here.session_id
        with pytest.raises(AccessDeniedError):
            await store.read_namespace(there.namespace_id, "/f", user_id="bob")
        assert await store.delete_session(brief.session_id)
        with pytest.raises(ArtifactExpiredError):
            await store.read_namespace(brief.namespace_id)
    async with ArtifactStore(storage_provider="filesystem", sandbox_id="mixed") as again:
        assert await again.read_namespace(there.namespace_id, "/f") == b"x" * 100


@on_both_loops
async def test_callers_are_the_same_in_all_stores_of_a_store_in_memory(tmp_path: Path) -> None:
    async with ArtifactStore(sandbox_id="mixed") as store:
        kinds: list[dict[str, Any]] = [
            {"provider_type": "filesystem", "provider_config": {"root_path": str(tmp_path / "files")}},
            {"provider_type": "sqlite", "provider_config": {"db_path": str(tmp_path / "a.db")}},
        ]
        alice, bob = await store.create_session("alice"), await store.create_session("bob")
        for kind in kinds:
            common = (await store.create_namespace(BLOB, SANDBOX, **kind)).namespace_id
            hers = (await store.create_namespace(BLOB, USER, user_id="alice", **kind)).namespace_id
            for id in (common, hers):
                await store.write_namespace(id, b"x")
                assert [await store.read_namespace(id, session_id=alice), await store.retrieve(id)] == [b"x", b"x"]
                assert await store.exists(id) and await store.exists(id, session_id=alice)
            view = store.as_principal(session_id=bob)
            assert await view.read_namespace(common) == b"x" and await view.exists(common)
            assert not await view.exists(hers)
            assert store.get_namespace_info(hers, session_id=alice).name is None
            with pytest.raises(AccessDeniedError, match=f"does not belong to session '{bob}'"):
                await view.read_namespace(hers)
            with pytest.raises(AccessDeniedError, match=f"does not belong to session '{bob}'"):
                store.get_namespace_info(hers, session_id=bob)
            assert common in {info.namespace_id for info in view.list_namespaces()}
        assert len(view.list_namespaces()) == 2 and len(store.list_namespaces(user_id="alice")) == 2
        assert not await store.exists("0" * 32)
        await store.delete_session(bob)
        assert view.list_namespaces() == []


@on_both_loops
async def test_a_store_that_could_not_be_opened_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    async with ArtifactStore() as store:
        with pytest.raises(ArtifactStoreError):
            await store.create_namespace(
                BLOB, SANDBOX, provider_type="filesystem", provider_config={"root_path": str(tmp_path / "file")}
            )
        assert store.list_namespaces() == []
        with pytest.raises(ArtifactNotFoundError):
            await store.read_namespace("ns-000000000000")


@on_both_loops
async def test_objects_in_one_file_are_in_the_root_if_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stores that run in the same directory do not meet there."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        async with ArtifactStore(root=tmp_path / name) as store:
            made = await store.create_namespace(WORKSPACE, SANDBOX, "docs", provider_type="vfs-sqlite")
            assert made.provider_type == "vfs-sqlite"
            await store.write_namespace(made.namespace_id, b"x" * 100_000, "/f")
        async with ArtifactStore(root=tmp_path / name) as store:
            assert await store.read_namespace(made.namespace_id, "/f") == b"x" * 100_000
        assert (tmp_path / name / "artifacts.db").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@on_both_loops
async def test_a_store_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "artifacts.db"
    data = os.urandom(200_000)
    async with ArtifactStore(storage_provider="sqlite", root=path) as store:
        made = await store.create_namespace(WORKSPACE, SANDBOX, "docs")
        assert made.provider_type == "vfs-sqlite"
        await store.write_namespace(made.namespace_id, data, "/f")
        await store.write_namespace(made.namespace_id, b"small", "/g")
        await store.checkpoint_namespace(made.namespace_id, "v1")
    async with ArtifactStore(root=path) as again:
        assert await again.read_namespace(made.namespace_id, "/f") == data
    moved = tmp_path / "moved"
    moved.mkdir()
    path.rename(moved / "other.db")  # the file alone is the store
    async with ArtifactStore(root=moved / "other.db") as other:
        assert await other.read_namespace(made.namespace_id, "/f") == data
        assert await other.read_namespace(made.namespace_id, "/g") == b"small"
        assert [c.name for c in await other.list_checkpoints(made.namespace_id)] == ["v1"]


@on_both_loops
async def test_providers_of_a_store_on_a_root(tmp_path: Path) -> None:
    async with ArtifactStore(root=tmp_path / "store", providers={"sandbox": "memory"}) as store:
        kept = await store.create_namespace(BLOB, USER, user_id="alice")
        brief = await store.create_namespace(BLOB, SANDBOX)
        disk = await store.create_namespace(
            BLOB, USER, user_id="alice", provider_type="filesystem", provider_config={"root_path": str(tmp_path / "d")}
        )
        for made in (kept, brief, disk):
            await store.write_namespace(made.namespace_id, b"x" * 100_000)
        assert (kept.provider_type, brief.provider_type) == ("vfs-filesystem", "vfs-memory")
    async with ArtifactStore(root=tmp_path / "store") as store:
        for made in (kept, disk):
            assert await store.read_namespace(made.namespace_id) == b"x" * 100_000
        with pytest.raises(ArtifactNotFoundError):
            await store.read_namespace(brief.namespace_id)
