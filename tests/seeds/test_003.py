"""003, sessions: every block that can run runs, on asyncio and trio, over each provider, and does what it says.

What the document leaves out (a web framework's request, a database of permissions) has stand-ins here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import fastapi
import httpx
import pytest

from artfs.sessions import SessionManager
from artfs.sessions.provider_factory import factory_for_env
from tests.contract.loops import on_both_loops
from tests.contract.redis_server import Server, redis_server
from tests.seeds.blocks import blocks, compiled, run, whole
from tests.servers import Running, let_in, servers

BLOCKS = blocks("003.md")
(
    BASIC, MANAGER, LIFE, GRID, TENANTS, MEMORY, REDIS, WEB, MCP, GATEWAY, SAAS, CACHE, TESTING, TIPS, SECURITY,
    APPLICATION, ERRORS, CUSTOM, ENVIRONMENTS, INTEGRATION,
) = BLOCKS  # fmt: skip

__all__ = ["servers"]  # a fixture of this module

ID = re.compile(r"sess-alice-\d{10}-[0-9a-f]{32}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", "redis"], autouse=True)
def _provider(request: pytest.FixtureRequest, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_PROVIDER", request.param)
    monkeypatch.setenv("SESSION_REDIS_URL", server.url)
    monkeypatch.setenv("SESSION_SQLITE_PATH", str(tmp_path / "sessions.db"))


def test_all_blocks_are_known() -> None:
    assert len(BLOCKS) == 20
    for block in BLOCKS:
        compiled(block, "block")
        assert "chuk_" not in block


# the low level, and the first steps
def test_basic(capsys: pytest.CaptureFixture[str]) -> None:
    whole(BASIC, "asyncio")
    assert capsys.readouterr().out == "User: alice\n"


def test_manager(capsys: pytest.CaptureFixture[str]) -> None:
    whole(MANAGER, "asyncio")
    printed = capsys.readouterr().out
    assert re.fullmatch(rf"Artifact path: grid/my-app/{ID.pattern}/document123\n", printed)


@on_both_loops
async def test_life_and_grid(capsys: pytest.CaptureFixture[str]) -> None:
    names = await run(LIFE, {"time": time})
    id = names["session_id"]
    assert names["is_valid"] is True
    assert ID.fullmatch(id)
    assert names["session_info"]["custom_metadata"]["login_method"] == "oauth"
    assert "User: alice\n" in capsys.readouterr().out
    # The block ends with the deletion.
    assert not await names["session_mgr"].validate_session(id)
    await run(GRID, names)
    assert names["prefix"] == f"grid/webapp/{id}/"
    assert names["artifact_key"] == f"grid/webapp/{id}/document123"
    assert names["parsed"] == {"sandbox_id": "webapp", "session_id": id, "artifact_id": "document123"}
    assert names["pattern"] == "grid/webapp/"


@on_both_loops
async def test_tenants() -> None:
    names = await run(TENANTS, {"SessionManager": SessionManager})
    assert names["doc_in_a"] == f"grid/app-a/{names['alice_in_a']}/report123"
    assert names["doc_in_b"] == f"grid/app-b/{names['alice_in_b']}/report123"
    for manager, id in (("app_a_mgr", "alice_in_b"), ("app_b_mgr", "alice_in_a"), ("shared_mgr", "alice_in_a")):
        assert not await names[manager].validate_session(names[id])


@pytest.mark.parametrize(("block", "kind"), [(MEMORY, "MemoryProvider"), (REDIS, "_RedisSession")])
def test_providers_by_name(block: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_REDIS_URL", "")  # is put back afterwards, whatever the block sets
    values = re.findall(r"\['SESSION_PROVIDER'\] = '(\w+)'", block)
    assert len(values) >= 2
    for value in values:
        os.environ["SESSION_PROVIDER"] = value
        assert type(factory_for_env()()).__name__ == kind
    whole(block, "asyncio")
    assert type(factory_for_env()()).__name__ == kind


# applications
class HTTPException(Exception):
    pass


async def permissions(*who: str) -> list[str]:
    return ["read", *who]


@on_both_loops
async def test_web() -> None:
    stored: dict[str, bytes] = {}

    async def store_file(path: str, data: bytes) -> None:
        stored[path] = data

    request = SimpleNamespace(client=SimpleNamespace(host="10.0.0.1"), headers={"user-agent": "test"})
    given = {"request": request, "time": time, "uuid": uuid, "HTTPException": HTTPException, "store_file": store_file}
    names = await run(WEB, {**given, "get_user_permissions": permissions})
    id = await names["handle_login"]("alice", "password")
    for count in (1, 2):
        answer = await names["handle_file_upload"](id, b"data")
        assert answer["path"] == f"grid/webapp-prod/{id}/{answer['file_id']}"
        found = await names["web_mgr"].get_session_info(id)
        assert found["custom_metadata"]["uploads"] == count
    assert (found["custom_metadata"]["permissions"], len(stored)) == (["read", "alice"], 2)
    with pytest.raises(HTTPException):
        await names["handle_file_upload"]("sess-unknown", b"data")


@on_both_loops
async def test_mcp() -> None:
    names = await run(MCP, {"time": time})
    id = await names["handle_mcp_conversation_start"]("42")
    for artifact in ("document_analysis_1", "generated_report_456"):
        assert await names["handle_mcp_tool_call"](id, "write", artifact) == f"grid/mcp-server/{id}/{artifact}"
    found = await names["mcp_mgr"].get_session_info(id)
    assert found["user_id"] == "claude_conversation_42"
    assert [call["artifact_id"] for call in found["custom_metadata"]["tool_calls"]] == [
        "document_analysis_1",
        "generated_report_456",
    ]
    with pytest.raises(Exception, match="Invalid MCP session"):
        await names["handle_mcp_tool_call"]("sess-unknown", "write", "x")


@on_both_loops
async def test_gateway() -> None:
    names = await run(GATEWAY, {"time": time})
    id = await names["setup_api_client"]("client-1", "free")
    assert [await names["check_rate_limit"](id) for _ in range(101)] == [True] * 100 + [False]
    assert await names["check_rate_limit"]("sess-unknown") is False


@on_both_loops
async def test_saas() -> None:
    names = await run(SAAS, {"time": time, "get_tenant_user_permissions": permissions})
    id = await names["handle_tenant_user_login"]("acme-corp", "user123")
    assert (
        await names["create_tenant_artifact"]("acme-corp", id, "document456")
        == f"grid/tenant-acme-corp/{id}/document456"
    )
    assert id.startswith("sess-user123-")
    assert not await names["get_tenant_session_manager"]("other").validate_session(id)
    assert names["get_tenant_session_manager"]("acme-corp") is names["get_tenant_session_manager"]("acme-corp")


@on_both_loops
async def test_cache() -> None:
    computed: list[dict[str, Any]] = []

    async def operation(params: dict[str, Any]) -> dict[str, Any]:
        computed.append(params)
        return {"result": params["x"] * 2}

    names = await run(CACHE, {"json": json, "some_expensive_operation": operation})
    params = {"x": time.time_ns()}
    for _ in range(2):
        assert await names["cache_expensive_computation"](params) == {"result": params["x"] * 2}
    assert computed == [params]
    code = await names["create_verification_code"]("alice")
    async with factory_for_env()() as session:
        assert await session.get("verify:alice") == code


# in tests
@on_both_loops
async def test_testing() -> None:
    """The fixtures of the block belong to a plugin of asyncio's: what they do is done here."""
    fixtures = re.compile(r"^@pytest\.(?:fixture|mark\.asyncio)\n", re.MULTILINE)
    names = await run(fixtures.sub("", TESTING), {})
    async for session in names["session"]():
        await names["test_session_storage"](session)
    async for manager in names["session_manager"]():
        await names["test_session_management"](manager)
        await names["test_multi_tenant_isolation"](manager)


