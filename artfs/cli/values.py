"""Values on the command line and how they are shown: durations, sizes, moments, KEY=VALUE.  All pure."""

from __future__ import annotations

import json
import re
import time
from argparse import ArgumentTypeError
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from artfs.errors import InvalidError

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
NS = 1_000_000_000
UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")


def duration(text: str) -> float:
    """Seconds in `90`, `90s`, `30m`, `2h`, `1.5d`, `1w`; more than 0."""
    match = _DURATION.fullmatch(text.strip().lower())
    seconds = float(match[1]) * SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ArgumentTypeError(f"{text!r} is no duration above zero: write 90s, 30m, 2h, 7d or 1w")
    return seconds


def pairs(items: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE each; a value that is JSON counts as that, any other as text.  Errors: InvalidError."""
    found: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise InvalidError(f"{item!r} is not of the form KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def size(count: int) -> str:
    """`0 B`, `999 B`, `1.5 KiB` …"""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, len(UNITS))
    return f"{count / (1 << 10 * power):.1f} {UNITS[power - 1]}"


def objects(count: int) -> str:
    return f"{count} object{'s' * (count != 1)}"


def moment(ns: int | None) -> str:
    """Local time to the second; `-` for None."""
    if ns is None:
        return "-"
    try:
        return datetime.fromtimestamp(ns // NS).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{ns // NS} s"


def waiting(found: dict[str, Any]) -> str:
    """What waits for upload (for one provider: without its age), for people."""
    if not found["bytes"] and not found["error"]:
        return "nothing"
    text = f"{size(found['bytes'])} in {objects(found['objects'])}"
    if found.get("oldest") is not None:
        text += f", since {moment(found['oldest'])}"
    if found["error"]:
        retry = found["retry_at"]
        seconds = f", again in {max(retry - time.time_ns(), 0) / NS:.0f} s" if retry is not None else ""
        text += f"; the last upload failed: {found['error']}{seconds}"
    return text


def saved(found: dict[str, Any]) -> str:
    """Of which moment the newest copy of the metadata is, for people."""
    text = "never" if found["moment"] is None else f"the metadata of {moment(found['moment'])}"
    if found["behind"]:
        text += f", without what waits for {', '.join(found['behind'])}"
    return f"{text}; the last attempt failed: {found['trouble']}" if found["trouble"] else text


def printable(text: str) -> str:
    """Without what would move the cursor or break a table; bytes that are not UTF-8 become `?`."""
    clean = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in clean)


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], right: Iterable[int] = ()) -> list[str]:
    """Aligned columns; those in `right` to the right."""
    lines = [header, *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    flush = frozenset(right)
    return [
        "  ".join(
            cell.rjust(width) if column in flush else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
