"""001, artifacts: what the document claims, one claim to a test; on each kind of store and of loop."""

from __future__ import annotations

import hashlib
import re
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
)
from tests.contract.loops import on_both_loops
from tests.seeds.claims import owned, put, store, two_sessions

__all__ = ["owned", "store"]
KIB64 = 65_536


# store and read
@on_both_loops
async def test_the_quick_start(store: ArtifactStore) -> None:
    made = await put(store, b"Hello, world!", filename="hello.txt", user_id="alice", ttl=900)
    assert await store.read_file(made, as_text=True) == "Hello, world!"
    assert await store.read_file(made) == b"Hello, world!"
    assert await store.update_file(made, data=b"updated!", summary="Updated greeting")
    found = await store.metadata(made)
    assert (await store.retrieve(made), found.summary, found.filename) == (b"updated!", "Updated greeting", "hello.txt")


@on_both_loops
async def test_metadata_says_what_was_stored(store: ArtifactStore) -> None:
    made = await put(store, b"12345", filename="docs/a.txt", session_id="mine", meta={"a": [1, {"b": None}]})
    found = await store.metadata(made)
    assert (found.artifact_id, found.bytes, found.mime, found.filename) == (made, 5, "text/plain", "docs/a.txt")
    assert found.sha256 == hashlib.sha256(b"12345").hexdigest()
    assert (found.session_id, found.sandbox_id, found.scope, found.ttl) == ("mine", store.sandbox_id, "session", 900)
    assert found["meta"] == {"a": [1, {"b": None}]}
    assert found.stored_at and found.storage_provider and found.session_provider


@on_both_loops
async def test_the_key_is_a_grid_path_that_parses(store: ArtifactStore) -> None:
    made = await put(store, session_id="mine")
    key = (await store.metadata(made)).key
    assert key == f"grid/{store.sandbox_id}/mine/{made}" == store.generate_artifact_key("mine", made)
    parsed = store.parse_grid_key(key)
    assert parsed is not None
    assert (parsed.sandbox_id, parsed.session_id, parsed.artifact_id) == (store.sandbox_id, "mine", made)
    theirs = (await store.metadata(await put(store, user_id="alice", scope="user"))).key
    assert theirs.startswith(f"grid/{store.sandbox_id}/users/alice/")
    assert (await store.metadata(await put(store, scope="sandbox"))).key.startswith(f"grid/{store.sandbox_id}/shared/")


@on_both_loops
async def test_a_session_is_made_for_a_user(store: ArtifactStore) -> None:
    first, second = [(await store.metadata(await put(store, user_id="alice"))).session_id for _ in range(2)]
    assert re.fullmatch(r"sess-alice-\d+-[0-9a-f]{32}", first)
    other = (await store.metadata(await put(store, user_id="bob"))).session_id
    assert first == second != other
    assert await store.validate_session(first)


@pytest.mark.parametrize("session", ["user_7", "org_a.b", "tenant_1_user_2", "workflow-9"])
@on_both_loops
async def test_a_session_id_of_ones_own_is_used_as_it_is(store: ArtifactStore, session: str) -> None:
    made = await put(store, session_id=session)
    assert (await store.metadata(made)).session_id == session
    assert [f.artifact_id for f in await store.list_by_session(session)] == [made]


@on_both_loops
async def test_times_to_live_by_default(store: ArtifactStore) -> None:
    kinds: list[tuple[dict[str, Any], int | None]] = [
        ({}, 900),
        ({"user_id": "alice", "scope": "user"}, None),
        ({"scope": "sandbox"}, None),
        ({"ttl": None}, None),
        ({"user_id": "alice", "scope": "user", "ttl": 86400 * 365}, 86400 * 365),
    ]
    for arguments, ttl in kinds:
        assert (await store.metadata(await put(store, **arguments))).ttl == ttl
    for wrong in (0, -1):
        with pytest.raises(ValueError):
            await put(store, ttl=wrong)


