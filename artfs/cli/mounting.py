"""`artfs mount`: what can be seen to be wrong before anything starts, with its remedy."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from artfs.cli import mounttable
from artfs.cli.context import Context, check_access
from artfs.cli.mount_helper import MountOptions, mount_options
from artfs.cli.mounttable import Entry
from artfs.cli.parsing import Commands
from artfs.cli.unmounting import state_of
from artfs.errors import ArtfsError, BusyError, DeniedError, InvalidError, NotFoundError

FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"


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
        help="as in fstab, separated by commas: allow_other, ro, noexec …; path=, as=, sandbox=, checked; remount",
    )
    parser.add_argument("--no-init", action="store_true", help="fail if there is no store")


def mount(ctx: Context) -> int:
    from artfs.cli.daemon import in_background, in_front

    options = mount_options(ctx.args.options)
    if options.remount:
        return remount(ctx, options)
    plan = make_plan(ctx, options)
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


def remount(ctx: Context, options: MountOptions) -> int:
    """Give a mount that is there other options of the kernel's.  Errors: InvalidError, NotFoundError, ArtfsError."""
    args = ctx.args
    # mount(8) repeats what is in fstab, and what the kernel's table shows.
    ours = options.path or options.who or options.sandbox or options.checked or options.allow_other
    if args.path or args.who or args.sandbox or args.checked or args.foreground or (ours and not options.all_named):
        raise InvalidError("remount changes the kernel's options alone; unmount, and mount with the others")
    point = os.path.realpath(args.point)
    entry = mounttable.at(point, mounttable.read_mounts())
    if entry is None or not entry.ours:
        raise NotFoundError(f"no mount of artfs is at {point}; `findmnt -t {mounttable.TYPE}` lists them")
    flags = options.passed if "ro" in options.passed else [*options.passed, "rw"]
    mounttable.remount(point, flags, keep=not options.all_named)
    ctx.out.result({"point": point, "options": flags})
    return 0


def make_plan(ctx: Context, options: MountOptions) -> Plan:
    from artfs.grid import parse_path
    from artfs.settings import parse_principal

    args = ctx.args
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
        if state_of(point) == "dead":
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
