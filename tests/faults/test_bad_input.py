"""What is wrong with a provider is said once, in a line, when the store is mounted or made: not as EIO later."""

from __future__ import annotations

import json
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


def refused(store: Backed) -> str:
    """What `artfs mount` says; it must fail, in time and with one line."""
    store.point.mkdir(exist_ok=True)
    if not store.root.exists():
        store.ok("init")
    start = time.monotonic()
    done = store.artfs("mount", str(store.point), seconds=60)
    took = time.monotonic() - start
    said = done.stderr.strip()
    print(f"{took:.1f} s, exit code {done.returncode}: {said}")
    if done.returncode == 0:
        store.artfs("umount", str(store.point))
    assert done.returncode, "it was mounted"
    assert "Traceback" not in said and "a bug of artfs" not in said
    assert len(said.splitlines()) == 1, said
    assert took < SOON
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


def bad_endpoint(store: Backed) -> None:
    store.env["ARTFS_PROVIDER"] = store.server.url("x", endpoint_url="no-url")


def answers(status: int, code: str) -> Callable[[Backed], None]:
    return lambda store: store.proxy.misbehave(Fault.ANSWER, status=status, code=code)


CASES: dict[str, tuple[Callable[[Backed], None], str]] = {
    "a wrong secret": (wrong_key, "credentials"),
    "no credentials": (no_key, "credentials"),
    "no permission": (answers(403, "AccessDenied"), "not permitted"),
    "an unknown key": (answers(403, "InvalidAccessKeyId"), "credentials"),
    "an expired token": (answers(400, "ExpiredToken"), "credentials"),
    "another region": (answers(400, "AuthorizationHeaderMalformed"), "region"),
    "a wrong clock": (answers(403, "RequestTimeTooSkewed"), "clock"),
    "no such bucket": (no_bucket, "missing"),
    "a bad scheme": (lambda store: store.env.update(ARTFS_PROVIDER="ftp://host/x"), "ftp"),
    "an unknown option": (lambda store: store.env.update(ARTFS_PROVIDER=f"s3://{BUCKET}/x?colour=red"), "colour"),
    "a bad endpoint": (
        lambda store: store.env.update(ARTFS_PROVIDER=store.server.url("x", endpoint_url="no-url")),
        "endpoint_url",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_error_at_mount(store: Backed, case: str) -> None:
    spoil, word = CASES[case]
    spoil(store)
    assert word in refused(store).lower()


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
    assert "another store" in refused(second)
    with store.running():
        assert (store.path("w") / "f").read_bytes() == b"x"


def test_a_place_without_a_marker(store: Backed, tmp_path: Path) -> None:
    with store.running():
        (store.workspace("w") / "f").write_bytes(b"x" * 100_000)
        store.ok("sync")
    with bucket(store) as (client, place):
        client.delete_object(**place)
    (tmp_path / "second").mkdir()
    assert "objects" in refused(Backed(tmp_path / "second", store.proxy, store.server, store.url))


def test_a_newer_format(store: Backed) -> None:
    with store.running():
        store.ok("sync")
    with bucket(store) as (client, place):
        fields = json.loads(client.get_object(**place)["Body"].read())
        newer = json.dumps({**fields, "format": fields["format"] + 1}).ljust(512)
        client.put_object(**place, Body=newer.encode())
    assert "newer" in refused(store)


def test_nobody_answers(store: Backed) -> None:
    """Of a new store that is an error when something is made; no call hangs."""
    store.proxy.refuse()
    store.point.mkdir()
    store.ok("init")
    start = time.monotonic()
    done = store.artfs("mount", str(store.point), seconds=60)
    if done.returncode:
        assert "127.0.0.1" in done.stderr, f"it does not say who did not answer: {done.stderr}"
        assert len(done.stderr.strip().splitlines()) == 1
        assert time.monotonic() - start < SOON
        return
    try:
        start = time.monotonic()
        made = store.artfs("ns", "create", "default/shared/w", seconds=60)
        print(made.stderr.strip())
        assert made.returncode == 1
        assert time.monotonic() - start < SOON
        store.proxy.accept()
        store.ok("ns", "create", "default/shared/w")
    finally:
        store.ok("umount", str(store.point))
