"""Making nodes: mode and umask, owner and group, stamps of node and parent, link counts, types."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.actors import ALICE, BOB, MEMBER, Umask, User, in_child, result_as
from tests.posix.calls import DirStream, result
from tests.posix.stamps import clock, moves

pytestmark = pytest.mark.usefixtures("mnt")

Maker = Callable[[str, int], None]


def _create(path: str, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def _node(kind: int, device: int = 0) -> Maker:
    return lambda path, mode: os.mknod(path, kind | mode, device)


MAKERS: dict[str, tuple[Maker, int]] = {
    "open": (_create, stat.S_IFREG),
    "mkdir": (os.mkdir, stat.S_IFDIR),
    "mkfifo": (os.mkfifo, stat.S_IFIFO),
    "mknod-file": (_node(stat.S_IFREG), stat.S_IFREG),
    "mknod-fifo": (_node(stat.S_IFIFO), stat.S_IFIFO),
    "mknod-socket": (_node(stat.S_IFSOCK), stat.S_IFSOCK),
    "mknod-char": (_node(stat.S_IFCHR, os.makedev(1, 3)), stat.S_IFCHR),
    "mknod-block": (_node(stat.S_IFBLK, os.makedev(255, 70000)), stat.S_IFBLK),
}
UNPRIVILEGED = ["open", "mkdir", "mkfifo", "mknod-file", "mknod-fifo", "mknod-socket"]
DT = {
    stat.S_IFREG: 8,
    stat.S_IFDIR: 4,
    stat.S_IFIFO: 1,
    stat.S_IFSOCK: 12,
    stat.S_IFCHR: 2,
    stat.S_IFBLK: 6,
    stat.S_IFLNK: 10,
}


@pytest.mark.parametrize("maker", MAKERS)
def test_type_mode_and_umask(maker: str) -> None:
    make, kind = MAKERS[maker]
    for number, (mask, asked, got) in enumerate(
        [
            (0, 0o755, 0o755),
            (0, 0o151, 0o151),
            (0o077, 0o151, 0o100),
            (0o070, 0o345, 0o305),
            (0o501, 0o345, 0o244),
            (0o777, 0o777, 0),
        ]
    ):
        name = f"n{number}"
        with Umask(mask):
            make(name, asked)
        made = os.lstat(name)
        assert (stat.S_IFMT(made.st_mode), oct(stat.S_IMODE(made.st_mode))) == (kind, oct(got))
        assert made.st_nlink == (2 if kind == stat.S_IFDIR else 1) or _has_flat_link_counts(made)
        if kind != stat.S_IFDIR:
            assert (made.st_size, made.st_blocks) == (0, 0)
    with DirStream(".") as stream:
        types = {name: d_type for name, _, d_type in stream if name not in (b".", b"..")}
    assert set(types.values()) <= {DT[kind]}
    if maker == "mknod-char":
        assert os.lstat("n0").st_rdev == os.makedev(1, 3)
    if maker == "mknod-block":
        assert os.lstat("n0").st_rdev == os.makedev(255, 70000)


def _has_flat_link_counts(made: os.stat_result) -> bool:
    """btrfs and some others give every directory one link; the root of the test tells which."""
    return stat.S_ISDIR(made.st_mode) and os.stat(".").st_nlink == 1


@pytest.mark.parametrize("maker", UNPRIVILEGED)
def test_owner_is_the_caller_and_setgid_inherits(maker: str) -> None:
    make, _ = MAKERS[maker]
    in_child(lambda: make("plain", 0o755), user=ALICE)
    assert (os.lstat("plain").st_uid, os.lstat("plain").st_gid) == (ALICE.uid, ALICE.gid)
    os.mkdir("shared")
    os.chown("shared", BOB.uid, BOB.gid)
    os.chmod("shared", 0o2777)
    in_child(lambda: make("shared/n", 0o755), user=ALICE)
    made = os.lstat("shared/n")
    assert (made.st_uid, made.st_gid) == (ALICE.uid, BOB.gid)
    assert bool(made.st_mode & stat.S_ISGID) == (maker == "mkdir")
    in_child(lambda: os.symlink("x", "shared/l"), user=ALICE)
    assert os.lstat("shared/l").st_gid == BOB.gid


def test_setgid_bit_is_dropped_for_a_group_that_is_not_the_callers() -> None:
    os.mkdir("shared")
    os.chown("shared", BOB.uid, BOB.gid)
    os.chmod("shared", 0o2777)
    in_child(lambda: _create("shared/f", 0o2755), user=ALICE)
    assert stat.S_IMODE(os.stat("shared/f").st_mode) == 0o755


@pytest.mark.parametrize("maker", [*MAKERS, "symlink", "link"])
def test_stamps(maker: str) -> None:
    make = MAKERS[maker][0] if maker in MAKERS else None
    Path("old").touch()
    os.mkdir("d")
    with moves({"d": "mtime ctime", ".": "", "old": "ctime" if maker == "link" else ""}), clock() as bounds:
        if make is not None:
            make("d/n", 0o755)
        elif maker == "symlink":
            os.symlink("x", "d/n")
        else:
            os.link("old", "d/n")
    made, parent = os.lstat("d/n"), os.stat("d")
    stamps = [made.st_ctime_ns, parent.st_mtime_ns, parent.st_ctime_ns]
    if maker != "link":
        stamps += [made.st_atime_ns, made.st_mtime_ns]
    assert all(bounds[0] <= stamp <= bounds[1] for stamp in stamps)
    assert parent.st_mtime_ns == parent.st_ctime_ns


def test_device_nodes_are_for_root() -> None:
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        assert result_as(ALICE, os.mknod, "dev", kind | 0o644, os.makedev(1, 3)) == "EPERM"
    assert os.listdir() == []


def test_directory_link_counts_follow_subdirectories() -> None:
    os.mkdir("d")
    base = os.stat("d").st_nlink
    if base == 1:
        return  # flat link counts: nothing to follow
    for number in range(3):
        os.mkdir(f"d/s{number}")
        Path(f"d/f{number}").touch()
        assert os.stat("d").st_nlink == base + number + 1
    os.mkdir("e")
    os.rename("d/s0", "e/s0")
    assert (os.stat("d").st_nlink, os.stat("e").st_nlink) == (base + 2, base + 1)
    os.rename("d/s1", "d/s2")
    assert os.stat("d").st_nlink == base + 1
    os.rmdir("d/s2")
    assert os.stat("d").st_nlink == base


def test_open_of_what_exists() -> None:
    Path("f").write_bytes(b"12345")
    os.mkdir("d")
    os.mkfifo("p")
    os.symlink("f", "l")
    os.symlink("new", "dangling")
    cases: list[tuple[str, int, str]] = [
        ("d", os.O_WRONLY, "EISDIR"),
        ("d", os.O_RDWR, "EISDIR"),
        ("d", os.O_RDONLY | os.O_TRUNC, "EISDIR"),
        ("d", os.O_CREAT, "EISDIR"),
        ("f", os.O_DIRECTORY, "ENOTDIR"),
        ("l", os.O_NOFOLLOW, "ELOOP"),
        ("dangling", os.O_RDONLY, "ENOENT"),
        ("dangling", os.O_CREAT | os.O_EXCL, "EEXIST"),
        ("p", os.O_WRONLY | os.O_NONBLOCK, "ENXIO"),
        ("p", os.O_RDONLY | os.O_NONBLOCK, "ok"),
        ("f", os.O_CREAT | os.O_EXCL, "EEXIST"),
        ("f", os.O_CREAT, "ok"),
    ]
    for path, flags, expected in cases:
        assert result(os.open, path, flags) == expected, (path, oct(flags))
    os.mknod("s", stat.S_IFSOCK | 0o644)
    assert result(os.open, "s", os.O_RDONLY) == "ENXIO"
    assert result(os.open, "dangling", os.O_CREAT | os.O_WRONLY) == "ok"
    assert Path("new").exists()
    assert Path("f").read_bytes() == b"12345"


def test_truncating_open() -> None:
    Path("f").write_bytes(b"a longer text than the next one")
    with moves({"f": "mtime ctime", ".": ""}):
        os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
    assert os.stat("f").st_size == 0
    Path("f").write_bytes(b"short")
    assert Path("f").read_bytes() == b"short"


@pytest.mark.parametrize(
    ("mode", "user", "read", "write"),
    [
        (0o600, ALICE, "ok", "ok"),
        (0o400, ALICE, "ok", "EACCES"),
        (0o066, ALICE, "EACCES", "EACCES"),
        (0o060, MEMBER, "ok", "ok"),
        (0o604, MEMBER, "EACCES", "EACCES"),
        (0o004, BOB, "ok", "EACCES"),
        (0o002, BOB, "EACCES", "ok"),
        (0o770, BOB, "EACCES", "EACCES"),
    ],
)
def test_access_by_owner_group_and_others(mode: int, user: User, read: str, write: str) -> None:
    Path("f").touch()
    os.chown("f", ALICE.uid, ALICE.gid)
    os.chmod("f", mode)
    assert result_as(user, os.open, "f", os.O_RDONLY) == read
    assert result_as(user, os.open, "f", os.O_WRONLY) == write
    assert result_as(user, os.truncate, "f", 0) == write
    both = "ok" if (read, write) == ("ok", "ok") else "EACCES"
    assert result_as(user, os.open, "f", os.O_RDWR) == both
    can = in_child(lambda: (os.access("f", os.R_OK), os.access("f", os.W_OK)), user=user)
    assert can == (read == "ok", write == "ok")


def test_unix_socket_and_fifo_work() -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("sock")
        server.listen()
        client.connect("sock")
        peer, _ = server.accept()
        with peer:
            client.sendall(b"through")
            assert peer.recv(100) == b"through"
    os.mkfifo("fifo")
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("fifo", os.O_WRONLY)
    os.unlink("fifo")
    assert os.write(writer, b"queued") == 6
    assert os.read(reader, 100) == b"queued"
    assert os.fstat(reader).st_nlink == 0
    os.close(reader)
    os.close(writer)
