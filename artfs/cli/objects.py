"""`artfs sync`, `gc`, `warmup`, `cache`, `export`, `import`, `recover`: bytes that leave this host, and come back."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artfs.cli import mounttable
from artfs.cli.context import Context
from artfs.cli.output import Progress
from artfs.cli.parsing import Commands
from artfs.cli.values import moment, objects, size, waiting
from artfs.errors import ArtfsError, DamagedError, InvalidError

if TYPE_CHECKING:
    from artfs.store.connecting import Caller

WEB = "default/shared/web"
POLL = 0.25
"""Seconds between looks at how far a call is."""


def add(commands: Commands) -> None:
    parser = commands.add(
        "sync",
        sync,
        "wait until everything is in its provider: it survives the loss of this host",
        ["artfs sync", f"artfs sync {WEB}", "artfs sync ."],
        description="Bytes and metadata.  What is written later is not waited for.  If an upload fails, so does this,\n"
        "and says why; uploads go on all the same, in the process that serves the store.",
        paths=True,
    )
    parser.add_argument("path", metavar="NS", nargs="?", help="the namespace (default: all)")
    parser = commands.add(
        "gc",
        gc,
        "delete objects that nothing names, rewrite those that are mostly dead",
        ["artfs gc --dry-run", "artfs gc"],
        description="A mount does this by itself (settings gc_interval and gc_grace).  An object goes when two runs,\n"
        "a grace apart, have found that no namespace, version or saved copy of the metadata names it.",
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    parser = commands.add(
        "warmup",
        warmup,
        "bring a file, or all below a directory, from its provider to the cache",
        [f"artfs warmup {WEB}/models", "artfs warmup ."],
        paths=True,
    )
    parser.add_argument("path", metavar="PATH", help="a namespace, or a file or directory in one")
    cache = commands.group(
        "cache",
        "look at the cache of what providers have, or empty it",
        ["artfs cache status", "artfs cache drop", f"artfs cache drop {WEB}"],
    )
    cache.add("status", cache_status, "what is cached, what waits for upload, how full it is", ["artfs cache status"])
    parser = cache.add(
        "drop",
        cache_drop,
        "forget the local copies of what providers have",
        ["artfs cache drop", f"artfs cache drop {WEB}"],
        description="What is not uploaded stays.",
        paths=True,
    )
    parser.add_argument("path", metavar="NS", nargs="?", help="of that namespace (default: of all)")
    parser = commands.add(
        "export",
        export,
        "write a namespace, with its checkpoints, into a single file",
        [f"artfs export {WEB} web.artfs", "artfs export . /backup/web-2026.artfs"],
        description="The file appears when it is whole.  It holds one moment, while programs go on writing.",
        paths=True,
    )
    parser.add_argument("path", metavar="NS", help="the namespace")
    parser.add_argument("file", metavar="FILE", help="to be made; it must not exist")
    parser = commands.add(
        "import",
        import_,
        "make a namespace from an exported file, and print its grid path",
        ["artfs import web.artfs", f"artfs import web.artfs {WEB}", "artfs import web.artfs default/user-ada"],
        description="All of the file is verified before anything of it can be seen.",
        paths=True,
    )
    parser.add_argument("file", metavar="FILE", help="what `artfs export` wrote")
    parser.add_argument(
        "path", metavar="NS", nargs="?", help="SANDBOX/SCOPE[/NAME] (default: where it was; a taken name gets ~2)"
    )
    parser = commands.add(
        "recover",
        recover,
        "make a store again from its provider alone, and say of which moment it is",
        ["artfs --root /srv/store recover s3://bucket/prefix", "artfs recover 'sqlite:///srv/objects.db'"],
        description="For a new machine: it needs the provider, its credentials and, if objects are encrypted, the key\n"
        "(ARTFS_ENCRYPTION_KEY).  The store that was lost must not be used any more.",
    )
    parser.add_argument("url", metavar="URL", help="of the provider, as `artfs init --provider` had it")


def sync(ctx: Context) -> None:
    path = _optional(ctx)
    done = long(ctx, "sync", path=path)
    saved = done["saved"]
    ctx.out.result({"path": path, **done})
    if not ctx.out.json:
        moved = f"{size(done['bytes'])} uploaded; " if done["bytes"] else ""
        copied = f"; metadata saved {moment(saved['moment'])}" if saved and saved["moment"] else ""
        ctx.out.say(f"{moved}synced{copied}")


def gc(ctx: Context) -> None:
    found = long(ctx, "gc", dry_run=ctx.args.dry_run)
    ctx.out.result(found, [f"{name.replace('_', ' '):<14} {_count(name, found[name])}" for name in found])


def _count(name: str, value: Any) -> str:
    return size(value) if name.endswith("bytes") else str(value).lower() if isinstance(value, bool) else str(value)


def warmup(ctx: Context) -> None:
    path = ctx.locate(ctx.args.path)
    done = long(ctx, "warmup", path=path)
    ctx.out.result({"path": path, **done})
    if not ctx.out.json:
        ctx.out.say(f"{done['files']} files, {size(done['bytes'])}, are in the cache")


def cache_status(ctx: Context) -> None:
    found = ctx.call("cache_status")
    upload = found["upload"]
    lines = [
        f"copies       {size(found['copies'])} of what providers have, in {objects(found['objects'])}",
        f"waiting      {waiting(upload)}",
        f"limit        {size(found['limit'])}; evicts from {size(found['high'])} down to {size(found['low'])}",
        f"disk         {size(found['free'])} free; {size(found['reserve'])} are kept free",
        f"fetched      {size(found['fetched'])} in {found['fetches']} requests; {found['refetched']} again",
        f"uploaded     {size(found['uploaded'])} in {objects(found['uploads'])}",
        f"evicted      {objects(found['evicted'])}",
        f"writers      {'wait until there is room' if found['crowded'] else 'go on'}",
    ]
    for item in found["providers"]:
        lines.append(f"provider     {item['url'] or 'this directory'}: {item['namespaces']} namespaces")
    ctx.out.result(found, lines)


def cache_drop(ctx: Context) -> None:
    path = _optional(ctx)
    done = ctx.call("cache_drop", path=path)
    ctx.out.result({"path": path, **done})
    if not ctx.out.json:
        ctx.out.say(f"{size(done['bytes'])} dropped")


def export(ctx: Context) -> None:
    path = ctx.locate(ctx.args.path)
    file = _outside(ctx.args.file)
    done = long(ctx, "ns_export", path=path, file=file)
    ctx.out.result(done)
    if not ctx.out.json:
        ctx.out.say(f"{file}: {done['grid_path']}, {done['checkpoints']} checkpoints, {size(done['bytes'])}")


def import_(ctx: Context) -> None:
    path = _optional(ctx)
    made = long(ctx, "ns_import", file=os.path.abspath(ctx.args.file), path=path)
    ctx.out.result(made, [made["grid_path"]])


def recover(ctx: Context) -> None:
    import anyio

    from artfs.objects import Home
    from artfs.objects.opening import canonical_url
    from artfs.objects.providers import OpenProviders
    from artfs.settings import Settings, environment
    from artfs.volume.recovery import Recovered
    from artfs.volume.recovery import recover as work

    url = canonical_url(ctx.args.url)
    settings = Settings.model_validate(environment(os.environ))
    kept = {"encryption_key": settings.encryption_key} if settings.encryption_key else {}

    async def main() -> Recovered:
        with tempfile.TemporaryDirectory(prefix="artfs-recover-") as scratch:
            providers = OpenProviders(settings, Path(scratch))
            try:
                plain = providers.get(Home(url))
                await plain.check()
                coded = providers.get(Home(url, "aes")) if kept else plain
                return await work(coded, url, ctx.root, line.bytes, marked=plain, config=kept)
            except DamagedError as error:
                if kept:
                    raise
                what = "if it is encrypted, set ARTFS_ENCRYPTION_KEY to where the key is"
                raise DamagedError(f"{error}; {what}") from error
            finally:
                await providers.close()

    with ctx.out.progress("recover") as line:
        found = anyio.run(main)
    ctx.out.result({"root": str(ctx.root), "url": url, **asdict(found)}, [str(ctx.root)])
    if ctx.out.json:
        return
    ctx.out.say(f"the store is as it was at {moment(found.moment)}, with {found.namespaces} namespaces")
    for damage in found.skipped:
        ctx.out.say(f"a newer copy of the metadata is damaged: {damage}")
    for url in found.others:
        ctx.out.say(f"of some namespaces the bytes are in {url}")
    for path in found.elsewhere:
        ctx.out.say(f"the bytes of {path} were in the lost directory alone")
    for path, when in found.older.items():
        ctx.out.say(f"{path} is as it was at {moment(when)}: its provider had not got what came later")
    for path in found.partial:
        ctx.out.say(f"some bytes of {path} may be lost: its provider had not got all of them")


def _optional(ctx: Context) -> str | None:
    return None if ctx.args.path is None else ctx.locate(ctx.args.path)


def _outside(file: str) -> str:
    """The absolute path.  Errors: InvalidError inside a mount: the owner would wait for itself, and change what it
    exports."""
    path = os.path.join(os.path.realpath(os.path.dirname(file) or "."), os.path.basename(file))
    entry = mounttable.holding(os.path.dirname(path), mounttable.read_mounts())
    if entry is not None and entry.ours:
        raise InvalidError(f"{file} is inside a mount of artfs; export to another place")
    return path


# calls that take long
def long(ctx: Context, method: str, **arguments: Any) -> Any:
    """One call, with a line on the terminal that says how far it is."""
    import anyio

    name = method.removeprefix("ns_")

    async def work(caller: Caller) -> Any:
        if not line.shown:
            return await caller.call(method, **arguments)
        failure: Exception | None = None
        result = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, ctx.root, caller, name, line)
            try:
                result = await caller.call(method, **arguments)
            except Exception as error:  # not through the group, which would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result

    with ctx.out.progress(name) as line:
        return ctx.ask(work)


async def _watch(root: Path, caller: Caller, call: str, line: Progress) -> None:
    """Shows the newest job of that name, until cancelled; a client has one call at a time, so this is another."""
    import anyio

    from artfs.store.socket import Client

    other = await Client.connect(root) if isinstance(caller, Client) else None
    try:
        while True:
            await anyio.sleep(POLL)
            found = await (other or caller).call("status")
            for job in [job for job in found["jobs"] if job["call"] == call][-1:]:
                if job["count"]:
                    line.text(f"{job['count']} files, {size(job['done'])}")
                else:
                    line.bytes(job["done"], job["total"])
    except ArtfsError:
        return  # the call itself tells what is wrong
    finally:
        if other is not None:
            with anyio.CancelScope(shield=True):
                await other.aclose()
