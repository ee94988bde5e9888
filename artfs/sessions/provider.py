"""What a session provider is: values under keys, each with a time to live.

A *provider* is what a caller may write: `setex`, `get`, `delete` and `close`, as coroutines.  Between its calls other
processes have theirs, so what reads and then writes can undo their change.  An *atomic* provider closes that gap:
ours are.  `atomic` makes one out of any.

Keys are whole as the caller gives them; nothing is put before them.  Values are str.  A time to live is in seconds;
one that is not above zero is over at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import anyio
from anyio.lowlevel import RunVar

from artfs.errors import InvalidError


class Provider(Protocol):
    """What a caller's own provider has.  The `ttl` that it is given is a whole number of seconds, rounded up."""

    async def setex(self, key: str, ttl: int, value: str) -> Any: ...

    async def get(self, key: str) -> str | None:
        """None if there is nothing, or its time is over."""

    async def delete(self, key: str) -> Any: ...

    async def close(self) -> Any: ...


ProviderFactory = Callable[[], AbstractAsyncContextManager[Provider]]
"""What `factory_for_env` returns: called for each piece of work, entered, and left when that is done."""


class AtomicProvider(ABC):
    """Errors of all calls: InvalidError, ProviderError if it cannot be reached."""

    @abstractmethod
    async def setex(self, key: str, ttl: float, value: str) -> None:
        """Put a value that is gone in `ttl` seconds."""

    @abstractmethod
    async def set(self, key: str, value: str) -> None:
        """Put a value that stays."""

    @abstractmethod
    async def get(self, key: str) -> str | None:
        """The value; None if there is none, or its time is over."""

    @abstractmethod
    async def delete(self, key: str) -> bool:
        """Whether there was a value."""

    async def close(self) -> None:
        """Give back what this one holds, which is nothing: connections are shared."""
        return

    # each is one step, in which nobody else has a part
    @abstractmethod
    async def add(self, key: str, ttl: float, value: str) -> bool:
        """Put a value where there is none; whether that was so."""

    @abstractmethod
    async def swap(self, key: str, old: str, new: str, ttl: float) -> bool:
        """Put `new` where the value is `old`; whether that was so."""

    @abstractmethod
    async def patch(self, key: str, at: int, text: str) -> str | None:
        """Write ASCII `text` over the value from that character on, its time to live as it is; the value after
        that, None if there is none.  REQUIRES: the value is ASCII up to where `text` ends, and longer."""

    @abstractmethod
    async def take(self, key: str) -> str | None:
        """Delete; the value that was there."""

    async def sweep(self, prefix: str) -> Sequence[str]:
        """Forget values whose time is over; the keys among them that begin so, where they are still known."""
        return ()


def checked_value(value: str) -> str:
    """Errors: InvalidError."""
    if not isinstance(value, str):
        raise InvalidError(f"a session provider's values are str, not {type(value).__name__}")
    return value


def atomic(provider: Provider | AtomicProvider, lock: RunLock) -> AtomicProvider:
    """`provider` itself, if it is one of ours."""
    return provider if isinstance(provider, AtomicProvider) else _Locked(provider, lock)


class RunLock:
    """A lock for the tasks of each event loop; loops do not wait for each other."""

    def __init__(self) -> None:
        self._locks: RunVar[anyio.Lock] = RunVar(f"artfs.sessions.provider.{id(self)}")

    def __call__(self) -> anyio.Lock:
        lock = self._locks.get(None)
        if lock is None:
            lock = anyio.Lock()
            self._locks.set(lock)
        return lock


class _Locked(AtomicProvider):
    """A caller's provider.  Each step is whole for the tasks of this event loop, not for other processes: there, the
    last writer wins.  What `patch` writes has a key of its own, for a patch, the most frequent step, must never bring
    back a value that was deleted meanwhile."""

    def __init__(self, provider: Provider, lock: RunLock) -> None:
        self._provider = provider
        self._lock = lock

    async def setex(self, key: str, ttl: float, value: str) -> None:
        await self._provider.setex(key, math.ceil(ttl), value)

    async def set(self, key: str, value: str) -> None:
        raise InvalidError("a caller's own session provider has no values that stay: use setex")

    async def get(self, key: str) -> str | None:
        value = _text(await self._provider.get(key))
        patch = None if value is None else _text(await self._provider.get(_patch_of(key)))
        if value is None or patch is None:
            return value
        at, _, text = patch.partition(" ")
        return _patched(value, int(at), text)

    async def delete(self, key: str) -> bool:
        return await self.take(key) is not None

    async def add(self, key: str, ttl: float, value: str) -> bool:
        async with self._lock():
            if await self._provider.get(key) is not None:
                return False
            await self._put(key, ttl, value)
            return True

    async def swap(self, key: str, old: str, new: str, ttl: float) -> bool:
        async with self._lock():
            if await self.get(key) != old:
                return False
            await self._put(key, ttl, new)
            return True

    async def _put(self, key: str, ttl: float, value: str) -> None:
        await self._provider.delete(_patch_of(key))
        await self.setex(key, ttl, value)

    async def patch(self, key: str, at: int, text: str) -> str | None:
        async with self._lock():
            value = _text(await self._provider.get(key))
            if value is None:
                return None
            # It may be gone before the value is: then the value has what it was made with.
            await self.setex(_patch_of(key), PATCH_TTL, f"{at} {text}")
            return _patched(value, at, text)

    async def take(self, key: str) -> str | None:
        async with self._lock():
            value = await self.get(key)
            await self._provider.delete(key)
            await self._provider.delete(_patch_of(key))
            return value


PATCH_TTL = 24 * 3600


def _patch_of(key: str) -> str:
    return f"{key}:patch"


def _patched(value: str, at: int, text: str) -> str:
    return value[:at] + text + value[at + len(text) :]


def _text(value: Any) -> str | None:
    """Clients of redis give bytes, unless they were told otherwise."""
    return value.decode() if isinstance(value, bytes) else value
