"""Who writes loose pieces, and whether it still runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

ABANDONED = 3600 * 10**9
"""Nanoseconds without a new piece after which a put is given up whose process cannot be seen from here."""


def process(pid: int) -> str:
    """What no other process is called: the machine since it was started, the pid namespace, the pid, when it began."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino} {pid} {began}"


def has_ended(owner: str, touched: int) -> bool:
    boot, space, pid, began, _ = owner.split()
    here = process(os.getpid()).split()
    if boot != here[0]:
        return True
    if space != here[1]:
        return time.time_ns() - touched > ABANDONED
    try:
        return process(int(pid)).split()[3] != began
    except OSError:
        return True
