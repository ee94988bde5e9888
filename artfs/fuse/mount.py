"""A mount: one process serving the grid, or a part of it.

*Bound*: one principal, fixed when it is made; the kernel caches names, pages and writes, and opening needs no request.
*Checked*: many callers, told apart by uid; nothing is cached beyond the call, and each request is checked.

Threads: requests, trees and tasks run on trio's thread.  What could wait for the kernel (see `Kernel`, and any use of
the mount itself) runs in worker threads, never on the loop.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import trio
from trio import to_thread

from artfs.errors import ArtfsError, FsError, NotFoundError
from artfs.fuse import native as native_module
from artfs.fuse.control import Control
from artfs.fuse.dispatch import Dispatch, Guard
from artfs.fuse.grid_tree import GridTree
from artfs.fuse.kernel import Kernel
from artfs.fuse.native import InitFlag
from artfs.fuse.requests import Requests
from artfs.fuse.virtual import Numbers
from artfs.grid import GridPath, scope_dir
from artfs.meta import Checkpoint
from artfs.store.store import Store
from artfs.types import ADMIN, Access, Principal, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.dead import void
from artfs.volume.journal import Journal, TimedJournal
from artfs.volume.node import Node
from artfs.volume.tree import Tree
from artfs.volume.volume import Restored, Volume
from artfs.volume.waiting import MustWait

log = logging.getLogger(__name__)
SWITCH_INTERVAL = 0.0002
"""Seconds: a commit's thread must not keep the loop from its requests for longer."""


@dataclass(frozen=True, slots=True)
class Options:
    """`path`: the part of the grid that is shown.  `extra`: further options for mount(2), such as `ro`;
    `source`: what the kernel's table of mounts shows as its source."""

    path: GridPath = GridPath()  # noqa: RUF009 - a frozen value
    principal: Principal = ADMIN
    checked: bool = False
    allow_other: bool = False
    source: str = "artfs"
    extra: Sequence[str] = ()


