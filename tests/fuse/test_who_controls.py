"""In a mount that several uids may use, a namespace's versions belong to its owner and to root."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from artfs import control

OWNER, OTHER = 65533, 65534


def _as(uid: int, action: Callable[[], object]) -> int:
    """The errno of an action by another uid, 0 if it succeeds."""
    child = os.fork()
    if not child:
        code = 255
        try:
            os.setgid(uid)
            os.setuid(uid)
            action()
            code = 0
        except OSError as error:
            code = error.errno or 255
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def owned(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of OWNER that all may enter, with a checkpoint, and a file that is OTHER's; it is the working
    directory, because the directories above the mount are closed to others."""
    monkeypatch.chdir(workspace)
    (workspace / "theirs").write_text("content")
    os.chown(workspace / "theirs", OTHER, OTHER)
    os.chown(workspace, OWNER, OWNER)
    control.checkpoint(workspace, "v1")
    return workspace


@pytest.mark.parametrize("command", ["checkpoint", "restore", "delete", "clone"])
def test_only_the_owner_and_root_control(owned: Path, command: str) -> None:
    name = {"checkpoint": "v2", "clone": f"{owned.name}-copy"}.get(command, "v1")
    call = getattr(control, command)
    assert _as(OTHER, lambda: call("theirs", name)) == errno.EACCES
    xattr = f"user.artfs.{command}"
    assert _as(OTHER, lambda: os.setxattr("theirs", xattr, name.encode())) == errno.EACCES
    assert _as(OTHER, Path(".checkpoints/v3").mkdir) == errno.EACCES
    assert _as(OWNER, lambda: call(".", name)) == 0


@pytest.mark.usefixtures("owned")
def test_other_xattrs_are_the_files_owner() -> None:
    assert _as(OTHER, lambda: os.setxattr("theirs", "user.mine", b"1")) == 0
