"""Between the local directories and the providers, all of it: write-back (`uploads`), fetching and eviction (`cache`),
and the end of objects that no row names.

Where a byte is durable: an object below `objects/` is only here.  When `Provider.put` has returned, its file is renamed
into `cache/`, and may vanish from then on.  Nothing else marks an object as uploaded, so a crash at any moment means at
most that one is uploaded again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from artfs.errors import ArtfsError, InvalidError
from artfs.objects import Home, Provider
from artfs.objects.held import HeldObjects
from artfs.objects.uploads import Progress, Uploads, Waiting

log = logging.getLogger(__name__)

__all__ = ["CacheStatistics", "NoProviders", "Progress", "Remote", "Waiting"]


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Bytes, and how many; `copies` are what providers have, too."""

    limit: int
    copies: int
    objects: int
    waiting: int
    free: int
    reserve: int
    fetched: int
    fetches: int
    uploaded: int
    uploads: int
    evicted: int
    refetched: int


class NoProviders:
    """Of a store whose namespaces all live in its own directory."""

    def canonical(self, url: str) -> str:
        raise InvalidError(f"this store has no providers: {url} cannot be used")

    def get(self, home: Home) -> Provider:
        raise InvalidError(f"this store has no providers: {home.provider} cannot be used")

    def key_id(self) -> str:
        return ""

    async def close(self) -> None:
        pass


class Remote(Uploads):
    def load(self) -> None:
        """Take over what an earlier process left: what waits, and what is cached.  In a thread, before `run`.
        REQUIRES: `settle` and the prefixes of every namespace."""
        local = self.local
        if local.root is None or local.cache is None:
            return
        serials = {prefix: serial for serial, prefix in local.prefixes.items() if serial in self.homes}
        for number, info, _ in _objects_below(local.root, serials):
            if not local.waits(number):  # else the replay has just begun it, and it takes more chunks
                local.found(number, info.st_size, info.st_mtime_ns)
        found = sorted(_objects_below(local.cache, serials, clean=True), key=lambda item: item[1].st_mtime_ns)
        for number, info, _ in found:
            self._count(number, info.st_blocks * 512)

    async def discard(self, numbers: Collection[int]) -> None:
        """No row names these objects, and none will: they are gone, here and in their provider.
        Errors: UnavailableError; those that are left can be discarded again."""
        by_serial: dict[int, list[int]] = {}
        for number in numbers:
            by_serial.setdefault(number >> 32, []).append(number)
        for serial, some in by_serial.items():
            for number in some:
                while (event := self._uploading.get(number)) is not None:
                    await event.wait()  # one that failed may have begun again by now
                self.local.remove(number)
                self._forget(number)
                self._sizes.pop(number, None)
            if serial in self.homes:
                await self.provider(serial).delete([self.name(number) for number in some])

    async def discard_namespaces(self, serials: Collection[int]) -> None:
        """The namespaces are gone and nothing of them was lent: so are all objects below their prefixes.
        Errors: as the provider; OSError."""
        local = self.local
        plain = [serial for serial in serials if serial not in self.homes and serial in local.prefixes]
        if isinstance(local, HeldObjects):
            for serial in plain:
                local.delete(serial)
        elif plain:
            root = local.root
            assert root is not None
            await to_thread.run_sync(_remove_directories, [root / local.prefixes[serial] for serial in plain])
        for serial in serials:
            if serial in self.homes and serial in local.prefixes:
                await self._discard_backed(serial)

    def drop_waiting(self, serials: Collection[int]) -> None:
        """Those namespaces are gone, nothing of them was lent, and no copy of the metadata that names them is on its
        way: what no provider has of them, none needs to get."""
        for number in self.local.waiting_objects(serials):
            self.local.remove(number)
        self.look_at_room()

    async def _discard_backed(self, serial: int) -> None:
        local = self.local
        prefix = local.prefixes[serial]
        while busy := [event for number, event in self._uploading.items() if number >> 32 == serial]:
            for number in [n for n in local.ready() if n >> 32 == serial]:
                local.remove(number)
            await busy[0].wait()
        for number in [*local.waiting_objects({serial}), *(n for n in self._copies if n >> 32 == serial)]:
            local.remove(number)
            self._forget(number)
        for top in (local.root, local.cache):
            assert top is not None
            await to_thread.run_sync(_remove_directories, [top / prefix])
        provider = self.provider(serial)
        await provider.delete([name async for name, _ in provider.list(f"{prefix}/")])

    async def tidy(self, before: float) -> int:
        """See `Provider.tidy`; of all providers.  One that fails, or cannot tell, is left for another time."""
        ended = 0
        for url in sorted({home.provider for home in self.homes.values()}):
            try:
                ended += await self.providers.get(Home(url)).tidy(before)
            except (ArtfsError, OSError) as error:
                log.warning("what was left unfinished in %s stays for now: %s", url, error)
        return ended

    async def objects(self, serial: int) -> dict[int, int]:
        """Number → bytes of the namespace's objects that take no more chunks, here or in its provider."""
        local = self.local
        prefix = local.prefixes[serial]
        found: dict[int, int] = {}
        if isinstance(local, HeldObjects):
            found |= local.sizes(serial)
        else:
            for top in (local.root, local.cache):
                assert top is not None
                listed = await to_thread.run_sync(list, _objects_below(top, {prefix: serial}))
                found |= {number: info.st_size for number, info, _ in listed}
        if serial in self.homes:
            encoded = bool(self.homes[serial].codec)
            async for name, size in self.provider(serial).list(f"{prefix}/"):
                count = name.rpartition("/")[2]
                number = serial << 32 | int(count, 16) if len(count) == 8 else -1
                if number < 0 or (encoded and number in found):
                    continue
                if encoded and number not in self._sizes:
                    self._sizes[number] = (await self.provider(serial).head(name)).size
                found[number] = self._sizes[number] if encoded else size
        for number in local.open_objects():
            found.pop(number, None)
        return found

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(
            limit=self.settings.cache_size,
            copies=self._size,
            objects=len(self._copies),
            waiting=self.local.waiting,
            free=self._free(),
            reserve=self.settings.cache_reserve,
            fetched=self.fetched,
            fetches=self.fetches,
            uploaded=self.uploaded,
            uploads=self.uploads,
            evicted=self.evicted,
            refetched=self.refetched,
        )


def _objects_below(
    top: Path, serials: dict[str, int], clean: bool = False
) -> Iterator[tuple[int, os.stat_result, Path]]:
    """(number, stat, path) of each object of those prefixes.  `clean`: what is none of them is deleted."""
    for folder, _, files in os.walk(top):
        serial = serials.get(os.path.relpath(folder, top))
        for file in files:
            path = Path(folder, file)
            if serial is not None and len(file) == 8 and all(c in "0123456789abcdef" for c in file):
                yield serial << 32 | int(file, 16), path.stat(), path
            elif clean:
                path.unlink(missing_ok=True)


def _remove_directories(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            for file in os.scandir(path):
                os.unlink(file.path)
            path.rmdir()
