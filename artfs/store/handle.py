"""A store as a Python program holds it: opened at its first use, owned here or reached through its owner.

All stores of a process live on one loop (`artfs.loop`).  A root that several handles of a process use is opened once; a
store without a root is the process's one memory, and ends with it.  A call is a method of `Service`:

* a plain one of a store that is owned here runs at once, in the caller's thread, under the loop's lock;
* else it runs on the loop;
* of a store that another process owns, there.

An owner that has died is noticed by the next call: the store is opened anew, by whoever is first, as owner or client.
What the dead owner may have done is not done again, unless it is harmless (`AGAIN`); what it acknowledged is there.

An owner that nothing has been asked of for `IDLE` seconds lets the store go when nothing is left to do, and at once
when somebody asks for it (`let_go`), a mount for instance; the next call opens it again.  The last handle of an owner
that is closed waits for uploads, while they get on and nobody asks for the store.

A child of a fork has none of its parent's stores: handles of before raise there, new ones are its own.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel

from artfs.errors import ArtfsError, BusyError, ExistsError, NotFoundError, UnavailableError
from artfs.loop import LOOP
from artfs.settings import create_store
from artfs.store.connecting import Caller, connect
from artfs.store.one_file import recovered
from artfs.store.opening import memory_store
from artfs.store.service import Service
from artfs.store.socket import Client
from artfs.volume.waiting import MustWait

log = logging.getLogger(__name__)
_turns = threading.local()

CLOSED = "Store is closed"
FORKED = "stores do not outlive a fork: open them anew in the child"
ROLE = "a Python program"
IDLE = 1.0
TURN = 0.005
"""Seconds that calls which wait for nothing may keep the caller's loop."""
TRIES = 20
"""Owners in a row that may die during one call."""
HARMLESS = """api_ping api_info api_list api_read api_checkpoints api_diff api_session_info api_session_validate
    api_write api_look api_names api_find api_batch_read api_stats"""
AGAIN = frozenset(HARMLESS.split())
"""Calls that may be done twice."""
NOT_BEGUN = "was not begun"
OPENING = {
    "api_read": "api_read_end",
    "api_read_begin": "api_read_end",
    "api_write_begin": "api_write_abort",
    "api_artifact_read": "api_artifact_abort",
    "api_artifact_open": "api_artifact_abort",
    "api_artifact_begin": "api_artifact_abort",
    "api_artifact_rewrite": "api_artifact_abort",
}
"""Calls that may open something, and how it is let go."""


@cache
def _is_plain(method: str) -> bool:
    function = getattr(Service, method, None)
    return function is not None and not inspect.iscoroutinefunction(function)


class Gone(Exception):
    """The store is not open here any more: ask again."""


