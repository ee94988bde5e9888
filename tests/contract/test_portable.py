"""A namespace as a file: what comes back is what left, whatever else goes on, or nothing comes back."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import anyio
import pytest
import trio

from artfs.errors import (
    ArtfsError,
    BusyError,
    DamagedError,
    ExistsError,
    FormatError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.grid import parse_path
from artfs.settings import create_store
from artfs.store import importing, portable, portable_file
from artfs.store.connecting import connect
from artfs.store.importing import IMPORTING, import_, left_behind, take_away
from artfs.store.opening import memory_store, open_store
from artfs.store.portable import export, left_pinned, release
from artfs.store.portable_file import Draft
from artfs.store.service import Service
from artfs.store.store import Store
from artfs.types import NamespaceType, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.fsck import check
from artfs.volume.node import Node
from artfs.volume.rows import KID_AT
from artfs.volume.tree import Tree
from artfs.volume.waiting import run as waiting
from tests.contract.fsck_store import Made

REPOSITORY = Path(__file__).parents[2]
COPY = parse_path("default/shared/copy")
Contents = dict[bytes, tuple[bytes, bytes, dict[bytes, bytes]]]


async def contents(tree: Tree) -> Contents:
    """Path → (the inode's row, bytes, attributes) of everything; numbers are kept, so rows are the same."""
    found: Contents = {}

    async def walk(node: Node, path: bytes) -> None:
        data = await waiting(tree.read_bytes, node, 0, node.size) if node.is_file else b""
        value = node.pack()
        attributes = {name: tree.getxattr(node, name) for name in tree.listxattr(node)}
        found[path] = (value[:KID_AT] + value[KID_AT + 4 :], data, attributes)
        if node.kids is not None:
            for name, entry in await waiting(tree.listing, node):
                await walk(tree.node(entry.ino), path + b"/" + name)

    await walk(tree.root(), b"")
    return found


async def versions(store: Store, namespace: Namespace) -> dict[str, Any]:
    """Everything that can be seen of it, by checkpoint; "" is the present."""
    volume = store.volume(namespace)
    await store.shard.commit()
    found: dict[str, Any] = {"": await contents(volume.tree)}
    for c in volume.checkpoints(all=True):
        what = (c.name, c.created, c.usage, c.description, dict(c.labels))
        found[c.id] = what, await contents(await volume.view(c.id))
    return found


def is_clean(root: Path) -> None:
    report = check(root, data=True)
    assert report.problems == []


async def a_namespace(store: Store, name: str = "web", **more: Any) -> Namespace:
    return await store.create_namespace("default", Scope.SANDBOX, None, name, **more)


def write(tree: Tree, name: bytes, data: bytes, at: int = 0) -> Node:
    node = tree.lookup(tree.root(), name) or tree.create(tree.root(), name, 0o644, 0, 0)
    tree.write(node, at, data)
    return node


# there and back
async def test_it_comes_back_with_every_version(made: Made, tmp_path: Path) -> None:
    """A store with something of everything: links, holes, attributes, several checkpoints, a clone that shares."""
    file = tmp_path / "work.artfs"
    async with open_store(made.root, "test") as store:
        work = store.catalogue.get(made.ids["work"])
        before = await versions(store, work)
        told: list[tuple[int, int]] = []
        summary = await export(store, work, file, lambda done, total: told.append((done, total)))
        assert summary.checkpoints == len(before) - 1 >= 2
        assert told[-1][0] == summary.bytes
        assert await versions(store, work) == before  # nothing of it is left
        copy = await import_(store, file, COPY)
        assert copy.grid_path == "grid/default/shared/copy"
        assert await versions(store, copy) == before
        # It is a namespace like any other.
        write(store.volume(copy).tree, b"small", b"changed")
        await store.restore(store.volume(copy), "one")
        assert (await versions(store, copy))[""].keys() == before["one"][1].keys()
    is_clean(made.root)
    async with open_store(tmp_path_store(tmp_path), "test") as other:
        other.sessions.create("default", "u", ttl_seconds=3600, id="s1")
        back = await import_(other, file)
        assert back.grid_path == "grid/default/sess-s1/work"
        assert await versions(other, back) == before
    is_clean(tmp_path / "other")


def tmp_path_store(tmp_path: Path) -> Path:
    create_store(tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize("seed", range(4))
async def test_random_histories_come_back(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with memory_store() as store:
        namespace = await a_namespace(store)
        tree = store.volume(namespace).tree
        for step in range(60):
            name = b"f%d" % rng.randrange(8)
            node = tree.lookup(tree.root(), name)
            match rng.randrange(7):
                case 0 if node is not None:
                    tree.unlink(tree.root(), name)
                case 1 if node is not None:
                    tree.rename(tree.root(), name, tree.root(), b"r%d" % rng.randrange(4))
                case 2:
                    await store.checkpoint(store.volume(namespace), f"c{rng.randrange(4)}", labels={"n": step})
                case 3 if (found := store.volume(namespace).checkpoints()) and rng.random() < 0.5:
                    await store.delete_checkpoint(store.volume(namespace), rng.choice(found).id)
                case 4 if (found := store.volume(namespace).checkpoints()) and rng.random() < 0.5:
                    await store.restore(store.volume(namespace), rng.choice(found).id)
                case _:
                    data = rng.randbytes(rng.choice([10, 3000, 70_000, 1_500_000]))
                    write(tree, name, data, rng.choice([0, 5000, 2 << 20]))
        before = await versions(store, namespace)
        await export(store, namespace, tmp_path / "f")
        assert await versions(store, await import_(store, tmp_path / "f", COPY)) == before
        assert store.shard.engine.check() == []


async def test_a_taken_name_is_numbered_and_one_that_is_asked_for_refused(tmp_path: Path) -> None:
    file = tmp_path / "f"
    async with memory_store() as store:
        namespace = await a_namespace(store, metadata={"k": [1]}, ttl=100)
        await export(store, namespace, file)
        back = await import_(store, file)
        assert (back.name, back.metadata, back.expires, back.trashed) == ("web~2", {"k": [1]}, None, None)
        assert (await import_(store, file, parse_path("default/user-ann"))).grid_path == "grid/default/user-ann/web"
        with pytest.raises(ExistsError, match="default/shared/web exists already"):
            await import_(store, file, parse_path("default/shared/web"))
        with pytest.raises(NotFoundError, match="Invalid session"):
            await import_(store, file, parse_path("default/sess-gone/web"))
        assert len(store.catalogue.by_serial) == 3
        with pytest.raises(ExistsError, match="exists already; choose another name, or remove it"):
            await export(store, namespace, file)
        await store.destroy_namespace(namespace)
        assert (await import_(store, file)).name == "web"


async def test_a_blob(tmp_path: Path) -> None:
    async with memory_store() as store:
        blob = await a_namespace(store, type=NamespaceType.BLOB)
        write(store.volume(blob).tree, b"_data", bytes(range(256)) * 9000)
        before = await versions(store, blob)
        await export(store, blob, tmp_path / "f")
        back = await import_(store, tmp_path / "f", COPY)
        assert (back.type, await versions(store, back)) == (NamespaceType.BLOB, before)


async def test_files_without_a_name_are_left_out(tmp_path: Path) -> None:
    async with memory_store() as store:
        namespace = await a_namespace(store)
        tree = store.volume(namespace).tree
        node = write(tree, b"f", b"x" * 100_000)
        node.looks = 1  # as by a kernel that has it open
        tree.unlink(tree.root(), b"f")
        before = await versions(store, namespace)
        assert (await export(store, namespace, tmp_path / "f")).bytes == 0
        assert await versions(store, await import_(store, tmp_path / "f", COPY)) == before


# meanwhile
async def test_it_is_of_one_moment_while_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "PAGE", 10)
    async with open_store(tmp_path_store(tmp_path), "test") as store:
        namespace = await a_namespace(store)
        tree = store.volume(namespace).tree
        for number in range(40):
            write(tree, b"f%d" % number, b"before" * 20_000)
        before = (await versions(store, namespace))[""]
        rounds = 0

        async def disturb(cancel: trio.CancelScope) -> None:
            nonlocal rounds
            while not store.volume(namespace).checkpoints(all=True):  # the export has begun
                await trio.lowlevel.checkpoint()
            while not cancel.cancel_called:
                name = b"f%d" % (rounds % 40)
                write(tree, name, b"after" * 30_000)
                if rounds % 3 == 0:
                    tree.unlink(tree.root(), name)
                await store.shard.commit()
                await store.checkpoint(store.volume(namespace), f"c{rounds}")
                rounds += 1

        with trio.CancelScope() as done:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disturb, done)
                await export(store, namespace, tmp_path / "f")
                done.cancel()
        assert rounds > 0
        copy = await import_(store, tmp_path / "f", COPY)
        assert (await versions(store, copy)) == {"": before}
        assert not [c for c in store.volume(namespace).checkpoints(all=True) if c.name.startswith(portable.PIN)]
    is_clean(tmp_path / "other")


async def test_a_checkpoint_that_is_deleted_meanwhile_ends_it(tmp_path: Path) -> None:
    async with memory_store() as store:
        namespace = await a_namespace(store)
        volume = store.volume(namespace)
        for name in ("one", "two"):
            write(volume.tree, b"f", name.encode() * 50_000)
            await store.checkpoint(volume, name)
        reads = 0
        whole = store.shard.remote.read

        async def read(chunk: Any) -> bytes:
            nonlocal reads
            reads += 1
            if reads == 1:
                await store.delete_checkpoint(volume, "two")
            return await whole(chunk)

        store.shard.remote.read = read  # type: ignore[method-assign]
        with pytest.raises(BusyError, match=r"was not exported: .* meanwhile; try again"):
            await export(store, namespace, tmp_path / "f")
        assert os.listdir(tmp_path) == []
        assert [c.id for c in volume.checkpoints(all=True)] == ["one"]
        await export(store, namespace, tmp_path / "f")


async def test_a_chunk_that_is_moved_meanwhile_is_found(tmp_path: Path) -> None:
    """As by a compaction, which puts another address of the same bytes into the row."""
    async with memory_store() as store:
        namespace = await a_namespace(store)
        write(store.volume(namespace).tree, b"f", b"x" * 100_000)
        before = await versions(store, namespace)
        await store.shard.commit()
        whole = store.shard.remote.read
        moved = False

        async def read(chunk: Any) -> bytes:
            nonlocal moved
            data = await whole(chunk)
            if not moved:
                moved = True
                new = store.shard.objects.append_all(namespace.serial, [data])[0]
                rows = list(store.shard.engine.named([b"B"], [namespace.serial]))
                old = chunk.object.to_bytes(8, "big") + chunk.offset.to_bytes(8, "big")
                address = new.object.to_bytes(8, "big") + new.offset.to_bytes(8, "big")
                assert store.shard.engine.swap([(row, row.value.replace(old, address)) for row in rows])
                raise DamagedError("the object is gone")
            return data

        store.shard.remote.read = read  # type: ignore[method-assign]
        await export(store, namespace, tmp_path / "f")
        assert moved
        store.shard.remote.read = whole  # type: ignore[method-assign]
        assert await versions(store, await import_(store, tmp_path / "f", COPY)) == before


# what fails leaves nothing
async def test_an_export_that_fails_or_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with memory_store() as store:
        namespace = await a_namespace(store)
        write(store.volume(namespace).tree, b"f", b"x" * 100_000)

        async def fail(chunk: Any) -> bytes:
            raise UnavailableError("the provider does not answer")

        store.shard.remote.read = fail  # type: ignore[method-assign]
        with pytest.raises(UnavailableError, match="does not answer"):
            await export(store, namespace, tmp_path / "f")

        async def hang(chunk: Any) -> bytes:
            await anyio.sleep_forever()
            raise AssertionError

        store.shard.remote.read = hang  # type: ignore[method-assign]
        with anyio.move_on_after(0.1):
            await export(store, namespace, tmp_path / "f")
        assert os.listdir(tmp_path) == []
        assert store.volume(namespace).checkpoints(all=True) == []
        with pytest.raises(NotFoundError, match="does not exist; make it"):
            await export(store, namespace, tmp_path / "no/f")


async def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable_file, "SCHEMA", portable_file.SCHEMA + "PRAGMA max_page_count = 20;")
    async with memory_store() as store:
        namespace = await a_namespace(store)
        write(store.volume(namespace).tree, b"f", b"x" * 1_000_000)
        with pytest.raises(NoSpaceError, match="the disk is full; free some space"):
            await export(store, namespace, tmp_path / "f")
        assert os.listdir(tmp_path) == []
        assert store.volume(namespace).checkpoints(all=True) == []


