"""docs/api.md: the section that mounts does what it says; the others are run by tests/contract/test_api_page.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.loops import on_both_loops
from tests.contract.page import SECTIONS, alone, mounts, run_section
from tests.guard import mounts_below, unmount

pytestmark = pytest.mark.fuse


@pytest.mark.parametrize("title", [title for title, blocks in SECTIONS.items() if mounts(blocks)])
@on_both_loops
async def test_a_section(title: str, tmp_path: Path) -> None:
    with alone(tmp_path, None):
        try:
            await run_section(title)
        finally:
            for mount in mounts_below(tmp_path):
                unmount(mount)
