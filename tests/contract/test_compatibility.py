"""What programs lean on that were written for the seeds' packages: spellings of arguments, answers that are read as
mappings, names; and what must hold whichever of them is used."""

from __future__ import annotations

from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import (
    AccessDeniedError,
    ArtifactExpiredError,
    ArtifactMetadata,
    ArtifactNotFoundError,
    ArtifactStore,
    GridKeyComponents,
    StorageScope,
    grid,
)
from artfs.access_control import build_context, check_access
from artfs.errors import InvalidError
from artfs.sessions import ProviderError, factory_for_env
from artfs.types import OperationStatus, ProviderStatus, SessionInfo, SessionStats, StorageStats
from tests.contract.api import everywhere
from tests.contract.loops import on_both_loops

SOON = 0.6
"""Seconds until something has expired."""


# answers
def test_answers_equal_what_they_say() -> None:
    stats = SessionStats(cache_hits=10, cache_misses=5)
    assert stats == {"cache_hits": 10, "cache_misses": 5} and stats == {"cache_hits": 10}
    assert stats != {"cache_hits": 9} and stats != {"nosuch": 1} and stats != {}
    assert stats == SessionStats(cache_hits=10, cache_misses=5) != SessionStats()
    assert StorageStats() == {} and StorageStats(provider="memory") != {}
    assert SessionInfo(session_id="s", sandbox_id="b", metadata={"k": 1}) == {
        "session_id": "s",
        "custom_metadata": {"k": 1},
    }
    status = ProviderStatus(status=OperationStatus.OK, provider="memory", details={"bucket": "b", "provider": "other"})
    assert (status["bucket"], status.get("bucket"), "bucket" in status) == ("b", "b", True)
    assert (status["provider"], status.get("nosuch", 1)) == ("memory", 1)


def test_a_grid_key_taken_apart_has_four_parts() -> None:
    found = grid.validate_grid_key("grid/web/users/alice/a/b/c")
    assert found.scope is StorageScope.USER
    assert found.model_dump() == {"sandbox_id": "web", "session_id": "alice", "artifact_id": "a", "subpath": "b/c"}
    assert found == GridKeyComponents(**found.model_dump(), scope=StorageScope.USER)
    assert hash(found) == hash(grid.parse("grid/web/users/alice/a/b/c"))


@pytest.mark.parametrize(
    ("whose", "caller", "named"),
    [
        ({"scope": "session"}, {"session_id": "other"}, ["session 'mine'", "session 'other'"]),
        ({"scope": "session"}, {"user_id": "bob"}, ["session 'mine'", "user 'bob'"]),
        ({"scope": "user", "owner_id": "alice"}, {"user_id": "bob"}, ["'alice'", "'bob'"]),
        ({"scope": "sandbox"}, {"sandbox_id": "there"}, ["Sandbox mismatch", "'here'", "'there'"]),
    ],
)
def test_a_denial_names_both_sides(whose: dict[str, Any], caller: dict[str, Any], named: list[str]) -> None:
    artifact = ArtifactMetadata(
        artifact_id="a", session_id="mine", sandbox_id="here", key="grid/here/mine/a", mime="text/plain", summary="",
        bytes=1, stored_at="", storage_provider="memory", session_provider="memory", **whose
    )  # fmt: skip
    with pytest.raises(AccessDeniedError) as denied:
        check_access(artifact, build_context(**{"sandbox_id": "here", **caller}))
    assert [part for part in named if part not in str(denied.value)] == []


def test_every_exception_says_what_it_is() -> None:
    exceptions = import_module("artfs.exceptions")
    found = [
        kind for kind in vars(exceptions).values() if isinstance(kind, type) and kind.__module__ == exceptions.__name__
    ]
    assert [kind for kind in found if not (kind.__doc__ or "").strip().endswith(".")] == []


# construction
def test_names_of_a_store(tmp_path: Path) -> None:
    store: Any = ArtifactStore(storage_provider="vfs-filesystem", session_provider="redis", root=tmp_path)
    assert (store._storage_provider_name, store._session_provider_name, store._closed) == ("filesystem", "redis", False)
    with pytest.raises(AttributeError):
        store._closed = True
    anyio.run(store.close)
    assert store._closed is True


