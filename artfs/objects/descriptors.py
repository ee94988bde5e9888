"""Descriptors of objects: what they hold more than the disk, and when they can be closed.

One that falls out of the table is *buried*: it is closed once no reader that was told its number can still be using it
(`readers`), nobody writes to it or syncs it (`using`), and what was written to it is on the disk.  Closed earlier, its
number would be somebody else's.

Concurrency: `reap` on the loop's thread, which tells readers numbers; all else from any thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock


class Descriptors:
    """`unsynced`: those (of objects, and of directories that got one) that hold more than the disk, of what the journal
    names, each with the number of the write that was the last to end; `sealing`: the same of what only a commit will
    name.  `broken`: the sync that failed, after which nobody can know what the disk has.  `readers`: how many jobs
    were queued, and how many of the first of them are done."""

    def __init__(self) -> None:
        self.unsynced: dict[int, int] = {}
        self.sealing: dict[int, int] = {}
        self.broken: OSError | None = None
        self.readers: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._table: dict[int, int] = {}
        self._buried: list[tuple[int, int | None]] = []
        self._busy: dict[int, int] = {}
        self._writes = 0
        self._lock = Lock()

    def _wrote(self, fd: int, sealing: bool) -> None:
        """After the write: a sync that ran meanwhile may have missed its bytes."""
        with self._lock:
            self._writes += 1
            (self.sealing if sealing else self.unsynced)[fd] = self._writes

    def _use(self, *fds: int) -> None:
        """They stay open until `_let_go`.  REQUIRES: the lock, and that they are open."""
        for fd in fds:
            self._busy[fd] = self._busy.get(fd, 0) + 1

    def _let_go(self, *fds: int) -> None:
        """REQUIRES: the lock."""
        for fd in fds:
            self._busy[fd] -= 1
            if not self._busy[fd]:
                del self._busy[fd]

    @contextmanager
    def using(self, fds: Iterable[int]) -> Iterator[None]:
        """None of these is closed meanwhile.  REQUIRES: they are open, which the loop's thread knows of `unsynced`."""
        fds = list(fds)
        with self._lock:
            self._use(*fds)
        try:
            yield
        finally:
            with self._lock:
                self._let_go(*fds)

    def sync(self) -> None:
        """fdatasync of everything appended so far.  Errors: OSError, and from then on always: the kernel says once that
        it lost bytes, and what it lost is not there for another try."""
        for grown in (self.unsynced, self.sealing):
            if self.broken is not None:
                raise self.broken
            with self._lock:
                todo = dict(grown)
                self._use(*todo)
            try:
                for fd, write in todo.items():
                    os.fdatasync(fd)
                    with self._lock:
                        if grown.get(fd) == write:
                            del grown[fd]
            except OSError as error:
                self.broken = error
                raise
            finally:
                with self._lock:
                    self._let_go(*todo)

    def reap(self) -> None:
        """Close the descriptors that nobody can still be using.  On the loop's thread, now and then."""
        queued_now, done = self.readers()
        keep: list[tuple[int, int | None]] = []
        unused = []
        with self._lock:
            for fd, queued in self._buried:
                if fd in self._busy or fd in self.unsynced or fd in self.sealing:
                    keep.append((fd, None))
                elif queued is None:
                    keep.append((fd, queued_now))  # a sync that began until now may be at it
                elif done < queued:
                    keep.append((fd, queued))
                else:
                    unused.append(fd)
            self._buried = keep
        for fd in unused:
            os.close(fd)
