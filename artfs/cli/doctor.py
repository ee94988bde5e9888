"""What this machine lacks to run artfs: `artfs doctor`.

`artfs.cli.machine` collects facts, `judge` here turns them into findings and is pure. A *finding* says what
was seen, why that matters, and the command that mends it. Statuses: `ok`; `warning`, artfs works but with the
loss that `why` names; `problem`, something that users came for does not work.

Invariant: `why` and `remedy` are empty only when the status is ok.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from artfs.cli.machine import EXTRAS, Facts, collect
from artfs.root import find_root

MIB = 1 << 20
GIB = 1 << 30
REINSTALL = f"{sys.executable} -m pip install --force-reinstall artfs"
# What newer kernels add, oldest first; 5.15 has all that artfs cannot do without.
KERNEL_NEEDED = (5, 15)
KERNEL_FEATURES = [
    ((6, 1), "O_TMPFILE in mounts"),
    ((6, 2), "restoring a tree without unmounting what is mounted inside it"),
    ((6, 9), "replacing the daemon under programs that have files open"),
]
NETWORK_TYPES = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "afs"})
MEMORY_TYPES = frozenset({"tmpfs", "ramfs"})


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome. `what`, `why`, `remedy`: a line each, the remedy a command where one exists."""

    check: str
    status: Status
    what: str
    why: str = ""
    remedy: str = ""


def judge(facts: Facts) -> list[Finding]:
    """Every check, in the order in which a person would mend them."""
    checks = (
        _python(facts),
        _packages(facts),
        _extras(facts),
        _kernel(facts),
        _fuse_device(facts),
        _fusermount(facts),
        _libfuse(facts),
        _native(facts),
        _allow_other(facts),
        _store(facts),
        _space(facts),
        _clock(facts),
        _descriptors(facts),
    )
    return [*checks, *_mounts(facts)]


def examine(root: Path | None = None) -> list[Finding]:
    """What this machine lacks, for a store at `root` (None: where the command line would look)."""
    return judge(collect(find_root() if root is None else root))


def _python(facts: Facts) -> Finding:
    what = "Python " + ".".join(map(str, facts.python))
    if facts.python >= (3, 11):
        return Finding("python", Status.OK, what)
    return Finding("python", Status.PROBLEM, what, "artfs needs 3.11 or newer", "apt-get install python3.11")


def _packages(facts: Facts) -> Finding:
    missing = [name for name, version in facts.packages.items() if version is None]
    if missing:
        return Finding(
            "packages",
            Status.PROBLEM,
            f"not installed: {', '.join(missing)}",
            "artfs is installed without what it is built on",
            REINSTALL,
        )
    return Finding("packages", Status.OK, ", ".join(f"{n} {v}" for n, v in facts.packages.items()))


def _extras(facts: Facts) -> Finding:
    missing = [name for name in facts.wanted if facts.extras.get(name) is None]
    if missing:
        uses = ", ".join(EXTRAS[name] for name in missing)
        return Finding(
            "extras",
            Status.PROBLEM,
            f"not installed: {', '.join(missing)}",
            f"this store uses {uses}: what lives with such a provider can neither be read nor uploaded",
            f"{sys.executable} -m pip install 'artfs[s3]'",
        )
    shown = [f"{name} {version or f'is not installed, for {EXTRAS[name]}'}" for name, version in facts.extras.items()]
    return Finding("extras", Status.OK, ", ".join(shown) or "none are needed")


def _kernel(facts: Facts) -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", facts.kernel)
    if numbers is None:
        why = "which features mounts have cannot be told"
        return Finding("kernel", Status.WARNING, f"kernel {facts.kernel!r}", why, "uname -r")
    version = int(numbers[1]), int(numbers[2])
    what = f"Linux {facts.kernel}"
    if version < KERNEL_NEEDED:
        return Finding(
            "kernel",
            Status.PROBLEM,
            what,
            "mounts are tested from 5.15 on; older kernels lose features that keep data right",
            "upgrade the kernel to 5.15 or newer",
        )
    lost = [feature for since, feature in KERNEL_FEATURES if version < since]
    if lost:
        newest = ".".join(map(str, KERNEL_FEATURES[-1][0]))
        return Finding(
            "kernel",
            Status.WARNING,
            what,
            f"works, without: {'; '.join(lost)}",
            f"upgrade the kernel to {newest} or newer, if you need them",
        )
    return Finding("kernel", Status.OK, what)