@pytest.mark.parametrize("name", ["invalid", "no such", "json.nosuch", "..", "."])
def test_unknown_providers_are_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"Unknown storage provider '{name}'"):
        ArtifactStore(storage_provider=name)
    with pytest.raises(ValueError, match=f"Unknown session provider '{name}'"):
        ArtifactStore(session_provider=name)
    monkeypatch.setenv("SESSION_PROVIDER", name)
    with pytest.raises(ValueError, match=f"Unknown session provider '{name}'"):
        ArtifactStore()


@pytest.mark.parametrize("name", ["memory", "MEM", "inmemory", "redis", "redis_store", "sqlite", "email.mime"])
def test_known_session_providers(name: str) -> None:
    assert ArtifactStore(session_provider=name).session_provider == name


def test_shapes_of_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {
        "maker": "def factory():\n    return open_one",
        "direct": "from contextlib import asynccontextmanager\n@asynccontextmanager\nasync def factory():\n    yield 5",
        "wanting": "def factory(url):\n    return url",
        "nothing": "factory = 'text'",
    }
    monkeypatch.syspath_prepend(tmp_path)
    for shape, text in shapes.items():
        (tmp_path / f"shape_{shape}.py").write_text(f"def open_one():\n    return 1\n{text}\n")
    found: dict[str, Any] = {shape: factory_for_env(f"shape_{shape}") for shape in ("maker", "direct", "wanting")}
    assert found["maker"]() == 1
    assert hasattr(found["direct"](), "__aenter__")
    assert found["wanting"]("url") == "url"
    with pytest.raises(ProviderError, match=r"lacks a factory\(\) function"):
        factory_for_env("shape_nothing")


# spellings of arguments
@on_both_loops
@everywhere
async def test_spellings(store: ArtifactStore) -> None:
    session = await store.create_session("alice", custom_metadata={"a": 1})
    assert await store.update_session_metadata(session, metadata={"b": 2})
    assert await store.update_session_metadata(session, {"c": 3})
    info = await store.get_session_info(session)
    assert info is not None and info.metadata == {"a": 1, "b": 2, "c": 3}
    for wrong in ({}, {"metadata": {"b": 2}, "custom_metadata": {"b": 2}}):
        with pytest.raises(InvalidError, match="metadata, once"):
            await store.update_session_metadata(session, **wrong)  # type: ignore[arg-type]
    made = await store.create_namespace("workspace", session_id=session)
    shared = await store.create_namespace("workspace", "sandbox")
    id = made.namespace_id
    assert store.get_namespace_info(id, session).namespace_id == id
    assert {found.namespace_id for found in store.list_namespaces()} == {id, shared.namespace_id}
    assert [found.namespace_id for found in store.list_namespaces(include_all_scopes=False)] == [id]
    vfs = store.get_namespace_vfs(id)
    assert await vfs.write_text(path="/t", content="text") and await vfs.read_text("/t") == "text"
    assert await vfs.write_binary(path="/b", content=b"bytes", kind="raw") and await vfs.read_binary("/b") == b"bytes"
    assert (await vfs.get_metadata("/b"))["kind"] == "raw"
    assert await vfs.mkdir("/d/e", kind="folder") and (await vfs.get_metadata("/d/e"))["kind"] == "folder"
    assert await vfs.mkdir("/d/e", kind="again") is False
    assert (await vfs.get_metadata("/d/e"))["kind"] == "folder"
    with pytest.raises(AccessDeniedError):
        await store.destroy_namespace(id, await store.create_session("bob"))
    assert await store.destroy_namespace(id, session)
    upload = await store.initiate_multipart_upload({"filename": "f"})
    assert upload.upload_id.startswith("upload-")
    with pytest.raises(ArtifactNotFoundError, match="Multipart upload upload-none not found"):
        await store.get_part_upload_url("upload-none", 1)


@on_both_loops
@everywhere
async def test_whole_files_go_through_store_and_retrieve(store: ArtifactStore) -> None:
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def recorded(name: str) -> Any:
        call = getattr(type(store), name)

        async def record(*arguments: Any, **options: Any) -> Any:
            seen.append((arguments, options))
            return await call(store, *arguments, **options)

        return record

    for name in ("store", "retrieve"):
        setattr(store, name, recorded(name))
    made = await store.write_file("text", filename="f", session_id="s")
    assert await store.read_file(made, as_text=True) == "text"
    (no, stored), read = seen
    assert no == () and stored == {
        "data": b"text", "mime": "text/plain", "summary": "File: f", "filename": "f", "session_id": "s",
        "user_id": None, "meta": None, "scope": "session", "ttl": 900,
    }  # fmt: skip
    assert read == ((made,), {})
    shared = await store.write_file(b"x", filename="f", scope="sandbox")
    assert (await store.metadata(shared)).ttl is None


