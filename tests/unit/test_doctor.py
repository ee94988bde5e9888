"""`artfs doctor`: each lack is found, named and given a remedy; a machine that has everything gets none."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artfs.cli.doctor import Finding, Status, as_json, as_text, doctor, judge
from artfs.cli.machine import Facts, collect, within
from artfs.meta.sqlite import SqliteEngine
from artfs.settings import create_store

GOOD = Facts(
    root="/srv/store",
    python=(3, 12, 1),
    packages={"pyfuse3": "3.5.0", "trio": "0.35.0"},
    libfuse="3.14.0",
    kernel="6.18.2-1-amd64",
    fusermount="/usr/bin/fusermount3",
    store_exists=True,
    store_parent="/srv/store",
    store_type="ext4",
    store_free=100 << 30,
    store_free_inodes=10**6,
    store_changed=1_800_000_000.0,
    now=1_800_000_100.0,
    nofile=65536,
    mounts=(("/mnt/grid", ""),),
)

LACKS: list[tuple[dict[str, Any], str, Status, str]] = [
    ({"python": (3, 10, 9)}, "python", Status.PROBLEM, "3.10.9"),
    ({"packages": {"trio": "1", "apsw": None}}, "packages", Status.PROBLEM, "apsw"),
    ({"extras": {"aioboto3": None}, "wanted": ("aioboto3",)}, "extras", Status.PROBLEM, "aioboto3"),
    ({"kernel": "5.14.0"}, "kernel", Status.PROBLEM, "5.14"),
    ({"kernel": "5.15.0-91-generic"}, "kernel", Status.WARNING, "O_TMPFILE"),
    ({"kernel": "6.1-rc3"}, "kernel", Status.WARNING, "mounted inside it"),
    ({"kernel": "6.8.0"}, "kernel", Status.WARNING, "replacing the daemon"),
    ({"kernel": "unknown"}, "kernel", Status.WARNING, "unknown"),
    ({"fuse_device_error": "No such file or directory"}, "fuse-device", Status.PROBLEM, "No such file"),
    ({"sys_admin": False}, "fuse-device", Status.PROBLEM, "CAP_SYS_ADMIN"),
    ({"fusermount": None}, "fusermount3", Status.WARNING, "not on PATH"),
    ({"fusermount": None, "superuser": False}, "fusermount3", Status.PROBLEM, "not on PATH"),
    ({"fusermount_setuid": False, "superuser": False}, "fusermount3", Status.PROBLEM, "not setuid"),
    ({"pyfuse3_error": "ImportError: libfuse3.so.3"}, "pyfuse3", Status.PROBLEM, "libfuse3.so.3"),
    ({"native_error": "it is not built"}, "native", Status.WARNING, "it is not built"),
    ({"allow_other": False, "superuser": False}, "allow-other", Status.WARNING, "user_allow_other"),
    ({"store_writable": False}, "store", Status.PROBLEM, "/srv/store cannot be written"),
    ({"store_type": "fuse.artfs"}, "store", Status.PROBLEM, "fuse.artfs"),
    ({"store_type": "tmpfs"}, "store", Status.WARNING, "tmpfs"),
    ({"store_type": "nfs4"}, "store", Status.WARNING, "nfs4"),
    ({"store_type": "fuse.sshfs"}, "store", Status.WARNING, "fuse.sshfs"),
    ({"store_free": 255 << 20}, "space", Status.PROBLEM, "0.2 GiB"),
    ({"store_free": 1 << 30}, "space", Status.WARNING, "1.0 GiB"),
    ({"store_free_inodes": 12}, "space", Status.PROBLEM, "12 inodes"),
    ({"now": 3600.0, "store_changed": 0.0}, "clock", Status.PROBLEM, "1970-01-01 01:00:00"),
    ({"now": 1_799_999_000.0}, "clock", Status.PROBLEM, "changed 1000 s later"),
    ({"nofile": 100}, "descriptors", Status.PROBLEM, "100 open files"),
    ({"nofile": 512}, "descriptors", Status.WARNING, "512 open files"),
    (
        {"mounts": (("/mnt/grid", "Transport endpoint is not connected"),)},
        "mount",
        Status.PROBLEM,
        "/mnt/grid",
    ),
]

FINE: list[dict[str, Any]] = [
    {},
    {"store_free_inodes": None},  # btrfs counts none
    {"nofile": -1},  # unlimited
    {"superuser": False, "sys_admin": False},
    {"allow_other": False},  # root needs no permission
    {"kernel": "7.0"},
    {"store_exists": False, "store_changed": 0.0},
    {"mounts": ()},
    {"now": GOOD.store_changed - 30},  # coarse clocks differ a little
]


@pytest.mark.parametrize("facts", FINE, ids=str)
def test_nothing_is_missing(facts: dict[str, Any]) -> None:
    findings = judge(replace(GOOD, **facts))
    assert [f for f in findings if f.status is not Status.OK] == []
    assert as_text(findings).endswith("Nothing is missing.")


@pytest.mark.parametrize(("facts", "check", "status", "said"), LACKS, ids=lambda v: str(v)[:40])
def test_a_lack_is_found_and_nothing_else(facts: dict[str, Any], check: str, status: Status, said: str) -> None:
    findings = judge(replace(GOOD, **facts))
    (found,) = (f for f in findings if f.status is not Status.OK)
    assert (found.check, found.status) == (check, status)
    assert said in f"{found.what} {found.why}"
    assert found.why
    assert found.remedy


def test_every_check_is_reported_when_all_is_well() -> None:
    checks = [f.check for f in judge(GOOD)]
    assert sorted(checks) == sorted({check for _, check, _, _ in LACKS})


def test_the_dead_mounts_remedy_names_it() -> None:
    facts = replace(GOOD, mounts=(("/mnt/a", ""), ("/mnt/b", "Transport endpoint is not connected")))
    fine, dead = judge(facts)[-2:]
    assert fine.status is Status.OK
    assert "artfs umount /mnt/b" in dead.remedy


def test_json_and_text_say_the_same() -> None:
    findings = judge(replace(GOOD, nofile=100, store_type="tmpfs"))
    document = json.loads(as_json(findings))
    assert (document["problems"], document["warnings"]) == (1, 1)
    assert [Finding(**{**f, "status": Status(f["status"])}) for f in document["findings"]] == findings
    text = as_text(findings)
    assert text.endswith("1 problem, 1 warning.")
    for finding in findings:
        assert finding.what in text
        assert finding.remedy in text


def test_a_look_that_hangs_is_given_up() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError, match="no answer"):
        within(0.01, never.wait)
    never.set()


def test_what_a_look_raises_comes_out() -> None:
    def look() -> None:
        raise OSError(errno.ENOTCONN, "gone")

    with pytest.raises(OSError, match="gone"):
        within(5, look)


def test_this_machine_is_looked_at_without_changing_it(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    facts = collect(root)
    assert not root.parent.exists()
    assert (facts.root, facts.store_parent, facts.store_exists) == (str(root), str(tmp_path.resolve()), False)
    assert facts.store_writable
    assert facts.store_free > 0
    assert facts.store_type
    assert facts.packages["pyfuse3"]
    assert facts.pyfuse3_error == ""
    assert facts.libfuse
    assert facts.kernel == os.uname().release


def test_a_store_is_seen_with_the_time_of_its_last_change(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text("{}")
    os.utime(tmp_path / "store.json", (2_000_000_000, 2_000_000_000))
    facts = collect(tmp_path)
    assert facts.store_exists
    assert facts.store_changed == 2_000_000_000
    assert next(f for f in judge(facts) if f.check == "clock").status is Status.PROBLEM


def test_a_place_that_is_a_file_cannot_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not collect(tmp_path / "file" / "store").store_writable


def test_a_place_that_does_not_answer_cannot_be_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(_path: object) -> os.statvfs_result:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr("artfs.cli.machine.os.statvfs", dead)
    facts = collect(Path("/"))
    assert not facts.store_writable


def test_the_command_prints_and_returns_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("artfs.cli.doctor.collect", lambda root: replace(GOOD, root=str(root)))
    assert doctor(tmp_path, json_output=True, out=out) == 0
    assert json.loads(out.getvalue())["problems"] == 0
    monkeypatch.setattr("artfs.cli.doctor.collect", lambda _root: replace(GOOD, nofile=1))
    assert doctor(tmp_path, out=out) == 1


def test_without_a_root_the_command_looks_where_the_store_would_be(
    store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr("artfs.cli.doctor.collect", lambda root: replace(GOOD, root=str(root)))
    doctor(out=out)
    assert str(store_root) in out.getvalue()


def test_what_a_store_cannot_do_without(tmp_path: Path) -> None:
    """By its settings, and by where its namespaces live."""
    root = tmp_path / "store"
    assert collect(root).wanted == ()
    create_store(root)
    assert collect(root).wanted == ()
    (root / "config.toml").write_text('providers = { user = "s3://bucket" }\n')
    assert collect(root).wanted == ("aioboto3",)
    (root / "config.toml").unlink()
    engine = SqliteEngine(root / "meta.db")
    engine.commit([], {("home", "6"): '{"provider": "file:///far", "codec": "zstd+aes"}'})
    assert collect(root).wanted == ()
    engine.commit([], {("home", "7"): '{"provider": "s3://bucket/x", "codec": ""}'})
    engine.close()
    assert collect(root).wanted == ("aioboto3",)
