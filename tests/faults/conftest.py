"""Fixtures: one server for all tests of the run, a proxy and a store of each test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.backed import Backed
from tests.faults.proxy import Proxy
from tests.servers import Server, one_serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with one_serving(tmp_path_factory.mktemp("s3")) as own:
        yield own


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.address) as own:
        yield own


@pytest.fixture
def store(tmp_path: Path, proxy: Proxy, server: Server) -> Iterator[Backed]:
    """Not mounted yet; its prefix in the bucket is its own."""
    own = Backed(tmp_path, proxy, server, server.place(endpoint_url=proxy.url))
    try:
        yield own
    finally:
        proxy.heal()
        own.kill()
    assert not own.complaints(), own.log()[-3000:]
