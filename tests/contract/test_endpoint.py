"""The HTTP endpoint: connections, limits and ends, with sites made for the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import md5
from http.client import HTTPConnection, IncompleteRead

import anyio
import pytest
from anyio import to_thread

from artfs.errors import DamagedError, ExpiredError, InvalidError, UnavailableError
from artfs.settings import parse_address
from artfs.store import connection as one_module
from artfs.store import endpoint as module
from artfs.store.connection import Reply, Request
from artfs.store.endpoint import Endpoint
from tests.http import Answer, connect, fetch, read_all, talk

PART = bytes(range(256)) * 256


class Site:
    """`/echo` answers what came; `/long/<n>` n parts; `/hold` waits for `go`; `/break` fails in the middle."""

    def __init__(self) -> None:
        self.go = anyio.Event()
        self.holding = anyio.Event()
        self.ended: list[str] = []
        self.seen: list[str] = []

    async def answer(self, request: Request) -> Reply:
        self.seen.append(request.target)
        name = request.target.split("/")[1]
        if name == "echo":
            return await self._echo(request)
        if name == "long":
            count = int(request.target.split("/")[2])
            return Reply(200, {"ETag": '"x"'}, self._parts(count), count * len(PART))
        if name == "break":
            return Reply(200, {}, self._broken(), 2 * len(PART))
        if name == "hold":
            self.holding.set()
            await self.go.wait()
            return Reply(200, {}, b"held")
        if name == "gone":
            raise ExpiredError("it is over")
        if name == "down":
            raise UnavailableError("/root/secret/path is on fire")
        if name == "bug":
            raise ZeroDivisionError("inside")
        if name == "ignore":
            raise InvalidError("not this")
        return Reply(404)

    async def _echo(self, request: Request) -> Reply:
        size, digest = 0, md5(usedforsecurity=False)
        try:
            async for data in request.body():
                size += len(data)
                digest.update(data)
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        return Reply(200, {}, f"{request.method} {size} {digest.hexdigest()}".encode())

    async def _parts(self, count: int) -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(count):
                yield PART
        finally:
            self.ended.append("parts")

    async def _broken(self) -> AsyncGenerator[bytes, None]:
        yield PART
        raise DamagedError("it is damaged")


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(site)
    await endpoint.open("127.0.0.1", 0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(endpoint.run)
        try:
            yield endpoint
        finally:
            tasks.cancel_scope.cancel()
    assert not endpoint.connections


def _echo(body: bytes, method: str = "PUT") -> bytes:
    return f"{method} {len(body)} {md5(body, usedforsecurity=False).hexdigest()}".encode()


def _head(method: str, target: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


# one request
@pytest.mark.parametrize("size", [0, 1, 65536, 3 << 20])
async def test_a_body_comes_whole(size: int) -> None:
    body = (PART * 50)[:size]
    async with serving(Site()) as endpoint:
        counted = await fetch(endpoint.base_url + "/echo", "PUT", body)
        chunked = await fetch(endpoint.base_url + "/echo", "PUT", iter([body[:10], body[10:]]))
    assert (counted.status, counted.body) == (chunked.status, chunked.body) == (200, _echo(body))


async def test_an_answer_in_parts() -> None:
    async with serving(Site()) as endpoint:
        got = await fetch(endpoint.base_url + "/long/20")
        head = await fetch(endpoint.base_url + "/long/20", "HEAD")
    assert got.body == PART * 20
    assert head.body == b""
    assert head.headers["content-length"] == str(20 * len(PART))
    assert got.headers["access-control-allow-origin"] == "*"
    assert "ETag" in got.headers["access-control-expose-headers"]


async def test_errors_are_told_without_our_insides(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Site()) as endpoint:
        gone = await fetch(endpoint.base_url + "/gone")
    assert gone.status == 410
    assert gone.body == b'{"error": 410, "message": "it is over"}\n'
    assert gone.headers["content-type"] == "application/json"


@pytest.mark.logs_errors
@pytest.mark.parametrize(("path", "status"), [("/down", 502), ("/bug", 500)])
async def test_what_fails_inside_stays_inside(path: str, status: int) -> None:
    async with serving(Site()) as endpoint:
        answer = await fetch(endpoint.base_url + path)
        again = await fetch(endpoint.base_url + "/long/1")
    assert answer.status == status
    for inside in (b"root", b"fire", b"inside", b"Zero", b"Traceback"):
        assert inside not in answer.body
    assert again.status == 200


@pytest.mark.logs_errors
async def test_an_answer_that_breaks_is_not_taken_for_whole() -> None:
    def read(url: str) -> None:
        fetch_it = HTTPConnection(url.removeprefix("http://"), timeout=20)
        try:
            fetch_it.request("GET", "/break")
            fetch_it.getresponse().read()
        finally:
            fetch_it.close()

    async with serving(Site()) as endpoint:
        with pytest.raises((IncompleteRead, ConnectionResetError)):
            await to_thread.run_sync(read, endpoint.base_url)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # without Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: a\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000, b"431"),
    ],
)
async def test_what_is_no_request(data: bytes, status: bytes) -> None:
    async with serving(Site()) as endpoint:
        found = await to_thread.run_sync(talk, endpoint.base_url, data)
    assert found.split(b" ")[1] == status
    assert b"Connection: close" in found


# Expect: 100-continue
def _expect(url: str, path: str) -> tuple[bytes, bytes]:
    """What the server says before and after it was sent a body."""
    with connect(url) as stream:
        stream.sendall(_head("PUT", path, "Content-Length: 5", "Expect: 100-continue"))
        first = stream.recv(1 << 16)
        if b" 100 " not in first:
            return first, read_all(stream)
        stream.sendall(b"hello")
        stream.shutdown(socket.SHUT_WR)
        return first, read_all(stream)


async def test_a_client_that_waits_is_told_to_go_on() -> None:
    async with serving(Site()) as endpoint:
        first, second = await to_thread.run_sync(_expect, endpoint.base_url, "/echo")
    assert first.startswith(b"HTTP/1.1 100 ")
    assert second.endswith(_echo(b"hello"))


async def test_a_client_that_waits_for_a_refusal_sends_nothing() -> None:
    async with serving(Site()) as endpoint:
        first, _ = await to_thread.run_sync(_expect, endpoint.base_url, "/ignore")
    assert first.startswith(b"HTTP/1.1 400 ")


async def test_a_refused_body_does_not_hide_the_answer() -> None:
    async with serving(Site()) as endpoint:
        answer = await fetch(endpoint.base_url + "/ignore", "PUT", bytes(4 << 20))
    assert answer.status == 400


# several requests
async def test_a_connection_is_used_again() -> None:
    def three(url: str) -> list[bytes]:
        connection = HTTPConnection(url.removeprefix("http://"), timeout=20)
        found = []
        try:
            for body in (b"a", b"", b"ccc"):
                connection.request("PUT", "/echo", body)
                stream = connection.sock
                found.append(connection.getresponse().read())
                assert connection.sock is stream
        finally:
            connection.close()
        return found

    async with serving(Site()) as endpoint:
        found = await to_thread.run_sync(three, endpoint.base_url)
    assert found == [_echo(b"a"), _echo(b""), _echo(b"ccc")]


async def test_requests_in_a_row_are_answered_in_their_order() -> None:
    data = b"".join(
        [_head("PUT", "/echo", "Content-Length: 3") + b"abc", _head("GET", "/long/1"), _head("GET", "/gone"),
         _head("PUT", "/echo", "Content-Length: 1", "Connection: close") + b"z"]
    )  # fmt: skip
    async with serving(Site()) as endpoint:
        found = await to_thread.run_sync(talk, endpoint.base_url, data)
    places = [found.index(text) for text in (_echo(b"abc"), PART, b"it is over", _echo(b"z"))]
    assert places == sorted(places)
    assert found.count(b"HTTP/1.1 ") == 4


async def test_an_old_client_is_answered_once() -> None:
    async with serving(Site()) as endpoint:
        found = await to_thread.run_sync(talk, endpoint.base_url, b"GET /long/1 HTTP/1.0\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200 ")
    assert found.endswith(PART)


# clients that misbehave
@pytest.mark.parametrize("head", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_body_that_ends_early_is_none(head: str) -> None:
    site = Site()
    async with serving(site) as endpoint:
        body = b"5\r\nhello\r\n" if "chunked" in head else b"hello"
        found = await to_thread.run_sync(talk, endpoint.base_url, _head("PUT", "/echo", head) + body)
    assert site.ended == ["Aborted"]
    assert b"200" not in found


async def test_a_slow_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_module, "SLACK", 0.2)
    site = Site()
    async with serving(site) as endpoint:
        data = _head("PUT", "/echo", "Content-Length: 100") + b"hello"
        found = await to_thread.run_sync(lambda: talk(endpoint.base_url, data, end=False))
    assert found.startswith(b"HTTP/1.1 408 ")
    assert site.ended == ["Aborted"]


async def test_a_trickle_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps no connection."""
    monkeypatch.setattr(one_module, "SLACK", 0.3)
    site = Site()

    def trickle(url: str) -> int:
        sent = 0
        with connect(url) as stream:
            stream.sendall(_head("PUT", "/echo", "Content-Length: 1000"))
            stream.settimeout(0.02)
            while sent < 500:
                try:
                    if stream.recv(1000):
                        return sent
                except TimeoutError:
                    pass
                stream.sendall(b"x")
                sent += 1
        return sent

    async with serving(site) as endpoint:
        sent = await to_thread.run_sync(trickle, endpoint.base_url)
    assert sent < 100
    assert site.ended == ["Aborted"]


