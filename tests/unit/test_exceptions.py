"""Errors of the Python API: their tree, in both worlds."""

import errno

import pytest

from artfs import errors, exceptions, sessions
from artfs.exceptions import (
    AccessDeniedError,
    ArtifactCorruptedError,
    ArtifactExpiredError,
    ArtifactNotFoundError,
    ArtifactStoreError,
    ProviderError,
    QuotaExceededError,
    SessionError,
    SessionProviderError,
)

TREE: dict[type[ArtifactStoreError], tuple[int, int, tuple[type[Exception], ...]]] = {
    ArtifactStoreError: (errno.EINVAL, 400, (errors.ArtfsError,)),
    ArtifactNotFoundError: (errno.ENOENT, 404, (errors.NotFoundError, FileNotFoundError, ValueError)),
    ArtifactExpiredError: (errno.ENOENT, 410, (errors.ExpiredError, FileNotFoundError, ValueError)),
    ArtifactCorruptedError: (errno.EIO, 500, (errors.DamagedError,)),
    AccessDeniedError: (errno.EACCES, 403, (errors.DeniedError, PermissionError)),
    QuotaExceededError: (errno.EDQUOT, 507, (errors.NoSpaceError,)),
    ProviderError: (errno.EIO, 502, (errors.UnavailableError,)),
    SessionError: (errno.EIO, 500, ()),
    SessionProviderError: (errno.EIO, 502, (SessionError, ProviderError)),
}


@pytest.mark.parametrize("kind", TREE)
def test_the_tree(kind: type[ArtifactStoreError]) -> None:
    number, status, bases = TREE[kind]
    error = kind("what it is: what to do")
    assert (error.errno, error.http_status) == (number, status)
    assert str(error) == "what it is: what to do"
    expected: tuple[type[Exception], ...] = (ArtifactStoreError, errors.ArtfsError, *bases)
    assert [base for base in expected if not isinstance(error, base)] == []
    siblings = {other for other in TREE if other is not ArtifactStoreError and not issubclass(kind, other)}
    for other in siblings:
        assert not isinstance(error, other)
    ours = [base for base in bases if issubclass(base, errors.ArtfsError) and base.__module__ == errors.__name__]
    assert [kind.exit_code] * len(ours) == [base.exit_code for base in ours]


def test_gone_is_not_absent() -> None:
    assert not issubclass(ArtifactExpiredError, ArtifactNotFoundError)
    assert not issubclass(ArtifactNotFoundError, ArtifactExpiredError)


def test_every_class_is_in_the_tree() -> None:
    found = {value for value in vars(exceptions).values() if isinstance(value, type)}
    assert {kind for kind in found if kind.__module__ == exceptions.__name__} == set(TREE)
    names = [line.split()[1] for line in (exceptions.__doc__ or "").splitlines() if "── " in line]
    assert names == [kind.__name__ for kind in TREE][1:]


def test_sessions_have_the_same() -> None:
    assert (sessions.ProviderError, sessions.SessionError) == (ProviderError, SessionError)
