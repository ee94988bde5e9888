"""Errors of the Python API.  Each is also the error of `artfs.errors` that it stands for:

    ArtifactStoreError                            EINVAL  400
    ├── ArtifactNotFoundError    NotFoundError    ENOENT  404  (also FileNotFoundError, ValueError)
    ├── ArtifactExpiredError     ExpiredError     ENOENT  410  (also FileNotFoundError, ValueError)
    ├── ArtifactCorruptedError   DamagedError     EIO     500
    ├── AccessDeniedError        DeniedError      EACCES  403  (also PermissionError)
    ├── QuotaExceededError       NoSpaceError     EDQUOT  507
    ├── ProviderError            UnavailableError EIO     502
    └── SessionError                              EIO     500
        └── SessionProviderError  (also ProviderError)    502

What was never there and what has expired are told apart: neither class catches the other.
"""

from __future__ import annotations

import errno as _errno

from artfs.errors import (
    ArtfsError,
    DamagedError,
    DeniedError,
    ExpiredError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)


class ArtifactStoreError(ArtfsError):
    """Base exception of the API; by itself, a request that cannot be granted as it is."""

    errno = _errno.EINVAL
    http_status = 400


class ArtifactNotFoundError(ArtifactStoreError, NotFoundError):
    """It cannot be found: it was never there, or was deleted."""

    errno = _errno.ENOENT
    exit_code = 3
    http_status = 404


class ArtifactExpiredError(ArtifactStoreError, ExpiredError):
    """It has expired: it was there, its session or its time to live has ended."""

    errno = _errno.ENOENT
    exit_code = 3
    http_status = 410


class ArtifactCorruptedError(ArtifactStoreError, DamagedError):
    """It is corrupted: bytes or rows fail their check."""

    errno = _errno.EIO
    exit_code = 6
    http_status = 500


class AccessDeniedError(ArtifactStoreError, DeniedError):
    """Whoever calls may not do that."""

    errno = _errno.EACCES
    exit_code = 4
    http_status = 403


class QuotaExceededError(ArtifactStoreError, NoSpaceError):
    """There would be more bytes or files than are allowed."""

    errno = _errno.EDQUOT
    http_status = 507


class ProviderError(ArtifactStoreError, UnavailableError):
    """A storage provider, or what keeps sessions, cannot be used: it is not there, or does not answer."""

    errno = _errno.EIO
    http_status = 502


class SessionError(ArtifactStoreError):
    """A session that is needed cannot be had: it is not live, or the session provider failed."""

    errno = _errno.EIO
    http_status = 500


class SessionProviderError(SessionError, ProviderError):
    """What keeps sessions failed: callers look for it under either name."""

    errno = _errno.EIO
    http_status = 502
