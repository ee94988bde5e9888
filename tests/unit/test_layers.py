"""The layers of docs/architecture.md, held: a module imports only what lies below it; libraries have a home.

`violations` decides from a module's name and text alone, so that the rules are tested with made-up modules.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("artfs", "mountd")

# Bottom to top. Neighbours on a line do not import each other; a package's modules may.
LAYERS = [
    "artfs.errors artfs.types",
    "artfs.exceptions artfs.models",
    "artfs.grid artfs.blocks artfs.root artfs.durable artfs.together artfs.aio artfs.loop",
    "artfs.access artfs.settings",
    "artfs.access_control",
    "artfs.meta artfs.objects artfs.sessions",
    "artfs.control artfs.volume",
    "artfs.vfs",
    "artfs.store",
    "artfs.compat artfs.config artfs.namespace",
    "artfs.fuse",
    "mountd",
    "artfs.cli",
    "artfs.__main__",
]
RANK = {package: rank for rank, line in enumerate(LAYERS) for package in line.split()}

# Libraries, and the only modules that may import them.
HOMES = {
    "asyncio": {"artfs.aio", "artfs.loop"},
    "trio": {"artfs.aio", "artfs.loop", "artfs.fuse", "mountd"},
    "pyfuse3": {"artfs.fuse"},
    "apsw": {"artfs.meta.sqlite", "artfs.objects.sqlite", "artfs.sessions.sqlite", "artfs.sessions.providers.sqlite"},
    "trio_asyncio": set(),  # replaces asyncio.new_event_loop for everybody when it is imported
}
# Libraries that one module may import, whichever it is.
SINGLE_HOME = ("redis", "aioboto3")


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer(module: str) -> str | None:
    """The layer that `module` is in; None for the bare package and what is not ours."""
    return next((package for package in RANK if inside(module, package)), None)


def imports(module: str, text: str, is_package: bool = False) -> Iterator[str]:
    """Absolute names of what `text` imports anywhere, also inside functions and for type checkers."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parent = ".".join(parts[: len(parts) - node.level + 1])
                base = f"{parent}.{base}" if base else parent
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(module: str, text: str, is_package: bool = False) -> list[str]:
    own = layer(module)
    if own is None and module not in PROGRAMS:
        return [f"{module} is in no layer: give it a place in LAYERS and in docs/architecture.md"]
    found = []
    for target in imports(module, text, is_package):
        for library, homes in HOMES.items():
            if inside(target, library) and not any(inside(module, home) for home in homes):
                found.append(f"{module} imports {library}, which lives in {', '.join(sorted(homes)) or 'nothing'}")
        other = layer(target)
        if other is None or other == own:
            continue
        if own is None:
            found.append(f"{module} imports {target}: the bare package imports nothing of ours before its use")
        elif RANK[other] >= RANK[own]:
            found.append(f"{module} imports {target}, which is not below {own}")
    return found


def modules() -> dict[str, Path]:
    found = {}
    for program in PROGRAMS:
        for path in sorted((ROOT / program).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below(module: str) -> None:
    path = MODULES[module]
    assert violations(module, path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize("library", SINGLE_HOME)
def test_a_client_library_has_one_home(library: str) -> None:
    users = [
        module
        for module, path in MODULES.items()
        if any(inside(name, library) for name in imports(module, path.read_text(), path.name == "__init__.py"))
    ]
    assert len(users) <= 1, users


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("artfs.volume.tree", "from artfs.meta import Batch"),
        ("artfs.volume.tree", "from .rows import KEY"),
        ("artfs.volume.tree", "from artfs import errors"),
        ("artfs.fuse.driver", "import trio, pyfuse3"),
        ("artfs.meta.sqlite", "import apsw"),
        ("artfs", "__version__ = '1'"),
        ("mountd.worker", "from artfs.fuse.driver import serve"),
    ],
)
def test_allowed(module: str, text: str) -> None:
    assert violations(module, text) == []


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("artfs.meta.sqlite", "from artfs.volume.tree import Tree", "not below artfs.meta"),
        ("artfs.meta.sqlite", "def f():\n    from artfs import store", "not below artfs.meta"),
        ("artfs.meta.sqlite", "from ..volume import tree", "not below artfs.meta"),
        ("artfs.meta.sqlite", "from ..objects import disk", "not below artfs.meta"),
        ("artfs.sessions.memory", "from artfs.meta import Engine", "not below artfs.sessions"),
        ("artfs.fuse.driver", "import mountd.worker", "not below artfs.fuse"),
        ("artfs.volume.tree", "import trio.lowlevel", "imports trio"),
        ("artfs.volume.tree", "from asyncio import Lock", "imports asyncio"),
        ("artfs.meta.schema", "import apsw", "imports apsw"),
        ("artfs.fuse.driver", "import trio_asyncio", "imports trio_asyncio"),
        ("artfs.novelty", "", "in no layer"),
        ("artfs.fusebox", "", "in no layer"),
    ],
)
def test_refused(module: str, text: str, complaint: str) -> None:
    found = violations(module, text)
    assert len(found) == 1
    assert complaint in found[0]


def test_a_package_imports_relative_to_itself() -> None:
    assert list(imports("artfs.meta", "from .sqlite import Engine", is_package=True)) == ["artfs.meta.sqlite.Engine"]
    assert list(imports("artfs.meta.memory", "from .sqlite import Engine")) == ["artfs.meta.sqlite.Engine"]


def test_importing_artfs_loads_no_driver_and_no_client() -> None:
    heavy = ["pyfuse3", "trio", "boto3", "aioboto3", "botocore", "redis", "apsw", "artfs.fuse"]
    program = f"import sys, artfs; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
