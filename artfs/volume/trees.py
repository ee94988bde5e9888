"""The namespaces of a shard that are open: their trees, views of checkpoints, and new BLOBs that have no tree yet.

A tree that nobody uses stays open for a while (`IDLE_TREES`), and always while it has changes or somebody has hold of
it.  A namespace that is made is in the catalogue and the journal, or nowhere.

After a failure that makes it impossible to promise anything (`damaged`) no tree takes changes until the store is opened
again; while too much waits for providers (`crowded`) those whose bytes go to one take only what frees space.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn
from weakref import WeakSet

from artfs.errors import ArtfsError, DamagedError, FsError, InvalidError
from artfs.meta import Engine
from artfs.objects import Home, Providers
from artfs.objects.local import LocalObjects
from artfs.objects.remote import NoProviders, Remote
from artfs.settings import Settings
from artfs.types import Epoch, NamespaceType, Serial
from artfs.volume.catalogue import Catalogue, Namespace, pack
from artfs.volume.fresh import blob_bytes, blob_rows
from artfs.volume.inodes import Owner
from artfs.volume.journal import NAMESPACE, Log
from artfs.volume.rows import HEAD_KEY, Head
from artfs.volume.tree import Tree
from artfs.volume.waiting import MustWait

log = logging.getLogger(__name__)

MAKING = 4096
"""Bytes of journal that a new namespace takes besides its document, at most."""
SMALL = 512 << 10
"""Bytes of a BLOB that are made with it, at most: with its document one record of the journal."""
DOCUMENT_MAX = 1 << 20
"""Bytes of a namespace's document, at most."""
IDLE_TREES = 1024
"""Trees that are kept open although nobody uses them, about."""


