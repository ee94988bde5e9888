"""What all groups of operations have: the store that they work on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from artfs.store.artifact_store import ArtifactStore


class Operations:
    """`NamespaceOperations(store)` works on `store`; an ArtifactStore is all groups, and works on itself.

    Operations are calls of `Service` (family `api_`): `await self._store._call("api_…", session_id=, user_id=, …)`, or
    `self._store._call_now(…)` in plain functions.  Both add the caller's identity (`who`) and the sandbox, and turn
    errors into those of `artfs.exceptions`.
    """

    _store: ArtifactStore

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
