"""What a command works with: its arguments, its output, the store, and the paths that name things in it.

A path is a grid path in any spelling, the id of a namespace, or a path inside a mount.  It is the last if it begins
with `./` or `../`, or if it, or the directory that it would be in, exists inside a mount of artfs.  A mount names its
store, so no --root is needed then; two paths of one command must be of one store.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from artfs.cli import mounttable
from artfs.cli.output import Output
from artfs.errors import BusyError, DeniedError, InvalidError
from artfs.root import find_root
from artfs.types import Scope

if TYPE_CHECKING:
    from artfs.store.connecting import Caller

T = TypeVar("T")
_ID = re.compile(r"ns-[0-9a-f]{12}")
_DOTTED = (".", "..")
PROVIDERS = ("ARTIFACT_PROVIDER", *(f"ARTIFACT_PROVIDER_{scope.upper()}" for scope in Scope))
"""Variables that say where a store of the Python API is."""


class Context:
    def __init__(self, args: Namespace, out: Output) -> None:
        self.args = args
        self.out = out
        self._root: Path | None = None

    @property
    def root(self) -> Path:
        """--root, else the store of the mount that a path was in, else ARTFS_ROOT, else where ARTIFACT_PROVIDER puts a
        store of the Python API, else the default.  Absolute.  Errors: InvalidError."""
        if self._root is None:
            self._root = self._named()[0]
        return self._root

    @property
    def home(self) -> str:
        """URL of where the bytes of a store go that is made at `root`; empty: there.  Errors: InvalidError."""
        return self._named()[1]

    def _named(self) -> tuple[Path, str]:
        option = getattr(self.args, "root", None)
        if option is None and not os.environ.get("ARTFS_ROOT") and any(map(os.environ.get, PROVIDERS)):
            from artfs.store.choosing import choose, scope_homes

            place = choose(None, None, None, os.environ, scopes=scope_homes(None, os.environ))
            if place.root is not None:
                return place.root, place.config
        return find_root(option), ""

    @property
    def sandbox(self) -> str | None:
        """--sandbox, else ARTIFACT_SANDBOX_ID or CHUK_SANDBOX_ID, else None: the store's own."""
        chosen = getattr(self.args, "sandbox", None)
        return chosen or os.environ.get("ARTIFACT_SANDBOX_ID") or os.environ.get("CHUK_SANDBOX_ID") or None

    def locate(self, text: str) -> str:
        """The grid path (or id) that `text` means.  Errors: InvalidError, BusyError for a dead mount."""
        if not text:
            raise InvalidError("a path cannot be empty; `grid` is the root of the grid")
        found = locate(text, mounttable.read_mounts)
        if found is None:
            return text
        root, path = found
        option = getattr(self.args, "root", None)
        known = self._root if option is None else self.root
        if known is not None and os.path.realpath(known) != os.path.realpath(root):
            raise InvalidError(f"{text} is in a mount of the store {root}, not of {known}; use one store at a time")
        self._root = self._root or root
        return path

    def ask(self, work: Callable[[Caller], Awaitable[T]]) -> T:
        """What `work` returns, with a caller of the store.  Errors: those of `connect`, and of `work`."""
        import anyio

        from artfs.store.socket import Client

        check_access(self.root)

        async def main() -> T:
            client = await Client.connect(self.root)
            if client is not None:
                async with aclosing(client):
                    return await work(client)
            # What a store consists of takes long to load, and is needed here only where nobody else serves it.
            from artfs.store.connecting import connect

            async with connect(self.root, f"artfs {self.args.command_name}") as caller:
                return await work(caller)

        return anyio.run(main)

    def call(self, method: str, **arguments: Any) -> Any:
        """One call of the store: see `artfs.store.service`."""
        return self.ask(lambda caller: caller.call(method, **arguments))


def check_access(root: Path) -> None:
    """Errors: DeniedError if the store is not for this user; InvalidError for what can be none."""
    if os.path.lexists(root) and not os.path.isdir(root):
        raise InvalidError(f"{root} is no directory, and no store's sqlite file; choose another --root")
    if os.path.isdir(root) and not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        raise DeniedError(f"no permission: the store {root} is another user's; act as that user, or as root")


def is_namespace_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def locate(text: str, mounts: Callable[[], list[mounttable.Entry]]) -> tuple[Path, str] | None:
    """The store's root and the grid path, if `text` is inside a mount; None if it is to be taken as a grid path."""
    table = mounts()
    path = os.path.realpath(text)
    entry = mounttable.holding(path, table)
    if entry is not None and entry.ours and mounttable.is_dead(entry.point):
        if not text.startswith("grid/"):
            raise BusyError(f"the mount at {entry.point} is dead; clean it up with `artfs umount {entry.point}`")
    elif os.path.lexists(text) or (not is_namespace_id(text.partition("/")[0]) and _has_parent(text)):
        if not os.path.lexists(text):
            path = os.path.join(os.path.realpath(os.path.dirname(text) or "."), os.path.basename(text))
            entry = mounttable.holding(path, table)
        if entry is not None and entry.ours:
            return _inside(path, entry)
    if text in _DOTTED or text.startswith(("./", "../")):
        raise InvalidError(f"{text} is not inside a mount of artfs; give a grid path such as default/shared/web")
    return None


def _inside(path: str, entry: mounttable.Entry) -> tuple[Path, str]:
    store = entry.store
    if store is None:
        raise InvalidError(f"the mount at {entry.point} does not tell its store; give --root and a grid path")
    root, top = store
    return root, top + path[len(entry.point.rstrip("/")) :]


def _has_parent(text: str) -> bool:
    """Whether `text` could be a new name in a directory that exists."""
    return text.split("/")[0] != "grid" and os.path.isdir(os.path.dirname(text) or ".")
