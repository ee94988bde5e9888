"""`artfs umount`: a mount is taken away when its process has written everything, or that is left to the next one."""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from artfs.cli import mounttable
from artfs.cli.context import Context
from artfs.cli.machine import PATIENCE, within
from artfs.cli.output import Progress
from artfs.cli.parsing import Commands
from artfs.cli.values import objects, size, waiting
from artfs.errors import ArtfsError, BusyError, InvalidError, NotFoundError

POLL = 0.2
"""Seconds between looks at a process that is about to end."""
_HOLDER = re.compile(r"process (\d+)\b")


def add(commands: Commands) -> None:
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


def umount(ctx: Context) -> int:
    from concurrent.futures import ThreadPoolExecutor

    point = os.path.realpath(ctx.args.point)
    mounts = mounttable.read_mounts()
    entry = mounttable.at(point, mounts)
    if entry is None and (last := _ending(ctx.root, point)) is not None:
        wait_for_end(last)
        return _report(ctx, point, "ended", ctx.root, last)
    if entry is None:
        raise NotFoundError(f"nothing is mounted at {point}; `findmnt -t {mounttable.TYPE}` lists artfs' mounts")
    if not entry.ours:
        raise InvalidError(f"what is mounted at {point} is not artfs' ({entry.type}); use umount")
    state = state_of(point)
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
    return _report(ctx, point, state, root, pid)


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


def _report(ctx: Context, point: str, state: str, root: Path | None, pid: int | None) -> int:
    """Returns the exit code: 1 if a process that was alive could not commit all."""
    behind, unsaved, uncommitted = {"bytes": 0, "objects": 0}, "", 0
    if root is not None and not ctx.args.lazy:
        behind, unsaved = left_behind(root), unsaved_trouble(root)
        uncommitted = records_left(root, pid) if state != "dead" else 0
    found = {"point": point, "state": state, "pid": pid, "waiting": behind, "unsaved": unsaved}
    ctx.out.result({**found, "uncommitted": uncommitted})
    if ctx.out.json:
        return 1 if uncommitted else 0
    if uncommitted:
        ctx.out.say(
            f"{uncommitted} changes could not be committed; {root}/mount.log says why. They are in the journal, and "
            f"not lost: mend that before you mount it again (a full disk needs some tens of MiB)"
        )
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
    return 1 if uncommitted else 0


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


def records_left(root: Path, pid: int | None) -> int:
    """Changes in the journal that the database has not, if nobody took the store over from that process."""
    import sqlite3

    from artfs.volume.journal import Journal

    path = root / "journal"
    try:
        if holder(root) not in (None, pid):
            return 0
        with closing(sqlite3.connect(f"file:{quote(str(root / 'meta.db'))}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT doc FROM record WHERE kind = 'journal' AND id = 'state'").fetchone()
        with closing(Journal(path, path.stat().st_size)) as journal:
            journal.seek(row[0])
            return sum(1 for _ in journal.replay())
    except (OSError, sqlite3.Error, ArtfsError, ValueError, TypeError):  # another owner has come, or fsck has to tell
        return 0


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


def state_of(point: str) -> str:
    """`alive`, `dead` or `silent`; never waits for long."""
    try:
        return "dead" if within(PATIENCE, lambda: mounttable.is_dead(point)) else "alive"
    except TimeoutError:
        return "silent"
