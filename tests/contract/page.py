"""docs/api.md as programs: its sections, and how one is run and compared with what it says that it prints.

A ```python block is run as the body of an async function, one that starts an event loop itself as a program of its own,
an ```sh block by bash.  What stands behind the `#>` of a block is all that it prints, line by line.  `SETUP` is
run before each section, so that each stands alone with it.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread

from artfs.loop import LOOP
from artfs.store import ArtifactStore, handle
from tests.guard import MARK
from tests.seeds.blocks import run

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"
SETUP = "How to read the examples"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"#> ?(.*)$", re.MULTILINE)
LOOPS = ("asyncio.run(", "anyio.run(", "trio.run(")
OURS = re.compile(r"(ARTFS|ARTIFACT|VFS|SQLITE|SESSION|CHUK|AWS|S3|IBM|REDIS)_")
"""Variables of the environment that say something to artfs."""
TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Block:
    """`line`: where its first line is in the page."""

    kind: str
    text: str
    line: int

    @property
    def printed(self) -> str:
        return "".join(f"{line}\n" for line in PRINTED.findall(self.text))

    @property
    def is_program(self) -> bool:
        return any(call in self.text for call in LOOPS)


def sections(page: str) -> dict[str, list[Block]]:
    """Blocks by the heading that they are below; those with none are left out."""
    found: dict[str, list[Block]] = {}
    headings = [*re.finditer(r"^## (.+)$", page, re.MULTILINE)]
    ends = [*(match.start() for match in headings[1:]), len(page)]
    for heading, end in zip(headings, ends, strict=True):
        blocks = [
            Block(match[1], match[2], page.count("\n", 0, match.start(2)) + 1)
            for match in FENCE.finditer(page, heading.end(), end)
        ]
        if blocks:
            found[heading[1]] = blocks
    return found


SECTIONS = sections(PAGE.read_text())


@contextmanager
def alone(directory: Path, root: Path | None) -> Iterator[None]:
    """In that directory, with nothing in the environment but ARTFS_ROOT, if `root` is given.  What blocks set goes."""
    before, cwd = dict(os.environ), Path.cwd()
    for name in filter(OURS.match, before):
        if name != MARK:
            del os.environ[name]
    os.environ["HOME"] = str(directory)
    if root is not None:
        os.environ["ARTFS_ROOT"] = str(root)
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(before)


def mounts(blocks: list[Block]) -> bool:
    return any(block.kind == "sh" and re.search(r"artfs .*\bmount\b", block.text) for block in blocks)


def difference(block: Block, printed: str) -> str:
    """Empty if it printed what the page says."""
    if printed == block.printed:
        return ""
    lines = difflib.unified_diff(block.printed.splitlines(), printed.splitlines(), "said", "printed", lineterm="", n=0)
    return "\n".join([f"docs/api.md:{block.line}:", *lines])


async def run_section(title: str) -> None:
    """Errors: AssertionError if it prints something else than it says."""
    names: dict[str, Any] = {"__name__": "page"}
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_close_all, names)
        for block in [*SECTIONS[SETUP], *SECTIONS[title]]:
            printed = await _run(block, names)
            assert not difference(block, printed), difference(block, printed)


async def _run(block: Block, names: dict[str, Any]) -> str:
    if block.kind == "sh" or block.is_program:
        return await anyio.to_thread.run_sync(_program, block)
    out = io.StringIO()
    with redirect_stdout(out):
        # Lines before it, so that a traceback shows the page's own numbers.
        await run("\n" * (block.line - 1) + block.text, names, str(PAGE))
    return out.getvalue()


def _program(block: Block) -> str:
    python = shlex.quote(sys.executable)
    command = [sys.executable, "-W", "error", "-c", block.text]
    if block.kind == "sh":
        command = ["bash", "-euc", f'artfs() {{ {python} -m artfs "$@"; }}\n{block.text}']
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"docs/api.md:{block.line}: {done.stderr}"
    return done.stdout


async def _close_all(names: dict[str, Any]) -> None:
    with anyio.CancelScope(shield=True):
        for found in list(names.values()):
            if isinstance(found, ArtifactStore):
                await found.close()
        await forget_memory()


async def forget_memory() -> None:
    """What stores without a root have kept so far is gone: the next test begins with nothing."""
    memory = handle._opened.get(None)
    if memory is not None:
        await LOOP.call(handle._end, memory)