# what is counted
@on_both_loops
@everywhere
async def test_sessions_that_were_asked_for_are_counted(store: ArtifactStore) -> None:
    assert (await store.get_stats()).session_manager == {"total_requests": 0, "hit_rate": 0.0}
    session = await store.create_session("alice")
    for id in (session, session, "nosuch", session):
        assert await store.validate_session(id) is (id == session)
    assert await store.as_principal(session_id=session).get_session_info(session)
    counted = {"cache_hits": 4, "cache_misses": 1, "total_requests": 5, "hit_rate": 0.8}
    assert (await store.get_stats()).session_manager == counted
    info = await store.get_sandbox_info()
    assert info.session_stats == counted
    assert info.created_at == (await store.get_sandbox_info()).created_at


# sessions that nobody names
@on_both_loops
@everywhere
async def test_what_names_no_session_lives_as_long_as_it_was_given(store: ArtifactStore) -> None:
    async def session_of(ttl: float | None, **arguments: Any) -> tuple[str, float]:
        """Of a new artifact: its session, and how many seconds that outlives it by."""
        found = await store.metadata(await store.store(b"x", ttl=ttl, **arguments))
        info = await store.get_session_info(found.session_id)
        assert info is not None and info.expires_at is not None
        life = datetime.fromisoformat(info.expires_at) - datetime.fromisoformat(found.stored_at)
        return found.session_id, life.total_seconds() - (ttl or 0)

    usual, _ = await session_of(900)
    assert [(await session_of(ttl))[0] for ttl in (12 * 3600, None)] == [usual, usual]
    long, left = await session_of(7 * 86400)
    assert long != usual and left >= 0
    assert (await session_of(86400))[0] == long
    assert (await session_of(30 * 86400))[1] >= 0
    assert (await session_of(7 * 86400, user_id="alice"))[0] not in (usual, long)
    made = await store.create_namespace("blob", ttl_hours=48)
    assert made.ttl_seconds == 48 * 3600 and made.session_id != usual
    assert (await store.create_namespace("blob")).session_id == usual
    assert await store.delete_session(usual)
    assert (await session_of(900))[0] not in (usual, long)


@on_both_loops
@everywhere
async def test_a_session_of_the_stores_own_takes_nothing_new_in_its_second_half(store: ArtifactStore) -> None:
    async with ArtifactStore(root=store.root, sandbox_id=store.sandbox_id, session_ttl_hours=2 * SOON / 3600) as other:
        sessions = []
        for wait in (0, SOON + 0.05):
            await anyio.sleep(wait)
            sessions.append((await other.metadata(await other.store(b"x", ttl=SOON))).session_id)
        assert len(set(sessions)) == 2
        assert [await other.validate_session(session) for session in sessions][1]


@on_both_loops
async def test_what_the_reaper_was_faster_with_is_counted() -> None:
    async with ArtifactStore() as store, ArtifactStore() as other:
        session = await store.create_session("alice", ttl_hours=SOON / 3600)
        await store.store(b"x", session_id=session)
        await store.create_namespace("workspace", "sandbox", ttl_hours=SOON / 3600)
        await anyio.sleep(SOON + 0.3)
        assert await other.cleanup_expired_sessions() == 0
        assert [await store.cleanup_expired_sessions() for _ in range(2)] == [2, 0]


@on_both_loops
@everywhere
async def test_a_session_that_is_not_there_is_told_from_one_that_may_not(store: ArtifactStore) -> None:
    made = await store.store(b"x", session_id="mine")
    await store.create_session(session_id="other")
    with pytest.raises(AccessDeniedError, match="does not belong to session 'other'"):
        await store.retrieve(made, session_id="other")
    with pytest.raises(AccessDeniedError, match="there is no session 'nosuch'"):
        await store.retrieve(made, session_id="nosuch")


