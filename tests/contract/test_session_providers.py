"""The provider API: values under keys, over each provider, on asyncio and trio; which one the environment asks for;
redis as it really is."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import apsw
import pytest

from artfs.errors import InvalidError
from artfs.exceptions import ProviderError, SessionProviderError
from artfs.sessions import SessionManager, factory_for_env, get_session, session
from artfs.sessions.provider import AtomicProvider
from artfs.sessions.providers import memory, redis, sqlite
from artfs.sessions.providers.memory import SWEEP_AT, MemoryProvider
from artfs.sessions.providers.redis import CONNECTIONS, _RedisSession
from tests.contract.loops import BACKENDS, on_both_loops
from tests.contract.redis_server import Server, free_port, redis_server

KINDS = ("memory", "sqlite", "redis")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("SESSION_REDIS_URL", server.url)
    monkeypatch.setenv("SESSION_SQLITE_PATH", str(tmp_path / "sub" / "sessions.db"))
    monkeypatch.delenv("SESSION_PROVIDER", raising=False)
    return monkeypatch


everywhere = pytest.mark.parametrize("kind", KINDS)


# values
@everywhere
@on_both_loops
async def test_values(kind: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SESSION_PROVIDER", kind)
    factory = factory_for_env()
    async with factory() as one, get_session() as other:
        assert isinstance(one, AtomicProvider)
        key = f"a key: {time.time_ns()} é"
        assert await one.get(key) is None
        await one.setex(key, 300, "välue\n")
        assert await other.get(key) == "välue\n"
        await one.setex(key, 300, "")
        assert await other.get(key) == ""
        assert await one.delete(key) is True
        assert await other.get(key) is None
        assert await one.delete(key) is False
        await one.set(key, "stays")
        assert await other.get(key) == "stays"
        await other.close()
    async with session() as again:
        assert await again.get(key) == "stays"
        await again.delete(key)


@everywhere
@on_both_loops
async def test_times_to_live(kind: str, environment: pytest.MonkeyPatch) -> None:
    async with factory_for_env(kind)() as provider:
        assert isinstance(provider, AtomicProvider)
        key = str(time.time_ns())
        await provider.setex(key, 0.2, "x")
        assert await provider.get(key) == "x"
        await anyio.sleep(0.25)
        assert await provider.get(key) is None
        assert await provider.delete(key) is False
        for ttl in (0, -1):
            await provider.setex(key, 300, "x")
            await provider.setex(key, ttl, "y")
            assert await provider.get(key) is None
        await provider.setex(key, 0.2, "x")
        await provider.set(key, "stays")
        await anyio.sleep(0.25)
        assert await provider.get(key) == "stays"
        await provider.setex(key, 1, "x")


@everywhere
@on_both_loops
async def test_steps(kind: str, environment: pytest.MonkeyPatch) -> None:
    async with factory_for_env(kind)() as provider:
        assert isinstance(provider, AtomicProvider)
        key = str(time.time_ns())
        assert await provider.patch(key, 0, "z") is None
        assert await provider.take(key) is None
        assert await provider.swap(key, "old", "new", 300) is False
        assert await provider.add(key, 0.3, "0123456789") is True
        assert await provider.add(key, 300, "other") is False
        assert await provider.patch(key, 3, "abc") == "012abc6789"
        assert await provider.swap(key, "0123456789", "new", 300) is False
        await anyio.sleep(0.35)  # the patch left the time to live as it was
        assert await provider.get(key) is None
        assert await provider.add(key, 300, "one") is True
        assert await provider.swap(key, "one", "two", 0.2) is True
        await anyio.sleep(0.25)
        assert await provider.add(key, 300, "three") is True
        assert await provider.take(key) == "three"
        assert await provider.get(key) is None


@everywhere
@on_both_loops
async def test_values_are_text(kind: str, environment: pytest.MonkeyPatch) -> None:
    async with factory_for_env(kind)() as provider:
        key = str(time.time_ns())
        values: list[Any] = [5, None, b"x", {"a": 1}, True]
        for value in values:
            with pytest.raises(InvalidError, match="str"):
                await provider.setex(key, 300, value)
        assert await provider.get(key) is None


def test_memory_is_the_process_s_and_does_not_grow() -> None:
    now = [0.0]
    provider = MemoryProvider(now=lambda: now[0])

    async def main() -> None:
        for number in range(10 * SWEEP_AT):
            now[0] += 1
            await provider.setex(str(number), 10, "x")
        assert len(provider._values) <= SWEEP_AT + 1
        now[0] += 9
        assert [key for key in await provider.sweep("1") if not key.startswith("1")] == []
        assert [await provider.get(str(10 * SWEEP_AT - back)) for back in (1, 2)] == ["x", None]

    anyio.run(main)
    assert memory.factory()() is memory.factory()()


def test_the_sqlite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SESSION_SQLITE_PATH", raising=False)
    monkeypatch.setenv("ARTFS_ROOT", str(tmp_path / "root"))
    provider = sqlite.factory()()
    assert list(tmp_path.iterdir()) == []
    anyio.run(provider.set, "k", "v")
    path = tmp_path / "root" / "sessions.db"
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(apsw.Connection(str(path))) as connection:
        assert connection.execute("SELECT key, value, until FROM value").fetchall() == [("k", "v", None)]
        assert connection.pragma("journal_mode") == "wal"
    (tmp_path / "file").write_text("x")
    bad = sqlite.factory(tmp_path / "file" / "x.db")()
    with pytest.raises(SessionProviderError, match=r"x\.db"):
        anyio.run(bad.get, "k")
    (tmp_path / "bad.db").write_bytes(b"x" * 8192)
    bad = sqlite.factory(tmp_path / "bad.db")()
    with pytest.raises(SessionProviderError, match=r"bad\.db"):
        anyio.run(bad.set, "k", "v")


# which one
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", MemoryProvider),
        ("memory", MemoryProvider),
        ("mem", MemoryProvider),
        ("InMemory", MemoryProvider),
        ("redis", _RedisSession),
        ("REDIS_STORE", _RedisSession),
        (" sqlite ", sqlite.SqliteProvider),
    ],
)
def test_names(name: str, kind: type, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SESSION_PROVIDER", name)
    assert type(factory_for_env()()) is kind


def test_which_url(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SESSION_PROVIDER", "redis")
    environment.setenv("SESSION_REDIS_URL", "redis://first:1/2")
    environment.setenv("REDIS_URL", "redis://second:3/4")

    def where() -> str:
        made: Any = factory_for_env()()
        return str(made.address)

    assert where() == "redis://first:1"
    environment.delenv("SESSION_REDIS_URL")
    assert where() == "redis://second:3"
    environment.delenv("REDIS_URL")
    assert where() == "redis://localhost:6379"
    environment.setenv("REDIS_URL", "http://x")
    with pytest.raises(InvalidError, match="redis://"):
        factory_for_env()


@on_both_loops
async def test_a_caller_s_own_module(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own_sessions.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "values = {}\n"
        "class Own:\n"
        "    async def setex(self, key, ttl, value): values[key] = value.encode()\n"
        "    async def get(self, key): return values.get(key)\n"
        "    async def delete(self, key): values.pop(key, None)\n"
        "    async def close(self): values['closed'] = b'1'\n"
        "def factory():\n"
        "    @asynccontextmanager\n"
        "    async def context():\n"
        "        own = Own()\n"
        "        try:\n"
        "            yield own\n"
        "        finally:\n"
        "            await own.close()\n"
        "    return context\n"
    )
    environment.syspath_prepend(str(tmp_path))
    environment.delitem(sys.modules, "own_sessions", raising=False)
    environment.setenv("SESSION_PROVIDER", "own_sessions")
    manager = SessionManager("web")
    id = await manager.allocate_session(user_id="ann", custom_metadata={"a": "é"})
    assert await manager.validate_session(id)
    found = await manager.get_session_info(id)
    assert found is not None
    assert found["custom_metadata"] == {"a": "é"}
    assert await manager.extend_session_ttl(id, 1)
    values = sys.modules["own_sessions"].__dict__["values"]
    assert values["closed"] == b"1"
    assert await manager.delete_session(id)
    assert [key for key in values if key != "closed"] == []
    assert not await manager.validate_session(id)


def test_what_is_no_provider(environment: pytest.MonkeyPatch) -> None:
    for name, why in (("nosuch", "nor a module"), ("json", r"lacks a factory\(\)"), ("..", "nor a module")):
        environment.setenv("SESSION_PROVIDER", name)
        with pytest.raises(ProviderError, match=why):
            SessionManager("web")


def test_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "find_spec", lambda name: None)
    with pytest.raises(ProviderError, match=r"artfs\[redis\]"):
        factory_for_env("redis")


# redis
async def connections(provider: Any) -> int:
    """Of clients that have a database open, the asking one included."""
    listing: str = await provider._call("CLIENT", "LIST")
    return len(listing if isinstance(listing, list) else listing.splitlines())


@on_both_loops
async def test_connections_are_pooled(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as own:
        one, other = redis.factory(own.url)(), redis.factory(own.url)()
        for _ in range(20):
            await one.setex("k", 10, "v")
            await other.get("k")
        assert await connections(one) == 1
        async with anyio.create_task_group() as tasks:
            for _ in range(10 * CONNECTIONS):
                tasks.start_soon(one.get, "k")
        assert 1 < await connections(one) <= CONNECTIONS


@on_both_loops
async def test_a_call_is_one_command(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as own:
        factory = redis.factory(own.url)
        manager = SessionManager("web", factory)
        first = await manager.allocate_session(user_id="ann")
        assert await manager.validate_session(first)  # its script is there from now on

        async def commands() -> Counter[str]:
            said: str = await factory()._call("INFO", "commandstats")
            lines = [line.removeprefix("cmdstat_").split(":calls=") for line in said.splitlines()]
            return Counter({line[0]: int(line[1].split(",")[0]) for line in lines if len(line) == 2})

        before = await commands()
        for _ in range(10):
            assert await manager.validate_session(await manager.allocate_session(user_id="ann"))
        script = {"exists": 10, "setrange": 10, "get": 10}
        assert await commands() - before == {"set": 10, "evalsha": 10, "info": 1, **script}


@on_both_loops
async def test_who_is_cancelled_leaves_no_answer_to_others(server: Server) -> None:
    provider = redis.factory(server.url)()
    key = str(time.time_ns())
    await provider.set(key, "mine")
    for turn in range(100):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(provider.get, key)
                await anyio.sleep(turn * 5e-6)
                scope.cancel()
        assert await provider.get(f"{key} other") is None


def test_connections_end_with_their_loop(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as own:
        provider = redis.factory(own.url)()
        for _ in range(3):
            anyio.run(provider.set, "k", "v")
        assert anyio.run(connections, provider) == 1


@on_both_loops
async def test_lost_connections_and_scripts(server: Server) -> None:
    provider = redis.factory(server.url)()
    key = str(time.time_ns())
    await provider.add(key, 300, "one")
    assert await provider.swap(key, "one", "two", 300)
    await provider._call("SCRIPT", "FLUSH")
    assert await provider.swap(key, "two", "three", 300)
    await provider._call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await provider._call("CLIENT", "NO-EVICT", "off")
    assert await provider.take(key) == "three"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_server_that_comes_back(backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        with redis_server(tmp_path / "redis") as own:
            provider = redis.factory(own.url)()
            await provider.set("k", "v")
            port = own.port
        with pytest.raises(SessionProviderError):
            await provider.get("k")
        with redis_server(tmp_path / "redis", at=port):
            await anyio.sleep(0.1)
            assert await provider.get("k") is None
            await provider.set("k", "w")
            assert await provider.get("k") == "w"

    anyio.run(main, backend=backend)


@on_both_loops
async def test_nobody_there(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SESSION_PROVIDER", "redis")
    port = free_port()
    for url in (f"127.0.0.1:{port}/0", f"127.0.0.1:{port},127.0.0.1:{port}", f"127.0.0.1:{port},127.0.0.1:{port}/main"):
        environment.setenv("SESSION_REDIS_URL", f"redis://ann:secret@{url}")
        manager = SessionManager("web")
        begin = time.monotonic()
        for call in (manager.allocate_session, lambda: manager.validate_session("x")):  # noqa: B023
            with pytest.raises(SessionProviderError, match=re.escape(f"127.0.0.1:{port}")) as caught:
                await call()
            assert "secret" not in str(caught.value)
        with pytest.raises(SessionProviderError):
            await redis.factory(f"redis://{url}")().get("k")
        assert time.monotonic() - begin < redis.LIMIT


@on_both_loops
async def test_a_server_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "LIMIT", 0.2)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        provider = redis.factory(f"redis://127.0.0.1:{port}/5")()
        begin = time.monotonic()
        with pytest.raises(SessionProviderError):
            await provider.get("k")
        assert time.monotonic() - begin < 5


@on_both_loops
async def test_credentials_and_databases(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis", "--requirepass", "s3cr@t/,x") as own:
        good = f"redis://:s3cr%40t%2F%2Cx@127.0.0.1:{own.port}"
        one, other = redis.factory(f"{good}/1")(), redis.factory(f"{good}?db=2")()
        await one.set("k", "v")
        assert (await one.get("k"), await other.get("k")) == ("v", None)
        for url in (f"redis://:wr0ng@127.0.0.1:{own.port}/0", own.url):
            with pytest.raises(SessionProviderError) as caught:
                await redis.factory(url)().get("k")
            assert "wr0ng" not in str(caught.value)


@on_both_loops
async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server(tmp_path / "redis", tls=True) as own:
        url = own.url.replace("redis:", "rediss:")
        monkeypatch.delenv("REDIS_TLS_INSECURE", raising=False)
        with pytest.raises(SessionProviderError, match="certificate"):
            await redis.factory(url)().get("k")
        monkeypatch.setenv("REDIS_TLS_INSECURE", "1")
        provider = redis.factory(url)()
        await provider.set("k", "v")
        assert await provider.get("k") == "v"


def test_modules_of_providers_have_factories() -> None:
    modules: list[ModuleType] = [memory, redis, sqlite]
    assert all(callable(module.factory()) for module in modules)
