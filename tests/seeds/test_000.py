"""000, namespaces: every block that can run runs, on asyncio and trio, and does what it says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from artfs import ArtifactStore, NamespaceType, StorageScope
from tests.contract.loops import on_both_loops
from tests.seeds.blocks import blocks, compiled, run

BLOCKS = blocks("000.md")
(
    TOUR, BLOB, WORKSPACE, CHECKPOINT, SCOPES, SIGNATURES, CHECKPOINT_SIGNATURES, VFS, AGAIN, BATCH, METADATA, FIND,
    LEGACY, MEMORY, FILESYSTEM, SQLITE, S3, CLUSTER, HYBRID, PROGRAM, TESTING,
) = BLOCKS  # fmt: skip

NOT_CODE = {SIGNATURES, CHECKPOINT_SIGNATURES, FILESYSTEM, SQLITE, S3, CLUSTER}
"""Signatures with the types of their arguments, and lines for a shell."""


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if re.match("ARTFS_|ARTIFACT_|VFS_|SQLITE_|SESSION_|AWS_|S3_", name)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def names(**more: Any) -> dict[str, Any]:
    return {
        "ArtifactStore": ArtifactStore,
        "NamespaceType": NamespaceType,
        "StorageScope": StorageScope,
        "store": ArtifactStore(),
        **more,
    }


async def with_workspace() -> dict[str, Any]:
    found = names()
    store = found["store"]
    found["workspace"] = await store.create_namespace("workspace", "user", "my-project", "alice")
    found["vfs"] = store.get_namespace_vfs(found["workspace"].namespace_id)
    return found


def test_all_blocks_are_known() -> None:
    assert len(BLOCKS) == 21
    for block in BLOCKS:
        assert "chuk_" not in block
        if block not in NOT_CODE:
            compiled(block, "block")


@on_both_loops
async def test_the_tour() -> None:
    found = await run(TOUR, {})
    assert found["files"] == [".workspace", "config.json", "main.py"]
    assert (found["blob"].type, found["workspace"].user_id) == (NamespaceType.BLOB, "alice")
    assert found["checkpoint"].checkpoint_id == "v1.0"


@on_both_loops
async def test_quick_start(capsys: pytest.CaptureFixture[str]) -> None:
    found = await run(BLOB, {})
    assert found["data"] == b"My important data"
    assert capsys.readouterr().out == "b'My important data'\n"
    await run(WORKSPACE, found)
    assert found["files"] == [".workspace", "README.md", "src"]
    assert found["src_files"] == ["main.py"]
    assert found["python_files"] == ["/src/backup.py", "/src/main.py"]
    await run(CHECKPOINT, found)
    assert await found["store"].read_namespace(found["workspace"].namespace_id, "/README.md") == b"# My Project"
    await run(AGAIN, found)
    assert await found["vfs"].exists("/new_file.txt") is False


@on_both_loops
async def test_scopes() -> None:
    found = await run(SCOPES, names())
    sandbox = found["store"].sandbox_id
    session = found["temp_blob"].session_id
    assert found["temp_blob"].grid_path == f"grid/{sandbox}/{session}/{found['temp_blob'].namespace_id}"
    assert session.startswith("sess-")
    assert found["user_project"].grid_path == f"grid/{sandbox}/user-alice/my-docs"
    assert found["shared_templates"].grid_path == f"grid/{sandbox}/shared/templates"


@on_both_loops
async def test_the_vfs() -> None:
    found = await with_workspace()
    given = {
        "namespace_id": found["workspace"].namespace_id,
        "path": "/dir",
        "data": b"bytes",
        "src": "/a",
        "dst": "/b",
        "metadata": {"tag": "x"},
        "file_specs": [{"path": "/specs/1", "content": b"1"}],
        "paths": ["/specs/1"],
        "file_data": {"/specs/2": b"2"},
        "text": "text",
    }
    await found["vfs"].write_file("/a", b"a")
    await run(VFS, {**found, **given})
    vfs = found["vfs"]
    assert await vfs.find() == ["/b", "/dir", "/specs/2"]
    assert await vfs.read_file("/dir") == b"bytes"


@on_both_loops
async def test_many_metadata_and_find() -> None:
    found = await with_workspace()
    vfs = found["vfs"]
    await run(BATCH, found)
    assert found["data"] == {"/file1.txt": b"data1", "/file2.txt": b"data2"}
    assert await vfs.find() == []
    await vfs.write_file("/document.pdf", b"%PDF")
    await run(METADATA, found)
    assert found["metadata"]["author"] == "Alice"
    assert found["metadata"]["custom"] == {"project_id": 123}
    await vfs.batch_write_files({"/a/x.py": b"", "/config.json": b"{}"})
    await run(FIND, found)
    assert (found["py_files"], found["results"]) == (["/a/x.py"], ["/config.json"])


@on_both_loops
async def test_both_ways() -> None:
    found = await run(LEGACY, names())
    assert found["data"] == b"data"
    assert await found["store"].retrieve(found["artifact_id"]) == b"data"
    assert await found["store"].read_namespace(found["artifact_id"]) == b"data"


@on_both_loops
async def test_memory_is_the_default() -> None:
    found = await run(MEMORY, names())
    assert (found["store"].root, found["store"].storage_provider) == (None, "vfs-memory")


@on_both_loops
async def test_the_hybrid_as_far_as_there_is_a_user() -> None:
    """The document's second namespace is of user scope, and names no user: that is refused, as it says elsewhere."""
    found = names()
    with pytest.raises(ValueError, match="user_id required for USER scope"):
        await run(HYBRID, found)
    assert [info.provider_type for info in found["store"].list_namespaces()] == ["vfs-memory"]


def test_configuration_by_program() -> None:
    found = compiled(PROGRAM, "block")
    given: dict[str, Any] = {"ArtifactStore": ArtifactStore}
    exec(found, given)
    assert (given["config"]["bucket"], given["store"].bucket) == ("my-artifacts", "my-artifacts")
    assert given["store"].storage_provider == "vfs-s3"
    for name in ("ARTIFACT_PROVIDER", "ARTIFACT_BUCKET", "AWS_S3_BUCKET", "AWS_REGION", "AWS_DEFAULT_REGION"):
        os.environ.pop(name, None)
    for name in ("SESSION_PROVIDER", "SESSION_REDIS_URL", "S3_ENDPOINT_URL"):
        os.environ.pop(name, None)


@on_both_loops
async def test_its_own_test() -> None:
    text = TESTING.replace("@pytest.mark.asyncio\n", "")
    found = await run(text, {})
    await found["test_my_feature"]()


@pytest.mark.parametrize("block", [FILESYSTEM, SQLITE])
def test_lines_for_a_shell(block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in re.findall(r"^export (\w+)=(.*)$", block, re.MULTILINE):
        monkeypatch.setenv(name, value.replace("/data", str(tmp_path)))
    store = ArtifactStore()
    assert store.root is not None and store.root.startswith(str(tmp_path))
    assert store.storage_provider in ("vfs-filesystem", "vfs-sqlite")
