"""Every call that takes a path, as one table, so that each rule about paths is tested on all of them."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.posix.calls import RENAME_NOREPLACE, renameat2, utimensat

OTHER = "other"
"""A regular file that `prepare` makes: the second operand of link and rename."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call on one path; `creates`: its last component must not exist yet."""

    name: str
    run: Callable[[str], object]
    creates: bool = False
    changes_parent: bool = False
    follows: bool = True
    wants: str = "file"


def _open(flags: int) -> Callable[[str], None]:
    def call(path: str) -> None:
        os.close(os.open(path, flags, 0o644))

    return call


def _chdir(path: str) -> None:
    before = os.open(".", os.O_PATH)
    try:
        os.chdir(path)
    finally:
        os.fchdir(before)
        os.close(before)


def _maker(name: str, run: Callable[[str], object]) -> Call:
    return Call(name, run, creates=True, changes_parent=True, follows=False)


def _remover(name: str, run: Callable[[str], object], wants: str = "file") -> Call:
    return Call(name, run, changes_parent=True, follows=False, wants=wants)


CALLS = [
    Call("stat", os.stat),
    Call("lstat", os.lstat, follows=False),
    Call("open", _open(os.O_RDONLY)),
    Call("open-write", _open(os.O_WRONLY)),
    Call("open-path", _open(os.O_PATH)),
    Call("open-directory", _open(os.O_RDONLY | os.O_DIRECTORY), wants="dir"),
    Call("chmod", lambda path: os.chmod(path, 0o600)),
    Call("chown", lambda path: os.chown(path, os.geteuid(), os.getegid())),
    Call("lchown", lambda path: os.lchown(path, os.geteuid(), os.getegid()), follows=False),
    Call("truncate", lambda path: os.truncate(path, 10)),
    Call("utimensat", lambda path: utimensat(path, (1, 2), (3, 4))),
    Call("lutimes", lambda path: utimensat(path, (1, 2), (3, 4), follow=False), follows=False),
    Call("access", lambda path: os.stat(path) and os.access(path, os.R_OK)),
    Call("statvfs", os.statvfs),
    Call("listxattr", os.listxattr),
    Call("setxattr", lambda path: os.setxattr(path, "user.k", b"v")),
    Call("chdir", _chdir, wants="dir"),
    Call("listdir", os.listdir, wants="dir"),
    _maker("create", _open(os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    _maker("mkdir", os.mkdir),
    _maker("mkfifo", os.mkfifo),
    _maker("mknod", lambda path: os.mknod(path, stat.S_IFREG | 0o644)),
    _maker("mksock", lambda path: os.mknod(path, stat.S_IFSOCK | 0o644)),
    _maker("symlink", lambda path: os.symlink("target", path)),
    _maker("link-to", lambda path: os.link(OTHER, path)),
    _maker("rename-noreplace", lambda path: renameat2(OTHER, path, RENAME_NOREPLACE)),
    Call("link-from", lambda path: os.link(path, "made", follow_symlinks=False), follows=False),
    Call("rename-to", lambda path: os.rename(OTHER, path), changes_parent=True, follows=False, wants="none"),
    _remover("rename-from", lambda path: os.rename(path, "moved")),
    _remover("unlink", os.unlink),
    _remover("rmdir", os.rmdir, wants="dir"),
    Call("readlink", os.readlink, follows=False, wants="symlink"),
]

EXISTING = [call for call in CALLS if not call.creates and call.wants != "none"]
"""Calls whose last component must exist."""
CREATING = [call for call in CALLS if call.creates]
FOLLOWING = [call for call in CALLS if call.follows]
PARENT_CHANGING = [call for call in CALLS if call.changes_parent]


def prepare() -> None:
    """Make what `link-to` and `rename-to` need, in the working directory."""
    Path(OTHER).touch()


def make(kind: str, path: str) -> None:
    """Make a node: file, dir, symlink (dangling), fifo, socket."""
    if kind == "file":
        Path(path).touch()
    elif kind == "dir":
        os.mkdir(path)
    elif kind == "symlink":
        os.symlink("nowhere", path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o644)
    else:
        assert kind == "none", kind


def ids(call: Call) -> str:
    return call.name
