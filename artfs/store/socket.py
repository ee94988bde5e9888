"""The owner's socket, `<root>/owner.sock`: calls on a store from other processes of this host.

Frames (see `artfs.store.frames`) hold a JSON document, and behind it the bytes among the arguments, or those
that are the result.

    →  {"id": n, "call": method, "arguments": {…}, "bytes": {argument: length, …}}
    ←  {"id": n}                                       every `ALIVE` seconds while the call runs
    ←  {"id": n, "result": …} | {"id": n, "bytes": length}
    ←  {"id": n, "error": {"class": …, "message": …, "errno": …, "path": …}}
    ←  {"bye": reason}                                 calls that have no answer yet were not begun

A connection has one call at a time; connections are served at once.  Who may connect: root, and the owner of
the store's directory (SO_PEERCRED).  Whose connection ends loses what it had begun to write; a call that is
running goes on if it changes something.

A client that hears nothing for `SILENCE` seconds gives up: the owner is stopped, or stuck.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import anyio
from anyio import to_thread
from anyio.abc import SocketAttribute, SocketStream, TaskStatus

from artfs.errors import ArtfsError, BusyError, DeniedError, InvalidError, UnavailableError
from artfs.store.frames import Frames, encode, pack_error, unpack_error
from artfs.volume.forking import keep, let_go

log = logging.getLogger(__name__)

NAME = "owner.sock"
PING = "ping"
"""The call that does nothing."""
CREDENTIALS = struct.Struct("3i")
ALIVE = 1.0
SILENCE = 5.0
REQUEST_MAX = 32 << 20
"""Bytes of a request, its document and the rest."""
GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
"""How a connection says that the other end is no more."""
LARGE = 1000
"""Lists from this length on are encoded in a thread."""


class Calls(Protocol):
    """What is served: one for each connection."""

    async def call(self, method: str, /, **arguments: Any) -> Any: ...

    def is_missed(self) -> bool:
        """Whether the connection's end between two calls would be noticed by more than the next one."""

    async def aclose(self) -> None: ...


# the owner's side
class Server:
    """What is being served; `serve` makes it.  `waiting`: for the next call, by connection."""

    def __init__(self) -> None:
        self.connections = 0
        self.accepting = anyio.CancelScope()
        self.waiting: dict[Calls, anyio.CancelScope] = {}
        self.draining = False
        self._idle = anyio.Event()

    async def drain(self, seconds: float) -> None:
        """Take no more connections, end those that nobody misses when they are between two calls, and wait that long
        for the others to end by themselves."""
        self.accepting.cancel()
        self.draining = True
        for calls, scope in self.waiting.items():
            if not calls.is_missed():
                scope.cancel()
        with anyio.move_on_after(seconds):
            while self.connections:
                self._idle = anyio.Event()
                await self._idle.wait()

    async def next(self, frames: Frames, calls: Calls) -> tuple[dict[str, Any], bytes] | None:
        """The next call; None: the connection is to end.  Errors: as `Frames.read`."""
        if self.draining and not calls.is_missed():
            return None
        with anyio.CancelScope() as scope:
            self.waiting[calls] = scope
            try:
                return await frames.read()
            finally:
                del self.waiting[calls]
        return None

    def entered(self) -> None:
        self.connections += 1

    def left(self) -> None:
        self.connections -= 1
        if not self.connections:
            self._idle.set()