def _fuse_device(facts: Facts) -> Finding:
    if facts.fuse_device_error:
        return Finding(
            "fuse-device",
            Status.PROBLEM,
            f"/dev/fuse: {facts.fuse_device_error}",
            "without it nothing can be mounted; the Python API and the command line work all the same",
            "modprobe fuse    (in a container: run it with --device /dev/fuse --cap-add SYS_ADMIN)",
        )
    if facts.superuser and not facts.sys_admin:
        return Finding(
            "fuse-device",
            Status.PROBLEM,
            "root without CAP_SYS_ADMIN",
            "mount(2) is refused",
            "run the container with --device /dev/fuse --cap-add SYS_ADMIN",
        )
    return Finding("fuse-device", Status.OK, "/dev/fuse can be opened")


def _fusermount(facts: Facts) -> Finding:
    install = "apt-get install fuse3"
    if facts.fusermount is None:
        if facts.superuser:
            why = "root mounts without it, other users of this machine cannot"
            return Finding("fusermount3", Status.WARNING, "fusermount3 is not on PATH", why, install)
        why = "only root mounts without it"
        return Finding("fusermount3", Status.PROBLEM, "fusermount3 is not on PATH", why, install)
    if not facts.superuser and not facts.fusermount_setuid:
        return Finding(
            "fusermount3",
            Status.PROBLEM,
            f"{facts.fusermount} is not setuid root",
            "a user's mount is made by root in it",
            f"chmod u+s {facts.fusermount}    (as root)",
        )
    return Finding("fusermount3", Status.OK, facts.fusermount)


def _libfuse(facts: Facts) -> Finding:
    if facts.pyfuse3_error:
        return Finding(
            "pyfuse3",
            Status.PROBLEM,
            f"pyfuse3 does not load: {facts.pyfuse3_error}",
            "the driver cannot start, nothing can be mounted",
            "apt-get install libfuse3-dev pkg-config gcc python3-dev && "
            f"{sys.executable} -m pip install --force-reinstall --no-cache-dir pyfuse3",
        )
    return Finding("pyfuse3", Status.OK, f"pyfuse3 {facts.packages.get('pyfuse3')} on libfuse {facts.libfuse}")


def _native(facts: Facts) -> Finding:
    if facts.native_error:
        return Finding(
            "native",
            Status.WARNING,
            f"no native extension: {facts.native_error}",
            "mounts are slower, and have no ioctl, lseek(SEEK_DATA), fallocate and copy_file_range",
            f"apt-get install libfuse3-dev pkg-config gcc python3-dev && {REINSTALL}",
        )
    return Finding("native", Status.OK, "the native extension is loaded")


def _allow_other(facts: Facts) -> Finding:
    if facts.superuser or facts.allow_other:
        return Finding("allow-other", Status.OK, "mounts can be opened to other users (-o allow_other)")
    return Finding(
        "allow-other",
        Status.WARNING,
        "/etc/fuse.conf has no line user_allow_other",
        "your mounts are for you alone: -o allow_other is refused, containers of other users see nothing",
        "echo user_allow_other >>/etc/fuse.conf    (as root)",
    )


def _store(facts: Facts) -> Finding:
    where = f"{facts.root} ({facts.store_type})" if facts.store_type else facts.root
    elsewhere = "artfs --root DIR …, or ARTFS_ROOT=DIR, with DIR on a local disk and writable for you"
    if not facts.store_writable:
        what = f"{facts.store_parent} cannot be written"
        return Finding("store", Status.PROBLEM, what, "nothing can be stored", elsewhere)
    if facts.store_type == "fuse.artfs":
        why = "a store inside an artfs mount waits for itself"
        return Finding("store", Status.PROBLEM, where, why, elsewhere)
    if facts.store_type in MEMORY_TYPES:
        why = "it is in memory: what fsync(2) promised is gone when the machine restarts"
        return Finding("store", Status.WARNING, where, why, elsewhere)
    if facts.store_type in NETWORK_TYPES or facts.store_type.startswith("fuse"):
        why = "it is not a local disk: locks and fsync may not hold, and every change waits for it"
        return Finding("store", Status.WARNING, where, why, elsewhere)
    return Finding("store", Status.OK, where if facts.store_exists else f"{where}, not made yet")


