"""Fixtures of the posix suite."""

import pytest

from tests.posix import fixtures
from tests.posix.fixtures import lacks, memory_directory, mnt, target

__all__ = ["lacks", "memory_directory", "mnt", "target"]


def pytest_addoption(parser: pytest.Parser) -> None:
    fixtures.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    fixtures.load_mounts(config)
