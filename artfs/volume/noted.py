"""What the directory of a store says, for people, of the last copy of its metadata; nothing depends on it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

NOTE = "saved.json"
"""Beside the database."""


@dataclass(frozen=True, slots=True)
class Note:
    """Sequence and moment of the last copy that was made from here, zeros if none was, and the trouble that a process
    ended with which could not make one of what it had."""

    sequence: int = 0
    moment: int = 0
    trouble: str = ""


def write_note(root: Path, note: Note) -> None:
    with suppress(OSError):
        (root / NOTE).write_text(json.dumps(asdict(note)))


def read_note(root: Path) -> Note:
    """Of the store at `root`."""
    try:
        return Note(**json.loads((root / NOTE).read_text()))
    except (OSError, ValueError, TypeError):
        return Note()
