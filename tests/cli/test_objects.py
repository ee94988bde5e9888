"""Commands about bytes that leave the store's directory and come back: results, documents, messages, exit codes."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from artfs.cli import main, objects
from artfs.errors import UnavailableError
from artfs.objects.disk import DiskProvider
from tests.cli.command import ARTFS, artfs, environment, ok
from tests.servers import let_in, rclone_serving

WEB = "default/shared/web"
BIG = bytes(range(256)) * 4096
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """The directory of a provider."""
    (tmp_path / "far").mkdir()
    return tmp_path / "far"


@pytest.fixture
def url(far: Path) -> str:
    return f"file://{far}"


@pytest.fixture
def store(store_root: Path, url: str, capsys: Capture) -> Path:
    """A store whose namespaces live with a provider; one has the file `f`."""
    assert main(["init", "--provider", url]) == 0
    assert main(["ns", "create", WEB]) == 0
    put(store_root.parent, "f", BIG)
    capsys.readouterr()
    return store_root


def put(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    assert main(["put", str(folder / name), f"{WEB}/{name}", "-q"]) == 0


def run(capsys: Capture, *words: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def result(capsys: Capture, *words: str | Path) -> Any:
    """The document of a command that succeeds."""
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def stored(far: Path) -> list[Path]:
    """Objects of namespaces in the provider."""
    return sorted(path for path in (far / "grid").rglob("*") if path.is_file())


# making
def test_init_writes_the_setting_and_claims_the_place(
    store_root: Path, far: Path, url: str, capsys: Capture, tmp_path: Path
) -> None:
    made = result(capsys, "init", "--provider", url)
    assert made["provider"] == url
    assert (store_root / "config.toml").read_text() == f'provider = "{url}"\n'
    assert (far / "artfs-store.json").is_file()
    assert result(capsys, "status")["provider"] == url
    # It is this store's from now on, and what was begun of another is gone.
    code, out, err = run(capsys, "--root", tmp_path / "other", "init", "--provider", url)
    assert (code, out) == (2, ""), err
    assert "belongs to another store" in err
    assert not (tmp_path / "other").exists()


def test_init_with_a_provider_that_is_not_there_leaves_nothing(store_root: Path, capsys: Capture) -> None:
    store_root.mkdir()
    (store_root / ".mine").write_text("kept")
    (store_root.parent / "file").write_text("no directory")
    code, out, err = run(capsys, "init", "--provider", f"file://{store_root.parent}/file")
    assert code != 0 and out == "" and "Traceback" not in err
    assert [path.name for path in store_root.iterdir()] == [".mine"]
    (store_root / "config.toml").write_text("")
    code, _, err = run(capsys, "init", "--provider", "file:///tmp")
    assert code == 2 and "set provider in that file" in err


def test_a_namespace_says_where_it_lives(store: Path, url: str, capsys: Capture, tmp_path: Path) -> None:
    assert result(capsys, "ns", "info", WEB)["provider"] == url
    here = result(capsys, "ns", "create", "default/shared/here", "--provider", "local")
    assert (here["provider"], here["codec"]) == ("", "")
    packed = result(capsys, "ns", "create", "default/shared/packed", "--compression", "zstd")
    assert (packed["provider"], packed["codec"]) == (url, "zstd")
    (tmp_path / "second").mkdir()
    second = f"file://{tmp_path}/second"
    there = result(capsys, "ns", "create", "default/shared/there", "--provider", second, "--compression", "none")
    assert (there["provider"], there["codec"]) == (second, "")
    assert f"provider     {url} (zstd)" in run(capsys, "ns", "info", "default/shared/packed")[1]
    assert "provider     the store" in run(capsys, "ns", "info", "default/shared/here")[1]
    clone = result(capsys, "ns", "clone", "default/shared/there", "twin")
    assert clone["provider"] == second


@pytest.mark.fuse
def test_a_namespace_in_memory_needs_somebody_who_keeps_it(store: Path, capsys: Capture, mount_point: Path) -> None:
    """A command that has the store ends, and with it what lives in its memory."""
    path = "default/shared/brief"
    for how in (("--provider", "memory:"), ("--provider-type", "memory")):
        code, out, err = run(capsys, "ns", "create", path, *how)
        assert (code, out) == (2, "")
        assert "would be gone at once" in err and "artfs mount DIR" in err
    (store / "config.toml").write_text('providers = {sandbox = "memory:"}\n')
    assert run(capsys, "ns", "create", path)[0] == 2
    assert [item["grid_path"] for item in result(capsys, "ns", "list")] == [f"grid/{WEB}"]
    ok("mount", mount_point)
    try:
        assert result(capsys, "ns", "create", path)["provider"] == "memory:"
        (mount_point / path / "f").write_bytes(BIG)
        assert (mount_point / path / "f").read_bytes() == BIG
    finally:
        ok("umount", mount_point)


def test_a_provider_of_the_environment(
    store: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARTIFACT_FS_ROOT", str(tmp_path / "env"))
    made = result(capsys, "ns", "create", "default/shared/env", "--provider-type", "filesystem")
    assert made["provider"] == f"file://{tmp_path}/env"


def test_each_scope_has_its_default(
    store: Path, url: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = f"sqlite://{tmp_path}/sessions.db"
    config = store / "config.toml"
    config.write_text(f'provider = "{url}"\ncompression = "zstd"\nproviders = {{session="{session}", sandbox=""}}\n')
    result(capsys, "session", "create", "--id", "s1")
    for scope, where in (("user-ann", (url, "zstd")), ("sess-s1", (session, "zstd")), ("shared", ("", ""))):
        made = result(capsys, "ns", "create", f"default/{scope}/made")
        assert (made["provider"], made["codec"]) == where
        blob = result(capsys, "ns", "create", f"default/{scope}/blob", "--type", "blob")
        assert (blob["provider"], blob["codec"]) == (where[0], "")
    monkeypatch.setenv("ARTFS_PROVIDERS", json.dumps({"user": session}))
    assert result(capsys, "ns", "create", "default/user-ann/other")["provider"] == session
    config.write_text('providers = {team = "memory:"}\n')
    code, _, err = run(capsys, "status")
    assert code == 2 and "config.toml" in err and "'session', 'user' or 'sandbox'" in err
    monkeypatch.delenv("ARTFS_PROVIDERS")
    config.write_text('providers = {user = "ftp://host/x"}\n')
    code, _, err = run(capsys, "status")
    assert code == 2 and "the setting provider, or providers: ftp://host/x: a provider is s3://" in err


# write-back
def test_sync_brings_everything_to_the_provider(store: Path, far: Path, capsys: Capture) -> None:
    assert result(capsys, "sync")["saved"]["moment"] > 0
    found = result(capsys, "status")
    assert (found["waiting"]["bytes"], found["waiting"]["objects"], found["waiting"]["error"]) == (0, 0, "")
    assert sum(path.stat().st_size for path in stored(far)) >= len(BIG)
    lines = run(capsys, "status")[1]
    assert f"provider     file://{far}\n" in lines and "waiting      nothing\n" in lines
    code, out, err = run(capsys, "sync", WEB)
    assert (code, out) == (0, "") and "synced" in err


def test_a_provider_that_fails_is_told_and_nothing_is_lost(
    store: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = DiskProvider.put

    async def fail(provider: DiskProvider, name: str, source: Any) -> None:
        if name.startswith("grid/"):
            raise UnavailableError("the provider is down")
        await whole(provider, name, source)

    monkeypatch.setattr(DiskProvider, "put", fail)
    code, out, err = run(capsys, "sync")
    assert (code, out) == (1, "") and err.splitlines()[-1] == "artfs: the provider is down"
    assert "waiting      1.0 MiB in 1 object, since 20" in run(capsys, "status")[1]
    monkeypatch.undo()
    monkeypatch.setenv("ARTFS_ROOT", str(store))
    assert result(capsys, "sync", WEB)["waiting"]["bytes"] == 0


def test_status_tells_what_is_saved_and_what_fails_where(
    store: Path, far: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert result(capsys, "status")["saved"] == {"moment": None, "sequence": 0, "trouble": "", "behind": []}
    assert "saved        never\n" in run(capsys, "status")[1]
    moment = result(capsys, "sync")["saved"]["moment"]
    assert result(capsys, "status")["saved"]["moment"] == moment  # another process
    assert "saved        the metadata of 20" in run(capsys, "status")[1]
    (tmp_path / "second").mkdir()
    second = f"file://{tmp_path}/second"
    for name in ("there", "packed"):
        result(capsys, "ns", "create", f"default/shared/{name}", "--provider", second)
    there = DiskProvider.check

    async def check(provider: DiskProvider) -> None:
        if provider.url == second:
            raise UnavailableError("the second is away")
        await there(provider)

    monkeypatch.setattr(DiskProvider, "check", check)
    assert result(capsys, "status")["missing"] == {second: "the second is away"}
    assert "missing      the second is away\n" in run(capsys, "status")[1]
    (tmp_path / "f").write_bytes(BIG)

    async def put(provider: DiskProvider, name: str, source: Path | bytes) -> None:
        raise UnavailableError(f"{provider.url} takes nothing")

    monkeypatch.setattr(DiskProvider, "put", put)
    for name in ("there", "web"):
        assert main(["put", "-q", str(tmp_path / "f"), f"default/shared/{name}/g"]) == 0
    out = run(capsys, "status")[1]
    assert "waiting      2.0 MiB in 2 objects, since 20" in out
    assert f"  for        file://{far}: 1.0 MiB in 1 object" in out
    assert f"  for        {second}: 1.0 MiB in 1 object" in out


def test_a_disk_that_is_not_mounted_is_not_taken_for_an_empty_provider(
    store: Path, far: Path, url: str, capsys: Capture, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    result(capsys, "ns", "create", "default/shared/there", "--provider", f"file://{second}")
    result(capsys, "sync")
    for disk in (far, second):
        disk.rename(disk.with_suffix(".away"))
        disk.mkdir()
    code, out, err = run(capsys, "status")
    assert (code, out) == (2, "") and f"{url} is empty, but this store keeps objects there" in err
    assert list(far.iterdir()) == []
    far.rmdir()
    far.with_suffix(".away").rename(far)
    assert f"file://{second} is empty" in result(capsys, "status")["missing"][f"file://{second}"]
    assert list(second.iterdir()) == []
    code, _, err = run(capsys, "ns", "create", "default/shared/more", "--provider", f"file://{second}")
    assert code == 2 and "see that it is the right place" in err
    second.rmdir()
    second.with_suffix(".away").rename(second)
    assert result(capsys, "status")["missing"] == {}


def test_the_cache(store: Path, far: Path, capsys: Capture) -> None:
    result(capsys, "sync")
    found = result(capsys, "cache", "status")
    assert found["copies"] >= len(BIG) and found["waiting"] == 0 and found["limit"] > found["high"] > found["low"]
    capabilities = {"adopts": False, "durable": True, "signs": False, "streams": False}
    assert found["providers"] == [{"url": f"file://{far}", "namespaces": 1, **capabilities}]
    assert result(capsys, "cache", "drop", WEB)["bytes"] >= len(BIG)
    assert result(capsys, "cache", "status")["copies"] == 0
    assert result(capsys, "warmup", WEB) == {"path": WEB, "files": 1, "bytes": len(BIG)}
    assert result(capsys, "cache", "status")["copies"] >= len(BIG)
    assert result(capsys, "warmup", f"{WEB}/f")["files"] == 1
    assert "dropped" in run(capsys, "cache", "drop")[2]
    result(capsys, "get", f"{WEB}/f", store.parent / "back")
    assert (store.parent / "back").read_bytes() == BIG
    assert "copies       " in run(capsys, "cache", "status")[1]


def test_gc(store: Path, capsys: Capture) -> None:
    put(store.parent, "g", BIG)
    result(capsys, "sync")
    assert main(["put", "-q", str(store.parent / "f"), f"{WEB}/g"]) == 0
    dry = result(capsys, "gc", "--dry-run")
    assert (dry["dry_run"], dry["deleted"]) == (True, 0)
    assert result(capsys, "gc")["dry_run"] is False
    assert "live bytes" in run(capsys, "gc")[1]


# as a file
def test_export_and_import(store: Path, capsys: Capture, tmp_path: Path) -> None:
    result(capsys, "checkpoint", "create", WEB, "v1", "-d", "first")
    file = tmp_path / "web.artfs"
    result(capsys, "sync")
    assert result(capsys, "cache", "drop")["bytes"] > 0  # it comes from the provider, and goes there
    done = result(capsys, "export", WEB, file)
    assert (done["file"], done["grid_path"], done["checkpoints"]) == (str(file), f"grid/{WEB}", 1)
    assert run(capsys, "import", file)[1] == f"grid/{WEB}~2\n"
    assert result(capsys, "import", file, "default/user-ann")["grid_path"] == "grid/default/user-ann/web"
    assert [c["id"] for c in result(capsys, "checkpoint", "list", "default/user-ann/web")] == ["v1"]
    result(capsys, "sync")
    result(capsys, "cache", "drop")
    result(capsys, "get", "default/user-ann/web/.checkpoints/v1/f", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BIG
    code, _, err = run(capsys, "import", file, WEB)
    assert code == 1 and "exists already; choose another name" in err
    # Into a store that knows nothing of the first one.
    shutil.rmtree(store)
    assert main(["--root", str(tmp_path / "other"), "init", "-q"]) == 0
    capsys.readouterr()
    assert result(capsys, "--root", tmp_path / "other", "import", file)["grid_path"] == f"grid/{WEB}"
    assert result(capsys, "--root", tmp_path / "other", "fsck", "--data")["ok"] is True


def test_a_relative_file_is_that_of_the_caller(
    store: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "export", WEB, "web.artfs")[0] == 0
    assert (tmp_path / "web.artfs").is_file()
    assert run(capsys, "import", "web.artfs")[1] == f"grid/{WEB}~2\n"


def test_a_line_on_the_terminal(store: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "POLL", 0.001)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("artfs.store.object_calls.export", _slow_export)
    code, _, err = run(capsys, "export", WEB, tmp_path / "f")
    assert code == 0 and "export: 1.0 MiB of 2.0 MiB" in err
    code, _, err = run(capsys, "export", "default/shared/nix", tmp_path / "f")
    assert code == 3 and "Namespace not found" in err


async def _slow_export(store: Any, namespace: Any, target: Path, progress: Any) -> Any:
    import anyio

    from artfs.store.portable import Summary

    progress(1 << 20, 2 << 20)
    await anyio.sleep(0.5)
    return Summary(0, 0, 0, 0)


# on a new machine
def test_recover(store: Path, url: str, capsys: Capture, tmp_path: Path) -> None:
    result(capsys, "checkpoint", "create", WEB, "v1")
    result(capsys, "session", "create", "--id", "s1")
    second = f"file://{tmp_path}/second"
    result(capsys, "ns", "create", "default/shared/there", "--provider", second)
    result(capsys, "ns", "create", "default/shared/here", "--provider", "local")
    assert main(["put", "-q", str(tmp_path / "f"), "default/shared/there/f"]) == 0
    saved = result(capsys, "sync")["saved"]
    shutil.rmtree(store)
    done = result(capsys, "recover", url)
    assert (done["root"], done["moment"], done["namespaces"]) == (str(store), saved["moment"], 3)
    assert (done["others"], done["elsewhere"]) == ([second], ["grid/default/shared/here"])
    assert result(capsys, "status")["saved"] == {**saved, "trouble": ""}
    result(capsys, "get", "default/shared/there/f", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == BIG
    result(capsys, "get", f"{WEB}/f", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BIG
    assert [c["id"] for c in result(capsys, "checkpoint", "list", WEB)] == ["v1"]
    assert [s["id"] for s in result(capsys, "session", "list")] == ["s1"]
    put(tmp_path, "later", b"goes on")
    result(capsys, "sync")
    code, _, err = run(capsys, "recover", url)
    assert code == 1 and "holds a store already" in err


def test_recover_says_which_moment(store: Path, url: str, capsys: Capture) -> None:
    result(capsys, "sync")
    shutil.rmtree(store)
    code, out, err = run(capsys, "recover", url)
    assert (code, out) == (0, f"{store}\n")
    assert "as it was at 20" in err


def test_recover_of_what_is_encrypted(
    store_root: Path, url: str, far: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARTFS_ENCRYPTION_KEY", "env:TEST_KEY")
    monkeypatch.setenv("TEST_KEY", "5a" * 32)
    result(capsys, "init", "--provider", url)
    assert result(capsys, "ns", "create", WEB, "--compression", "zstd")["codec"] == "zstd+aes"
    put(tmp_path, "f", b"a secret" * 10_000)
    result(capsys, "sync")
    assert not [path for path in far.rglob("*") if path.is_file() and b"a secret" in path.read_bytes()]
    shutil.rmtree(store_root)
    monkeypatch.delenv("ARTFS_ENCRYPTION_KEY")
    code, out, err = run(capsys, "recover", url)
    assert code != 0 and out == "" and "ARTFS_ENCRYPTION_KEY" in err
    monkeypatch.setenv("ARTFS_ENCRYPTION_KEY", "env:TEST_KEY")
    monkeypatch.setenv("TEST_KEY", "5b" * 32)
    assert run(capsys, "recover", url)[0] == 4
    monkeypatch.setenv("TEST_KEY", "5a" * 32)
    result(capsys, "recover", url)
    monkeypatch.delenv("ARTFS_ENCRYPTION_KEY")
    assert 'encryption_key = "env:TEST_KEY"' in (store_root / "config.toml").read_text()
    assert run(capsys, "cat", f"{WEB}/f") == (0, "a secret" * 10_000, "")


@pytest.mark.fuse
@pytest.mark.parametrize(
    ("key", "code", "said"),
    [
        (None, 2, "set encryption_key"),
        ("env:OTHER_KEY", 4, "encryption_key leads to"),
        ("env:NO_KEY", 3, "NO_KEY: this variable is not set"),
        ("command:/bin/false", 4, "failed with status 1"),
    ],
)
def test_without_the_right_key_nothing_is_opened_or_written(
    key: str | None, code: int, said: str, store_root: Path, url: str, far: Path, capsys: Capture, mount_point: Path
) -> None:
    with pytest.MonkeyPatch.context() as env:
        env.setenv("ARTFS_ENCRYPTION_KEY", "env:TEST_KEY")
        env.setenv("TEST_KEY", "5a" * 32)
        result(capsys, "init", "--provider", url)
        result(capsys, "ns", "create", WEB)
        result(capsys, "sync")
    kept = {path: path.read_bytes() for path in far.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as env:
        env.setenv("OTHER_KEY", "5b" * 32)
        if key is not None:
            env.setenv("ARTFS_ENCRYPTION_KEY", key)
        for word in ("status", "sync"):
            done, out, err = run(capsys, word)
            assert (done, out) == (code, "") and said in err, err
        mounted = artfs("mount", mount_point)
        assert (mounted.code, mounted.out) == (code, "") and said in mounted.err, mounted
    assert {path: path.read_bytes() for path in far.rglob("*") if path.is_file()} == kept


def test_all_of_it_with_s3(store_root: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rclone_serving(tmp_path / "s3") as server:
        let_in(server, monkeypatch)
        url = server.place()
        assert result(capsys, "init", "--provider", url)["provider"] == url
        result(capsys, "ns", "create", WEB)
        put(tmp_path, "f", BIG)
        assert result(capsys, "sync")["waiting"]["bytes"] == 0
        shutil.rmtree(store_root)
        assert result(capsys, "recover", url)["namespaces"] == 1
        assert result(capsys, "warmup", WEB)["bytes"] == len(BIG)
        result(capsys, "get", f"{WEB}/f", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == BIG
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        code, _, err = run(capsys, "--root", tmp_path / "other", "init", "--provider", server.place())
        assert code == 4 and "credentials" in err and len(err.splitlines()) == 1
        assert not (tmp_path / "other").exists()


# mounted
@pytest.fixture
def grid(store: Path, mount_point: Path) -> Iterator[Path]:
    ok("mount", mount_point)
    yield mount_point
    if artfs("umount", mount_point).code == 5:
        ok("umount", "-l", mount_point)


@pytest.mark.fuse
def test_unmounting_uploads_what_waits(grid: Path, store: Path, far: Path) -> None:
    (grid / WEB / "late").write_bytes(b"late" * 100_000)
    assert artfs("umount", grid, "--json").json["waiting"] == {"bytes": 0, "objects": 0}
    assert sum(path.stat().st_size for path in stored(far)) >= len(BIG) + 400_000
    assert not [path for path in (store / "objects").rglob("*") if path.is_file()]


@pytest.mark.fuse
def test_a_provider_that_is_gone_for_good_is_got_rid_of(grid: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    there = "default/shared/there"
    ok("ns", "create", there, "--provider", f"file://{second}")
    ok("sync")
    shutil.rmtree(second)
    for name in (there, WEB):
        (grid / name / "late").write_bytes(b"late" * 100_000)
    # Others go on, and the copies of the metadata say what is nowhere ...
    ok("sync", WEB)
    for path in ((), (there,)):
        failed = artfs("sync", *path)
        assert failed.code != 0 and str(second) in failed.err, failed
    status = artfs("status", "--json").json
    assert [item["url"] for item in status["waiting"]["providers"]] == [f"file://{second}"]
    assert (status["saved"]["behind"], status["saved"]["trouble"]) == ([f"file://{second}"], "")
    assert f"without what waits for file://{second}" in ok("status")
    # ... until what needs that provider is deleted.
    ok("ns", "delete", "--for-good", there)
    wait_until(lambda: artfs("sync").code == 0)
    status = artfs("status", "--json").json
    assert (status["waiting"]["objects"], status["waiting"]["error"]) == (0, "")
    assert (status["saved"]["behind"], status["saved"]["trouble"]) == ([], "")


@pytest.mark.fuse
def test_unmounting_says_what_is_left(
    store: Path, far: Path, mount_point: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARTFS_DRAIN_LIMIT", "0.5")
    ok("sync")
    ok("mount", mount_point)
    far.rename(far.with_name("away"))
    far.write_text("no directory")
    (mount_point / WEB / "late").write_bytes(b"late" * 100_000)
    done = artfs("umount", mount_point)
    assert done.code == 0 and "390.6 KiB in 1 object still to be uploaded" in done.err, done
    assert "the newest metadata are not with the provider: " in done.err, done
    assert "still wait" in (store / "mount.log").read_text()
    far.unlink()
    far.with_name("away").rename(far)
    assert "; the last attempt failed: " in ok("status")
    ok("sync")
    assert "the last attempt failed" not in ok("status")
    assert ok("cat", f"{WEB}/late") == "late" * 100_000


@pytest.mark.fuse
def test_a_second_signal_ends_the_upload(store: Path, far: Path, mount_point: Path) -> None:
    ok("sync")
    ok("mount", mount_point)
    pid = artfs("status", "--json").json["owner"]["pid"]
    far.rename(far.with_name("away"))
    far.write_text("no directory")
    (mount_point / WEB / "late").write_bytes(b"late" * 100_000)
    os.kill(pid, signal.SIGTERM)
    log = store / "mount.log"
    wait_until(lambda: "uploading" in log.read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.1)
    assert "400000 bytes in 1 objects still wait" in log.read_text()
    assert log.read_text().splitlines()[-1].endswith("done")
    far.unlink()
    far.with_name("away").rename(far)
    assert "; the last attempt failed: " in ok("status")
    ok("sync")
    assert not [path for path in (store / "objects").rglob("*") if path.is_file()]


@pytest.mark.fuse
@pytest.mark.parametrize("how", ["^C", "again"])
def test_who_does_not_wait_for_an_unmount_loses_nothing(store: Path, far: Path, mount_point: Path, how: str) -> None:
    """It tells on the terminal what it waits for, and in the end what is left."""
    ok("sync")
    ok("mount", mount_point)
    far.rename(far.with_name("away"))
    far.write_text("no directory")
    (mount_point / WEB / "late").write_bytes(b"late" * 100_000)
    ours, theirs = pty.openpty()
    with subprocess.Popen([*ARTFS, "umount", str(mount_point)], env=environment(), stderr=theirs) as child:
        os.close(theirs)
        said = ""
        while "to upload: 390.6 KiB in 1 object" not in said:
            said += os.read(ours, 4096).decode()
        if how == "^C":
            child.send_signal(signal.SIGINT)
        else:
            again = artfs("umount", mount_point)
            assert again.code == 0 and "390.6 KiB in 1 object still to be uploaded" in again.err, again
        with suppress(OSError):
            while data := os.read(ours, 4096):
                said += data.decode()
        assert child.wait() == 0
    os.close(ours)
    assert "390.6 KiB in 1 object still to be uploaded; the next mount goes on" in said.replace("\r\n", "\n")
    assert not os.path.ismount(mount_point)
    far.unlink()
    far.with_name("away").rename(far)
    assert artfs("umount", mount_point).code == 3
    ok("sync")
    assert ok("cat", f"{WEB}/late") == "late" * 100_000


@pytest.mark.fuse
def test_the_next_mount_does_not_wait_for_an_unmount_that_still_uploads(
    store: Path, far: Path, mount_point: Path
) -> None:
    ok("mount", mount_point)
    far.rename(far.with_name("away"))
    far.write_text("no directory")
    (mount_point / WEB / "late").write_bytes(b"late" * 100_000)
    subprocess.run(["umount", mount_point], check=True)
    log = store / "mount.log"
    wait_until(lambda: "uploading" in log.read_text())
    refused = artfs("mount", mount_point)  # it has the store, but the provider is not in order
    assert refused.code == 2 and "no directory" in refused.err, refused
    assert "asked for the store: what still waits is left to the next owner" in log.read_text()
    far.unlink()
    far.with_name("away").rename(far)
    try:
        ok("mount", mount_point)
        ok("sync")
        assert sum(path.stat().st_size for path in stored(far)) >= len(BIG) + 400_000
    finally:
        ok("umount", mount_point)


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.fuse
def test_commands_reach_the_mount(grid: Path, tmp_path: Path) -> None:
    web = grid / WEB
    (web / "late").write_bytes(b"late" * 1000)
    assert json.loads(ok("sync", "--json", cwd=web) and artfs("status", "--json").out)["waiting"]["bytes"] == 0
    ok("cache", "drop", web)
    assert artfs("warmup", web / "late", "--json").json["files"] == 1
    refused = artfs("export", web, "inside.artfs", cwd=web)
    assert refused.code == 2 and "inside a mount of artfs; export to another place" in refused.err
    ok("export", ".", tmp_path / "web.artfs", cwd=web)
    assert ok("import", tmp_path / "web.artfs", "default/shared/copy") == "grid/default/shared/copy\n"
    assert (grid / "default/shared/copy/late").read_bytes() == b"late" * 1000
    assert artfs("gc", "--dry-run", "--json").json["dry_run"] is True


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["sync", "default/shared/nix"], 3, "Namespace not found"),
        (["warmup", f"{WEB}/nix"], 3, "nix"),
        (["cache", "drop", "default/shared/nix"], 3, "Namespace not found"),
        (["export", "default/shared/nix", "/tmp/artfs-nix"], 3, "Namespace not found"),
        (["export", f"{WEB}/f", "/tmp/artfs-nix"], 2, "is inside a namespace"),
        (["export", WEB, "/etc/passwd"], 1, "exists already"),
        (["export", WEB, "/nonexistent/f"], 3, "does not exist"),
        (["import", "/nonexistent/f"], 3, "no such file"),
        (["import", "/etc/passwd"], 2, "no export of artfs"),
        (["import", "/etc/passwd", "default"], 2, "no place for a namespace"),
        (["ns", "create", "default/shared/x", "--provider", "gopher://x"], 2, "gopher"),
        (["recover", "gopher://x"], 2, "gopher"),
    ],
)  # fmt: skip
def test_bad_input(store: Path, capsys: Capture, words: list[str], code: int, said: str) -> None:
    got, out, err = run(capsys, *words)
    assert (got, out) == (code, ""), err
    assert said in err and "Traceback" not in err
    got, out, _ = run(capsys, "--json", *words)
    assert got == code
    document = json.loads(out)
    assert document["code"] == code and said in document["error"]
