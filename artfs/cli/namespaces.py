"""`artfs ns …`, and `artfs du`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from artfs.cli.context import Context
from artfs.cli.parsing import Commands, Parser
from artfs.cli.values import duration, moment, pairs, size
from artfs.errors import InvalidError
from artfs.types import NamespaceType

if TYPE_CHECKING:
    from artfs.store.connecting import Caller

WEB = "default/shared/web"
LOCAL = "local"
MEMORY = "memory:"
PROVIDER_TYPES = ("memory", "filesystem", "sqlite", "s3", "ibm_cos", "vfs")


def add(commands: Commands) -> None:
    group = commands.group(
        "ns",
        "make, list, clone and delete namespaces",
        [f"artfs ns create {WEB}", "artfs ns list default/shared", f"artfs ns clone {WEB} experiment"],
    )
    parser = group.add(
        "create",
        create,
        "make a namespace and print its grid path",
        [
            f"artfs ns create {WEB}",
            "artfs ns create default/user-ada --type blob       its id becomes its name",
            "artfs ns create default/sess-review/build --ttl 2h",
            f"artfs ns create {WEB} --provider 's3://bucket/prefix?region=eu-west-1' --compression zstd",
        ],
        description="Where its bytes live is fixed when it is made.",
        paths=True,
    )
    parser.add_argument("path", metavar="PATH", help="SANDBOX/SCOPE/NAME; without NAME its id is its name")
    parser.add_argument("--type", choices=list(NamespaceType), default="workspace", help="default: workspace")
    parser.add_argument("--ttl", type=duration, metavar="TIME", help="delete it after 30m, 2h, 7d … (default: never)")
    parser.add_argument("--meta", action="append", default=[], metavar="KEY=VALUE", help="metadata")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--provider",
        metavar="URL",
        help="s3://…, file:///…, sqlite:///…, memory:, or local: the store's directory (default: as the settings say)",
    )
    where.add_argument(
        "--provider-type",
        metavar="TYPE",
        choices=PROVIDER_TYPES,
        help=f"{', '.join(PROVIDER_TYPES)}: where the environment's variables say; vfs is local",
    )
    parser.add_argument(
        "--compression",
        choices=("zstd", "none"),
        help="of what is uploaded, of a workspace (default: as the settings say)",
    )
    parser = group.add(
        "list", list_, "list namespaces", ["artfs ns list", "artfs ns list default/user-ada"], paths=True
    )
    parser.add_argument("path", metavar="PATH", nargs="?", default="grid", help="those below it (default: all)")
    parser.add_argument("--trash", action="store_true", help="those that were deleted and can be brought back")
    _path(group.add("info", info, "show a namespace", [f"artfs ns info {WEB}", "artfs ns info ."], paths=True))
    parser = group.add("rename", rename, "rename a namespace in its scope", [f"artfs ns rename {WEB} site"], paths=True)
    _path(parser)
    parser.add_argument("name", metavar="NAME", help="its new name")
    parser = group.add(
        "clone",
        clone,
        "branch a namespace, or one of its checkpoints; data are shared",
        [f"artfs ns clone {WEB} experiment", f"artfs ns clone {WEB} old --checkpoint v1"],
        paths=True,
    )
    _path(parser)
    parser.add_argument("name", metavar="NAME", help="of the new namespace, in the same scope")
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", help="what to branch (default: as it is now)")
    parser = group.add(
        "delete",
        delete,
        "delete a namespace; one with checkpoints stays in the trash for a day",
        [f"artfs ns delete {WEB}"],
        paths=True,
    )
    _path(parser)
    parser.add_argument("--for-good", action="store_true", help="not to the trash; also empties it of this one")
    parser = group.add(
        "undelete",
        undelete,
        "bring a namespace back from the trash",
        ["artfs ns list --trash", f"artfs ns undelete {WEB}"],
        paths=True,
    )
    parser.add_argument("path", metavar="PATH", help="where it was, or its id")
    parser = commands.add(
        "du",
        du,
        "what namespaces hold, without their checkpoints, or a directory in one",
        ["artfs du", "artfs du default/shared", f"artfs du {WEB}/src", f"artfs du {WEB}/.checkpoints/v1"],
        paths=True,
    )
    parser.add_argument("path", metavar="PATH", nargs="?", default="grid", help="what is below it (default: all)")


def _path(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="the namespace")


def create(ctx: Context) -> None:
    args = ctx.args
    wanted = {
        "path": ctx.locate(args.path),
        "type": args.type,
        "ttl_seconds": args.ttl,
        "metadata": pairs(args.meta),
        "provider": provider_url(args.provider, args.provider_type),
        "compression": {"none": ""}.get(args.compression, args.compression),
    }

    async def work(caller: Caller) -> Any:
        made = await caller.call("ns_create", **wanted)
        if made["provider"] == MEMORY:
            owner = (await caller.call("status"))["owner"]
            if owner["role"].startswith("artfs ") and not owner["role"].startswith("artfs mount"):
                await caller.call("ns_delete", path=made["id"], for_good=True)
                raise InvalidError(
                    f"{made['grid_path']} would be gone at once: {MEMORY} ends with the process that has the store, "
                    "and that is a command; mount the store first (`artfs mount DIR`), or choose another --provider"
                )
        return made

    made = ctx.ask(work)
    ctx.out.result(made, [made["grid_path"]])


def provider_url(url: str | None, type: str | None) -> str | None:
    """What `--provider` or `--provider-type` means; None: neither was given.  Errors: InvalidError."""
    if type is None and url in (None, LOCAL):
        return "" if url == LOCAL else None
    if type is not None:
        from artfs.objects.opening import provider_from_env

        return provider_from_env(type)
    from artfs.objects.opening import canonical_url

    return canonical_url(str(url))


def list_(ctx: Context) -> None:
    found = ctx.call("ns_list", path=ctx.locate(ctx.args.path), trash=ctx.args.trash)
    last = "DELETED" if ctx.args.trash else "EXPIRES"
    rows = [
        (
            n["grid_path"],
            n["type"],
            size(n["bytes"]),
            str(n["inodes"]),
            str(n["checkpoints"]),
            moment(n["trashed"] if ctx.args.trash else n["expires"]),
        )
        for n in found
    ]
    ctx.out.rows(found, ("GRID PATH", "TYPE", "SIZE", "INODES", "CHECKPOINTS", last), rows, (2, 3, 4))
    if not found:
        ctx.out.say("the trash is empty" if ctx.args.trash else "there is no namespace; `artfs ns create` makes one")


def info(ctx: Context) -> None:
    _show(ctx, ctx.call("ns_info", path=ctx.locate(ctx.args.path)))


def rename(ctx: Context) -> None:
    renamed = ctx.call("ns_rename", path=ctx.locate(ctx.args.path), name=ctx.args.name)
    ctx.out.result(renamed, [renamed["grid_path"]])


def clone(ctx: Context) -> None:
    args = ctx.args
    made = ctx.call("ns_clone", path=ctx.locate(args.path), name=args.name, checkpoint=args.checkpoint)
    ctx.out.result(made, [made["grid_path"]])


def delete(ctx: Context) -> None:
    path = ctx.locate(ctx.args.path)
    done = ctx.call("ns_delete", path=path, for_good=ctx.args.for_good)
    ctx.out.result({"deleted": path, **done})
    if not ctx.out.json:
        back = f"; `artfs ns undelete {path}` brings it back within a day" if done["trashed"] else ""
        ctx.out.say(f"{path} is deleted{back}")


def undelete(ctx: Context) -> None:
    back = ctx.call("ns_undelete", path_or_id=ctx.locate(ctx.args.path))
    ctx.out.result(back, [back["grid_path"]])


def du(ctx: Context) -> None:
    found = ctx.call("du", path=ctx.locate(ctx.args.path))
    total = {"bytes": sum(n["bytes"] for n in found), "inodes": sum(n["inodes"] for n in found)}
    rows = [(size(n["bytes"]), str(n["inodes"]), n["path"]) for n in found]
    rows.append((size(total["bytes"]), str(total["inodes"]), "total"))
    ctx.out.rows({"namespaces": found, **total}, ("SIZE", "INODES", "GRID PATH"), rows, (0, 1))


def _show(ctx: Context, namespace: dict[str, Any]) -> None:
    lines = [
        f"grid path    {namespace['grid_path']}",
        f"id           {namespace['id']}",
        f"type         {namespace['type']}",
        f"holds        {size(namespace['bytes'])} in {namespace['inodes']} inodes",
        f"checkpoints  {namespace['checkpoints']}",
        f"created      {moment(namespace['created'])}",
        f"expires      {moment(namespace['expires'])}",
        f"metadata     {json.dumps(namespace['metadata'], ensure_ascii=False)}",
        f"provider     {namespace['provider'] or 'the store'}"
        + (f" ({codec})" if (codec := namespace["codec"]) else ""),
        f"store        {namespace['root']}",
    ]
    ctx.out.result(namespace, lines)
