"""The reaper: deletes what has expired soon after its moment, what has been in the trash for long enough, and what was
never made.

What expires together goes together, `REAPED_AT_ONCE` namespaces in a transaction; other calls go on in between.
"""

from __future__ import annotations

import logging
from collections import Counter
from time import time_ns
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from artfs.grid import scope_dir
from artfs.sessions import Session
from artfs.types import Scope

if TYPE_CHECKING:
    from artfs.store.store import Store

log = logging.getLogger(__name__)

TRASH_KEPT = 24 * 3600 * 10**9
"""Nanoseconds for which a destroyed namespace that had checkpoints can be brought back."""
REAP_INTERVAL = 1.0
"""Seconds between looks at what expires, at most; nearer expiries are waited for exactly."""
REAP_PAUSE = 0.01
"""Seconds between two of them at least, so that what expires shortly one after another goes together."""
REAPED_AT_ONCE = 256
"""Namespaces of one transaction."""
NS_PER_S = 10**9


class Reaper:
    """Of one store; REQUIRES: its loop."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.catalogue = store.catalogue
        self.sessions = store.sessions
        self._gone: Counter[str] = Counter()
        self._lock = anyio.Lock()

    async def reaped(self, sandbox: str) -> int:
        """`reap`; returns how many sessions and namespaces of the sandbox have been deleted since this was called
        last."""
        await self.reap()
        return self._gone.pop(sandbox, 0)

    async def reap(self) -> int:
        """Delete what has expired by now, one call after another; returns how many namespaces and sessions."""
        async with self._lock:
            return await self._reap(time_ns())

    async def _reap(self, now: int) -> int:
        store, catalogue = self.store, self.catalogue
        count = 0
        for session in await to_thread.run_sync(self.sessions.expire_due):
            await self.reap_session(session)
            self._gone[session.sandbox] += 1
            count += 1
        while expired := catalogue.expired(now, REAPED_AT_ONCE):
            try:
                for namespace in expired:
                    if namespace.trashed is None:
                        store.expired.remember(namespace)
                await store.reap_all(expired)
            except BaseException:
                for namespace in expired:
                    catalogue.remind(namespace)
                raise
            self._gone.update(namespace.sandbox for namespace in expired)
            count += len(expired)
        old = [namespace for namespace in catalogue.trash() if (namespace.trashed or 0) + TRASH_KEPT <= now]
        unmade = [namespace for namespace in catalogue.making() if namespace.serial not in store.unfinished]
        await store.reap_all([*old, *unmade])
        store.expired.forget(now)
        return count + len(old)

    async def reap_session(self, session: Session) -> None:
        """All that is in the scope of a session that is over."""
        folder = scope_dir(Scope.SESSION, session.id)
        namespaces = list(self.catalogue.entries(session.sandbox, folder).values())
        for namespace in namespaces:
            self.store.expired.remember(namespace)
        thrown = [namespace for namespace in self.catalogue.trash() if namespace.place == (session.sandbox, folder)]
        await self.store.reap_all([*namespaces, *thrown])
        await to_thread.run_sync(self.sessions.reaped, session.sandbox, session.id)
        await self.store.surfaces.scope_changed(session.sandbox, folder)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.reap()
            except Exception:
                log.exception("what has expired could not be deleted; it is tried again")
            await self._next_expiry()

    async def _next_expiry(self) -> None:
        due = [moment for moment, _ in self.catalogue.due[:1]]
        session = self.sessions.next_expiry()
        if session is not None:
            due.append(session)
        wait = (min(due) - time_ns()) / NS_PER_S if due else REAP_INTERVAL
        await anyio.sleep(min(max(wait, REAP_PAUSE), REAP_INTERVAL))
