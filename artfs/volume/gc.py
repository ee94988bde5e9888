"""The collection of garbage: objects that nothing names are deleted, mostly dead ones are rewritten.

There are no counts of references; a *mark* reads every block row (heads, retired rows, orphans) in one snapshot.

Why what a mark finds dead stays dead.  Let N be the objects that the rows *and the pending changes* of all namespaces
name.  Only two things put an object into N: an append to it, and a copy of a name that is in N already (copy_file_range,
clone, restore, rewriting a list of extents, replay of any of them).  An object that is *closed* gets no appends.  Every
commit takes the pending changes of all namespaces as they are at one moment, so after it the engine names all of N of
that moment.  So: list what is closed, then commit, then take the snapshot; what is listed and not named then is out of
N, for ever.  Listing must come before the commit *begins*: an append may fall between the moment that a commit takes and
its end.  Journal records behind the commit name only what was open then.

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
from array import array
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from struct import Struct
from threading import Event
from time import monotonic, sleep, time_ns

import anyio
from anyio import to_thread

from artfs.blocks import Chunk
from artfs.errors import ArtfsError
from artfs.meta import Engine
from artfs.types import Serial
from artfs.volume.catalogue import Namespace
from artfs.volume.compaction import Compaction, is_sparse
from artfs.volume.dead import void
from artfs.volume.rows import HEAD_KEY, STORED, Head, unpack_block
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree

log = logging.getLogger(__name__)

BLOCKS = b"B", b"b"
"""What the keys of rows that name objects begin with."""
BURST = 128
"""Rows that a mark reads before others may have the interpreter."""
BATCH = 1000
"""Objects that are deleted at once."""
RETRY = 1.0, 60.0
"""Seconds between attempts of a deletion that fails: at first, at most."""
_ONE = Struct(">IIBQQI16sI")
"""A block of one piece that is stored."""
_PLACE = 24
"""Bits of a length within a place; longer ranges take several."""


class Live:
    """The ranges of one object that rows name, each once, whatever the number of rows.  `names` counts pieces."""

    __slots__ = ("_next", "_places", "names")

    def __init__(self) -> None:
        self.names = 0
        self._places = array("Q")
        self._next = 64

    def add(self, offset: int, length: int) -> None:
        self.names += 1
        while length >= 1 << _PLACE:
            part = (1 << _PLACE) - 1
            self._places.append(offset << _PLACE | part)
            offset += part
            length -= part
        self._places.append(offset << _PLACE | length)
        if len(self._places) >= self._next:
            self._places = array("Q", set(self._places))
            self._next = 2 * len(self._places) + 64

    def bytes(self) -> int:
        return sum(place & ((1 << _PLACE) - 1) for place in set(self._places))


def mark(engine: Engine, stop: Event) -> dict[int, Live]:
    """What rows name, by object.  In a thread; ends early, with nothing, when it is told to `stop`.
    Errors: DamagedError: a row that cannot be read may name anything."""
    found: dict[int, Live] = {}
    with closing(engine.named(BLOCKS)) as rows:
        for count, row in enumerate(rows):
            if not count % BURST:
                sleep(0)  # the loop must not wait for the interpreter as long as it would take it by force
                if stop.is_set():
                    return {}
            for number, offset, length in named_in(row.value):
                live = found.get(number)
                if live is None:
                    live = found[number] = Live()
                live.add(offset, length)
    return found


def named_in(value: bytes) -> list[tuple[int, int, int]]:
    """(object, offset, length) of the chunks that a block's row names.  Errors: DamagedError."""
    if len(value) == _ONE.size:
        _, _, kind, number, offset, length, _, _ = _ONE.unpack(value)
        if kind == STORED:
            return [(number, offset, length)]
    return [(c.object, c.offset, c.length) for _, _, c, _ in unpack_block(value) if isinstance(c, Chunk)]


@dataclass(frozen=True, slots=True)
class Gc:
    """What a run did, or with `dry_run` would have done.  `objects` and `bytes` are all that take no more chunks;
    `live_bytes` of them are named, `dead_bytes` are not.  `condemned`: found dead for the first time; `waiting`:
    condemned earlier, for a shorter time than the grace; `lifted`: condemned, but named; `compacted`: objects whose
    live bytes were rewritten; `unreachable`: namespaces whose provider did not answer."""

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
    unreachable: int = 0


