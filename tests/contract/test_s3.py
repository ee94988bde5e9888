"""The S3 provider alone: what goes over the wire, signed URLs, uploads in parts, and one clear error for each trouble.

What all providers do is in test_providers.py.
"""

from __future__ import annotations

import datetime
import gc
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pytest
import trio

from artfs.errors import (
    ArtfsError,
    BusyError,
    DeniedError,
    ExistsError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.objects import s3 as module
from artfs.objects import s3_client, s3_uploads
from artfs.objects.opening import open_provider
from artfs.objects.s3 import LONGEST, S3Provider
from artfs.objects.s3_uploads import MULTIPART, PARTS, part_length
from tests.faults.messages import Kind
from tests.faults.proxy import Fault, Proxy
from tests.servers import KINDS, Running, Server, let_in, moto, rclone, rclone_serving, servers

__all__ = ["moto", "rclone", "servers"]

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SIGNING = [kind for kind in KINDS if kind != "rclone"]
LOCAL = [kind for kind in KINDS if kind != "given"]


@dataclass(frozen=True)
class Limits:
    provider_timeout: float = 20.0
    part_size: int = 8 * MIB
    uploads: int = 4


@asynccontextmanager
async def opened(url: str, **limits: Any) -> AsyncIterator[S3Provider]:
    provider = open_provider(url, Limits(**limits))
    assert isinstance(provider, S3Provider)
    try:
        yield provider
    finally:
        await provider.close()


@pytest.fixture(params=SIGNING)
def signing(request: pytest.FixtureRequest, servers: Running, monkeypatch: pytest.MonkeyPatch) -> Server:
    return let_in(servers[request.param], monkeypatch)


@pytest.fixture(params=LOCAL)
def local(request: pytest.FixtureRequest, servers: Running, monkeypatch: pytest.MonkeyPatch) -> Server:
    return let_in(servers[request.param], monkeypatch)


@contextmanager
def before(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


async def names(provider: S3Provider, prefix: str = "") -> list[str]:
    return [name async for name, _ in provider.list(prefix)]


def uploads_left(server: Server, provider: S3Provider) -> list[Any]:
    client = server.client()
    try:
        found = client.list_multipart_uploads(Bucket=server.bucket, Prefix=provider.place.prefix)
    finally:
        client.close()
    return list(found.get("Uploads", []))


# a server that answers what it is told
@dataclass
class Said:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answering:
    """`answers`: for each request, in order, and the last one for all that come after: status, headers, body."""

    port: int = 0
    said: list[Said] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], str]] = field(default_factory=lambda: [(200, {}, "")])

    def url(self, place: str = "bucket/prefix", host: str = "127.0.0.1", more: str = "&addressing=path") -> str:
        return f"s3://{place}?endpoint_url=http://{host}:{self.port}&region=us-east-1{more}"

    def error(self, status: int, code: str, more: str = "") -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said so</Message>{more}</Error>"
        self.answers = [(status, {"Content-Type": "application/xml"}, body)]


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up."""


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    for name, value in {"ACCESS_KEY_ID": "AKIATESTER", "SECRET_ACCESS_KEY": "the-secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(f"AWS_{name}", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    state = Answering()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.said.append(Said(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status, headers, text = state.answers[0] if len(state.answers) == 1 else state.answers.pop(0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# uploads in parts
def test_parts_are_few_enough_and_not_too_small() -> None:
    assert part_length(17 * MIB, 8 * MIB) == 8 * MIB
    assert part_length(PARTS * 8 * MIB, 8 * MIB) == 8 * MIB
    assert part_length(PARTS * 8 * MIB + 1, 8 * MIB) == 9 * MIB
    largest = 5 << 40
    assert -(-largest // part_length(largest, 8 * MIB)) <= PARTS
    with pytest.raises(InvalidError, match="5 TiB"):
        part_length(largest + 1, 8 * MIB)


async def test_a_large_file_goes_in_parts_several_at_once(local: Server, tmp_path: Path) -> None:
    data = os.urandom(MIB) * 44 + b"the end"
    (tmp_path / "large").write_bytes(data)
    with before(local) as proxy:
        async with opened(local.place(endpoint_url=proxy.url), uploads=3) as provider:
            with proxy.counting() as seen:
                await provider.put("large", tmp_path / "large")
            assert (seen.count(Kind.BEGIN), seen.count(Kind.PART), seen.count(Kind.COMPLETE)) == (1, 6, 1)
            assert seen.count(Kind.PUT) == 0
            sizes = sorted(request.sent for request in seen.of(Kind.PART))
            assert sizes == [4 * MIB + 7] + [8 * MIB] * 5
            assert 2 <= seen.at_once(Kind.PART) <= 3
            assert (await provider.head("large")).size == len(data)
            assert await provider.get("large", 0, len(data)) == data
            assert await provider.get("large", 8 * MIB - 3, 6) == data[8 * MIB - 3 : 8 * MIB + 3]


async def test_a_small_file_is_one_request(local: Server, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * MULTIPART)
    with before(local) as proxy:
        async with opened(local.place(endpoint_url=proxy.url)) as provider:
            await provider.check()
            with proxy.counting() as seen:
                await provider.put("small", tmp_path / "small")
                await provider.put("smaller", b"x")
                await provider.get("small", 5, 5)
                await provider.head("small")
                assert await names(provider) == ["small", "smaller"]
                await provider.delete(["small", "smaller"])
            assert [request.kind for request in seen.requests] == [
                Kind.PUT,
                Kind.PUT,
                Kind.GET,
                Kind.HEAD,
                Kind.LIST,
                Kind.DELETE,
            ]


async def test_no_more_parts_are_in_memory_than_are_sent(
    moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[s3_client.Body] = weakref.WeakSet()
    most = 0
    read = s3_uploads.Source.part

    async def counted(self: s3_uploads.Source, offset: int, length: int) -> s3_client.Body:
        nonlocal most
        body = await read(self, offset, length)
        alive.add(body)
        gc.collect()
        most = max(most, len(alive))
        return body

    monkeypatch.setattr(s3_uploads.Source, "part", counted)
    for number in range(3):
        with (tmp_path / f"{number}").open("wb") as file:
            file.truncate(40 * MIB)
    async with opened(moto.place(), uploads=2) as provider, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(provider.put, f"{number}", tmp_path / f"{number}")
    assert most <= 2 + s3_client.AHEAD


async def test_a_failed_upload_is_aborted(moto: Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(30 * MIB))
    with before(moto) as proxy:
        async with opened(moto.place(endpoint_url=proxy.url)) as provider:
            proxy.misbehave(Fault.ANSWER, {Kind.PART}, status=403, code="AccessDenied", count=1)
            with pytest.raises(DeniedError, match="object large"):
                await provider.put("large", tmp_path / "large")
            assert proxy.seen.count(Kind.ABORT) == 1 and uploads_left(moto, provider) == []
            assert await names(provider) == []


async def test_a_cancelled_upload_is_aborted(moto: Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(30 * MIB))
    with before(moto) as proxy:
        async with opened(moto.place(endpoint_url=proxy.url)) as provider:
            proxy.misbehave(Fault.SLOW, {Kind.PART}, rate=1e6)
            with trio.move_on_after(1) as scope:
                await provider.put("large", tmp_path / "large")
            assert scope.cancelled_caught
            assert uploads_left(moto, provider) == []
            with trio.fail_after(10):
                while not proxy.seen.count(Kind.ABORT):  # which is counted when its answer has left
                    await trio.sleep(0.01)
            assert (proxy.seen.count(Kind.BEGIN), proxy.seen.count(Kind.ABORT)) == (1, 1)
            assert await names(provider) == []


async def test_a_file_that_is_cut_while_it_is_sent(
    moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(30 * MIB))
    begin = s3_uploads.Uploads.begin

    async def cut(self: s3_uploads.Uploads, *args: Any) -> str:
        os.truncate(path, 20 * MIB)
        return await begin(self, *args)

    monkeypatch.setattr(s3_uploads.Uploads, "begin", cut)
    async with opened(moto.place()) as provider:
        with pytest.raises(UnavailableError, match=r"large cannot be read from .*: it ends at"):
            await provider.put("large", path)
        assert uploads_left(moto, provider) == [] and await names(provider) == []


async def test_a_server_that_loses_the_upload_is_asked_again_later(moto: Server, tmp_path: Path) -> None:
    """Not an object that is not found."""
    (tmp_path / "large").write_bytes(bytes(20 * MIB))
    with before(moto) as proxy:
        async with opened(moto.place(endpoint_url=proxy.url)) as provider:
            for kind in (Kind.PART, Kind.COMPLETE):
                proxy.misbehave(Fault.ANSWER, {kind}, status=404, code="NoSuchUpload", count=1)
                with pytest.raises(UnavailableError, match="lost the upload"):
                    await provider.put("large", tmp_path / "large")
            await provider.put("large", tmp_path / "large")


# what a broken network does
async def test_busy_servers_are_asked_again(local: Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20 * MIB))
    with before(local) as proxy:
        async with opened(local.place(endpoint_url=proxy.url)) as provider:
            proxy.misbehave(Fault.ANSWER, {Kind.PUT, Kind.LIST, Kind.BEGIN}, count=2)
            await provider.put("a", b"data")
            await provider.put("b", tmp_path / "large")
            assert await names(provider) == ["a", "b"]
            assert proxy.seen.struck() == 2
            proxy.heal()
            proxy.misbehave(Fault.RESET_BEFORE, {Kind.GET}, count=2)
            assert await provider.get("a", 0, 4) == b"data"


async def test_a_success_whose_answer_was_lost_is_a_success(moto: Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20 * MIB))
    with before(moto) as proxy:
        async with opened(moto.place(endpoint_url=proxy.url)) as provider:
            proxy.misbehave(Fault.RESET_AFTER, {Kind.PUT}, count=1)
            await provider.create("mine", b"data")
            with pytest.raises(ExistsError):
                await provider.create("mine", b"data")
            proxy.heal()
            proxy.misbehave(Fault.RESET_AFTER, {Kind.COMPLETE}, count=1)
            await provider.put("large", tmp_path / "large")
            assert (await provider.head("large")).size == 20 * MIB


async def test_a_body_that_breaks_off_is_no_success(local: Server) -> None:
    with before(local) as proxy:
        async with opened(local.place(endpoint_url=proxy.url), provider_timeout=5.0) as provider:
            await provider.put("a", b"x" * MIB)
            proxy.misbehave(Fault.TRUNCATE, {Kind.GET})
            with pytest.raises(UnavailableError, match="object a"):
                await provider.get("a", 0, MIB)
            proxy.heal()
            proxy.misbehave(Fault.TRUNCATE, {Kind.PUT})
            with pytest.raises(UnavailableError, match="object b"):
                await provider.put("b", b"x" * MIB)
            proxy.heal()
            assert await names(provider) == ["a"]
            assert await provider.get("a", 0, MIB) == b"x" * MIB


async def test_bytes_that_change_on_their_way_are_refused(rclone: Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20 * MIB))
    with before(rclone) as proxy:
        async with opened(rclone.place(endpoint_url=proxy.url)) as provider:
            proxy.misbehave(Fault.CORRUPT, {Kind.PUT, Kind.PART})
            for name, source in {"a": b"x" * 1000, "b": tmp_path / "large"}.items():
                with pytest.raises(UnavailableError, match=f"object {name}"):
                    await provider.put(name, source)  # type: ignore[arg-type]
            assert await names(provider) == []
            proxy.heal()
            proxy.misbehave(Fault.CORRUPT, {Kind.PUT}, count=1)
            with pytest.raises(UnavailableError, match="what arrived is not what was sent"):
                await provider.put("a", b"x" * 1000)
            await provider.put("a", b"x" * 1000)
            assert await provider.get("a", 0, 1000) == b"x" * 1000


async def test_calls_end_in_time_when_nothing_answers(local: Server, tmp_path: Path) -> None:
    timeout = 0.5
    (tmp_path / "large").write_bytes(bytes(17 * MIB))
    with before(local) as proxy:
        async with opened(local.place(endpoint_url=proxy.url), provider_timeout=timeout) as provider:
            await provider.put("a", b"data")
            proxy.misbehave(Fault.HANG)
            for call in (
                lambda: provider.get("a", 0, 4),
                lambda: provider.head("a"),
                lambda: provider.put("b", b"x"),
                lambda: provider.put("b", tmp_path / "large"),
                lambda: provider.delete(["c"]),
                lambda: names(provider),
                provider.check,
            ):
                start = time.monotonic()
                with pytest.raises(UnavailableError, match="no answer in time"):
                    await call()
                assert time.monotonic() - start < 2 * timeout + 0.5
            proxy.heal()
            assert await provider.get("a", 0, 4) == b"data"


async def test_a_dead_endpoint(rclone: Server) -> None:
    with before(rclone) as proxy:
        async with opened(rclone.place(endpoint_url=proxy.url), provider_timeout=2.0) as provider:
            await provider.put("a", b"data")
            with proxy.outage():
                start = time.monotonic()
                for call in (provider.check, lambda: provider.get("a", 0, 4)):
                    with pytest.raises(UnavailableError, match=r"no connection \(.*check endpoint_url"):
                        await call()
                assert time.monotonic() - start < 8
            assert await provider.get("a", 0, 4) == b"data"


async def test_an_unknown_host(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with opened(answering.url(host="s3.example.org"), provider_timeout=2.0) as provider:
        with pytest.raises(UnavailableError, match=r"http://s3.example.org:\d+: the name of its host is not known"):
            await provider.check()


async def test_something_else_that_answers(answering: Answering) -> None:
    async with opened(answering.url(), provider_timeout=2.0) as provider:
        for call in (provider.check, lambda: names(provider)):
            with pytest.raises(UnavailableError, match="what answers does not speak the protocol of S3"):
                await call()
        answering.answers = [(404, {"Content-Type": "text/html"}, "<html><p>Welcome to our printer")]
        with pytest.raises(NotFoundError, match=r"trying to list, bucket bucket at http://.*: it is not there"):
            await provider.check()
        answering.answers = [(200, {"Content-Type": "text/html"}, "<html><p>Welcome to our printer")]
        with pytest.raises(UnavailableError, match="trying to list, bucket bucket at http"):
            await provider.check()


# who we are, and where
async def test_a_missing_bucket(local: Server) -> None:
    async with opened(local.url("prefix", bucket="not-there")) as provider:
        for call in (
            provider.check,
            lambda: provider.put("a", b"x"),
            lambda: provider.create("a", b"x"),
            provider.check,
        ):
            with pytest.raises(NotFoundError, match=r"bucket not-there at http.*no such bucket .*make it"):
                await call()


async def test_wrong_credentials(rclone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_SECRET_ACCESS_KEY": "not-that-secret", "AWS_ACCESS_KEY_ID": "nobody-knows"}.items():
        monkeypatch.setenv(name, value)
        async with opened(rclone.place()) as provider:
            with pytest.raises(DeniedError, match=r"the credentials are refused .*set AWS_ACCESS_KEY_ID") as caught:
                await provider.check()
            assert value not in str(caught.value)


async def test_no_credentials(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with opened(answering.url()) as provider:
        for call in (provider.check, lambda: provider.sign_get("a", 60)):
            with pytest.raises(DeniedError, match=r"there are no credentials .*set AWS_ACCESS_KEY_ID"):
                await call()
    assert answering.said == []


@pytest.mark.parametrize(
    ("status", "code", "more", "kind", "message"),
    [
        (403, "AccessDenied", "", DeniedError, "not permitted"),
        (403, "RequestTimeTooSkewed", "", InvalidError, "the clock of this machine is wrong"),
        (400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>", InvalidError, "set region=eu-west-1"),
        (301, "PermanentRedirect", "", InvalidError, "in another region"),
        (400, "ExpiredToken", "", DeniedError, "have expired; renew|have expired .*renew"),
        (400, "KMS.DisabledException", "", DeniedError, "check kms_key"),
        (400, "InvalidRequest", "", InvalidError, "InvalidRequest: said so"),
        (507, "XMinioStorageFull", "", NoSpaceError, "free some space"),
        (412, "PreconditionFailed", "", BusyError, "changed"),
        (404, "Unheard", "", NotFoundError, "Unheard: said so"),
        (418, "Teapot", "", InvalidError, "Teapot"),
    ],
)
async def test_each_refusal_is_one_clear_error(
    answering: Answering, status: int, code: str, more: str, kind: type[ArtfsError], message: str
) -> None:
    answering.error(status, code, more)
    async with opened(answering.url(), provider_timeout=2.0) as provider:
        for call in (provider.check, lambda: provider.get("a/b", 0, 4), lambda: provider.put("a/b", b"data")):
            with pytest.raises(ArtfsError, match=message) as caught:
                await call()
            assert type(caught.value) is kind
            text = str(caught.value)
            assert "bucket bucket at http://127.0.0.1" in text and "\n" not in text
            assert "the-secret" not in text and "AKIATESTER" not in text and "Signature" not in text


async def test_a_permission_that_is_missing_is_named(moto: Server) -> None:
    with before(moto) as proxy:
        for kind, word in ((Kind.LIST, "list"), (Kind.PUT, "put"), (Kind.GET, "get"), (Kind.DELETE, "delete")):
            async with opened(moto.place(endpoint_url=proxy.url)) as provider:
                proxy.misbehave(Fault.ANSWER, {kind}, status=403, code="AccessDenied")
                with pytest.raises(DeniedError, match=f"trying to {word}, bucket"):
                    await provider.check()
                proxy.heal()


# what is said
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


# URLs for others
def put(url: str, data: bytes, mime: str | None = None) -> Any:
    """As any client does it; the answer's headers."""
    # This client would send a type of its own, which curl -T does not.
    request = Request(url, data, method="PUT", headers={"Content-Type": mime or ""})
    with urlopen(request, timeout=10) as answer:
        return answer.headers


