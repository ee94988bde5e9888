"""What a run means: floors, medians, ratios, verdicts, the table and the JSON document.  Pure.

Words: a *row* is one measured piece of work; a *peer* is a directory that it ran in; a *sample* is the
seconds that it took there in one round.  The *subject* is the peer that the floors judge.

Invariants: every ratio is (median seconds of the peer) / (median seconds of the subject) of the same run,
so above 1 means that the subject is faster, whatever unit the row is printed in; a row without samples of
the subject or of the floor's peer has no verdict, never a good one.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Any

SUBJECT = "artfs"
PEERS = ("native", "null", "bindfs", SUBJECT)

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""row name -> peer name -> seconds, one per round."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that the subject must reach against one peer.

    As speed: `factor` times the peer's speed.  As time (`is_time`): at most `factor` times the peer's time.
    """

    peer: str
    factor: float
    is_time: bool = False

    @property
    def least_ratio(self) -> float:
        return 1 / self.factor if self.is_time else self.factor

    def held(self, subject: float, peer: float) -> bool:
        return peer / subject >= self.least_ratio

    def __str__(self) -> str:
        return f"{'time ≤ ' if self.is_time else ''}{self.factor:g} × {self.peer}"


class Unit(Enum):
    """How a row's seconds are printed, given its amount (operations, MiB, or 1)."""

    PER_OPERATION = "µs/op"
    RATE = "MiB/s"
    SECONDS = "s"
    PER_SECOND = "/s"

    def show(self, seconds: float, amount: float) -> str:
        if self is Unit.PER_OPERATION:
            return f"{seconds / amount * 1e6:.1f} µs"
        if self is Unit.RATE:
            return f"{amount / seconds:.0f} MiB/s"
        if self is Unit.PER_SECOND:
            return f"{amount / seconds:.0f} /s"
        return f"{seconds:.3f} s"


