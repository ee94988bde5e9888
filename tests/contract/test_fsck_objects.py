"""fsck of stores whose bytes a provider keeps, and of the records that say what is to be deleted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from artfs.errors import UnavailableError
from artfs.objects.framed import FramedProvider
from artfs.objects.memory import MemoryProvider
from artfs.settings import create_store
from artfs.volume.fsck import Report, check
from tests.contract.fsck_store import kinds, report_text
from tests.contract.garbage import OneProvider, World, put, read

MIB = 1 << 20
ONE = bytes(range(256)) * 400
TWO = ONE[::-1] * 3


class Counting(OneProvider):
    """Counts requests; `codec` wraps the provider as a home with it would."""

    def __init__(self, root: Path, codec: str = "") -> None:
        super().__init__(root)
        self.calls: list[tuple[str, str]] = []
        real_get, real_list = self.provider.get, self.provider.list

        async def get(name: str, offset: int, length: int) -> bytes:
            self.calls.append(("get", name))
            return await real_get(name, offset, length)

        def listed(prefix: str) -> AsyncIterator[tuple[str, int]]:
            self.calls.append(("list", prefix))
            return real_list(prefix)

        self.provider.get = get  # type: ignore[method-assign]
        self.provider.list = listed  # type: ignore[method-assign]
        if codec:
            (root.parent / "scratch").mkdir(exist_ok=True)
            self.provider = FramedProvider(self.provider, codec, None, root.parent / "scratch")  # type: ignore[assignment]


class Backed:
    """A store, closed: `ws` has a file in the provider and one that still waits here."""

    def __init__(self, root: Path, codec: str = "") -> None:
        self.root = root
        self.codec = codec
        create_store(root)
        trio.run(self.fill)

    async def fill(self) -> None:
        world = World(self.root, "backed", compression=self.codec)
        if self.codec:
            world.providers.provider = self.providers().provider
        volume = await world.make()
        self.serial = volume.tree.serial
        self.prefix = volume.namespace.prefix
        await put(volume, b"one", ONE)
        await put(volume, b"two", TWO)
        await world.settle()
        await put(volume, b"waits", TWO)
        await world.close()

    def providers(self) -> Counting:
        return Counting(self.root / "provider", self.codec)

    def check(self, repair: bool = False, data: bool = True) -> Report:
        return check(self.root, repair=repair, data=data, providers=self.providers())

    def kept(self) -> Path:
        (found,) = (path for path in (self.root / "provider").rglob("*") if path.is_file())
        return found

    def copy(self) -> Path:
        (found,) = (path for path in (self.root / "cache" / self.prefix).iterdir())
        return found

    def records(self, records: dict[tuple[str, str], str | None]) -> None:
        world = World(self.root, "backed")
        world.engine.commit([], records)
        world.shard.abandon()

    def record(self, kind: str, id: str) -> str | None:
        world = World(self.root, "backed")
        try:
            return world.engine.record(kind, id)  # type: ignore[no-any-return]
        finally:
            world.shard.abandon()


@pytest.fixture
def backed(tmp_path: Path) -> Backed:
    return Backed(tmp_path / "store")


@pytest.mark.parametrize("data", [False, True])
def test_a_store_whose_bytes_are_elsewhere_is_clean(backed: Backed, data: bool) -> None:
    backed.copy().unlink()
    providers = backed.providers()
    report = check(backed.root, data=data, providers=providers)
    assert report.problems == [], report_text(report)
    assert report.counts["objects"] == 2
    assert report.counts["chunks_verified"] == (3 if data else 0)
    assert [call for call, _ in providers.calls] == ["list", "get"][: 1 + data]


def test_what_the_provider_has_lost_is_found(backed: Backed) -> None:
    backed.kept().unlink()
    for data in (False, True):
        report = backed.check(data=data)
        assert kinds(report) == {"data"}, report_text(report)
        assert {problem.where.rpartition("/")[2] for problem in report.problems} == {"one", "two"}
        assert all("missing in test:" in problem.what for problem in report.problems)


def test_what_is_short_in_the_provider_is_found(backed: Backed) -> None:
    backed.kept().write_bytes(backed.kept().read_bytes()[:-10])
    for data in (False, True):
        report = backed.check(data=data)
        assert [problem.where.rpartition("/")[2] for problem in report.problems] == ["two"], report_text(report)


@pytest.mark.parametrize("codec", ["", "zstd"])
def test_wrong_bytes_in_the_provider_are_found(tmp_path: Path, codec: str) -> None:
    backed = Backed(tmp_path / "store", codec)
    assert backed.check().problems == []
    kept = backed.kept()
    whole = bytearray(kept.read_bytes())
    whole[200 if codec else 100] ^= 1
    kept.write_bytes(whole)
    if not codec:
        assert backed.check(data=False).ok
    report = backed.check()
    assert not report.ok
    if not codec:
        assert [problem.where.rpartition("/")[2] for problem in report.problems] == ["one"], report_text(report)
        assert "damaged in test:" in report.problems[0].what
        # The copy here is right; what others would read is not.
        assert backed.check(repair=True).ok is False


def test_a_wrong_copy_is_harmless_and_repair_deletes_it(backed: Backed) -> None:
    whole = bytearray(backed.copy().read_bytes())
    whole[5] ^= 1
    backed.copy().write_bytes(whole)
    assert backed.check(data=False).notes == []
    report = backed.check()
    assert report.ok and any("in the cache" in note for note in report.notes)
    assert backed.copy().exists()
    report = backed.check(repair=True)
    assert report.ok and any("were deleted" in note for note in report.notes)
    assert not list((backed.root / "cache" / backed.prefix).iterdir())
    assert not any("in the cache" in note for note in backed.check().notes)

    async def still_there() -> None:
        world = World(backed.root, "backed")
        await world.shard.recover()
        world.shard.remote.load()
        assert await read(world.volume().tree, b"one") == ONE
        await world.close()

    trio.run(still_there)


def test_copies_with_holes_are_no_wrong_copies(backed: Backed) -> None:
    copy = backed.copy()
    size = copy.stat().st_size
    copy.unlink()
    with copy.open("wb") as file:
        file.truncate(size)
    assert backed.check().notes == []
    assert copy.exists()


def test_a_provider_that_does_not_answer_is_said_once(backed: Backed) -> None:
    providers = backed.providers()
    tries = []

    def away(prefix: str) -> AsyncIterator[tuple[str, int]]:
        tries.append(prefix)
        raise UnavailableError("test: does not answer")

    providers.provider.list = away  # type: ignore[method-assign]
    report = check(backed.root, data=True, providers=providers)
    assert kinds(report) == {"provider"} and len(report.problems) == 1, report_text(report)
    assert len(tries) == 1
    assert report.counts["chunks_verified"] == 1  # what is here


@pytest.mark.parametrize("data", [False, True])
def test_what_ended_with_its_process_is_no_damage(backed: Backed, data: bool) -> None:
    providers = backed.providers()
    providers.provider = MemoryProvider()  # type: ignore[assignment]
    report = check(backed.root, data=data, providers=providers)
    assert report.problems == [], report_text(report)


def test_garbage_in_the_provider_is_counted(backed: Backed) -> None:
    (backed.kept().parent / "0000beef").write_bytes(b"12345")
    report = backed.check(data=False)
    assert report.ok
    assert (report.counts["garbage_objects"], report.counts["garbage_bytes"]) == (1, 5)


# records
def test_a_home_record_is_made_again(backed: Backed) -> None:
    right = backed.record("home", str(backed.serial))
    assert right == json.dumps({"provider": "test:", "codec": ""})
    for wrong in (None, "nonsense", json.dumps({"provider": "other:", "codec": ""}), "{}", '{"provider": 5}'):
        backed.records({("home", str(backed.serial)): wrong})
        assert kinds(backed.check()) == {"catalogue"}
        assert backed.check(repair=True).ok
        assert backed.record("home", str(backed.serial)) == right
        assert backed.check().problems == []


def test_a_lost_document_is_made_again_with_its_home(backed: Backed) -> None:
    id = backed.prefix.rpartition("/")[2]
    backed.records({("namespace", id): None})
    report = backed.check(repair=True)
    assert report.ok and report.problems, report_text(report)
    document = json.loads(backed.record("namespace", id) or "")
    assert (document["provider"], document["codec"]) == ("test:", "")
    assert backed.check().problems == []


@pytest.mark.parametrize(
    ("kind", "id", "doc"),
    [
        ("doomed", "own", ""),
        ("doomed", "x", ""),
        ("doomed", "999", ""),
        ("condemned", "xyz", "5"),
        ("condemned", "00ff", "5"),
        ("condemned", "ff", "late"),
        ("condemned", "named", "5"),
    ],
)
def test_what_must_not_be_deleted_is_taken_back(backed: Backed, kind: str, id: str, doc: str) -> None:
    id = {"own": str(backed.serial), "named": f"{backed.serial << 32:x}"}.get(id, id)
    backed.records({(kind, id): doc})
    assert kinds(backed.check()) == {"catalogue"}
    report = backed.check(repair=True)
    assert report.ok, report_text(report)
    assert backed.record(kind, id) is None
    assert backed.check().problems == []


def test_what_was_lent_must_not_be_doomed(backed: Backed) -> None:
    backed.records({("prefix", "77"): "grid/box/shared/ns-gone", ("lent", "77"): "", ("doomed", "77"): ""})
    assert kinds(backed.check()) == {"catalogue"}
    assert backed.check(repair=True).ok
    assert backed.record("doomed", "77") is None and backed.record("lent", "77") == ""


def test_what_waits_to_be_deleted_is_no_garbage_and_no_problem(backed: Backed) -> None:
    serial = 77
    place = "grid/box/shared/ns-gone"
    (backed.root / "objects" / place).mkdir(parents=True)
    (backed.root / "objects" / place / "00000000").write_bytes(b"12345")
    backed.records(
        {
            ("prefix", str(serial)): place,
            ("doomed", str(serial)): "",
            ("condemned", "4d00000000"): "5",
            ("counter", "serial"): "78",
        }
    )
    report = backed.check()
    assert report.problems == [], report_text(report)
    assert report.counts["garbage_objects"] == 0
    assert any("wait to be deleted" in note for note in report.notes)


def test_a_codec_that_cannot_be_is_found(backed: Backed) -> None:
    id = backed.prefix.rpartition("/")[2]
    document = json.loads(backed.record("namespace", id) or "")
    for change in ({"codec": "gzip"}, {"provider": "", "codec": "zstd"}):
        backed.records({("namespace", id): json.dumps({**document, **change})})
        assert "catalogue" in kinds(backed.check(data=False))
