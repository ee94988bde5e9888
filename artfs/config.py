"""Configuration in code: each `configure_*` says where things are kept, by the environment and by a mapping.

The environment variables are those that a store, a session manager and the command line read, so that what is made
afterwards without arguments finds the same.  The mapping has the arguments of `ArtifactStore`:
`ArtifactStore(**configure_s3(bucket="b"))`; asked for the name of a variable that it set, it answers too.  What is left
out stays as the environment has it.  Nothing is opened here but by `create_store` and the setups, which are
a configuration and the store that it describes.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from artfs.errors import InvalidError
from artfs.types import SessionProvider, StorageProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

S3_REGION = "us-east-1"
COS_REGION = "us-south"
REDIS_URL = "redis://localhost:6379/0"


class Configuration(dict[str, Any]):
    """Arguments for `ArtifactStore`; `environment` is what was set beside them."""

    def __init__(self, arguments: Mapping[str, Any], environment: Mapping[str, str | None]) -> None:
        super().__init__((name, value) for name, value in arguments.items() if value is not None)
        self.environment = {name: value for name, value in environment.items() if value is not None}

    def __missing__(self, name: str) -> str:
        return self.environment[name]


def _configured(arguments: Mapping[str, Any], environment: Mapping[str, str | None]) -> Configuration:
    found = Configuration(arguments, environment)
    os.environ.update(found.environment)
    return found


def configure_memory() -> Configuration:
    """Everything in memory, for as long as the process lives."""
    return _configured(
        {"storage_provider": StorageProvider.MEMORY, "session_provider": SessionProvider.MEMORY},
        {"ARTIFACT_PROVIDER": StorageProvider.MEMORY, "SESSION_PROVIDER": SessionProvider.MEMORY},
    )


def configure_filesystem(root: str | os.PathLike[str] = "./artifacts") -> Configuration:
    """A store in the directory `root`, with its sessions."""
    path = _path(root)
    return _configured(
        {"storage_provider": StorageProvider.FILESYSTEM, "root": path},
        {"ARTIFACT_PROVIDER": StorageProvider.FILESYSTEM, "ARTIFACT_FS_ROOT": path, "VFS_ROOT_PATH": path},
    )


def configure_sqlite(path: str | os.PathLike[str] = "artifacts.db") -> Configuration:
    """A store in the one file `path`, with its sessions."""
    path = _path(path)
    return _configured(
        {"storage_provider": StorageProvider.SQLITE, "root": path},
        {"ARTIFACT_PROVIDER": StorageProvider.SQLITE, "ARTIFACT_SQLITE_PATH": path, "SQLITE_DB_PATH": path},
    )


def configure_s3(
    *,
    bucket: str,
    access_key: str | None = None,
    secret_key: str | None = None,
    endpoint_url: str | None = None,
    region: str | None = None,
    session_provider: str | None = None,
) -> Configuration:
    """Objects in S3, or what speaks it at `endpoint_url`.  Without keys it is the machine's role, or what the
    environment has; `region` is AWS_REGION, else us-east-1."""
    _together(access_key, secret_key)
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or S3_REGION
    return _configured(
        {"storage_provider": StorageProvider.S3, "bucket": _bucket(bucket), "session_provider": session_provider},
        {
            "ARTIFACT_PROVIDER": StorageProvider.S3,
            "ARTIFACT_BUCKET": bucket,
            "AWS_S3_BUCKET": bucket,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            "S3_ENDPOINT_URL": endpoint_url,
            "SESSION_PROVIDER": _sessions(session_provider),
        },
    )


def configure_ibm_cos(
    *,
    bucket: str,
    access_key: str | None = None,
    secret_key: str | None = None,
    endpoint: str | None = None,
    region: str | None = None,
    session_provider: str | None = None,
) -> Configuration:
    """Objects in IBM Cloud Object Storage, by HMAC keys.  `region` is us-south; `endpoint` follows from it."""
    _together(access_key, secret_key)
    region = region or COS_REGION
    endpoint = endpoint or f"https://s3.{region}.cloud-object-storage.appdomain.cloud"
    return _configured(
        {"storage_provider": StorageProvider.IBM_COS, "bucket": _bucket(bucket), "session_provider": session_provider},
        {
            "ARTIFACT_PROVIDER": StorageProvider.IBM_COS,
            "ARTIFACT_BUCKET": bucket,
            "IBM_COS_ACCESS_KEY": access_key,
            "IBM_COS_SECRET_KEY": secret_key,
            "IBM_COS_ENDPOINT": endpoint,
            "AWS_REGION": region,
            "SESSION_PROVIDER": _sessions(session_provider),
        },
    )


def configure_redis_session(redis_url: str = REDIS_URL) -> Configuration:
    """Sessions in redis, whichever of its forms the URL has."""
    if not redis_url:
        raise InvalidError("redis_url cannot be empty")
    return _configured(
        {"session_provider": SessionProvider.REDIS},
        {"SESSION_PROVIDER": SessionProvider.REDIS, "SESSION_REDIS_URL": redis_url},
    )


# stores
def create_store(**arguments: Any) -> Any:
    """An `ArtifactStore`, of `arguments` and the environment."""
    return import_module("artfs.store").ArtifactStore(**arguments)


def development_setup() -> Any:
    """A store in memory."""
    return create_store(**configure_memory())


def testing_setup(artifacts_dir: str | os.PathLike[str] = "./test-artifacts") -> Any:
    """A store in a directory."""
    return create_store(**configure_filesystem(artifacts_dir))


def production_setup(*, storage_type: str, **options: Any) -> Any:
    """A store of the kind `s3`, `ibm_cos`, `filesystem` or `sqlite`; `options` are those of its `configure_…`.
    Errors: InvalidError."""
    kinds: dict[str, Callable[..., Configuration]] = {
        StorageProvider.S3: configure_s3,
        StorageProvider.IBM_COS: configure_ibm_cos,
        StorageProvider.FILESYSTEM: configure_filesystem,
        StorageProvider.SQLITE: configure_sqlite,
    }
    configure = kinds.get(storage_type)
    if configure is None:
        raise InvalidError(f"Unknown storage type: {storage_type!r}: it is one of {', '.join(kinds)}")
    return create_store(**configure(**options))


def configure_logging(level: int | str = "INFO") -> None:
    """Show what artfs logs, from that level up, on stderr; what other libraries log is left alone."""
    logger = logging.getLogger("artfs")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)


def _sessions(provider: str | None) -> str:
    """Chosen, or what the environment has."""
    return provider or os.environ.get("SESSION_PROVIDER") or SessionProvider.MEMORY


def _path(path: str | os.PathLike[str]) -> str:
    if not os.fspath(path):
        raise InvalidError("a store's place cannot be empty")
    return os.fspath(path)


def _bucket(bucket: str) -> str:
    if not bucket:
        raise InvalidError("a bucket's name cannot be empty")
    return bucket


def _together(access_key: str | None, secret_key: str | None) -> None:
    if (access_key is None) != (secret_key is None):
        raise InvalidError("access_key and secret_key come together")
