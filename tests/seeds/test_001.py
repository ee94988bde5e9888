"""001, artifacts: every block that can run runs, on asyncio and trio, in memory and on a root, and does what it says.

What the document leaves out (images, a web framework, a client that uploads) has stand-ins here.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import pytest

from artfs import ArtifactExpiredError, ArtifactNotFoundError, ArtifactStore, ArtifactStoreError
from artfs.exceptions import AccessDeniedError
from tests.contract.loops import on_both_loops
from tests.http import fetch
from tests.seeds.blocks import blocks, compiled, run, whole

BLOCKS = {block.partition("\n")[0].removeprefix("# "): block for block in blocks("001.md")}
NAMES = [
    "ArtifactStore",
    "ArtifactStoreError",
    "AccessDeniedError",
    "StreamUploadRequest",
    "StreamDownloadRequest",
    "MultipartUploadInitRequest",
]


@pytest.fixture(params=["memory", "embedded"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """Where the stores of the blocks are, by the environment alone."""
    for name in list(os.environ):
        if name.startswith(("ARTIFACT_", "ARTFS_", "SESSION_", "CHUK_", "VFS_", "SQLITE_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARTIFACT_SANDBOX_ID", f"test-{secrets.token_hex(6)}")  # the memory is one for the process
    if request.param == "memory":
        return None
    monkeypatch.setenv("ARTFS_ROOT", str(tmp_path / "root"))
    return tmp_path / "root"


def given(store: ArtifactStore | None = None, **more: Any) -> dict[str, Any]:
    import artfs

    names = {name: getattr(artfs, name) for name in NAMES}
    return {**names, "store": store, "data": b"data", "os": os, **more}


def test_every_block_is_known() -> None:
    assert len(BLOCKS) == 30
    for name, block in BLOCKS.items():
        compiled(block, name)
        assert "chuk_" not in block


@on_both_loops
async def test_first_steps(root: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    names = await run(BLOCKS["quick start"], {})
    assert names["url"].startswith("http")
    async with ArtifactStore() as store:
        assert (await store.metadata(names["file_id"])).summary == "Updated greeting"
        assert await store.retrieve(names["file_id"]) == b"Hello, updated world!"
        names = await run(BLOCKS["grid paths"], given(store))
        assert names["metadata"].key == f"grid/{store.sandbox_id}/example-session/{names['file_id']}"
        assert capsys.readouterr().out.splitlines()[1:] == [
            f"Sandbox: {store.sandbox_id}",
            "Session: example-session",
            f"Artifact: {names['file_id']}",
        ]
        user, organization = SimpleNamespace(id="7"), SimpleNamespace(id="8")
        more = {"user": user, "organization": organization, "tenant_id": "t", "workflow_id": "w"}
        names = await run(BLOCKS["sessions"], given(store, **more))
        assert (await store.metadata(names["file_id"])).session_id == "user_7"
        names = await run(BLOCKS["isolation"], given(store))
        assert "Cross-session access denied!" in capsys.readouterr().out
        assert names["alice_meta"].session_id != names["bob_meta"].session_id


@on_both_loops
async def test_scopes(root: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    async with ArtifactStore() as store:
        session = (await store.metadata(await store.store(b"x", user_id="alice"))).session_id
        names = await run(BLOCKS["session scope"], given(store, session_id=session))
        assert names["data"] == b"Temporary work file"
        with pytest.raises(ArtifactStoreError):
            await run(BLOCKS["session scope"], given(store, session_id="another"))
        await store.store(b"q", user_id="alice", scope="user", meta={"quarter": "Q4"})
        names = await run(BLOCKS["user scope"], given(store, pdf_bytes=b"pdf"))
        assert (names["data"], len(names["alice_files"]), len(names["alice_pdfs"])) == (b"pdf", 2, 1)
        assert [one.meta for one in names["q4_docs"]] == [{"quarter": "Q4"}]
        assert (await store.metadata(names["document_id"])).ttl == 86400 * 365
        names = await run(BLOCKS["sandbox scope"], given(store, template_bytes=b"png"))
        assert (names["logo_data"], len(names["templates"])) == (b"png", 1)
        await run(BLOCKS["access control"], given(store))
        assert capsys.readouterr().out == "Access denied!\n"
        names = await run(BLOCKS["migration"], given(store))
        assert (await store.metadata(names["file_id"])).scope == "user"

        async def render(deck: bytes) -> str:
            return str(len(deck))

        more = {"pptx_bytes": b"pptx", "remotion_server": SimpleNamespace(render=render)}
        names = await run(BLOCKS["a server's persistent storage"], given(None, **more))
        assert names["video_id"] == "4"
        assert names["deck_id"] in {one.artifact_id for one in names["artifacts"]}
        await names["store"].close()


@on_both_loops
async def test_recipes(root: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    async def client_uploads(url: str) -> None:
        answer = await fetch(url, "PUT", b"jpeg", {"Content-Type": "image/jpeg"})
        assert answer.status == 200

    async with ArtifactStore() as store:
        names = await run(
            BLOCKS["upload with a presigned URL"], given(store, user_id="7", client_uploads=client_uploads)
        )
        found = await store.metadata(names["artifact_id"])
        assert (found.bytes, found.summary, found.session_id) == (4, "Profile pic", "user_7")
        names = await run(BLOCKS["batch"], given(store, catalog_id="9", image1_bytes=b"image"))
        assert capsys.readouterr().out == "Uploaded 10 images\n"
        assert len(await store.get_directory_contents("catalog_9", "products/")) == 10
        doc = await store.write_file("text", filename="docs/README.md", session_id="session-123")
        await store.store(b"png", filename="images/a.png", session_id="session-123")
        names = await run(BLOCKS["directories"], given(store, doc_id=doc))
        assert capsys.readouterr().out == "images/a.png: 3 bytes\ndocs/README.md: 4 bytes\n"
        assert (len(names["docs"]), len(names["images"])) == (1, 1)
        assert (await store.metadata(names["backup_id"])).filename == "docs/README_backup.md"


class _Framework:
    """As much of a web framework, or of an MCP server, as the blocks use."""

    def __init__(self, *arguments: str) -> None:
        self.routes: dict[str, Any] = {}

    def tool(self, name: str) -> Any:
        return lambda function: self.routes.setdefault(name, function)

    post = get = tool


@on_both_loops
async def test_applications(root: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, classes in (("fastapi", ("FastAPI", "UploadFile")), ("mcp", ("Server",))):
        module = ModuleType(name)
        for cls in classes:
            setattr(module, cls, _Framework)
        monkeypatch.setitem(sys.modules, name, module)

    async def read() -> bytes:
        return b"content"

    block = BLOCKS["a web framework"].replace('storage_provider="s3", session_provider="redis"', "")
    names = await run(block, {})
    upload, listing = names["app"].routes["/upload"], names["app"].routes["/files/{user_id}"]
    file = SimpleNamespace(read=read, content_type=None, filename="a.txt")
    answers: list[dict[str, Any]] = []

    async def one() -> None:
        answers.append(await upload(file, "7"))

    async with anyio.create_task_group() as tasks:  # several requests at once
        for _ in range(10):
            tasks.start_soon(one)
    listed = await listing("7")
    assert {item["id"] for item in listed} == {answer["file_id"] for answer in answers}
    assert {(item["name"], item["size"]) for item in listed} == {("a.txt", 7)}
    assert (await fetch(answers[0]["download_url"])).body == b"content"
    await names["store"].close()
    names = await run(BLOCKS["an MCP server"], {})
    made = await names["server"].routes["upload_file"]("aGVsbG8=", "h.txt", "8")
    assert made["size"] == 5
    assert (await names["server"].routes["list_files"]("8"))["files"][0]["id"] == made["file_id"]
    await names["store"].close()


@on_both_loops
async def test_streams(root: Path | None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "large_video.mp4").write_bytes(data)
    names = await run(BLOCKS["streaming upload"], given())
    assert "Upload progress: 100.0%" in capsys.readouterr().out
    names = await run(BLOCKS["streaming download"], given(artifact_id=names["artifact_id"]))
    assert (tmp_path / "downloaded.mp4").read_bytes() == data
    assert "Download progress: 100.0%\nDownload complete!\n" in capsys.readouterr().out
    names = await run(BLOCKS["in little memory"], given(artifact_id=names["artifact_id"]))
    assert names["bytes_processed"] == len(data)

    async def data_generator() -> AsyncIterator[bytes]:
        yield b"pdf"

    chunks: list[bytes] = []
    async with ArtifactStore() as store:
        more = {"data_generator": data_generator, "process_chunk": chunks.append}
        names = await run(BLOCKS["streams are checked"], given(store, **more))
        assert chunks == [b"pdf"]
        with pytest.raises(AccessDeniedError):
            await store.retrieve(names["artifact_id"], user_id="bob")


def test_several_streams(root: Path | None, tmp_path: Path) -> None:
    """`asyncio.gather` is asyncio's own."""
    for number in range(1, 6):
        (tmp_path / f"file{number}.bin").write_bytes(bytes([number]) * 200_000)
    names = given()
    anyio.run(run, BLOCKS["several streams"], names)
    assert len(set(names["artifact_ids"])) == 5


