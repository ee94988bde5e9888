"""AsyncVirtualFileSystem: files of a namespace by path; in memory, on a root, and through another process."""

from __future__ import annotations

import json
import os
import tracemalloc
from array import array
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import ArtifactNotFoundError, ArtifactStore, AsyncVirtualFileSystem
from artfs.vfs import BatchResult, NodeInfo
from tests.contract.api import a_store, everywhere
from tests.contract.loops import on_both_loops

MIB = 1 << 20


async def workspace(store: ArtifactStore) -> AsyncVirtualFileSystem:
    made = await store.create_namespace("workspace", "sandbox")
    return store.get_namespace_vfs(made.namespace_id)


@on_both_loops
@everywhere
async def test_files(store: ArtifactStore) -> None:
    vfs = await workspace(store)
    assert await vfs.write_file("/a/b/c.txt", b"bytes")
    assert await vfs.read_file("/a/b/c.txt") == b"bytes"
    assert await vfs.read_file("/a/b/c.txt", as_text=True) == "bytes"
    assert await vfs.write_file("text", "schön")
    assert await vfs.read_binary("/text") == "schön".encode()
    assert await vfs.write_text("/latin", "schön", encoding="latin-1")
    assert await vfs.read_text("/latin", encoding="latin-1") == "schön"
    assert await vfs.read_text("/latin", errors="replace") == "sch\ufffdn"
    assert await vfs.write_binary("/bin", b"\0\1") and await vfs.read_binary("bin") == b"\0\1"
    assert await vfs.read_file("/nothing") is None and await vfs.read_text("/nothing") is None
    assert await vfs.read_file("/a") is None
    assert await vfs.write_file("/a", b"x") is False
    assert await vfs.write_file("/text/below", b"x") is False
    assert await vfs.exists("/a/b") and not await vfs.exists("/a/x")
    assert await vfs.is_dir("/a") and not await vfs.is_file("/a")
    assert await vfs.is_file("/text") and not await vfs.is_dir("/text")
    assert await vfs.rm("/text") is True and await vfs.rm("/text") is False
    assert not await vfs.exists("/text")


@on_both_loops
@everywhere
async def test_directories(store: ArtifactStore) -> None:
    vfs = await workspace(store)
    other = store.get_namespace_vfs(vfs.namespace_id)
    assert await vfs.mkdir("/src/deep") is True
    assert await vfs.mkdir("/src") is False
    assert await vfs.ls("/") == [".workspace", "src"]
    assert await vfs.ls("/src") == await vfs.list_directory("/src") == ["deep"]
    assert await vfs.ls("/nothing") == []
    assert vfs.pwd() == "/" and await vfs.cd("src") and vfs.pwd() == "/src"
    assert await vfs.ls() == ["deep"] and other.pwd() == "/"
    assert await vfs.write_file("x", b"1") and await other.read_file("/src/x") == b"1"
    assert await vfs.cd("..") and vfs.pwd() == "/" and await vfs.cd("..") and vfs.pwd() == "/"
    assert not await vfs.cd("/src/x") and not await vfs.cd("/nowhere") and vfs.pwd() == "/"
    assert await vfs.rmdir("/src") is False
    assert await vfs.rmdir("/src/x") is False
    assert await vfs.rm("/src") is False
    assert await vfs.rmdir("/src/deep") is True
    assert await vfs.rm("/src", recursive=True) is True
    assert await vfs.ls("/") == [".workspace"]
    for path in ("/../x", "../x", "a/../../x", "/nul\0"):
        with pytest.raises(ValueError):
            await vfs.write_file(path, b"x")


@on_both_loops
@everywhere
async def test_copies_moves_and_finds(store: ArtifactStore) -> None:
    vfs = await workspace(store)
    await vfs.write_file("/src/main.py", b"main", kind="code")
    assert await vfs.cp("/src/main.py", "/src/backup.py") is True
    assert await vfs.cp("/src/main.py", "/new/place/it.py") is True
    assert await vfs.cp("/src", "/copy") is True
    assert await vfs.read_file("/copy/main.py") == await vfs.read_file("/new/place/it.py") == b"main"
    assert (await vfs.get_metadata("/copy/main.py"))["kind"] == "code"
    assert await vfs.cp("/nothing", "/x") is False and not await vfs.exists("/x")
    assert await vfs.cp("/src", "/src/inside") is False
    assert await vfs.mv("/src/backup.py", "/copy") is True
    assert await vfs.ls("/copy") == ["backup.py", "main.py"]
    assert await vfs.mv("/copy", "/far/away") is True and not await vfs.exists("/copy")
    assert await vfs.mv("/nothing", "/x") is False
    assert await vfs.mv("/far/away/backup.py", "/src/main.py") is True
    await vfs.write_file("/notes.md", b"")
    found = await vfs.find(pattern="*.py", path="/", recursive=True)
    assert found == ["/far/away/main.py", "/new/place/it.py", "/src/main.py"]
    assert await vfs.find("*.md") == ["/notes.md"]
    assert await vfs.find("*", "/", recursive=False) == ["/notes.md"]
    assert await vfs.find("main.*", "/src") == ["/src/main.py"]
    assert await vfs.find("*", "/nothing") == []


