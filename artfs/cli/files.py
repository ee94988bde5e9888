"""`artfs ls`, `cat`, `put`, `get`, `cp`: files without a mount, in pieces of 1 MiB."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from artfs.cli.context import Context, is_namespace_id
from artfs.cli.output import Progress
from artfs.cli.parsing import Commands
from artfs.cli.values import moment, printable, size, table
from artfs.errors import ExistsError, InvalidError, NotFoundError

if TYPE_CHECKING:
    from artfs.store.connecting import Caller

PART = 1 << 20
STDIO = "-"
LETTERS = {"directory": "d", "symlink": "l", "fifo": "p", "socket": "s", "block": "b", "character": "c"}


def add(commands: Commands) -> None:
    parser = commands.add(
        "ls",
        ls,
        "list a directory of the grid, or a file",
        ["artfs ls", "artfs ls -l default/shared/web/src", "artfs ls default/shared/web/.checkpoints/v1"],
        paths=True,
    )
    parser.add_argument("path", metavar="PATH", nargs="?", default="grid", help="default: the root of the grid")
    parser.add_argument("-l", "--long", action="store_true", help="mode, owner, size and time, too")
    parser = commands.add(
        "cat", cat, "write files to stdout", ["artfs cat default/shared/web/.checkpoints/v1/README"], paths=True
    )
    parser.add_argument("path", metavar="PATH", nargs="+", help="a file, or a namespace of type blob")
    parser = commands.add(
        "put",
        put,
        "copy a local file, or a tree, into a namespace",
        ["artfs put notes.txt default/shared/web", "tar c src | artfs put - default/user-ada/src.tar"],
        description="Each file appears at once when it is whole and durable, replacing what had its name.  In a\n"
        "directory symlinks are copied as they are.",
        paths=True,
    )
    parser.add_argument("source", metavar="LOCAL", help="a file or, with -r, a directory; - is stdin")
    parser.add_argument("target", metavar="PATH", help="the file to make, or a directory to put it into")
    parser.add_argument("-r", "--recursive", action="store_true", help="directories with all that is in them")
    parser = commands.add(
        "get",
        get,
        "copy a file, or a tree, out of a namespace",
        ["artfs get default/shared/web/README", "artfs get -r default/shared/web/.checkpoints/v1 web-v1"],
        paths=True,
    )
    parser.add_argument("source", metavar="PATH", help="what to copy")
    parser.add_argument("target", metavar="LOCAL", nargs="?", default=".", help="where to (default: here); - is stdout")
    parser.add_argument("-r", "--recursive", action="store_true", help="directories with all that is in them")
    parser = commands.add(
        "cp",
        cp,
        "copy a file or a tree within the store",
        ["artfs cp default/shared/web/src default/user-ada/web", "artfs cp ./a ./b"],
        description="Within one namespace the copy shares the bytes.",
        paths=True,
    )
    parser.add_argument("source", metavar="FROM")
    parser.add_argument("target", metavar="TO", help="the copy, or a directory to put it into")


def ls(ctx: Context) -> None:
    path = ctx.locate(ctx.args.path)

    async def work(caller: Caller) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await caller.call("fs_list", path=await _place(caller, path))
        return found

    entries = ctx.ask(work)
    if not ctx.args.long:
        ctx.out.result(entries, [printable(e["name"]) + "/" * (e["type"] == "directory") for e in entries])
        return
    rows = [
        (
            LETTERS.get(e["type"], "-") + stat.filemode(e["mode"])[1:],
            str(e["nlink"]),
            str(e["uid"]),
            str(e["gid"]),
            size(e["size"]),
            moment(e["mtime"]),
            e["name"] + (f" -> {e['target']}" if e["type"] == "symlink" else ""),
        )
        for e in entries
    ]
    # Without its header: each line is an entry, as of ls(1).
    ctx.out.result(entries, table(("",) * 7, rows, (1, 2, 3, 4))[1:])


def cat(ctx: Context) -> None:
    if ctx.out.json:
        raise InvalidError("cat writes bytes, not JSON; leave --json out")
    paths = [ctx.locate(path) for path in ctx.args.path]

    async def work(caller: Caller) -> None:
        for path in paths:
            async for part in _parts(caller, await _place(caller, path)):
                sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()

    ctx.ask(work)


async def _place(caller: Caller, path: str) -> str:
    """The grid path of `path`, which may begin with the id of a namespace."""
    id, slash, below = path.partition("/")
    if not is_namespace_id(id):
        return path
    found: dict[str, Any] = await caller.call("ns_info", path=id)
    return f"{found['grid_path']}{slash}{below}"


async def _parts(caller: Caller, path: str) -> AsyncIterator[bytes]:
    offset = 0
    while True:
        part: bytes = await caller.call("fs_read", path=path, offset=offset, length=PART)
        if part:
            yield part
        offset += len(part)
        if len(part) < PART:
            return


def put(ctx: Context) -> None:
    source, place = ctx.args.source, ctx.locate(ctx.args.target)
    if source == STDIO:
        files: list[tuple[Path | None, str]] = [(None, "")]
        folders: list[str] = []
        links: list[tuple[str, str]] = []
    else:
        files, folders, links = _local_tree(Path(source), ctx.args.recursive)
    name = os.path.basename(os.path.abspath(source)) if source != STDIO else ""
    total = sum(path.stat().st_size for path, _ in files if path is not None)
    counts = {"files": 0, "bytes": 0}

    async def work(caller: Caller) -> str:
        target = await _place(caller, place)
        found = await _stat(caller, target)
        base = target
        if found is not None and found["type"] == "directory" and not await _is_blob(caller, target):
            if not name:
                raise InvalidError(f"{target} is a directory; say what stdin is to be called in it")
            base = f"{target.rstrip('/')}/{name}"
        for folder in folders:
            await caller.call("fs_mkdir", path=_join(base, folder), parents=True)
        for path, below in files:
            await _put_file(caller, path, _join(base, below), counts, lambda: line.bytes(counts["bytes"], total))
        for to, below in links:
            await caller.call("fs_symlink", path=_join(base, below), target=to)
            counts["files"] += 1
        return base

    with ctx.out.progress("put") as line:
        where = ctx.ask(work)
    ctx.out.result({"path": where, **counts})
    ctx.out.detail(f"{counts['files']} files, {size(counts['bytes'])} → {where}")


def _local_tree(
    source: Path, recursive: bool
) -> tuple[list[tuple[Path | None, str]], list[str], list[tuple[str, str]]]:
    """(file, path below `source`) of all files; the directories, parents first; (target, path) of symlinks.
    Errors: InvalidError, NotFoundError."""
    if not source.is_dir():
        if not source.exists():
            raise NotFoundError(f"{source} does not exist")
        return [(source, "")], [], []
    if not recursive:
        raise InvalidError(f"{source} is a directory; use -r to copy it with all that is in it")
    files: list[tuple[Path | None, str]] = []
    folders = [""]
    links: list[tuple[str, str]] = []
    for path in _walk(source):
        below = os.path.relpath(path, source)
        if path.is_symlink():
            links.append((os.readlink(path), below))
        elif path.is_dir():
            folders.append(below)
        elif path.is_file():
            files.append((path, below))
        else:
            what = "neither file, directory nor symlink, which put cannot make"
            raise InvalidError(f"{path} is {what}; mount the grid and use cp -a")
    return files, folders, links


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


async def _put_file(caller: Caller, path: Path | None, target: str, counts: dict[str, int], tell: Any) -> None:
    stream: IO[bytes] = sys.stdin.buffer if path is None else path.open("rb")
    try:
        handle = await caller.call("fs_write_begin", path=target)
        try:
            while part := stream.read(PART):
                await caller.call("fs_write_part", handle=handle, data=part)
                counts["bytes"] += len(part)
                tell()
        except BaseException:
            # If the owner is gone, so is the handle; the first error is the one to tell.
            await _abort(caller, handle)
            raise
        await caller.call("fs_write_end", handle=handle)
        counts["files"] += 1
    finally:
        if path is not None:
            stream.close()


async def _abort(caller: Caller, handle: int) -> None:
    import anyio

    with anyio.CancelScope(shield=True):
        try:
            await caller.call("fs_write_abort", handle=handle)
        except Exception as error:
            print(f"artfs: the unfinished file is left to its owner: {error}", file=sys.stderr)


async def _stat(caller: Caller, path: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = await caller.call("fs_stat", path=path)
        return found
    except FileNotFoundError:
        return None


async def _is_blob(caller: Caller, path: str) -> bool:
    """Whether `path` is a namespace that is one file's bytes: it is read and written as that file."""
    from artfs.grid import parse_path

    place = parse_path(path)
    if place.path or place.namespace is None:
        return False
    found: dict[str, Any] = await caller.call("ns_info", path=path)
    return bool(found["type"] == "blob")


