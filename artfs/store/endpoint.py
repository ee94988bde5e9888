"""A small HTTP/1.1 server on anyio and h11: connections, their limits and their end.  What is answered is a `Site`'s.

A request's body is read only while the site asks for it, and an answer's is produced only as fast as the client takes
it, so a connection costs a few buffers, however large the bodies are.

Limits: `CONNECTIONS` at once, the next is told 503; a request's head must come within `HEAD_TIME`; a body must keep up
`RATE` after `SLACK`; a client must take each piece of an answer within `SLACK`.  At its end the endpoint takes no more
requests, and those that are being answered have `DRAIN` to finish.

Clients are told what went wrong in a JSON object {"error": status, "message": text}, and nothing of our insides.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from time import monotonic
from typing import Protocol, cast

import anyio
import h11
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup

from artfs.errors import ArtfsError, InvalidError, UnavailableError

log = logging.getLogger(__name__)

CONNECTIONS = 256
HEAD_TIME = 30.0
"""Seconds, also between two requests of one connection."""
SLACK = 30.0
RATE = 1024
"""Bytes a second."""
DRAIN = 5.0
LINGER = 1.0
"""Seconds, and bytes, for which what a refused client still sends is read, so that it sees the answer."""
LINGER_BYTES = 8 << 20
HEAD_MAX = 32 << 10
ACCEPT_RETRY = 0.1
RECEIVE = 256 << 10
SEND = 256 << 10
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "ETag, Content-Length, Content-Range, Accept-Ranges, Content-Disposition",
}
"""Whoever has a URL may use it, from any page."""
GONE = (BrokenResourceError, ClosedResourceError, EndOfStream, OSError)


class Aborted(Exception):
    """The client has gone, or was too slow, before its request was whole."""

    def __init__(self, what: str, slow: bool = False) -> None:
        super().__init__(what)
        self.slow = slow


@dataclass(frozen=True, slots=True)
class Reply:
    """`body`: bytes, or parts of `length` bytes in all."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | AsyncGenerator[bytes, None] = b""
    length: int = 0


class Request:
    """`headers`: by name in lower case; those that come twice are joined with commas."""

    def __init__(self, connection: _Connection, event: h11.Request) -> None:
        self._connection = connection
        self.method = event.method.decode("ascii")
        self.target = event.target.decode("ascii")
        self.headers: dict[str, str] = {}
        for raw, value in event.headers:
            name, text = raw.decode("ascii"), value.decode("latin-1")
            self.headers[name] = f"{self.headers[name]}, {text}" if name in self.headers else text

    @property
    def length(self) -> int | None:
        """Of the body, as far as the client said so."""
        text = self.headers.get("content-length")
        return int(text) if text is not None else None

    def body(self) -> AsyncIterator[bytes]:
        """Its parts, once.  Errors: Aborted."""
        return self._connection.body()


class Site(Protocol):
    async def answer(self, request: Request) -> Reply:
        """Errors: ArtfsError, which becomes its `http_status`; Aborted."""


class Endpoint:
    """`base_url`, without a slash at its end, is known once it is open."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.base_url = ""
        self.port = 0
        self.draining = False
        self.connections: set[_Connection] = set()
        self._listeners: list[SocketListener] = []

    async def open(self, host: str, port: int) -> None:
        """Errors: UnavailableError if the address cannot be had."""
        try:
            listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
        except OSError as error:
            raise UnavailableError(
                f"the endpoint cannot listen on {host}:{port}: {error.strerror or error}; set ARTFS_ENDPOINT"
            ) from error
        self._listeners = cast(list[SocketListener], list(listener.listeners))
        self.port = self._listeners[0].extra(SocketAttribute.local_port)
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def run(self) -> None:
        """Serve until cancelled; what is being answered then has `DRAIN` to end."""
        server = anyio.CancelScope(shield=True)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._serve, server)
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._drain()
                    server.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._close()

    async def _serve(self, scope: anyio.CancelScope) -> None:
        with scope:
            async with anyio.create_task_group() as tasks:
                for listener in self._listeners:
                    tasks.start_soon(self._accept, listener, tasks)

    async def _accept(self, listener: SocketListener, tasks: TaskGroup) -> None:
        while True:
            try:
                stream = await listener.accept()
            except ClosedResourceError:
                return
            except OSError as error:  # too many descriptors, or the client has gone already
                log.warning("the endpoint cannot take a connection: %s", error)
                await anyio.sleep(ACCEPT_RETRY)
            else:
                tasks.start_soon(self._connected, stream)

    async def _connected(self, stream: SocketStream) -> None:
        async with stream:
            connection = _Connection(self, stream)
            full = len(self.connections) >= CONNECTIONS
            self.connections.add(connection)
            try:
                await (connection.refuse() if full else connection.run())
            except (*GONE, Aborted, TimeoutError) as error:
                log.debug("a client has gone: %r", error)
            except Exception:
                log.exception("a connection of the endpoint ended")
            finally:
                self.connections.discard(connection)

    async def _close(self) -> None:
        for listener in self._listeners:
            await listener.aclose()

    async def _drain(self) -> None:
        self.draining = True
        await self._close()
        for connection in self.connections:
            connection.idle.cancel()
        with anyio.move_on_after(DRAIN):
            while self.connections:
                await anyio.sleep(0.01)


def address(text: str) -> tuple[str, int]:
    """`host:port` as the setting has it; an IPv6 address in brackets.  Errors: InvalidError."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in host and bare == host) or not port.isdecimal() or int(port) > 65535:
        raise InvalidError(f"endpoint: {text!r} is no address; write host:port, such as 127.0.0.1:0")
    return bare, int(port)


def problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    body = json.dumps({"error": status, "message": message}).encode() + b"\n"
    return Reply(status, {"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})}, body)


class _Connection:
    """`idle` is cancelled to end a wait for the next request."""

    def __init__(self, endpoint: Endpoint, stream: SocketStream) -> None:
        self.endpoint = endpoint
        self.stream = stream
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        self.idle = anyio.CancelScope()
        self.head_only = False

    async def run(self) -> None:
        while not self.endpoint.draining:
            try:
                request = await self._next()
            except h11.RemoteProtocolError as error:
                await self._send(problem(error.error_status_hint, "this is no HTTP/1.1 request"))
                break
            if request is None:
                return
            try:
                reply = await self._answer(request)
            except h11.RemoteProtocolError:
                return
            try:
                await self._send(reply)
            except ArtfsError as error:
                log.error("%s of the endpoint ended early: %s", request.method, error)
                return
            if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
                break
            self.http.start_next_cycle()
        await self._linger()

    async def refuse(self) -> None:
        with anyio.move_on_after(LINGER):
            if await self._next() is not None:
                await self._send(problem(503, "too many connections; try again later", {"Retry-After": "1"}))
                await self._linger()

    async def _next(self) -> Request | None:
        """The next request; None: there is none.  Errors: h11.RemoteProtocolError."""
        self.idle = anyio.CancelScope()
        with self.idle, anyio.move_on_after(HEAD_TIME):
            event = await self._event()
            if isinstance(event, h11.Request):
                request = Request(self, event)
                self.head_only = request.method == "HEAD"
                if not request.length and "transfer-encoding" not in request.headers:
                    self.http.next_event()  # its end, which is there without waiting
                return request
        return None

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            try:
                data = await self.stream.receive(RECEIVE)
            except EndOfStream:
                data = b""
            self.http.receive_data(data)

    async def body(self) -> AsyncIterator[bytes]:
        if self.http.they_are_waiting_for_100_continue:
            data = self.http.send(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                await self._write(data or b"")
            except (TimeoutError, *GONE) as error:
                raise Aborted(str(error)) from error
        deadline = monotonic() + SLACK
        while self.http.their_state is h11.SEND_BODY:
            try:
                with anyio.fail_after(max(deadline - monotonic(), 0)):
                    event = await self._event()
            except TimeoutError:
                raise Aborted("the body comes too slowly", slow=True) from None
            except (h11.RemoteProtocolError, *GONE) as error:
                raise Aborted(str(error)) from error
            if not isinstance(event, h11.Data):
                return
            deadline += len(event.data) / RATE
            deadline = min(deadline, monotonic() + 2 * SLACK)
            yield event.data

    async def _answer(self, request: Request) -> Reply:
        try:
            return await self.endpoint.site.answer(request)
        except ArtfsError as error:
            if error.http_status < 500 or error.http_status == 507:
                return problem(error.http_status, str(error))
            log.error("%s of the endpoint failed: %s", request.method, error)
            return problem(error.http_status, "the store cannot do this now; try again later")
        except Aborted as error:
            if not error.slow:
                raise
            return problem(408, str(error))
        except Exception:
            log.exception("%s of the endpoint failed", request.method)
            return problem(500, "the store failed; its log has the reason")

    async def _send(self, reply: Reply) -> None:
        if self.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = {"Date": formatdate(usegmt=True), "Server": "artfs", **CORS, **reply.headers}
        if reply.status not in (204, 304):
            headers["Content-Length"] = str(len(reply.body) if isinstance(reply.body, bytes) else reply.length)
        if self.endpoint.draining or self.http.their_state not in (h11.DONE, h11.MUST_CLOSE):
            headers["Connection"] = "close"
        reason = HTTPStatus(reply.status).phrase
        start = self.http.send(
            h11.Response(status_code=reply.status, headers=list(headers.items()), reason=reason.encode())
        )
        head = start or b""
        if isinstance(reply.body, bytes):
            if reply.body and not self.head_only:
                head += self.http.send(h11.Data(data=reply.body)) or b""
            await self._write(head)
        else:
            await self._write(head)
            async with aclosing(reply.body) as parts:
                if not self.head_only:
                    await self._stream(parts)
        self.http.send(h11.EndOfMessage())

    async def _stream(self, parts: AsyncIterator[bytes]) -> None:
        """An error here closes the connection short of the length that was promised."""
        async for part in parts:
            view = memoryview(part)
            for at in range(0, len(view), SEND):
                data = h11.Data(data=view[at : at + SEND])  # type: ignore[arg-type]
                for piece in self.http.send_with_data_passthrough(data) or []:
                    await self._write(piece)

    async def _write(self, data: bytes) -> None:
        if data:
            with anyio.fail_after(SLACK):
                await self.stream.send(data)

    async def _linger(self) -> None:
        """Let a client that is still sending see the answer: closing at once would reset the connection."""
        if self.http.their_state is h11.CLOSED:
            return
        left = LINGER_BYTES
        with anyio.move_on_after(LINGER):
            await self.stream.send_eof()
            while left > 0:
                left -= len(await self.stream.receive(RECEIVE))
