"""The calls of the Python API on namespaces and their checkpoints, checked for who makes them.

Plain functions are hot: a store's owner runs them at once in the caller's thread (see `artfs.store.handle`).  They
raise `MustWait` where they would have to wait, and where a mount shows the store: then it must hand over what it holds
before a read, and be told of a change after it.

`who`, `sandbox`: see `artfs.store.identity`.  `id`: a namespace's id, or its grid path.

What the API keeps of a namespace beside its custom metadata is in the namespace's metadata under the key OWN.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from artfs.errors import DeniedError, InvalidError, NotFoundError
from artfs.exceptions import SessionError
from artfs.grid import check_id, parse_path, scope_dir, session_key
from artfs.meta import Checkpoint
from artfs.sessions import NS, Session
from artfs.sessions.metadata import iso
from artfs.store.identity import WANTED, Who
from artfs.store.portable import shown
from artfs.store.session_calls import Info, SessionCalls
from artfs.types import Access, NamespaceType, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.volume import Volume
from artfs.volume.waiting import MustWait, run

T = TypeVar("T")
OWN = "artfs"
"""Reserved among the keys of a namespace's metadata.  Of all: `session`, who made it, spelled as it was made;
`provider`, as the caller named it."""


class NamespaceCalls(SessionCalls):
    """Part of `Service`."""

    async def api_ping(self, who: Who = None, sandbox: str = "") -> None:
        """Nothing: the store is open when this returns."""

    # what all calls stand on
    def _reached(self, id: str, who: Who, sandbox: str, wanted: Access) -> Namespace:
        """The live namespace, if the caller may do that in it.  Errors: NotFoundError, ExpiredError, DeniedError;
        InvalidError for what is no string."""
        if not isinstance(id, str) or not id:
            raise InvalidError(f"an id must be a string that is not empty, not {id!r}")
        namespace = self.store.catalogue.by_id.get(id)
        if namespace is None:
            namespace = self._at_path(id) if "/" in id else self.store.find(id, sandbox)
        if namespace.sandbox != sandbox:
            raise NotFoundError(f"Namespace not found: {id}")
        namespace = self.store.alive(namespace)
        self.identity.require(who, sandbox, namespace, wanted)
        return namespace

    def _at_path(self, path: str) -> Namespace:
        place = parse_path(path)
        if place.sandbox is not None and place.scope is not None and place.namespace is not None:
            folder = scope_dir(place.scope, place.owner)
            return self.store.catalogue.at(place.sandbox, folder, place.namespace)
        raise NotFoundError(f"Namespace not found: {path}")

    def _for(self, method: str, id: str, who: Who, sandbox: str) -> Namespace:
        return self._reached(id, who, sandbox, WANTED[method])

    def _settled(self, volume: Volume, work: Callable[[], T]) -> T:
        """`work` on what was written before, through mounts, too."""
        if self.store.surfaces:

            async def later() -> T:
                await self.store.settle(volume)
                return await run(work)

            raise MustWait(later, final=True)
        return work()

    def _told(self, result: T, tell: Callable[[], Awaitable[None]]) -> T:
        """`result`, after those who cache were told of the change."""
        if self.store.surfaces:

            async def later() -> T:
                await tell()
                return result

            raise MustWait(later, final=True)
        return result

    # namespaces
    def api_create(
        self,
        type: str,
        scope: str,
        name: str | None = None,
        user: str | None = None,
        session: str | None = None,
        ttl_seconds: float | None = None,
        provider: str | None = None,
        provider_type: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> Info:
        """Errors: SessionError (a session that is not live), InvalidError (no user for user scope), DeniedError."""
        place = Scope(scope)
        owner = self._owner(place, user, session, who, sandbox)
        live = self._live_session(sandbox, session) if session else None
        if live is not None and user is not None and live.user not in (None, user):
            raise DeniedError(f"Access denied: session {session!r} does not belong to user {user!r}")
        self.identity.require_scope(who, sandbox, place, owner, WANTED["api_create"])
        own = {"session": live.id if live is not None else self._session_of(who), "provider": provider_type}
        if name is not None:
            name = self.store.catalogue.free_entry((sandbox, scope_dir(place, owner)), name)
        namespace = self.store.new_namespace(
            sandbox,
            place,
            owner,
            name,
            type=NamespaceType(type),
            ttl=ttl_seconds,
            metadata={**_custom(metadata), OWN: {key: value for key, value in own.items() if value}},
            provider=provider,
        )
        return self._told(self._info(namespace, live), partial(self.store.surfaces.grid_changed, namespace))

    def _owner(self, scope: Scope, user: str | None, session: str | None, who: Who, sandbox: str) -> str | None:
        if scope is Scope.SANDBOX:
            return None
        if scope is Scope.SESSION:
            if session is None:
                raise SessionError("Invalid session: session scope needs one")
            return session_key(session)
        if user is None and who is not None:
            user = who.get("user")
            if user is None and who.get("session") is not None:
                user = self.identity.owner(sandbox, who["session"])
        if user is None:
            raise InvalidError("user_id required for USER scope")
        return check_id("user", user)

    def _session_of(self, who: Who) -> str | None:
        return None if who is None else who.get("with_session") or who.get("session")

    def api_info(self, id: str, who: Who = None, sandbox: str = "") -> Info:
        return self._info(self._for("api_info", id, who, sandbox))

    def api_list(
        self,
        of_session: str | None = None,
        of_user: str | None = None,
        type: str | None = None,
        scope: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> list[Info]:
        """In order of their making; see `list_namespaces`.  Errors: InvalidError."""
        store = self.store
        wanted = _custom(metadata)
        found: list[Namespace] = []
        sessions: dict[str, Session | None] = {}
        seen: dict[tuple[Scope, str | None], bool] = {}
        for namespace in self._candidates(sandbox, of_session, of_user):
            if namespace.trashed is not None or namespace.sandbox != sandbox:
                continue
            if type not in (None, namespace.type) or scope not in (None, namespace.scope):
                continue
            if wanted and not has_all(namespace.metadata, wanted):
                continue
            place = namespace.scope, namespace.owner
            if place not in seen:
                seen[place] = self.identity.access(who, sandbox, *place) is not Access.NONE
            if seen[place]:
                with suppress(NotFoundError):
                    found.append(store.alive(namespace))
        found.sort(key=lambda namespace: namespace.serial)
        infos = []
        for namespace in found:
            session = None
            if namespace.scope is Scope.SESSION and namespace.owner is not None:
                if namespace.owner not in sessions:
                    sessions[namespace.owner] = self._maybe_session(sandbox, namespace.owner)
                session = sessions[namespace.owner]
            infos.append(self._info(namespace, session))
        return infos

    def _candidates(self, sandbox: str, session: str | None, user: str | None) -> Iterable[Namespace]:
        catalogue = self.store.catalogue
        if session is not None:
            return list(catalogue.entries(sandbox, scope_dir(Scope.SESSION, session)).values())
        if user is None:
            return list(catalogue.by_serial.values())
        folders = [scope_dir(Scope.USER, user)]
        mine = [s for s in self.store.sessions.list(sandbox) if s.user == user]
        folders += [scope_dir(Scope.SESSION, session.id) for session in mine]
        return [namespace for folder in folders for namespace in catalogue.entries(sandbox, folder).values()]

    async def api_destroy(self, id: str, who: Who = None, sandbox: str = "") -> None:
        await self.store.destroy_namespace(self._for("api_destroy", id, who, sandbox))

    async def api_clone(
        self, id: str, name: str, checkpoint: str | None = None, who: Who = None, sandbox: str = ""
    ) -> Info:
        namespace = self._for("api_clone", id, who, sandbox)
        name = self.store.catalogue.free_entry(namespace.place, name)
        return self._info(await self.store.clone(self.store.volume(namespace), name, checkpoint))

    def _info(self, namespace: Namespace, session: Session | None = None) -> Info:
        """As `NamespaceInfo` has it.  `session`: the live session of one in session scope, if it is known."""
        own = namespace.metadata.get(OWN) or {}
        expires, id, user = namespace.expires, own.get("session") or "", namespace.owner
        if namespace.scope is Scope.SESSION:
            if session is None:
                session = self._maybe_session(namespace.sandbox, namespace.owner or "")
            user = None
            id = id or namespace.owner or ""
            if session is not None:
                id, user = session.id, session.user
                expires = session.expires_ns if expires is None else min(expires, session.expires_ns)
        return {
            "namespace_id": namespace.id,
            "type": str(namespace.type),
            "scope": str(namespace.scope),
            "name": namespace.name,
            "sandbox_id": namespace.sandbox,
            "session_id": id,
            "user_id": user,
            "owner_id": user,
            "provider_type": f"vfs-{self.provider_kind(namespace)}",
            "created_at": iso(namespace.created),
            "expires_at": None if expires is None else iso(expires),
            "ttl_seconds": 0 if expires is None else max(round((expires - namespace.created) / NS), 1),
            "grid_path": namespace.grid_path,
            "metadata": {key: value for key, value in namespace.metadata.items() if key != OWN},
        }

    def provider_kind(self, namespace: Namespace) -> str:
        """What keeps its bytes, as callers name it."""
        named = (namespace.metadata.get(OWN) or {}).get("provider")
        if named and named != "vfs":
            return str(named)
        kind = namespace.provider.partition(":")[0]
        if not kind:
            return "memory" if self.store.root is None else "filesystem"
        return {"file": "filesystem"}.get(kind, kind)

    # checkpoints
    async def api_checkpoint(
        self, id: str, name: str | None = None, description: str = "", who: Who = None, sandbox: str = ""
    ) -> Info:
        namespace = self._for("api_checkpoint", id, who, sandbox)
        if not isinstance(description, str):
            raise InvalidError(f"a checkpoint's description must be a string, not {description!r}")
        volume = self.store.volume(namespace)
        return _checkpoint(namespace, await self.store.checkpoint(volume, name, description))

    async def api_checkpoints(self, id: str, who: Who = None, sandbox: str = "") -> list[Info]:
        namespace = self._for("api_checkpoints", id, who, sandbox)
        return [_checkpoint(namespace, checkpoint) for checkpoint in shown(self.store.volume(namespace), False)]

    async def api_restore(self, id: str, checkpoint: str, who: Who = None, sandbox: str = "") -> Info:
        namespace = self._for("api_restore", id, who, sandbox)
        return _checkpoint(namespace, await self.store.restore(self.store.volume(namespace), checkpoint))

    async def api_checkpoint_delete(self, id: str, checkpoint: str, who: Who = None, sandbox: str = "") -> None:
        namespace = self._for("api_checkpoint_delete", id, who, sandbox)
        await self.store.delete_checkpoint(self.store.volume(namespace), checkpoint)

    async def api_diff(self, id: str, a: str, b: str | None = None, who: Who = None, sandbox: str = "") -> list[Info]:
        volume = self.store.volume(self._for("api_diff", id, who, sandbox))
        if b is None:
            await self.store.settle(volume)
        return [asdict(difference) for difference in await volume.diff(a, b)]


def _custom(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Errors: InvalidError for the reserved key, and for what is no JSON object."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise InvalidError("metadata is a mapping with strings as keys")
    if OWN in metadata:
        raise InvalidError(f"metadata: the key {OWN!r} is reserved")
    try:
        json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(f"metadata must be JSON: {error}") from None
    return dict(metadata)


def _checkpoint(namespace: Namespace, checkpoint: Checkpoint) -> Info:
    return {
        "checkpoint_id": checkpoint.id,
        "namespace_id": namespace.id,
        "name": checkpoint.name,
        "description": checkpoint.description,
        "created_at": iso(checkpoint.created),
        "stats": {"bytes": checkpoint.usage[0], "inodes": checkpoint.usage[1]},
    }


def has_all(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether its keys have exactly these values, as JSON: a number is no boolean."""
    return all(
        key in metadata and metadata[key] == value and isinstance(metadata[key], bool) == isinstance(value, bool)
        for key, value in wanted.items()
    )
