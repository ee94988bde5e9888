"""The path API on a namespace, on trio and on asyncio."""

import errno
import os
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artfs.errors import ExistsError, FsError, NotFoundError, PathError
from artfs.settings import Settings, create_store
from artfs.store.opening import memory_store, open_store
from artfs.store.store import Store
from artfs.types import NamespaceType, Scope
from artfs.vfs import Files, Reading, copy
from artfs.vfs.files import SLICE
from artfs.vfs.walk import walk
from artfs.volume.node import Node

MIB = 1 << 20


@dataclass
class World:
    """A store with one namespace; `told` are the names that caches were told of."""

    store: Store
    files: Files
    told: list[bytes] = field(default_factory=list)

    async def another(self, name: str, type: NamespaceType = NamespaceType.WORKSPACE) -> Files:
        namespace = await self.store.create_namespace("default", Scope.SANDBOX, None, name, type=type)
        return Files(self.store.volume(namespace), self.hear)

    async def hear(self, names: list[tuple[Node, bytes]]) -> None:
        self.told += [name for _, name in names]

    def check_clean(self, files: Files | None = None) -> None:
        """Nothing without a name is left, and the counters are those of what there is."""
        tree = (files or self.files).tree
        assert tree.orphans == {}
        assert [node.ino for node in tree.nodes.values() if node.nlink == 0 or node.looks] == []
        seen: dict[int, int] = {}
        todo = [tree.root()]
        while todo:
            node = todo.pop()
            seen[node.ino] = node.allocated
            todo += [tree.node(entry.ino) for _, entry in tree.listing(node)] if node.kids is not None else []
        assert (tree.used_bytes, tree.used_inodes) == (sum(seen.values()), len(seen))


@asynccontextmanager
async def world(root: Path | None = None, **changes: Any) -> AsyncIterator[World]:
    """In memory, or on `root`, where a store is made."""
    if root is not None:
        create_store(root)
    async with open_store(root, "test") if root is not None else memory_store(Settings(**changes)) as store:
        made = World(store, None)  # type: ignore[arg-type]
        made.files = await made.another("ws")
        yield made


Body = Callable[[World], Awaitable[None]]


