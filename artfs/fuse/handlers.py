"""pyfuse3's way in: the same functions as native dispatch, behind its async handlers.

Used where the extension is not there, or is switched off.  Slower, equally right; what pyfuse3 has no handler for
(ioctl, lseek, fallocate, copy_file_range, O_TMPFILE) is missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from artfs.errors import FsError
from artfs.fuse import wire
from artfs.fuse.requests import Requests
from artfs.volume import attributes as A
from artfs.volume.node import Node
from artfs.volume.waiting import run

log = logging.getLogger(__name__)
Ask = Callable[..., Any]


class Handlers(pyfuse3.Operations):
    """`ask(opcode name, caller, *args)` runs one of `Requests`' functions for a caller (uid, gid, pid)."""

    supports_dot_lookup = False
    enable_acl = False

    def __init__(self, requests: Requests, ask: Ask, writeback: bool) -> None:
        super().__init__()
        self.requests = requests
        self.enable_writeback_cache = writeback
        self._ask = ask
        self._folders: dict[int, tuple[int, RequestContext]] = {}
        self._handles = 0

    async def ask(self, name: str, ctx: RequestContext | None, *args: Any) -> Any:
        caller = (ctx.uid, ctx.gid, ctx.pid) if ctx is not None else (0, 0, 0)
        try:
            return await self._ask(name, caller, *args)
        except FsError as error:
            raise FUSEError(error.errno) from None
        except Exception as error:
            log.exception("%s failed", name)
            raise FUSEError(5) from error

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return _entry(await self.ask("lookup", ctx, parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            await run(self.requests.forget, ino, count)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return _entry(
            bytes(wire.ENTRY_HEAD) + (await self.ask("getattr", ctx, inode))[wire.ATTR_HEAD.size :],
            self.requests.valid,
        )

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        valid = (
            fields.update_mode * A.MODE
            | fields.update_uid * A.UID
            | fields.update_gid * A.GID
            | fields.update_size * A.SIZE
            | fields.update_atime * A.ATIME
            | fields.update_mtime * A.MTIME
            | fields.update_ctime * A.CTIME
        )
        reply = await self.ask(
            "setattr",
            ctx,
            inode,
            valid,
            attr.st_size,
            attr.st_atime_ns,
            attr.st_mtime_ns,
            attr.st_ctime_ns,
            attr.st_mode,
            attr.st_uid,
            attr.st_gid,
        )
        return _entry(bytes(wire.ENTRY_HEAD) + reply[wire.ATTR_HEAD.size :], self.requests.valid)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return bytes(await self.ask("readlink", ctx, inode))

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return _entry(await self.ask("mknod", ctx, parent_inode, name, mode, rdev, ctx.uid, ctx.gid))

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return _entry(await self.ask("mkdir", ctx, parent_inode, name, mode, ctx.uid, ctx.gid))

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return _entry(await self.ask("symlink", ctx, parent_inode, name, target, ctx.uid, ctx.gid))

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.ask("unlink", ctx, parent_inode, name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.ask("rmdir", ctx, parent_inode, name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self.ask("rename", ctx, parent_inode_old, name_old, parent_inode_new, name_new, flags)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return _entry(await self.ask("link", ctx, new_parent_inode, new_name, inode))

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        reply = await self.ask("create", ctx, parent_inode, name, mode, flags, ctx.uid, ctx.gid)
        entry = _entry(reply[: wire.ENTRY.size])
        return self._info(entry.st_ino), entry

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        await self.ask("open", ctx, inode, flags)
        return self._info(inode)

    def _info(self, ino: int) -> FileInfo:
        flags = wire.OPEN.unpack(self.requests.opened(self.requests.node(ino)))[1]
        return FileInfo(
            fh=ino,
            keep_cache=bool(flags & wire.FOPEN_KEEP_CACHE),
            direct_io=bool(flags & wire.FOPEN_DIRECT_IO),
        )

    async def read(self, fh: int, off: int, size: int) -> bytes:
        found = await self.ask("read", None, fh, off, size)
        if isinstance(found, tuple):
            return b"".join(
                os.pread(found[i], found[i + 2], found[i + 1]) if found[i] >= 0 else bytes(found[i + 2])
                for i in range(0, len(found), 3)
            )
        return bytes(found)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        flags = 1 if self.enable_writeback_cache else 0
        return int(await self.ask("write", None, fh, off, buf, flags))

    async def flush(self, fh: int) -> None:
        await self.ask("close_file", None, fh)

    async def release(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        if await self.ask("fsync", None, fh, 0):
            await self.ask("sync", None)

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        await self.ask("opendir", ctx, inode, 0)
        self._handles += 1  # who lists a directory is whoever has opened it: readdir does not say
        self._folders[self._handles] = inode, ctx
        return self._handles

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        node: Node
        inode, ctx = self._folders[fh]
        for name, cookie, node in await self.ask("entries", ctx, inode, start_id):
            if not pyfuse3.readdir_reply(token, name, _entry(self.requests.peek(node)), cookie):
                return
            self.requests.enter(node)

    async def releasedir(self, fh: int) -> None:
        del self._folders[fh]

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.ask("sync", None)

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        blocks, free, available, files, ffree, bsize, namemax, frsize, *_ = wire.STATFS.unpack(
            await self.ask("statfs", ctx, 1)
        )
        found = pyfuse3.StatvfsData()
        found.f_blocks, found.f_bfree, found.f_bavail = blocks, free, available
        found.f_files, found.f_ffree, found.f_favail = files, ffree, ffree
        found.f_bsize, found.f_frsize, found.f_namemax = bsize, frsize, namemax
        return found

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return bytes(await self.ask("getxattr", ctx, inode, name))

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return [name for name in (await self.ask("listxattr", ctx, inode)).split(b"\0") if name]

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self.ask("setxattr", ctx, inode, name, value, 0)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.ask("removexattr", ctx, inode, name)


def _entry(reply: bytes, valid: int | None = None) -> EntryAttributes:
    """pyfuse3's form of an encoded fuse_entry_out."""
    (
        nodeid,
        generation,
        entry_valid,
        attr_valid,
        _,
        _,
        ino,
        size,
        blocks,
        atime,
        mtime,
        ctime,
        an,
        mn,
        cn,
        mode,
        nlink,
        uid,
        gid,
        rdev,
        blksize,
        _,
    ) = wire.ENTRY.unpack(reply[: wire.ENTRY.size])
    found = EntryAttributes()
    found.st_ino = nodeid if valid is None else ino
    found.generation = generation
    found.entry_timeout = entry_valid
    found.attr_timeout = attr_valid if valid is None else valid
    found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev = mode, nlink, uid, gid, rdev
    found.st_size, found.st_blocks, found.st_blksize = size, blocks, blksize
    found.st_atime_ns = atime * 10**9 + an
    found.st_mtime_ns = mtime * 10**9 + mn
    found.st_ctime_ns = ctime * 10**9 + cn
    return found
