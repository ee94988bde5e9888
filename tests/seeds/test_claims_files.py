"""000, files and checkpoints: what the document claims, one claim to a test; as in `test_claims`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from artfs import ArtifactStore, NamespaceType, StorageScope
from tests.contract.loops import on_both_loops
from tests.seeds.claims import blob, owned, store, workspace

__all__ = ["owned", "store"]
WORKSPACE, USER = NamespaceType.WORKSPACE, StorageScope.USER


# the VFS
@on_both_loops
async def test_cp_mv_and_rm(store: ArtifactStore) -> None:
    _, vfs = await workspace(store, src__main=b"1")
    assert await vfs.cp("/src/main", "/src/backup")
    assert await vfs.mv("/src/main", "/src/moved")
    assert sorted(await vfs.ls("/src")) == ["backup", "moved"]
    assert await vfs.read_file("/src/backup") == await vfs.read_file("/src/moved") == b"1"
    assert await vfs.rm("/src/backup")
    assert not await vfs.exists("/src/backup")


@on_both_loops
async def test_what_cannot_be_done_is_not_reported_as_done(store: ArtifactStore) -> None:
    _, vfs = await workspace(store, full__file=b"1")
    assert not await vfs.rm("/missing")
    assert not await vfs.cp("/missing", "/x")
    assert not await vfs.mv("/missing", "/x")
    assert not await vfs.rmdir("/full")
    assert not await vfs.cd("/missing")
    assert not await vfs.set_metadata("/missing", {"a": 1})
    assert not await vfs.write_file("/full", b"over a directory")
    assert await vfs.read_file("/missing") is None
    assert await vfs.read_file("/full/file") == b"1"


@on_both_loops
async def test_directories(store: ArtifactStore) -> None:
    _, vfs = await workspace(store, file=b"1")
    assert await vfs.mkdir("/d")
    assert await vfs.is_dir("/d") and not await vfs.is_file("/d")
    assert await vfs.is_file("/file") and not await vfs.is_dir("/file")
    assert await vfs.rmdir("/d")
    assert not await vfs.exists("/d")


@on_both_loops
async def test_each_vfs_has_a_current_directory_of_its_own(store: ArtifactStore) -> None:
    made, first = await workspace(store, d__file=b"1")
    second = store.get_namespace_vfs(made)
    assert await first.cd("/d")
    assert await first.read_file("file") == b"1"
    assert (first.pwd(), second.pwd()) == ("/d", "/")


@on_both_loops
async def test_find_by_pattern_below_a_path(store: ArtifactStore) -> None:
    _, vfs = await workspace(store, **{"a.py": b"", "d__b.py": b"", "d__e__c.py": b"", "d__config.json": b""})
    assert sorted(await vfs.find(pattern="*.py", path="/", recursive=True)) == ["/a.py", "/d/b.py", "/d/e/c.py"]
    assert await vfs.find(pattern="*.py", path="/", recursive=False) == ["/a.py"]
    assert await vfs.find(pattern="*.py", path="/d/e", recursive=True) == ["/d/e/c.py"]
    assert await vfs.find(pattern="config.json", path="/") == ["/d/config.json"]


@on_both_loops
async def test_metadata_of_a_file_is_rich_and_merges(store: ArtifactStore) -> None:
    _, vfs = await workspace(store, file=b"1")
    await vfs.set_metadata("/file", {"author": "Alice", "tags": ["important"], "custom": {"project_id": 123}})
    await vfs.set_metadata("/file", {"author": "Bob"})
    found = await vfs.get_metadata("/file")
    assert (found["author"], found["tags"], found["custom"]) == ("Bob", ["important"], {"project_id": 123})
    assert found["custom_meta"]["custom"] == {"project_id": 123}


@on_both_loops
async def test_node_info(store: ArtifactStore) -> None:
    _, vfs = await workspace(store, d__file=b"12345")
    file, directory = await vfs.get_node_info("/d/file"), await vfs.get_node_info("/d")
    assert (file.name, file.size, file.is_dir) == ("file", 5, False)
    assert directory.is_dir
    assert await vfs.get_node_info("/missing") is None


@on_both_loops
async def test_text_in_the_encoding_that_was_asked_for(store: ArtifactStore) -> None:
    _, vfs = await workspace(store)
    for encoding in ("utf-8", "latin-1"):
        await vfs.write_text("/text", "Grüße", encoding=encoding)
        assert await vfs.read_text("/text", encoding=encoding) == "Grüße"
        assert await vfs.read_binary("/text") == "Grüße".encode(encoding)
    await vfs.write_binary("/binary", b"\xff\0")
    assert await vfs.read_binary("/binary") == b"\xff\0"


@on_both_loops
async def test_batches(store: ArtifactStore) -> None:
    _, vfs = await workspace(store)
    made = await vfs.batch_create_files(
        [
            {"path": "/file1.txt", "content": b"data1", "metadata": {"tag": "important"}},
            {"path": "/d/file2.txt", "content": b"data2"},
        ]
    )
    assert [(r.success, r.path) for r in made] == [(True, "/file1.txt"), (True, "/d/file2.txt")]
    assert (await vfs.get_metadata("/file1.txt"))["tag"] == "important"
    assert all(r.success for r in await vfs.batch_write_files({"/d/file2.txt": b"new", "/three": b"3"}))
    read = await vfs.batch_read_files(["/file1.txt", "/d/file2.txt", "/three"])
    assert read == {"/file1.txt": b"data1", "/d/file2.txt": b"new", "/three": b"3"}
    gone = await vfs.batch_delete_paths(["/file1.txt", "/missing"])
    assert [r.success for r in gone] == [True, False]
    assert not await vfs.exists("/file1.txt") and await vfs.exists("/three")


@on_both_loops
async def test_streams_of_a_file(store: ArtifactStore) -> None:
    _, vfs = await workspace(store)

    async def source() -> AsyncIterator[bytes]:
        for i in range(40):
            yield bytes([i]) * 65_536

    assert await vfs.stream_write("/large", source())
    read = b"".join([chunk async for chunk in vfs.stream_read("/large")])
    assert read == b"".join([chunk async for chunk in source()])


@on_both_loops
async def test_statistics_count_what_is_there(store: ArtifactStore) -> None:
    _, vfs = await workspace(store)
    before = await vfs.get_storage_stats()
    await vfs.batch_write_files({"/d/one": b"x" * 1000, "/d/two": b"x" * 24})
    after = await vfs.get_storage_stats()
    assert after["total_size_bytes"] - before["total_size_bytes"] == 1024
    assert after["file_count"] - before["file_count"] == 2
    assert after["directory_count"] - before["directory_count"] == 1


@pytest.mark.parametrize("path", ["/../escape", "../escape", "/a/../../escape", "/a/../../../user-bob/theirs/escape"])
@on_both_loops
async def test_no_path_leads_out_of_a_namespace(store: ArtifactStore, path: str) -> None:
    theirs = await store.create_namespace(type=WORKSPACE, name="theirs", scope=USER, user_id="bob")
    made, vfs = await workspace(store, a__b=b"1")
    with pytest.raises(ValueError):
        await store.write_namespace(made, path=path, data=b"x")
    with pytest.raises(ValueError):
        await vfs.write_file(path, b"x")
    assert await vfs.find(pattern="*escape*", recursive=True) == []
    assert await store.get_namespace_vfs(theirs.namespace_id).find(pattern="*escape*", recursive=True) == []


@on_both_loops
async def test_requests_at_once_do_not_disturb_each_other(store: ArtifactStore) -> None:
    made, vfs = await workspace(store)

    async def write(number: int) -> None:
        await store.write_namespace(made, path=f"/d/{number}", data=str(number).encode())
        assert await store.read_namespace(made, path=f"/d/{number}") == str(number).encode()

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(write, number)
    assert len(await vfs.ls("/d")) == 50


# checkpoints
@on_both_loops
async def test_restore_brings_back_exactly_what_was_there(store: ArtifactStore) -> None:
    made, vfs = await workspace(store, file=b"1", gone=b"2")
    await vfs.mkdir("/empty")
    await vfs.set_metadata("/file", {"state": "first"})
    saved = await store.checkpoint_namespace(made, name="v1.0", description="the first")
    await vfs.write_file("/file", b"changed")
    await vfs.set_metadata("/file", {"state": "second"})
    await vfs.write_file("/later", b"3")
    await vfs.rm("/gone")
    await vfs.rmdir("/empty")
    await store.restore_namespace(made, saved.checkpoint_id)
    assert sorted(await vfs.ls("/")) == [".workspace", "empty", "file", "gone"]
    assert await vfs.batch_read_files(["/file", "/gone"]) == {"/file": b"1", "/gone": b"2"}
    assert (await vfs.get_metadata("/file"))["state"] == "first"


@on_both_loops
async def test_checkpoints_have_ids_names_and_an_end(store: ArtifactStore) -> None:
    made, _ = await workspace(store, file=b"1")
    first = await store.checkpoint_namespace(made, name="v1", description="one")
    second = await store.checkpoint_namespace(made, name="v1")
    unnamed = await store.checkpoint_namespace(made)
    assert (first.checkpoint_id, second.checkpoint_id) == ("v1", "v1~2")
    assert (first.name, first.description, second.description or "") == ("v1", "one", "")
    assert unnamed.checkpoint_id
    await store.delete_checkpoint(made, second.checkpoint_id)
    assert [c.checkpoint_id for c in await store.list_checkpoints(made)].count("v1~2") == 0
    with pytest.raises(ValueError):
        await store.restore_namespace(made, "v1~2")
    await store.restore_namespace(made, "v1")


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "nul\0", "x" * 256])
@on_both_loops
async def test_a_checkpoints_name_is_plain(store: ArtifactStore, name: str) -> None:
    made = await blob(store)
    with pytest.raises(ValueError):
        await store.checkpoint_namespace(made, name=name)
    assert await store.list_checkpoints(made) == []


@on_both_loops
async def test_a_blob_goes_back_too(store: ArtifactStore) -> None:
    made = await blob(store, b"1")
    saved = await store.checkpoint_namespace(made, name="before:change")
    await store.write_namespace(made, data=b"2")
    await store.restore_namespace(made, saved.checkpoint_id)
    assert await store.read_namespace(made) == b"1"
