"""A proxy before a server of the S3 protocol: it counts what passes, and misbehaves when it is told to.

    with Proxy((server_host, server_port)) as proxy:
        proxy.misbehave(Fault.ANSWER, {Kind.PUT}, probability=0.3, status=503, code="SlowDown")
        …
        proxy.heal()

Each connection has a thread; each request gets a connection to the server of its own, so that no fault reaches the
server's side of another request.  Faults of bodies (`SLOW`, `TRUNCATE`, `CORRUPT`) strike the request's body where it
has one, else the answer's.  Every request is recorded when it is over, whatever became of it.

`misbehave`, `heal`, `refuse`, `accept` and all that counts may be called from any thread at any time.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import NoReturn

from tests.faults.messages import PIECE, Broken, Head, Kind, Reader, classify

LINGER = struct.pack("ii", 1, 0)
PATIENCE = 120.0
"""Seconds for the server to answer, and for a client to go on."""


class Fault(Enum):
    ANSWER = "an error is the answer; the request does not reach the server"
    RESET_BEFORE = "the connection is reset; the request does not reach the server"
    RESET_AFTER = "the server has done what was asked, then the connection is reset"
    SLOW = "the body trickles"
    TRUNCATE = "half of the body passes, then the connection ends"
    CORRUPT = "one bit of the body is another"
    HANG = "nothing happens until all is well again"


@dataclass(slots=True)
class Rule:
    """`left`: how often it may still strike; None: for ever.  `rate`: bytes per second.  `also`: what a reset does
    besides, at the moment at which the request has not arrived, or its answer has not left."""

    fault: Fault
    kinds: frozenset[Kind]
    probability: float = 1.0
    left: int | None = None
    status: int = 503
    code: str = "SlowDown"
    rate: float = 100_000.0
    also: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """`sent` and `received` are bytes of bodies as they passed; `status` is 0 if no answer was given."""

    kind: Kind
    target: str
    sent: int
    received: int
    status: int
    fault: Fault | None
    start: float
    end: float


@dataclass(slots=True)
class _Passing:
    sent: int = 0
    received: int = 0
    status: int = 0


class Gone(Exception):
    """This connection is over: by a fault, or because a side has ended it."""


@dataclass(slots=True)
class Seen:
    """Requests, in the order in which they ended."""

    requests: list[Request] = field(default_factory=list)

    def of(self, *kinds: Kind) -> list[Request]:
        return [request for request in self.requests if request.kind in kinds]

    def count(self, *kinds: Kind) -> int:
        return len(self.of(*kinds))

    def struck(self) -> int:
        """How many met a fault."""
        return sum(request.fault is not None for request in self.requests)

    def at_once(self, *kinds: Kind) -> int:
        """The most that were under way at one moment."""
        moments = sorted(m for r in self.of(*kinds) for m in ((r.start, 1), (r.end, -1)))
        most = now = 0
        for _, step in moments:
            now += step
            most = max(most, now)
        return most

    def __str__(self) -> str:
        counts = {kind: self.count(kind) for kind in Kind if self.count(kind)}
        return ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "none"


class Proxy:
    """Listens on a port of its own, which stays reserved while it refuses connections."""

    def __init__(self, target: tuple[str, int], seed: object = "faults") -> None:
        self._target = target
        self._chance = random.Random(str(seed))
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._well = threading.Event()
        self._seen: list[Seen] = [Seen()]
        self._active = 0
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._holder = _bound(0)
        self.port: int = self._holder.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def seen(self) -> Seen:
        """Everything since it was started."""
        self._settle()
        with self._lock:
            return Seen(list(self._seen[0].requests))

    @contextmanager
    def counting(self) -> Iterator[Seen]:
        """What begins while the body runs; filled as each ends."""
        seen = Seen()
        with self._lock:
            self._seen.append(seen)
        try:
            yield seen
        finally:
            self._settle()
            with self._lock:
                # By identity: two that have seen the same are equal.
                self._seen = [each for each in self._seen if each is not seen]

    def _settle(self) -> None:
        """A client has its answer before it is recorded; what hangs is not waited for."""
        limit = time.monotonic() + 1
        while self._active and time.monotonic() < limit:
            time.sleep(0.005)

    # misbehaving
    def misbehave(
        self,
        fault: Fault,
        kinds: Collection[Kind] = tuple(Kind),
        *,
        probability: float = 1.0,
        count: int | None = None,
        status: int = 503,
        code: str = "SlowDown",
        rate: float = 100_000.0,
        also: Callable[[], None] | None = None,
    ) -> None:
        """From now on; the oldest rule that fits a request is the one that strikes it."""
        with self._lock:
            self._well.clear()
            self._rules.append(Rule(fault, frozenset(kinds), probability, count, status, code, rate, also))

    def heal(self) -> None:
        """No rule any more, and connections are accepted."""
        with self._lock:
            self._rules.clear()
        self._well.set()
        self.accept()

    def refuse(self) -> None:
        """Connections are refused, and those that exist are reset."""
        with self._lock:
            listener, self._listener = self._listener, None
            connections = list(self._connections)
        if listener is not None:
            _end_listening(listener)
        for connection in connections:
            _wake(connection)

    def accept(self) -> None:
        with self._lock:
            if self._listener is not None:
                return
            listener = self._listener = _bound(self.port)
        listener.listen(128)
        self._spawn(self._accept, listener)

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.refuse()
        try:
            yield
        finally:
            self.accept()

    def __enter__(self) -> Proxy:
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._rules.clear()
        self._well.set()
        self.refuse()
        for thread in self._threads:
            thread.join(10)
        self._holder.close()

    # serving
    def _spawn(self, function: object, argument: socket.socket) -> None:
        thread = threading.Thread(target=function, args=(argument,), daemon=True)  # type: ignore[arg-type]
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(PATIENCE)
            with self._lock:
                late = self._listener is not listener
                if not late:
                    self._connections.add(connection)
            if late:
                _reset(connection)
            else:
                self._spawn(self._connection, connection)

    def _connection(self, connection: socket.socket) -> None:
        reader = Reader(connection)
        try:
            while (head := reader.head()) is not None:
                self._request(connection, reader, head)
        except (Gone, OSError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _request(self, connection: socket.socket, reader: Reader, head: Head) -> None:
        method, target, _ = head.first.split(" ", 2)
        kind = classify(method, target, head)
        rule = self._draw(kind)
        passing = _Passing()
        start = time.monotonic()
        with self._lock:
            watching = list(self._seen)
            self._active += 1
        try:
            self._relay(connection, reader, head, method, rule, passing)
        finally:
            fault = None if rule is None else rule.fault
            end = time.monotonic()
            request = Request(kind, target, passing.sent, passing.received, passing.status, fault, start, end)
            with self._lock:
                self._active -= 1
                for seen in watching:
                    seen.requests.append(request)

    def _draw(self, kind: Kind) -> Rule | None:
        with self._lock:
            for rule in self._rules:
                if kind in rule.kinds and rule.left != 0 and self._chance.random() < rule.probability:
                    if rule.left is not None:
                        rule.left -= 1
                    return rule
        return None

    def _relay(
        self, client: socket.socket, reader: Reader, head: Head, method: str, rule: Rule | None, passing: _Passing
    ) -> None:
        fault = None if rule is None else rule.fault
        if rule is not None and fault is Fault.RESET_BEFORE:
            _strike(rule, client)
        if fault is Fault.HANG:
            self._well.wait(PATIENCE)
        if head.get("expect").lower() == "100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if rule is not None and fault is Fault.ANSWER:
            for piece in reader.body(head):
                passing.sent += len(piece)
            client.sendall(_error(rule, method))
            passing.status = rule.status
            return
        upward = head.chunked or bool(head.length)
        with socket.create_connection(self._target, PATIENCE) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.sendall(head.encode("close", ("expect",)))
            for piece in self._spoil(reader.body(head), head.length, rule if upward else None):
                server.sendall(_framed(piece, head))
                passing.sent += len(piece)
            if head.chunked:
                server.sendall(b"0\r\n\r\n")
            self._answer(client, Reader(server), method, rule, None if upward else rule, passing)

    def _answer(
        self,
        client: socket.socket,
        server: Reader,
        method: str,
        rule: Rule | None,
        spoiling: Rule | None,
        passing: _Passing,
    ) -> None:
        head = server.head()
        while head is not None and head.first.split(" ", 2)[1] == "100":
            head = server.head()
        if head is None:
            raise Broken("the server did not answer")
        if rule is not None and rule.fault is Fault.RESET_AFTER:
            for _ in () if method == "HEAD" else server.body(head, to_end=True):
                pass
            _strike(rule, client)
        passing.status = int(head.first.split(" ", 2)[1])
        bodiless = method == "HEAD" or passing.status in (204, 304)
        ends = not (bodiless or head.chunked or head.length is not None)
        first = "HTTP/1.1 " + head.first.split(" ", 1)[1]
        client.sendall(Head(first, head.headers).encode("close" if ends else "keep-alive"))
        if bodiless:
            return
        for piece in self._spoil(server.body(head, to_end=True), head.length, spoiling):
            client.sendall(_framed(piece, head))
            passing.received += len(piece)
        if head.chunked:
            client.sendall(b"0\r\n\r\n")
        if ends:
            raise Gone

    def _spoil(self, pieces: Iterable[bytes], length: int | None, rule: Rule | None) -> Iterator[bytes]:
        """The body as the fault leaves it.  One of unknown length is spoilt at its beginning."""
        fault = None if rule is None else rule.fault
        middle, at = (length or 0) // 2, 0
        for piece in pieces:
            inside = at <= middle < at + len(piece)
            if fault is Fault.TRUNCATE and inside:
                yield piece[: middle - at]
                raise Gone
            if fault is Fault.CORRUPT and inside:
                spoilt = bytearray(piece)
                spoilt[middle - at] ^= 1
                yield bytes(spoilt)
            elif rule is not None and fault is Fault.SLOW:
                step = max(1, min(PIECE, int(rule.rate / 20)))
                for first in range(0, len(piece), step):
                    slice = piece[first : first + step]
                    self._well.wait(len(slice) / rule.rate)
                    yield slice
            else:
                yield piece
            at += len(piece)


def _strike(rule: Rule, client: socket.socket) -> NoReturn:
    if rule.also is not None:
        rule.also()
    _reset(client)
    raise Gone


def _framed(piece: bytes, head: Head) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) if head.chunked and piece else piece


def _error(rule: Rule, method: str) -> bytes:
    text = f"<?xml version='1.0'?><Error><Code>{rule.code}</Code><Message>by the proxy</Message></Error>".encode()
    head = (
        f"HTTP/1.1 {rule.status} {rule.code}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(text)}\r\nConnection: keep-alive\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else text)


def _bound(port: int) -> socket.socket:
    # Two sockets may have the port: one keeps it, the other, which listens, comes and goes.
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind(("127.0.0.1", port))
    return found


def _end_listening(listener: socket.socket) -> None:
    try:
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept(), which close() would not
    except OSError:
        pass
    listener.close()


def _reset(connection: socket.socket) -> None:
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    except OSError:
        pass
    connection.close()


def _wake(connection: socket.socket) -> None:
    """Ends a connection that its own thread may be waiting on: that thread closes it, with a reset."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
