"""Random tree operations on two directories at once: the one under test and a model on tmpfs.

Every operation runs in both; the outcomes (ok or the errno's name) must be the same, and so must
the trees in the end: names, types, modes, owners, sizes, link counts, which names share an inode,
xattrs, devices, link targets, content. The size of a directory and the times are not compared.
"""

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.posix.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

Outcome = str
Operation = Callable[[Path], Any]
Tree = dict[str, tuple[Any, ...]]


def _outcome(operation: Operation, root: Path) -> Outcome:
    try:
        value = operation(root)
    except OSError as failure:
        return errno.errorcode[failure.errno or 0]
    return f"ok {value}"


def snapshot(root: Path) -> Tree:
    """Everything that can be compared below `root`, by relative path."""
    tree: Tree = {}
    first_name: dict[int, str] = {}
    for directory, folders, files in os.walk(root):
        folders.sort()
        for name in ("", *folders, *sorted(files)):
            path = Path(directory, name)
            found = path.lstat()
            relative = str(path.relative_to(root))
            kind = stat.S_IFMT(found.st_mode)
            content: Any = None
            if kind == stat.S_IFREG:
                content = (found.st_size, path.read_bytes())
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                content = found.st_rdev
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if key.startswith(("user.", "trusted."))
            }
            shared = first_name.setdefault(found.st_ino, relative) if kind != stat.S_IFDIR else relative
            tree[relative] = (
                oct(found.st_mode),
                found.st_nlink,
                found.st_uid,
                found.st_gid,
                shared,
                content,
                xattrs,
            )
    return tree


class TreeRun:
    """Random operations on `roots`; names are few, so that operations meet each other.

    They work in `roots/top`: a symlink `../b` of the uppermost level still ends inside of the root.
    """

    def __init__(self, roots: tuple[Path, Path], seed: int) -> None:
        self.roots, self.seed = roots, seed
        self.tops = [root / "top" for root in roots]
        for top in self.tops:
            top.mkdir()
        self.random = random.Random(seed)
        self.history: list[str] = []
        self.kinds: list[Callable[[], tuple[str, Operation]]] = [
            self.create,
            self.create,
            self.write,
            self.write,
            self.mkdir,
            self.mkdir,
            self.mknod,
            self.symlink,
            self.link,
            self.rename,
            self.rename,
            self.rename2,
            self.unlink,
            self.rmdir,
            self.chmod,
            self.chown,
            self.truncate,
            self.xattr,
            self.listing,
        ]

    def run(self, steps: int) -> Tree:
        """Returns the tree of both; AssertionError names the seed and the last operations."""
        for _ in range(steps):
            text, operation = self.random.choice(self.kinds)()
            outcomes = [_outcome(operation, top) for top in self.tops]
            self.history.append(f"{text}: {outcomes[0]}")
            assert outcomes[0] == outcomes[1], self.report(f"model: {outcomes[1]}")
        trees = [snapshot(root) for root in self.roots]
        for path in sorted(trees[0].keys() | trees[1].keys()):
            got, want = trees[0].get(path), trees[1].get(path)
            assert got == want, self.report(f"{path}: {got!r:.500}, model: {want!r:.500}")
        return trees[0]

    def report(self, message: str) -> str:
        last = "\n  ".join(self.history[-40:])
        return f"{message}\nseed {self.seed}, last operations:\n  {last}"

    def path(self) -> str:
        depth = self.random.choice((1, 1, 2, 2, 3))
        return "/".join(self.random.choice("abcde") for _ in range(depth))

    def create(self) -> tuple[str, Operation]:
        path, mode = self.path(), self.random.choice((0o644, 0o600, 0o755))
        exclusive = os.O_EXCL if self.random.random() < 0.5 else 0
        flags = os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK | exclusive
        return f"create {path} {mode:o}", lambda root: os.close(os.open(root / path, flags, mode))

    def write(self) -> tuple[str, Operation]:
        path, offset = self.path(), self.random.choice((0, 100, 5000, 1_100_000))
        data = self.random.randbytes(self.random.randint(1, 9000))
        flags = os.O_WRONLY | os.O_NONBLOCK | self.random.choice((0, os.O_CREAT, os.O_TRUNC | os.O_CREAT))

        def operation(root: Path) -> int:
            fd = os.open(root / path, flags, 0o640)
            try:
                return os.pwrite(fd, data, offset)
            finally:
                os.close(fd)

        return f"write {path} {offset}+{len(data)} flags {flags:#o}", operation

    def mkdir(self) -> tuple[str, Operation]:
        path, mode = self.path(), self.random.choice((0o755, 0o700, 0o1777))
        return f"mkdir {path}", lambda root: os.mkdir(root / path, mode)

    def mknod(self) -> tuple[str, Operation]:
        path = self.path()
        kind = self.random.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG))
        return f"mknod {path} {kind:#o}", lambda root: os.mknod(root / path, kind | 0o604)

    def symlink(self) -> tuple[str, Operation]:
        path, target = self.path(), self.random.choice(("a", "../b", "missing", "c/d", "."))
        return f"symlink {path} to {target}", lambda root: os.symlink(target, root / path)

    def link(self) -> tuple[str, Operation]:
        old, new = self.path(), self.path()
        return f"link {old} {new}", lambda root: os.link(root / old, root / new, follow_symlinks=False)

    def rename(self) -> tuple[str, Operation]:
        old, new = self.path(), self.path()
        return f"rename {old} {new}", lambda root: os.rename(root / old, root / new)

    def rename2(self) -> tuple[str, Operation]:
        old, new = self.path(), self.path()
        flag = self.random.choice((RENAME_NOREPLACE, RENAME_EXCHANGE))
        return f"renameat2 {old} {new} {flag}", lambda root: renameat2(root / old, root / new, flag)

    def unlink(self) -> tuple[str, Operation]:
        path = self.path()
        return f"unlink {path}", lambda root: os.unlink(root / path)

    def rmdir(self) -> tuple[str, Operation]:
        path = self.path()
        return f"rmdir {path}", lambda root: os.rmdir(root / path)

    def chmod(self) -> tuple[str, Operation]:
        path, mode = self.path(), self.random.choice((0o600, 0o755, 0o4755, 0o2775, 0o1777))
        return f"chmod {path} {mode:o}", lambda root: os.chmod(root / path, mode)

    def chown(self) -> tuple[str, Operation]:
        path, owner, group = self.path(), self.random.choice((-1, 0, 7)), self.random.choice((-1, 0, 8))
        return f"lchown {path} {owner} {group}", lambda root: os.lchown(root / path, owner, group)

    def truncate(self) -> tuple[str, Operation]:
        path, size = self.path(), self.random.choice((0, 1, 4096, 70_000, 2_000_000))
        return f"truncate {path} {size}", lambda root: os.truncate(root / path, size)

    def xattr(self) -> tuple[str, Operation]:
        path, key = self.path(), self.random.choice(("user.a", "user.b", "trusted.c"))
        value = self.random.randbytes(self.random.choice((0, 1, 300)))
        flag = self.random.choice((0, os.XATTR_CREATE, os.XATTR_REPLACE, -1))
        if flag < 0:
            return f"removexattr {path} {key}", lambda root: os.removexattr(root / path, key)
        return f"setxattr {path} {key} {flag}", lambda root: os.setxattr(root / path, key, value, flag)

    def listing(self) -> tuple[str, Operation]:
        path = self.path()
        return f"list {path}", lambda root: sorted(os.listdir(root / path))
