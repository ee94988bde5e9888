"""Fixtures of the driver's suite: mounts, as in tests/fuse_fixtures.py."""

import pytest

from tests.posix.fixtures import memory_directory

__all__ = ["memory_directory"]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("tests.fuse_fixtures")
