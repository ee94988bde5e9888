"""A store as a Python program holds it: opened at its first use, owned here or reached through its owner.

All stores of a process live on one loop (`artfs.loop`).  A root that several handles of a process use is opened once; a
store without a root is the process's one memory, and ends with it.  A call is a method of `Service`.  Where the store
is owned here and the method is plain (no coroutine), it runs at once in the caller's thread; else on the loop; else at
the owner.

An owner that dies is noticed by the next call: the store is opened anew, by whoever is first.  A call that the dead
owner may have done is not done again unless it is harmless (`AGAIN`).
"""

from __future__ import annotations

import inspect
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus

from artfs.errors import ArtfsError, InvalidError, UnavailableError
from artfs.loop import LOOP
from artfs.store.opening import memory_store
from artfs.store.service import Caller, Service, connect, free
from artfs.volume.waiting import MustWait, run

CLOSED = "Store is closed"
ROLE = "a Python program"


class _Opened:
    """A store of this process, open on the loop for as long as somebody uses it.  `service`: None at a client."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.users = 0
        self.caller: Caller | None = None
        self.service: Service | None = None
        self._end = anyio.Event()
        self._ended = anyio.Event()

    async def start(self) -> None:
        """Errors: as `connect`."""
        failure: list[Exception] = []
        started = anyio.Event()
        LOOP.start_soon(self._keep, started, failure)
        await started.wait()
        if failure:
            raise failure[0]

    async def _keep(self, started: anyio.Event, failure: list[Exception]) -> None:
        try:
            async with AsyncExitStack() as stack:
                if self.root is None:
                    self.caller = Service(await stack.enter_async_context(memory_store()), ROLE)
                else:
                    self.caller = await stack.enter_async_context(connect(self.root, ROLE))
                self.service = self.caller if isinstance(self.caller, Service) else None
                started.set()
                await self._end.wait()
        except Exception as error:
            failure.append(error)
        finally:
            started.set()
            self._ended.set()

    async def stop(self) -> None:
        self._end.set()
        await self._ended.wait()


_opened: dict[Path | None, _Opened] = {}
_opening: dict[Path | None, anyio.Lock] = {}


class Handle:
    """`root` None: in memory.  May be used from several loops, one after another or at once."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.closed = False
        self._opened: _Opened | None = None

    async def do(self, method: str, /, **arguments: Any) -> Any:
        """Errors: ArtfsError as the method; UnavailableError if the owner has gone, BusyError if it does not answer."""
        opened = self._opened
        if opened is None or self.closed:
            opened = await LOOP.call(self._open)
        service = opened.service
        if service is None:
            return await LOOP.call(self._ask, method, arguments)
        function = getattr(service, method)
        if inspect.iscoroutinefunction(function):
            return await LOOP.call(service.call, method, **arguments)
        try:
            return LOOP.now(function, **arguments)
        except MustWait:
            return await LOOP.call(run, function, **arguments)

    async def close(self) -> None:
        """What was begun through other handles goes on."""
        if not self.closed:
            self.closed = True
            if self._opened is not None:
                await LOOP.call(self._release)

    # on the loop
    async def _open(self) -> _Opened:
        if self.closed:
            raise ArtfsError(CLOSED)
        async with _opening.setdefault(self.root, anyio.Lock()):
            if self._opened is None:
                opened = _opened.get(self.root)
                if opened is None:
                    opened = _Opened(self.root)
                    await opened.start()
                    _opened[self.root] = opened
                opened.users += 1
                self._opened = opened
            return self._opened

    async def _release(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            async with _opening.setdefault(self.root, anyio.Lock()):
                opened.users -= 1
                if not opened.users and self.root is not None and _opened.get(self.root) is opened:
                    del _opened[self.root]
                    await opened.stop()

    async def _ask(self, method: str, arguments: dict[str, Any]) -> Any:
        """At the owner; at the next one if it has gone."""
        while True:
            opened = await self._open()
            assert opened.caller is not None
            try:
                return await opened.caller.call(method, **arguments)
            except UnavailableError as error:
                await self._renew(opened)
                if not (free(method) or "was not begun" in str(error)):
                    raise

    async def _renew(self, opened: _Opened) -> None:
        """Whoever finds its owner gone opens the store anew, for all handles."""
        async with _opening.setdefault(self.root, anyio.Lock()):
            if _opened.get(self.root) is opened:
                del _opened[self.root]
                await opened.stop()
        self._opened = None


