"""docs/api.md: each section does as it says, on asyncio and trio, in memory, on a root, and on one that another process
owns; its tables are true."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import artfs
from artfs import ArtifactStore, AsyncVirtualFileSystem
from artfs.access import access
from artfs.sessions import SessionManager
from artfs.types import Access, Principal, Scope
from tests.contract.api import OWNER, WHERE, program
from tests.contract.loops import on_both_loops
from tests.contract.page import PAGE, ROOT, SECTIONS, SETUP, Block, alone, difference, mounts, run_section, sections
from tests.seeds.blocks import run

LINES = 550
HERE = [title for title, blocks in SECTIONS.items() if title != SETUP and not mounts(blocks)]
"""What mounts is run by tests/fuse/test_api_page.py."""
CLASSES = (ArtifactStore, AsyncVirtualFileSystem, SessionManager)
TEXT = PAGE.read_text()


@pytest.fixture(params=WHERE)
def _where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    root = tmp_path / "root"
    with ExitStack() as stack:
        if request.param == "client":
            owner = stack.enter_context(program(OWNER, root))
            assert owner.line() == "ready"
        stack.enter_context(alone(tmp_path, None if request.param == "memory" else root))
        yield


@pytest.mark.usefixtures("_where")
@pytest.mark.parametrize("title", HERE)
@on_both_loops
async def test_a_section(title: str) -> None:
    await run_section(title)


@on_both_loops
async def test_the_readme(tmp_path: Path) -> None:
    """Its lines of Python, with another root."""
    text = (ROOT / "README.md").read_text().split("\nFrom Python", 1)[1]
    lines = re.findall(r"^    (.*)$", text.split("\n\n")[1], re.MULTILINE)
    assert len(lines) >= 5
    names: dict[str, Any] = {"ArtifactStore": ArtifactStore, "pdf": b"%PDF"}
    await run("\n".join(lines).replace("/srv/store", str(tmp_path / "store")), names)
    async with names["store"] as store:
        assert await store.read_namespace("grid/default/shared/web", "/hello.txt") == b"hello"
        assert [found.name for found in await store.list_checkpoints("grid/default/shared/web")] == ["v1"]
        assert await store.retrieve(names["report"]) == b"%PDF"


# the page itself
def test_its_size() -> None:
    assert len(TEXT.splitlines()) <= LINES
    assert len(HERE) >= 9


def test_all_blocks_are_run() -> None:
    found = [block for blocks in SECTIONS.values() for block in blocks]
    assert {block.kind for block in found} == {"python", "sh"}
    assert len(found) == len(re.findall(r"^```\w", TEXT, re.MULTILINE))
    assert sum(len(block.printed.splitlines()) for block in found) > 50


def test_what_is_printed_otherwise_is_noticed() -> None:
    page = "# T\n\n## A\n\n```python\nprint(1)  #> 1\nprint(2)\n#> 2 two\n```\n\n## B\n\nText.\n"
    [(title, [block])] = sections(page).items()
    assert (title, block.kind, block.line, block.printed) == ("A", "python", 6, "1\n2 two\n")
    assert not difference(block, "1\n2 two\n")
    for wrong in ("", "1\n", "1\n3\n", "2 two\n1\n", "1\n2 two\n\n"):
        assert difference(block, wrong)
    assert difference(Block("python", "pass", 1), "something")


# its tables
def rows(section: str) -> list[list[str]]:
    """Cells of the tables below a heading of the second or third level."""
    text = re.split(r"^## ", TEXT.split(f"# {section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.+$", text, re.M)]
    return [cells for cells in found if not set(cells[0]) <= set("-")][1:]


def test_every_call_is_named() -> None:
    named = set(re.findall(r"\w+", TEXT))
    for owner in CLASSES:
        public = {name for name in dir(owner) if not name.startswith("_") and callable(getattr(owner, name))}
        assert sorted(public - named) == [], owner.__name__


@pytest.mark.parametrize(("section", "owner"), [("Files", AsyncVirtualFileSystem), ("Artifacts", ArtifactStore)])
def test_every_call_of_a_table_exists(section: str, owner: type) -> None:
    calls = [name for cells in rows(section) for name in re.findall(r"`(\w+)[`(]", cells[0])]
    assert len(calls) >= 20
    assert [name for name in calls if not callable(getattr(owner, name, None))] == []


WHO: dict[str, list[Principal]] = {
    "that session, or its user naming no session": [Principal("acme", session="s"), Principal("acme", user="ann")],
    "that user, in another session of theirs": [
        Principal("acme", user="ann", session="t"),
        Principal("acme", session="t"),
    ],
    "another session, another user": [Principal("acme", session="u"), Principal("acme", user="bob")],
    "admin": [Principal("acme", admin=True)],
    "somebody of another sandbox": [Principal("other", session="s", user="ann"), Principal("other", admin=True)],
}
WHOSE = {Scope.SESSION: "s", Scope.USER: "ann", Scope.SANDBOX: None}
SESSIONS = {"s": "ann", "t": "ann", "u": "bob"}


def test_the_table_of_access_is_that_of_the_rules() -> None:
    told = {cells[0]: [Access(cell) for cell in cells[1:]] for cells in rows("Who may do what")}
    assert told.keys() == WHO.keys()
    for who, principals in WHO.items():
        for principal in principals:
            found = [access(principal, "acme", s, WHOSE[s], session_owner=SESSIONS.get) for s in Scope]
            assert found == told[who], principal


def _named(name: str) -> Any:
    return getattr(artfs, name, None) or getattr(import_module("artfs.store.public_errors"), name, None)


def test_the_table_of_errors_is_that_of_the_classes() -> None:
    told = rows("Errors")
    public = {name for name in artfs.__all__ if name.endswith("Error")}
    names = [re.findall(r"`(\w+)`", cells[0]) for cells in told]
    assert public <= {name for some in names for name in some}
    for cells, some in zip(told, names, strict=True):
        for name, status in zip(some, re.findall(r"\d+", cells[2]), strict=True):
            found = _named(name)
            assert issubclass(found, artfs.ArtifactStoreError)
            assert found.http_status == int(status), name
            for base in re.findall(r"\w+", cells[1]):
                assert issubclass(found, _named(base) or getattr(builtins, base)), (name, base)


def test_variables_are_read_somewhere() -> None:
    source = "".join(path.read_text() for path in (ROOT / "artfs").rglob("*.py"))
    names = [name for cells in rows("Environment variables") for name in re.findall(r"[A-Z0-9_]{6,}", cells[0])]
    assert len(names) >= 15
    built = {f"ARTIFACT_PROVIDER_{scope.upper()}" for scope in Scope}  # read by that pattern
    assert [name for name in names if name not in source and name not in built] == []
