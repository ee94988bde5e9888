"""Where a store is, from arguments and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from artfs.store.choosing import Place, choose, scope_homes

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


def test_a_scope_gives_the_root_of_a_store_that_would_be_in_memory(tmp_path: Path) -> None:
    env = {"ARTIFACT_FS_ROOT": str(tmp_path / "files"), "ARTIFACT_SQLITE_PATH": str(tmp_path / "one.db")}

    def placed(scopes: dict[str, str], **more: str) -> Place:
        return choose(None, None, "bucket", {**env, **more}, scopes=scope_homes(scopes, {}))

    files, file = tmp_path / "files", tmp_path / "one.db-artfs"
    assert placed({"user": "memory", "sandbox": "vfs"}) == Place(None, "memory")
    assert placed({"session": "memory", "user": "vfs-filesystem"}) == Place(files, "memory", "memory:")
    assert placed({"sandbox": "sqlite"}) == Place(file, "memory", "memory:", f"sqlite://{tmp_path}/one.db")
    assert placed({"sandbox": "s3", "user": "filesystem"}).root == files
    s3 = placed({"sandbox": "s3"}, HOME=str(tmp_path))
    assert (s3.home, s3.config, s3.root is not None and s3.root.name) == ("memory:", "s3://bucket", "bucket")
    named = str(tmp_path / "named")
    assert placed({"user": "filesystem"}, ARTFS_ROOT=named).root == tmp_path / "named"
    assert placed({"user": "filesystem"}, ARTIFACT_PROVIDER="sqlite").root == file
