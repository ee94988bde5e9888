"""Values in redis: a server, sentinels or a cluster, as the URL says (`artfs.sessions.redis_url`).

One client for each event loop and address, with a pool of at most `CONNECTIONS` connections; it is closed when its
loop ends.  Callers on trio share the one of the bridge.  redis is imported and connected to
at the first call.  A call ends within `LIMIT` seconds.  A step of more than one command is a script on one key, so that
it is whole in a cluster too.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import anyio
from anyio.lowlevel import RunVar

from artfs.aio import Bridge, limit
from artfs.exceptions import SessionProviderError
from artfs.sessions.provider import AtomicProvider, checked_value
from artfs.sessions.redis_url import Address, Kind, parse_url

DEFAULT_URL = "redis://localhost:6379/0"
CONNECTIONS = 50
LIMIT = 10.0
CONNECT_LIMIT, ANSWER_LIMIT = 2.5, 5.0

SWAP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
PATCH = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
redis.call('SETRANGE', KEYS[1], ARGV[1], ARGV[2])
return redis.call('GET', KEYS[1])
"""
TAKE = """
local value = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
return value
"""
SHA = {script: sha1(script.encode(), usedforsecurity=False).hexdigest() for script in (SWAP, PATCH, TAKE)}

_bridge = Bridge()


@dataclass(slots=True)
class _Client:
    """`idle`: connections of its pool's that were taken and are not given back; its end closes them."""

    redis: Any
    turns: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(CONNECTIONS, fast_acquire=True))
    idle: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class _Clients:
    """Of one event loop."""

    by_address: dict[Address, _Client]
    end: AsyncGenerator[None, None]


_clients: RunVar[_Clients] = RunVar("artfs.sessions.providers.redis")


def make_client(address: Address) -> Any:
    """A client of the class that the address wants, not connected."""
    from redis import asyncio as redis
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import ExponentialBackoff

    options: dict[str, Any] = {
        "decode_responses": True,
        "username": address.username,
        "password": address.password,
        "socket_connect_timeout": CONNECT_LIMIT,
        "socket_timeout": None,  # `LIMIT` is for all of a call
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.02), 1),
    }
    tls: dict[str, Any] = {"ssl": True} if address.tls else {}
    if address.insecure:
        tls |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    if address.kind is Kind.CLUSTER:
        nodes = [ClusterNode(host, port) for host, port in address.hosts]
        options |= {"socket_timeout": ANSWER_LIMIT, "max_connections": CONNECTIONS}
        return redis.RedisCluster(startup_nodes=nodes, **options, **tls)
    options |= {"db": address.db, "max_connections": CONNECTIONS}
    if address.kind is Kind.SENTINEL:
        own: dict[str, Any] = {"username": address.sentinel_username, "password": address.sentinel_password}
        own |= {"socket_connect_timeout": CONNECT_LIMIT, "socket_timeout": ANSWER_LIMIT, "retry": options["retry"]}
        sentinels: Any = Sentinel  # it has no types
        return sentinels(address.hosts, sentinel_kwargs={**own, **tls}).master_for(address.service, **options, **tls)
    if address.socket:
        return redis.Redis(unix_socket_path=address.socket, **options)
    ((host, port),) = address.hosts
    return redis.Redis(host=host, port=port, **options, **tls)


async def _client(address: Address) -> _Client:
    """REQUIRES: the event loop is asyncio's."""
    clients = _clients.get(None)
    if clients is None:
        found: dict[Address, _Client] = {}
        clients = _Clients(found, _until_the_loop_ends(found))
        _clients.set(clients)
        await anext(clients.end)
    client = clients.by_address.get(address)
    if client is None:
        client = clients.by_address[address] = _Client(make_client(address))
    return client


async def _until_the_loop_ends(clients: dict[Address, _Client]) -> AsyncGenerator[None, None]:
    """A loop that shuts down closes its generators that have begun: that is where connections are closed."""
    try:
        yield
    finally:
        for address, client in clients.items():
            await client.redis.aclose()
            if address.kind is Kind.SENTINEL:  # whose connections are not the client's
                for sentinel in client.redis.connection_pool.sentinel_manager.sentinels:
                    await sentinel.aclose()
        clients.clear()


