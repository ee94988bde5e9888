"""The calls on a store: the same from its owner and from other processes, whatever becomes of either."""

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs.errors import (
    ArtfsError,
    BusyError,
    DamagedError,
    DeniedError,
    ExistsError,
    ExpiredError,
    FsError,
    InvalidError,
    NoAccessError,
    NotFoundError,
    PathError,
    UnavailableError,
)
from artfs.settings import create_store
from artfs.store import connecting, frames, service
from artfs.store import socket as owner_socket
from artfs.store.connecting import Caller, connect, serving
from artfs.store.opening import open_store
from artfs.store.service import Service
from artfs.store.socket import Client
from artfs.volume.commits import not_synced

REPOSITORY = Path(__file__).parents[2]
WS = "default/shared/ws"
OWNER = """
import sys, anyio
from pathlib import Path
from artfs.store.connecting import connect
async def main():
    async with connect(Path(sys.argv[1]), "test owner") as caller:
        print(type(caller).__name__, flush=True)
        await anyio.sleep_forever()
anyio.run(main, backend="trio")
"""


@pytest.fixture(params=["trio", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(store_root: Path) -> Path:
    create_store(store_root)
    return store_root


Body = Callable[[Caller], Awaitable[None]]


@pytest.fixture(params=["owner", "client"])
def calling(request: pytest.FixtureRequest, root: Path, loop: str) -> Callable[[Body], None]:
    """Runs a body with a caller that owns the store, or that is a client."""

    def run(body: Body) -> None:
        async def main() -> None:
            async with connect(root, "test") as first:
                assert isinstance(first, Service)
                if request.param == "owner":
                    await body(first)
                else:
                    async with connect(root, "other") as second:
                        assert isinstance(second, Client)
                        await body(second)

        anyio.run(main, backend=loop)

    return run


Calling = Callable[[Body], None]


async def fails(error: type[ArtfsError], work: Awaitable[Any], *words: str) -> ArtfsError:
    with pytest.raises(error) as caught:
        await work
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)
    return caught.value


async def put(caller: Caller, path: str, data: bytes, **more: Any) -> dict[str, Any]:
    handle = await caller.call("fs_write_begin", path=path, **more)
    for at in range(0, len(data), 1 << 20):
        await caller.call("fs_write_part", handle=handle, data=data[at : at + (1 << 20)])
    result: dict[str, Any] = await caller.call("fs_write_end", handle=handle)
    return result


# the calls
def test_sessions(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        made = await c.call("session_create", sandbox="sb", user="u", ttl_seconds=60, id="one", metadata={"a": [1]})
        assert made["expires"] - made["created"] == 60 * 10**9
        assert made["grid_path"] == "grid/sb/sess-one"
        assert (made["user"], made["metadata"]) == ("u", {"a": [1]})
        assert await c.call("session_list") == [made] == await c.call("session_list", sandbox="sb")
        assert await c.call("session_list", sandbox="other") == []
        assert await c.call("session_info", id="sess-one", sandbox="sb") == made
        longer = await c.call("session_extend", id="one", sandbox="sb", seconds=5)
        assert longer["expires"] == made["expires"] + 5 * 10**9
        await c.call("ns_create", path="sb/sess-one/ws")
        await c.call("session_delete", id="one", sandbox="sb")
        assert await c.call("session_list") == []
        await fails(NotFoundError, c.call("session_info", id="one", sandbox="sb"))
        await fails(NotFoundError, c.call("ns_info", path="sb/one/ws"))
        day = await c.call("session_create")
        assert (day["sandbox"], day["expires"] - day["created"]) == ("default", 24 * 3600 * 10**9)
        short = await c.call("session_create", id="short", ttl_seconds=0.05)
        await anyio.sleep(0.06)
        await fails(ExpiredError, c.call("session_info", id=short["id"], sandbox="default"))
        await fails(InvalidError, c.call("session_create", ttl_seconds=0))

    calling(body)


def test_namespaces(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        ws = await c.call("ns_create", path=WS, metadata={"k": 1}, ttl_seconds=100)
        assert (ws["grid_path"], ws["type"], ws["metadata"], ws["inodes"]) == (f"grid/{WS}", "workspace", {"k": 1}, 1)
        assert ws["expires"] > time.time_ns()
        await fails(ExistsError, c.call("ns_create", path=WS), WS)
        blob = await c.call("ns_create", path="default/users/ann", type="blob")
        assert blob["grid_path"] == f"grid/default/user-ann/{blob['id']}"
        assert [n["id"] for n in await c.call("ns_list")] == [ws["id"], blob["id"]]
        for path, count in [("grid/default", 2), ("default/user-ann", 1), ("default/users", 1), (WS, 1), ("other", 0)]:
            assert len(await c.call("ns_list", path=path)) == count, path
        assert await c.call("ns_info", path=ws["id"]) == await c.call("ns_info", path=f"/grid/{WS}/") == ws
        assert (await c.call("ns_rename", path=WS, name="new"))["grid_path"] == "grid/default/shared/new"
        await fails(NotFoundError, c.call("ns_info", path=WS), "artfs ns list")
        await put(c, "default/shared/new/f", b"bytes")
        clone = await c.call("ns_clone", path="default/shared/new", name="twin")
        assert clone["bytes"] == 5 and clone["id"] != ws["id"]
        for method in ("ns_rename", "ns_clone", "ns_delete"):
            more = {} if method == "ns_delete" else {"name": "x"}
            await fails(InvalidError, c.call(method, path="default/shared/new/f", **more), "inside a namespace")
        await fails(InvalidError, c.call("ns_create", path="default"), "SANDBOX/SCOPE/NAME")
        await fails(InvalidError, c.call("ns_create", path=WS, type="tree"), "workspace")
        await fails(InvalidError, c.call("ns_info", path="default/shared"))

    calling(body)


def test_trash(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        await c.call("ns_create", path=WS)
        assert await c.call("ns_delete", path=WS) == {"trashed": False}
        ws = await c.call("ns_create", path=WS)
        await c.call("checkpoint_create", path=WS, name="v1")
        assert await c.call("ns_delete", path=WS) == {"trashed": True}
        assert await c.call("ns_list") == []
        (trashed,) = await c.call("ns_list", trash=True)
        assert trashed["id"] == ws["id"] and trashed["trashed"] > ws["created"]
        assert (await c.call("status"))["trash"] == 1
        assert (await c.call("ns_undelete", path_or_id=WS))["id"] == ws["id"]
        assert await c.call("ns_delete", path=ws["id"]) == {"trashed": True}
        await fails(NotFoundError, c.call("ns_delete", path=ws["id"]))
        assert await c.call("ns_delete", path=ws["id"], for_good=True) == {"trashed": False}
        await fails(NotFoundError, c.call("ns_undelete", path_or_id=WS), "--trash")

    calling(body)


def test_checkpoints(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        await c.call("ns_create", path=WS)
        await put(c, f"{WS}/f", b"one")
        v1 = await c.call("checkpoint_create", path=WS, name="v1", description="first", labels={"by": "me"})
        assert {key: v1[key] for key in ("id", "name", "bytes", "inodes", "description", "labels")} == {
            "id": "v1",
            "name": "v1",
            "bytes": 3,
            "inodes": 2,
            "description": "first",
            "labels": {"by": "me"},
        }
        await put(c, f"{WS}/g", b"two")
        assert (await c.call("checkpoint_create", path=f"{WS}/f", name="v1"))["id"] == "v1~2"
        assert [p["id"] for p in await c.call("checkpoint_list", path=WS)] == ["v1", "v1~2"]
        added = [{"path": "/g", "change": "added"}]
        assert await c.call("checkpoint_diff", path=WS, a="v1") == added
        assert await c.call("checkpoint_diff", path=WS, a="v1", b="v1~2") == added
        safety = (await c.call("checkpoint_restore", path=WS, name="v1~2"))["safety"]
        await c.call("checkpoint_restore", path=WS, name=v1["id"])
        assert [entry["name"] for entry in await c.call("fs_list", path=WS)] == ["f"]
        assert await c.call("fs_read", path=f"{WS}/.checkpoints/v1~2/g") == b"two"
        assert safety in [p["id"] for p in await c.call("checkpoint_list", path=WS, all=True)]
        assert len(await c.call("checkpoint_list", path=WS)) == 2
        assert (await c.call("checkpoint_label", path=WS, name="v1", labels={}))["labels"] == {}
        assert (await c.call("checkpoint_delete", path=WS, name="v1"))["id"] == "v1"
        assert (await c.call("checkpoint_delete", path=WS, name="v1"))["id"] == "v1~2"
        await fails(NotFoundError, c.call("checkpoint_restore", path=WS, name="v1"), "artfs checkpoint list")
        await fails(InvalidError, c.call("checkpoint_create", path=WS, name=".x"))

    calling(body)


def test_namespaces_change_one_after_another(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        for other, more in [("ns_delete", {}), ("ns_rename", {"name": "new"})]:
            for _ in range(4):
                await c.call("ns_create", path=WS)
                outcome: list[str] = []

                async def act(method: str, more: dict[str, Any], outcome: list[str] = outcome) -> None:
                    try:
                        await c.call(method, path=WS, **more)
                        outcome.append("done")
                    except NotFoundError:
                        outcome.append("not found")

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(act, other, more)
                    tasks.start_soon(act, "ns_delete", {})
                assert "done" in outcome
                for left in await c.call("ns_list"):
                    await c.call("ns_delete", path=left["id"])
                assert await c.call("fs_list", path="default/shared") == []

    calling(body)


def test_files(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        await c.call("ns_create", path=WS)
        data = os.urandom(2_500_000)
        entry = await put(c, f"{WS}/a/b", data, parents=True)
        assert (entry["name"], entry["type"], entry["size"], entry["nlink"]) == ("b", "file", len(data), 1)
        assert await c.call("fs_read", path=f"{WS}/a/b", offset=0, length=4 << 20) == data
        assert await c.call("fs_read", path=f"{WS}/a/b", offset=2_400_000, length=1 << 20) == data[2_400_000:]
        name = os.fsdecode(b"caf\xe9\xff")
        await put(c, f"{WS}/{name}", b"")
        (found,) = [e for e in await c.call("fs_list", path=WS) if e["type"] == "file"]
        assert found["name"] == name
        await c.call("fs_mkdir", path=f"{WS}/x/y", parents=True)
        await c.call("fs_copy", source=f"{WS}/a", target=f"{WS}/x")
        assert await c.call("fs_read", path=f"{WS}/x/a/b", length=3 << 20) == data
        await fails(PathError, c.call("fs_remove", path=f"{WS}/x"))
        await c.call("fs_remove", path=f"{WS}/x", recursive=True)
        await c.call("fs_remove", path=f"{WS}/{name}")
        assert [e["name"] for e in await c.call("fs_list", path=WS)] == ["a"]
        assert await c.call("du") == [{"path": f"grid/{WS}", "bytes": len(data), "inodes": 3}]
        handle = await c.call("fs_write_begin", path=f"{WS}/z")
        await c.call("fs_write_part", handle=handle, data=b"1")
        await c.call("fs_write_abort", handle=handle)
        await fails(NotFoundError, c.call("fs_write_part", handle=handle, data=b"1"))
        await fails(NotFoundError, c.call("fs_read", path=f"{WS}/z"), f"grid/{WS}/z")
        await fails(InvalidError, c.call("fs_read", path=f"{WS}/z", length=1 << 30))
        handle = await c.call("fs_write_begin", path=f"{WS}/z")
        for size in (17 << 20, 40 << 20):
            await fails(InvalidError, c.call("fs_write_part", handle=handle, data=bytes(size)))
        await c.call("fs_write_abort", handle=handle)
        error = await fails(PathError, c.call("fs_read", path=WS), f"grid/{WS}: Is a directory")
        assert error.errno == errno.EISDIR

    calling(body)


def test_the_grid_above_namespaces(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        async def names(path: str) -> list[str]:
            return [entry["name"] for entry in await c.call("fs_list", path=path)]

        await c.call("session_create", id="one")
        await c.call("fs_mkdir", path="default/user-ann/ws/deep", parents=True)
        assert await names("grid") == ["default"]
        assert await names("default") == ["sess-one", "shared", "user-ann"]
        assert await names("default/sessions") == ["sess-one"]
        assert await names("default/sess-one") == []
        assert await names("default/user-ann") == ["ws"]
        assert await names("default/user-ann/ws") == ["deep"]
        assert (await c.call("fs_stat", path="default/user-ann"))["type"] == "directory"
        assert (await c.call("fs_stat", path="default/user-ann/ws"))["name"] == "ws"
        await fails(NotFoundError, c.call("fs_list", path="nowhere"), "nowhere")
        await fails(NotFoundError, c.call("fs_list", path="default/sess-two"))
        await fails(ExistsError, c.call("fs_mkdir", path="default/user-ann/ws"))
        await fails(PathError, c.call("fs_remove", path="default/user-ann/ws"))
        await c.call("fs_remove", path="default/user-ann/ws", recursive=True)
        assert await c.call("ns_list") == []
        await fails(InvalidError, c.call("fs_remove", path="default/sess-one", recursive=True))

    calling(body)


def test_a_blob_path_means_its_bytes(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        blob, ws = "default/shared/blob", WS
        await c.call("ns_create", path=blob, type="blob")
        await c.call("ns_create", path=ws)
        await put(c, blob, b"bytes")
        assert await c.call("fs_read", path=blob) == b"bytes" == await c.call("fs_read", path=f"{blob}/_data")
        assert [e["name"] for e in await c.call("fs_list", path=blob)] == ["_data"]
        await c.call("fs_copy", source=blob, target=f"{ws}/copy")
        await put(c, f"{ws}/copy", b"more")
        await c.call("fs_copy", source=f"{ws}/copy", target=blob)
        assert await c.call("fs_read", path=blob) == b"more"

    calling(body)


def test_status_and_statistics(calling: Calling, root: Path) -> None:
    async def body(c: Caller) -> None:
        status = await c.call("status")
        assert status["root"] == str(root)
        assert status["owner"] == {"pid": os.getpid(), "role": "test"}
        assert (status["trouble"], status["failure"], status["mounts"]) == ("", "", [])
        assert (await c.call("stats"))["journal_size"] == status["statistics"]["journal_size"]
        json.dumps(status)

    calling(body)


def test_wrong_calls(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        for method in ("nothing", "call", "_at", "fs_nothing", "store", "aclose"):
            await fails(InvalidError, c.call(method), method)
        await fails(InvalidError, c.call("ns_info"), "path")
        await fails(InvalidError, c.call("ns_info", path="x", colour="red"), "colour")
        await fails(InvalidError, c.call("ns_info", path="default/shared/../x"), "..")
        assert await c.call("ns_list") == []

    calling(body)


def test_an_error_of_the_body_is_not_wrapped(root: Path, loop: str) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with connect(root, "test"):
                raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            async with open_store(root, "test"):
                raise ZeroDivisionError

    anyio.run(main, backend=loop)


@pytest.mark.parametrize(
    "error",
    [
        FsError(errno.EXDEV),
        PathError(errno.EROFS, "grid/x"),
        InvalidError("a"),
        NotFoundError("b"),
        ExpiredError("c"),
        ExistsError("d"),
        DeniedError("e"),
        BusyError("f"),
        DamagedError("g"),
        ArtfsError("h"),
        NoAccessError("i"),
        not_synced(OSError(errno.EIO, "")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_whole(error: ArtfsError) -> None:
    again = frames.unpack_error(json.loads(json.dumps(frames.pack_error(error))))
    assert type(again) is type(error)
    assert (str(again), again.errno, again.exit_code) == (str(error), error.errno, error.exit_code)


def test_an_error_that_is_not_loaded_here_is_of_the_nearest_kind() -> None:
    class Special(NotFoundError):
        pass

    document = {**frames.pack_error(Special("gone")), "class": "Special of a module that this process has not"}
    again = frames.unpack_error(document)
    assert (type(again), str(again)) == (NotFoundError, "gone")


# processes
@asynccontextmanager
async def owner(root: Path) -> AsyncIterator[subprocess.Popen[str]]:
    """Another process that owns the store."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(root)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert await anyio.to_thread.run_sync(process.stdout.readline) == "Service\n"
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_a_dead_owner_is_named_and_followed(root: Path, loop: str) -> None:
    async def main() -> None:
        async with owner(root) as process, connect(root, "test") as caller:
            assert isinstance(caller, Client)
            await caller.call("ns_create", path=WS)
            await put(caller, f"{WS}/f", b"acknowledged")
            handle = await caller.call("fs_write_begin", path=f"{WS}/g")
            process.kill()
            process.wait()
            work = caller.call("fs_write_part", handle=handle, data=b"x")
            await fails(UnavailableError, work, f"process {process.pid}")
            await fails(UnavailableError, caller.call("status"), "connect again")
        async with connect(root, "test") as caller:
            assert isinstance(caller, Service)
            assert await caller.call("fs_read", path=f"{WS}/f") == b"acknowledged"
            assert [e["name"] for e in await caller.call("fs_list", path=WS)] == ["f"]
            (namespace,) = caller.store.catalogue.by_serial.values()
            assert caller.store.shard.tree(namespace).scan(b"i") == []

    anyio.run(main, backend=loop)


def test_a_stopped_owner_is_named(root: Path, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_socket, "SILENCE", 0.5)

    async def main() -> None:
        async with owner(root) as process, connect(root, "test") as caller:
            await caller.call("status")
            process.send_signal(signal.SIGSTOP)
            start = time.monotonic()
            await fails(BusyError, caller.call("status"), f"process {process.pid}", "stopped")
            with pytest.raises(BusyError, match=f"process {process.pid}"):
                async with connect(root, "test"):
                    raise AssertionError
            assert 0.9 < time.monotonic() - start < 4
            process.send_signal(signal.SIGCONT)
            async with connect(root, "test") as again:
                await again.call("status")

    anyio.run(main, backend=loop)


def test_a_long_call_is_waited_for(root: Path, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_socket, "SILENCE", 0.4)
    monkeypatch.setattr(owner_socket, "ALIVE", 0.1)

    async def slow(self: Service) -> str:
        await anyio.sleep(1)
        return "done"

    monkeypatch.setattr(Service, "ns_slow", slow, raising=False)

    async def main() -> None:
        async with connect(root, "test"), connect(root, "one") as one, connect(root, "two") as two:
            order = []

            async def first() -> None:
                order.append(await one.call("ns_slow"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first)
                await anyio.sleep(0.1)
                order.append(await two.call("ns_list"))
            assert order == [[], "done"]
            # A call that is given up leaves no half of an answer to the next.
            with anyio.move_on_after(0.1):
                await one.call("ns_slow")
            await fails(UnavailableError, one.call("ns_list"))

    anyio.run(main, backend=loop)


def test_a_call_goes_on_when_its_caller_goes(root: Path, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    async def slow(self: Service) -> None:
        await anyio.sleep(0.3)
        done.append("changed")

    async def long(self: Service) -> None:
        try:
            await anyio.sleep(10)
        except anyio.get_cancelled_exc_class():
            done.append("cancelled")
            raise

    monkeypatch.setattr(owner_socket, "ALIVE", 0.05)
    monkeypatch.setattr(Service, "ns_slow", slow, raising=False)
    monkeypatch.setattr(Service, "fs_long", long, raising=False)
    monkeypatch.setattr(service, "FREE", frozenset({"fs_long"}))

    async def main() -> None:
        async with connect(root, "test"):
            for method in ("ns_slow", "fs_long"):
                async with connect(root, "other") as caller:
                    with anyio.move_on_after(0.1):
                        await caller.call(method)
            await anyio.sleep(0.5)
            assert sorted(done) == ["cancelled", "changed"]

    anyio.run(main, backend=loop)


def test_whose_connection_ends_leaves_nothing(root: Path, loop: str) -> None:
    async def main() -> None:
        async with connect(root, "test") as first:
            assert isinstance(first, Service)
            await first.call("ns_create", path=WS)
            async with connect(root, "other") as second:
                handle = await second.call("fs_write_begin", path=f"{WS}/f")
                await second.call("fs_write_part", handle=handle, data=b"x" * 100_000)
                with pytest.raises(NotFoundError):  # handles are each caller's own
                    await first.call("fs_write_part", handle=handle, data=b"")
            (tree,) = first.store.shard.trees.values()
            with anyio.fail_after(5):
                while tree.orphans:
                    await anyio.sleep(0.01)
            assert await first.call("fs_list", path=WS) == []

    anyio.run(main, backend=loop)


def test_an_owner_that_ends_says_so(root: Path, loop: str) -> None:
    async def main() -> None:
        async with open_store(root, "test") as store:
            async with serving(store, "test", linger=0.1):
                client = await Client.connect(root)
                assert client is not None
            await fails(UnavailableError, client.call("status"), "not begun")
            await client.aclose()
            assert await Client.connect(root) is None
            assert not (root / "owner.sock").exists()

    anyio.run(main, backend=loop)


def test_an_owner_that_ends_waits_for_those_it_serves(root: Path, loop: str) -> None:
    async def main() -> None:
        results: list[Any] = []
        async with anyio.create_task_group() as tasks:

            async def other() -> None:
                async with connect(root, "other") as caller:
                    ready.set()
                    await anyio.sleep(0.3)
                    results.append(await caller.call("ns_list"))

            ready = anyio.Event()
            async with connect(root, "test"):
                tasks.start_soon(other)
                await ready.wait()
        assert results == [[]]

    anyio.run(main, backend=loop)


def test_a_dead_owners_socket_is_replaced(root: Path, loop: str) -> None:
    left = socket.socket(socket.AF_UNIX)
    os.chdir(root)
    left.bind("owner.sock")
    left.close()
    os.chdir(REPOSITORY)

    async def main() -> None:
        async with connect(root, "test"), connect(root, "other") as caller:
            assert isinstance(caller, Client)

    anyio.run(main, backend=loop)


def test_a_root_longer_than_a_socket_address(tmp_path: Path, loop: str) -> None:
    root = tmp_path / ("x" * 100) / ("y" * 100)
    create_store(root)

    async def main() -> None:
        async with connect(root, "test"), connect(root, "other") as caller:
            assert isinstance(caller, Client)

    anyio.run(main, backend=loop)


def test_a_store_that_is_locked_and_not_served(root: Path, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "PATIENCE", 0.2)

    async def main() -> None:
        async with open_store(root, "mount"):
            with pytest.raises(BusyError, match=rf"process {os.getpid()} \(mount\)"):
                async with connect(root, "test"):
                    raise AssertionError

    anyio.run(main, backend=loop)


def test_no_store(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        with pytest.raises(NotFoundError):
            async with connect(tmp_path, "test"):
                raise AssertionError

    anyio.run(main, backend=loop)


@pytest.mark.logs_errors
def test_a_call_that_breaks_is_an_error_and_no_more(root: Path, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Service) -> None:
        raise KeyError("x")

    monkeypatch.setattr(Service, "ns_broken", broken, raising=False)

    async def main() -> None:
        async with connect(root, "test"), connect(root, "other") as caller:
            await fails(ArtfsError, caller.call("ns_broken"), "KeyError")
            assert await caller.call("ns_list") == []

    anyio.run(main, backend=loop)


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<II", 4, 0) + b"nope",
        struct.pack("<II", 2, 0) + b"[]",
        struct.pack("<II", 2**31, 0),
        struct.pack("<II", 100, 0) + b"cut short",
        frames.encode({"call": 5}),
        frames.encode({"call": "fs_list", "arguments": {}, "bytes": {"path": 99}}, b"x"),
    ],
)
def test_what_is_no_call_does_no_harm(root: Path, loop: str, message: bytes) -> None:
    def talk() -> bytes:
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(5)
            plain.connect(str(root / "owner.sock"))
            plain.sendall(message)
            plain.shutdown(socket.SHUT_WR)
            return plain.recv(4096)

    async def main() -> None:
        async with connect(root, "test"), connect(root, "other") as caller:
            answer = await anyio.to_thread.run_sync(talk)
            assert answer == b"" or b"InvalidError" in answer
            assert await caller.call("ns_list") == []

    anyio.run(main, backend=loop)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_strangers_are_refused(tmp_path_factory: pytest.TempPathFactory, loop: str) -> None:
    top = Path(subprocess.check_output(["mktemp", "-d", "/tmp/artfs-test-XXXXXX"], text=True).strip())
    root = top / "store"
    create_store(root)
    program = """
import os, sys, socket
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1] + "/owner.sock")
print(s.recv(4096))
"""

    async def main() -> None:
        async with connect(root, "test"):
            for path in (top, root):
                path.chmod(0o755)
            (root / "owner.sock").chmod(0o777)
            done = await anyio.run_process([sys.executable, "-c", program, str(root)])
            assert b"DeniedError" in done.stdout

    try:
        anyio.run(main, backend=loop)
    finally:
        subprocess.run(["rm", "-r", str(top)], check=True)


def test_many_processes_at_once(root: Path) -> None:
    program = """
import sys, anyio
from pathlib import Path
from artfs.store.connecting import connect
async def main():
    for i in range(3):
        async with connect(Path(sys.argv[1]), "worker") as caller:
            await caller.call("ns_create", path=f"default/shared/{sys.argv[2]}-{i}")
anyio.run(main, backend=sys.argv[3])
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(root), str(n), ("trio", "asyncio")[n % 2]],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(6)
    ]
    errors = [process.communicate(timeout=60)[1] for process in started]
    assert errors == [""] * 6

    async def main() -> None:
        async with connect(root, "test") as caller:
            assert len(await caller.call("ns_list")) == 18

    anyio.run(main, backend="trio")


# objects, and namespaces as files
def test_levels_and_the_cache_of_a_local_store(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        await c.call("ns_create", path=WS)
        await put(c, f"{WS}/f", b"x" * 100_000)
        nothing: dict[str, Any] = {
            "bytes": 0,
            "objects": 0,
            "oldest": None,
            "error": "",
            "retry_at": None,
            "providers": [],
        }
        assert await c.call("sync") == {"bytes": 0, "saved": None, "waiting": nothing}
        assert await c.call("sync", path=WS) == {"bytes": 0, "saved": None, "waiting": nothing}
        assert await c.call("warmup", path=WS) == {"files": 1, "bytes": 100_000}
        id = (await c.call("ns_info", path=WS))["id"]
        for path in (f"{WS}/f", id, f"{id}/f"):
            assert await c.call("warmup", path=path) == {"files": 1, "bytes": 100_000}
        found = await c.call("cache_status")
        assert (found["copies"], found["waiting"], found["crowded"], found["upload"]) == (0, 0, False, nothing)
        assert 0 < found["low"] < found["high"] < found["limit"]
        own = {"adopts": True, "durable": True, "signs": False, "streams": False}
        assert found["providers"] == [{"url": "", "namespaces": 1, **own}]
        assert await c.call("cache_drop") == {"bytes": 0} == await c.call("cache_drop", path=WS)
        status = await c.call("status")
        assert (status["waiting"], status["saved"], status["provider"], status["jobs"]) == (nothing, None, "", [])
        assert (await c.call("stats"))["cache"]["uploads"] == 0
        for method in ("sync", "warmup", "cache_drop"):
            await fails(NotFoundError, c.call(method, path="default/shared/nix"))
        await fails(NotFoundError, c.call("warmup", path=f"{WS}/nix"), "nix")

    calling(body)


def test_gc(calling: Calling) -> None:
    async def body(c: Caller) -> None:
        await c.call("ns_create", path=WS)
        await put(c, f"{WS}/f", b"x" * 100_000)
        assert (await c.call("gc", dry_run=True))["dry_run"] is True
        done = await c.call("gc")
        assert (done["dry_run"], done["deleted"], done["unreachable"]) == (False, 0, 0)

    calling(body)


def test_export_and_import(calling: Calling, tmp_path: Path) -> None:
    async def body(c: Caller) -> None:
        await c.call("ns_create", path=WS, metadata={"k": 1})
        await put(c, f"{WS}/f", b"x" * 100_000)
        await c.call("checkpoint_create", path=WS, name="v1")
        file = str(tmp_path / "f")
        done = await c.call("ns_export", path=WS, file=file)
        assert (done["grid_path"], done["file"], done["bytes"], done["checkpoints"]) == (f"grid/{WS}", file, 100_000, 1)
        made = await c.call("ns_import", file=file)
        assert (made["grid_path"], made["metadata"], made["checkpoints"]) == (f"grid/{WS}~2", {"k": 1}, 1)
        there = await c.call("ns_import", file=file, path="sb/user-u/other")
        assert await c.call("fs_read", path=f"{there['grid_path']}/f", offset=99_990, length=100) == b"x" * 10
        await fails(InvalidError, c.call("ns_import", file=file, path="sb"), "no place for a namespace")
        await fails(InvalidError, c.call("ns_export", path=WS, file="f"), "no absolute path")
        await fails(InvalidError, c.call("ns_export", path=f"{WS}/f", file=file), "is inside a namespace")
        await fails(ExistsError, c.call("ns_export", path=WS, file=file))
        await fails(ExistsError, c.call("ns_import", file=file, path=WS))

    calling(body)


def test_a_long_call_is_a_job_that_others_see(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who asked for it can go: nothing of it is left."""

    async def main() -> None:
        async with connect(root, "test") as owner, connect(root, "other") as client, connect(root, "third") as third:
            assert isinstance(owner, Service) and isinstance(client, Client)
            await owner.call("ns_create", path=WS)
            await put(owner, f"{WS}/f", b"x" * 100_000)
            remote = owner.store.shard.remote
            reading = anyio.Event()
            gone = False

            async def hang(chunk: Any) -> bytes:
                nonlocal gone
                reading.set()
                try:
                    await anyio.sleep_forever()
                finally:
                    gone = True
                raise AssertionError

            monkeypatch.setattr(remote, "read", hang)
            async with anyio.create_task_group() as tasks:

                async def ask() -> None:
                    with pytest.raises(UnavailableError):
                        await client.call("ns_export", path=WS, file=str(tmp_path / "f"))

                tasks.start_soon(ask)
                await reading.wait()
                jobs = (await third.call("status"))["jobs"]
                assert [(job["call"], job["done"], job["total"]) for job in jobs] == [("export", 0, None)]
                assert await third.call("checkpoint_list", path=WS) == []
                assert len(await third.call("checkpoint_list", path=WS, all=True)) == 1
                await client.aclose()
            with anyio.fail_after(5):
                while (await third.call("status"))["jobs"]:
                    await anyio.sleep(0.02)
            assert gone and os.listdir(tmp_path) == [root.name]
            assert await owner.call("checkpoint_list", path=WS, all=True) == []

    anyio.run(main, backend="trio")
