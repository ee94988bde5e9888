"""The key that objects are encrypted with: 32 bytes that are somewhere else, and setting `encryption_key` says where.

    file:PATH       a file
    env:NAME        an environment variable
    command:ARGV    what a program prints, quoted as for a shell (which is not started)

They hold 64 hexadecimal digits, or base64 of 32 bytes, with white space around; files and programs may hold the 32
bytes themselves.  No error, and nothing else here, ever shows a key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import shlex
import subprocess
from pathlib import Path

from artfs.errors import InvalidError, NoAccessError, NotFoundError, UnavailableError

KEY_SIZE = 32
FORMS = f"{KEY_SIZE} bytes, or {2 * KEY_SIZE} hexadecimal digits, or base64 of {KEY_SIZE} bytes"
READ_LIMIT = 4096
PATIENCE = 30.0
"""Seconds that a program may take."""


def key_id(key: bytes) -> str:
    """16 hexadecimal digits that tell keys apart and say nothing else about them: the beginning of HMAC-SHA256 of a
    fixed text."""
    return hmac.digest(key, b"artfs key id 1", "sha256")[:8].hex()


def load_key(spec: str, *, patience: float = PATIENCE) -> bytes:
    """The 32 bytes that `spec` leads to.  Blocks.  Errors: InvalidError, NotFoundError, DeniedError, UnavailableError
    (a program that takes too long), each with `spec`."""
    kind, _, rest = spec.partition(":")
    if kind == "file" and rest:
        return _parse(spec, _file(spec, Path(rest).expanduser()), binary=True)
    if kind == "env" and rest:
        if rest not in os.environ:
            raise NotFoundError(f"encryption_key {spec}: this variable is not set")
        return _parse(spec, os.environb[os.fsencode(rest)], binary=False)
    if kind == "command" and rest.strip():
        return _parse(spec, _output(spec, rest, patience), binary=True)
    raise InvalidError("encryption_key must be file:PATH, env:NAME or command:ARGV; never the key itself")


def _file(spec: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(READ_LIMIT)
    except FileNotFoundError as error:
        raise NotFoundError(f"encryption_key {spec}: no such file") from error
    except OSError as error:
        raise NoAccessError(f"encryption_key {spec} cannot be read: {error.strerror}") from error


def _output(spec: str, line: str, patience: float) -> bytes:
    try:
        argv = shlex.split(line)
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False)
    except FileNotFoundError as error:
        raise NotFoundError(f"encryption_key {spec}: no such program") from error
    except OSError as error:
        raise NoAccessError(f"encryption_key {spec} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        # `from None`: the error holds what was printed so far.
        raise UnavailableError(f"encryption_key {spec}: no answer within {patience:g} s") from None
    except ValueError as error:
        raise InvalidError(f"encryption_key {spec} cannot be split into words: {error}") from error
    if done.returncode:
        raise NoAccessError(f"encryption_key {spec} failed with status {done.returncode}; run it by hand to see why")
    return done.stdout


def _parse(spec: str, found: bytes, *, binary: bool) -> bytes:
    if binary and len(found) == KEY_SIZE:
        return found
    text = found.strip()
    if re.fullmatch(rb"[0-9A-Fa-f]{%d}" % (2 * KEY_SIZE), text):
        return bytes.fromhex(text.decode())
    if re.fullmatch(rb"[A-Za-z0-9+/_-]{43}=?", text):
        try:
            key = base64.b64decode(text.rstrip(b"=") + b"=", altchars=b"-_" if re.search(rb"[-_]", text) else None)
        except binascii.Error:
            key = b""
        if len(key) == KEY_SIZE:
            return key
    raise InvalidError(f"encryption_key {spec} leads to {len(found)} bytes; a key is {FORMS if binary else FORMS[10:]}")