async def test_a_signed_url_reads(signing: Server) -> None:
    async with opened(signing.place()) as provider:
        assert provider.capabilities.signs
        await provider.put("a/ü b", b"0123456789")
        url = await provider.sign_get("a/ü b", 60, mime="text/x-test", filename='na"ïve.txt')
        with urlopen(url, timeout=10) as answer:
            assert answer.read() == b"0123456789"
            assert answer.headers["Content-Type"] == "text/x-test"
            assert "filename*=UTF-8''na%22%C3%AFve.txt" in answer.headers["Content-Disposition"]
        with urlopen(Request(url, headers={"Range": "bytes=2-4"}), timeout=10) as answer:
            assert (answer.status, answer.read()) == (206, b"234")
        assert signing.env["AWS_SECRET_ACCESS_KEY"] not in url
        with pytest.raises(HTTPError) as caught, urlopen(await provider.sign_get("missing", 60), timeout=10):
            pass
        assert caught.value.code == 404
        caught.value.close()


async def test_a_signed_url_writes(signing: Server) -> None:
    async with opened(signing.place()) as provider:
        put(await provider.sign_put("a", 60), b"plain")
        assert await provider.get("a", 0, 5) == b"plain"
        put(await provider.sign_put("b", 60, mime="image/x-test"), b"typed", "image/x-test")
        with urlopen(await provider.sign_get("b", 60), timeout=10) as answer:
            assert answer.headers["Content-Type"] == "image/x-test"


