"""Put before everything else by PYTHONPATH: a process that ends itself, by SIGKILL, at one exact call on a file, of
Python's `os` or of artfs' native extension.

DEADLY is `<call>:<part of a path>:<number>:<when>`: at the number-th call of that name, or of any of `CALLS` if it is
empty, whose path has that part; `when` is `before` or `after`.  Nothing counts until the file named by DEADLY_GATE is
there, if one is named.  A number of 0 is never: each call that fits adds a line to the file named by DEADLY_LOG then.
"""

import importlib
import os
import signal
import threading
from typing import Any

NATIVE, NATIVE_CALL = "artfs.fuse._native", "write_all"
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


def _wrap(module: Any, name: str) -> None:
    real = getattr(module, name)

    def call(what: Any, *arguments: Any, **options: Any) -> Any:
        deadly = _fits(name, what)
        if deadly and _when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(what, *arguments, **options)
        finally:
            if deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, call)


def _wrap_native() -> None:
    real = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        module = real(name, package)
        if name == NATIVE:
            _wrap(module, NATIVE_CALL)
        return module

    importlib.import_module = import_module


if _number:
    for _name in CALLS:
        if _call in ("", _name):
            _wrap(os, _name)
    if _call in ("", NATIVE_CALL):
        _wrap_native()
