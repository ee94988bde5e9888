"""`artfs mount` and `artfs umount`: what can be seen to be wrong before anything starts, with its remedy."""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from artfs.cli import mounttable
from artfs.cli.context import Context, check_access
from artfs.cli.machine import PATIENCE, within
from artfs.cli.mount_helper import mount_options
from artfs.cli.mounttable import Entry
from artfs.cli.output import Progress
from artfs.cli.parsing import Commands
from artfs.cli.values import objects, size, waiting
from artfs.errors import ArtfsError, BusyError, DeniedError, InvalidError, NotFoundError

FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"
POLL = 0.2
"""Seconds between looks at a process that is about to end."""
_HOLDER = re.compile(r"process (\d+)\b")


@dataclass(frozen=True, slots=True)
class Plan:
    """A mount to be made.  `who` None: admin; `part`: what of the grid; `passed`: options for the kernel."""

    root: Path
    point: Path
    part: str = "grid"
    who: str | None = None
    sandbox: str | None = None
    checked: bool = False
    allow_other: bool = False
    passed: tuple[str, ...] = ()
    verbose: bool = False


def add(commands: Commands) -> None:
    parser = commands.add(
        "mount",
        mount,
        "mount the grid, or a part of it, at a directory",
        [
            "artfs mount ~/grid",
            "artfs mount --path default/shared/web -o ro /mnt/web",
            "artfs mount --as session:review /mnt/review    what that session may see",
            "artfs --root /srv/store mount --checked /mnt/grid",
            "mount -t fuse.artfs -o allow_other /srv/store /mnt/grid",
        ],
        description="Makes a store if there is none.  Returns when the mount answers; a process in the background\n"
        "serves it, which logs to mount.log in the store.  `artfs umount` ends it.\n\n"
        "mount(8) and fstab find artfs only in the system's directories: link it into /usr/local/bin for them.",
        paths=True,
    )
    parser.add_argument("point", metavar="DIR", help="an existing directory")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in front, log to stderr")
    parser.add_argument("--path", metavar="PATH", help="the part of the grid to mount (default: all)")
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--checked", action="store_true", help="for many users, told apart by uid (setting uid_map); slower"
    )
    who.add_argument("--as", dest="who", metavar="WHO", help="session:ID, user:ID or admin (default), for all callers")
    parser.add_argument("--sandbox", metavar="ID", help="of the session or user of --as (default: the store's)")
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="as in fstab, separated by commas: allow_other, ro, noexec …; path=, as=, sandbox=, checked",
    )
    parser.add_argument("--no-init", action="store_true", help="fail if there is no store")
    parser = commands.add(
        "umount",
        umount,
        "take a mount away; returns when its process has written everything and ended",
        ["artfs umount ~/grid", "artfs umount -l ~/grid"],
        description="Waits until everything is committed and uploaded, up to the setting drain_limit, and says how\n"
        "much is left then.  ^C, or a second umount, leaves the rest of the uploads to the next mount.\n"
        "Also cleans up a mount whose process has died.",
    )
    parser.add_argument("point", metavar="DIR", help="where it is mounted")
    parser.add_argument(
        "-l", "--lazy", action="store_true", help="at once; programs that are in it finish with what they have open"
    )


def mount(ctx: Context) -> int:
    from artfs.cli.daemon import in_background, in_front

    plan = make_plan(ctx)
    check_machine(plan)
    check_point(plan, mounttable.read_mounts())
    check_access(plan.root)
    made = prepare_store(ctx)
    if ctx.args.foreground:
        in_front(plan, lambda: ctx.out.say(f"{plan.point} shows {plan.part} of {plan.root}"))
        return 0
    pid = in_background(plan, ctx.out)
    ctx.out.result({"point": str(plan.point), "root": str(plan.root), "path": plan.part, "pid": pid, "made": made})
    if not ctx.out.json:
        ctx.out.say(f"{plan.point} shows {plan.part} of {plan.root} (process {pid})")
    return 0


def make_plan(ctx: Context) -> Plan:
    from artfs.grid import parse_path
    from artfs.settings import parse_principal

    args = ctx.args
    options = mount_options(args.options)
    path = args.path if args.path is not None else options.path
    who = args.who or options.who
    checked = args.checked or options.checked
    if checked and who is not None:
        raise InvalidError("a checked mount tells its callers apart; leave --as (or as=) out, or --checked")
    sandbox = args.sandbox or options.sandbox or ctx.sandbox
    if who is not None:
        parse_principal(who, sandbox or "default")
    return Plan(
        root=Path(os.path.realpath(ctx.root)),
        point=Path(os.path.realpath(args.point)),
        part=str(parse_path(path or "grid")),
        who=who,
        sandbox=sandbox,
        checked=checked,
        allow_other=options.allow_other,
        passed=tuple(options.passed),
        verbose=ctx.out.verbose,
    )