async def serve(
    root: Path,
    open_calls: Callable[[], Calls],
    *,
    task_status: TaskStatus[Server] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Until cancelled.  REQUIRES: the store's lock is held.  Errors: OSError if the socket cannot be made."""
    server = Server()
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        allowed = {0, os.fstat(folder).st_uid}
        # The path of a socket has at most 107 bytes.
        place = f"/proc/self/fd/{folder}/{NAME}"
        with suppress(FileNotFoundError):
            os.unlink(NAME, dir_fd=folder)
        listener = await anyio.create_unix_listener(place, mode=0o600)
        listening = keep(listener.extra(SocketAttribute.raw_socket).fileno())
        try:
            async with anyio.create_task_group() as tasks:

                async def handle(stream: SocketStream) -> None:
                    server.entered()
                    fd = keep(_fd(stream))
                    try:
                        async with stream:
                            try:
                                await _converse(stream, allowed, open_calls, server)
                            finally:
                                let_go(fd)
                    except Exception:
                        log.exception("a connection failed")
                    finally:
                        server.left()

                async def accept() -> None:
                    with server.accepting:
                        await listener.serve(handle, tasks)

                task_status.started(server)
                await accept()
                _remove(folder)
                let_go(listening)
                await listener.aclose()
                await anyio.sleep_forever()
        finally:
            _remove(folder)
            let_go(listening)
            with anyio.CancelScope(shield=True):
                await listener.aclose()
    finally:
        os.close(folder)


def _remove(folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=folder)


async def _converse(stream: SocketStream, allowed: set[int], open_calls: Callable[[], Calls], server: Server) -> None:
    frames = Frames(stream, REQUEST_MAX)
    try:
        uid = _peer(stream)[1]
        if uid not in allowed:
            error = DeniedError(
                "this store's owner serves only root and the user that the store's directory belongs to"
            )
            await stream.send(encode({"id": 0, "error": pack_error(error)}))
            return
        calls = open_calls()
        try:
            while (request := await server.next(frames, calls)) is not None:
                await _answer(stream, calls, *request)
            await _say_goodbye(stream)
        except InvalidError as error:  # what follows cannot be told apart
            await stream.send(encode({"id": 0, "error": pack_error(error)}))
        except anyio.get_cancelled_exc_class():
            await _say_goodbye(stream)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await calls.aclose()
    except GONE:
        return


async def _say_goodbye(stream: SocketStream) -> None:
    with anyio.move_on_after(ALIVE, shield=True), suppress(*GONE):
        await stream.send(encode({"bye": f"process {os.getpid()} owns the store no longer"}))


async def _answer(stream: SocketStream, calls: Calls, document: dict[str, Any], data: bytes) -> None:
    """Run a call and send what it gives.  Whose caller has gone is cancelled, if it may be."""
    id = document.get("id")
    sending = anyio.Lock()
    alive = anyio.CancelScope(shield=True)
    sent = False

    async def stay_alive() -> None:
        with alive, suppress(*GONE):
            while True:
                await anyio.sleep(ALIVE)
                async with sending:
                    await stream.send(encode({"id": id}))
        if not alive.cancel_called:
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stay_alive)
        try:
            reply = await _run(calls, id, document, data)
        finally:
            alive.cancel()
        with anyio.move_on_after(SILENCE, shield=True), suppress(*GONE):
            async with sending:
                await stream.send(reply)
                sent = True
    if not sent:
        raise anyio.BrokenResourceError


async def _run(calls: Calls, id: Any, document: dict[str, Any], data: bytes) -> bytes:
    try:
        method, arguments = _arguments(document, data)
        result = None if method == PING else await calls.call(method, **arguments)
    except ArtfsError as error:
        return encode({"id": id, "error": pack_error(error)})
    except Exception as error:
        log.exception("the call %r failed", document.get("call"))
        failure = ArtfsError(f"the store's owner failed ({type(error).__name__}: {error}); its log says more")
        return encode({"id": id, "error": pack_error(failure)})
    if isinstance(result, bytes):
        return encode({"id": id, "bytes": len(result)}, result)
    answer = {"id": id, "result": result}
    if isinstance(result, list) and len(result) >= LARGE:
        return await to_thread.run_sync(encode, answer)
    return encode(answer)


def _arguments(document: dict[str, Any], data: bytes) -> tuple[str, dict[str, Any]]:
    """Errors: InvalidError."""
    method, arguments, lengths = document.get("call"), document.get("arguments"), document.get("bytes", {})
    if not isinstance(method, str) or not isinstance(arguments, dict) or not isinstance(lengths, dict):
        raise InvalidError("a message that is no call")
    at = 0
    for name, length in lengths.items():
        if not isinstance(length, int) or not 0 <= length <= len(data) - at:
            raise InvalidError("a message whose bytes are not all there")
        arguments[name] = data[at : at + length]
        at += length
    return method, arguments


