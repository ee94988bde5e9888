"""A provider that fails under writers and under cold readers, in each of its ways.

Of each: what was synced is there and right, calls end in time, errors are the documented ones, and when the fault ends
the store has uploaded everything without anybody's help; another machine can then read all of it from the provider.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults import workload
from tests.faults.backed import CALL_LIMIT, HEAL_LIMIT, RESOLVER, ROUNDS, Backed, Work, drop_kernel_cache
from tests.faults.messages import Kind
from tests.faults.proxy import Fault
from tests.faults.resolver.sitecustomize import NAME

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

NAMES_KEPT = 11.0
"""Seconds, just above those for which aiohttp remembers what a name resolves to."""
ALL = tuple(Kind)
UPWARD = (Kind.PUT, Kind.PART)


@dataclass(frozen=True, slots=True)
class Trouble:
    fault: Fault
    writing: tuple[Kind, ...] = ALL
    reading: tuple[Kind, ...] = ALL
    options: dict[str, Any] = field(default_factory=dict)


TROUBLES = {
    "slow-down": Trouble(Fault.ANSWER, options={"probability": 0.4}),
    "internal-error": Trouble(Fault.ANSWER, options={"status": 500, "code": "InternalError"}),
    "denied": Trouble(Fault.ANSWER, options={"status": 403, "code": "AccessDenied"}),
    "reset-before": Trouble(Fault.RESET_BEFORE, options={"probability": 0.5}),
    "reset-after": Trouble(Fault.RESET_AFTER, options={"probability": 0.5}),
    "truncated": Trouble(Fault.TRUNCATE, UPWARD, (Kind.GET,), {"probability": 0.5}),
    "always-truncated": Trouble(Fault.TRUNCATE, UPWARD, (Kind.GET,)),
    "wrong-bytes": Trouble(Fault.CORRUPT, UPWARD, (Kind.GET,), {"probability": 0.3}),
    "always-wrong-bytes": Trouble(Fault.CORRUPT, UPWARD, (Kind.GET,)),
    "slow-bodies": Trouble(Fault.SLOW, UPWARD, (Kind.GET,), {"rate": 50_000.0}),
    "no-answer": Trouble(Fault.HANG),
}


def read_all(base: Path, states: dict[str, list[workload.Version]]) -> tuple[int, int]:
    """Read every file, timed: each is right or an error that is documented.  Returns (right ones, errors)."""
    right = errors = 0
    for name, versions in states.items():
        if versions[0] == workload.NONE:
            continue
        start = time.monotonic()
        try:
            data = (base / name).read_bytes()
        except OSError as error:
            assert error.errno == errno.EIO, f"{name}: {error}"
            errors += 1
        else:
            assert any(data == workload.content(name, version) for version in versions), name
            right += 1
        # Of several calls: open, and two reads of up to 4 MiB each.
        assert time.monotonic() - start < 3 * CALL_LIMIT, f"reading {name} took {time.monotonic() - start:.1f} s"
        if time.monotonic() - start > CALL_LIMIT:
            break
    return right, errors


def trial(
    store: Backed,
    tmp_path: Path,
    writing: Callable[[], None],
    reading: Callable[[], None],
    heal: Callable[[], None],
    rounds: int,
) -> None:
    """Rounds of: a fault while files are written and synced, heal, a fault while they are read cold, heal."""
    with store.running():
        base = store.path("w")
        for number in range(rounds):
            if number:
                for path in base.iterdir():
                    path.unlink()
            with Work(base if number else store.workspace("w"), tmp_path / f"record{number}", f"{number}") as work:
                time.sleep(0.4)
                writing()
                time.sleep(1.5)
                heal()
                time.sleep(0.3)
                found = work.end()
            print(f"{found.steps} steps, {found.errors or 'no errors'}, longest call {found.seconds:.1f} s", end=", ")
            print(f"healed after {store.healed():.1f} s")
            assert found.steps > 10
            store.ok("cache", "drop")
            drop_kernel_cache()
            reading()
            print("read right, errors:", read_all(base, found.states))
            heal()
            drop_kernel_cache()
            assert not workload.wrong(base, found.states)
            (base / "after").write_bytes(b"changes are taken")
            assert not store.status()["failure"]
            (base / "after").unlink()
            store.ok("sync", seconds=HEAL_LIMIT)
    store.fsck()
    with store.recovered(tmp_path / "other").running() as other:
        assert not workload.wrong(other.path("w"), found.states)


@pytest.mark.parametrize("kind", TROUBLES)
def test_a_provider_that_fails(store: Backed, tmp_path: Path, kind: str) -> None:
    trouble = TROUBLES[kind]
    proxy = store.proxy
    trial(
        store,
        tmp_path,
        lambda: proxy.misbehave(trouble.fault, trouble.writing, **trouble.options),
        lambda: proxy.misbehave(trouble.fault, trouble.reading, **trouble.options),
        proxy.heal,
        max(1, ROUNDS // 10),
    )
    assert proxy.seen.struck(), f"nothing met the fault: {proxy.seen}"


def test_a_provider_that_refuses_connections(store: Backed, tmp_path: Path) -> None:
    proxy = store.proxy
    trial(store, tmp_path, proxy.refuse, proxy.refuse, proxy.heal, max(1, ROUNDS // 10))


@contextmanager
def resolved(store: Backed, tmp_path: Path) -> Iterator[Path]:
    """The provider goes by a name; while the file that is returned exists, that cannot be resolved."""
    switch = tmp_path / "no-names"
    store.url = store.server.place(endpoint_url=f"http://{NAME}:{store.proxy.port}")
    store.env |= {"PYTHONPATH": f"{RESOLVER}:.", "FAULTS_RESOLVER": str(switch), "ARTFS_PROVIDER": store.url}
    yield switch
    switch.unlink(missing_ok=True)


def test_a_name_that_does_not_resolve(store: Backed, tmp_path: Path) -> None:
    """For longer than clients remember a name; existing connections end, or nothing would ask for it."""
    with resolved(store, tmp_path) as switch:
        refused = switch.with_name(f"{switch.name}.refused")
        struck = []

        def fail() -> None:
            switch.touch()
            time.sleep(NAMES_KEPT)
            with store.proxy.outage():
                pass

        def heal() -> None:
            struck.append(refused.stat().st_size if refused.exists() else 0)
            switch.unlink(missing_ok=True)

        trial(store, tmp_path, fail, fail, heal, max(1, ROUNDS // 10))
        print("names refused, by the end of each fault:", struck)
        assert 0 < struck[0] < struck[1], "the fault did not strike both writing and reading"
