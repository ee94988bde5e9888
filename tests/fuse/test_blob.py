"""A BLOB in the mount: one file `_data`, and `_meta.json` by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import ArtifactStore, control
from artfs.volume.fsck import check
from tests.fuse.test_grid import call_write
from tests.fuse.tools import call, command
from tests.mounting import Mounted
from tests.posix.calls import RENAME_EXCHANGE, renameat2, result
from tests.programs.run import run

PATH = "default/shared/picture"


@pytest.fixture
def blob(mount: Mounted) -> Path:
    call(mount, "ns_create", path=PATH, type="blob", metadata={"k": "v"})
    return mount.point / PATH


def test_it_shows_its_bytes_and_what_it_is(blob: Path) -> None:
    assert os.listdir(blob) == ["_data"]
    assert (blob / "_data").read_bytes() == b""
    meta = json.loads((blob / "_meta.json").read_bytes())
    assert meta["type"] == "blob" and meta["metadata"] == {"k": "v"}
    assert not (blob / ".workspace").exists()


def test_its_bytes_are_a_file(mount: Mounted, blob: Path) -> None:
    content = os.urandom(3_000_000)
    with (blob / "_data").open("r+b") as file:
        file.write(content)
        os.fsync(file.fileno())
    assert call(mount, "fs_read", path=PATH, offset=0, length=5_000_000) == content
    os.truncate(blob / "_data", 10)
    os.setxattr(blob / "_data", "user.k", b"v")
    (blob / "_data").chmod(0o600)
    mount.stop()
    mount.start()
    assert (blob / "_data").read_bytes() == content[:10]
    assert (blob / "_data").stat().st_mode & 0o777 == 0o600
    assert os.getxattr(blob / "_data", "user.k") == b"v"


def test_what_other_processes_write_is_there_at_once(mount: Mounted, blob: Path) -> None:
    for content in (b"first", b"x" * 2_500_000, b""):
        call_write(mount, PATH, content)
        assert (blob / "_data").read_bytes() == content
        assert os.listdir(blob) == ["_data"]


def test_nothing_else_can_be_in_it(blob: Path) -> None:
    (blob / "_data").write_bytes(b"bytes")
    attempts: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (os.open, (blob / "new", os.O_CREAT | os.O_WRONLY)),
        (os.mkdir, (blob / "new",)),
        (os.symlink, ("x", blob / "new")),
        (os.mkfifo, (blob / "new",)),
        (os.link, (blob / "_data", blob / "new")),
        (os.rename, (blob / "_data", blob / "new")),
        (os.rmdir, (blob / "_data",)),
        (os.truncate, (blob / "_meta.json", 0)),
        (renameat2, (blob / "_data", blob / "_meta.json", RENAME_EXCHANGE)),
    ]
    for function, arguments in attempts:
        assert result(function, *arguments) in ("EPERM", "ENOTDIR", "EXDEV", "ENOENT", "EROFS"), (function, arguments)
    assert os.listdir(blob) == ["_data"]
    assert (blob / "_data").read_bytes() == b"bytes"


def test_what_the_python_api_puts_beside_its_bytes(mount: Mounted, blob: Path) -> None:
    async def put() -> None:
        async with ArtifactStore(root=mount.root) as store:
            for path in ("/notes/a", "/b"):
                await store.write_namespace(f"grid/{PATH}", path.encode(), path)

    anyio.run(put)
    assert sorted(os.listdir(blob)) == ["_data", "b", "notes"]
    assert (blob / "notes/a").read_bytes() == b"/notes/a"
    (blob / "notes/c").write_bytes(b"by a program")
    (blob / "b").write_bytes(b"new")
    command(blob, "checkpoint", "v1")
    assert (blob / ".checkpoints/v1/b").read_bytes() == b"new"
    assert result(os.rename, blob / "b", blob / "d") == "EPERM"
    (blob / "b").unlink()
    mount.stop()
    assert check(mount.root, data=True).problems == []
    mount.start()
    assert sorted(os.listdir(blob)) == ["_data", "notes"] and os.listdir(blob / "notes") == ["a", "c"]


def test_it_has_checkpoints_and_clones(mount: Mounted, blob: Path) -> None:
    (blob / "_data").write_bytes(b"one")
    command(blob, "checkpoint", "v1")
    (blob / "_data").write_bytes(b"second")
    assert (blob / ".checkpoints/v1/_data").read_bytes() == b"one"
    control.clone(blob, "copy", "v1")
    control.restore(blob, "v1")
    assert (blob / "_data").read_bytes() == b"one"
    copy = blob.with_name("copy")
    assert (copy / "_data").read_bytes() == b"one" and os.listdir(copy) == ["_data"]
    assert call(mount, "ns_info", path="default/shared/copy")["type"] == "blob"
    assert result(os.mkdir, copy / "new") == "EPERM"


def test_its_file_can_be_removed_and_made_again(blob: Path) -> None:
    (blob / "_data").unlink()
    assert os.listdir(blob) == []
    (blob / "_data").write_bytes(b"again")
    assert (blob / "_data").read_bytes() == b"again"


@pytest.mark.parametrize("command", [["rmdir"], ["rm", "-rf"]])
def test_rmdir_and_rm_rf_destroy_it(mount: Mounted, blob: Path, command: list[str]) -> None:
    (blob / "_data").write_bytes(b"one")
    run(*command, blob)
    assert not blob.exists() and call(mount, "ns_list") == []
