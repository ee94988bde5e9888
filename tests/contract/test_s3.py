"""The S3 provider alone: what goes over the wire, large numbers of objects, and the clients.

What all providers do is in test_providers.py, uploads in test_s3_uploads.py, troubles in test_s3_troubles.py, signed
URLs in test_s3_urls.py.
"""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from artfs.errors import (
    BusyError,
    DeniedError,
    InvalidError,
    UnavailableError,
)
from artfs.objects import s3 as module
from artfs.objects import s3_client
from artfs.objects.s3 import S3Provider
from tests.contract.s3_help import MIB, Answering, answering, before, names, opened, put
from tests.faults.messages import Kind
from tests.faults.proxy import Fault
from tests.servers import Server, let_in, moto, rclone, rclone_serving, servers

__all__ = ["answering", "moto", "rclone", "servers"]

ROOT = Path(__file__).parents[2]


async def test_options_of_the_url_are_headers(answering: Answering, tmp_path: Path) -> None:
    """And bodies are not signed, but have their MD5."""
    (tmp_path / "file").write_bytes(b"some data")
    async with opened(answering.url(more="&addressing=path&sse=aws:kms&kms_key=alias/our-key")) as provider:
        await provider.put("a/b", tmp_path / "file")
        await provider.put("a/b", b"some data")
    for said in answering.said:
        assert (said.method, said.path, said.body) == ("PUT", "/bucket/prefix/a/b", b"some data")
        assert said.headers["x-amz-server-side-encryption"] == "aws:kms"
        assert said.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/our-key"
        assert said.headers["content-md5"] == "HlAhCgICSX+3m8OLat5sNA=="
        assert said.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert not [
            name for name in said.headers if name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "expect"))
        ]
        assert "us-east-1/s3/aws4_request" in said.headers["authorization"]


async def test_uploads_and_copies_are_encrypted_too(moto: Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20 * MIB))
    async with opened(moto.place(sse="AES256")) as provider:
        await provider.put("large", tmp_path / "large")
        await provider.create("small", b"x")
        await provider.copy("small", "copy")
        await provider.complete_parts("parts", *(await one_part(provider, "parts")))
        client = moto.client()
        for name in ("large", "small", "copy", "parts"):
            head = client.head_object(Bucket=moto.bucket, Key=f"{provider.place.prefix}/{name}")
            assert head["ServerSideEncryption"] == "AES256"
        client.close()


async def one_part(provider: S3Provider, name: str) -> tuple[str, list[tuple[int, str]]]:
    upload = await provider.begin_parts(name)
    return upload, [(1, put(await provider.sign_part(name, upload, 1, 60), b"x")["ETag"])]


async def test_addressing(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: look_up("127.0.0.1", *rest, **more))
    for addressing, host, path in (
        ("virtual", "bucket.s3.example.org", "/prefix/a"),
        ("path", "s3.example.org", "/bucket/prefix/a"),
    ):
        answering.said.clear()
        async with opened(answering.url(host="s3.example.org", more=f"&addressing={addressing}")) as provider:
            await provider.put("a", b"x")
            url = urlsplit(await provider.sign_get("a", 60))
        assert (answering.said[0].headers["host"], answering.said[0].path) == (f"{host}:{answering.port}", path)
        assert (url.netloc, url.path) == (f"{host}:{answering.port}", path)


