"""Providers in buckets of the tests' servers, and a server that answers what it is told."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

import pytest

from artfs.objects.opening import open_provider
from artfs.objects.s3 import S3Provider
from tests.faults.proxy import Proxy
from tests.servers import KINDS, Running, Server, let_in, moto, rclone, servers

__all__ = ["moto", "rclone", "servers"]

MIB = 1 << 20
SIGNING = [kind for kind in KINDS if kind != "rclone"]
LOCAL = [kind for kind in KINDS if kind != "given"]


@dataclass(frozen=True)
class Limits:
    provider_timeout: float = 20.0
    part_size: int = 8 * MIB
    uploads: int = 4


@asynccontextmanager
async def opened(url: str, **limits: Any) -> AsyncIterator[S3Provider]:
    provider = open_provider(url, Limits(**limits))
    assert isinstance(provider, S3Provider)
    try:
        yield provider
    finally:
        await provider.close()


@pytest.fixture(params=SIGNING)
def signing(request: pytest.FixtureRequest, servers: Running, monkeypatch: pytest.MonkeyPatch) -> Server:
    return let_in(servers[request.param], monkeypatch)


@pytest.fixture(params=LOCAL)
def local(request: pytest.FixtureRequest, servers: Running, monkeypatch: pytest.MonkeyPatch) -> Server:
    return let_in(servers[request.param], monkeypatch)


@contextmanager
def before(server: Server) -> Iterator[Proxy]:
    with Proxy(server.address) as proxy:
        yield proxy


async def names(provider: S3Provider, prefix: str = "") -> list[str]:
    return [name async for name, _ in provider.list(prefix)]


def uploads_left(server: Server, provider: S3Provider) -> list[Any]:
    client = server.client()
    try:
        found = client.list_multipart_uploads(Bucket=server.bucket, Prefix=provider.place.prefix)
    finally:
        client.close()
    return list(found.get("Uploads", []))


# a server that answers what it is told
@dataclass
class Said:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answering:
    """`answers`: for each request, in order, and the last one for all that come after: status, headers, body."""

    port: int = 0
    said: list[Said] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], str]] = field(default_factory=lambda: [(200, {}, "")])

    def url(self, place: str = "bucket/prefix", host: str = "127.0.0.1", more: str = "&addressing=path") -> str:
        return f"s3://{place}?endpoint_url=http://{host}:{self.port}&region=us-east-1{more}"

    def error(self, status: int, code: str, more: str = "") -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said so</Message>{more}</Error>"
        self.answers = [(status, {"Content-Type": "application/xml"}, body)]


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up."""


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    for name, value in {"ACCESS_KEY_ID": "AKIATESTER", "SECRET_ACCESS_KEY": "the-secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(f"AWS_{name}", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    state = Answering()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.said.append(Said(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status, headers, text = state.answers[0] if len(state.answers) == 1 else state.answers.pop(0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def put(url: str, data: bytes, mime: str | None = None) -> Any:
    """As any client does it; the answer's headers."""
    # This client would send a type of its own, which curl -T does not.
    request = Request(url, data, method="PUT", headers={"Content-Type": mime or ""})
    with urlopen(request, timeout=10) as answer:
        return answer.headers
