"""Facts about this machine, for `artfs doctor`: looked at, not judged, and nothing is changed.

Invariants: `collect` never raises, and never waits for a dead or hung mount.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from artfs.cli.mounttable import Entry, holding, read_mounts

Answer = TypeVar("Answer")

PACKAGES = ("pyfuse3", "trio", "anyio", "apsw", "pydantic", "xxhash", "zstandard", "cryptography")
EXTRAS = {"aioboto3": "s3 providers"}
"""Packages that only some stores need, and for what."""
CAP_SYS_ADMIN = 1 << 21
PATIENCE = 2.0
"""Seconds that a mount may take to answer."""
# Asks the parts that only a process of its own may load: a broken extension must not take this one along.
PROBE = """
import json
out = {}
try:
    from artfs.fuse import native
    out["native"] = "" if native.load() else native.why_missing() or "it is not built"
except Exception as error:
    out["native"] = f"{type(error).__name__}: {error}"
try:
    import ctypes, pyfuse3
    library = ctypes.CDLL(pyfuse3.__spec__.origin)
    library.fuse_pkgversion.restype = ctypes.c_char_p
    out["libfuse"] = library.fuse_pkgversion().decode()
    out["pyfuse3"] = ""
except Exception as error:
    out["pyfuse3"] = f"{type(error).__name__}: {error}"
print(json.dumps(out))
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen. Sizes in bytes, times in seconds since 1970, errors as text ("" is none)."""

    root: str
    python: tuple[int, int, int] = (3, 11, 0)
    packages: dict[str, str | None] = field(default_factory=dict)
    extras: dict[str, str | None] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    """Those of the extras that the store's settings, or its namespaces, cannot do without."""
    pyfuse3_error: str = ""
    libfuse: str = ""
    native_error: str = ""
    kernel: str = ""
    superuser: bool = True
    sys_admin: bool = True
    """This process may call mount(2)."""
    fusermount: str | None = None
    fusermount_setuid: bool = True
    fuse_device_error: str = ""
    allow_other: bool = True
    """/etc/fuse.conf lets users pass allow_other."""
    store_exists: bool = False
    store_parent: str = "/"
    """The root itself or, while it is missing, the nearest directory above it."""
    store_writable: bool = True
    store_type: str = ""
    store_free: int = 0
    store_free_inodes: int | None = None
    """None where the file system does not count them."""
    store_changed: float = 0.0
    now: float = 0.0
    nofile: int = 1024
    mounts: tuple[tuple[str, str], ...] = ()
    """artfs' mounts here: (mount point, error)."""


def collect(root: Path) -> Facts:
    """Looks at this machine, for a store at `root`."""
    root = Path(os.path.abspath(root))
    probed = _probe()
    fusermount = shutil.which("fusermount3")
    mounts = read_mounts(_read("/proc/self/mountinfo"))
    return Facts(
        root=str(root),
        python=sys.version_info[:3],
        packages={name: _version(name) for name in PACKAGES},
        extras={name: _version(name) for name in EXTRAS},
        wanted=_wanted(root),
        pyfuse3_error=probed["pyfuse3"],
        libfuse=probed.get("libfuse", ""),
        native_error=probed["native"],
        kernel=os.uname().release,
        superuser=os.geteuid() == 0,
        sys_admin=_has_sys_admin(),
        fusermount=fusermount,
        fusermount_setuid=_is_setuid(fusermount),
        fuse_device_error=_fuse_device_error(),
        allow_other="user_allow_other" in (line.strip() for line in _read("/etc/fuse.conf").splitlines()),
        **_store(root, mounts),
        now=time.time(),
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        mounts=tuple((mount.point, _answer(mount.point)) for mount in mounts if mount.ours),
    )


def within(seconds: float, look: Callable[[], Answer]) -> Answer:
    """What `look()` returns. It may hang for ever in a dead mount; raises what it raises, or TimeoutError."""
    box: list[Answer | BaseException] = []

    def run() -> None:
        try:
            box.append(look())
        except BaseException as error:
            box.append(error)

    # A thread that hangs in the kernel cannot be ended; as a daemon it does not keep the process.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        raise TimeoutError(f"no answer in {seconds:g} s")
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


def _type_of(path: Path, mounts: Sequence[Entry]) -> str:
    mount = holding(str(path), mounts)
    return mount.type if mount else ""


def _store(root: Path, mounts: Sequence[Entry]) -> dict[str, Any]:
    """The facts about the place of the store; one that does not answer is one that cannot be written."""
    try:
        return within(PATIENCE, lambda: _store_that_answers(root, mounts))
    except OSError:
        kind = _type_of(root, mounts)
        return {"store_parent": str(root), "store_type": kind, "store_writable": False}


def _store_that_answers(root: Path, mounts: Sequence[Entry]) -> dict[str, Any]:
    parent = root
    while not parent.exists():
        parent = parent.parent
    parent = parent.resolve()
    space = os.statvfs(parent)
    files = [root / name for name in ("store.json", "meta.db", "journal")]
    return {
        "store_exists": files[0].exists(),
        "store_parent": str(parent),
        "store_writable": parent.is_dir() and os.access(parent, os.W_OK | os.X_OK),
        "store_type": _type_of(parent, mounts),
        "store_free": space.f_bavail * space.f_frsize,
        "store_free_inodes": space.f_favail if space.f_files else None,
        "store_changed": max((file.stat().st_mtime for file in files if file.exists()), default=0.0),
    }


def _answer(point: str) -> str:
    """What is wrong with the mount at `point`; statvfs, unlike stat, always asks the daemon."""
    try:
        within(PATIENCE, lambda: os.statvfs(point))
    except PermissionError:  # another user's own mount: it is alive enough to refuse
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _probe() -> dict[str, str]:
    """The answers of PROBE: errors of `native` and `pyfuse3`, and libfuse's version if it is known."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:
            return dict(json.loads(done.stdout))
        why = f"loading it ends the process with {done.returncode}"
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        why = f"it could not be tried: {error}"
    return {"native": why, "pyfuse3": why}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _wanted(root: Path) -> tuple[str, ...]:
    try:
        from artfs.settings import load_settings

        settings = load_settings(root)
    except Exception:  # there is no store, or pydantic is missing: others tell
        return ()
    import sqlite3

    urls = {settings.provider, *settings.providers.values()}
    try:
        with closing(sqlite3.connect(f"file:{quote(str(root / 'meta.db'))}?mode=ro", uri=True)) as db:
            for (document,) in db.execute("SELECT doc FROM record WHERE kind = 'home'"):
                urls.add(str(json.loads(document)["provider"]))
    except (OSError, sqlite3.Error, ValueError, KeyError, TypeError):
        pass  # what the settings say is known all the same
    return ("aioboto3",) if any(url.startswith("s3:") for url in urls) else ()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return ""


def _has_sys_admin() -> bool:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & CAP_SYS_ADMIN)
    return True


def _is_setuid(program: str | None) -> bool:
    try:
        mode = os.stat(program).st_mode if program else 0
    except OSError:
        return False
    return bool(mode & stat.S_ISUID)


def _fuse_device_error() -> str:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return ""
