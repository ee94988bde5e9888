"""Where a store in memory keeps namespaces of other providers: in the store that such a provider gives, beside it.

A call that does not find its namespace in memory is made there; a session that something there belongs to is the same,
ends with it, and does not outlive it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from artfs.errors import ArtfsError, ExpiredError, NotFoundError
from artfs.store.choosing import Place
from artfs.store.handle import OPENING, Handle


class Elsewhere:
    """The stores that have been used so far, by root."""

    def __init__(self) -> None:
        self._handles: dict[Path, Handle] = {}
        self._open: dict[int, Handle] = {}

    def __bool__(self) -> bool:
        return bool(self._handles)

    def at(self, place: Place) -> Handle:
        assert place.root is not None
        handle = self._handles.get(place.root)
        if handle is None:
            handle = self._handles[place.root] = Handle(place.root, place.config)
        return handle

    def is_worth_asking(self, error: ArtfsError, arguments: dict[str, Any]) -> bool:
        if "handle" in arguments:
            return arguments["handle"] in self._open
        missing = isinstance(error, NotFoundError) and not isinstance(error, ExpiredError)
        return missing and bool(self._handles) and "id" in arguments

    async def do(self, error: ArtfsError, method: str, arguments: dict[str, Any]) -> Any:
        """The call, where its namespace, or its handle, is.  Errors: `error` if it is nowhere."""
        handle = arguments.get("handle")
        handles = list(self._handles.values()) if handle not in self._open else [self._open[handle]]
        for each in handles:
            try:
                result = await each.do(method, **arguments)
            except NotFoundError as other:
                if isinstance(other, ExpiredError) or "Namespace not found" not in str(other):
                    raise
                continue
            if method in OPENING:
                made = result.get("handle") if isinstance(result, dict) else result
                if isinstance(made, int):
                    self._open[made] = each
            if method.endswith(("_end", "_abort")):
                self._open.pop(handle or 0, None)
            return result
        raise error

    def do_now(self, error: ArtfsError, method: str, arguments: dict[str, Any]) -> Any:
        """The same from a plain function."""
        for each in list(self._handles.values()):
            try:
                return each.do_now(method, **arguments)
            except NotFoundError:
                continue
        raise error

    def listed(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        return [item for each in list(self._handles.values()) for item in each.do_now(method, **arguments)]

    async def in_session(self, handle: Handle, session: dict[str, Any], seconds: float, sandbox: str) -> None:
        """Have a session of the memory there, too, with what is left of its life."""
        await handle.do(
            "api_session_create",
            user=session["user_id"],
            ttl_seconds=seconds,
            id=session["session_id"],
            sandbox=sandbox,
        )

    async def everywhere(self, method: str, arguments: dict[str, Any]) -> None:
        """What happens to a session happens there, too."""
        for each in list(self._handles.values()):
            try:
                await each.do(method, **arguments)
            except NotFoundError:
                continue

    async def close(self) -> None:
        for handle in list(self._handles.values()):
            await handle.close()