@on_both_loops
async def test_what_expired_is_gone_at_once_and_can_be_told_from_what_never_was(store: ArtifactStore) -> None:
    made = await put(store, ttl=1, session_id="mine")
    await anyio.sleep(1)
    for call in (store.retrieve, store.metadata, store.read_file, store.presign):
        with pytest.raises(ArtifactExpiredError) as expired:
            await call(made)
        assert (expired.value.http_status, isinstance(expired.value, ArtifactNotFoundError)) == (410, False)
    assert not await store.exists(made)
    assert await store.list_by_session("mine") == []
    with pytest.raises(ArtifactNotFoundError) as missing:
        await store.retrieve("0" * 32)
    assert missing.value.http_status == 404
    assert isinstance(missing.value, FileNotFoundError)


@on_both_loops
async def test_a_life_can_be_extended(store: ArtifactStore) -> None:
    made = await put(store, ttl=1)
    await store.extend_ttl(made, 3600)
    await anyio.sleep(1)
    assert await store.retrieve(made) == b"data"


@on_both_loops
async def test_an_update_must_change_something(store: ArtifactStore) -> None:
    made = await put(store)
    with pytest.raises(ValueError, match="At least one update parameter"):
        await store.update_file(made)
    await store.update_file(made, data=b"")
    found = await store.metadata(made)
    assert (found.bytes, found.sha256, found.ttl) == (0, hashlib.sha256(b"").hexdigest(), 900)
    assert found.updated_at


@on_both_loops
async def test_metadata_merges_or_is_replaced(store: ArtifactStore) -> None:
    made = await put(store, meta={"tags": ["laptop"], "dimensions": {"width": 1920}})
    await store.update_metadata(made, summary="new", meta={"tags": ["workspace"]}, merge=True)
    found = await store.metadata(made)
    assert (found.summary, found.meta) == ("new", {"tags": ["workspace"], "dimensions": {"width": 1920}})
    await store.update_metadata(made, meta={"only": 1}, merge=False)
    assert (await store.metadata(made)).meta == {"only": 1}
    assert await store.retrieve(made) == b"data"


@on_both_loops
async def test_exists_and_delete(store: ArtifactStore) -> None:
    made = await put(store)
    assert await store.exists(made)
    assert await store.delete(made)
    assert not await store.exists(made)
    assert not await store.delete(made)
    with pytest.raises(ArtifactNotFoundError):
        await store.retrieve(made)


@on_both_loops
async def test_copy_and_move_within_a_session(store: ArtifactStore) -> None:
    made = await put(store, filename="a.txt", session_id="mine", meta={"k": 1})
    copy = await store.copy_file(made, new_filename="docs/b.txt")
    await store.move_file(made, new_filename="c.txt")
    assert copy != made
    assert await store.retrieve(copy) == await store.retrieve(made) == b"data"
    assert sorted(f.filename or "" for f in await store.list_by_session("mine")) == ["c.txt", "docs/b.txt"]
    await store.update_file(made, data=b"other")
    assert await store.retrieve(copy) == b"data"


@on_both_loops
async def test_copies_and_moves_do_not_cross_sessions(store: ArtifactStore) -> None:
    alice, bob = await put(store, user_id="alice"), await put(store, user_id="bob")
    theirs = (await store.metadata(bob)).session_id
    with pytest.raises(ArtifactStoreError):
        await store.copy_file(alice, target_session_id=theirs)
    with pytest.raises(ArtifactStoreError):
        await store.move_file(alice, new_session_id=theirs)
    assert [f.artifact_id for f in await store.list_by_session(theirs)] == [bob]


# access
@on_both_loops
async def test_session_scope_is_that_sessions_alone(store: ArtifactStore) -> None:
    alice, bob = await two_sessions(store)
    made = await put(store, session_id=alice)
    assert await store.retrieve(made, session_id=alice) == b"data"
    with pytest.raises(AccessDeniedError) as denied:
        await store.retrieve(made, session_id=bob)
    assert (denied.value.http_status, isinstance(denied.value, PermissionError)) == (403, True)


@on_both_loops
async def test_user_scope_is_that_users_alone(store: ArtifactStore) -> None:
    made = await put(store, user_id="alice", scope="user", ttl=None)
    assert await store.retrieve(made, user_id="alice") == b"data"
    bob = store.as_principal(user_id="bob")
    for call in (bob.retrieve, bob.metadata, bob.delete, bob.presign, bob.read_file, bob.copy_file):
        with pytest.raises(AccessDeniedError):
            await call(made)
    with pytest.raises(AccessDeniedError):
        await bob.update_file(made, data=b"theirs")
    with pytest.raises(ValueError, match="user_id is required"):
        await put(store, scope="user")


