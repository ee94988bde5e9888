"""Where a store is, from arguments and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from artfs.store.choosing import choose

OPTIONS = {"retries": "5"}


@pytest.mark.parametrize("root", [None, "root"])
@pytest.mark.parametrize("kind", ["s3", "vfs-s3"])
def test_options_are_of_what_is_reached_over_a_network(root: str | None, kind: str, tmp_path: Path) -> None:
    place = choose(None if root is None else tmp_path / root, kind, "bucket", {}, OPTIONS)
    assert place.home == place.config == "s3://bucket?retries=5"


@pytest.mark.parametrize("kind", ["filesystem", "sqlite", "memory"])
def test_and_of_nothing_else(kind: str, tmp_path: Path) -> None:
    env = {"ARTIFACT_FS_ROOT": str(tmp_path / "files"), "ARTIFACT_SQLITE_PATH": str(tmp_path / "all.db")}
    assert choose(None, kind, None, env, OPTIONS) == choose(None, kind, None, env)
    at = tmp_path / "root"
    assert choose(at, kind, None, env, OPTIONS) == choose(at, kind, None, env)
