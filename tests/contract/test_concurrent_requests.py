"""A web application over one store, as users write it: many requests at once, some of which break off."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request, UploadFile
from fastapi.responses import Response, StreamingResponse

from artfs import AccessDeniedError, ArtifactNotFoundError, ArtifactStore
from artfs.models import StreamDownloadRequest, StreamUploadRequest
from tests.contract.api import WHERE, a_store
from tests.contract.loops import BACKENDS, on_both_loops

CLIENTS = 12
ROUNDS = 3
HEAD = "X-Session"


def application(store: ArtifactStore) -> FastAPI:
    """Artifacts of sessions, and one workspace for all; sessions are named in a header."""
    app = FastAPI()

    async def session(x_session: str = Header()) -> str:
        if not await store.validate_session(x_session):
            raise HTTPException(401, "no such session")
        return x_session

    @app.post("/sessions")
    async def begin(user: str) -> dict[str, str]:
        return {"session": await store.create_session(user_id=user)}

    @app.post("/artifacts")
    async def upload(file: UploadFile, who: str = Depends(session)) -> dict[str, str]:
        id = await store.store(await file.read(), filename=file.filename, summary="an upload", session_id=who)
        return {"id": id}

    @app.put("/streams/{name}")
    async def stream(name: str, request: Request, who: str = Depends(session)) -> dict[str, str]:
        source = StreamUploadRequest(
            data_stream=request.stream(), mime="a/b", summary="a stream", filename=name, session_id=who
        )
        return {"id": await store.stream_upload(source)}

    @app.get("/artifacts/{id}")
    async def whole(id: str, who: str = Depends(session)) -> Response:
        try:
            return Response(await store.retrieve(id, session_id=who))
        except ArtifactNotFoundError as error:
            raise HTTPException(404, str(error)) from error
        except AccessDeniedError as error:
            raise HTTPException(403, str(error)) from error

    @app.get("/streams/{id}")
    async def parts(id: str, who: str = Depends(session)) -> StreamingResponse:
        request = StreamDownloadRequest(artifact_id=id, session_id=who, chunk_size=64 << 10)
        return StreamingResponse(store.stream_download(request))

    @app.put("/files/{space}/{path}")
    async def write(space: str, path: str, request: Request) -> dict[str, bool]:
        return {"written": await store.get_namespace_vfs(space).write_file(f"/{path}", await request.body())}

    @app.get("/spaces")
    def spaces() -> list[str]:
        """Runs in a thread."""
        return [found.namespace_id for found in store.list_namespaces(type="workspace")]

    @app.get("/spaces/{space}")
    def space(space: str) -> dict[str, Any]:
        return {"path": store.get_namespace_info(space).grid_path}

    return app


class Browser:
    def __init__(self, client: httpx.AsyncClient, number: int, space: str) -> None:
        self.client = client
        self.chance = random.Random(number)
        self.user = f"user{number}"
        self.space = space
        self.mine: dict[str, bytes] = {}

    async def run(self) -> None:
        made = await self.client.post("/sessions", params={"user": self.user})
        self.head = {HEAD: made.json()["session"]}
        for number in range(ROUNDS):
            data = self.chance.randbytes(self.chance.choice([0, 100, 70_000, 700_000]))
            sent = await self.client.post("/artifacts", files={"file": (f"{number}.bin", data)}, headers=self.head)
            self.mine[sent.json()["id"]] = data
            sent = await self.client.put("/streams/s", content=Body(data), headers=self.head)
            self.mine[sent.json()["id"]] = data
            await self.client.put(f"/files/{self.space}/{self.user}", content=data)
            assert self.space in (await self.client.get("/spaces")).json()
            assert (await self.client.get(f"/spaces/{self.space}")).json()["path"].endswith("/all")
            for id, wanted in self.mine.items():
                assert (await self.client.get(f"/artifacts/{id}", headers=self.head)).content == wanted
            assert (await self.client.get(f"/streams/{id}", headers=self.head)).content == wanted


class BrokenOffError(Exception):
    pass


class Body:
    """Pieces of a request, which then `fails`, or goes on for ever."""

    def __init__(self, data: bytes, *, ends: bool = True, fails: bool = False) -> None:
        self.data = data
        self.ends = ends
        self.fails = fails
        self.at = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await anyio.sleep(0)
        part = self.data[self.at : self.at + 50_000]
        self.at += len(part)
        if part or not self.ends:
            return part or bytes(50_000)
        if self.fails:
            raise BrokenOffError
        raise StopAsyncIteration


# httpx leaves its own generators to the collector when a request is cancelled.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_requests_share_one_store(where: str, backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with a_store(where, tmp_path) as store:
            space = (await store.create_namespace("workspace", "sandbox", "all")).namespace_id
            transport = httpx.ASGITransport(app=application(store))
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
                browsers = [Browser(client, number, space) for number in range(CLIENTS)]
                async with anyio.create_task_group() as tasks:
                    for browser in browsers:
                        tasks.start_soon(browser.run)
                await foreign(client, browsers)
                await break_off(client, store, browsers[0])
            written = await store.get_namespace_vfs(space).ls("/")
            assert {browser.user for browser in browsers} <= set(written)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("where", WHERE)
def test_loops_of_several_threads_share_one_store(where: str, tmp_path: Path) -> None:
    """Two of asyncio and two of trio, at once, and a plain thread beside them."""

    async def work(store: ArtifactStore, space: str, name: str) -> None:
        vfs = store.get_namespace_vfs(space)
        for number in range(60):
            data = f"{name}-{number}".encode() * 20
            id = await store.store(data, mime="a/b", summary=name, scope="sandbox")
            assert await vfs.write_file(f"/{name}", data)
            assert await vfs.read_file(f"/{name}") == data
            assert await store.retrieve(id) == data
            await vfs.stream_write(f"/{name}.s", [data, data])
            assert await vfs.read_file(f"/{name}.s") == data * 2

    async def main() -> None:
        async with a_store(where, tmp_path) as store:
            space = (await store.create_namespace("workspace", "sandbox", "all")).namespace_id

            def look() -> None:
                for _ in range(60):
                    assert store.get_namespace_info(space).name == "all"

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, look)
                for number in range(4):
                    loop = partial(anyio.run, work, store, space, f"t{number}", backend=BACKENDS[number % 2])
                    tasks.start_soon(anyio.to_thread.run_sync, loop)
            assert len(await store.get_namespace_vfs(space).find("*.s")) == 4

    anyio.run(main)


async def foreign(client: httpx.AsyncClient, browsers: list[Browser]) -> None:
    """What belongs to another session is refused, each with its status."""
    id = next(iter(browsers[1].mine))
    assert (await client.get(f"/artifacts/{id}", headers=browsers[0].head)).status_code == 403
    assert (await client.get("/artifacts/none", headers=browsers[0].head)).status_code == 404
    assert (await client.get(f"/artifacts/{id}", headers={HEAD: "sess-none"})).status_code == 401


async def break_off(client: httpx.AsyncClient, store: ArtifactStore, browser: Browser) -> None:
    """Of an upload that fails half-way, or whose request is cancelled at any moment, nothing is left; a reader that
    leaves in the middle keeps nothing open."""
    session = browser.head[HEAD]
    before = {found.artifact_id for found in await store.list_by_session(session)}
    assert before == set(browser.mine)
    with pytest.raises(BrokenOffError):
        await client.put("/streams/s", content=Body(bytes(900_000), fails=True), headers=browser.head)
    for number in range(20):
        with anyio.move_on_after(number * 0.001):
            await client.put("/streams/s", content=Body(b"", ends=False), headers=browser.head)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(leave, client, browser, number * 0.0005)
    assert {found.artifact_id for found in await store.list_by_session(session)} == before
    opened = store._handle._opened
    assert opened is not None
    if opened.service is not None:
        with anyio.fail_after(5):
            while opened.service.pending():
                await anyio.sleep(0.01)


async def leave(client: httpx.AsyncClient, browser: Browser, after: float) -> None:
    large = max(browser.mine, key=lambda id: len(browser.mine[id]))
    with anyio.move_on_after(after):
        await client.get(f"/streams/{large}", headers=browser.head)


@on_both_loops
async def test_calls_that_wait_for_nothing_leave_others_their_turn(tmp_path: Path) -> None:
    async with a_store("memory", tmp_path) as store:
        id = await store.store(b"x", mime="a/b")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await anyio.sleep(0.01)
                ticks += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            with anyio.fail_after(10):
                while ticks < 10:
                    assert await store.exists(id)
            tasks.cancel_scope.cancel()
        with anyio.move_on_after(0.05) as scope:
            while True:
                await store.exists(id)
        assert scope.cancelled_caught
