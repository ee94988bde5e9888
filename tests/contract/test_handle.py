"""One root, many processes: who owns it, who takes it over, and that nobody hangs or loses what was acknowledged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import pytest

from artfs import ArtifactStore, ProviderError
from artfs.errors import BusyError
from artfs.loop import LOOP
from artfs.objects.disk import DiskProvider
from artfs.settings import CONFIG_FILE, create_store
from artfs.store.connecting import LINGER, PATIENCE, own_store, serving
from artfs.store.handle import IDLE
from artfs.store.store import Store
from artfs.volume.lock import is_claimed
from artfs.volume.recovery import recover
from tests.contract.api import ROOT, a_store, owned_elsewhere, program
from tests.contract.loops import on_both_loops

WRITER = """
import sys, anyio
from artfs.store import ArtifactStore
async def main():
    store = ArtifactStore(root=sys.argv[1])
    made = await store.create_namespace("workspace", "sandbox", "shared")
    print(made.namespace_id, flush=True)
    number = 0
    while True:
        await store.write_namespace(made.namespace_id, b"%d" % number, f"/{number}")
        print(number, flush=True)
        number += 1
anyio.run(main)
"""
HOLDER = """
import sys, time, anyio
from artfs.store import ArtifactStore
async def main():
    store = ArtifactStore(root=sys.argv[1])
    made = await store.create_namespace("blob", "sandbox")
    await store.write_namespace(made.namespace_id, b"x")
    print(made.namespace_id, flush=True)
    time.sleep(60)  # blocks its loop, not the store's
anyio.run(main)
"""
BUSY = """
import sys, threading, anyio
from artfs.store import ArtifactStore
async def main():
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
    async with ArtifactStore(root=sys.argv[1]) as store:
        id = (await store.create_namespace("workspace", "sandbox", sys.argv[2])).namespace_id
        print("begun", flush=True)
        number = left = 0
        while not ended.is_set() or left < 100:
            number += 1
            left += ended.is_set()
            await store.write_namespace(id, b"%d" % number, "/f")
            assert await store.read_namespace(id, "/f") == b"%d" % number
        print("100 times more,", number, flush=True)
anyio.run(main)
"""
CLAIMER = """
import sys
from pathlib import Path
from artfs.volume.lock import Claim
claim = Claim(Path(sys.argv[1]))
print("claimed", flush=True)
sys.stdin.read()
"""
STREAMER = """
import sys, anyio
from artfs.store import ArtifactStore
async def main():
    async def pieces():
        yield bytes(1000)
        print("half", flush=True)
        for _ in range(100):
            await anyio.sleep(0.05)
            yield bytes(1000)
    async with ArtifactStore(root=sys.argv[1]) as store:
        try:
            await store.get_namespace_vfs(sys.argv[2]).stream_write("/streamed", pieces())
            print("no error", flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)
anyio.run(main)
"""
FORKER = """
import os, sys, warnings, anyio
warnings.simplefilter("ignore")
from artfs.store import ArtifactStore
from artfs import ProviderError
def main():
    store = ArtifactStore(root=sys.argv[1])
    async def make():
        made = await store.create_namespace("blob", "sandbox")
        await store.write_namespace(made.namespace_id, b"x")
        return made.namespace_id
    id = anyio.run(make)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = "no error"
        try:
            anyio.run(store.read_namespace, id)
        except ProviderError as error:
            said = str(error)
        try:
            store.list_namespaces()
        except ProviderError:
            said += "!"
        os.write(writing, said.encode())
        os.close(writing)
        import time
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print(id, os.read(reading, 1000).decode(), sep="|", flush=True)
    sys.stdin.read()
    print(anyio.run(store.read_namespace, id), flush=True)
main()
"""
INHERITOR = """
import os, sys, warnings, anyio
warnings.simplefilter("ignore")
from artfs.store import ArtifactStore
old = ArtifactStore(root=sys.argv[1])
id = anyio.run(old.create_namespace, "blob", "sandbox").namespace_id
anyio.run(old.write_namespace, id, b"parent")
child = os.fork()
if not child:
    new = ArtifactStore(root=sys.argv[1])
    print(anyio.run(new.read_namespace, id), flush=True)
    anyio.run(new.write_namespace, id, b"child")
    anyio.run(new.close)
    os._exit(0)
