"""The guard of the test runs, seen from outside: what a run leaves behind fails it, and is cleaned up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guard import Mount, parse_mounts

ROOT = Path(__file__).parents[2]

CONFTEST = """
from tests.guard import Guard

def pytest_configure(config):
    config.pluginmanager.register(Guard(config, patience=0.2))
"""


def run(directory: Path, test: str) -> subprocess.CompletedProcess[str]:
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(directory)]
    return subprocess.run(
        [*command, "--basetemp", str(directory / "scratch"), str(directory)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_mountinfo_is_read_as_proc_says() -> None:
    text = (
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "88 27 0:50 / /mnt/a\\040b\\134c rw shared:1 master:2 - fuse.artfs artfs rw\n"
    )
    assert parse_mounts(text) == [Mount("/", "ext4"), Mount("/mnt/a b\\c", "fuse.artfs")]


def test_a_clean_run_passes(tmp_path: Path) -> None:
    done = run(tmp_path, "import subprocess\ndef test(tmp_path): subprocess.run(['true'], check=True)\n")
    assert done.returncode == 0, done.stdout


def test_a_child_left_behind_fails_the_run_and_is_ended(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        f"import subprocess\n"
        f"def test():\n"
        f"    global child\n"
        f"    child = subprocess.Popen(['sleep', '1000'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n",
    )
    assert done.returncode == 1
    assert "left running" in done.stdout
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_daemon_left_behind_fails_the_run_and_is_ended(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        f"import subprocess\n"
        f"def test():\n"
        f"    command = 'setsid sleep 1000 >/dev/null 2>&1 & echo $! >{tmp_path}/pid'\n"
        f"    subprocess.run(command, shell=True, check=True)\n",
    )
    assert done.returncode == 1
    assert "left running" in done.stdout
    assert not alive(int((tmp_path / "pid").read_text()))


def test_what_would_mislead_the_next_test_fails_its_own(tmp_path: Path) -> None:
    """A variable that stores read, changed or new; a store in the working directory; another working directory."""
    done = run(
        tmp_path,
        "import os, pathlib\n"
        "os.environ['S3_ENDPOINT_URL'] = 'before'\n"
        "def test_new(): os.environ['ARTIFACT_PROVIDER'] = 'memory'\n"
        "def test_changed(): os.environ['S3_ENDPOINT_URL'] = 'after'\n"
        "def test_restored(): assert os.environ['S3_ENDPOINT_URL'] == 'before' \n"
        "def test_gone(): assert 'ARTIFACT_PROVIDER' not in os.environ\n"
        "def test_file(): pathlib.Path('artifacts.db').touch()\n"
        "def test_folder(): pathlib.Path('artifacts').mkdir()\n"
        "def test_elsewhere(tmp_path): os.chdir(tmp_path)\n"
        "def test_tidy(monkeypatch): monkeypatch.setenv('ARTFS_ROOT', 'x')\n",
    )
    assert done.returncode == 1
    assert "8 passed, 5 errors" in done.stdout
    for name in ("ARTIFACT_PROVIDER", "S3_ENDPOINT_URL"):
        assert f"left in the environment: {name}" in done.stdout
    for name in ("artifacts.db", "artifacts"):
        assert f"left in the working directory: {name}" in done.stdout
    assert "left in another working directory" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_mount_left_behind_fails_its_test_and_is_taken_away(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "import subprocess\n"
        "def test_that_leaves(tmp_path):\n"
        "    subprocess.run(['mount', '-t', 'tmpfs', 'none', tmp_path], check=True)\n"
        "def test_that_does_not(tmp_path): pass\n",
    )
    assert done.returncode == 1
    assert "left mounted" in done.stdout
    assert "ERROR test_it.py::test_that_leaves" in done.stdout
    assert "2 passed, 1 error" in done.stdout
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_mount_outside_of_a_tests_directory_fails_the_run(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "import subprocess\n"
        "def test_that_leaves(tmp_path_factory):\n"
        "    subprocess.run(['mount', '-t', 'tmpfs', 'none', tmp_path_factory.mktemp('x')], check=True)\n",
    )
    assert done.returncode == 1
    assert "left mounted" in done.stdout
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