async def test_a_head_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_module, "HEAD_TIME", 0.2)
    async with serving(Site()) as endpoint:
        assert await to_thread.run_sync(lambda: talk(endpoint.base_url, b"GET /", end=False)) == b""


async def test_who_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_module, "SLACK", 0.3)
    site = Site()
    async with serving(site) as endpoint:
        stream = await to_thread.run_sync(connect, endpoint.base_url)
        try:
            await to_thread.run_sync(stream.sendall, _head("GET", "/long/1000"))
            with anyio.fail_after(10):
                while not site.ended:
                    await anyio.sleep(0.02)
        finally:
            stream.close()
    assert site.ended == ["parts"]


async def test_who_goes_ends_his_answer() -> None:
    site = Site()
    async with serving(site) as endpoint:
        stream = await to_thread.run_sync(connect, endpoint.base_url)
        await to_thread.run_sync(stream.sendall, _head("GET", "/long/10000"))
        await to_thread.run_sync(stream.recv, 1000)
        stream.close()
        with anyio.fail_after(10):
            while endpoint.connections:
                await anyio.sleep(0.01)
    assert site.ended == ["parts"]


async def test_too_many_connections_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 3)
    site = Site()
    async with serving(site) as endpoint:
        answers: list[Answer] = []

        async def hold() -> None:
            answers.append(await fetch(endpoint.base_url + "/hold"))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(hold)
            with anyio.fail_after(10):
                while len(endpoint.connections) < 3:
                    await anyio.sleep(0.01)
            refused = await fetch(endpoint.base_url + "/long/1")
            site.go.set()
        served = await fetch(endpoint.base_url + "/long/1")
    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"
    assert [answer.body for answer in answers] == [b"held"] * 3
    assert served.status == 200


