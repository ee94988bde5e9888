"""The owner of a store: one engine, one journal, one object directory, and the trees that are open.

Actors: the loop's thread changes trees and appends to the journal; one commit at a time runs in a worker thread, over
batches that the loop has closed; readers of objects may be further threads (see `LocalObjects`).

A commit makes each step durable before the next: bytes of chunks (fdatasync) → engine batch with the journal's position
(one transaction, fsynced) → the journal's space is free.  So the engine never names a chunk that is not durable, and a
crash at any point leaves a state that replay of the journal completes.

Failures: a commit that fails keeps its batches and is tried again, ever more slowly; meanwhile changes go on until the
journal is full, then writers wait up to `wait_limit` and get ENOSPC (disk) or EIO.  A journal that cannot be written,
and bytes that fail their check, end changes for good (`failure`): EROFS until the store is opened again, which replays
the journal.  Nothing is committed meanwhile, because an operation may have stopped half-way in memory.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from weakref import WeakSet

import anyio
from anyio import to_thread

from artfs.blocks import Block, Chunk
from artfs.errors import ArtfsError, DamagedError, FsError, InvalidError, NoSpaceError, UnavailableError
from artfs.meta import Batch, Engine
from artfs.meta.rules import FIRST
from artfs.objects import Home, Providers
from artfs.objects.local import LocalObjects
from artfs.objects.remote import NoProviders, Remote
from artfs.settings import Settings
from artfs.types import Epoch, NamespaceType, Serial
from artfs.volume.catalogue import Catalogue, Namespace, pack
from artfs.volume.fresh import blob_rows
from artfs.volume.journal import NAMESPACE, Journal, Log
from artfs.volume.replay import replay
from artfs.volume.rowset import Pending
from artfs.volume.seal import Sealed, seal
from artfs.volume.tree import BLOB_DATA, Tree
from artfs.volume.waiting import MustWait

log = logging.getLogger(__name__)

RETRY = 0.1, 5.0
"""Seconds between attempts of a commit that fails: at first, at most."""
MAKING = 4096
"""Bytes of journal that a new namespace takes besides its document, at most."""
SMALL = 512 << 10
"""Bytes of a BLOB that are made with it, at most: with its document one record of the journal."""
DOCUMENT_MAX = 1 << 20
"""Bytes of a namespace's document, at most."""
IDLE_TREES = 1024
"""Trees that are kept open although nobody uses them, about."""
KICK_SHARE = 4
"""A commit starts when the journal is filled to this part, whatever the interval."""


@dataclass(frozen=True, slots=True)
class ShardStatistics:
    """`journal_used` of `journal_size` bytes wait for a commit; `trouble` is the last commit's error, if it failed."""

    commits: int
    journal_used: int
    journal_size: int
    open_namespaces: int
    nodes: int
    trouble: str
    failure: str


