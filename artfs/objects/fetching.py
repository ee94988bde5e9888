"""Fetching from providers what is wanted, and what will be.

What is fetched are runs of *pieces* of an object, `RUN` bytes at most; each piece by one task at a time, whoever wants
it.  It is hashed and written as it comes (`incoming`): who waits for a chunk goes on before the run is over, and reads
no chunk twice.

What comes, and what an earlier process left in the cache, is believed only when the chunk that is wanted from it has
the right hash; else that chunk is fetched again, alone, `ATTEMPTS` times in all.  A piece that is here, if in part, is
never written again as a whole: chunks in it may have been verified, and readers be at them.

Concurrency: everything on the loop's thread but the I/O itself and the hashing.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import cast

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from xxhash import xxh3_128_digest

from artfs.aio import soon_on_this_loop
from artfs.blocks import Chunk
from artfs.errors import ArtfsError, DamagedError, NoSpaceError, UnavailableError
from artfs.objects import Providers, Streamer
from artfs.objects.cache import Cache
from artfs.objects.incoming import Incoming, Write, write, write_chunk
from artfs.objects.local import LocalObjects
from artfs.settings import Settings
from artfs.together import all_at_once

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Fetches of bytes that are not what they should be."""
RUN = 16 << 20
"""Bytes of one request, at most, if a piece is not larger: building, signing and judging a request takes as long as
2 MiB of its body, and under the interpreter's lock."""


class _Flight:
    """Pieces on their way; `chunks` of them are verified as they come.  `waiters`: what each waits for, and its event.
    `error`: why they do not come."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.chunks = list(chunks)
        self.waiters: dict[anyio.Event, Callable[[], bool]] = {}
        self.over = False
        self.error: Exception | None = None

    def tell(self) -> None:
        """Chunks were verified, or it is over: those go on that waited for it."""
        for event, done in self.waiters.items():
            if self.over or done():
                event.set()

    async def wait(self, done: Callable[[], bool]) -> None:
        """Until it is over, or `done`.  Errors: its `error`."""
        while not (self.over or done()):
            event = anyio.Event()
            self.waiters[event] = done
            try:
                await event.wait()
            finally:
                del self.waiters[event]
        if self.over and self.error is not None:
            raise self.error


class Fetching(Cache):
    """`write` may be one that takes less of the interpreter's lock."""

    def __init__(self, local: LocalObjects, settings: Settings, providers: Providers) -> None:
        super().__init__(local, settings, providers)
        self.fetched = self.fetches = self.refetched = 0
        self.write: Write = write
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
                await all_at_once([partial(self._fetch, number, run, (chunk,)) for run in self._runs(missing)])
            else:
                await self._mend(chunk)
        raise DamagedError(
            f"object {self.name(number)} in {self.homes[number >> 32].provider} is damaged at "
            f"{chunk.offset}+{chunk.length}; run: artfs fsck --data"
        )

    async def bring_all(self, chunks: Collection[Chunk]) -> None:
        """The same for several, at once."""
        await all_at_once([partial(self.bring, chunk) for chunk in chunks])

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
                # Another attempt of each, one after the other, could take for ever: one error is for all.
                await flight.wait(lambda: all(map(self._is_right, chunks)))
            if all(map(self._is_right, chunks)):
                return
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
            flight.over = True
            flight.tell()

    async def _get(self, number: int, first: int, end: int, flight: _Flight) -> None:
        name, size = self.name(number), await self._size_of(number)
        offset = first * self.settings.piece_size
        length = min(end * self.settings.piece_size, size) - offset
        if length <= 0:
            raise UnavailableError(
                f"object {name} ends before {offset}: {size} bytes are in {self.homes[number >> 32].provider}"
            )
        self._coming += length
        try:
            for attempt in range(2):
                if self._over():
                    await self._make_room(0, keep=number)
                error = await self._take(number, size, range(first, end), length, flight)
                if error is None:
                    break
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise error
                if attempt:
                    raise NoSpaceError(f"no room to cache {name}; free some space on {self.local.cache}") from error
                await self._make_room(length, keep=number)
        finally:
            self._coming -= length
        if self._over():
            await self._make_room(0, keep=number)

    async def _take(self, number: int, size: int, run: range, length: int, flight: _Flight) -> OSError | None:
        """Receive these pieces into the copy, but for those that something is here of.  Returns why they cannot be
        written."""
        provider, name, start = self.provider(number >> 32), self.name(number), run[0] * self.settings.piece_size
        here, copy, soon = self._pieces_of(number), self.local.copies.get(number, 1), soon_on_this_loop()
        incoming = Incoming(
            self.local.cache_path(number),
            size,
            start,
            self.settings.piece_size,
            here.intersection(run),
            flight.chunks,
            copy,
            lambda: soon(flight.tell) if flight.waiters else None,
            self.write,
        )
        try:
            if provider.capabilities.streams:
                await cast(Streamer, provider).receive(name, start, length, incoming)
            else:
                data = await provider.get(name, start, length)
                with anyio.CancelScope(shield=True):  # what is written is known to be here
                    await to_thread.run_sync(incoming, 0, data)
            self.fetches += 1
            self.fetched += length
        finally:
            allocated = incoming.close()
            here.update(piece for piece in run if piece * self.settings.piece_size < incoming.end)
            if copy != self.local.copies.get(number, 1):  # it was deleted meanwhile
                self.local.evict(number)
            elif allocated:
                self._count(number, allocated)
        return incoming.error

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
                allocated = await to_thread.run_sync(write_chunk, path, size, chunk.offset, data)
            self._pieces_of(number).update(self._pieces(chunk))
            self._count(number, allocated)

    async def _size_of(self, number: int) -> int:
        size = self._sizes.get(number)
        if size is None:
            size = self._sizes[number] = (await self.provider(number >> 32).head(self.name(number))).size
        return size


def _meet(pieces: range, run: Sequence[int]) -> bool:
    return pieces[0] <= run[-1] and run[0] <= pieces[-1]