@on_both_loops
async def test_multipart(root: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    if root is None:
        names = await run(BLOCKS["multipart"], {})
        assert (names["metadata"].bytes, names["metadata"].scope) == (0, "user")
        assert names["final_artifact_id"] == names["artifact_id"]
        assert "Part 3 URL: http" in capsys.readouterr().out
    else:  # its parts never arrive: where they could have, that is an error
        with pytest.raises(ArtifactStoreError, match="has not come"):
            await run(BLOCKS["multipart"], names := {})
        await names["store"].close()
    await run(BLOCKS["aborted"], given())
    assert capsys.readouterr().out.endswith("Upload aborted: upload failed\n")
    async with ArtifactStore() as store:
        names = await run(BLOCKS["multipart, scopes and uses"], given(store))
        assert len({result.upload_id for result in names["results"]}) == 7


@on_both_loops
async def test_features(root: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    async with ArtifactStore() as store:
        names = await run(BLOCKS["rich metadata"], given(store, image_bytes=b"jpeg", session_id="s"))
        found = await store.metadata(names["file_id"])
        assert found.summary == "Updated product photo"
        assert found.meta["tags"] == ["laptop", "professional", "workspace"]
        assert found.meta["dimensions"] == {"width": 1920, "height": 1080}
        id = names["file_id"]
        names = await run(BLOCKS["presigned URLs"], given(store, file_id=id))
        for name in ("url", "short", "medium", "long"):
            assert (await fetch(names[name])).body == b"jpeg"
        names = await run(BLOCKS["files"], given(store, file_id=id, new_content=b"new"))
        assert capsys.readouterr().out == "File exists!\n"
        assert (names["moved"].filename, names["deleted"]) == ("renamed.txt", True)
        assert await store.retrieve(names["copy_id"]) == b"new"
        await run(BLOCKS["monitoring"], given(store))
        printed = capsys.readouterr().out.splitlines()
        assert printed == ["Storage: ok", "Sessions: ok", f"Provider: {store.storage_provider}", "Bucket: artifacts"]


@on_both_loops
async def test_errors_and_security(root: Path | None) -> None:
    class HTTPException(Exception):
        pass

    async with ArtifactStore() as store:
        names = await run(BLOCKS["errors"], given(store))
        mine = await store.store(b"x", user_id="alice", scope="user")
        theirs = await store.store(b"x", user_id="bob", scope="user")
        short = await store.store(b"x", user_id="alice", scope="user", ttl=0.05)
        await anyio.sleep(0.1)
        assert await names["answer"](mine) is None
        assert [(await names["answer"](id))[1] for id in ("nosuch", short, theirs)] == [404, 410, 403]
        with pytest.raises(ArtifactExpiredError):
            await store.retrieve(short)
        names = await run(BLOCKS["security"], given(store, HTTPException=HTTPException))
        own = await store.store(b"own", session_id="user_alice")
        assert (await fetch(await names["secure_download"](own, "alice"))).body == b"own"
        with pytest.raises(HTTPException):
            await names["secure_download"](own, "bob")
        with pytest.raises(ArtifactNotFoundError):
            await names["secure_download"]("nosuch", "bob")


def test_a_quick_test(root: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        whole(BLOCKS["a quick test"], "asyncio")
    assert capsys.readouterr().out == "✅ Tests passed!\n" * 2