def prepare_store(ctx: Context) -> bool:
    """Make a store if there is none; whether one was made.  Errors: NotFoundError with --no-init, FormatError."""
    from artfs.settings import STORE_FILE, create_store, read_store

    if not ctx.args.no_init and not os.path.lexists(ctx.root / STORE_FILE):
        create_store(ctx.root, provider=ctx.home)
        ctx.out.say(f"there was no store at {ctx.root}; made one")
        return True
    read_store(ctx.root)
    return False


def check_machine(plan: Plan) -> None:
    """Errors: ArtfsError, DeniedError."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise ArtfsError(
            f"there is no {FUSE_DEVICE}: load the kernel's module with `modprobe fuse`; a container must be run with "
            "--device /dev/fuse --cap-add SYS_ADMIN"
        ) from None
    except PermissionError:
        raise DeniedError(f"no permission to open {FUSE_DEVICE}: let its mode be 0666, as udev makes it") from None
    except OSError as error:
        raise ArtfsError(f"{FUSE_DEVICE}: {error.strerror}; `artfs doctor` says what is missing") from None
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise DeniedError("no permission to mount: install fuse3, whose fusermount3 mounts for users, or become root")
    if (plan.allow_other or plan.checked) and not _users_may_open():
        raise DeniedError(
            f"no permission to open a mount to others (allow_other, --checked): add the line user_allow_other to "
            f"{FUSE_CONF} as root, or leave the option out"
        )


def _users_may_open() -> bool:
    try:
        lines = Path(FUSE_CONF).read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def check_point(plan: Plan, mounts: list[Entry]) -> None:
    """Errors: NotFoundError, InvalidError, BusyError, DeniedError."""
    point, root = str(plan.point), str(plan.root)
    entry = mounttable.at(point, mounts)
    if entry is not None and entry.ours:
        if _state(point) == "dead":
            raise BusyError(
                f"{point} is a mount whose process has died; clean it up with `artfs umount {point}`, then try again"
            )
        raise BusyError(f"{point} is mounted already (it shows {entry.source}); `artfs umount {point}` takes it away")
    if not os.path.lexists(point):
        raise NotFoundError(f"the mount point {point} does not exist; make it with `mkdir -p {point}`")
    if not os.path.isdir(point):
        raise InvalidError(f"the mount point {point} is no directory; choose another")
    if f"{root}/".startswith(f"{point}/") or f"{point}/".startswith(f"{root}/"):
        raise InvalidError(f"the mount point {point} and the store {root} are inside each other; choose another DIR")
    holder = mounttable.holding(root, mounts)
    if holder is not None and holder.ours:
        raise InvalidError(
            f"the store {root} is inside an artfs mount, it would wait for itself; choose another --root"
        )
    if os.geteuid() != 0 and not os.access(point, os.W_OK):
        raise DeniedError(
            f"no permission to mount at {point}: it must be writable for you; choose a directory of yours"
        )


def _state(point: str) -> str:
    """`alive`, `dead` or `silent`; never waits for long."""
    try:
        return "dead" if within(PATIENCE, lambda: mounttable.is_dead(point)) else "alive"
    except TimeoutError:
        return "silent"


def umount(ctx: Context) -> None:
    from concurrent.futures import ThreadPoolExecutor

    point = os.path.realpath(ctx.args.point)
    mounts = mounttable.read_mounts()
    entry = mounttable.at(point, mounts)
    if entry is None and (last := _ending(ctx.root, point)) is not None:
        wait_for_end(last)
        _report(ctx, point, "ended", ctx.root, last)
        return
    if entry is None:
        raise NotFoundError(f"nothing is mounted at {point}; `findmnt -t {mounttable.TYPE}` lists artfs' mounts")
    if not entry.ours:
        raise InvalidError(f"what is mounted at {point} is not artfs' ({entry.type}); use umount")
    state = _state(point)
    if state == "silent" and not ctx.args.lazy:
        raise BusyError(f"the mount at {point} does not answer; `artfs umount -l {point}` takes it away all the same")
    # A second bind of the same mount leaves the process where it is.
    others = [other for other in mounts if other is not entry and other.ours and other.source == entry.source]
    root = entry.store[0] if entry.store is not None and not others else None
    pid = holder(root) if root is not None else None
    with ctx.out.progress(f"unmounting {point}") as line, ThreadPoolExecutor(1) as thread:
        task = thread.submit(mounttable.unmount, point, lazy=ctx.args.lazy or state == "dead")
        while not task.done():
            _tell(line, root)
            select.select([], [], [], 0.005 if line.waited() < POLL else POLL)
        task.result()
        if state == "alive" and not ctx.args.lazy and root is not None and pid is not None:
            _wait(line, root, pid)
    _report(ctx, point, state, root, pid)


def _wait(line: Progress, root: Path, pid: int) -> None:
    """Until the process has ended; an interruption leaves what is to be uploaded to the next owner."""
    try:
        wait_for_end(pid, lambda: _tell(line, root))
    except KeyboardInterrupt:
        wait_for_end(pid, lambda: _hurry(root))


def _ending(root: Path, point: str) -> int | None:
    """The process of a mount that was there, which still uploads, and is now told to end; None: there is none."""
    owner = (owner_status(root) or {"owner": {"pid": 0, "role": ""}})["owner"]
    return int(owner["pid"]) if owner["role"] == f"artfs mount {point}" and _hurry(root) else None


def _report(ctx: Context, point: str, state: str, root: Path | None, pid: int | None) -> None:
    behind, unsaved = {"bytes": 0, "objects": 0}, ""
    if root is not None and not ctx.args.lazy:
        behind, unsaved = left_behind(root), unsaved_trouble(root)
    ctx.out.result({"point": point, "state": state, "pid": pid, "waiting": behind, "unsaved": unsaved})
    if ctx.out.json:
        return
    if unsaved:
        ctx.out.say(f"the newest metadata are not with the provider: {unsaved}; the next mount goes on with that")
    if behind["objects"]:
        ctx.out.say(
            f"{size(behind['bytes'])} in {objects(behind['objects'])} still to be uploaded; the next mount goes on "
            "with that, and so does `artfs sync`"
        )
    if state == "dead":
        ctx.out.say(f"{point} was dead and is cleaned up; `artfs mount {point}` mounts it again")
    elif ctx.args.lazy:
        ctx.out.say(f"{point} is taken away; its process ends when the last program lets go of it")


def holder(root: Path) -> int | None:
    """The process that has the store's lock; None if none is known, or it is not for us to see."""
    try:
        match = _HOLDER.match((root / "lock").read_text())
        if match is None:
            return None
        os.kill(int(match[1]), 0)
    except PermissionError:
        pass
    except OSError:
        return None
    return int(match[1]) if match is not None else None


