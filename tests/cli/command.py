"""`artfs` as users start it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ARTFS = [sys.executable, "-m", "artfs"]


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What was printed, which must be exactly one document."""
        return json.loads(self.out)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def artfs(*words: str | Path, cwd: Path | None = None, input: str = "", prefix: tuple[str, ...] = ()) -> Done:
    """Runs it to its end; `prefix` is a command that starts it."""
    done = subprocess.run(
        [*prefix, *ARTFS, *map(str, words)],
        env=environment(),
        cwd=cwd,
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def ok(*words: str | Path, cwd: Path | None = None, input: str = "") -> str:
    """What it prints; it must succeed."""
    done = artfs(*words, cwd=cwd, input=input)
    assert done.code == 0, done
    return done.out
