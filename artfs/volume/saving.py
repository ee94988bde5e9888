"""Saving: copies of the metadata in the provider, from which a machine that has nothing can go on.

A save compares the hashes of the database's segments with those of the last save and puts what is new as one object
(see `packs`).  It reads all of the database, at memory speed, and writes what has changed.

**A saved copy names only objects that their providers have**, but for the providers that it says are *behind*.  A save
takes, in this order:

(a) a commit: what was acknowledged before the call is in the database;
(b) the snapshot, read to its end: new segments are packed in memory or in a scratch file;
(c) `push`, which returns when every object that existed when it was called is in its provider, or with those providers
    that lack one;
(d) the put of the pack, atomic; its manifest names them.

Let a row of the snapshot name an object.  The row was committed before (b), and a committed row names only bytes that
were written before, so the object existed at (b), hence at (c), hence at (d) it was uploaded, or its provider is
behind, or it was deleted between (b) and (d).  So whoever deletes objects waits first for a save whose snapshot was
begun after the rows had forgotten them, and whose copy is complete for all.  That same rule keeps alive what the newest
complete copy names, and each later one but for those that are behind: recovery takes the namespaces of each of these
from the newest copy for which it is not.  If (c) or (d) fails nothing has changed: the newest copy is the one before.

**Packs go when no manifest needs them**: a pack is deleted after a later one was put, if neither of the two newest
manifests names it, nor one that recovery would use for a provider that is behind.  Their number and their dead bytes
are bounded: what lives in the smallest, or the deadest, is put again with the new pack.

A pack that may or may not have arrived (its put failed) keeps its sequence, which is not used again; it is deleted when
the next has arrived.  One save runs at a time; callers that wait for the same moment share one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, time_ns
from typing import Any

import anyio
from anyio import to_thread
from xxhash import xxh3_128_digest

from artfs.errors import ArtfsError, BusyError, DamagedError, InvalidError
from artfs.meta.sqlite.pages import Image, Pages
from artfs.objects import Provider, marker
from artfs.volume.noted import Note, read_note, write_note
from artfs.volume.packs import (
    SEGMENT,
    Manifest,
    PackWriter,
    Place,
    folded,
    list_packs,
    pack_name,
    read_manifest,
    stand_ins,
)

log = logging.getLogger(__name__)

READ = 1 << 20
"""Bytes of the database that are read at once; a multiple of SEGMENT."""
RETRY = 1.0, 60.0
"""Seconds between attempts of a save that fails: at first, at most."""
SCRATCH = "meta.pack"
Push = Callable[[Collection[str] | None, float], Awaitable[frozenset[str]]]
"""See `Remote.push_for_copy`."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A copy of the metadata.  `moment`: nanoseconds since 1970, everything acknowledged before it is in the copy;
    `segments` of it were new or moved; `bytes` of the pack; `packs` that the copy consists of; `behind`: URLs of the
    providers for which it is not complete."""

    sequence: int
    moment: int
    segments: int
    bytes: int
    packs: int
    behind: frozenset[str]


@dataclass(frozen=True, slots=True)
class SavingStatistics:
    """`sequence` and `moment` of the newest copy, 0 if none was made from here; `bytes` put so far; `packs`, of
    `stored_bytes` in all, are in the provider; `seconds` that the last save took; `trouble`: why it failed; `behind`:
    providers that the newest copy is not complete for."""

    saves: int
    bytes: int
    sequence: int
    moment: int
    packs: int
    stored_bytes: int
    seconds: float
    trouble: str
    behind: tuple[str, ...]


class Saver:
    """Of the database `path`, into `provider` (which may encode what it is given).  `marked`: the same place, as it
    is, where the marker lies; its URL is that of the provider that most copies must be complete for.  `identity`: what
    store.json says.  `commit` and `push` as `Shard` and `Remote` have them; `idle`: nothing waits for a commit.
    `scratch`: a directory for large packs on their way.  `ready`: have the place claimed.

    Errors of `save` and `save_most`: what `commit`, `push` and the provider raise; BusyError if the store was recovered
    elsewhere.
    """

    def __init__(
        self,
        path: Path,
        provider: Provider,
        identity: Mapping[str, Any],
        *,
        generation: int,
        interval: float,
        commit: Callable[[], Awaitable[None]],
        push: Push,
        idle: Callable[[], bool],
        scratch: Path,
        marked: Provider | None = None,
    ) -> None:
        self.path = path
        self.provider = provider
        self.identity = identity
        self.generation = generation
        self.interval = interval
        self.commit = commit
        self.push = push
        self.idle = idle
        self.scratch = scratch
        self.marked = provider if marked is None else marked
        self.ready: Callable[[], Awaitable[object]] = _nothing
        self.last: Saved | None = None
        self.trouble: Exception | None = None
        self.saves = self.bytes = 0
        self._pages: Pages | None = None
        self._manifest: Manifest | None = None
        self._older: list[Manifest] = []
        self._noted = read_note(path.parent)
        self._stored: dict[int, int] | None = None
        self._next = 1
        self._version: int | None = None
        self._refused: ArtfsError | None = None
        self._looked = float("-inf")
        self._seconds = 0.0
        self._started = 0
        self._lock = anyio.Lock()

    async def allowed(self) -> None:
        """That this store may still write to its provider; looks once an interval.
        Errors: as `marker.check`; BusyError for good, once it was said."""
        if self._refused is None and monotonic() - self._looked < self.interval:
            return
        await self.ready()
        await self._look()

    async def _look(self) -> None:
        if self._refused is not None:
            raise self._refused
        try:
            await marker.check(self.marked, str(self.identity["uuid"]), self.generation)
        except (BusyError, InvalidError) as error:
            self._refused = error
            raise
        self._looked = monotonic()

    # saving
    async def save(self, providers: Collection[str] | None = None) -> Saved:
        """What was acknowledged before this call is in a copy when it returns, which is complete for these providers
        (URLs; None: for all); others are not waited for.  Calls share one copy.  If nothing has changed since the last
        one, that is it."""
        return await self._shared(providers, 0.0)

    async def save_most(self) -> frozenset[str]:
        """The same; complete for the provider of the place, and for those of others that do not fail, and that have
        everything after `interval`.  Returns the rest."""
        return (await self._shared((self.marked.url,), self.interval)).behind

    async def _shared(self, providers: Collection[str] | None, patience: float) -> Saved:
        want = self._started + 1
        async with self._lock:
            if self._started >= want and self.last is not None and not _lacks(self.last, providers, 0.0):
                return self.last
            self._started += 1
            start = monotonic()
            try:
                self.last = await self._save(providers, patience)
            except BaseException as error:
                self._started -= 1
                self.trouble = error if isinstance(error, Exception) else self.trouble
                raise
            self.trouble = None
            self._seconds = monotonic() - start
            return self.last

    @asynccontextmanager
    async def between(self) -> AsyncIterator[None]:
        """No copy is on its way within."""
        async with self._lock:
            yield

    async def changed(self) -> bool:
        """Whether there may be something to save; cheap."""
        if self.last is None or self.last.behind or not self.idle():
            return True
        async with self._lock:
            return await to_thread.run_sync(self._database_version) != self._version

    def _database_version(self) -> int:
        return self._database().version()

    def _database(self) -> Pages:
        if self._pages is None:
            self._pages = Pages(self.path)
        return self._pages

    async def _save(self, providers: Collection[str] | None, patience: float) -> Saved:
        if self._refused is not None:
            raise self._refused
        if self._stored is None:
            await self.ready()
            await self._load()
        moment = time_ns()
        if not self.idle():
            await self.commit()
        version = await to_thread.run_sync(self._database_version)
        saved = self.last
        if saved is None or version != self._version or _lacks(saved, providers, patience):
            with PackWriter(self.scratch / SCRATCH) as pack:
                draft, new = await to_thread.run_sync(self._pack, pack, moment, version)
                if new is not None or saved is None or _lacks(saved, providers, patience):
                    saved = await self._put(pack, draft, new, providers, patience)
            self._version = version
        return saved

    async def _load(self) -> None:
        """What an earlier process saved."""
        await self._look()
        stored = await list_packs(self.provider)
        for sequence in reversed(stored):
            try:
                manifest = await read_manifest(self.provider, sequence)
            except DamagedError as error:
                log.warning("%s; the copy of the metadata before it is used", error)
                continue
            if manifest.identity.get("uuid") != self.identity["uuid"]:
                raise InvalidError(f"{pack_name(sequence)} in {self.provider.url} is another store's: choose a prefix")
            if not manifest.packs <= stored.keys():
                continue
            if self._manifest is None:
                self._manifest = manifest
                self._noted = Note(sequence, manifest.moment)
            else:
                self._older.append(manifest)
            if not manifest.behind:
                break
        if self._manifest is not None:
            self._older = [older for older, _ in stand_ins(self._manifest, self._older)]
        self._stored = stored
        self._next = max(stored, default=0) + 1

    # in a thread
    def _pack(self, pack: PackWriter, moment: int, version: int) -> tuple[Manifest, int | None]:
        """Put what is new into the pack.  Returns its manifest and how many segments are in it; None: there is a copy
        that says the same."""
        before = self._manifest
        if before is not None and self.last is not None and version == self._version:
            return replace(before, sequence=self._next, moment=moment), None
        known = {place.digest: place for place in before.places} if before is not None else {}
        with self._database().image() as image:
            digests = [xxh3_128_digest(data) for data in _segments(image)]
            size = image.size
            sequence = self._next
            if before is not None and digests == [place.digest for place in before.places] and self.last is not None:
                return replace(before, sequence=sequence, moment=moment), None
            known = {digest: known[digest] for digest in set(digests) if digest in known}
            moving = self._folded(known.values())
            known = {digest: place for digest, place in known.items() if place.pack not in moving}
            count = 0
            for index, digest in enumerate(digests):
                if digest not in known:
                    known[digest] = Place(sequence, *pack.add(image.read(index * SEGMENT, SEGMENT)), digest)
                    count += 1
        places = [known[digest] for digest in digests]
        return Manifest(sequence, moment, self.identity, self.generation, size, places), count

    def _folded(self, places: Iterable[Place]) -> set[int]:
        """The packs whose living segments move into the new one."""
        assert self._stored is not None
        live: dict[int, int] = {}
        for place in places:
            live[place.pack] = live.get(place.pack, 0) + place.length
        return folded(live, self._stored)

    async def _put(
        self, pack: PackWriter, draft: Manifest, new: int | None, providers: Collection[str] | None, patience: float
    ) -> Saved:
        assert self._stored is not None
        behind = await self.push(providers, patience)
        if new is None and self.last is not None and behind == self.last.behind:
            return self.last
        manifest = replace(draft, behind=behind)
        await to_thread.run_sync(pack.finish, manifest)
        await self._look()
        self._next = manifest.sequence + 1
        self._stored[manifest.sequence] = pack.size
        await self.provider.put(pack_name(manifest.sequence), pack.source)
        before, self._manifest = self._manifest, manifest
        older = self._older if before is None else [before, *self._older]
        self._older = [each for each, _ in stand_ins(manifest, older)]
        self._note(Note(manifest.sequence, manifest.moment))
        self.saves += 1
        self.bytes += pack.size
        await self._clean(set[int]().union(*(kept.packs for kept in (manifest, *older[:1], *self._older))))
        return Saved(manifest.sequence, manifest.moment, new or 0, pack.size, len(manifest.packs), behind)

    async def _clean(self, needed: set[int]) -> None:
        assert self._stored is not None
        gone = [sequence for sequence in self._stored if sequence not in needed]
        if not gone:
            return
        try:
            await self.provider.delete([pack_name(sequence) for sequence in gone])
        except (ArtfsError, OSError) as error:
            log.warning("old copies of the metadata are still in %s: %s", self.provider.url, error)
            return
        for sequence in gone:
            del self._stored[sequence]

    # in the background
    async def run(self) -> None:
        """Save every interval while something changes, until cancelled, or the store was recovered elsewhere.  Not at
        once: a process that has the store for a moment leaves the copy to the next."""
        delay = RETRY[0]
        await anyio.sleep(self.interval)
        while True:
            try:
                if await self.changed():
                    await self.save_most()
                delay = RETRY[0]
                await anyio.sleep(self.interval)
            except (ArtfsError, OSError) as error:
                self.trouble = error
                if self._refused is not None:
                    log.error("the metadata are saved no more: %s", error)
                    return
                log.warning("the metadata are not saved, again in %.0f s: %s", delay, error)
                await anyio.sleep(delay)
                delay = min(delay * 2, RETRY[1])

    def statistics(self) -> SavingStatistics:
        stored = self._stored or {}
        return SavingStatistics(
            saves=self.saves,
            bytes=self.bytes,
            sequence=self._noted.sequence,
            moment=self._noted.moment,
            packs=len(stored),
            stored_bytes=sum(stored.values()),
            seconds=self._seconds,
            trouble=str(self._refused or self.trouble or self._noted.trouble),
            behind=tuple(sorted(self.last.behind)) if self.last is not None else (),
        )

    def give_up(self, why: str) -> None:
        """This process ends without a copy of what it has."""
        self._note(replace(self._noted, trouble=str(self._refused or self.trouble or why)))

    def _note(self, note: Note) -> None:
        self._noted = note
        write_note(self.path.parent, note)

    def close(self) -> None:
        """REQUIRES: no save runs."""
        if self._pages is not None:
            self._pages.close()
            self._pages = None


async def _nothing() -> None:
    pass


def _lacks(saved: Saved, providers: Collection[str] | None, patience: float) -> bool:
    """Whether it is not complete for all that it should be, or could be."""
    return bool(saved.behind) and (patience > 0 or providers is None or not saved.behind.isdisjoint(providers))


def _segments(image: Image) -> Iterator[memoryview]:
    for offset in range(0, image.size, READ):
        data = image.read(offset, READ)
        view = memoryview(data)
        for start in range(0, len(data), SEGMENT):
            yield view[start : start + SEGMENT]
