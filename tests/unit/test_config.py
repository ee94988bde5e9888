"""Configuration in code: arguments of a store, and the environment that they go with."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artfs import ArtifactStore, config
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


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `artfs.config` takes for the environment: empty at first."""
    found: dict[str, str] = {}
    monkeypatch.setattr(config, "os", SimpleNamespace(environ=found, fspath=os.fspath))
    return found


COS = "https://s3.us-south.cloud-object-storage.appdomain.cloud"
# What is called, the arguments that it stands for, the variables of the mapping, and further spellings that are set.
Names = dict[str, str]
CASES: list[tuple[Callable[..., config.Configuration], dict[str, Any], Names, Names, Names]] = [
    (
        config.configure_memory,
        {},
        {"storage_provider": "memory", "session_provider": "memory"},
        {"ARTIFACT_PROVIDER": "memory", "SESSION_PROVIDER": "memory", "ARTIFACT_BUCKET": "mcp-artifacts"},
        {},
    ),
    (
        config.configure_filesystem,
        {"root": "./my-artifacts"},
        {"storage_provider": "filesystem", "root": "./my-artifacts"},
        {"ARTIFACT_PROVIDER": "filesystem", "ARTIFACT_FS_ROOT": "./my-artifacts", "SESSION_PROVIDER": "memory"}
        | {"ARTIFACT_BUCKET": "mcp-artifacts"},
        {"VFS_ROOT_PATH": "./my-artifacts"},
    ),
    (
        config.configure_sqlite,
        {"path": Path("/data/a.db")},
        {"storage_provider": "sqlite", "root": "/data/a.db"},
        {"ARTIFACT_PROVIDER": "sqlite", "ARTIFACT_SQLITE_PATH": "/data/a.db", "SESSION_PROVIDER": "memory"}
        | {"ARTIFACT_BUCKET": "mcp-artifacts"},
        {"SQLITE_DB_PATH": "/data/a.db"},
    ),
    (
        config.configure_s3,
        {"bucket": "b"},
        {"storage_provider": "s3", "bucket": "b"},
        {"ARTIFACT_PROVIDER": "s3", "ARTIFACT_BUCKET": "b", "AWS_REGION": "us-east-1", "SESSION_PROVIDER": "memory"},
        {"AWS_DEFAULT_REGION": "us-east-1", "AWS_S3_BUCKET": "b"},
    ),
    (
        config.configure_s3,
        {"bucket": "b", "access_key": "k", "secret_key": "s", "endpoint_url": "http://h:9000", "region": "eu-west-1"}
        | {"session_provider": "redis"},
        {"storage_provider": "s3", "bucket": "b", "session_provider": "redis"},
        {"ARTIFACT_PROVIDER": "s3", "ARTIFACT_BUCKET": "b", "AWS_REGION": "eu-west-1", "SESSION_PROVIDER": "redis"}
        | {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "S3_ENDPOINT_URL": "http://h:9000"},
        {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_S3_BUCKET": "b"},
    ),
    (
        config.configure_ibm_cos,
        {"bucket": "b", "access_key": "k", "secret_key": "s"},
        {"storage_provider": "ibm_cos", "bucket": "b"},
        {"ARTIFACT_PROVIDER": "ibm_cos", "ARTIFACT_BUCKET": "b", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        | {"IBM_COS_ENDPOINT": COS, "AWS_REGION": "us-south", "SESSION_PROVIDER": "memory"},
        {"IBM_COS_ACCESS_KEY": "k", "IBM_COS_SECRET_KEY": "s"},
    ),
    (
        config.configure_redis_session,
        {"redis_url": "redis://n1:7000,n2:7001"},
        {"session_provider": "redis"},
        {"SESSION_PROVIDER": "redis", "SESSION_REDIS_URL": "redis://n1:7000,n2:7001"},
        {},
    ),
]


@pytest.mark.parametrize(("configure", "options", "arguments", "variables", "spellings"), CASES)
def test_what_is_configured(
    configure: Callable[..., config.Configuration],
    options: dict[str, Any],
    arguments: Names,
    variables: Names,
    spellings: Names,
    environment: dict[str, str],
) -> None:
    found = configure(**options)
    assert found == variables
    assert {**found} == variables
    assert environment == found.environment == {**variables, **spellings}
    assert set(environment) <= set(VARIABLES)
    assert all(type(value) is str for value in environment.values())
    assert {name: found[name] for name in (*spellings, *arguments)} == {**spellings, **arguments}
    with pytest.raises(KeyError):
        found["nosuch"]


def test_a_store_takes_what_was_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "ARTFS_ROOT"):
        monkeypatch.setenv(name, "")
    memory = config.configure_memory()
    s3 = config.configure_s3(bucket="bucket", access_key="k", secret_key="s", endpoint_url="http://h:9000")
    redis = config.configure_redis_session("redis://h:1/2")
    files = config.configure_filesystem(tmp_path / "files")
    one = config.configure_sqlite(tmp_path / "a.db")
    monkeypatch.setenv("ARTFS_ROOT", str(tmp_path / "other"))
    found = [ArtifactStore(**each) for each in (memory, s3, redis, files, one)]
    assert [store.storage_provider for store in found] == [
        "vfs-memory", "vfs-s3", "vfs-sqlite", "vfs-filesystem", "vfs-sqlite"
    ]  # fmt: skip
    assert [store.session_provider for store in found] == ["memory", "memory", "redis", "redis", "redis"]
    assert (found[0].root, found[1].bucket, found[3].root) == (None, "bucket", str(tmp_path / "files"))
    assert ArtifactStore(**memory, sandbox_id="web").sandbox_id == "web"
    assert ArtifactStore(bucket="other", **s3).bucket == "other"
    config.configure_s3(bucket="bucket", access_key="another", secret_key="s")
    with pytest.raises(InvalidError, match="AWS_ACCESS_KEY_ID is read from the environment"):
        ArtifactStore(**s3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'ARTIFACT_BUKKET'"):
        ArtifactStore(ARTIFACT_BUKKET="b")


def test_what_is_left_out_stays(environment: dict[str, str]) -> None:
    environment.update(AWS_DEFAULT_REGION="eu-west-1", AWS_ACCESS_KEY_ID="k", S3_ENDPOINT_URL="http://h")
    config.configure_redis_session("redis://h")
    config.configure_s3(bucket="b")
    assert (environment["AWS_REGION"], environment["AWS_ACCESS_KEY_ID"]) == ("eu-west-1", "k")
    assert (environment["SESSION_PROVIDER"], environment["S3_ENDPOINT_URL"]) == ("redis", "http://h")
    assert config.configure_ibm_cos(bucket="b", region="eu-de").environment["IBM_COS_ENDPOINT"] == COS.replace(
        "us-south", "eu-de"
    )


@pytest.mark.usefixtures("own_environment")
def test_a_session_manager_reads_it() -> None:
    config.configure_redis_session("redis://h:1/2")
    made: Any = factory_for_env()()
    assert str(made.address) == "redis://h:1"
    config.configure_memory()
    assert type(factory_for_env()()).__name__ == "MemoryProvider"


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
    monkeypatch.setattr(config, "ArtifactStore", Recorded)
    made: Any = config.create_store(sandbox_id="web")
    assert made.arguments == {"sandbox_id": "web"}
    made = config.development_setup()
    assert made.arguments == config.configure_memory()
    made = config.testing_setup("/tmp/x")
    assert made.arguments == config.configure_filesystem("/tmp/x")
    made = config.production_setup(storage_type="s3", bucket="b")
    assert made.arguments == config.configure_s3(bucket="b")
    made = config.production_setup(storage_type="sqlite", path="x.db")
    assert made.arguments["ARTIFACT_SQLITE_PATH"] == environment["SQLITE_DB_PATH"] == "x.db"
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
