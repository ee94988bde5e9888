"""Redis URLs: every form, the client that it gets, and no password in any message.  Nothing is connected to."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool

from artfs.errors import InvalidError
from artfs.sessions.providers.redis import _RedisSession, make_client
from artfs.sessions.redis_url import Address, Kind, parse_url

SERVER, SENTINEL, CLUSTER = Kind.SERVER, Kind.SENTINEL, Kind.CLUSTER
SENTINELS = (("s1", 26379), ("s2", 26380))
NODES = (("n1", 7000), ("n2", 7001))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", Address(SERVER, (("h", 6379),))),
        ("redis://localhost:6380/3", Address(SERVER, (("localhost", 6380),), db=3)),
        ("redis://h/?db=2", Address(SERVER, (("h", 6379),), db=2)),
        ("redis://[::1]:7/", Address(SERVER, (("::1", 7),))),
        ("redis://ann:p%40ss@h:1/0", Address(SERVER, (("h", 1),), username="ann", password="p@ss")),
        ("redis://:secret@h", Address(SERVER, (("h", 6379),), password="secret")),
        ("rediss://h:6380/0", Address(SERVER, (("h", 6380),), tls=True)),
        ("unix:///run/redis.sock?db=1", Address(SERVER, (), db=1, socket="/run/redis.sock")),
        ("redis://s1:26379,s2:26380/main", Address(SENTINEL, SENTINELS, "main")),
        ("redis://s1,s2:26380/main?db=4", Address(SENTINEL, SENTINELS, "main", 4)),
        ("redis://s1/main", Address(SENTINEL, (("s1", 26379),), "main")),
        ("redis://u:p@s1,s2:26380/main", Address(SENTINEL, SENTINELS, "main", username="u", password="p")),
        ("redis://u:p@s1,u:p@s2:26380/main", Address(SENTINEL, SENTINELS, "main", username="u", password="p")),
        (
            "rediss://s1,s2:26380/main?sentinel_username=a&sentinel_password=b%26",
            Address(SENTINEL, SENTINELS, "main", sentinel_username="a", sentinel_password="b&", tls=True),
        ),
        ("redis://n1:7000,n2:7001", Address(CLUSTER, NODES)),
        ("redis://n1:7000,n2:7001/0", Address(CLUSTER, NODES)),
        ("rediss://u:p,w@n1:7000,n2:7001", Address(CLUSTER, NODES, username="u", password="p,w", tls=True)),
    ],
)
def test_forms(url: str, address: Address) -> None:
    assert parse_url(url) == address
    assert parse_url(url, insecure=True).insecure == address.tls
    assert "secret" not in repr(address) + str(address)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "begins with"),
        ("h:6379", "begins with"),
        ("http://h", "begins with"),
        ("redis://", "names a host"),
        ("redis://:secret@", "names a host"),
        ("redis://n1,,n2", "names a host"),
        ("redis://h:port", "no host"),
        ("redis://h:70000", "no host"),
        ("redis://h?db=one", "a number"),
        ("redis://n1,n2/3", "no database but 0"),
        ("redis://h?nosuch=1", "no option 'nosuch'"),
        ("redis://h?sentinel_password=secret", "names a sentinel's service"),
        ("unix://?db=1", "path"),
    ],
)
def test_what_is_no_url(url: str, why: str) -> None:
    with pytest.raises(InvalidError, match=why) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


def test_clients() -> None:
    server: Any = make_client(parse_url("rediss://u:p@h:1/2"))
    assert type(server) is Redis
    options = server.connection_pool.connection_kwargs
    assert (options["host"], options["port"], options["db"]) == ("h", 1, 2)
    assert (options["username"], options["password"], options["decode_responses"]) == ("u", "p", True)
    assert "SSL" in server.connection_pool.connection_class.__name__

    sentinel: Any = make_client(parse_url("redis://u:p@s1,s2:26380/main?db=2&sentinel_password=q"))
    assert type(sentinel) is Redis
    pool = sentinel.connection_pool
    assert type(pool) is SentinelConnectionPool
    assert pool.service_name == "main"
    asked = [client.connection_pool.connection_kwargs for client in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"], one["password"]) for one in asked] == [("s1", 26379, "q"), ("s2", 26380, "q")]
    assert (pool.connection_kwargs["password"], pool.connection_kwargs["db"]) == ("p", 2)

    cluster: Any = make_client(parse_url("redis://u:p@n1:7000,n2:7001"))
    assert type(cluster) is RedisCluster
    assert {(node.host, node.port) for node in cluster.nodes_manager.startup_nodes.values()} == set(NODES)
    assert cluster.connection_kwargs["password"] == "p"

    socket: Any = make_client(parse_url("unix:///run/x.sock?db=1"))
    assert socket.connection_pool.connection_kwargs["path"] == "/run/x.sock"


@pytest.mark.parametrize("value", ["", "0", "1"])
def test_certificates(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_TLS_INSECURE", value)
    for url in ("rediss://h", "rediss://s1/main", "rediss://n1,n2"):
        address = _RedisSession(url).address
        assert address.insecure == (value == "1")
        client: Any = make_client(address)
        options = client.connection_kwargs if address.kind is CLUSTER else client.connection_pool.connection_kwargs
        assert (options.get("ssl_cert_reqs") == "none") == address.insecure
    assert not _RedisSession("redis://h").address.insecure