@on_both_loops
@everywhere
async def test_metadata(store: ArtifactStore) -> None:
    vfs = await workspace(store)
    await vfs.write_file("/document.pdf", b"%PDF")
    assert await vfs.set_metadata("/document.pdf", {"author": "Alice", "tags": ["important"]})
    assert await vfs.set_metadata("/document.pdf", {"custom": {"project_id": 123}})
    found = await vfs.get_metadata("/document.pdf")
    assert (found["author"], found["custom_meta"]["tags"]) == ("Alice", ["important"])
    assert found["custom"]["project_id"] == 123 and found["size"] == 4
    assert await vfs.set_metadata("/nothing", {"a": 1}) is False and await vfs.get_metadata("/nothing") == {}
    with pytest.raises(ValueError):
        await vfs.set_metadata("/document.pdf", {"a": float("nan")})
    with pytest.raises(ValueError):
        await vfs.set_metadata("/document.pdf", {"a": "x" * 70_000})
    info = await vfs.get_node_info("/document.pdf")
    assert isinstance(info, NodeInfo)
    assert (info.name, info.parent_path, info.path, info.size) == ("document.pdf", "/", "/document.pdf", 4)
    assert (info.is_dir, info.is_file, info.mime_type, info.permissions) == (False, True, "application/pdf", "644")
    assert info.modified_at is not None and info.modified_at.endswith("Z")
    assert await vfs.get_node_info("/nothing") is None
    assert await vfs.write_file("/document.pdf", b"new")
    assert (await vfs.get_metadata("/document.pdf"))["author"] == "Alice"
    assert await vfs.touch("/empty") and await vfs.read_file("/empty") == b"" and await vfs.touch("/empty")


@on_both_loops
@everywhere
async def test_what_a_node_tells_of_its_bytes(store: ArtifactStore) -> None:
    """The hash is there where it is known, and never of other bytes."""
    vfs = await workspace(store)
    assert await vfs.write_file("/f", b"x")
    kind = await vfs.get_provider_name()
    for path in ("/f", "/", "/.workspace"):
        info = await vfs.get_node_info(path)
        assert info is not None and (info.provider, info.sha256) == (kind, None)
    data = b"content" * 1000
    for id in (await store.store(data, mime="text/plain"), await store.store(data * 1000)):
        blob = store.get_namespace_vfs(id)
        info = await blob.get_node_info("/_data")
        assert info is not None
        assert info.sha256 == sha256(await store.retrieve(id)).hexdigest()
        assert (await blob.get_metadata("/_data"))["sha256"] == info.sha256
        folder = await blob.get_node_info("/")
        assert folder is not None and folder.sha256 is None
        await store.update_file(id, data=b"other")
        info = await blob.get_node_info("/_data")
        assert info is not None and info.sha256 == sha256(b"other").hexdigest()
        for other in (b"third", b"again", b"moved"):  # as long as what is known, and within a tick of the clock
            await store.write_namespace(id, other)
            info = await blob.get_node_info("/_data")
            assert info is not None and info.sha256 is None
            assert (await store.metadata(id)).sha256 is None


