"""Large artifacts, in parts of at most `PART` bytes, and those that come and go through URLs.

A handle belongs to this object (`aclose` ends it).  What is being written is seen when it is ended: a new artifact is
`making` until then, new content of one that is there is a file without a name.  A stream that does not end, for
whatever reason, leaves nothing behind.

What an upload through URLs is to become is a record of kind `artifact-upload`, by the upload's id; it goes when its
artifact is there, or with the upload.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from secrets import token_hex
from time import time_ns
from typing import Any

import anyio

from artfs.errors import ArtfsError, InvalidError, NotFoundError, UnavailableError
from artfs.grid import scope_dir
from artfs.sessions import NS
from artfs.store.artifact_calls import PART, Described
from artfs.store.artifact_rules import key_of, own_of, whole
from artfs.store.artifact_search import ArtifactSearch
from artfs.store.identity import WANTED, Who
from artfs.store.upload_records import PURPOSE
from artfs.store.urls import check_part
from artfs.types import Access, NamespaceType, Scope, Serial
from artfs.vfs.open import PART as STEP
from artfs.vfs.open import Pinned, Reading
from artfs.volume.catalogue import Namespace
from artfs.volume.inodes import now as coarse_now
from artfs.volume.postings import OWN
from artfs.volume.volume import Volume
from artfs.volume.waiting import MustWait, run

UPLOAD = "upload-"
"""How the id of an upload in parts begins."""
HANDLES = 10_000
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Write:
    """`volume`: so that nobody closes the tree; `changes`: of what is there already, None for a new artifact."""

    namespace: Namespace
    volume: Volume
    pin: Pinned
    size: int = 0
    ttl: float | None = None
    changes: Mapping[str, Any] | None = None
    working: bool = False


class ArtifactTransfers(ArtifactSearch):
    """Mixin of `Service`."""

    _streams: dict[int, _Write | Reading]
    _stream_count = 0

    def _keep_stream(self, handle: _Write | Reading) -> int:
        if "_streams" not in self.__dict__:
            self._streams = {}
        if len(self._streams) >= HANDLES:
            raise InvalidError(f"{HANDLES} streams are open; end some")
        self._stream_count += 1
        self._streams[self._stream_count] = handle
        return self._stream_count

    def _stream(self, handle: int, kind: type[Any]) -> Any:
        found = self.__dict__.get("_streams", {}).get(handle)
        if not isinstance(found, kind):
            raise UnavailableError(f"there is no stream {handle}: it was ended, or its owner has gone")
        return found

    def pending(self) -> int:
        """Streams that are open, too."""
        return len(self.__dict__.get("_streams", ())) + int(super().pending())  # type: ignore[misc]

    async def aclose(self) -> None:
        for handle in list(self.__dict__.get("_streams", {})):
            await self._drop_stream(handle)
        await super().aclose()

    async def _drop_stream(self, handle: int) -> None:
        """End it; nothing comes of what was written."""
        found = self._streams.pop(handle)
        if isinstance(found, Reading):
            found.release()
            return
        found.pin.release()
        if found.changes is None:
            with anyio.CancelScope(shield=True):
                await self.store.reap_all([found.namespace])

    # writing
    def api_artifact_begin(
        self,
        own: Mapping[str, Any],
        scope: str = "session",
        session: str | None = None,
        user: str | None = None,
        meta: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        provider: str | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> int:
        """Begin a new artifact; a handle.  Errors: as `api_artifact_store`."""
        place = self._artifact_place(scope, session, user, who, sandbox)
        namespace = self._make(b"", place, sandbox, dict(own), meta, None, provider, user=user, making=True)
        volume = Volume(self.store.shard, namespace)
        return self._keep_stream(_Write(namespace, volume, Pinned(volume.tree, self._node(volume.tree)), ttl=ttl))

    def api_artifact_rewrite(self, id: str, changes: Mapping[str, Any], who: Who = None, sandbox: str = "") -> int:
        """Begin new content of one that is there; a handle.  `changes`: as of `api_artifact_update`."""
        namespace = self._artifact(id, who, sandbox, WANTED["api_artifact_rewrite"])
        volume = Volume(self.store.shard, namespace)
        node = self._unnamed(volume.tree, namespace)
        return self._keep_stream(_Write(namespace, volume, Pinned(volume.tree, node), changes=changes))

    async def api_artifact_part(self, handle: int, data: bytes, who: Who = None, sandbox: str = "") -> int:
        """The next bytes; how many there are by now.  Errors: UnavailableError, FsError."""
        write: _Write = self._stream(handle, _Write)
        if len(data) > PART:
            raise InvalidError(f"a part has at most {PART} bytes; write more parts")
        if write.working:
            raise InvalidError("parts of a stream are written one after another")
        write.working = True
        try:
            view = memoryview(data)
            for at in range(0, len(view), STEP):
                piece = view[at : at + STEP]
                write.size += await run(self._write_piece, write, piece)
        finally:
            write.working = False
        return write.size

    def _write_piece(self, write: _Write, piece: memoryview) -> int:
        return write.volume.tree.write(write.pin.node(), write.size, piece)

    def api_artifact_end(self, handle: int, sha256: str | None = None, who: Who = None, sandbox: str = "") -> Described:
        """It is there, whole.  If this fails, nothing has changed.  Errors: UnavailableError, ExpiredError, FsError."""
        write: _Write = self._stream(handle, _Write)
        tree, node = write.volume.tree, write.pin.node()
        if write.changes is not None:
            try:
                described = self._replace(write.namespace, tree, node, {**write.changes, "sha256": sha256})
            except MustWait as must:
                if must.final:  # it is done; somebody has to be told
                    self._stream_ended(handle, write)
                raise
            self._stream_ended(handle, write)
            return described
        namespace = self._finished(write.namespace, (node.size, node.mtime), write.ttl, {"sha256": sha256})
        self.store.made(namespace)
        self._stream_ended(handle, write)
        current = self.store.catalogue.by_serial[namespace.serial]
        return self._told(self._describe(current), partial(self.store.surfaces.grid_changed, current))

    def _stream_ended(self, handle: int, write: _Write) -> None:
        del self._streams[handle]
        write.pin.release()

    def _finished(
        self, namespace: Namespace, content: tuple[int, int], ttl: float | None, more: Mapping[str, Any]
    ) -> Namespace:
        """A new artifact as it is when its bytes are there; its time to live begins."""
        own = {**namespace.metadata[OWN], **{key: value for key, value in more.items() if value is not None}}
        own["bytes"], own["mtime"] = content
        expires = None
        if ttl is not None:
            own["ttl"] = whole(ttl)
            expires = time_ns() + round(ttl * NS)
        return replace(namespace, metadata={**namespace.metadata, OWN: own}, expires=expires)

    async def api_artifact_abort(self, handle: int, who: Who = None, sandbox: str = "") -> None:
        self._stream(handle, _Write | Reading)  # type: ignore[arg-type]
        await self._drop_stream(handle)

    # reading
    def _artifact_opened(self, namespace: Namespace) -> dict[str, Any]:
        tree = self.store.shard.glance(namespace)
        node = self._node(tree)
        return {"handle": self._keep_stream(Reading(tree, node)), "size": node.size}

    def api_artifact_open(self, id: str, who: Who = None, sandbox: str = "") -> dict[str, Any]:
        """{"handle", "size"}: its bytes as they are now, however it is changed meanwhile."""
        namespace = self._artifact(id, who, sandbox, WANTED["api_artifact_open"])
        if self.store.surfaces:
            return self._settled(self.store.volume(namespace), lambda: self._artifact_opened(namespace))
        return self._artifact_opened(namespace)

    async def api_artifact_get(
        self, handle: int, offset: int, length: int, who: Who = None, sandbox: str = ""
    ) -> bytes:
        """Up to `length` bytes.  Errors: UnavailableError, FsError."""
        reading: Reading = self._stream(handle, Reading)
        if offset < 0 or not 0 < length <= PART:
            raise InvalidError(f"a read takes an offset from 0 and a length up to {PART}")
        return await reading.read(offset, length)

    # URLs
    async def api_artifact_presign(self, id: str, expires: float = 3600, who: Who = None, sandbox: str = "") -> str:
        """A URL that gives its bytes to anybody.  Errors: as `Blobs.presign`."""
        namespace = await run(self._artifact, id, who, sandbox, WANTED["api_artifact_presign"])
        own = namespace.metadata.get(OWN) or {}
        name = (own.get("filename") or "").replace("\\", "/").rpartition("/")[2][:255] or None
        return await self.store.blobs.presign(namespace, expires, mime=own.get("mime"), filename=name)

    async def api_upload_begin(
        self,
        parts: bool,
        own: Mapping[str, Any],
        mime: str | None = None,
        scope: str = "session",
        session: str | None = None,
        user: str | None = None,
        meta: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        provider: str | None = None,
        expires: float = 3600,
        window: float = 24 * 3600.0,
        auto: bool = False,
        who: Who = None,
        sandbox: str = "",
    ) -> dict[str, Any]:
        """An upload in one piece ({"artifact_id", "url"}) or in parts ({"upload_id", …}).  `mime`: what a client must
        send; `auto`: it becomes an artifact by itself once its bytes are there.
        Errors: as `api_artifact_store`, `Uploads.presign`."""
        place, owner, live = await run(self._artifact_place, scope, session, user, who, sandbox)
        store = self.store
        home = store.home_for(place, NamespaceType.BLOB, provider if store.root is not None else "", None)
        artifact = token_hex(16)
        document = own_of(own, live, user if place is not Scope.USER else owner, None)
        pending = {
            "artifact": artifact,
            "sandbox": sandbox,
            "scope": str(place),
            "owner": owner,
            "own": document,
            "meta": dict(meta or {}),
            "ttl": ttl,
            "provider": provider,
            "auto": auto,
        }
        id = f"{UPLOAD}{token_hex(16)}" if parts else artifact
        store.catalogue.records[PURPOSE, id] = json.dumps(pending)
        uploads = store.blobs.uploads
        if auto:
            uploads.arrived = self._came
        if parts:
            upload = await uploads.begin(mime=mime, home=home, ttl=window, id=id)
        else:
            upload = await uploads.presign(expires=expires, mime=mime, home=home, ttl=window, id=id)
        session_id = live.id if live is not None else ""
        return {
            "upload_id": id,
            "artifact_id": artifact,
            "url": upload.url,
            "session_id": session_id,
            "key": key_of(self._future(pending), session_id),
        }

    def _future(self, pending: Mapping[str, Any]) -> Namespace:
        """What an upload is to become, as far as its place goes."""
        scope, owner = Scope(pending["scope"]), pending["owner"]
        place = f"grid/{pending['sandbox']}/{scope_dir(scope, owner)}/{pending['artifact']}"
        now = coarse_now()
        return Namespace(
            Serial(0), pending["artifact"], NamespaceType.BLOB, pending["sandbox"], scope, owner, None, now, 1, place
        )

    def _pending(self, id: str, who: Who, sandbox: str) -> dict[str, Any]:
        """Errors: NotFoundError, ExpiredError (its session), DeniedError."""
        document = self._record(id)
        pending: dict[str, Any] | None = json.loads(document) if document else None
        ended = self.store.blobs.uploads.ended(id)  # until that is committed, the document stays
        if pending is None or pending["sandbox"] != sandbox or ended:
            found = f"Multipart upload {id} not found" if id.startswith(UPLOAD) else f"Upload not found: {id}"
            raise NotFoundError(f"{found}: it was {ended} already" if ended else found)
        self.identity.require(who, sandbox, self._future(pending), Access.WRITE)
        return pending

    def _expected(self, id: str) -> bool:
        document = self._record(id)
        return document is not None and bool(json.loads(document)["auto"])

    def _record(self, id: str) -> str | None:
        records = self.store.catalogue.records
        return records[PURPOSE, id] if (PURPOSE, id) in records else self.store.shard.engine.record(PURPOSE, id)

    async def _came(self, id: str) -> None:
        """The bytes of an upload are here."""
        if self._expected(id):
            try:
                await self._arrive(id)
            except ArtfsError as error:  # it is tried again when somebody asks for it
                log.warning("upload %s did not become an artifact: %s", id, error)

    async def _arrive(self, id: str) -> None:
        document = self._record(id)
        if document is not None:
            pending = json.loads(document)
            await self._register(id, pending, {"own": {}}, None)

    async def api_upload_part(
        self, upload_id: str, part_number: int, expires: float = 3600, who: Who = None, sandbox: str = ""
    ) -> str:
        """Where a part goes.  Errors: InvalidError, NotFoundError, ExpiredError, DeniedError."""
        check_part(part_number)
        future = self._future(self._pending(upload_id, who, sandbox))
        if future.scope is Scope.SESSION:
            self.store.session(sandbox, future.owner or "")
        return await self.store.blobs.uploads.sign_part(upload_id, part_number, expires=expires)

    async def api_upload_register(
        self,
        upload_id: str,
        changes: Mapping[str, Any],
        parts: Sequence[tuple[int, str]] | None = None,
        session: str | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> str:
        """What was uploaded becomes the artifact, whose id this is.  `changes`: own, meta, and ttl if it is in there,
        beside what the upload was begun with.  Errors: as `Uploads.register` and `complete`."""
        pending = self._pending(upload_id, who, sandbox)
        future = self._future(pending)
        if session is not None and future.scope is Scope.SESSION:
            self._same_session(replace(future, metadata={OWN: pending["own"]}), session, "registrations")
        return await self._register(upload_id, pending, changes, parts)

    async def _register(
        self,
        upload_id: str,
        pending: Mapping[str, Any],
        changes: Mapping[str, Any],
        parts: Sequence[tuple[int, str]] | None,
    ) -> str:
        future = self._future(pending)
        ttl = changes["ttl"] if "ttl" in changes else pending["ttl"]
        own = {**pending["own"], **{name: value for name, value in changes["own"].items() if value is not None}}
        meta = {**pending["meta"], **(changes.get("meta") or {})}
        store = self.store
        uploads = store.blobs.uploads

        async def make() -> Namespace:
            return await run(
                store.new_namespace,
                future.sandbox,
                future.scope,
                future.owner,
                id=future.id,
                type=NamespaceType.BLOB,
                metadata={**meta, OWN: {**own, "presigned": True}},
                provider=pending["provider"] if store.root is not None else "",
                making=True,
            )

        def ready(namespace: Namespace) -> None:
            node = self._node(Volume(store.shard, namespace).tree)
            store.made(self._finished(namespace, (node.size, node.mtime), ttl, {}))

        if parts is None:
            namespace = await uploads.register(upload_id, make, ready=ready)
        elif store.root is None and not await uploads.parts(upload_id):
            # In memory a client may have had nowhere to send its parts to.
            own["incomplete"] = True
            namespace = await make()
            await uploads.abort(upload_id)
            await run(ready, namespace)
        else:
            namespace = await uploads.complete(upload_id, parts, make, ready)
        store.catalogue.records[PURPOSE, upload_id] = None
        await store.surfaces.grid_changed(namespace)
        return namespace.id

    async def api_upload_abort(self, upload_id: str, who: Who = None, sandbox: str = "") -> None:
        """Nothing of it is left, also where there never was anything.  Errors: NotFoundError (it was registered),
        BusyError, DeniedError."""
        uploads = self.store.blobs.uploads
        try:
            self._pending(upload_id, who, sandbox)
        except NotFoundError:
            if uploads.ended(upload_id) == "registered":
                raise
            return
        await uploads.abort(upload_id)
        self.store.catalogue.records[PURPOSE, upload_id] = None
