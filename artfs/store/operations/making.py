"""What all calls that make or change artifacts do with what their callers say."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from artfs.errors import ArtfsError
from artfs.exceptions import SessionError
from artfs.store.artifact_rules import check_filename, check_meta, check_mime, check_text, check_ttl, default_ttl
from artfs.store.operations.base import Operations
from artfs.store.public_errors import InvalidArgumentError, public
from artfs.types import Scope

if TYPE_CHECKING:
    from artfs.store.artifact_store import ArtifactStore


class _LeftOut:
    def __repr__(self) -> str:
        return "<left out>"


LEFT_OUT: Any = _LeftOut()
"""A `ttl` that was not given: `DEFAULT_TTL` in session scope, none in the others."""

Data = bytes | bytearray | memoryview


class Making(Operations):
    """REQUIRES: one of the groups that make an ArtifactStore."""

    def _described(
        self,
        *,
        mime: str | None,
        summary: str,
        filename: str | None,
        meta: Mapping[str, Any] | None,
        ttl: float | None,
        scope: Scope | str,
        user_id: str | None,
    ) -> dict[str, Any]:
        """The arguments of the calls of `Service` that make an artifact.  Errors: InvalidArgumentError."""
        store = self._store
        try:
            place = Scope(scope)
        except ValueError as error:
            raise InvalidArgumentError(f"Invalid scope: {scope!r}: it must be one of {', '.join(Scope)}") from error
        if place is Scope.USER and user_id is None and store._bound is None:
            raise InvalidArgumentError("user_id is required: user_id required for USER scope")
        home = store._home(place, None, None)
        own, meta = words(home["provider_type"], mime=mime, summary=summary, filename=filename, meta=meta)
        try:
            return {
                "own": own,
                "meta": meta,
                "ttl": default_ttl(place) if ttl is LEFT_OUT else check_ttl(ttl),
                "scope": str(place),
                "provider": home["provider"],
            }
        except ArtfsError as error:
            raise public(error) from error

    async def _made(self, method: str, /, *, session_id: str | None, user_id: str | None, **arguments: Any) -> Any:
        """Call a method that makes something for the session that is named, the view's, or the store's own.  Without a
        view this is the trusted owner's call, and says whose the thing is to be; in a view it is checked."""
        store: ArtifactStore = self._store
        named = session_id is not None or (store._bound is not None and store._bound["session"] is not None)
        life = arguments.get("ttl") if arguments.get("scope") == Scope.SESSION else None
        session = await store._session_for(session_id, user_id, life)
        who = {} if store._bound is None else {"session_id": session_id, "user_id": user_id}
        try:
            return await store._call(method, session=session, user=user_id, **who, **arguments)
        except SessionError:
            if named:
                raise
        store._session_ended(session)
        session = await store._session_for(session_id, user_id, life)
        return await store._call(method, session=session, user=user_id, **who, **arguments)

    def _changes(
        self,
        *,
        mime: str | None = None,
        summary: str | None = None,
        filename: str | None = None,
        meta: Mapping[str, Any] | None = None,
        merge: bool = True,
        ttl: float | None = None,
    ) -> dict[str, Any]:
        """Those that are given, checked.  Errors: InvalidArgumentError."""
        changes: dict[str, Any] = {}
        try:
            if mime is not None:
                changes["mime"] = check_mime(mime, None)
            if summary is not None:
                changes["summary"] = check_text("summary", summary)
            if filename is not None:
                changes["filename"] = check_filename(filename)
            if meta is not None:
                changes["meta"] = check_meta(meta)
                changes["merge"] = bool(merge)
            if ttl is not None:
                changes["ttl"] = check_ttl(ttl)
        except ArtfsError as error:
            raise public(error) from error
        return changes


def words(
    kind: str, *, mime: str | None, summary: str, filename: str | None, meta: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`own`, `meta`) of an artifact that goes to a provider of that kind.  Errors: InvalidArgumentError."""
    try:
        filename = check_filename(filename)
        own = {
            "mime": check_mime(mime, filename),
            "summary": check_text("summary", summary),
            "filename": filename,
            "provider": kind,
        }
        return own, check_meta(meta)
    except ArtfsError as error:
        raise public(error) from error


def check_id(id: str) -> str:
    """An artifact's, or an upload's.  Errors: InvalidArgumentError."""
    if not isinstance(id, str) or not id:
        raise InvalidArgumentError(f"an id must be a string that is not empty, not {id!r}")
    return id


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], request: Model | Mapping[str, Any]) -> Model:
    """A request, or what one can be made of.  Errors: InvalidArgumentError."""
    if isinstance(request, model):
        return request
    if not isinstance(request, Mapping):
        raise InvalidArgumentError(f"a {model.__name__} is wanted, not {type(request).__name__}")
    try:
        return model.model_validate(dict(request))
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error


def check_data(data: Any) -> bytes:
    """Errors: InvalidArgumentError."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    raise InvalidArgumentError(f"data must be bytes, not {type(data).__name__}")


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()
