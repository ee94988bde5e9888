"""A small file tree in memory: *the* definition of correct that the real one is compared with.

Plain Python objects, no sharing, no laziness: a checkpoint, a restore and a clone are a deep copy. Calls raise
`OSError` and have changed nothing then. Callers are expected to have passed the kernel's own checks (no `.`, no `/`
in names, permissions).

A file's content is `data`, and `kinds` says for each byte of it, and beyond its end, what lies there: a hole, bytes
that were written, or zeros that were allocated.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISGID, S_ISUID, S_IXGRP

NAME_MAX, PATH_MAX = 255, 4096
NOREPLACE, EXCHANGE = 1, 2
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
XATTR_CREATE, XATTR_REPLACE = 1, 2
HOLE, WRITTEN, ALLOCATED = 0, 1, 2
CAPABILITY = b"security.capability"


_idents = count()


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


class File:
    """An inode of any type; `kids` is None but for directories, `mtime` (ns) None unless it was set by a call.
    `ident` is kept by copies, so that the inode is found again in another version of its tree."""

    def __init__(self, mode: int, uid: int, gid: int) -> None:
        self.ident = next(_idents)
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.nlink = 2 if S_IFMT(mode) == S_IFDIR else 1
        self.data = bytearray()
        self.kinds = bytearray()
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.kids: dict[bytes, File] | None = {} if S_IFMT(mode) == S_IFDIR else None
        self.parent: File | None = None
        self.mtime: int | None = None

    @property
    def regular(self) -> bool:
        return S_IFMT(self.mode) == S_IFREG

    @property
    def allocated(self) -> int:
        """Bytes that are no hole."""
        return len(self.kinds) - self.kinds.count(HOLE)


class Reference:
    def __init__(self, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        self.root = File(S_IFDIR | mode, uid, gid)

    def copy(self) -> Reference:
        """What a checkpoint keeps: everything that has a name, nothing else."""
        return deepcopy(self)

    def walk(self) -> Iterator[tuple[bytes, File]]:
        """(path, inode) of everything, the root as b"", in order of paths."""
        todo = [(b"", self.root)]
        while todo:
            path, file = todo.pop()
            yield path, file
            kids = file.kids or {}
            todo += [(path + b"/" + name, kids[name]) for name in sorted(kids, reverse=True)]

    def usage(self) -> tuple[int, int]:
        """(bytes, inodes) of everything that has a name."""
        files = {id(file): file for _, file in self.walk()}
        return sum(file.allocated for file in files.values()), len(files)

    # names
    def lookup(self, folder: File, name: bytes) -> File | None:
        if folder.kids is None:
            fail(errno.ENOTDIR)
        assert folder.kids is not None
        if name not in folder.kids and len(name) > NAME_MAX:
            fail(errno.ENAMETOOLONG)
        return folder.kids.get(name)

    def _vacant(self, folder: File, name: bytes) -> dict[bytes, File]:
        if folder is self.root and name == b".checkpoints":
            fail(errno.EPERM)
        if self.lookup(folder, name) is not None:
            fail(errno.EEXIST)
        if folder.nlink == 0:
            fail(errno.ENOENT)
        assert folder.kids is not None
        return folder.kids

    def make(self, folder: File, name: bytes, mode: int, uid: int, gid: int, target: bytes = b"") -> File:
        if S_IFMT(mode) == S_IFLNK and len(target) >= PATH_MAX:
            fail(errno.ENAMETOOLONG)
        if S_IFMT(mode) == S_IFLNK and not target:
            fail(errno.ENOENT)
        kids = self._vacant(folder, name)
        directory = S_IFMT(mode) == S_IFDIR
        if folder.mode & S_ISGID:
            gid = folder.gid
            mode |= S_ISGID if directory else 0
        file = kids[name] = File(mode, uid, gid)
        file.target = target
        folder.mtime = None
        if directory:
            file.parent = folder
            folder.nlink += 1
        return file

    def make_unnamed(self, folder: File, mode: int, uid: int, gid: int) -> File:
        if folder.kids is None:
            fail(errno.ENOTDIR)
        file = File(S_IFREG | mode, uid, folder.gid if folder.mode & S_ISGID else gid)
        file.nlink = 0
        return file

    def link(self, file: File, folder: File, name: bytes) -> None:
        if file.kids is not None:
            fail(errno.EPERM)
        self._vacant(folder, name)[name] = file
        file.nlink += 1
        folder.mtime = None

    def replace(self, file: File, folder: File, name: bytes) -> None:
        """Give a file without a name this one, in place of the file that has it."""
        other = self.lookup(folder, name)
        if other is None:
            self._vacant(folder, name)
        elif other.kids is not None:
            fail(errno.EISDIR)
        else:
            self._remove(folder, name, other)
        assert folder.kids is not None
        folder.kids[name] = file
        file.nlink = 1
        folder.mtime = None

    def unlink(self, folder: File, name: bytes) -> None:
        file = self.lookup(folder, name)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "")
        if file.kids is not None:
            fail(errno.EISDIR)
        self._remove(folder, name, file)

    def rmdir(self, folder: File, name: bytes) -> None:
        file = self.lookup(folder, name)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "")
        if file.kids is None:
            fail(errno.ENOTDIR)
        if file.kids:
            fail(errno.ENOTEMPTY)
        self._remove(folder, name, file)
        file.mtime = None

    def _remove(self, folder: File, name: bytes, file: File) -> None:
        assert folder.kids is not None
        del folder.kids[name]
        folder.mtime = None
        if file.kids is None:
            file.nlink -= 1
        else:
            file.nlink = 0
            folder.nlink -= 1

    def rename(self, folder: File, name: bytes, target: File, new: bytes, flags: int = 0) -> None:
        if flags not in (0, NOREPLACE, EXCHANGE):
            fail(errno.EINVAL)
        file = self.lookup(folder, name)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "")
        other = self.lookup(target, new)
        if target is self.root and new == b".checkpoints":
            fail(errno.EPERM)
        if target.nlink == 0 or (flags == EXCHANGE and other is None):
            fail(errno.ENOENT)
        if flags == NOREPLACE and other is not None:
            fail(errno.EEXIST)
        if self._inside(target, file) or (flags == EXCHANGE and other is not None and self._inside(folder, other)):
            fail(errno.EINVAL)
        if other is file:
            return
        assert folder.kids is not None and target.kids is not None
        if other is not None and flags != EXCHANGE:
            if other.kids is None and file.kids is not None:
                fail(errno.ENOTDIR)
            if other.kids is not None and file.kids is None:
                fail(errno.EISDIR)
            if other.kids:
                fail(errno.ENOTEMPTY)
            self._remove(target, new, other)
        del folder.kids[name]
        if flags == EXCHANGE:
            assert other is not None
            folder.kids[name] = other
            self._moved(other, target, folder)
        target.kids[new] = file
        self._moved(file, folder, target)

    def _inside(self, folder: File, file: File) -> bool:
        at: File | None = folder
        while at is not None:
            if at is file:
                return True
            at = at.parent
        return False

    def _moved(self, file: File, folder: File, target: File) -> None:
        folder.mtime = target.mtime = None
        if file.kids is not None:
            folder.nlink -= 1
            target.nlink += 1
            file.parent = target

    # bytes
    def _require_file(self, file: File) -> None:
        if file.kids is not None:
            fail(errno.EISDIR)
        if not file.regular:
            fail(errno.EINVAL)

    def _kill(self, file: File) -> None:
        file.mode &= ~S_ISUID
        if file.mode & S_IXGRP:
            file.mode &= ~S_ISGID
        file.xattrs.pop(CAPABILITY, None)

    def _mark(self, file: File, start: int, end: int, kind: int) -> None:
        if len(file.kinds) < end:
            file.kinds.extend(bytes(end - len(file.kinds)))
        file.kinds[start:end] = bytes((kind,)) * (end - start)

    def write(self, file: File, offset: int, data: bytes, *, kill: bool = False) -> None:
        self._require_file(file)
        if not data:
            return
        end = offset + len(data)
        self._grow(file, end)
        file.data[offset:end] = data
        self._mark(file, offset, end, WRITTEN)
        file.mtime = None
        if kill:
            self._kill(file)

    def _grow(self, file: File, size: int) -> None:
        if size > len(file.data):
            file.data.extend(bytes(size - len(file.data)))

    def truncate(self, file: File, size: int, *, kill: bool = False) -> None:
        self._require_file(file)
        if size < len(file.data):
            del file.data[size:], file.kinds[size:]
        self._grow(file, size)
        file.mtime = None
        if kill:
            self._kill(file)

    def fallocate(self, file: File, mode: int, offset: int, length: int, *, kill: bool = False) -> None:
        if mode not in (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
            fail(errno.EOPNOTSUPP)
        self._require_file(file)
        end = offset + length
        if not mode & KEEP_SIZE:
            self._grow(file, end)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            stop = min(end, len(file.data))
            file.data[offset:stop] = bytes(max(stop - offset, 0))
            self._mark(file, offset, end, HOLE if mode & PUNCH_HOLE else ALLOCATED)
        else:
            if len(file.kinds) < end:
                file.kinds.extend(bytes(end - len(file.kinds)))
            part = file.kinds[offset:end]
            file.kinds[offset:end] = part.replace(bytes((HOLE,)), bytes((ALLOCATED,)))
        file.mtime = None
        if kill:
            self._kill(file)

    def copy_range(
        self, source: File, start: int, target: File, offset: int, length: int, *, kill: bool = False
    ) -> int:
        if not source.regular or not target.regular:
            fail(errno.EISDIR if source.kids is not None or target.kids is not None else errno.EINVAL)
        length = min(length, max(len(source.data) - start, 0))
        if not length:
            return 0
        if source is target and start < offset + length and offset < start + length:
            fail(errno.EINVAL)
        data = source.data[start : start + length]
        kinds = source.kinds[start : start + length].ljust(length, b"\0")
        self._grow(target, offset + length)
        target.data[offset : offset + length] = data
        self._mark(target, offset, offset + length, HOLE)
        # Zeros that are only allocated are a hole in the copy.
        target.kinds[offset : offset + length] = kinds.replace(bytes((ALLOCATED,)), bytes((HOLE,)))
        target.mtime = None
        if kill:
            self._kill(target)
        return length

    def seek(self, file: File, offset: int, whence: int) -> int:
        if not 0 <= offset < len(file.data):
            fail(errno.ENXIO)
        kinds = file.kinds.ljust(len(file.data), b"\0")[: len(file.data)].replace(b"\2", b"\0")
        found = kinds.find(WRITTEN if whence == os.SEEK_DATA else HOLE, offset)
        if found < 0 and whence == os.SEEK_DATA:
            fail(errno.ENXIO)
        return found if found >= 0 else len(file.data)

    # attributes
    def setattr(
        self,
        file: File,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        mtime: int | None = None,
    ) -> None:
        if mode is not None:
            file.mode = S_IFMT(file.mode) | mode
        file.uid = file.uid if uid is None else uid
        file.gid = file.gid if gid is None else gid
        owner = uid is not None or gid is not None
        nothing = (mode, uid, gid, mtime) == (None,) * 4  # which chown(2) of neither is
        if mode is None and ((owner and file.kids is None) or (nothing and file.regular)):
            self._kill(file)
        if mtime is not None:
            file.mtime = mtime

    def setxattr(self, file: File, name: bytes, value: bytes, flags: int = 0) -> None:
        if not name.startswith((b"user.", b"trusted.", b"security.")):
            fail(errno.EOPNOTSUPP)
        if flags & XATTR_CREATE and name in file.xattrs:
            fail(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in file.xattrs:
            fail(errno.ENODATA)
        file.xattrs[name] = value

    def removexattr(self, file: File, name: bytes) -> None:
        if name not in file.xattrs:
            fail(errno.EOPNOTSUPP if name.startswith(b"system.") else errno.ENODATA)
        del file.xattrs[name]
