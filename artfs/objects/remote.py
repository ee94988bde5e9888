"""Between the local directories and the providers: write-back, fetching, and the bound on what is kept here.

Where a byte is durable: an object below `objects/` is only here.  When `Provider.put` has returned, its file is renamed
into `cache/`, and may vanish from then on.  Nothing else marks an object as uploaded, so a crash at any moment means at
most that one is uploaded again.

Fetching works in *pieces* (`Settings.piece_size`) of objects; each is fetched by one task at a time, whoever wants it.
What comes, and what an earlier process left in the cache, is believed only when the chunk that is wanted from it has
the right hash; else it is fetched again, `ATTEMPTS` times in all.

The bound: copies and waiting objects together stay below `cache_high` of `cache_size`; copies are evicted, least
recently used first, down to `cache_low`, also while the disk has less than `cache_reserve` free.  When what waits alone
reaches the bound, `crowded` is set, and writers have to wait.

Uploads go by age.  One that fails is tried again for ever, ever more slowly (`BACKOFF`); a provider that fails holds up
its own objects only.

Concurrency: everything on the loop's thread but the I/O itself.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, time_ns
from typing import Protocol

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from artfs.blocks import Chunk
from artfs.errors import ArtfsError, DamagedError, InvalidError, NoSpaceError, UnavailableError
from artfs.objects import Home, Provider
from artfs.objects.local import LocalObjects
from artfs.settings import Settings

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Fetches of a piece whose bytes are not what they should be, or that fails."""
BACKOFF = 0.5, 60.0
"""Seconds between attempts of an upload that fails: at first, at most."""
TICK = 1.0
"""Seconds between looks at what has become old enough to be uploaded, at most."""
NS = 10**9
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What no provider has yet.  `oldest`: when its first byte came, in nanoseconds since 1970; `error`: of the last
    attempt that failed, empty if all is well; `retry_at`: when it is tried again."""

    bytes: int
    objects: int
    oldest: int | None
    error: str
    retry_at: int | None


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """`copies`: bytes of what providers have, too; hits and misses count chunks that were asked for."""

    limit: int
    copies: int
    objects: int
    waiting: int
    free: int
    reserve: int
    fetched: int
    fetches: int
    uploaded: int
    uploads: int
    evicted: int
    refetched: int


class Providers(Protocol):
    """`get` opens a provider once, and checks nothing.  `canonical`: the one spelling of a URL."""

    def canonical(self, url: str) -> str: ...

    def get(self, home: Home) -> Provider: ...

    async def close(self) -> None: ...


class NoProviders:
    """Of a store whose namespaces all live in its own directory."""

    def canonical(self, url: str) -> str:
        raise InvalidError(f"this store has no providers: {url} cannot be used")

    def get(self, home: Home) -> Provider:
        raise InvalidError(f"this store has no providers: {home.provider} cannot be used")

    async def close(self) -> None:
        pass


class _Backoff:
    """Of one provider."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.until = 0.0
        self.error = ""

    def failed(self, error: Exception) -> float:
        self.delay = min(max(self.delay * 2, BACKOFF[0]), BACKOFF[1])
        self.until = monotonic() + self.delay
        self.error = str(error) or type(error).__name__
        return self.delay

    def worked(self) -> None:
        self.delay = self.until = 0.0
        self.error = ""


