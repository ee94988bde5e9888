"""One connection of the HTTP endpoint: requests in, replies out, by h11 on a stream of anyio.

A request's body is read only while the site asks for it, and an answer's is produced only as fast as the client takes
it, so a connection costs a few buffers, however large the bodies are.

Limits: a request's head must come within `HEAD_TIME`; a body must keep up `RATE` after `SLACK`; a client must take each
piece of an answer within `SLACK`.

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
from typing import Protocol

import anyio
import h11
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import SocketStream

from artfs.errors import ArtfsError

log = logging.getLogger(__name__)

HEAD_TIME = 30.0
"""Seconds, also between two requests of one connection."""
SLACK = 30.0
RATE = 1024
"""Bytes a second."""
LINGER = 1.0
"""Seconds, and bytes, for which what a refused client still sends is read, so that it sees the answer."""
LINGER_BYTES = 8 << 20
HEAD_MAX = 32 << 10
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

    def __init__(self, connection: Connection, event: h11.Request) -> None:
        self._connection = connection
        self.method = event.method.decode("ascii")
        self.target = _path(event.target.decode("ascii"))
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
        return _Body(self._connection)


class _Body:
    """An iterator and no generator: nothing is left to be closed when a site stops in the middle."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._deadline = 0.0

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if not self._deadline:
            await self._connection.go_on()
            self._deadline = monotonic() + SLACK
        data = await self._connection.part(self._deadline)
        if data is None:
            raise StopAsyncIteration
        self._deadline = min(self._deadline + len(data) / RATE, monotonic() + 2 * SLACK)
        return data


class Site(Protocol):
    async def answer(self, request: Request) -> Reply:
        """Errors: ArtfsError, which becomes its `http_status`; Aborted."""


@dataclass(slots=True)
class Counters:
    """Requests; connections that were refused; bytes of bodies that came and went."""

    requests: int = 0
    refused: int = 0
    received: int = 0
    sent: int = 0


def _path(target: str) -> str:
    """As a proxy sends it, the target has the host, too."""
    scheme, found, rest = target.partition("://")
    return "/" + rest.partition("/")[2] if found and scheme in ("http", "https") else target


def problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    body = json.dumps({"error": status, "message": message}).encode() + b"\n"
    return Reply(status, {"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})}, body)


class Connection:
    """`kept`: it waits for a request that is not its first."""

    def __init__(self, site: Site, counters: Counters, stream: SocketStream) -> None:
        self.site = site
        self.counters = counters
        self.stream = stream
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        self.kept = False
        self._idle = anyio.CancelScope()
        self._last = False
        self._head_only = False

    def end(self) -> None:
        """Take no more requests; the one that is being answered is the last."""
        self._last = True
        self._idle.cancel()

    async def run(self) -> None:
        """Until the client ends it, or `end`.  Errors: Aborted, TimeoutError, those of `GONE`."""
        while not self._last:
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
            self.kept = True
        await self._linger()

    async def refuse(self) -> None:
        self.counters.refused += 1
        with anyio.move_on_after(LINGER):
            if await self._next() is not None:
                await self._send(problem(503, "too many connections; try again later", {"Retry-After": "1"}))
                await self._linger()

    async def _next(self) -> Request | None:
        """The next request; None: there is none.  Errors: h11.RemoteProtocolError."""
        self._idle = anyio.CancelScope()
        with self._idle, anyio.move_on_after(HEAD_TIME):
            event = await self._event()
            if isinstance(event, h11.Request):
                self.kept = False
                self.counters.requests += 1
                request = Request(self, event)
                self._head_only = request.method == "HEAD"
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

    async def go_on(self) -> None:
        """Tell a client that asked first that its body is wanted.  Errors: Aborted."""
        if self.http.they_are_waiting_for_100_continue:
            data = self.http.send(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                await self._write(data or b"")
            except (TimeoutError, *GONE) as error:
                raise Aborted(str(error)) from error

    async def part(self, deadline: float) -> bytes | None:
        """The next part of the request's body; None: it is whole.  Errors: Aborted."""
        if self.http.their_state is not h11.SEND_BODY:
            return None
        try:
            with anyio.fail_after(max(deadline - monotonic(), 0)):
                event = await self._event()
        except TimeoutError:
            raise Aborted("the body comes too slowly", slow=True) from None
        except (h11.RemoteProtocolError, *GONE) as error:
            raise Aborted(str(error)) from error
        if not isinstance(event, h11.Data):
            return None
        self.counters.received += len(event.data)
        return event.data

    async def _answer(self, request: Request) -> Reply:
        try:
            return await self.site.answer(request)
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
        if self._last or self.http.their_state not in (h11.DONE, h11.MUST_CLOSE):
            headers["Connection"] = "close"
        reason = HTTPStatus(reply.status).phrase
        start = self.http.send(
            h11.Response(status_code=reply.status, headers=list(headers.items()), reason=reason.encode())
        )
        head = start or b""
        if isinstance(reply.body, bytes):
            if reply.body and not self._head_only:
                head += self.http.send(h11.Data(data=reply.body)) or b""
            await self._write(head)
        else:
            await self._write(head)
            async with aclosing(reply.body) as parts:
                if not self._head_only:
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
                self.counters.sent += len(data.data)

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
