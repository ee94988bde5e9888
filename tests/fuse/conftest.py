"""Fixtures of the driver's suite: mounts, as in tests/fuse_fixtures.py."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("tests.fuse_fixtures")
