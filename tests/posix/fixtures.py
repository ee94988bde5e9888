"""Fixtures that the posix and programs suites share: which directory is under test.

The directory is `--mnt DIR`, else the variable ARTFS_TEST_DIR, else a workspace of a mounted grid
(fixture `mounted_workspace` of tests/fuse_fixtures.py). Tests never see that directory itself, but
a fresh one below it, which is their working directory and is removed afterwards.
"""

import contextlib
import importlib.util
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

_count = itertools.count()


def add_options(parser: pytest.Parser) -> None:
    """Register --mnt; several conftest files may call this."""
    with contextlib.suppress(ValueError):
        parser.addoption("--mnt", metavar="DIR", help="run the posix and programs suites in this directory")


def load_mounts(config: pytest.Config) -> None:
    """Make `mounted_workspace` known to pytest."""
    if importlib.util.find_spec("tests.fuse_fixtures") is not None:
        config.pluginmanager.import_plugin("tests.fuse_fixtures")


def given_directory(config: pytest.Config) -> str | None:
    """The directory that the caller chose, or None for a mount of our own."""
    return config.getoption("--mnt", default=None) or os.environ.get("ARTFS_TEST_DIR")


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Path:
    """The directory under test."""
    given = given_directory(request.config)
    if given is None:
        return Path(request.getfixturevalue("mounted_workspace"))
    return Path(given).resolve(strict=True)


@pytest.fixture
def mnt(target: Path) -> Iterator[Path]:
    """A fresh directory of mode 0777 in the directory under test; also the working directory."""
    fresh = target / f"t{os.getpid()}-{next(_count)}"
    fresh.mkdir()
    fresh.chmod(0o777)
    before = os.open(".", os.O_PATH)
    old_mask = os.umask(0o022)
    os.chdir(fresh)
    try:
        yield fresh
    finally:
        os.fchdir(before)
        os.close(before)
        os.umask(old_mask)
        shutil.rmtree(fresh)


@pytest.fixture
def lacks(request: pytest.FixtureRequest) -> Callable[[str], NoReturn]:
    """Say that the file system has no such feature: a skip in a given directory, a failure on a grid."""

    def say(feature: str) -> NoReturn:
        if given_directory(request.config) is None:
            pytest.fail(f"{feature}: a mounted grid must have it")
        pytest.skip(f"{feature}: the file system of the given directory does not have it")

    return say


@pytest.fixture
def memory_directory() -> Iterator[Path]:
    """A scratch directory on tmpfs, the model that trees are compared with."""
    with tempfile.TemporaryDirectory(prefix="posix-model-", dir="/dev/shm") as name:
        yield Path(name)