@dataclass(slots=True)
class _Marked:
    """`sizes` of the closed objects, by number; `live` of all that rows name."""

    sizes: dict[int, int] = field(default_factory=dict)
    unreachable: set[int] = field(default_factory=set)
    pinned: set[int] = field(default_factory=set)
    live: dict[int, Live] = field(default_factory=dict)


class Collector:
    """Of one shard; REQUIRES: its loop.  Runs exclude each other.

    `pinned`: objects that must stay whatever rows say; `views`: the trees of checkpoints that are open; `save`: returns
    when metadata that were saved after the call cover what providers keep (None: this store saves none)."""

    def __init__(
        self,
        shard: Shard,
        *,
        pinned: Callable[[], Collection[int]] = tuple,
        views: Callable[[], Iterable[Tree]] = tuple,
        save: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.shard = shard
        self.remote = shard.remote
        self.pinned = pinned
        self.views = views
        self.save = save
        self.last: Gc | None = None
        self._lock = anyio.Lock()
        self._kick = anyio.Event()
        self._seen = -1

    # one run
    async def collect(self, *, dry_run: bool = False, compact: bool = True) -> Gc:
        """Mark, and delete what may go.  Errors: DamagedError (rows, or a store that takes no changes), NoSpaceError,
        UnavailableError; what is done by then stays done."""
        async with self._lock:
            buried = 0 if dry_run else await self._bury()
            marked = await self._mark()
            report = await self._judge(marked, dry_run, buried, compact)
            self.last = report
            return report

    async def _mark(self) -> _Marked:
        shard = self.shard
        marked = _Marked()
        doomed = shard.engine.records("doomed")
        for serial in await self._serials():
            if str(serial) in doomed:
                continue
            try:
                marked.sizes |= await self.remote.objects(serial)
            except (ArtfsError, OSError) as error:
                marked.unreachable.add(serial)
                log.warning("objects of namespace %d are left alone: %s", serial, error)
        marked.pinned.update(self.pinned())
        await shard.commit()
        self._seen = shard.commits
        stop = Event()
        try:
            marked.live = await to_thread.run_sync(mark, shard.engine, stop, abandon_on_cancel=True)
        finally:
            stop.set()
        return marked

    async def _serials(self) -> list[int]:
        """Of every namespace that may have objects, those that are gone too."""
        known = {int(serial) for serial in self.shard.engine.records("prefix") if serial.isdecimal()}
        return sorted(known | self.shard.catalogue.by_serial.keys())

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
        compacted, deleted = len(sparse), due
        if not dry_run:
            await self._write(dict.fromkeys(fresh | again, now), over)
            deleted = await self._delete(due)
            await self._close_gone(marked)
            compacted = await Compaction(shard, self.keep_numbers, self.views).run(sparse) if sparse else 0
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
            unreachable=len(marked.unreachable),
        )

    def _condemned(self) -> dict[int, int]:
        """Object → when it was condemned.  A record that cannot be read says: just now."""
        found = {}
        for id, doc in self.shard.engine.records("condemned").items():
            found[int(id, 16)] = int(doc) if doc.isdecimal() else 1 << 63
        return found

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
        backed = {number for number in due if self.remote.home(number >> 32) is not None}
        if backed and not await self._saved():
            due = due - backed
        await self.keep_numbers(due)
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

    async def _saved(self) -> bool:
        """Whether the metadata that recovery would use are of after this call."""
        if self.save is None:
            return True
        try:
            await self.save()
        except (ArtfsError, OSError) as error:
            log.warning("objects are deleted later, the metadata could not be saved: %s", error)
            return False
        return True

    async def keep_numbers(self, numbers: Iterable[int]) -> None:
        """Their namespaces never use these numbers again, even if no file is left to tell: durable when it returns."""
        shard = self.shard
        tops: dict[int, int] = {}
        for number in numbers:
            tops[number >> 32] = max(tops.get(number >> 32, 0), (number & 0xFFFFFFFF) + 1)
        for serial, top in tops.items():
            value = shard.engine.get(Serial(serial), HEAD_KEY)
            if value is not None and Head.unpack(value).objects >= top:
                continue
            while (namespace := shard.catalogue.by_serial.get(Serial(serial))) is not None:
                tree = shard.tree(namespace)
                if tree.gate is None:
                    shard.objects.counts[serial] = max(shard.objects.counts.get(serial, 0), top)
                    tree.rows[HEAD_KEY] = tree.counters().pack()
                    shard.changed.add(tree)
                    break
                await tree.gate()
        await shard.commit()

    def _void_views(self) -> None:
        """Views of checkpoints that are deleted name what is about to go."""
        for view in list(self.views()):
            if view.at not in {checkpoint.epoch for checkpoint in self.shard.engine.checkpoints(view.serial)}:
                nodes = list(view.nodes.values())
                view.nodes.clear()
                void(nodes)

    async def _close_gone(self, marked: _Marked) -> None:
        """Namespaces that are gone, and have no objects left: nothing needs to know their place any more."""
        shard = self.shard
        used = {number >> 32 for number in (*marked.sizes, *marked.live, *marked.pinned)}
        for serial in await self._serials():
            gone = Serial(serial) not in shard.catalogue.by_serial
            doomed = shard.engine.record("doomed", str(serial)) is not None
            if gone and not doomed and serial not in used and serial not in marked.unreachable:
                await self._forget(serial)

    async def _forget(self, serial: int) -> None:
        """Errors: UnavailableError."""
        shard = self.shard
        try:
            await self.remote.discard_namespace(serial)
        except (ArtfsError, OSError) as error:
            log.warning("objects of namespace %d are deleted later: %s", serial, error)
            raise
        records: dict[tuple[str, str], str | None] = {
            (kind, str(serial)): None for kind in ("doomed", "prefix", "home", "lent")
        }
        for id in shard.engine.records("condemned"):
            if int(id, 16) >> 32 == serial:
                records["condemned", id] = None
        shard.catalogue.lent.discard(Serial(serial))
        shard.catalogue.records |= records
        await shard.commit()

    def _sparse(self, marked: _Marked, live_bytes: dict[int, int]) -> dict[int, int]:
        """Object → pieces that name it, of those that are worth to be rewritten."""
        found = {}
        for number, live in live_bytes.items():
            namespace: Namespace | None = self.shard.catalogue.by_serial.get(Serial(number >> 32))
            if namespace is None or number in marked.pinned:
                continue
            if is_sparse(namespace, marked.sizes[number], live):
                found[number] = marked.live[number].names
        return found

    # destroyed namespaces
    async def bury(self) -> int:
        """Delete the objects of destroyed namespaces that lent nothing; returns how many namespaces are done.  Those
        whose provider does not answer are left for the next call."""
        async with self._lock:
            return await self._bury()

    async def _bury(self) -> int:
        shard = self.shard
        doomed = [int(id) for id in shard.engine.records("doomed") if id.isdecimal()]
        backed = [serial for serial in doomed if self.remote.home(serial) is not None]
        if backed and not await self._saved():
            doomed = [serial for serial in doomed if serial not in backed]
        done = 0
        for serial in doomed:
            if Serial(serial) in shard.catalogue.by_serial or Serial(serial) in shard.catalogue.lent:
                # Clones name its objects: those go one by one.
                shard.catalogue.records["doomed", str(serial)] = None
                await shard.commit()
                continue
            try:
                await self._forget(serial)
                done += 1
            except (ArtfsError, OSError):
                if shard.failure is not None:
                    raise
        return done

    # the background
    def kick(self) -> None:
        """A namespace is doomed: bury it soon."""
        self._kick.set()

    async def run(self) -> None:
        """Bury at once and collect every `gc_interval`, until cancelled."""
        shard = self.shard
        due = monotonic() + shard.settings.gc_interval
        delay = RETRY[0]
        while True:
            self._kick = anyio.Event()
            left = False
            try:
                if shard.failure is None:
                    await self.bury()
                    left = bool(shard.engine.records("doomed"))
                if shard.failure is None and monotonic() >= due:
                    due = monotonic() + shard.settings.gc_interval
                    if self._seen != shard.commits or shard.engine.records("condemned"):
                        await self.collect()
                        self._seen = shard.commits
            except (ArtfsError, OSError) as error:
                left = True
                log.error("garbage could not be collected: %s", error)
            delay = min(delay * 2, RETRY[1]) if left else RETRY[0]
            with anyio.move_on_after(min(max(due - monotonic(), 0.01), delay) if left else max(due - monotonic(), 0)):
                await self._kick.wait()
