"""The owner's socket, `<root>/owner.sock`: calls on a store from other processes of this host.

A frame is two lengths (32 bits each, little-endian), a JSON document, and bytes.  Bytes among the arguments or as the
result travel behind the document, which says where.

    →  {"id": n, "call": method, "arguments": {…}, "bytes": {argument: length, …}}
    ←  {"id": n}                                       every `ALIVE` seconds while the call runs
    ←  {"id": n, "result": …} | {"id": n, "bytes": length} | {"id": n, "error": {"class", "message", "errno", "path"}}
    ←  {"bye": reason}                                 calls that have no answer yet were not begun

A connection has one call at a time; connections are served at once.  Who may connect: root, and the owner of the
store's directory (SO_PEERCRED).  Whose connection ends loses what it had begun to write; a call that is running goes on.

A client that hears nothing for `SILENCE` seconds gives up: the owner is stopped, or stuck.
"""

from __future__ import annotations

import json
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

from artfs.errors import ArtfsError, BusyError, DeniedError, FsError, InvalidError, UnavailableError
from artfs.vfs import PathError

log = logging.getLogger(__name__)

NAME = "owner.sock"
LENGTHS = struct.Struct("<II")
CREDENTIALS = struct.Struct("3i")
ALIVE = 1.0
SILENCE = 5.0
REQUEST_MAX = 32 << 20
"""Bytes of a request, its document and the rest."""
RECEIVE = 1 << 18
LARGE = 1000
"""Lists from this length on are encoded in a thread."""


class Calls(Protocol):
    """What is served: one for each connection."""

    async def call(self, method: str, /, **arguments: Any) -> Any: ...

    async def aclose(self) -> None: ...


# frames
def encode(document: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    return LENGTHS.pack(len(text), len(data)) + text + data


class Frames:
    """Frames of a stream.  `limit`: the longest that is read."""

    def __init__(self, stream: SocketStream, limit: int = 1 << 33) -> None:
        self.stream = stream
        self.limit = limit
        self._buffer = bytearray()

    async def read(self, silence: float | None = None) -> tuple[dict[str, Any], bytes]:
        """Errors: anyio.EndOfStream, anyio.BrokenResourceError; InvalidError for what is no frame; TimeoutError after
        `silence` seconds without a byte."""
        await self._fill(LENGTHS.size, silence)
        first, second = LENGTHS.unpack_from(self._buffer)
        if first + second > self.limit:
            raise InvalidError(f"a message of {first + second} bytes is too long; {self.limit} are allowed")
        end = LENGTHS.size + first + second
        await self._fill(end, silence)
        text = bytes(self._buffer[LENGTHS.size : LENGTHS.size + first])
        data = bytes(self._buffer[LENGTHS.size + first : end])
        del self._buffer[:end]
        try:
            document = json.loads(text)
        except ValueError:
            raise InvalidError("a message that is no JSON") from None
        if not isinstance(document, dict):
            raise InvalidError("a message that is no JSON object")
        return document, data

    async def _fill(self, size: int, silence: float | None) -> None:
        while len(self._buffer) < size:
            with anyio.fail_after(silence):
                self._buffer += await self.stream.receive(RECEIVE)


def pack_error(error: ArtfsError) -> dict[str, Any]:
    return {
        "class": type(error).__name__,
        "message": str(error),
        "errno": error.errno,
        "path": getattr(error, "path", None),
    }


def unpack_error(document: dict[str, Any]) -> ArtfsError:
    """The error as it was raised at the other end; of a class that is not known here, an ArtfsError."""
    cls = _classes(ArtfsError).get(str(document.get("class")), ArtfsError)
    if issubclass(cls, PathError):
        return PathError(int(document["errno"]), str(document["path"]))
    if issubclass(cls, FsError):
        return FsError(int(document["errno"]))
    error = cls(str(document.get("message")))
    error.errno = int(document.get("errno", error.errno))
    return error


def _classes(cls: type[ArtfsError]) -> dict[str, type[ArtfsError]]:
    found = {cls.__name__: cls}
    for below in cls.__subclasses__():
        found |= _classes(below)
    return found


# the owner's side
class Server:
    """What is being served; `serve` makes it."""

    def __init__(self) -> None:
        self.connections = 0
        self.accepting = anyio.CancelScope()
        self._idle = anyio.Event()

    async def drain(self, seconds: float) -> None:
        """Take no more connections, and wait that long for those that there are to end by themselves."""
        self.accepting.cancel()
        with anyio.move_on_after(seconds):
            while self.connections:
                self._idle = anyio.Event()
                await self._idle.wait()

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
        try:
            async with anyio.create_task_group() as tasks:

                async def handle(stream: SocketStream) -> None:
                    server.entered()
                    try:
                        async with stream:
                            await _converse(stream, allowed, open_calls)
                    finally:
                        server.left()

                async def accept() -> None:
                    with server.accepting:
                        await listener.serve(handle, tasks)

                task_status.started(server)
                await accept()
                _remove(folder)
                await anyio.sleep_forever()
        finally:
            _remove(folder)
            with anyio.CancelScope(shield=True):
                await listener.aclose()
    finally:
        os.close(folder)


def _remove(folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=folder)


async def _converse(stream: SocketStream, allowed: set[int], open_calls: Callable[[], Calls]) -> None:
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
            while True:
                document, data = await frames.read()
                await _answer(stream, calls, document, data)
        except InvalidError as error:  # what follows cannot be told apart
            await stream.send(encode({"id": 0, "error": pack_error(error)}))
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True), anyio.move_on_after(ALIVE):
                await stream.send(encode({"bye": f"process {os.getpid()} owns the store no longer"}))
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await calls.aclose()
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


