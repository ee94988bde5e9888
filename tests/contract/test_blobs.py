"""BLOBs as objects with exactly their bytes, URLs that give them, and uploads that become them; by HTTP, on stores in
memory and on the disk."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from hashlib import md5
from pathlib import Path
from random import Random
from time import time, time_ns
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from anyio import to_thread
from hypothesis import given, settings
from hypothesis import strategies as st

from artfs.errors import (
    ArtfsError,
    BusyError,
    ExistsError,
    ExpiredError,
    InvalidError,
    NotFoundError,
)
from artfs.settings import create_store
from artfs.store import blobs as blobs_module
from artfs.store import registering
from artfs.store.blobs import Blobs
from artfs.store.opening import memory_store, open_store
from artfs.store.secret import KEY_FILE
from artfs.store.store import Store
from artfs.store.upload_records import OPEN, PART_MIN, REGISTERING, Record
from artfs.types import NamespaceType, Scope
from artfs.vfs import Files
from artfs.volume.catalogue import Namespace
from artfs.volume.waiting import run
from tests.http import TIMEOUT, connect, fetch, fetch_now, read_all, target

MIB = 1 << 20
DATA = Random(1).randbytes(3 * MIB + 12345)
KINDS = ("memory", "disk")


# places
async def _nobody(names: object) -> None:
    pass


def _files(store: Store, namespace: Namespace) -> Files:
    return Files(store.volume(namespace), _nobody)


@asynccontextmanager
async def opened(root: Path | None) -> AsyncIterator[tuple[Store, Blobs]]:
    if root is None:
        async with memory_store() as store:
            yield store, store.blobs
        return
    if not root.exists():
        create_store(root)
    async with open_store(root, "test") as store:
        yield store, store.blobs


def _root(kind: str, tmp_path: Path) -> Path | None:
    return tmp_path / "store" if kind == "disk" else None


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Store, Blobs]]:
    async with opened(_root(request.param, tmp_path)) as found:
        yield found


async def _make(store: Store, name: str | None = None, **more: Any) -> Namespace:
    return await store.create_namespace("default", Scope.USER, "bob", name, type=NamespaceType.BLOB, **more)


def _maker(store: Store, name: str = "made") -> Callable[[], Awaitable[Namespace]]:
    return lambda: _make(store, name)


async def _blob(store: Store, data: bytes, name: str | None = None, **more: Any) -> Namespace:
    namespace = await _make(store, name, **more)
    if data:
        await _files(store, namespace).write(b"_data", data)
    return namespace


async def _scattered(store: Store, data: bytes, name: str | None = None) -> Namespace:
    """Written in an order of its own, some of it twice, with commits in between."""
    namespace = await _make(store, name)
    tree = store.volume(namespace).tree
    node = tree.lookup(tree.root(), b"_data")
    assert node is not None
    random = Random(2)
    offsets = list(range(0, len(data), 70_000))
    for offset in random.sample(offsets, len(offsets)) + random.sample(offsets, len(offsets) // 3):
        await run(tree.write, node, offset, data[offset : offset + 70_000])
        if random.random() < 0.2:
            await store.shard.commit()
    return namespace


async def _bytes(store: Store, namespace: Namespace) -> bytes:
    return await _files(store, namespace).read(b"_data", 0, 1 << 40)


def _object_files(store: Store) -> list[Path]:
    assert store.root is not None
    return [path for path in (store.root / "objects").rglob("*") if path.is_file()]


def _nothing_left(store: Store, blobs: Blobs, id: str = "") -> None:
    """No file of the upload, or of any."""
    assert not blobs.uploads.spool.parts(id)
    if store.root is not None:
        assert not [path for path in (store.root / "uploads" / id).rglob("*") if path.is_file()]


async def _until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)


# one object with exactly the bytes
async def test_what_was_written_in_one_go_is_exact_already(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await _blob(store, DATA)
    await store.shard.commit()
    exact = await blobs.exact(namespace)
    assert exact.size == len(DATA)
    assert b"".join([store.shard.objects.read(chunk) for chunk in exact.chunks]) == DATA
    assert await blobs.exact(namespace) == exact


async def test_what_was_written_anyhow_becomes_exact(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await _scattered(store, DATA)
    before = await _files(store, namespace).stat(b"_data")
    usage = store.shard.usage(namespace)
    exact = await blobs.exact(namespace)
    assert await _files(store, namespace).stat(b"_data") == before
    assert store.shard.usage(namespace) == usage
    assert await _bytes(store, namespace) == DATA
    assert await blobs.exact(namespace) == exact
    if store.root is not None:
        assert store.shard.objects.path(exact.number).read_bytes() == DATA


@pytest.mark.parametrize("data", [b"", b"x", b"small" * 100, bytes(MIB), DATA[: 2 * MIB]])
async def test_any_size_becomes_exact(place: tuple[Store, Blobs], data: bytes) -> None:
    store, blobs = place
    namespace = await _blob(store, data)
    url = await blobs.presign(namespace)
    answer = await fetch(url)
    assert (answer.status, answer.body) == (200, data)
    number = (await blobs.exact(namespace)).number
    assert (await blobs.exact(namespace)).number == number
    if store.root is not None:
        assert store.shard.objects.path(number).read_bytes() == data


async def test_a_hole_is_zeros(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await _make(store)
    tree = store.volume(namespace).tree
    node = tree.lookup(tree.root(), b"_data")
    assert node is not None
    await run(tree.write, node, 2 * MIB + 5, b"end")
    assert (await fetch(await blobs.presign(namespace))).body == bytes(2 * MIB + 5) + b"end"


async def test_exactness_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "store") as (store, blobs):
        namespace = await _scattered(store, DATA, "x")
        exact = await blobs.exact(namespace)
    async with opened(tmp_path / "store") as (store, blobs):
        namespace = store.namespace_at("default", "user-bob", "x")
        again = await blobs.exact(namespace)
        assert (again.number, again.etag) == (exact.number, exact.etag)
        assert await _bytes(store, namespace) == DATA


async def test_a_checkpoint_keeps_what_it_saw(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await _scattered(store, DATA)
    volume = store.volume(namespace)
    await store.checkpoint(volume, "c")
    await blobs.exact(namespace)
    view = await volume.view("c")
    node = view.lookup(view.root(), b"_data")
    assert node is not None
    assert await run(view.read_bytes, node, 0, node.size) == DATA
    await store.restore(volume, "c")
    assert (await fetch(await blobs.presign(namespace))).body == DATA


async def test_a_clone_has_the_same_object(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await _scattered(store, DATA)
    exact = await blobs.exact(namespace)
    clone = await store.clone(store.volume(namespace), "clone")
    assert (await blobs.exact(clone)).number == exact.number
    url = await blobs.presign(clone)
    await store.destroy_namespace(namespace)
    assert (await fetch(url)).body == DATA


async def test_collection_leaves_what_a_url_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_store(tmp_path / "store")
    (tmp_path / "store" / "config.toml").write_text("gc_grace = 0.0\n")
    async with opened(tmp_path / "store") as (store, blobs):
        namespace = await _scattered(store, DATA)
        url = await blobs.presign(namespace, 60)
        number = (await blobs.exact(namespace)).number
        await _files(store, namespace).write(b"_data", b"new")
        for _ in range(3):
            await store.collector.collect()
        assert (await fetch(url)).body == DATA
        monkeypatch.setattr(blobs_module, "time_ns", lambda: time_ns() + 3600 * 10**9)
        for _ in range(3):
            await store.collector.collect()
        assert not store.shard.objects.path(number).exists()
        assert await _bytes(store, namespace) == b"new"


async def test_collection_while_objects_are_made(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    (tmp_path / "store" / "config.toml").write_text("gc_grace = 0.0\n")
    async with opened(tmp_path / "store") as (store, blobs), anyio.create_task_group() as tasks:

        async def collect() -> None:
            while True:
                await store.collector.collect()
                await anyio.sleep(0.001)

        tasks.start_soon(collect)
        for number in range(8):
            namespace = await _scattered(store, DATA, f"s{number}")
            assert (await fetch(await blobs.presign(namespace))).body == DATA
            upload = await blobs.uploads.presign()
            await fetch(upload.url, "PUT", DATA)
            made = await blobs.uploads.register(upload.id, _maker(store, f"u{number}"))
            assert (await fetch(await blobs.presign(made))).body == DATA
        tasks.cancel_scope.cancel()
        for namespace in store.catalogue.by_serial.values():
            assert await _bytes(store, namespace) == DATA


async def test_who_goes_on_writing_makes_it_wait(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await _scattered(store, DATA)
    tree = store.volume(namespace).tree
    node = tree.lookup(tree.root(), b"_data")
    assert node is not None
    async with anyio.create_task_group() as tasks:

        async def write() -> None:
            random = Random(3)
            while True:
                await run(tree.write, node, random.randrange(len(DATA) - 1000), b"w" * 1000)
                await anyio.sleep(0.0005)

        tasks.start_soon(write)
        for _ in range(3):
            with suppress(BusyError):
                await blobs.exact(namespace)
        tasks.cancel_scope.cancel()
    now = await _bytes(store, namespace)
    exact = await blobs.exact(namespace)
    assert b"".join([store.shard.objects.read(chunk) for chunk in exact.chunks]) == now
    assert await _bytes(store, namespace) == now
    assert not blobs.making.numbers


async def test_cancelled_at_any_moment_it_leaves_the_bytes(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await _scattered(store, DATA)
    for microseconds in range(0, 20_000, 1500):
        with anyio.move_on_after(microseconds / 1e6):
            await blobs.exact(namespace)
        assert await _bytes(store, namespace) == DATA
    exact = await blobs.exact(namespace)
    assert not blobs.making.numbers
    await store.shard.commit()
    if store.root is not None:
        sizes = [path.stat().st_size for path in _object_files(store)]
        assert sizes.count(len(DATA)) == 1, "an object of an attempt was left"
        assert store.shard.objects.path(exact.number).read_bytes() == DATA


async def test_a_workspace_has_no_url(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await store.create_namespace("default", Scope.USER, "bob", "w")
    with pytest.raises(InvalidError, match="only a BLOB"):
        await blobs.presign(namespace)


# reading by URL
async def test_ranges_are_slices(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    data = DATA[: 2 * MIB + 77]
    url = await blobs.presign(await _scattered(store, data))
    size = len(data)
    edges = st.one_of(st.integers(0, size + 10), st.sampled_from([0, 1, MIB - 1, MIB, MIB + 1, size - 1, size]))

    @settings(max_examples=60)
    @given(edges, st.one_of(st.none(), edges), st.booleans())
    def check(first: int, last: int | None, suffix: bool) -> None:
        if suffix:
            header, want = f"bytes=-{first}", data[-first:] if first else b""
            satisfiable = bool(first)
        else:
            header, want = (
                f"bytes={first}-{'' if last is None else last}",
                data[first : size if last is None else last + 1],
            )
            satisfiable = first < size
            if last is not None and last < first:
                want, satisfiable = data, True
        answer = fetch_now(url, headers={"Range": header})
        if not satisfiable:
            assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{size}")
            return
        assert answer.body == want
        if answer.status == 206:
            start = size - len(want) if suffix else first
            assert answer.headers["content-range"] == f"bytes {start}-{start + len(want) - 1}/{size}"
        else:
            assert (answer.status, want) == (200, data)

    await to_thread.run_sync(check)


async def test_several_ranges_are_answered_in_full(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    url = await blobs.presign(await _blob(store, DATA))
    answer = await fetch(url, headers={"Range": "bytes=0-1,5-6"})
    assert (answer.status, answer.body) == (200, DATA)


async def test_head_and_conditions(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    url = await blobs.presign(await _blob(store, DATA), mime="image/png", filename='ä "b".png')
    head, full = await fetch(url, "HEAD"), await fetch(url)
    assert head.body == b""
    etag = head.headers["etag"]
    for name in ("content-length", "content-type", "etag", "accept-ranges", "content-disposition"):
        assert head.headers[name] == full.headers[name]
    assert head.headers["content-length"] == str(len(DATA))
    assert head.headers["content-type"] == "image/png"
    assert head.headers["content-disposition"] == (
        "attachment; filename=\"_ _b_.png\"; filename*=UTF-8''%C3%A4%20%22b%22.png"
    )
    same = await fetch(url, headers={"If-None-Match": etag})
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", etag)
    assert (await fetch(url, headers={"If-None-Match": '"other"'})).status == 200
    assert (await fetch(url, headers={"If-Match": '"other"'})).status == 412
    some = {"Range": "bytes=1-2"}
    assert (await fetch(url, headers=some | {"If-Range": etag})).body == DATA[1:3]
    assert (await fetch(url, headers=some | {"If-Range": '"other"'})).body == DATA


async def test_an_etag_stands_for_the_bytes(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    tags = [
        (await fetch(await blobs.presign(await _blob(store, data)), "HEAD")).headers["etag"]
        for data in (DATA, DATA, DATA[:-1], b"")
    ]
    assert tags[0] == tags[1]
    assert len(set(tags)) == 3


async def test_a_url_gives_what_the_blob_held(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await _blob(store, DATA)
    old = await blobs.presign(namespace)
    await _files(store, namespace).write(b"_data", b"new")
    new = await blobs.presign(namespace)
    await store.shard.commit()
    assert (await fetch(old)).body == DATA
    assert (await fetch(new)).body == b"new"
    assert {pin.object for pin in blobs.pins.values()} <= blobs.pinned()


async def test_forged_and_unknown_urls(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    url = await blobs.presign(await _blob(store, DATA))
    base = f"http://{urlsplit(url).netloc}"
    assert (await fetch(url[:-3] + ("abc" if url[-3:] != "abc" else "abd"))).status == 403
    assert (await fetch(url.partition("?")[0])).status == 403
    assert (await fetch(url, "PUT", b"x")).status == 403
    assert (await fetch(url, "DELETE")).status == 405
    assert (await fetch(base + "/")).status == 404
    assert (await fetch(base + "/get/../../etc/passwd")).status == 404


async def test_an_expired_url_says_so(place: tuple[Store, Blobs], monkeypatch: pytest.MonkeyPatch) -> None:
    store, blobs = place
    url = await blobs.presign(await _blob(store, DATA), 60)
    assert (await fetch(url)).status == 200
    monkeypatch.setattr("artfs.store.site.time", lambda: time() + 61)
    answer = await fetch(url)
    assert answer.status == 403
    assert "this URL expired at" in json.loads(answer.body)["message"]


async def test_a_url_ends_with_its_blob(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await _blob(store, DATA, "x")
    url = await blobs.presign(namespace)
    await store.destroy_namespace(namespace)
    assert (await fetch(url)).status == 404
    assert not blobs.pinned()
    await blobs.reap()
    assert not blobs.pins


async def test_a_url_ends_with_its_time_to_live(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    namespace = await _blob(store, DATA, ttl=100.0)
    assert namespace.expires is not None
    url = await blobs.presign(namespace, 3600)
    assert f"expires={namespace.expires // 10**9}&" in url
    short = await _blob(store, DATA, ttl=1.5)
    url = await blobs.presign(short)
    await anyio.sleep(1.6)
    assert (await fetch(url)).status in (403, 404, 410)


async def test_a_url_ends_with_its_session(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    session = await store.create_session("default", "bob", ttl=100)
    namespace = await store.create_namespace("default", Scope.SESSION, session.id, type=NamespaceType.BLOB)
    await _files(store, namespace).write(b"_data", DATA)
    url = await blobs.presign(namespace, 3600)
    assert f"expires={session.expires_ns // 10**9}&" in url
    assert (await fetch(url)).status == 200
    await store.delete_session("default", session.id)
    assert (await fetch(url)).status == 404
    with pytest.raises(NotFoundError):
        await blobs.presign(namespace)


async def test_urls_and_their_pins_survive_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "store") as (store, blobs):
        namespace = await _scattered(store, DATA, "x")
        url = await blobs.presign(namespace)
        upload = await blobs.uploads.presign()
        number = (await blobs.exact(namespace)).number
        await _files(store, namespace).write(b"_data", b"new")
    assert (tmp_path / "store" / KEY_FILE).stat().st_mode & 0o777 == 0o600
    async with opened(tmp_path / "store") as (store, blobs):
        await _until(lambda: blobs.endpoint)
        assert number in blobs.pinned()
        assert (await fetch(url)).body == DATA
        assert (await fetch(upload.url, "PUT", b"late")).status == 200
        made = await blobs.uploads.register(upload.id, _maker(store))
        assert await _bytes(store, made) == b"late"


async def test_the_port_may_be_taken_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "store") as (store, blobs):
        await _blob(store, DATA, "x")
        port = (await blobs.ensure()).port
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    async with listener, opened(tmp_path / "store") as (store, blobs):
        url = await blobs.presign(store.namespace_at("default", "user-bob", "x"))
        assert (await fetch(url)).body == DATA


async def test_an_endpoint_that_cannot_be_is_told(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    (tmp_path / "store" / "config.toml").write_text('endpoint = "192.0.2.1:1"\n')
    async with opened(tmp_path / "store") as (store, blobs):
        namespace = await _blob(store, DATA)
        for _ in range(2):
            with pytest.raises(ArtfsError, match=r"cannot listen on 192\.0\.2\.1:1"):
                await blobs.presign(namespace)


async def test_expired_pins_are_forgotten(place: tuple[Store, Blobs], monkeypatch: pytest.MonkeyPatch) -> None:
    store, blobs = place
    await blobs.presign(await _blob(store, DATA), 60)
    assert len(blobs.pins) == len(blobs.pinned()) == 1
    monkeypatch.setattr(blobs_module, "time_ns", lambda: time_ns() + 3600 * 10**9)
    assert not blobs.pinned()
    await blobs.reap()
    await store.shard.commit()
    assert not blobs.pins
    assert not store.shard.engine.records("url")


@pytest.mark.parametrize("expires", [0, -1, float("nan"), float("inf"), 8 * 24 * 3600])
async def test_times_that_are_none(place: tuple[Store, Blobs], expires: float) -> None:
    store, blobs = place
    with pytest.raises(InvalidError):
        await blobs.presign(await _blob(store, DATA), expires)


async def test_many_readers_at_once(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    url = await blobs.presign(await _scattered(store, DATA))
    found: list[bool] = []

    async def one() -> None:
        found.append((await fetch(url)).body == DATA)

    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(one)
    assert found == [True] * 30


@pytest.mark.logs_errors
async def test_damage_is_not_given_away(tmp_path: Path) -> None:
    async with opened(tmp_path / "store") as (store, blobs):
        url = await blobs.presign(await _scattered(store, DATA))
        (pin,) = blobs.pins.values()
        path = store.shard.objects.path(pin.object)
        data = bytearray(path.read_bytes())
        data[MIB + 5] ^= 1
        path.write_bytes(data)

        def read() -> bytes:
            with connect(url) as stream:
                stream.sendall(f"GET {target(url)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                return read_all(stream).partition(b"\r\n\r\n")[2]

        assert await to_thread.run_sync(read) == DATA[:MIB]


async def test_browsers_may_use_urls(place: tuple[Store, Blobs]) -> None:
    _, blobs = place
    upload = await blobs.uploads.presign()
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "content-type,x-other",
    }
    allowed = await fetch(upload.url, "OPTIONS", headers=asked)
    assert (allowed.status, allowed.body) == (204, b"")
    assert "PUT" in allowed.headers["access-control-allow-methods"]
    assert allowed.headers["access-control-allow-headers"] == "content-type,x-other"
    put = await fetch(upload.url, "PUT", b"x", headers={"Origin": "https://example.org"})
    assert put.headers["access-control-allow-origin"] == "*"
    assert "ETag" in put.headers["access-control-expose-headers"]
    refused = await fetch(upload.url + "x", "PUT", b"x")
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (403, "*")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_plain_curl(place: tuple[Store, Blobs], tmp_path: Path) -> None:
    store, blobs = place
    source = tmp_path / "photo.jpg"
    source.write_bytes(DATA)

    async def curl(*arguments: str) -> bytes:
        command = ["curl", "-sS", "--fail", *arguments]
        done = await to_thread.run_sync(lambda: subprocess.run(command, capture_output=True, timeout=30, check=True))
        return done.stdout

    upload = await blobs.uploads.presign(mime="image/jpeg")
    await curl("-X", "PUT", "-H", "Content-Type: image/jpeg", "--data-binary", f"@{source}", upload.url)
    made = await blobs.uploads.register(upload.id, _maker(store), size=len(DATA))
    url = await blobs.presign(made)
    assert await curl(url) == DATA
    assert await curl("-r", "5-9", url) == DATA[5:10]
    assert b"HTTP/1.1 200" in await curl("-I", url)


# uploads
async def test_an_upload_becomes_a_blob(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign(mime="image/png")
    put = await fetch(upload.url, "PUT", DATA, {"Content-Type": "image/png"})
    etag = md5(DATA, usedforsecurity=False).hexdigest()
    assert (put.status, put.headers["etag"]) == (200, f'"{etag}"')
    made = await blobs.uploads.register(upload.id, _maker(store), size=len(DATA), etag=f'"{etag}"')
    assert await _bytes(store, made) == DATA
    stat = await _files(store, made).stat(b"_data")
    assert stat.size == len(DATA)
    assert store.shard.usage(made)[0] == len(DATA)
    _nothing_left(store, blobs)
    exact = await blobs.exact(made)
    if store.root is not None:
        assert [path.read_bytes() for path in _object_files(store)] == [DATA]
        assert store.shard.objects.path(exact.number).stat().st_nlink == 1
    late = await fetch(upload.url, "PUT", DATA, {"Content-Type": "image/png"})
    assert late.status == 410
    with pytest.raises(ExpiredError, match="registered already"):
        await blobs.uploads.register(upload.id, _maker(store, "again"))


async def test_what_was_registered_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "store") as (store, blobs):
        upload = await blobs.uploads.presign()
        await fetch(upload.url, "PUT", DATA)
        await blobs.uploads.register(upload.id, _maker(store, "x"))
    async with opened(tmp_path / "store") as (store, blobs):
        namespace = store.namespace_at("default", "user-bob", "x")
        assert await _bytes(store, namespace) == DATA
        assert store.shard.usage(namespace)[0] == len(DATA)
        with pytest.raises(ExpiredError):
            await blobs.uploads.register(upload.id, _maker(store))


@pytest.mark.parametrize("data", [b"", b"x", bytes(MIB)])
async def test_any_size_may_be_uploaded(place: tuple[Store, Blobs], data: bytes) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign()
    assert (await fetch(upload.url, "PUT", iter([data]))).status == 200
    made = await blobs.uploads.register(upload.id, _maker(store), size=len(data))
    assert await _bytes(store, made) == data
    assert (await fetch(await blobs.presign(made))).body == data


async def test_the_last_put_counts(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign()
    for data in (DATA, b"first", b"second"):
        await fetch(upload.url, "PUT", data)
    if store.root is not None:
        assert len(list((store.root / "uploads" / upload.id).iterdir())) == 1
    made = await blobs.uploads.register(upload.id, _maker(store))
    assert await _bytes(store, made) == b"second"


async def test_a_type_that_was_given_is_demanded(place: tuple[Store, Blobs]) -> None:
    _, blobs = place
    upload = await blobs.uploads.presign(mime="image/png")
    for headers in ({}, {"Content-Type": "text/html"}):
        assert (await fetch(upload.url, "PUT", b"x", headers)).status == 403
    free = await blobs.uploads.presign()
    assert (await fetch(free.url, "PUT", b"x", {"Content-Type": "text/html"})).status == 200


async def test_a_digest_is_checked(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign()
    assert (await fetch(upload.url, "PUT", b"x", {"Content-MD5": "AAAA"})).status == 400
    assert (await fetch(upload.url, "PUT", b"x", {"Content-MD5": "ä"})).status == 400
    _nothing_left(store, blobs, upload.id)


@pytest.mark.parametrize("wrong", [{"size": 1}, {"etag": "0" * 32}, {"size": len(DATA), "etag": '"no"'}])
async def test_what_is_not_expected_is_not_registered(place: tuple[Store, Blobs], wrong: dict[str, int | str]) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign()
    await fetch(upload.url, "PUT", DATA)
    with pytest.raises(InvalidError, match="upload it again"):
        await blobs.uploads.register(upload.id, _maker(store), **wrong)  # type: ignore[arg-type]
    assert not store.catalogue.by_serial
    assert await _bytes(store, await blobs.uploads.register(upload.id, _maker(store))) == DATA


async def test_nothing_uploaded_is_nothing_to_register(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign()
    with pytest.raises(NotFoundError, match="nothing was uploaded"):
        await blobs.uploads.register(upload.id, _maker(store))
    with pytest.raises(NotFoundError, match="there is no upload"):
        await blobs.uploads.register("up-other", _maker(store))
    assert not store.catalogue.by_serial


async def test_an_id_is_used_once(place: tuple[Store, Blobs]) -> None:
    _, blobs = place
    await blobs.uploads.presign(id="mine")
    with pytest.raises(ExistsError):
        await blobs.uploads.presign(id="mine")
    with pytest.raises(InvalidError):
        await blobs.uploads.presign(id="../mine")


async def test_a_client_that_goes_leaves_nothing(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign()
    await fetch(upload.url, "PUT", b"whole")

    def go() -> None:
        with connect(upload.url) as stream:
            stream.sendall(f"PUT {target(upload.url)} HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n".encode())
            stream.sendall(DATA)

    await to_thread.run_sync(go)
    assert blobs.endpoint is not None
    await _until(lambda: blobs.endpoint is None or not blobs.endpoint.connections)
    assert [part.size for part in blobs.uploads.spool.parts(upload.id).values()] == [5]
    if store.root is not None:
        assert len(list((store.root / "uploads" / upload.id).iterdir())) == 1
    assert await _bytes(store, await blobs.uploads.register(upload.id, _maker(store))) == b"whole"


async def test_a_full_disk_is_told(place: tuple[Store, Blobs], monkeypatch: pytest.MonkeyPatch) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("artfs.store.spool.Incoming.write", full)
        answer = await fetch(upload.url, "PUT", DATA)
    assert answer.status == 507
    _nothing_left(store, blobs, upload.id)
    assert (await fetch(upload.url, "PUT", DATA)).status == 200


async def test_fsck_has_nothing_to_say(tmp_path: Path) -> None:
    async with opened(tmp_path / "store") as (store, blobs):
        await blobs.presign(await _scattered(store, DATA))
        upload = await blobs.uploads.presign()
        await fetch(upload.url, "PUT", DATA)
        await blobs.uploads.register(upload.id, _maker(store))
        other = await blobs.uploads.begin()
        await _put_parts(blobs, other.id, {1: DATA})
    command = [sys.executable, "-m", "artfs", "fsck", "--data", "--root", str(tmp_path / "store")]
    done = await to_thread.run_sync(lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_failure_half_way_takes_the_blob_back(
    place: tuple[Store, Blobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign()
    await fetch(upload.url, "PUT", DATA)

    async def broken(*_: object) -> None:
        raise BusyError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(registering, "fill", broken)
        with pytest.raises(BusyError, match="not now"):
            await blobs.uploads.register(upload.id, _maker(store))
    assert not store.catalogue.by_serial
    if store.root is not None:
        await _until(lambda: not _object_files(store))
    assert blobs.uploads.records[upload.id].state == OPEN
    assert not blobs.making.numbers
    assert await _bytes(store, await blobs.uploads.register(upload.id, _maker(store))) == DATA


async def test_a_blob_that_cannot_be_made_changes_nothing(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    await _blob(store, b"there", "made")
    upload = await blobs.uploads.presign()
    await fetch(upload.url, "PUT", DATA)
    with pytest.raises(ExistsError):
        await blobs.uploads.register(upload.id, _maker(store))
    with pytest.raises(InvalidError, match="becomes a BLOB"):
        await blobs.uploads.register(
            upload.id, lambda: store.create_namespace("default", Scope.USER, "bob", "workspace")
        )
    assert len(store.catalogue.by_serial) == 1
    assert await _bytes(store, await blobs.uploads.register(upload.id, _maker(store, "other"))) == DATA


async def test_cancelled_at_any_moment_it_is_whole_or_not_there(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    for microseconds in range(0, 16_000, 1000):
        upload = await blobs.uploads.presign()
        await fetch(upload.url, "PUT", DATA)
        name = f"x{microseconds}"
        with anyio.move_on_after(microseconds / 1e6):
            await blobs.uploads.register(upload.id, _maker(store, name))
        there = store.catalogue.entries("default", "user-bob").get(name)
        if there is None or blobs.uploads.records[upload.id].state == OPEN:
            if there is not None:  # cancelled in `make`, which is the caller's
                await store.destroy_namespace(there)
            there = await blobs.uploads.register(upload.id, _maker(store, name))
        assert await _bytes(store, there) == DATA
    assert not blobs.making.numbers
    assert not blobs.uploads.busy


async def test_what_a_dead_process_had_begun_is_taken_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "store") as (store, blobs):
        upload = await blobs.uploads.presign()
        await fetch(upload.url, "PUT", DATA)
        namespace = await _make(store, "half")
        record = blobs.uploads.records[upload.id]
        half = Record(record.id, record.created, record.until, False, state=REGISTERING, namespace=namespace.id)
        await blobs.uploads.set(half)
        folder = tmp_path / "store" / "uploads"
        (folder / upload.id / ".0123").write_bytes(b"partial")
        (folder / "unknown").mkdir()
        (folder / "unknown" / "00000-x").write_bytes(b"?")
    async with opened(tmp_path / "store") as (store, blobs):
        await _until(lambda: not store.catalogue.by_serial)
        await _until(lambda: blobs.uploads.records[upload.id].state == OPEN)
        assert sorted(path.name for path in folder.iterdir()) == [upload.id]
        assert len(list((folder / upload.id).iterdir())) == 1
        assert await _bytes(store, await blobs.uploads.register(upload.id, _maker(store))) == DATA


async def test_an_upload_takes_nothing_while_it_is_registered(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign()
    await fetch(upload.url, "PUT", DATA)
    making, go = anyio.Event(), anyio.Event()

    async def make() -> Namespace:
        making.set()
        await go.wait()
        return await _make(store, "made")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(blobs.uploads.register, upload.id, make)
        await making.wait()
        assert (await fetch(upload.url, "PUT", b"late")).status == 409
        with pytest.raises(BusyError):
            await blobs.uploads.register(upload.id, make)
        with pytest.raises(BusyError):
            await blobs.uploads.abort(upload.id)
        go.set()
    assert await _bytes(store, store.namespace_at("default", "user-bob", "made")) == DATA


async def test_an_aborted_upload_is_gone(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign()
    await fetch(upload.url, "PUT", DATA)
    await blobs.uploads.abort(upload.id)
    _nothing_left(store, blobs)
    assert (await fetch(upload.url, "PUT", DATA)).status == 410
    with pytest.raises(ExpiredError, match="aborted already"):
        await blobs.uploads.register(upload.id, _maker(store))


async def test_an_upload_ends_with_its_window(place: tuple[Store, Blobs], monkeypatch: pytest.MonkeyPatch) -> None:
    store, blobs = place
    upload = await blobs.uploads.presign(ttl=50, expires=3600)
    multipart = await blobs.uploads.begin(ttl=50)
    await fetch(upload.url, "PUT", DATA)
    await fetch(await blobs.uploads.sign_part(multipart.id, 1), "PUT", DATA)
    for module in ("upload_records", "uploads"):
        monkeypatch.setattr(f"artfs.store.{module}.time_ns", lambda: time_ns() + 51 * 10**9)
    assert (await fetch(upload.url, "PUT", DATA)).status == 410
    with pytest.raises(ExpiredError, match="has expired"):
        await blobs.uploads.register(upload.id, _maker(store))
    assert await blobs.uploads.reap() == 2
    await store.shard.commit()
    _nothing_left(store, blobs)
    assert not store.shard.engine.records("upload")
    assert (await fetch(upload.url, "PUT", DATA)).status == 404


# parts
BIG = Random(4).randbytes(PART_MIN)


async def _put_parts(blobs: Blobs, id: str, parts: dict[int, bytes]) -> dict[int, str]:
    tags = {}
    for number, data in parts.items():
        answer = await fetch(await blobs.uploads.sign_part(id, number), "PUT", data)
        assert answer.status == 200
        tags[number] = answer.headers["etag"]
    return tags


async def test_parts_become_a_blob(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.begin(mime="video/mp4")
    tags = await _put_parts(blobs, upload.id, {3: b"end", 1: BIG, 2: DATA, 7: b"left out"})
    tags |= await _put_parts(blobs, upload.id, {2: DATA + BIG})  # the last one counts
    assert [(n, size) for n, _, size in await blobs.uploads.parts(upload.id)] == [
        (1, len(BIG)), (2, len(DATA + BIG)), (3, 3), (7, 8)
    ]  # fmt: skip
    given_tags = [(1, tags[1]), (3, tags[3].strip('"')), (2, tags[2])]
    made = await blobs.uploads.complete(upload.id, given_tags, _maker(store))
    assert await _bytes(store, made) == BIG + DATA + BIG + b"end"
    _nothing_left(store, blobs)
    assert (await fetch(await blobs.presign(made))).body == BIG + DATA + BIG + b"end"
    with pytest.raises(ExpiredError):
        await blobs.uploads.sign_part(upload.id, 1)


async def test_one_part_may_be_small(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.begin()
    tags = await _put_parts(blobs, upload.id, {9999: b"only"})
    made = await blobs.uploads.complete(upload.id, list(tags.items()), _maker(store))
    assert await _bytes(store, made) == b"only"


async def test_what_cannot_be_completed(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.begin()
    tags = await _put_parts(blobs, upload.id, {1: b"small", 2: BIG, 3: b"end"})
    one, two, three = (tags[number] for number in (1, 2, 3))
    for parts, complaint in [
        ([], "one part at least"),
        ([(2, two), (4, three)], "part 4 has not come"),
        ([(2, two), (3, two)], "part 3 has the ETag"),
        ([(2, two), (2, two), (3, three)], "given twice"),
        ([(1, one), (2, two), (3, three)], "part 1 has 5 bytes: all but the last need"),
        ([(0, one)], "Part number must be between 1 and 10,000"),
    ]:
        with pytest.raises(InvalidError, match=complaint):
            await blobs.uploads.complete(upload.id, parts, _maker(store))
    assert not store.catalogue.by_serial
    made = await blobs.uploads.complete(upload.id, [(2, two), (3, three)], _maker(store))
    assert await _bytes(store, made) == BIG + b"end"


async def test_parts_have_numbers(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.begin()
    for number in (0, 10_001, -1):
        with pytest.raises(InvalidError, match="Part number must be between 1 and 10,000"):
            await blobs.uploads.sign_part(upload.id, number)
    with pytest.raises(InvalidError, match="complete it"):
        await blobs.uploads.register(upload.id, _maker(store))
    whole = await blobs.uploads.presign()
    with pytest.raises(InvalidError, match="has no parts"):
        await blobs.uploads.sign_part(whole.id, 1)
    with pytest.raises(InvalidError, match="register it"):
        await blobs.uploads.complete(whole.id, [(1, "x")], _maker(store))


async def test_aborted_parts_are_gone(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.begin()
    url = await blobs.uploads.sign_part(upload.id, 1)
    await fetch(url, "PUT", BIG)
    await blobs.uploads.abort(upload.id)
    _nothing_left(store, blobs)
    assert (await fetch(url, "PUT", BIG)).status == 410
    with pytest.raises(ExpiredError):
        await blobs.uploads.complete(upload.id, [(1, "x")], _maker(store))


async def test_parts_survive_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "store") as (store, blobs):
        upload = await blobs.uploads.begin()
        tags = await _put_parts(blobs, upload.id, {1: BIG, 2: b"old"})
    async with opened(tmp_path / "store") as (store, blobs):
        tags |= await _put_parts(blobs, upload.id, {2: b"new"})
        made = await blobs.uploads.complete(upload.id, list(tags.items()), _maker(store))
        assert await _bytes(store, made) == BIG + b"new"


async def test_parts_may_come_at_once(place: tuple[Store, Blobs]) -> None:
    store, blobs = place
    upload = await blobs.uploads.begin()
    tags: dict[int, str] = {}

    async def one(number: int) -> None:
        tags.update(await _put_parts(blobs, upload.id, {number: bytes([number]) * PART_MIN}))

    async with anyio.create_task_group() as tasks:
        for number in range(1, 9):
            tasks.start_soon(one, number)
    made = await blobs.uploads.complete(upload.id, list(tags.items()), _maker(store))
    assert await _bytes(store, made) == b"".join(bytes([number]) * PART_MIN for number in range(1, 9))


# memory
def _rss() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


async def test_200_mib_need_little_memory(tmp_path: Path) -> None:
    size = 200 * MIB

    def source() -> Iterator[bytes]:
        for number in range(size // MIB):
            yield bytes([number % 251]) * MIB

    def download(url: str) -> tuple[int, int]:
        size = most = 0
        with connect(url) as stream:
            stream.settimeout(TIMEOUT)
            stream.sendall(f"GET {target(url)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            while part := stream.recv(MIB):
                size += len(part)
                most = max(most, _rss())
        return size, most

    async with opened(tmp_path / "store") as (store, blobs):
        upload = await blobs.uploads.presign()
        await fetch(upload.url, "PUT", bytes(MIB))
        before = _rss()
        peak: list[int] = []

        async def watch() -> None:
            while True:
                peak.append(_rss())
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            put = await fetch(upload.url, "PUT", source(), {"Content-Length": str(size)})
            assert put.status == 200
            made = await blobs.uploads.register(upload.id, _maker(store), size=size)
            url = await blobs.presign(made)
            came, most = await to_thread.run_sync(download, url)
            tasks.cancel_scope.cancel()
        assert came > size
        assert max(*peak, most) - before < 32 * MIB


async def _on_asyncio(root: Path | None) -> None:
    async with opened(root) as found:
        await test_what_was_written_anyhow_becomes_exact(found)
    async with opened(root) as found:
        await test_parts_become_a_blob(found)
    async with opened(None) as found:
        await test_an_upload_becomes_a_blob(found)
    async with opened(None) as found:
        await test_cancelled_at_any_moment_it_is_whole_or_not_there(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_on_asyncio(kind: str, tmp_path: Path) -> None:
    anyio.run(_on_asyncio, _root(kind, tmp_path), backend="asyncio")
