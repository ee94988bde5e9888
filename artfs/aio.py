"""The bridge to clients that know asyncio alone (aioboto3, redis), from whichever loop the caller is on.

Under asyncio a call is awaited in place.  Under trio it runs as a task of one private asyncio loop, which has a thread
of its own, one for the process, and lives until the process ends; a fork's child gets its own.

1. The caller goes on when the asyncio task has ended, not before, cancelled or not: no request outlives the operation
   that made it.  What has to wait while it cleans up does so in a shielded scope of anyio's, as everywhere.
2. A call that was cancelled and ended with a result all the same has that result; the caller is cancelled at its next
   chance.
3. What a client made on one loop belongs to that loop: keep it in an `anyio.lowlevel.RunVar`, read inside the call.

This is the only module that may import asyncio.  It loads trio only under trio.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from typing import Any, ClassVar, TypeVar

import outcome
from sniffio import current_async_library, current_async_library_cvar

from artfs.errors import UnavailableError

T = TypeVar("T")

END_SECONDS = 2.0
"""How long the end of the process waits for clients to be closed."""


class _Private:
    """A loop that runs in its own thread until `end`."""

    current: ClassVar[_Private | None] = None
    making: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self.process = os.getpid()
        self._ready = threading.Event()
        self.loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        # A daemon, as the workers that its tasks start are then too: a request that hangs holds up no exit.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True, name="artfs-aio")
        self._thread.start()
        self._ready.wait()
        atexit.register(self.end)

    async def _run(self) -> None:
        self.loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self.loop.set_exception_handler(_report)
        self._ready.set()
        await self._over.wait()

    def end(self) -> None:
        """Ends the loop's tasks and closes its asynchronous generators, in which clients are kept."""
        if self.process == os.getpid() and self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._over.set)
            self._thread.join(END_SECONDS)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a client's own task met and nobody asked for: whoever made the request has its error already when that is
    a lost connection (aiohttp writes in a task that it may forget)."""
    if not isinstance(context.get("exception"), ConnectionError):
        loop.default_exception_handler(context)


def _private_loop() -> asyncio.AbstractEventLoop:
    found = _Private.current
    if found is None or found.process != os.getpid():
        with _Private.making:
            found = _Private.current
            if found is None or found.process != os.getpid():
                found = _Private.current = _Private()
    return found.loop


def _after_fork() -> None:
    _Private.making = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)


def soon_on_this_loop() -> Callable[[Callable[[], object]], object]:
    """How another thread has a function called on the loop that this is called on, without waiting for it."""
    if current_async_library() == "asyncio":
        return asyncio.get_running_loop().call_soon_threadsafe
    import trio

    return trio.lowlevel.current_trio_token().run_sync_soon


def limit(seconds: float) -> AbstractAsyncContextManager[object]:
    """TimeoutError if the body, inside of a call, takes longer; a tenth of what a scope of anyio's costs."""
    return asyncio.timeout(seconds)


class Bridge:
    """REQUIRES: a client object is made and used only inside functions that `call` runs."""

    async def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """What `function(*args)` returns or raises.  Errors: UnavailableError if the client gave the call up itself."""
        if current_async_library() == "asyncio":
            return await function(*args)
        return await _from_trio(function, args)


async def _from_trio(function: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...]) -> T:
    import trio

    loop, token, caller = _private_loop(), trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()
    context = copy_context()
    context.run(current_async_library_cvar.set, "asyncio")  # anyio.run of the caller has said that this is trio
    job: asyncio.Task[T] | None = None
    raise_cancel: trio.lowlevel.RaiseCancelT | None = None

    def start() -> None:  # on the loop's thread, as are the next two
        nonlocal job
        job = loop.create_task(function(*args), context=context)
        job.add_done_callback(finish)

    def finish(job: asyncio.Task[T]) -> None:
        token.run_sync_soon(trio.lowlevel.reschedule, caller, outcome.capture(job.result))

    def cancel() -> None:
        if job is not None:
            job.cancel()

    def abort(raise_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        nonlocal raise_cancel
        raise_cancel = raise_
        loop.call_soon_threadsafe(cancel)  # after `start`, which was given to the loop before
        return trio.lowlevel.Abort.FAILED  # `finish` wakes the caller, not the cancellation

    loop.call_soon_threadsafe(start)
    try:
        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
    except asyncio.CancelledError as error:
        if raise_cancel is not None:
            raise_cancel()
        raise UnavailableError("the client gave up the call; try again") from error
    return result
