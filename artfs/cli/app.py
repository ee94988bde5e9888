"""`main`: parses, runs the command, turns what it raises into a message and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from artfs.cli.context import Context
from artfs.cli.output import Output
from artfs.cli.parsing import Parser, UsageError, build_parser
from artfs.errors import ArtfsError

Command = Callable[[Context], int | None]
INTERRUPTED, BROKEN_PIPE = 130, 141
OS_CODES: tuple[tuple[type[OSError], int], ...] = (
    (FileNotFoundError, 3),
    (PermissionError, 4),
    (OSError, 1),
)
"""Exit codes of errors of the operating system."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    out = Output(json="--json" in words)
    try:
        code = _run(words, out)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has enough; nothing must be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        out.error("interrupted", INTERRUPTED)
        return INTERRUPTED
    except Exception as error:
        return _report(cause(error), out)


def _run(words: list[str], out: Output) -> int:
    from artfs.cli.mount_helper import as_mount_command

    parser = build_parser()
    args = parser.parse(as_mount_command(words) or words)
    out.json, out.quiet, out.verbose = args.json, args.quiet, args.verbose
    command: Command = args.function
    return command(Context(args, out)) or 0


def cause(error: BaseException) -> BaseException:
    """The first error inside groups, which task groups wrap around what they raise; one of ours if there is any."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    ours, _ = error.split(ArtfsError)
    inner: BaseException = (ours or error).exceptions[0]
    return cause(inner)


def _report(error: BaseException, out: Output) -> int:
    if out.verbose:
        traceback.print_exception(error)
    if isinstance(error, UsageError):
        code = 2
        if not out.json:
            print(error.usage, end="", file=sys.stderr)
    elif isinstance(error, ArtfsError):
        code = error.exit_code
    elif isinstance(error, OSError):
        code = next(code for kind, code in OS_CODES if isinstance(error, kind))
    else:
        code = 1
        if not out.verbose:
            traceback.print_exception(error)
        out.error(f"a bug of artfs: {type(error).__name__}: {error}", code)
        return code
    out.error(message(error), code)
    return code


def message(error: BaseException) -> str:
    """One line for a person."""
    if isinstance(error, OSError) and not isinstance(error, ArtfsError) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split("\n")) or type(error).__name__


__all__ = ["Parser", "main"]
