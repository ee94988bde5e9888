"""Values in memory: one provider for the whole process, whichever thread or event loop asks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from artfs.sessions.provider import AtomicProvider, checked_value

SWEEP_AT = 1024
"""Values beyond twice what the last sweep left, and this, are swept before one is added."""
FOREVER = float("inf")


class MemoryProvider(AtomicProvider):
    """`now` gives seconds, and never goes back."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._values: dict[str, tuple[str, float]] = {}
        self._sweep_at = SWEEP_AT

    async def __aenter__(self) -> MemoryProvider:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def _get(self, key: str) -> str | None:
        entry = self._values.get(key)
        return entry[0] if entry is not None and self._now() < entry[1] else None

    def _put(self, key: str, value: str, until: float) -> None:
        self._values[key] = checked_value(value), until
        if len(self._values) > self._sweep_at:
            self._sweep()

    def _sweep(self) -> Sequence[str]:
        now = self._now()
        over = [key for key, (_, until) in self._values.items() if until <= now]
        for key in over:
            del self._values[key]
        self._sweep_at = SWEEP_AT + 2 * len(self._values)
        return over

    async def setex(self, key: str, ttl: float, value: str) -> None:
        with self._lock:
            self._put(key, value, self._now() + ttl)

    async def set(self, key: str, value: str) -> None:
        with self._lock:
            self._put(key, value, FOREVER)

    async def get(self, key: str) -> str | None:
        return self._get(key)

    async def delete(self, key: str) -> bool:
        return await self.take(key) is not None

    async def add(self, key: str, ttl: float, value: str) -> bool:
        with self._lock:
            if self._get(key) is not None:
                return False
            self._put(key, value, self._now() + ttl)
            return True

    async def swap(self, key: str, old: str, new: str, ttl: float) -> bool:
        with self._lock:
            if self._get(key) != old:
                return False
            self._put(key, new, self._now() + ttl)
            return True

    async def patch(self, key: str, at: int, text: str) -> str | None:
        with self._lock:
            value = self._get(key)
            if value is None:
                return None
            value = value[:at] + text + value[at + len(text) :]
            self._values[key] = value, self._values[key][1]
            return value

    async def take(self, key: str) -> str | None:
        with self._lock:
            value = self._get(key)
            self._values.pop(key, None)
            return value

    async def sweep(self, prefix: str) -> Sequence[str]:
        with self._lock:
            return [key for key in self._sweep() if key.startswith(prefix)]


_PROCESS = MemoryProvider()


def _after_fork() -> None:
    _PROCESS._lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)


def factory() -> Callable[[], MemoryProvider]:
    """The process's provider, each time."""
    return lambda: _PROCESS
