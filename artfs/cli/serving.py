"""Serving a mount: the store, its socket and the driver together, until the mount is taken away."""

from __future__ import annotations

import ctypes
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import anyio
from anyio import to_thread

from artfs.cli import mounttable, pauses
from artfs.cli.mounting import Plan
from artfs.errors import ArtfsError, BusyError
from artfs.fuse.mount import Mount, Options
from artfs.grid import parse_path
from artfs.settings import parse_principal
from artfs.store.connecting import own_store, serving
from artfs.store.store import Store
from artfs.types import ADMIN, Principal

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
DETACHED = 1.0
"""Seconds for programs that are still in a mount that was told to end."""
MMAP_THRESHOLD, LARGE = -3, 2 << 20
"""mallopt(3)'s M_MMAP_THRESHOLD, and our value."""


def serve(plan: Plan, ready: Callable[[], None]) -> None:
    """Errors: ArtfsError; in groups, see `artfs.cli.app.cause`."""
    with suppress(AttributeError):  # a libc without it
        # glibc learns from the first buffer of 8 MiB that each thread had better keep the next: 100 MiB for nothing.
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE)
    pauses.keep()
    anyio.run(_serve, plan, ready, backend="trio")


async def _serve(plan: Plan, ready: Callable[[], None]) -> None:
    role = f"artfs mount {plan.point}"

    def announce() -> None:
        log.info("%s shows %s of %s", plan.point, plan.part, plan.root)
        ready()

    async with own_store(plan.root, role) as store:
        if store.recovered:
            log.info("recovered %d records of the journal", store.recovered)
        options = Options(
            path=parse_path(plan.part),
            principal=principal(store, plan),
            checked=plan.checked,
            allow_other=plan.allow_other,
            source=mounttable.source(plan.root, plan.part),
            extra=plan.passed,
        )
        mount = Mount(store, plan.point, options)
        async with serving(store, role):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_end_on_signal, plan, tasks.cancel_scope)
                await mount.serve(announce)
                tasks.cancel_scope.cancel()
            log.info("unmounted; committing what is left")
            with anyio.CancelScope(shield=True):
                await _commit(store)
    log.info("done")


def principal(store: Store, plan: Plan) -> Principal:
    """Whom the mount serves.  Errors: NotFoundError and ExpiredError for a session that is not alive."""
    if plan.who is None:
        return ADMIN
    found = parse_principal(plan.who, plan.sandbox or store.settings.sandbox)
    if found.session is not None and found.sandbox is not None:
        store.session(found.sandbox, found.session)
    return found


async def _commit(store: Store) -> None:
    """While the socket still tells how much is left; closing the store tries again, and reports."""
    try:
        await store.shard.commit()
    except ArtfsError as error:
        log.warning("%s", error)
        return
    if store.shard.remote.homes or store.saver is not None:
        await _drain(store)


async def _drain(store: Store) -> None:
    """Upload what waits, for `drain_limit` at most; a signal, or a mount that wants the store, ends it at once, and
    loses nothing."""
    waiting = store.shard.remote.waiting()
    if waiting.bytes:
        limit = store.settings.drain_limit
        log.info("uploading %d bytes in %d objects, for %g s at most", waiting.bytes, waiting.objects, limit)
    async with anyio.create_task_group() as tasks:

        def let_go() -> bool:
            log.info("asked for the store: what still waits is left to the next owner")
            tasks.cancel_scope.cancel()
            return True

        store.on_asked = let_go
        tasks.start_soon(_stop_on_signal, tasks.cancel_scope)
        await store.drain()
        tasks.cancel_scope.cancel()
    left = store.shard.remote.waiting()
    if left.objects:
        why = f" ({left.error})" if left.error else ""
        log.warning("%d bytes in %d objects still wait%s; the next owner uploads them", left.bytes, left.objects, why)


async def _stop_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(*SIGNALS) as signals:
        async for number in signals:
            log.info("%s: what still waits is left to the next owner", signal.Signals(number).name)
            scope.cancel()


async def _end_on_signal(plan: Plan, scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(*SIGNALS) as signals:
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            try:
                await _unmount(str(plan.point))
            except (ArtfsError, OSError) as error:
                log.warning("%s", error)
            # If it has not ended by itself, programs are still in it.
            await anyio.sleep(DETACHED)
            scope.cancel()


async def _unmount(point: str) -> None:
    try:
        await to_thread.run_sync(mounttable.unmount, point, abandon_on_cancel=True)
    except BusyError:
        log.warning("programs have files open in the mount; it is taken away from them")
        await to_thread.run_sync(mounttable.sync, point, abandon_on_cancel=True)
        lazily = partial(mounttable.unmount, point, lazy=True)
        await to_thread.run_sync(lazily, abandon_on_cancel=True)