async def test_a_connection_that_only_waits_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    site = Site()
    async with serving(site) as endpoint, anyio.create_task_group() as tasks:
        kept = await to_thread.run_sync(connect, endpoint.base_url)
        with kept:
            await to_thread.run_sync(kept.sendall, _head("PUT", "/echo", "Content-Length: 0"))
            assert b"200" in await to_thread.run_sync(kept.recv, 1 << 16)
            tasks.start_soon(fetch, endpoint.base_url + "/hold")
            await site.holding.wait()
            assert (await fetch(endpoint.base_url + "/long/1")).status == 200
            assert await to_thread.run_sync(kept.recv, 10) == b""
        site.go.set()
    found = endpoint.statistics()
    assert (found.requests, found.refused, found.sent) == (3, 0, len(PART))


async def test_a_proxy_names_the_host() -> None:
    site = Site()
    async with serving(site) as endpoint:
        data = _head("GET", f"{endpoint.base_url}/long/1", "Connection: close")
        assert (await to_thread.run_sync(talk, endpoint.base_url, data)).endswith(PART)
    assert site.seen == ["/long/1"]


async def test_many_at_once() -> None:
    async with serving(Site()) as endpoint:
        found: list[bytes] = []

        async def one(number: int) -> None:
            body = PART * (number % 7)
            answer = await fetch(endpoint.base_url + "/echo", "PUT", body)
            found.append(answer.body if answer.body == _echo(body) else b"wrong")

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(one, number)
    assert len(found) == 60 and b"wrong" not in found


