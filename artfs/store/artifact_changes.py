"""The calls of the Python API that change artifacts: updated, copied, moved, deleted; see `artifact_calls`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from time import time_ns
from typing import Any

from artfs.errors import DeniedError, InvalidError
from artfs.grid import owner_key, scope_dir, session_key
from artfs.sessions.metadata import iso
from artfs.store.artifact_calls import ArtifactCalls, Described
from artfs.store.artifact_rules import changed, new_id
from artfs.store.identity import WANTED, Who
from artfs.types import NamespaceType, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.data import DIRECT
from artfs.volume.inodes import now as coarse_now
from artfs.volume.node import Node
from artfs.volume.postings import OWN
from artfs.volume.tree import BLOB_DATA, Tree
from artfs.volume.trees import SMALL
from artfs.volume.waiting import MustWait, run

NOT_COPIED = ("presigned", "incomplete", "batch_operation", "batch_index", "updated", "sha256")


class ArtifactChanges(ArtifactCalls):
    """Mixin of `Service`."""

    def api_artifact_update(
        self,
        id: str,
        changes: Mapping[str, Any],
        data: bytes | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> Described:
        """Change what `changes` has of mime, summary, filename, sha256, meta (merged into the present one if `merge`),
        ttl (which begins now), more_ttl (seconds that are added); and the content if there is `data`, both at once.
        Errors: InvalidError; as `Shard.update`."""
        namespace = self._artifact(id, who, sandbox, WANTED["api_artifact_update"])
        if data is None:
            updated = changed(namespace, changes, None, time_ns())
            self.store.shard.update(updated)
            return self._describe(updated)
        if len(data) > SMALL:
            raise InvalidError(f"{len(data)} bytes are too many for one call; {SMALL} are allowed")
        needed = len(data) >= DIRECT and namespace.home is not None
        return self._where_uploads_are(needed, lambda: self._rewritten(namespace, data, changes))

    def _rewritten(self, namespace: Namespace, data: bytes, changes: Mapping[str, Any]) -> Described:
        tree = self.store.shard.glance(namespace)
        node = self._unnamed(tree, namespace)
        try:
            if data:
                tree.write(node, 0, data)
            return self._replace(namespace, tree, node, changes)
        except MustWait as must:
            if must.final:
                raise
            tree.drop(node)
            raise
        except BaseException:
            if not node.nlink:
                tree.drop(node)
            raise

    def _unnamed(self, tree: Tree, namespace: Namespace) -> Node:
        """A file that is to take the place of a BLOB's."""
        old = self._node(tree)
        return tree.make_unnamed(tree.root(), old.mode & 0o777, old.uid, old.gid)

    def _replace(self, namespace: Namespace, tree: Tree, node: Node, changes: Mapping[str, Any]) -> Described:
        """`node` becomes the BLOB's content, and the document is changed, in one record."""
        namespace = self.store.alive(namespace)
        tree.begin()
        root, old = tree.root(), self._node(tree)
        updated = changed(namespace, changes, (node.size, node.mtime), time_ns())
        document, text = self.store.shard.document(updated, b"U")
        if old.xattrs:
            for name in tree.listxattr(old):
                tree.setxattr(node, name, tree.getxattr(old, name))
        self.store.catalogue.put(updated, text)
        tree.replace(node, root, BLOB_DATA, document)
        return self._told(self._describe(updated), partial(self.store.names_changed, [(root, BLOB_DATA)]))

    async def api_artifact_delete(self, id: str, who: Who = None, sandbox: str = "") -> None:
        """Errors: DeniedError, NotFoundError, ExpiredError."""
        try:
            namespace = await run(self._artifact, id, who, sandbox, WANTED["api_artifact_delete"])
        except DeniedError as error:
            raise DeniedError(f"Cannot delete artifact: insufficient permissions: {id}: {error}") from error
        await self.store.destroy_namespace(namespace)

    def api_artifact_copy(
        self,
        id: str,
        changes: Mapping[str, Any],
        session: str | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> str:
        """The id of a copy in the same place, with the same time to live, which begins now.  Errors: DeniedError for
        another session."""
        namespace = self._artifact(id, who, sandbox, WANTED["api_artifact_copy"])
        self._same_session(namespace, session, "copies")
        if self.store.surfaces:
            return self._settled(self.store.volume(namespace), lambda: self._copy(namespace, changes))
        return self._copy(namespace, changes)

    def _copy(self, namespace: Namespace, changes: Mapping[str, Any]) -> str:
        tree = self.store.shard.glance(namespace)
        node = self._node(tree)
        if node.size > SMALL:
            raise MustWait(partial(self._clone, namespace, changes), final=True)
        if node.size >= DIRECT and namespace.home is not None:
            raise MustWait(partial(self._clone, namespace, changes), final=True)
        data = tree.read_bytes(node, 0, node.size)
        now = coarse_now()
        copied = self._copied(namespace, changes, (len(data), now))
        own = copied.metadata[OWN]
        made = self.store.new_namespace(
            copied.sandbox,
            copied.scope,
            copied.owner,
            id=new_id(),
            type=NamespaceType.BLOB,
            ttl=own.get("ttl"),
            metadata=copied.metadata,
            provider=copied.provider,
            created=now,
            data=data,
        )
        return self._told(made.id, partial(self.store.surfaces.grid_changed, made))

    async def _clone(self, namespace: Namespace, changes: Mapping[str, Any]) -> str:
        """A large one shares its bytes."""
        store = self.store
        volume = store.volume(namespace)
        id = new_id()
        target = self._copied(namespace, changes, None)
        target = replace(
            target,
            serial=store.catalogue.next_serial(),
            id=id,
            created=coarse_now(),
            prefix=f"grid/{namespace.sandbox}/{scope_dir(namespace.scope, namespace.owner)}/{id}",
        )
        store.volumes[target.serial] = await volume.clone(target)
        await store.surfaces.grid_changed(target)
        return id

    def _copied(self, namespace: Namespace, changes: Mapping[str, Any], content: tuple[int, int] | None) -> Namespace:
        now = time_ns()
        own = namespace.metadata.get(OWN) or {}
        copied = changed(namespace, {**changes, "merge": True, "ttl": own.get("ttl")}, None, now)
        document = {key: value for key, value in copied.metadata[OWN].items() if key not in NOT_COPIED}
        if content is not None:
            document["bytes"], document["mtime"] = content
            if own.get("sha256") and own.get("bytes") == content[0]:
                document["sha256"] = own["sha256"]
        meta = {"copied_from": namespace.id, "copy_timestamp": iso(now)}
        return replace(copied, name=None, metadata={**meta, **copied.metadata, **meta, OWN: document})

    def _same_session(self, namespace: Namespace, session: str | None, what: str) -> None:
        """Errors: DeniedError."""
        if session is None:
            return
        own = (namespace.metadata.get(OWN) or {}).get("session") or namespace.owner or ""
        if owner_key(Scope.SESSION, session) != session_key(own):
            raise DeniedError(
                f"Cross-session {what} are not permitted: artifact {namespace.id} belongs to session {own!r}, "
                f"not {session!r}"
            )

    def api_artifact_move(
        self,
        id: str,
        changes: Mapping[str, Any],
        session: str | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> Described:
        """Rename it.  Errors: DeniedError for another session."""
        namespace = self._artifact(id, who, sandbox, WANTED["api_artifact_move"])
        self._same_session(namespace, session, "moves")
        return self.api_artifact_update(id, {**changes, "merge": True}, None, who, sandbox)
