"""The calls about objects: providers, the cache, write-back, garbage, and namespaces as files.

Those that take long are *jobs*: `status` shows them, on another connection, with what is done.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import time_ns
from typing import Any
from weakref import WeakKeyDictionary

from artfs.errors import InvalidError
from artfs.grid import parse_path
from artfs.objects import Capabilities, Home
from artfs.store.describing import describe
from artfs.store.file_calls import FileCalls
from artfs.store.importing import import_
from artfs.store.portable import export
from artfs.store.store import Store
from artfs.volume.warming import warm_up


@dataclass(slots=True)
class Job:
    """A call that may take long: `done` of `total` are bytes, but for a warmup, which counts files too."""

    call: str
    started: int = field(default_factory=time_ns)
    done: int = 0
    total: int | None = None
    count: int = 0

    def bytes(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def files(self, files: int, size: int) -> None:
        self.count, self.done = files, size


JOBS: WeakKeyDictionary[Store, list[Job]] = WeakKeyDictionary()


class ObjectCalls(FileCalls):
    # providers and the cache
    async def sync(self, path: str | None = None) -> dict[str, Any]:
        """Wait for the level *remote*: of one namespace, or of all.  Errors: what the provider said; uploads go on."""
        namespace = None if path is None else self._namespace(path)
        with self._job("sync") as job:
            await self.store.sync(namespace, job.bytes)
        return {"bytes": job.done, "saved": self._saved(), "waiting": self._waiting()}

    async def gc(self, dry_run: bool = False) -> dict[str, Any]:
        with self._job("gc"):
            return asdict(await self.store.collector.collect(dry_run=dry_run))

    async def warmup(self, path: str) -> dict[str, Any]:
        """Bring a file, or all below a directory, to the cache: how many files and bytes that are."""
        id, _, below = path.partition("/")
        if id not in self.store.catalogue.by_id:
            id, below = path, self._file_place(path).path
        with self._job("warmup") as job:
            files, size = await warm_up(self.store.volume(self._namespace(id)), os.fsencode(below), job.files)
        return {"files": files, "bytes": size}

    async def cache_status(self) -> dict[str, Any]:
        """Sizes are bytes.  `copies` of what providers have, and what is `waiting` for them, share `limit`; `low` and
        `high`: marks in bytes; `providers`: their URLs (empty: the store's own directory), with how many namespaces
        live there, and what they can do (see `artfs.objects.Capabilities`)."""
        store, settings = self.store, self.store.settings
        return {
            **asdict(store.shard.remote.statistics()),
            "low": int(settings.cache_size * settings.cache_low),
            "high": int(settings.cache_size * settings.cache_high),
            "crowded": store.shard.remote.crowded,
            "upload": self._waiting(),
            "providers": self._providers(),
        }

    async def cache_drop(self, path: str | None = None) -> dict[str, Any]:
        """Forget the copies of what providers have, of one namespace or of all."""
        serials = None if path is None else {int(self._namespace(path).serial)}
        return {"bytes": await self.store.shard.remote.drop(serials)}

    def _waiting(self) -> dict[str, Any]:
        waiting = asdict(self.store.shard.remote.waiting())
        return {**waiting, "providers": list(waiting["providers"])}

    def _saved(self) -> dict[str, Any] | None:
        """Of the newest copy of the metadata; `moment` None: none was made from here; `behind`: providers that it is
        not complete for; `trouble`: why the last attempt failed.  None: this store saves nowhere."""
        if self.store.saver is None:
            return None
        saved = self.store.saver.statistics()
        found = {"moment": saved.moment or None, "sequence": saved.sequence, "trouble": saved.trouble}
        return {**found, "behind": list(saved.behind)}

    def _providers(self) -> list[dict[str, Any]]:
        count = Counter(namespace.provider for namespace in self.store.catalogue.by_serial.values())
        get = self.store.shard.remote.providers.get
        own = Capabilities(adopts=True, durable=self.store.root is not None)
        return [
            {"url": url, "namespaces": number, **asdict(get(Home(url)).capabilities if url else own)}
            for url, number in sorted(count.items())
        ]

    @contextmanager
    def _job(self, call: str) -> Iterator[Job]:
        """Something that may take long: `status` shows how far it is."""
        jobs = JOBS.setdefault(self.store, [])
        job = Job(call)
        jobs.append(job)
        try:
            yield job
        finally:
            jobs.remove(job)

    async def ns_export(self, path: str, file: str) -> dict[str, Any]:
        """See `artfs.store.portable`; `file` is absolute, and the owner's process writes it."""
        namespace = self._namespace(path, exact=True)
        with self._job("export") as job:
            summary = await export(self.store, namespace, _absolute(file), job.bytes)
        return {"grid_path": namespace.grid_path, "file": file, **asdict(summary)}

    async def ns_import(self, file: str, path: str | None = None) -> dict[str, Any]:
        """See `artfs.store.importing`; `path`: SANDBOX/SCOPE[/NAME], None: where it was."""
        place = None
        if path is not None:
            place = parse_path(path)
            if place.sandbox is None or place.scope is None or place.path:
                raise InvalidError(f"{path!r} is no place for a namespace; use SANDBOX/SCOPE/NAME, or SANDBOX/SCOPE")
        with self._job("import") as job:
            namespace = await import_(self.store, _absolute(file), place, job.bytes)
        return describe(self.store, namespace)


def _absolute(file: str) -> Path:
    if not os.path.isabs(file):
        raise InvalidError(f"{file} is no absolute path, and the store's owner has another working directory")
    return Path(file)
