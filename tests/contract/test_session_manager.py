"""SessionManager over everything that may keep its sessions, on asyncio and trio; tests move the time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs.errors import ArtfsError, DamagedError, InvalidError
from artfs.exceptions import ProviderError, SessionError, SessionProviderError
from artfs.grid import GridError
from artfs.meta.sqlite import SqliteEngine
from artfs.sessions import SessionManager, SessionMetadata
from artfs.sessions.memory import MemorySessions
from artfs.sessions.provider import Provider, ProviderFactory
from artfs.sessions.providers import redis as redis_provider
from artfs.sessions.providers import sqlite as sqlite_provider
from artfs.sessions.providers.memory import MemoryProvider
from artfs.sessions.records import ProviderSessions, StoreSessions
from artfs.sessions.session_manager import REMEMBERED_IDS
from artfs.sessions.sqlite import SqliteSessions
from tests.contract.loops import BACKENDS, on_both_loops
from tests.contract.redis_server import Server, redis_server

ROOT = Path(__file__).parents[2]
NS = 1_000_000_000
START = 1_700_000_000 * NS + 1_000
HOUR = 3600 * NS


class Clock:
    def __init__(self) -> None:
        self.ns = START

    def __call__(self) -> int:
        return self.ns


class Plain:
    """A caller's own provider: the four calls, and a time to live that is taken at its word."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    async def setex(self, key: str, ttl: int, value: str) -> None:
        assert type(ttl) is int
        assert ttl > 0
        self.values[key] = value

    async def get(self, key: str) -> str | None:
        await anyio.lowlevel.checkpoint()
        return self.values.get(key)

    async def delete(self, key: str) -> None:
        self.values.pop(key, None)

    async def close(self) -> None:
        pass


def plain_factory(values: dict[str, str], kind: type[Plain] = Plain) -> ProviderFactory:
    @asynccontextmanager
    async def context() -> AsyncIterator[Provider]:
        provider = kind(values)
        try:
            yield provider
        finally:
            await provider.close()

    def make() -> AbstractAsyncContextManager[Provider]:
        return context()

    return make


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


Make = Callable[..., SessionManager]
PROVIDERS = ("memory", "sqlite", "redis", "plain")
STORES = ("memory store", "sqlite store")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Make]:
    """Managers that share one place; in redis, sandboxes of this test alone."""
    kind: str = request.param
    if kind in PROVIDERS:
        suffix = f"-{os.urandom(6).hex()}"
        if kind == "plain":  # its steps are whole for one `ProviderSessions`
            shared = ProviderSessions(plain_factory({}), now=clock)
            yield lambda sandbox="web", **options: SessionManager(
                sandbox + suffix, sessions=shared, now=clock, **options
            )
            return
        factory = a_factory(kind, request, tmp_path)
        yield lambda sandbox="web", **options: SessionManager(sandbox + suffix, factory, now=clock, **options)
        return
    store: MemorySessions | SqliteSessions = MemorySessions(now=clock)
    if kind == "sqlite store":
        SqliteEngine(tmp_path / "meta.db").close()
        store = SqliteSessions(tmp_path / "meta.db", now=clock)
    sessions = StoreSessions(store)
    yield lambda sandbox="web", **options: SessionManager(sandbox, sessions=sessions, now=clock, **options)
    store.close()


