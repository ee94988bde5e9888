"""A file system in a dict behind the native extension alone: what tests/fuse/test_native.py mounts.

`python native_toy.py MOUNT OPTIONS`, OPTIONS as JSON: writeback, open (a function for OPEN and RELEASE
instead of the constants), spin_us, wait_us, burst_us, init_set, init_clear, early (import pyfuse3 before the
extension), without (opcodes that get no function), timeout (of entries and attributes, seconds). It prints
one line when it is mounted. The test steers and asks it through extended attributes of the root or of a file,
`user.toy.*`; every call of a function is kept in `calls` as [name, arguments], bytes written as latin-1 text.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OPTIONS: dict[str, Any] = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
if OPTIONS.get("early"):
    import pyfuse3
from artfs.fuse.native import InitFlag, Opcode, load  # noqa: E402

maybe = load()
assert maybe is not None
native = maybe

import pyfuse3  # noqa: E402
import trio  # noqa: E402

NS = 10**9
TOY = b"user.toy."
TIMEOUT = int(OPTIONS.get("timeout", 0))


class FsError(Exception):
    """An expected refusal."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


class MustWait(Exception):
    """Answered by a task, `seconds` later."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


@dataclass
class Node:
    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    nlink: int = 1
    data: bytearray = field(default_factory=bytearray)
    children: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    times: list[int] = field(default_factory=lambda: [time.time_ns()] * 3)
    segments: list[tuple[int, int, int]] | None = None
    slow: float = 0.0  # seconds that READ, WRITE, FSYNC and SETATTR of it wait
    lookups: int = 0


nodes: dict[int, Node] = {1: Node(1, stat.S_IFDIR | 0o777, nlink=2)}
numbers = itertools.count(2)
calls: list[list[Any]] = []
errors: list[str] = []
sync_errors: list[int] = []
notes: dict[str, Any] = {"interrupts": 0, "forgotten": 0}
scopes: dict[int, trio.CancelScope] = {}
files: dict[str, int] = {}
kept: list[Any] = []


class Now:
    """What the test has set, and what is going on."""

    record = True
    resumed = False  # a function runs again, for a request that waited
    sync_fds: tuple[int, ...] = ()
    nursery: trio.Nursery


def node(ino: int) -> Node:
    try:
        return nodes[ino]
    except KeyError:
        raise FsError(errno.ESTALE) from None


def attr(n: Node) -> bytes:
    size = len(n.data) if n.segments is None else sum(s[2] for s in n.segments)
    sec, ns = zip(*(divmod(t, NS) for t in n.times), strict=True)
    return struct.pack(
        "<QQQqqqIIIIIIIIII",
        n.ino, size, -(-size // 512), *sec, *ns, n.mode, n.nlink, n.uid, n.gid, n.rdev, 4096, 0,
    )  # fmt: skip


def entry(n: Node) -> bytes:
    n.lookups += 1
    return struct.pack("<QQQQII", n.ino, 0, TIMEOUT, TIMEOUT, 0, 0) + attr(n)


def child(ino: int, name: bytes) -> Node:
    try:
        return node(node(ino).children[name])
    except KeyError:
        raise FsError(errno.ENOENT) from None


def make(parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Node:
    if name and name in node(parent).children:
        raise FsError(errno.EEXIST)
    n = Node(next(numbers), mode, uid, gid, rdev, nlink=2 if stat.S_ISDIR(mode) else 1)
    nodes[n.ino] = n
    if name:
        node(parent).children[name] = n.ino
    return n


def drop(parent: int, name: bytes) -> None:
    n = child(parent, name)
    del node(parent).children[name]
    n.nlink -= 1


def wait(n: Node) -> None:
    if n.slow and not Now.resumed:
        raise MustWait(n.slow)


def lookup(ino: int, name: bytes) -> bytes:
    return entry(child(ino, name))


def forget(ino: int, n: int) -> None:
    wait(node(ino))
    notes["forgotten"] += 1
    nodes[ino].lookups -= n
    if not nodes[ino].lookups and not nodes[ino].nlink:
        del nodes[ino]


def getattr_(ino: int) -> bytes:
    return struct.pack("<QII", TIMEOUT, 0, 0) + attr(node(ino))


def setattr_(
    ino: int, valid: int, size: int, atime: int, mtime: int, ctime: int, mode: int, uid: int, gid: int
) -> bytes:
    n = node(ino)
    wait(n)
    if valid & 1:
        n.mode = mode
    if valid & 2:
        n.uid = uid
    if valid & 4:
        n.gid = gid
    if valid & 8:
        n.data[size:] = bytes(max(0, size - len(n.data)))
    if valid & 16:
        n.times[0] = time.time_ns() if valid & 128 else atime
    if valid & 32:
        n.times[1] = time.time_ns() if valid & 256 else mtime
    if valid & 1024:
        n.times[2] = ctime
    return getattr_(ino)


def readlink(ino: int) -> bytes:
    return bytes(node(ino).data)


def symlink(ino: int, name: bytes, target: bytes, uid: int, gid: int) -> bytes:
    n = make(ino, name, stat.S_IFLNK | 0o777, uid, gid)
    n.data[:] = target
    return entry(n)


def mknod(ino: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> bytes:
    return entry(make(ino, name, mode, uid, gid, rdev))


def mkdir(ino: int, name: bytes, mode: int, uid: int, gid: int) -> bytes:
    return entry(make(ino, name, stat.S_IFDIR | mode, uid, gid))


def unlink(ino: int, name: bytes) -> None:
    drop(ino, name)


def rmdir(ino: int, name: bytes) -> int:
    if child(ino, name).children:
        return -errno.ENOTEMPTY
    drop(ino, name)
    return 0


def rename(ino: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
    source, target = node(ino).children, node(newparent).children
    if flags & 1 and newname in target:
        raise FsError(errno.EEXIST)
    if flags & 2:
        source[name], target[newname] = target[newname], source[name]
    else:
        target[newname] = source.pop(name)


def link(parent: int, name: bytes, ino: int) -> bytes:
    n = node(ino)
    node(parent).children[name] = ino
    n.nlink += 1
    return entry(n)


def open_(ino: int, flags: int) -> bytes:
    return struct.pack("<QII", 7, 0, 0)


def release(ino: int) -> None:
    pass


def create(caller: Any, ino: int, name: bytes, mode: int, flags: int, uid: int, gid: int) -> bytes:
    return entry(make(ino, name, mode, uid, gid)) + struct.pack("<QII", 0, 0, 0)


def tmpfile(ino: int, name: bytes, mode: int, flags: int, uid: int, gid: int) -> bytes:
    n = make(ino, b"", mode, uid, gid)
    n.nlink = 0
    return entry(n) + struct.pack("<QII", 0, 0, 0)


def read(ino: int, off: int, size: int) -> bytes | memoryview | tuple[int, ...]:
    n = node(ino)
    wait(n)
    if n.segments is None:
        return memoryview(bytes(n.data[off : off + size]))
    found: list[int] = []
    for fd, pos, length in n.segments:
        skip = min(off, length)
        take = min(size, length - skip)
        if take:
            found += (fd, pos + skip, take)
        off, size = off - skip, size - take
    return tuple(found)


def write(ino: int, off: int, data: memoryview | bytes, flags: int) -> int:
    n = node(ino)
    if "keep" in notes:
        kept.append(data[1:])
    wait(n)
    n.data[len(n.data) :] = bytes(max(0, off - len(n.data)))
    n.data[off : off + len(data)] = data
    return len(data)


def statfs(ino: int) -> bytes:
    return struct.pack("<QQQQQIIIIIIIIII", 1000, 900, 800, 70, 60, 4096, 255, 4096, 0, *[0] * 6)


def fsync(ino: int, datasync: int) -> list[int]:
    wait(node(ino))
    return list(Now.sync_fds) if ino != 1 else []


def steer(n: Node, command: str, value: str) -> int | None:
    """What a test asks for by setting `user.toy.<command>`."""
    match command:
        case "clear":
            calls.clear()
            errors.clear()
        case "record":
            Now.record = value == "1"
        case "slow":
            n.slow = float(value)
        case "open":
            files[value] = os.open(value, os.O_RDWR)
        case "segments":
            n.segments = [(files[f] if f else -1, p, k) for f, p, k in json.loads(value)]
        case "sync":
            Now.sync_fds = tuple(files[f] if f else 999 for f in json.loads(value))
        case "clear_sync":
            native.sync_error(clear=True)
        case "reset":
            native.stats(reset=True)
        case "keep":
            notes["keep"] = True
        case "grow":  # behind the kernel's back
            ino, more = json.loads(value)
            nodes[ino].data += bytes(more)
        case "notify":
            Now.nursery.start_soon(notify, json.loads(value))
        case "quit":
            pyfuse3.terminate()
        case "fail":
            raise RuntimeError("a bug")
        case "strange":
            return 12345
        case "huge":
            return -100000
        case _:
            raise FsError(errno.EINVAL)
    return None


async def notify(call: list[Any]) -> None:
    f = getattr(native, call[0])
    args = [a.encode() if isinstance(a, str) else a for a in call[1:]]
    notes["notified"] = await trio.to_thread.run_sync(f, *args)


def setxattr(ino: int, name: bytes, value: bytes, flags: int) -> int | None:
    n = node(ino)
    if name.startswith(TOY):
        return steer(n, name.removeprefix(TOY).decode(), value.decode())
    n.xattrs[name] = value
    return None


def getxattr(ino: int, name: bytes) -> bytes | int:
    n = node(ino)
    if name == TOY + b"state":
        state = {
            "calls": calls, "errors": errors, "sync_errors": sync_errors, "jobs": native.jobs(),
            "pending": native.pending(), "sync_error": native.sync_error(), "flags": native.init_flags(),
            "init": native.init_request().hex(), "stats": native.stats(), **notes,
        }  # fmt: skip
        return json.dumps(state).encode()
    if name == TOY + b"slow":
        wait(n)
        return str(n.slow).encode()
    return n.xattrs.get(name, -errno.ENODATA)


def listxattr(ino: int) -> bytes:
    return b"".join(x + b"\0" for x in node(ino).xattrs)


def removexattr(ino: int, name: bytes) -> int:
    return 0 if node(ino).xattrs.pop(name, None) is not None else -errno.ENODATA


def readdir(ino: int, off: int, size: int, plus: bool = False) -> bytearray:
    found = bytearray()
    for i, (name, kid) in enumerate(list(node(ino).children.items())[off:], off + 1):
        n = node(kid)
        head = struct.pack("<QQII", kid, i, len(name), stat.S_IFMT(n.mode) >> 12) + name
        head += bytes(-len(head) % 8)
        if len(found) + len(head) + (128 if plus else 0) > size:
            break
        found += (entry(n) if plus else b"") + head
    return found


def access(ino: int, mask: int) -> int:
    return -errno.EACCES if node(ino).mode & 0o777 == 0 else 0


def ioctl(ino: int, cmd: int, flags: int, data: bytes, out_size: int) -> bytes | int:
    match cmd & 0xFF:
        case 1:
            return data[::-1] + b"too much"
        case 2:
            return 42
        case 3:
            return -errno.ENOSPC
    raise FsError(errno.ENOTTY)


def lseek(ino: int, off: int, whence: int) -> int:
    data = node(ino).data
    if off >= len(data):
        return -errno.ENXIO
    return off if whence == os.SEEK_DATA else len(data)


def fallocate(ino: int, mode: int, off: int, length: int) -> int:
    n = node(ino)
    if mode & 2:
        n.data[off : off + length] = bytes(min(length, max(0, len(n.data) - off)))
    else:
        n.data += bytes(max(0, off + length - len(n.data)))
    return 0


def copy_file_range(ino: int, off: int, out: int, off_out: int, length: int, flags: int) -> int:
    return write(out, off_out, bytes(node(ino).data[off : off + length]), 0)


def syncfs(ino: int) -> None:
    pass


def logged(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
    def inner(*args: Any) -> Any:
        if Now.record and not any(isinstance(a, bytes) and a.startswith(TOY) for a in args) and len(calls) < 300:
            calls.append([name, [a if isinstance(a, int | tuple) else bytes(a[:300]).decode("latin-1") for a in args]])
        return f(*args)

    return inner


def on_wait(unique: int, opcode: int, f: Callable[..., Any], args: tuple[Any, ...], e: BaseException) -> None:
    assert isinstance(e, MustWait)
    assert not any(isinstance(a, memoryview) for a in args)
    if e.seconds < 0:
        raise RuntimeError("no task for this")
    Now.nursery.start_soon(later, unique, opcode, f, args, e.seconds)


async def later(unique: int, opcode: int, f: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> None:
    with trio.CancelScope() as scope:
        scopes[unique] = scope
        await trio.sleep(seconds)
        Now.resumed = True
        try:
            result = f(*args)
        finally:
            Now.resumed = False
    del scopes[unique]
    native.reply(unique, opcode, -errno.EINTR if scope.cancelled_caught else result)
    if opcode != Opcode.FORGET:
        try:
            native.reply(unique, opcode, 0)
        except RuntimeError:
            return
        errors.append("a second reply was taken")


def on_interrupt(unique: int) -> None:
    notes["interrupts"] += 1
    scopes[unique].cancel()


def register() -> None:
    functions: dict[Opcode, Callable[..., Any]] = {
        Opcode.LOOKUP: lookup, Opcode.FORGET: forget, Opcode.GETATTR: getattr_, Opcode.SETATTR: setattr_,
        Opcode.READLINK: readlink, Opcode.SYMLINK: symlink, Opcode.MKNOD: mknod, Opcode.MKDIR: mkdir,
        Opcode.UNLINK: unlink, Opcode.RMDIR: rmdir, Opcode.RENAME2: rename, Opcode.LINK: link,
        Opcode.READ: read, Opcode.WRITE: write, Opcode.STATFS: statfs, Opcode.FSYNC: fsync,
        Opcode.FSYNCDIR: fsync, Opcode.SETXATTR: setxattr, Opcode.GETXATTR: getxattr,
        Opcode.LISTXATTR: listxattr, Opcode.REMOVEXATTR: removexattr, Opcode.READDIR: readdir,
        Opcode.ACCESS: access, Opcode.CREATE: create,
        Opcode.READDIRPLUS: lambda i, o, s: readdir(i, o, s, True), Opcode.IOCTL: ioctl,
        Opcode.LSEEK: lseek, Opcode.FALLOCATE: fallocate, Opcode.COPY_FILE_RANGE: copy_file_range,
        Opcode.SYNCFS: syncfs, Opcode.TMPFILE: tmpfile,
    }  # fmt: skip
    if OPTIONS.get("open"):
        functions |= {
            Opcode.OPEN: open_,
            Opcode.OPENDIR: open_,
            Opcode.RELEASE: release,
            Opcode.FLUSH: release,
        }
        functions |= {Opcode.RELEASEDIR: release}
    else:
        for op in (Opcode.OPEN, Opcode.OPENDIR, Opcode.FLUSH):
            native.constant(op, -errno.ENOSYS)
        for op in (Opcode.RELEASE, Opcode.RELEASEDIR):
            native.constant(op, 0)
    for op, f in functions.items():
        if op.name not in OPTIONS.get("without", []):
            native.handler(op, logged(op.name, f), op is Opcode.CREATE)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        Now.nursery = nursery
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def run() -> None:
    native.configure(
        init_set=OPTIONS.get("init_set", InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.HAS_RESEND),
        init_clear=OPTIONS.get("init_clear", InitFlag.ATOMIC_O_TRUNC | InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS),
        max_background=64,
        congestion_threshold=48,
        time_gran=1,
        spin_us=OPTIONS.get("spin_us", 50),
        wait_us=OPTIONS.get("wait_us", 200),
        burst_us=OPTIONS.get("burst_us", 2000),
        profile=True,
        fs_error=FsError,
        must_wait=MustWait,
        on_wait=on_wait,
        on_interrupt=on_interrupt,
        on_error=lambda e: errors.append(repr(e)),
        on_sync_error=sync_errors.append,
    )
    register()
    options = {"fsname=toy", "subtype=toy"} | ({"default_permissions"} if not OPTIONS.get("access") else set())
    ops = pyfuse3.Operations()
    ops.enable_writeback_cache = bool(OPTIONS.get("writeback"))
    pyfuse3.init(ops, sys.argv[1], options)
    print("mounted", flush=True)
    try:
        trio.run(main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    run()
