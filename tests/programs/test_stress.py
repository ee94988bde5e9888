"""stress-ng's file system class and fio's verification, a short round of each."""

from pathlib import Path

import pytest

from tests.programs.run import need, run

STRESSORS = [
    "access",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dup",
    "fallocate",
    "fcntl",
    "fiemap",
    "file-ioctl",
    "filename",
    "flock",
    "fstat",
    "getdent",
    "hdd",
    "iomix",
    "link",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "rename",
    "seek",
    "sync-file",
    "symlink",
    "touch",
    "utime",
    "xattr",
]
"""Of the class `filesystem`: those that work in a directory; the others look at /proc, /sys or devices."""


@pytest.mark.parametrize("group", range(4))
def test_stress_ng(mnt: Path, group: int) -> None:
    """Each stressor runs for two seconds and verifies what it does, several at once."""
    need("stress-ng")
    words: list[str] = []
    for name in STRESSORS[group::4]:
        words += [f"--{name}", "1"]
    sizes = (
        "--hdd-bytes",
        "16m",
        "--iomix-bytes",
        "16m",
        "--fallocate-bytes",
        "16m",
        "--copy-file-bytes",
        "128m",
    )
    printed = run("stress-ng", "--temp-path", mnt, "--timeout", "2", "--verify", *sizes, *words)
    assert "fail:" not in printed


@pytest.mark.parametrize("engine", ["psync", "mmap"])
def test_fio_verifies_what_it_wrote(mnt: Path, engine: str) -> None:
    need("fio")
    run(
        "fio",
        "--name=verify",
        f"--directory={mnt}",
        f"--ioengine={engine}",
        "--rw=randrw",
        "--bs=4k",
        "--size=16m",
        "--numjobs=2",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--fsync_on_close=1",
    )
