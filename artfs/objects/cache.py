"""The cache: fetching from providers, and the bound on what is kept here.

Fetching works in *pieces* (`Settings.piece_size`) of objects; each is fetched by one task at a time, whoever wants it.
What comes, and what an earlier process left in the cache, is believed only when the chunk that is wanted from it has
the right hash; else it is fetched again, `ATTEMPTS` times in all.

The bound: copies and waiting objects together stay below `cache_high` of `cache_size`; copies are evicted, least
recently used first, down to `cache_low`, also while the disk has less than `cache_reserve` free.  What waits for
upload is no copy, and is never evicted.

Concurrency: everything on the loop's thread but the I/O itself.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from xxhash import xxh3_128_digest

from artfs.blocks import Chunk
from artfs.errors import ArtfsError, DamagedError, NoSpaceError, UnavailableError
from artfs.objects import Home, Provider, Providers
from artfs.objects.local import LocalObjects
from artfs.settings import Settings

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Fetches of a piece whose bytes are not what they should be."""


class Cache:
    """`homes`: serial → home, of every namespace whose bytes a provider keeps."""

    def __init__(self, local: LocalObjects, settings: Settings, providers: Providers) -> None:
        self.local = local
        self.settings = settings
        self.providers = providers
        self.homes: dict[int, Home] = {}
        self.fetched = self.fetches = self.evicted = self.refetched = 0
        self._tasks: TaskGroup | None = None
        self._copies: dict[int, int] = {}
        self._size = 0
        self._sizes: dict[int, int] = {}
        self._have: dict[int, set[int]] = {}
        self._flights: dict[tuple[int, int], anyio.Event] = {}
        self._fetching = anyio.Semaphore(settings.fetches)

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

    # fetching
    async def bring(self, chunk: Chunk) -> None:
        """The chunk is here, and right, when this returns.  Errors: UnavailableError, DamagedError."""
        number = chunk.object
        pieces = self._pieces(chunk)
        for attempt in range(ATTEMPTS + 1):
            known = self._known(number).intersection(pieces)
            if await to_thread.run_sync(self.local.has, chunk):
                return
            if attempt == ATTEMPTS:
                break
            if attempt or known or await self._is_here(number, pieces):
                await self._mend(chunk)
            else:
                await _all([partial(self._fetch, number, piece) for piece in pieces])
        raise DamagedError(
            f"object {self.name(number)} in {self.homes[number >> 32].provider} is damaged at "
            f"{chunk.offset}+{chunk.length}; run: artfs fsck --data"
        )

    async def read(self, chunk: Chunk) -> bytes:
        """All of the chunk, verified.  Errors: UnavailableError, DamagedError."""
        while True:
            if chunk.object >> 32 in self.homes:
                await self.bring(chunk)
            try:
                return await to_thread.run_sync(self.local.read, chunk)
            except DamagedError:
                if chunk.object >> 32 not in self.homes or chunk.verified == self.local.copies.get(chunk.object, 1):
                    raise  # else it was evicted in between

    async def bring_all(self, chunks: Collection[Chunk]) -> None:
        """The same for several, at once."""
        if len(chunks) == 1:
            for chunk in chunks:
                await self.bring(chunk)
            return
        await _all([partial(self.bring, chunk) for chunk in chunks])

    def ahead(self, chunk: Chunk) -> None:
        """It will be wanted soon."""
        number = chunk.object
        if self._tasks is None or number >> 32 not in self.homes or self.local.waits(number):
            return
        for piece in self._pieces(chunk):
            if piece not in self._known(number) and (number, piece) not in self._flights:
                self._tasks.start_soon(self._ahead, number, piece)

    async def _ahead(self, number: int, piece: int) -> None:
        try:
            await self._fetch(number, piece)
        except (ArtfsError, OSError) as error:
            log.debug("not fetched ahead: %s", error)
        except Exception:  # nobody waits for it
            log.exception("object %s is not fetched ahead", self.name(number))

    def _pieces(self, chunk: Chunk) -> range:
        size = self.settings.piece_size
        return range(chunk.offset // size, (chunk.offset + max(chunk.length, 1) - 1) // size + 1)

    def _known(self, number: int) -> set[int]:
        """The pieces that are in the cache, as far as can be told without reading them."""
        pieces = self._have.get(number)
        if pieces is None:
            pieces = self._have[number] = self._present(number) if number in self._copies else set()
        return pieces

    def _present(self, number: int) -> set[int]:
        size = self.settings.piece_size
        try:
            fd = os.open(self.local.cache_path(number), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return set()
        try:
            end = os.fstat(fd).st_size
            found = set()
            for piece in range(-(-end // size)):
                hole = os.lseek(fd, piece * size, os.SEEK_HOLE)
                if hole >= min((piece + 1) * size, end):
                    found.add(piece)
            return found
        finally:
            os.close(fd)

    async def _fetch(self, number: int, piece: int) -> None:
        """Have the piece in the cache.  Errors: UnavailableError, NotFoundError, NoSpaceError."""
        while (flight := self._flights.get((number, piece))) is not None:
            await flight.wait()
            if piece in self._known(number):
                return
        if piece in self._known(number):
            return
        event = self._flights[number, piece] = anyio.Event()
        try:
            async with self._fetching:
                await self._get(number, piece)
        finally:
            del self._flights[number, piece]
            event.set()

    async def _is_here(self, number: int, pieces: Collection[int]) -> bool:
        """Whether something of these pieces is in the cache, and nobody is fetching it."""
        size = self.settings.piece_size
        for piece in pieces:
            if (number, piece) not in self._flights:
                path = self.local.cache_path(number)
                if await to_thread.run_sync(_has_data, path, piece * size, size):
                    return True
        return False

    async def _mend(self, chunk: Chunk) -> None:
        """What is here is wrong, or in part: fetch the chunk alone, and leave its neighbours as they are.  Bytes that
        are wrong again are not taken."""
        number = chunk.object
        name = self.name(number)
        async with self._fetching:
            size = await self._size_of(number)
            data = await self.provider(number >> 32).get(name, chunk.offset, chunk.length)
        self.fetches += 1
        self.fetched += chunk.length
        self.refetched += 1
        log.warning("object %s: wrong bytes at %d were fetched again", name, chunk.offset)
        if await to_thread.run_sync(xxh3_128_digest, data) == chunk.hash:
            path = self.local.cache_path(number)
            self._count(number, await to_thread.run_sync(_write_piece, path, data, chunk.offset, size))

    async def _size_of(self, number: int) -> int:
        size = self._sizes.get(number)
        if size is None:
            size = self._sizes[number] = (await self.provider(number >> 32).head(self.name(number))).size
        return size

    async def _get(self, number: int, piece: int) -> None:
        provider = self.provider(number >> 32)
        name = self.name(number)
        size = await self._size_of(number)
        offset = piece * self.settings.piece_size
        length = min(self.settings.piece_size, size - offset)
        if length <= 0:
            raise UnavailableError(f"object {name} ends before {offset}: {size} bytes are in {provider.url}")
        data = await provider.get(name, offset, length)
        self.fetches += 1
        self.fetched += length
        path = self.local.cache_path(number)
        if await to_thread.run_sync(_has_data, path, offset, length):
            return  # chunks in it may have been verified, and readers be at them: see `_mend`
        try:
            allocated = await to_thread.run_sync(_write_piece, path, data, offset, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            await self._make_room(length, keep=number)
            try:
                allocated = await to_thread.run_sync(_write_piece, path, data, offset, size)
            except OSError:
                raise NoSpaceError(f"no room to cache {name}; free some space on {self.local.cache}") from error
        self._known(number).add(piece)
        self._count(number, allocated)
        if self._over():
            await self._make_room(0, keep=number)

    # what is kept
    def _count(self, number: int, size: int) -> None:
        self._size += size - self._copies.pop(number, 0)
        self._copies[number] = size

    def _limit(self) -> int:
        return int(self.settings.cache_size * self.settings.cache_high)

    def _over(self) -> bool:
        return self._size + self.local.waiting > self._limit()

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
            busy = number == keep or any(number == other for other, _ in self._flights)
            short = need or self._free() < reserve
            if not short and self._size + local.waiting <= goal:
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
        self._have.pop(number, None)

    async def drop(self, serials: Collection[int] | None = None) -> int:
        """Evict every copy (of these namespaces); returns the bytes."""
        before = self._size
        busy = {number for number, _ in self._flights}
        for number in list(self._copies):
            if number not in busy and (serials is None or number >> 32 in serials):
                self._evict(number)
        self.local.reap()
        return before - self._size


async def _all(calls: list[Callable[[], Awaitable[None]]]) -> None:
    """Run them at once; the first error is raised as it is."""
    if len(calls) == 1:
        await calls[0]()
        return
    failures: list[Exception] = []

    async def one(call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except Exception as error:
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(one, call)
    if failures:
        raise failures[0]


def _has_data(path: Path, offset: int, length: int) -> bool:
    """Whether the file has anything but a hole there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) < offset + length
    except OSError:  # ENXIO: no data from there on
        return False
    finally:
        os.close(fd)


def _write_piece(path: Path, data: bytes, offset: int, size: int) -> int:
    """Returns the bytes that the file takes on the disk."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)  # an earlier one may be longer, or cut short
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view = view[written:]
            offset += written
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)
