"""Fixtures that give tests a mounted workspace."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.mounting import Mounted, mounted

_numbers = count()


@pytest.fixture(scope="session")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for all tests that only need a workspace in it."""
    with mounted(tmp_path_factory.mktemp("shared-mount")) as mount:
        yield mount


@pytest.fixture(scope="session")
def mounted_workspace(shared_mount: Mounted) -> Path:
    """A workspace that lives as long as the run."""
    return shared_mount.workspace("session-wide")


@pytest.fixture
def workspace(shared_mount: Mounted) -> Path:
    """A new workspace."""
    return shared_mount.workspace(f"w{next(_numbers)}")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mount of a store of its own."""
    with mounted(tmp_path) as own:
        yield own
