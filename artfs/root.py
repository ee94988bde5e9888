"""Where a store is, when nobody says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from artfs.errors import InvalidError

BESIDE = "-artfs"
"""What the name of that directory ends with."""


def find_root(option: str | os.PathLike[str] | None = None, env: Mapping[str, str] = os.environ) -> Path:
    """The option, else ARTFS_ROOT, else ~/.local/share/artfs.  Absolute; it need not exist.  For the file of a store
    that is one sqlite file it is the directory beside it, where such a store is worked on.  Errors: InvalidError."""
    chosen = os.fspath(option) if option is not None else env.get("ARTFS_ROOT") or "~/.local/share/artfs"
    if not chosen:
        raise InvalidError("the store's root cannot be empty: leave --root out, or give a directory")
    path = Path(os.path.abspath(os.path.expanduser(chosen)))
    beside = path.with_name(path.name + BESIDE)
    return beside if path.is_file() and beside.is_dir() else path
