"""What work costs in requests to the provider."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.backed import Backed, drop_kernel_cache
from tests.faults.messages import UPLOADS, Kind
from tests.faults.proxy import Seen

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20
FILES = 1000
LONG = {"ARTFS_UPLOAD_DELAY": "5", "ARTFS_SAVE_INTERVAL": "60", "ARTFS_CACHE_SIZE": str(10 << 30)}
"""As the settings are by default."""


@pytest.fixture
def defaults(store: Backed) -> Backed:
    store.env |= LONG
    return store


def described(seen: Seen) -> str:
    return f"{seen}; bytes up {sum(r.sent for r in seen.requests)}, down {sum(r.received for r in seen.requests)}"


@pytest.mark.parametrize("size", [1024, 4096, 16384])
def test_a_thousand_small_files(defaults: Backed, tmp_path: Path, size: int) -> None:
    store = defaults
    contents = {f"f{number}": os.urandom(size) for number in range(FILES)}
    with store.running():
        base = store.workspace("w")
        store.ok("sync")
        with store.proxy.counting() as writing:
            for name, data in contents.items():
                (base / name).write_bytes(data)
            store.ok("sync")
    print(f"{FILES} files of {size} written: {described(writing)}")
    with store.proxy.counting() as both:
        other = store.recovered(tmp_path / "other")
        with other.proxy.counting() as reading, other.running():
            for name, data in contents.items():
                assert (other.path("w") / name).read_bytes() == data
            drop_kernel_cache()
    print(f"recover and mount: {described(both)}; of that after the recovery: {described(reading)}")
    assert writing.count(*UPLOADS) <= 5
    assert both.count(Kind.GET) <= 20


def test_names_and_attributes_ask_nobody(defaults: Backed, tmp_path: Path) -> None:
    store = defaults
    with store.running():
        base = store.workspace("w")
        for number in range(200):
            folder = base / f"d{number % 10}"
            folder.mkdir(exist_ok=True)
            (folder / f"f{number}").write_bytes(os.urandom(5000))
        store.ok("sync")
    other = store.recovered(tmp_path / "other")
    with other.running():
        os.listdir(other.path("w"))
        drop_kernel_cache()
        with store.proxy.counting() as seen:
            found = [path for path in other.path("w").rglob("*") if path.stat().st_size == 5000]
            for path in found:
                os.rename(path, path.with_name("other-" + path.name))
        assert len(found) == 200
        assert not seen.of(Kind.GET, Kind.LIST, Kind.HEAD), described(seen)


def test_a_large_file_goes_up_in_parallel_parts(defaults: Backed) -> None:
    """As one object of 64 MiB after the other, each in parts, several at once."""
    store = defaults
    size = 256 * MIB
    block = os.urandom(MIB)
    with store.running():
        base = store.workspace("w")
        store.ok("sync")
        with store.proxy.counting() as seen:
            with open(base / "large", "wb") as file:
                for _ in range(size // MIB):
                    file.write(block)
            store.ok("sync")
        parts = seen.of(Kind.PART)
        print(f"{size // MIB} MiB: {described(seen)}; {seen.at_once(Kind.PART, Kind.PUT)} at once")
        assert sum(part.sent for part in parts) >= 0.9 * size
        assert seen.count(Kind.COMPLETE) == seen.count(Kind.BEGIN)
        small = [part for part in parts if part.sent < 8 * MIB]
        assert len(small) <= seen.count(Kind.COMPLETE), "only the last part of an object may be smaller"
        assert seen.at_once(Kind.PART) >= 4
        store.ok("cache", "drop")
        drop_kernel_cache()
        with store.proxy.counting() as cold, open(base / "large", "rb") as file:
            while data := file.read(MIB):
                assert data == block
        gets = cold.of(Kind.GET)
        print(f"read cold: {described(cold)}; {cold.at_once(Kind.GET)} at once")
        assert cold.at_once(Kind.GET) >= 4
        assert sum(get.received for get in gets) < 1.1 * size
        assert len(gets) <= 2 * size // (4 * MIB)


def test_the_keys_are_not_in_the_store(defaults: Backed) -> None:
    """The URL is the identity of a provider, and is saved; the credentials are not."""
    store = defaults
    with store.running():
        (store.workspace("w") / "f").write_bytes(b"x")
        store.ok("sync")
    secret = store.server.env["AWS_SECRET_ACCESS_KEY"]
    for path in (path for path in store.root.rglob("*") if path.is_file()):
        assert secret.encode() not in path.read_bytes(), path
    assert secret not in store.log()
