"""Compressed and encrypted objects: ranges, damage, keys, and what is asked of the provider below.

What all providers do is in test_providers.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import anyio
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from artfs.errors import (
    BusyError,
    DamagedError,
    DeniedError,
    ExistsError,
    FormatError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.objects import Info
from artfs.objects import framed as module
from artfs.objects.framed import FramedProvider
from artfs.objects.frames import ENTRIES, ENTRY, FRAME, HEADER, TAG, Form, Layout
from artfs.objects.memory import MemoryProvider

KEY = bytes(range(32))
CODECS = ["zstd", "aes", "zstd+aes"]
TEXT = b"".join(b"line %d of a text that is easy to compress\n" % number for number in range(20_000))
MIXED = TEXT[: FRAME + 1000] + os.urandom(FRAME) + bytes(FRAME) + TEXT[:5000]
"""Four frames: text, text and noise, noise and zeros, the rest."""


class Counting(MemoryProvider):
    """Notes each request."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.read = 0

    async def get(self, name: str, offset: int, length: int) -> bytes:
        self.requests.append("get")
        self.read += length
        await anyio.sleep(0)
        return await super().get(name, offset, length)

    async def head(self, name: str) -> Info:
        self.requests.append("head")
        return await super().head(name)

    async def put(self, name: str, source: Path | bytes) -> None:
        self.requests.append("put")
        await super().put(name, source)

    def bytes_of(self, name: str) -> bytes:
        return self._objects[name][0]


def framed(inner: MemoryProvider, codec: str, key: bytes = KEY) -> FramedProvider:
    return FramedProvider(inner, codec, key if "aes" in codec else None)


@pytest.fixture
def inner() -> Counting:
    return Counting()


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def provider(inner: Counting, codec: str) -> FramedProvider:
    return framed(inner, codec)


# ranges and sizes
SIZES = [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME, 3 * FRAME + 17]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [False, True])
async def test_sizes_about_frames(
    inner: Counting, provider: FramedProvider, tmp_path: Path, size: int, noise: bool
) -> None:
    data = os.urandom(size) if noise else TEXT[:size]
    (tmp_path / "source").write_bytes(data)
    await provider.put("of/bytes", data)
    await provider.put("of/file", tmp_path / "source")
    for reader in (provider, framed(inner, provider.form.codec)):
        for name in ("of/bytes", "of/file"):
            assert await reader.get(name, 0, size) == data
            found, below = await reader.head(name), await inner.head(name)
            assert found == Info(size, below.etag, below.modified)
            with pytest.raises(UnavailableError, match=f"{name} ends before {size + 1}"):
                await reader.get(name, 0, size + 1)
    if provider.form.codec == "aes":
        assert [item async for item in provider.list("of/")] == [("of/bytes", size), ("of/file", size)]


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_range_is_that_of_the_plain_bytes(codec: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(MIXED)))
    ranges = data.draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted), max_size=5))

    async def check() -> None:
        provider = framed(MemoryProvider(), codec)
        await provider.put("a", MIXED[:size])
        for start, end in ranges:
            assert await provider.get("a", start, end - start) == MIXED[start:end]

    trio.run(check)


