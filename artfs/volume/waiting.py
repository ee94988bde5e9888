"""How a plain function says that it cannot answer at once.

Functions of a tree check first and change last, so one that raises `MustWait` has changed nothing: whoever runs it
awaits `wait()` and calls it again.  Where the awaited work *is* the operation (`final`), its result is the answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar


class MustWait(Exception):
    """`wait` is called once; it may raise what the operation would."""

    def __init__(self, wait: Callable[[], Awaitable[Any]], final: bool = False) -> None:
        super().__init__()
        self.wait = wait
        self.final = final


P = ParamSpec("P")
T = TypeVar("T")


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a plain function of a tree, waiting as often as it asks for it."""
    while True:
        try:
            return function(*args, **kwargs)
        except MustWait as must:
            result = await must.wait()
            if must.final:
                return result  # type: ignore[no-any-return]
