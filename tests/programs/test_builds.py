"""Compilers and package managers: make -j, an archive, running what was built; pip and a wheel; editors."""

import os
import sys
import sysconfig
import zipfile
from pathlib import Path

from tests.programs.run import need, run

MAKEFILE = """\
OBJECTS = $(patsubst %.c,%.o,$(wildcard src/*.c))
program: main.o libparts.a
\t$(CC) -o $@ main.o -L. -lparts
libparts.a: $(OBJECTS)
\tar rcs $@ $^
%.o: %.c parts.h
\t$(CC) -MMD -I. -c -o $@ $<
-include $(OBJECTS:.o=.d)
clean:
\trm -f program libparts.a *.o *.d src/*.o src/*.d
"""


def test_make_in_parallel(mnt: Path) -> None:
    need("make")
    need("gcc")
    count = 30
    (mnt / "src").mkdir()
    (mnt / "Makefile").write_text(MAKEFILE)
    (mnt / "parts.h").write_text("".join(f"int part{number}(void);\n" for number in range(count)))
    for number in range(count):
        (mnt / "src" / f"part{number}.c").write_text(
            f'#include "parts.h"\nint part{number}(void) {{ return {number}; }}\n'
        )
    calls = " + ".join(f"part{number}()" for number in range(count))
    (mnt / "main.c").write_text(
        f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ return printf("%d\\n", {calls}) < 0; }}\n'
    )
    run("make", "-j8", "CC=gcc", cwd=mnt)
    assert run(mnt / "program") == f"{sum(range(count))}\n"
    assert "up to date" in run("make", "-j8", "CC=gcc", cwd=mnt), "stamps make it build again"
    (mnt / "src" / "part7.c").write_text("int part7(void) { return 1007; }\n")
    printed = run("make", "-j8", "CC=gcc", cwd=mnt)
    assert printed.count(" -c ") == 1, "one changed source is one compilation"
    assert run(mnt / "program") == f"{sum(range(count)) + 1000}\n"
    run("make", "clean", cwd=mnt)
    assert sorted(os.listdir(mnt)) == ["Makefile", "main.c", "parts.h", "src"]


def _wheel(directory: Path) -> Path:
    """A small wheel, made by hand so that nothing is fetched."""
    path = directory / "sample-1.0-py3-none-any.whl"
    info = "sample-1.0.dist-info"
    modules = {f"sample/m{number}.py": f"VALUE = {number}\n" for number in range(50)}
    files = {
        "sample/__init__.py": "def main():\n    print('installed')\n",
        **modules,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nsample = sample:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_pip_installs_a_wheel_into_a_venv(mnt: Path) -> None:
    run(sys.executable, "-m", "venv", "--symlinks", mnt / "venv")
    python = mnt / "venv/bin/python"
    options = ("--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "-q")
    run(python, "-m", "pip", "install", *options, _wheel(mnt))
    assert run(mnt / "venv/bin/sample") == "installed\n"
    assert run(python, "-c", "from sample import m7, m49; print(m7.VALUE + m49.VALUE)") == "56\n"
    run(python, "-m", "pip", "uninstall", "-q", "-y", "--disable-pip-version-check", "sample")
    assert not list((mnt / "venv/lib").rglob("sample*"))


def test_compiling_python_modules(mnt: Path) -> None:
    source = Path(sysconfig.get_paths()["stdlib"]) / "json"
    run("cp", "-r", source, mnt / "json")
    run(sys.executable, "-m", "compileall", "-q", "-f", "-j", "2", mnt / "json")
    assert len(list((mnt / "json/__pycache__").glob("*.pyc"))) >= len(list((mnt / "json").glob("*.py")))


def test_in_place_editors(mnt: Path) -> None:
    """Write a new file and rename it over (sed -i), keep a backup link (many editors), swap files."""
    path = mnt / "text"
    path.write_text("one two\n" * 1000)
    path.chmod(0o640)
    run("sed", "-i.bak", "s/two/three/", path)
    assert path.read_text() == "one three\n" * 1000
    assert (mnt / "text.bak").read_text() == "one two\n" * 1000
    assert path.stat().st_mode & 0o777 == 0o640
    need("perl")
    run("perl", "-i", "-pe", "s/three/four/", path)
    assert path.read_text() == "one four\n" * 1000
    run("sort", "-o", path, path)
    run("truncate", "-s", "9", path)
    assert path.read_text() == "one four\n"
    run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=3", "conv=fsync", "status=none")
    run("shred", "-n", "1", "-u", path)
    assert sorted(os.listdir(mnt)) == ["text.bak"]