class Trees(Owner):
    """`trees` by namespace, `changed`: those with changes that no commit has taken; `views`: of checkpoints.

    `fresh`: rows of BLOBs that were made and that nobody has opened, until a commit takes them; `leaving`: those that
    the commit has which runs.  `brief`: the order in which trees were glanced at; `_swept`: serials of namespaces in
    which nothing is left of an earlier process.  `on_close`: a tree is let go; `on_damage`: changes have ended."""

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
        self.read_ahead = settings.read_ahead
        self.node_cache = settings.node_cache
        self.inline_limit = settings.inline_limit
        self.crowded = False
        self.failure: ArtfsError | None = None
        self.catalogue = Catalogue(engine)
        self.trees: dict[Serial, Tree] = {}
        self.views: WeakSet[Tree] = WeakSet()
        self.changed: set[Tree] = set()
        self.fresh: dict[Serial, dict[bytes, bytes | None]] = {}
        self.leaving: dict[Serial, dict[bytes, bytes | None]] = {}
        self.brief: dict[Serial, None] = {}
        self.on_close: Callable[[Tree], None] = lambda tree: None
        self.on_damage: Callable[[ArtfsError], None] = lambda error: None
        self._glances = 0
        self._swept: set[Serial] = set()
        for namespace in self.catalogue.by_serial.values():
            objects.prefixes[namespace.serial] = namespace.prefix
        for serial, prefix in engine.records("prefix").items():  # of those that are gone, too
            objects.prefixes.setdefault(int(serial), prefix)
        for serial, home in engine.records("home").items():
            self.remote.settle(int(serial), Home(**json.loads(home)))
        for namespace in self.catalogue.by_serial.values():
            self.remote.settle(namespace.serial, namespace.home)

    # open ones
    def tree(self, namespace: Namespace) -> Tree:
        """The namespace's tree; the orphans of an earlier process are gone."""
        tree = self.trees.get(namespace.serial)
        if tree is None:
            tree = self.open(namespace)
        if namespace.serial not in self._swept:
            self._swept.add(namespace.serial)
            for key, _ in tree.scan(b"i"):
                tree.drop(tree.node(int.from_bytes(key[1:], "big")))
        return tree

    def open(self, namespace: Namespace, fresh: bool = False) -> Tree:
        """A tree that is not open, as it lies there, with the orphans of an earlier process; `fresh`: the engine knows
        nothing of it yet."""
        serial = namespace.serial
        first = self.fresh.pop(serial, None) or self.leaving.get(serial)
        fresh |= first is not None
        try:
            tree = Tree(self, serial, namespace.block_size, fresh=fresh, first=first)
        except DamagedError as error:
            self.damaged(error)
            raise
        self.objects.register(namespace.serial, namespace.prefix, tree.head.objects, fresh)
        self.lock(tree)
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

    def usage(self, namespace: Namespace) -> tuple[int, int]:
        """(bytes, inodes) of what it holds now, in O(1), and without opening it."""
        tree = self.trees.get(namespace.serial)
        if tree is not None:
            return tree.used_bytes, tree.used_inodes
        rows = self.fresh.get(namespace.serial) or self.leaving.get(namespace.serial)
        value = rows[HEAD_KEY] if rows else self.engine.get(namespace.serial, HEAD_KEY)
        head = Head.unpack(value) if value is not None else None
        return (head.used_bytes, head.used_inodes) if head else (0, 0)

    def bytes_in_row(self, namespace: Namespace) -> bytes | None:
        """All bytes of a BLOB that is not open, if they lie in a row; else None."""
        serial = namespace.serial
        if serial in self.trees:
            return None
        rows = self.fresh.get(serial) or self.leaving.get(serial)
        return blob_bytes(rows.get if rows else partial(self.engine.get, serial))

    def close_idle(self) -> None:
        """Let the trees go that were only glanced at, those of the longest ago first, down to `IDLE_TREES`."""
        excess = len(self.brief) - IDLE_TREES
        for serial in list(self.brief)[: max(excess, 0)]:
            tree = self.trees.get(serial)
            if tree is None:
                del self.brief[serial]
            elif self._is_idle(tree):
                self.on_close(tree)
                self.close_tree(serial, gone=False)
                self._swept.add(serial)

    def _is_idle(self, tree: Tree) -> bool:
        """Everything of it is in the engine, and nobody has hold of it."""
        if tree in self.changed or tree.open_batch or tree.closed_batches or tree.orphans or tree.volumes:
            return False
        return tree.gate is None and tree.moving is None and not any(node.looks for node in tree.nodes.values())

    def close_tree(self, serial: Serial, *, gone: bool = True) -> None:
        """`gone`: nothing names its bytes any more."""
        tree = self.trees.pop(serial, None)
        self.brief.pop(serial, None)
        if tree is not None:
            self.changed.discard(tree)
            self._swept.discard(serial)
            self.objects.forget(serial, gone=gone)

    # new ones
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
        tree = self.open(namespace, fresh=True)
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

    def found(self, namespace: Namespace) -> Tree:
        """Replay: the journal knows of a namespace that the engine has not got."""
        self.catalogue.put(namespace)
        self.catalogue.put_place(namespace)
        self.catalogue.saw_serial(namespace.serial)
        self.remote.settle(namespace.serial, namespace.home)
        return self.open(namespace)

    def update(self, namespace: Namespace) -> None:
        """Replace the document of a namespace that is there; as durable as any change of a tree.
        Errors: ExistsError; InvalidError if it is too long; FsError EROFS; MustWait."""
        document, text = self.document(namespace, b"U")
        self.catalogue.put(namespace, text)
        self._append(namespace.serial, document)

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

    def _append(self, serial: Serial, entries: bytes, data: bytes = b"") -> None:
        try:
            self.log.append(serial, entries, data)
        except OSError as error:
            self._unwritable(error)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is logged within is in the journal at the end.  REQUIRES: no await inside.  Errors: FsError EIO."""
        self.log.hold()
        try:
            yield
        finally:
            try:
                self.log.release()
            except OSError as error:
                self._unwritable(error)

    def _unwritable(self, error: OSError) -> NoReturn:
        self.damaged(ArtfsError(f"the journal cannot be written: {error}"))
        raise FsError(errno.EIO) from error

    # no changes
    def damaged(self, error: ArtfsError) -> None:
        """See `Owner`."""
        if self.failure is None:
            self.failure = error
            log.critical("%s; the store takes no changes until it is opened again", error)
            for tree in self.trees.values():
                self.lock(tree)
            self.on_damage(error)

    def _crowded(self, crowded: bool) -> None:
        self.crowded = crowded
        for tree in self.trees.values():
            self.lock(tree)

    def lock(self, tree: Tree) -> None:
        """Whether a change of it must look first for what holds it up."""
        held = tree.gate is not None or (tree.backed and self.crowded)
        tree.locked = held or tree.read_only or self.failure is not None
