"""The proxy itself: what it passes on, what it counts, and each way of misbehaving, before a server of a few lines."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.faults.messages import Kind, classify, parse_head
from tests.faults.proxy import Fault, Proxy

BODY = bytes(range(256)) * 4096
NOTHING = parse_head(b"GET / HTTP/1.1")


class Objects(BaseHTTPRequestHandler):
    """PUT keeps a body that came whole, GET gives it back; a query `chunked` asks for an answer in chunks."""

    protocol_version = "HTTP/1.1"
    kept: dict[str, bytes]

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) == length:
            self.kept[self.path] = body
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.kept.get(path)
        self.send_response(404 if body is None else 200)
        if query == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(body or b""), 100_000):
                piece = (body or b"")[at : at + 100_000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        if query != "endless":
            self.send_header("Content-Length", str(len(body or b"")))
        else:
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def kept() -> Iterator[dict[str, bytes]]:
    Objects.kept = {}
    yield Objects.kept


@pytest.fixture
def proxy(kept: dict[str, bytes]) -> Iterator[Proxy]:
    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the proxy ends connections in the middle of what they say

    server = Server(("127.0.0.1", 0), Objects)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with Proxy(("127.0.0.1", server.server_address[1])) as own:
            yield own
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    yield connection
    connection.close()


def put(client: http.client.HTTPConnection, path: str = "/b/k", body: bytes = BODY) -> int:
    client.request("PUT", path, body)
    answer = client.getresponse()
    answer.read()
    return answer.status


def get(client: http.client.HTTPConnection, path: str = "/b/k") -> bytes:
    client.request("GET", path)
    return client.getresponse().read()


@pytest.mark.parametrize(
    ("method", "target", "headers", "kind"),
    [
        ("PUT", "/b/k", "", Kind.PUT),
        ("PUT", "/b/k?x-id=PutObject", "", Kind.PUT),
        ("PUT", "/b/k?partNumber=2&uploadId=u", "", Kind.PART),
        ("PUT", "/b/k", "\r\nx-amz-copy-source: /b/other", Kind.COPY),
        ("PUT", "/b", "", Kind.BUCKET),
        ("POST", "/b/k?uploads", "", Kind.BEGIN),
        ("POST", "/b/k?uploads=", "", Kind.BEGIN),
        ("POST", "/b/k?uploadId=u", "", Kind.COMPLETE),
        ("POST", "/b?delete", "", Kind.DELETE),
        ("DELETE", "/b/k?uploadId=u", "", Kind.ABORT),
        ("DELETE", "/b/k?x-id=DeleteObject", "", Kind.DELETE),
        ("GET", "/b/k", "", Kind.GET),
        ("GET", "/b/k?uploadId=u", "", Kind.PARTS),
        ("GET", "/b?list-type=2&prefix=p", "", Kind.LIST),
        ("GET", "/b/", "", Kind.LIST),
        ("GET", "/b?location", "", Kind.BUCKET),
        ("HEAD", "/b", "", Kind.BUCKET),
        ("HEAD", "/b/k", "", Kind.HEAD),
    ],
)
def test_what_a_request_is(method: str, target: str, headers: str, kind: Kind) -> None:
    assert classify(method, target, parse_head(f"{method} {target} HTTP/1.1{headers}".encode())) is kind


def test_it_passes_bodies_and_counts(proxy: Proxy, client: http.client.HTTPConnection, kept: dict[str, bytes]) -> None:
    assert put(client) == 200
    assert kept["/b/k"] == BODY
    with proxy.counting() as seen, proxy.counting() as twin:
        assert get(client) == get(client, "/b/k?chunked") == BODY
    with proxy.counting():
        assert get(client, "/b/k?endless") == BODY
    assert [(r.kind, r.received) for r in seen.requests] == [(Kind.GET, len(BODY))] * 2
    assert twin.requests == seen.requests
    assert [(r.kind, r.sent, r.status, r.fault) for r in proxy.seen.of(Kind.PUT)] == [(Kind.PUT, len(BODY), 200, None)]
    assert proxy.seen.count(Kind.GET) == 3
    assert str(proxy.seen) == "put 1, get 3"


def test_a_client_that_waits_for_continue(proxy: Proxy, kept: dict[str, bytes]) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as raw:
        raw.sendall(b"PUT /b/k HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(b"abc")
        assert raw.recv(100).startswith(b"HTTP/1.1 200 ")
    assert kept["/b/k"] == b"abc"


def test_an_error_instead_of_an_answer(
    proxy: Proxy, client: http.client.HTTPConnection, kept: dict[str, bytes]
) -> None:
    proxy.misbehave(Fault.ANSWER, {Kind.PUT}, count=2, status=403, code="AccessDenied")
    assert put(client) == 403
    client.request("PUT", "/b/k", BODY)
    assert b"<Code>AccessDenied</Code>" in client.getresponse().read()
    assert kept == {}
    with proxy.counting():
        assert put(client) == 200
    assert proxy.seen.struck() == 2


def test_a_reset_before_and_after(proxy: Proxy, client: http.client.HTTPConnection, kept: dict[str, bytes]) -> None:
    proxy.misbehave(Fault.RESET_BEFORE, count=1)
    with pytest.raises(ConnectionError):
        put(client)
    assert kept == {}
    client.close()
    proxy.misbehave(Fault.RESET_AFTER, count=1)
    with pytest.raises(ConnectionError):
        put(client)
    assert kept["/b/k"] == BODY
    client.close()
    assert put(client) == 200


def test_a_body_that_is_cut_off(proxy: Proxy, client: http.client.HTTPConnection, kept: dict[str, bytes]) -> None:
    proxy.misbehave(Fault.TRUNCATE, {Kind.PUT}, count=1)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        put(client)
    assert kept == {}
    client.close()
    put(client)
    proxy.misbehave(Fault.TRUNCATE, {Kind.GET}, count=1)
    with pytest.raises(http.client.IncompleteRead) as raised:
        get(client)
    assert raised.value.partial == BODY[: len(BODY) // 2]


@pytest.mark.parametrize("query", ["", "?chunked", "?endless"])
def test_a_wrong_byte(proxy: Proxy, client: http.client.HTTPConnection, query: str) -> None:
    put(client)
    proxy.misbehave(Fault.CORRUPT, {Kind.GET}, count=1)
    got = get(client, f"/b/k{query}")
    assert len(got) == len(BODY)
    assert sum(a != b for a, b in zip(got, BODY, strict=True)) == 1
    client.close()
    assert get(client) == BODY


def test_a_slow_body(proxy: Proxy, client: http.client.HTTPConnection) -> None:
    put(client, body=BODY[:50_000])
    proxy.misbehave(Fault.SLOW, {Kind.GET}, rate=100_000, count=1)
    start = time.monotonic()
    assert get(client) == BODY[:50_000]
    assert time.monotonic() - start > 0.4


def test_it_hangs_until_it_is_healed(proxy: Proxy, client: http.client.HTTPConnection) -> None:
    proxy.misbehave(Fault.HANG)
    timer = threading.Timer(0.3, proxy.heal)
    timer.start()
    start = time.monotonic()
    assert put(client) == 200
    assert time.monotonic() - start > 0.25
    timer.join()


def test_an_outage_refuses_and_resets(proxy: Proxy, client: http.client.HTTPConnection) -> None:
    put(client)
    with proxy.outage():
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            get(client)
        client.close()
        with pytest.raises(ConnectionRefusedError):
            get(client)
    client.close()
    assert get(client) == BODY


def test_probability_and_concurrency(proxy: Proxy) -> None:
    proxy.misbehave(Fault.ANSWER, {Kind.GET}, probability=0.5)
    connections = [http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10) for _ in range(4)]
    with proxy.counting() as seen:
        for connection in connections:
            for _ in range(25):
                get(connection)
    assert 25 < seen.struck() < 75
    assert seen.at_once(Kind.GET) <= 2  # a client may have its answer, and ask again, before the end is recorded
    proxy.heal()
    proxy.misbehave(Fault.SLOW, {Kind.PUT}, rate=100_000)
    bodies = [threading.Thread(target=put, args=(c, f"/b/{n}", BODY[:30_000])) for n, c in enumerate(connections)]
    with proxy.counting() as seen:
        for thread in bodies:
            thread.start()
        for thread in bodies:
            thread.join()
    assert seen.at_once(Kind.PUT) == 4
    for connection in connections:
        connection.close()
