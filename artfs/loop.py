"""The loop that an API process's stores run on: a thread of its own, and the way in from any other thread or loop.

Stores belong to this loop: commits, uploads, sockets and whatever waits run there, so that a caller whose loop is
blocked blocks nobody.  What does not wait needs no hop: a plain function of a store may be called from any thread with
`Loop.now`, under a lock that the loop itself holds while one of its tasks runs a step.  So such a call is atomic for
the loop's tasks, as they are for each other, and costs what the function costs.

A function that is called by `now` must not touch the loop (no events, no tasks): it raises `MustWait` where it would
have to wait, and is run again by the loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, ParamSpec, TypeVar

import anyio
import sniffio
import trio

P = ParamSpec("P")
T = TypeVar("T")


class _Lock(trio.abc.Instrument):
    """Held while a task of the loop runs a step."""

    def __init__(self, gate: threading.Lock, lock: threading.Lock) -> None:
        self._gate = gate
        self._lock = lock

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        with self._gate:
            self._lock.acquire()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._lock.release()


class Job(Generic[T]):
    """What goes on in another thread, for whoever waits on asyncio or trio; `cancel` asks it to end."""

    def __init__(self, done: Future[T], cancel: Callable[[], object]) -> None:
        self.done = done
        self.cancel = cancel

    async def result(self) -> T:
        """Cancelling who waits cancels it, and waits until it has ended."""
        if self.done.done() and not self.done.cancelled():
            return self.done.result()
        return await _wait(self.done, self.cancel)

    async def drop(self) -> None:
        """Cancel it, and wait until it has ended: nobody wants to know how."""
        self.cancel()
        ended: Future[None] = Future()
        self.done.add_done_callback(lambda _: ended.set_result(None))
        with anyio.CancelScope(shield=True):
            await _wait(ended, bool)


class Loop:
    """One for a process, started by its first use.  A forked child begins with none."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the loop: in a child, where its thread is not."""
        self.gate = threading.Lock()
        self.lock = threading.Lock()
        self._thread = 0
        self._token: trio.lowlevel.TrioToken | None = None
        self._tasks: trio.Nursery | None = None
        self._starting = threading.Lock()

    # without waiting
    def now(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a plain function of a store here and now.  Errors: MustWait, and what it raises."""
        with self.gate:  # whoever waits for the lock holds the gate: calls in a row leave the loop its turn
            self.lock.acquire()
        try:
            return function(*args, **kwargs)
        finally:
            self.lock.release()

    # waiting
    def is_here(self) -> bool:
        """Whether this is the loop's thread."""
        return threading.get_ident() == self._thread

    async def call(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Await `function` on the loop, from whatever loop this is.  Cancelling the caller cancels it, and waits until
        it has ended."""
        if self.is_here():
            return await function(*args, **kwargs)
        return await self.begin(function, *args, **kwargs).result()

    def begin(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> Job[T]:
        """The same, while the caller goes on."""
        self._start()
        scope = trio.CancelScope()
        done: Future[T] = Future()
        assert self._token is not None
        self._token.run_sync_soon(self._begin, function, args, kwargs, scope, done)

        def cancel() -> None:
            assert self._token is not None
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(scope.cancel)

        return Job(done, cancel)

    def block(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Run `function` on the loop while this thread, which is another, waits."""
        self._start()
        if self.is_here():
            raise RuntimeError("the stores' loop cannot wait for itself")
        scope = trio.CancelScope()
        done: Future[T] = Future()
        assert self._token is not None
        self._token.run_sync_soon(self._begin, function, args, kwargs, scope, done)
        try:
            return done.result()
        except KeyboardInterrupt:
            self._token.run_sync_soon(scope.cancel)
            raise

    def _begin(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], scope: trio.CancelScope, done: Future[Any]
    ) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(self._run, function, args, kwargs, scope, done)

    async def _run(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], scope: trio.CancelScope, done: Future[Any]
    ) -> None:
        try:
            with scope:
                done.set_result(await function(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        finally:
            if not done.done():
                done.cancel()

    # the thread
    def _start(self) -> None:
        if self._thread:
            return
        with self._starting:
            if self._thread:
                return
            ready = threading.Event()
            thread = threading.Thread(target=self._serve, args=(ready,), name="artfs-loop", daemon=True)
            thread.start()
            ready.wait()
            assert thread.ident is not None
            self._thread = thread.ident

    def _serve(self, ready: threading.Event) -> None:
        trio.run(self._main, ready, instruments=[_Lock(self.gate, self.lock)])

    async def _main(self, ready: threading.Event) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._tasks:
            ready.set()
            await trio.sleep_forever()

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """A task of the loop's own; it must not raise."""
        self._start()
        assert self._token is not None and self._tasks is not None
        self._token.run_sync_soon(self._tasks.start_soon, function, *args)

    def soon(self, function: Callable[[], object]) -> None:
        """Call a plain function on the loop, from any thread."""
        self._start()
        assert self._token is not None
        self._token.run_sync_soon(function)


async def _wait(done: Future[T], cancel: Callable[[], object]) -> T:
    """The future's result, on asyncio or trio."""
    if sniffio.current_async_library() == "trio":
        return await _wait_on_trio(done, cancel)
    job = asyncio.wrap_future(done)
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            result = await asyncio.shield(job)
        except asyncio.CancelledError as error:
            # The first one says whose cancellation it is.
            cancelled = cancelled or error
            if job.cancelled():
                raise cancelled from None
            cancel()
            continue
        if cancelled is not None:
            raise cancelled
        return result


async def _wait_on_trio(done: Future[T], cancel: Callable[[], object]) -> T:
    task = trio.lowlevel.current_task()
    token = trio.lowlevel.current_trio_token()
    raise_cancel: Callable[[], Any] | None = None

    def finished(_: Future[T]) -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(trio.lowlevel.reschedule, task)

    def abort(raise_: Callable[[], Any]) -> trio.lowlevel.Abort:
        nonlocal raise_cancel
        raise_cancel = raise_
        cancel()
        return trio.lowlevel.Abort.FAILED

    done.add_done_callback(finished)
    await trio.lowlevel.wait_task_rescheduled(abort)
    if done.cancelled() and raise_cancel is not None:
        raise_cancel()
    return done.result()


LOOP = Loop()
os.register_at_fork(after_in_child=LOOP.reset)