class Mount:
    """Serves `store` at `point`.  `ready` is called in a worker thread once the mount answers."""

    def __init__(self, store: Store, point: Path, options: Options) -> None:
        self.store = store
        self.point = point
        self.options = options
        self.native = native_module.load()
        self.numbers = Numbers()
        self.control = Control(store, self.numbers)
        self.guard: Guard | None = None
        self.grid = GridTree(
            store,
            self.numbers,
            lambda: self.guard.principal if self.guard is not None else options.principal,
            self._scope_uid if options.checked else None,
            self.statistics,
        )
        root = self._root()
        self.kernel = Kernel(point, self.native, root.num)
        self.requests = Requests(
            root,
            self.control,
            valid=0 if options.checked else store.settings.entry_timeout,
            cached=not options.checked,
            space=lambda: str(store.root or "/"),
            descriptors=store.shard.sync_descriptors,
            flush=self.kernel.flush,
            sync=store.shard.sync,
            stale_blocks=self.kernel.stale_blocks,
            refused=self.kernel.refused,
            remote=self._reach_remote if store.settings.durability == "remote" else None,
        )
        if options.checked or not options.principal.admin:
            self.guard = Guard(self.requests, self._resolve, self._permit, checked=options.checked)
        self.dispatch = Dispatch(self.requests, self.native, self.guard)

    def _root(self) -> Node:
        path = self.options.path
        if path.sandbox is None:
            return self.grid.at()
        if path.scope is None:
            return self.grid.at(path.sandbox)
        folder = scope_dir(path.scope, path.owner)
        if path.namespace is None:
            return self.grid.at(path.sandbox, folder)
        namespace = self.store.namespace_at(path.sandbox, folder, path.namespace)
        tree = self.store.volume(namespace).tree
        node: Node | None = tree.root()
        for part in filter(None, path.path.split("/")):
            assert node is not None
            node = tree.lookup(node, os.fsencode(part))
            if node is None:
                raise NotFoundError(f"{path} does not exist; `artfs ls {namespace.grid_path}` shows what does")
        assert node is not None
        return node

    # who calls
    def _resolve(self, caller: tuple[int, int, int]) -> Principal | None:
        if not self.options.checked:
            return self.options.principal
        return self.store.settings.principal(caller[0])

    def _permit(self, principal: Principal, tree: Tree) -> Access:
        namespace = self.store.catalogue.by_serial.get(tree.serial)
        if namespace is None:
            return Access.NONE
        return self.store.access(principal, namespace.sandbox, namespace.scope, namespace.owner)

    def _scope_uid(self, sandbox: str, scope: Scope, owner: str | None) -> int:
        """The uid that may enter a scope directory: its session's or user's own before another of the same user; root
        where nobody is mapped to it."""
        found = 0
        for uid in sorted(self.store.settings.uid_map):
            principal = self.store.settings.principal(uid)
            if principal is None or principal.admin:
                continue
            if self.store.access(principal, sandbox, scope, owner) is Access.WRITE:
                if owner == (principal.session if scope is Scope.SESSION else principal.user):
                    return uid
                found = found or uid
        return found

    # serving
    async def serve(self, ready: Callable[[], None]) -> None:
        """Until it is unmounted.  Errors: BusyError, NotFoundError, DeniedError, ArtfsError."""
        import pyfuse3

        from artfs.fuse.handlers import Handlers

        sys.setswitchinterval(SWITCH_INTERVAL)
        bound = not self.options.checked
        handlers = Handlers(self.requests, self.dispatch.ask, bound)
        if self.native is not None:
            self._configure(bound)
            if isinstance(self.store.shard.log, Journal):
                self.store.shard.log.pwritev = self.native.pwritev
            self.store.shard.remote.write = self.native.write_all
        options = {f"fsname={self.options.source}", "subtype=artfs", "default_permissions", *self.options.extra}
        if self.options.allow_other or self.options.checked:
            options.add("allow_other")
        self._mount(handlers, options)
        self.store.shard.objects.readers = self.native.jobs if self.native is not None else lambda: (0, 0)
        self.store.surfaces.append(self)
        try:
            async with trio.open_nursery() as nursery:
                self.kernel.tasks = nursery
                self.dispatch.start(nursery)
                nursery.start_soon(self._announce, ready)
                await pyfuse3.main(max_tasks=1 if self.native is not None else 99)
                nursery.cancel_scope.cancel()
        finally:
            self.store.surfaces.remove(self)
            with suppress(Exception):
                pyfuse3.close(unmount=True)
            sys.setswitchinterval(0.005)

    def _mount(self, handlers: Any, options: set[str]) -> None:
        import pyfuse3

        try:
            pyfuse3.init(handlers, str(self.point), options)
        except RuntimeError as error:
            raise ArtfsError(f"{self.point} cannot be mounted: {error}; `artfs doctor` says what is missing") from error

    def _configure(self, bound: bool) -> None:
        assert self.native is not None
        settings = self.store.settings
        loop = trio.lowlevel.current_trio_token()
        clear = InitFlag.ATOMIC_O_TRUNC | InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS | InitFlag.AUTO_INVAL_DATA
        if not bound:
            clear &= ~(InitFlag.ATOMIC_O_TRUNC | InitFlag.AUTO_INVAL_DATA)
        self.native.configure(
            init_set=InitFlag.HANDLE_KILLPRIV_V2
            | InitFlag.INIT_EXT
            | InitFlag.PARALLEL_DIROPS
            | InitFlag.DO_READDIRPLUS
            | InitFlag.READDIRPLUS_AUTO
            | InitFlag.CACHE_SYMLINKS,
            init_clear=clear,
            max_background=settings.max_background,
            congestion_threshold=settings.max_background,
            time_gran=1,
            spin_us=settings.spin_us,
            wait_us=settings.wait_us,
            burst_us=settings.burst_us,
            profile=settings.profile,
            fs_error=ArtfsError,
            must_wait=MustWait,
            on_wait=self.dispatch.on_wait,
            on_interrupt=self.dispatch.on_interrupt,
            on_error=lambda error: log.error("a request failed", exc_info=error),
            on_sync_error=lambda number: loop.run_sync_soon(self.store.shard.sync_failed, number),
        )
        # Without a request the kernel would take writes to what this principal may only read.
        self.dispatch.register(no_open=bound and self.guard is None)

    async def _announce(self, ready: Callable[[], None]) -> None:
        await to_thread.run_sync(self._warm_up)
        await to_thread.run_sync(ready)

    def _warm_up(self) -> None:
        """Make the kernel learn what it learns by asking once, and raise its read-ahead.  Until it knows that opening
        needs no request, each file that is created brings a RELEASE."""
        info = os.stat(self.point)
        self.requests.probe = name = f".artfs-{token_hex(8)}".encode()
        for path in (self.point, self.point / os.fsdecode(name)):
            with suppress(OSError):
                os.close(os.open(path, os.O_RDONLY))
        self.requests.probe = None
        device = f"{os.major(info.st_dev)}:{os.minor(info.st_dev)}"
        with suppress(OSError):
            Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(self.store.settings.read_ahead_kb))

    # what the kernel holds
    async def _reach_remote(self, tree: Tree) -> None:
        """Errors: FsError EIO if the provider has not got everything within `wait_limit`."""
        try:
            with trio.fail_after(self.store.settings.wait_limit):
                await self.store.sync(self.store.volume_of(tree).namespace, settle=False)
        except (ArtfsError, OSError, trio.TooSlowError) as error:
            log.warning("not durable in the provider yet: %s", error or "it did not answer in time")
            raise FsError(errno.EIO) from error

    async def settle(self, volume: Volume) -> None:
        """See `Surface`."""
        if not self.options.checked:
            await self.kernel.settle()

    async def restored(self, volume: Volume, restored: Restored) -> None:
        stale = [node.num for node in restored.stale if node.looks]
        folders = [node.num for node in restored.folders if node.looks]
        names = [(folder.num, name) for folder, name in restored.names if folder.looks]
        await self.kernel.tell(names, stale + folders + list({num for num, _ in names}))

    async def gone(self, namespace: Namespace, nodes: list[Node]) -> None:
        held = [node.num for node in nodes if node.looks]
        views = [
            node
            for node in list(self.requests.held.values())
            if isinstance(node.tree, Tree) and node.tree.serial == namespace.serial
        ]
        void(views)
        self.control.forget(namespace)
        await self.kernel.tell([], held + [node.num for node in views])

    async def grid_changed(self, namespace: Namespace) -> None:
        sandbox, folder = namespace.place
        parent = self.grid.at(sandbox, folder)
        names = [(parent.num, os.fsencode(namespace.entry))]
        names += [
            (self.grid.at(sandbox).num, os.fsencode(folder)),
            (self.grid.at().num, os.fsencode(sandbox)),
        ]
        parents = [parent.num, self.grid.at(sandbox).num, self.grid.at().num]
        await self.kernel.tell(names, parents)

    async def checkpoint_changed(self, namespace: Namespace, checkpoint: Checkpoint) -> None:
        folder = self.control.folder(namespace)
        if folder is not None:
            await self.kernel.tell([(folder.num, os.fsencode(checkpoint.id))], [folder.num])

    async def scope_changed(self, sandbox: str, folder: str) -> None:
        top, parent = self.grid.at(), self.grid.at(sandbox)
        await self.kernel.tell(
            [(top.num, os.fsencode(sandbox)), (parent.num, os.fsencode(folder))], [top.num, parent.num]
        )

    async def names_changed(self, names: list[tuple[Node, bytes]]) -> None:
        held = [(folder.num, name) for folder, name in names if folder.looks]
        await self.kernel.tell(held, list({num for num, _ in held}))

    def statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = {"nodes_held": len(self.requests.held), "native": self.native is not None}
        if self.native is not None:
            found.update(self.native.stats())
        if isinstance(journal := self.store.shard.log, TimedJournal):
            found["ns_journal"] = journal.nanoseconds
        return found