def get(ctx: Context) -> None:
    place, target = ctx.locate(ctx.args.source), ctx.args.target
    if target == STDIO:
        ctx.args.path = [ctx.args.source]
        return cat(ctx)
    counts = {"files": 0, "bytes": 0}

    async def work(caller: Caller) -> Path:
        source = await _place(caller, place)
        found = await caller.call("fs_stat", path=source)
        there = Path(target)
        if there.is_dir():
            there /= os.path.basename(source.rstrip("/"))
        if found["type"] == "directory" and await _is_blob(caller, source):
            await _get_file(caller, source, there, {"mode": 0o666 & ~_umask()}, counts, line)
        elif found["type"] == "directory":
            if not ctx.args.recursive:
                raise InvalidError(f"{ctx.args.source} is a directory; use -r to copy it with all that is in it")
            await _get_tree(caller, source, there, counts, line)
        else:
            await _get_file(caller, source, there, found, counts, line)
        return there

    with ctx.out.progress("get") as line:
        where = ctx.ask(work)
    ctx.out.result({"path": str(where), **counts})
    ctx.out.detail(f"{counts['files']} files, {size(counts['bytes'])} → {where}")
    return None


async def _get_tree(caller: Caller, source: str, there: Path, counts: dict[str, int], line: Progress) -> None:
    if there.is_symlink() or (there.exists() and not there.is_dir()):
        raise ExistsError(f"{there} exists and is no directory; choose another place")
    there.mkdir(exist_ok=True)
    for entry in await caller.call("fs_list", path=source):
        path, below = _join(source, entry["name"]), there / entry["name"]
        if entry["type"] == "directory":
            await _get_tree(caller, path, below, counts, line)
        elif entry["type"] == "symlink":
            if below.is_symlink():
                below.unlink()
            below.symlink_to(entry["target"])
            counts["files"] += 1
        elif entry["type"] == "file":
            await _get_file(caller, path, below, entry, counts, line)
        else:
            raise InvalidError(f"{path} is a {entry['type']}, which get cannot make; mount the grid and use cp -a")


async def _get_file(
    caller: Caller, source: str, there: Path, entry: dict[str, Any], counts: dict[str, int], line: Progress
) -> None:
    """Under a name of its own until it is whole."""
    draft = there.with_name(f".{there.name[:200]}.artfs-{os.getpid()}")
    try:
        with draft.open("xb") as file:
            async for part in _parts(caller, source):
                file.write(part)
                counts["bytes"] += len(part)
                line.bytes(counts["bytes"])
        draft.chmod(entry["mode"] & 0o777)
        draft.replace(there)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    counts["files"] += 1


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _join(base: str, below: str) -> str:
    return f"{base.rstrip('/')}/{below}" if below else base


def cp(ctx: Context) -> None:
    source, target = ctx.locate(ctx.args.source), ctx.locate(ctx.args.target)

    async def work(caller: Caller) -> None:
        places = {"source": await _place(caller, source), "target": await _place(caller, target)}
        await caller.call("fs_copy", **places)

    ctx.ask(work)
    ctx.out.result({"source": source, "target": target})