@on_both_loops
async def test_shared_is_read_by_all_and_changed_by_admins(store: ArtifactStore) -> None:
    made = await put(store, scope="sandbox", ttl=None)
    bob, admin = store.as_principal(user_id="bob"), store.as_principal(admin=True)
    assert await store.retrieve(made) == await bob.retrieve(made) == b"data"
    with pytest.raises(AccessDeniedError):
        await bob.delete(made)
    with pytest.raises(AccessDeniedError):
        await put(bob, scope="sandbox")
    assert await admin.delete(made)


@on_both_loops
async def test_what_belongs_to_a_session_ends_with_it_and_the_rest_stays(store: ArtifactStore) -> None:
    session, _ = await two_sessions(store)
    mine = await put(store, session_id=session, ttl=None)
    user = await put(store, session_id=session, user_id="alice", scope="user")
    await store.delete_session(session)
    with pytest.raises((ArtifactExpiredError, ArtifactNotFoundError)):
        await store.retrieve(mine)
    assert await store.retrieve(user, user_id="alice") == b"data"


@on_both_loops
async def test_ownership_is_not_metadata_that_one_may_change(store: ArtifactStore) -> None:
    made = await put(store, user_id="alice", scope="user")
    before = await store.metadata(made)
    await store.update_metadata(made, meta={"owner_id": "bob", "scope": "sandbox", "session_id": "x"})
    after = await store.metadata(made)
    assert (after.owner_id, after.scope, after.session_id) == (before.owner_id, before.scope, before.session_id)
    with pytest.raises(AccessDeniedError):
        await store.retrieve(made, user_id="bob")


@pytest.mark.parametrize("filename", ["../up.txt", "/etc/passwd", "a/../../b", "nul\0"])
@on_both_loops
async def test_a_filename_leads_nowhere_else(store: ArtifactStore, filename: str) -> None:
    with pytest.raises(ValueError):
        await put(store, filename=filename, session_id="mine")
    assert await store.list_by_session("mine") == []


# many
@on_both_loops
async def test_search_by_user_scope_mime_and_metadata(store: ArtifactStore) -> None:
    def of_alice(**more: Any) -> dict[str, Any]:
        return {"user_id": "alice", "scope": "user", **more}

    pdf = await put(store, **of_alice(mime="application/pdf", meta={"quarter": "Q4", "year": 2024}))
    text = await put(store, **of_alice(meta={"quarter": "Q4"}))
    await put(store, user_id="bob", scope="user", meta={"quarter": "Q4"})
    shared = await put(store, scope="sandbox", mime="image/png")

    async def found(**query: Any) -> set[str]:
        return {artifact.artifact_id for artifact in await store.search(**query)}

    assert await found(**of_alice()) == {pdf, text}
    assert await found(**of_alice(mime_prefix="application/pdf")) == await found(**of_alice(mime_prefix="app")) == {pdf}
    assert await found(**of_alice(meta_filter={"quarter": "Q4"})) == {pdf, text}
    assert await found(**of_alice(meta_filter={"quarter": "Q4", "year": 2024})) == {pdf}
    assert await found(**of_alice(meta_filter={"quarter": "Q5"})) == set()
    assert await found(scope="sandbox") == {shared}
    assert await found(scope="session") == set()
    assert len(await store.search(limit=1, **of_alice())) == 1


@on_both_loops
async def test_search_knows_changes_at_once(store: ArtifactStore) -> None:
    made = await put(store, user_id="alice", scope="user", meta={"state": "draft"})
    query: dict[str, Any] = {"user_id": "alice", "scope": "user"}
    await store.update_metadata(made, meta={"state": "final"})
    assert await store.search(meta_filter={"state": "draft"}, **query) == []
    assert len(await store.search(meta_filter={"state": "final"}, **query)) == 1
    await store.delete(made)
    assert await store.search(meta_filter={"state": "final"}, **query) == []