class Shard:
    """See the module.  `fresh`: rows of BLOBs that were made and that nobody has opened, until a commit takes them.
    `run` must be running for anything that waits for room to go on."""

    def __init__(
        self,
        engine: Engine,
        log: Log,
        objects: LocalObjects,
        settings: Settings,
        providers: Providers | None = None,
    ) -> None:
        self.engine = engine
        self.log = log
        self.objects = objects
        self.settings = settings
        self.remote = Remote(objects, settings, providers or NoProviders())
        self.remote.on_crowded = self._crowded
        self.remote.commit = self.commit
        self.crowded = False
        self.read_ahead = settings.read_ahead
        self.node_cache = settings.node_cache
        self.inline_limit = settings.inline_limit
        self.catalogue = Catalogue(engine)
        self.trees: dict[Serial, Tree] = {}
        self.views: WeakSet[Tree] = WeakSet()
        self.changed: set[Tree] = set()
        self.fresh: dict[Serial, dict[bytes, bytes | None]] = {}
        self._leaving: dict[Serial, dict[bytes, bytes | None]] = {}
        self.failure: ArtfsError | None = None
        self.trouble: Exception | None = None
        self.commits = 0
        self.on_damage: Callable[[ArtfsError], None] = lambda error: None
        self.brief: dict[Serial, None] = {}
        self._glances = 0
        self.on_close: Callable[[Tree], None] = lambda tree: None
        self.on_commit: Callable[[Tree], None] = lambda tree: None
        self._started = 0
        self._swept: set[Serial] = set()
        self._lock = anyio.Lock()
        self._room = anyio.Event()
        self._kick = anyio.Event()
        for namespace in self.catalogue.by_serial.values():
            objects.prefixes[namespace.serial] = namespace.prefix
        for serial, prefix in engine.records("prefix").items():  # of those that are gone, too
            objects.prefixes.setdefault(int(serial), prefix)
        for serial, home in engine.records("home").items():
            self.remote.settle(int(serial), Home(**json.loads(home)))
        for namespace in self.catalogue.by_serial.values():
            self.remote.settle(namespace.serial, namespace.home)
        if isinstance(log, Journal):
            objects.logged = lambda: log.position
            objects.settled = lambda: log.tail

    # trees
    def tree(self, namespace: Namespace) -> Tree:
        """The namespace's tree; the orphans of an earlier process are gone."""
        tree = self.trees.get(namespace.serial)
        if tree is None:
            tree = self._open(namespace)
        if namespace.serial not in self._swept:
            self._swept.add(namespace.serial)
            for key, _ in tree.scan(b"i"):
                tree.drop(tree.node(int.from_bytes(key[1:], "big")))
        return tree

    def _open(self, namespace: Namespace, fresh: bool = False) -> Tree:
        """`fresh`: the engine knows nothing of it yet."""
        serial = namespace.serial
        first = self.fresh.pop(serial, None) or self._leaving.get(serial)
        fresh |= first is not None
        try:
            tree = Tree(self, serial, namespace.block_size, fresh=fresh, first=first)
        except DamagedError as error:
            self.damaged(error)
            raise
        self.objects.register(namespace.serial, namespace.prefix, tree.head.objects, fresh)
        tree.locked |= self.failure is not None
        tree.blob = namespace.type is NamespaceType.BLOB
        if tree.blob:
            self.objects.unbounded.add(namespace.serial)
        self.trees[namespace.serial] = tree
        return tree

    def view(self, namespace: Namespace, epoch: Epoch, number: Serial) -> Tree:
        """What a checkpoint saw, read-only.  REQUIRES: the checkpoint is committed."""
        view = Tree(self, namespace.serial, namespace.block_size, at=epoch, number=number)
        self.views.add(view)
        return view

    def create(self, namespace: Namespace, mode: int, data: bytes = b"") -> Tree:
        """Enter it into the catalogue and make its root, of a BLOB its file with `data` (`SMALL` bytes at most), too;
        as durable as any change of a tree, all of it or nothing.
        Errors: ExistsError; InvalidError if its document is too long; FsError EROFS, ENOSPC, EIO; MustWait."""
        document, text = self.document(namespace, b"N", len(data))
        if data and self.crowded and namespace.home is not None:
            raise MustWait(self.wait_uploads)
        self.catalogue.put(namespace, text)
        self.catalogue.put_place(namespace)
        self.remote.settle(namespace.serial, namespace.home)
        self._swept.add(namespace.serial)
        tree = self._open(namespace, fresh=True)
        if tree.blob:
            try:
                tree.make_blob(
                    mode, 0o666 & ~namespace.umask, namespace.uid, namespace.gid, namespace.created, document, data
                )
            except FsError:  # the bytes could not be written
                self.catalogue.remove(namespace)
                self.close_tree(namespace.serial)
                raise
        else:
            tree.make_root(mode, namespace.uid, namespace.gid, document)
        self.brief[namespace.serial] = None
        return tree

    def create_blob(self, namespace: Namespace, mode: int, data: bytes) -> None:
        """`create` of a BLOB of few bytes, without opening its tree.
        REQUIRES: `is_small`; no set-group-id bit in `mode`."""
        document, text = self.document(namespace, b"N", len(data))
        self.catalogue.put(namespace, text)
        self.catalogue.put_place(namespace)
        data_mode = 0o666 & ~namespace.umask
        entries, rows = blob_rows(mode, data_mode, namespace.uid, namespace.gid, namespace.created, data)
        self.fresh[namespace.serial] = rows
        self._swept.add(namespace.serial)
        self._append(namespace.serial, document + entries, data)

    def is_small(self, namespace: Namespace, data: bytes) -> bool:
        """Whether its bytes lie in a row."""
        return namespace.type is NamespaceType.BLOB and namespace.home is None and len(data) <= self.inline_limit

    def on_the_way(self, serial: Serial) -> dict[bytes, bytes | None] | None:
        """The rows of a BLOB that has no tree, if the engine has not got them."""
        return self.fresh.get(serial) or self._leaving.get(serial)

    def update(self, namespace: Namespace) -> None:
        """Replace the document of a namespace that is there; as durable as any change of a tree.
        Errors: ExistsError; InvalidError if it is too long; FsError EROFS; MustWait."""
        document, text = self.document(namespace, b"U")
        self.catalogue.put(namespace, text)
        self._append(namespace.serial, document)

    def _append(self, serial: Serial, entries: bytes, data: bytes = b"") -> None:
        try:
            self.log.append(serial, entries, data)
        except OSError as error:
            self.damaged(ArtfsError(f"the journal cannot be written: {error}"))
            raise FsError(errno.EIO) from error

    def document(self, namespace: Namespace, kind: bytes, more: int = 0) -> tuple[bytes, str]:
        """The journal entry of its document, `N` of a new one or `U`, and the document; there is room for that and
        `more` bytes.  Errors: as `update`."""
        text = pack(namespace)
        document = text.encode()
        if len(document) > DOCUMENT_MAX:
            raise InvalidError(f"the metadata of a namespace may have {DOCUMENT_MAX} bytes of JSON; shorten it")
        if self.failure is not None:
            raise FsError(errno.EROFS)
        need = MAKING + len(document) + more
        if self.log.used + need >= self.log.soft:
            raise MustWait(partial(self.wait_room, need))
        return NAMESPACE.pack(kind, len(document)) + document, text

    def _make_data(self, tree: Tree, namespace: Namespace) -> None:
        tree.create(tree.root(), BLOB_DATA, 0o666 & ~namespace.umask, namespace.uid, namespace.gid)

    def found(self, namespace: Namespace) -> Tree:
        """Replay: the journal knows of a namespace that the engine has not got."""
        self.catalogue.put(namespace)
        self.catalogue.put_place(namespace)
        self.catalogue.saw_serial(namespace.serial)
        self.remote.settle(namespace.serial, namespace.home)
        return self._open(namespace)

    def glance(self, namespace: Namespace) -> Tree:
        """`tree`, for whoever is done with it before the loop goes on; others make a `Volume`."""
        serial = namespace.serial
        tree = self.trees.get(serial)
        if tree is None or serial not in self._swept:
            tree = self.tree(namespace)
            self._glances += 1
            if not self._glances % IDLE_TREES:
                self.close_idle()
        self.brief.pop(serial, None)
        self.brief[serial] = None
        return tree

    def close_idle(self) -> None:
        """Let the trees go that were only glanced at, those of the longest ago first, down to `IDLE_TREES`."""
        excess = len(self.brief) - IDLE_TREES
        for serial in list(self.brief)[: max(excess, 0)]:
            tree = self.trees.get(serial)
            if tree is None:
                del self.brief[serial]
            elif self._is_idle(tree):
                self.on_close(tree)
                self.close_tree(serial)
                self._swept.add(serial)

    def _is_idle(self, tree: Tree) -> bool:
        """Everything of it is in the engine, and nobody has hold of it."""
        if tree in self.changed or tree.open_batch or tree.closed_batches or tree.orphans or tree.volumes:
            return False
        return tree.gate is None and tree.moving is None and not any(node.looks for node in tree.nodes.values())

    def close_tree(self, serial: Serial) -> None:
        tree = self.trees.pop(serial, None)
        self.brief.pop(serial, None)
        if tree is not None:
            self.changed.discard(tree)
            self._swept.discard(serial)
            self.objects.forget(serial)

    # commits
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
        """See `Owner`; until the journal takes `need` bytes and one change more."""
        limit = monotonic() + self.settings.wait_limit
        while self.log.used + need >= self.log.soft:
            self.kick()
            room = self._room
            with anyio.move_on_after(max(limit - monotonic(), 0)) as scope:
                await room.wait()
            if scope.cancelled_caught or monotonic() > limit:
                raise FsError(errno.ENOSPC if isinstance(self.trouble, NoSpaceError) else errno.EIO)

    # providers
    async def fetch(self, chunks: Sequence[Chunk]) -> None:
        """See `Owner`; for as long as a provider fails it is tried again, up to `wait_limit`."""
        limit = monotonic() + self.settings.wait_limit
        delay = RETRY[0]
        while True:
            try:
                with anyio.fail_after(max(limit - monotonic(), 0)):
                    await self.remote.bring_all(chunks)
                return
            except (ArtfsError, OSError) as error:
                if isinstance(error, DamagedError) or monotonic() + delay >= limit:
                    log.error("%s", error or "a provider did not answer in time")
                    raise FsError(errno.EIO) from error
            await anyio.sleep(delay)
            delay = min(delay * 2, RETRY[1])

    def fetch_ahead(self, chunks: Iterable[Chunk]) -> None:
        """See `Owner`."""
        self.remote.ahead(chunks)

    def stored(self) -> None:
        """See `Owner`."""
        self.remote.look_at_room()
        if self.objects.filled:
            self.kick()

    def _crowded(self, crowded: bool) -> None:
        self.crowded = crowded
        for tree in self.trees.values():
            if tree.backed:
                tree.locked = crowded or tree.gate is not None or tree.read_only or self.failure is not None

    async def wait_uploads(self) -> None:
        """See `Owner`."""
        self.kick()
        if not await self.remote.wait_room(self.settings.wait_limit):
            raise FsError(errno.EIO if self.remote.waiting().error else errno.ENOSPC)

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
        fresh = self._leaving = self.fresh
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
            self._started -= 1
            self.changed |= trees
            self._leaving = {}  # those that have a tree by now are with it
            self.fresh |= {serial: rows for serial, rows in fresh.items() if serial not in self.trees}
            records.pop(("journal", "state"), None)  # whoever takes the rest has not committed the batches
            self.catalogue.records = records | self.catalogue.records
            if type(error) is OSError:
                error = _translated(error)
            self.trouble = error if isinstance(error, Exception) else None
            if isinstance(error, DamagedError | InvalidError):
                # Invalid: the engine has what it said it has not, so that no attempt can succeed any more.
                self.damaged(error)
            raise error
        self.trouble = None
        self.commits += 1
        self._leaving = {}
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
        self.objects.sync()
        self.engine.commit(batches, records)
        return sealed, lists

    def damaged(self, error: ArtfsError) -> None:
        """See `Owner`."""
        if self.failure is None:
            self.failure = error
            log.critical("%s; the store takes no changes until it is opened again", error)
            for tree in self.trees.values():
                tree.locked = True
            self.on_damage(error)

    async def recover(self) -> int:
        """Replay what the journal holds beyond the engine, and commit it.  Returns the number of records."""
        if not isinstance(self.log, Journal):
            return 0
        state = self.engine.record("journal", "state")
        if state is None:
            self.log.restart()
        else:
            self.log.seek(state)
        count = replay(self, self.log)
        self.log.restart()
        for serial, tree in self.trees.items():
            if tree.blob and tree.lookup(tree.root(), BLOB_DATA) is None:  # a crash came between the two records
                self._make_data(tree, self.catalogue.by_serial[serial])
        self.catalogue.records["journal", "state"] = self.log.state()
        self.brief.update(dict.fromkeys(self.trees))
        await self.commit()
        return count

    def sync_descriptors(self) -> list[int]:
        """What fsync(2) has to sync: objects that have grown, then the journal."""
        return [*self.objects.unsynced, self.log.fd] if self.log.fd >= 0 else []

    async def sync(self) -> None:
        """Everything acknowledged survives power loss.  Errors: FsError EIO."""
        fds = self.sync_descriptors()

        def work() -> None:
            for fd in fds:
                try:
                    os.fdatasync(fd)
                except OSError as error:
                    if error.errno != errno.EBADF:  # closed meanwhile: synced by a commit, or its namespace is gone
                        raise

        try:
            await to_thread.run_sync(work)
        except OSError as error:
            self.sync_failed(error.errno or errno.EIO)
            raise FsError(errno.EIO) from error

    def sync_failed(self, number: int) -> None:
        """The disk may have dropped what it was told to keep: no promise can be made any more."""
        self.damaged(
            UnavailableError(f"fsync of the store failed: {os.strerror(number)}; check the disk, then remount")
        )

    def statistics(self) -> ShardStatistics:
        return ShardStatistics(
            commits=self.commits,
            journal_used=self.log.used,
            journal_size=self.log.size if isinstance(self.log, Journal) else 0,
            open_namespaces=len(self.trees),
            nodes=sum(len(tree.nodes) for tree in self.trees.values()),
            trouble=str(self.trouble or ""),
            failure=str(self.failure or ""),
        )

    def committing(self) -> AbstractAsyncContextManager[object]:
        """While it is held no commit runs."""
        return self._lock

    async def close(self) -> None:
        """Commit what is left and let go of everything.  Errors: as `commit`; everything is let go of all the same."""
        try:
            if self.failure is None:
                with anyio.CancelScope(shield=True):
                    await self.commit()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of everything as it is; the journal keeps what is not committed."""
        self.engine.close()
        self.objects.close()
        if isinstance(self.log, Journal):
            self.log.close()


def _translated(error: OSError) -> ArtfsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"the store's disk is full ({error.filename or 'objects'}); free some space")
    return UnavailableError(f"the store's disk fails: {error}")
