"""Cancel a call at its k-th step, wherever that is: in the caller's own loop or on the stores'.

A step is what a coroutine does up to where it waits (its `yield` to the loop).  `cancelled_at` counts those of the
caller and of what it runs on the stores' loop; there, the loop stands still until the caller's cancellation has come
back to it, so that the same k means the same place each time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import pytest
import sniffio
import trio

import artfs.loop as loops

T = TypeVar("T")
BACK = 0.2
"""Seconds for a cancellation to come back; it does not where the caller is shielded."""


class Stepped:
    """Awaiting this awaits a coroutine; `step` is called where it waits."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], step: Callable[[], None]) -> None:
        self.coroutine = coroutine
        self.step = step

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[Any], Any] = self.coroutine.send
        value: Any = None
        while True:
            try:
                waiting = resume(value)
            except StopIteration as end:
                return end.value
            self.step()
            try:
                value = yield waiting
                resume = self.coroutine.send
            except BaseException as error:
                resume, value = self.coroutine.throw, error


class Cancelling:
    """`k`: the step at which `scope` is cancelled; `steps`: how many there were."""

    def __init__(self) -> None:
        self.k = 0
        self.steps = 0
        self.scope: anyio.CancelScope | None = None
        self._ask: Callable[[Callable[[], object]], object] = lambda _: None
        self._back = threading.Event()

    async def cancelled_at(self, k: int, function: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """What `function` gives; None if it was cancelled, in its k-th step."""
        self.k, self.steps = k, 0
        if sniffio.current_async_library() == "trio":
            self._ask = trio.lowlevel.current_trio_token().run_sync_soon
        else:
            self._ask = asyncio.get_running_loop().call_soon_threadsafe
        with anyio.CancelScope() as self.scope:
            try:
                result: T = await Stepped(function(), self._here)
                return result
            finally:
                self.k = 0
        return None

    @property
    def cancelled(self) -> bool:
        return self.scope is not None and self.scope.cancel_called

    def _here(self) -> None:
        self.steps += 1
        if self.steps == self.k and self.scope is not None:
            self.scope.cancel()

    # on the stores' loop
    def there(self) -> None:
        self.steps += 1
        if self.steps == self.k and self.scope is not None:
            self._back.clear()
            self._ask(self.scope.cancel)
            self._back.wait(BACK)

    def came_back(self) -> None:
        self._back.set()


@contextmanager
def cancelling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cancelling]:
    """While it lasts, calls on the stores' loop are counted."""
    counting = Cancelling()
    call, wait = loops.Loop.call, loops._wait

    async def counted(self: loops.Loop, function: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        async def run(*args: Any, **kwargs: Any) -> Any:
            return await Stepped(function(*args, **kwargs), counting.there)  # type: ignore[arg-type]

        return await call(self, run, *args, **kwargs)

    async def waited(done: Any, cancel: Callable[[], None]) -> Any:
        def cancelled() -> None:
            cancel()
            counting.came_back()

        return await wait(done, cancelled)

    with monkeypatch.context() as patched:
        patched.setattr(loops.Loop, "call", counted)
        patched.setattr(loops, "_wait", waited)
        yield counting
