"""Tests of what runs on asyncio and on trio: each runs on both."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any

import anyio
import pytest

BACKENDS = ("asyncio", "trio")


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A plain test out of a coroutine function, with the same fixtures."""

    @wraps(test)
    def run(*, backend: str, **fixtures: Any) -> None:
        anyio.run(partial(test, **fixtures), backend=backend)

    wanted = inspect.signature(test)
    backend = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = wanted.replace(parameters=[*wanted.parameters.values(), backend])  # type: ignore[attr-defined]
    on_both: Callable[..., None] = pytest.mark.parametrize("backend", BACKENDS)(run)
    return on_both