async def test_a_store_whose_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path_store(tmp_path)
    async with open_store(root, "test") as store:
        namespace = await a_namespace(store)
        write(store.volume(namespace).tree, b"f", b"x" * 100_000)
        await export(store, namespace, tmp_path / "f")

        def full(*args: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(store.shard.objects, "append_all", full)
            with pytest.raises(NoSpaceError, match="the disk is full"):
                await import_(store, tmp_path / "f")
        assert list(store.catalogue.by_serial.values()) == [namespace]
        await store.shard.commit()
        assert store.shard.engine.records(IMPORTING) == {}
    is_clean(root)


@pytest.mark.logs_errors
async def test_a_store_whose_disk_does_not_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no changes any more; the next start takes away what came of the import."""
    root = tmp_path_store(tmp_path)
    fdatasync = os.fdatasync
    async with open_store(root, "test") as store:
        namespace = await a_namespace(store)
        write(store.volume(namespace).tree, b"f", b"x" * 100_000)
        await export(store, namespace, tmp_path / "f")

        def fails(fd: int) -> None:
            if _is_importing(store):
                raise OSError(errno.EIO, "Input/output error")
            fdatasync(fd)

        monkeypatch.setattr(os, "fdatasync", fails)
        with pytest.raises(ArtfsError):
            await import_(store, tmp_path / "f", COPY)
        assert store.shard.objects.broken is not None
    monkeypatch.undo()
    async with open_store(root, "test") as store:
        await take_away(store, await left_behind(store))
        assert store.shard.engine.records(IMPORTING) == {}
        assert list(store.catalogue.by_serial.values()) == [namespace]
    is_clean(root)


def _is_importing(store: Store) -> bool:
    return bool(store.shard.engine.records(IMPORTING))


async def test_two_exports_to_one_file(tmp_path: Path) -> None:
    async with memory_store() as store:
        namespace = await a_namespace(store)
        draft = Draft(tmp_path / "f")
        with pytest.raises(BusyError, match="being written by another export"):
            await export(store, namespace, tmp_path / "f")
        draft.close()
        (tmp_path / "f.part").write_bytes(b"of an export that was killed" * 1000)
        await export(store, namespace, tmp_path / "f")
        await import_(store, tmp_path / "f", COPY)


def _sql(statement: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        db = sqlite3.connect(path)
        db.executescript(statement)
        db.close()

    return spoil


def _scribble(path: Path) -> None:
    path.write_bytes(b"x" * 5000)


def _garble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data), 4096):
        data[at] ^= 255
    path.write_bytes(data)


SPOILED: dict[str, tuple[Callable[[Path], None], type[ArtfsError], str]] = {
    "no database": (_scribble, InvalidError, "no export of artfs"),
    "another database": (_sql("DROP TABLE about"), InvalidError, "no export of artfs"),
    "cut short": (lambda path: os.truncate(path, 40_000), InvalidError, "or an incomplete one"),
    "garbled": (_garble, DamagedError, "damaged"),
    "newer": (_sql("UPDATE about SET value = '99' WHERE name = 'format'"), FormatError, "upgrade artfs"),
    "incomplete": (_sql("DELETE FROM about WHERE name = 'complete'"), DamagedError, "not complete"),
    "bytes": (_sql("UPDATE chunk SET data = zeroblob(length)"), DamagedError, "not what was exported"),
    "a chunk is gone": (_sql("DELETE FROM chunk WHERE id = 1"), DamagedError, "lacks a chunk"),
    "another hash": (_sql("UPDATE chunk SET hash = zeroblob(16)"), DamagedError, "not what was exported"),
    "a name is gone": (_sql("DELETE FROM change WHERE substr(key, 1, 1) = x'44'"), DamagedError, "damaged"),
    "an inode is gone": (_sql("DELETE FROM change WHERE substr(key, 1, 1) = x'49'"), DamagedError, "damaged"),
    "a block is odd": (_sql("UPDATE change SET value = x'00' WHERE substr(key, 1, 1) = x'42'"), DamagedError, "block"),
    "counters": (_sql("UPDATE about SET value = '1' WHERE name = 'numbers'"), DamagedError, "numbers beyond"),
    "usage": (_sql("UPDATE version SET bytes = 1"), DamagedError, "it counts"),
    "a version is gone": (_sql("DELETE FROM version WHERE number = 1"), DamagedError, "damaged"),
    "orphans": (_sql("INSERT INTO change VALUES (x'690000000000000009', 1, x'00')"), DamagedError, "damaged"),
    "labels": (_sql("UPDATE version SET labels = '['"), DamagedError, "damaged"),
    "description": (_sql("UPDATE about SET value = '{}' WHERE name = 'namespace'"), DamagedError, "damaged"),
    "path": (
        _sql("UPDATE about SET value = json_set(value, '$.sandbox', '../..') WHERE name = 'namespace'"),
        InvalidError,
        "not valid",
    ),
}


@pytest.mark.parametrize("kind", SPOILED)
async def test_a_file_that_is_not_right_brings_nothing(tmp_path: Path, kind: str) -> None:
    spoil, error, said = SPOILED[kind]
    root = tmp_path_store(tmp_path)
    async with open_store(root, "test") as store:
        namespace = await a_namespace(store)
        volume = store.volume(namespace)
        write(volume.tree, b"f", b"x" * 200_000)
        await store.checkpoint(volume, "one")
        write(volume.tree, b"g", b"y" * 200_000)
        await export(store, namespace, tmp_path / "f")
        spoil(tmp_path / "f")
        with pytest.raises(error, match=said):
            await import_(store, tmp_path / "f")
        assert list(store.catalogue.by_serial.values()) == [namespace]
        assert store.shard.engine.serials() == {namespace.serial}
    found = [path.parent for path in (root / "objects").rglob("*") if path.is_file()]
    assert {str(path.relative_to(root / "objects")) for path in found} == {namespace.prefix}
    is_clean(root)


async def test_an_import_that_was_killed_is_taken_away_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path_store(tmp_path)
    async with open_store(root, "test") as store:
        namespace = await a_namespace(store)
        write(store.volume(namespace).tree, b"f", b"x" * 200_000)
        await export(store, namespace, tmp_path / "f")

        async def nothing(*args: object) -> None:
            raise UnavailableError("killed")

        monkeypatch.setattr(importing, "_clear", nothing)
        monkeypatch.setattr(importing._Import, "_commit", nothing)
        with pytest.raises(UnavailableError):
            await import_(store, tmp_path / "f")
        monkeypatch.undo()
        assert len(store.shard.engine.records(IMPORTING)) == 1
    is_clean(root)
    assert len(list((root / "objects").rglob("0*"))) == 2
    async with open_store(root, "test") as store:
        await take_away(store, await left_behind(store))
        assert store.shard.engine.records(IMPORTING) == {}
        assert len(store.shard.engine.records("prefix")) == 1
    assert len(list((root / "objects").rglob("0*"))) == 1
    is_clean(root)


IMPORTER = """
import sys, anyio
from pathlib import Path
from artfs.store.connecting import connect
async def main():
    async with connect(Path(sys.argv[1]), "test") as caller:
        print("begins", flush=True)
        await caller.call("ns_import", file=sys.argv[2])
        print("whole", flush=True)
anyio.run(main)
"""


@pytest.mark.crash
def test_an_import_that_is_killed_at_any_moment(tmp_path: Path) -> None:
    """All of it is there, or nothing, and nothing is left of what was not."""
    root = tmp_path_store(tmp_path)
    rng = random.Random(1)

    async def prepare() -> dict[str, Any]:
        async with open_store(root, "test") as store:
            namespace = await a_namespace(store)
            tree = store.volume(namespace).tree
            for number in range(300):
                write(tree, b"f%d" % number, rng.randbytes(60_000))
                if number % 100 == 0:
                    await store.checkpoint(store.volume(namespace), f"c{number}")
            await export(store, namespace, tmp_path / "f")
            return await versions(store, namespace)

    async def settled() -> tuple[list[dict[str, Any]], int]:
        async with connect(root, "test") as caller:
            assert isinstance(caller, Service)
            store = caller.store
            with anyio.fail_after(10):
                while store.shard.engine.records(IMPORTING):
                    await anyio.sleep(0.01)
            known = list(store.catalogue.by_serial.values())  # one may be in the trash, whole
            return [await versions(store, found) for found in known if not found.trashed], len(known)

    before = trio.run(prepare)
    whole = 0
    took = 1.0
    for attempt in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", IMPORTER, str(root), str(tmp_path / "f")],
            stdout=subprocess.PIPE, cwd=REPOSITORY,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            assert child.stdout.readline() == b"begins\n"
            started = monotonic()
            if attempt == 0:
                assert child.stdout.readline() == b"whole\n"
                took = monotonic() - started
            else:
                sleep(rng.random() * took)
            child.kill()
        is_clean(root)
        found, known = trio.run(settled)
        assert found == [before] * len(found)
        assert whole <= len(found) - 1 <= whole + 1
        whole = len(found) - 1
        is_clean(root)
    folders = {path.parent for path in (root / "objects").rglob("*") if path.is_file()}
    assert len(folders) == known


async def test_an_export_that_was_killed_pins_nothing_after_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path_store(tmp_path)
    async with open_store(root, "test") as store:
        namespace = await a_namespace(store)
        gone = await a_namespace(store, "gone")

        async def nothing(*args: object) -> None:
            pass

        monkeypatch.setattr(portable, "_release", nothing)
        await export(store, namespace, tmp_path / "f")
        await export(store, gone, tmp_path / "g")
        monkeypatch.undo()
        await store.destroy_namespace(gone, for_good=True)
        assert len(store.volume(namespace).checkpoints(all=True)) == 1
    is_clean(root)
    async with open_store(root, "test") as store:
        await release(store, await left_pinned(store))
        assert store.volume(namespace).checkpoints(all=True) == []
        assert await left_pinned(store) == []
    is_clean(root)


async def test_an_import_is_seen_when_it_is_whole(tmp_path: Path) -> None:
    async with memory_store() as store:
        namespace = await a_namespace(store)
        write(store.volume(namespace).tree, b"f", b"x" * 200_000)
        await export(store, namespace, tmp_path / "f")
        seen = []

        def look(done: int, total: int) -> None:
            seen.append((done, total, set(store.catalogue.entries("default", "shared"))))

        await import_(store, tmp_path / "f", COPY, look)
        assert seen == [(200_000, 200_000, {"web"})]
        assert set(store.catalogue.entries("default", "shared")) == {"web", "copy"}


# the file itself
async def test_plain_sqlite_reads_it(tmp_path: Path) -> None:
    """As docs/operations.md shows."""
    async with memory_store() as store:
        namespace = await a_namespace(store, metadata={"team": "x"})
        volume = store.volume(namespace)
        write(volume.tree, b"f", b"one" * 50_000)
        await store.checkpoint(volume, "v1", "the first", {"ok": True})
        write(volume.tree, b"f", b"two" * 60_000)
        await export(store, namespace, tmp_path / "f")
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    db = sqlite3.connect(tmp_path / "f")
    rows = db.execute("SELECT number, id, bytes, description, labels FROM version").fetchall()
    assert rows == [(1, "v1", 150_000, "the first", '{"ok": true}'), (2, None, 180_000, "", "{}")]
    assert db.execute("SELECT data FROM chunk ORDER BY id").fetchall() == [(b"one" * 50_000,), (b"two" * 60_000,)]
    changed = db.execute("SELECT hex(substr(key, 1, 1)) FROM change WHERE version = 2 ORDER BY key").fetchall()
    assert changed == [("42",), ("49",)]
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()
    assert (tmp_path / "f").read_bytes()[68:72] == b"artf"  # what file(1) can tell it by


async def test_memory_stays_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a group of chunks, and a page of rows, at a time, in either direction."""
    monkeypatch.setattr(portable, "GROUP", 1 << 20)
    monkeypatch.setattr(importing, "GROUP", 1 << 20)
    monkeypatch.setattr(portable, "PAGE", 50)
    monkeypatch.setattr(importing, "PAGE", 50)
    async with memory_store() as store:
        namespace = await a_namespace(store)
        tree = store.volume(namespace).tree
        for number in range(120):
            write(tree, b"f%d" % number, number.to_bytes(2, "big") * 50_000)
        before = await versions(store, namespace)
        held = most = 0
        whole = store.shard.remote.read
        commit = store.shard.engine.commit

        async def read(chunk: Any) -> bytes:
            nonlocal held, most
            held += chunk.length
            most = max(most, held)
            return await whole(chunk)

        def told(done: int, total: int) -> None:
            nonlocal held
            held = 0

        rows = 0

        def committed(batches: Any, *args: Any) -> None:
            nonlocal rows
            rows = max([rows, *(len(batch.rows) for batch in batches)])
            commit(batches, *args)

        store.shard.remote.read = read  # type: ignore[method-assign]
        await export(store, namespace, tmp_path / "f", told)
        assert 100_000 < most < 2 << 20
        store.shard.remote.read = whole  # type: ignore[method-assign]
        groups: list[int] = []
        store.shard.engine.commit = committed  # type: ignore[method-assign, assignment]
        copy = await import_(store, tmp_path / "f", COPY, lambda done, total: groups.append(done))
        store.shard.engine.commit = commit  # type: ignore[method-assign]
        assert len(groups) >= 10
        assert 10 <= rows <= 51
        assert await versions(store, copy) == before
