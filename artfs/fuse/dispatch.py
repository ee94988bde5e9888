"""Which function answers which opcode, who may call it, and how one that must wait is run.

A *guard* stands before the functions of a mount whose callers may not do everything: it resolves the caller to a
principal, and asks the store what that principal may do in the namespace of the inode.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Any

import trio

from artfs.errors import ArtfsError, FsError
from artfs.fuse.control import IOCTLS, CheckpointsTree
from artfs.fuse.grid_tree import InfoTree
from artfs.fuse.native import Function, Native, Opcode
from artfs.fuse.requests import Caller, Requests
from artfs.types import Access, Principal
from artfs.volume.node import Node
from artfs.volume.tree import Tree
from artfs.volume.waiting import MustWait

log = logging.getLogger(__name__)

FUNCTIONS: dict[Opcode, str] = {
    Opcode.LOOKUP: "lookup",
    Opcode.FORGET: "forget",
    Opcode.GETATTR: "getattr",
    Opcode.SETATTR: "setattr",
    Opcode.READLINK: "readlink",
    Opcode.SYMLINK: "symlink",
    Opcode.MKNOD: "mknod",
    Opcode.MKDIR: "mkdir",
    Opcode.UNLINK: "unlink",
    Opcode.RMDIR: "rmdir",
    Opcode.LINK: "link",
    Opcode.OPEN: "open",
    Opcode.READ: "read",
    Opcode.WRITE: "write",
    Opcode.STATFS: "statfs",
    Opcode.RELEASE: "nothing",
    Opcode.FSYNC: "fsync",
    Opcode.SETXATTR: "setxattr",
    Opcode.GETXATTR: "getxattr",
    Opcode.LISTXATTR: "listxattr",
    Opcode.REMOVEXATTR: "removexattr",
    Opcode.FLUSH: "close_file",
    Opcode.OPENDIR: "opendir",
    Opcode.READDIR: "readdir",
    Opcode.RELEASEDIR: "nothing",
    Opcode.FSYNCDIR: "fsync",
    Opcode.CREATE: "create",
    Opcode.IOCTL: "ioctl",
    Opcode.FALLOCATE: "fallocate",
    Opcode.READDIRPLUS: "readdirplus",
    Opcode.RENAME2: "rename",
    Opcode.LSEEK: "lseek",
    Opcode.COPY_FILE_RANGE: "copy_file_range",
    Opcode.TMPFILE: "tmpfile",
}
NEVER_REFUSED = frozenset(
    ("lookup", "forget", "nothing", "close_file", "statfs", "read", "write", "fsync", "readdir", "readdirplus")
)
"""LOOKUP never refuses a name that another may have cached; what works on an open file was checked when it was opened
(and its requests come from the kernel's writeback, for nobody)."""
MUTATORS = frozenset(
    (
        "setattr",
        "symlink",
        "mknod",
        "mkdir",
        "unlink",
        "rmdir",
        "rename",
        "link",
        "create",
        "tmpfile",
        "setxattr",
        "removexattr",
        "fallocate",
        "copy_file_range",
    )
)
WITH_CALLER = frozenset(("open", "fallocate", "copy_file_range", "ioctl", "setxattr"))
"""What the kernel leaves to us to decide by who asks: root's changes keep set-id bits."""
OPEN_CHANGES = os.O_ACCMODE | os.O_TRUNC
SPECIAL = 0o010000, 0o020000, 0o060000, 0o140000
"""Types of inodes that a checked mount does not serve."""


class Guard:
    """`resolve(caller)` gives the principal, None for nobody; `permit(principal, tree)` what it may do there.
    `principal` is the one of the call that runs."""

    def __init__(
        self,
        requests: Requests,
        resolve: Callable[[Caller], Principal | None],
        permit: Callable[[Principal, Tree], Access],
        *,
        checked: bool,
    ) -> None:
        self.requests = requests
        self.resolve = resolve
        self.permit = permit
        self.checked = checked
        self.principal: Principal = Principal()

    def wrap(self, name: str, function: Function) -> Function:
        """`function` with the caller before its arguments."""
        refusable = name not in NEVER_REFUSED
        changes = name in MUTATORS
        takes_caller = name in WITH_CALLER

        def guarded(caller: Caller, ino: int, *args: Any) -> Any:
            self.principal = self.resolve(caller) or Principal()
            if refusable:
                wants = (name == "open" and args[0] & OPEN_CHANGES) or (name == "ioctl" and args[0] in IOCTLS)
                self._check(self.requests.node(ino), changes or bool(wants))
                if name in ("rename", "link", "copy_file_range"):
                    self._check(self.requests.node(args[1]), True)
            if self.checked and name == "mknod" and args[1] & 0o170000 in SPECIAL:
                raise FsError(errno.EPERM)
            return function(caller, ino, *args) if takes_caller else function(ino, *args)

        return guarded

    def _check(self, node: Node, changes: bool) -> None:
        tree: Any = node.tree
        if isinstance(tree, CheckpointsTree):
            tree = tree.volume.tree
        if isinstance(tree, InfoTree) and not self.principal.admin and self.checked:
            raise FsError(errno.EACCES)
        if not isinstance(tree, Tree):
            return
        have = self.permit(self.principal, tree)
        if have is Access.NONE or (changes and have is not Access.WRITE):
            raise FsError(errno.EACCES)
        if self.checked and node.mode & 0o170000 in SPECIAL:
            raise FsError(errno.EPERM)


class Dispatch:
    """Runs the functions, directly where `native` is there.  REQUIRES: `start` before the first request."""

    def __init__(self, requests: Requests, native: Native | None, guard: Guard | None) -> None:
        self.requests = requests
        self.native = native
        self.guard = guard
        self.functions: dict[str, Function] = {
            name: getattr(requests, name) for name in {*FUNCTIONS.values(), "entries"}
        }
        if guard is not None:
            self.functions = {name: guard.wrap(name, function) for name, function in self.functions.items()}
        self._waiting: dict[int, trio.CancelScope] = {}
        self._tasks: trio.Nursery | None = None

    def register(self, no_open: bool) -> None:
        """Give the extension its functions.  `no_open`: opening needs no request."""
        assert self.native is not None
        for opcode, name in FUNCTIONS.items():
            self.native.handler(opcode, self.functions[name], self.guard is not None or name in WITH_CALLER)
        self.native.handler(Opcode.FORGET, self.requests.forget, False)
        if no_open:
            for opcode in (Opcode.OPEN, Opcode.OPENDIR):
                self.native.constant(opcode, -errno.ENOSYS)
        for opcode in (Opcode.RELEASE, Opcode.RELEASEDIR):
            self.native.constant(opcode, 0)
        if self.requests.remote is None:
            self.native.constant(Opcode.FLUSH, -errno.ENOSYS)

    def start(self, tasks: trio.Nursery) -> None:
        self._tasks = tasks

    # native: a request that waits
    def on_wait(self, unique: int, opcode: int, function: Function, args: tuple[Any, ...], must: BaseException) -> None:
        assert self._tasks is not None
        assert isinstance(must, MustWait)
        scope = trio.CancelScope()
        if unique:
            self._waiting[unique] = scope
        self._tasks.start_soon(self._finish, unique, opcode, function, args, must, scope)

    def on_interrupt(self, unique: int) -> None:
        scope = self._waiting.get(unique)
        if scope is not None:
            scope.cancel()

    async def _finish(
        self,
        unique: int,
        opcode: int,
        function: Function,
        args: tuple[Any, ...],
        must: MustWait,
        scope: trio.CancelScope,
    ) -> None:
        result: Any = -errno.EINTR
        try:
            with scope:
                result = await self._run(must, function, args)
        except FsError as error:
            result = -error.errno
        except ArtfsError as error:
            log.warning("%s: %s", Opcode(opcode).name, error)
            result = -error.errno
        except Exception:
            log.exception("%s failed", Opcode(opcode).name)
            result = -errno.EIO
        finally:
            self._waiting.pop(unique, None)
        if unique:
            assert self.native is not None
            self.native.reply(unique, opcode, result)

    async def _run(self, must: MustWait, function: Function, args: tuple[Any, ...]) -> Any:
        while True:
            result = await must.wait()
            if must.final:
                return self.requests.enter(result) if isinstance(result, Node) else result
            try:
                return function(*args)
            except MustWait as again:
                must = again

    # pyfuse3's handlers
    async def ask(self, name: str, caller: Caller, *args: Any) -> Any:
        """Run a function by name for a caller, waiting as it asks.  Errors: FsError."""
        if name == "sync":
            await self.requests.sync()
            return 0
        function = self.functions[name]
        if self.guard is not None or name in WITH_CALLER:
            args = (caller, *args)
        try:
            return function(*args)
        except MustWait as must:
            try:
                return await self._run(must, function, args)
            except FsError:
                raise
            except ArtfsError as error:
                raise FsError(error.errno) from error
