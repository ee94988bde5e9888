"""003, sessions: what the document claims and its blocks do not show, in memory and in sqlite, on asyncio and trio."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import anyio
import pytest

from artfs.sessions import SessionManager, factory_for_env
from tests.contract.loops import on_both_loops
from tests.seeds.claims import SOON


@pytest.fixture(params=["memory", "sqlite"], autouse=True)
def _provider(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_PROVIDER", request.param)
    monkeypatch.setenv("SESSION_SQLITE_PATH", str(tmp_path / "sessions.db"))


@pytest.fixture
def manager(tmp_path: Path) -> SessionManager:
    """Of a sandbox that no other test has."""
    return SessionManager(sandbox_id=re.sub(r"[^A-Za-z0-9._@-]", "-", tmp_path.name), default_ttl_hours=8)


def when(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@on_both_loops
async def test_a_session_remembers_its_user_and_its_metadata(manager: SessionManager) -> None:
    session = await manager.allocate_session(user_id="alice", custom_metadata={"role": "admin", "may": ["read"]})
    found = await manager.get_session_info(session)
    assert found is not None
    assert (found["user_id"], found["sandbox_id"], found["session_id"]) == ("alice", manager.sandbox_id, session)
    assert found["custom_metadata"] == {"role": "admin", "may": ["read"]}
    assert round(when(found["expires_at"]) - when(found["created_at"])) == 8 * 3600


@on_both_loops
async def test_validation_touches_and_does_not_extend(manager: SessionManager) -> None:
    session = await manager.allocate_session(user_id="alice")
    before = await manager.get_session_info(session)
    await anyio.sleep(0.01)
    assert await manager.validate_session(session)
    after = await manager.get_session_info(session)
    assert before is not None and after is not None
    assert when(after["last_accessed"]) > when(before["last_accessed"])
    assert after["expires_at"] == before["expires_at"]


@on_both_loops
async def test_metadata_is_merged(manager: SessionManager) -> None:
    session = await manager.allocate_session(custom_metadata={"kept": 1, "changed": 1})
    assert await manager.update_session_metadata(session, {"changed": 2, "new": {"deep": [3]}})
    found = await manager.get_session_info(session)
    assert found is not None
    assert found["custom_metadata"] == {"kept": 1, "changed": 2, "new": {"deep": [3]}}


@on_both_loops
async def test_extending_adds_to_the_end(manager: SessionManager) -> None:
    session = await manager.allocate_session(ttl_hours=1)
    before = await manager.get_session_info(session)
    assert await manager.extend_session_ttl(session, additional_hours=4)
    after = await manager.get_session_info(session)
    assert before is not None and after is not None
    assert round(when(after["expires_at"]) - when(before["expires_at"])) == 4 * 3600


@on_both_loops
async def test_a_part_of_an_hour_is_exact_and_the_end_final(manager: SessionManager) -> None:
    session = await manager.allocate_session(user_id="reset", ttl_hours=SOON)
    assert await manager.validate_session(session)
    await anyio.sleep(SOON * 3600)
    assert not await manager.validate_session(session)
    assert await manager.get_session_info(session) is None
    assert not await manager.extend_session_ttl(session, additional_hours=1)
    assert not await manager.update_session_metadata(session, {"a": 1})


@on_both_loops
async def test_a_deleted_session_is_gone_for_every_manager(manager: SessionManager) -> None:
    other = SessionManager(sandbox_id=manager.sandbox_id)
    session = await manager.allocate_session(user_id="alice")
    assert await other.validate_session(session)
    assert await manager.delete_session(session)
    assert not await other.validate_session(session)
    assert not await other.delete_session(session)


@on_both_loops
async def test_sandboxes_do_not_know_each_others_sessions(manager: SessionManager) -> None:
    other = SessionManager(sandbox_id=manager.sandbox_id + "-b")
    session = await manager.allocate_session(user_id="alice")
    assert not await other.validate_session(session)
    assert await other.get_session_info(session) is None
    assert not await other.delete_session(session)
    assert await manager.validate_session(session)


@on_both_loops
async def test_a_given_id_is_used_and_used_again(manager: SessionManager) -> None:
    assert await manager.allocate_session(session_id="own-1", user_id="alice", custom_metadata={"a": 1}) == "own-1"
    assert await manager.allocate_session(session_id="own-1") == "own-1"
    found = await manager.get_session_info("own-1")
    assert found is not None
    assert (found["user_id"], found["custom_metadata"]) == ("alice", {"a": 1})


@on_both_loops
async def test_a_thousand_ids_are_a_thousand(manager: SessionManager) -> None:
    found = [await manager.allocate_session(user_id="claude_conversation_7") for _ in range(1000)]
    assert len(set(found)) == 1000
    assert all(session.startswith("sess-claudeco-") for session in found)


@pytest.mark.parametrize("session", ["", "a/b", "..", "shared", "users", "x" * 129])
@on_both_loops
async def test_an_id_is_one_plain_component(manager: SessionManager, session: str) -> None:
    if session:
        with pytest.raises(ValueError):
            await manager.allocate_session(session_id=session)
    with pytest.raises(ValueError):
        manager.generate_artifact_key(session, "artifact")
    for artifact in ("", "a/b", "..", "nul\0"):
        with pytest.raises(ValueError):
            manager.generate_artifact_key("session", artifact)


@on_both_loops
async def test_grid_paths_and_the_way_back(manager: SessionManager) -> None:
    session = await manager.allocate_session(user_id="alice")
    prefix = manager.get_canonical_prefix(session)
    key = manager.generate_artifact_key(session, "document123")
    assert (prefix, key) == (f"grid/{manager.sandbox_id}/{session}/", f"{prefix}document123")
    parsed = {"sandbox_id": manager.sandbox_id, "session_id": session, "artifact_id": "document123"}
    assert manager.parse_grid_key(key) == parsed
    assert manager.get_session_prefix_pattern() == f"grid/{manager.sandbox_id}/"
    for invalid in ("", "grid", "grid/a", "grid//b/c", "other/a/b/c", "grid/../b/c", None, 7):
        assert manager.parse_grid_key(invalid) is None  # type: ignore[arg-type]


@on_both_loops
async def test_zero_hours_are_not_the_default(manager: SessionManager) -> None:
    for hours in (0, -1):
        with pytest.raises(ValueError):
            await manager.allocate_session(ttl_hours=hours)


@on_both_loops
async def test_values_live_as_long_as_they_were_given(manager: SessionManager) -> None:
    async with factory_for_env()() as session:
        await session.setex("k:1/any thing", 1, "value")
        await session.set("k:2", "stays")  # type: ignore[attr-defined]  # not of every provider
        assert await session.get("k:1/any thing") == "value"
        await anyio.sleep(1)
        assert await session.get("k:1/any thing") is None
        assert await session.get("k:2") == "stays"
        await session.delete("k:2")
        assert await session.get("k:2") is None
    async with factory_for_env()() as session:
        await session.setex("k:3", 60, "seen by the next")
    async with factory_for_env()() as session:
        assert await session.get("k:3") == "seen by the next"


@on_both_loops
async def test_cache_statistics_and_cleanup(manager: SessionManager) -> None:
    for _ in range(3):
        await manager.allocate_session(ttl_hours=SOON)
    kept = await manager.allocate_session()
    assert isinstance(manager.get_cache_stats(), dict)
    await anyio.sleep(SOON * 3600)
    assert await manager.cleanup_expired_sessions() >= 0
    assert await manager.validate_session(kept)