class _Opened:
    """A store, open on the loop for as long as somebody uses it.  `service`: None at a client, and at the end."""

    def __init__(self, root: Path | None, config: str) -> None:
        self.root = root
        self.config = config
        self.pid = os.getpid()
        self.users = 0
        self.running = 0
        self.used = monotonic()
        self.caller: Caller | None = None
        self.service: Service | None = None
        self.ending = False
        self._uploading: anyio.CancelScope | None = None
        self._end = anyio.Event()
        self._ended = anyio.Event()

    async def start(self) -> None:
        """Errors: as `connect`."""
        failure: list[BaseException] = []
        started = anyio.Event()
        LOOP.start_soon(self._keep, started, failure)
        await started.wait()
        if failure:
            raise failure[0]

    async def _keep(self, started: anyio.Event, failure: list[BaseException]) -> None:
        try:
            async with AsyncExitStack() as stack:
                self.caller = await self._open(stack)
                if isinstance(self.caller, Service):
                    self.service = self.caller
                    self.service.store.on_asked = self._asked
                started.set()
                await self._end.wait()
                await self._keep_in_file()
        except Exception as error:
            failure.append(error)
        finally:
            self.service = None
            started.set()
            self._ended.set()

    async def upload(self) -> None:
        """What waits for its provider goes there, as long as that gets on and nobody else wants the store; else the
        next owner uploads it."""
        service = self.service
        if service is None or not service.store.shard.remote.homes:
            return
        self.running += 1
        try:
            with anyio.move_on_after(service.store.settings.drain_limit) as self._uploading:
                await service.store.sync()
        except (ArtfsError, OSError) as error:
            log.warning("%s: what waits is on this disk, and goes on when the store is opened: %s", self.root, error)
        finally:
            self._uploading = None
            self.running -= 1

    async def _keep_in_file(self) -> None:
        """A store in one file is whole there when it is closed."""
        if isinstance(self.caller, Service) and self.config.startswith("sqlite:"):
            await self.caller.store.drain()

    async def _open(self, stack: AsyncExitStack) -> Caller:
        if self.root is None:
            return Service(await stack.enter_async_context(memory_store()), ROLE)
        try:
            try:
                return await stack.enter_async_context(connect(self.root, ROLE))
            except NotFoundError:
                if not await recovered(self.root, self.config):
                    with suppress(ExistsError):  # whoever is first makes it
                        create_store(self.root, provider=self.config)
            return await stack.enter_async_context(connect(self.root, ROLE))
        except ArtfsError:
            raise
        except OSError as error:
            raise UnavailableError(f"no store can be at {self.root}: {error}; choose another root") from error

    def plain(self, method: str, arguments: dict[str, Any]) -> Any:
        """REQUIRES: on the loop, or under its lock.  Errors: Gone, MustWait, as the method."""
        service = self.service
        if service is None:
            raise Gone
        self.used = monotonic()
        return getattr(service, method)(**arguments)

    async def stop(self) -> None:
        self.service = None
        self._end.set()
        await self._ended.wait()

    # letting go
    def _asked(self) -> bool:
        """Somebody else wants the store: whether it may be free soon."""
        service = self.service
        if self._uploading is not None:
            self._uploading.cancel()
        if service is not None and not self.ending and not service.pending():
            self.ending = True
            LOOP.start_soon(_end, self, True)
        return True

    def is_idle(self) -> bool:
        service = self.service
        if service is None or self.root is None or self.running or monotonic() - self.used < IDLE:
            return False
        return service.is_idle()


_opened: dict[Path | None, _Opened] = {}
_opening: dict[Path | None, anyio.Lock] = {}


def _in_child() -> None:
    _opened.clear()
    _opening.clear()


os.register_at_fork(after_in_child=_in_child)


def _lock(root: Path | None) -> anyio.Lock:
    return _opening.setdefault(root, anyio.Lock())


async def _end(opened: _Opened, wanted: bool = False) -> None:
    """Let the store go once its calls have ended; those that come meanwhile open it again.  If it is still `wanted`, it
    stays when they left something open."""
    async with _lock(opened.root):
        here = _opened.get(opened.root) is opened
        if here:
            del _opened[opened.root]
        while opened.running:
            await anyio.sleep(0.005)
        if here and wanted and opened.service is not None and opened.service.pending():
            _opened[opened.root] = opened
            opened.ending = False
            return
        await opened.stop()


async def _watch(opened: _Opened) -> None:
    """End it when it is idle."""
    while opened.service is not None:
        await anyio.sleep(IDLE / 4)
        if opened.is_idle() and _opened.get(opened.root) is opened:
            await _end(opened, True)


async def _turn() -> None:
    """Let others have the caller's loop, now and then, before a call that waits for nothing."""
    now = monotonic()
    if now - getattr(_turns, "last", 0.0) > TURN:
        await anyio.lowlevel.checkpoint()
        _turns.last = monotonic()


