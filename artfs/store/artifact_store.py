"""ArtifactStore: the Python API of a store.

Constructing one reads arguments and the environment, and does nothing else; its first use opens it (see
`artfs.store.handle`), `close` lets it go, after which every call fails with "Store is closed".  It may be used from
several event loops, asyncio's or trio's, one after another or at once.

Calls come from the process's owner, who is trusted, unless they name a `session_id` or `user_id`: then they are checked
as calls of that session or user.  `as_principal` gives a view of which every call is checked.

The calls are in groups (`artfs.store.operations`); here is what they stand on: `_call` and `_call_now`, the way to
`Service`; `_session_for`, the store's own sessions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from time import time, time_ns
from typing import Any, Self

from artfs.errors import ArtfsError, InvalidError
from artfs.exceptions import AccessDeniedError, SessionError
from artfs.grid import Prefixes, check_id, session_key
from artfs.objects.opening import SQLITE_FILE, SQLITE_PATHS, for_type
from artfs.sessions.provider_factory import check_provider
from artfs.sessions.session_manager import default_sandbox
from artfs.store.choosing import REMOTE, Place, arguments_of, by_provider, choose, scope_homes
from artfs.store.elsewhere import Elsewhere
from artfs.store.handle import Handle
from artfs.store.operations.admin import AdminOperations
from artfs.store.operations.batch import BatchOperations
from artfs.store.operations.core import CoreStorageOperations
from artfs.store.operations.grid import GridOperations
from artfs.store.operations.metadata import MetadataOperations
from artfs.store.operations.namespaces import NamespaceOperations
from artfs.store.operations.presigned import PresignedURLOperations
from artfs.store.operations.sessions import HOURS_MAX, SessionOperations
from artfs.store.public_errors import public
from artfs.types import DEFAULT_BUCKET, DEFAULT_MAX_RETRIES, DEFAULT_SESSION_TTL_HOURS, SessionProvider

HOUR = 3600.0
Who = dict[str, Any]
"""An identity, for `Service`: `session`, `user`, `admin`; in a bound view also `with_session` and `with_user`, which
are what a call names beside it."""


class ArtifactStore(
    CoreStorageOperations,
    MetadataOperations,
    BatchOperations,
    PresignedURLOperations,
    AdminOperations,
    NamespaceOperations,
    SessionOperations,
    GridOperations,
):
    """`root`: a directory (or an sqlite file) that other processes and mounts may use, too; without it ARTFS_ROOT, else
    what the provider gives; else the store is in memory, which all such stores of the process share, parted by sandbox.

    `max_retries`: how often a request to S3 that failed is sent again (0 to 20).
    `providers`: {scope: provider} for namespaces that name none; `shared_writable`: callers that are checked may write
    in sandbox scope; `variables`: environment variables in the place of arguments, as `artfs.config` gives them.
    Errors: InvalidError (a ValueError) for what can never be right.
    """

    def __init__(
        self,
        bucket: str | None = None,
        storage_provider: str | None = None,
        session_provider: str | None = None,
        sandbox_id: str | None = None,
        session_ttl_hours: float = DEFAULT_SESSION_TTL_HOURS,
        max_retries: int = DEFAULT_MAX_RETRIES,
        *,
        root: str | os.PathLike[str] | None = None,
        providers: Mapping[Any, str] | None = None,
        shared_writable: bool = False,
        **variables: str,
    ) -> None:
        env = dict(os.environ)
        try:
            named = arguments_of(variables, env)
            root = named.get("root") if root is None else root
            bucket = bucket or named.get("bucket")
            storage_provider = storage_provider or named.get("storage_provider")
            session_provider = session_provider or named.get("session_provider")
            if isinstance(session_ttl_hours, bool) or not 0 < session_ttl_hours < HOURS_MAX:
                raise InvalidError(f"session_ttl_hours must be a number above 0, not {session_ttl_hours!r}")
            if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
                raise InvalidError(f"max_retries must be a whole number from 0, not {max_retries!r}")
            if not isinstance(bucket, str | None):
                raise InvalidError(f"a bucket's name is a string, not {bucket!r}")
            if not isinstance(shared_writable, bool):
                raise InvalidError(f"shared_writable is True or False, not {shared_writable!r}")
            # What the URL of a provider leaves out is the default.
            self._options = {"retries": str(max_retries)} if max_retries != DEFAULT_MAX_RETRIES else {}
            self._scope_kinds = scope_homes(providers, env)
            self._place = choose(root, storage_provider, bucket, env, self._options, self._scope_kinds)
            self._environment = env
            self.sandbox_id = self._sandbox(sandbox_id)
            self.session_provider = check_provider(
                str(session_provider or env.get("SESSION_PROVIDER") or SessionProvider.MEMORY)
            )
        except ArtfsError as error:
            raise public(error) from error
        self.bucket = bucket or env.get("ARTIFACT_BUCKET") or env.get("AWS_S3_BUCKET") or DEFAULT_BUCKET
        self.storage_provider = f"vfs-{self._place.kind}"
        self.session_ttl_hours = session_ttl_hours
        self.max_retries = max_retries
        self._shared_writable = shared_writable
        self._handle = Handle(self._place.root, self._place.config)
        self._elsewhere = Elsewhere(self._handle)
        self._own_sessions: dict[tuple[str | None, bool], tuple[str, float]] = {}
        self._made_at = time_ns()
        self._sessions_asked = Counter[bool]()  # whether they were live
        self._prefixes = Prefixes(self.sandbox_id)
        self._bound: Who | None = None
        self._store = self

    def _sandbox(self, given: str | None) -> str:
        if given is not None:
            return check_id("sandbox", given)
        return check_id("sandbox", default_sandbox(alone=self._place.root is None))

    # life
    async def __aenter__(self) -> Self:
        await self._call("api_ping")
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the store go; what was acknowledged stays.  Waits for uploads to its provider, as long as they get on.
        Again without effect.  A view's close is the store's."""
        await self._handle.close()
        await self._elsewhere.close()

    @property
    def closed(self) -> bool:
        """Whether every further call fails."""
        return self._handle.closed

    # the same, by the names that programs look for
    @property
    def _closed(self) -> bool:
        return self.closed

    @property
    def _storage_provider_name(self) -> str:
        return self._place.kind

    @property
    def _session_provider_name(self) -> str:
        return self.session_provider

    @property
    def root(self) -> str | None:
        """Where it is; None: in memory."""
        return None if self._place.root is None else str(self._place.root)

    @property
    def namespace(self) -> Self:
        """The namespace operations, which are the store's own."""
        return self

    def as_principal(
        self, *, session_id: str | None = None, user_id: str | None = None, admin: bool = False
    ) -> ArtifactStore:
        """The same store as somebody sees it: every call of the view is checked, without exception.  What a view of a
        view names must be the same.  Errors: InvalidError; AccessDeniedError for a view that would see more."""
        try:
            if user_id is not None:
                check_id("user", user_id)
            if session_id is not None:
                session_key(session_id)
        except ArtfsError as error:
            raise public(error) from error
        bound = self._bound
        if bound is not None and not bound["admin"]:
            same = (session_id in (None, bound["session"])) and (user_id in (None, bound["user"])) and not admin
            if not same:
                raise AccessDeniedError("Access denied: a view shows no more than the view that it was made from")
            session_id, user_id = bound["session"], bound["user"]
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._bound = {"session": session_id, "user": user_id, "admin": admin}
        view._store = view
        return view

    # the way to the service
    async def _call(
        self, method: str, /, *, session_id: str | None = None, user_id: str | None = None, **arguments: Any
    ) -> Any:
        """Call `Service.<method>` as this caller.  Errors: those of `artfs.exceptions`."""
        arguments["who"] = self._who(session_id, user_id)
        arguments["sandbox"] = self.sandbox_id
        try:
            try:
                return await self._handle.do(method, **arguments)
            except ArtfsError as error:
                if self._elsewhere.is_worth_asking(error, arguments):
                    return await self._elsewhere.do(error, method, arguments)
                raise
        except ArtfsError as error:
            raise public(error) from error

    def _call_now(
        self, method: str, /, *, session_id: str | None = None, user_id: str | None = None, **arguments: Any
    ) -> Any:
        """The same from a plain function: the calling thread waits."""
        arguments["who"] = self._who(session_id, user_id)
        arguments["sandbox"] = self.sandbox_id
        try:
            try:
                found = self._handle.do_now(method, **arguments)
            except ArtfsError as error:
                if self._elsewhere.is_worth_asking(error, arguments):
                    return self._elsewhere.do_now(error, method, arguments)
                raise
            if self._elsewhere and isinstance(found, list):
                found += self._elsewhere.listed(method, arguments)
            return found
        except ArtfsError as error:
            raise public(error) from error

    def _who(self, session_id: str | None, user_id: str | None) -> Who | None:
        """None: the trusted owner of the process."""
        if self._bound is None:
            if session_id is None and user_id is None:
                return None
            who: Who = {"session": session_id, "user": user_id, "admin": False}
        elif session_id is None and user_id is None:
            who = self._bound
        else:
            who = {**self._bound, "with_session": session_id, "with_user": user_id}
        return {**who, "shared": True} if self._shared_writable else who

    def _place_of(self, kind: str, config: Mapping[str, Any] | None) -> Place | None:
        """The other store that namespaces of a kind of provider are in; None: this one.  Errors: InvalidError."""
        if self._place.root is not None or (kind in ("memory", "vfs") and not config):
            return None
        return by_provider(kind, self._configured(kind, config), self._environment)

    def _home_url(self, kind: str, config: Mapping[str, Any] | None = None) -> str:
        """The provider that a namespace of its own kind goes to.  Errors: InvalidError."""
        if not config and kind in ("vfs", self._place.kind):
            return self._place.home or ""
        if kind == "filesystem" and not config:
            return ""  # the store's own directory
        if kind == "sqlite" and not config and not any(self._environment.get(name) for name in SQLITE_PATHS):
            config = {"db_path": str(self._place.root / SQLITE_FILE)} if self._place.root is not None else None
        return for_type(kind, self._configured(kind, config), self._environment)

    def _configured(self, kind: str, config: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**(self._options if kind in REMOTE else {}), **(config or {})}

    # sessions that calls do not name
    async def _session_for(self, session_id: str | None, user_id: str | None, life: float | None = None) -> str:
        """The session that something made by this call belongs to: the one that is named, the view's, else the store's
        own for the user, made at its first use, and anew when it would not outlive that by `life` seconds.

        What is kept for no longer than half of `session_ttl_hours` shares one, which is used for the first half of its
        life; what is kept for longer has another, so that nothing without an end of its own lives longer by that."""
        if session_id is not None:
            return session_id
        bound = self._bound
        if bound is not None:
            if bound["session"] is not None:
                return str(bound["session"])
            user_id = user_id or bound["user"]
        half = self.session_ttl_hours * HOUR / 2
        long = life is not None and life > half
        lasting = life if life is not None and long else half
        return self._own_session(user_id, long, lasting) or await self._new_own_session(user_id, long, lasting)

    def _own_session(self, user_id: str | None, long: bool, lasting: float) -> str | None:
        id, end = self._own_sessions.get((user_id, long), (None, 0.0))
        return id if end - time() >= lasting else None

    async def _new_own_session(self, user_id: str | None, long: bool, lasting: float) -> str:
        end = time() + 2 * lasting
        made = await self._call("api_session_create", user_id=user_id, user=user_id, ttl_seconds=2 * lasting)
        other = self._own_session(user_id, long, lasting)  # another call may have been faster
        if other is not None:
            return other
        self._own_sessions[user_id, long] = (str(made["session_id"]), end)
        return str(made["session_id"])

    def _session_ended(self, session: str) -> None:
        """It is none of the store's own any more."""
        for key, (own, _) in list(self._own_sessions.items()):
            if own == session:
                del self._own_sessions[key]

    async def _call_in_session(
        self, method: str, /, *, session_id: str | None, user_id: str | None, life: float | None, **arguments: Any
    ) -> Any:
        """`_call` with `session`: that of `_session_for`.  An own session that has ended is made anew."""
        named = session_id is not None or (self._bound is not None and self._bound["session"] is not None)
        session = await self._session_for(session_id, user_id, life)
        try:
            return await self._call(method, session_id=session_id, user_id=user_id, session=session, **arguments)
        except SessionError:
            if named:
                raise
        self._session_ended(session)
        session = await self._session_for(session_id, user_id, life)
        return await self._call(method, session_id=session_id, user_id=user_id, session=session, **arguments)