@pytest.mark.logs_errors
@on_both_loops
async def test_a_batch_gives_ids_in_order_and_none_for_what_failed(store: ArtifactStore) -> None:
    items: list[Any] = [
        {"data": f"{i}".encode(), "mime": "image/jpeg", "filename": f"products/img-{i}.jpg", "summary": f"Image {i}"}
        for i in range(10)
    ]
    items[3] = {"mime": "image/jpeg", "summary": "no data"}
    items[4]["data"] = b""
    made = await store.store_batch(items, session_id="catalog")
    assert [i for i, artifact in enumerate(made) if artifact is None] == [3]
    assert [await store.retrieve(made[i] or "") for i in (4, 9)] == [b"", b"9"]
    assert len(await store.list_by_session("catalog")) == 9


@on_both_loops
async def test_directories_are_what_filenames_say(store: ArtifactStore) -> None:
    for name in ("docs/README.md", "docs/deep/a.md", "images/b.png", "docsother.txt"):
        await put(store, filename=name, session_id="session-123")
    docs = await store.get_directory_contents("session-123", "docs/")
    assert {f.filename for f in docs} >= {"docs/README.md"}
    assert not {f.filename for f in docs} & {"images/b.png", "docsother.txt"}
    assert {f.filename for f in await store.list_files("session-123", prefix="images/")} == {"images/b.png"}
    assert len(await store.list_files("session-123", limit=2)) == 2
    assert sum(f.bytes for f in await store.list_by_session("session-123")) == 16


@on_both_loops
async def test_nothing_is_cut_off_silently(store: ArtifactStore) -> None:
    await store.store_batch([{"data": b"x"} for _ in range(1234)], session_id="many")
    assert len(await store.list_by_session("many")) == 1234
    assert len(await store.search(session_id="many", scope="session", limit=None)) == 1234


@on_both_loops
async def test_write_file_writes_text_and_bytes(store: ArtifactStore) -> None:
    for content, expected in (("Grüße", "Grüße".encode()), (b"\xff", b"\xff")):
        made = await store.write_file(content, filename="note.txt", session_id="mine")
        assert await store.read_file(made) == expected


@on_both_loops
async def test_an_artifact_is_a_blob(store: ArtifactStore) -> None:
    made = await put(store)
    assert await store.read_namespace(made) == b"data"
    saved = await store.checkpoint_namespace(made, name="v1")
    await store.update_file(made, data=b"other")
    await store.restore_namespace(made, saved.checkpoint_id)
    assert await store.retrieve(made) == b"data"
    blob = await store.create_namespace(type=NamespaceType.BLOB)
    await store.write_namespace(blob.namespace_id, data=b"blob")
    assert await store.retrieve(blob.namespace_id) == b"blob"


@on_both_loops
async def test_artifacts_and_what_finds_them_outlive_the_store(tmp_path: Path) -> None:
    root = tmp_path / "root"
    query: dict[str, Any] = {"user_id": "alice", "scope": "user", "meta_filter": {"quarter": "Q4"}}
    async with ArtifactStore(root=root) as first:
        made = await put(first, user_id="alice", scope="user", meta={"quarter": "Q4"}, filename="docs/a")
        mine = await put(first, session_id="mine", filename="docs/b", ttl=None)
        short = await put(first, session_id="mine", ttl=1)
        before = await first.metadata(made)
    await anyio.sleep(1)
    async with ArtifactStore(root=root) as second:
        assert await second.metadata(made) == before
        assert [f.artifact_id for f in await second.search(**query)] == [made]
        assert [f.artifact_id for f in await second.list_by_session("mine")] == [mine]
        assert [f.artifact_id for f in await second.get_directory_contents("mine", "docs/")] == [mine]
        with pytest.raises(ArtifactExpiredError):
            await second.retrieve(short)


# the store
@on_both_loops
async def test_configuration_and_statistics(store: ArtifactStore) -> None:
    status = await store.validate_configuration()
    assert (status["storage"]["status"], status["session"]["status"]) == ("ok", "ok")
    await put(store, b"x" * 1000)
    stats = await store.get_stats()
    assert stats["bucket"] == store.bucket == "artifacts"
    assert stats["storage_provider"]
    assert (stats["total_artifacts"], stats["total_bytes"]) == (1, 1000)
    assert await store.cleanup_expired_sessions() == 0


@on_both_loops
async def test_a_closed_store_says_so(store: ArtifactStore) -> None:
    made = await put(store)
    await store.close()
    with pytest.raises(ArtifactStoreError, match="Store is closed"):
        await store.retrieve(made)
    with pytest.raises(ArtifactStoreError, match="Store is closed"):
        await put(store)
