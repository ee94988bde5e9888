"""Configuration in code: arguments of a store, and the environment that they go with."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from artfs import config
from artfs.errors import InvalidError
from artfs.sessions import factory_for_env

VARIABLES = {
    "ARTIFACT_PROVIDER",
    "ARTIFACT_BUCKET",
    "AWS_S3_BUCKET",
    "ARTIFACT_FS_ROOT",
    "VFS_ROOT_PATH",
    "ARTIFACT_SQLITE_PATH",
    "SQLITE_DB_PATH",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "S3_ENDPOINT_URL",
    "IBM_COS_ACCESS_KEY",
    "IBM_COS_SECRET_KEY",
    "IBM_COS_ENDPOINT",
    "SESSION_PROVIDER",
    "SESSION_REDIS_URL",
    "REDIS_URL",
}

ARGUMENTS = {
    "root", "bucket", "storage_provider", "session_provider", "sandbox_id", "session_ttl_hours", "max_retries",
    "providers", "shared_writable",
}  # fmt: skip
"""Of `ArtifactStore`."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `artfs.config` takes for the environment: empty at first."""
    found: dict[str, str] = {}
    monkeypatch.setattr(config, "os", SimpleNamespace(environ=found, fspath=os.fspath))
    return found


COS = "https://s3.us-south.cloud-object-storage.appdomain.cloud"
CASES: list[tuple[Callable[..., config.Configuration], dict[str, Any], dict[str, str], dict[str, str]]] = [
    (
        config.configure_memory,
        {},
        {"storage_provider": "memory", "session_provider": "memory"},
        {"ARTIFACT_PROVIDER": "memory", "SESSION_PROVIDER": "memory"},
    ),
    (
        config.configure_filesystem,
        {"root": "./my-artifacts"},
        {"storage_provider": "filesystem", "root": "./my-artifacts"},
        {"ARTIFACT_PROVIDER": "filesystem", "ARTIFACT_FS_ROOT": "./my-artifacts", "VFS_ROOT_PATH": "./my-artifacts"},
    ),
    (
        config.configure_sqlite,
        {"path": Path("/data/a.db")},
        {"storage_provider": "sqlite", "root": "/data/a.db"},
        {"ARTIFACT_PROVIDER": "sqlite", "ARTIFACT_SQLITE_PATH": "/data/a.db", "SQLITE_DB_PATH": "/data/a.db"},
    ),
    (
        config.configure_s3,
        {"bucket": "b"},
        {"storage_provider": "s3", "bucket": "b"},
        {"ARTIFACT_PROVIDER": "s3", "ARTIFACT_BUCKET": "b", "AWS_S3_BUCKET": "b", "AWS_REGION": "us-east-1"}
        | {"AWS_DEFAULT_REGION": "us-east-1", "SESSION_PROVIDER": "memory"},
    ),
    (
        config.configure_s3,
        {"bucket": "b", "access_key": "k", "secret_key": "s", "endpoint_url": "http://h:9000", "region": "eu-west-1"}
        | {"session_provider": "redis"},
        {"storage_provider": "s3", "bucket": "b", "session_provider": "redis"},
        {"ARTIFACT_PROVIDER": "s3", "ARTIFACT_BUCKET": "b", "AWS_S3_BUCKET": "b", "AWS_REGION": "eu-west-1"}
        | {"AWS_DEFAULT_REGION": "eu-west-1", "SESSION_PROVIDER": "redis", "AWS_ACCESS_KEY_ID": "k"}
        | {"AWS_SECRET_ACCESS_KEY": "s", "S3_ENDPOINT_URL": "http://h:9000"},
    ),
    (
        config.configure_ibm_cos,
        {"bucket": "b", "access_key": "k", "secret_key": "s"},
        {"storage_provider": "ibm_cos", "bucket": "b"},
        {"ARTIFACT_PROVIDER": "ibm_cos", "ARTIFACT_BUCKET": "b", "IBM_COS_ACCESS_KEY": "k", "IBM_COS_SECRET_KEY": "s"}
        | {"IBM_COS_ENDPOINT": COS, "AWS_REGION": "us-south", "SESSION_PROVIDER": "memory"},
    ),
    (
        config.configure_redis_session,
        {"redis_url": "redis://n1:7000,n2:7001"},
        {"session_provider": "redis"},
        {"SESSION_PROVIDER": "redis", "SESSION_REDIS_URL": "redis://n1:7000,n2:7001"},
    ),
]


