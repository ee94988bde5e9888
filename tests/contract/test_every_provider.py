"""The same calls on every provider, chosen by the environment alone, on asyncio and on trio; the next store finds what
they made."""

from __future__ import annotations

import uuid
from pathlib import Path

import anyio
import pytest

from artfs import ArtifactStore
from tests.contract.loops import BACKENDS
from tests.contract.test_cancellation import CASES, LARGE, Scene, seen
from tests.servers import Running, let_in, servers

__all__ = ["servers"]

PROVIDERS = ["memory", "vfs-memory", "filesystem", "vfs-filesystem", "sqlite", "vfs-sqlite", "s3", "vfs-s3", "root"]


def choose(provider: str, tmp_path: Path, servers: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if provider == "root":
        monkeypatch.setenv("ARTFS_ROOT", str(tmp_path / "root"))
        return
    monkeypatch.setenv("ARTIFACT_PROVIDER", provider)
    monkeypatch.setenv("ARTIFACT_FS_ROOT", str(tmp_path / "files"))
    monkeypatch.setenv("ARTIFACT_SQLITE_PATH", str(tmp_path / "all.db"))
    monkeypatch.setenv("ARTIFACT_SANDBOX_ID", "box")
    if provider.endswith("s3"):
        moto = let_in(servers["moto"], monkeypatch)
        bucket = f"every-{uuid.uuid4()}"
        moto.make_bucket(bucket)
        monkeypatch.setenv("S3_ENDPOINT_URL", moto.endpoint)
        monkeypatch.setenv("ARTIFACT_BUCKET", bucket)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_call_on(
    provider: str, backend: str, tmp_path: Path, servers: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(provider, tmp_path, servers, monkeypatch)

    async def main() -> tuple[str, str]:
        async with ArtifactStore() as store:
            kind = "vfs-filesystem" if provider == "root" else f"vfs-{provider.removeprefix('vfs-')}"
            assert store.storage_provider == kind
            for number, case in enumerate(CASES):
                scene = await Scene(store, number).make()
                if case.look is not None:
                    assert await seen(case, scene) == "before", case.name
                await case.act(scene)
                if case.look is not None:
                    assert await seen(case, scene) == "after", case.name
                if case.name != "destroy":
                    info = store.get_namespace_info(scene.workspace) if case.name != "delete_session" else None
                    assert info is None or info.provider_type == kind
            kept = await store.create_namespace("workspace", "user", "kept", user_id="u")
            await store.write_namespace(kept.namespace_id, LARGE, "/a/b")
            return kept.namespace_id, await store.store(LARGE, mime="a/b", summary="s", scope="user", user_id="u")

    async def later(namespace: str, artifact: str) -> None:
        async with ArtifactStore() as store:
            assert await store.read_namespace(namespace, "/a/b") == LARGE
            assert await store.retrieve(artifact) == LARGE

    anyio.run(later, *anyio.run(main, backend=backend), backend=backend)