@pytest.fixture(params=["trio", "asyncio"])
def on(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a body on each loop."""

    def run(body: Body, **changes: Any) -> None:
        async def main() -> None:
            async with world(**changes) as made:
                await body(made)

        anyio.run(main, backend=request.param)

    return run


On = Callable[..., None]


async def fails(number: int, work: Awaitable[Any]) -> str:
    with pytest.raises((FsError, NotFoundError, ExistsError)) as caught:
        await work
    assert caught.value.errno == number, f"{errno.errorcode[caught.value.errno]} {caught.value}"
    return str(caught.value)


async def names(files: Files, path: bytes = b"") -> list[bytes]:
    return [stat.name for stat in await files.entries(path)]


async def content(files: Files, path: bytes) -> bytes:
    return await files.read(path, 0, 1 << 30)


# bytes
@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 65536, MIB, MIB + 1, 3 * MIB + 17])
def test_what_is_written_is_read(on: On, size: int) -> None:
    data = os.urandom(size)

    async def body(w: World) -> None:
        stat = await w.files.write(b"f", data)
        assert (stat.name, stat.size, stat.type, stat.nlink) == (b"f", size, "file", 1)
        assert await content(w.files, b"f") == data
        assert await w.files.read(b"f", size // 2, 100) == data[size // 2 : size // 2 + 100]
        assert await w.files.read(b"f", size, 100) == b""
        await w.store.shard.commit()
        assert await content(w.files, b"f") == data
        w.check_clean()

    on(body)


def test_a_write_replaces_at_once(on: On) -> None:
    async def body(w: World) -> None:
        await w.files.write(b"f", b"old" * 50_000)
        reading = await w.files.open(b"f")
        writing = await w.files.begin(b"f")
        await writing.write(b"new")
        assert await content(w.files, b"f") == b"old" * 50_000
        assert await names(w.files) == [b"f"]
        stat = await writing.finish()
        assert stat.size == 3
        assert await content(w.files, b"f") == b"new"
        assert await reading.read(0, 1 << 20) == b"old" * 50_000
        reading.release()
        w.check_clean()
        assert w.told == [b"f", b"f"]

    on(body)


def test_a_source_that_fails_leaves_nothing(on: On) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x" * MIB
        raise ZeroDivisionError

    async def body(w: World) -> None:
        await w.files.write(b"f", b"old")
        for name in (b"f", b"g"):
            with pytest.raises(ZeroDivisionError):
                await w.files.write(name, source())
        assert await names(w.files) == [b"f"]
        assert await content(w.files, b"f") == b"old"
        w.check_clean()

    on(body)


def test_a_cancelled_write_leaves_nothing(on: On) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x" * MIB
        await anyio.sleep_forever()

    async def body(w: World) -> None:
        with anyio.move_on_after(0.05):
            await w.files.write(b"g", source())
        assert await names(w.files) == []
        w.check_clean()

    on(body)


def test_streaming_takes_constant_memory(on: On, tmp_path: Path) -> None:
    async def source() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(MIB)

    async def body(w: World) -> None:
        await w.files.write(b"f", b"warm")
        tracemalloc.start()
        try:
            await w.files.write(b"f", source())
            reading = await w.files.open(b"f")
            for at in range(0, 64 * MIB, MIB):
                assert len(await reading.read(at, MIB)) == MIB
            reading.release()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8 * MIB

    on(body, root=tmp_path / "store")


def test_a_replaced_file_keeps_mode_and_attributes(on: On) -> None:
    async def body(w: World) -> None:
        tree = w.files.tree
        await w.files.write(b"f", b"old")
        node = tree.lookup(tree.root(), b"f")
        assert node is not None
        tree.setattr(node, 1, 0, 0, 0, 0, 0o4640, 0, 0)
        tree.setxattr(node, b"user.colour", b"red")
        tree.setxattr(node, b"security.capability", b"all")
        stat = await w.files.write(b"f", b"new")
        assert stat.mode & 0o7777 == 0o640
        made = tree.lookup(tree.root(), b"f")
        assert made is not None and made is not node
        assert tree.listxattr(made) == [b"user.colour"]
        w.check_clean()

    on(body)


def test_a_hard_link_keeps_the_old_bytes(on: On) -> None:
    async def body(w: World) -> None:
        tree = w.files.tree
        await w.files.write(b"f", b"old")
        node = tree.lookup(tree.root(), b"f")
        assert node is not None
        tree.link(node, tree.root(), b"g")
        await w.files.write(b"f", b"new")
        assert await content(w.files, b"g") == b"old"
        assert (await w.files.stat(b"g")).nlink == 1
        w.check_clean()

    on(body)


def test_who_owns_what_the_api_makes(on: On) -> None:
    async def body(w: World) -> None:
        await w.files.mkdir(b"d")
        await w.files.write(b"d/f", b"")
        folder, file = await w.files.stat(b"d"), await w.files.stat(b"d/f")
        assert (folder.mode, folder.uid, folder.gid) == (0o040750, 7, 8)
        assert (file.mode, file.uid, file.gid) == (0o100640, 7, 8)

    on(body, uid=7, gid=8, umask=0o027)


# paths
def test_symlinks_lead_nowhere_else(on: On) -> None:
    async def body(w: World) -> None:
        files, tree = w.files, w.files.tree
        await files.mkdir(b"a/b", parents=True)
        await files.write(b"a/b/f", b"deep")
        await files.write(b"f", b"top")
        folder = (await files.open(b"a/b/f")).tree.node(tree.root().ino)
        for name, target in [
            (b"rel", b"a/b/f"),
            (b"abs", b"/a/b/f"),
            (b"out", b"../../../../f"),
            (b"dir", b"a/b/"),
            (b"loop", b"loop"),
            (b"hole", b"a/made"),
            (b"lost", b"nowhere/made"),
            (b"top", b"/"),
        ]:
            tree.symlink(folder, name, target, 0, 0)
        for path in (b"rel", b"abs", b"dir/f", b"/dir/../b/f", b"top/a/b/f", b"./a//b/./f/"):
            assert await content(files, path) == b"deep", path
        for path in (b"out", b"../../f", b"dir/../../../f", b"top/.."[:3] + b"/f"):
            assert await content(files, path) == b"top", path
        await fails(errno.ELOOP, files.stat(b"loop"))
        await fails(errno.ENOTDIR, files.stat(b"f/x"))
        await fails(errno.ENOTDIR, files.stat(b"f/.."))
        await fails(errno.ENOENT, files.stat(b"hole"))
        await fails(errno.ENOENT, files.write(b"lost", b""))
        assert (await files.stat(b"hole", follow=False)).type == "symlink"
        assert (await files.stat(b"rel", follow=False)).target == b"a/b/f"
        await files.write(b"hole", b"through")
        assert await content(files, b"a/made") == b"through"
        await files.write(b"rel", b"again")
        assert (await files.stat(b"rel", follow=False)).type == "symlink"
        assert await content(files, b"a/b/f") == b"again"
        await fails(errno.ENAMETOOLONG, files.stat(b"x" * 256))
        await fails(errno.ENAMETOOLONG, files.stat(b"x/" * 2048))
        await fails(errno.EINVAL, files.stat(b"x\0"))

    on(body)


def test_forty_symlinks_are_followed_and_no_more(on: On) -> None:
    async def body(w: World) -> None:
        tree = w.files.tree
        await w.files.write(b"0", b"end")
        for i in range(1, 42):
            tree.symlink(tree.root(), b"%d" % i, b"%d" % (i - 1), 0, 0)
        assert await content(w.files, b"40") == b"end"
        await fails(errno.ELOOP, w.files.read(b"41", 0, 1))

    on(body)


def test_errors_name_the_path(on: On) -> None:
    async def body(w: World) -> None:
        assert "grid/default/shared/ws/a/b: no such" in await fails(errno.ENOENT, w.files.stat(b"a/b"))
        await w.files.mkdir(b"d")
        assert await fails(errno.EISDIR, w.files.write(b"d", b"")) == "grid/default/shared/ws/d: Is a directory"
        with pytest.raises(PathError):
            await w.files.read(b"d", 0, 1)
        with pytest.raises(ExistsError, match="ws/d exists already"):
            await w.files.mkdir(b"d")

    on(body)


def test_directories(on: On) -> None:
    async def body(w: World) -> None:
        files = w.files
        await fails(errno.ENOENT, files.mkdir(b"a/b"))
        await files.mkdir(b"a/b/c", parents=True)
        await files.mkdir(b"a/b", parents=True)
        await files.write(b"a/f", b"")
        await fails(errno.EEXIST, files.mkdir(b"a/b"))
        await fails(errno.EEXIST, files.mkdir(b"a/f", parents=True))
        await fails(errno.ENOTDIR, files.mkdir(b"a/f/x", parents=True))
        await fails(errno.EEXIST, files.mkdir(b""))
        await files.write(b"x/y/z", b"1", parents=True)
        assert await names(files, b"x/y") == [b"z"]
        assert [s.name for s in await files.entries(b"x/y/z")] == [b"z"]
        assert w.told == [b"a", b"b", b"c", b"f", b"x", b"y", b"z"]
        w.check_clean()

    on(body)


def test_removing(on: On) -> None:
    async def body(w: World) -> None:
        files, tree = w.files, w.files.tree
        await files.write(b"d/keep", b"1", parents=True)
        tree.symlink(tree.root(), b"link", b"d", 0, 0)
        await files.remove(b"link", recursive=True)
        assert await names(files) == [b"d"]
        await fails(errno.ENOTEMPTY, files.remove(b"d"))
        await fails(errno.EBUSY, files.remove(b"", recursive=True))
        await fails(errno.EBUSY, files.remove(b"d/..", recursive=True))
        await fails(errno.ENOENT, files.remove(b"nothing", recursive=True))
        for i in range(2 * SLICE + 3):
            tree.create(tree.root(), b"f%d" % i, 0o644, 0, 0)
        await files.mkdir(b"d/a/b/c", parents=True)
        await files.mkdir(b"d/empty")
        parent = tree.lookup(tree.root(), b"d")
        assert parent is not None
        for i in range(2 * SLICE + 3):
            tree.create(parent, b"f%d" % i, 0o644, 0, 0)
        await files.remove(b"d", recursive=True)
        for i in range(2 * SLICE + 3):
            await files.remove(b"f%d" % i)
        assert await names(files) == []
        w.check_clean()

    on(body)


def test_renaming(on: On) -> None:
    async def body(w: World) -> None:
        files = w.files
        await files.write(b"a", b"A")
        await files.write(b"b", b"B")
        await fails(errno.EEXIST, files.rename(b"a", b"b", replace=False))
        await files.rename(b"a", b"b")
        assert await content(files, b"b") == b"A"
        await files.mkdir(b"d/e", parents=True)
        await fails(errno.EINVAL, files.rename(b"d", b"d/e/f"))
        await fails(errno.EBUSY, files.rename(b"/", b"d/e/f"))
        assert "ws/nothing" in await fails(errno.ENOENT, files.rename(b"nothing", b"d"))
        await files.rename(b"d/e", b"e")
        assert await names(files) == [b"b", b"d", b"e"]
        w.check_clean()

    on(body)


def test_a_blob_is_one_file(on: On) -> None:
    async def body(w: World) -> None:
        blob = await w.another("blob", NamespaceType.BLOB)
        await blob.write(b"_data", b"bytes")
        assert await names(blob) == [b"_data"]
        await fails(errno.EPERM, blob.begin(b"other"))
        await fails(errno.EPERM, blob.mkdir(b"other"))
        await fails(errno.EPERM, copy(blob, b"_data", blob, b"other"))
        w.check_clean(blob)

    on(body)


# versions
def test_a_checkpoint_can_be_read_and_not_written(on: On) -> None:
    async def body(w: World) -> None:
        files = w.files
        await files.write(b"d/f", b"one", parents=True)
        await w.store.checkpoint(files.volume, "v1")
        await files.write(b"d/f", b"two")
        await files.remove(b"d", recursive=True)
        assert await content(files, b".checkpoints/v1/d/f") == b"one"
        assert await names(files, b".checkpoints") == [b"v1"]
        assert await names(files, b".checkpoints/v1") == [b"d"]
        assert (await files.stat(b".checkpoints")).type == "directory"
        assert (await files.stat(b".checkpoints/v1/d/f")).size == 3
        assert await names(files) == []
        for work in (
            files.write(b".checkpoints/v1/d/f", b""),
            files.mkdir(b".checkpoints/v1/x"),
            files.remove(b".checkpoints/v1/d", recursive=True),
            files.rename(b".checkpoints/v1/d", b"d"),
            copy(files, b".checkpoints/v1/d", files, b".checkpoints/v1/e"),
        ):
            await fails(errno.EROFS, work)
        await fails(errno.EPERM, files.mkdir(b".checkpoints"))
        await fails(errno.ENOENT, files.stat(b".checkpoints/v2"))
        await copy(files, b".checkpoints/v1/d", files, b"")
        assert await content(files, b"d/f") == b"one"
        w.check_clean()

    on(body)


def test_a_restore_spares_what_is_being_written(on: On) -> None:
    async def body(w: World) -> None:
        files = w.files
        await files.write(b"f", b"one")
        await w.store.checkpoint(files.volume, "v1")
        await files.write(b"f", b"two")
        reading = await files.open(b"f")
        writing = await files.begin(b"f")
        await writing.write(b"three")
        await w.store.restore(files.volume, "v1")
        assert await content(files, b"f") == b"one"
        await fails(errno.ESTALE, reading.read(0, 10))
        reading.release()
        await writing.write(b"!")
        await writing.finish()
        assert await content(files, b"f") == b"three!"
        w.check_clean()

    on(body)


def test_the_end_of_the_namespace_ends_what_is_open(on: On) -> None:
    async def body(w: World) -> None:
        files = w.files
        await files.write(b"f", b"one")
        reading, writing = await files.open(b"f"), await files.begin(b"g")
        await w.store.destroy_namespace(files.namespace)
        await fails(errno.ESTALE, reading.read(0, 10))
        await fails(errno.ESTALE, writing.write(b"x"))
        await fails(errno.ESTALE, writing.finish())
        reading.release()
        writing.abort()

    on(body)


def test_what_was_only_looked_at_is_not_kept(on: On) -> None:
    async def body(w: World) -> None:
        tree = w.files.tree
        for i in range(3000):
            tree.create(tree.root(), b"%d" % i, 0o644, 0, 0)
        for _ in range(8):
            assert len(await w.files.entries()) == 3000
        assert len(tree.nodes) <= 3001
        for _ in range(30):
            await w.files.stat(b"1")
        assert len(tree.nodes) <= 1100

    on(body, node_cache=1000)


# copies
def test_a_copy_within_a_namespace_shares_its_bytes(on: On) -> None:
    async def body(w: World) -> None:
        files = w.files
        data = os.urandom(3 * MIB)
        await files.write(b"f", data)
        await w.store.shard.commit()
        before = w.store.shard.objects.unsynced.copy()
        await copy(files, b"f", files, b"g")
        assert w.store.shard.objects.unsynced == before
        assert await content(files, b"g") == data
        await files.write(b"f", b"")
        assert await content(files, b"g") == data
        w.check_clean()

    on(body)


@pytest.mark.parametrize("across", [False, True])
def test_a_tree_is_copied_whole(on: On, across: bool) -> None:
    async def body(w: World) -> None:
        files, tree = w.files, w.files.tree
        await files.write(b"d/sub/big", os.urandom(2 * MIB + 5), parents=True)
        await files.write(b"d/small", b"x")
        await files.mkdir(b"d/empty")
        folder = tree.lookup(tree.root(), b"d")
        assert folder is not None
        tree.symlink(folder, b"link", b"sub/../small", 0, 0)
        tree.make(folder, b"pipe", 0o010600, 0, 0)
        sparse = tree.create(folder, b"sparse", 0o4700, 0, 0)
        tree.write(sparse, 5 * MIB, b"end")
        tree.setattr(sparse, 8, 9 * MIB, 0, 0, 0, 0, 0, 0)
        tree.setxattr(sparse, b"user.colour", b"red")
        tree.setattr(folder, 32 | 1, 0, 0, -5 * 10**9 + 7, 0, 0o700, 0, 0)
        target = await w.another("other") if across else files
        await copy(files, b"d", target, b"e")
        left: dict[bytes, Any] = {}
        right: dict[bytes, Any] = {}
        for found, origin, top in ((left, files, b"d"), (right, target, b"e")):
            todo = [b""]
            while todo:
                path = todo.pop()
                for stat in await origin.entries(top + path):
                    inside = path + b"/" + stat.name
                    text = await content(origin, top + inside) if stat.type == "file" else b""
                    found[inside] = (stat.mode & ~0o4000, stat.size, stat.allocated, stat.mtime, stat.target, text)
                    if stat.type == "symlink":
                        found[inside] = (stat.mode, stat.target)
                    if stat.type in ("fifo",):
                        found[inside] = (stat.mode,)
                    if stat.type == "directory":
                        todo.append(inside)
        assert left == right
        assert len(left) == 7
        assert (await target.stat(b"e")).mtime == -5 * 10**9 + 7
        assert (await target.stat(b"e")).mode == 0o040700
        made = target.tree.lookup(target.tree.lookup(target.tree.root(), b"e") or tree.root(), b"sparse")
        assert made is not None and target.tree.getxattr(made, b"user.colour") == b"red"
        assert made.mode == 0o100700
        w.check_clean()
        w.check_clean(target)

    on(body)


def test_where_a_copy_goes(on: On) -> None:
    async def body(w: World) -> None:
        files = w.files
        await files.write(b"d/f", b"1", parents=True)
        await files.write(b"g", b"2")
        await copy(files, b"g", files, b"d")
        await copy(files, b"g", files, b"d/f")
        assert await content(files, b"d/g") == await content(files, b"d/f") == b"2"
        await files.mkdir(b"e")
        await copy(files, b"d", files, b"e")
        assert sorted(await names(files, b"e/d")) == [b"f", b"g"]
        await fails(errno.EEXIST, copy(files, b"d", files, b"e"))
        await fails(errno.EEXIST, copy(files, b"d", files, b"g"))
        await fails(errno.EINVAL, copy(files, b"d", files, b"d/x"))
        await fails(errno.EINVAL, copy(files, b"d", files, b"d"))
        await fails(errno.EINVAL, copy(files, b"", files, b"d/x"))
        await fails(errno.EINVAL, copy(files, b"g", files, b"g"))
        await files.mkdir(b"x/g", parents=True)
        await fails(errno.EISDIR, copy(files, b"g", files, b"x"))
        assert "ws/no" in await fails(errno.ENOENT, copy(files, b"no", files, b"y"))
        await fails(errno.ENOENT, copy(files, b"g", files, b"no/y"))
        w.check_clean()

    on(body)


def test_a_copy_that_fails_leaves_nothing(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Reading.read
    count = 0

    async def failing(self: Reading, offset: int, length: int) -> bytes:
        nonlocal count
        count += 1
        if count == 5:
            raise FsError(errno.EIO)
        return await read(self, offset, length)

    async def body(w: World) -> None:
        nonlocal count
        count = 0
        files, target = w.files, await w.another("other")
        for i in range(8):
            await files.write(b"d/%d/f" % i, b"x" * 100_000, parents=True)
        await fails(errno.EIO, copy(files, b"d", target, b"d"))
        assert await names(target) == []
        w.check_clean()
        w.check_clean(target)

    monkeypatch.setattr(Reading, "read", failing)
    on(body)


def test_a_cancelled_copy_leaves_nothing(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(self: Reading, offset: int, length: int) -> bytes:
        await anyio.sleep_forever()
        raise AssertionError

    async def body(w: World) -> None:
        target = await w.another("other")
        await w.files.write(b"d/f", b"x", parents=True)
        for source in (b"d", b"d/f"):
            with anyio.move_on_after(0.05) as scope:
                await copy(w.files, source, target, b"d")
            assert scope.cancelled_caught
            assert await names(target) == []
        w.check_clean()
        w.check_clean(target)

    monkeypatch.setattr(Reading, "read", stuck)
    on(body)


# against the kernel
# Without `..`, which above the top leads the kernel elsewhere, and `.`, which ends no grid path.
PATHS = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(b"/".join)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), PATHS, st.binary(max_size=3)),
        st.tuples(st.just("mkdir"), PATHS, st.just(b"")),
        st.tuples(st.just("remove"), PATHS, st.just(b"")),
        st.tuples(st.just("rename"), PATHS, PATHS),
        st.tuples(st.just("symlink"), PATHS, PATHS),
        st.tuples(st.just("read"), PATHS, st.just(b"")),
        st.tuples(st.just("list"), PATHS, st.just(b"")),
    ),
    max_size=30,
)


def by_kernel(top: bytes, step: tuple[str, bytes, bytes]) -> Any:
    what, one, two = step
    path = os.path.join(top, one)
    if what == "write":
        Path(os.fsdecode(path)).write_bytes(two)
    elif what == "mkdir":
        os.mkdir(path)
    elif what == "remove":
        os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    elif what == "rename":
        os.rename(path, os.path.join(top, two))
    elif what == "symlink":
        os.symlink(two, path)
    elif what == "read":
        return Path(os.fsdecode(path)).read_bytes()
    elif what == "list":
        return sorted(os.listdir(path))
    return None


async def by_files(files: Files, step: tuple[str, bytes, bytes]) -> Any:
    what, one, two = step
    if what == "write":
        await files.write(one, two)
    elif what == "mkdir":
        await files.mkdir(one)
    elif what == "remove":
        await files.remove(one)
    elif what == "rename":
        await files.rename(one, two)
    elif what == "symlink":
        spot = walk(files.tree, one, follow=False)
        if spot.node is not None:
            raise FsError(errno.EEXIST)
        files.tree.symlink(spot.folder, spot.name, two, 0, 0)
    elif what == "read":
        return await content(files, one)
    elif what == "list":
        stats = await files.entries(one)
        if (await files.stat(one)).type != "directory":
            raise FsError(errno.ENOTDIR)
        return sorted(stat.name for stat in stats)
    return None


@settings(max_examples=200)
@given(STEPS)
def test_random_histories_go_as_in_a_directory(steps: list[tuple[str, bytes, bytes]]) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
            async with world() as w:
                for step in steps:
                    wanted: Any
                    try:
                        wanted = by_kernel(os.fsencode(top), step)
                    except OSError as error:
                        wanted = error.errno
                    got: Any
                    try:
                        got = await by_files(w.files, step)
                    except (FsError, NotFoundError, ExistsError) as error:
                        got = error.errno
                    assert got == wanted, (step, got, wanted)
                w.check_clean()

    anyio.run(main, backend="asyncio")
