"""What the tests of claims share: a store of each kind, closed at the end, and the sessions they speak of.

To be imported: `store` is an `ArtifactStore` in memory, one on a root, and one on a root that another process owns, in
turn; `owned` is that root.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from artfs import ArtifactStore, NamespaceType, StorageScope

SOON = 0.0002
"""Hours: less than a second."""


OWNER = """
import asyncio, sys
from artfs import ArtifactStore

async def main():
    async with ArtifactStore(root=sys.argv[1]) as store:
        end = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        print("open", flush=True)
        while not end.done():
            await store.get_stats()  # an owner that does nothing would let the store go
            await asyncio.sleep(0.2)

asyncio.run(main())
"""
_numbers = count()


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("owned") / "root"
    command = [sys.executable, "-c", OWNER, str(root)]
    here = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdin is not None
        assert owner.stdout.readline() == "open\n"
        yield root
        owner.stdin.close()
        assert owner.wait(30) == 0


@pytest.fixture(params=["memory", "embedded", "client"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArtifactStore]:
    for name in list(os.environ):
        if name.startswith(("ARTIFACT_", "ARTFS_", "SESSION_", "CHUK_", "VFS_", "SQLITE_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    if request.param == "memory":
        made = ArtifactStore()
    elif request.param == "embedded":
        made = ArtifactStore(root=tmp_path / "root")
    else:
        made = ArtifactStore(root=request.getfixturevalue("owned"), sandbox_id=f"sandbox{next(_numbers)}")
    yield made
    anyio.run(made.close)


async def two_sessions(store: ArtifactStore) -> tuple[str, str]:
    """Alice's and Bob's."""
    return await store.create_session(user_id="alice"), await store.create_session(user_id="bob")


async def workspace(store: ArtifactStore, **files: bytes) -> tuple[str, Any]:
    """A workspace of Alice's with these files (`a__b` is /a/b), and its VFS."""
    made = await store.create_namespace(
        type=NamespaceType.WORKSPACE, name="work", scope=StorageScope.USER, user_id="alice"
    )
    for name, data in files.items():
        await store.write_namespace(made.namespace_id, path="/" + name.replace("__", "/"), data=data)
    return made.namespace_id, store.get_namespace_vfs(made.namespace_id)


async def blob(store: ArtifactStore, data: bytes = b"data", **arguments: Any) -> str:
    made = await store.create_namespace(type=NamespaceType.BLOB, **{"scope": StorageScope.SESSION, **arguments})
    await store.write_namespace(made.namespace_id, data=data)
    return made.namespace_id


async def put(store: ArtifactStore, data: bytes = b"data", **arguments: Any) -> str:
    return await store.store(data, **{"mime": "text/plain", "summary": "one", **arguments})


async def http(method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, str]:
    """(status, body, ETag) of a request that any program could make."""

    def ask() -> tuple[int, bytes, str]:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        request = urllib.request.Request(url, data=body, method=method, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read(), answer.headers.get("ETag", "")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), ""

    return await anyio.to_thread.run_sync(ask)
