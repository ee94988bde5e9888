"""Put before everything else by PYTHONPATH: a process that ends itself, by SIGKILL, at one exact call on a file.

DEADLY is `<call>:<part of a path>:<number>:<when>`: at the number-th call of that name, or of any of `CALLS` if it is
empty, whose path has that part; `when` is `before` or `after`.  Nothing counts until the file named by DEADLY_GATE is
there, if one is named.  A number of 0 is never: each call that fits adds a line to the file named by DEADLY_LOG then.
"""

import os
import signal
import threading
from typing import Any

CALLS = ("unlink", "rename", "link", "mkdir", "rmdir", "ftruncate", "pwrite", "pwritev", "fsync", "fdatasync")
_call, _part, _number, _when = (os.environ.get("DEADLY") or ":::").split(":")
_gate = os.environ.get("DEADLY_GATE", "")
_log = os.environ.get("DEADLY_LOG", "")
_lock = threading.Lock()
_count = 0


def _path(what: Any) -> str:
    return os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.path.abspath(os.fsdecode(what))


def _fits(name: str, what: Any) -> bool:
    global _count
    if _part not in (path := _path(what)) or (_gate and not os.path.exists(_gate)):
        return False
    with _lock:
        _count += 1
        if _number == "0" and _log:
            with open(_log, "a", encoding="utf-8") as log:
                log.write(f"{name} {path}\n")
        return str(_count) == _number


def _wrapped(name: str) -> Any:
    real = getattr(os, name)

    def call(what: Any, *arguments: Any, **options: Any) -> Any:
        deadly = _fits(name, what)
        if deadly and _when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(what, *arguments, **options)
        finally:
            if deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    return call


if _number:
    for _name in CALLS:
        if _call in ("", _name):
            setattr(os, _name, _wrapped(_name))
