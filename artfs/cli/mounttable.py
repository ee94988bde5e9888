"""The kernel's table of mounts, and mount(2), umount(2), syncfs(2).

A mount of artfs says in its source which store it serves, and which part of it: `<root>` for the whole grid, else
`<root>#grid/…`.  With the directory inside the mount that mountinfo names for a bind mount, each path below a mount
point has a grid path, in containers and views too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artfs.errors import ArtfsError, BusyError, DeniedError

TYPE = "fuse.artfs"
PART = "#grid"
MNT_DETACH = 2
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE = 1, 32, 4096, 8192
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 16384, 1 << 18
CLONE_NEWNS = 0x00020000


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of mountinfo: what directory `inside` of the file system `source` is mounted at `point`."""

    point: str
    type: str
    source: str
    inside: str

    @property
    def ours(self) -> bool:
        return self.type == TYPE

    @property
    def store(self) -> tuple[Path, str] | None:
        """The root of the store and the grid path of what `point` shows; None if the source does not tell."""
        if not self.ours or not self.source.startswith("/"):
            return None
        root, part, rest = self.source.partition(PART)
        return Path(root), "grid" + (rest if part else "") + ("" if self.inside == "/" else self.inside)


def read_mounts(text: str | None = None) -> list[Entry]:
    """The mounts that this process sees, lower ones first; `text`: of the form of /proc/self/mountinfo (proc(5))."""
    if text is None:
        text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    found = []
    for line in filter(None, text.split("\n")):
        left, _, right = line.partition(" - ")
        fields, (kind, source, *_) = left.split(" "), right.split(" ")
        found.append(Entry(_unquoted(fields[4]), kind, _unquoted(source), _unquoted(fields[3])))
    return found


def _unquoted(field: str) -> str:
    """Blank, tab, newline, `#` and backslash are written as \\040 and so on; other bytes come as they are."""
    raw = os.fsencode(field)
    for code in (b"040", b"011", b"012", b"043", b"134"):
        raw = raw.replace(b"\\" + code, bytes([int(code, 8)]))
    return os.fsdecode(raw)


def at(point: str, mounts: Sequence[Entry]) -> Entry | None:
    """The uppermost mount at exactly this point."""
    return next((entry for entry in reversed(mounts) if entry.point == point), None)


def holding(path: str, mounts: Sequence[Entry]) -> Entry | None:
    """The mount that `path` (absolute, no symlinks) is in."""
    best: Entry | None = None
    for entry in mounts:
        prefix = entry.point.rstrip("/")
        inside = path == prefix or path.startswith(f"{prefix}/")
        if inside and (best is None or len(entry.point) >= len(best.point)):
            best = entry
    return best


def is_dead(point: str) -> bool:
    """Whether the process behind a mount is gone."""
    try:
        os.statvfs(point)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def source(root: Path, part: str) -> str:
    """What the kernel's table shows as a mount's source: store and part, as libfuse wants it quoted."""
    shown = str(root) + ("" if part == "grid" else "#" + part)
    return shown.replace("\\", "\\\\").replace(",", "\\,")


def unmount(point: str, *, lazy: bool = False) -> None:
    """As root by umount(2), else by fusermount3.  Errors: BusyError, DeniedError, ArtfsError."""
    if os.geteuid() == 0:
        if _libc().umount2(os.fsencode(point), MNT_DETACH if lazy else 0) == 0:
            return
        number = ctypes.get_errno()
        if number == errno.EBUSY:
            raise _busy(point)
        kind = DeniedError if number in (errno.EPERM, errno.EACCES) else ArtfsError
        raise kind(f"{point} cannot be unmounted: {os.strerror(number)}")
    program = shutil.which("fusermount3")
    if program is None:
        raise DeniedError("fusermount3 is not on PATH, and only root unmounts without it; install fuse3")
    command = [program, "-u", *(["-z"] if lazy else []), "--", point]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if "busy" in done.stderr:
        raise _busy(point)
    said = done.stderr.strip().removeprefix("fusermount3: ")
    kind = DeniedError if "not permitted" in said else ArtfsError
    raise kind(f"{point} cannot be unmounted: {said}")


def remount(point: str, options: Sequence[str], *, keep: bool) -> None:
    """`keep`: options that are not named.  Errors: DeniedError, ArtfsError."""
    mode = "prepend" if keep else "ignore"
    command = ["mount", "-i", "--options-mode", mode, "-o", ",".join(["remount", *options]), "--", point]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().removeprefix("mount: ")
        kind = DeniedError if os.geteuid() != 0 else ArtfsError
        raise kind(f"{point} cannot be remounted: {said}")


def _busy(point: str) -> BusyError:
    return BusyError(
        f"{point} is busy: programs have files open in it, or work in it (`fuser -vm {point}` names them); "
        f"end them and try again, or take it away at once with `artfs umount -l {point}`"
    )


def sync(point: str) -> None:
    """Wait until the kernel has handed over what was written: see the barrier of a mount."""
    descriptor = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc().syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), point)
        os.fstatvfs(descriptor)
    finally:
        os.close(descriptor)


def mount(source: str, point: str, flags: int, kind: str = "none", options: str = "") -> None:
    """mount(2).  Errors: OSError."""
    if _libc().mount(os.fsencode(source), os.fsencode(point), kind.encode(), ctypes.c_ulong(flags), options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), point)


def own_mounts() -> None:
    """Give this process a table of mounts of its own: what it does to it nobody else sees.  Errors: OSError."""
    if _libc().unshare(CLONE_NEWNS):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    mount("none", "/", MS_REC | MS_PRIVATE)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
