"""Objects that still grow, and those that no provider has yet.

An object of a *backed* namespace (its objects are a provider's) *waits* from its first byte until it is uploaded; it is
*ready* when it takes no more chunks, no write to it is under way, and no replay of the journal will want it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from artfs.objects.descriptors import Descriptors


class GrowingObjects(Descriptors):
    """`backed`: serials of namespaces whose objects a provider keeps.  `waiting`: bytes of objects of these that no
    provider has yet; `filled`: one was closed, and a commit would make it ready.  `logged` is how far the journal goes,
    `settled` up to where the engine has it: a replay must find here what the journal names."""

    def __init__(self) -> None:
        super().__init__()
        self.backed: set[int] = set()
        self.waiting = 0
        self.filled = False
        self.logged: Callable[[], int] = lambda: 0
        self.settled: Callable[[], int] = lambda: 0
        self._open: dict[tuple[int, bool], tuple[int, int, int]] = {}
        self._closed: dict[int, int] = {}
        self._until: dict[int, int] = {}
        self._born: dict[int, int] = {}
        self._writing: dict[int, int] = {}

    def _close(self, number: int, size: int) -> None:
        if number >> 32 in self.backed:
            self._closed[number] = size
            self._until[number] = self.logged()
            self._writing.setdefault(number, 0)
            self.filled = True

    def close_objects(self, serials: Collection[int] | None = None, born_before: int | None = None) -> None:
        """Open objects of `backed` namespaces (of `serials`) take no more chunks, if they are older than that."""
        with self._lock:
            for key, (_, number, at) in list(self._open.items()):
                if key[0] not in self.backed or (serials is not None and key[0] not in serials):
                    continue
                if born_before is None or self._born.get(number, 0) < born_before:
                    del self._open[key]
                    self._close(number, at)

    def close_numbers(self, numbers: Collection[int]) -> None:
        """These take no more chunks."""
        with self._lock:
            for key, (_, number, at) in list(self._open.items()):
                if number in numbers:
                    del self._open[key]
                    self._close(number, at)

    def open_objects(self) -> dict[int, int]:
        """Number → size of those that still take chunks."""
        with self._lock:
            return {number: at for _, number, at in self._open.values()}

    def ready(self) -> dict[int, int]:
        """Number → size of the closed objects that are only here, of `backed` namespaces, the oldest first.  They are
        whole, and no replay will want them."""
        settled = self.settled()
        with self._lock:
            ready = [n for n in self._closed if not self._writing.get(n) and self._until.get(n, 0) <= settled]
            return {number: self._closed[number] for number in sorted(ready, key=lambda n: self._born.get(n, 0))}

    def waiting_objects(self, serials: Collection[int] | None = None) -> dict[int, int]:
        """Number → size of all that is only here, of `backed` namespaces (of `serials`)."""
        with self._lock:
            grown = {number: at for _, number, at in self._open.values()}
            return {
                number: self._closed.get(number, grown.get(number, 0))
                for number in self._born
                if serials is None or number >> 32 in serials
            }

    def waits(self, number: int) -> bool:
        """Whether the object is only here, or still grows."""
        return number in self._closed or number in self._born

    def oldest(self) -> int | None:
        """When the first byte came that no provider has; nanoseconds since 1970."""
        return min(self._born.values(), default=None)

    def found(self, number: int, size: int, born: int) -> None:
        """An earlier process left the object, which no provider has."""
        with self._lock:
            self._closed[number] = size
            self._born[number] = born
            self.waiting += size

    def _no_longer_waiting(self, number: int) -> None:
        with self._lock:
            self.waiting -= self._closed.pop(number, 0)
            self._born.pop(number, None)
            self._until.pop(number, None)
            self._writing.pop(number, None)
