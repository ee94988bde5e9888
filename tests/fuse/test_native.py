"""The native extension on real mounts: decoding, answers, waiting, jobs, notifications, INIT.

native_toy.py serves.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from artfs.fuse.native import InitFlag, Opcode, load, why_missing

native = load()
pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(native is None, reason=f"no native extension: {why_missing()}"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse here"),
]
HERE = Path(__file__).parent
NS = 10**9
LIBC = ctypes.CDLL(None, use_errno=True)
PATIENCE = 60.0  # then the toy is killed, so that a hanging test fails


class Toy:
    """A mounted native_toy.py."""

    def __init__(self, path: Path, process: subprocess.Popen[str]) -> None:
        self.path, self.process = path, process

    def set(self, command: str, value: str = "1", name: str = "") -> None:
        os.setxattr(self.path / name, f"user.toy.{command}", value.encode())

    def state(self) -> dict[str, Any]:
        return json.loads(os.getxattr(self.path, "user.toy.state"))  # type: ignore[no-any-return]

    def calls(self, *names: str) -> list[list[Any]]:
        return [args for name, args in self.state()["calls"] if name in names]

    def ino(self, name: str) -> int:
        return (self.path / name).lstat().st_ino

    def wait_for(self, key: str, value: Any) -> dict[str, Any]:
        end = time.monotonic() + 5
        while (state := self.state()).get(key) != value:
            assert time.monotonic() < end, f"{key} is {state.get(key)}, not {value}"
            time.sleep(0.01)
        return state


@contextmanager
def mounted(path: Path, env: dict[str, str] | None = None, **options: Any) -> Iterator[Toy]:
    path.mkdir()
    environment = os.environ | {"PYTHONPATH": str(HERE.parent.parent)} | (env or {})
    command = [sys.executable, str(HERE / "native_toy.py"), str(path), json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mounted\n"
        toy = Toy(path, process)
        yield toy
        subprocess.run(["fusermount3", "-u", str(path)], check=True)
        assert process.wait(10) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        subprocess.run(["umount", "-l", str(path)], check=False, stderr=subprocess.DEVNULL)
        if process.stdout:
            process.stdout.close()


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    with mounted(tmp_path / "toy") as toy:
        yield toy


def refused(number: int, f: Callable[..., object], *args: Any) -> None:
    with pytest.raises(OSError) as e:
        f(*args)
    assert e.value.errno == number


def in_thread(f: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    """f running in a thread; the list gets its result or its OSError, and the time when it ended."""
    result: list[Any] = []

    def body() -> None:
        try:
            result.append(f())
        except OSError as e:
            result.append(e)
        result.append(time.monotonic())

    thread = threading.Thread(target=body)
    thread.start()
    return thread, result


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---- decoding ----


def test_names_and_owners(toy: Toy) -> None:
    old = os.umask(0o027)
    try:
        (toy.path / "d").mkdir(0o777)
        (toy.path / "f").touch(0o666)
        os.mkfifo(toy.path / "p", 0o666)
    finally:
        os.umask(old)
    (toy.path / "s").symlink_to("some/where")
    os.link(toy.path / "f", toy.path / "hard")
    uid, gid = os.getuid(), os.getgid()
    assert toy.calls("MKDIR") == [[1, "d", 0o750, uid, gid]]
    ((caller, *rest),) = toy.calls("CREATE")
    assert caller[:2] == [uid, gid] and caller[2] in (os.getpid(), threading.get_native_id())
    assert rest[:3] == [1, "f", stat.S_IFREG | 0o640] and rest[4:] == [uid, gid]
    assert rest[3] & os.O_CREAT and rest[3] & os.O_ACCMODE == os.O_WRONLY
    assert toy.calls("MKNOD") == [[1, "p", stat.S_IFIFO | 0o640, 0, uid, gid]]
    assert toy.calls("SYMLINK") == [[1, "s", "some/where", uid, gid]]
    assert toy.calls("LINK") == [[1, "hard", toy.ino("f")]]
    assert os.readlink(toy.path / "s") == "some/where"
    assert (toy.path / "f").stat().st_nlink == 2
    (toy.path / "d").rmdir()
    (toy.path / "hard").unlink()
    assert toy.calls("RMDIR") == [[1, "d"]] and toy.calls("UNLINK") == [[1, "hard"]]
    assert sorted(os.listdir(toy.path)) == ["f", "p", "s"]


def test_names_are_bytes(toy: Toy) -> None:
    root = os.fsencode(toy.path)
    for name in (b"\xff\xfe", b"x" * 255, "ä".encode()):
        os.close(os.open(root + b"/" + name, os.O_CREAT | os.O_RDWR))
    assert set(os.listdir(root)) == {b"\xff\xfe", b"x" * 255, "ä".encode()}
    assert toy.calls("CREATE")[0][2] == "\xff\xfe"


def test_rename_passes_flags(toy: Toy) -> None:
    (toy.path / "a").write_bytes(b"a")
    (toy.path / "b").write_bytes(b"b")
    (toy.path / "d").mkdir()
    at = -100  # AT_FDCWD

    def renameat2(old: str, new: str, flags: int) -> int:
        r = LIBC.renameat2(at, bytes(toy.path / old), at, bytes(toy.path / new), flags)
        return 0 if r == 0 else ctypes.get_errno()

    assert renameat2("a", "b", 1) == errno.EEXIST
    assert renameat2("a", "b", 2) == 0
    assert (toy.path / "a").read_bytes() == b"b"
    os.rename(toy.path / "a", toy.path / "d/c")
    assert [c[-1] for c in toy.calls("RENAME2")] in (
        [2, 0],
        [1, 2, 0],
    )  # the kernel may refuse EEXIST by itself
    assert toy.calls("RENAME2")[-1] == [1, "a", toy.ino("d"), "c", 0]


def test_read_write_and_statfs(toy: Toy) -> None:
    data = os.urandom(300_000)
    (toy.path / "f").write_bytes(data)
    ino = toy.ino("f")
    assert (toy.path / "f").read_bytes() == data
    assert all(c[0] == ino for c in toy.calls("READ", "WRITE"))
    fd = os.open(toy.path / "f", os.O_RDWR)
    assert os.pwrite(fd, b"XYZ", 5) == 3
    assert toy.calls("WRITE")[-1][:3] == [ino, 5, "XYZ"]
    os.fdatasync(fd)
    os.fsync(fd)
    os.close(fd)
    assert toy.calls("FSYNC") == [[ino, 1], [ino, 0]]
    s = os.statvfs(toy.path)
    assert (s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_namemax) == (
        1000,
        900,
        800,
        70,
        60,
        255,
    )


@pytest.mark.parametrize("seconds", [-5, -(2**31), 2**31, 13_600_000_000, -9_500_000_000])
def test_times_are_signed_and_wide(toy: Toy, seconds: int) -> None:
    f = toy.path / "f"
    f.touch()
    toy.set("clear")
    os.utime(f, ns=(seconds * NS + 3, seconds * NS + 999_999_999))
    (call,) = toy.calls("SETATTR")
    assert call[3:5] == [seconds * NS + 3, seconds * NS + 999_999_999]
    assert f.stat().st_mtime_ns == seconds * NS + 999_999_999


def test_setattr(toy: Toy) -> None:
    f = toy.path / "f"
    f.write_bytes(b"12345678")
    f.chmod(0o604)
    os.truncate(f, 3)
    os.utime(f)
    valid = {0: 1, 3: 8}
    chmod, truncate, now = toy.calls("SETATTR")[-3:]
    assert chmod[1] & valid[0] and chmod[6] & 0o7777 == 0o604
    assert truncate[1] & valid[3] and truncate[2] == 3
    assert now[1] & (1 << 7) and now[1] & (1 << 8)  # ATIME_NOW, MTIME_NOW
    assert f.read_bytes() == b"123" and f.stat().st_mode & 0o777 == 0o604


def test_xattr_size_rules(toy: Toy) -> None:
    f = toy.path / "f"
    f.touch()
    os.setxattr(f, "user.a", b"0123456789", os.XATTR_CREATE)
    os.setxattr(f, "user.b", b"\x00\xff")
    assert toy.calls("SETXATTR") == [
        [toy.ino("f"), "user.a", "0123456789", 1],
        [toy.ino("f"), "user.b", "\x00\xff", 0],
    ]

    def get(size: int) -> tuple[int, bytes, int]:
        space = ctypes.create_string_buffer(64)
        ctypes.set_errno(0)
        n = LIBC.getxattr(bytes(f), b"user.a", space, ctypes.c_size_t(size))
        return n, space.raw[: max(n, 0)] if size else b"", ctypes.get_errno()

    assert get(0) == (10, b"", 0)
    assert get(10) == (10, b"0123456789", 0)
    assert get(64) == (10, b"0123456789", 0)
    assert get(9) == (-1, b"", errno.ERANGE)
    assert LIBC.listxattr(bytes(f), None, ctypes.c_size_t(0)) == 14
    assert LIBC.listxattr(bytes(f), ctypes.create_string_buffer(5), ctypes.c_size_t(5)) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert os.listxattr(f) == ["user.a", "user.b"] and os.getxattr(f, "user.b") == b"\x00\xff"
    os.removexattr(f, "user.a")
    refused(errno.ENODATA, os.getxattr, f, "user.a")
    refused(errno.ENODATA, os.removexattr, f, "user.a")


def test_ioctl_both_directions(toy: Toy) -> None:
    (toy.path / "f").touch()
    for path in (toy.path / "f", toy.path):
        fd = os.open(path, os.O_RDONLY)
        both = (3 << 30) | (8 << 16) | (ord("T") << 8) | 1
        assert fcntl.ioctl(fd, both, b"abcdefgh") == b"hgfedcba"
        assert fcntl.ioctl(fd, (2 << 30) | (4 << 16) | (ord("T") << 8) | 1, b"....") == b"too "
        assert fcntl.ioctl(fd, (ord("T") << 8) | 2) == 42
        refused(errno.ENOSPC, fcntl.ioctl, fd, (ord("T") << 8) | 3)
        refused(errno.ENOTTY, fcntl.ioctl, fd, (ord("T") << 8) | 9)
        assert not os.isatty(fd)
        os.close(fd)
    ours = [c for c in toy.calls("IOCTL") if c[1] & 0xFFFF == (ord("T") << 8 | 1)]
    assert [c[3:] for c in ours[:2]] == [["abcdefgh", 8], ["", 4]]
    assert not ours[0][2] & 16 and ours[2][2] & 16 and ours[2][0] == 1  # FUSE_IOCTL_DIR


def test_lseek_fallocate_copy(toy: Toy) -> None:
    f = toy.path / "f"
    f.write_bytes(b"0123456789")
    fd = os.open(f, os.O_RDWR)
    assert os.lseek(fd, 4, os.SEEK_DATA) == 4 and os.lseek(fd, 4, os.SEEK_HOLE) == 10
    refused(errno.ENXIO, os.lseek, fd, 10, os.SEEK_DATA)
    assert toy.calls("LSEEK")[:2] == [[toy.ino("f"), 4, os.SEEK_DATA], [toy.ino("f"), 4, os.SEEK_HOLE]]
    os.posix_fallocate(fd, 5, 10)
    assert LIBC.fallocate(fd, 3, ctypes.c_long(2), ctypes.c_long(3)) == 0
    assert toy.calls("FALLOCATE") == [[toy.ino("f"), 0, 5, 10], [toy.ino("f"), 3, 2, 3]]
    assert f.read_bytes() == b"01\0\0\x0056789" + bytes(5)
    out = os.open(toy.path / "g", os.O_CREAT | os.O_RDWR)
    assert os.copy_file_range(fd, out, 4, 5, 1) == 4
    assert toy.calls("COPY_FILE_RANGE") == [[toy.ino("f"), 5, toy.ino("g"), 1, 4, 0]]
    os.close(fd)
    os.close(out)
    assert (toy.path / "g").read_bytes() == b"\x005678"


def test_tmpfile_and_linkat(toy: Toy) -> None:
    fd = os.open(toy.path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"anonymous")
    at, follow = -100, 0x400  # AT_FDCWD, AT_SYMLINK_FOLLOW
    assert LIBC.linkat(at, b"/proc/self/fd/%d" % fd, at, bytes(toy.path / "named"), follow) == 0
    os.close(fd)
    assert (toy.path / "named").read_bytes() == b"anonymous"
    ((parent, _, mode, flags, *_),) = toy.calls("TMPFILE")
    assert parent == 1 and mode & 0o777 == 0o600 and flags & os.O_TMPFILE == os.O_TMPFILE


def test_access_and_syncfs(tmp_path: Path) -> None:
    with mounted(tmp_path / "m", access=True) as toy:
        (toy.path / "f").touch(0o640)
        assert os.access(toy.path / "f", os.R_OK | os.W_OK)
        assert [toy.ino("f"), 6] in toy.calls("ACCESS")
        (toy.path / "f").chmod(0)
        assert not os.access(toy.path / "f", os.R_OK)


@pytest.mark.parametrize("plus", [True, False])
def test_readdir_in_parts(tmp_path: Path, plus: bool) -> None:
    clear = InitFlag.ATOMIC_O_TRUNC | (0 if plus else InitFlag.DO_READDIRPLUS | InitFlag.READDIRPLUS_AUTO)
    with mounted(tmp_path / "m", init_clear=int(clear)) as toy:
        names = {f"file-{i:04}-{'x' * 40}" for i in range(500)}
        for name in names:
            (toy.path / name).touch()
        toy.set("clear")
        assert set(os.listdir(toy.path)) == names
        parts = toy.calls("READDIRPLUS" if plus else "READDIR")
        assert len(parts) > 2 and parts[0][:2] == [1, 0] and parts[1][1] > 0
        if not plus:
            assert not toy.calls("READDIRPLUS")


def test_forget_reaches_the_function(toy: Toy) -> None:
    for i in range(50):
        (toy.path / f"f{i}").touch()
        (toy.path / f"f{i}").unlink()
    toy.wait_for("forgotten", 50)
    assert all(n >= 1 for _, n in toy.calls("FORGET"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may drop the kernel's caches")
def test_batches_of_forgets_are_taken_apart(tmp_path: Path) -> None:
    with mounted(tmp_path / "m", timeout=1000) as toy:
        for i in range(200):
            (toy.path / f"f{i}").touch()
        toy.set("clear")
        Path("/proc/sys/vm/drop_caches").write_text("2\n")
        end = time.monotonic() + 5
        while toy.state()["forgotten"] < 200:
            assert time.monotonic() < end
        assert toy.state()["stats"]["requests"].get("42", 0) > 0
        assert {ino for ino, _ in toy.calls("FORGET")} >= set(range(2, 202))


def test_open_and_release_functions(tmp_path: Path) -> None:
    with mounted(tmp_path / "m", open=True) as toy:
        (toy.path / "f").write_bytes(b"x")
        fd = os.open(toy.path / "f", os.O_RDWR | os.O_APPEND)
        os.close(fd)
        ino, flags = toy.calls("OPEN")[-1]
        assert ino == toy.ino("f") and flags & os.O_APPEND and flags & os.O_ACCMODE == os.O_RDWR
        os.listdir(toy.path)
        assert toy.calls("OPENDIR")[-1][0] == 1
        end = time.monotonic() + 5
        while [ino] not in toy.calls("RELEASE") or [1] not in toy.calls("RELEASEDIR"):
            assert time.monotonic() < end
        assert [ino] in toy.calls("FLUSH")


# ---- INIT ----


@pytest.mark.parametrize("writeback", [False, True])
def test_truncating_open_without_open(tmp_path: Path, writeback: bool) -> None:
    with mounted(tmp_path / "m", writeback=writeback) as toy:
        f = toy.path / "f"
        f.write_bytes(b"a long content")
        f.write_bytes(b"a long content again")
        f.write_bytes(b"short")
        fd = os.open(f, os.O_RDWR)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        assert f.read_bytes() == b"short"
        offered, accepted = (InitFlag(x) for x in toy.state()["flags"])
        assert InitFlag.ATOMIC_O_TRUNC in offered and InitFlag.ATOMIC_O_TRUNC not in accepted
        assert (InitFlag.WRITEBACK_CACHE in accepted) == writeback


def test_init_is_edited_within_what_is_offered(tmp_path: Path) -> None:
    unknown = 1 << 61
    with mounted(tmp_path / "m", init_set=unknown | InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.HAS_RESEND) as toy:
        state = toy.state()
        offered, accepted = state["flags"]
        assert not accepted & ~offered and not accepted & unknown
        assert accepted & InitFlag.HANDLE_KILLPRIV_V2
        assert bool(accepted & InitFlag.HAS_RESEND) == bool(offered & InitFlag.HAS_RESEND)
        if accepted >> 32:
            assert accepted & InitFlag.INIT_EXT
        assert not accepted & (InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS)
        request = bytes.fromhex(state["init"])
        assert len(request) == int.from_bytes(request[:4], "little") and request[4] == 26
        (toy.path / "f").touch()
        toy.set("clear")
        with (toy.path / "f").open("r+b", buffering=0) as f:
            for _ in range(100):
                f.write(b"x")
        assert len(toy.calls("WRITE")) == 100 and len(toy.calls("GETXATTR")) <= 1


def test_pyfuse3_imported_first(tmp_path: Path) -> None:
    with mounted(tmp_path / "m", early=True) as toy:
        (toy.path / "f").write_bytes(b"x")
        assert toy.calls("CREATE") and toy.state()["stats"]["requests"]


def test_other_opcodes_stay_with_pyfuse3(tmp_path: Path) -> None:
    with mounted(tmp_path / "m", without=["STATFS", "IOCTL"]) as toy:
        refused(errno.ENOSYS, os.statvfs, toy.path)
        fd = os.open(toy.path, os.O_RDONLY)
        refused(errno.ENOTTY, fcntl.ioctl, fd, 0x5401)  # the kernel's word for ENOSYS
        os.close(fd)
        assert toy.state()["stats"]["passed"] >= 3  # INIT is one of them


# ---- errors ----


def test_an_exception_is_eio_and_the_mount_lives(toy: Toy) -> None:
    for command, said in {"fail": "RuntimeError('a bug')", "strange": "ValueError", "huge": None}.items():
        toy.set("clear")
        refused(errno.EIO, toy.set, command)
        found = toy.state()["errors"]
        assert len(found) == (said is not None) and all(str(said) in e for e in found)
    (toy.path / "f").write_bytes(b"still here")
    assert (toy.path / "f").read_bytes() == b"still here"
    refused(errno.EINVAL, toy.set, "no such command")


def test_a_kept_slice_of_a_write_is_reported(toy: Toy) -> None:
    (toy.path / "f").write_bytes(b"fine")
    assert toy.state()["errors"] == []
    toy.set("keep")
    (toy.path / "f").write_bytes(b"kept")
    assert "BufferError" in toy.state()["errors"][0]


def test_bad_registrations() -> None:
    assert native is not None
    for opcode in (0, 26, 36, 40, 63, 64, 4096):
        with pytest.raises(ValueError, match="opcode"):
            native.handler(opcode, print)
    with pytest.raises(TypeError):
        native.handler(Opcode.READ, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="constant"):
        native.constant(Opcode.OPEN, 5)
    with pytest.raises(RuntimeError, match="does not wait"):
        native.reply(12, Opcode.READ, b"")
    with pytest.raises(ValueError, match="65535"):
        native.configure(max_background=70_000)
    with pytest.raises(ImportError, match="not loaded"):
        subprocess_attach()


def subprocess_attach() -> None:
    code = (
        "import sys, os; sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)\n"
        "from artfs.fuse import _native\n"
        "try: _native.attach('/no/such.so')\n"
        "except ImportError as e: print(e)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent.parent)
    raise ImportError(done.stdout)


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTFS_NO_NATIVE", "1")
    assert load() is None and "ARTFS_NO_NATIVE" in str(why_missing())
    monkeypatch.setenv("ARTFS_NO_NATIVE", "0")
    assert load() is native and why_missing() is None


# ---- waiting ----


def test_a_request_waits_and_others_do_not(toy: Toy) -> None:
    (toy.path / "f").write_bytes(b"slow content")
    toy.set("slow", "0.5", "f")
    began = time.monotonic()
    thread, result = in_thread((toy.path / "f").read_bytes)
    toy.wait_for("pending", 1)
    assert time.monotonic() - began < 0.4
    thread.join()
    assert result[0] == b"slow content" and result[1] - began >= 0.5
    state = toy.state()
    assert state["pending"] == 0 and state["errors"] == [] and state["stats"]["waited"] >= 1


def test_a_write_that_waits_keeps_its_bytes(toy: Toy) -> None:
    (toy.path / "f").touch()
    toy.set("slow", "0.2", "f")
    fds = [os.open(toy.path / "f", os.O_RDWR) for _ in range(4)]
    writes = [in_thread(partial(os.pwrite, fd, bytes([65 + i]) * 5000, i * 5000)) for i, fd in enumerate(fds)]
    for thread, result in writes:
        thread.join()
        assert result[0] == 5000
    for fd in fds:
        os.close(fd)
    toy.set("slow", "0", "f")
    assert (toy.path / "f").read_bytes() == b"".join(bytes([65 + i]) * 5000 for i in range(4))


def test_waiting_answers_follow_the_size_rules(toy: Toy) -> None:
    (toy.path / "f").touch()
    toy.set("slow", "0.05", "f")
    assert LIBC.getxattr(bytes(toy.path / "f"), b"user.toy.slow", None, ctypes.c_size_t(0)) == 4
    assert os.getxattr(toy.path / "f", "user.toy.slow") == b"0.05"


def test_a_forget_may_wait(toy: Toy) -> None:
    (toy.path / "f").touch()
    toy.set("slow", "0.05", "f")
    (toy.path / "f").unlink()
    state = toy.wait_for("forgotten", 1)
    assert state["stats"]["waited"] == 1 and state["pending"] == 0
    assert toy.state()["errors"] == []


def test_a_waiting_request_that_nobody_takes_is_eio(toy: Toy) -> None:
    (toy.path / "f").write_bytes(b"x")
    toy.set("slow", "-1", "f")
    refused(errno.EIO, (toy.path / "f").read_bytes)
    state = toy.state()
    assert state["pending"] == 0 and "no task for this" in state["errors"][0]


def test_sigkill_ends_a_waiting_caller(toy: Toy) -> None:
    (toy.path / "f").write_bytes(b"x")
    toy.set("slow", "1000", "f")
    code = f"open({str(toy.path / 'f')!r}, 'rb').read()"
    caller = subprocess.Popen([sys.executable, "-c", code])
    try:
        toy.wait_for("pending", 1)
        caller.send_signal(signal.SIGKILL)
        assert caller.wait(2) == -signal.SIGKILL
    finally:
        caller.kill()
    state = toy.wait_for("pending", 0)
    assert state["interrupts"] == 1 and state["errors"] == []


# ---- jobs ----


@pytest.fixture
def backing(tmp_path: Path) -> tuple[Path, bytes]:
    data = os.urandom(1 << 20)
    (tmp_path / "backing").write_bytes(data)
    return tmp_path / "backing", data


@pytest.mark.parametrize("size", [100, 30_000, 120_000, 900_000])
def test_reads_are_gathered_from_files(toy: Toy, backing: tuple[Path, bytes], size: int) -> None:
    path, data = backing
    toy.set("open", str(path))
    (toy.path / "f").touch()
    b = str(path)
    toy.set("segments", json.dumps([[b, 7, size // 2], ["", 0, 11], [b, 0, size // 3], [b, 100, 1]]), "f")
    expected = data[7 : 7 + size // 2] + bytes(11) + data[: size // 3] + data[100:101]
    assert (toy.path / "f").read_bytes() == expected
    queued = toy.state()["jobs"][0]
    assert queued > 0
    toy.wait_for("jobs", [queued, queued])  # the kernel may have read ahead


@pytest.mark.parametrize("size", [4096, 200_000])
def test_a_short_file_is_an_error_not_zeros(toy: Toy, backing: tuple[Path, bytes], size: int) -> None:
    path, data = backing
    toy.set("open", str(path))
    (toy.path / "f").touch()
    toy.set("segments", json.dumps([[str(path), len(data) - 10, size]]), "f")
    refused(errno.EIO, (toy.path / "f").read_bytes)
    assert toy.process.poll() is None


def test_write_all_writes_all_of_it_wherever_it_begins(tmp_path: Path) -> None:
    assert native is not None
    data = os.urandom(10_000)
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        for at, buffer in ((0, data), (777, memoryview(data)), (5, b""), (4096, data[:1])):
            native.write_all(fd, buffer, at, 1000)
            assert os.pread(fd, len(buffer), at) == buffer
        assert os.fstat(fd).st_size == 10_777
        with pytest.raises(OSError, match="Invalid argument"):
            native.write_all(fd, data, 0, 0)
    finally:
        os.close(fd)
    with Path("/dev/full").open("wb") as full, pytest.raises(OSError, match="No space left"):
        native.write_all(full.fileno(), data, 0, 1000)


def test_write_all_from_many_threads(tmp_path: Path) -> None:
    assert native is not None
    parts = [os.urandom(300_000) for _ in range(8)]
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        threads = [
            threading.Thread(target=native.write_all, args=(fd, part, i * 300_000, 64 << 10))
            for i, part in enumerate(parts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert os.pread(fd, 8 * 300_000, 0) == b"".join(parts)
    finally:
        os.close(fd)


def test_syncs_keep_their_order_and_block_nobody(tmp_path: Path) -> None:
    """The first sync is slow, of a file on a second mount; later, quick ones are not answered before it."""
    with mounted(tmp_path / "slow") as slow, mounted(tmp_path / "toy") as toy:
        quick = tmp_path / "quick"
        for f in (slow.path / "s", quick, *(toy.path / str(i) for i in range(3))):
            f.touch()
        slow.set("slow", "0.6", "s")
        for f in (slow.path / "s", quick):
            toy.set("open", str(f))
        began = time.monotonic()
        toy.set("sync", json.dumps([str(slow.path / "s"), str(quick)]))
        jobs = [in_thread(partial(sync_file, toy.path / "0"))]
        slow.wait_for("pending", 1)
        toy.set("sync", json.dumps([str(quick)]))
        jobs += [in_thread(partial(sync_file, toy.path / str(i))) for i in (1, 2)]
        toy.wait_for("jobs", [3, 0])
        assert time.monotonic() - began < 0.5  # the loop served all that while the sync thread slept
        for thread, _ in jobs:
            thread.join()
        assert [result[0] for _, result in jobs] == [None] * 3
        assert all(result[1] - began >= 0.6 for _, result in jobs)
        assert toy.state()["jobs"] == [3, 3]


def test_a_failed_sync_stays_failed(toy: Toy, tmp_path: Path) -> None:
    (toy.path / "f").touch()
    good = tmp_path / "good"
    good.touch()
    toy.set("open", str(good))
    toy.set("sync", json.dumps([str(good), ""]))  # "" is a descriptor that is not open
    refused(errno.EIO, sync_file, toy.path / "f")
    state = toy.state()
    assert state["sync_errors"] == [errno.EBADF] and state["sync_error"] == errno.EBADF
    toy.set("sync", json.dumps([str(good)]))
    refused(errno.EIO, sync_file, toy.path / "f")
    assert toy.state()["sync_errors"] == [errno.EBADF]  # told once
    toy.set("clear_sync")
    sync_file(toy.path / "f")


def test_the_daemon_ends_with_dirty_pages_and_jobs(tmp_path: Path) -> None:
    """Its own unmount must not wait for pages that only it could take: the connection ends first."""
    with mounted(tmp_path / "slow") as slow:
        (slow.path / "s").touch()
        slow.set("slow", "0.4", "s")
        with pytest.raises(subprocess.CalledProcessError), mounted(tmp_path / "m", writeback=True) as toy:
            toy.set("open", str(slow.path / "s"))
            toy.set("sync", json.dumps([str(slow.path / "s")]))
            (toy.path / "f").touch()
            thread, result = in_thread(partial(sync_file, toy.path / "f"))
            slow.wait_for("pending", 1)
            fd = os.open(toy.path / "g", os.O_CREAT | os.O_WRONLY)
            for _ in range(100):
                os.write(fd, bytes(1 << 16))
            toy.set("quit")
            assert toy.process.wait(10) == 0
            with suppress(OSError):  # its pages are lost
                os.close(fd)
            thread.join()
            assert result[0] is None  # the unmount waited for the job, and the job was answered


# ---- notifications ----


def test_invalidation(tmp_path: Path) -> None:
    with mounted(tmp_path / "m", timeout=1000) as toy:
        f = toy.path / "f"
        f.write_bytes(b"12345")
        ino = f.stat().st_ino
        toy.set("grow", json.dumps([ino, 10]))
        assert f.stat().st_size == 5
        toy.set("notify", json.dumps(["notify_inode", ino, 0, 0]))
        toy.wait_for("notified", True)
        assert f.stat().st_size == 15
        for expire in (True, False):
            toy.set("clear")
            f.stat()
            assert not toy.calls("LOOKUP")
            toy.set("notify", json.dumps(["notify_entry", 1, "f", expire]))
            end = time.monotonic() + 5
            while not toy.calls("LOOKUP"):
                assert time.monotonic() < end
                f.stat()
        toy.set("notify", json.dumps(["notify_entry", 1, "unheard of", True]))
        toy.wait_for("notified", False)
        toy.set("notify", json.dumps(["notify_inode", 99_999, 0, 0]))
        toy.wait_for("notified", False)


def test_resent_requests_get_their_answer(toy: Toy) -> None:
    if not toy.state()["flags"][0] & InitFlag.HAS_RESEND:
        pytest.skip("this kernel has no FUSE_NOTIFY_RESEND (Linux 6.9)")
    (toy.path / "f").touch()
    toy.set("slow", "0.4", "f")
    thread, result = in_thread(lambda: os.getxattr(toy.path / "f", "user.toy.slow"))
    toy.wait_for("pending", 1)
    toy.set("notify", json.dumps(["notify_resend"]))
    toy.wait_for("pending", 2)  # the first answer will find nobody, the second one will
    thread.join()
    assert result[0] == b"0.4"
    toy.wait_for("pending", 0)


# ---- memory ----


@pytest.mark.alone
def test_polling_is_for_requests_in_a_row(tmp_path: Path) -> None:
    def processor_ms(gap: float) -> float:
        before = used()
        for _ in range(30):
            time.sleep(gap)
            refused(errno.ENOENT, os.stat, toy.path / "nothing")
        return used() - before

    def used() -> float:
        fields = Path(f"/proc/{toy.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1e3 / os.sysconf("SC_CLK_TCK")

    with mounted(tmp_path / "toy", spin_us=10_000, wait_us=0, burst_us=1_000_000) as toy:
        assert processor_ms(0.025) < 100  # 300 by polling to the end each time
        assert processor_ms(0.003) > 45  # half of the time


def test_no_leak(tmp_path: Path) -> None:
    """RSS under every kind of request, with Python's debug allocator, which finds writes past a block."""
    rounds = int(os.environ.get("ARTFS_LEAK_ROUNDS", "1500"))
    with mounted(tmp_path / "m", env={"PYTHONMALLOC": "debug"}) as toy:
        toy.set("record", "0")
        (toy.path / "f").write_bytes(b"x" * 8192)
        backing = tmp_path / "backing"
        backing.write_bytes(bytes(8192))
        toy.set("open", str(backing))
        (toy.path / "g").touch()
        toy.set("segments", json.dumps([[str(backing), 0, 4096]]), "g")
        toy.set("sync", json.dumps([str(backing)]))

        def rss() -> int:
            return int(Path(f"/proc/{toy.process.pid}/statm").read_text().split()[1]) * 4096

        def rounds_of(n: int) -> None:
            for i in range(n):
                (toy.path / "new").write_bytes(b"y" * 3000)
                os.rename(toy.path / "new", toy.path / "newer")
                os.utime(toy.path / "newer", ns=(13_600_000_000 * NS, 5))
                os.setxattr(toy.path / "newer", "user.k", b"v" * 100)
                os.getxattr(toy.path / "newer", "user.k")
                os.listdir(toy.path)
                (toy.path / "newer").unlink()
                (toy.path / "f").stat()
                (toy.path / "g").read_bytes()
                with pytest.raises(OSError):
                    toy.set("unknown")
                with pytest.raises(FileNotFoundError):
                    os.stat(toy.path / "missing")
                if i % 16 == 0:
                    sync_file(toy.path / "f")
                    toy.set("slow", "0.0001", "f")
                    os.getxattr(toy.path / "f", "user.toy.slow")
                    toy.set("slow", "0", "f")

        rounds_of(300)
        before, requests = rss(), sum(toy.state()["stats"]["requests"].values())
        rounds_of(rounds)
        grown = rss() - before
        requests = sum(toy.state()["stats"]["requests"].values()) - requests
        assert requests > 15 * rounds
        assert toy.state()["errors"] == []
        assert grown < 1 << 20, f"{grown} bytes in {requests} requests"
