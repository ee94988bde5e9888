"""The cache: the bound on what is kept here, and what of it is here.

Copies, what is on its way into them, and waiting objects together stay below `cache_high` of `cache_size`; copies are
evicted, least recently used first, down to `cache_low`, also while the disk has less than `cache_reserve` free.  What
waits for upload is no copy, and is never evicted.

A copy consists of *pieces* (`Settings.piece_size`); of each something is here, all as a rule, or nothing.

Concurrency: everything on the loop's thread but the I/O itself.
"""

from __future__ import annotations

import os
from collections.abc import Collection

import anyio

from artfs.objects import Home, Provider, Providers
from artfs.objects.local import LocalObjects
from artfs.settings import Settings


class Cache:
    """`homes`: serial → home, of every namespace whose bytes a provider keeps."""

    def __init__(self, local: LocalObjects, settings: Settings, providers: Providers) -> None:
        self.local = local
        self.settings = settings
        self.providers = providers
        self.homes: dict[int, Home] = {}
        self.evicted = 0
        self._copies: dict[int, int] = {}
        self._size = self._coming = 0
        self._here: dict[int, set[int]] = {}

    # homes
    def settle(self, serial: int, home: Home | None) -> None:
        """The namespace lives there.  REQUIRES: before its objects are registered."""
        if home is not None:
            self.homes[serial] = home
            self.local.backed.add(serial)

    def home(self, serial: int) -> Home | None:
        return self.homes.get(serial)

    def provider(self, serial: int) -> Provider:
        """Of a namespace whose bytes a provider keeps.  Errors: InvalidError (its URL, its key)."""
        return self.providers.get(self.homes[serial])

    def name(self, number: int) -> str:
        return self.local.name(number)

    # what is here
    def _pieces_of(self, number: int) -> set[int]:
        """The pieces of the copy that something is here of, without reading them."""
        found = self._here.get(number)
        if found is None:
            found = self._here[number] = self._present(number) if number in self._copies else set()
        return found

    def _present(self, number: int) -> set[int]:
        size = self.settings.piece_size
        try:
            fd = os.open(self.local.cache_path(number), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return set()
        found: set[int] = set()
        try:
            at = 0
            while True:
                piece = os.lseek(fd, at, os.SEEK_DATA) // size
                found.add(piece)
                at = (piece + 1) * size
        except OSError:  # ENXIO: no data from there on
            return found
        finally:
            os.close(fd)

    def _is_whole(self, number: int, size: int) -> None:
        """The object was made here: its copy lacks nothing."""
        self._here[number] = set(range(-(-size // self.settings.piece_size)))
        self._count(number, size)

    def _in_flight(self) -> Collection[int]:
        """Objects that something is being fetched of."""
        return ()

    # what is kept
    def _count(self, number: int, size: int) -> None:
        self._size += size - self._copies.pop(number, 0)
        self._copies[number] = size

    def _limit(self) -> int:
        return int(self.settings.cache_size * self.settings.cache_high)

    def _over(self) -> bool:
        return self._size + self._coming + self.local.waiting > self._limit()

    def _free(self) -> int:
        if self.local.root is None:
            return 0
        found = os.statvfs(self.local.root)
        return found.f_bavail * found.f_frsize

    async def _make_room(self, need: int, keep: int = -1) -> None:
        """Evict until there is room, as far as that is possible."""
        goal = int(self.settings.cache_size * self.settings.cache_low)
        reserve = self.settings.cache_reserve
        local = self.local
        for number in local.used:
            if number in self._copies:
                self._copies[number] = self._copies.pop(number)
        local.used.clear()
        for number in list(self._copies):
            busy = number == keep or number in self._in_flight()
            short = need or self._free() < reserve
            if not short and self._size + self._coming + local.waiting <= goal:
                break
            if number in self._copies and not busy:  # another may have been at it meanwhile
                need = max(need - self._copies[number], 0)
                self._evict(number)
                await anyio.lowlevel.checkpoint()
        local.reap()

    def _evict(self, number: int) -> None:
        self.evicted += 1
        self._forget(number)
        self.local.evict(number)

    def _forget(self, number: int) -> None:
        self._size -= self._copies.pop(number, 0)
        self._here.pop(number, None)

    async def drop(self, serials: Collection[int] | None = None) -> int:
        """Evict every copy (of these namespaces); returns the bytes."""
        before = self._size
        busy = self._in_flight()
        for number in list(self._copies):
            if number not in busy and (serials is None or number >> 32 in serials):
                self._evict(number)
        self.local.reap()
        return before - self._size
