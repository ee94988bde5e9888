"""The path API: files of a namespace by path, as programs without a mount use them."""

from artfs.vfs.copying import copy
from artfs.vfs.files import Files
from artfs.vfs.open import PART, Reading, Writing
from artfs.vfs.stat import PathError, Stat

__all__ = ["PART", "Files", "PathError", "Reading", "Stat", "Writing", "copy"]
