"""Running programs: `run` fails with everything that the program printed."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, limit: float = 120) -> str:
    """Run to the end (at most `limit` seconds) and return standard output; an exit code but 0 fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def need(program: str) -> None:
    """Skip the test, saying so, when a program is not installed; the set-up script installs them all."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (the set-up script installs it)")