def a_factory(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> ProviderFactory:
    if kind == "memory":
        one = MemoryProvider()
        return lambda: one
    if kind == "sqlite":
        return sqlite_provider.factory(tmp_path / "values.db")
    if kind == "redis":
        url: str = request.getfixturevalue("server").url
        return redis_provider.factory(url)
    raise ValueError(kind)


everywhere = pytest.mark.parametrize("make", [*PROVIDERS, *STORES], indirect=True)
over_providers = pytest.mark.parametrize("make", PROVIDERS, indirect=True)


async def unknown(manager: SessionManager, id: Any) -> None:
    """Every call on one session says that there is none."""
    assert await manager.validate_session(id) is False
    assert await manager.get_session_info(id) is None
    assert await manager.get_session_metadata(id) is None
    assert await manager.update_session_metadata(id, {"a": 1}) is False
    assert await manager.update_session_metadata(id, {}) is False
    assert await manager.extend_session_ttl(id, 1) is False
    assert await manager.delete_session(id) is False


async def infos(manager: SessionManager, id: str) -> dict[str, Any]:
    found = await manager.get_session_info(id)
    assert found is not None
    return found


# life
@everywhere
@on_both_loops
async def test_what_is_allocated(make: Make, clock: Clock) -> None:
    manager = make()
    id = await manager.allocate_session(user_id="ann.b-c@x.org", ttl_hours=0.5, custom_metadata={"a": [{}], "b": None})
    assert re.fullmatch(r"sess-annbcxor-1700000000-[0-9a-f]{32}", id)
    assert await manager.validate_session(id) is True
    assert await manager.get_session_info(id) == {
        "session_id": id,
        "sandbox_id": manager.sandbox_id,
        "user_id": "ann.b-c@x.org",
        "created_at": "2023-11-14T22:13:20.000001Z",
        "expires_at": "2023-11-14T22:43:20.000001Z",
        "status": "active",
        "last_accessed": "2023-11-14T22:13:20.000001Z",
        "custom_metadata": {"a": [{}], "b": None},
    }
    nobodys = await manager.allocate_session()
    assert re.fullmatch(r"sess-1700000000-[0-9a-f]{32}", nobodys)
    found = await infos(manager, nobodys)
    assert (found["user_id"], found["expires_at"]) == (None, "2023-11-15T22:13:20.000001Z")
    ids = {await manager.allocate_session(user_id="ann") for _ in range(20)}
    assert len(ids) == 20


@everywhere
@on_both_loops
async def test_a_touch_moves_the_last_access_and_nothing_else(make: Make, clock: Clock) -> None:
    manager = make()
    id = await manager.allocate_session(ttl_hours=1, custom_metadata={"l": [], "t": "ü\n"})
    before = await infos(manager, id)
    clock.ns += 1800 * NS
    assert await manager.validate_session(id)
    after = await infos(manager, id)
    assert after.pop("last_accessed") == "2023-11-14T22:43:20.000001Z"
    assert after.items() <= before.items()
    clock.ns += 1800 * NS - 1
    assert await manager.validate_session(id)
    clock.ns += 1
    await unknown(manager, id)


@everywhere
@on_both_loops
async def test_extension_adds_to_the_expiry(make: Make, clock: Clock) -> None:
    manager = make(default_ttl_hours=1)
    id = await manager.allocate_session()
    clock.ns += HOUR // 2
    assert await manager.extend_session_ttl(id, 0.5) is True
    assert await manager.extend_session_ttl(id, 1) is True
    assert (await infos(manager, id))["expires_at"] == "2023-11-15T00:43:20.000001Z"
    clock.ns = START + HOUR * 5 // 2 - 1
    assert await manager.validate_session(id)
    clock.ns += 1
    await unknown(manager, id)


@everywhere
@on_both_loops
async def test_updates_merge_key_by_key(make: Make) -> None:
    manager = make()
    id = await manager.allocate_session(custom_metadata={"a": {"x": 1}, "b": 2})
    assert await manager.update_session_metadata(id, {"a": {"y": []}, "c": "é"}) is True
    assert await manager.update_session_metadata(id, {}) is True
    before = await infos(manager, id)
    assert before["custom_metadata"] == {"a": {"y": []}, "b": 2, "c": "é"}
    fields = {"user_id": "eve", "sandbox_id": "api", "expires_at": "2999-01-01T00:00:00Z", "status": "odd"}
    assert await manager.update_session_metadata(id, fields)
    after = await infos(manager, id)
    assert after.pop("custom_metadata") == {**before.pop("custom_metadata"), **fields}
    assert after == before


@over_providers
@on_both_loops
async def test_updates_that_replace(make: Make) -> None:
    manager = make()
    id = await manager.allocate_session(custom_metadata={"a": 1})
    assert await manager.update_session_metadata(id, {"b": 2}, merge=False)
    assert (await infos(manager, id))["custom_metadata"] == {"b": 2}
    assert await manager.update_session_metadata(id, {}, merge=False)
    assert (await infos(manager, id))["custom_metadata"] == {}
    assert await manager.update_session_metadata("nobody", {}, merge=False) is False


@on_both_loops
async def test_metadata_of_a_store_s_own_sessions() -> None:
    manager = SessionManager("web", sessions=StoreSessions(MemorySessions()))
    id = await manager.allocate_session(custom_metadata={"a": 1})
    assert await manager.update_session_metadata(id, {"b": 2})
    assert (await infos(manager, id))["custom_metadata"] == {"a": 1, "b": 2}
    assert await manager.update_session_metadata(id, {"c": 3}, merge=False)
    assert (await infos(manager, id))["custom_metadata"] == {"c": 3}


@everywhere
@on_both_loops
async def test_what_is_returned_is_the_caller_s(make: Make) -> None:
    manager = make()
    given: dict[str, Any] = {"calls": []}
    id = await manager.allocate_session(custom_metadata=given)
    given["calls"].append("given")
    (await infos(manager, id))["custom_metadata"]["calls"].append("info")
    metadata = await manager.get_session_metadata(id)
    assert isinstance(metadata, SessionMetadata)
    metadata.custom_metadata["calls"].append("metadata")
    assert (await infos(manager, id))["custom_metadata"] == {"calls": []}


@everywhere
@on_both_loops
async def test_the_end_is_everywhere_at_once(make: Make) -> None:
    one, other = make(), make()
    id = await one.allocate_session(session_id="sess-x")
    assert await other.validate_session(id)
    assert one.generate_artifact_key(id, "a") == other.generate_artifact_key(id, "a")
    assert await one.delete_session(id) is True
    await unknown(other, id)
    await unknown(one, id)


@everywhere
@on_both_loops
async def test_sandboxes_do_not_know_each_other(make: Make) -> None:
    web, api = make("web"), make("api")
    await web.allocate_session(session_id="x", user_id="ann")
    await unknown(api, "x")
    await api.allocate_session(session_id="x", user_id="bob")
    assert (await infos(web, "x"))["user_id"] == "ann"
    await api.delete_session("x")
    assert await web.validate_session("x")


# ids
@everywhere
@on_both_loops
async def test_one_session_however_it_is_spelled(make: Make) -> None:
    manager = make()
    assert await manager.allocate_session(session_id="sess-x", user_id="ann", custom_metadata={"a": 1}) == "sess-x"
    assert await manager.validate_session("x")
    # What is live stays as it is.
    assert await manager.allocate_session(session_id="x", ttl_hours=9, custom_metadata={"b": 1}) == "sess-x"
    found = await infos(manager, "x")
    assert (found["session_id"], found["user_id"], found["custom_metadata"]) == ("sess-x", "ann", {"a": 1})
    assert found["expires_at"] == "2023-11-15T22:13:20.000001Z"
    with pytest.raises(SessionError, match="another user"):
        await manager.allocate_session(session_id="x", user_id="bob")
    assert await manager.delete_session("x")
    await unknown(manager, "sess-x")


@over_providers
@on_both_loops
async def test_an_id_is_free_again_after_its_session(make: Make, clock: Clock) -> None:
    manager = make()
    await manager.allocate_session(session_id="x", user_id="ann", ttl_hours=1)
    clock.ns += HOUR
    assert await manager.allocate_session(session_id="x", user_id="bob", ttl_hours=1) == "x"
    assert (await infos(manager, "x"))["user_id"] == "bob"


@pytest.mark.parametrize("make", STORES, indirect=True)
@on_both_loops
async def test_a_store_s_ids_rest_until_nothing_is_left(make: Make) -> None:
    manager = make()
    await manager.allocate_session(session_id="x")
    await manager.delete_session("x")
    with pytest.raises(SessionError, match="cannot be used again yet"):
        await manager.allocate_session(session_id="x")


BAD_IDS: list[Any] = ["", ".", "..", "a/b", "a b", "../x", "grid", "shared", "users", "sess-", "x" * 129, "ä", "a\0"]


@everywhere
@on_both_loops
async def test_bad_input(make: Make) -> None:
    manager = make()
    for bad in [*BAD_IDS, 5, b"x", [], {}]:
        with pytest.raises(InvalidError):
            await manager.allocate_session(session_id=bad)
        if bad != "sess-":  # nobody's session, but somebody's name
            with pytest.raises(InvalidError):
                await manager.allocate_session(user_id=bad)
        await unknown(manager, bad)
        with pytest.raises(GridError):
            manager.get_canonical_prefix(bad)
        with pytest.raises(GridError):
            manager.generate_artifact_key(bad, "a")
    await unknown(manager, None)
    hours: list[Any] = [0, -1, float("nan"), float("inf"), 1e9, "1", True, [1]]
    id = await manager.allocate_session(session_id="x", ttl_hours=1)
    for bad in hours:
        with pytest.raises(InvalidError):
            await manager.allocate_session(ttl_hours=bad)
        with pytest.raises(InvalidError):
            await manager.extend_session_ttl(id, bad)
        with pytest.raises(InvalidError):
            make(default_ttl_hours=bad)
    metadata: list[Any] = [[1], "x", {1: 2}, {"a": object()}, {"a": float("nan")}, {"a": "x" * (1 << 20)}]
    for bad in metadata:
        with pytest.raises(InvalidError):
            await manager.allocate_session(session_id="y", custom_metadata=bad)
        with pytest.raises(InvalidError):
            await manager.update_session_metadata(id, bad)
    await unknown(manager, "y")
    found = await infos(manager, id)
    assert (found["custom_metadata"], found["expires_at"]) == ({}, "2023-11-14T23:13:20.000001Z")


@pytest.mark.parametrize("sandbox", ["", "a/b", "grid", "..", 5, "a b"])
def test_bad_sandboxes(sandbox: Any) -> None:
    with pytest.raises(InvalidError):
        SessionManager(sandbox)


# many at once
@everywhere
@on_both_loops
async def test_no_update_is_lost(make: Make) -> None:
    managers = make(), make()
    id = await managers[0].allocate_session(ttl_hours=1)

    async def work(number: int) -> None:
        manager = managers[number % 2]
        assert await manager.update_session_metadata(id, {str(number): number})
        assert await manager.validate_session(id)
        assert await manager.extend_session_ttl(id, 1)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(work, number)
    found = await infos(managers[0], id)
    assert found["custom_metadata"] == {str(number): number for number in range(20)}
    assert found["expires_at"] == "2023-11-15T19:13:20.000001Z"


@everywhere
@on_both_loops
async def test_one_of_many_makers_makes_it(make: Make) -> None:
    made: list[str] = []

    async def work(number: int) -> None:
        made.append(await make().allocate_session(session_id="x", custom_metadata={"by": number}))

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(work, number)
    assert made == ["x"] * 20
    assert await make().validate_session("x")


@over_providers
@on_both_loops
async def test_a_deleted_session_does_not_come_back(make: Make) -> None:
    """Whoever validates, extends or updates meanwhile."""
    one, other = make(), make()
    for number in range(10):
        id = await one.allocate_session(session_id=f"x{number}")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(other.validate_session, id)
                tasks.start_soon(other.extend_session_ttl, id, 1)
                tasks.start_soon(other.update_session_metadata, id, {"a": 1})
            tasks.start_soon(one.delete_session, id)
        await unknown(one, id)
        await unknown(other, id)


class Slow(Plain):
    """Somebody deletes between every look and what follows from it."""

    async def get(self, key: str) -> str | None:
        value = await super().get(key)
        if not key.endswith(":patch"):
            self.values.pop(key, None)
        return value


@on_both_loops
async def test_a_touch_brings_nothing_back_from_a_caller_s_own_provider() -> None:
    values: dict[str, str] = {}
    id = await SessionManager("web", plain_factory(values)).allocate_session()
    await SessionManager("web", plain_factory(values, Slow)).validate_session(id)
    await unknown(SessionManager("web", plain_factory(values)), id)


# processes
OTHER = """
import anyio, sys
from artfs.sessions import SessionManager
async def main():
    manager = SessionManager("web")
    print(await manager.validate_session(sys.argv[1]), await manager.delete_session(sys.argv[1]))
anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_processes_agree(
    kind: str, backend: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_PROVIDER", kind)
    monkeypatch.setenv("SESSION_REDIS_URL", server.url)
    monkeypatch.setenv("SESSION_SQLITE_PATH", str(tmp_path / "sessions.db"))
    manager = SessionManager("web")

    def elsewhere(id: str) -> str:
        command = [sys.executable, "-c", OTHER, id, backend]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    async def main() -> None:
        id = await manager.allocate_session(user_id="ann")
        assert await manager.validate_session(id)
        assert elsewhere(id) == "True True"
        await unknown(manager, id)

    anyio.run(main, backend=backend)


FORK = """
import anyio, os, sys
from artfs.sessions import SessionManager
manager = SessionManager("web")
id = anyio.run(manager.allocate_session, backend=sys.argv[1])
child = os.fork()
if not child:
    known = [anyio.run(manager.validate_session, id, backend=sys.argv[1]) for _ in range(2)]
    gone = anyio.run(manager.delete_session, id, backend=sys.argv[1])
    os._exit(0 if known == [True, True] and gone else 1)
print(os.waitpid(child, 0)[1], anyio.run(manager.validate_session, id, backend=sys.argv[1]))
"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "shared"), [("memory", False), ("sqlite", True), ("redis", True)])
def test_a_fork_goes_on(kind: str, shared: bool, backend: str, server: Server, tmp_path: Path) -> None:
    """With a copy of what was in memory, with the same elsewhere."""
    own = {"SESSION_PROVIDER": kind, "SESSION_REDIS_URL": server.url, "SESSION_SQLITE_PATH": str(tmp_path / "s.db")}
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", FORK, backend]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.strip(), done.stderr) == (f"0 {not shared}", "")


@everywhere
def test_one_manager_in_several_loops(make: Make) -> None:
    manager = make()
    ids = [anyio.run(manager.allocate_session, backend=backend) for backend in (*BACKENDS, *BACKENDS)]
    for backend in BACKENDS:
        assert [anyio.run(manager.validate_session, id, backend=backend) for id in ids] == [True] * 4


# what is remembered
@everywhere
@on_both_loops
async def test_cleanup_counts_what_has_ended(make: Make, clock: Clock) -> None:
    manager, other = make(), make()
    short = [await manager.allocate_session(ttl_hours=1) for _ in range(3)]
    long = await manager.allocate_session(ttl_hours=2)
    extended = await manager.allocate_session(ttl_hours=1)
    assert await manager.cleanup_expired_sessions() == 0
    await other.extend_session_ttl(extended, 1)
    clock.ns += HOUR
    assert not await manager.validate_session(short[0])
    assert await manager.cleanup_expired_sessions() == 3
    assert await manager.cleanup_expired_sessions() == 0
    assert await manager.validate_session(long)
    assert await manager.validate_session(extended)
    clock.ns += HOUR
    assert await manager.cleanup_expired_sessions() == 2


def test_the_statistics_and_their_bound() -> None:
    manager = SessionManager("web", MemoryProvider, default_ttl_hours=2)
    assert manager.get_cache_stats() == {
        "cached_sessions": 0,
        "cache_hits": 0,
        "cache_misses": 0,
        "total_requests": 0,
        "hit_rate": 0.0,
        "sandbox_id": "web",
        "default_ttl_hours": 2,
    }
    for _ in range(4):
        manager.generate_artifact_key("x", "a")
    found = manager.get_cache_stats()
    assert (found["cached_sessions"], found["cache_hits"], found["cache_misses"]) == (1, 3, 1)
    assert (found["total_requests"], found["hit_rate"]) == (4, 0.75)
    for number in range(REMEMBERED_IDS + 5):
        manager.get_canonical_prefix(f"s{number}")
    assert manager.get_cache_stats()["cached_sessions"] == REMEMBERED_IDS
    assert manager.get_canonical_prefix("x") == "grid/web/x/"


@everywhere
@on_both_loops
async def test_what_has_ended_is_no_longer_remembered(make: Make) -> None:
    manager = make()
    ids = [await manager.allocate_session() for _ in range(3)]
    assert manager.get_cache_stats()["cached_sessions"] == 3
    await manager.delete_session(ids[0])
    assert manager.get_cache_stats()["cached_sessions"] == 2


# grid
def test_grid_paths() -> None:
    manager = SessionManager("web", MemoryProvider)
    assert manager.get_canonical_prefix("sess-x") == "grid/web/sess-x/"
    assert manager.generate_artifact_key("x", "report.pdf") == "grid/web/x/report.pdf"
    assert manager.generate_artifact_key("user-ann", "a b") == "grid/web/sessions/user-ann/a b"
    assert manager.get_session_prefix_pattern() == "grid/web/"
    assert manager.generate_artifact_key("x", "ü" * 127) == "grid/web/x/" + "ü" * 127
    assert manager.parse_grid_key("grid/api/sess-x/a") == {
        "sandbox_id": "api",
        "session_id": "sess-x",
        "artifact_id": "a",
    }
    assert manager.parse_grid_key("grid/web/sessions/user-ann/a/b/c") == {
        "sandbox_id": "web",
        "session_id": "user-ann",
        "artifact_id": "a",
        "subpath": "b/c",
    }
    bad: list[Any] = [
        None,
        5,
        "",
        "grid/web",
        "grid/web/x",
        "web/x/a",
        "grid/web/x/..",
        "grid/web/../a",
        [],
        b"grid/web/x/a",
    ]
    for key in bad:
        assert manager.parse_grid_key(key) is None
    names: list[Any] = ["", ".", "..", "a/b", "a\0", ".artfs", "x" * 256, "\udcff", 5, None, b"a"]
    for name in names:
        for session in ("x", "fresh"):
            with pytest.raises(GridError):
                manager.generate_artifact_key(session, name)


def test_the_sandbox_of_who_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARTIFACT_SANDBOX_ID", raising=False)
    monkeypatch.delenv("CHUK_SANDBOX_ID", raising=False)
    monkeypatch.setenv("SESSION_PROVIDER", "sqlite")
    assert SessionManager().sandbox_id == "default"
    monkeypatch.setenv("SESSION_PROVIDER", "memory")
    first, second = SessionManager().sandbox_id, SessionManager().sandbox_id
    assert re.fullmatch(r"sandbox-[0-9a-f]{8}", first) and first != second
    monkeypatch.setenv("CHUK_SANDBOX_ID", "second")
    assert SessionManager().sandbox_id == "second"
    monkeypatch.setenv("ARTIFACT_SANDBOX_ID", "first")
    assert SessionManager().sandbox_id == "first"
    assert SessionManager("web").sandbox_id == "web"
    monkeypatch.setenv("ARTIFACT_SANDBOX_ID", "a/b")
    with pytest.raises(InvalidError, match="sandbox id 'a/b'"):
        SessionManager()


# failures
class Broken(Plain):
    async def setex(self, key: str, ttl: int, value: str) -> None:
        raise OSError("out of order")

    async def get(self, key: str) -> str | None:
        raise OSError("out of order")


@on_both_loops
async def test_a_provider_that_fails() -> None:
    manager = SessionManager("web", plain_factory({}, Broken))
    calls: list[Callable[[], Any]] = [
        manager.allocate_session,
        lambda: manager.validate_session("x"),
        lambda: manager.get_session_info("x"),
        lambda: manager.extend_session_ttl("x", 1),
        lambda: manager.update_session_metadata("x", {"a": 1}),
        lambda: manager.delete_session("x"),
    ]
    for call in calls:
        with pytest.raises(SessionProviderError, match="out of order") as caught:
            await call()
        assert isinstance(caught.value, SessionError)
        assert isinstance(caught.value, ProviderError)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"accessed": "1"}', '{"accessed": "00000000000000000001", "id": "x"}']
)
@on_both_loops
async def test_a_damaged_session(text: str) -> None:
    provider = MemoryProvider()
    manager = SessionManager("web", lambda: provider)
    await provider.set("artfs:session:web:x", text)
    with pytest.raises(DamagedError, match="delete it"):
        await manager.get_session_info("x")
    assert isinstance(DamagedError(), ArtfsError)


def test_one_place_for_sessions() -> None:
    with pytest.raises(InvalidError, match="not both"):
        SessionManager("web", MemoryProvider, sessions=StoreSessions(MemorySessions()))
