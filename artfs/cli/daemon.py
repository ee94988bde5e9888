"""The process that serves a mount: in front, or in the background once the mount answers.

The parent forks before trio or the driver are loaded, and waits on a pipe for one line from the child: `{}` when the
mount answers, or `{"error", "code"}`.  The child is a session of its own in `/`; its log is `mount.log` in the store,
where stdout and stderr go, too.  It ends when it is unmounted, or on SIGTERM or SIGINT: then it unmounts, lazily if
programs are still in the mount, after the kernel has handed over what they wrote.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from artfs.cli.mounting import Plan
from artfs.cli.output import Output
from artfs.errors import ArtfsError

LOG_FORMAT = "%(asctime)s artfs[%(process)d] %(levelname)s %(name)s: %(message)s"
LOG_MAX = 8 << 20
"""Bytes of mount.log with which it is put aside, at a mount."""


class StartError(ArtfsError):
    """The child's error, with its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def in_front(plan: Plan, ready: Callable[[], None]) -> None:
    """Serves until it is unmounted or told to end."""
    from artfs.cli.serving import serve

    logging.basicConfig(level=logging.DEBUG if plan.verbose else logging.INFO, format=LOG_FORMAT)
    serve(plan, ready)


def in_background(plan: Plan, out: Output) -> int:
    """Returns the pid of the process that serves, when the mount answers.  Errors: StartError."""
    log = plan.root / "mount.log"
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(plan, writer, log)
    os.close(writer)
    try:
        with out.progress("mounting") as line:
            while not select.select([reader], [], [], 0.2)[0]:
                line.text(f"{line.waited():.0f} s; the store may have to be recovered")
        answer = b""
        while part := os.read(reader, 65536):
            answer += part
            if part.endswith(b"\n"):
                break
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise
    finally:
        os.close(reader)
    if not answer.endswith(b"\n"):
        _, status = os.waitpid(pid, 0)
        ended = os.waitstatus_to_exitcode(status)
        raise StartError(f"the mount's process ended ({ended}) before the mount answered; see {log}", 1)
    told = json.loads(answer)
    if told:
        os.waitpid(pid, 0)
        raise StartError(told["error"], told["code"])
    return pid


def _child(plan: Plan, writer: int, log: Path) -> None:
    """Never returns."""
    code = 1
    told = False

    def tell(message: dict[str, object]) -> None:
        nonlocal told
        told = True
        os.write(writer, json.dumps(message).encode() + b"\n")
        os.close(writer)

    try:
        os.setsid()
        os.chdir("/")
        _redirect(log)
        level = logging.DEBUG if plan.verbose else logging.INFO
        logging.basicConfig(level=level, format=LOG_FORMAT, stream=sys.stderr)
        from artfs.cli.serving import serve

        serve(plan, lambda: tell({}))
        code = 0
    except BaseException as error:
        from artfs.cli.app import cause, message

        reason = cause(error)
        code = getattr(reason, "exit_code", 1)
        # Before the mount answered, the parent tells what is wrong.
        expected = isinstance(reason, ArtfsError) and not told
        log_error = logging.getLogger(__name__).error
        log_error("no mount: %s" if expected else "the mount has ended: %s", message(reason), exc_info=not expected)
        if not told:
            tell({"error": message(reason), "code": code})
    finally:
        logging.shutdown()
        os._exit(code)


def _redirect(log: Path) -> None:
    """stdin from nowhere, stdout and stderr to the log."""
    if log.exists() and log.stat().st_size > LOG_MAX:
        log.replace(log.with_suffix(".log.1"))
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(null, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    for descriptor in (null, file):
        if descriptor > 2:
            os.close(descriptor)