class Handle:
    """`root` None: in memory; `config`: URL of the provider of a store that is made new, "" for its own directory.
    May be used from several loops, one after another or at once."""

    def __init__(self, root: Path | None, config: str = "") -> None:
        self.root = root
        self.config = config
        self.closed = False
        self._opened: _Opened | None = None

    async def do(self, method: str, /, **arguments: Any) -> Any:
        """Errors: ArtfsError as the method; UnavailableError if the owner has gone, BusyError if it does not answer."""
        opened = self._opened
        if opened is not None and opened.service is not None and _is_plain(method) and not self.closed:
            await _turn()
            if opened.pid != os.getpid():
                raise UnavailableError(FORKED)
            try:
                return LOOP.now(opened.plain, method, arguments)
            except MustWait as must:
                if must.final:
                    return await self._wait(method, self._finish, opened, must.wait)
            except Gone:
                pass
        return await self._wait(method, self._do, method, arguments)

    async def _wait(self, method: str, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Its result, from the loop; whoever is cancelled meanwhile leaves nothing open."""
        given: list[Any] = []

        async def work() -> Any:
            given.append(await function(*arguments))
            return given[0]

        try:
            return await LOOP.call(work)
        except BaseException:
            if given and method in OPENING:
                handle = given[0].get("handle") if isinstance(given[0], dict) else given[0]
                if isinstance(handle, int):
                    LOOP.start_soon(self._let_go, OPENING[method], handle)
            raise

    async def _let_go(self, method: str, handle: int) -> None:
        with suppress(ArtfsError):
            await self._do(method, {"handle": handle})

    def do_now(self, method: str, /, **arguments: Any) -> Any:
        """The same from a plain function: this thread waits.  REQUIRES: not on the stores' loop."""
        opened = self._opened
        if opened is not None and opened.service is not None and _is_plain(method) and not self.closed:
            if opened.pid != os.getpid():
                raise UnavailableError(FORKED)
            try:
                return LOOP.now(opened.plain, method, arguments)
            except MustWait as must:
                if must.final:
                    return LOOP.block(self._finish, opened, must.wait)
            except Gone:
                pass
        return LOOP.block(self._do, method, arguments)

    async def close(self) -> None:
        """What was begun through other handles goes on.  In memory everything stays, for other handles.  The last one
        of an owner waits for uploads, as `_Opened.upload` says; cancelling it leaves them to the next owner."""
        if not self.closed:
            self.closed = True
            if self._opened is not None and self._opened.pid == os.getpid():
                await LOOP.call(self._release)

    # on the loop
    async def _finish(self, opened: _Opened, wait: Callable[[], Any]) -> Any:
        opened.running += 1
        try:
            with anyio.CancelScope(shield=True):
                return await wait()
        finally:
            opened.running -= 1

    async def _do(self, method: str, arguments: dict[str, Any]) -> Any:
        for _ in range(TRIES):
            opened = await self._open()
            opened.used = monotonic()
            caller = opened.caller
            assert isinstance(caller, Service | Client)
            opened.running += 1
            try:
                return await caller.call(method, **arguments)
            except (UnavailableError, BusyError) as error:
                if isinstance(caller, Service) or not caller.lost:
                    raise
                await self._renew(opened)
                if isinstance(error, BusyError):
                    raise
                if method not in AGAIN and NOT_BEGUN not in str(error):
                    raise
            finally:
                opened.running -= 1
                opened.used = monotonic()
        raise UnavailableError(f"the store {self.root} has no owner that stays: try again")

    async def _open(self) -> _Opened:
        """The open store.  No await comes between this and the caller's next step."""
        while True:
            if self.closed:
                raise ArtfsError(CLOSED)
            current = self._opened
            if current is not None:
                if current.pid != os.getpid():
                    raise UnavailableError(FORKED)
                if _opened.get(self.root) is current:
                    return current
            async with _lock(self.root):
                if not self.closed:
                    await self._enter()

    async def _enter(self) -> None:
        opened = _opened.get(self.root)
        if opened is None:
            opened = _Opened(self.root, self.config)
            with anyio.CancelScope(shield=True):
                await opened.start()
            _opened[self.root] = opened
            if opened.service is not None and self.root is not None:
                LOOP.start_soon(_watch, opened)
        if self._opened is not opened:
            opened.users += 1
            self._opened = opened

    async def _release(self) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            return
        try:
            if opened.users == 1:
                await opened.upload()
        finally:
            with anyio.CancelScope(shield=True):
                opened.users -= 1
                if not opened.users and self.root is not None:
                    await _end(opened)

    async def _renew(self, opened: _Opened) -> None:
        """Whoever finds its owner gone opens the store anew, for all handles."""
        with anyio.CancelScope(shield=True):
            async with _lock(self.root):
                if _opened.get(self.root) is opened:
                    del _opened[self.root]
                    await opened.stop()
