"""What every provider of objects does, on both loops; the S3 provider against every server that there is."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trio

from artfs.errors import ArtfsError, BusyError, ExistsError, InvalidError, NotFoundError, UnavailableError
from artfs.objects import Info, Provider
from artfs.objects.opening import open_provider
from tests.contract.loops import on_both_loops
from tests.servers import KINDS, Running, let_in, servers

__all__ = ["servers"]

BYTES = bytes(range(256)) * 100
LIMITS = SimpleNamespace(provider_timeout=20.0, part_size=8 << 20, uploads=4)
PLAIN = ["memory", "disk", "sqlite"]
FRAMED = ["zstd", "aes", "zstd+aes"]
ATOMIC = {*PLAIN, *FRAMED, "moto", "given"}
"""Those that let exactly one of many create an object; rclone ignores the condition."""
AWKWARD = [
    "ü/ñ",
    "a b/c+d&e=f",
    "100%/50%25",
    "'q'/\"d\"",
    "~/(x)!*",
    "日本/\U0001f600",
    "x" * 200,
    "a;b,c:d@e$f/-",
    "..a/.b",
]


@pytest.fixture(params=[*PLAIN, *FRAMED, *KINDS])
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> Provider:
    kind = request.param
    urls = {"memory": "memory:", "disk": f"file://{tmp_path}/objects", "sqlite": f"sqlite://{tmp_path}/objects.db"}
    if kind in urls:
        return open_provider(urls[kind], LIMITS)
    if kind in FRAMED:
        from artfs.objects.framed import FramedProvider

        return FramedProvider(open_provider("memory:", LIMITS), kind, bytes(32), tmp_path)
    running: Running = request.getfixturevalue("servers")
    server = let_in(running[kind], request.getfixturevalue("monkeypatch"))
    return open_provider(server.place(), LIMITS)


def contract(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test on both loops, which closes its provider."""

    @wraps(test)
    async def closing(*, provider: Provider, **fixtures: Any) -> None:
        try:
            await test(provider=provider, **fixtures)
        finally:
            await provider.close()

    closing.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return on_both_loops(closing)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["provider"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(BYTES)
    return path


async def listed(provider: Provider, prefix: str = "") -> list[str]:
    return [name async for name, _ in provider.list(prefix)]


async def content(provider: Provider, name: str, size: int) -> bytes:
    """All of it, and that there is no more."""
    data = await provider.get(name, 0, size)
    with pytest.raises(UnavailableError):
        await provider.get(name, 0, size + 1)
    return data


# being there
@contract
async def test_a_check_leaves_nothing(provider: Provider) -> None:
    await provider.check()
    await provider.check()
    assert await listed(provider) == []


# writing
@contract
async def test_what_is_put_is_there(provider: Provider, source: Path) -> None:
    await provider.put("grid/box/shared/ns-1/00000000", source)
    assert await content(provider, "grid/box/shared/ns-1/00000000", len(BYTES)) == BYTES
    assert source.read_bytes() == BYTES
    await provider.put("grid/box/shared/ns-1/00000001", BYTES[5:500])
    assert await content(provider, "grid/box/shared/ns-1/00000001", 495) == BYTES[5:500]


@contract
async def test_an_empty_object_is_an_object(provider: Provider, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    await provider.put("a", tmp_path / "empty")
    await provider.put("b", b"")
    for name in ("a", "b"):
        assert await content(provider, name, 0) == b""
    assert await listed(provider) == ["a", "b"]


@contract
async def test_put_again_replaces(provider: Provider, source: Path, tmp_path: Path) -> None:
    await provider.put("a", source)
    before = await provider.head("a")
    (tmp_path / "other").write_bytes(b"new")
    await provider.put("a", tmp_path / "other")
    assert await content(provider, "a", 3) == b"new"
    assert (await provider.head("a")).etag != before.etag
    await provider.put("a", BYTES)
    assert await content(provider, "a", len(BYTES)) == BYTES


@contract
async def test_the_bytes_are_those_at_the_time_of_the_put(provider: Provider, source: Path) -> None:
    await provider.put("a", source)
    source.write_bytes(b"else")
    assert await provider.get("a", 0, len(BYTES)) == BYTES


@contract
async def test_a_put_that_fails_leaves_what_was_there(provider: Provider, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="a/b cannot be read"):
        await provider.put("a/b", tmp_path / "missing")
    assert await listed(provider) == []
    await provider.put("a/b", b"first")
    with pytest.raises(UnavailableError):
        await provider.put("a/b", tmp_path / "missing")
    assert await content(provider, "a/b", 5) == b"first"


@contract
async def test_create_never_replaces(provider: Provider) -> None:
    await provider.create("a/b", b"first")
    with pytest.raises(ExistsError, match="a/b"):
        await provider.create("a/b", b"second")
    assert await content(provider, "a/b", 5) == b"first"
    await provider.delete(["a/b"])
    await provider.create("a/b", b"third")
    assert await content(provider, "a/b", 5) == b"third"


@contract
async def test_one_of_many_creates(provider: Provider, kind: str) -> None:
    made: list[bytes] = []

    async def create(data: bytes) -> None:
        try:
            await provider.create("one", data)
        except ExistsError:
            return
        made.append(data)

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(create, b"%d" % number)
    assert made
    if kind in ATOMIC:
        assert [await content(provider, "one", 1)] == made


@contract
async def test_many_at_once(provider: Provider) -> None:
    async def one(number: int) -> None:
        data = b"%d" % number * 1000
        await provider.put(f"n/{number:02}", data)
        assert await provider.get(f"n/{number:02}", 0, len(data)) == data

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(one, number)
    assert await listed(provider) == [f"n/{number:02}" for number in range(20)]


@contract
async def test_who_is_cancelled_has_put_all_or_nothing(provider: Provider, tmp_path: Path) -> None:
    large = BYTES * 800  # 20 MB: in parts, where there are parts
    (tmp_path / "large").write_bytes(large)
    for seconds in (0.0, 0.002, 0.02, 0.1):
        with anyio.move_on_after(seconds):
            await provider.put("big", tmp_path / "large")
        if await listed(provider):
            assert await content(provider, "big", len(large)) == large
            await provider.delete(["big"])
    await provider.put("big", tmp_path / "large")
    assert await content(provider, "big", len(large)) == large


# reading
@contract
async def test_ranges_are_exact(provider: Provider, source: Path) -> None:
    await provider.put("a", source)
    for offset, length in [(0, 1), (255, 3), (len(BYTES) - 1, 1), (1000, 0), (len(BYTES), 0), (7, len(BYTES) - 7)]:
        assert await provider.get("a", offset, length) == BYTES[offset : offset + length]


@contract
async def test_a_range_past_the_end_fails(provider: Provider, source: Path) -> None:
    await provider.put("a", source)
    for offset, length in [(0, len(BYTES) + 1), (len(BYTES), 1), (len(BYTES) + 5, 1), (5, len(BYTES))]:
        with pytest.raises(UnavailableError, match="a ends before"):
            await provider.get("a", offset, length)


@contract
async def test_what_is_not_there_is_not_found(provider: Provider) -> None:
    for call in (
        lambda: provider.get("grid/x", 0, 1),
        lambda: provider.head("grid/x"),
        lambda: provider.copy("grid/x", "grid/y"),
        lambda: provider.copy("grid/x", "grid/y", "some-etag"),
    ):
        with pytest.raises(NotFoundError, match="grid/x"):
            await call()
    await provider.delete(["grid/x"])
    await provider.delete([])
    assert await listed(provider) == []


@contract
async def test_a_head_says_what_is_there(provider: Provider, kind: str) -> None:
    await provider.put("a", BYTES)
    info = await provider.head("a")
    assert isinstance(info, Info) and info == await provider.head("a")
    assert info.size == len(BYTES)
    assert info.etag and '"' not in info.etag
    assert abs(info.modified - time.time_ns()) < 3600 * 10**9
    if kind not in FRAMED:  # whose listings say what the objects take there
        assert [item async for item in provider.list("")] == [("a", info.size)]


# copies
@contract
async def test_a_copy_is_another_object(provider: Provider) -> None:
    await provider.put("a/b", BYTES)
    await provider.copy("a/b", "c/d")
    await provider.put("c/e", b"was")
    await provider.copy("a/b", "c/e")
    await provider.delete(["a/b"])
    assert await content(provider, "c/d", len(BYTES)) == BYTES
    assert await content(provider, "c/e", len(BYTES)) == BYTES
    assert await listed(provider) == ["c/d", "c/e"]


@contract
async def test_a_copy_is_of_the_etag_that_is_meant(provider: Provider) -> None:
    await provider.put("a", b"first")
    etag = (await provider.head("a")).etag
    await provider.copy("a", "b", etag)
    assert await content(provider, "b", 5) == b"first"
    await provider.put("a", b"second")
    with pytest.raises(BusyError, match="a"):
        await provider.copy("a", "c", etag)
    assert await listed(provider) == ["a", "b"]


# deleting
@contract
async def test_deleted_is_gone(provider: Provider, source: Path) -> None:
    for name in ("a/b", "a/c", "d", "e/f/g"):
        await provider.put(name, source)
    await provider.delete(["a/b", "e/f/g", "never/there"])
    with pytest.raises(NotFoundError):
        await provider.get("a/b", 0, 1)
    assert await listed(provider) == ["a/c", "d"]
    await provider.delete(["a/b", "a/c"])
    await provider.delete(["d"])
    assert await listed(provider) == []


# listing
@contract
async def test_a_listing_is_by_prefix_and_in_order(provider: Provider) -> None:
    names = ["g/b/2", "g/b/10", "g/b-c/1", "g/a/z/1", "h/1", "g/b/1", "g/b.x", "g/b0"]
    for name in names:
        await provider.put(name, b"x")
    for prefix in ("", "g/b/", "g/b", "g/b/1", "g/", "g/b-", "nothing/", "h/1"):
        assert await listed(provider, prefix) == sorted(name for name in names if name.startswith(prefix))


@contract
async def test_a_listing_may_be_left_and_others_go_on(provider: Provider) -> None:
    for number in range(5):
        await provider.put(f"a/{number}", b"x")
    seen = []
    async for name, _ in provider.list("a/"):
        seen.append(name)
        await provider.delete([name])
    assert seen == [f"a/{number}" for number in range(5)]
    assert await listed(provider) == []


# names
@contract
async def test_names_may_hold_anything(provider: Provider) -> None:
    for name in AWKWARD:
        await provider.put(name, name.encode())
    assert await listed(provider) == sorted(AWKWARD)
    for name in AWKWARD:
        assert await content(provider, name, len(name.encode())) == name.encode()
        await provider.copy(name, f"{name}-copy")
        await provider.head(f"{name}-copy")
    await provider.delete([copy for name in AWKWARD for copy in (name, f"{name}-copy")])
    assert await listed(provider) == []


@contract
async def test_a_name_does_not_lead_out_of_its_place(provider: Provider, tmp_path: Path, source: Path) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    for name in ("../outside", "a/../../outside", f"{tmp_path}/outside", "", "a//b", "a/", "./a", "a\0b"):
        for call in (
            lambda name=name: provider.put(name, source),
            lambda name=name: provider.create(name, b"x"),
            lambda name=name: provider.get(name, 0, 1),
            lambda name=name: provider.head(name),
            lambda name=name: provider.copy(name, "a"),
            lambda name=name: provider.delete([name]),
        ):
            with pytest.raises(InvalidError):
                await call()
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert await listed(provider) == []


# errors
@contract
async def test_errors_are_ours_and_one_line(provider: Provider, tmp_path: Path) -> None:
    for call in (
        lambda: provider.get("not/there", 5, 5),
        lambda: provider.head("not/there"),
        lambda: provider.put("not/there", tmp_path / "missing"),
        lambda: provider.copy("not/there", "x"),
    ):
        with pytest.raises(ArtfsError) as caught:
            await call()
        assert "\n" not in str(caught.value) and "not/there" in str(caught.value)


def test_a_provider_serves_one_loop_after_the_other(provider: Provider) -> None:
    """The command line makes several runs in one process."""

    async def use() -> None:
        await provider.put("a", b"data")
        assert await provider.get("a", 0, 4) == b"data"
        await provider.close()

    trio.run(use)
    anyio.run(use, backend="asyncio")
    trio.run(use)