@on_both_loops
@everywhere
async def test_many_at_once(store: ArtifactStore) -> None:
    vfs = await workspace(store)
    specs: list[dict[str, Any]] = [
        {"path": "/file1.txt", "content": b"data1", "metadata": {"tag": "important"}},
        {"path": "/deep/er/file2.txt", "content": "data2"},
        {"path": "/deep", "content": b"a directory is in the way"},
        {"path": "/../out", "content": b""},
        {"path": "/large", "content": bytes(5 * MIB)},
    ]
    results = await vfs.batch_create_files(specs)
    assert [result.success for result in results] == [True, True, False, False, True]
    assert all(isinstance(result, BatchResult) and result.operation == "create" for result in results)
    assert [result.path for result in results] == [spec["path"] for spec in specs]
    assert results[2].error is not None and results[0].error is None and results[0].duration_ms >= 0
    assert (await vfs.get_metadata("/file1.txt"))["tag"] == "important"
    many = {f"/many/{number}": os.urandom(100) for number in range(1000)}
    assert all(result.success for result in await vfs.batch_write_files(many))
    assert await vfs.batch_read_files([*many, "/nothing", "/deep"]) == many
    assert len((await vfs.batch_read_files(["/large", "/file1.txt"]))["/large"]) == 5 * MIB
    gone = await vfs.batch_delete_paths(["/file1.txt", "/nothing", "/many/7", "/many"])
    assert [result.success for result in gone] == [True, False, True, False]
    assert len(await vfs.ls("/many")) == 999


@on_both_loops
@everywhere
async def test_what_is_no_content_and_no_path(store: ArtifactStore) -> None:
    made = await store.create_namespace("workspace")
    vfs: Any = store.get_namespace_vfs(made.namespace_id)
    anything: Any = store
    await vfs.write_file("/a", b"kept")
    for content in (5, None, 1.5, ["a"], {"a": 1}):
        for call in (
            vfs.write_file("/a", content),
            vfs.write_binary("/new", content),
            anything.write_namespace(made.namespace_id, content, "/new"),
        ):
            with pytest.raises(ValueError, match="content is bytes or a string"):
                await call
        [result] = await vfs.batch_write_files({"/new": content})
        assert not result.success and "content is bytes or a string" in result.error
    for call in (
        vfs.batch_create_files([{"content": b"x"}]),
        vfs.batch_create_files(["/new"]),
        vfs.batch_write_files(["/new"]),
        vfs.batch_delete_paths("/a"),
        vfs.batch_read_files("/a"),
        vfs.batch_read_files(5),
        vfs.read_file(5),
        vfs.write_text("/new", b"x"),
        vfs.mkdir(b"/new"),
    ):
        with pytest.raises(ValueError, match=r"wanted|mapping|is a string"):
            await call
    assert await vfs.find() == ["/a"] and await vfs.read_file("/a") == b"kept"
    for same in (bytearray(b"x"), memoryview(b"x"), array("b", b"x"), "x"):
        assert await vfs.write_file("/new", same) and await vfs.read_file("/new") == b"x"


@on_both_loops
@everywhere
async def test_streams(store: ArtifactStore) -> None:
    vfs = await workspace(store)
    data = os.urandom(3 * MIB + 17)
    told: list[tuple[int, int | None]] = []

    async def source(part: int = 100_000) -> AsyncIterator[bytes]:
        for at in range(0, len(data), part):
            yield data[at : at + part]

    def plain() -> Iterator[bytes]:
        yield b"one"
        yield b"two"

    async def hear(done: int, total: int | None) -> None:
        told.append((done, total))

    assert await vfs.stream_write("/big/file", source(), progress_callback=hear, total=len(data))
    assert told[-1] == (len(data), len(data)) and told == sorted(told)
    assert await vfs.write_stream("/plain", plain()) and await vfs.read_file("/plain") == b"onetwo"
    for size in (1000, 65536, 5 * MIB):
        parts = [part async for part in vfs.stream_read("/big/file", chunk_size=size)]
        assert b"".join(parts) == data
        assert all(len(part) == size for part in parts[:-1])
    assert b"".join([part async for part in vfs.read_stream("/big/file")]) == data

    async def broken() -> AsyncIterator[bytes]:
        yield data
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        await vfs.stream_write("/never", broken())
    with pytest.raises(RuntimeError, match="the source failed"):
        await vfs.stream_write("/plain", broken())
    assert not await vfs.exists("/never") and await vfs.read_file("/plain") == b"onetwo"
    with pytest.raises(ArtifactNotFoundError):
        [part async for part in vfs.stream_read("/never")]
    reading = vfs.stream_read("/big/file", chunk_size=1000)
    assert await anext(reading) == data[:1000]
    await vfs.write_file("/big/file", b"replaced")
    rest = [part async for part in reading]
    assert b"".join(rest) == data[1000:]  # one version, whatever happens meanwhile
    assert (await vfs.get_storage_stats())["file_count"] == 2


