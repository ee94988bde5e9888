"""Commits: what the journal holds goes to the engine, and what it names to the disk before.

Each step is durable before the next: bytes of chunks (fdatasync) → engine batch with the journal's position (one
transaction, fsynced) → the journal's space is free.  So the engine never names a chunk that is not durable, and a crash
at any point leaves a state that replay of the journal completes.

Actors: the loop closes batches, which nobody changes any more; one commit at a time writes them in a worker thread.

Failures: a commit that fails keeps its batches and is tried again, ever more slowly; meanwhile changes go on until the
journal is full, then writers wait up to `wait_limit` and get ENOSPC (disk) or EIO.  What makes it impossible to promise
anything more (`damaged`) ends changes for good (`failure`): EROFS until the store is opened again, which replays the
journal.  Nothing is committed meanwhile, because an operation may have stopped half-way in memory.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from time import monotonic

import anyio
from anyio import to_thread

from artfs.blocks import Block
from artfs.errors import ArtfsError, DamagedError, FsError, InvalidError, NoSpaceError, UnavailableError
from artfs.meta import Batch, Engine
from artfs.meta.rules import FIRST
from artfs.objects import Providers
from artfs.objects.local import LocalObjects
from artfs.settings import Settings
from artfs.types import Epoch, Serial
from artfs.volume.journal import Journal, Log
from artfs.volume.rows import HEAD_KEY, Head
from artfs.volume.rowset import Pending
from artfs.volume.seal import Sealed, seal
from artfs.volume.tree import Tree
from artfs.volume.trees import Trees

log = logging.getLogger(__name__)

RETRY = 0.1, 5.0
"""Seconds between attempts of what fails: at first, at most."""
KICK_SHARE = 4
"""A commit starts when the journal is filled to this part, whatever the interval."""


class NotSynced(UnavailableError):
    """The disk may have dropped what it was told to keep: no promise can be made any more."""


def not_synced(error: OSError) -> NotSynced:
    why = os.strerror(error.errno or errno.EIO)
    return NotSynced(f"fsync of the store failed: {why}; check the disk, then remount")


class Commits(Trees):
    """`run` must be running for anything that waits for room to go on.  `trouble`: why the last commit failed, if it
    did; `commits`: how many there were; `on_commit`: one takes changes of this BLOB."""

    def __init__(
        self,
        engine: Engine,
        log: Log,
        objects: LocalObjects,
        settings: Settings,
        providers: Providers | None = None,
    ) -> None:
        super().__init__(engine, log, objects, settings, providers)
        self.remote.commit = self.commit
        self.remote.keep_numbers = self.keep_numbers
        self.trouble: Exception | None = None
        self.commits = 0
        self.on_commit: Callable[[Tree], None] = lambda tree: None
        self._started = 0
        self._lock = anyio.Lock()
        self._room = anyio.Event()
        self._kick = anyio.Event()
        if isinstance(log, Journal):
            objects.logged = lambda: log.position
            objects.settled = lambda: log.tail

    async def run(self) -> None:
        """Commit in the background, until cancelled."""
        delay = RETRY[0]
        while True:
            self._kick = anyio.Event()
            with anyio.move_on_after(self.settings.commit_interval):
                if not (self._full() or self.objects.filled):
                    await self._kick.wait()
            self.objects.filled = False
            self.objects.reap()
            if self.idle() or self.failure is not None:
                continue
            try:
                await self.commit()
                delay = RETRY[0]
            except (ArtfsError, OSError) as error:
                log.error("a commit failed, it is tried again in %.1f s: %s", delay, error)
                await anyio.sleep(delay)
                delay = min(delay * 2, RETRY[1])

    def idle(self) -> bool:
        """Nothing waits for a commit."""
        return not (self._waiting() or self._lock.locked())

    def _waiting(self) -> bool:
        return bool(self.changed or self.fresh or self.catalogue.records or self._unfinished())

    def _full(self) -> bool:
        return self.log.used * KICK_SHARE >= self.log.soft

    def _unfinished(self) -> bool:
        return any(tree.closed_batches for tree in self.trees.values())

    def kick(self) -> None:
        """Commit soon."""
        self._kick.set()

    async def wait_room(self, need: int = 0) -> None:
        """See `Owner`."""
        limit = monotonic() + self.settings.wait_limit
        while self.log.used + need >= self.log.soft:
            self.kick()
            room = self._room
            with anyio.move_on_after(max(limit - monotonic(), 0)) as scope:
                await room.wait()
            if scope.cancelled_caught or monotonic() > limit:
                raise FsError(errno.ENOSPC if isinstance(self.trouble, NoSpaceError) else errno.EIO)

    def committing(self) -> AbstractAsyncContextManager[object]:
        """While it is held no commit runs."""
        return self._lock

    async def commit(self) -> None:
        """Everything that was logged before this call is in the engine when it returns; calls share one commit.
        Errors: NoSpaceError, UnavailableError, DamagedError, OSError; nothing is lost then."""
        if self.failure is not None:  # what was acknowledged is in the journal, and complete only there
            raise self.failure
        want = self._started + 1
        async with self._lock:
            if self._started >= want or not (self._waiting() or self.log.used):
                return
            self._started += 1
            await self._commit()

    async def _commit(self) -> None:
        trees = self.changed
        self.changed = set()
        trees |= {tree for tree in self.trees.values() if tree.closed_batches}
        work: list[tuple[Tree, list[Pending]]] = []
        for tree in trees:
            if tree.blob:
                self.on_commit(tree)
            tree.cut()
            if tree.closed_batches:
                work.append((tree, list(tree.closed_batches)))
        fresh = self.leaving = self.fresh
        self.fresh = {}
        records = self.catalogue.records
        self.catalogue.records = {}
        position = self.log.position if isinstance(self.log, Journal) else 0
        if isinstance(self.log, Journal):
            records["journal", "state"] = self.log.state()
        try:
            with anyio.CancelScope(shield=True):
                sealed, lists = await to_thread.run_sync(self._write, fresh, work, records)
        except BaseException as error:
            self._put_back(trees, fresh, records)
            if type(error) is OSError:
                error = _translated(error)
            self.trouble = error if isinstance(error, Exception) else None
            if isinstance(error, DamagedError | InvalidError | NotSynced):
                # Invalid: the engine has what it said it has not, so that no attempt can succeed any more.
                self.damaged(error)
            raise error
        self.trouble = None
        self.commits += 1
        self.leaving = {}
        for serial in fresh.keys() & self.trees.keys():
            tree = self.trees[serial]
            if tree.closed_batches and tree.closed_batches[0].rows is fresh[serial]:
                work.append((tree, tree.closed_batches[:1]))
        for tree, batches in work:
            tree.committed(batches, sealed, lists)
        if isinstance(self.log, Journal):
            self.log.free(position)
        self.close_idle()
        self.remote.look_at_room()
        if self.objects.backed:
            self.remote.kick()
        self._room.set()
        self._room = anyio.Event()

    def _put_back(
        self,
        trees: set[Tree],
        fresh: dict[Serial, dict[bytes, bytes | None]],
        records: dict[tuple[str, str], str | None],
    ) -> None:
        """What a commit took, which failed."""
        self._started -= 1
        self.changed |= trees
        self.leaving = {}  # those that have a tree by now are with it
        self.fresh |= {serial: rows for serial, rows in fresh.items() if serial not in self.trees}
        records.pop(("journal", "state"), None)  # whoever takes the rest has not committed the batches
        self.catalogue.records = records | self.catalogue.records

    def _write(
        self,
        fresh: dict[Serial, dict[bytes, bytes | None]],
        work: list[tuple[Tree, list[Pending]]],
        records: dict[tuple[str, str], str | None],
    ) -> tuple[Sealed, dict[int, Block]]:
        """In a thread: seal, sync, commit.  Returns where sources went, and the sealed lists by id of the old ones."""
        sealed = Sealed()
        lists: dict[int, Block] = {}
        batches = [Batch(serial, FIRST, rows) for serial, rows in fresh.items()]
        for tree, pendings in work:
            for pending in pendings:
                rows, done = seal(self.objects, tree.serial, pending.blocks, self.inline_limit, sealed)
                for key, block in done.items():
                    lists[id(pending.blocks[key])] = block
                batches.append(Batch(tree.serial, Epoch(pending.epoch), pending.rows | rows, pending.checkpoint))
        try:
            self.objects.sync()
        except OSError as error:
            raise not_synced(error) from error
        self.engine.commit(batches, records)
        return sealed, lists

    async def keep_numbers(self, numbers: Iterable[int]) -> None:
        """Their namespaces never use these numbers again, even if no file is left to tell: durable when it returns."""
        tops: dict[int, int] = {}
        for number in numbers:
            tops[number >> 32] = max(tops.get(number >> 32, 0), (number & 0xFFFFFFFF) + 1)
        for serial, top in tops.items():
            value = self.engine.get(Serial(serial), HEAD_KEY)
            if value is not None and Head.unpack(value).objects >= top:
                continue
            while (namespace := self.catalogue.by_serial.get(Serial(serial))) is not None:
                tree = self.tree(namespace)
                if tree.gate is None:
                    self.objects.counts[serial] = max(self.objects.counts.get(serial, 0), top)
                    tree.rows[HEAD_KEY] = tree.counters().pack()
                    self.changed.add(tree)
                    break
                await tree.gate()
        await self.commit()


def _translated(error: OSError) -> ArtfsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"the store's disk is full ({error.filename or 'objects'}); free some space")
    return UnavailableError(f"the store's disk fails: {error}")
