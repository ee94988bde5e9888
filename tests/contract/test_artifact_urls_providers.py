"""URLs of artifacts and their uploads with every kind of provider, used as plain curl uses them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from anyio import to_thread

from artfs import ArtifactNotFoundError, ArtifactStore, ArtifactStoreError
from artfs.settings import create_store
from tests.servers import KINDS, Running, let_in, servers

__all__ = ["servers"]  # a fixture

MIB = 1 << 20
DATA = Random(1).randbytes(6 * MIB + 123)
PLACES = ("local", "memory", "file", "sqlite", *(kind for kind in KINDS if kind != "rclone"))


@pytest.fixture(params=PLACES)
async def store(
    request: pytest.FixtureRequest, servers: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[ArtifactStore]:
    urls = {"local": "", "memory": "memory:", "file": f"file://{tmp_path}/far", "sqlite": f"sqlite://{tmp_path}/far.db"}
    kind = request.param
    url = urls[kind] if kind in urls else let_in(servers[kind], monkeypatch).place()
    create_store(tmp_path / "store")
    (tmp_path / "store" / "config.toml").write_text(f'provider = "{url}"\n')
    async with ArtifactStore(root=tmp_path / "store") as store:
        yield store


async def curl(*arguments: str | Path) -> bytes:
    command = ["curl", "-sS", "--fail", *map(str, arguments)]

    def run() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, capture_output=True, timeout=60, check=False)

    done = await to_thread.run_sync(run)
    if done.returncode:
        raise ConnectionError(done.stderr.decode())
    return bytes(done.stdout)


def etag(headers: bytes) -> str:
    found = re.findall(rb"(?im)^etag: *(\S+)", headers)
    assert len(found) == 1, headers
    return str(found[0].decode())


async def test_reading(store: ArtifactStore, tmp_path: Path) -> None:
    id = await store.store(DATA, mime="image/png", filename="a b.png", summary="one", session_id="s")
    url = await store.presign(id, expires=60)
    whole = tmp_path / "whole"
    headers = await curl("-D", "-", "-o", whole, url)
    assert whole.read_bytes() == DATA
    assert b"image/png" in headers and b'filename="a b.png"' in headers
    assert await curl("-r", "100-1000", url) == DATA[100:1001]
    assert await curl("-r", "-5", url) == DATA[-5:]
    partial_file = tmp_path / "partial"
    partial_file.write_bytes(DATA[: 2 * MIB])
    await curl("-C", "-", "-o", partial_file, url)  # goes on where a download was broken off
    assert partial_file.read_bytes() == DATA
    if "X-Amz-" not in url:  # ours; moto does not look at signatures
        with pytest.raises(ConnectionError, match="403"):
            await curl(url.replace("signature=", "signature=x"))


async def test_writing(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    url, id = await store.presign_upload(session_id="s", filename="f.bin", mime_type="application/octet-stream")
    with pytest.raises(ArtifactNotFoundError):
        await store.register_uploaded_artifact(id, summary="too early")
    await curl("-T", tmp_path / "f", "-H", "Content-Type: application/octet-stream", url)
    assert await store.register_uploaded_artifact(id, summary="there")
    assert await store.retrieve(id) == DATA
    assert (await store.metadata(id)).bytes == len(DATA)
    (tmp_path / "f").write_bytes(b"something else")
    try:  # a URL that is still valid in the provider changes no artifact
        await curl("-T", tmp_path / "f", "-H", "Content-Type: application/octet-stream", url)
    except ConnectionError:
        pass
    assert await store.retrieve(id) == DATA


async def test_writing_in_parts(store: ArtifactStore, tmp_path: Path) -> None:
    begun = await store.initiate_multipart_upload({"filename": "f.bin", "mime_type": "video/mp4", "session_id": "s"})
    upload = begun.upload_id
    parts = []
    for number, data in enumerate((DATA[: 5 * MIB], DATA[5 * MIB :]), 1):
        (tmp_path / "part").write_bytes(data)
        url = await store.get_part_upload_url(upload, number)
        headers = await curl("-T", tmp_path / "part", "-D", "-", "-o", tmp_path / "out", url)
        parts.append({"PartNumber": number, "ETag": etag(headers)})
    wrong = [{"PartNumber": 1, "ETag": '"0123"'}, parts[1]]
    with pytest.raises(ArtifactStoreError):
        await store.complete_multipart_upload({"upload_id": upload, "parts": wrong})
    id = await store.complete_multipart_upload({"upload_id": upload, "parts": parts, "summary": "film"})
    assert id == begun.artifact_id
    assert await store.retrieve(id) == DATA
    assert await curl(await store.presign(id)) == DATA


async def test_aborted_parts(store: ArtifactStore, tmp_path: Path) -> None:
    begun = await store.initiate_multipart_upload({"filename": "f", "mime_type": "video/mp4", "session_id": "s"})
    (tmp_path / "part").write_bytes(DATA)
    url = await store.get_part_upload_url(begun.upload_id, 1)
    await curl("-T", tmp_path / "part", url)
    assert await store.abort_multipart_upload(begun.upload_id)
    with pytest.raises(ConnectionError):
        await curl("-T", tmp_path / "part", url)
    assert not await store.exists(begun.artifact_id)
