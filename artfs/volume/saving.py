"""Saving: copies of the metadata in the provider, from which a machine that has nothing can go on.

A save compares the hashes of the database's segments with those of the last save and puts what is new as one object
(see `packs`).  It reads all of the database, at memory speed, and writes what has changed.

**A saved copy names only objects that the provider has.**  A save takes, in this order:

(a) a commit: what was acknowledged before the call is in the database;
(b) the snapshot, read to its end: new segments are packed in memory or in a scratch file;
(c) `push`, which closes the objects that are open *when it is called* and returns when every object that existed then
    is in its provider;
(d) the put of the pack, atomic.

Let a row of the snapshot name an object.  The row was committed before (b), and a committed row names only bytes that
were written before, so the object existed at (b), hence at (c), hence it was uploaded at (d), unless it was deleted
between (b) and (d).  So whoever deletes objects waits first for a save whose snapshot was begun after the rows had
forgotten them (`save`, or `mark` and `saved_after`).  That same rule keeps alive what the newest pack names.
If (c) or (d) fails nothing has changed: the newest copy is the one before.

**Packs go when no manifest needs them**: a pack is deleted after a later one was put, if neither of the two newest
manifests names it.  Their number and their dead bytes are bounded: what lives in the smallest, or the deadest, is put
again with the new pack.

A pack that may or may not have arrived (its put failed) keeps its sequence, which is not used again; it is deleted when
the next has arrived.  One save runs at a time; callers that wait for the same moment share one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic, time_ns
from typing import Any

import anyio
from anyio import to_thread
from xxhash import xxh3_128_digest

from artfs.errors import ArtfsError, BusyError, DamagedError, InvalidError
from artfs.meta.sqlite.pages import Image, Pages
from artfs.objects import Provider, marker
from artfs.volume.packs import (
    SEGMENT,
    Manifest,
    PackWriter,
    Place,
    list_packs,
    pack_name,
    read_manifest,
)

log = logging.getLogger(__name__)

MAX_PACKS = 32
"""Packs that one manifest names, at most."""
KEPT_PACKS = 16
"""To so many, besides the new one, they are brought down when they are too many."""
SLACK = 4 << 20
"""Bytes of packs that may be dead besides as many as are alive."""
READ = 1 << 20
"""Bytes of the database that are read at once; a multiple of SEGMENT."""
RETRY = 1.0, 60.0
"""Seconds between attempts of a save that fails: at first, at most."""
SCRATCH = "meta.pack"
NOTE = "saved.json"
"""Beside the database, for people: sequence and moment of the last copy that was made from here, and the trouble that a
process ended with which could not make one of what it had."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A copy of the metadata.  `moment`: nanoseconds since 1970, everything acknowledged before it is in the copy;
    `segments` of it were new or moved; `bytes` of the pack; `packs` that the copy consists of."""

    sequence: int
    moment: int
    segments: int
    bytes: int
    packs: int


@dataclass(frozen=True, slots=True)
class SavingStatistics:
    """`sequence` and `moment` of the newest copy, 0 if none was made from here; `bytes` put so far; `packs`, of
    `stored_bytes` in all, are in the provider; `seconds` that the last save took; `trouble`: why it failed."""

    saves: int
    bytes: int
    sequence: int
    moment: int
    packs: int
    stored_bytes: int
    seconds: float
    trouble: str


@dataclass(frozen=True, slots=True)
class Note:
    """What is in the file NOTE; zeros: no copy was made."""

    sequence: int = 0
    moment: int = 0
    trouble: str = ""


class Saver:
    """Of the database `path`, into `provider` (which may encode what it is given).  `marked`: the same place, as it
    is, where the marker lies.  `identity`: what store.json says.  `commit` and `push` as `Shard` and `Remote` have
    them; `idle`: nothing waits for a commit.  `scratch`: a directory for large packs on their way.
    `ready`: have the place claimed.

    Errors of `save`: what `commit`, `push` and the provider raise; BusyError if the store was recovered elsewhere.
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
        push: Callable[[], Awaitable[None]],
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
        self._noted = read_note(path.parent)
        self._stored: dict[int, int] | None = None
        self._next = 1
        self._version: int | None = None
        self._refused: ArtfsError | None = None
        self._looked = float("-inf")
        self._seconds = 0.0
        self._started = 0
        self._begun = 0
        self._covered = 0
        self._done = anyio.Event()
        self._lock = anyio.Lock()

    # what others wait for
    def mark(self) -> int:
        """For `saved_after`."""
        return self._begun

    async def saved_after(self, mark: int) -> None:
        """Until a copy is in the provider whose snapshot was taken after `mark` was; somebody must be saving."""
        while self._covered <= mark:
            await self._done.wait()

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
    async def save(self) -> Saved:
        """What was acknowledged before this call is in a copy when it returns; calls share one.  If nothing has
        changed since the last copy, that is it."""
        want = self._started + 1
        async with self._lock:
            if self._started >= want and self.last is not None:
                return self.last
            self._started += 1
            start = monotonic()
            try:
                self.last = await self._save()
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
        if self.last is None or not self.idle():
            return True
        async with self._lock:
            return await to_thread.run_sync(self._database_version) != self._version

    def _database_version(self) -> int:
        return self._database().version()

    def _database(self) -> Pages:
        if self._pages is None:
            self._pages = Pages(self.path)
        return self._pages

    async def _save(self) -> Saved:
        if self._refused is not None:
            raise self._refused
        if self._stored is None:
            await self.ready()
            await self._load()
        moment = time_ns()
        if not self.idle():
            await self.commit()
        self._begun += 1
        begun = self._begun
        version = await to_thread.run_sync(self._database_version)
        saved = self.last
        if saved is None or version != self._version:
            with PackWriter(self.scratch / SCRATCH) as pack:
                draft = await to_thread.run_sync(self._pack, pack, moment)
                if draft is not None or saved is None:
                    saved = await self._put(pack, draft, moment)
            self._version = version
        self._covered = begun
        self._done.set()
        self._done = anyio.Event()
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
            if manifest.packs <= stored.keys():
                self._manifest = manifest
                self._noted = Note(sequence, manifest.moment)
                break
        self._stored = stored
        self._next = max(stored, default=0) + 1

    # in a thread
    def _pack(self, pack: PackWriter, moment: int) -> tuple[Manifest, int] | None:
        """Put what is new into the pack.  Returns its manifest and how many segments are in it; None: nothing is new,
        and the pack is empty."""
        before = self._manifest
        known = {place.digest: place for place in before.places} if before is not None else {}
        with self._database().image() as image:
            digests = [xxh3_128_digest(data) for data in _segments(image)]
            size = image.size
            if before is not None and digests == [place.digest for place in before.places] and self.last is not None:
                return None
            sequence = self._next
            known = {digest: known[digest] for digest in set(digests) if digest in known}
            moving = self._folded(known.values())
            known = {digest: place for digest, place in known.items() if place.pack not in moving}
            count = 0
            for index, digest in enumerate(digests):
                if digest not in known:
                    known[digest] = Place(sequence, *pack.add(image.read(index * SEGMENT, SEGMENT)), digest)
                    count += 1
        places = [known[digest] for digest in digests]
        manifest = Manifest(sequence, moment, self.identity, self.generation, size, places)
        pack.finish(manifest)
        return manifest, count

    def _folded(self, places: Iterable[Place]) -> set[int]:
        """The packs whose living segments move into the new one."""
        assert self._stored is not None
        live: dict[int, int] = {}
        for place in places:
            live[place.pack] = live.get(place.pack, 0) + place.length
        return folded(live, self._stored)

    async def _put(self, pack: PackWriter, draft: tuple[Manifest, int] | None, moment: int) -> Saved:
        assert self._stored is not None and draft is not None
        manifest, count = draft
        await self.push()
        await self._look()
        self._next = manifest.sequence + 1
        self._stored[manifest.sequence] = pack.size
        await self.provider.put(pack_name(manifest.sequence), pack.source)
        before, self._manifest = self._manifest, manifest
        self._note(Note(manifest.sequence, moment))
        self.saves += 1
        self.bytes += pack.size
        await self._clean(manifest.packs | (before.packs if before is not None else set()))
        return Saved(manifest.sequence, moment, count, pack.size, len(manifest.packs))

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
                    await self.save()
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