def _fd(stream: SocketStream) -> int:
    return int(stream.extra(SocketAttribute.raw_socket).fileno())


def _peer(stream: SocketStream) -> tuple[int, int, int]:
    """(pid, uid, gid) of the other end."""
    raw = stream.extra(SocketAttribute.raw_socket)
    option = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, uid, gid = CREDENTIALS.unpack(option)
    return pid, uid, gid


# the client's side
class Client:
    """A `Caller` of another process.  Calls of several tasks wait for each other.  `lost`: the owner has gone, or said
    nothing, or a call was cancelled: connect again."""

    def __init__(self, root: Path, stream: SocketStream) -> None:
        self.root = root
        self.pid = _peer(stream)[0]
        self._stream = stream
        self._fd = keep(_fd(stream))
        self._frames = Frames(stream)
        self._lock = anyio.Lock()
        self._count = 0
        self.lost = False

    @staticmethod
    async def connect(root: Path) -> Client | None:
        """A connection to the owner, which has answered; None if nobody serves the socket.
        Errors: BusyError, DeniedError, UnavailableError."""
        try:
            folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            with anyio.fail_after(SILENCE):
                stream = await anyio.connect_unix(f"/proc/self/fd/{folder}/{NAME}")
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except PermissionError as error:
            raise DeniedError(f"{root} belongs to another user; act as that user, or as root") from error
        except TimeoutError as error:
            raise BusyError(f"the store {root} is in use by a process that does not answer") from error
        finally:
            os.close(folder)
        client = Client(root, stream)
        try:
            await client.call(PING)
        except UnavailableError:  # it ended just now
            await client.aclose()
            return None
        except BaseException:
            with anyio.CancelScope(shield=True):
                await client.aclose()
            raise
        return client

    async def call(self, method: str, /, **arguments: Any) -> Any:
        """Errors: those of the call; UnavailableError if the owner has gone, BusyError if it does not
        answer."""
        async with self._lock:
            if self.lost:
                raise UnavailableError(
                    f"the connection to process {self.pid} is lost; the call was not begun, connect again"
                )
            message = self._message(method, arguments)
            self.lost = True  # until the answer is here, so that a cancelled call leaves no half of one
            result = await self._ask(message)
        if isinstance(result, ArtfsError):
            raise result
        return result

    def _message(self, method: str, arguments: dict[str, Any]) -> bytes:
        """Errors: InvalidError if it is too long."""
        self._count += 1
        plain = {name: value for name, value in arguments.items() if not isinstance(value, bytes | memoryview)}
        data = {name: value for name, value in arguments.items() if isinstance(value, bytes | memoryview)}
        document = {
            "id": self._count,
            "call": method,
            "arguments": plain,
            "bytes": {name: len(value) for name, value in data.items()},
        }
        message = encode(document, b"".join(data.values()))
        if len(message) > REQUEST_MAX:
            raise InvalidError(f"a call of {len(message)} bytes is too long; {REQUEST_MAX} are allowed")
        return message

    async def _ask(self, message: bytes) -> Any:
        """The result, or the error as a value."""
        try:
            with anyio.fail_after(SILENCE), suppress(*GONE):  # what it last said can still be read
                await self._stream.send(message)
            while True:
                reply, rest = await self._frames.read(SILENCE)
                if "error" in reply:
                    self.lost = reply["id"] != self._count
                    return unpack_error(reply["error"])
                if "result" in reply or "bytes" in reply:
                    self.lost = False
                    return rest if "bytes" in reply else reply["result"]
                if "bye" in reply:
                    raise UnavailableError(f"{reply['bye']}; the call was not begun, try again")
        except TimeoutError as error:
            raise BusyError(
                f"the store {self.root} is in use by process {self.pid}, which has not answered for "
                f"{SILENCE:g} s; let it go on (is it stopped?), or end it"
            ) from error
        except GONE as error:
            raise UnavailableError(
                f"process {self.pid}, which owned the store {self.root}, has gone; whether the call was done "
                "is not known, try again"
            ) from error

    async def aclose(self) -> None:
        let_go(self._fd)
        await self._stream.aclose()