async def test_curl_can_use_them(signing: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"by curl" * 1000)
    async with opened(signing.place()) as provider:
        curl = ["curl", "--silent", "--show-error", "--fail"]
        for options in (
            ["-T", str(tmp_path / "file"), await provider.sign_put("a", 60)],
            ["-o", str(tmp_path / "back"), await provider.sign_get("a", 60)],
        ):
            done = subprocess.run([*curl, *options], capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "back").read_bytes() == b"by curl" * 1000
        assert await provider.get("a", 0, 7000) == b"by curl" * 1000


async def test_an_upload_in_signed_parts(signing: Server) -> None:
    first, second = os.urandom(5 * MIB), b"the rest"
    async with opened(signing.place()) as provider:
        upload = await provider.begin_parts("big", mime="text/x-big")
        assert await provider.list_parts("big", upload) == []
        etags = {}
        for number, data in ((2, second), (1, first)):
            etags[number] = put(await provider.sign_part("big", upload, number, 60), data)["ETag"]
        plain = {number: etag.strip('"') for number, etag in etags.items()}
        assert await provider.list_parts("big", upload) == [(1, plain[1], len(first)), (2, plain[2], len(second))]
        for wrong in ([(1, plain[2]), (2, plain[1])], [(1, plain[1]), (3, plain[2])]):
            with pytest.raises(InvalidError, match="upload of big"):
                await provider.complete_parts("big", upload, wrong)
        info = await provider.complete_parts("big", upload, [(2, etags[2]), (1, plain[1])])
        assert info == await provider.head("big") and info.size == len(first) + len(second)
        assert await provider.get("big", 0, info.size) == first + second
        with urlopen(await provider.sign_get("big", 60), timeout=10) as answer:
            assert answer.headers["Content-Type"] == "text/x-big"


