"""Finding artifacts: by session, user, scope, type, file name and metadata; counts.

A call looks at `SCAN` artifacts at most and gives `PAGE` at most, with where to go on: `before`, a serial.  The newest
come first.  What the caller may not read is left out, and so is what has expired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import dropwhile
from time import time_ns
from typing import Any

from anyio.lowlevel import checkpoint

from artfs.errors import InvalidError, NotFoundError
from artfs.grid import check_id, scope_dir
from artfs.store.artifact_calls import ArtifactCalls, Described
from artfs.store.artifact_changes import ArtifactChanges
from artfs.store.identity import Who
from artfs.store.namespace_calls import has_all
from artfs.types import Access, NamespaceType, Scope, Serial
from artfs.volume.catalogue import Namespace
from artfs.volume.postings import OWN, Posting, hashable, rarest

PAGE = 1000
SCAN = 20_000
COUNTED = 5_000
"""Artifacts that are counted between two turns of other calls."""


class ArtifactSearch(ArtifactChanges):
    """Mixin of `Service`."""

    def api_artifact_search(
        self,
        session: str | None = None,
        user: str | None = None,
        scope: str | None = None,
        mime_prefix: str | None = None,
        meta: Mapping[str, Any] | None = None,
        name_prefix: str | None = None,
        limit: int | None = None,
        before: int | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> dict[str, Any]:
        """{"items": descriptions, "next": `before` of the next call, None if there is no more}.  `session`: in that
        session's scope; `user`: of that user, or of one of their sessions; `meta`: those keys have exactly those
        values.  Errors: InvalidError."""
        postings = self._postings(sandbox, session, user, scope, meta)
        mimes = None
        if mime_prefix:
            terms = self.store.catalogue.postings.mimes(sandbox, mime_prefix)
            if len(terms) == 1:
                postings.append(self.store.catalogue.postings.get(terms[0]))
            else:
                mimes = {term[2] for term in terms}
        wanted = min(PAGE, limit if limit is not None else PAGE)
        items: list[Described] = []
        visible = _Visible(self, who, sandbox)
        by_serial = self.store.catalogue.by_serial
        last: int | None = None
        for count, serial in enumerate(_common(postings, before)):
            if len(items) >= wanted or count >= SCAN:
                return {"items": items, "next": last}
            last = serial
            namespace = by_serial[serial]
            if _matches(namespace, scope, mimes, meta, name_prefix) and visible(namespace):
                items.append(self._describe(namespace))
        return {"items": items, "next": None}

    def _postings(
        self, sandbox: str, session: str | None, user: str | None, scope: str | None, meta: Mapping[str, Any] | None
    ) -> list[Posting]:
        """What is looked for has all of these terms."""
        get = self.store.catalogue.postings.get
        found = [get(("all", sandbox))]
        if scope is not None:
            try:
                place = Scope(scope)
            except ValueError as error:
                raise InvalidError(f"Invalid scope: {scope!r}: it must be one of {', '.join(Scope)}") from error
            if place is Scope.SANDBOX:
                found.append(get(("place", sandbox, scope_dir(place, None))))
            elif place is Scope.USER and user is not None:
                found.append(get(("place", sandbox, scope_dir(place, user))))
        if session is not None:
            found.append(get(("place", sandbox, scope_dir(Scope.SESSION, session))))
        if user is not None:
            check_id("user", user)
            if scope != Scope.USER:
                found.append(get(("owner", sandbox, user)))
        for key, value in (meta or {}).items():
            if key == OWN:
                raise InvalidError(f"meta_filter: the key {OWN!r} is reserved")
            found.append(get(("meta", sandbox, key, hashable(value))))
        return rarest(found)

    async def api_artifact_stats(self, who: Who = None, sandbox: str = "") -> dict[str, int]:
        """What the caller may read of the sandbox's artifacts: how many, and how many bytes.  What is made or goes
        meanwhile may be counted, or not."""
        visible = _Visible(self, who, sandbox)
        by_serial = self.store.catalogue.by_serial
        artifacts = size = 0
        serials = list(self.store.catalogue.postings.get(("all", sandbox)).serials)
        for start in range(0, len(serials), COUNTED):
            for serial in serials[start : start + COUNTED]:
                namespace = by_serial.get(serial)
                if namespace is not None and namespace.trashed is None and visible(namespace):
                    artifacts += 1
                    size += self._size(namespace)
            await checkpoint()
        return {"total_artifacts": artifacts, "total_bytes": size}

    def _size(self, namespace: Namespace) -> int:
        tree = self.store.shard.trees.get(namespace.serial)
        if tree is None:
            size = (namespace.metadata.get(OWN) or {}).get("bytes")
            if size is not None:
                return int(size)
            tree = self.store.shard.glance(namespace)
        return self._node(tree).size

    async def api_artifact_check(self, provider: str | None = None, who: Who = None, sandbox: str = "") -> None:
        """The store takes changes, and what keeps bytes answers.  Errors: those that a change would have."""
        store = self.store
        if store.shard.failure is not None:
            raise store.shard.failure
        if isinstance(store.shard.trouble, Exception):
            raise store.shard.trouble
        for scope in Scope:
            home = store.home_for(scope, NamespaceType.BLOB, provider if store.root is not None else "", None)
            if home is not None:
                await store.shard.remote.providers.get(home).check()

    def api_artifact_sessions(self, who: Who = None, sandbox: str = "") -> int:
        """How many live sessions the sandbox has: they can be read."""
        return len(self.store.sessions.list(sandbox))


class _Visible:
    """Whether the caller may read it, and it is alive; each place is asked about once."""

    def __init__(self, calls: ArtifactCalls, who: Who, sandbox: str) -> None:
        self.calls = calls
        self.who = who
        self.sandbox = sandbox
        self.now = time_ns()
        self.places: dict[tuple[Scope, str | None], bool] = {}

    def __call__(self, namespace: Namespace) -> bool:
        if namespace.expires is not None and namespace.expires <= self.now:
            return False
        place = namespace.scope, namespace.owner
        known = self.places.get(place)
        if known is None:
            known = self.places[place] = self._look(*place)
        return known

    def _look(self, scope: Scope, owner: str | None) -> bool:
        if scope is Scope.SESSION:
            try:
                self.calls.store.session(self.sandbox, owner or "")
            except NotFoundError:
                return False
        return self.who is None or self.calls.identity.access(self.who, self.sandbox, scope, owner) is not Access.NONE


def _common(postings: list[Posting], before: int | None) -> Iterator[Serial]:
    """What all have, the newest first."""
    found = postings[0].newest_first()
    if before is not None:
        found = dropwhile(lambda serial: serial >= before, found)
    others = [posting.serials for posting in postings[1:] if posting is not postings[0]]
    if not others:
        return found
    if len(others) == 1:
        only = others[0]
        return (serial for serial in found if serial in only)
    return (serial for serial in found if all(serial in other for other in others))


def _matches(
    namespace: Namespace,
    scope: str | None,
    mimes: set[str] | None,
    meta: Mapping[str, Any] | None,
    name_prefix: str | None,
) -> bool:
    if scope is not None and namespace.scope != scope:
        return False
    own = namespace.metadata.get(OWN) or {}
    if mimes is not None and str(own.get("mime")) not in mimes:
        return False
    if name_prefix and not (own.get("filename") or "").startswith(name_prefix):
        return False
    return not meta or has_all(namespace.metadata, meta)
