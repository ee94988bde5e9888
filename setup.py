"""The build of the native extension; everything else about the package is in pyproject.toml.

The extension needs libfuse's headers (libfuse >= 3.13, Debian: libfuse3-dev), found by pkg-config. Where they
are missing, or where it does not compile, artfs is installed without it: slower, and without ioctl, lseek,
fallocate and copy_file_range in mounts. `artfs doctor` says so later; the warning here says it now.
"""

from __future__ import annotations

import shlex
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = [f"artfs/fuse/_native{part}.c" for part in ("", "_io", "_decode", "_answer", "_jobs", "_beside")]
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"]


def warn(why: str) -> None:
    line = "*" * 78
    print(
        f"{line}\nartfs is built WITHOUT its native extension: {why}\n"
        "Mounts will be slower and lack ioctl, lseek, fallocate and copy_file_range.\n"
        "Remedy: install libfuse3-dev (fuse3-devel), pkg-config and a C compiler, then install artfs again.\n"
        f"{line}",
        file=sys.stderr,
    )


def fuse_flags() -> list[str]:
    """What the compiler needs to find libfuse's headers. Raises OSError when they are not there."""
    command = ["pkg-config", "--cflags", "fuse3 >= 3.13"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip() or f"{shlex.join(command)} failed")
    return shlex.split(done.stdout)


class BuildNative(build_ext):  # type: ignore[misc, unused-ignore]  # setuptools may come without types
    """Leaves the extension out where it cannot be built, and says why."""

    def build_extension(self, ext: Extension) -> None:
        """As setuptools does it, but the installation goes on, whatever a compiler or its driver raises."""
        try:
            ext.extra_compile_args = [*FLAGS, *fuse_flags()]
            super().build_extension(ext)
        except Exception as e:
            warn(str(e))


setup(
    ext_modules=[
        Extension(
            "artfs.fuse._native",
            SOURCES,
            depends=["artfs/fuse/_native.h"],
            extra_link_args=["-pthread"],
            optional=True,  # setuptools does not look for what was left out
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
