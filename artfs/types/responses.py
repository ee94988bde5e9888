"""What calls of the Python API answer: pydantic models that are read by attribute and by key alike.

`Keyed` is the base of all: `info.name`, `info["name"]`, `info.get("name", default)`, `"name" in info`, `dict(info)`
and `**info` see the same fields, computed ones and ones that were added included.  One equals a dict if it has all
that the dict says, and `{}` if it says nothing itself.  Times are ISO 8601 in UTC, except where a field says seconds or
hours.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, computed_field

from artfs.types import NamespaceType, OperationStatus, StorageScope


class Keyed(BaseModel):
    """A model that is a mapping as well.  Errors of `[…]`: KeyError."""

    # Schemas are built at the first use: most processes that load this use few of them.
    model_config = ConfigDict(extra="allow", defer_build=True, populate_by_name=True)

    def _fields(self) -> dict[str, Any]:
        model = type(self)
        names = (*model.model_fields, *model.model_computed_fields)
        return {**{name: getattr(self, name) for name in names}, **(self.model_extra or {})}

    def __getitem__(self, key: str) -> Any:
        return self._fields()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._fields()

    def __iter__(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]  # pydantic's own: pairs, not keys
        yield from self._fields().items()

    def __len__(self) -> int:
        return len(self._fields())

    def __bool__(self) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # what can be changed has none

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, dict):
            return super().__eq__(other)
        fields = self._fields()
        if not other:
            return all(value is None for value in fields.values())
        return all(name in fields and fields[name] == value for name, value in other.items())

    def get(self, key: str, default: Any = None) -> Any:
        return self._fields().get(key, default)

    def keys(self) -> KeysView[str]:
        return self._fields().keys()

    def values(self) -> ValuesView[Any]:
        return self._fields().values()

    def items(self) -> ItemsView[str, Any]:
        return self._fields().items()


# state
class ProviderStatus(Keyed):
    """Whether a provider answers; `message` says why not.  What is in `details` can be asked for by key, too."""

    status: OperationStatus
    provider: str
    message: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)

    def _fields(self) -> dict[str, Any]:
        return {**self.details, **super()._fields()}


class ValidationResponse(Keyed):
    """Whether everything answers: `overall` is OK if both are."""

    storage: ProviderStatus
    session: ProviderStatus
    overall: OperationStatus
    timestamp: str | None = None
    session_manager: dict[str, Any] | None = None


class SessionStats(Keyed):
    """How often sessions were asked for: hits were live, misses were not; `hit_rate` is between 0 and 1."""

    cache_hits: int = 0
    cache_misses: int = 0
    total_requests: int = 0
    hit_rate: float = 0.0


class StorageStats(Keyed):
    """Artifacts that the caller may read, and their bytes."""

    provider: str | None = None
    bucket: str | None = None
    total_artifacts: int | None = None
    total_bytes: int | None = None


class StatsResponse(Keyed):
    """What the store is, and how much of its sandbox the caller may read."""

    storage_provider: str
    session_provider: str
    bucket: str
    sandbox_id: str
    session_manager: SessionStats = Field(default_factory=SessionStats)
    storage_stats: StorageStats = Field(default_factory=StorageStats)
    total_artifacts: int | None = None
    total_bytes: int | None = None


class SandboxInfo(Keyed):
    """The sandbox that a store works in; `created_at` is when the store was constructed."""

    sandbox_id: str
    bucket: str
    storage_provider: str
    session_provider: str
    session_ttl_hours: float
    max_retries: int
    grid_prefix_pattern: str
    created_at: str
    session_stats: SessionStats = Field(default_factory=SessionStats)
    storage_stats: StorageStats = Field(default_factory=StorageStats)
    closed: bool = False


class SessionInfo(Keyed):
    """A session; `metadata` and `custom_metadata` are one."""

    session_id: str
    sandbox_id: str
    user_id: str | None = None
    created_at: str | None = None
    expires_at: str | None = None
    last_accessed: str | None = None
    ttl_hours: float | None = None
    status: str = "active"
    metadata: dict[str, Any] = Field(default_factory=dict, validation_alias=AliasChoices("metadata", "custom_metadata"))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def custom_metadata(self) -> dict[str, Any]:
        return self.metadata


# namespaces
class _Placed(Keyed):
    """What a namespace's description and a workspace's have in common.  Without expiry `expires_at` is None and
    `ttl_seconds` 0."""

    provider_type: str
    scope: StorageScope
    session_id: str
    sandbox_id: str
    user_id: str | None = None
    owner_id: str | None = None
    created_at: str
    expires_at: str | None = None
    ttl_seconds: int
    grid_path: str
    current_path: str = "/"
    metadata: dict[str, Any] = Field(default_factory=dict)


class NamespaceInfo(_Placed):
    """`grid_path` is spelled as the mount shows it."""

    namespace_id: str
    type: NamespaceType
    name: str | None = None


class WorkspaceInfo(_Placed):
    """A namespace of type WORKSPACE, by the names that older programs use."""

    workspace_id: str
    name: str
    mount_point: str | None = None
    is_mounted: bool = False


class CheckpointInfo(Keyed):
    """`workspace_id` and `namespace_id` are one."""

    checkpoint_id: str
    workspace_id: str = Field(validation_alias=AliasChoices("workspace_id", "namespace_id"))
    name: str | None = None
    description: str = ""
    created_at: str
    stats: dict[str, Any] = Field(default_factory=dict)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def namespace_id(self) -> str:
        return self.workspace_id


# answers of single calls
class PresignedUploadResponse(Keyed):
    """`expires_in` in seconds."""

    upload_url: str
    artifact_id: str
    expires_in: int


class MultipartUploadInitResponse(Keyed):
    """`key` is the grid path that the artifact will have; `expires_in`, in seconds, the window for its parts."""

    upload_id: str
    artifact_id: str
    key: str
    session_id: str
    expires_in: int


class UpdateMetadataResponse(Keyed):
    """An update of metadata, for callers' own answers; `update_metadata` itself gives an ArtifactMetadata."""

    artifact_id: str
    updated_at: str
    summary: str | None = None
    meta: dict[str, Any] = Field(default_factory=dict)


class BatchStoreResponse(Keyed):
    """`artifact_ids` in the order of the items, None for one that failed."""

    artifact_ids: list[str | None]
    total: int
    successful: int
    failed: int
