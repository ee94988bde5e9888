"""Where a store is, when nobody says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from artfs.errors import InvalidError


def find_root(option: str | os.PathLike[str] | None = None, env: Mapping[str, str] = os.environ) -> Path:
    """The option, else ARTFS_ROOT, else ~/.local/share/artfs.  Absolute; it need not exist.  Errors: InvalidError."""
    chosen = os.fspath(option) if option is not None else env.get("ARTFS_ROOT") or "~/.local/share/artfs"
    if not chosen:
        raise InvalidError("the store's root cannot be empty: leave --root out, or give a directory")
    return Path(os.path.abspath(os.path.expanduser(chosen)))