def _redis_errors() -> Any:
    from redis import exceptions

    return exceptions


def _no_master() -> type[Exception]:
    # Its message shows clients whole, in some versions with their passwords.
    from redis.asyncio.sentinel import MasterNotFoundError

    return MasterNotFoundError


async def _command(address: Address, arguments: tuple[Any, ...]) -> Any:
    """One command, or a script's text, key and arguments, which is sent whole only to who does not have it yet."""
    client = await _client(address)
    send = client.redis.execute_command if address.kind is Kind.CLUSTER else partial(_exchange, client)
    async with client.turns:
        if arguments[0] not in SHA:
            return await send(*arguments)
        script, *rest = arguments
        try:
            return await send("EVALSHA", SHA[script], 1, *rest)
        except _redis_errors().NoScriptError:
            return await send("EVAL", script, 1, *rest)


async def _exchange(client: _Client, *arguments: Any) -> Any:
    """What `execute_command` does, in half its time: its own limits and measurements, and the pool's check of each
    connection that it gives away, are left out."""
    command = _packed(arguments)
    for last in (False, True):
        connection = client.idle.pop() if client.idle else await client.redis.connection_pool.get_connection()
        try:
            if not connection.is_connected:
                await connection.connect()
            await connection.send_packed_command(command)
            return await connection.read_response()
        except _redis_errors().ConnectionError:
            if last:
                raise  # else once more: the server may have closed it a while ago
        finally:
            client.idle.append(connection)


def _packed(arguments: tuple[Any, ...]) -> bytes:
    """As it is sent."""
    parts = [b"*%d\r\n" % len(arguments)]
    for each in arguments:
        data = str(each).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


async def _limited(address: Address, arguments: tuple[Any, ...]) -> Any:
    try:
        async with limit(LIMIT):
            return await _command(address, arguments)
    except _no_master() as error:
        raise SessionProviderError(f"{address}: no sentinel knows that master, or none answers") from error
    except TimeoutError as error:
        raise SessionProviderError(f"{address} did not answer within {LIMIT:g} s") from error
    except (_redis_errors().RedisError, _redis_errors().RedisClusterException, OSError) as error:
        raise SessionProviderError(f"{address}: {error}") from error


class _RedisSession(AtomicProvider):
    """Errors: InvalidError for a URL that is none, SessionProviderError if redis is not installed."""

    def __init__(self, url: str = DEFAULT_URL) -> None:
        if find_spec("redis") is None:
            raise SessionProviderError("redis is not installed: pip install 'artfs[redis]'")
        self.address = parse_url(url, insecure=os.environ.get("REDIS_TLS_INSECURE", "0") == "1")

    async def __aenter__(self) -> _RedisSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    async def _call(self, *arguments: Any) -> Any:
        return await _bridge.call(_limited, self.address, arguments)

    async def setex(self, key: str, ttl: float, value: str) -> None:
        if ttl > 0:
            await self._call("SET", key, checked_value(value), "PX", _ms(ttl))
        else:
            await self._call("DEL", key)

    async def set(self, key: str, value: str) -> None:
        await self._call("SET", key, checked_value(value))

    async def get(self, key: str) -> str | None:
        value: str | None = await self._call("GET", key)
        return value

    async def delete(self, key: str) -> bool:
        return bool(await self._call("DEL", key))

    async def add(self, key: str, ttl: float, value: str) -> bool:
        return bool(await self._call("SET", key, value, "PX", _ms(ttl), "NX"))

    async def swap(self, key: str, old: str, new: str, ttl: float) -> bool:
        return bool(await self._call(SWAP, key, old, new, _ms(ttl)))

    async def patch(self, key: str, at: int, text: str) -> str | None:
        value: str | None = await self._call(PATCH, key, at, text)
        return value

    async def take(self, key: str) -> str | None:
        value: str | None = await self._call(TAKE, key)
        return value


def _ms(seconds: float) -> int:
    """For redis, which wants a time above zero."""
    return max(1, math.ceil(seconds * 1000))


def factory(url: str = DEFAULT_URL) -> Callable[[], _RedisSession]:
    """Connects to nothing yet.  Errors: those of `_RedisSession`."""
    session = _RedisSession(url)
    return lambda: session
