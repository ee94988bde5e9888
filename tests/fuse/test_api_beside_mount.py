"""A mount and programs of the Python API on one root: what was closed or returned is seen by whoever looks next.

The processes: the mount, which owns the store; two of the API, on asyncio and on trio, clients of it; and each of
these goes through the mount as well (`tests.fuse.doors`).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import ArtifactStore
from artfs.settings import create_store
from tests.contract.loops import BACKENDS, on_both_loops
from tests.fuse.test_barrier import Manifest, check, prepare, write_all_kinds
from tests.mounting import Mounted, mounted
from tests.posix.actors import Child

pytestmark = pytest.mark.fuse

ALTERNATIONS = int(os.environ.get("ARTFS_TEST_ALTERNATIONS", "10000"))
TOP = Path(__file__).parents[2]
NAMESPACE = "grid/default/shared/both"
UNMOUNTED = 4.0
"""Seconds; programs that are connected are sent elsewhere, not waited for."""
NAMES = [f"f{number}" for number in range(8)]
LOOKS = {
    "content": ["get_read_namespace", "get_vfs_read", "get_stream", "get_open", "get_mapped"],
    "size": ["get_info_size", "get_stat_size"],
    "names": ["get_ls", "get_listdir"],
}
WHOLE = ["api_write", "api_vfs_write", "api_batch", "api_stream", "mount_write", "mount_replace"]
CHANGES = ["put"] * 10 + ["append"] * 3 + ["patch"] * 3 + ["map"] * 2 + ["truncate"] * 2 + ["remove"] * 3 + ["move"] * 2


class Worker:
    """A process of `tests.fuse.doors`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def do(self, *call: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        return self.answer(call)

    def answer(self, call: Sequence[Any] = ()) -> Any:
        assert self.process.stdout is not None
        said, result = json.loads(self.process.stdout.readline() or '["error", "it has died"]')
        assert said == "ok", f"{call}: {result}"
        return result


@contextmanager
def worker(root: Path, namespace: str, folder: Path, backend: str) -> Iterator[Worker]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fuse.doors", str(root), namespace, str(folder), backend],
        cwd=TOP,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        running = Worker(process)
        running.answer()
        yield running
    finally:
        process.kill()
        process.communicate()


class Model:
    """What is there, by name."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.files: dict[str, bytes] = {}

    def data(self, limit: int = 12_000) -> bytes:
        size = self.chance.choice([0, 1, self.chance.randrange(200), self.chance.randrange(limit)])
        return self.chance.randbytes(size)

    def change(self) -> tuple[list[Any], str]:
        """A call, and the name that it changed; done here."""
        kind, name = self.chance.choice(CHANGES), self.chance.choice(NAMES)
        if kind != "put" and not self.files.get(name):
            kind = "put"
        here = bytearray(self.files.get(name, b""))
        data = self.data()
        if kind == "put":
            self.files[name] = data
            return [self.chance.choice(WHOLE), name, data.decode("latin-1")], name
        if kind in ("remove", "move"):
            call = self.chance.choice([f"api_{kind}", f"mount_{kind}"])
            target = self.chance.choice([other for other in NAMES if other != name])
            content = self.files.pop(name)
            if kind == "remove":
                return [call, name], name
            self.files[target] = content
            return [call, name, target], self.chance.choice([name, target])
        if kind == "append":
            self.files[name] = bytes(here) + data
            return ["mount_append", name, data.decode("latin-1")], name
        if kind == "truncate":
            size = self.chance.randrange(2 * len(here))
            self.files[name] = bytes(here[:size]) + bytes(max(size - len(here), 0))
            return ["mount_truncate", name, size], name
        offset = self.chance.randrange(len(here))
        if kind == "map":
            data = data[: len(here) - offset] or b"!"
        here[offset : offset + len(data)] = data
        self.files[name] = bytes(here)
        return [f"mount_{kind}", name, offset, data.decode("latin-1")], name

    def seen(self, kind: str, name: str) -> Any:
        content = self.files.get(name)
        if kind == "names":
            return sorted(self.files)
        if kind == "size":
            return None if content is None else len(content)
        return None if content is None else content.decode("latin-1")


def test_what_returned_is_seen_by_the_next_reader(tmp_path: Path) -> None:
    """10 000 times a change through one door by one process, and a look through any by another."""
    chance = random.Random(os.environ.get("ARTFS_TEST_SEED", "alternations"))
    with mounted(tmp_path) as mount, ExitStack() as stack:
        folder = mount.workspace("both")
        workers = [stack.enter_context(worker(mount.root, NAMESPACE, folder, kind)) for kind in BACKENDS]
        model = Model(chance)
        begun = time.monotonic()
        for number in range(ALTERNATIONS):
            who = chance.randrange(2)
            call, name = model.change()
            workers[who].do(*call)
            kind = chance.choice(["content", "content", "content", "size", "names"])
            look = chance.choice(LOOKS[kind])
            got = workers[1 - who].do(look, name)
            assert got == model.seen(kind, name), f"{number}: after {call[:2]} {look} saw something else"
        print(f"{ALTERNATIONS} alternations in {time.monotonic() - begun:.1f} s")
        for name in NAMES:
            for each in workers:
                for kind, looks in LOOKS.items():
                    assert [each.do(look, name) for look in looks] == [model.seen(kind, name)] * len(looks)


@on_both_loops
async def test_a_checkpoint_by_the_api_holds_what_was_written_through_the_mount(tmp_path: Path) -> None:
    """While a writer goes on: all that it had finished, nothing torn, and a restore brings just that back."""
    with mounted(tmp_path) as mount:
        folder = mount.workspace("busy")
        prepare(folder)
        manifest = Manifest()
        writer = Child(lambda: write_all_kinds(folder, manifest))
        try:
            async with ArtifactStore(root=mount.root) as store:
                vfs = store.get_namespace_vfs("grid/default/shared/busy")
                for number in range(30):
                    name = f"c{number}"
                    done = manifest.read()
                    await store.checkpoint_namespace("grid/default/shared/busy", name)
                    later = manifest.read()
                    await anyio.to_thread.run_sync(check, folder / ".checkpoints" / name, done, later)
                    for file in ("slots", "appends"):
                        inside = (folder / ".checkpoints" / name / file).read_bytes()
                        assert await vfs.read_file(f"/.checkpoints/{name}/{file}") == inside
        finally:
            manifest.stop()
            writer.join()
        async with ArtifactStore(root=mount.root) as store:
            names = [str(found.name) for found in await store.list_checkpoints("grid/default/shared/busy")]
            assert [name for name in names if name.startswith("c")] == [f"c{number}" for number in range(30)]
            wanted = {path: (folder / ".checkpoints/c7" / path).read_bytes() for path in content(folder, "c7")}
            await store.restore_namespace("grid/default/shared/busy", "c7")
            assert {path: (folder / path).read_bytes() for path in content(folder)} == wanted


def content(folder: Path, checkpoint: str | None = None) -> list[Path]:
    top = folder if checkpoint is None else folder / ".checkpoints" / checkpoint
    return sorted(path.relative_to(top) for path in top.rglob("*") if path.is_file())


def test_a_mount_that_comes_and_goes_is_not_noticed(tmp_path: Path) -> None:
    """Two programs alternate all the time; a mount gets the store from them, shows what they did, is never busy because
    of them, and leaves it to them again."""
    root, folder = tmp_path / "store", tmp_path / "mnt" / "default" / "shared" / "both"
    create_store(root)
    anyio.run(_make_shared, root)
    mount = Mounted(root, tmp_path / "mnt", ("-o", "allow_other"))
    with worker(root, NAMESPACE, folder, "asyncio") as first, worker(root, NAMESPACE, folder, "trio") as second:
        ended = threading.Event()
        numbers: list[int] = [0]
        failures: list[BaseException] = []

        def alternate() -> None:
            try:
                while not ended.is_set():
                    number = numbers[-1] + 1
                    writer, reader = (first, second) if number % 2 else (second, first)
                    writer.do("api_write", "n", str(number))
                    assert reader.do("get_read_namespace", "n") == str(number)
                    assert reader.do("get_info_size", "n") == len(str(number))
                    numbers.append(number)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=alternate)
        thread.start()
        try:
            for _ in range(4):
                _go_on(numbers, failures)
                mount.start()
                done = numbers[-1]
                assert int((folder / "n").read_text()) >= done
                _go_on(numbers, failures)
                begun = time.monotonic()
                mount.stop()
                assert time.monotonic() - begun < UNMOUNTED
        finally:
            ended.set()
            thread.join()
            mount.kill()
        assert not failures, failures
        assert len(numbers) > 100


async def _make_shared(root: Path) -> None:
    async with ArtifactStore(root=root) as store:
        await store.create_namespace("workspace", "sandbox", "both")


def _go_on(numbers: list[int], failures: list[BaseException]) -> None:
    limit, wanted = time.monotonic() + 10, numbers[-1] + 20
    while numbers[-1] < wanted and not failures:
        assert time.monotonic() < limit
        time.sleep(0.01)