async def test_parts_that_are_too_small(signing: Server) -> None:
    async with opened(signing.place()) as provider:
        upload = await provider.begin_parts("big")
        parts = [(n, put(await provider.sign_part("big", upload, n, 60), b"small")["ETag"]) for n in (1, 2)]
        with pytest.raises(InvalidError, match="EntityTooSmall"):
            await provider.complete_parts("big", upload, parts)
        await provider.abort_parts("big", upload)


async def test_an_aborted_upload_is_gone(signing: Server) -> None:
    async with opened(signing.place()) as provider:
        upload = await provider.begin_parts("big")
        put(await provider.sign_part("big", upload, 1, 60), b"small")
        await provider.abort_parts("big", upload)
        await provider.abort_parts("big", upload)
        with pytest.raises(NotFoundError, match="upload of big"):
            await provider.list_parts("big", upload)
        assert uploads_left(signing, provider) == []


async def test_how_long_a_url_is_valid(signing: Server) -> None:
    async with opened(signing.place()) as provider:
        assert parse_qs(urlsplit(await provider.sign_get("a", LONGEST)).query)["X-Amz-Expires"] == [str(LONGEST)]
        for seconds in (0, -1, LONGEST + 1):
            with pytest.raises(InvalidError, match="is valid for 1 to 604800 seconds"):
                await provider.sign_put("a", seconds)


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