async def _answer(stream: SocketStream, calls: Calls, document: dict[str, Any], data: bytes) -> None:
    """Run a call to its end, whatever becomes of the connection meanwhile, and send what it gives."""
    id = document.get("id")
    reply = b""

    async def stay_alive() -> None:
        while True:
            await anyio.sleep(ALIVE)
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await stream.send(encode({"id": id}))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stay_alive)
        reply = await _run(calls, id, document, data)
        tasks.cancel_scope.cancel()
    await stream.send(reply)


async def _run(calls: Calls, id: Any, document: dict[str, Any], data: bytes) -> bytes:
    try:
        method, arguments = _arguments(document, data)
        result = await calls.call(method, **arguments)
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


def _peer(stream: SocketStream) -> tuple[int, int, int]:
    """(pid, uid, gid) of the other end."""
    raw = stream.extra(SocketAttribute.raw_socket)
    option = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, uid, gid = CREDENTIALS.unpack(option)
    return pid, uid, gid


# the client's side
class Client:
    """A `Caller` of another process.  Calls of several tasks wait for each other."""

    def __init__(self, root: Path, stream: SocketStream) -> None:
        self.root = root
        self.pid = _peer(stream)[0]
        self._stream = stream
        self._frames = Frames(stream)
        self._lock = anyio.Lock()
        self._count = 0
        self._lost = False

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
            await client.call("ping")
        except UnavailableError:  # it ended just now
            await client.aclose()
            return None
        except BaseException:
            with anyio.CancelScope(shield=True):
                await client.aclose()
            raise
        return client

    async def call(self, method: str, /, **arguments: Any) -> Any:
        """Errors: those of the call; UnavailableError if the owner has gone, BusyError if it does not answer."""
        async with self._lock:
            if self._lost:
                raise UnavailableError(f"the connection to process {self.pid} is lost; connect again")
            self._lost = True  # until the answer is here, so that a cancelled call leaves no half of one
            result = await self._call(method, arguments)
        if isinstance(result, ArtfsError):
            raise result
        return result

    async def _call(self, method: str, arguments: dict[str, Any]) -> Any:
        self._count += 1
        plain = {name: value for name, value in arguments.items() if not isinstance(value, bytes)}
        data = {name: value for name, value in arguments.items() if isinstance(value, bytes)}
        document = {
            "id": self._count,
            "call": method,
            "arguments": plain,
            "bytes": {name: len(value) for name, value in data.items()},
        }
        try:
            with anyio.fail_after(SILENCE):
                await self._stream.send(encode(document, b"".join(data.values())))
            while True:
                reply, rest = await self._frames.read(SILENCE)
                if "error" in reply:
                    self._lost = reply["id"] != self._count
                    return unpack_error(reply["error"])
                if "result" in reply or "bytes" in reply:
                    self._lost = False
                    return rest if "bytes" in reply else reply["result"]
                if "bye" in reply:
                    raise UnavailableError(f"{reply['bye']}; the call was not begun, try again")
        except TimeoutError as error:
            raise BusyError(
                f"the store {self.root} is in use by process {self.pid}, which has not answered for {SILENCE:g} s; "
                "let it go on (is it stopped?), or end it"
            ) from error
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise UnavailableError(
                f"process {self.pid}, which owned the store {self.root}, has gone; whether the call was done is not known, "
                "try again"
            ) from error

    async def aclose(self) -> None:
        await self._stream.aclose()
