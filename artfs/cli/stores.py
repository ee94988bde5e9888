"""`artfs init`, `status`, `stats`, `fsck`, `doctor`, `version`: the store and the machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from artfs import __version__
from artfs.cli import mounttable
from artfs.cli.context import Context, locate
from artfs.cli.parsing import Commands
from artfs.cli.values import moment, saved, size, waiting
from artfs.errors import InvalidError

DAMAGED = 6


def add(commands: Commands) -> None:
    parser = commands.add(
        "init",
        init,
        "make a store",
        [
            "artfs init",
            "artfs --root /srv/store init --block-size 262144",
            "artfs init --provider 's3://bucket/prefix?region=eu-west-1'",
        ],
        description="`artfs mount` makes one, too, if there is none.  With --provider the provider must answer, and\n"
        "its place must not belong to another store; credentials come from the environment.",
    )
    parser.add_argument(
        "--block-size", type=int, metavar="BYTES", help="a power of two, 131072 to 4194304 (default: 1048576)"
    )
    parser.add_argument(
        "--provider",
        metavar="URL",
        help="where the bytes of its namespaces live: s3://…, file:///… or sqlite:///… (default: in the store)",
    )
    for name, function, help in (
        ("status", status, "what the store holds, who owns it, and whether it is well"),
        ("stats", stats, "counters of the store's owner and its mounts"),
    ):
        parser = commands.add(name, function, help, [f"artfs {name}", f"artfs {name} ~/grid", f"artfs {name} --json"])
        parser.add_argument("path", metavar="MOUNT", nargs="?", help="the store of that mount")
    parser = commands.add(
        "fsck",
        fsck,
        "check every rule of the store's format; exit code 6 if something is wrong",
        ["artfs fsck", "artfs fsck --data --repair"],
        description="The store must not be mounted, or otherwise in use.",
    )
    parser.add_argument("--repair", action="store_true", help="mend what can be mended without inventing bytes")
    parser.add_argument("--data", action="store_true", help="read all data and compare them with their hashes")
    commands.add(
        "doctor", doctor, "what this machine lacks, and how to get it", ["artfs doctor", "artfs doctor --json"]
    )
    commands.add("version", version, "versions of artfs and what it stands on", ["artfs version --json"])


def init(ctx: Context) -> None:
    from artfs.cli.namespaces import provider_url
    from artfs.settings import CONFIG_FILE, create_store

    chosen = {} if ctx.args.block_size is None else {"block_size": ctx.args.block_size}
    given = provider_url(ctx.args.provider, None)
    url = ctx.home if given is None else given
    config = ctx.root / CONFIG_FILE
    if url and config.exists():
        raise InvalidError(f"{config} is there already; leave --provider out, and set provider in that file")
    kept = set(ctx.root.iterdir()) if ctx.root.is_dir() else None
    made = create_store(ctx.root, **chosen, provider=url)
    if url:
        try:
            _claim(ctx, url)
        except BaseException:
            _unmake(ctx.root, kept)
            raise
    ctx.out.result({"root": str(ctx.root), **made.model_dump(), "provider": url}, [str(ctx.root)])
    if not ctx.out.json:
        ctx.out.say("an empty store; `artfs mount DIR` shows it as a directory")


def _claim(ctx: Context, url: str) -> None:
    """See that the provider answers, and make its place this store's.  Errors: as `Provider.check`, BusyError."""
    import anyio

    from artfs.objects.opening import open_provider
    from artfs.settings import load_settings

    async def check() -> None:
        provider = open_provider(url, load_settings(ctx.root))
        try:
            await provider.check()
        finally:
            await provider.close()

    anyio.run(check)
    ctx.call("status")  # whoever opens the store claims the place


def _unmake(root: Path, kept: set[Path] | None) -> None:
    """Take a store away that was begun; `kept` was there before, None: not even the directory."""
    if kept is None:
        shutil.rmtree(root)
        return
    for path in set(root.iterdir()) - kept:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _of_mount(ctx: Context) -> None:
    """The store is that of the mount that is named.  Errors: InvalidError, BusyError for a dead mount."""
    path = ctx.args.path
    if path is not None:
        ctx.locate(path)
        if locate(path, mounttable.read_mounts) is None:
            raise InvalidError(f"{path} is not inside a mount of artfs; `findmnt -t fuse.artfs` lists them")


def status(ctx: Context) -> int:
    _of_mount(ctx)
    found = ctx.call("status")
    owner, numbers = found["owner"], found["statistics"]
    lines = [
        f"store        {found['root']} (format {found['format']})",
        f"state        {found['failure'] or found['trouble'] or 'well'}",
        f"owner        process {owner['pid']} ({owner['role']})",
        f"mounted at   {', '.join(found['mounts']) or '-'}",
        f"holds        {found['namespaces']} namespaces, {found['sessions']} sessions, {found['trash']} in the trash",
        f"journal      {size(numbers['journal_used'])} of {size(numbers['journal_size'])} wait for a commit",
        f"provider     {found['provider'] or 'this directory'}",
        f"waiting      {waiting(found['waiting'])}",
    ]
    lines += [f"missing      {why}" for why in found["missing"].values()]
    if len(found["waiting"]["providers"]) > 1:
        lines += [f"  for        {item['url']}: {waiting(item)}" for item in found["waiting"]["providers"]]
    if found["saved"] is not None:
        lines.append(f"saved        {saved(found['saved'])}")
    lines += [f"running      {job['call']}, since {moment(job['started'])}" for job in found["jobs"]]
    ctx.out.result(found, lines)
    return DAMAGED if found["failure"] else 0


def stats(ctx: Context) -> None:
    _of_mount(ctx)
    found = ctx.call("stats")
    ctx.out.result(found, [f"{name:<28} {value}" for name, value in _flat(found)])


def _flat(document: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for name, value in document.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{name}.")
        else:
            lines.append((prefix + name, value or "-" if isinstance(value, str) else json.dumps(value)))
    return lines


def fsck(ctx: Context) -> int:
    from artfs.volume.fsck import check

    with ctx.out.progress("fsck") as line:
        report = check(ctx.root, repair=ctx.args.repair, data=ctx.args.data, progress=line.steps)
    document = {"ok": report.ok, **asdict(report)}
    lines = [
        f"{'repaired ' if problem.repaired else ''}{problem.kind}: {problem.where}: {problem.what}"
        for problem in report.problems
    ]
    mended = sum(problem.repaired for problem in report.problems)
    left = len(report.problems) - mended
    lines += [f"note: {note}" for note in report.notes]
    lines.append("  ".join(f"{name} {count}" for name, count in report.counts.items()))
    lines.append("the store is clean" if not report.problems else f"problems left: {left}, repaired: {mended}")
    ctx.out.result(document, filter(None, lines))
    if left and not ctx.args.repair:
        ctx.out.say("`artfs fsck --repair` mends what can be mended without inventing bytes")
    return 0 if report.ok else DAMAGED


def doctor(ctx: Context) -> int:
    from artfs.cli.doctor import doctor as examine

    return examine(ctx.root, ctx.out.json)


def version(ctx: Context) -> None:
    import platform
    from importlib import metadata

    from artfs.cli.machine import EXTRAS, PACKAGES
    from artfs.settings import FORMAT

    found: dict[str, Any] = {"artfs": __version__, "format": FORMAT, "python": platform.python_version()}
    for name in (*PACKAGES, *EXTRAS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["kernel"] = platform.release()
    ctx.out.result(found, [f"{name:<12} {value or 'not installed'}" for name, value in found.items()])
