"""Fetching from providers what is wanted, and what will be.

What is fetched are runs of *pieces* of an object, `RUN` bytes at most; each piece by one task at a time, whoever wants
it.  Bytes are hashed in the buffer in which they came, by the thread that then writes them into the copy: who reads
behind a fetch reads no chunk twice.  Nothing waits for the disk: a copy may vanish.

What comes, and what an earlier process left in the cache, is believed only when the chunk that is wanted from it has
the right hash; else that chunk is fetched again, alone, `ATTEMPTS` times in all.  A piece that is here is never
written again as a whole: chunks in it may have been verified, and readers be at them.

Concurrency: everything on the loop's thread but the I/O itself and the hashing.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from xxhash import xxh3_128_digest

from artfs.blocks import Chunk
from artfs.errors import ArtfsError, DamagedError, NoSpaceError, UnavailableError
from artfs.objects import Providers
from artfs.objects.cache import Cache
from artfs.objects.local import LocalObjects
from artfs.settings import Settings

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Fetches of bytes that are not what they should be."""
RUN = 16 << 20
"""Bytes of one request, at most, if a piece is not larger: building, signing and judging a request takes as long as
2 MiB of its body, and under the interpreter's lock."""

PAGES = 1 << 20
"""Bytes of a hole that the kernel is asked at once to have pages for; it does no more than a disk's read-ahead."""

_one_writes = Lock()

Parts = Sequence[tuple[int, bytes | memoryview]]
"""Bytes of an object, each with where they begin."""


