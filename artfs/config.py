"""Configuration in code: each `configure_*` says where things are kept, by the environment and by a mapping.

The environment variables are those that a store, a session manager and the command line read, so that what is made
afterwards without arguments finds the same.  The mapping has what was set, as `ArtifactStore` takes it, too:
`ArtifactStore(**configure_s3(bucket="b"))`; asked for the name of an argument it answers as well.  What is left out
stays as the environment has it.  Nothing is opened here but by `quick_store`; `create_store` and the setups
make a store, which opens at its first use.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from artfs.errors import InvalidError
from artfs.types import ARGUMENTS, SessionProvider, StorageProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from artfs.store import ArtifactStore

S3_REGION = "us-east-1"
COS_REGION = "us-south"
REDIS_URL = "redis://localhost:6379/0"
BUCKET = "mcp-artifacts"
"""The name that a store without a bucket shows, if it is configured here."""


class Configuration(dict[str, Any]):
    """What was set, variable by variable; `environment` has further spellings of the same."""

    def __init__(self, variables: Mapping[str, str | None], spellings: Mapping[str, str | None]) -> None:
        super().__init__((name, value) for name, value in variables.items() if value is not None)
        self.environment = {**{name: value for name, value in spellings.items() if value is not None}, **self}

    def __missing__(self, name: str) -> Any:
        if name in self.environment:
            return self.environment[name]
        return {ARGUMENTS[variable]: value for variable, value in self.items() if variable in ARGUMENTS}[name]


def _configured(
    variables: Mapping[str, str | None], spellings: Mapping[str, str | None] | None = None
) -> Configuration:
    found = Configuration(variables, spellings or {})
    os.environ.update(found.environment)
    return found


def configure_memory() -> Configuration:
    """Everything in memory, for as long as the process lives."""
    return _configured(
        {
            "ARTIFACT_PROVIDER": StorageProvider.MEMORY.value,
            "SESSION_PROVIDER": SessionProvider.MEMORY.value,
            "ARTIFACT_BUCKET": BUCKET,
        }
    )


def configure_filesystem(root: str | os.PathLike[str] = "./artifacts") -> Configuration:
    """A store in the directory `root`, with its sessions."""
    path = _path(root)
    return _configured(
        {
            "ARTIFACT_PROVIDER": StorageProvider.FILESYSTEM.value,
            "SESSION_PROVIDER": _sessions(None),
            "ARTIFACT_FS_ROOT": path,
            "ARTIFACT_BUCKET": BUCKET,
        },
        {"VFS_ROOT_PATH": path},
    )


def configure_sqlite(path: str | os.PathLike[str] = "artifacts.db") -> Configuration:
    """A store in the one file `path`, with its sessions."""
    path = _path(path)
    return _configured(
        {
            "ARTIFACT_PROVIDER": StorageProvider.SQLITE.value,
            "SESSION_PROVIDER": _sessions(None),
            "ARTIFACT_SQLITE_PATH": path,
            "ARTIFACT_BUCKET": BUCKET,
        },
        {"SQLITE_DB_PATH": path},
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
        {
            "ARTIFACT_PROVIDER": StorageProvider.S3.value,
            "SESSION_PROVIDER": _sessions(session_provider),
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_REGION": region,
            "ARTIFACT_BUCKET": _bucket(bucket),
            "S3_ENDPOINT_URL": endpoint_url,
        },
        {"AWS_S3_BUCKET": bucket, "AWS_DEFAULT_REGION": region},
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
        {
            "ARTIFACT_PROVIDER": StorageProvider.IBM_COS.value,
            "SESSION_PROVIDER": _sessions(session_provider),
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_REGION": region,
            "IBM_COS_ENDPOINT": endpoint,
            "ARTIFACT_BUCKET": _bucket(bucket),
        },
        {"IBM_COS_ACCESS_KEY": access_key, "IBM_COS_SECRET_KEY": secret_key},
    )


def configure_redis_session(redis_url: str = REDIS_URL) -> Configuration:
    """Sessions in redis, whichever of its forms the URL has."""
    if not redis_url:
        raise InvalidError("redis_url cannot be empty")
    return _configured({"SESSION_PROVIDER": SessionProvider.REDIS.value, "SESSION_REDIS_URL": redis_url})


# stores
def create_store(**arguments: Any) -> ArtifactStore:
    """An `ArtifactStore`, of `arguments` and the environment.  Errors: InvalidError."""
    made: ArtifactStore = sys.modules[__name__].ArtifactStore(**arguments)
    return made


async def quick_store(
    data: bytes, *, mime: str | None = None, summary: str = "Quick upload", **arguments: Any
) -> tuple[ArtifactStore, str]:
    """(store, artifact id): `data` as an artifact of the store that `arguments` and the environment describe, which the
    caller closes.  Errors: those of `ArtifactStore.store`; then the store is closed."""
    store = create_store(**arguments)
    try:
        return store, await store.store(data, mime=mime, summary=summary)
    except BaseException:
        await store.close()
        raise


def development_setup() -> ArtifactStore:
    """A store in memory."""
    return create_store(**configure_memory())


def testing_setup(artifacts_dir: str | os.PathLike[str] = "./test-artifacts") -> ArtifactStore:
    """A store in a directory."""
    return create_store(**configure_filesystem(artifacts_dir))


def production_setup(*, storage_type: str, **options: Any) -> ArtifactStore:
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
        raise InvalidError(f"Unknown storage type: {storage_type}: it is one of {', '.join(kinds)}")
    return create_store(**configure(**options))


def configure_logging(level: int | str = "INFO") -> None:
    """Show what artfs logs, from that level up, on stderr; what other libraries log is left alone."""
    logger = logging.getLogger("artfs")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)


def __getattr__(name: str) -> Any:
    if name != "ArtifactStore":  # which is loaded at its first use
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("artfs.store").ArtifactStore


def _sessions(provider: str | None) -> str:
    """Chosen, or what the environment has."""
    return str(provider or os.environ.get("SESSION_PROVIDER") or SessionProvider.MEMORY.value)


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
