"""HTTP as clients speak it: http.client, and plain sockets for what a client should not do.  Called in threads."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from urllib.parse import urlsplit

from anyio import to_thread

TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers`: by name in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


async def fetch(
    url: str,
    method: str = "GET",
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    return await to_thread.run_sync(partial(fetch_now, url, method, body, headers))


def fetch_now(
    url: str,
    method: str = "GET",
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
    try:
        connection.request(method, target(url), body, dict(headers or {}))
        response = connection.getresponse()
        data = response.read()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, data)
    finally:
        connection.close()


def target(url: str) -> str:
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=TIMEOUT)


def talk(url: str, data: bytes, *, end: bool = True) -> bytes:
    """Send `data` as it is; all that comes back until the server ends the connection.  `end`: we say that no more
    comes."""
    with connect(url) as stream:
        stream.sendall(data)
        if end:
            stream.shutdown(socket.SHUT_WR)
        return read_all(stream)


def read_all(stream: socket.socket) -> bytes:
    found = b""
    try:
        while part := stream.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found
