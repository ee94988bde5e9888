"""git: everything that it does with files, and its own check of them."""

import random
from pathlib import Path

import pytest

from tests.programs.run import need, run

IDENTITY = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def _git(where: Path, *words: str) -> str:
    return run("git", "-c", "init.defaultBranch=main", "-c", "safe.directory=*", *words, cwd=where, env=IDENTITY)


@pytest.fixture
def repository(mnt: Path) -> Path:
    """A repository of 300 files in 20 directories, with three commits, an executable and a symlink."""
    need("git")
    where = mnt / "repo"
    where.mkdir()
    _git(where, "init")
    source = random.Random(1)
    for number in range(300):
        path = where / f"dir{number % 20}" / f"file{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(str(source.random()) for _ in range(number % 50)))
    (where / "tool").write_text("#!/bin/sh\necho works\n")
    (where / "tool").chmod(0o755)
    (where / "link").symlink_to("dir0/file0.txt")
    _git(where, "add", "-A")
    _git(where, "commit", "-q", "-m", "first")
    for number in range(0, 300, 7):
        (where / f"dir{number % 20}" / f"file{number}.txt").write_text(f"changed {number}")
    _git(where, "commit", "-q", "-a", "-m", "second")
    _git(where, "mv", "dir1", "moved")
    _git(where, "rm", "-q", "-r", "dir2")
    _git(where, "commit", "-q", "-m", "third")
    return where


def _is_sound(where: Path) -> None:
    assert _git(where, "status", "--porcelain") == ""
    assert "dangling" not in _git(where, "fsck", "--full", "--strict")


def test_history_and_checkout(repository: Path) -> None:
    _is_sound(repository)
    assert _git(repository, "rev-list", "--count", "HEAD").strip() == "3"
    trees = {}
    for commit in ("main~2", "main~1", "main", "main~2", "main~0"):
        _git(repository, "checkout", "-q", commit)
        _is_sound(repository)
        trees[commit] = sorted(str(path.relative_to(repository)) for path in repository.glob("[!.]*/*"))
    assert trees["main"] == trees["main~0"] != trees["main~2"]
    assert run(repository / "tool") == "works\n"


def test_gc_repack_and_branches(repository: Path) -> None:
    for number in range(10):
        _git(repository, "checkout", "-q", "-b", f"branch{number}", "main")
        (repository / f"new{number}").write_text(str(number))
        _git(repository, "add", "-A")
        _git(repository, "commit", "-q", "-m", f"branch {number}")
    _git(repository, "checkout", "-q", "main")
    _git(repository, "merge", "-q", "-m", "merge", *(f"branch{number}" for number in range(10)))
    _git(repository, "gc", "-q", "--aggressive", "--prune=now")
    _is_sound(repository)
    assert list((repository / ".git/objects/pack").glob("*.pack"))
    assert [(repository / f"new{number}").read_text() for number in range(10)] == list("0123456789")
    _git(repository, "stash", "list")
    (repository / "new0").write_text("dirty")
    _git(repository, "stash")
    _is_sound_but_for_stash(repository)
    _git(repository, "stash", "pop", "-q")
    assert (repository / "new0").read_text() == "dirty"


def _is_sound_but_for_stash(where: Path) -> None:
    assert _git(where, "status", "--porcelain") == ""
    _git(where, "fsck", "--full")


@pytest.mark.parametrize("option", ["--local", "--no-hardlinks", "--no-local"])
def test_clone(repository: Path, option: str) -> None:
    copy = repository.parent / "copy"
    _git(repository.parent, "clone", "-q", option, str(repository), str(copy))
    _is_sound(copy)
    assert _git(copy, "rev-parse", "HEAD") == _git(repository, "rev-parse", "HEAD")
    (copy / "tool").write_text("changed")
    _git(copy, "commit", "-q", "-a", "-m", "in the copy")
    _git(repository, "pull", "-q", "--ff-only", str(copy), "main")
    assert (repository / "tool").read_text() == "changed"
    _is_sound(repository)


def test_worktree(repository: Path) -> None:
    _git(repository, "worktree", "add", "-q", "../tree", "HEAD~1")
    _is_sound(repository.parent / "tree")
    _git(repository, "worktree", "remove", "../tree")
    _is_sound(repository)
