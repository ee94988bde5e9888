"""Real mounts for tests: `artfs mount -f` in a process of its own, ended and unmounted whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY_SECONDS = 30.0


class Mounted:
    """A store at `root` mounted at `point` by `process`."""

    def __init__(
        self, root: Path, point: Path, options: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self.root = root
        self.point = point
        self.options = options
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the mount answers."""
        self.point.mkdir(parents=True, exist_ok=True)
        device = os.stat(self.point).st_dev
        log = (self.root.parent / f"{self.root.name}.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "artfs", "--root", str(self.root), "mount", "-f", str(self.point), *self.options],
            env=self.env,
            stdout=log,
            stderr=log,
        )
        log.close()
        limit = time.monotonic() + READY_SECONDS
        while os.stat(self.point).st_dev == device:
            if self.process.poll() is not None or time.monotonic() > limit:
                text = (self.root.parent / f"{self.root.name}.log").read_text()
                self.kill()
                raise RuntimeError(f"the mount did not come up:\n{text}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Unmount and wait until the process has drained."""
        if self.process is None:
            return
        subprocess.run(["umount", str(self.point)], check=False, capture_output=True)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.process = None

    def kill(self) -> None:
        """SIGKILL, and take the dead mount away."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
        subprocess.run(["umount", "-l", str(self.point)], check=False, capture_output=True)

    def workspace(self, name: str) -> Path:
        """A new workspace in the shared scope."""
        path = self.point / "default" / "shared" / name
        path.mkdir()
        return path

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.point / ".artfs" / "stats").read_bytes())
        return found

    def log(self) -> str:
        return (self.root.parent / f"{self.root.name}.log").read_text()


@contextmanager
def mounted(
    base: Path, options: Sequence[str] = ("-o", "allow_other"), env: Mapping[str, str] | None = None
) -> Iterator[Mounted]:
    """A new store below `base`, mounted at `base`/mnt."""
    mount = Mounted(base / "store", base / "mnt", options, env)
    try:
        mount.start()
        yield mount
        mount.stop()
    finally:
        mount.kill()
