"""What is wrong with a provider is said once, in a line, when the store is mounted or made: not as EIO later."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.backed import PROVIDER_TIMEOUT, Backed
from tests.faults.proxy import Fault
from tests.servers import BUCKET

pytestmark = pytest.mark.fuse

SOON = 10 * PROVIDER_TIMEOUT


def refused(store: Backed, code: int) -> str:
    """What `artfs mount` says; it must fail with that exit code, in time, with one line, and leave nothing mounted."""
    store.point.mkdir(exist_ok=True)
    if not store.root.exists():
        store.ok("init")
    start = time.monotonic()
    done = store.artfs("mount", str(store.point), seconds=60)
    took = time.monotonic() - start
    said = done.stderr.strip()
    print(f"{took:.1f} s, exit code {done.returncode}: {said}")
    if done.returncode == 0:
        store.artfs("umount", "-l", str(store.point))
    assert done.returncode == code, f"{done.returncode}: {said}"
    assert "Traceback" not in said and "a bug of artfs" not in said
    assert len(said.splitlines()) == 1, said
    assert took < SOON
    assert not os.path.ismount(store.point)
    return said


def wrong_key(store: Backed) -> None:
    store.env["AWS_SECRET_ACCESS_KEY"] = "another"


def no_key(store: Backed) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del store.env[name]
    store.env |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null"}
    store.env["AWS_SHARED_CREDENTIALS_FILE"] = "/dev/null"


def no_bucket(store: Backed) -> None:
    store.env["ARTFS_PROVIDER"] = store.server.url("p", endpoint_url=store.proxy.url, bucket="missing")


def no_such_host(store: Backed) -> None:
    store.env["ARTFS_PROVIDER"] = store.server.url("x", endpoint_url="no-url")


def answers(status: int, code: str) -> Callable[[Backed], None]:
    return lambda store: store.proxy.misbehave(Fault.ANSWER, status=status, code=code)


CASES: dict[str, tuple[Callable[[Backed], None], str, int]] = {
    "a wrong secret": (wrong_key, "credentials", 4),
    "no credentials": (no_key, "credentials", 4),
    "no permission": (answers(403, "AccessDenied"), "not permitted", 4),
    "an unknown key": (answers(403, "InvalidAccessKeyId"), "credentials", 4),
    "an expired token": (answers(400, "ExpiredToken"), "credentials", 4),
    "another region": (answers(400, "AuthorizationHeaderMalformed"), "region", 2),
    "a wrong clock": (answers(403, "RequestTimeTooSkewed"), "clock", 2),
    "no such bucket": (no_bucket, "missing", 3),
    "a bad scheme": (lambda store: store.env.update(ARTFS_PROVIDER="ftp://host/x"), "ftp", 2),
    "an unknown option": (
        lambda store: store.env.update(ARTFS_PROVIDER=f"s3://{BUCKET}/x?colour=red"),
        "colour",
        2,
    ),
    "no such host": (no_such_host, "https://no-url: the name of its host is not known", 1),
    "nobody answers": (lambda store: store.proxy.refuse(), "no connection", 1),
    "silence": (lambda store: store.proxy.misbehave(Fault.HANG), "no answer in time", 1),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_error_at_mount(store: Backed, case: str) -> None:
    spoil, word, code = CASES[case]
    before = dict(store.env)
    spoil(store)
    assert word in refused(store, code).lower()
    store.env = before
    store.proxy.heal()
    with store.running():
        store.workspace("w")


@pytest.mark.parametrize("case", ["a wrong secret", "no such bucket", "a bad scheme", "no such host", "silence"])
def test_one_clear_error_when_it_is_made(store: Backed, case: str) -> None:
    """By `artfs init`, which leaves nothing, and by the namespace that is to live there."""
    spoil, word, code = CASES[case]
    spoil(store)
    url = store.env.pop("ARTFS_PROVIDER")
    said = store.artfs("init", "--provider", url)
    assert (said.returncode, len(said.stderr.strip().splitlines())) == (code, 1), said.stderr
    assert word in said.stderr.lower()
    assert not store.root.exists()
    with store.running():
        said = store.artfs("ns", "create", "default/shared/w", "--provider", url)
        assert (said.returncode, len(said.stderr.strip().splitlines())) == (code, 1), said.stderr
        assert word in said.stderr.lower()
        assert not store.path("w").exists()
        store.proxy.heal()


NAME = "artfs-store.json"


@contextmanager
def bucket(store: Backed) -> Iterator[tuple[Any, dict[str, str]]]:
    """A client, and what names the store's marker.  By the protocol: the server keeps directories in memory."""
    client = store.server.client()
    prefix = store.url.partition("?")[0].rpartition("/")[2]
    try:
        yield client, {"Bucket": store.server.bucket, "Key": f"{prefix}/{NAME}"}
    finally:
        client.close()


def test_a_place_of_another_store(store: Backed, tmp_path: Path) -> None:
    with store.running():
        (store.workspace("w") / "f").write_bytes(b"x")
        store.ok("sync")
    (tmp_path / "second").mkdir()
    second = Backed(tmp_path / "second", store.proxy, store.server, store.url)
    assert "another store" in refused(second, 2)
    with store.running():
        assert (store.path("w") / "f").read_bytes() == b"x"


def test_a_place_without_a_marker(store: Backed, tmp_path: Path) -> None:
    with store.running():
        (store.workspace("w") / "f").write_bytes(b"x" * 100_000)
        store.ok("sync")
    with bucket(store) as (client, place):
        client.delete_object(**place)
    (tmp_path / "second").mkdir()
    assert "objects" in refused(Backed(tmp_path / "second", store.proxy, store.server, store.url), 2)


def test_a_newer_format(store: Backed) -> None:
    with store.running():
        store.ok("sync")
    with bucket(store) as (client, place):
        fields = json.loads(client.get_object(**place)["Body"].read())
        newer = json.dumps({**fields, "format": fields["format"] + 1}).ljust(512)
        client.put_object(**place, Body=newer.encode())
    assert "newer" in refused(store, 6)


def test_a_store_that_has_something_is_mounted_without_its_new_provider(store: Backed, tmp_path: Path) -> None:
    """One that never answered so far: nothing can be made there, everything else works; it is used when it answers,
    though its place was not claimed at the start."""
    store.ok("init")
    store.ok("ns", "create", "default/shared/local", "--provider", "")
    store.proxy.refuse()
    with store.running():
        (store.path("local") / "f").write_bytes(b"here")
        assert "no connection" in str(store.status()["missing"])
        start = time.monotonic()
        said = store.artfs("ns", "create", "default/shared/w")
        assert said.returncode == 1 and "no connection" in said.stderr, said.stderr
        assert time.monotonic() - start < SOON
        start = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            store.path("w").mkdir()
        assert time.monotonic() - start < SOON
        assert not store.path("w").exists()
        store.proxy.accept()
        (store.workspace("w") / "f").write_bytes(b"there")
        store.healed()
        store.ok("sync")
        assert not store.status()["missing"]
    with store.recovered(tmp_path / "other").running() as other:
        assert (other.path("w") / "f").read_bytes() == b"there"
