"""Write-back: objects that are only here go to their providers, in order of age.

An object goes when it takes no more chunks, is whole, and the engine has everything that the journal says of it: a
replay must find its bytes here.  One that fails is tried again for ever, ever more slowly (`BACKOFF`); a provider that
fails holds up its own objects only.  When what waits reaches `cache_high` of the cache, `crowded` is set, and writers
have to wait.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from time import monotonic, time_ns

import anyio
from anyio.abc import TaskGroup

from artfs.errors import ArtfsError, UnavailableError
from artfs.objects import Providers
from artfs.objects.fetching import Fetching
from artfs.objects.local import LocalObjects
from artfs.settings import Settings

log = logging.getLogger(__name__)

BACKOFF = 0.5, 60.0
"""Seconds between attempts of an upload that fails: at first, at most."""
TICK = 1.0
"""Seconds between looks at what has become old enough to be uploaded, at most."""
LOOK = 0.05
"""Seconds between looks of a caller at uploads that have not begun."""
NS = 10**9
Progress = Callable[[int, int], None]
"""Is told (done, total) bytes, or files."""


@dataclass(frozen=True, slots=True)
class WaitingFor:
    """One provider, by its URL."""

    url: str
    bytes: int
    objects: int
    error: str
    retry_at: int | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What no provider has yet.  `oldest`: when its first byte came, in nanoseconds since 1970; `error`: of the last
    attempt that failed, empty if all is well; `retry_at`: when it is tried again; `providers`: those that something
    waits for."""

    bytes: int
    objects: int
    oldest: int | None
    error: str
    retry_at: int | None
    providers: tuple[WaitingFor, ...]


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


class Uploads(Fetching):
    """`run` must be running for anything to be uploaded.  `commit`: have everything that was logged committed;
    `allowed` raises if this store may not write to its provider any more; `keep_numbers`: have it written down that
    these are taken, because a copy is no witness."""

    def __init__(self, local: LocalObjects, settings: Settings, providers: Providers) -> None:
        super().__init__(local, settings, providers)
        self.crowded = False
        self.on_crowded: Callable[[bool], None] = lambda crowded: None
        self.commit: Callable[[], Awaitable[None]] = _nothing
        self.allowed: Callable[[], Awaitable[None]] = _nothing
        self.keep_numbers: Callable[[Collection[int]], Awaitable[None]] = _nothing
        self.uploaded = self.uploads = 0
        self._uploading: dict[int, anyio.Event] = {}
        self._failures: dict[int, tuple[int, Exception]] = {}
        self._attempt = 0
        self._backoffs: dict[str, _Backoff] = {}
        self._kick = anyio.Event()
        self._looked = anyio.Event()
        self._room = anyio.Event()

    def _backoff(self, serial: int) -> _Backoff:
        return self._backoffs.setdefault(self.homes[serial].provider, _Backoff())

    def waiting(self) -> Waiting:
        sizes: dict[str, list[int]] = {}
        for number, size in self.local.waiting_objects().items():
            sizes.setdefault(self.homes[number >> 32].provider, []).append(size)
        providers = tuple(self._waiting_for(url, sizes[url]) for url in sorted(sizes))
        failing = [provider for provider in providers if provider.error]
        return Waiting(
            bytes=self.local.waiting,
            objects=sum(provider.objects for provider in providers),
            oldest=self.local.oldest(),
            error=failing[0].error if failing else "",
            retry_at=min((p.retry_at for p in failing if p.retry_at is not None), default=None),
            providers=providers,
        )

    def _waiting_for(self, url: str, sizes: list[int]) -> WaitingFor:
        backoff = self._backoffs.get(url)
        if backoff is None or not backoff.error:
            return WaitingFor(url, sum(sizes), len(sizes), "", None)
        retry = time_ns() + max(int((backoff.until - monotonic()) * NS), 0)
        return WaitingFor(url, sum(sizes), len(sizes), backoff.error, retry)

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
                    self._looked.set()
                    self._looked = anyio.Event()
                    self.look_at_room()
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
            await self.keep_numbers((number,))
            path = self.local.path(number)
            size = path.stat().st_size
            await self.provider(number >> 32).put(self.name(number), path)
            with anyio.CancelScope(shield=True):
                if self.local.waits(number):  # else its namespace was destroyed meanwhile
                    self.local.uploaded(number)
                    self._sizes[number] = size
                    self._is_whole(number, size)
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
            self.look_at_room()
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
        self.kick()
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
            ended = self._under_way(wanted)
            if ended is None:
                looked = self._looked
                self.kick()
                with anyio.move_on_after(LOOK):
                    await looked.wait()
                ended = self._under_way(wanted)
            if ended is not None:
                with anyio.move_on_after(TICK):
                    await ended.wait()
            elif all(map(self.local.waits, wanted)):  # for a commit, or for the uploads of others
                await anyio.sleep(LOOK)

    async def push_for_copy(self, needed: Collection[str] | None, patience: float) -> frozenset[str]:
        """`push` to the providers with these URLs (None: to all); for up to `patience` seconds to those of the others
        that do not fail at present.  Returns the providers that have not got all that waited when it was called.
        Errors: as `push`, of those that are needed."""
        waiting = {number: self.homes[number >> 32].provider for number in self.local.waiting_objects()}
        serials: dict[str, set[int]] = {}
        for number, url in waiting.items():
            serials.setdefault(url, set()).add(number >> 32)
        required = set[int]().union(*(serials[url] for url in serials if needed is None or url in needed))
        failures: list[Exception] = []

        async def attempt(some: Collection[int], limit: float | None) -> None:
            try:
                with anyio.move_on_after(limit):
                    await self.push(some)
            except (ArtfsError, OSError) as error:
                if limit is None:
                    failures.append(error)
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(attempt, required, None)
            for url, some in serials.items():
                backoff = self._backoffs.get(url)
                if patience > 0 and not some <= required and not (backoff is not None and backoff.error):
                    tasks.start_soon(attempt, some, patience)
        if failures:
            raise failures[0]
        return frozenset(url for number, url in waiting.items() if self.local.waits(number))

    def _under_way(self, wanted: Collection[int]) -> anyio.Event | None:
        """What is set when an upload of one of these has ended."""
        return next((self._uploading[number] for number in wanted if number in self._uploading), None)

    def look_at_room(self) -> None:
        """Set `crowded`, if that has changed."""
        crowded = self.local.waiting >= self._limit()
        if crowded != self.crowded:
            self.crowded = crowded
            if crowded:
                self.kick()
                log.warning("%d bytes wait for upload; writers wait, too", self.local.waiting)
            self.on_crowded(crowded)
            if not crowded:
                self._room.set()
                self._room = anyio.Event()

    async def wait_room(self, limit: float) -> bool:
        """Until less waits; False after `limit` seconds."""
        self.look_at_room()
        with anyio.move_on_after(limit) as scope:
            while self.crowded:
                self.kick()
                await self._room.wait()
        return not scope.cancelled_caught


async def _nothing(*args: object) -> None:
    pass


def _told(error: Exception, left: int) -> ArtfsError:
    if isinstance(error, ArtfsError):
        return error
    return UnavailableError(f"{left} objects are not uploaded yet: {error}; it is tried again")
