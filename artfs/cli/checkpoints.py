"""`artfs checkpoint …`."""

from __future__ import annotations

import json
from typing import Any

from artfs.cli.context import Context
from artfs.cli.parsing import Commands, Parser
from artfs.cli.values import moment, pairs, size


def add(commands: Commands) -> None:
    group = commands.group(
        "checkpoint",
        "make, list, restore and compare checkpoints of a namespace",
        ["artfs checkpoint create . v1", "artfs checkpoint diff . v1", "artfs checkpoint restore . v1"],
    )
    parser = group.add(
        "create",
        create,
        "make a checkpoint of a namespace, at once, and print its name",
        ["artfs checkpoint create default/shared/web v1", "artfs checkpoint create .         in a mounted workspace"],
        description="It holds everything that was written before, also through a mount.",
        paths=True,
    )
    _path(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="its name (default: made up)")
    parser.add_argument("-d", "--description", default="", metavar="TEXT")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="a label; JSON where it is")
    parser = group.add("list", list_, "list checkpoints", ["artfs checkpoint list ."], paths=True)
    _path(parser)
    parser.add_argument("-a", "--all", action="store_true", help="those that restores took for safety, too")
    parser = group.add(
        "restore",
        restore,
        "make a namespace what it was; a checkpoint for safety is taken first",
        ["artfs checkpoint restore . v1", "artfs checkpoint restore . ~restore-20260101T120000Z   undoes a restore"],
        paths=True,
    )
    _path(parser)
    _name(parser)
    parser = group.add("delete", delete, "delete a checkpoint", ["artfs checkpoint delete . v1"], paths=True)
    _path(parser)
    _name(parser)
    parser = group.add(
        "diff",
        diff,
        "what differs between two checkpoints, or between one and now",
        ["artfs checkpoint diff . v1", "artfs checkpoint diff . v1 v2 --json"],
        description="A line for each path: A added, D removed, M modified.",
        paths=True,
    )
    _path(parser)
    parser.add_argument("a", metavar="FROM", help="a checkpoint")
    parser.add_argument("b", metavar="TO", nargs="?", help="another (default: the namespace as it is now)")
    parser = group.add(
        "label", label, "set the labels of a checkpoint", ["artfs checkpoint label . v1 tests=passed"], paths=True
    )
    _path(parser)
    _name(parser)
    parser.add_argument("labels", metavar="KEY=VALUE", nargs="+", help="these replace all that it has")
    parser = group.add(
        "clone", clone, "branch a checkpoint as a namespace", ["artfs checkpoint clone . v1 old"], paths=True
    )
    _path(parser)
    _name(parser)
    parser.add_argument("new", metavar="NEW", help="name of the new namespace, in the same scope")


def _path(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="the namespace")


def _name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the checkpoint's name, or its id")


def create(ctx: Context) -> None:
    args = ctx.args
    path, labels = ctx.locate(args.path), pairs(args.label)
    made = ctx.call("checkpoint_create", path=path, name=args.name, description=args.description, labels=labels)
    ctx.out.result(made, [made["id"]])


def list_(ctx: Context) -> None:
    found = ctx.call("checkpoint_list", path=ctx.locate(ctx.args.path), all=ctx.args.all)
    rows = [(c["id"], moment(c["created"]), size(c["bytes"]), str(c["inodes"]), _remarks(c)) for c in found]
    ctx.out.rows(found, ("NAME", "CREATED", "SIZE", "INODES", "REMARKS"), rows, (2, 3))
    if not found:
        ctx.out.say("there is no checkpoint; `artfs checkpoint create` makes one")


def _remarks(checkpoint: dict[str, Any]) -> str:
    labels = [f"{key}={_value(value)}" for key, value in checkpoint["labels"].items()]
    return "  ".join(filter(None, [checkpoint["description"], *labels]))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def restore(ctx: Context) -> None:
    path = ctx.locate(ctx.args.path)
    done = ctx.call("checkpoint_restore", path=path, name=ctx.args.name)
    ctx.out.result({"restored": ctx.args.name, **done})
    if not ctx.out.json:
        undo = f"artfs checkpoint restore {ctx.args.path} {done['safety']}"
        ctx.out.say(f"restored {ctx.args.name}; `{undo}` takes that back")


def delete(ctx: Context) -> None:
    gone = ctx.call("checkpoint_delete", path=ctx.locate(ctx.args.path), name=ctx.args.name)
    ctx.out.result({"deleted": gone["id"]})
    if not ctx.out.json:
        ctx.out.say(f"checkpoint {gone['id']} is deleted")


def diff(ctx: Context) -> None:
    found = ctx.call("checkpoint_diff", path=ctx.locate(ctx.args.path), a=ctx.args.a, b=ctx.args.b)
    letters = {"added": "A", "removed": "D", "modified": "M"}
    ctx.out.result(found, [f"{letters[item['change']]} {item['path']}" for item in found])


def label(ctx: Context) -> None:
    args = ctx.args
    path, labels = ctx.locate(args.path), pairs(args.labels)
    ctx.out.result(ctx.call("checkpoint_label", path=path, name=args.name, labels=labels))


def clone(ctx: Context) -> None:
    args = ctx.args
    made = ctx.call("ns_clone", path=ctx.locate(args.path), name=args.new, checkpoint=args.name)
    ctx.out.result(made, [made["grid_path"]])
