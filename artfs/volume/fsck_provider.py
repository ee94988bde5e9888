"""What providers keep, for the plain functions of fsck: sizes of objects, and their bytes in large pieces.

A provider that does not answer is asked once; what it keeps is then unknown, not missing.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from artfs.errors import ArtfsError, DamagedError, NotFoundError
from artfs.objects import Home, Providers
from artfs.volume.fsck_view import Finding

T = TypeVar("T")


class _GoneError(Exception):
    """What the provider kept ended with the process."""


class Kept:
    """`unknown`: what keeps us from looking, by home; empty where nothing outlives a process, which is no problem: the
    next owner deletes those namespaces."""

    def __init__(self, providers: Providers, portal: BlockingPortal) -> None:
        self._providers = providers
        self._portal = portal
        self._sizes: dict[tuple[Home, str], dict[str, int]] = {}
        self.unknown: dict[Home, str] = {}

    def sizes(self, home: Home, prefix: str) -> dict[str, int]:
        """Bytes by name of every object below the prefix, as they are kept: compressed, where the home says so.
        Nothing if the home is `unknown`."""
        found = self._sizes.get((home, prefix))
        if found is None:

            async def listed() -> dict[str, int]:
                provider = self._providers.get(home)
                if not provider.capabilities.durable:
                    raise _GoneError
                return {name: size async for name, size in provider.list(f"{prefix}/")}

            found = self._sizes[home, prefix] = self._ask(home, listed, {})
        return found

    def size(self, home: Home, prefix: str, name: str) -> int | None:
        """Plain bytes of one object, 0 if they cannot be told; None if it is not there, or the home is `unknown`."""
        listed = self.sizes(home, prefix).get(name)
        if listed is None or "zstd" not in home.codec:
            return listed

        async def head() -> int:
            try:
                return (await self._providers.get(home).head(name)).size
            except DamagedError:
                return 0

        return self._ask(home, head, None)

    def read(self, home: Home, name: str, offset: int, length: int) -> bytes:
        """As much of that as there is, and can be decoded; nothing if the home is `unknown`, or has become so."""

        async def got() -> bytes:
            try:
                return await self._providers.get(home).get(name, offset, length)
            except (NotFoundError, DamagedError):
                return b""

        return self._ask(home, got, b"")

    def _ask(self, home: Home, call: Callable[[], Coroutine[Any, Any, T]], nothing: T) -> T:
        if home in self.unknown:
            return nothing
        try:
            found: T = self._portal.call(call)
            return found
        except _GoneError:
            self.unknown[home] = ""
            return nothing
        except (ArtfsError, OSError) as error:
            self.unknown[home] = str(error) or type(error).__name__
            return nothing

    def findings(self) -> Iterator[Finding]:
        for home, what in self.unknown.items():
            if what:
                yield Finding("provider", home.provider, f"what it keeps is not known: {what}")


@contextmanager
def kept(providers: Providers) -> Iterator[Kept]:
    """Closes `providers` at the end.  REQUIRES: a thread without a loop."""
    with start_blocking_portal() as portal:
        try:
            yield Kept(providers, portal)
        finally:
            portal.call(providers.close)
