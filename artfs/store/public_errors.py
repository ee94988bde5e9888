"""Errors of the Python API from those below: one place, one table.

What callers catch is in `artfs.exceptions`.  Where that has no class of its own for a kind of error, the class here is
both an ArtifactStoreError and that kind, so that it is caught as either.
"""

from __future__ import annotations

import errno as _errno
import os

from artfs import exceptions as api
from artfs.errors import (
    ArtfsError,
    BusyError,
    DamagedError,
    DeniedError,
    ExistsError,
    ExpiredError,
    FormatError,
    FsError,
    InvalidError,
    NoAccessError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)

SESSION = "Invalid session"
"""How the message of an error about a session begins."""


class InvalidArgumentError(api.ArtifactStoreError, InvalidError):
    errno = _errno.EINVAL
    exit_code = 2


class AlreadyExistsError(api.ArtifactStoreError, ExistsError):
    errno = _errno.EEXIST
    http_status = 409


class StoreBusyError(api.ProviderError, BusyError):
    errno = _errno.EBUSY
    exit_code = 5
    http_status = 409


class StoreFormatError(api.ArtifactStoreError, FormatError):
    errno = _errno.EPROTO
    http_status = 500


class StorageFullError(api.ProviderError, NoSpaceError):
    errno = _errno.ENOSPC
    http_status = 507


class FileOperationError(api.ArtifactStoreError, OSError):  # type: ignore[misc]  # errno is an int in both
    """What the rules of files forbid; `errno` says which."""

    def __init__(self, errno: int, message: str) -> None:
        OSError.__init__(self, errno, message)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.strerror)


KINDS: list[tuple[type[ArtfsError], type[api.ArtifactStoreError]]] = [
    (ExpiredError, api.ArtifactExpiredError),
    (NotFoundError, api.ArtifactNotFoundError),
    (NoAccessError, api.ProviderError),
    (DeniedError, api.AccessDeniedError),
    (DamagedError, api.ArtifactCorruptedError),
    (FormatError, StoreFormatError),
    (NoSpaceError, StorageFullError),
    (UnavailableError, api.ProviderError),
    (BusyError, StoreBusyError),
    (ExistsError, AlreadyExistsError),
    (InvalidError, InvalidArgumentError),
]


def public(error: ArtfsError) -> api.ArtifactStoreError:
    """The error as callers of the Python API see it: `raise public(error) from error`."""
    if isinstance(error, api.ArtifactStoreError):
        return error
    text = str(error)
    if isinstance(error, NotFoundError) and text.startswith(SESSION):
        return api.SessionError(text)
    if isinstance(error, FsError):
        return _of_errno(error.errno, text)
    for kind, shown in KINDS:
        if isinstance(error, kind):
            if kind is NoSpaceError and error.errno == _errno.EDQUOT:
                return api.QuotaExceededError(text)
            return shown(text)
    return api.ArtifactStoreError(text)


def _of_errno(number: int, text: str) -> api.ArtifactStoreError:
    if number in (_errno.ENOENT, _errno.ESTALE):
        return api.ArtifactNotFoundError(text)
    if number in (_errno.EACCES, _errno.EPERM, _errno.EROFS):
        denied = api.AccessDeniedError(text)
        denied.errno = number
        return denied
    if number == _errno.EDQUOT:
        return api.QuotaExceededError(text)
    if number == _errno.ENOSPC:
        return StorageFullError(text)
    if number == _errno.EIO:
        return api.ProviderError(text)
    return FileOperationError(number, text or os.strerror(number))
