"""Programs that copy trees: tar, cp -a, rsync -aHAX, mv, rm. The copy must be the tree."""

import os
import stat
from pathlib import Path

import pytest

from tests.posix.trees import Tree, snapshot
from tests.programs.run import need, run


@pytest.fixture
def tree(mnt: Path) -> Path:
    """Directories, sparse, small and empty files, links of both kinds, modes, owners, xattrs, odd names."""
    root = mnt / "tree"
    for number in range(15):
        (root / f"d{number % 4}" / f"sub{number}").mkdir(parents=True)
        (root / f"d{number % 4}" / f"sub{number}" / "f").write_bytes(os.urandom(number * 3000))
    (root / "empty").touch()
    with open(root / "sparse", "wb") as sparse:
        sparse.seek(9_000_000)
        sparse.write(b"end")
        sparse.truncate(12_000_000)
    os.link(root / "empty", root / "d0" / "linked")
    os.link(root / "sparse", root / "d1" / "linked sparse")
    (root / "link").symlink_to("d0/../empty")
    (root / "dangling").symlink_to("/nowhere")
    os.mkfifo(root / "fifo", 0o606)
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (root / "odd \n name é").write_text("odd")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("not UTF-8")
    os.setxattr(root / "empty", "user.k", b"\0value")
    os.setxattr(root / "d2", "user.d", b"of a directory")
    os.chown(root / "d3", 12, 34)
    os.lchown(root / "link", 56, 78)
    os.chmod(root / "empty", 0o4751)
    os.chmod(root / "d2", 0o3775)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number), follow_symlinks=False)
    return root


def _times(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.lstat().st_mtime_ns for path in root.rglob("*")}


def _same(copy: Path, tree: Path, expected: Tree) -> None:
    assert snapshot(copy) == expected
    assert _times(copy) == _times(tree)


def test_cp_archive(mnt: Path, tree: Path) -> None:
    expected = snapshot(tree)
    run("cp", "-a", tree, mnt / "copy")
    _same(mnt / "copy", tree, expected)
    for how in ("--reflink=auto", "--sparse=always", "--sparse=never"):
        run("cp", "-p", how, tree / "sparse", mnt / f"one{how}")
        assert (mnt / f"one{how}").read_bytes() == (tree / "sparse").read_bytes()


def test_tar_out_and_in(mnt: Path, tree: Path) -> None:
    options = ("--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner", "--format=posix")
    run("tar", *options, "-cf", mnt / "t.tar", "-C", tree, ".")
    run("tar", *options, "--compare", "-f", mnt / "t.tar", "-C", tree)
    copy = mnt / "copy"
    copy.mkdir()
    run("tar", *options, "-xpf", mnt / "t.tar", "-C", copy)
    _same(copy, tree, snapshot(tree))


def test_rsync(mnt: Path, tree: Path) -> None:
    need("rsync")
    copy = mnt / "copy"
    command = (
        "rsync",
        "-aHAX",
        "--sparse",
        "--numeric-ids",
        "--delete",
        "--itemize-changes",
        f"{tree}/",
        f"{copy}/",
    )
    run(*command)
    _same(copy, tree, snapshot(tree))
    assert run(*command) == "", "a second run finds something to do"
    (tree / "empty").write_text("no longer")
    (tree / "d0" / "new").write_text("new")
    run("rm", "-rf", tree / "d1")
    run(*command)
    assert snapshot(copy) == snapshot(tree)
    assert run(*command, "--checksum", "--dry-run") == ""


def test_move_and_remove(mnt: Path, tree: Path, memory_directory: Path) -> None:
    expected, times = snapshot(tree), _times(tree)
    run("mv", tree, mnt / "moved")
    assert snapshot(mnt / "moved") == expected
    away = memory_directory / "away"
    run("mv", mnt / "moved", away)
    assert os.listdir(mnt) == []
    run("mv", away, mnt / "back")
    assert _times(mnt / "back") == times
    assert snapshot(mnt / "back").keys() == expected.keys()
    run("rm", "-rf", mnt / "back")
    assert os.listdir(mnt) == []


def test_find_du_and_df(mnt: Path, tree: Path) -> None:
    names = run("find", tree, "-printf", r"%P\0").split("\0")[:-1]
    assert len(names) == len(snapshot(tree))
    assert int(run("du", "-s", "--block-size=1", tree).split()[0]) < 8_000_000, "holes count as used"
    assert int(run("du", "-s", "--apparent-size", "--block-size=1", tree).split()[0]) > 12_000_000
    total, used, free = os.statvfs(mnt).f_blocks, os.statvfs(mnt).f_bfree, os.statvfs(mnt).f_bavail
    assert total >= used >= free > 0
    assert run("df", "--output=target", mnt)
