"""Where the key of encryption comes from."""

from __future__ import annotations

import base64
import os
import shlex
import sys
from pathlib import Path

import pytest

from artfs.errors import DeniedError, InvalidError, NotFoundError, UnavailableError
from artfs.objects.keys import key_id, load_key

KEY = bytes(range(220, 252))
TEXTS = [KEY.hex(), KEY.hex().upper(), base64.b64encode(KEY).decode(), base64.urlsafe_b64encode(KEY).decode()]
TEXTS += [TEXTS[2].rstrip("="), TEXTS[3].rstrip("=")]


def printing(data: bytes, status: int = 0) -> str:
    program = f"import sys; sys.stdout.buffer.write({data!r}); print('why', file=sys.stderr); sys.exit({status})"
    return f"command:{shlex.join([sys.executable, '-c', program])}"


@pytest.mark.parametrize("data", [KEY, *(f" {text}\n".encode() for text in TEXTS)])
def test_a_key_in_a_file_or_printed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key with space"
    path.write_bytes(data)
    assert load_key(f"file:{path}") == KEY
    assert load_key(printing(data)) == KEY


@pytest.mark.parametrize("text", TEXTS)
def test_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("KEY_OF_TEST", text)
    assert load_key("env:KEY_OF_TEST") == KEY


@pytest.mark.parametrize("data", [b"", b"short", KEY[:31], KEY + b"\n", KEY.hex().encode()[:-1], b"g" * 64, b"=" * 44])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(InvalidError, match=r"key leads to \d+ bytes; a key is 32 bytes, or 64 hex") as caught:
        load_key(f"file:{path}")
    assert not data or data.decode(errors="replace") not in str(caught.value)


def test_a_word_is_no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_TEST", "a password of thirty-two letters")
    with pytest.raises(InvalidError, match="env:KEY_OF_TEST") as caught:
        load_key("env:KEY_OF_TEST")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("spec", ["", KEY.hex(), "file:", "env:", "command:", "command: ", "vault:x"])
def test_a_setting_that_says_nothing(spec: str) -> None:
    with pytest.raises(InvalidError, match="file:PATH, env:NAME or command:ARGV") as caught:
        load_key(spec)
    assert KEY.hex() not in str(caught.value)


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    for spec in (f"file:{tmp_path}/none", "env:NO_SUCH_VARIABLE", f"command:{tmp_path}/none --key"):
        with pytest.raises(NotFoundError, match=spec):
            load_key(spec)


def test_a_key_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DeniedError, match=f"file:{tmp_path}"):
        load_key(f"file:{tmp_path}")
    with pytest.raises(DeniedError, match="cannot be run"):
        load_key(f"command:{tmp_path}")
    with pytest.raises(DeniedError, match="status 3") as caught:
        load_key(printing(KEY.hex().encode(), 3).replace("file=sys.stderr", "file=sys.stderr"))
    assert KEY.hex() not in str(caught.value).replace(printing(KEY.hex().encode(), 3), "")
    with pytest.raises(InvalidError, match="split into words"):
        load_key("command:'open")


def test_a_program_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"within 0\.2 s") as caught:
        load_key(f"command:{sys.executable} -c 'import time; time.sleep(60)'", patience=0.2)
    assert caught.value.__cause__ is None


def test_an_id_tells_keys_apart_and_is_fixed() -> None:
    assert key_id(bytes(32)) == "f5f7d887383c9fbf"
    assert len({key_id(os.urandom(32)) for _ in range(100)}) == 100
