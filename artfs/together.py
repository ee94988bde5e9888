"""Several calls at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio


async def all_at_once(calls: Sequence[Callable[[], Awaitable[Any]]]) -> None:
    """Each call to its end; then the first error is raised as it is, not in a group."""
    if len(calls) == 1:
        await calls[0]()
        return
    failures: list[Exception] = []

    async def one(call: Callable[[], Awaitable[Any]]) -> None:
        try:
            await call()
        except Exception as error:
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(one, call)
    if failures:
        raise failures[0]
