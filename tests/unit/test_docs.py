"""The documentation against what it describes: named tests exist, settings and commands are the real ones, and limits
that no other test holds are as docs/semantics.md says."""

from __future__ import annotations

import ast
import errno
import re
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from stat import S_IFIFO
from typing import Any

import pytest

from artfs.cli.parsing import UsageError, build_parser
from artfs.errors import FsError
from artfs.fuse.requests import Requests
from artfs.objects.s3_client import Place
from artfs.settings import Settings, parse_principal
from artfs.store.opening import memory_store
from artfs.store.service import Service
from artfs.types import Scope
from artfs.volume.attributes import SIZE
from artfs.volume.data import MAX_SIZE
from artfs.volume.node import Node
from artfs.volume.tree import Tree

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
README = ROOT / "README.md"
TEST = re.compile(r"tests/[\w/]+\.py::\w+")
NAMED = re.compile(rf"\((?:{TEST.pattern}(?:,\s+)?)+\)$")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
MODULE = re.compile(r"`(artfs(?:\.\w+)+)`")
README_LINES = 200


# tests that are named
def paragraphs(text: str) -> list[str]:
    """Of the sections: what stands before the first `## ` introduces, and headings are none."""
    _, _, body = text.partition("\n## ")
    parts = [part.strip() for part in re.split(r"\n\s*\n", f"## {body}")]
    return [part for part in parts if part and not part.startswith("#")]


@cache
def _names_of(path: str) -> frozenset[str]:
    """Names of the test functions of a module, those in classes too, and of what is assigned at its top."""
    module = ast.parse((ROOT / path).read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    found = {node.name for node in ast.walk(module) if isinstance(node, kinds)}
    for node in module.body:
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(name for name in found if name.startswith(("test_", "Test")))


def missing_tests(text: str) -> list[str]:
    found = []
    for name in TEST.findall(text):
        path, _, test = name.partition("::")
        if not (ROOT / path).is_file() or test not in _names_of(path):
            found.append(name)
    return found


def unheld(text: str) -> list[str]:
    return [part for part in paragraphs(text) if not NAMED.search(part)]


@pytest.mark.parametrize("path", [README, *DOCS], ids=lambda path: path.name)
def test_tests_that_are_named_exist(path: Path) -> None:
    assert missing_tests(path.read_text()) == []


def test_each_paragraph_of_the_semantics_has_its_test() -> None:
    text = (ROOT / "docs/semantics.md").read_text()
    assert len(paragraphs(text)) > 40
    assert unheld(text) == []


def test_a_paragraph_without_a_test_is_noticed() -> None:
    held = "## A\n\nOne. (tests/unit/test_docs.py::test_a_paragraph_without_a_test_is_noticed)\n\n"
    assert unheld(f"# Title\n\nIntroduction.\n\n{held}") == []
    assert unheld(f"# Title\n\n{held}Two.\n\nThree. (see above)") == ["Two.", "Three. (see above)"]
    gone = ["tests/unit/test_docs.py::test_gone", "tests/unit/gone.py::test_x"]
    assert missing_tests(f"{held} {' '.join(gone)}") == gone


# settings
def settings_table(text: str) -> dict[str, Any]:
    """Name → default, from the rows `| `name` | `default` | …`."""
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.MULTILINE)
    return {name: None if default == "unset" else ast.literal_eval(default) for name, default in rows}


def test_every_setting_is_documented_with_its_default() -> None:
    documented = settings_table((ROOT / "docs/configuration.md").read_text())
    assert documented == Settings.model_validate({}).model_dump()


async def test_every_field_of_the_status_is_documented() -> None:
    section = (ROOT / "docs/operations.md").read_text().partition("## Is it well?")[2].partition("\n## ")[0]
    named = set(re.findall(r"\w+", " ".join(re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE))))
    async with memory_store() as store:
        found = await Service(store).status()
    assert found.keys() <= named
    assert found["waiting"].keys() <= named


