"""What every provider of objects does."""

import errno
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from artfs.errors import NoSpaceError, NotFoundError, UnavailableError
from artfs.objects import Provider
from artfs.objects.disk import DiskProvider
from artfs.objects.memory import MemoryProvider

BYTES = bytes(range(256)) * 100


@pytest.fixture(params=["disk", "memory"])
async def provider(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Provider]:
    made: Provider = DiskProvider(tmp_path / "objects") if request.param == "disk" else MemoryProvider()
    yield made
    await made.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(BYTES)
    return path


async def _listed(provider: Provider, prefix: str) -> list[tuple[str, int]]:
    return [item async for item in provider.list(prefix)]


async def test_what_is_put_is_there(provider: Provider, source: Path) -> None:
    await provider.put("grid/box/shared/ns-1/00000000", source)
    assert await provider.size("grid/box/shared/ns-1/00000000") == len(BYTES)
    assert await provider.get("grid/box/shared/ns-1/00000000", 0, len(BYTES)) == BYTES
    assert source.read_bytes() == BYTES


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (255, 3), (len(BYTES) - 1, 1), (1000, 0)])
async def test_a_range_is_exact(provider: Provider, source: Path, offset: int, length: int) -> None:
    await provider.put("a", source)
    assert await provider.get("a", offset, length) == BYTES[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(0, len(BYTES) + 1), (len(BYTES), 1), (len(BYTES) + 5, 1)])
async def test_a_range_past_the_end_fails(provider: Provider, source: Path, offset: int, length: int) -> None:
    await provider.put("a", source)
    with pytest.raises(UnavailableError, match="a ends before"):
        await provider.get("a", offset, length)


async def test_an_empty_object_is_an_object(provider: Provider, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    await provider.put("a", tmp_path / "empty")
    assert await provider.size("a") == 0
    assert await _listed(provider, "") == [("a", 0)]


async def test_put_again_replaces(provider: Provider, source: Path, tmp_path: Path) -> None:
    await provider.put("a", source)
    (tmp_path / "other").write_bytes(b"new")
    await provider.put("a", tmp_path / "other")
    assert await provider.get("a", 0, 3) == b"new"
    assert await provider.size("a") == 3


async def test_the_bytes_are_those_at_the_time_of_the_put(provider: Provider, source: Path) -> None:
    await provider.put("a", source)
    source.write_bytes(b"else")
    assert await provider.get("a", 0, len(BYTES)) == BYTES


async def test_what_is_not_there_is_not_found(provider: Provider) -> None:
    with pytest.raises(NotFoundError, match="grid/x"):
        await provider.get("grid/x", 0, 1)
    with pytest.raises(NotFoundError, match="grid/x"):
        await provider.size("grid/x")
    await provider.delete("grid/x")
    assert await _listed(provider, "") == []


async def test_deleted_is_gone(provider: Provider, source: Path) -> None:
    await provider.put("a/b", source)
    await provider.put("a/c", source)
    await provider.delete("a/b")
    with pytest.raises(NotFoundError):
        await provider.get("a/b", 0, 1)
    assert await _listed(provider, "") == [("a/c", len(BYTES))]
    await provider.delete("a/b")


async def test_a_put_that_fails_leaves_nothing(provider: Provider, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        await provider.put("a/b", tmp_path / "missing")
    assert await _listed(provider, "") == []


async def test_a_listing_is_by_prefix_and_in_order(provider: Provider, source: Path) -> None:
    for name in ["g/b/2", "g/b/10", "g/b-c/1", "g/a/z/1", "h/1", "g/b/1"]:
        await provider.put(name, source)

    async def names(prefix: str) -> list[str]:
        return [name for name, _ in await _listed(provider, prefix)]

    assert await names("") == ["g/a/z/1", "g/b-c/1", "g/b/1", "g/b/10", "g/b/2", "h/1"]
    assert await names("g/b/") == ["g/b/1", "g/b/10", "g/b/2"]
    assert await names("g/b") == ["g/b-c/1", "g/b/1", "g/b/10", "g/b/2"]
    assert await names("g/b/1") == ["g/b/1", "g/b/10"]
    assert await names("nothing/") == []


# of one provider alone
@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/passwd"])
async def test_a_name_does_not_lead_out_of_the_directory(tmp_path: Path, source: Path, name: str) -> None:
    provider = DiskProvider(tmp_path / "objects")
    (tmp_path / "outside").write_bytes(b"mine")
    with pytest.raises(NotFoundError):
        await provider.put(name, source)
    with pytest.raises(NotFoundError):
        await provider.get(name, 0, 1)
    with pytest.raises(NotFoundError):
        await provider.delete(name)
    assert (tmp_path / "outside").read_bytes() == b"mine"


async def test_the_disk_adopts_a_file_that_is_in_its_place(tmp_path: Path) -> None:
    provider = DiskProvider(tmp_path)
    assert provider.capabilities.adopts and provider.capabilities.durable
    path = tmp_path / "a" / "00000000"
    path.parent.mkdir()
    path.write_bytes(BYTES)
    before = path.stat()
    await provider.put("a/00000000", path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert await provider.get("a/00000000", 5, 7) == BYTES[5:12]


async def test_a_put_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes first, then the name, then the directory."""
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(fd: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "bytes")
        fsync(fd)

    def watched_rename(self: Path, target: Path) -> Path:
        steps.append("name")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    await DiskProvider(tmp_path / "objects").put("a/b", source)
    assert steps[-3:] == ["bytes", "name", "directory"]


async def test_a_full_disk_is_said_so(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    provider = DiskProvider(tmp_path / "objects")
    with monkeypatch.context() as patched, pytest.raises(NoSpaceError, match="free some space"):
        patched.setattr(os, "fsync", full)
        await provider.put("a", source)
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []


async def test_what_a_crash_left_of_a_put_is_no_object(tmp_path: Path) -> None:
    provider = DiskProvider(tmp_path)
    (tmp_path / "a.part").write_bytes(b"half")
    assert await _listed(provider, "") == []
