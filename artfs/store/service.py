"""The calls that programs make on a store, from the process that owns it or from any other on this host (see
`artfs.store.connecting`).

Arguments and results are JSON values, or bytes.  Paths are grid paths in any spelling; where a namespace is
meant, its id will do.  Times are nanoseconds since 1970.  Callers are the owner of the store: nothing is
refused to them.

A call that changes something is not cancelled half-way: it ends, whatever becomes of its caller.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

import anyio
from anyio import to_thread

from artfs.errors import InvalidError
from artfs.grid import GridPath, parse_path, scope_dir
from artfs.meta import Checkpoint
from artfs.sessions import Session
from artfs.settings import FORMAT
from artfs.store.artifact_transfers import ArtifactTransfers
from artfs.store.batch_calls import BatchCalls
from artfs.store.describing import describe
from artfs.store.namespace_calls import NamespaceCalls
from artfs.store.object_calls import JOBS, ObjectCalls
from artfs.store.portable import shown
from artfs.store.store import Store
from artfs.types import NamespaceType, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.volume import Volume
from artfs.volume.waiting import run

HOUR = 3600.0
FREE = frozenset(
    {"fs_list", "fs_stat", "fs_read", "fs_copy", "du", "checkpoint_diff", "sync", "warmup", "ns_export", "ns_import"}
)
"""Calls that may be cancelled; what they began they take back, but what is uploaded and cached stays so."""
FAMILIES = ("session_", "ns_", "checkpoint_", "fs_", "cache_", "api_")
OTHERS = frozenset({"du", "status", "stats", "sync", "gc", "warmup", "let_go"})


_signature = cache(inspect.signature)


class Service(ArtifactTransfers, BatchCalls, NamespaceCalls, ObjectCalls):
    """The calls of one client: what it has begun to write ends with it (`aclose`).  A plain function raises `MustWait`
    where it would have to wait; `call` waits for it."""

    def __init__(self, store: Store, role: str = "") -> None:
        super().__init__(store)
        self.role = role
        self._comes_back = False

    def is_missed(self) -> bool:
        """Whether its client needs this connection: something is open, or it would not connect again by itself."""
        return bool(self.pending()) or not self._comes_back

    async def call(self, method: str, /, **arguments: Any) -> Any:
        """Errors: InvalidError for an unknown method or argument; ArtfsError as the method."""
        function = getattr(self, method, None) if method.startswith(FAMILIES) or method in OTHERS else None
        if function is None:
            raise InvalidError(f"there is no call {method!r}; this artfs may be newer than the store's owner")
        try:
            _signature(function.__func__).bind(self, **arguments)
        except TypeError as error:
            raise InvalidError(f"{method}: {error}") from None
        self._comes_back = method.startswith("api_")  # as programs do (see `artfs.store.handle`)
        with anyio.CancelScope(shield=method not in FREE):
            if inspect.iscoroutinefunction(function):
                return await function(**arguments)
            return await run(function, **arguments)

    def is_idle(self) -> bool:
        """Nothing is left to do, and nobody is connected: the store may be closed without a loss."""
        store = self.store
        remote = store.shard.remote
        busy = store.connections() or self.pending() or JOBS.get(store) or store.surfaces
        busy = busy or not store.shard.idle() or store.blobs.endpoint is not None
        return not busy and not (remote.homes and remote.waiting().objects)

    async def let_go(self) -> bool:
        """Ask the owner for the store: whether it may be free soon.  A mount keeps it."""
        return self.store.on_asked()

    # sessions
    async def session_create(
        self,
        sandbox: str | None = None,
        user: str | None = None,
        ttl_seconds: float | None = None,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        settings = self.store.settings
        ttl = settings.session_ttl_hours * HOUR if ttl_seconds is None else ttl_seconds
        place = sandbox or settings.sandbox
        return _session(await self.store.create_session(place, user, ttl=ttl, id=id, metadata=metadata))

    async def session_list(self, sandbox: str | None = None) -> list[dict[str, Any]]:
        return [_session(session) for session in self.store.sessions.list(sandbox)]

    async def session_info(self, id: str, sandbox: str | None = None) -> dict[str, Any]:
        return _session(self.store.sessions.get(sandbox or self.store.settings.sandbox, id))

    async def session_extend(self, id: str, seconds: float, sandbox: str | None = None) -> dict[str, Any]:
        place = sandbox or self.store.settings.sandbox
        return _session(await to_thread.run_sync(self.store.sessions.extend, place, id, seconds))

    async def session_delete(self, id: str, sandbox: str | None = None) -> dict[str, Any]:
        """Returns the session as it was."""
        place = sandbox or self.store.settings.sandbox
        session = self.store.sessions.get(place, id)
        await self.store.delete_session(place, id)
        return _session(session)

    # namespaces
    async def ns_create(
        self,
        path: str,
        type: str = "workspace",
        ttl_seconds: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        provider: str | None = None,
        compression: str | None = None,
    ) -> dict[str, Any]:
        """`provider`: a URL, "" for the store's own directory; it and `compression` None: as the settings say."""
        place = parse_path(path)
        if place.sandbox is None or place.scope is None or place.path:
            raise InvalidError(f"{path!r} is no place for a namespace; use SANDBOX/SCOPE/NAME, or SANDBOX/SCOPE")
        if type not in tuple(NamespaceType):
            raise InvalidError(f"there is no type {type!r} of namespaces; use {' or '.join(NamespaceType)}")
        namespace = await self.store.create_namespace(
            place.sandbox,
            place.scope,
            place.owner,
            place.namespace,
            type=NamespaceType(type),
            ttl=ttl_seconds,
            metadata=metadata,
            provider=provider,
            compression=compression,
        )
        return describe(self.store, namespace)

    async def ns_list(self, path: str = "grid", trash: bool = False) -> list[dict[str, Any]]:
        """In order of grid paths.  Those in the trash have `trashed`, when they were put there."""
        found = [self._described(namespace) for namespace in self._below(parse_path(path), trash)]
        return sorted(found, key=lambda item: (item["grid_path"], item["id"]))

    async def ns_info(self, path: str) -> dict[str, Any]:
        return describe(self.store, self._namespace(path))

    async def ns_rename(self, path: str, name: str) -> dict[str, Any]:
        return describe(self.store, await self.store.rename_namespace(self._namespace(path, exact=True), name))

    async def ns_clone(self, path: str, name: str, checkpoint: str | None = None) -> dict[str, Any]:
        volume = self.store.volume(self._namespace(path, exact=True))
        return describe(self.store, await self.store.clone(volume, name, checkpoint))

    async def ns_delete(self, path: str, for_good: bool = False) -> dict[str, Any]:
        """`trashed`: whether it can be brought back."""
        namespace = self._namespace(path, exact=True, trash=for_good)
        return {"trashed": await self.store.destroy_namespace(namespace, for_good=for_good)}

    async def ns_undelete(self, path_or_id: str) -> dict[str, Any]:
        by_id = self.store.catalogue.by_id
        id = path_or_id if path_or_id in by_id else str(parse_path(path_or_id))
        return describe(self.store, await self.store.undelete_namespace(id))

    def _described(self, namespace: Namespace) -> dict[str, Any]:
        described = describe(self.store, namespace)
        return described if namespace.trashed is None else {**described, "trashed": namespace.trashed}

    # checkpoints
    async def checkpoint_create(
        self,
        path: str,
        name: str | None = None,
        description: str = "",
        labels: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        return _checkpoint(await self.store.checkpoint(self._volume(path), name, description, labels))

    async def checkpoint_list(self, path: str, all: bool = False) -> list[dict[str, Any]]:
        return [_checkpoint(checkpoint) for checkpoint in shown(self._volume(path), all)]

    async def checkpoint_restore(self, path: str, name: str) -> dict[str, Any]:
        """`safety`: the checkpoint that undoes it."""
        return {"safety": (await self.store.restore(self._volume(path), name)).id}

    async def checkpoint_delete(self, path: str, name: str) -> dict[str, Any]:
        return _checkpoint(await self.store.delete_checkpoint(self._volume(path), name))

    async def checkpoint_diff(self, path: str, a: str, b: str | None = None) -> list[dict[str, Any]]:
        volume = self._volume(path)
        if b is None:
            await self.store.settle(volume)
        return [asdict(difference) for difference in await volume.diff(a, b)]

    async def checkpoint_label(self, path: str, name: str, labels: Mapping[str, Any]) -> dict[str, Any]:
        return _checkpoint(await self._volume(path).label(name, labels))

    def _volume(self, path: str) -> Volume:
        return self.store.volume(self._namespace(path))

    # the store
    async def du(self, path: str = "grid") -> list[dict[str, Any]]:
        """What each namespace below `path` holds, in order of grid paths; what is there, inside a namespace."""
        place = parse_path(path)
        if place.path:
            return [await self.fs_usage(path)]
        found = []
        for namespace in self._below(place):
            size, inodes = self.store.shard.usage(namespace)
            found.append({"path": namespace.grid_path, "bytes": size, "inodes": inodes})
        return sorted(found, key=lambda item: str(item["path"]))

    async def status(self) -> dict[str, Any]:
        """`trouble`: why commits fail at present; `failure`: why the store takes no more changes.  Empty if
        all is well.  `missing`: providers that cannot be used at present, with the reason."""
        store = self.store
        statistics = asdict(store.shard.statistics())
        trouble, failure = statistics.pop("trouble"), statistics.pop("failure")
        return {
            "root": str(store.root) if store.root else None,
            "format": FORMAT,
            "owner": {"pid": os.getpid(), "role": self.role},
            "mounts": [str(surface.point) for surface in store.surfaces],
            "statistics": statistics,
            "recovered": store.recovered,
            "trouble": trouble,
            "failure": failure,
            "provider": store.settings.provider,
            "missing": {home.provider: str(error) for home, error in store.missing.items()},
            "waiting": self._waiting(),
            "saved": self._saved(),
            "jobs": [asdict(job) for job in JOBS.get(store, [])],
            "sessions": len(store.sessions.list()),
            "namespaces": sum(1 for _ in self._below(GridPath())),
            "trash": sum(1 for _ in store.catalogue.trash()),
        }

    async def stats(self) -> dict[str, Any]:
        """Counters of the shard, of the cache, and of each mount, by its point."""
        found: dict[str, Any] = asdict(self.store.shard.statistics())
        found["cache"] = asdict(self.store.shard.remote.statistics())
        found["mounts"] = {str(surface.point): surface.statistics() for surface in self.store.surfaces}
        return found


def _session(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "sandbox": session.sandbox,
        "user": session.user,
        "created": session.created_ns,
        "expires": session.expires_ns,
        "last_accessed": session.last_accessed_ns,
        "metadata": dict(session.metadata),
        "grid_path": f"grid/{session.sandbox}/{scope_dir(Scope.SESSION, session.id)}",
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "id": checkpoint.id,
        "name": checkpoint.name,
        "created": checkpoint.created,
        "bytes": checkpoint.usage[0],
        "inodes": checkpoint.usage[1],
        "description": checkpoint.description,
        "labels": dict(checkpoint.labels),
    }