class _Flight:
    """Pieces on their way; `chunks` of them are verified when they come.  `error`: why they do not."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.chunks = list(chunks)
        self.over = anyio.Event()
        self.error: Exception | None = None


class Fetching(Cache):
    def __init__(self, local: LocalObjects, settings: Settings, providers: Providers) -> None:
        super().__init__(local, settings, providers)
        self.fetched = self.fetches = self.refetched = 0
        self._tasks: TaskGroup | None = None
        self._sizes: dict[int, int] = {}
        self._flights: dict[tuple[int, int], _Flight] = {}
        self._fetching = anyio.Semaphore(settings.fetches)

    # what is wanted
    async def bring(self, chunk: Chunk) -> None:
        """The chunk is here, and right, when this returns.  Errors: UnavailableError, DamagedError."""
        number = chunk.object
        for attempt in range(ATTEMPTS + 1):
            missing = self._missing(chunk)
            if not missing and (self._is_right(chunk) or await to_thread.run_sync(self.local.has, chunk)):
                return
            if attempt == ATTEMPTS:
                break
            if missing:
                await _all([partial(self._fetch, number, run, (chunk,)) for run in self._runs(missing)])
            else:
                await self._mend(chunk)
        raise DamagedError(
            f"object {self.name(number)} in {self.homes[number >> 32].provider} is damaged at "
            f"{chunk.offset}+{chunk.length}; run: artfs fsck --data"
        )

    async def bring_all(self, chunks: Collection[Chunk]) -> None:
        """The same for several, at once."""
        await _all([partial(self.bring, chunk) for chunk in chunks])

    async def read(self, chunk: Chunk) -> bytes:
        """All of the chunk, verified.  Errors: UnavailableError, DamagedError."""
        while True:
            if chunk.object >> 32 in self.homes:
                await self.bring(chunk)
            try:
                return await to_thread.run_sync(self.local.read, chunk)
            except DamagedError:
                if chunk.object >> 32 not in self.homes or self._is_right(chunk):
                    raise  # else it was evicted in between

    def ahead(self, chunks: Iterable[Chunk]) -> None:
        """They will be wanted soon."""
        wanted: dict[int, list[Chunk]] = {}
        for chunk in chunks:
            number = chunk.object
            if number >> 32 in self.homes and not self.local.waits(number) and not self._is_right(chunk):
                wanted.setdefault(number, []).append(chunk)
        if self._tasks is None:
            return
        for number, some in wanted.items():
            missing = {piece for chunk in some for piece in self._missing(chunk)}
            for piece in sorted(missing):
                if (flight := self._flights.get((number, piece))) is not None:
                    flight.chunks += [chunk for chunk in some if piece in self._pieces(chunk)]
                    missing.discard(piece)
            for run in self._runs(sorted(missing)):
                self._tasks.start_soon(self._ahead, number, run, [c for c in some if _meet(self._pieces(c), run)])
            if present := [chunk for chunk in some if not self._missing(chunk)]:
                self._tasks.start_soon(self._ahead, number, (), present)

    async def _ahead(self, number: int, run: Sequence[int], chunks: Sequence[Chunk]) -> None:
        try:
            if run:
                await self._fetch(number, run, chunks)
            left = [chunk for chunk in chunks if not self._is_right(chunk) and not self._missing(chunk)]
            if left:  # they were here already, or reach over the end of a run
                await to_thread.run_sync(lambda: [self.local.has(chunk) for chunk in left])
        except (ArtfsError, OSError) as error:
            log.debug("not fetched ahead: %s", error)
        except Exception:  # nobody waits for it
            log.exception("object %s is not fetched ahead", self.name(number))

    def _is_right(self, chunk: Chunk) -> bool:
        """Whether its bytes here were seen to be what they should be."""
        return chunk.verified == self.local.copies.get(chunk.object, 1)

    def _pieces(self, chunk: Chunk) -> range:
        size = self.settings.piece_size
        return range(chunk.offset // size, (chunk.offset + max(chunk.length, 1) - 1) // size + 1)

    def _missing(self, chunk: Chunk) -> list[int]:
        """The pieces of the chunk that nothing is here of."""
        if self._is_right(chunk) or self.local.waits(chunk.object):
            return []
        here = self._pieces_of(chunk.object)
        return [piece for piece in self._pieces(chunk) if piece not in here]

    def _runs(self, pieces: Sequence[int]) -> list[Sequence[int]]:
        """Parts of a sorted list that are fetched by one request each."""
        most = max(min(RUN, self.settings.cache_size // 16) // self.settings.piece_size, 1)
        runs: list[Sequence[int]] = []
        start = 0
        for i in range(1, len(pieces) + 1):
            if i == len(pieces) or pieces[i] != pieces[i - 1] + 1 or i - start == most:
                runs.append(pieces[start:i])
                start = i
        return runs

    # how it comes
    def _in_flight(self) -> Collection[int]:
        return {number for number, _ in self._flights}

    async def _fetch(self, number: int, run: Sequence[int], chunks: Collection[Chunk]) -> None:
        """Have these pieces here, with nothing between them, and of the chunks those verified that are right.
        Errors: UnavailableError, NotFoundError, NoSpaceError."""
        while flights := {flight for piece in run if (flight := self._flights.get((number, piece))) is not None}:
            for flight in flights:
                flight.chunks += chunks
                await flight.over.wait()
                if flight.error is not None:  # another attempt of each, one after the other, could take for ever
                    raise flight.error
        here = self._pieces_of(number)
        missing = [piece for piece in run if piece not in here]
        if not missing:
            return
        first, end = missing[0], missing[-1] + 1
        flight = _Flight(chunks)
        keys = [(number, piece) for piece in range(first, end)]
        self._flights.update(dict.fromkeys(keys, flight))
        try:
            async with self._fetching:
                await self._get(number, first, end, flight)
        except Exception as error:
            flight.error = error
            raise
        finally:
            for key in keys:
                del self._flights[key]
            flight.over.set()

    async def _get(self, number: int, first: int, end: int, flight: _Flight) -> None:
        provider, name, size = self.provider(number >> 32), self.name(number), await self._size_of(number)
        offset = first * self.settings.piece_size
        length = min(end * self.settings.piece_size, size) - offset
        if length <= 0:
            raise UnavailableError(f"object {name} ends before {offset}: {size} bytes are in {provider.url}")
        self._coming += length
        try:
            if self._over():
                await self._make_room(0, keep=number)
            data = await provider.get(name, offset, length)
            self.fetches += 1
            self.fetched += length
            with anyio.CancelScope(shield=True):  # what is written is known to be here
                await self._keep(number, size, range(first, end), data, flight)
        finally:
            self._coming -= length
        if self._over():
            await self._make_room(0, keep=number)

    async def _keep(self, number: int, size: int, run: range, data: bytes, flight: _Flight) -> None:
        """Write pieces that came into the copy, but not those that something is here of."""
        here, length = self._pieces_of(number), self.settings.piece_size
        parts = [(run[0] * length, memoryview(data))]
        if not here.isdisjoint(run):
            offsets = {piece: (piece - run[0]) * length for piece in run if piece not in here}
            parts = [(piece * length, memoryview(data)[at : at + length]) for piece, at in offsets.items()]
        copy = self.local.copies.get(number, 1)
        keep = partial(_keep, self.local.cache_path(number), size, parts, flight.chunks, copy)
        try:
            try:
                allocated = await to_thread.run_sync(keep)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                await self._make_room(len(data), keep=number)
                try:
                    allocated = await to_thread.run_sync(keep)
                except OSError:
                    name = self.name(number)
                    raise NoSpaceError(f"no room to cache {name}; free some space on {self.local.cache}") from error
        finally:
            here.update(run)  # if it failed, parts of them
        if copy == self.local.copies.get(number, 1):
            self._count(number, allocated)
        else:  # it was deleted meanwhile
            self.local.evict(number)

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
            with anyio.CancelScope(shield=True):
                allocated = await to_thread.run_sync(_write, path, ((chunk.offset, data),), size)
            self._pieces_of(number).update(self._pieces(chunk))
            self._count(number, allocated)

    async def _size_of(self, number: int) -> int:
        size = self._sizes.get(number)
        if size is None:
            size = self._sizes[number] = (await self.provider(number >> 32).head(self.name(number))).size
        return size


def _meet(pieces: range, run: Sequence[int]) -> bool:
    return pieces[0] <= run[-1] and run[0] <= pieces[-1]


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


def _keep(path: Path, size: int, parts: Parts, chunks: Iterable[Chunk], copy: int) -> int:
    """`_write`, and mark the chunks that are right in what is written."""
    right = [chunk for chunk in {id(chunk): chunk for chunk in chunks}.values() if _is_right(chunk, parts)]
    allocated = _write(path, parts, size)
    for chunk in right:
        chunk.verified = copy
    return allocated


def _is_right(chunk: Chunk, parts: Parts) -> bool:
    for start, part in parts:
        at = chunk.offset - start
        if at >= 0 and at + chunk.length <= len(part):
            return bool(xxh3_128_digest(part[at : at + chunk.length]) == chunk.hash)
    return False


def _write(path: Path, parts: Parts, size: int) -> int:
    """Into the copy of an object of `size` bytes.  Returns the bytes that the file takes on the disk."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)  # an earlier one may be longer, or cut short
        for offset, data in parts:
            # Finding pages takes longest, and pwrite does it under the file's lock, for which others spin.
            for at in range(offset, offset + len(data), PAGES):
                os.posix_fadvise(fd, at, min(PAGES, offset + len(data) - at), os.POSIX_FADV_WILLNEED)
        with _one_writes:
            for offset, data in parts:
                done = 0
                while done < len(data):
                    done += os.pwrite(fd, memoryview(data)[done:], offset + done)
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)