def write_note(root: Path, note: Note) -> None:
    with suppress(OSError):  # nothing depends on it
        (root / NOTE).write_text(json.dumps(asdict(note)))


def read_note(root: Path) -> Note:
    """Of the store at `root`."""
    try:
        return Note(**json.loads((root / NOTE).read_text()))
    except (OSError, ValueError, TypeError):
        return Note()


def _segments(image: Image) -> Iterator[memoryview]:
    for offset in range(0, image.size, READ):
        data = image.read(offset, READ)
        view = memoryview(data)
        for start in range(0, len(data), SEGMENT):
            yield view[start : start + SEGMENT]


def folded(live: Mapping[int, int], stored: Mapping[int, int]) -> set[int]:
    """Of packs with so many living bytes, of so many in all: those to be emptied, so that there are at most MAX_PACKS
    and not more than half of their bytes, and SLACK, are dead."""
    found: set[int] = set()
    if len(live) >= MAX_PACKS:
        by_size = sorted(live, key=lambda sequence: live[sequence])
        found.update(by_size[: len(live) - KEPT_PACKS])
    left = {sequence: max(stored.get(sequence, 0), live[sequence]) for sequence in live if sequence not in found}
    total = sum(live.values())
    dead = sum(size - live[sequence] for sequence, size in left.items())
    for sequence in sorted(left, key=lambda sequence: live[sequence] / left[sequence]):
        if dead <= total + SLACK:
            break
        found.add(sequence)
        dead -= left[sequence] - live[sequence]
    return found
