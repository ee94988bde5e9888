"""The S3 provider alone: uploads in parts."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import trio

from artfs.errors import (
    DeniedError,
    InvalidError,
    UnavailableError,
)
from artfs.objects import s3_uploads
from artfs.objects.s3_uploads import MULTIPART, PARTS, part_length
from tests.contract.s3_help import MIB, Answering, answering, before, local, names, opened, uploads_left
from tests.faults.messages import Kind
from tests.faults.proxy import Fault
from tests.servers import Server, moto, servers

__all__ = ["answering", "local", "moto", "servers"]


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


async def test_no_part_is_in_memory(moto: Server, tmp_path: Path) -> None:
    for number in range(3):
        with (tmp_path / f"{number}").open("wb") as file:
            file.truncate((40 if number else 15) * MIB)
    async with opened(moto.place(), uploads=4) as provider:
        await provider.check()
        tracemalloc.start()
        try:
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(provider.put, f"{number}", tmp_path / f"{number}")
            assert tracemalloc.get_traced_memory()[1] < 8 * MIB
        finally:
            tracemalloc.stop()


async def test_a_part_that_changed_on_its_way_is_sent_again(moto: Server, tmp_path: Path) -> None:
    """Then with its MD5, which the server compares, too.  (rclone takes no part twice: there the upload fails.)"""
    data = os.urandom(MIB) * 20
    (tmp_path / "large").write_bytes(data)
    with before(moto) as proxy:
        async with opened(moto.place(endpoint_url=proxy.url), uploads=2) as provider:
            proxy.misbehave(Fault.CORRUPT, {Kind.PART}, count=1)
            await provider.put("large", tmp_path / "large")
            assert proxy.seen.struck() == 1
            assert proxy.seen.count(Kind.PART) == 4
            assert await provider.get("large", 0, len(data)) == data


@pytest.mark.parametrize("sse", ["", "&sse=aws:kms"])
async def test_a_server_whose_etags_are_no_md5_compares_itself(answering: Answering, tmp_path: Path, sse: str) -> None:
    """It is seen by the first part, which is sent twice; or known before."""
    size = 17 * MIB
    (tmp_path / "large").write_bytes(bytes(size))
    parts = 3 if sse else 4
    answering.answers = [
        (200, {}, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"),
        *[(200, {"ETag": '"of its own"'}, "")] * parts,
        (200, {}, "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"),
        (200, {"Last-Modified": "Sat, 21 Nov 2026 00:00:00 GMT"}, "x" * size),
    ]
    async with opened(answering.url(more="&addressing=path" + sse), uploads=1) as provider:
        await provider.put("large", tmp_path / "large")
    compared = ["content-md5" in said.headers for said in answering.said if "partNumber=" in said.path]
    assert compared == [bool(sse), *[True] * (parts - 1)]
    assert [said.method for said in answering.said] == ["POST", *["PUT"] * parts, "POST", "HEAD"]


async def test_a_failed_upload_is_aborted(moto: Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(30 * MIB))
    with before(moto) as proxy:
        async with opened(moto.place(endpoint_url=proxy.url)) as provider:
            proxy.misbehave(Fault.ANSWER, {Kind.PART}, status=403, code="AccessDenied", count=1)
            with pytest.raises(DeniedError, match="object large"):
                await provider.put("large", tmp_path / "large")
            assert proxy.seen.count(Kind.ABORT) >= 1 and uploads_left(moto, provider) == []
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