def wait_for_end(pid: int, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Until that process has ended; calls `meanwhile` now and then."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        if error.errno == errno.ESRCH:
            return
        raise
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(POLL * 1000):
            meanwhile()
    finally:
        os.close(descriptor)


def _tell(line: Progress, root: Path | None) -> None:
    """How much is left, on a terminal."""
    if not line.shown or root is None or line.waited() < 2 * POLL:
        return
    found = owner_status(root)
    line.text("writing what is left" if found is None else left(found))


def left(found: dict[str, Any]) -> str:
    """What an owner that is about to end still does, by its status."""
    if found["statistics"]["journal_used"]:
        return f"to commit: {size(found['statistics']['journal_used'])}"
    if found["waiting"]["bytes"]:
        return f"to upload: {waiting(found['waiting'])}"
    if found["saved"] is not None:
        trouble = found["saved"]["trouble"]
        return "to save: the metadata" + (f"; the last attempt failed: {trouble}" if trouble else "")
    return "ending"


def _hurry(root: Path) -> bool:
    """Have the owner leave what waits to the next; whether it uploads, and does so."""
    return bool(_ask_owner(root, "let_go"))


def owner_status(root: Path) -> dict[str, Any] | None:
    """What the owner tells of itself, if it does."""
    found: dict[str, Any] | None = _ask_owner(root, "status")
    return found


def _ask_owner(root: Path, method: str) -> Any:
    """None if nobody has the store, or does not answer."""
    import anyio

    from artfs.store.socket import Client

    async def ask() -> Any:
        client = await Client.connect(root)
        if client is None:
            return None
        try:
            return await client.call(method)
        finally:
            await client.aclose()

    try:
        return anyio.run(ask)
    except (ArtfsError, OSError):
        return None


def unsaved_trouble(root: Path) -> str:
    """Why the last owner left no copy of its metadata with the provider; empty if it did, or had to make none."""
    from artfs.volume.noted import read_note

    return read_note(root).trouble


def left_behind(root: Path) -> dict[str, int]:
    """Bytes and objects that no provider has, of a store that nobody serves: the next owner uploads them."""
    import sqlite3

    found = {"bytes": 0, "objects": 0}
    try:
        with closing(sqlite3.connect(f"file:{quote(str(root / 'meta.db'))}?mode=ro", uri=True)) as db:
            query = "SELECT doc FROM record WHERE kind = 'prefix' AND id IN (SELECT id FROM record WHERE kind = 'home')"
            prefixes = [str(prefix) for (prefix,) in db.execute(query)]
        for prefix in prefixes:
            for entry in os.scandir(root / "objects" / prefix) if (root / "objects" / prefix).is_dir() else ():
                found["bytes"] += entry.stat().st_size
                found["objects"] += 1
    except (OSError, sqlite3.Error):  # another owner has come, or has gone further
        pass
    return found
