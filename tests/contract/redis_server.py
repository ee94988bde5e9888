"""A real redis-server on the loopback, for as long as a block lasts."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PATIENCE = 10.0


@dataclass(frozen=True)
class Server:
    port: int
    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def redis_server(directory: Path, *options: str, tls: bool = False, at: int | None = None) -> Iterator[Server]:
    """Keeps nothing on the disk; with `tls` it speaks nothing else, by a certificate that nobody trusts."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    for _ in range(5):  # somebody may take the port before it does
        port = at or free_port()
        listen = ["--port", str(port)]
        if tls:
            key, certificate = _certificate(directory)
            listen = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
            listen += ["--tls-key-file", key, "--tls-cert-file", certificate, "--tls-ca-cert-file", certificate]
        command = [program, "--bind", "127.0.0.1", *listen, "--save", "", "--dir", str(directory), *options]
        with (directory / "redis.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        if _answers(process, port):
            break
        process.kill()
        process.wait()
    else:
        raise RuntimeError(f"redis-server does not start: see {directory}/redis.log")
    try:
        yield Server(port, directory, process)
    finally:
        process.kill()
        process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False


def _certificate(directory: Path) -> tuple[str, str]:
    key, certificate = str(directory / "key.pem"), str(directory / "certificate.pem")
    request = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=elsewhere"
    subprocess.run(
        [*request.split(), "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return key, certificate
