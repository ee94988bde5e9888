"""A store that is made once and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from artfs.settings import create_store
from tests.contract.fsck_store import Made, build


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = Made(tmp_path_factory.mktemp("fsck") / "store")
    create_store(made.root)
    (made.root / "config.toml").write_text("journal_size = 8388608\n")
    trio.run(build, made)
    return made


@pytest.fixture
def made(template: Made, tmp_path: Path) -> Made:
    copy = Made(tmp_path / "store")
    shutil.copytree(template.root, copy.root)
    copy.ino, copy.serial, copy.clone = dict(template.ino), template.serial, template.clone
    copy.ids = dict(template.ids)
    return copy
