"""The part of a store that knows who and what is alive: sessions, scopes, the namespaces in them, and who may do what.

Expiry is exact here, where names are resolved; a reaper deletes what has expired soon after (`artfs.store.reaper`).
"""

from __future__ import annotations

from itertools import takewhile
from time import time_ns

from artfs import access as rules
from artfs.errors import ExpiredError, NotFoundError
from artfs.grid import parse_scope_dir, session_key
from artfs.sessions import Session, SessionStore
from artfs.settings import Settings
from artfs.types import Access, Principal, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.shard import Shard

EXPIRED = "expired"
"""The kind of records of ids whose namespaces have expired and are gone: id → until when (nanoseconds since 1970) they
are known as expired."""
EXPIRED_KEPT = 24 * 3600 * 10**9


class Expired:
    """The ids of namespaces that have expired and are gone, for a day; the first to be forgotten comes first."""

    def __init__(self, shard: Shard) -> None:
        self.catalogue = shard.catalogue
        found = [(int(until), key) for key, until in shard.engine.records(EXPIRED).items()]
        self._until = {key: until for until, key in sorted(found)}

    def remember(self, namespace: Namespace) -> None:
        key = _key(namespace.sandbox, namespace.id)
        self._until.pop(key, None)
        until = self._until[key] = time_ns() + EXPIRED_KEPT
        self.catalogue.records[EXPIRED, key] = str(until)

    def has(self, sandbox: str | None, id: str) -> bool:
        return self._until.get(_key(sandbox, id), 0) > time_ns()

    def forget(self, now: int) -> None:
        """Those that were to be known until `now`."""
        for key in list(takewhile(lambda key: self._until[key] <= now, self._until)):
            del self._until[key]
            self.catalogue.records[EXPIRED, key] = None


def _key(sandbox: str | None, id: str) -> str:
    return f"{sandbox}/{id}"


class Scopes:
    def __init__(self, shard: Shard, sessions: SessionStore, settings: Settings) -> None:
        self.catalogue = shard.catalogue
        self.settings = settings
        self.sessions = sessions
        self.expired = Expired(shard)

    # namespaces
    def find(self, id: str, sandbox: str | None = None) -> Namespace:
        """By id, alive.  Errors: NotFoundError; ExpiredError, also for a day after it has gone."""
        namespace = self.catalogue.by_id.get(id)
        if namespace is None or (sandbox is not None and namespace.sandbox != sandbox):
            if self.expired.has(sandbox, id):
                raise ExpiredError(f"{id} has expired")
            raise NotFoundError(f"Namespace not found: {id}")
        return self.alive(namespace)

    def alive(self, namespace: Namespace) -> Namespace:
        """The namespace as it is now.  Errors: NotFoundError, ExpiredError."""
        current = self.catalogue.by_serial.get(namespace.serial)
        if current is None or current.trashed is not None:
            raise NotFoundError(f"Namespace not found: {namespace.grid_path}")
        if current.expires is not None and current.expires <= time_ns():
            raise ExpiredError(f"{namespace.grid_path} has expired")
        if current.scope is Scope.SESSION:
            assert current.owner is not None
            try:
                self.session(current.sandbox, current.owner)
            except NotFoundError as error:
                raise ExpiredError(f"{namespace.grid_path} has expired with its session: {error}") from error
        return current

    def namespace_at(self, sandbox: str, folder: str, entry: str) -> Namespace:
        """Errors: NotFoundError, ExpiredError."""
        return self.alive(self.catalogue.at(sandbox, folder, entry))

    def alive_session(self, namespace: Namespace) -> None:
        """Of a namespace in a session's scope: that is alive.  Errors: NotFoundError, ExpiredError."""
        if namespace.scope is Scope.SESSION:
            assert namespace.owner is not None
            self.session(namespace.sandbox, namespace.owner)

    # sessions
    def session(self, sandbox: str, id: str) -> Session:
        """A live session.  Errors: NotFoundError, ExpiredError."""
        return self.sessions.get(sandbox, id)

    def session_owner(self, sandbox: str, id: str) -> str | None:
        """The user of a live session.  Errors: NotFoundError, ExpiredError."""
        return self.sessions.get(sandbox, session_key(id)).user

    # access
    def access(self, principal: Principal, sandbox: str, scope: Scope, owner: str | None) -> Access:
        """What the principal may do in a scope; nothing, if a session that matters has ended."""
        try:
            if principal.session is not None and principal.sandbox is not None:
                self.sessions.get(principal.sandbox, principal.session)
            return rules.access(
                principal,
                sandbox,
                scope,
                owner,
                session_owner=lambda key: self.session_owner(sandbox, key),
                shared_writable=self.settings.shared_writable,
            )
        except NotFoundError:
            return Access.NONE

    def sandboxes(self) -> set[str]:
        return {
            self.settings.sandbox,
            *self.catalogue.sandboxes(),
            *(session.sandbox for session in self.sessions.list()),
        }

    def folders(self, sandbox: str) -> set[tuple[Scope, str | None]]:
        """The scopes of a sandbox that hold something, and its live sessions."""
        found: set[tuple[Scope, str | None]] = {(Scope.SANDBOX, None)}
        for folder in self.catalogue.folders(sandbox):
            place = parse_scope_dir(folder)
            if place is not None and place[0] is not Scope.SESSION:
                found.add(place)
        found.update((Scope.SESSION, session_key(session.id)) for session in self.sessions.list(sandbox))
        return found
