"""`artfs session …`."""

from __future__ import annotations

import json
from typing import Any

from artfs.cli.context import Context
from artfs.cli.parsing import Commands, Parser
from artfs.cli.values import duration, moment, pairs


def add(commands: Commands) -> None:
    group = commands.group(
        "session",
        "make, list and end sessions",
        ["artfs session create --user ada --ttl 2h", "artfs session list", "artfs session delete sess-ada-1700000000"],
    )
    parser = group.add(
        "create",
        create,
        "make a session and print its id",
        ["artfs session create --user ada", "artfs session create --id review --ttl 30m --meta branch=main"],
        description="Its directory in the grid is SANDBOX/sess-ID; it disappears when the session ends.",
    )
    _sandbox(parser)
    parser.add_argument("--user", metavar="ID", help="whose session it is; they may enter it from their others")
    parser.add_argument("--id", metavar="ID", help="its id (default: made up)")
    parser.add_argument("--ttl", type=duration, metavar="TIME", help="its life, such as 30m, 2h, 7d (default: 24h)")
    parser.add_argument(
        "--meta", action="append", default=[], metavar="KEY=VALUE", help="metadata; JSON where it is some"
    )
    parser = group.add("list", list_, "list the live sessions", ["artfs session list", "artfs session list --json"])
    _sandbox(parser, "those of one sandbox (default: all)")
    parser = group.add("info", info, "show a session", ["artfs session info review"])
    _id(parser)
    parser = group.add(
        "extend", extend, "let a session live longer", ["artfs session extend review 2h      two hours more than now"]
    )
    _id(parser)
    parser.add_argument("time", type=duration, metavar="TIME", help="how much longer, such as 30m, 2h, 7d")
    parser = group.add(
        "delete", delete, "end a session; its namespaces and their data go with it", ["artfs session delete review"]
    )
    _id(parser)


def _sandbox(parser: Parser, help: str = "its sandbox (default: the store's, or ARTIFACT_SANDBOX_ID)") -> None:
    parser.add_argument("--sandbox", metavar="ID", help=help)


def _id(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the session, with or without sess-")
    _sandbox(parser)


def create(ctx: Context) -> None:
    args = ctx.args
    session = ctx.call(
        "session_create",
        sandbox=ctx.sandbox,
        user=args.user,
        ttl_seconds=args.ttl,
        id=args.id,
        metadata=pairs(args.meta),
    )
    ctx.out.result(session, [session["id"]])
    if not ctx.out.json:
        ctx.out.say(f"{session['grid_path']}, until {moment(session['expires'])}")


def list_(ctx: Context) -> None:
    sessions = ctx.call("session_list", sandbox=ctx.args.sandbox)
    rows = [(s["id"], s["sandbox"], s["user"] or "-", moment(s["created"]), moment(s["expires"])) for s in sessions]
    ctx.out.rows(sessions, ("ID", "SANDBOX", "USER", "CREATED", "EXPIRES"), rows)
    if not sessions:
        ctx.out.say("no session is alive; `artfs session create` makes one")


def info(ctx: Context) -> None:
    _show(ctx, ctx.call("session_info", id=ctx.args.id, sandbox=ctx.sandbox))


def extend(ctx: Context) -> None:
    _show(ctx, ctx.call("session_extend", id=ctx.args.id, sandbox=ctx.sandbox, seconds=ctx.args.time))


def delete(ctx: Context) -> None:
    session = ctx.call("session_delete", id=ctx.args.id, sandbox=ctx.sandbox)
    ctx.out.result({"deleted": session["id"], "sandbox": session["sandbox"]})
    if not ctx.out.json:
        ctx.out.say(f"session {session['id']} has ended, its data are deleted")


def _show(ctx: Context, session: dict[str, Any]) -> None:
    lines = [
        f"id             {session['id']}",
        f"sandbox        {session['sandbox']}",
        f"user           {session['user'] or '-'}",
        f"grid path      {session['grid_path']}",
        f"created        {moment(session['created'])}",
        f"expires        {moment(session['expires'])}",
        f"last accessed  {moment(session['last_accessed'])}",
        f"metadata       {json.dumps(session['metadata'], ensure_ascii=False)}",
    ]
    ctx.out.result(session, lines)
