"""Credentials of S3 from where the AWS client looks by default: roles of a machine and of a container, shared files."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from artfs import ArtifactStore, ProviderError
from artfs.errors import DeniedError
from artfs.objects.opening import open_provider
from tests.contract.loops import on_both_loops
from tests.servers import Server, rclone, servers

__all__ = ["rclone", "servers"]  # fixtures

ROLE = "/latest/meta-data/iam/security-credentials/"
TOKEN = "a token of the container"


@dataclass(frozen=True)
class Limits:
    provider_timeout: float = 30.0
    part_size: int = 8 << 20
    uploads: int = 4


class Metadata(ThreadingHTTPServer):
    """What a cloud has for its machines, and for its containers.  `asked`: paths, in order."""

    daemon_threads = True

    def __init__(self, server: Server) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.keys = server.env
        self.life = timedelta(hours=6)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, token: str | None) -> tuple[int, str]:
        self.asked.append(path)
        if path == ROLE:
            return 200, "the-role"
        if path == "/container" and token != TOKEN:
            return 403, ""
        if path not in (f"{ROLE}the-role", "/container"):
            return 404, ""
        document = {
            "Code": "Success",
            "AccessKeyId": self.keys["AWS_ACCESS_KEY_ID"],
            "SecretAccessKey": self.keys["AWS_SECRET_ACCESS_KEY"],
            "Token": "",
            "Expiration": (datetime.now(UTC) + self.life).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return 200, json.dumps(document)


class Answer(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        self._say(200, "a token of the machine")

    def do_GET(self) -> None:
        self._say(*self.server.answer(self.path, self.headers.get("Authorization")))

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def nothing(rclone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials anywhere."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cloud(rclone: Server, nothing: None) -> Iterator[Metadata]:
    with Metadata(rclone) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


async def try_it(server: Server, times: int = 1) -> None:
    provider = open_provider(server.place(), Limits())
    try:
        await provider.check()
        for number in range(times - 1):
            await provider.put(f"object-{number}", b"x")
    finally:
        await provider.close()


async def test_without_any_it_is_said_what_to_set(rclone: Server, nothing: None) -> None:
    with pytest.raises(DeniedError, match=r"no credentials.*AWS_ACCESS_KEY_ID.*role"):
        await try_it(rclone)


async def test_the_role_of_the_machine(rclone: Server, cloud: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", cloud.url)
    await try_it(rclone)
    assert cloud.asked.count(f"{ROLE}the-role") >= 1


async def test_the_role_of_the_container(rclone: Server, cloud: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{cloud.url}/container")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", TOKEN)
    await try_it(rclone)
    assert cloud.asked == ["/container"]


async def test_credentials_that_end_are_renewed(
    rclone: Server, cloud: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{cloud.url}/container")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", TOKEN)
    cloud.life = timedelta(minutes=1)
    await try_it(rclone, times=4)
    assert len(cloud.asked) > 4  # before each request, since they end soon


async def test_shared_files_and_profiles(
    rclone: Server, nothing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"aws_{name} = {rclone.env[f'AWS_{name.upper()}']}" for name in ("access_key_id", "secret_access_key")]
    shared = tmp_path / "credentials"
    shared.write_text("\n".join(["[default]", "aws_access_key_id = a", "aws_secret_access_key = b", "[mine]", *keys]))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    await try_it(rclone)
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(DeniedError, match="the credentials are refused"):
        await try_it(rclone)


async def test_a_program_that_tells_them(
    rclone: Server, nothing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {
        "Version": 1,
        "AccessKeyId": rclone.env["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": rclone.env["AWS_SECRET_ACCESS_KEY"],
        "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600)),
    }
    program = tmp_path / "tell.py"
    program.write_text(f"print({json.dumps(json.dumps(keys))})")
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {sys.executable} {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    await try_it(rclone)


@on_both_loops
async def test_a_caller_is_not_told_that_he_is_denied_what_the_store_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ProviderError, match="there are no credentials") as caught:
        async with ArtifactStore(storage_provider="s3", root=tmp_path / "root"):
            pass
    assert caught.value.http_status == 502