async def test_a_large_object_takes_little_memory(
    provider: FramedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a file without a name: neither the source nor what is put is ever in memory as a whole."""
    source = tmp_path / "source"
    source.write_bytes(MIXED * 30)
    assert source.stat().st_size > 2 * module.IN_MEMORY
    seen: list[Path | bytes] = []
    put = provider.inner.put

    async def watched(name: str, encoded: Path | bytes) -> None:
        seen.append(encoded)
        assert sorted(tmp_path.iterdir()) == [source]
        await put(name, encoded)

    monkeypatch.setattr(provider.inner, "put", watched)
    await provider.put("a", source)
    assert isinstance(seen[0], Path)
    assert sorted(tmp_path.iterdir()) == [source]
    size = source.stat().st_size
    assert await provider.get("a", 0, size) == source.read_bytes()


@pytest.mark.parametrize("codec", ["zstd", "zstd+aes"])
async def test_an_index_of_more_frames_than_usual(codec: str, inner: Counting, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate((ENTRIES + 3) * FRAME + 5)
        file.seek(FRAME * ENTRIES - 3)
        file.write(b"across")
    await framed(inner, codec).put("a", source)
    reader = framed(inner, codec)
    inner.requests.clear()
    assert await reader.get("a", FRAME * ENTRIES - 4, 8) == b"\0across\0"
    assert inner.requests == ["get", "head", "get", "get"]
    assert (await reader.head("a")).size == source.stat().st_size


async def test_only_the_frames_of_a_range_are_read(inner: Counting, codec: str) -> None:
    await framed(inner, codec).put("a", MIXED)
    reader = framed(inner, codec)
    inner.requests.clear()
    inner.read = 0
    await reader.get("a", FRAME + 5000, 10)
    assert inner.requests == ["get", "get"]
    assert inner.read <= reader.form.opening_size(0) + FRAME + TAG
    await reader.get("a", 3 * FRAME, 10)
    assert inner.requests == ["get", "get", "get"]
    writer = framed(inner, codec)
    await writer.put("b", MIXED)
    inner.requests.clear()
    await writer.get("b", 0, 10)
    assert inner.requests == ["get"]


async def test_parallel_reads_ask_once_where_the_frames_are(inner: Counting, codec: str) -> None:
    await framed(inner, codec).put("a", MIXED)
    reader = framed(inner, codec)
    inner.requests.clear()
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(reader.get, "a", number * 1000, 1000)
    assert inner.requests == ["get"] * 9


async def test_layouts_that_are_remembered_have_a_bound(
    inner: Counting, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAYOUTS", 10_000)
    provider = framed(inner, codec)
    for number in range(50):
        await provider.put(f"a/{number}", b"x")
        assert provider._weight == sum(layout.weight for layout, _ in provider._layouts.values()) <= 10_000
    assert len(provider._layouts) >= 5
    assert await provider.get("a/0", 0, 1) == b"x"


async def test_what_compresses_is_smaller_and_what_does_not_hardly_larger(inner: Counting) -> None:
    await framed(inner, "zstd").put("text", TEXT)
    noise = os.urandom(len(TEXT))
    await framed(inner, "zstd+aes").put("noise", noise)
    assert len(inner.bytes_of("text")) < len(TEXT) / 5
    over = HEADER.size + ENTRY.size * ENTRIES + TAG + TAG * -(-len(noise) // FRAME)
    assert len(inner.bytes_of("noise")) == len(noise) + over


# what is in it
@pytest.mark.parametrize("codec", ["aes", "zstd+aes"])
async def test_an_encrypted_object_says_nothing(inner: Counting, codec: str) -> None:
    provider = framed(inner, codec)
    await provider.put("a", b"a secret word " * 1000)
    await provider.put("b", b"a secret word " * 1000)
    a, b = inner.bytes_of("a"), inner.bytes_of("b")
    assert b"secret" not in a
    assert a[HEADER.size :][:200] != b[HEADER.size :][:200]
    await provider.put("a", b"a secret word " * 1000)
    assert inner.bytes_of("a")[HEADER.size :][:200] != a[HEADER.size :][:200]
    for window in range(0, 32, 8):
        assert KEY[window : window + 8] not in a


async def test_another_key_is_refused_by_name(inner: Counting) -> None:
    await framed(inner, "aes").put("a", MIXED)
    other = framed(inner, "aes", bytes(32))
    with pytest.raises(DeniedError, match=r"object a is encrypted .*encryption_key") as caught:
        await other.get("a", 0, 1)
    assert KEY.hex() not in str(caught.value) and bytes(32).hex() not in str(caught.value)
    with pytest.raises(DeniedError, match="encryption_key"):
        await other.head("a")


@pytest.mark.parametrize(
    ("codec", "key", "match"),
    [("aes", None, "set encryption_key"), ("zstd+aes", b"short", "of 32 bytes"), ("gzip", None, "gzip")],
)
def test_a_form_that_cannot_be(codec: str, key: bytes | None, match: str) -> None:
    with pytest.raises(InvalidError, match=match):
        FramedProvider(MemoryProvider(), codec, key)


# damage
async def _refused(inner: Counting, codec: str, stored: bytes, data: bytes, name: str = "a") -> None:
    """Nothing of `stored` is taken for `data`; one who knows the layout may still read what is not damaged."""
    good = inner._objects["a"]
    reader = framed(inner, codec)
    await reader.head("a")
    await MemoryProvider.put(inner, name, stored)
    with pytest.raises(DamagedError, match=f"object {name} is damaged"):
        await framed(inner, codec).get(name, 0, len(data))
    try:
        assert await reader.get(name, 0, len(data)) == data
    except DamagedError as error:
        assert f"object {name} is damaged" in str(error)
    inner._objects["a"] = good


async def test_a_changed_byte_anywhere_is_found(inner: Counting, codec: str) -> None:
    data = TEXT[:3000] + os.urandom(1000)
    await framed(inner, codec).put("a", data)
    stored = inner.bytes_of("a")
    # Every byte of the header and its neighbourhood, then every few; bit 0 and bit 7.
    for at in [*range(HEADER.size + 24), *range(HEADER.size + 24, len(stored), 7), len(stored) - 1]:
        for bit in (1, 128):
            await _refused(inner, codec, stored[:at] + bytes([stored[at] ^ bit]) + stored[at + 1 :], data)


async def test_a_changed_byte_of_each_frame_is_found(inner: Counting, codec: str) -> None:
    await framed(inner, codec).put("a", MIXED)
    stored = inner.bytes_of("a")
    where = Layout.read(framed(inner, codec).form, "a", stored)
    for number in range(where.frames):
        for at in (where.start(number), where.start(number + 1) - TAG - 1, where.start(number + 1) - 1):
            broken = stored[:at] + bytes([stored[at] ^ 4]) + stored[at + 1 :]
            await _refused(inner, codec, broken, MIXED)
            await MemoryProvider.put(inner, "a", broken)
            other = FRAME * (number + 1 if number == 0 else number - 1)
            assert await framed(inner, codec).get("a", other, 10) == MIXED[other : other + 10]
            await MemoryProvider.put(inner, "a", stored)


async def test_a_cut_object_is_found(inner: Counting, codec: str) -> None:
    data = TEXT[: 2 * FRAME + 100]
    await framed(inner, codec).put("a", data)
    stored = inner.bytes_of("a")
    for length in [0, 1, HEADER.size, HEADER.size + TAG, *range(1200, len(stored), len(stored) // 7), len(stored) - 1]:
        await _refused(inner, codec, stored[:length], data)
        await MemoryProvider.put(inner, "b", stored[:length])
        with pytest.raises(DamagedError, match="object b is damaged"):
            await framed(inner, codec).head("b")


async def test_frames_cannot_change_places(inner: Counting) -> None:
    data = os.urandom(3 * FRAME)
    await framed(inner, "aes").put("a", data)
    await framed(inner, "aes").put("b", data)
    a, b = inner.bytes_of("a"), inner.bytes_of("b")
    start, step = Form("aes", KEY).opening_size(0), FRAME + TAG
    frames = [a[at : at + step] for at in range(start, len(a), step)]
    await _refused(inner, "aes", a[:start] + frames[1] + frames[0] + frames[2], data)
    await _refused(inner, "aes", a[: start + step] + b[start + step :], data)
    await _refused(inner, "aes", b[:start] + a[start:], data)


async def test_an_object_cannot_take_anothers_name(inner: Counting, codec: str) -> None:
    await framed(inner, codec).put("a", MIXED)
    await _refused(inner, codec, inner.bytes_of("a"), MIXED, name="b")


async def test_an_object_of_another_codec_is_refused(inner: Counting) -> None:
    """Who can write to the provider cannot have plain bytes taken for encrypted ones."""
    await framed(inner, "zstd").put("a", MIXED)
    for codec in ("aes", "zstd+aes"):
        with pytest.raises(DamagedError, match=r"its codec is zstd, its namespace's is .*aes"):
            await framed(inner, codec).get("a", 0, 1)
    await inner.put("b", MIXED)
    with pytest.raises(DamagedError, match="does not begin like one"):
        await framed(inner, "aes").get("b", 0, 1)


async def test_a_newer_format_is_refused(inner: Counting, codec: str) -> None:
    await framed(inner, codec).put("a", MIXED)
    stored = inner.bytes_of("a")
    head = stored[:8] + b"\2" + stored[9 : HEADER.size - 8]
    await inner.put("a", head + xxh3_64_intdigest(head).to_bytes(8, "big") + stored[HEADER.size :])
    with pytest.raises(FormatError, match=r"object a has format 2.*upgrade"):
        await framed(inner, codec).get("a", 0, 1)


async def test_a_broken_connection_is_no_damage(
    inner: Counting, provider: FramedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provider.put("a", MIXED)

    async def broken(name: str, offset: int, length: int) -> bytes:
        raise UnavailableError("the connection was reset")

    monkeypatch.setattr(inner, "get", broken)
    for reader in (provider, framed(inner, provider.form.codec)):
        with pytest.raises(UnavailableError, match="was reset"):
            await reader.get("a", 0, 10)


# other writers, and the rest of the protocol
@pytest.mark.parametrize("new", [b"short", MIXED[::-1], os.urandom(len(MIXED))])
async def test_an_object_that_somebody_else_replaced_is_read_anew(inner: Counting, codec: str, new: bytes) -> None:
    reader = framed(inner, codec)
    await reader.put("a", MIXED)
    await framed(inner, codec).put("a", new)
    assert await reader.get("a", 0, len(new)) == new
    await framed(inner, codec).put("a", MIXED)
    assert (await reader.head("a")).size == len(MIXED)
    await framed(inner, codec).put("a", b"")
    assert await reader.get("a", 0, 0) == b""
    assert (await reader.head("a")).size == 0


async def test_a_copy_has_its_own_name(inner: Counting, codec: str) -> None:
    provider = framed(inner, codec)
    await provider.put("a", MIXED)
    etag = (await provider.head("a")).etag
    await provider.copy("a", "b", etag)
    assert await framed(inner, codec).get("b", 0, len(MIXED)) == MIXED
    await provider.copy("a", "a")
    await provider.put("a", b"new")
    with pytest.raises(BusyError, match="a has changed"):
        await provider.copy("a", "b", etag)
    with pytest.raises(NotFoundError):
        await provider.copy("absent", "b")
    assert await provider.get("b", 0, len(MIXED)) == MIXED


async def test_create_and_delete(inner: Counting, provider: FramedProvider) -> None:
    await provider.create("a", b"one")
    with pytest.raises(ExistsError):
        await provider.create("a", b"two")
    assert await provider.get("a", 0, 3) == b"one"
    await provider.delete(["a", "b"])
    with pytest.raises(NotFoundError, match="object a"):
        await provider.get("a", 0, 3)
    with pytest.raises(NotFoundError, match="object a"):
        await provider.head("a")
    with pytest.raises(InvalidError):
        await provider.put("../a", b"")


async def test_a_put_that_fails_below_leaves_what_was(inner: Counting, provider: FramedProvider) -> None:
    await provider.put("a", MIXED)

    async def broken(name: str, source: Path | bytes) -> None:
        raise UnavailableError("no answer")

    put, inner.put = inner.put, broken  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await provider.put("a", b"new")
    inner.put = put  # type: ignore[method-assign]
    assert await provider.get("a", 0, len(MIXED)) == MIXED


async def test_sources_and_scratch_that_are_not_there(inner: Counting, codec: str, tmp_path: Path) -> None:
    provider = FramedProvider(inner, codec, KEY, tmp_path / "missing")
    with pytest.raises(UnavailableError, match="cannot be read"):
        await provider.put("a", tmp_path / "none")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(module.IN_MEMORY + 1)
    with pytest.raises(UnavailableError, match="missing: object a cannot be encoded there"):
        await provider.put("a", large)
    assert [item async for item in provider.list("")] == []


async def test_a_full_scratch_disk_is_said_so(
    inner: Counting, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(dir: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "TemporaryFile", full)
    monkeypatch.setattr(module, "IN_MEMORY", 10)
    (tmp_path / "source").write_bytes(MIXED)
    with pytest.raises(NoSpaceError, match="free some space"):
        await framed(inner, codec).put("a", tmp_path / "source")
