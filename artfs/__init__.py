"""artfs: namespaces with scopes, sessions and checkpoints, as a mounted tree and as a Python API.

Names are loaded from where they live when they are first asked for: to import this loads nothing else.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "artfs.config": "configure_logging create_store quick_store",
    "artfs.exceptions": """
        AccessDeniedError ArtifactCorruptedError ArtifactExpiredError ArtifactNotFoundError ArtifactStoreError
        ProviderError QuotaExceededError SessionError
    """,
    "artfs.models": """
        AccessContext ArtifactEnvelope ArtifactMetadata BatchStoreItem GridKeyComponents MultipartUploadCompleteRequest
        MultipartUploadInitRequest MultipartUploadPart StreamDownloadRequest StreamUploadRequest
    """,
    "artfs.store": "ArtifactStore",
    "artfs.store.operations.admin": "AdminOperations",
    "artfs.store.operations.batch": "BatchOperations",
    "artfs.store.operations.core": "CoreStorageOperations",
    "artfs.store.operations.metadata": "MetadataOperations",
    "artfs.store.operations.namespaces": "NamespaceOperations",
    "artfs.store.operations.presigned": "PresignedURLOperations",
    "artfs.store.virtual_fs": "AsyncVirtualFileSystem",
    "artfs.types": """
        ArtifactID BatchStoreResponse CheckpointInfo DEFAULT_BUCKET DEFAULT_PRESIGN_EXPIRES DEFAULT_SANDBOX_PREFIX
        DEFAULT_SESSION_TTL_HOURS DEFAULT_TTL MultipartUploadInitResponse NamespaceID NamespaceInfo NamespaceType
        OperationStatus PresignedUploadResponse ProviderStatus SandboxID SandboxInfo SessionID SessionInfo
        SessionProvider SessionStats StatsResponse StorageProvider StorageScope StorageStats UpdateMetadataResponse
        UserID ValidationResponse WorkspaceID WorkspaceInfo
    """,
}
_SAME = {"_DEFAULT_TTL": "DEFAULT_TTL", "_DEFAULT_PRESIGN_EXPIRES": "DEFAULT_PRESIGN_EXPIRES"}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604  # all are strings


def __getattr__(name: str) -> Any:
    known = _SAME.get(name, name)
    if known not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME[known]), known)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