@pytest.mark.parametrize(("configure", "options", "arguments", "variables"), CASES)
def test_what_is_configured(
    configure: Callable[..., config.Configuration],
    options: dict[str, Any],
    arguments: dict[str, str],
    variables: dict[str, str],
    environment: dict[str, str],
) -> None:
    found = configure(**options)
    assert found == arguments
    assert {**found} == arguments
    assert set(found) <= ARGUMENTS
    assert environment == found.environment == variables
    assert set(variables) <= set(VARIABLES)
    assert all(isinstance(value, str) for value in environment.values())
    assert [found[name] for name in variables] == list(variables.values())
    with pytest.raises(KeyError):
        found["nosuch"]


def test_what_is_left_out_stays(environment: dict[str, str]) -> None:
    environment.update(AWS_DEFAULT_REGION="eu-west-1", AWS_ACCESS_KEY_ID="k", S3_ENDPOINT_URL="http://h")
    config.configure_redis_session("redis://h")
    config.configure_s3(bucket="b")
    assert (environment["AWS_REGION"], environment["AWS_ACCESS_KEY_ID"]) == ("eu-west-1", "k")
    assert (environment["SESSION_PROVIDER"], environment["S3_ENDPOINT_URL"]) == ("redis", "http://h")
    assert config.configure_ibm_cos(bucket="b", region="eu-de").environment["IBM_COS_ENDPOINT"] == COS.replace(
        "us-south", "eu-de"
    )


def test_a_session_manager_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SESSION_PROVIDER", "SESSION_REDIS_URL"):
        monkeypatch.setenv(name, "")
    config.configure_redis_session("redis://h:1/2")
    made: Any = factory_for_env()()
    assert str(made.address) == "redis://h:1"
    config.configure_memory()
    assert type(factory_for_env()()).__name__ == "MemoryProvider"
    monkeypatch.undo()


@pytest.mark.parametrize(
    "call",
    [
        lambda: config.configure_filesystem(""),
        lambda: config.configure_sqlite(""),
        lambda: config.configure_s3(bucket=""),
        lambda: config.configure_s3(bucket="b", access_key="k"),
        lambda: config.configure_ibm_cos(bucket="b", secret_key="s"),
        lambda: config.configure_redis_session(""),
        lambda: config.production_setup(storage_type="tape"),
    ],
)
def test_what_is_refused(call: Callable[[], object], environment: dict[str, str]) -> None:
    with pytest.raises(InvalidError):
        call()
    assert environment == {}


class Recorded:
    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


def test_setups(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModuleType("artfs.store")
    store.__dict__["ArtifactStore"] = Recorded
    monkeypatch.setitem(sys.modules, "artfs.store", store)
    assert config.create_store(sandbox_id="web").arguments == {"sandbox_id": "web"}
    assert config.development_setup().arguments == {"storage_provider": "memory", "session_provider": "memory"}
    assert config.testing_setup("/tmp/x").arguments == {"storage_provider": "filesystem", "root": "/tmp/x"}
    assert environment["ARTIFACT_FS_ROOT"] == "/tmp/x"
    assert config.production_setup(storage_type="s3", bucket="b").arguments == {"storage_provider": "s3", "bucket": "b"}
    assert config.production_setup(storage_type="sqlite", path="x.db").arguments["root"] == "x.db"
    with pytest.raises(TypeError):
        config.production_setup(storage_type="s3", root="x")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("artfs")
    before = found.level, list(found.handlers)
    found.handlers.clear()
    yield found
    found.setLevel(before[0])
    found.handlers[:] = before[1]


def test_logging(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", seen)
    config.configure_logging("INFO")
    config.configure_logging(logging.WARNING)
    logging.getLogger("artfs.store").info("quiet")
    logging.getLogger("artfs.store").warning("loud")
    assert seen.getvalue().count("\n") == 1
    assert "WARNING artfs.store: loud" in seen.getvalue()
    assert logging.getLogger().level == logging.WARNING
