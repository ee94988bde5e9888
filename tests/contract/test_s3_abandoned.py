"""Uploads in parts whose process was killed: found and ended, and nothing else is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from artfs.objects.opening import open_provider
from artfs.objects.s3 import S3Provider
from artfs.settings import create_store
from artfs.store.opening import open_store
from artfs.types import Scope
from tests.servers import Server, rclone, s3, servers

__all__ = ["rclone", "s3", "servers"]  # fixtures

MIB = 1 << 20
HOUR = 3600.0


@dataclass(frozen=True)
class Limits:
    provider_timeout: float = 30.0
    part_size: int = 5 * MIB
    uploads: int = 4


@pytest.fixture
async def provider(s3: Server) -> AsyncIterator[S3Provider]:
    found = open_provider(s3.place(), Limits())
    assert isinstance(found, S3Provider)
    yield found
    await found.close()


def begin(server: Server, prefix: str, name: str) -> None:
    """As a process that is killed then."""
    client = server.client()
    client.create_multipart_upload(Bucket=server.bucket, Key=f"{prefix}/{name}")
    client.close()


def left(server: Server, prefix: str) -> list[str]:
    """Names of what is being uploaded."""
    client = server.client()
    found: list[dict[str, Any]] = client.list_multipart_uploads(Bucket=server.bucket, Prefix=f"{prefix}/").get(
        "Uploads", []
    )
    client.close()
    return sorted(upload["Key"].removeprefix(f"{prefix}/") for upload in found)


async def test_what_is_left_is_ended_but_for_what_clients_upload(s3: Server, provider: S3Provider) -> None:
    prefix = provider.place.prefix
    for name in ("grid/box/shared/ns-1/00000001", "meta/0000000000000001", "upload/theirs"):
        begin(s3, prefix, name)
    begin(s3, f"{prefix}-other", "grid/x")
    await provider.put("check-0123456789abcdef", b"of a process that was killed in `check`")
    await provider.put("grid/x", b"whole")
    if s3.kind != "moto":  # whose uploads are all of one day in 2010
        assert await provider.tidy(time.time() - HOUR) == 0
        assert len(left(s3, prefix)) == 3
    assert await provider.tidy(time.time() + HOUR) == 3
    assert left(s3, prefix) == ["upload/theirs"]
    assert left(s3, f"{prefix}-other") == ["grid/x"]
    assert [name async for name, _ in provider.list("")] == ["grid/x"]
    assert await provider.tidy(time.time() + HOUR) == 0


async def test_what_goes_on_here_is_not_ended(s3: Server, provider: S3Provider, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(40 * MIB))
    ended = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.put, "grid/large", tmp_path / "f")
        while not provider._calls.going_on:
            await trio.sleep(0.001)
        ended.append(await provider.tidy(time.time() + HOUR))
    assert ended == [0]
    assert (await provider.head("grid/large")).size == 40 * MIB


async def test_gc_ends_what_a_process_before_has_left(
    rclone: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = rclone.place()
    create_store(tmp_path / "store")
    (tmp_path / "store" / "config.toml").write_text(f'provider = "{url}"\n')
    prefix = url.partition("?")[0].rpartition("/")[2]
    begin(rclone, prefix, "grid/default/shared/ns-1/00000001")
    async with open_store(tmp_path / "store", "test") as store:
        await trio.sleep(1.1)
        begin(rclone, prefix, "grid/default/shared/ns-1/00000002")
        await store.create_namespace("default", Scope.SANDBOX, None, "web")
        assert (await store.collector.collect()).abandoned == 0  # nothing is a day old
        monkeypatch.setattr("artfs.volume.gc.time", lambda: time.time() + 25 * HOUR)
        assert (await store.collector.collect(dry_run=True)).abandoned == 0
        assert len(left(rclone, prefix)) == 2
        assert (await store.collector.collect()).abandoned == 1
        # What has begun since this process has may be of another one that goes on.
        assert left(rclone, prefix) == ["grid/default/shared/ns-1/00000002"]