async def test_session_tokens_are_sent(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    async with opened(answering.url()) as provider:
        await provider.put("a", b"x")
        url = await provider.sign_get("a", 60)
    assert answering.said[0].headers["x-amz-security-token"] == "a-session-token"
    assert parse_qs(urlsplit(url).query)["X-Amz-Security-Token"] == ["a-session-token"]


async def test_ibm_has_credentials_of_its_own(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    url = answering.url(more="&addressing=path&flavor=ibm")
    for names_set in ({}, {"IBM_COS_ACCESS_KEY": "ibm-key"}):
        for name, value in names_set.items():
            monkeypatch.setenv(name, value)
        async with opened(url) as provider:
            with pytest.raises(DeniedError, match="set IBM_COS_ACCESS_KEY and IBM_COS_SECRET_KEY"):
                await provider.check()
    assert answering.said == []
    monkeypatch.setenv("IBM_COS_SECRET_KEY", "ibm-secret")
    async with opened(url) as provider:
        await provider.put("a", b"x")
    assert "Credential=ibm-key/" in answering.said[0].headers["authorization"]


async def test_a_server_without_conditional_writes(answering: Answering) -> None:
    error = "<Error><Code>NotImplemented</Code><Message>If-None-Match</Message></Error>"
    answering.answers = [(404, {}, ""), (501, {"Content-Type": "application/xml"}, error), (200, {}, "")]
    async with opened(answering.url()) as provider:
        await provider.create("a", b"data")
    assert [said.method for said in answering.said] == ["HEAD", "PUT", "PUT"]
    assert answering.said[1].headers["if-none-match"] == "*"
    assert "if-none-match" not in answering.said[2].headers and answering.said[2].body == b"data"


async def test_an_own_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = _certificate(tmp_path)
    with rclone_serving(tmp_path, "--cert", str(certificate), "--key", str(key)) as server:
        let_in(server, monkeypatch)
        async with opened(server.place()) as provider:
            with pytest.raises(UnavailableError, match=r"its certificate is not trusted .*as ca in"):
                await provider.check()
        async with opened(server.place(ca=str(certificate))) as provider:
            await provider.check()
            await provider.put("a", b"data")
            assert await provider.get("a", 0, 4) == b"data"
        async with opened(server.place(ca=str(tmp_path / "missing"))) as provider:
            with pytest.raises(InvalidError, match=r"ca: .*missing is not there"):
                await provider.check()


def _certificate(directory: Path) -> tuple[Path, Path]:
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "artfs test")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths = directory / "cert.pem", directory / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return paths


# many objects
async def test_thousands_are_listed_in_pages_and_deleted_in_bulk(rclone: Server) -> None:
    assert rclone.directory is not None
    with before(rclone) as proxy:
        async with opened(rclone.place(endpoint_url=proxy.url)) as provider:
            directory = rclone.directory / rclone.bucket / provider.place.prefix / "many"
            directory.mkdir(parents=True)
            wanted = [f"many/{number:04}" for number in range(2500)]
            for name in wanted:
                (directory.parent / name).write_bytes(b"x")
            time.sleep(1.1)  # the server's memory of directories
            with proxy.counting() as seen:
                assert await names(provider) == wanted
            assert seen.count(Kind.LIST) == len(seen.requests) == 3
            with proxy.counting() as seen:
                await provider.delete(wanted)
            assert seen.count(Kind.DELETE) == len(seen.requests) == 3
            assert await names(provider) == []


async def test_one_of_many_that_is_not_deleted_is_an_error(answering: Answering) -> None:
    row = "<Error><Key>prefix/b</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    gone = "<Error><Key>prefix/a</Key><Code>NoSuchKey</Code><Message>no</Message></Error>"
    form = {"Content-Type": "application/xml"}
    answering.answers = [
        (200, form, f"<DeleteResult>{gone}</DeleteResult>"),
        (200, form, f"<DeleteResult>{gone}{row}</DeleteResult>"),
    ]
    async with opened(answering.url()) as provider:
        await provider.delete(["a", "b"])
        with pytest.raises(DeniedError, match="object prefix/b, bucket"):
            await provider.delete(["a", "b"])
    assert "content-md5" in answering.said[0].headers


async def test_programs_objects_for_directories_are_not_listed(moto: Server) -> None:
    async with opened(moto.place()) as provider:
        await provider.put("a/b", b"x")
        client = moto.client()
        for key in ("a/", ""):
            client.put_object(Bucket=moto.bucket, Key=f"{provider.place.prefix}/{key}", Body=b"")
        client.close()
        assert await names(provider) == ["a/b"]


async def test_a_large_object_is_copied_in_parts(moto: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "COPY_PART", 8 * MIB)
    data = os.urandom(MIB) * 20 + b"rest"
    async with opened(moto.place()) as provider:
        (tmp_path / "large").write_bytes(data)
        await provider.put("large", tmp_path / "large")
        etag = (await provider.head("large")).etag
        await provider.copy("large", "copy", etag)
        assert await provider.get("copy", 0, len(data)) == data
        with pytest.raises(BusyError, match=r"object large, .*changed"):
            await provider.copy("large", "other", "0" * 32)
        assert await names(provider) == ["copy", "large"]


# clients
async def test_providers_of_an_endpoint_share_a_client(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[s3_client.Client] = []
    make: Callable[..., Any] = s3_client._made

    async def counted(endpoint: s3_client.Endpoint) -> s3_client.Client:
        made.append(await make(endpoint))
        return made[-1]

    monkeypatch.setattr(s3_client, "_made", counted)
    async with opened(moto.place()) as first, opened(moto.place()) as second:
        async with trio.open_nursery() as nursery:
            for provider in (first, second):
                for number in range(3):
                    nursery.start_soon(provider.put, f"{number}", b"x")
        assert len(made) == 1
        await first.close()
        await second.put("a", b"x")
        assert len(made) == 1
        await second.close()
        await second.put("a", b"x")  # a new one
        assert len(made) == 2
    async with opened(moto.place(), provider_timeout=5.0) as other:
        await other.put("a", b"x")
        assert len(made) == 3


def test_opening_loads_no_client_and_the_end_is_silent(moto: Server) -> None:
    program = """
import sys, trio
from types import SimpleNamespace
from artfs.objects.opening import open_provider
provider = open_provider(sys.argv[1], SimpleNamespace(provider_timeout=10, part_size=1 << 23, uploads=4))
print([name for name in ("aioboto3", "botocore", "aiohttp") if name in sys.modules])
async def main():
    await provider.put("a", b"x")
trio.run(main)
print("botocore" in sys.modules)
"""
    command = [sys.executable, "-W", "error::ResourceWarning", "-X", "dev", "-c", program, moto.place()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    noise = [line for line in done.stderr.splitlines() if "unclosed" in line.lower() or "Traceback" in line]
    assert (done.returncode, done.stdout, noise) == (0, "[]\nTrue\n", []), done.stderr


async def test_a_busy_server_gets_less_at_once() -> None:
    client = s3_client.Client(None, 6, AsyncExitStack())
    seen = [client.sending.total_tokens]
    for step in (client.is_busy, client.is_busy, client.is_busy, client.has_sent, client.has_sent):
        step()
        seen.append(client.sending.total_tokens)
    assert seen == [6, 3, 1, 1, 2, 3]
    for _ in range(10):
        client.has_sent()
    assert client.sending.total_tokens == 6


async def test_a_server_that_recovers_is_used_at_once(moto: Server) -> None:
    """What it refused before does not slow down what comes after."""
    with before(moto) as proxy:
        async with opened(moto.place(endpoint_url=proxy.url), provider_timeout=3.0) as provider:
            await provider.put("a", b"data")
            proxy.misbehave(Fault.ANSWER, {Kind.GET})
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(_refused, provider)
            proxy.heal()
            start = time.monotonic()
            for _ in range(20):
                assert await provider.get("a", 0, 4) == b"data"
            assert time.monotonic() - start < 3


async def _refused(provider: S3Provider) -> None:
    with pytest.raises(UnavailableError, match="SlowDown"):
        await provider.get("a", 0, 4)
