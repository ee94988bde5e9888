"""Fixtures and rules for every suite: scratch places, nothing left behind, no unexpected error in the log."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import hypothesis
import pytest

from tests.guard import Guard

# How long an example takes says nothing on a shared machine; a failure must be repeatable from the log alone.
hypothesis.settings.register_profile("artfs", deadline=None, print_blob=True)
hypothesis.settings.load_profile("artfs")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Guard(config), "artfs-guard")


@pytest.fixture
def store_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a store may be made; nothing is there yet. `ARTFS_ROOT` names it, for started programs too."""
    root = tmp_path / "store"
    monkeypatch.setenv("ARTFS_ROOT", str(root))
    return root


@pytest.fixture
def own_environment() -> Iterator[None]:
    """What the test, or what it calls, sets in the environment is taken back."""
    with patch.dict(os.environ):
        yield


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    """An empty directory to mount on. A test that leaves something mounted there fails."""
    directory = tmp_path / "grid"
    directory.mkdir()
    return directory


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def _no_error_in_the_log(request: pytest.FixtureRequest) -> Iterator[None]:
    errors = _Errors()
    logger = logging.getLogger()
    logger.addHandler(errors)
    try:
        yield
    finally:
        logger.removeHandler(errors)
    if errors.lines and request.node.get_closest_marker("logs_errors") is None:
        pytest.fail("errors in the log:\n" + "\n".join(errors.lines), pytrace=False)
