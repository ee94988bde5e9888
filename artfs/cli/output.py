"""What a command says: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from artfs.cli.values import size, table

INTERVAL = 0.1
"""Seconds between two looks of a progress line."""


class Output:
    """`json`: results are documents.  `quiet`: no messages but errors.  `verbose`: details too."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose

    def result(self, document: Any, lines: Iterable[str] = ()) -> None:
        """The command's result, once: `document` with --json, else `lines`."""
        if self.json:
            print(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))
            return
        for line in lines:
            print(line)

    def rows(
        self, document: Any, header: tuple[str, ...], rows: Iterable[tuple[str, ...]], right: Iterable[int] = ()
    ) -> None:
        """A result that people read as a table; nothing is printed for an empty one."""
        found = list(rows)
        self.result(document, table(header, found, right) if found else ())

    def say(self, message: str) -> None:
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)

    def detail(self, message: str) -> None:
        if self.verbose:
            print(message, file=sys.stderr, flush=True)

    def error(self, message: str, code: int) -> None:
        """Printed also when quiet; with --json it is the document."""
        if self.json:
            print(json.dumps({"error": message, "code": code}, ensure_ascii=False))
        print(f"artfs: {message}", file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """A line that is rewritten while the work goes on, on a terminal alone."""
        line = Progress(what, sys.stderr.isatty() and not self.quiet)
        try:
            yield line
        finally:
            line.clear()


class Progress:
    def __init__(self, what: str, shown: bool) -> None:
        self.what = what
        self.shown = shown
        self._next = 0.0
        self._started = time.monotonic()

    def bytes(self, done: int, total: int | None = None) -> None:
        """`total` None: nobody knows."""
        share = f" of {size(total)}" if total else ""
        self.text(f"{size(done)}{share}")

    def steps(self, step: str, done: int, total: int) -> None:
        self.text(f"{step}: {done}/{total}" if total else step)

    def text(self, message: str) -> None:
        now = time.monotonic()
        if not self.shown or now < self._next:
            return
        self._next = now + INTERVAL
        line = f"{self.what}: {message}"
        with suppress(OSError, ValueError):
            if width := os.get_terminal_size(sys.stderr.fileno()).columns:
                line = line[: width - 1]  # a longer one could not be taken back
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def waited(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def clear(self) -> None:
        if self.shown and self._next:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    raise TypeError(f"{type(value).__name__} has no form in JSON")
