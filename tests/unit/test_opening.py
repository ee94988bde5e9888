"""URLs of providers: what they may say, their one spelling, and where they come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from artfs.errors import InvalidError
from artfs.objects.disk import DiskProvider
from artfs.objects.memory import MemoryProvider
from artfs.objects.opening import canonical_url, for_type, open_provider, parse_url, provider_from_env, with_endpoint
from artfs.objects.s3 import S3Provider
from artfs.objects.s3_client import Place
from artfs.objects.sqlite import SqliteProvider

LIMITS = SimpleNamespace(provider_timeout=20.0, part_size=8 << 20, uploads=4)
HOME = os.path.expanduser("~")


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("", ""),
        ("memory:", "memory:"),
        ("memory://", "memory:"),
        ("file:///srv/objects", "file:///srv/objects"),
        ("file:///srv//a/../objects/", "file:///srv/objects"),
        ("file:///srv/with%20space/100%25", "file:///srv/with%20space/100%25"),
        ("file:///srv/with space", "file:///srv/with%20space"),
        ("file://~/objects", f"file://{HOME}/objects"),
        ("file://here", f"file://{os.getcwd()}/here"),
        ("sqlite:///srv/all.db", "sqlite:///srv/all.db"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket?", "s3://bucket"),
        ("s3://bucket//a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a%20b/%C3%BC", "s3://bucket/a%20b/%C3%BC"),
        ("s3://bucket/a b/ü", "s3://bucket/a%20b/%C3%BC"),
        ("s3://bucket?addressing=auto", "s3://bucket"),
        ("s3://bucket?region=&sse=", "s3://bucket"),
        ("s3://bucket?retries=0&region=", "s3://bucket?retries=0"),
        (
            "s3://bucket/p?region=eu-west-1&endpoint_url=https%3A%2F%2FS3.Example.ORG:9000/",
            "s3://bucket/p?endpoint_url=https://s3.example.org:9000&region=eu-west-1",
        ),
        (
            "s3://bucket?kms_key=arn:aws:kms:eu-west-1:1:key/2&sse=aws:kms&addressing=virtual",
            "s3://bucket?addressing=virtual&sse=aws:kms&kms_key=arn:aws:kms:eu-west-1:1:key/2",
        ),
        ("s3://bucket?ca=/etc/our%20ca.pem&flavor=ibm", "s3://bucket?ca=/etc/our+ca.pem&flavor=ibm"),
        ("s3://bucket?endpoint_url=http://[::1]:9000/s3", "s3://bucket?endpoint_url=http://%5B::1%5D:9000/s3"),
        ("s3://bucket?endpoint_url=localhost:9000", None),
        ("s3://bucket?endpoint_url=minio.example.org", "s3://bucket?endpoint_url=https://minio.example.org"),
    ],
)
def test_one_spelling(url: str, canonical: str | None) -> None:
    if canonical is None:
        canonical = "s3://bucket?endpoint_url=https://localhost:9000"
    assert canonical_url(url) == canonical
    assert canonical_url(canonical) == canonical


def test_what_a_url_says() -> None:
    assert parse_url("s3://bucket/a/b?sse=aws:kms&kms_key=k+1&region=r").place == Place(
        "bucket", "a/b", region="r", sse="aws:kms", kms_key="k 1", addressing="auto"
    )
    assert parse_url("sqlite:///srv/all%23.db").path == Path("/srv/all#.db")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("bucket", "a provider is s3://BUCKET"),
        ("/srv/objects", "a provider is s3://BUCKET"),
        ("s3:bucket", "a provider is s3://BUCKET"),
        ("s3://", "no name of a bucket"),
        ("s3://a", "no name of a bucket"),
        ("s3://bu:cket", "no name of a bucket"),
        ("s3://bücket", "no name of a bucket"),
        ("s3://bucket/a/../b", "no object can be called"),
        ("s3://bucket/a//b", "no object can be called"),
        ("s3://bucket?colour=red", "there is no option colour; it has: endpoint_url"),
        ("s3://bucket?region", "a provider is s3://BUCKET"),
        ("s3://bucket?region=a&region=b", "an option is there twice"),
        ("s3://bucket?addressing=street", "addressing is one of auto, path, virtual"),
        ("s3://bucket?sse=DES", "sse is one of AES256, aws:kms"),
        ("s3://bucket?retries=21", "retries is a number from 0 to 20, not '21'"),
        ("s3://bucket?retries=-1", "retries is a number"),
        ("s3://bucket?kms_key=k", "kms_key is for sse=aws:kms"),
        ("s3://bucket?flavor=vanilla", "flavor is one of ibm"),
        ("s3://bucket?endpoint_url=ftp://host", "an endpoint_url is http"),
        ("s3://bucket?endpoint_url=http://host:port", "an endpoint_url is http"),
        ("s3://bucket?endpoint_url=http://", "an endpoint_url is http"),
        ("s3://bucket?endpoint_url=http://host/?a=b", "an endpoint_url is http"),
        ("gs://bucket", "a provider is s3://BUCKET"),
        ("file:///", "a provider is s3://BUCKET"),
        ("file:relative", "a provider is s3://BUCKET"),
        ("file:///srv/what?", "is written %3F"),
        ("sqlite:///srv/%00.db", "a provider is s3://BUCKET"),
        ("sqlite://", "a provider is s3://BUCKET"),
        ("memory:name", "memory: takes no name"),
    ],
)
def test_what_a_url_cannot_say(url: str, message: str) -> None:
    with pytest.raises(InvalidError, match=message.replace("?", r"\?")):
        canonical_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hush@bucket/prefix",
        "s3://bucket?aws_secret_access_key=hush",
        "s3://bucket?password=hush",
        "s3://bucket?session_token=hush&region=r",
        "s3://bucket?endpoint_url=http://AKIAKEY:hush@host",
        "s3://AKIAKEY:hush@bucket:port",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InvalidError, match="credentials") as caught:
        canonical_url(url)
    assert "hush" not in str(caught.value) and "AKIAKEY" not in str(caught.value)


def test_opening(tmp_path: Path) -> None:
    memory, other = open_provider("memory:", LIMITS), open_provider("memory:", LIMITS)
    assert isinstance(memory, MemoryProvider) and memory is not other
    disk = open_provider(f"file://{tmp_path}/a b/", LIMITS)
    assert isinstance(disk, DiskProvider) and disk.root == tmp_path / "a b"
    assert disk.url == canonical_url(f"file://{tmp_path}/a b/")
    assert not disk.capabilities.adopts
    rows = open_provider(f"sqlite://{tmp_path}/all.db", LIMITS)
    assert isinstance(rows, SqliteProvider) and rows.url == f"sqlite://{tmp_path}/all.db"
    s3 = open_provider("s3://bucket/p/?region=r", LIMITS)
    assert isinstance(s3, S3Provider) and s3.url == "s3://bucket/p?region=r"
    assert s3.place == Place("bucket", "p", region="r")
    with pytest.raises(InvalidError, match="own directory"):
        open_provider("", LIMITS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("type", "env", "url"),
    [
        ("vfs", {}, ""),
        ("memory", {}, "memory:"),
        ("vfs-memory", {"ARTIFACT_FS_ROOT": "/x"}, "memory:"),
        ("filesystem", {}, f"file://{os.getcwd()}/artifacts"),
        ("vfs-filesystem", {"VFS_ROOT_PATH": "/b"}, "file:///b"),
        ("filesystem", {"ARTIFACT_FS_ROOT": "~/a", "VFS_ROOT_PATH": "/b"}, f"file://{HOME}/a"),
        ("sqlite", {}, f"sqlite://{os.getcwd()}/artifacts.db"),
        ("vfs-sqlite", {"SQLITE_DB_PATH": "/b.db"}, "sqlite:///b.db"),
        ("sqlite", {"ARTIFACT_SQLITE_PATH": "/a.db", "SQLITE_DB_PATH": "/b.db"}, "sqlite:///a.db"),
        ("s3", {}, "s3://artifacts"),
        ("vfs-s3", {"AWS_S3_BUCKET": "theirs", "AWS_DEFAULT_REGION": "eu-north-1"}, "s3://theirs?region=eu-north-1"),
        (
            "s3",
            {
                "ARTIFACT_BUCKET": "ours",
                "AWS_S3_BUCKET": "theirs",
                "AWS_REGION": "eu-west-1",
                "AWS_DEFAULT_REGION": "eu-north-1",
                "S3_ENDPOINT_URL": "http://localhost:9000/",
                "S3_SSE_ALGORITHM": "AES256",
                "AWS_SECRET_ACCESS_KEY": "hush",
            },
            "s3://ours?endpoint_url=http://localhost:9000&region=eu-west-1&sse=AES256",
        ),
        (
            "ibm_cos",
            {"S3_ENDPOINT_URL": "http://localhost:9000"},
            "s3://artifacts?endpoint_url=https://s3.us-south.cloud-object-storage.appdomain.cloud&flavor=ibm",
        ),
        (
            "ibm_cos",
            {"AWS_REGION": "eu-de", "ARTIFACT_BUCKET": "ours"},
            "s3://ours?endpoint_url=https://s3.eu-de.cloud-object-storage.appdomain.cloud&region=eu-de&flavor=ibm",
        ),
        (
            "ibm_cos",
            {"IBM_COS_ENDPOINT": "https://cos.example.org", "IBM_COS_SECRET_KEY": "hush"},
            "s3://artifacts?endpoint_url=https://cos.example.org&flavor=ibm",
        ),
        ("MEMORY", {}, "memory:"),
    ],
)
def test_types_and_the_environment(type: str, env: Mapping[str, str], url: str) -> None:
    assert provider_from_env(type, env) == for_type(type, {}, env) == url
    assert canonical_url(url) == url


def test_the_environment_is_this_processs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTIFACT_FS_ROOT", "/from/here")
    assert provider_from_env("filesystem") == for_type("filesystem") == "file:///from/here"


def test_what_is_given_comes_before_the_environment() -> None:
    env = {"ARTIFACT_FS_ROOT": "/x", "ARTIFACT_SQLITE_PATH": "/x", "ARTIFACT_BUCKET": "xxx", "AWS_REGION": "x-1"}
    assert for_type("filesystem", {"root_path": "/a"}, env) == "file:///a"
    assert for_type("sqlite", {"db_path": "/a.db"}, env) == "sqlite:///a.db"
    config = {"bucket_name": "given", "prefix": "/p/q/", "region_name": None, "addressing": "path"}
    assert for_type("s3", config, env) == "s3://given/p/q?region=x-1&addressing=path"
    assert for_type("vfs-s3", {"region_name": "eu-1"}, env) == "s3://xxx?region=eu-1"


@pytest.mark.parametrize(
    ("type", "config", "message"),
    [
        ("ftp", {}, "there is no provider of type 'ftp': choose among memory"),
        ("s3", {"aws_secret_access_key": "hush"}, "aws_secret_access_key is no option: set credentials"),
        ("s3", {"colour": "red"}, "there is no option colour; it has: addressing"),
        ("memory", {"root_path": "/a"}, "there is no option root_path; it has: none"),
        ("s3", {"bucket": "no/bucket"}, "no name of a bucket"),
        ("s3", {"sse": "DES"}, "sse is one of"),
    ],
)
def test_what_cannot_be_given(type: str, config: Mapping[str, object], message: str) -> None:
    with pytest.raises(InvalidError, match=message) as caught:
        for_type(type, config, {})
    assert "hush" not in str(caught.value)


def test_ibms_endpoint_is_found_when_it_is_opened() -> None:
    place = parse_url("s3://bucket?flavor=ibm&region=jp-tok").place
    assert with_endpoint(place, {}).endpoint_url == "https://s3.jp-tok.cloud-object-storage.appdomain.cloud"
    assert with_endpoint(place, {"IBM_COS_ENDPOINT": "cos.example.org"}).endpoint_url == "https://cos.example.org"
    plain = parse_url("s3://bucket").place
    assert with_endpoint(plain, {"IBM_COS_ENDPOINT": "cos.example.org"}) is plain


def test_what_a_url_leaves_out_is_the_environments_when_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"S3_ENDPOINT_URL": "localhost:9000", "S3_SSE_ALGORITHM": "AES256", "IBM_COS_ENDPOINT": "http://cos"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    def place(url: str) -> Place:
        provider = open_provider(url, LIMITS)
        assert isinstance(provider, S3Provider) and provider.url == url  # the identity is as it was
        return provider.place

    assert place("s3://bucket") == Place("bucket", "", "https://localhost:9000", addressing="auto", sse="AES256")
    own = place("s3://bucket?endpoint_url=http://own&sse=aws:kms&kms_key=k")
    assert (own.endpoint_url, own.sse, own.kms_key) == ("http://own", "aws:kms", "k")
    assert place("s3://bucket?flavor=ibm").endpoint_url == "http://cos"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("S3_ENDPOINT_URL", "ftp://host", "S3_ENDPOINT_URL is http://HOST"),
        ("S3_ENDPOINT_URL", "http://user:hush@host", "S3_ENDPOINT_URL is http://HOST"),
        ("S3_SSE_ALGORITHM", "DES", "S3_SSE_ALGORITHM: sse is one of AES256, aws:kms, not 'DES'"),
    ],
)
def test_what_the_environment_cannot_say(name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidError, match=message) as caught:
        open_provider("s3://bucket", LIMITS)
    assert "hush" not in str(caught.value)
