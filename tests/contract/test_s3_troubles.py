"""The S3 provider alone: what a broken network does, and one clear error for each trouble."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from artfs.errors import (
    ArtfsError,
    BusyError,
    ExistsError,
    InvalidError,
    NoAccessError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.objects.s3_bodies import Reception
from tests.contract.s3_help import MIB, Answering, answering, before, local, names, opened
from tests.faults.messages import Kind
from tests.faults.proxy import Fault
from tests.servers import Server, moto, rclone, servers

__all__ = ["answering", "local", "moto", "rclone", "servers"]


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


@pytest.mark.parametrize("retries", [0, 2])
async def test_how_often_is_for_its_url(local: Server, retries: int) -> None:
    with before(local) as proxy:
        async with opened(local.place(endpoint_url=proxy.url, retries=str(retries))) as provider:
            proxy.misbehave(Fault.ANSWER, {Kind.PUT})
            with pytest.raises(ArtfsError, match="object a"):
                await provider.put("a", b"data")
            assert proxy.seen.struck() == retries + 1


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
                assert time.monotonic() - start < 2 * timeout + 3
            proxy.heal()
            assert await provider.get("a", 0, 4) == b"data"


async def test_a_body_that_nobody_waits_for_holds_no_thread(local: Server) -> None:
    with before(local) as proxy:
        async with opened(local.place(endpoint_url=proxy.url), provider_timeout=60.0) as provider:
            await provider.put("a", b"x" * (8 * MIB))
            assert len(await provider.get("a", 0, 8 * MIB)) == 8 * MIB
            proxy.misbehave(Fault.SLOW, {Kind.GET})
            began, ended = threading.Event(), threading.Event()
            taken = Reception.take

            def take(body: Reception, raw: object, status: int) -> None:
                began.set()
                try:
                    taken(body, raw, status)
                finally:
                    ended.set()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Reception, "take", take)
                with trio.move_on_after(2) as scope:
                    await provider.get("a", 0, 8 * MIB)
                assert scope.cancelled_caught and began.is_set()
                assert await trio.to_thread.run_sync(ended.wait, 10)
            proxy.heal()
            assert len(await provider.get("a", 0, 8 * MIB)) == 8 * MIB


async def test_nothing_is_given_after_a_stream_was_given_up(local: Server) -> None:
    given: list[int] = []
    ended = threading.Event()
    taken = Reception.take

    def take(body: Reception, raw: object, status: int) -> None:
        try:
            taken(body, raw, status)
        finally:
            ended.set()

    def sink(at: int, data: bytes) -> None:
        given.append(at)

    with before(local) as proxy, pytest.MonkeyPatch.context() as patch:
        async with opened(local.place(endpoint_url=proxy.url), provider_timeout=60.0) as provider:
            await provider.put("a", b"x" * (8 * MIB))
            proxy.misbehave(Fault.SLOW, {Kind.GET}, rate=2e6)
            patch.setattr(Reception, "take", take)
            with trio.move_on_after(1.5) as scope:
                await provider.receive("a", 0, 8 * MIB, sink)
            assert scope.cancelled_caught
            before_it_ended = list(given)
            assert before_it_ended
            assert await trio.to_thread.run_sync(ended.wait, 10)
            assert given == before_it_ended


async def test_a_stream_that_breaks_begins_again(local: Server) -> None:
    data = os.urandom(3 * MIB)
    given: list[tuple[int, bytes]] = []
    with before(local) as proxy:
        async with opened(local.place(endpoint_url=proxy.url)) as provider:
            await provider.put("a", data)
            proxy.misbehave(Fault.TRUNCATE, {Kind.GET}, count=1)
            await provider.receive("a", MIB, 2 * MIB, lambda at, data: given.append((at, data)))
            again = max(i for i, (at, _) in enumerate(given) if at == 0)
            assert again > 0
            for part in (given[:again], given[again:]):
                came = b"".join(data for _, data in part)
                assert came == data[MIB : MIB + len(came)]
            assert len(came) == 2 * MIB


async def test_a_dead_endpoint(rclone: Server) -> None:
    with before(rclone) as proxy:
        async with opened(rclone.place(endpoint_url=proxy.url), provider_timeout=2.0) as provider:
            await provider.put("a", b"data")
            with proxy.outage():
                start = time.monotonic()
                for call in (provider.check, lambda: provider.get("a", 0, 4)):
                    with pytest.raises(UnavailableError, match=r"no connection \(.*check endpoint_url"):
                        await call()
                assert time.monotonic() - start < 2 * (2 * 2.0) + 3  # as long as two calls may take
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
            with pytest.raises(NoAccessError, match=r"the credentials are refused .*set AWS_ACCESS_KEY_ID") as caught:
                await provider.check()
            assert value not in str(caught.value)


async def test_no_credentials(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with opened(answering.url()) as provider:
        for call in (provider.check, lambda: provider.sign_get("a", 60)):
            with pytest.raises(NoAccessError, match=r"there are no credentials .*set AWS_ACCESS_KEY_ID"):
                await call()
    assert answering.said == []


@pytest.mark.parametrize(
    ("status", "code", "more", "kind", "message"),
    [
        (403, "AccessDenied", "", NoAccessError, "not permitted"),
        (403, "RequestTimeTooSkewed", "", InvalidError, "the clock of this machine is wrong"),
        (400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>", InvalidError, "set region=eu-west-1"),
        (301, "PermanentRedirect", "", InvalidError, "in another region"),
        (400, "ExpiredToken", "", NoAccessError, "have expired; renew|have expired .*renew"),
        (400, "KMS.DisabledException", "", NoAccessError, "check kms_key"),
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
                with pytest.raises(NoAccessError, match=f"trying to {word}, bucket"):
                    await provider.check()
                proxy.heal()