def _space(facts: Facts) -> Finding:
    what = f"{facts.store_free / GIB:.1f} GiB free at {facts.store_parent}"
    remedy = f"df -h {facts.store_parent}    then free some, or choose another place with artfs --root DIR"
    if facts.store_free < 256 * MIB:
        why = "the journal alone takes 128 MiB by default; writers will get ENOSPC"
        return Finding("space", Status.PROBLEM, what, why, remedy)
    if facts.store_free_inodes is not None and facts.store_free_inodes < 1000:
        what = f"{facts.store_free_inodes} inodes free at {facts.store_parent}"
        return Finding("space", Status.PROBLEM, what, "objects are files; writers will get ENOSPC", remedy)
    if facts.store_free < 2 * GIB:
        return Finding("space", Status.WARNING, what, "a few builds fill that", remedy)
    return Finding("space", Status.OK, what)


def _clock(facts: Facts) -> Finding:
    today = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(facts.now))
    remedy = "timedatectl set-ntp true    (or: date -s …)"
    why = "sessions expire, and files get their times, by this clock"
    if facts.now < 1735689600:  # 2025, before the first release
        return Finding("clock", Status.PROBLEM, f"the clock says {today}", why, remedy)
    ahead = facts.store_changed - facts.now
    if ahead > 60:
        what = f"the clock says {today}, the store was changed {ahead:.0f} s later"
        return Finding("clock", Status.PROBLEM, what, why, remedy)
    return Finding("clock", Status.OK, today)


def _descriptors(facts: Facts) -> Finding:
    what = "unlimited open files" if facts.nofile < 0 else f"{facts.nofile} open files per process"
    if 0 <= facts.nofile < 256:
        why = "a mount keeps journal, database and objects open"
        return Finding("descriptors", Status.PROBLEM, what, why, "ulimit -n 65536")
    if 0 <= facts.nofile < 1024:
        why = "a mount that serves many namespaces may run out"
        return Finding("descriptors", Status.WARNING, what, why, "ulimit -n 65536")
    return Finding("descriptors", Status.OK, what)


def _mounts(facts: Facts) -> Iterator[Finding]:
    for point, error in facts.mounts:
        if error:
            yield Finding(
                "mount",
                Status.PROBLEM,
                f"the mount at {point} is dead or hangs: {error}",
                "programs that enter it fail or wait, and nothing else can be mounted there",
                f"artfs umount {point}    (or, as root: umount -l {point})",
            )
        else:
            yield Finding("mount", Status.OK, f"the mount at {point} answers")


def problems(findings: Sequence[Finding]) -> int:
    return sum(finding.status is Status.PROBLEM for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """One document: `{"findings": [{check, status, what, why, remedy}, …], "problems": n, "warnings": n}`."""
    warnings = sum(finding.status is Status.WARNING for finding in findings)
    return json.dumps(
        {"findings": [asdict(f) for f in findings], "problems": problems(findings), "warnings": warnings},
        indent=2,
        ensure_ascii=False,
    )


def as_text(findings: Sequence[Finding]) -> str:
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<8} {finding.check:<12} {finding.what}")
        if finding.status is not Status.OK:
            lines += [f"{'':<22}{finding.why}", f"{'':<22}→ {finding.remedy}"]
    warnings = sum(finding.status is Status.WARNING for finding in findings)
    bad = problems(findings)
    lines.append(
        "Nothing is missing."
        if not bad and not warnings
        else f"{bad} problem{'s' * (bad != 1)}, {warnings} warning{'s' * (warnings != 1)}."
    )
    return "\n".join(lines)


def doctor(root: Path | None = None, json_output: bool = False, out: TextIO | None = None) -> int:
    """The command: examines, prints to `out` (None: stdout); its exit code is 1 if there is a problem."""
    findings = examine(root)
    print(as_json(findings) if json_output else as_text(findings), file=out or sys.stdout)
    return 1 if problems(findings) else 0
