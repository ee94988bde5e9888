"""Code blocks of a document: read, given our imports, and run on either event loop."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Awaitable
from pathlib import Path
from types import CodeType
from typing import Any

import anyio

OURS = {"chuk_sessions": "artfs.sessions", "chuk_artifacts": "artfs"}
IMPORT = re.compile(rf"^(\s*(?:from|import) )({'|'.join(OURS)})\b", re.MULTILINE)


def blocks(name: str) -> list[str]:
    """Of `tests/seeds/<name>`, in its order, with our imports."""
    text = (Path(__file__).parent / name).read_text()
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [IMPORT.sub(lambda match: match[1] + OURS[match[2]], block) for block in found]


def compiled(block: str, name: str) -> CodeType:
    """`await` may stand outside of functions."""
    code: CodeType = compile(block, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code


async def run(block: str, names: dict[str, Any], name: str = "block") -> dict[str, Any]:
    """Runs the block among `names` and returns them, with what it has defined."""
    result = eval(compiled(block, name), names)
    if inspect.isawaitable(result):
        await result
    return names


def whole(block: str, backend: str, name: str = "block") -> dict[str, Any]:
    """For a block that starts a loop by itself, or wants none."""
    names: dict[str, Any] = {"__name__": name}
    result = eval(compiled(block, name), names)

    async def finish(rest: Awaitable[Any]) -> None:
        await rest

    if inspect.isawaitable(result):
        anyio.run(finish, result, backend=backend)
    return names
