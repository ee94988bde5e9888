"""The words that every layer shares: who, where, and the numbers that name things.

A *principal* is who acts; a *scope* says who may enter a namespace; a *namespace* is one versioned file tree.
Numbers: `Serial` names a namespace (or the view of a checkpoint) and is never used again; `Ino` names an inode
within a namespace; `Epoch` counts a namespace's checkpoints.

What calls of the Python API answer is in `artfs.types.responses`, and can be imported from here; it is loaded at its
first use, as it needs pydantic.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any, NewType

if TYPE_CHECKING:
    from artfs.types.responses import BatchStoreResponse as BatchStoreResponse
    from artfs.types.responses import CheckpointInfo as CheckpointInfo
    from artfs.types.responses import MultipartUploadInitResponse as MultipartUploadInitResponse
    from artfs.types.responses import NamespaceInfo as NamespaceInfo
    from artfs.types.responses import PresignedUploadResponse as PresignedUploadResponse
    from artfs.types.responses import ProviderStatus as ProviderStatus
    from artfs.types.responses import SandboxInfo as SandboxInfo
    from artfs.types.responses import SessionInfo as SessionInfo
    from artfs.types.responses import SessionStats as SessionStats
    from artfs.types.responses import StatsResponse as StatsResponse
    from artfs.types.responses import StorageStats as StorageStats
    from artfs.types.responses import UpdateMetadataResponse as UpdateMetadataResponse
    from artfs.types.responses import ValidationResponse as ValidationResponse
    from artfs.types.responses import WorkspaceInfo as WorkspaceInfo

RESPONSES = frozenset(
    [
        "BatchStoreResponse",
        "CheckpointInfo",
        "MultipartUploadInitResponse",
        "NamespaceInfo",
        "PresignedUploadResponse",
        "ProviderStatus",
        "SandboxInfo",
        "SessionInfo",
        "SessionStats",
        "StatsResponse",
        "StorageStats",
        "UpdateMetadataResponse",
        "ValidationResponse",
        "WorkspaceInfo",
    ]
)

Serial = NewType("Serial", int)
Ino = NewType("Ino", int)
Epoch = NewType("Epoch", int)

NEVER = 2**63 - 1
"""The epoch at which a row that is still valid dies."""


class Scope(StrEnum):
    """Whose a namespace is: one session's, one user's, or the whole sandbox's."""

    SESSION = "session"
    USER = "user"
    SANDBOX = "sandbox"


class NamespaceType(StrEnum):
    """A BLOB is one file's bytes, a WORKSPACE a tree of files."""

    BLOB = "blob"
    WORKSPACE = "workspace"


class Access(StrEnum):
    """What a principal may do in a namespace."""

    NONE = "none"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts.  An admin may enter everything; `sandbox=None` is every sandbox, for an admin alone."""

    sandbox: str | None = None
    user: str | None = None
    session: str | None = None
    admin: bool = False


ADMIN = Principal(admin=True)


# what the Python API shows
StorageScope = Scope
"""The scope by the name that the API gives it."""

ArtifactID = str
SessionID = str
SandboxID = str
UserID = str
WorkspaceID = str
NamespaceID = str

DEFAULT_TTL = 900
"""Seconds that an artifact of session scope lives, unless it is told otherwise."""
DEFAULT_PRESIGN_EXPIRES = 3600
"""Seconds that a signed URL is good for."""
DEFAULT_SESSION_TTL_HOURS = 24
DEFAULT_MAX_RETRIES = 3
DEFAULT_BUCKET = "artifacts"
DEFAULT_SANDBOX_PREFIX = "sandbox"

ARGUMENTS = {
    "ARTIFACT_PROVIDER": "storage_provider",
    "ARTIFACT_BUCKET": "bucket",
    "ARTIFACT_FS_ROOT": "root",
    "ARTIFACT_SQLITE_PATH": "root",
    "SESSION_PROVIDER": "session_provider",
}
"""The arguments of a store that environment variables stand for."""


class StorageProvider(StrEnum):
    """Where bytes are kept.  `vfs-x` and `x` are one; `vfs` is the default."""

    MEMORY = "memory"
    FILESYSTEM = "filesystem"
    SQLITE = "sqlite"
    S3 = "s3"
    IBM_COS = "ibm_cos"
    VFS = "vfs"
    VFS_MEMORY = "vfs-memory"
    VFS_FILESYSTEM = "vfs-filesystem"
    VFS_S3 = "vfs-s3"
    VFS_SQLITE = "vfs-sqlite"


class SessionProvider(StrEnum):
    """Where sessions are kept."""

    MEMORY = "memory"
    REDIS = "redis"
    SQLITE = "sqlite"


class OperationStatus(StrEnum):
    """How something went, or is; what artfs itself answers is OK or ERROR."""

    SUCCESS = "success"
    FAILED = "failed"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"
    OK = "ok"
    ERROR = "error"


def __getattr__(name: str) -> Any:
    if name not in RESPONSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("artfs.types.responses"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *RESPONSES})
