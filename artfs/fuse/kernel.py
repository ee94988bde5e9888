"""What the kernel holds of a mount, and how it is made to hand it over or to look again.

All of this may wait for the kernel, which may need an answer from the loop first: it runs in worker threads, but for
what the kernel takes without waiting.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio
from trio import to_thread

from artfs.fuse.native import Native
from artfs.fuse.virtual import LOCKED

UNTIL_CLOSED = (1 << 63) - 1
TELL_LIMIT = 2.0
"""Seconds that a reply waits for the kernel to take invalidations; they go on after it."""
OPEN_TREE = 428
"""open_tree(2), which has this number on every architecture; flags OPEN_TREE_CLONE and OPEN_TREE_CLOEXEC."""
CLONE = 1 | os.O_CLOEXEC


class Kernel:
    """Of the mount at `point`; `native` None: by pyfuse3's calls.  `root`: number of the inode that the kernel calls 1;
    `tasks`: where what goes on after a reply runs, while the mount is served."""

    def __init__(self, point: Path, native: Native | None, root: int) -> None:
        self.point = point
        self.native = native
        self.root = root
        self.tasks: trio.Nursery | None = None

    # to hand over
    async def settle(self) -> None:
        """What was written before this call has reached the requests' functions: syncfs queues every dirty page, and
        when statfs is answered the queue before it was read."""
        await to_thread.run_sync(self._barrier)

    def _barrier(self) -> None:
        fd = _open_beside(self.point)
        try:
            # Its result is ours: it tells of writes that we refused, to whatever namespace, since the last time.
            ctypes.CDLL(None).syncfs(fd)
            os.fstatvfs(fd)
        finally:
            os.close(fd)

    async def flush(self, num: int) -> None:
        """It writes back what it caches of a file (and drops it)."""
        if self.native is not None:
            with suppress(OSError):
                await to_thread.run_sync(self.native.notify_inode, num, 0, UNTIL_CLOSED)

    # to look again
    def stale_blocks(self, num: int) -> None:
        """On the loop, inside a request that holds the inode: attributes alone are dropped without waiting."""
        with suppress(OSError):
            if self.native is not None:
                self.native.notify_inode(num, -1, 0)
            else:
                import pyfuse3

                pyfuse3.invalidate_inode(num, attr_only=True)

    def refused(self, num: int) -> None:
        """A file that takes no writes was written to: its pages are not what it holds."""
        if self.tasks is not None:
            self.tasks.start_soon(partial(to_thread.run_sync, self._invalidate, [], [num], abandon_on_cancel=True))

    async def tell(self, names: list[tuple[int, bytes]], inodes: list[int]) -> None:
        """Names (in directories) and inodes are not what they were.  Where the kernel holds a directory's lock for the
        request that runs, its names follow after the reply.  Two requests that wait for each other's directory are why
        there is a limit."""
        assert self.tasks is not None
        locked = LOCKED.get()
        free = [item for item in names if item[0] not in locked]
        with trio.move_on_after(TELL_LIMIT):
            await to_thread.run_sync(self._invalidate, free, inodes, abandon_on_cancel=True)
        if len(free) < len(names):
            held = [item for item in names if item[0] in locked]
            again = partial(to_thread.run_sync, self._invalidate, held, list(locked), abandon_on_cancel=True)
            self.tasks.start_soon(again)

    def _invalidate(self, names: list[tuple[int, bytes]], inodes: list[int]) -> None:
        """Names are expired, not dropped: what is mounted below them stays."""
        if self.native is None:
            self._invalidate_slowly(names, inodes)
            return
        for num in inodes:  # these need no directory's lock, and names that lead to void inodes are looked up again
            with suppress(OSError):
                self.native.notify_inode(self._number(num), 0, UNTIL_CLOSED)
        for num, name in names:
            with suppress(OSError):
                self.native.notify_entry(self._number(num), name, True)

    def _invalidate_slowly(self, names: list[tuple[int, bytes]], inodes: list[int]) -> None:
        import pyfuse3

        for num, name in names:
            with suppress(OSError):
                pyfuse3.invalidate_entry(self._number(num), name)
        for num in inodes:
            with suppress(OSError):
                pyfuse3.invalidate_inode(self._number(num))

    def _number(self, num: int) -> int:
        return 1 if num == self.root else num


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
