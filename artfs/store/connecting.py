"""How a process gets at a store: as its owner, or as a client of its owner.

`connect` opens the store when it is free, and serves its socket to others meanwhile; else it becomes a client
of the process that owns it (see `artfs.store.socket`).  Either way the caller sees one interface, `Caller`; the calls
are those of `artfs.store.service`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import anyio

from artfs.errors import BusyError, DeniedError, InvalidError, UnavailableError
from artfs.store.importing import left_behind, take_away
from artfs.store.opening import open_store
from artfs.store.portable import left_pinned, release
from artfs.store.service import Service
from artfs.store.socket import Client, serve
from artfs.store.store import Store
from artfs.volume.lock import Claim, is_claimed

PATIENCE = 5.0
"""Seconds to wait for an owner that is starting, or about to end."""
LINGER = 2.0
"""Seconds for which an owner that wants to end waits for those that it serves."""
RETRY = 0.05


class Caller(Protocol):
    """How to call a store, wherever it is.  Errors: ArtfsError; UnavailableError if its owner has gone,
    BusyError if it does not answer."""

    async def call(self, method: str, /, **arguments: Any) -> Any: ...


@asynccontextmanager
async def connect(root: Path, role: str) -> AsyncIterator[Caller]:
    """A caller of the store at `root`; `role` is what others are told about this process while it owns the
    store.
    Errors: NotFoundError, BusyError, FormatError, DamagedError, NoSpaceError, InvalidError, DeniedError."""
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        caller = await _enter(stack, root, role)
        try:
            yield caller
        except Exception as error:  # not through the task groups, which would wrap it
            failure = error
    if failure is not None:
        raise failure


async def _enter(stack: AsyncExitStack, root: Path, role: str) -> Caller:
    limit = monotonic() + PATIENCE
    while True:
        try:
            if monotonic() < limit and is_claimed(root):
                raise BusyError(f"the store {root} is left to a mount that waits for it")
            store = await stack.enter_async_context(open_store(root, role))
            break
        except DeniedError:  # which is a PermissionError, too: a provider's
            raise
        except PermissionError as error:
            raise DeniedError(f"{root} belongs to another user; act as that user, or as root") from error
        except BusyError:
            client = await Client.connect(root)
            if client is not None:
                stack.push_async_callback(client.aclose)
                return client
            if monotonic() > limit:
                raise
            await anyio.sleep(RETRY)
    await stack.enter_async_context(serving(store, role))
    service = Service(store, role)
    stack.push_async_callback(service.aclose)
    return service


@asynccontextmanager
async def own_store(root: Path, role: str) -> AsyncIterator[Store]:
    """The store, owned by this process: a Python program that has it lets it go, and no other one comes in between.
    Errors: as `open_store`."""
    limit = monotonic() + PATIENCE
    async with AsyncExitStack() as stack:
        with ExitStack() as claiming:
            claimed = False
            while True:
                try:
                    store = await stack.enter_async_context(open_store(root, role))
                    break
                except BusyError:
                    if not claimed:
                        claiming.callback(Claim(root).close)
                        claimed = True
                    if monotonic() > limit or not await _ask_for(root):
                        raise
                    await anyio.sleep(RETRY)
        yield store


async def _ask_for(root: Path) -> bool:
    """Whether the store may be free soon.  Errors: BusyError from an owner that does not answer."""
    client = await Client.connect(root)
    if client is None:
        return True
    try:
        return bool(await client.call("let_go"))
    except UnavailableError:
        return True
    except InvalidError:  # an owner of before there was this call
        return False
    finally:
        await client.aclose()


@asynccontextmanager
async def serving(store: Store, role: str, linger: float = LINGER) -> AsyncIterator[None]:
    """Serve the store's socket meanwhile; at the end those that are connected have `linger` seconds to
    finish."""
    if store.root is None:
        yield
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_away, store, await left_behind(store))
        tasks.start_soon(release, store, await left_pinned(store))
        server = await tasks.start(serve, store.root, lambda: Service(store, role))
        store.connections = lambda: server.connections
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await server.drain(linger)
            tasks.cancel_scope.cancel()