# tips
@on_both_loops
async def test_tips() -> None:
    for wanted in (True, False):
        given = {"SessionManager": SessionManager, "factory_for_env": factory_for_env, "time": time}
        names = await run(TIPS, {**given, "need_session_management": wanted})
        assert len(set(names["paths"])) == 1000
        assert names["paths"][7] == f"grid/my-app/{names['session_id']}/artifact_7"
        if wanted:
            assert names["mgr"].sandbox_id == "app"
        else:
            assert (await names["mgr"].get_session_info(names["session_id"]))["custom_metadata"]["file_count"] == 100
            assert callable(names["factory"])
    names = await run(SECURITY, {"SessionManager": SessionManager, "mgr": SessionManager("app"), **(await reset())})
    life = await names["mgr"].get_session_info(names["temp_code"])
    created, expires = (datetime.fromisoformat(life[name]) for name in ("created_at", "expires_at"))
    assert expires - created == timedelta(minutes=15)
    assert not await names["password_reset_session_manager"].validate_session(names["password_reset_session"])


async def reset() -> dict[str, Any]:
    manager = SessionManager("app")
    return {
        "password_reset_session_manager": manager,
        "password_reset_session": await manager.allocate_session(user_id="reset"),
    }


@on_both_loops
async def test_application_and_errors() -> None:
    mgr = SessionManager("app")
    session = await mgr.allocate_session()
    given = {"SessionManager": SessionManager, "mgr": mgr, "session_id": session, "artifact_ids": ["a", "b"]}
    names = await run(APPLICATION, given)
    assert names["artifact_paths"] == [f"grid/app/{session}/a", f"grid/app/{session}/b"]
    application = names["Application"]()
    assert await application.handle_request("alice") is None

    async def operation() -> str:
        return "done"

    given = {"mgr": mgr, "logger": logging.getLogger("seed"), "HTTPException": HTTPException}
    names = await run(ERRORS, {**given, "perform_operation": operation})
    assert (await names["robust_session_operation"]())["user_id"] == "alice"
    assert await names["protected_operation"](session) == "done"
    await mgr.delete_session(session)
    with pytest.raises(HTTPException):
        await names["protected_operation"](session)


