"""Each call is cancelled at its first step, at its second, and so on until it ends by itself: what it was to do is then
there or not there, never half; nothing stays open; the next calls work; the store has nothing for fsck to find."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import ArtifactStore
from artfs.exceptions import ArtifactNotFoundError
from artfs.models import StreamDownloadRequest, StreamUploadRequest
from artfs.volume import fsck
from tests.contract.api import WHERE, a_store
from tests.contract.cancelling import Cancelling, cancelling
from tests.contract.loops import BACKENDS

OLD, NEW = b"old content", b"new content"
LARGE = random.Random(1).randbytes(1_300_000)
"""More than one call's worth of an artifact, and more than is written at once."""
STEPS_MAX = 400
SETTLED = 5.0
"""Seconds for what another process goes on with after its caller was cancelled."""
Act = Callable[["Scene"], Awaitable[Any]]


class Scene:
    """What a call finds: a workspace with /old, /dir/a and /dir/b and a checkpoint `first`, of before /dir/b;
    an artifact; a session."""

    def __init__(self, store: ArtifactStore, number: int) -> None:
        self.store = store
        self.name = f"scene-{number}"
        self.session = self.workspace = self.artifact = ""

    async def make(self) -> Scene:
        store = self.store
        self.session = await store.create_session(user_id="u")
        made = await store.create_namespace("workspace", "session", self.name, session_id=self.session)
        self.workspace = made.namespace_id
        self.vfs = store.get_namespace_vfs(self.workspace)
        await self.vfs.batch_write_files({"/old": OLD, "/dir/a": OLD})
        await store.checkpoint_namespace(self.workspace, "first")
        await self.vfs.write_file("/dir/b", OLD)
        self.artifact = await store.store(OLD, mime="text/plain", summary="s", filename="f", session_id=self.session)
        return self

    # looking
    async def file(self, path: str) -> bytes | None:
        data: bytes | None = await self.vfs.read_file(path)
        return data

    async def tree(self) -> list[str]:
        return await self.vfs.find("*", "/")

    async def artifacts(self) -> list[bytes]:
        listed = await self.store.list_by_session(self.session)
        return sorted([await self.store.retrieve(found.artifact_id) for found in listed])

    async def content(self) -> bytes | None:
        """In one call: another process may go on with one that was cancelled."""
        try:
            return await self.store.retrieve(self.artifact)
        except ArtifactNotFoundError:
            return None

    async def names(self) -> list[str]:
        return [str(found.name) for found in await self.store.list_checkpoints(self.workspace)]


@dataclass(frozen=True)
class Case:
    """`look` gives `before` where `act` did nothing, `after` where it did all; without it nothing can be seen."""

    name: str
    act: Act
    look: Act | None = None
    before: Any = None
    after: Any = None


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 500_000):
        await anyio.sleep(0)
        yield data[at : at + 500_000]


async def download(scene: Scene) -> None:
    request = StreamDownloadRequest(artifact_id=scene.artifact, chunk_size=4)
    assert b"".join([chunk async for chunk in scene.store.stream_download(request)]) == OLD


async def read_stream(scene: Scene) -> None:
    assert b"".join([chunk async for chunk in scene.vfs.stream_read("/old", chunk_size=4)]) == OLD


async def upload(scene: Scene) -> None:
    request = StreamUploadRequest(
        data_stream=pieces(LARGE), mime="a/b", summary="s", filename="f", session_id=scene.session
    )
    await scene.store.stream_upload(request)


async def multipart(scene: Scene) -> None:
    begun = await scene.store.initiate_multipart_upload(
        {"filename": "f", "mime_type": "a/b", "user_id": "u", "session_id": scene.session}
    )
    await scene.store.get_part_upload_url(begun["upload_id"], 1)
    await scene.store.abort_multipart_upload(begun["upload_id"])


async def _summary(scene: Scene) -> str:
    return (await scene.store.metadata(scene.artifact)).summary


def path(name: str) -> Act:
    return lambda scene: scene.file(name)


