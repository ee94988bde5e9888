"""The command line: `artfs COMMAND …`, and the helper that mount(8) calls for file systems of type fuse.artfs.

A command group is a module with `add(commands)`, which adds its parsers; a parser names the function that runs it.
The functions take a `Context` and return an exit code, or None for 0.  What lies below is imported where it is used:
`artfs --help` and completion must not wait for a database or a driver.

Invariants: with --json stdout gets exactly one document, errors included; all else goes to stderr.  Exit codes:
0 done, 1 failed, 2 wrong use, 3 not found, 4 denied, 5 busy or locked, 6 damaged, 130 interrupted.
"""

from __future__ import annotations

from artfs.cli.app import main

__all__ = ["main"]
