"""A provider that cannot be reached is a ProviderError that says so, within a bounded time, and nothing is left of the
call."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artfs import ArtifactStore, ProviderError
from artfs.sessions import ProviderError as SessionProviderError
from artfs.sessions import SessionManager
from tests.contract.loops import on_both_loops

BOUND = 30.0
"""Seconds, on a machine with much else to do; most of them are attempts that are repeated."""


@pytest.fixture(params=["closed", "silent"])
def nobody(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """A port of this host on which nobody listens, or nobody answers; it is where S3 and Redis are said to be."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    if request.param == "silent":
        listener.listen(100)
    monkeypatch.setenv("ARTFS_PROVIDER_TIMEOUT", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("SESSION_REDIS_URL", f"redis://127.0.0.1:{port}/0")
    yield port
    listener.close()


async def fails(port: int, call: Callable[[], Awaitable[Any]]) -> None:
    begun = time.monotonic()
    with pytest.raises(ProviderError, match=f"127.0.0.1:{port}: no (connection|answer)"):
        await call()
    assert time.monotonic() - begun < BOUND


@on_both_loops
async def test_s3_that_is_not_there(nobody: int, tmp_path: Path) -> None:
    async with ArtifactStore(root=tmp_path / "store") as store:
        session = await store.create_session()
        config = {"bucket": "bucket"}
        await fails(
            nobody,
            lambda: store.create_namespace(
                "blob", "session", "b", provider_type="s3", provider_config=config, session_id=session
            ),
        )
        assert store.list_namespaces() == []
        kept = await store.store(b"x", mime="a/b", summary="s", session_id=session)  # what is elsewhere goes on
        assert await store.retrieve(kept) == b"x"


@on_both_loops
async def test_a_store_whose_own_provider_is_not_there(nobody: int) -> None:
    store = ArtifactStore(storage_provider="s3", bucket="bucket")
    await fails(nobody, lambda: store.store(b"x", mime="a/b", summary="s"))
    status = await store.validate_configuration()
    assert status.storage.status == "error" and str(nobody) in str(status.storage.message)
    with pytest.raises(ProviderError, match=str(nobody)):
        store.list_namespaces()
    await store.close()


@on_both_loops
async def test_redis_that_is_not_there(nobody: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_PROVIDER", "redis")
    begun = time.monotonic()
    with pytest.raises(SessionProviderError, match=str(nobody)):
        await SessionManager("box").allocate_session()
    assert time.monotonic() - begun < BOUND


@on_both_loops
async def test_s3_without_the_package_that_it_needs(
    nobody: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aioboto3", None)
    async with ArtifactStore(root=tmp_path / "store") as store:
        with pytest.raises(ProviderError, match=r"pip install 'artfs\[s3\]'"):
            await store.create_namespace("blob", "sandbox", provider_type="s3", provider_config={"bucket": "bucket"})
    other = ArtifactStore(root=tmp_path / "other", storage_provider="s3", bucket="bucket")
    found = await other.validate_configuration()
    assert found.overall == "error" and "aioboto3" in str(found.storage.message)
    await other.close()