os.waitpid(child, 0)
print(anyio.run(old.read_namespace, id), flush=True)
"""


async def owner_of(store: ArtifactStore) -> int:
    status = await store._handle.do("status")
    return int(status["owner"]["pid"])


@on_both_loops
async def test_two_processes_on_one_root(tmp_path: Path) -> None:
    async with a_store("client", tmp_path) as store:
        made = await store.create_namespace("workspace", "sandbox", "docs")
        await store.write_namespace(made.namespace_id, b"x", "/f")
        assert await owner_of(store) != os.getpid()
        assert store._handle._opened is not None and store._handle._opened.service is None
    async with ArtifactStore(root=tmp_path / "store") as store:
        assert await store.read_namespace(made.namespace_id, "/f") == b"x"
        assert await owner_of(store) == os.getpid()


@on_both_loops
async def test_the_owners_death_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with program(WRITER, tmp_path / "store") as writer:
        id = writer.line()
        async with ArtifactStore(root=tmp_path / "store") as store:
            assert await store.read_namespace(id, "/0") == b"0"
            assert await owner_of(store) == writer.process.pid
            for _ in range(300):
                last = writer.line()
            writer.kill()
            rest = writer.process.stdout.read().split() if writer.process.stdout is not None else []
            last = rest[-1] if rest else last
            for number in range(int(last) + 1):
                assert await store.read_namespace(id, f"/{number}") == b"%d" % number
            assert await owner_of(store) == os.getpid()
            await store.write_namespace(id, b"mine", "/mine")
        async with ArtifactStore(root=tmp_path / "store") as again:
            assert await again.read_namespace(id, "/mine") == b"mine"


@on_both_loops
async def test_of_those_who_find_the_owner_dead_one_takes_over(tmp_path: Path) -> None:
    root = tmp_path / "store"
    async with owned_elsewhere(root) as owner:
        stores = [ArtifactStore(root=root) for _ in range(3)]
        made = await stores[0].create_namespace("workspace", "sandbox")
        for store in stores:
            assert store.list_namespaces()
        owner.kill()
        with program(WRITER.replace('"shared"', '"other"'), root) as other:
            async with anyio.create_task_group() as tasks:
                for number, store in enumerate(stores):
                    tasks.start_soon(store.write_namespace, made.namespace_id, b"x", f"/{number}")
            assert other.line().startswith("ns-")
            assert [len(store.list_namespaces()) for store in stores] == [2, 2, 2]
            assert len({await owner_of(store) for store in stores}) == 1
        for store in stores:
            await store.close()


@on_both_loops
async def test_an_idle_owner_lets_go(tmp_path: Path) -> None:
    store = ArtifactStore(root=tmp_path / "store")
    made = await store.create_namespace("blob", "sandbox")
    await store.write_namespace(made.namespace_id, b"x")
    limit = time.monotonic() + 20 * IDLE
    while store._handle._opened is not None and store._handle._opened.service is not None:
        assert time.monotonic() < limit, "it is still open"
        await anyio.sleep(0.05)
    async with owned_elsewhere(tmp_path / "store") as owner:
        assert await owner_of(store) == owner.process.pid
        assert await store.read_namespace(made.namespace_id) == b"x"
    assert await store.read_namespace(made.namespace_id) == b"x"
    await store.close()


@on_both_loops
async def test_an_open_stream_keeps_the_store(tmp_path: Path) -> None:
    store = ArtifactStore(root=tmp_path / "store")
    made = await store.create_namespace("blob", "sandbox")
    await store.write_namespace(made.namespace_id, b"x" * 1000)
    reading = store.get_namespace_vfs(made.namespace_id).stream_read("/_data", chunk_size=500)
    assert len(await anext(reading)) == 500
    await anyio.sleep(2 * IDLE + 0.5)
    assert len(await anext(reading)) == 500
    await reading.aclose()
    await store.close()


def test_an_owner_lets_go_when_it_is_asked(tmp_path: Path) -> None:
    """As a mount asks; the Python program goes on through it."""
    root = tmp_path / "store"
    with program(HOLDER, root) as holder:
        id = holder.line()

        async def main() -> None:
            begun = time.monotonic()
            async with own_store(root, "a test") as store:
                assert time.monotonic() - begun < 5
                assert id in store.catalogue.by_id

        anyio.run(main, backend="trio")


def test_programs_that_are_busy_hand_over_at_once(tmp_path: Path) -> None:
    """One owns the store and the others are its clients: none of them takes it when the first lets it go."""
    root = tmp_path / "store"
    with program(BUSY, root, "a") as first, program(BUSY, root, "b") as second, program(BUSY, root, "c") as third:
        for each in (first, second, third):
            assert each.line() == "begun"
        for _ in range(5):

            async def main() -> None:
                begun = time.monotonic()
                async with own_store(root, "a test") as store, serving(store, "a test"):
                    assert time.monotonic() - begun < PATIENCE - 1
                    await anyio.sleep(0.2)

            anyio.run(main, backend="trio")
        for each in (first, second, third):
            each.say()
            assert each.line().startswith("100 times more, ")
            assert each.end() == 0


def test_a_claim_does_not_outlive_its_process(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with program(CLAIMER, tmp_path / "store") as claimer:
        assert claimer.line() == "claimed"
        assert is_claimed(tmp_path / "store")
        begun = time.monotonic()
        store = ArtifactStore(root=tmp_path / "store")
        anyio.run(store.create_session)  # nobody else takes it
        assert PATIENCE - 1 < time.monotonic() - begun < PATIENCE + 5
        anyio.run(store.close)
        claimer.kill()
        assert not is_claimed(tmp_path / "store")


def test_a_stopped_owner_is_named_to_whoever_wants_to_own(tmp_path: Path) -> None:
    """And when it goes on, it lets go."""
    root = tmp_path / "store"
    with program(HOLDER, root) as holder:
        holder.line()
        holder.send(signal.SIGSTOP)

        async def main() -> None:
            begun = time.monotonic()
            with pytest.raises(BusyError, match=f"process {holder.process.pid}"):
                async with own_store(root, "a test"):
                    raise AssertionError
            assert time.monotonic() - begun < 2 * PATIENCE + 2
            holder.send(signal.SIGCONT)
            async with own_store(root, "a test") as store:
                assert len(store.catalogue.by_id) == 1

        anyio.run(main, backend="trio")


@on_both_loops
async def test_a_stopped_client_hangs_nobody(tmp_path: Path) -> None:
    """In the middle of writing a file: others go on, and the owner can end soon; nothing of the file is left."""
    store = ArtifactStore(root=tmp_path / "store")
    made = await store.create_namespace("workspace", "sandbox")
    opened = store._handle._opened
    assert opened is not None
    opened.is_idle = lambda: False  # type: ignore[method-assign]
    with program(STREAMER, tmp_path / "store", made.namespace_id) as streamer:
        assert await anyio.to_thread.run_sync(streamer.line) == "half"
        streamer.send(signal.SIGSTOP)
        begun = time.monotonic()
        await store.write_namespace(made.namespace_id, b"x", "/mine")
        assert await store.read_namespace(made.namespace_id, "/mine") == b"x"
        assert time.monotonic() - begun < 2
        await store.close()
        assert time.monotonic() - begun < LINGER + 5
        async with ArtifactStore(root=tmp_path / "store") as again:
            assert await again.get_namespace_vfs(made.namespace_id).ls("/") == [".workspace", "mine"]
            streamer.send(signal.SIGCONT)
            assert (await anyio.to_thread.run_sync(streamer.line)).startswith("ProviderError")
            assert await again.get_namespace_vfs(made.namespace_id).ls("/") == [".workspace", "mine"]


@on_both_loops
async def test_a_blocked_owner_hangs_nobody(tmp_path: Path) -> None:
    with program(HOLDER, tmp_path / "store") as holder:
        id = holder.line()
        async with ArtifactStore(root=tmp_path / "store") as store:
            begun = time.monotonic()
            assert await store.read_namespace(id) == b"x"
            assert time.monotonic() - begun < 3


@on_both_loops
async def test_a_stopped_owner_is_named(tmp_path: Path) -> None:
    root = tmp_path / "store"
    async with owned_elsewhere(root) as owner, ArtifactStore(root=root) as store:
        made = await store.create_namespace("blob", "sandbox")
        owner.send(signal.SIGSTOP)
        newcomer = ArtifactStore(root=root)
        for call in (lambda: store.read_namespace(made.namespace_id), newcomer.create_session):
            begun = time.monotonic()
            with pytest.raises(ProviderError, match=f"process {owner.process.pid}"):
                await call()
            assert 4 < time.monotonic() - begun < 8
        owner.send(signal.SIGCONT)
        await store.write_namespace(made.namespace_id, b"x")
        assert await newcomer.read_namespace(made.namespace_id) == b"x"
        await newcomer.close()


def test_a_forked_child_has_none_of_it(tmp_path: Path) -> None:
    with program(FORKER, tmp_path / "store", 0) as parent:
        id, _, said = parent.line().partition("|")
        assert id.startswith("ns-") and "fork" in said and said.endswith("!")
        assert parent.process.stdin is not None
        parent.process.stdin.close()
        assert parent.line() == "b'x'"


def test_a_child_does_not_keep_its_parents_store(tmp_path: Path) -> None:
    with program(FORKER, tmp_path / "store", 30) as parent:
        id = parent.line().partition("|")[0]
        parent.kill()

        async def main() -> None:
            begun = time.monotonic()
            async with ArtifactStore(root=tmp_path / "store") as store:
                assert await store.read_namespace(id) == b"x"
            assert time.monotonic() - begun < 4

        anyio.run(main)


def test_a_child_may_open_stores_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INHERITOR, str(tmp_path / "store")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["b'parent'", "b'child'"]


@on_both_loops
async def test_alternating_processes_see_each_others_writes(tmp_path: Path) -> None:
    root = tmp_path / "store"
    text = """
