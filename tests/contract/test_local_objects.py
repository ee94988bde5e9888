"""Objects on the local disk and in memory: where chunks go, what a sync promises, which descriptors are held."""

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from xxhash import xxh3_128_digest

from artfs.blocks import Chunk
from artfs.errors import DamagedError
from artfs.objects import OBJECT_LIMIT, held, local, object_number
from artfs.objects.held import HeldObjects
from artfs.objects.local import LocalObjects
from artfs.objects.writing import PIECE

A, B = 5, 6
T = TypeVar("T", bound=LocalObjects)
PREFIX = {A: "grid/box/shared/ns-a", B: "grid/box/user-u/ns-b"}


def _open(root: Path) -> LocalObjects:
    return _registered(LocalObjects(root))


def _held() -> HeldObjects:
    return _registered(HeldObjects())


def _registered(objects: T) -> T:
    for serial, prefix in PREFIX.items():
        objects.register(serial, prefix, 0)
    return objects


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[LocalObjects]:
    made = _open(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["disk", "memory"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalObjects]:
    made = _open(tmp_path) if request.param == "disk" else _held()
    yield made
    made.close()


def _fresh(chunk: Chunk) -> Chunk:
    """The same place, as a row names it: not verified yet."""
    return Chunk(chunk.object, chunk.offset, chunk.length, chunk.hash)


class Disk:
    """Which files hold their bytes for good: what a power loss would leave of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: dict[int, int] = {}
        self.synced: list[int] = []
        self.real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def fdatasync(self, fd: int) -> None:
        self.real(fd)
        found = os.fstat(fd)
        self.synced.append(found.st_ino)
        self.kept[found.st_ino] = found.st_size


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


# appending
def test_what_is_appended_is_read(either: LocalObjects) -> None:
    first = either.append(A, b"hello")
    second = either.append(A, memoryview(b"world!"))
    assert (first.object, first.offset, first.length) == (object_number(A, 0), 0, 5)
    assert (second.object, second.offset, second.length) == (object_number(A, 0), 5, 6)
    assert first.hash == xxh3_128_digest(b"hello")
    assert first.verified and second.verified
    assert either.read(_fresh(first)) == b"hello"
    assert either.read(_fresh(second)) == b"world!"
    assert either.size(second.object) == 11


def test_several_lie_next_to_each_other(either: LocalObjects) -> None:
    datas = [bytes([n % 251]) * (n % 7) for n in range(1500)]  # more than one vector holds, empty ones among them
    chunks = either.append_all(A, datas)
    at = 0
    for data, chunk in zip(datas, chunks, strict=True):
        assert (chunk.object, chunk.offset, chunk.length) == (object_number(A, 0), at, len(data))
        assert either.read(_fresh(chunk)) == data
        at += len(data)


def test_large_writes_and_seals_have_objects_of_their_own(either: LocalObjects) -> None:
    one = either.append(A, b"one")
    (two,) = either.append_all(A, [b"two"])
    three = either.append(A, b"three")
    assert one.object == three.object != two.object
    assert (two.offset, three.offset) == (0, 3)


def test_namespaces_have_objects_of_their_own(either: LocalObjects) -> None:
    assert either.append(A, b"x").object >> 32 == A
    assert either.append(B, b"x").object >> 32 == B


def test_an_object_lies_under_the_name_of_its_namespace(objects: LocalObjects, tmp_path: Path) -> None:
    objects.append(A, b"one")
    objects.append_all(A, [b"two"])
    folder = tmp_path / PREFIX[A]
    assert sorted(path.name for path in folder.iterdir()) == ["00000000", "00000001"]
    assert (folder / "00000000").read_bytes() == b"one"
    assert stat.S_IMODE((folder / "00000000").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("short", [1, 3000])
def test_a_short_write_is_completed(either: LocalObjects, monkeypatch: pytest.MonkeyPatch, short: int) -> None:
    pwritev, pwrite = os.pwritev, os.pwrite

    def some(fd: int, parts: list[bytes], at: int) -> int:
        return pwritev(fd, [b"".join(parts)[:short]], at)

    monkeypatch.setattr(os, "pwritev", some)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:1000], at))
    chunks = either.append_all(A, [b"a" * 2000, b"b" * 2500])
    assert [either.read(_fresh(chunk)) for chunk in chunks] == [b"a" * 2000, b"b" * 2500]


def test_large_writes_are_divided_and_end_at_multiples(objects: LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev = os.pwritev
    ends: list[int] = []

    def seen(fd: int, parts: list[bytes], at: int) -> int:
        assert len(parts) <= 512
        done = pwritev(fd, parts, at)
        assert 0 < done <= PIECE
        ends.append(at + done)
        return done

    monkeypatch.setattr(os, "pwritev", seen)
    large = bytes(range(251)) * 5000
    datas: list[bytes | memoryview] = [
        b"a",
        large,
        b"",
        large[:PIECE],
        b"b" * 100,
        memoryview(large)[7 : 3 * PIECE],
        *[b"c"] * 2000,
    ]
    chunks = objects.append_all(A, datas)
    assert [objects.read(_fresh(chunk)) for chunk in chunks] == [bytes(data) for data in datas]
    size = sum(map(len, datas))
    assert ends[-1] == size
    assert set(range(PIECE, size - 2000, PIECE)) <= set(ends)
    assert len(ends) <= size // PIECE + 1 + 2000 // 512 + 1


def test_a_write_that_fails_names_nothing_and_the_next_one_goes_on(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, parts: list[bytes], at: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(os, "pwritev", full)
        objects.append(A, b"lost")
    chunk = objects.append(A, b"kept")
    assert objects.read(_fresh(chunk)) == b"kept"


def test_an_object_that_could_not_be_opened_fully_does_not_stand_in_the_way(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is made, its directory cannot be opened: the next attempt takes another number."""
    real = os.open

    def no_directories(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(24, "Too many open files")
        return real(path, flags, mode)

    (objects.path(object_number(A, 0)).parent).mkdir(parents=True)
    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(os, "open", no_directories)
        objects.append(A, b"lost")
    chunk = objects.append(A, b"kept")
    assert chunk.object == object_number(A, 1)
    assert objects.read(_fresh(chunk)) == b"kept"


# rotation
def test_a_full_object_takes_no_more(either: LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "OBJECT_LIMIT", 100)
    monkeypatch.setattr(held, "OBJECT_LIMIT", 100)
    assert OBJECT_LIMIT == 64 << 20
    places = [(c.object & 0xFF, c.offset) for c in (either.append(A, bytes(n)) for n in (60, 40, 1, 99, 1))]
    assert places == [(0, 0), (0, 60), (1, 0), (1, 1), (2, 0)]


def test_a_chunk_larger_than_an_object_gets_one_of_its_own(
    either: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "OBJECT_LIMIT", 100)
    monkeypatch.setattr(held, "OBJECT_LIMIT", 100)
    large, small = either.append(A, bytes(500)), either.append(A, b"x")
    assert (large.object & 0xFF, small.object & 0xFF) == (0, 1)
    assert either.read(_fresh(large)) == bytes(500)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_nothing_is_appended_to_an_object_of_an_earlier_process(tmp_path: Path, count: int) -> None:
    """`count` is what the engine knew: it may be older than what is on the disk."""
    before = _open(tmp_path)
    old = before.append(A, b"old")
    before.append_all(A, [b"sealed"])
    torn = before.path(object_number(A, 2))
    torn.write_bytes(b"half a chu")
    (torn.parent / "notes.txt").touch()
    before.close()
    objects = LocalObjects(tmp_path)
    objects.register(A, PREFIX[A], count)
    new = objects.append(A, b"new")
    assert new.object == object_number(A, max(count, 3))
    assert (new.offset, objects.read(_fresh(new)), objects.read(_fresh(old))) == (0, b"new", b"old")
    assert torn.read_bytes() == b"half a chu"
    objects.close()


# durability
def test_a_sync_makes_bytes_and_names_durable(objects: LocalObjects, disk: Disk) -> None:
    chunk = objects.append(A, b"12345")
    (sealed,) = objects.append_all(A, [b"1234567"])
    assert disk.kept == {}
    folder = objects.path(chunk.object).parent
    assert len(objects.unsynced) == len(objects.sealing) == 2  # each its object, and the directory
    objects.sync()
    assert objects.unsynced == {} == objects.sealing
    assert disk.kept[objects.path(chunk.object).stat().st_ino] == 5
    assert disk.kept[objects.path(sealed.object).stat().st_ino] == 7
    assert folder.stat().st_ino in disk.kept
    objects.sync()
    assert len(disk.synced) == 4  # nothing had grown since


def test_directories_above_are_durable_when_they_are_made(
    objects: LocalObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    objects.append(A, b"x")
    folder = tmp_path / PREFIX[A]
    for path in (tmp_path, *[p for p in folder.parents if p.is_relative_to(tmp_path)]):
        assert path.stat().st_ino in synced, path


def test_an_object_is_synced_again_once_it_has_grown(objects: LocalObjects, disk: Disk) -> None:
    chunk = objects.append(A, b"12345")
    objects.sync()
    objects.append(A, b"678")
    assert len(objects.unsynced) == 1  # not its directory
    objects.sync()
    assert disk.kept[objects.path(chunk.object).stat().st_ino] == 8
    assert objects.unsynced == {}


def test_what_is_appended_during_a_sync_is_not_taken_for_synced(
    objects: LocalObjects, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = objects.append(A, b"12345")
    fdatasync = disk.fdatasync
    more = [b"678"]

    def grows_after(fd: int) -> None:
        fdatasync(fd)
        if more and stat.S_ISREG(os.fstat(fd).st_mode):
            objects.append(A, more.pop())

    monkeypatch.setattr(os, "fdatasync", grows_after)
    objects.sync()
    ino = objects.path(chunk.object).stat().st_ino
    assert disk.kept[ino] == 5 and len(objects.unsynced) == 1
    objects.sync()
    assert disk.kept[ino] == 8 and objects.unsynced == {}


@pytest.mark.parametrize("sealing", [False, True])
def test_a_write_that_is_under_way_during_a_sync_is_not_taken_for_synced(
    objects: LocalObjects, disk: Disk, monkeypatch: pytest.MonkeyPatch, sealing: bool
) -> None:
    """Its place is reserved, its bytes are not there yet when the sync comes by."""

    def append(data: bytes) -> Chunk:
        return objects.append_all(A, [data])[0] if sealing else objects.append(A, data)

    chunk = append(b"12345")
    pwritev = os.pwritev

    def synced_before(fd: int, parts: list[bytes], at: int) -> int:
        objects.sync()
        return pwritev(fd, parts, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", synced_before)
        append(b"678")
    ino = objects.path(chunk.object).stat().st_ino
    assert disk.kept[ino] == 5
    objects.sync()
    assert disk.kept[ino] == 8


def test_after_a_sync_that_failed_none_succeeds(
    objects: LocalObjects, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says once that it lost bytes, and takes those for written then."""
    objects.append(A, b"1")
    objects.append(B, b"2")
    grown = dict(objects.unsynced)

    def fails(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(os, "fdatasync", fails)
        objects.sync()
    assert objects.unsynced == grown
    with pytest.raises(OSError, match="Input/output"):
        objects.sync()
    assert not disk.kept


# reading
def test_a_damaged_object_is_named_with_the_remedy(objects: LocalObjects) -> None:
    chunk = objects.append(A, b"hello world")
    path = objects.path(chunk.object)
    data = bytearray(path.read_bytes())
    data[4] ^= 1
    path.write_bytes(data)
    damaged = _fresh(chunk)
    with pytest.raises(DamagedError, match=rf"{path} is damaged at 0\+11; run: artfs fsck --data"):
        objects.read(damaged)
    assert not damaged.verified


def test_an_object_that_is_cut_short_is_damage(objects: LocalObjects) -> None:
    chunk = objects.append(A, b"hello world")
    os.truncate(objects.path(chunk.object), 10)
    with pytest.raises(DamagedError, match="is damaged at"):
        objects.read(_fresh(chunk))


def test_damage_in_memory_has_no_path(tmp_path: Path) -> None:
    objects = _held()
    chunk = objects.append(A, b"hello")
    chunk = Chunk(chunk.object, chunk.offset, chunk.length, bytes(16))
    with pytest.raises(DamagedError, match=f"object {chunk.object:x} is damaged"):
        objects.read(chunk)
    objects.close()


def test_a_chunk_is_hashed_once(objects: LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = _fresh(objects.append(A, b"hello"))
    assert objects.read(chunk) == b"hello"
    assert chunk.verified

    def never(data: bytes) -> bytes:
        raise AssertionError("hashed again")

    monkeypatch.setattr(local, "xxh3_128_digest", never)
    assert objects.read(chunk) == b"hello"


def test_a_missing_object_is_damage(tmp_path: Path) -> None:
    before = _open(tmp_path)
    chunk = before.append(A, b"hello")
    path = before.path(chunk.object)
    before.close()
    path.unlink()
    objects = _open(tmp_path)
    for read in (lambda: objects.read(_fresh(chunk)), lambda: objects.descriptor(chunk.object)):
        with pytest.raises(DamagedError, match=f"{path} is missing; run: artfs fsck"):
            read()
    objects.close()


def test_an_object_of_nobody_is_damage(either: LocalObjects) -> None:
    with pytest.raises(DamagedError):
        either.descriptor(object_number(99, 0))
    with pytest.raises(DamagedError):
        either.read(Chunk(object_number(99, 0), 0, 1, bytes(16)))


# descriptors
def _old_objects(root: Path, count: int) -> list[Chunk]:
    """Chunks in as many objects of an earlier process."""
    before = _open(root)
    chunks = []
    for n in range(count):
        chunks.append(before.append(A, b"%04d" % n))
        before.forget(A, gone=True)
        before.reap()
    before.close()
    return chunks


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_descriptor_is_kept_for_the_next_reader(tmp_path: Path) -> None:
    (chunk,) = _old_objects(tmp_path, 1)
    objects = _open(tmp_path)
    fd = objects.descriptor(chunk.object)
    assert objects.descriptor(chunk.object) == fd
    assert objects.unsynced == {}
    objects.close()
    assert not _is_open(fd)


def test_the_table_is_trimmed_and_closes_only_what_no_reader_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "DESCRIPTORS", 8)
    chunks = _old_objects(tmp_path, 12)
    objects = _open(tmp_path)
    queued, done = 5, 3
    objects.readers = lambda: (queued, done)
    fds = {chunk.object: objects.descriptor(chunk.object) for chunk in chunks[:9]}  # the ninth trims two
    objects.reap()
    assert all(_is_open(fd) for fd in fds.values())  # readers 4 and 5 may use them
    queued, done = 7, 4
    objects.reap()
    assert all(_is_open(fd) for fd in fds.values())
    done = 5
    objects.reap()
    assert [_is_open(fds[chunk.object]) for chunk in chunks[:9]] == [False] * 2 + [True] * 7
    for chunk in chunks:  # and those that were closed are opened again
        assert os.pread(objects.descriptor(chunk.object), 4, 0) == objects.read(_fresh(chunk))
    objects.close()


def test_objects_that_grow_or_are_not_synced_stay_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "DESCRIPTORS", 4)
    monkeypatch.setattr(local, "OBJECT_LIMIT", 10)
    chunks = _old_objects(tmp_path, 9)
    objects = _open(tmp_path)
    rotated = objects.append(B, bytes(10))
    growing = objects.append(B, b"x")
    (sealed,) = objects.append_all(B, [b"y"])
    mine = [objects.descriptor(chunk.object) for chunk in (rotated, growing, sealed)]
    for chunk in chunks:
        objects.descriptor(chunk.object)
    objects.reap()
    assert all(_is_open(fd) for fd in mine)
    objects.sync()
    for chunk in chunks * 2:
        objects.descriptor(chunk.object)
        objects.reap()
    assert _is_open(mine[1]) and _is_open(mine[2])
    assert os.pread(objects.descriptor(rotated.object), 10, 0) == bytes(10)
    objects.close()


def test_objects_in_memory_take_no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "OBJECT_LIMIT", 4)
    before = len(os.listdir("/proc/self/fd"))
    objects = _held()
    chunks = [objects.append(A, b"%04d" % n) for n in range(10)]
    objects.sync()
    objects.reap()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(objects.sizes(A)) == 10 and set(objects.sizes(A).values()) == {4}
    assert [objects.read(_fresh(chunk)) for chunk in chunks] == [b"%04d" % n for n in range(10)]
    objects.close()


def test_a_file_becomes_an_object_in_memory(tmp_path: Path) -> None:
    """In pieces, across which chunks may lie."""
    objects = _held()
    data = os.urandom(2 * held.ADOPTED + 100)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        number = objects.allocate(A)
        objects.adopt(number, file.fileno(), len(data))
    assert objects.size(number) == len(data)
    for at, length in ((0, len(data)), (held.ADOPTED - 5, 10), (2 * held.ADOPTED, 100), (3, held.ADOPTED - 3)):
        part = data[at : at + length]
        assert objects.read(Chunk(number, at, length, xxh3_128_digest(part))) == part
        assert objects.piece(Chunk(number, 0, len(data), b""), at, length) == part
    with pytest.raises(DamagedError, match="ends before"):
        objects.piece(Chunk(number, 0, len(data), b""), 0, len(data) + 1)
    objects.close()


def test_a_reader_in_a_thread_is_not_given_another_object_s_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it reads, its descriptor falls out of the table, is closed, and its number becomes another file's."""
    chunks = _old_objects(tmp_path, 2)
    objects = _open(tmp_path)
    table_fd = objects.descriptor(chunks[0].object)
    pread = os.pread

    def meanwhile(fd: int, length: int, at: int) -> bytes:
        monkeypatch.setattr(os, "pread", pread)
        objects.forget(A, gone=False)
        objects.reap()
        objects.reap()
        assert objects.descriptor(chunks[1].object) == table_fd
        return pread(fd, length, at)

    monkeypatch.setattr(os, "pread", meanwhile)
    assert objects.read(chunks[0]) == b"0000"
    objects.close()


# the end of a namespace
def test_forgotten_descriptors_are_closed_once_nobody_uses_them(objects: LocalObjects) -> None:
    chunk = objects.append(A, b"x")
    objects.append_all(A, [b"y"])
    other = objects.append(B, b"z")
    grown = [*objects.unsynced, *objects.sealing]
    objects.readers = lambda: (3, 2)
    kept = objects.descriptor(other.object)
    objects.forget(A, gone=True)
    objects.reap()
    assert [fd for fd in grown if not _is_open(fd)] == []  # an fsync that knows their numbers may be at it
    assert all(_is_open(fd) for fd in objects.unsynced)
    assert len(objects.unsynced) == 2 and objects.sealing == {}  # B's object and directory
    objects.readers = lambda: (3, 3)
    objects.reap()
    assert [_is_open(fd) for fd in grown].count(True) == 2
    assert _is_open(kept) and objects.read(_fresh(other)) == b"z"
    assert objects.path(chunk.object).exists()  # whoever destroys a namespace deletes its files


def test_what_a_closed_namespace_has_not_synced_is_synced_before_it_is_closed(
    objects: LocalObjects, disk: Disk
) -> None:
    """A compaction appends to one that nobody has open, and names the chunks later."""
    objects.append_all(A, [b"y"])
    grown = list(objects.sealing)
    objects.forget(A, gone=False)
    for _ in range(3):
        objects.reap()
    assert list(objects.sealing) == grown and all(map(_is_open, grown))
    objects.sync()
    assert len(disk.synced) == len(grown)
    for _ in range(2):
        objects.reap()
    assert not any(map(_is_open, grown))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_what_is_written_or_synced_is_not_closed(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch, exact: bool, gone: bool
) -> None:
    """Its number would be another file's: here its namespace ends while a thread writes, and while one syncs."""
    pwritev, fdatasync = os.pwritev, os.fdatasync
    seen: list[int] = []

    def ends(fd: int) -> None:
        inode = os.fstat(fd).st_ino
        objects.forget(A, gone=gone)
        for _ in range(4):
            objects.reap()
        assert os.fstat(fd).st_ino == inode
        seen.append(fd)

    def write(fd: int, buffers: list[bytes], at: int) -> int:
        ends(fd)
        return pwritev(fd, buffers, at)

    def sync(fd: int) -> None:
        ends(fd)
        fdatasync(fd)

    objects.append(B, b"other")
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", write)
        if exact:
            writer = objects.begin_exact(A)
            writer.write(b"x")
            writer.close()
            writer.close()
        else:
            objects.append(A, b"x")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", sync)
        objects.sync()
    assert len(seen) > 1
    for _ in range(3):
        objects.reap()
    assert not _is_open(seen[0]) and objects.broken is None


def test_a_namespace_that_comes_back_begins_another_object(objects: LocalObjects) -> None:
    first = objects.append(A, b"x")
    objects.forget(A, gone=True)
    objects.register(A, PREFIX[A], 0)
    second = objects.append(A, b"y")
    assert second.object == first.object + 1
    assert (objects.read(_fresh(first)), objects.read(_fresh(second))) == (b"x", b"y")


def test_in_memory_objects_last_until_they_are_deleted() -> None:
    """A clone, or the trash, may name chunks of a namespace that is closed."""
    objects = _held()
    large = objects.append(A, b"lent")
    (sealed,) = objects.append_all(A, [b"sealed"])
    objects.forget(A, gone=True)
    assert (objects.read(_fresh(large)), objects.read(_fresh(sealed))) == (b"lent", b"sealed")
    later = objects.append(A, b"back from the trash")
    assert later.object not in (large.object, sealed.object)
    objects.delete(A)
    assert objects.sizes(A) == {}
    with pytest.raises(DamagedError, match="not in memory"):
        objects.read(_fresh(large))
    objects.close()


def test_close_lets_go_of_everything(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    objects = _open(tmp_path)
    objects.append(A, b"x")
    objects.append_all(B, [b"y"])
    objects.forget(A, gone=True)
    objects.close()
    assert set(os.listdir("/proc/self/fd")) == before


# threads
@pytest.mark.parametrize("limit", [OBJECT_LIMIT, 5000])
def test_threads_append_and_sync_at_once(either: LocalObjects, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(local, "OBJECT_LIMIT", limit)
    monkeypatch.setattr(held, "OBJECT_LIMIT", limit)
    found: list[tuple[Chunk, bytes]] = []
    stop = threading.Event()
    errors: list[BaseException] = []

    def write(seed: int) -> None:
        try:
            for n in range(200):
                data = b"%d:%d;" % (seed, n) * (1 + n % 9)
                chunk = either.append(A, data) if n % 2 else either.append_all(A, [data])[0]
                found.append((chunk, data))
        except BaseException as error:
            errors.append(error)

    def sync() -> None:
        while not stop.is_set():
            either.sync()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    syncer = threading.Thread(target=sync)
    for thread in (*writers, syncer):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    syncer.join()
    assert errors == []
    assert len(found) == 800
    ends: dict[int, int] = {}
    for chunk, data in sorted(found, key=lambda item: (item[0].object, item[0].offset)):
        assert chunk.offset == ends.get(chunk.object, 0)  # no gap, no overlap
        ends[chunk.object] = chunk.offset + chunk.length
        assert either.read(_fresh(chunk)) == data
    assert max(ends.values()) <= limit
