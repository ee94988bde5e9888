"""A mount: one process serving the grid, or a part of it.

*Bound*: one principal, fixed when it is made; the kernel caches names, pages and writes, and opening needs no request.
*Checked*: many callers, told apart by uid; nothing is cached beyond the call, and each request is checked.

Threads: requests, trees and tasks run on trio's thread.  What could wait for the kernel (syncfs, invalidations, any use
of the mount itself) runs in worker threads, never on the loop, because the kernel may need an answer from the loop
first.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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
from artfs.fuse.native import InitFlag
from artfs.fuse.requests import Requests
from artfs.fuse.virtual import LOCKED, Numbers
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
UNTIL_CLOSED = (1 << 63) - 1
TELL_LIMIT = 2.0
"""Seconds that a reply waits for the kernel to take invalidations; they go on after it."""


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


OPEN_TREE = 428
"""open_tree(2), which has this number on every architecture; flags OPEN_TREE_CLONE and OPEN_TREE_CLOEXEC."""
CLONE = 1 | os.O_CLOEXEC


def _open_beside(point: Path) -> int:
    """A descriptor of the mount's root that does not keep the mount busy: it is of a copy that nobody else sees.  Where
    that takes rights that we have not, an ordinary one."""
    call = ctypes.CDLL(None).syscall
    copy = call(ctypes.c_long(OPEN_TREE), -100, ctypes.c_char_p(os.fsencode(point)), CLONE)
    if copy < 0:
        return os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=copy)
    finally:
        os.close(copy)


class Mount:
    """Serves `store` at `point`.  `ready` is called in a worker thread once the mount answers."""

    def __init__(self, store: Store, point: Path, options: Options) -> None:
        self.store = store
        self.point = point
        self.options = options
        self.native = native_module.load()
        self.numbers = Numbers()
        self.control = Control(self, self.numbers)
        self.guard: Guard | None = None
        self.grid = GridTree(
            store,
            self.numbers,
            lambda: self.guard.principal if self.guard is not None else options.principal,
            self._scope_uid if options.checked else None,
            self.statistics,
        )
        self.requests = Requests(
            self._root(),
            self.control,
            valid=0 if options.checked else store.settings.entry_timeout,
            cached=not options.checked,
            space=lambda: str(store.root or "/"),
            descriptors=store.shard.sync_descriptors,
            flush=self._flush,
            sync=store.shard.sync,
            stale_blocks=self._stale_blocks,
            refused=self._refused,
            remote=self._reach_remote if store.settings.durability == "remote" else None,
        )
        if options.checked or not options.principal.admin:
            self.guard = Guard(self.requests, self._resolve, self._permit, checked=options.checked)
        self.dispatch = Dispatch(self.requests, self.native, self.guard)
        self._tasks: trio.Nursery | None = None

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
        """The uid that may enter a scope directory; root where nobody is mapped to it."""
        for uid in sorted(self.store.settings.uid_map):
            principal = self.store.settings.principal(uid)
            if principal is None or principal.admin:
                continue
            if self.store.access(principal, sandbox, scope, owner) is Access.WRITE:
                return uid
        return 0

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
        options = {f"fsname={self.options.source}", "subtype=artfs", "default_permissions", *self.options.extra}
        if self.options.allow_other or self.options.checked:
            options.add("allow_other")
        self._mount(handlers, options)
        self.store.shard.objects.readers = self.native.jobs if self.native is not None else lambda: (0, 0)
        self.store.surfaces.append(self)
        try:
            async with trio.open_nursery() as nursery:
                self._tasks = nursery
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
    async def _flush(self, num: int) -> None:
        """Make the kernel write back what it caches of a file (and drop it)."""
        if self.native is not None:
            with suppress(OSError):
                await to_thread.run_sync(self.native.notify_inode, num, 0, UNTIL_CLOSED)

    async def _reach_remote(self, tree: Tree) -> None:
        """Errors: FsError EIO if the provider has not got everything within `wait_limit`."""
        try:
            with trio.fail_after(self.store.settings.wait_limit):
                await self.store.sync(self.store.volume_of(tree).namespace, settle=False)
        except (ArtfsError, OSError, trio.TooSlowError) as error:
            log.warning("not durable in the provider yet: %s", error or "it did not answer in time")
            raise FsError(errno.EIO) from error

    def _stale_blocks(self, num: int) -> None:
        """On the loop, inside a request that holds the inode: attributes alone are dropped without waiting."""
        with suppress(OSError):
            if self.native is not None:
                self.native.notify_inode(num, -1, 0)
            else:
                import pyfuse3

                pyfuse3.invalidate_inode(num, attr_only=True)

    def _refused(self, num: int) -> None:
        """A file that takes no writes was written to: its pages are not what it holds."""
        if self._tasks is not None:
            self._tasks.start_soon(partial(to_thread.run_sync, self._invalidate, [], [num], abandon_on_cancel=True))

    async def settle(self, volume: Volume) -> None:
        """See `Surface`: syncfs queues every dirty page, and when statfs is answered the queue before it was
        read."""
        if not self.options.checked:
            await to_thread.run_sync(self._barrier)

    def _barrier(self) -> None:
        fd = _open_beside(self.point)
        try:
            # Its result is ours: it tells of writes that we refused, to whatever namespace, since the last time.
            ctypes.CDLL(None).syncfs(fd)
            os.fstatvfs(fd)
        finally:
            os.close(fd)

    async def restored(self, volume: Volume, restored: Restored) -> None:
        stale = [node.num for node in restored.stale if node.looks]
        folders = [node.num for node in restored.folders if node.looks]
        names = [(folder.num, name) for folder, name in restored.names if folder.looks]
        await self._tell(names, stale + folders + list({num for num, _ in names}))

    async def gone(self, namespace: Namespace, nodes: list[Node]) -> None:
        held = [node.num for node in nodes if node.looks]
        views = [
            node
            for node in list(self.requests.held.values())
            if isinstance(node.tree, Tree) and node.tree.serial == namespace.serial
        ]
        void(views)
        self.control.forget(namespace)
        await self._tell([], held + [node.num for node in views])

    async def grid_changed(self, namespace: Namespace) -> None:
        sandbox, folder = namespace.place
        parent = self.grid.at(sandbox, folder)
        names = [(parent.num, os.fsencode(namespace.entry))]
        names += [
            (self.grid.at(sandbox).num, os.fsencode(folder)),
            (self.grid.at().num, os.fsencode(sandbox)),
        ]
        parents = [parent.num, self.grid.at(sandbox).num, self.grid.at().num]
        await self._tell(names, parents)

    async def checkpoint_changed(self, namespace: Namespace, checkpoint: Checkpoint) -> None:
        folder = self.control.folder(namespace)
        if folder is not None:
            await self._tell([(folder.num, os.fsencode(checkpoint.id))], [folder.num])

    async def scope_changed(self, sandbox: str, folder: str) -> None:
        top, parent = self.grid.at(), self.grid.at(sandbox)
        await self._tell([(top.num, os.fsencode(sandbox)), (parent.num, os.fsencode(folder))], [top.num, parent.num])

    async def names_changed(self, names: list[tuple[Node, bytes]]) -> None:
        held = [(folder.num, name) for folder, name in names if folder.looks]
        await self._tell(held, list({num for num, _ in held}))

    async def _tell(self, names: list[tuple[int, bytes]], inodes: list[int]) -> None:
        """Have the kernel look again.  Where it holds a directory's lock for the request that runs, its names follow
        after the reply.  Two requests that wait for each other's directory are why there is a limit."""
        assert self._tasks is not None
        locked = LOCKED.get()
        free = [item for item in names if item[0] not in locked]
        with trio.move_on_after(TELL_LIMIT):
            await to_thread.run_sync(self._invalidate, free, inodes, abandon_on_cancel=True)
        if len(free) < len(names):
            held = [item for item in names if item[0] in locked]
            again = partial(to_thread.run_sync, self._invalidate, held, list(locked), abandon_on_cancel=True)
            self._tasks.start_soon(again)

    def _invalidate(self, names: list[tuple[int, bytes]], inodes: list[int]) -> None:
        """Names are expired, not dropped: what is mounted below them stays."""
        root = self.requests.root.num
        if self.native is None:
            self._invalidate_slowly(names, inodes)
            return
        for num in inodes:  # these need no directory's lock, and names that lead to void inodes are looked up again
            with suppress(OSError):
                self.native.notify_inode(1 if num == root else num, 0, UNTIL_CLOSED)
        for num, name in names:
            with suppress(OSError):
                self.native.notify_entry(1 if num == root else num, name, True)

    def _invalidate_slowly(self, names: list[tuple[int, bytes]], inodes: list[int]) -> None:
        import pyfuse3

        root = self.requests.root.num
        for num, name in names:
            with suppress(OSError):
                pyfuse3.invalidate_entry(1 if num == root else num, name)
        for num in inodes:
            with suppress(OSError):
                pyfuse3.invalidate_inode(1 if num == root else num)

    # what the control surface asks for
    def volume(self, tree: Tree) -> Volume:
        return self.store.volume_of(tree)

    def describe(self, namespace: Namespace) -> dict[str, Any]:
        return self.store.describe(namespace)

    async def checkpoint(self, volume: Volume, name: str | None, description: str = "") -> Checkpoint:
        return await self.store.checkpoint(volume, name, description)

    async def restore(self, volume: Volume, name: str) -> Checkpoint:
        return await self.store.restore(volume, name)

    async def delete_checkpoint(self, volume: Volume, name: str) -> Checkpoint:
        return await self.store.delete_checkpoint(volume, name)

    async def clone(self, volume: Volume, name: str, at: str | None = None) -> Namespace:
        return await self.store.clone(volume, name, at)

    def statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = {"nodes_held": len(self.requests.held), "native": self.native is not None}
        if self.native is not None:
            found.update(self.native.stats())
        if isinstance(journal := self.store.shard.log, TimedJournal):
            found["ns_journal"] = journal.nanoseconds
        return found