import sys, anyio
from artfs.store import ArtifactStore
async def main():
    store = ArtifactStore(root=sys.argv[1])
    for line in sys.stdin:
        number = int(line)
        assert await store.read_namespace(sys.argv[2], "/n") == b"%d" % number
        await store.write_namespace(sys.argv[2], b"%d" % (number + 1), "/n")
        print(number + 1, flush=True)
anyio.run(main)
"""
    async with ArtifactStore(root=root) as store:
        made = await store.create_namespace("workspace", "sandbox")
        id = made.namespace_id
        with program(text, root, id) as first, program(text, root, id) as second:
            number = 0
            for _ in range(200):
                for other in (first, second):
                    await store.write_namespace(id, b"%d" % number, "/n")
                    other.say(str(number))
                    assert other.line() == str(number + 1)
                    assert await store.read_namespace(id, "/n") == b"%d" % (number + 1)
                    number += 2


# what is in a provider
def away_from_home(tmp_path: Path) -> Path:
    """A root whose bytes live in the directory `away`; that is what this gives."""
    create_store(tmp_path / "root")
    (tmp_path / "root" / CONFIG_FILE).write_text(f"provider = 'file://{tmp_path}/away'\nupload_delay = 60.0\n")
    return tmp_path / "away"


def kept_in(away: Path) -> set[str]:
    return {path.relative_to(away).parts[0] for path in away.rglob("*") if path.is_file()}


@on_both_loops
async def test_what_is_closed_is_in_its_provider(tmp_path: Path) -> None:
    away = away_from_home(tmp_path)
    first, second = ArtifactStore(root=tmp_path / "root"), ArtifactStore(root=tmp_path / "root")
    artifact = await first.store(os.urandom(100_000), scope="user", user_id="ann")
    await second.exists(artifact)
    await first.close()
    assert "grid" not in kept_in(away)  # the second one still has it open
    await second.close()
    assert {"grid", "meta"} <= kept_in(away)
    (tmp_path / "root").rename(tmp_path / "lost")
    await recover(DiskProvider(away), f"file://{away}", tmp_path / "new")
    async with ArtifactStore(root=tmp_path / "new") as store:
        assert len(await store.retrieve(artifact)) == 100_000


@on_both_loops
async def test_closing_waits_for_no_provider_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    away = away_from_home(tmp_path)
    async with ArtifactStore(root=tmp_path / "root") as store:
        artifact = await store.store(b"x" * 100_000, scope="user", user_id="ann")
        away.rename(tmp_path / "gone")
        away.write_bytes(b"")
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    assert "goes on when the store is opened" in caplog.text
    away.unlink()
    (tmp_path / "gone").rename(away)
    async with ArtifactStore(root=tmp_path / "root") as store:
        assert len(await store.retrieve(artifact)) == 100_000
    assert "grid" in kept_in(away)


@on_both_loops
async def test_a_closing_owner_lets_go_when_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away_from_home(tmp_path)
    store = ArtifactStore(root=tmp_path / "root")
    await store.store(b"x", scope="user", user_id="ann")
    opened = store._handle._opened
    assert opened is not None
    begun = threading.Event()

    async def endless(_: Store) -> None:
        begun.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(Store, "sync", endless)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.close)
            await anyio.to_thread.run_sync(begun.wait)
            LOOP.soon(opened._asked)
    assert opened.service is None
