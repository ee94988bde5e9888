"""The disk provider: what no other provider has to do. What all do is in test_providers.py."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest
import trio

from artfs.errors import BusyError, DeniedError, InvalidError, NoSpaceError, NotFoundError, UnavailableError
from artfs.objects import disk as module
from artfs.objects.disk import DiskProvider


@pytest.fixture
def provider(tmp_path: Path) -> DiskProvider:
    return DiskProvider(tmp_path / "objects")


def files(provider: DiskProvider) -> list[str]:
    return sorted(str(path.relative_to(provider.root)) for path in provider.root.rglob("*") if path.is_file())


async def _names(provider: DiskProvider, prefix: str = "") -> list[str]:
    return [name async for name, _ in provider.list(prefix)]


# where it is
async def test_the_directory_is_made_and_nothing_above_it(tmp_path: Path, provider: DiskProvider) -> None:
    await provider.check()
    assert provider.root.is_dir() and files(provider) == []
    lost = DiskProvider(tmp_path / "disk" / "objects")
    with pytest.raises(NotFoundError, match=f"{tmp_path}/disk: no such directory; make it, or mount"):
        await lost.check()
    with pytest.raises(UnavailableError, match="mount its disk"):
        await lost.put("a", b"x")
    assert not (tmp_path / "disk").exists()


async def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidError, match="is no directory"):
            await DiskProvider(root).check()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
async def test_a_directory_that_is_not_ours(
    provider: DiskProvider, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    provider.root.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(DeniedError, match="let this user read and write"):
            await provider.check()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(DeniedError, match="object a of"):
            await provider.get("a", 0, 1)
        with pytest.raises(DeniedError, match="object a of"):
            await provider.put("a", b"x")


async def test_a_disk_that_went_away_takes_no_puts(provider: DiskProvider) -> None:
    await provider.check()
    await provider.put("a/b", b"x")
    provider.root.rename(provider.root.with_name("unmounted"))
    with pytest.raises(UnavailableError, match="mount its disk"):
        await provider.put("a/c", b"y")
    provider.root.mkdir()
    provider._device = 0
    with pytest.raises(UnavailableError, match="lies on another disk"):
        await provider.put("a/c", b"y")
    assert files(provider) == []


async def test_a_url_quotes_its_path(tmp_path: Path) -> None:
    assert DiskProvider(tmp_path / "a b").url == f"file://{tmp_path}/a%20b"
    assert DiskProvider(tmp_path, adopts=True).url == ""


# files that have no name yet
async def test_what_a_crash_left_is_removed_but_not_what_somebody_writes(
    provider: DiskProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provider.put("a/b", b"x")
    left, writing, young = (provider.root / "a" / f"{name}.part" for name in ("left", "writing", "young"))
    old = time.time() - 2 * module.PART_AGE
    for path in (left, writing, young):
        path.write_bytes(b"half")
        if path is not young:
            os.utime(path, (old, old))
    with writing.open("rb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        assert await _names(provider) == ["a/b"]
        assert files(provider) == ["a/b", "a/writing.part", "a/young.part"]
    monkeypatch.setattr(module, "PART_AGE", 0.0)
    assert await _names(provider, "a/b") == ["a/b"]
    assert files(provider) == ["a/b"]


async def test_a_put_under_way_is_not_left_over(provider: DiskProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a put that waits for the disk stays, however old it looks."""
    monkeypatch.setattr(module, "PART_AGE", -10.0)
    fsync = os.fsync
    listed: list[list[str]] = []

    def slow(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
            listed.append(trio.from_thread.run(_names, provider))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    await provider.put("a/b", b"x")
    assert listed == [[]]
    assert await provider.get("a/b", 0, 1) == b"x"


async def test_names_of_such_files_are_refused(provider: DiskProvider) -> None:
    with pytest.raises(InvalidError, match=r"names that end in \.part are taken"):
        await provider.put("a/b.part", b"x")


async def test_a_put_that_meets_a_full_disk_leaves_nothing(
    provider: DiskProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provider.put("a/b", b"old")
    (tmp_path / "source").write_bytes(b"new")

    def full(source: int, target: int, length: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(NoSpaceError, match="no room for object a/b"):
        await provider.put("a/b", tmp_path / "source")
    assert files(provider) == ["a/b"]
    assert await provider.get("a/b", 0, 3) == b"old"


async def test_a_file_system_without_copy_file_range(
    provider: DiskProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(source: int, target: int, length: int) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", cannot)
    monkeypatch.setattr(module, "STEP", 1000)
    data = os.urandom(4321)
    (tmp_path / "source").write_bytes(data)
    await provider.put("a", tmp_path / "source")
    assert await provider.get("a", 0, len(data)) == data


# names and directories
async def test_names_in_each_others_way(provider: DiskProvider) -> None:
    await provider.put("a/b", b"x")
    with pytest.raises(InvalidError, match="cannot have this name"):
        await provider.put("a/b/c", b"y")
    with pytest.raises(InvalidError, match="cannot have this name"):
        await provider.put("a", b"y")
    for name in ("a", "a/b/c"):
        with pytest.raises(NotFoundError):
            await provider.get(name, 0, 1)
        with pytest.raises(NotFoundError):
            await provider.head(name)
        await provider.delete([name])
    assert files(provider) == ["a/b"]


async def test_empty_directories_go_with_their_last_object(provider: DiskProvider) -> None:
    for name in ("g/a/1", "g/a/2", "g/b/1"):
        await provider.put(name, b"x")
    await provider.delete(["g/a/1", "g/a/2"])
    assert sorted(path.name for path in (provider.root / "g").iterdir()) == ["b"]
    await provider.delete(["g/b/1"])
    assert list(provider.root.iterdir()) == []


async def test_puts_and_deletes_in_the_same_directories(provider: DiskProvider) -> None:
    async def rounds(name: str) -> None:
        for _ in range(100):
            await provider.put(name, b"x")
            await provider.delete([name])

    async with trio.open_nursery() as nursery:
        for name in ("a/b/1", "a/b/2", "a/c", "a/b/d/3"):
            nursery.start_soon(rounds, name)
    assert list(provider.root.iterdir()) == []


async def test_an_adopting_one_keeps_the_directories_of_the_store(tmp_path: Path) -> None:
    provider = DiskProvider(tmp_path, adopts=True)
    path = tmp_path / "a" / "00000000"
    path.parent.mkdir()
    path.write_bytes(b"bytes")
    before = path.stat()
    etag = (await provider.head("a/00000000")).etag
    await provider.put("a/00000000", path)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with path.open("ab") as file:
        file.write(b"more")
    assert (await provider.head("a/00000000")).etag != etag
    with pytest.raises(BusyError, match="a/00000000 has changed"):
        await provider.copy("a/00000000", "b", etag)
    await provider.delete(["a/00000000"])
    assert path.parent.is_dir()


async def test_directories_above_are_on_the_disk_before_the_name(
    provider: DiskProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    await provider.put("a/b/c", b"x")
    root = provider.root
    assert synced[:3] == [str(root.parent), str(root), str(root / "a")]
    assert synced[3].endswith(".part") and synced[4:] == [str(root / "a" / "b")]
