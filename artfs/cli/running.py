"""`artfs run`: a program that sees what a session may see, and nothing else of the grid.

For root, where the grid is mounted: the program gets a table of mounts of its own, in which the mount shows only the
scopes of the session: bind mounts out of the mount, read-only where the session may only read, below the same paths as
outside.  All views share one page cache, and programs in different views see each other's locks.

Else: a mount of its own, bound to the session, in a temporary directory; it is gone when the program has ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from artfs.cli import mounttable
from artfs.cli.context import Context
from artfs.cli.mounttable import MS_BIND, MS_MOVE, MS_NODEV, MS_NOSUID, MS_RDONLY, MS_REMOUNT, Entry
from artfs.cli.parsing import Commands
from artfs.errors import ArtfsError, InvalidError
from artfs.grid import scope_dir
from artfs.types import Scope

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes for a program that cannot be started, as shells have them."""


@dataclass(frozen=True, slots=True)
class View:
    """Scope directories below the grid's root that a session sees: writable and not."""

    home: str
    writable: tuple[str, ...]
    readable: tuple[str, ...]


def add(commands: Commands) -> None:
    parser = commands.add(
        "run",
        run,
        "run a program that sees what a session may see, in that session's directory",
        ["artfs run --session review -- ls -l", "artfs run --session review -- bash"],
        description="Its environment has ARTFS_SESSION, the session's id, and ARTFS_GRID, where the grid is.\n"
        "The exit code is the program's: 127 if it is not found, 128 + n if signal n ended it.",
    )
    parser.add_argument("--session", required=True, metavar="ID", help="with or without sess-; it must be alive")
    parser.add_argument("--sandbox", metavar="ID", help="its sandbox (default: the store's)")
    # What follows `--` is taken before the parser sees it; this is for --help alone.
    parser.usage = "artfs run --session ID [--sandbox ID] [global options] -- PROGRAM [ARGUMENT …]"


def run(ctx: Context) -> int:
    program: list[str] = ctx.args.program
    if not program:
        raise InvalidError("which program? write: artfs run --session ID -- PROGRAM [ARGUMENT …]")
    session = ctx.call("session_info", id=ctx.args.session, sandbox=ctx.sandbox)
    view = view_of(session, shared_writable(ctx.root))
    environment = {**os.environ, "ARTFS_SESSION": session["id"], "ARTFS_ROOT": str(ctx.root)}
    grid = grid_mount(mounttable.read_mounts(), os.path.realpath(ctx.root), view)
    if grid is not None and os.geteuid() == 0:
        enter_view(grid, view)
        _become(program, grid.point, view, environment)
    if grid is not None:
        raise InvalidError(
            f"the store is mounted at {grid.point}, and only root makes a view of a mount; run this as root, or "
            f"unmount it first: `artfs umount {grid.point}`"
        )
    return _in_own_mount(ctx, program, session, view, environment)


def shared_writable(root: Path) -> bool:
    from artfs.settings import load_settings

    return load_settings(root).shared_writable


def view_of(session: Mapping[str, Any], shared_writable: bool) -> View:
    sandbox, user = session["sandbox"], session["user"]
    home = f"{sandbox}/{scope_dir(Scope.SESSION, session['id'])}"
    writable = [home] + ([f"{sandbox}/{scope_dir(Scope.USER, user)}"] if user is not None else [])
    shared = f"{sandbox}/{scope_dir(Scope.SANDBOX, None)}"
    if shared_writable:
        return View(home, (*writable, shared), ())
    return View(home, tuple(writable), (shared,))


def grid_mount(mounts: list[Entry], root: str, view: View) -> Entry | None:
    """The topmost mount of the whole grid of that store in which the session's directory shows."""
    for entry in reversed(mounts):
        store = entry.store
        if store is None or os.path.realpath(store[0]) != root or store[1] != "grid":
            continue
        if mounttable.at(entry.point, mounts) is entry and os.path.isdir(os.path.join(entry.point, view.home)):
            return entry
    return None


def enter_view(grid: Entry, view: View) -> None:
    """From here on this process sees the view at the grid's mount point, and no other mount of that store."""
    try:
        mounttable.own_mounts()
        with tempfile.TemporaryDirectory(prefix="artfs-view-") as stage:
            mounttable.mount("artfs-view", stage, MS_NOSUID | MS_NODEV, "tmpfs", "mode=755")
            for scope in (*view.writable, *view.readable):
                source, target = os.path.join(grid.point, scope), os.path.join(stage, scope)
                if not os.path.isdir(source):
                    continue
                os.makedirs(target)
                mounttable.mount(source, target, MS_BIND)
                if scope in view.readable:
                    mounttable.mount("none", target, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
            mounttable.mount("none", stage, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
            for other in reversed(mounttable.read_mounts()):
                if other.source.partition("#")[0] == grid.source and not other.point.startswith(f"{stage}/"):
                    mounttable.unmount(other.point, lazy=True)
            mounttable.mount(stage, grid.point, MS_MOVE)
    except OSError as error:
        raise ArtfsError(f"the view cannot be made: {error}; it needs root with CAP_SYS_ADMIN") from error


def _become(program: list[str], grid: str, view: View, environment: dict[str, str]) -> NoReturn:
    os.chdir(os.path.join(grid, view.home))
    _find(program[0])
    os.execvpe(program[0], program, {**environment, "ARTFS_GRID": grid})


def _find(program: str) -> None:
    """Errors: ArtfsError with the exit code of shells."""
    if shutil.which(program) is None:
        there = os.path.lexists(program) and "/" in program
        error = ArtfsError(f"{program}: {'not executable' if there else 'command not found'}")
        error.exit_code = NOT_EXECUTABLE if there else NOT_FOUND
        raise error


def _in_own_mount(
    ctx: Context, program: list[str], session: dict[str, str], view: View, environment: dict[str, str]
) -> int:
    from artfs.cli.daemon import in_background
    from artfs.cli.mounting import Plan, check_machine
    from artfs.cli.unmounting import wait_for_end

    point = os.path.realpath(tempfile.mkdtemp(prefix="artfs-run-"))
    try:
        plan = Plan(
            root=Path(os.path.realpath(ctx.root)),
            point=Path(point),
            who=f"session:{session['id']}",
            sandbox=session["sandbox"],
            verbose=ctx.out.verbose,
        )
        check_machine(plan)
        pid = in_background(plan, ctx.out)
        try:
            home = os.path.join(point, view.home)
            return _wait(program, home, {**environment, "ARTFS_GRID": point})
        finally:
            try:
                mounttable.unmount(point)
            except ArtfsError:
                ctx.out.say(f"programs that {program[0]} left behind still use {point}; it is taken away from them")
                os.kill(pid, signal.SIGTERM)
            wait_for_end(pid)
    finally:
        os.rmdir(point)


def _wait(program: list[str], home: str, environment: dict[str, str]) -> int:
    """Run it; signals of the terminal are the program's to handle."""
    os.stat(home)
    with subprocess.Popen(["/bin/sh", "-c", 'exec "$@"', "sh", *program], cwd=home, env=environment) as child:
        before = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGQUIT)]
        previous = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            code = child.wait()
        finally:
            signal.signal(signal.SIGTERM, previous)
            for number, action in before:
                signal.signal(number, action)
    sys.stdout.flush()
    return 128 - code if code < 0 else code