@on_both_loops
@everywhere
async def test_a_cancelled_stream_leaves_nothing(store: ArtifactStore) -> None:
    vfs = await workspace(store)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(10_000)
            await anyio.sleep(0.001)

    with anyio.move_on_after(0.1) as scope:
        await vfs.stream_write("/never", endless())
    assert scope.cancelled_caught
    assert await vfs.ls("/") == [".workspace"]
    assert (await vfs.get_storage_stats())["total_nodes"] == 1


@on_both_loops
@everywhere
async def test_what_keeps_it(store: ArtifactStore) -> None:
    vfs = await workspace(store)
    assert await vfs.get_provider_name() == ("memory" if store.root is None else "filesystem")
    await vfs.batch_write_files({"/a/1": b"12345", "/a/2": b"123", "/b": b""})
    stats = await vfs.get_storage_stats()
    numbers = {key: stats[key] for key in ("total_size_bytes", "file_count", "directory_count", "total_nodes")}
    assert numbers == {"total_size_bytes": 8, "file_count": 3, "directory_count": 2, "total_nodes": 5}
    described = json.loads(await vfs.read_file("/.workspace"))
    assert described["id"] == vfs.namespace_id
    assert await vfs.is_file("/.workspace") and await vfs.find(".workspace") == []
    for path in ("/.workspace", "/.checkpoints/v1/x"):
        with pytest.raises(PermissionError):
            await vfs.write_file(path, b"x")
        with pytest.raises(PermissionError):
            await vfs.rm(path)
    await vfs.initialize()
    await vfs.close()
    assert await vfs.exists("/b")


@on_both_loops
@everywhere
async def test_a_blob(store: ArtifactStore) -> None:
    made = await store.create_namespace("blob", metadata={"k": 1})
    await store.write_namespace(made.namespace_id, b"data")
    vfs = store.get_namespace_vfs(made.namespace_id)
    assert await vfs.ls("/") == ["_data"] and await vfs.read_file("/_data") == b"data"
    assert await vfs.cp("/_data", "/notes/copy") and await vfs.read_file("/notes/copy") == b"data"
    assert await vfs.mv("/notes/copy", "/other") and await vfs.read_file("/other") == b"data"
    shown = json.loads(await vfs.read_file("/_meta.json"))
    assert (shown["id"], shown["metadata"]) == (made.namespace_id, {"k": 1}) and shown["about"]["session"]
    url = await vfs.generate_presigned_url("/_data")
    assert url is not None and url.startswith("http")
    assert await vfs.generate_presigned_url("/other") is None


@on_both_loops
@everywhere
async def test_of_a_namespace_that_is_gone(store: ArtifactStore) -> None:
    vfs = await workspace(store)
    await vfs.write_file("/x", b"x")
    await store.destroy_namespace(vfs.namespace_id)
    for call in (
        vfs.read_file("/x"),
        vfs.ls("/"),
        vfs.exists("/x"),
        vfs.rm("/x"),
        vfs.find(),
        vfs.write_file("/y", b""),
    ):
        with pytest.raises(ArtifactNotFoundError, match="Namespace not found"):
            await call


@on_both_loops
async def test_writes_replace_at_once(tmp_path: Path) -> None:
    """Readers see one version or the next, whatever the size."""
    async with a_store("root", tmp_path) as store:
        vfs = await workspace(store)
        versions = [bytes([number]) * size for number, size in enumerate((10, 3 * MIB, 70_000, 20 * MIB, 0))]
        await vfs.write_file("/f", versions[0])
        seen = 0

        async def write() -> None:
            for _ in range(3):
                for version in versions:
                    await vfs.write_file("/f", version)
            tasks.cancel_scope.cancel()

        async def read() -> None:
            nonlocal seen
            while True:
                assert await vfs.read_file("/f") in versions
                seen += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            tasks.start_soon(write)
        assert seen


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_streams_need_little_memory(tmp_path: Path, backend: str) -> None:
    """64 MiB up and down."""

    async def main() -> None:
        async with a_store("root", tmp_path) as store:
            vfs = await workspace(store)

            async def source() -> AsyncIterator[bytes]:
                for _ in range(64):
                    yield bytes(MIB)

            tracemalloc.start()
            try:
                await vfs.stream_write("/f", source())
                size = 0
                async for part in vfs.stream_read("/f"):
                    size += len(part)
                assert size == 64 * MIB
                assert tracemalloc.get_traced_memory()[1] < 24 * MIB
            finally:
                tracemalloc.stop()

    anyio.run(main, backend=backend)
