"""URLs and uploads of BLOBs whose bytes a provider keeps: one that signs URLs itself, one that does not, an encrypted
one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from time import time_ns

import anyio
import pytest
from xxhash import xxh3_128_hexdigest

from artfs.errors import BusyError, InvalidError, NotFoundError, UnavailableError
from artfs.objects import Capabilities, Home, Info, Provider
from artfs.objects.framed import FramedProvider
from artfs.objects.memory import MemoryProvider
from artfs.settings import create_store
from artfs.store.blobs import Blobs
from artfs.store.opening import open_store
from artfs.store.store import Store
from artfs.store.upload_records import OPEN, PART_MIN
from artfs.types import NamespaceType, Scope
from artfs.vfs import Files
from artfs.volume.catalogue import Namespace
from tests.http import fetch

MIB = 1 << 20
DATA = Random(1).randbytes(9 * MIB + 12345)
BIG = Random(2).randbytes(PART_MIN)
SIGNS = Home("signs:")
PLAIN = Home("plain:")
SECRET = Home("signs:", "aes")


class Signing(MemoryProvider):
    """Signs URLs that a test reads; parts as S3 has them."""

    url = "signs:"
    capabilities = Capabilities(adopts=False, durable=False, signs=True)

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, dict[int, bytes]] = {}
        self.failing: set[str] = set()

    def names(self) -> list[str]:
        return sorted(self._objects)

    async def copy(self, source: str, target: str, etag: str | None = None) -> None:
        if "copy" in self.failing:
            raise UnavailableError("the provider does not answer")
        await super().copy(source, target, etag)

    async def delete(self, names: Sequence[str]) -> None:
        if "delete" in self.failing:
            raise UnavailableError("the provider does not answer")
        await super().delete(names)

    async def sign_get(self, name: str, expires: int, *, mime: str | None = None, filename: str | None = None) -> str:
        return f"get {name} {expires} {mime} {filename}"

    async def sign_put(self, name: str, expires: int, *, mime: str | None = None) -> str:
        return f"put {name} {expires} {mime}"

    async def begin_parts(self, name: str, *, mime: str | None = None) -> str:
        self.parts[f"id-{name}"] = {}
        return f"id-{name}"

    async def sign_part(self, name: str, upload: str, number: int, expires: int) -> str:
        return f"part {name} {upload} {number} {expires}"

    async def list_parts(self, name: str, upload: str) -> list[tuple[int, str, int]]:
        return [(n, xxh3_128_hexdigest(data), len(data)) for n, data in sorted(self._parts(upload).items())]

    def _parts(self, upload: str) -> dict[int, bytes]:
        if upload not in self.parts:
            raise NotFoundError(f"there is no upload {upload}")
        return self.parts[upload]

    async def complete_parts(self, name: str, upload: str, parts: Sequence[tuple[int, str]]) -> Info:
        have = self._parts(upload)
        await self.put(name, b"".join(have[number] for number, _ in parts))
        del self.parts[upload]
        return await self.head(name)

    async def abort_parts(self, name: str, upload: str) -> None:
        self._parts(upload)
        del self.parts[upload]


class Both:
    """Providers by URL."""

    def __init__(self, scratch: Path) -> None:
        self.signs = Signing()
        self.plain = MemoryProvider()
        self._secret = FramedProvider(self.signs, "aes", bytes(32), scratch)

    def canonical(self, url: str) -> str:
        return url

    def get(self, home: Home) -> Provider:
        if home.codec:
            return self._secret
        return self.signs if home.provider == "signs:" else self.plain

    def key_id(self) -> str:
        return "test"

    async def close(self) -> None:
        pass


Place = tuple[Store, Blobs, Both]


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Place]:
    create_store(root)
    async with open_store(root, "test") as store:
        both = Both(root)
        store.shard.remote.providers = both
        yield store, store.blobs, both


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(tmp_path / "store") as found:
        yield found


async def _make(store: Store, name: str = "made", home: Home = SIGNS) -> Namespace:
    """What a setting would decide of the codec is decided here."""
    if not home.codec:
        return await store.create_namespace(
            "default", Scope.USER, "bob", name, type=NamespaceType.BLOB, provider=home.provider
        )
    store.settings = store.settings.model_copy(update={"encryption_key": "test"})
    return await store.create_namespace("default", Scope.USER, "bob", name, type=NamespaceType.BLOB, provider="signs:")


def _maker(store: Store, name: str = "made") -> Callable[[], Awaitable[Namespace]]:
    return lambda: _make(store, name)


async def _nobody(names: object) -> None:
    pass


def _files(store: Store, namespace: Namespace) -> Files:
    return Files(store.volume(namespace), _nobody)


async def _bytes(store: Store, namespace: Namespace) -> bytes:
    """From the provider."""
    await store.sync(namespace)
    await store.shard.remote.drop()
    return await _files(store, namespace).read(b"_data", 0, 1 << 40)


async def _until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)


# reading
@pytest.mark.parametrize("data", [b"", b"small", DATA], ids=["empty", "small", "large"])
async def test_the_providers_url_names_exactly_the_bytes(place: Place, data: bytes) -> None:
    store, blobs, both = place
    namespace = await _make(store)
    await _files(store, namespace).write(b"_data", b"earlier")
    await blobs.presign(namespace)
    await _files(store, namespace).write(b"_data", data)
    kind, name, expires, mime, filename = (
        await blobs.presign(namespace, 60, mime="image/png", filename="x.png")
    ).split()
    assert (kind, mime, filename) == ("get", "image/png", "x.png")
    assert 55 <= int(expires) <= 60
    assert both.signs._objects[name][0] == data
    assert name in {store.shard.remote.name(number) for number in blobs.pinned()}
    assert blobs.endpoint is None
    again = await blobs.presign(namespace)
    assert again.split()[1] == name


async def test_a_providers_url_ends_with_the_blob(place: Place) -> None:
    store, blobs, _ = place
    namespace = await store.create_namespace(
        "default", Scope.USER, "bob", type=NamespaceType.BLOB, provider="signs:", ttl=30
    )
    assert int((await blobs.presign(namespace)).split()[2]) <= 30


@pytest.mark.parametrize("home", [PLAIN, SECRET], ids=["does-not-sign", "encrypted"])
async def test_else_the_endpoint_gives_them(place: Place, home: Home) -> None:
    store, blobs, both = place
    namespace = await _make(store, home=home)
    assert namespace.home == home
    await _files(store, namespace).write(b"_data", DATA)
    url = await blobs.presign(namespace)
    await store.sync(namespace)
    await store.shard.remote.drop()
    assert (await fetch(url)).body == DATA
    await store.shard.remote.drop()
    assert (await fetch(url, headers={"Range": "bytes=5000000-5000009"})).body == DATA[5_000_000:5_000_010]
    assert (both.signs if home.codec else both.plain)._objects


# uploads
async def test_an_upload_goes_to_the_provider(place: Place) -> None:
    store, blobs, both = place
    upload = await blobs.uploads.presign(home=SIGNS, mime="image/png", expires=60)
    kind, name, expires, mime = upload.url.split()
    assert (kind, name, mime) == ("put", f"upload/{upload.id}", "image/png")
    assert 55 <= int(expires) <= 60
    await both.signs.put(name, DATA)
    etag = (await both.signs.head(name)).etag
    made = await blobs.uploads.register(upload.id, _maker(store), size=len(DATA), etag=f'"{etag}"')
    assert await _bytes(store, made) == DATA
    assert store.shard.usage(made)[0] == len(DATA)
    (object_name,) = (name for name in both.signs.names() if name.startswith("grid/"))
    assert both.signs._objects[object_name][0] == DATA
    assert name not in both.signs.names()
    assert (await blobs.presign(made)).split()[1] == object_name
    assert not blobs.making.numbers


async def test_what_comes_late_is_deleted_in_the_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store, blobs, both = place
    upload = await blobs.uploads.presign(home=SIGNS)
    await both.signs.put(f"upload/{upload.id}", DATA)
    await blobs.uploads.register(upload.id, _maker(store))
    await both.signs.put(f"upload/{upload.id}", b"late")
    monkeypatch.setattr("artfs.store.uploads.time_ns", lambda: time_ns() + 25 * 3600 * 10**9)
    assert await blobs.uploads.reap() == 1
    assert f"upload/{upload.id}" not in both.signs.names()
    assert not blobs.uploads.records


async def test_an_empty_upload(place: Place) -> None:
    store, blobs, both = place
    upload = await blobs.uploads.presign(home=SIGNS)
    await both.signs.put(f"upload/{upload.id}", b"")
    made = await blobs.uploads.register(upload.id, _maker(store), size=0)
    assert await _bytes(store, made) == b""


async def test_what_is_not_as_expected_is_refused(place: Place) -> None:
    store, blobs, both = place
    upload = await blobs.uploads.presign(home=SIGNS)
    with pytest.raises(NotFoundError, match="nothing was uploaded"):
        await blobs.uploads.register(upload.id, _maker(store))
    await both.signs.put(f"upload/{upload.id}", DATA)
    with pytest.raises(InvalidError, match="upload it again"):
        await blobs.uploads.register(upload.id, _maker(store), size=1)
    with pytest.raises(InvalidError, match="upload it again"):
        await blobs.uploads.register(upload.id, _maker(store), etag="other")
    with pytest.raises(InvalidError, match="must live there, too"):
        await blobs.uploads.register(upload.id, lambda: _make(store, home=PLAIN))
    assert not store.catalogue.by_serial
    assert await _bytes(store, await blobs.uploads.register(upload.id, _maker(store))) == DATA


async def test_what_changes_meanwhile_is_not_registered(place: Place) -> None:
    store, blobs, both = place
    upload = await blobs.uploads.presign(home=SIGNS)
    await both.signs.put(f"upload/{upload.id}", DATA)

    async def make() -> Namespace:
        await both.signs.put(f"upload/{upload.id}", b"another")
        return await _make(store)

    with pytest.raises(BusyError):
        await blobs.uploads.register(upload.id, make)
    assert not store.catalogue.by_serial
    assert await _bytes(store, await blobs.uploads.register(upload.id, _maker(store))) == b"another"


async def test_a_provider_that_fails_leaves_the_upload(place: Place) -> None:
    store, blobs, both = place
    upload = await blobs.uploads.presign(home=SIGNS)
    await both.signs.put(f"upload/{upload.id}", DATA)
    both.signs.failing = {"copy"}
    with pytest.raises(UnavailableError):
        await blobs.uploads.register(upload.id, _maker(store))
    both.signs.failing = {"delete"}
    assert not store.catalogue.by_serial
    assert blobs.uploads.records[upload.id].state == OPEN
    made = await blobs.uploads.register(upload.id, _maker(store))
    both.signs.failing.clear()
    assert await _bytes(store, made) == DATA
    await _until(lambda: sum(name.startswith("grid/") for name in both.signs.names()) == 1)


async def test_parts_go_to_the_provider(place: Place) -> None:
    store, blobs, both = place
    upload = await blobs.uploads.begin(home=SIGNS)
    kind, name, remote, number, _ = (await blobs.uploads.sign_part(upload.id, 3)).split()
    assert (kind, name, number) == ("part", f"upload/{upload.id}", "3")
    both.signs.parts[remote] = {1: BIG, 2: b"small", 3: BIG, 4: b"end"}
    tags = {number: etag for number, etag, _ in await blobs.uploads.parts(upload.id)}
    for parts, complaint in [
        ([(1, tags[1]), (5, "x")], "part 5 has not come"),
        ([(1, tags[1]), (2, tags[2]), (3, tags[3])], "part 2 has 5 bytes"),
        ([(1, "other")], "part 1 has the ETag"),
    ]:
        with pytest.raises(InvalidError, match=complaint):
            await blobs.uploads.complete(upload.id, parts, _maker(store))
    good = [(1, f'"{tags[1]}"'), (3, tags[3]), (4, tags[4])]
    both.signs.failing = {"copy"}
    with pytest.raises(UnavailableError):
        await blobs.uploads.complete(upload.id, good, _maker(store))
    both.signs.failing = set()
    made = await blobs.uploads.complete(upload.id, good, _maker(store))
    assert await _bytes(store, made) == BIG + BIG + b"end"
    assert not both.signs.parts
    assert name not in both.signs.names()


async def test_aborted_and_expired_parts_are_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    _, blobs, both = place
    aborted = await blobs.uploads.begin(home=SIGNS)
    expired = await blobs.uploads.begin(home=SIGNS)
    assert len(both.signs.parts) == 2
    await blobs.uploads.abort(aborted.id)
    assert list(both.signs.parts) == [f"id-upload/{expired.id}"]
    monkeypatch.setattr("artfs.store.uploads.time_ns", lambda: time_ns() + 25 * 3600 * 10**9)
    assert await blobs.uploads.reap() == 2
    assert not both.signs.parts
    assert not blobs.uploads.records


@pytest.mark.parametrize("home", [PLAIN, SECRET], ids=["does-not-sign", "encrypted"])
async def test_else_they_go_to_the_endpoint_and_on(place: Place, home: Home) -> None:
    store, blobs, both = place
    await _make(store, "first", home)  # an encrypted store is one by its settings
    upload = await blobs.uploads.presign(home=home)
    assert (await fetch(upload.url, "PUT", DATA)).status == 200
    made = await blobs.uploads.register(upload.id, lambda: _make(store, "made", home))
    assert made.home == home
    assert await _bytes(store, made) == DATA
    assert store.shard.remote.waiting().objects == 0
    stored = [data for data, _ in (both.signs if home.codec else both.plain)._objects.values()]
    assert (DATA in stored) is not bool(home.codec)


@pytest.mark.parametrize("url", ["file://{}/objects", "sqlite://{}/objects.db", "memory:"])
async def test_every_other_provider_is_served_by_the_endpoint(tmp_path: Path, url: str) -> None:
    create_store(tmp_path / "store")
    (tmp_path / "store" / "config.toml").write_text(f'provider = "{url.format(tmp_path)}"\n')
    async with open_store(tmp_path / "store", "test") as store:
        blobs = store.blobs

        async def make() -> Namespace:
            return await store.create_namespace("default", Scope.USER, "bob", "made", type=NamespaceType.BLOB)

        home = Home(store.shard.remote.providers.canonical(store.settings.provider))
        upload = await blobs.uploads.begin(home=home)
        tags = []
        for number, data in enumerate((BIG, DATA), 1):
            answer = await fetch(await blobs.uploads.sign_part(upload.id, number), "PUT", data)
            tags.append((number, answer.headers["etag"]))
        made = await blobs.uploads.complete(upload.id, tags, make)
        assert made.home == home
        url = await blobs.presign(made)
        assert await _bytes(store, made) == BIG + DATA
        await store.shard.remote.drop()
        assert (await fetch(url)).body == BIG + DATA
        assert (await fetch(url, headers={"Range": "bytes=-5"})).body == DATA[-5:]