# what has ended
@on_both_loops
@everywhere
@pytest.mark.parametrize("end", ["expired", "reaped", "deleted", "own time"])
async def test_what_died_with_its_session_has_expired(store: ArtifactStore, end: str) -> None:
    brief = SOON / 3600
    session = await store.create_session("alice", ttl_hours=brief if end in ("expired", "reaped") else 1)
    own = end == "own time"
    made = await store.create_namespace("workspace", session_id=session, ttl_hours=brief if own else None)
    id = made.namespace_id
    await store.write_namespace(id, b"x", "/f")
    artifact = await store.store(b"x", session_id=session, ttl=SOON if own else None)
    if end == "deleted":
        await store.delete_session(session)
    else:
        await anyio.sleep(SOON + 0.01)
    if end == "reaped":
        await store.cleanup_expired_sessions()
    callers: list[dict[str, Any]] = [{}, {"session_id": session}, {"user_id": "alice"}, {"user_id": "bob"}]
    for who in callers:
        with pytest.raises(ArtifactExpiredError):
            await store.read_namespace(id, "/f", **who)
        with pytest.raises((ArtifactExpiredError, ArtifactNotFoundError)):  # until the reaper takes the name
            await store.read_namespace(made.grid_path, "/f", **who)
        with pytest.raises(ArtifactExpiredError):
            store.get_namespace_info(id, **who)
        with pytest.raises(ArtifactExpiredError):
            await store.checkpoint_namespace(id, **who)
        with pytest.raises(ArtifactExpiredError):
            await store.retrieve(artifact, **who)
        with pytest.raises(ArtifactExpiredError):
            await store.update_metadata(artifact, summary="s", **who)
        assert await store.exists(artifact, **who) is False
        assert await store.delete(artifact, **who) is False
    assert id not in {found.namespace_id for found in store.list_namespaces()}
    assert await store.list_by_session(session) == []


# virtual files
@on_both_loops
@everywhere
async def test_nothing_is_put_behind_a_virtual_file(store: ArtifactStore) -> None:
    work = (await store.create_namespace("workspace", "sandbox")).namespace_id
    blob = (await store.create_namespace("blob", "sandbox")).namespace_id
    for id, names in ((work, ("/.workspace", "/_meta.json")), (blob, ("/_meta.json",))):
        vfs = store.get_namespace_vfs(id)
        assert await vfs.write_file("/dir/.workspace", b"mine") and await vfs.write_file("/dir/_meta.json", b"mine")
        before = await vfs.ls("/")
        for name in names:
            for path in (name, f"{name}/x", f"/dir/../{name}/x/y", f"/./{name}"):
                for call in (
                    vfs.write_file(path, b"x"),
                    vfs.stream_write(path, [b"x"]),
                    vfs.mkdir(path),
                    vfs.touch(path),
                    vfs.cp("/dir", path),
                    vfs.mv("/dir", path),
                    vfs.rm(path),
                    store.write_namespace(id, b"x", path if ".." not in path else name),
                ):
                    with pytest.raises(AccessDeniedError):
                        await call
                for result in await vfs.batch_write_files({path: b"x"}) + await vfs.batch_delete_paths([path]):
                    assert (result.success, "not permitted" in str(result.error)) == (False, True)
            for call in (vfs.mv(f"/dir{name}", "/"), vfs.cp(f"/dir{name}", "/")):
                with pytest.raises(AccessDeniedError):
                    await call
            assert b'"' in (await vfs.read_file(name))
        assert await vfs.ls("/") == before
        assert await vfs.read_file("/dir/_meta.json") == b"mine"


# many at once
@on_both_loops
@everywhere
@pytest.mark.parametrize("items", ["abc", b"abc", {"data": b"x"}, {b"x"}, 5, None, iter([{"data": b"x"}])])
async def test_a_batch_is_a_list(store: ArtifactStore, items: Any) -> None:
    with pytest.raises(ValueError, match="items must be a list"):
        await store.store_batch(items)
    assert (await store.get_stats()).total_artifacts == 0


@on_both_loops
@everywhere
async def test_what_is_no_item_is_not_stored(store: ArtifactStore, caplog: pytest.LogCaptureFixture) -> None:
    ids = await store.store_batch([{"data": b"x"}, "text", None, {"data": "text"}, {"data": b"x", "name": "f"}])  # type: ignore[list-item]
    assert [id is not None for id in ids] == [True, False, False, False, False]
    assert [record.args[0] for record in caplog.records if record.args] == [1, 2, 3, 4]  # type: ignore[index]
    assert (await store.get_stats()).total_artifacts == 1
    caplog.clear()
