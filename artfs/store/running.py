"""A store's life: what goes on in the background until it is closed, and how it is closed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from artfs.store.store import Store


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[Store]:
    """The store with its background work; closed, and everything committed, at the end.  An error of the body comes out
    as it is, not in a group."""
    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.shard.run)
            tasks.start_soon(store.shard.remote.run)
            tasks.start_soon(store.collector.run)
            tasks.start_soon(store.blobs.run)
            tasks.start_soon(store.look_again)
            tasks.start_soon(store.reaper.run)
            if store.saver is not None:
                tasks.start_soon(store.saver.run)
            try:
                yield store
            except Exception as error:
                failure = error
            finally:
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            if store.saver is not None:
                store.saver.close()
            await store.shard.close()
            await store.shard.remote.providers.close()
    if failure is not None:
        raise failure