class Remote:
    """`run` must be running for anything to be uploaded, fetched ahead or evicted.  `homes`: serial → home, of every
    namespace whose bytes a provider keeps.  `commit`: have everything that was logged committed; `allowed` raises if
    this store may not write to its provider any more."""

    def __init__(self, local: LocalObjects, settings: Settings, providers: Providers) -> None:
        self.local = local
        self.settings = settings
        self.providers = providers
        self.homes: dict[int, Home] = {}
        self.crowded = False
        self.on_crowded: Callable[[bool], None] = lambda crowded: None
        self.commit: Callable[[], Awaitable[None]] = _nothing
        self.allowed: Callable[[], Awaitable[None]] = _nothing
        self.fetched = self.fetches = self.uploaded = self.uploads = self.evicted = self.refetched = 0
        self._copies: dict[int, int] = {}
        self._size = 0
        self._sizes: dict[int, int] = {}
        self._have: dict[int, set[int]] = {}
        self._flights: dict[tuple[int, int], anyio.Event] = {}
        self._uploading: dict[int, anyio.Event] = {}
        self._failures: dict[int, tuple[int, Exception]] = {}
        self._attempt = 0
        self._backoffs: dict[str, _Backoff] = {}
        self._fetching = anyio.Semaphore(settings.fetches)
        self._tasks: TaskGroup | None = None
        self._kick = anyio.Event()
        self._room = anyio.Event()

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

    def _backoff(self, serial: int) -> _Backoff:
        return self._backoffs.setdefault(self.homes[serial].provider, _Backoff())

    def load(self) -> None:
        """Take over what an earlier process left: what waits, and what is cached.  In a thread, before `run`.
        REQUIRES: `settle` and the prefixes of every namespace."""
        local = self.local
        if local.root is None or local.cache is None:
            return
        serials = {prefix: serial for serial, prefix in local.prefixes.items() if serial in self.homes}
        for number, info, _ in _objects_below(local.root, serials):
            local.found(number, info.st_size, info.st_mtime_ns)
        found = sorted(_objects_below(local.cache, serials, clean=True), key=lambda item: item[1].st_mtime_ns)
        for number, info, _ in found:
            self._count(number, info.st_blocks * 512)

    # fetching
    async def bring(self, chunk: Chunk) -> None:
        """The chunk is here, and right, when this returns.  Errors: UnavailableError, DamagedError."""
        number = chunk.object
        for attempt in range(ATTEMPTS):
            if await to_thread.run_sync(self.local.has, chunk):
                return
            if attempt:
                self.refetched += 1
                log.warning("object %s: wrong bytes at %d; fetching them again", self.name(number), chunk.offset)
            await self._fetch_all(number, self._pieces(chunk), again=True)
        if await to_thread.run_sync(self.local.has, chunk):
            return
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

    async def _fetch_all(self, number: int, pieces: Collection[int], again: bool) -> None:
        if again:
            # Whoever is at it may have begun before the damage: those are waited for, the others fetched anew.
            self._known(number).difference_update(p for p in pieces if (number, p) not in self._flights)
        await _all([partial(self._fetch, number, piece) for piece in pieces])

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

    async def _get(self, number: int, piece: int) -> None:
        provider = self.provider(number >> 32)
        name = self.name(number)
        size = self._sizes.get(number)
        if size is None:
            size = self._sizes[number] = (await provider.head(name)).size
        offset = piece * self.settings.piece_size
        length = min(self.settings.piece_size, size - offset)
        if length <= 0:
            raise UnavailableError(f"object {name} ends before {offset}: {size} bytes are in {provider.url}")
        data = await provider.get(name, offset, length)
        self.fetches += 1
        self.fetched += length
        path = self.local.cache_path(number)
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
        busy = {number for number, _ in self._flights} | {keep}
        for number in list(self._copies):
            short = need or self._free() < reserve
            if not short and self._size + local.waiting <= goal:
                break
            if number not in busy:
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

    # uploads
    def waiting(self) -> Waiting:
        failing = [backoff for backoff in self._backoffs.values() if backoff.error]
        retry = min((backoff.until for backoff in failing), default=None)
        return Waiting(
            bytes=self.local.waiting,
            objects=len(self.local.waiting_objects()),
            oldest=self.local.oldest(),
            error=failing[0].error if failing else "",
            retry_at=None if retry is None else time_ns() + max(int((retry - monotonic()) * NS), 0),
        )

    def kick(self) -> None:
        """Look at once for what is to be uploaded."""
        self._kick.set()

    async def run(self) -> None:
        """Upload, fetch ahead and evict, until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                while True:
                    self._kick = anyio.Event()
                    age = None if self.crowded else time_ns() - int(self.settings.upload_delay * NS)
                    self.local.close_objects(born_before=age)
                    wait = self._start_uploads(tasks)
                    self._look_at_room()
                    if self._copies and (self._over() or self._free() < self.settings.cache_reserve):
                        await self._make_room(0)
                    with anyio.move_on_after(wait):
                        await self._kick.wait()
            finally:
                self._tasks = None

    def _start_uploads(self, tasks: TaskGroup) -> float:
        """Returns the seconds after which it is worth to look again."""
        wait = TICK
        now = monotonic()
        for number in self.local.ready():
            if len(self._uploading) >= self.settings.uploads:
                break
            if number in self._uploading:
                continue
            backoff = self._backoff(number >> 32)
            if backoff.until > now:
                wait = min(wait, backoff.until - now)
                continue
            self._uploading[number] = anyio.Event()
            tasks.start_soon(self._upload, number)
            if backoff.error:  # one is enough to see whether it works again
                backoff.until = now + self.settings.provider_timeout
        return wait

    async def _upload(self, number: int) -> None:
        backoff = self._backoff(number >> 32)
        self._attempt += 1
        attempt = self._attempt
        try:
            await self.allowed()
            path = self.local.path(number)
            size = path.stat().st_size
            await self.provider(number >> 32).put(self.name(number), path)
            with anyio.CancelScope(shield=True):
                if self.local.waits(number):  # else its namespace was destroyed meanwhile
                    self.local.uploaded(number)
                    self._sizes[number] = size
                    self._have[number] = set(range(-(-size // self.settings.piece_size)))
                    self._count(number, size)
            self.uploads += 1
            self.uploaded += size
            backoff.worked()
            self._failures.pop(number, None)
        except Exception as error:
            if not self.local.path(number).exists():  # its namespace was destroyed meanwhile
                self.local.remove(number)
                return
            delay = backoff.failed(error)
            self._failures[number] = attempt, error
            log.warning("object %s is not uploaded, again in %.1f s: %s", self.name(number), delay, error)
        finally:
            self._uploading.pop(number).set()
            self._look_at_room()
            self.kick()

    async def push(self, serials: Collection[int] | None = None, progress: Progress | None = None) -> None:
        """Have everything uploaded that waits now (of these namespaces).  Errors: UnavailableError or what the
        provider said, when an attempt that began after this call fails; the uploads go on all the same."""
        self.local.close_objects(serials)
        wanted = self.local.waiting_objects(serials)
        if not wanted:
            return
        await self.commit()
        first = self._attempt
        for serial in {number >> 32 for number in wanted}:
            self._backoff(serial).until = 0.0
        total = sum(wanted.values())
        while True:
            wanted = {number: size for number, size in wanted.items() if self.local.waits(number)}
            if progress is not None:
                progress(total - sum(wanted.values()), total)
            if not wanted:
                return
            for number in wanted:
                attempt, error = self._failures.get(number, (0, None))
                if attempt > first and error is not None:
                    raise _told(error, len(wanted)) from error
            self.kick()
            busy = [self._uploading[number] for number in wanted if number in self._uploading]
            with anyio.move_on_after(TICK):
                if busy:
                    await busy[0].wait()
                else:
                    await anyio.sleep(0.002)

    def _look_at_room(self) -> None:
        limit = self._limit()
        crowded = self.local.waiting >= limit
        if crowded != self.crowded:
            self.crowded = crowded
            if crowded:
                log.warning("%d bytes wait for upload; writers wait, too", self.local.waiting)
            self.on_crowded(crowded)
            if not crowded:
                self._room.set()
                self._room = anyio.Event()

    async def wait_room(self, limit: float) -> bool:
        """Until less waits; False after `limit` seconds."""
        self._look_at_room()
        with anyio.move_on_after(limit) as scope:
            while self.crowded:
                self.kick()
                await self._room.wait()
        return not scope.cancelled_caught

    # what is not wanted any more
    async def discard(self, numbers: Collection[int]) -> None:
        """No row names these objects, and none will: they are gone, here and in their provider.
        Errors: UnavailableError; those that are left can be discarded again."""
        by_serial: dict[int, list[int]] = {}
        for number in numbers:
            by_serial.setdefault(number >> 32, []).append(number)
        for serial, some in by_serial.items():
            for number in some:
                if (event := self._uploading.get(number)) is not None:
                    await event.wait()
                self.local.remove(number)
                self._forget(number)
                self._sizes.pop(number, None)
            if serial in self.homes:
                await self.provider(serial).delete([self.name(number) for number in some])

    async def discard_namespace(self, serial: int) -> None:
        """The namespace is gone and nothing of it was lent: so are all objects below its prefix."""
        local = self.local
        prefix = local.prefixes.get(serial)
        if prefix is None:
            return
        if local.root is None:
            local.delete(serial)
            return
        while busy := [event for number, event in self._uploading.items() if number >> 32 == serial]:
            for number in [n for n in local.ready() if n >> 32 == serial]:
                local.remove(number)
            await busy[0].wait()
        for number in [*local.waiting_objects({serial}), *(n for n in self._copies if n >> 32 == serial)]:
            local.remove(number)
            self._forget(number)
        for top in (local.root, local.cache):
            assert top is not None
            await to_thread.run_sync(_remove_directory, top / prefix)
        if serial in self.homes:
            provider = self.provider(serial)
            await provider.delete([name async for name, _ in provider.list(f"{prefix}/")])

    async def objects(self, serial: int) -> dict[int, int]:
        """Number → bytes of the namespace's objects that take no more chunks, here or in its provider."""
        local = self.local
        prefix = local.prefixes[serial]
        found: dict[int, int] = {}
        if local.root is not None:
            for top in (local.root, local.cache):
                assert top is not None
                listed = await to_thread.run_sync(list, _objects_below(top, {prefix: serial}))
                found |= {number: info.st_size for number, info, _ in listed}
        else:
            found |= local.in_memory(serial)
        if serial in self.homes:
            async for name, size in self.provider(serial).list(f"{prefix}/"):
                count = name.rpartition("/")[2]
                if len(count) == 8:
                    found[serial << 32 | int(count, 16)] = size
        for number in local.open_objects():
            found.pop(number, None)
        return found

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(
            limit=self.settings.cache_size,
            copies=self._size,
            objects=len(self._copies),
            waiting=self.local.waiting,
            free=self._free(),
            reserve=self.settings.cache_reserve,
            fetched=self.fetched,
            fetches=self.fetches,
            uploaded=self.uploaded,
            uploads=self.uploads,
            evicted=self.evicted,
            refetched=self.refetched,
        )


async def _nothing() -> None:
    pass


def _told(error: Exception, left: int) -> ArtfsError:
    if isinstance(error, ArtfsError):
        return error
    return UnavailableError(f"{left} objects are not uploaded yet: {error}; it is tried again")


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


def _objects_below(
    top: Path, serials: dict[str, int], clean: bool = False
) -> Iterator[tuple[int, os.stat_result, Path]]:
    """(number, stat, path) of each object of those prefixes.  `clean`: what is none of them is deleted."""
    for folder, _, files in os.walk(top):
        serial = serials.get(os.path.relpath(folder, top))
        for file in files:
            path = Path(folder, file)
            if serial is not None and len(file) == 8 and all(c in "0123456789abcdef" for c in file):
                yield serial << 32 | int(file, 16), path.stat(), path
            elif clean:
                path.unlink(missing_ok=True)


def _remove_directory(path: Path) -> None:
    try:
        for file in os.scandir(path):
            os.unlink(file.path)
        path.rmdir()
    except FileNotFoundError:
        pass
