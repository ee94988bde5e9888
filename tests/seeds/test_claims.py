"""000, namespaces: what the document claims, one claim to a test; on each kind of store and of loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import AccessDeniedError, ArtifactExpiredError, ArtifactStore, NamespaceType, SessionError, StorageScope
from artfs.config import configure_filesystem, configure_memory
from tests.contract.loops import on_both_loops
from tests.seeds.claims import SOON, blob, owned, put, store, two_sessions, workspace

__all__ = ["owned", "store"]
BLOB, WORKSPACE = NamespaceType.BLOB, NamespaceType.WORKSPACE
SESSION, USER, SANDBOX = StorageScope.SESSION, StorageScope.USER, StorageScope.SANDBOX


# namespaces
@on_both_loops
async def test_a_blob_is_one_file_called_data(store: ArtifactStore) -> None:
    made = await blob(store, b"Hello, World!")
    assert await store.read_namespace(made) == b"Hello, World!"
    assert await store.get_namespace_vfs(made).read_file("/_data") == b"Hello, World!"


@on_both_loops
async def test_a_workspace_lists_what_was_written_and_its_marker(store: ArtifactStore) -> None:
    _, vfs = await workspace(store, README=b"#", src__main=b"print()")
    assert sorted(await vfs.ls("/")) == [".workspace", "README", "src"]
    assert await vfs.ls("/src") == ["main"]


@on_both_loops
async def test_one_api_for_both_types_and_all_scopes(store: ArtifactStore) -> None:
    for scope in StorageScope:
        for type in NamespaceType:
            owner = "alice" if scope is USER else None
            made = await store.create_namespace(type=type, scope=scope, user_id=owner)
            await store.write_namespace(made.namespace_id, path="/_data", data=b"1")
            await store.checkpoint_namespace(made.namespace_id, name="v1")
            await store.write_namespace(made.namespace_id, path="/_data", data=b"2")
            await store.restore_namespace(made.namespace_id, "v1")
            assert await store.read_namespace(made.namespace_id, path="/_data") == b"1"
            assert (made.type, made.scope) == (type, scope)


@on_both_loops
async def test_bytes_of_all_values_and_none_at_all_come_back(store: ArtifactStore) -> None:
    for data in (b"", bytes(range(256)) * 4096):
        assert await store.read_namespace(await blob(store, data)) == data


@on_both_loops
async def test_a_workspace_wants_a_path(store: ArtifactStore) -> None:
    made, _ = await workspace(store)
    with pytest.raises(ValueError, match="path required for workspace"):
        await store.write_namespace(made, data=b"x")
    with pytest.raises(ValueError, match="path required for workspace"):
        await store.read_namespace(made)


@on_both_loops
async def test_user_scope_wants_a_user(store: ArtifactStore) -> None:
    with pytest.raises(ValueError, match="user_id required for USER scope"):
        await store.create_namespace(type=BLOB, scope=USER)


@on_both_loops
async def test_a_namespace_wants_a_live_session(store: ArtifactStore) -> None:
    with pytest.raises(SessionError, match="Invalid session"):
        await store.create_namespace(type=BLOB, scope=SESSION, session_id="nobody-made-it")
    session, _ = await two_sessions(store)
    assert (await store.create_namespace(type=BLOB, session_id=session)).session_id == session


@on_both_loops
async def test_grid_paths_say_sandbox_scope_and_namespace(store: ArtifactStore) -> None:
    session, _ = await two_sessions(store)
    mine = await store.create_namespace(type=BLOB, session_id=session)
    user = await store.create_namespace(type=WORKSPACE, scope=USER, user_id="alice", name="docs")
    shared = await store.create_namespace(type=BLOB, scope=SANDBOX)
    assert mine.grid_path == f"grid/{store.sandbox_id}/{session}/{mine.namespace_id}"
    assert user.grid_path == f"grid/{store.sandbox_id}/user-alice/docs"
    assert shared.grid_path == f"grid/{store.sandbox_id}/shared/{shared.namespace_id}"
    assert mine.namespace_id.startswith("ns-") and len(mine.namespace_id) == 15


@on_both_loops
async def test_a_grid_path_names_a_namespace_wherever_its_id_does(store: ArtifactStore) -> None:
    made, _ = await workspace(store, file=b"1")
    info = store.get_namespace_info(made)
    assert await store.read_namespace(info.grid_path, path="/file") == b"1"
    assert store.get_namespace_info(info.grid_path).namespace_id == info["namespace_id"] == made


@on_both_loops
async def test_a_taken_name_gets_a_number(store: ArtifactStore) -> None:
    await workspace(store)
    second, _ = await workspace(store)
    assert store.get_namespace_info(second).grid_path.endswith("/work~2")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "nul\0", "x" * 256])
@on_both_loops
async def test_a_name_is_one_component(store: ArtifactStore, name: str) -> None:
    with pytest.raises(ValueError):
        await store.create_namespace(type=WORKSPACE, scope=SANDBOX, name=name)
    assert store.list_namespaces() == []


@pytest.mark.parametrize("user", ["", "a/b", "..", "shared", "sessions", "users", "grid", "x" * 129, "é"])
@on_both_loops
async def test_a_user_id_is_one_plain_component(store: ArtifactStore, user: str) -> None:
    with pytest.raises(ValueError):
        await store.create_namespace(type=WORKSPACE, scope=USER, user_id=user)
    assert store.list_namespaces() == []


@on_both_loops
async def test_listing_by_type_user_and_session(store: ArtifactStore) -> None:
    session, other = await two_sessions(store)
    mine = (await store.create_namespace(type=BLOB, session_id=session)).namespace_id
    user = (await store.create_namespace(type=WORKSPACE, scope=USER, user_id="alice")).namespace_id
    theirs = (await store.create_namespace(type=BLOB, session_id=other)).namespace_id
    assert {n.namespace_id for n in store.list_namespaces()} == {mine, user, theirs}
    assert {n.namespace_id for n in store.list_namespaces(type=BLOB)} == {mine, theirs}
    assert mine in {n.namespace_id for n in store.list_namespaces(session_id=session)}
    assert theirs not in {n.namespace_id for n in store.list_namespaces(session_id=session)}
    assert {n.namespace_id for n in store.list_namespaces(user_id="alice", type=WORKSPACE)} == {user}


@on_both_loops
async def test_a_destroyed_namespace_is_gone(store: ArtifactStore) -> None:
    made, vfs = await workspace(store, file=b"1")
    await store.destroy_namespace(made)
    for error in (ValueError, FileNotFoundError):
        with pytest.raises(error, match="Namespace not found"):
            await store.read_namespace(made, path="/file")
    with pytest.raises(ValueError, match="Namespace not found"):
        store.get_namespace_vfs(made)
    with pytest.raises(FileNotFoundError):
        await vfs.read_file("/file")
    with pytest.raises(ValueError, match="Namespace not found"):
        await store.destroy_namespace(made)


@on_both_loops
async def test_session_namespaces_expire_and_the_others_do_not(store: ArtifactStore) -> None:
    short = await blob(store, ttl_hours=SOON)
    user = await store.create_namespace(type=BLOB, scope=USER, user_id="alice")
    assert (user.expires_at, user.ttl_seconds) == (None, 0)
    assert store.get_namespace_info(short).expires_at
    await anyio.sleep(SOON * 3600)
    with pytest.raises(ArtifactExpiredError):
        await store.read_namespace(short)
    assert short not in {n.namespace_id for n in store.list_namespaces()}


@on_both_loops
async def test_no_time_to_live_is_not_a_day(store: ArtifactStore) -> None:
    for hours in (0, -1):
        with pytest.raises(ValueError):
            await store.create_namespace(type=BLOB, ttl_hours=hours)


@on_both_loops
async def test_sessions_are_isolated(store: ArtifactStore) -> None:
    alice, bob = await two_sessions(store)
    made = await blob(store, session_id=alice)
    assert await store.read_namespace(made, session_id=alice) == b"data"
    with pytest.raises(PermissionError):
        await store.read_namespace(made, session_id=bob)
    with pytest.raises(AccessDeniedError):
        await store.write_namespace(made, data=b"theirs", session_id=bob)
    with pytest.raises(AccessDeniedError):
        await store.destroy_namespace(made, session_id=bob)
    assert await store.read_namespace(made) == b"data"


@on_both_loops
async def test_user_scope_is_the_users_from_any_session(store: ArtifactStore) -> None:
    made, _ = await workspace(store, file=b"1")
    session, other = await two_sessions(store)
    for who in ({"user_id": "alice"}, {"session_id": session}):
        assert await store.read_namespace(made, path="/file", **who) == b"1"
    for who in ({"user_id": "bob"}, {"session_id": other}):
        with pytest.raises(AccessDeniedError):
            await store.read_namespace(made, path="/file", **who)


@on_both_loops
async def test_shared_is_read_by_all_and_written_by_admins(store: ArtifactStore) -> None:
    made = await blob(store, scope=SANDBOX)
    session, _ = await two_sessions(store)
    bob = store.as_principal(user_id="bob")
    assert await bob.read_namespace(made) == await store.read_namespace(made, session_id=session) == b"data"
    with pytest.raises(AccessDeniedError):
        await bob.write_namespace(made, data=b"x")
    await store.as_principal(admin=True).write_namespace(made, data=b"y")
    assert await bob.read_namespace(made) == b"y"


@on_both_loops
async def test_metadata_of_a_namespace_stays(store: ArtifactStore) -> None:
    made = await store.create_namespace(type=BLOB, metadata={"project": {"id": 7}, "tags": ["a"]})
    assert store.get_namespace_info(made.namespace_id).metadata == {"project": {"id": 7}, "tags": ["a"]}


@on_both_loops
async def test_enums_may_be_strings(store: ArtifactStore) -> None:
    made = await store.create_namespace("workspace", "user", "named", "alice")
    assert (made.type, made.scope, made.name) == (WORKSPACE, USER, "named")
    for type, scope in (("folder", "session"), ("blob", "planet")):
        with pytest.raises(ValueError):
            await store.create_namespace(type, scope)


@pytest.mark.parametrize("provider", ["vfs-memory", "vfs-filesystem", "vfs-sqlite"])
@on_both_loops
async def test_a_provider_for_each_namespace(store: ArtifactStore, provider: str, tmp_path: Path) -> None:
    config = {"vfs-filesystem": {"root_path": str(tmp_path / "fs")}, "vfs-sqlite": {"db_path": str(tmp_path / "f.db")}}
    made = await store.create_namespace(type=WORKSPACE, provider_type=provider, provider_config=config.get(provider))
    await store.write_namespace(made.namespace_id, path="/a/b", data=b"1")
    vfs = store.get_namespace_vfs(made.namespace_id)
    assert made.provider_type == provider
    assert await vfs.read_file("/a/b") == b"1"
    assert await vfs.get_provider_name() == provider.removeprefix("vfs-")
    assert {"total_size_bytes", "file_count", "directory_count", "total_nodes"} <= set(await vfs.get_storage_stats())


@on_both_loops
async def test_namespaces_outlive_the_store_that_made_them(tmp_path: Path) -> None:
    made = {}
    async with ArtifactStore(root=tmp_path / "root", sandbox_id="app") as first:
        session = await first.create_session(user_id="alice")
        for scope in StorageScope:
            owner: dict[str, Any] = {SESSION: {"session_id": session}, USER: {"user_id": "alice"}, SANDBOX: {}}[scope]
            found = await first.create_namespace(type=BLOB, scope=scope, **owner)
            await first.write_namespace(found.namespace_id, data=scope.value.encode())
            await first.checkpoint_namespace(found.namespace_id, name="v1")
            made[scope] = found.namespace_id
    async with ArtifactStore(root=tmp_path / "root", sandbox_id="app") as second:
        assert {n.namespace_id for n in second.list_namespaces()} == set(made.values())
        for scope, namespace in made.items():
            assert await second.read_namespace(namespace) == scope.value.encode()
            assert [c.name for c in await second.list_checkpoints(namespace)] == ["v1"]


@pytest.mark.usefixtures("own_environment")
@on_both_loops
async def test_configuration_is_what_a_store_is_made_with(tmp_path: Path) -> None:
    for config in (configure_filesystem(root=str(tmp_path / "fs")), configure_memory()):
        async with ArtifactStore(**config) as store:
            assert await store.read_namespace(await blob(store)) == b"data"
    assert (tmp_path / "fs").exists()


@pytest.mark.parametrize(
    ("provider", "variable", "value"),
    [
        ("vfs-filesystem", "VFS_ROOT_PATH", "fs"),
        ("filesystem", "ARTIFACT_FS_ROOT", "fs"),
        ("vfs-sqlite", "SQLITE_DB_PATH", "all.db"),
        ("vfs-sqlite", "ARTIFACT_SQLITE_PATH", "all.db"),
    ],
)
@on_both_loops
async def test_the_environment_says_where(
    provider: str, variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARTIFACT_PROVIDER", provider)
    monkeypatch.setenv(variable, str(tmp_path / value))
    monkeypatch.setenv("ARTIFACT_SANDBOX_ID", "prod-env")
    async with ArtifactStore() as first:
        made = await blob(first, scope=USER, user_id="alice")
        assert first.sandbox_id == "prod-env"
    async with ArtifactStore() as second:
        assert await second.read_namespace(made) == b"data"
        assert second.get_namespace_info(made).provider_type == f"vfs-{provider.removeprefix('vfs-')}"
    assert (tmp_path / value).exists()


@on_both_loops
async def test_a_provider_for_each_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTIFACT_PROVIDER_SESSION", "vfs-memory")
    async with ArtifactStore(root=tmp_path / "root", providers={"user": "vfs-filesystem"}) as store:
        temporary = await store.create_namespace(type=BLOB)
        kept = await store.create_namespace(type=BLOB, scope=USER, user_id="alice")
    assert (temporary.provider_type, kept.provider_type) == ("vfs-memory", "vfs-filesystem")


@on_both_loops
@pytest.mark.parametrize("provider", ["vfs-filesystem", "vfs-sqlite"])
@pytest.mark.parametrize("by", ["argument", "variable"])
async def test_what_a_scope_keeps_outlives_a_store_in_memory(
    provider: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARTIFACT_FS_ROOT", str(tmp_path / "files"))
    monkeypatch.setenv("ARTIFACT_SQLITE_PATH", str(tmp_path / "one.db"))
    if by == "variable":
        monkeypatch.setenv("ARTIFACT_PROVIDER_USER", provider)
    arguments: dict[str, Any] = {"providers": {"user": provider}} if by == "argument" else {}
    async with ArtifactStore(**arguments) as store:
        assert (store.storage_provider, store.sandbox_id) == ("vfs-memory", "default")
        kept = await store.create_namespace(type=BLOB, scope=USER, user_id="alice")
        await store.write_namespace(kept.namespace_id, b"kept")
        artifact = await put(store, user_id="alice", scope="user")
        brief = await put(store)
        found = [(await store.metadata(made)).storage_provider for made in (artifact, brief)]
        assert [kept.provider_type, *found] == [provider, provider, "vfs-memory"]
    async with ArtifactStore(**arguments) as store:
        assert await store.read_namespace(kept.namespace_id, user_id="alice") == b"kept"
        assert await store.retrieve(artifact) == b"data"
        assert {found.artifact_id for found in await store.search(user_id="alice")} >= {artifact}
        assert {info.namespace_id for info in store.list_namespaces()} >= {kept.namespace_id, artifact}


@on_both_loops
async def test_a_view_is_checked_in_every_call(store: ArtifactStore) -> None:
    made, _ = await workspace(store, file=b"1")
    alice, bob = store.as_principal(user_id="alice"), store.as_principal(user_id="bob")
    assert await alice.read_namespace(made, path="/file") == b"1"
    assert [n.namespace_id for n in alice.list_namespaces()] == [made]
    assert bob.list_namespaces() == []
    with pytest.raises(AccessDeniedError):
        bob.get_namespace_vfs(made)
    with pytest.raises(AccessDeniedError):
        await bob.checkpoint_namespace(made, name="v1")
    with pytest.raises(AccessDeniedError):
        await bob.read_namespace(made, path="/file", user_id="alice")
