"""The S3 provider alone: signed URLs, and uploads in parts that others make with them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pytest

from artfs.errors import (
    InvalidError,
    NotFoundError,
)
from artfs.objects.s3 import LONGEST
from tests.contract.s3_help import MIB, opened, put, signing, uploads_left
from tests.servers import Server, servers

__all__ = ["servers", "signing"]


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
