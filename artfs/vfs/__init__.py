"""The path API: files of a namespace by path, as programs without a mount use them.

`Files` is for whoever has the store; `AsyncVirtualFileSystem` and what belongs to it are the Python API's, which lives
with the store above this package, and are loaded at their first use.
"""

from importlib import import_module
from typing import Any

from artfs.vfs.copying import copy
from artfs.vfs.files import Files
from artfs.vfs.open import PART, Reading, Writing
from artfs.vfs.stat import Stat

ABOVE = {
    "AsyncVirtualFileSystem": "artfs.store.virtual_fs",
    "BatchResult": "artfs.store.virtual_values",
    "NodeInfo": "artfs.store.virtual_values",
}
__all__ = ["PART", "Files", "Reading", "Stat", "Writing", "copy"]


def __getattr__(name: str) -> Any:
    if name not in ABOVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(ABOVE[name]), name)
