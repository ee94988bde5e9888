"""The bridge to asyncio, from trio, from asyncio and from anyio on both."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from anyio import to_thread

from artfs.aio import Bridge
from artfs.errors import UnavailableError

ROOT = Path(__file__).parents[2]

# Each runs an async function on a loop of its own.
LOOPS: dict[str, Callable[[Any], Any]] = {
    "trio": trio.run,
    "asyncio": lambda function: asyncio.run(function()),
    "anyio-trio": lambda function: anyio.run(function, backend="trio"),
    "anyio-asyncio": lambda function: anyio.run(function, backend="asyncio"),
}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return LOOPS[request.param]


def test_results_and_errors_come_back(run: Callable[[Any], Any]) -> None:
    async def add(x: int, y: int) -> int:
        await asyncio.sleep(0)
        return x + y

    async def fail() -> None:
        raise KeyError("k")

    async def main() -> None:
        bridge = Bridge()
        assert await bridge.call(add, 1, 2) == 3
        with pytest.raises(KeyError, match="k"):
            await bridge.call(fail)

    run(main)


def test_what_runs_there_is_on_asyncio_for_every_library(run: Callable[[Any], Any]) -> None:
    async def anyios_own() -> int:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(anyio.sleep, 0)
        with anyio.fail_after(5):
            await asyncio.sleep(0)
        return await to_thread.run_sync(threading.get_ident)

    async def main() -> None:
        bridge = Bridge()
        threads = [await bridge.call(anyios_own) for _ in range(5)]
        assert len(set(threads)) == 1  # a worker thread is used again

    run(main)


def test_callers_on_trio_share_one_thread_and_those_on_asyncio_stay() -> None:
    async def where() -> int:
        return threading.get_ident()

    async def main() -> int:
        return await Bridge().call(where)

    first, second = trio.run(main), trio.run(main)
    assert first == second != threading.get_ident()
    assert asyncio.run(main()) == threading.get_ident()


def test_many_at_once(run: Callable[[Any], Any]) -> None:
    got: list[int] = []

    async def echo(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def main() -> None:
        bridge = Bridge()

        async def one(number: int) -> None:
            got.append(await bridge.call(echo, number))

        async with anyio.create_task_group() as group:
            for number in range(500):
                group.start_soon(one, number)

    run(main)
    assert sorted(got) == list(range(500))


def test_who_is_cancelled_waits_for_the_end(run: Callable[[Any], Any]) -> None:
    log: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0.05)
            log.append("clean")

    async def main() -> None:
        with anyio.fail_after(30):
            with anyio.move_on_after(0.02) as scope:
                await Bridge().call(slow)
            assert scope.cancelled_caught
            assert log == ["clean"]

    run(main)


def test_who_was_cancelled_before_does_not_hang() -> None:
    begun: list[bool] = []

    async def slow() -> None:
        begun.append(True)
        await asyncio.sleep(60)

    async def main() -> None:
        with trio.fail_after(30), trio.CancelScope() as scope:
            scope.cancel()
            await Bridge().call(slow)
        assert scope.cancelled_caught

    trio.run(main)
    assert len(begun) <= 1


def test_a_result_in_spite_of_the_cancellation_is_kept() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done all the same"
        return "never cancelled"

    async def main() -> None:
        with trio.move_on_after(0.02) as scope:
            assert await Bridge().call(stubborn) == "done all the same"
        assert scope.cancel_called and not scope.cancelled_caught

    trio.run(main)


def test_a_task_that_ends_itself_is_an_error_and_no_cancellation() -> None:
    async def dies() -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        with trio.CancelScope() as scope, pytest.raises(UnavailableError, match="gave up"):
            await Bridge().call(dies)
        assert not scope.cancelled_caught

    trio.run(main)


def test_a_forks_child_has_a_thread_of_its_own() -> None:
    async def answer() -> int:
        return 42

    async def main() -> int:
        return await Bridge().call(answer)

    assert trio.run(main) == 42
    child = os.fork()
    if child == 0:
        try:
            os._exit(trio.run(main))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def test_the_end_of_the_process_closes_what_is_open_and_waits_for_nobody() -> None:
    program = """
import asyncio, trio
from anyio.lowlevel import RunVar
from artfs.aio import Bridge
held, tasks = RunVar("held"), []
async def until_the_end():
    try:
        yield
    finally:
        await asyncio.sleep(0)
        print("closed")
async def hang():
    await asyncio.sleep(3600)
async def begin():
    held.set(until_the_end())
    await anext(held.get())
    tasks.append(asyncio.get_running_loop().create_task(hang()))
async def main():
    await Bridge().call(begin)
trio.run(main)
print("over")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\nclosed\n", "")


def test_asyncio_callers_load_no_trio() -> None:
    program = """
import asyncio, sys
from artfs.aio import Bridge
async def answer():
    return 42
async def main():
    return await Bridge().call(answer)
print(asyncio.run(main()), "trio" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "42 False\n"


@pytest.mark.logs_errors
def test_a_connection_that_a_forgotten_task_lost_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    """All else that such a task meets is."""

    async def forget(error: Exception) -> None:
        async def work() -> None:
            raise error

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        del task
        gc.collect()

    async def main() -> None:
        bridge = Bridge()
        await bridge.call(forget, ConnectionResetError("closing"))
        assert not caplog.records
        await bridge.call(forget, KeyError("k"))

    trio.run(main)
    assert ["never retrieved" in record.message for record in caplog.records] == [True]
