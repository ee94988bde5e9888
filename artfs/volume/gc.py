"""The collection of garbage: objects that nothing names are deleted, mostly dead ones are rewritten.

There are no counts of references; a *mark* reads every block row (heads, retired rows, orphans) in one snapshot.

Why what a mark finds dead stays dead.  Let N be the objects that the rows *and the pending changes* of all namespaces
name.  Only two things put an object into N: an append to it, and a copy of a name that is in N already (as
copy_file_range, clone, restore, the sealing of a list of extents and replay make them).  An object that is *closed*
gets no appends.  Every commit takes the pending changes of all namespaces as they are at one moment, so after it the
engine names all of N of that moment.  So: list what is closed, then commit, then take the snapshot; what is listed and
not named then is out of N, for ever.  Listing must come before the commit *begins*: an append may fall between the
moment that a commit takes and its end.  Records of the journal behind the commit name only what was open then.

Whoever makes a name outside of that (appends now, has it logged later; a URL; an upload that is to be registered) keeps
the object `pinned` meanwhile, from before it is closed or exists until its name is logged.  Compaction does so too: it
runs under the same lock as marks.

Deleting takes two marks: the first *condemns* (record `condemned`), a later one deletes what is still unnamed after
`gc_grace`, when the metadata that recovery would use have been saved since.  The grace is for readers that hold a chunk
whose name has just gone.  A crash between any two steps leaves garbage or records, both found by the next run.

Objects of a namespace that was destroyed and had lent nothing go at once, by prefix (record `doomed`, see `bury`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from threading import Event
from time import monotonic, time, time_ns

import anyio
from anyio import to_thread

from artfs.errors import ArtfsError
from artfs.objects import Home
from artfs.types import Serial
from artfs.volume.compaction import Compaction, is_sparse, is_wasteful
from artfs.volume.dead import void
from artfs.volume.marks import Live, mark
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree

log = logging.getLogger(__name__)

AT_ONCE = 256
"""Namespaces whose directories are deleted in one step."""

BATCH = 1000
"""Objects that are deleted at once."""
RETRY = 1.0, 60.0
"""Seconds between attempts of a deletion that fails: at first, at most."""
IMPORTING = "importing"
"""The kind of records of namespaces that are being imported: nobody but the import touches their objects."""
DAY = 86_400
FORCED = 6
"""Every so many intervals a run is made although nothing seems to have changed."""


@dataclass(frozen=True, slots=True)
class Gc:
    """What a run did, or with `dry_run` would have done.  `objects` and `bytes` are all that take no more chunks;
    `live_bytes` of them are named, `dead_bytes` are not.  `condemned`: found dead for the first time; `waiting`:
    condemned earlier, for a shorter time than the grace; `lifted`: condemned, but named; `compacted`: objects whose
    live bytes were rewritten; `abandoned`: uploads that a killed process had begun; `unreachable`: namespaces whose
    provider did not answer."""

    dry_run: bool
    objects: int = 0
    bytes: int = 0
    live_bytes: int = 0
    dead_bytes: int = 0
    condemned: int = 0
    waiting: int = 0
    lifted: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    compacted: int = 0
    buried: int = 0
    abandoned: int = 0
    unreachable: int = 0


@dataclass(slots=True)
class _Marked:
    """`gone`: namespaces that were destroyed before; `sizes` of all closed objects, by number, and of `open` ones;
    `live`: what rows name."""

    gone: list[int]
    sizes: dict[int, int] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)
    unreachable: set[int] = field(default_factory=set)
    pinned: set[int] = field(default_factory=set)
    live: dict[int, Live] = field(default_factory=dict)


class Collector:
    """Of one shard; REQUIRES: its loop.  Runs exclude each other.

    `pinned`: objects that must stay whatever rows say; `views`: the trees of checkpoints that are open; `save`: returns
    when metadata that were saved after the call cover what providers keep, or with the URLs of those that they do not
    cover (None: this store saves none); `between_saves`: no copy is on its way within."""

    def __init__(
        self,
        shard: Shard,
        *,
        pinned: Callable[[], Collection[int]],
        views: Callable[[], Iterable[Tree]],
        save: Callable[[], Awaitable[Collection[str]]] | None,
    ) -> None:
        self.shard = shard
        self.remote = shard.remote
        self.pinned = pinned
        self.views = views
        self.save = save
        self.between_saves: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
        self.last: Gc | None = None
        self._lock = anyio.Lock()
        self._kick = anyio.Event()
        self._began = time()
        self._tidied = 0.0
        self._seen = -1
        self._idle = 0

    # one run
    async def collect(self, *, dry_run: bool = False, compact: bool = True) -> Gc:
        """Mark, and delete what may go.  Errors: DamagedError (rows, or a store that takes no changes), NoSpaceError,
        UnavailableError; what is done by then stays done."""
        async with self._lock:
            buried = await self._bury() if self.shard.catalogue.doomed and not dry_run else 0
            marked = await self._mark()
            report = await self._judge(marked, dry_run, buried, compact)
            self.last = report
            return report

    async def _mark(self) -> _Marked:
        shard = self.shard
        serials = self._serials()
        marked = _Marked([serial for serial in serials if Serial(serial) not in shard.catalogue.by_serial])
        down: set[Home] = set()
        for serial in serials:
            home = self.remote.home(serial)
            if home in down:
                marked.unreachable.add(serial)
                continue
            try:
                marked.sizes |= await self.remote.objects(serial)
            except (ArtfsError, OSError) as error:
                marked.unreachable.add(serial)
                if home is not None:
                    down.add(home)
                log.warning("garbage of namespace %d is left alone: %s", serial, error)
        marked.pinned.update(self.pinned())
        marked.open = shard.objects.open_objects()
        await shard.commit()
        stop = Event()
        try:
            marked.live = await to_thread.run_sync(mark, shard.engine, stop, abandon_on_cancel=True)
        finally:
            stop.set()
        return marked

    def _serials(self) -> list[int]:
        """Of every namespace that may have objects, those that are gone too."""
        engine, catalogue = self.shard.engine, self.shard.catalogue
        known = {int(serial): prefix for serial, prefix in engine.records("prefix").items()}
        known |= {serial: namespace.prefix for serial, namespace in catalogue.by_serial.items()}
        for serial, prefix in known.items():  # not all of them have been opened
            self.shard.objects.prefixes.setdefault(serial, prefix)
        return sorted(known.keys() - catalogue.doomed - {int(serial) for serial in engine.records(IMPORTING)})

    async def _judge(self, marked: _Marked, dry_run: bool, buried: int, compact: bool) -> Gc:
        shard = self.shard
        now = time_ns()
        grace = int(shard.settings.gc_grace * 1e9)
        condemned = self._condemned()
        dead = {n for n in marked.sizes if n not in marked.live and n not in marked.pinned}
        fresh = dead - condemned.keys()
        # A clock that was set back must not make one wait for ever.
        again = {n for n in dead & condemned.keys() if condemned[n] > now}
        due = {n for n in dead & condemned.keys() - again if now - condemned[n] >= grace}
        over = {n for n in condemned if n not in dead and n >> 32 not in marked.unreachable}
        lifted = [n for n in over if n in marked.live or n in marked.pinned]
        live_bytes = {n: min(live.bytes(), marked.sizes[n]) for n, live in marked.live.items() if n in marked.sizes}
        sparse = self._sparse(marked, live_bytes) if compact else {}
        total = sum(marked.sizes.values())
        compacted, deleted, abandoned = len(sparse), due, 0
        if not dry_run:
            await self._write(dict.fromkeys(fresh | again, now), over)
            deleted = await self._delete(due)
            await self._forget_gone(marked)
            self._close_wasted(marked)
            compacted = await Compaction(shard, self.views).run(sparse) if sparse else 0
            abandoned = 0 if marked.unreachable else await self._tidy()
        return Gc(
            dry_run=dry_run,
            objects=len(marked.sizes),
            bytes=total,
            live_bytes=sum(live_bytes.values()),
            dead_bytes=total - sum(live_bytes.values()),
            condemned=len(fresh),
            waiting=len(dead) - len(fresh) - len(deleted),
            lifted=len(lifted),
            deleted=len(deleted),
            deleted_bytes=sum(marked.sizes[n] for n in deleted),
            compacted=compacted,
            buried=buried,
            abandoned=abandoned,
            unreachable=len(marked.unreachable),
        )

    async def _tidy(self) -> int:
        """Once a day.  What was begun before this process began is nobody's; the day is for clocks that differ."""
        now = time()
        if now < self._tidied + DAY:
            return 0
        self._tidied = now
        return await self.remote.tidy(min(self._began, now - DAY))

    def _condemned(self) -> dict[int, int]:
        """Object → when it was condemned.  A record that cannot be read says: just now."""
        records = self.shard.engine.records("condemned").items()
        return {int(id, 16): int(doc) if doc.isdecimal() else 1 << 63 for id, doc in records}

    async def _write(self, new: dict[int, int], over: Iterable[int]) -> None:
        records: dict[tuple[str, str], str | None] = {("condemned", f"{number:x}"): None for number in over}
        records |= {("condemned", f"{number:x}"): str(time) for number, time in new.items()}
        if records:
            self.shard.catalogue.records |= records
            await self.shard.commit()

    async def _delete(self, due: set[int]) -> set[int]:
        """Returns those that are gone."""
        if not due:
            return set()
        gone: set[int] = set()
        needed = await self._needed({number >> 32 for number in due})
        due = {number for number in due if number >> 32 not in needed}
        await self.shard.keep_numbers(due)
        self._void_views()
        for serial in sorted({number >> 32 for number in due}):
            todo = sorted(number for number in due if number >> 32 == serial)
            for start in range(0, len(todo), BATCH):
                # What has been pinned since is somebody's for whom it was named a moment ago.
                some = set(todo[start : start + BATCH]).difference(self.pinned())
                try:
                    await self.remote.discard(some)
                except (ArtfsError, OSError) as error:
                    log.warning("%d objects are deleted later: %s", len(some), error)
                    break
                gone |= some
        await self._write({}, gone)
        return gone

    async def _needed(self, serials: Iterable[int]) -> set[int]:
        """Namespaces that recovery could want as they were before this call: while any provider is behind, the copy
        that it takes namespaces from is the last that is complete for all."""
        backed = {serial for serial in serials if self.remote.home(serial) is not None}
        if self.save is None or not backed:
            return set()
        try:
            behind = await self.save()
        except (ArtfsError, OSError) as error:
            log.warning("objects are deleted later, the metadata could not be saved: %s", error)
            return backed
        return backed if behind else set()

    def _void_views(self) -> None:
        """Views of checkpoints that are deleted name what is about to go."""
        for view in list(self.views()):
            if view.at not in {checkpoint.epoch for checkpoint in self.shard.engine.checkpoints(view.serial)}:
                nodes = list(view.nodes.values())
                view.nodes.clear()
                void(nodes)

    async def _forget_gone(self, marked: _Marked) -> None:
        """Namespaces that are gone, and have no objects left: nothing needs to know their place any more."""
        used = {number >> 32 for number in (*marked.sizes, *marked.live, *marked.pinned)} | marked.unreachable
        for serial in marked.gone:
            if serial not in used:
                await self._forget(serial)

    async def _forget(self, *serials: int) -> None:
        """All that is left of namespaces that are gone.  Errors: as the provider; OSError."""
        shard = self.shard
        await self.remote.discard_namespaces(serials)
        catalogue = shard.catalogue
        for serial in serials:
            catalogue.buried(serial)
            catalogue.lent.discard(Serial(serial))
            catalogue.records["lent", str(serial)] = None
        condemned = (int(id, 16) for id in shard.engine.records("condemned"))
        await self._write({}, {number for number in condemned if number >> 32 in serials})
        await shard.commit()

    def _sparse(self, marked: _Marked, live_bytes: dict[int, int]) -> dict[int, int]:
        """Object → pieces that name it, of those that are worth to be rewritten."""
        found = {}
        for number, live in live_bytes.items():
            namespace = self.shard.catalogue.by_serial.get(Serial(number >> 32))
            if number not in marked.pinned and is_sparse(namespace, marked.sizes[number], live):
                found[number] = marked.live[number].names
        return found

    def _close_wasted(self, marked: _Marked) -> None:
        """Open objects that are mostly garbage take no more chunks, so that the next run finds them."""
        wasted = set()
        for number, size in marked.open.items():
            live = marked.live[number].bytes() if number in marked.live else 0
            if is_wasteful(size, live):
                wasted.add(number)
        self.shard.objects.close_numbers(wasted)

    # destroyed namespaces
    async def bury(self) -> int:
        """Delete the objects of destroyed namespaces that lent nothing; returns how many namespaces are done.  Those
        whose provider does not answer are left for the next call."""
        async with self._lock:
            return await self._bury()

    async def _bury(self) -> int:
        shard = self.shard
        await shard.commit()  # what is doomed is so for good
        doomed = sorted(shard.catalogue.doomed)
        backed = [serial for serial in doomed if self.remote.home(serial) is not None]
        if backed:
            async with self.between_saves():  # or a copy that names them would be waiting for them
                self.remote.drop_waiting(backed)
            needed = await self._needed(backed)
            doomed = [serial for serial in doomed if serial not in needed]
        done = 0
        down: set[Home | None] = set()
        local = [serial for serial in doomed if self.remote.home(serial) is None]
        todo = deque(local[at : at + AT_ONCE] for at in range(0, len(local), AT_ONCE))
        todo.extend([serial] for serial in doomed if self.remote.home(serial) is not None)
        while todo:
            some = todo.popleft()
            home = self.remote.home(some[0])
            if home in down:
                continue
            try:
                await self._forget(*some)
                done += len(some)
            except (ArtfsError, OSError) as error:
                if shard.failure is not None:
                    raise
                if len(some) > 1:
                    todo.extend([serial] for serial in some)
                    continue
                log.warning("objects of namespace %d are deleted later: %s", some[0], error)
                if home is not None:
                    down.add(home)
        return done

    # the background
    def kick(self) -> None:
        """A namespace is doomed: bury it soon."""
        self._kick.set()

    async def run(self) -> None:
        """Bury at once and collect every `gc_interval`, until cancelled."""
        interval = self.shard.settings.gc_interval
        due = monotonic() + interval
        delay = RETRY[0]
        while True:
            self._kick = anyio.Event()
            try:
                left = await self._background(monotonic() >= due)
            except (ArtfsError, OSError) as error:
                left = True
                log.error("garbage could not be collected, it is tried again: %s", error)
            if monotonic() >= due:
                due = monotonic() + interval
            delay = min(delay * 2, RETRY[1]) if left else RETRY[0]
            with anyio.move_on_after(min(due - monotonic(), delay) if left else due - monotonic()):
                await self._kick.wait()

    async def _background(self, due: bool) -> bool:
        """Returns whether something is left to be buried."""
        shard = self.shard
        if shard.failure is not None:
            return False
        if shard.catalogue.doomed:
            await self.bury()
        if due:
            self._idle += 1
            if self._seen != shard.commits or self._idle >= FORCED or shard.engine.records("condemned"):
                await self.collect()
                self._seen = shard.commits
                self._idle = 0
        return bool(shard.catalogue.doomed)
