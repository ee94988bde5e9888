"""Opening a store by its root: the one place where settings become components."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from anyio import to_thread

from artfs.durable import sync_directory
from artfs.meta.memory import MemoryEngine
from artfs.meta.sqlite import SqliteEngine
from artfs.objects import Home
from artfs.objects.held import HeldObjects
from artfs.objects.local import LocalObjects
from artfs.objects.providers import OpenProviders
from artfs.sessions.memory import MemorySessions
from artfs.sessions.sqlite import SqliteSessions
from artfs.settings import Settings, load_settings, read_store
from artfs.store.running import running
from artfs.store.store import Store
from artfs.volume.journal import Journal, NoJournal, TimedJournal
from artfs.volume.lock import Lock
from artfs.volume.saving import Saver
from artfs.volume.shard import Shard

MEMORY_COMMIT = 0.1
"""Seconds between commits of a store in memory: no fsync is saved by waiting, and what a checkpoint or a restore has to
commit first is little."""


@asynccontextmanager
async def open_store(root: Path, role: str) -> AsyncIterator[Store]:
    """The store at `root`, owned by this process as `role`, with everything recovered that an earlier owner had
    acknowledged.  Errors: NotFoundError, BusyError, FormatError, DamagedError, NoSpaceError, InvalidError."""
    settings = load_settings(root)
    lock = Lock(root, role)
    try:
        store = await to_thread.run_sync(_assemble, root, settings)
        try:
            store.recovered = await store.shard.recover()
            await to_thread.run_sync(store.shard.remote.load)
            await store.attach()
        except BaseException:
            store.sessions.close()
            store.shard.abandon()
            raise
        try:
            async with running(store):
                yield store
        finally:
            store.sessions.close()
    finally:
        lock.close()


def _assemble(root: Path, settings: Settings) -> Store:
    engine = SqliteEngine(root / "meta.db", create=not (root / "journal").exists())
    try:
        (root / "objects").mkdir(mode=0o700, exist_ok=True)
        journal = (TimedJournal if settings.profile else Journal)(root / "journal", settings.journal_size)
        sync_directory(root)
        (root / "cache" / "scratch").mkdir(mode=0o700, parents=True, exist_ok=True)
        providers = OpenProviders(settings, root / "cache" / "scratch")
        shard = Shard(engine, journal, LocalObjects(root / "objects"), settings, providers)
        store = Store(root, shard, SqliteSessions(root / "meta.db"), settings)
        store.identity = read_store(root)
        store.saver = _saver(store, providers)
        return store
    except BaseException:
        engine.close()
        raise


def _saver(store: Store, providers: OpenProviders) -> Saver | None:
    """The metadata goes where new namespaces do, unless that is here."""
    settings, shard = store.settings, store.shard
    if not settings.provider or store.root is None or store.identity is None:
        return None
    url = providers.canonical(settings.provider)
    place = providers.get(Home(url))
    if not place.capabilities.durable:
        return None
    saver = Saver(
        store.root / "meta.db",
        providers.get(Home(url, "aes" if settings.encryption_key else "")),
        store.identity.model_dump(),
        generation=store.generation,
        interval=settings.save_interval,
        commit=shard.commit,
        push=shard.remote.push_for_copy,
        idle=shard.idle,
        scratch=providers.scratch,
        marked=place,
    )
    saver.ready = partial(store.use_provider, Home(url))
    shard.remote.allowed = saver.allowed
    store.collector.save = saver.save_most
    store.collector.between_saves = saver.between
    return saver


@asynccontextmanager
async def memory_store(settings: Settings | None = None) -> AsyncIterator[Store]:
    """A store that ends with this context."""
    settings = settings or Settings(commit_interval=MEMORY_COMMIT)
    shard = Shard(MemoryEngine(), NoJournal(), HeldObjects(), settings)
    async with running(Store(None, shard, MemorySessions(), settings)) as store:
        yield store