@on_both_loops
async def test_custom_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands it keeps nothing, and a manager says so; with bodies, it is a provider."""
    names = await run(CUSTOM, {})
    manager = SessionManager("web", names["factory"]())
    assert await manager.validate_session(await manager.allocate_session(user_id="alice")) is False

    bodies = {"setex": "VALUES[key] = value", "get": "return VALUES.get(key)", "delete": "VALUES.pop(key, None)"}
    text = "VALUES = {}\n" + CUSTOM
    for call, body in bodies.items():
        text = re.sub(rf"(async def {call}\(.*\):\n +# Your implementation\n +)pass", rf"\g<1>{body}", text)
    (tmp_path / "custom_provider.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "custom_provider", raising=False)
    monkeypatch.setenv("SESSION_PROVIDER", "custom_provider")
    one, other = SessionManager("web"), SessionManager("web")
    id = await one.allocate_session(user_id="alice")
    assert await other.validate_session(id)
    await other.delete_session(id)
    assert not await one.validate_session(id)


@pytest.mark.parametrize(
    ("environment", "suffix"), [("development", "dev"), ("testing", "test"), ("production", "prod")]
)
def test_environments(environment: str, suffix: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", environment)
    monkeypatch.setenv("REDIS_URL", server.url)
    names = whole(ENVIRONMENTS, "asyncio")
    assert names["get_session_manager"]("shop").sandbox_id == f"shop-{suffix}"


@on_both_loops
async def test_integration(servers: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A web application with its uploads in S3: ten of one user at once, and one of nobody."""
    moto = let_in(servers["moto"], monkeypatch)
    bucket = f"web-{uuid.uuid4()}"
    moto.make_bucket(bucket)
    monkeypatch.setenv("S3_ENDPOINT_URL", moto.endpoint)
    monkeypatch.setenv("ARTIFACT_BUCKET", bucket)
    monkeypatch.setenv("ARTFS_ROOT", str(tmp_path / "root"))
    given = {"time": time, "Header": fastapi.Header, "UploadFile": fastapi.UploadFile}
    names = await run(INTEGRATION, given)
    application = names["integrated_app"]
    session = await application.session_mgr.allocate_session(user_id="alice")
    stored: dict[str, bytes] = {}

    async def upload(client: httpx.AsyncClient, number: int) -> None:
        data = os.urandom(1000 + number)
        answer = await client.post(
            "/upload", files={"file": (f"{number}.bin", data)}, headers={"session-token": session}
        )
        assert answer.status_code == 200, answer.text
        stored[answer.json()["artifact_id"]] = data

    transport = httpx.ASGITransport(app=names["app"])
    async with application.artifact_store as store:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(upload, client, number)
            files = {"file": ("no.bin", b"no")}
            refused = await client.post("/upload", files=files, headers={"session-token": "sess-unknown"})
            assert refused.status_code == 401
        assert len(stored) == 10
        for artifact, data in stored.items():
            assert await store.retrieve(artifact) == data