def test_every_switch_of_the_tests_is_documented() -> None:
    read = re.compile(r"environ(?:\.get\(|\[)\"(ARTFS_(?:TEST|LEAK)_\w+)")
    found = {name for path in (ROOT / "tests").rglob("*.py") for name in read.findall(path.read_text())}
    documented = set(re.findall(r"ARTFS_(?:TEST|LEAK)_\w+", (ROOT / "docs/testing.md").read_text()))
    assert documented == found


def test_every_option_of_an_s3_url_is_documented() -> None:
    section = (ROOT / "docs/configuration.md").read_text().partition("Options of an s3 URL")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| (\w+)=", section, re.MULTILINE))
    assert named == {option.name for option in fields(Place)} - {"bucket", "prefix"}


# commands
def blocks(text: str) -> list[str]:
    """Command lines of artfs in blocks of code, where a pipe or `&&` parts them."""
    lines = re.findall(r"^    (.+)$", text, re.MULTILINE)
    return [part for line in lines for part in re.split(r" \| | && ", line) if re.match(r"artfs\s", part)]


def mentions(text: str) -> list[str]:
    """Commands between backquotes, which may leave arguments out."""
    return re.findall(r"`(artfs [^`]+)`", re.sub(r"^    .+$", "", text, flags=re.MULTILINE))


def complaint(command: str) -> str:
    try:
        build_parser().parse(shlex.split(command, comments=True)[1:])
    except UsageError as error:
        return f"`{command}`: {error}"
    return ""


@pytest.mark.parametrize("path", [README, *DOCS], ids=lambda path: path.name)
def test_commands_parse(path: Path) -> None:
    text = path.read_text()
    found = [complaint(command) for command in blocks(text)]
    found += [why for why in map(complaint, mentions(text)) if "arguments are required: " not in why]
    assert [why for why in found if why] == []
    assert path != README or len(blocks(text)) >= 12


def test_a_command_that_does_not_parse_is_noticed() -> None:
    text = "    cd / && artfs umount ~/grid     # away\n    ls | artfs put - a/shared/b\n\nor `artfs mount --bad DIR`"
    assert blocks(text) == ["artfs umount ~/grid     # away", "artfs put - a/shared/b"]
    assert mentions(text) == ["artfs mount --bad DIR"]
    assert [bool(complaint(command)) for command in (*blocks(text), *mentions(text))] == [False, False, True]
    assert "invalid choice" in complaint("artfs checkpoint mend")


# the texts themselves
def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("path", [README, *DOCS], ids=lambda path: path.name)
def test_links_and_modules_exist(path: Path) -> None:
    text = path.read_text()
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    modules = [name.replace(".", "/") for name in MODULE.findall(text)]
    unknown = [name for name in modules if not _is_module(name) and not _is_module(name.rpartition("/")[0])]
    assert unknown == []


def _is_module(name: str) -> bool:
    return (ROOT / f"{name}.py").is_file() or (ROOT / name / "__init__.py").is_file() or (ROOT / f"{name}.c").is_file()


# limits that no other test holds
@asynccontextmanager
async def a_tree() -> AsyncIterator[tuple[Tree, Tree]]:
    """The trees of two namespaces."""
    async with memory_store() as store:
        made = [await store.create_namespace("default", Scope.SANDBOX, None, name) for name in ("a", "b")]
        one, two = (store.volume(namespace).tree for namespace in made)
        yield one, two


def code(call: Callable[..., object], *args: Any) -> str:
    try:
        call(*args)
    except FsError as error:
        return errno.errorcode[error.errno]
    return "ok"


def new(tree: Tree, name: bytes = b"f") -> Node:
    return tree.create(tree.root(), name, 0o644, 0, 0)


async def test_limits_of_names() -> None:
    async with a_tree() as (tree, _):
        root = tree.root()
        assert code(tree.create, root, b"n" * 256, 0o644, 0, 0) == "ENAMETOOLONG"
        assert code(tree.create, root, b"n" * 255, 0o644, 0, 0) == "ok"
        assert code(tree.symlink, root, b"s", b"t" * 4096, 0, 0) == "ENAMETOOLONG"
        assert code(tree.symlink, root, b"s", b"t" * 4095, 0, 0) == "ok"
        assert tree.lookup(root, b"n" * 255) is not None
        link = tree.lookup(root, b"s")
        assert link is not None
        assert link.target == b"t" * 4095


