"""Where a store in memory keeps namespaces of other providers: in the store that such a provider gives, beside it.

A call that does not find its namespace in memory is made there; a session that something there belongs to, or that
calls are made as, is the same, ends with it, and does not outlive it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from artfs.errors import ArtfsError, ExpiredError, NotFoundError
from artfs.store.choosing import Place
from artfs.store.handle import OPENING, Handle

REMEMBERED = 10_000
"""Sessions that are known to be there, at most."""


class Elsewhere:
    """The stores that have been used so far, by root, beside the one in `memory`."""

    def __init__(self, memory: Handle) -> None:
        self._memory = memory
        self._handles: dict[Path, Handle] = {}
        self._sessions: set[tuple[Path | None, str]] = set()
        self._open: dict[int, Handle] = {}

    def __bool__(self) -> bool:
        return bool(self._handles)

    async def make(self, place: Place, arguments: dict[str, Any]) -> dict[str, Any]:
        """`api_create` in the store of that place, which is one of these from then on."""
        assert place.root is not None
        handle = self._handles.get(place.root) or Handle(place.root, place.config)
        try:
            for session in self._lacking(handle, arguments):
                await handle.do("api_session_create", **session)
            made: dict[str, Any] = await handle.do("api_create", **arguments)
        except BaseException:
            if place.root not in self._handles:
                await handle.close()
            raise
        other = self._handles.setdefault(place.root, handle)
        if other is not handle:  # another call was faster
            await handle.close()
        return made

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
            for session in self._lacking(each, arguments):
                await each.do("api_session_create", **session)
            try:
                result = await each.do(method, **arguments)
            except NotFoundError as other:
                if _is_another(other, error):
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
            self._bring_sessions(each, arguments)
            try:
                return each.do_now(method, **arguments)
            except NotFoundError as other:
                if _is_another(other, error):
                    raise
        raise error

    async def exists(self, arguments: dict[str, Any]) -> bool:
        """Whether an artifact that is not in memory is somewhere."""
        for each in list(self._handles.values()):
            for session in self._lacking(each, arguments):
                await each.do("api_session_create", **session)
            if await each.do("api_artifact_exists", **arguments):
                return True
        return False

    def listed(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        found: list[Any] = []
        for each in list(self._handles.values()):
            self._bring_sessions(each, arguments)
            found += each.do_now(method, **arguments)
        return found

    def _bring_sessions(self, handle: Handle, arguments: dict[str, Any]) -> None:
        for session in self._lacking(handle, arguments):
            handle.do_now("api_session_create", **session)

    def _lacking(self, handle: Handle, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The sessions that a call is made as, or makes something in, for `api_session_create` there: each once, with
        what is left of its life."""
        who, sandbox = arguments.get("who") or {}, arguments["sandbox"]
        for id in {who.get("session"), who.get("with_session"), arguments.get("session")} - {None}:
            try:
                session = self._memory.do_now("api_session_info", id=id, sandbox=sandbox)
            except NotFoundError:
                continue
            key = (handle.root, session["session_id"])
            if key not in self._sessions:
                left = datetime.fromisoformat(session["expires_at"]) - datetime.now(UTC)
                yield {
                    "user": session["user_id"],
                    "ttl_seconds": left.total_seconds(),
                    "id": session["session_id"],
                    "sandbox": sandbox,
                }
                if len(self._sessions) >= REMEMBERED:
                    self._sessions.clear()  # they are there; to be told again does no harm
                self._sessions.add(key)

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


def _is_another(error: NotFoundError, asked: ArtfsError) -> bool:
    """Whether something else is missing than what was asked for."""
    return isinstance(error, ExpiredError) or str(error) != str(asked)