@dataclass(frozen=True, slots=True)
class Row:
    """`name` as in --only; `amount` is how many operations or MiB one sample stands for."""

    name: str
    title: str
    unit: Unit
    amount: float
    floors: tuple[Floor, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """An absolute limit of one of the subject's own figures; `limit=None` is only reported."""

    name: str
    title: str
    unit: str
    limit: float | None = None

    def held(self, value: float) -> bool | None:
        return None if self.limit is None else value < self.limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """One floor of one row: the ratio reached, and in how many of the rounds with both peers it held."""

    floor: Floor
    ratio: float | None
    met: bool | None
    rounds_held: int
    rounds: int

    def __str__(self) -> str:
        if self.met is None:
            return f"{self.floor}: not measured"
        word = "met" if self.met else "MISSED"
        return f"{self.floor}: {word} ({self.rounds_held}/{self.rounds} rounds)"


@dataclass(slots=True)
class Results:
    """What a run collected.  `failures` maps "row or step @ peer" to one line that says what went wrong."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    own: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, peer: str, seconds: Mapping[str, float]) -> None:
        for row, value in seconds.items():
            self.samples.setdefault(row, {}).setdefault(peer, []).append(value)

    def add_own(self, name: str, value: float) -> None:
        self.own.setdefault(name, []).append(value)


def turns(peers: Sequence[str], rounds: int) -> list[tuple[str, ...]]:
    """The order of the peers in each round: rotated, so that each goes first, second, … equally often."""
    return [tuple(peers[(r + i) % len(peers)] for i in range(len(peers))) for r in range(rounds)]


def chosen(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The names that match any of the shell patterns; all of them without patterns.

    Raises ValueError for a pattern that matches nothing.
    """
    known = list(names)
    if not patterns:
        return set(known)
    found: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise ValueError(f"no row is called {pattern!r}; rows: {' '.join(known)}")
        found.update(matching)
    return found


def medians(samples: Samples, row: str) -> dict[str, float]:
    return {peer: median(values) for peer, values in samples.get(row, {}).items() if values}


def ratios(samples: Samples, row: str, subject: str = SUBJECT) -> dict[str, float]:
    """Peer -> how many times as fast as the peer the subject was; empty when the subject was not measured."""
    of = medians(samples, row)
    ours = of.pop(subject, None)
    return {} if ours is None else {peer: theirs / ours for peer, theirs in of.items()}


def verdicts(samples: Samples, row: Row, subject: str = SUBJECT) -> list[Verdict]:
    reached = ratios(samples, row.name, subject)
    by_peer = samples.get(row.name, {})
    ours = by_peer.get(subject, ())
    out = []
    for floor in row.floors:
        ratio = reached.get(floor.peer)
        pairs = list(zip(ours, by_peer.get(floor.peer, ()), strict=False))
        held = sum(floor.held(a, b) for a, b in pairs)
        met = None if ratio is None else ratio >= floor.least_ratio
        out.append(Verdict(floor, ratio, met, held, len(pairs)))
    return out


def missed(results: Results, rows: Sequence[Row], bars: Sequence[Bar]) -> list[str]:
    """One line for each floor or bar that was measured and not reached."""
    out = [
        f"{row.name}: {verdict}" for row in rows for verdict in verdicts(results.samples, row) if verdict.met is False
    ]
    for bar in bars:
        values = results.own.get(bar.name)
        if values and bar.held(median(values)) is False:
            out.append(f"{bar.name}: {median(values):.4g} {bar.unit}, limit {bar.limit:g} {bar.unit}")
    return out


def grid(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns: the first and the last to the left, those between to the right."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def table(results: Results, rows: Sequence[Row], peers: Sequence[str]) -> list[str]:
    """Median of each peer; the subject's speed as a multiple of each other peer's; the floors."""
    others = [p for p in peers if p != SUBJECT]
    judged = SUBJECT in peers
    head = ["work", *peers, *([f"÷ {p}" for p in others] if judged else []), "floors"]
    cells = [head]
    for row in rows:
        of = medians(results.samples, row.name)
        if not of:
            continue
        speed = ratios(results.samples, row.name)
        line = [row.title]
        line += [row.unit.show(of[p], row.amount) if p in of else "-" for p in peers]
        if judged:
            line += [f"{speed[p]:.2f}" if p in speed else "-" for p in others]
        found = verdicts(results.samples, row)
        line.append("; ".join(str(v if judged else v.floor) for v in found))
        cells.append(line)
    return grid(cells) if len(cells) > 1 else []


def own_table(results: Results, bars: Sequence[Bar]) -> list[str]:
    cells = [["artfs alone", "median", "range", "bar"]]
    for bar in bars:
        values = results.own.get(bar.name)
        if not values:
            continue
        held = bar.held(median(values))
        word = "" if held is None else f"< {bar.limit:g} {bar.unit}: {'met' if held else 'MISSED'}"
        span = f"{min(values):.4g}-{max(values):.4g}" if len(values) > 1 else ""
        cells.append([bar.title, f"{median(values):.4g} {bar.unit}", span, word])
    return grid(cells) if len(cells) > 1 else []


def document(
    results: Results,
    rows: Sequence[Row],
    bars: Sequence[Bar],
    peers: Sequence[str],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON document: everything in the tables, and each sample (seconds; own figures in their unit)."""
    work = {}
    for row in rows:
        if row.name not in results.samples:
            continue
        work[row.name] = {
            "title": row.title,
            "amount": row.amount,
            "unit": row.unit.value,
            "samples": {p: list(v) for p, v in results.samples[row.name].items()},
            "median_seconds": medians(results.samples, row.name),
            "ratio": ratios(results.samples, row.name),
            "floors": [
                {
                    "floor": str(v.floor),
                    "peer": v.floor.peer,
                    "least_ratio": v.floor.least_ratio,
                    "ratio": v.ratio,
                    "met": v.met,
                    "rounds_held": v.rounds_held,
                    "rounds": v.rounds,
                }
                for v in verdicts(results.samples, row)
            ],
        }
    own = {
        bar.name: {
            "title": bar.title,
            "unit": bar.unit,
            "samples": list(results.own[bar.name]),
            "median": median(results.own[bar.name]),
            "limit": bar.limit,
            "met": bar.held(median(results.own[bar.name])),
        }
        for bar in bars
        if results.own.get(bar.name)
    }
    return {
        "about": dict(about),
        "peers": list(peers),
        "work": work,
        "own": own,
        "failures": dict(results.failures),
        "missed": missed(results, rows, bars),
    }