async def test_limits_of_sizes() -> None:
    async with a_tree() as (tree, _):
        node = new(tree)
        end = tree.block_size << 32
        assert end == 4 << 50
        for size, outcome in ((end, "EFBIG"), (MAX_SIZE + 1, "EFBIG"), (end - 1, "ok")):
            assert code(tree.setattr, node, SIZE, size, 0, 0, 0, 0, 0, 0) == outcome
        assert node.size == end - 1
        assert code(tree.write, node, end - 1, b"xy") == "EFBIG"
        assert code(tree.write, node, end - 2, b"x") == "ok"
        assert tree.read_bytes(node, end - 3, 10) == b"\0x"
        tree.numbers = 1 << 32
        assert code(tree.create, tree.root(), b"one too many", 0o644, 0, 0) == "ENOSPC"


async def test_what_is_refused() -> None:
    """RENAME_WHITEOUT; COLLAPSE, INSERT and UNSHARE; ACLs."""
    async with a_tree() as (tree, _):
        root, node = tree.root(), new(tree)
        tree.write(node, 0, b"content")
        assert code(tree.rename, root, b"f", root, b"g", 4) == "EINVAL"
        for mode in (8, 32, 64):
            assert code(tree.fallocate, node, mode, 0, 4096) in ("EOPNOTSUPP", "ENOTSUP")
        for name in (b"system.posix_acl_access", b"system.posix_acl_default"):
            assert code(tree.setxattr, node, name, b"\2\0\0\0") in ("EOPNOTSUPP", "ENOTSUP")
            assert code(tree.getxattr, node, name) in ("EOPNOTSUPP", "ENOTSUP")
        assert [name for name, _ in tree.listing(root)] == [b"f"]
        assert tree.read_bytes(node, 0, 100) == b"content"


async def test_reading_moves_no_time() -> None:
    async with a_tree() as (tree, _):
        node = new(tree)
        tree.write(node, 0, b"x" * 100_000)
        before = node.pack()
        tree.read_bytes(node, 0, 100_000)
        tree.listing(tree.root())
        assert node.pack() == before


async def test_nothing_crosses_namespaces() -> None:
    async with a_tree() as (one, two):
        node = new(one)
        requests = Requests(
            one.root(),
            None,  # type: ignore[arg-type]  # the control surface is not asked
            valid=0,
            cached=False,
            space=lambda: "/",
            descriptors=list,
            flush=lambda num: None,
            sync=lambda: None,  # type: ignore[arg-type, return-value]
            stale_blocks=lambda num: None,
            refused=lambda num: None,
        )
        other = two.root()
        for held in (node, other):
            requests.enter(held)
        assert code(requests.rename, 1, b"f", other.num, b"f", 0) == "EXDEV"
        assert code(requests.link, other.num, b"f", node.num) == "EXDEV"
        fifo = two.make(other, b"p", S_IFIFO | 0o644, 0, 0)
        requests.enter(fifo)
        assert code(requests.copy_file_range, (0, 0, 0), node.num, 0, fifo.num, 0, 10, 0) == "EXDEV"
        assert one.lookup(one.root(), b"f") is node
        assert [name for name, _ in two.listing(other)] == [b"p"]


def test_principals_of_the_configuration_page() -> None:
    """Its example of `uid_map` is one that works."""
    text = (ROOT / "docs/configuration.md").read_text()
    example = re.search(r"^    uid_map = \{ (.+) \}$", text, re.MULTILINE)
    assert example is not None
    pairs = dict(part.split(" = ") for part in example[1].split(", "))
    assert all(parse_principal(who.strip('"'), "default") for who in pairs.values())
    found = Settings.model_validate({"uid_map": {uid: who.strip('"') for uid, who in pairs.items()}})
    assert found.principal(0) is not None
