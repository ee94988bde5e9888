"""What type checkers know of the names that `__init__.py` has, or loads at their first use."""

from artfs.store.virtual_fs import AsyncVirtualFileSystem
from artfs.store.virtual_values import BatchResult, NodeInfo
from artfs.vfs.copying import copy
from artfs.vfs.files import Files
from artfs.vfs.open import PART, Reading, Writing
from artfs.vfs.stat import Stat

__all__ = [
    "PART",
    "AsyncVirtualFileSystem",
    "BatchResult",
    "Files",
    "NodeInfo",
    "Reading",
    "Stat",
    "Writing",
    "copy",
]
