"""Descriptors that a forked child must not share: locks, listeners and connections of stores.

A child that kept them would keep its parent's store locked, and its callers waiting, after the parent has died.  In a
child each becomes /dev/null, so that whatever still holds its number harms nobody.
"""

from __future__ import annotations

import os

_kept: set[int] = set()


def keep(fd: int) -> int:
    """From now on the child of a fork has not this one.  Returns `fd`."""
    _kept.add(fd)
    return fd


def let_go(fd: int) -> None:
    """Before it is closed."""
    _kept.discard(fd)


def _in_child() -> None:
    if _kept:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in _kept:
            os.dup2(nothing, fd, inheritable=False)
        os.close(nothing)
        _kept.clear()


os.register_at_fork(after_in_child=_in_child)