# the end
async def test_what_is_being_answered_is_answered() -> None:
    site = Site()
    held: list[Answer] = []
    async with anyio.create_task_group() as clients:
        async with serving(site) as endpoint:

            async def hold() -> None:
                held.append(await fetch(endpoint.base_url + "/hold"))

            clients.start_soon(hold)
            idle = await to_thread.run_sync(connect, endpoint.base_url)
            await site.holding.wait()

            async def let_go() -> None:
                while not endpoint.draining:
                    await anyio.sleep(0.01)
                await anyio.sleep(0.1)
                site.go.set()

            clients.start_soon(let_go)
        with idle:
            assert await to_thread.run_sync(idle.recv, 10) == b""
        with pytest.raises(ConnectionRefusedError):
            await to_thread.run_sync(connect, endpoint.base_url)
    assert [(answer.status, answer.body) for answer in held] == [(200, b"held")]
    assert held[0].headers["connection"] == "close"


async def test_what_takes_too_long_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN", 0.2)
    site = Site()
    failed = threading.Event()

    def hold(url: str) -> None:
        if talk(url, _head("GET", "/hold"), end=False) == b"":
            failed.set()

    async with anyio.create_task_group() as clients, serving(site) as endpoint:
        clients.start_soon(to_thread.run_sync, hold, endpoint.base_url)
        await site.holding.wait()
    assert failed.is_set()


async def test_an_address_that_is_taken() -> None:
    async with serving(Site()) as endpoint:
        with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{endpoint.port}"):
            await Endpoint(Site()).open("127.0.0.1", endpoint.port)


async def test_everywhere_is_called_by_the_hosts_name() -> None:
    endpoint = Endpoint(Site())
    await endpoint.open("0.0.0.0", 0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(endpoint.run)
        assert endpoint.base_url == f"http://{socket.gethostname()}:{endpoint.port}"
        assert (await fetch(f"http://127.0.0.1:{endpoint.port}/long/1")).body == PART
        tasks.cancel_scope.cancel()


def test_addresses() -> None:
    assert parse_address("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_address("[::1]:80") == ("::1", 80)
    for bad in ("", "x", ":1", "a:", "a:b", "::1:80", "a:65536"):
        with pytest.raises(InvalidError, match="host:port"):
            parse_address(bad)


WHOLE_TESTS: list[Callable[[], object]] = [
    test_an_answer_in_parts,
    test_a_connection_is_used_again,
    test_requests_in_a_row_are_answered_in_their_order,
    test_what_is_being_answered_is_answered,
    test_who_goes_ends_his_answer,
    test_many_at_once,
]


@pytest.mark.parametrize("test", WHOLE_TESTS)
def test_the_same_on_asyncio(test: Callable[[], object]) -> None:
    anyio.run(test, backend="asyncio")  # type: ignore[arg-type]
