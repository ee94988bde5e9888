"""The parser: what every command has in common.

Global options may stand before the command or after it; the later one wins.  Each parser has examples and, as all of
them, the exit codes.
"""

from __future__ import annotations

import argparse
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from artfs import __version__

EXIT_CODES = """exit codes:
  0 done   1 failed   2 wrong use   3 not found   4 denied   5 busy or locked   6 damaged"""
PATHS = """paths:
  a grid path [grid/]SANDBOX/{sess-ID|user-ID|shared}[/NAMESPACE[/FILE]], the id of a namespace (ns-…), or a path
  inside a mount (then its store is used, and no --root is needed)"""
DESCRIPTION = """Namespaces with scopes, sessions and checkpoints, as a mounted tree.

The store is --root DIR, else ARTFS_ROOT, else where ARTIFACT_PROVIDER puts it, else ~/.local/share/artfs."""
EXAMPLES = [
    "artfs mount ~/grid                              the grid as a directory",
    "artfs ns create default/shared/web              a workspace (or: mkdir ~/grid/default/shared/web)",
    "artfs checkpoint create default/shared/web v1   instant, whatever its size",
    "artfs checkpoint restore ~/grid/default/shared/web v1",
    "artfs doctor                                    what this machine lacks",
]


class UsageError(Exception):
    """Wrong use: `usage` is what to show above the message."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class Parser(ArgumentParser):
    """Raises UsageError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` tells more)", self.format_usage())

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Options may stand between the arguments of a command, as in `checkpoint create . -d TEXT NAME`."""
        # What argparse has for that works neither for parsers with commands nor after `--`, and calls this method.
        if self._mixing or self._subparsers is not None or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments, with every global option; what follows `--` of `artfs run` is its `program`."""
        head, program = list(words), []
        if _command(head) == "run" and "--" in head:
            cut = head.index("--")
            head, program = head[:cut], head[cut + 1 :]
        defaults: dict[str, Any] = {"json": False, "quiet": False, "verbose": False, "program": program}
        args: argparse.Namespace
        args, unknown = self.parse_known_args(head, argparse.Namespace(**defaults))
        if unknown:
            parser: Parser = args.parser
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return args


def _command(words: Sequence[str]) -> str | None:
    """The first word that is neither an option nor the value of one."""
    previous = ""
    for word in words:
        if not word.startswith("-") and previous != "--root":
            return word
        previous = word
    return None


class Commands:
    """Adds commands to a parser; `group` gives one a level of its own."""

    def __init__(self, parser: Parser, common: Parser, depth: str = "command") -> None:
        self.common = common
        self._name = "" if depth == "command" else parser.prog.split(" ", 1)[1] + " "
        self._actions = parser.add_subparsers(
            title="commands", dest=depth, required=True, metavar="COMMAND", parser_class=Parser
        )

    def add(
        self,
        name: str,
        function: Callable[..., int | None],
        help: str,
        examples: Sequence[str],
        *,
        description: str = "",
        paths: bool = False,
    ) -> Parser:
        """A command; `help` is its line in the list of commands, `paths` says that it takes some."""
        parser = self._parser(name, help, examples, description, [PATHS, EXIT_CODES] if paths else [EXIT_CODES])
        parser.set_defaults(function=function, command_name=self._name + name, parser=parser)
        return parser

    def group(self, name: str, help: str, examples: Sequence[str]) -> Commands:
        parser = self._parser(name, help, examples, "", [PATHS, EXIT_CODES])
        return Commands(parser, self.common, f"{name}_command")

    def _parser(self, name: str, help: str, examples: Sequence[str], description: str, more: Sequence[str]) -> Parser:
        text = help[0].upper() + help[1:] + "."
        parser: Parser = self._actions.add_parser(
            name,
            help=help,
            description=f"{text}\n\n{description}" if description else text,
            epilog=epilog(examples, more),
            parents=[self.common],
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        return parser


def epilog(examples: Sequence[str], more: Sequence[str]) -> str:
    return "\n\n".join(["examples:\n" + "\n".join(f"  {line}" for line in examples), *more])


def build_parser() -> Parser:
    """The whole command line."""
    from artfs.cli import (
        checkpoints,
        completion,
        files,
        mounting,
        namespaces,
        objects,
        running,
        sessions,
        stores,
        unmounting,
    )

    # SUPPRESS: an option that is not given after the command does not undo one that was given before it.
    common = Parser(add_help=False, argument_default=SUPPRESS)
    options = common.add_argument_group("global options")
    options.add_argument("--root", metavar="DIR", help="the store (else ARTFS_ROOT, else ~/.local/share/artfs)")
    options.add_argument("--json", action="store_true", help="print one JSON document on stdout, errors too")
    options.add_argument("-q", "--quiet", action="store_true", help="no messages but errors")
    options.add_argument("-v", "--verbose", action="store_true", help="more messages, and tracebacks")
    parser = Parser(
        prog="artfs",
        description=DESCRIPTION,
        epilog=epilog(EXAMPLES, [PATHS, EXIT_CODES]),
        parents=[common],
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"artfs {__version__}")
    commands = Commands(parser, common)
    for group in (stores, mounting, unmounting, running, sessions, namespaces, checkpoints, files, objects, completion):
        group.add(commands)
    return parser
