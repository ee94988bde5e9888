"""Namespaces: made, written, read, listed, destroyed, and their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from artfs.errors import ArtfsError, InvalidError
from artfs.grid import check_namespace_name
from artfs.store.choosing import Place, plain_kind
from artfs.store.operations.base import Operations
from artfs.store.operations.transfer import octets, read_all, write_all
from artfs.store.public_errors import InvalidArgumentError, public
from artfs.types import NamespaceType, StorageScope
from artfs.types.responses import CheckpointInfo, NamespaceInfo

if TYPE_CHECKING:
    from artfs.store.virtual_fs import AsyncVirtualFileSystem

HOUR = 3600.0


class NamespaceOperations(Operations):
    """`namespace_id` is an id or a grid path; an artifact's id is that of its namespace.  Errors of all:
    ArtifactNotFoundError, ArtifactExpiredError, AccessDeniedError, SessionError, ProviderError, InvalidError."""

    async def create_namespace(
        self,
        type: NamespaceType | str,
        scope: StorageScope | str = StorageScope.SESSION,
        name: str | None = None,
        user_id: str | None = None,
        ttl_hours: float | None = None,
        provider_type: str | None = None,
        provider_config: Mapping[str, Any] | None = None,
        *,
        session_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> NamespaceInfo:
        """A new, empty namespace.  A name that is taken gets `~2`; None: its id is its entry.  Without `session_id` one
        of session scope belongs to the store's own session of that user.  `ttl_hours` may be a fraction, above 0;
        None: none, or the session's life.  `metadata` is a JSON object.

        Errors: InvalidArgumentError (a type, scope, name or provider that there cannot be; no user for user scope),
        SessionError (`session_id` is not live), AccessDeniedError, ProviderError.
        """
        store = self._store
        try:
            type, scope = NamespaceType(type), StorageScope(scope)
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None
        for given in (provider_config, metadata):
            if given is not None and not isinstance(given, Mapping):
                raise InvalidArgumentError(f"provider_config and metadata are mappings, which {given!r} is not")
        arguments: dict[str, Any] = {
            "type": str(type),
            "scope": str(scope),
            "name": _name(name),
            "ttl_seconds": ttl_seconds(ttl_hours),
            "metadata": None if metadata is None else dict(metadata),
            "user": user_id,
        }
        if scope is StorageScope.USER and user_id is None and session_id is None and store._bound is None:
            raise InvalidArgumentError("user_id required for USER scope")
        who = {"session_id": session_id, "user_id": user_id}
        if scope is StorageScope.SANDBOX and store._bound is None:  # who makes it, not what they may do
            who = {"session_id": None, "user_id": None}
            arguments["session"] = session_id
        kind = store._scope_kinds.get(scope) if provider_type is None else provider_type
        other = None if kind is None else self._other(kind, provider_config)
        if other is not None:
            return NamespaceInfo(**await self._create_elsewhere(other, scope, arguments, who))
        arguments |= self._home(scope, provider_type, provider_config)
        if scope is StorageScope.SESSION:
            made = await store._call_in_session("api_create", life=arguments["ttl_seconds"], **who, **arguments)
        else:
            made = await store._call("api_create", **who, **arguments)
        return NamespaceInfo(**made)

    def _other(self, kind: str, config: Mapping[str, Any] | None) -> Place | None:
        try:
            return self._store._place_of(plain_kind(kind), config)
        except ArtfsError as error:
            raise public(error) from error

    async def _create_elsewhere(
        self, place: Place, scope: StorageScope, arguments: dict[str, Any], who: dict[str, str | None]
    ) -> dict[str, Any]:
        """In the store that the provider gives, with the session that it belongs to."""
        store = self._store
        arguments |= {"provider": place.home, "provider_type": place.kind, "who": store._who(**who), "session": None}
        try:
            if scope is StorageScope.SESSION:
                session = await store._call(
                    "api_session_info", id=await store._session_for(**who, life=arguments["ttl_seconds"])
                )
                arguments["session"] = session["session_id"]
            return await store._elsewhere.make(place, {**arguments, "sandbox": store.sandbox_id})
        except ArtfsError as error:
            raise public(error) from error

    def _home(self, scope: StorageScope, provider_type: str | None, config: Mapping[str, Any] | None) -> dict[str, Any]:
        """Where the bytes of a new namespace go, as `api_create` takes it."""
        store = self._store
        kind = store._scope_kinds.get(scope) if provider_type is None else provider_type
        if kind is None:
            return {"provider": store._place.home, "provider_type": store._place.kind}
        try:
            kind = plain_kind(kind)
            return {"provider": store._home_url(kind, config), "provider_type": kind}
        except ArtfsError as error:
            raise public(error) from error

    async def write_namespace(
        self,
        namespace_id: str,
        data: bytes | str,
        path: str | None = None,
        *,
        mime: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
    ) -> None:
        """Replace a file, or make it and the directories that it lacks; others see the old bytes or the new.  `path`
        may be left out in a BLOB."""
        content = octets(data)
        await write_all(self._store, namespace_id, path, content, mime=mime, session_id=session_id, user_id=user_id)

    async def read_namespace(
        self,
        namespace_id: str,
        path: str | None = None,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
    ) -> bytes:
        """All bytes of a file, of one version.  `path` may be left out in a BLOB.
        Errors: ArtifactNotFoundError, ArtifactExpiredError, AccessDeniedError, ProviderError; InvalidArgumentError
        without a path in a WORKSPACE."""
        return await read_all(self._store, namespace_id, path, session_id=session_id, user_id=user_id)

    def get_namespace_vfs(
        self, namespace_id: str, *, session_id: str | None = None, user_id: str | None = None
    ) -> AsyncVirtualFileSystem:
        """Its files by path, with a current directory of its own."""
        from artfs.store.virtual_fs import AsyncVirtualFileSystem

        store = self._store
        info = store._call_now("api_info", id=namespace_id, session_id=session_id, user_id=user_id)
        return AsyncVirtualFileSystem(store, info["namespace_id"], session_id=session_id, user_id=user_id)

    def get_namespace_info(
        self, namespace_id: str, session_id: str | None = None, user_id: str | None = None
    ) -> NamespaceInfo:
        """What it is: type, scope, owner, grid path, expiry, metadata.  A plain function: the thread waits."""
        found = self._store._call_now("api_info", id=namespace_id, session_id=session_id, user_id=user_id)
        return NamespaceInfo(**found)

    def list_namespaces(
        self,
        session_id: str | None = None,
        user_id: str | None = None,
        type: NamespaceType | str | None = None,
        include_all_scopes: bool = True,
        *,
        scope: StorageScope | str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[NamespaceInfo]:
        """In the order of their making; without a filter all that the caller may see.  `session_id`: those of that
        session; `user_id`: those of that user and of their sessions; without `include_all_scopes` none of sandbox
        scope; `metadata`: those whose metadata have these keys, with exactly these values."""
        try:
            filters = {
                "type": None if type is None else str(NamespaceType(type)),
                "scope": None if scope is None else str(StorageScope(scope)),
            }
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None
        found = self._store._call_now(
            "api_list",
            session_id=session_id,
            user_id=user_id,
            of_session=session_id,
            of_user=user_id,
            metadata=metadata,
            **filters,
        )
        shared = str(StorageScope.SANDBOX)
        return [NamespaceInfo(**info) for info in found if include_all_scopes or info["scope"] != shared]

    async def destroy_namespace(
        self, namespace_id: str, session_id: str | None = None, user_id: str | None = None
    ) -> bool:
        """Delete it.  With checkpoints it can be brought back for a day."""
        await self._store._call("api_destroy", id=namespace_id, session_id=session_id, user_id=user_id)
        return True

    async def clone_namespace(
        self,
        namespace_id: str,
        name: str,
        checkpoint_id: str | None = None,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
    ) -> NamespaceInfo:
        """A namespace of its own, in the same scope, with what this one, or one of its checkpoints, holds."""
        made = await self._store._call(
            "api_clone",
            id=namespace_id,
            name=_name(name),
            checkpoint=checkpoint_id,
            session_id=session_id,
            user_id=user_id,
        )
        return NamespaceInfo(**made)

    # checkpoints
    async def checkpoint_namespace(
        self,
        namespace_id: str,
        name: str | None = None,
        description: str | None = None,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
    ) -> CheckpointInfo:
        """What the namespace holds now, through whatever door it was written.  `name=None`: one from the time."""
        made = await self._store._call(
            "api_checkpoint",
            id=namespace_id,
            name=name,
            description="" if description is None else description,
            session_id=session_id,
            user_id=user_id,
        )
        return CheckpointInfo(**made)

    async def list_checkpoints(
        self, namespace_id: str, *, session_id: str | None = None, user_id: str | None = None
    ) -> list[CheckpointInfo]:
        """The oldest first."""
        found = await self._store._call("api_checkpoints", id=namespace_id, session_id=session_id, user_id=user_id)
        return [CheckpointInfo(**info) for info in found]

    async def restore_namespace(
        self,
        namespace_id: str,
        checkpoint_id: str,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
    ) -> bool:
        """Make the tree exactly what the checkpoint saw, at once; a safety checkpoint is taken first.  `checkpoint_id`:
        an id, or a name, which means its latest.  Errors: ArtifactNotFoundError for either of the two; as above."""
        await self._store._call(
            "api_restore", id=namespace_id, checkpoint=checkpoint_id, session_id=session_id, user_id=user_id
        )
        return True

    async def delete_checkpoint(
        self,
        namespace_id: str,
        checkpoint_id: str,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
    ) -> bool:
        """Forget it, and what only it holds; the present tree stays as it is."""
        await self._store._call(
            "api_checkpoint_delete", id=namespace_id, checkpoint=checkpoint_id, session_id=session_id, user_id=user_id
        )
        return True

    async def diff_namespace(
        self,
        namespace_id: str,
        a: str,
        b: str | None = None,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
    ) -> list[dict[str, Any]]:
        """What changed from checkpoint `a` to checkpoint `b` (None: now), in order of paths: `path`, and `change`,
        which is `added`, `removed` or `modified`; a renamed file is one removed and one added."""
        found: list[dict[str, Any]] = await self._store._call(
            "api_diff", id=namespace_id, a=a, b=b, session_id=session_id, user_id=user_id
        )
        return found


def ttl_seconds(hours: float | None) -> float | None:
    """Errors: InvalidError unless above zero."""
    if hours is None:
        return None
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours < 1e9:
        raise InvalidArgumentError(f"ttl_hours must be a number above 0, not {hours!r}; None is no expiry")
    return hours * HOUR


def _name(name: str | None) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str):
        raise InvalidArgumentError(f"a namespace's name must be a string, not {name!r}")
    try:
        return check_namespace_name(name)
    except InvalidError as error:
        raise public(error) from error
