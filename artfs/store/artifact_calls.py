"""The calls of the Python API on artifacts, checked for who makes them.

An artifact is a BLOB; its id is the namespace's.  What the API knows of it beside the user's metadata is in the
namespace's document, under `OWN`, as far as it is not None:

    mime, summary, filename     session, owner: who made it, and whose it, or its session, is     provider: by its name
    bytes, mtime, sha256        of the content when this was written: it is as long as the file has this size and time
    ttl in seconds   updated, ISO   presigned, incomplete, batch_operation, batch_index

Plain functions are hot (see `artfs.store.namespace_calls`): they raise `MustWait` before they have changed anything.
What is not complete is not seen: an artifact and its bytes are one record of the journal, or it is `making`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from artfs.errors import ArtfsError, DeniedError, ExistsError, ExpiredError, InvalidError, NotFoundError
from artfs.exceptions import SessionError
from artfs.grid import check_id, session_key
from artfs.objects import Home
from artfs.sessions import Session
from artfs.sessions.metadata import iso
from artfs.store.artifact_rules import Own, key_of, new_id, own_of
from artfs.store.identity import WANTED, Who
from artfs.store.namespace_calls import NamespaceCalls
from artfs.types import Access, NamespaceType, Scope
from artfs.volume.catalogue import Namespace, uncollected
from artfs.volume.data import DIRECT
from artfs.volume.inodes import now as coarse_now
from artfs.volume.node import Node
from artfs.volume.postings import OWN
from artfs.volume.tree import BLOB_DATA, Tree
from artfs.volume.trees import SMALL
from artfs.volume.waiting import MustWait, run

PART = 16 << 20
"""Bytes of one call, at most."""
Described = dict[str, Any]
T = TypeVar("T")


class ArtifactCalls(NamespaceCalls):
    """Mixin of `Service`."""

    # finding
    def _artifact(self, id: str, who: Who, sandbox: str, wanted: Access) -> Namespace:
        """The live BLOB, if the caller may do that with it.
        Errors: NotFoundError, ExpiredError, DeniedError; InvalidError for a WORKSPACE."""
        try:
            namespace = self.store.find(id, sandbox)
        except ExpiredError as error:
            raise ExpiredError(f"Artifact {id} has expired") from error
        except NotFoundError as error:
            if self._expected(id):
                raise MustWait(partial(self._arrive, id)) from None
            raise NotFoundError(f"Artifact not found: {id}") from error
        self.identity.require(who, sandbox, namespace, wanted)
        if namespace.type is not NamespaceType.BLOB:
            raise InvalidError(f"{id} is a WORKSPACE: path required for workspace")
        return namespace

    def _expected(self, id: str) -> bool:
        """Whether an upload becomes the artifact by itself."""
        raise NotImplementedError  # this and the next: see `artfs.store.artifact_transfers`

    async def _arrive(self, id: str) -> None:
        """Errors: NotFoundError if its bytes have not come."""
        raise NotImplementedError

    def _node(self, tree: Tree) -> Node:
        node = tree.lookup(tree.root(), BLOB_DATA)
        if node is None:
            raise NotFoundError("a BLOB has no _data; run: artfs fsck")
        return node

    def _describe(self, namespace: Namespace) -> Described:
        """As `ArtifactMetadata` has it."""
        metadata = namespace.metadata
        own = metadata.get(OWN) or {}
        size, sha256 = own.get("bytes"), own.get("sha256")
        tree = self.store.shard.trees.get(namespace.serial)
        if tree is None and size is None:
            tree = self.store.shard.glance(namespace)
        if tree is not None:
            node = self._node(tree)
            if node.size != size or node.mtime != own.get("mtime"):
                size, sha256 = node.size, None
        scope = namespace.scope
        session = str(own.get("session") or (scope is Scope.SESSION and namespace.owner) or "")
        described: Described = {
            "artifact_id": namespace.id,
            "session_id": session,
            "sandbox_id": namespace.sandbox,
            "key": key_of(namespace, session),
            "mime": own.get("mime") or "application/octet-stream",
            "summary": own.get("summary") or "",
            "meta": {key: value for key, value in metadata.items() if key != OWN},
            "filename": own.get("filename"),
            "bytes": size,
            "sha256": sha256,
            "stored_at": iso(namespace.created),
            "ttl": own.get("ttl"),
            "expires_at": None if namespace.expires is None else iso(namespace.expires),
            "storage_provider": f"vfs-{self.provider_kind(namespace)}",
            "session_provider": self.session_kind,
            "scope": str(scope),
            "owner_id": namespace.owner if scope is Scope.USER else own.get("owner"),
        }
        for name, shown in OPTIONAL.items():
            if name in own:
                described[shown] = own[name]
        return described

    @property
    def session_kind(self) -> str:
        return "memory" if self.store.root is None else "sqlite"

    # making
    def _artifact_place(
        self, scope: str, session: str | None, user: str | None, who: Who, sandbox: str
    ) -> tuple[Scope, str | None, Session | None]:
        """Where an artifact goes: (scope, owner, the session that makes it).  An unknown session is allocated.
        Errors: SessionError, DeniedError, InvalidError; MustWait."""
        place = Scope(scope)
        if who is not None and not who.get("admin"):
            named = who.get("with_session") or who.get("session")
            session = session if session is not None else named
        live = self._making_session(session, user, who, sandbox) if session is not None else None
        if place is Scope.USER and user is None and live is not None and who is not None:
            user = live.user
        owner = self._owner(place, user, session, who, sandbox)
        if who is not None:
            self.identity.require_scope(who, sandbox, place, owner, Access.WRITE)
        return place, owner, live

    def _making_session(self, id: str, user: str | None, who: Who, sandbox: str) -> Session:
        try:
            session = self.store.sessions.get(sandbox, id)
        except NotFoundError as error:
            if type(error) is not NotFoundError:
                raise SessionError(str(error)) from error
            if who is not None and not who.get("admin"):
                # Whoever acts in a view names a live session of its own.
                raise SessionError(str(error)) from error
            raise MustWait(partial(self._allocate, id, user, sandbox)) from None
        if user is not None and session.user not in (None, user):
            raise DeniedError(f"Access denied: session {id!r} does not belong to user {user!r}")
        return session

    async def _allocate(self, id: str, user: str | None, sandbox: str) -> None:
        if user is not None:
            check_id("user", user)
        session_key(id)
        try:
            await self.store.create_session(sandbox, user, ttl=self.session_seconds, id=id)
        except ExistsError as error:
            try:
                self.store.session(sandbox, id)  # somebody was faster
            except NotFoundError:
                raise SessionError(str(error)) from error

    @property
    def session_seconds(self) -> float:
        return self.store.settings.session_ttl_hours * 3600.0

    def _make(
        self,
        data: bytes,
        place: tuple[Scope, str | None, Session | None],
        sandbox: str,
        own: Own,
        meta: Mapping[str, Any] | None,
        ttl: float | None,
        provider: str | None,
        *,
        user: str | None = None,
        id: str | None = None,
        making: bool = False,
    ) -> Namespace:
        """Errors: as `Store.new_namespace`."""
        scope, owner, session = place
        now = coarse_now()
        document = own_of(own, session, user if scope is not Scope.USER else owner, ttl)
        document["bytes"] = len(data)
        document["mtime"] = now
        return self.store.new_namespace(
            sandbox,
            scope,
            owner,
            id=id or new_id(),
            type=NamespaceType.BLOB,
            ttl=ttl,
            metadata={**(meta or {}), OWN: document},
            provider=provider if self.store.root is not None else "",
            created=now,
            data=data,
            making=making,
            live=session is not None,
        )

    def api_artifact_store(
        self,
        data: bytes,
        own: Own,
        scope: str = "session",
        session: str | None = None,
        user: str | None = None,
        meta: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        provider: str | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> str:
        """The id of a new artifact; `data` has at most `SMALL` bytes (see `api_artifact_begin` for more), `own` is what
        the module names.  Errors: SessionError, DeniedError, InvalidError; as `Store.new_namespace`."""
        if len(data) > SMALL:
            raise InvalidError(f"{len(data)} bytes are too many for one call; {SMALL} are allowed")
        place = self._artifact_place(scope, session, user, who, sandbox)

        def work() -> str:
            namespace = self._make(data, place, sandbox, own, meta, ttl, provider, user=user)
            return self._told(namespace.id, partial(self.store.surfaces.grid_changed, namespace))

        home = self._home_of(place[0], provider) if len(data) >= DIRECT else None
        return self._where_uploads_are(home is not None, work)

    def _home_of(self, scope: Scope, provider: str | None) -> Home | None:
        store = self.store
        return None if store.root is None else store.home_for(scope, NamespaceType.BLOB, provider, None)

    def _where_uploads_are(self, needed: bool, work: Callable[[], T]) -> T:
        """`work`, which puts bytes into objects that are to be uploaded: whoever uploads hears of it, on the loop."""
        if needed:
            raise MustWait(partial(run, work), final=True)
        return work()

    def api_artifact_batch(
        self,
        items: Sequence[Mapping[str, Any]],
        data: bytes,
        scope: str = "session",
        session: str | None = None,
        user: str | None = None,
        ttl: float | None = None,
        provider: str | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> list[dict[str, Any]]:
        """Many at once: an item has `own`, `meta` and `size`, its bytes are the next of `data`.  For each {"id"}, or
        {"error": why not}.  Errors: as `api_artifact_store`, where no item can be stored."""
        place = self._artifact_place(scope, session, user, who, sandbox)
        done: list[dict[str, Any]] = []
        made: list[Namespace] = []
        at = 0

        def step() -> list[dict[str, Any]]:
            with uncollected(), self.store.shard.together():
                return make()

        def make() -> list[dict[str, Any]]:
            nonlocal at
            for item in items[len(done) :]:
                size = item["size"]
                part = data[at : at + size]
                try:
                    namespace = self._make(part, place, sandbox, item["own"], item["meta"], ttl, provider, user=user)
                except (ArtfsError, TypeError, ValueError) as error:
                    done.append({"error": str(error)})
                else:
                    made.append(namespace)
                    done.append({"id": namespace.id})
                at += size
            return done

        async def rest() -> list[dict[str, Any]]:
            await run(step)
            for namespace in made:
                await self.store.surfaces.grid_changed(namespace)
            return done

        home = self._home_of(place[0], provider) if len(data) >= DIRECT else None
        if self.store.surfaces or home is not None:
            raise MustWait(rest, final=True)
        try:
            return step()
        except MustWait as must:
            wait = must.wait

            async def go_on() -> list[dict[str, Any]]:
                await wait()
                return await rest()

            raise MustWait(go_on, final=True) from None

    # reading
    def api_artifact_metadata(self, id: str, who: Who = None, sandbox: str = "") -> Described:
        namespace = self._artifact(id, who, sandbox, WANTED["api_artifact_metadata"])
        if self.store.surfaces:
            return self._settled(self.store.volume(namespace), lambda: self._describe(namespace))
        return self._describe(namespace)

    def api_artifact_read(self, id: str, who: Who = None, sandbox: str = "") -> bytes | dict[str, Any]:
        """All of its bytes; of more than `PART` bytes as `api_artifact_open`."""
        namespace = self._artifact(id, who, sandbox, WANTED["api_artifact_read"])
        if self.store.surfaces:
            return self._settled(self.store.volume(namespace), lambda: self._read(namespace))
        return self._read(namespace)

    def _read(self, namespace: Namespace) -> bytes | dict[str, Any]:
        found = self.store.shard.bytes_in_row(namespace)
        if found is not None:
            return found
        tree = self.store.shard.glance(namespace)
        node = self._node(tree)
        if node.size > PART:
            return self._artifact_opened(namespace)
        return tree.read_bytes(node, 0, node.size)

    def _artifact_opened(self, namespace: Namespace) -> dict[str, Any]:
        raise NotImplementedError  # see `artfs.store.artifact_transfers`

    def api_artifact_exists(self, id: str, who: Who = None, sandbox: str = "") -> bool:
        """Whether the caller can read it."""
        try:
            self._artifact(id, who, sandbox, WANTED["api_artifact_exists"])
        except (NotFoundError, DeniedError, InvalidError):
            return False
        return True


OPTIONAL = {
    "updated": "updated_at",
    "presigned": "uploaded_via_presigned",
    "incomplete": "incomplete",
    "batch_operation": "batch_operation",
    "batch_index": "batch_index",
}
"""What only some have, by the names that `ArtifactMetadata` gives it."""