ALL = ["/dir/a", "/dir/b", "/old"]
CASES = [
    Case("write", lambda s: s.vfs.write_file("/old", NEW), path("/old"), OLD, NEW),
    Case("write_large", lambda s: s.store.write_namespace(s.workspace, LARGE, "/old"), path("/old"), OLD, LARGE),
    Case("stream_write", lambda s: s.vfs.stream_write("/x/y", pieces(LARGE)), path("/x/y"), None, LARGE),
    Case("stream_read", read_stream),
    Case("read", lambda s: s.vfs.read_file("/old")),
    Case("remove", lambda s: s.vfs.rm("/old"), path("/old"), OLD, None),
    Case("mkdir", lambda s: s.vfs.mkdir("/p/q"), lambda s: s.vfs.is_dir("/p/q"), False, True),
    Case("move", lambda s: s.vfs.mv("/dir", "/moved"), Scene.tree, ALL, ["/moved/a", "/moved/b", "/old"]),
    Case("copy", lambda s: s.vfs.cp("/dir", "/copy"), Scene.tree, ALL, ["/copy/a", "/copy/b", *ALL]),
    Case("touch", lambda s: s.vfs.touch("/t"), path("/t"), None, b""),
    Case(
        "metadata",
        lambda s: s.vfs.set_metadata("/old", {"k": "v"}),
        lambda s: _value(s.vfs.get_metadata("/old"), "k"),
        None,
        "v",
    ),
    Case(
        "batch",
        lambda s: s.vfs.batch_write_files({"/1": NEW}),
        lambda s: s.vfs.batch_read_files(["/1"]),
        {},
        {"/1": NEW},
    ),
    Case("find", Scene.tree),
    Case("stats", lambda s: s.vfs.get_storage_stats()),
    Case(
        "create",
        lambda s: s.store.create_namespace("blob", "session", s.name + "x", session_id=s.session),
        lambda s: _count(s.store.list_namespaces(session_id=s.session, type="blob")),
        1,
        2,
    ),
    Case(
        "destroy",
        lambda s: s.store.destroy_namespace(s.workspace),
        lambda s: _count(s.store.list_namespaces(session_id=s.session, type="workspace")),
        1,
        0,
    ),
    Case(
        "checkpoint", lambda s: s.store.checkpoint_namespace(s.workspace, "c"), Scene.names, ["first"], ["first", "c"]
    ),
    Case("restore", lambda s: s.store.restore_namespace(s.workspace, "first"), Scene.tree, ALL, ["/dir/a", "/old"]),
    Case("uncheckpoint", lambda s: s.store.delete_checkpoint(s.workspace, "first"), Scene.names, ["first"], []),
    Case(
        "clone",
        lambda s: s.store.clone_namespace(s.workspace, "clone"),
        lambda s: _count(s.store.list_namespaces(session_id=s.session, type="workspace")),
        1,
        2,
    ),
    Case(
        "store",
        lambda s: s.store.store(NEW, mime="a/b", summary="s", session_id=s.session),
        Scene.artifacts,
        [OLD],
        [NEW, OLD],
    ),
    Case(
        "store_large",
        lambda s: s.store.store(LARGE, mime="a/b", summary="s", session_id=s.session),
        Scene.artifacts,
        [OLD],
        sorted([LARGE, OLD]),
    ),
    Case("stream_upload", upload, Scene.artifacts, [OLD], sorted([LARGE, OLD])),
    Case("stream_download", download),
    Case("retrieve", lambda s: s.store.retrieve(s.artifact)),
    Case("update", lambda s: s.store.update_file(s.artifact, data=NEW), Scene.content, OLD, NEW),
    Case("update_large", lambda s: s.store.update_file(s.artifact, data=LARGE), Scene.content, OLD, LARGE),
    Case(
        "update_metadata",
        lambda s: s.store.update_metadata(s.artifact, summary="changed"),
        _summary,
        "s",
        "changed",
    ),
    Case("copy_file", lambda s: s.store.copy_file(s.artifact), Scene.artifacts, [OLD], [OLD, OLD]),
    Case("delete", lambda s: s.store.delete(s.artifact), Scene.content, OLD, None),
    Case(
        "store_batch",
        lambda s: s.store.store_batch([{"data": NEW, "mime": "a/b", "summary": "s"}], session_id=s.session),
        Scene.artifacts,
        [OLD],
        [NEW, OLD],
    ),
    Case("presign", lambda s: s.store.presign(s.artifact)),
    Case("presign_upload", lambda s: s.store.presign_upload(s.session, "f")),
    Case("multipart", multipart),
    Case("search", lambda s: s.store.search(session_id=s.session)),
    Case("session", lambda s: s.store.create_session(user_id="u")),
    Case("session_info", lambda s: s.store.get_session_info(s.session)),
    Case(
        "delete_session",
        lambda s: s.store.delete_session(s.session),
        lambda s: s.store.validate_session(s.session),
        1,
        0,
    ),
    Case("cleanup", lambda s: s.store.cleanup_expired_sessions()),
    Case("stats_of_store", lambda s: s.store.get_stats()),
]


async def _value(awaited: Awaitable[dict[str, Any]], key: str) -> Any:
    return (await awaited).get(key)


async def _count(found: list[Any]) -> int:
    return len(found)


async def seen(case: Case, scene: Scene) -> str:
    """`before`, `after`, or what else."""
    assert case.look is not None
    found = await case.look(scene)
    return "after" if found == case.after else "before" if found == case.before else f"{found!r:.200}"


async def walk(case: Case, store: ArtifactStore, counting: Cancelling, numbers: Any) -> int:
    """Cancel it at every step; returns how many there were."""
    for k in range(1, STEPS_MAX):
        scene = await Scene(store, next(numbers)).make()
        if case.look is not None:
            assert await seen(case, scene) == "before", case.name
        await counting.cancelled_at(k, lambda scene=scene: _coroutine(case.act(scene)))  # type: ignore[misc]
        if case.look is not None:
            found = await seen(case, scene)
            assert found in ("before", "after"), f"{case.name}, cancelled at step {k}: {found}"
            assert found == "after" or counting.cancelled, f"{case.name} ended by itself and did nothing"
        artifact = await store.store(b"next", mime="a/b", summary="s")
        assert await store.retrieve(artifact) == b"next"
        await nothing_open(store, f"{case.name}, cancelled at step {k}")
        if not counting.cancelled:
            return k
    raise AssertionError(f"{case.name} does not end")


async def _coroutine(awaited: Awaitable[Any]) -> Any:
    return await awaited


async def nothing_open(store: ArtifactStore, what: str) -> None:
    opened = store._handle._opened
    assert opened is not None
    if opened.service is not None:
        with anyio.move_on_after(SETTLED):
            while opened.service.pending():
                await anyio.sleep(0.001)
        assert opened.service.pending() == 0, f"{what}: something stays open"
        assert not opened.running, what


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.logs_errors
def test_a_cancelled_call_is_done_or_not(
    where: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[str, int] = {}

    async def main() -> None:
        numbers = iter(range(10**6))
        async with a_store(where, tmp_path) as store:
            with cancelling(monkeypatch) as counting:
                for case in CASES:
                    steps[case.name] = await walk(case, store, counting, numbers)

    anyio.run(main, backend=backend)
    print(steps)
    assert sum(steps.values()) > len(CASES)
    if where != "memory":
        assert not fsck.check(tmp_path / "store").problems
