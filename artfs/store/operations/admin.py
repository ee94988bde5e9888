"""How the store is, and how much it holds."""

from __future__ import annotations

import time
from typing import Any

from artfs.exceptions import ArtifactStoreError
from artfs.sessions.metadata import iso
from artfs.store.operations.base import Operations
from artfs.types import OperationStatus
from artfs.types.responses import (
    ProviderStatus,
    SandboxInfo,
    SessionStats,
    StatsResponse,
    StorageStats,
    ValidationResponse,
)


class AdminOperations(Operations):
    """Of the sandbox, as far as the caller may read it.  Errors: ArtifactStoreError if the store is closed."""

    async def validate_configuration(self) -> ValidationResponse:
        """Whether what keeps bytes and what keeps sessions answer: `ok` or `error`, and why.
        Errors: ArtifactStoreError if the store is closed."""
        store = self._store
        storage = await self._status("api_artifact_check", store.storage_provider, provider=store._place.home)
        session = await self._status("api_artifact_sessions", store.session_provider)
        statuses = (storage.status, session.status)
        overall = OperationStatus.OK if set(statuses) == {OperationStatus.OK} else OperationStatus.ERROR
        return ValidationResponse(storage=storage, session=session, overall=overall, timestamp=iso(time.time_ns()))

    async def _status(self, method: str, shown: str, **arguments: Any) -> ProviderStatus:
        if self._store.closed:
            await self._store._call(method, **arguments)
        try:
            await self._store._call(method, **arguments)
        except ArtifactStoreError as error:
            return ProviderStatus(status=OperationStatus.ERROR, provider=shown, message=str(error))
        return ProviderStatus(status=OperationStatus.OK, provider=shown)

    async def get_stats(self) -> StatsResponse:
        """Artifacts and bytes of the sandbox, as far as the caller may read them."""
        store = self._store
        counted = await store._call("api_artifact_stats")
        return StatsResponse(
            storage_provider=store.storage_provider,
            session_provider=store.session_provider,
            bucket=store.bucket,
            sandbox_id=store.sandbox_id,
            session_manager=self._session_stats(),
            storage_stats=StorageStats(provider=store.storage_provider, bucket=store.bucket, **counted),
            **counted,
        )

    def _session_stats(self) -> SessionStats:
        asked = self._store._sessions_asked
        total = asked.total()
        return SessionStats(
            cache_hits=asked[True],
            cache_misses=asked[False],
            total_requests=total,
            hit_rate=asked[True] / total if total else 0.0,
        )

    async def get_sandbox_info(self) -> SandboxInfo:
        """The store's settings, and what `get_stats` counts."""
        store = self._store
        stats = await self.get_stats()
        return SandboxInfo(
            sandbox_id=store.sandbox_id,
            bucket=store.bucket,
            storage_provider=store.storage_provider,
            session_provider=store.session_provider,
            session_ttl_hours=store.session_ttl_hours,
            max_retries=store.max_retries,
            grid_prefix_pattern=f"grid/{store.sandbox_id}/",
            created_at=iso(store._made_at),
            session_stats=stats.session_manager,
            storage_stats=stats.storage_stats,
            closed=store.closed,
        )
