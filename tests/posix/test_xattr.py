"""Extended attributes: the three name spaces, flags, sizes, limits, who may."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.posix.actors import ALICE, BOB, in_child, result_as
from tests.posix.calls import result, xattr_size
from tests.posix.matrix import make
from tests.posix.stamps import moves

pytestmark = pytest.mark.usefixtures("mnt")


@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize("space", ["user", "trusted", "security"])
def test_life_of_an_attribute(kind: str, space: str) -> None:
    make(kind, "n")
    name = f"{space}.probe"
    assert result(os.getxattr, "n", name) == "ENODATA"
    assert result(os.removexattr, "n", name) == "ENODATA"
    assert result(os.setxattr, "n", name, b"v", os.XATTR_REPLACE) == "ENODATA"
    with moves({"n": "ctime", ".": ""}):
        os.setxattr("n", name, b"one", os.XATTR_CREATE)
    assert result(os.setxattr, "n", name, b"two", os.XATTR_CREATE) == "EEXIST"
    assert os.getxattr("n", name) == b"one"
    with moves({"n": "ctime"}):
        os.setxattr("n", name, b"longer than one", os.XATTR_REPLACE)
    assert os.getxattr("n", name) == b"longer than one"
    os.setxattr("n", name, b"")
    assert os.getxattr("n", name) == b""
    os.setxattr("n", name, bytes(range(256)))
    assert os.getxattr("n", name) == bytes(range(256))
    assert name in os.listxattr("n")
    with moves({"n": "ctime"}):
        os.removexattr("n", name)
    assert name not in os.listxattr("n")
    assert result(os.getxattr, "n", name) == "ENODATA"


def test_sizes_and_buffers() -> None:
    Path("f").touch()
    os.setxattr("f", "user.a", b"12345")
    os.setxattr("f", "user.bb", b"1")
    assert xattr_size("f", "user.a", 0) == 5
    assert xattr_size("f", "user.a", 5) == 5
    assert result(xattr_size, "f", "user.a", 4) == "ERANGE"
    whole = xattr_size("f", None, 0)
    assert whole >= len(b"user.a\0user.bb\0")
    assert xattr_size("f", None, whole) == whole
    assert result(xattr_size, "f", None, whole - 1) == "ERANGE"


def test_limits(lacks: Callable[[str], NoReturn]) -> None:
    Path("f").touch()
    longest = "user." + "n" * 250
    os.setxattr("f", longest, b"v")
    assert os.getxattr("f", longest) == b"v"
    os.removexattr("f", longest)
    assert result(os.setxattr, "f", longest + "n", b"v") == "ERANGE"
    assert result(os.setxattr, "f", "user.", b"v") in ("EINVAL", "EOPNOTSUPP")
    assert result(os.setxattr, "f", "user.big", b"x" * 65_537) == "E2BIG"
    assert result(os.getxattr, "f", "user.big") == "ENODATA"
    outcome = result(os.setxattr, "f", "user.big", b"x" * 65_536)
    if outcome != "ok":
        assert outcome in ("ENOSPC", "E2BIG")
        lacks("an attribute of 64 KiB")
    assert os.getxattr("f", "user.big") == b"x" * 65_536


def test_many_attributes() -> None:
    Path("f").touch()
    names = {f"user.name{number}" for number in range(60)}
    for name in names:
        os.setxattr("f", name, name.encode())
    assert names <= set(os.listxattr("f"))
    for name in sorted(names)[::2]:
        os.removexattr("f", name)
    assert names & set(os.listxattr("f")) == set(sorted(names)[1::2])
    assert all(os.getxattr("f", name) == name.encode() for name in sorted(names)[1::2])


def test_kinds_without_user_attributes() -> None:
    """user.* is for files and directories only; root may put trusted.* on anything."""
    for kind in ("symlink", "fifo", "socket"):
        make(kind, kind)
        assert result(os.setxattr, kind, "user.k", b"v", follow_symlinks=False) == "EPERM"
        os.setxattr(kind, "trusted.k", b"v", follow_symlinks=False)
        assert os.getxattr(kind, "trusted.k", follow_symlinks=False) == b"v"
        assert "trusted.k" in os.listxattr(kind, follow_symlinks=False)


def test_follow_rename_link_and_descriptor() -> None:
    Path("f").touch()
    os.symlink("f", "l")
    os.setxattr("l", "user.k", b"through")
    os.rename("f", "g")
    os.link("g", "h")
    assert os.getxattr("h", "user.k") == b"through"
    fd = os.open("h", os.O_RDONLY)
    os.unlink("g")
    os.unlink("h")
    assert os.getxattr(fd, "user.k") == b"through"
    os.setxattr(fd, "user.k2", b"later")
    assert {"user.k", "user.k2"} <= set(os.listxattr(fd))
    os.close(fd)


def test_permissions() -> None:
    Path("f").touch()
    os.chown("f", ALICE.uid, ALICE.gid)
    os.chmod("f", 0o604)
    os.setxattr("f", "trusted.secret", b"s")
    assert result_as(ALICE, os.setxattr, "f", "user.k", b"v") == "ok"
    assert result_as(BOB, os.getxattr, "f", "user.k") == "ok"
    assert result_as(BOB, os.setxattr, "f", "user.k", b"w") == "EACCES"
    assert result_as(BOB, os.removexattr, "f", "user.k") == "EACCES"
    os.chmod("f", 0o600)
    assert result_as(BOB, os.getxattr, "f", "user.k") == "EACCES"
    assert result_as(ALICE, os.setxattr, "f", "trusted.k", b"v") == "EPERM"
    assert result_as(ALICE, os.getxattr, "f", "trusted.secret") == "ENODATA"
    assert result_as(ALICE, os.setxattr, "f", "security.probe", b"v") == "EPERM"
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    assert result_as(ALICE, os.setxattr, "sticky", "user.k", b"v") == "EPERM"


def test_a_write_drops_the_capabilities_of_a_program() -> None:
    """security.capability goes with the first write, as the setuid bit does; other attributes stay."""
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    Path("f").write_bytes(b"program")
    os.chmod("f", 0o777)
    os.setxattr("f", "security.capability", capability)
    os.setxattr("f", "user.k", b"v")

    def change() -> None:
        fd = os.open("f", os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)

    in_child(change, user=BOB)
    assert result(os.getxattr, "f", "security.capability") == "ENODATA"
    assert os.getxattr("f", "user.k") == b"v"
