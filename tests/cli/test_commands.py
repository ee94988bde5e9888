"""Commands on a store that nobody has mounted, in this process: results, documents, messages, exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import ArtifactStore
from artfs.cli import main
from tests.cli.command import ARTFS, environment

WEB = "default/shared/web"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(store_root: Path, capsys: Capture) -> Path:
    assert main(["init"]) == 0
    capsys.readouterr()
    return store_root


def run(capsys: Capture, *words: str | Path) -> tuple[int, str, str]:
    code = main(list(map(str, words)))
    out, err = capsys.readouterr()
    return code, out, err


def result(capsys: Capture, *words: str | Path) -> Any:
    """The document of a command that succeeds."""
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_init_makes_a_store_once(store_root: Path, capsys: Capture) -> None:
    assert result(capsys, "init", "--block-size", "262144")["block_size"] == 262144
    code, out, err = run(capsys, "init")
    assert (code, out) == (1, "")
    assert "holds a store already; choose another --root" in err


def test_a_session_from_its_making_to_its_end(store: Path, capsys: Capture) -> None:
    made = result(capsys, "session", "create", "--user", "ada", "--id", "s1", "--ttl", "2h", "--meta", "n=1")
    assert made["expires"] - made["created"] == 7200 * 10**9
    assert (made["user"], made["metadata"], made["grid_path"]) == ("ada", {"n": 1}, "grid/default/sess-s1")
    assert [s["id"] for s in result(capsys, "session", "list")] == ["s1"]
    later = result(capsys, "session", "extend", "sess-s1", "1h")
    assert later["expires"] - made["expires"] == 3600 * 10**9
    assert result(capsys, "session", "delete", "s1")["deleted"] == "s1"
    code, _, err = run(capsys, "session", "info", "s1")
    assert code == 3 and "there is no 's1'" in err


def test_a_new_session_prints_its_id_alone_on_stdout(store: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "session", "create", "--id", "s1")
    assert (code, out) == (0, "s1\n")
    assert "grid/default/sess-s1" in err
    assert run(capsys, "-q", "session", "create", "--id", "s2") == (0, "s2\n", "")


def test_the_sandbox_by_option_and_variable(store: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHUK_SANDBOX_ID", "two")
    assert result(capsys, "session", "create")["sandbox"] == "two"
    monkeypatch.setenv("ARTIFACT_SANDBOX_ID", "one")
    assert result(capsys, "session", "create")["sandbox"] == "one"
    assert result(capsys, "session", "create", "--sandbox", "three")["sandbox"] == "three"


def test_a_namespace_from_its_making_to_the_trash_and_back(store: Path, capsys: Capture) -> None:
    made = result(capsys, "ns", "create", WEB, "--meta", "team=x")
    assert (made["grid_path"], made["metadata"]) == (f"grid/{WEB}", {"team": "x"})
    assert result(capsys, "ns", "info", made["id"])["grid_path"] == f"grid/{WEB}"
    assert result(capsys, "ns", "clone", WEB, "copy")["name"] == "copy"
    assert result(capsys, "ns", "rename", "default/shared/copy", "site")["name"] == "site"
    assert result(capsys, "ns", "delete", "default/shared/site")["trashed"] is False
    result(capsys, "checkpoint", "create", WEB, "v1")
    assert result(capsys, "ns", "delete", WEB)["trashed"] is True
    assert result(capsys, "ns", "list") == []
    assert [n["id"] for n in result(capsys, "ns", "list", "--trash")] == [made["id"]]
    assert result(capsys, "ns", "undelete", WEB)["id"] == made["id"]
    code, _, err = run(capsys, "ns", "create", WEB)
    assert code == 1 and "exists already; choose another name" in err


def test_files_without_a_mount(store: Path, capsys: Capture, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "x").write_text("one")
    (tree / "big").write_bytes(os.urandom((2 << 20) + 7))
    result(capsys, "ns", "create", WEB)
    assert result(capsys, "put", "-r", str(tree), f"{WEB}/in") == {
        "path": f"{WEB}/in", "files": 2, "bytes": (2 << 20) + 10,
    }  # fmt: skip
    result(capsys, "cp", f"{WEB}/in", f"{WEB}/again")
    assert [e["name"] for e in result(capsys, "ls", WEB)] == ["again", "in"]
    assert result(capsys, "get", "-r", f"{WEB}/again", str(tmp_path / "out"))["files"] == 2
    assert (tmp_path / "out" / "big").read_bytes() == (tree / "big").read_bytes()
    assert (tmp_path / "out" / "a" / "x").read_text() == "one"
    assert not list((tmp_path / "out").glob(".*"))
    code, out, _ = run(capsys, "ls", "-l", f"{WEB}/in")
    assert code == 0 and out.splitlines()[0].startswith("drwxr-xr-x") and out.splitlines()[1].endswith("  big")
    held = result(capsys, "du")
    assert held["bytes"] == 2 * ((2 << 20) + 10) and held["namespaces"][0]["path"] == f"grid/{WEB}"


def test_put_takes_stdin_and_cat_writes_to_stdout(
    store_root: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["init", "-q"])
    main(["ns", "create", WEB, "-q"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x00\xffbytes")))
    assert main(["put", "-", f"{WEB}/f"]) == 0
    capfdbinary.readouterr()
    assert main(["cat", f"{WEB}/f", f"{WEB}/f"]) == 0
    assert capfdbinary.readouterr().out == b"\x00\xffbytes" * 2
    assert main(["cat", f"{WEB}/f", "--json"]) == 2
    assert json.loads(capfdbinary.readouterr().out)["code"] == 2


def test_a_blob_is_read_and_written_as_a_file(store: Path, capsys: Capture, tmp_path: Path) -> None:
    made = result(capsys, "ns", "create", "default/shared", "--type", "blob")
    (tmp_path / "f").write_text("blob")
    result(capsys, "put", str(tmp_path / "f"), made["grid_path"])
    result(capsys, "get", made["id"], str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "blob"


def test_checkpoints(store: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one")
    (tmp_path / "g").write_text("two")
    result(capsys, "ns", "create", WEB)
    result(capsys, "put", str(tmp_path / "f"), WEB)
    made = result(capsys, "checkpoint", "create", WEB, "v1", "-d", "first", "--label", "n=1")
    assert (made["name"], made["description"], made["labels"], made["bytes"]) == ("v1", "first", {"n": 1}, 3)
    result(capsys, "put", str(tmp_path / "g"), f"{WEB}/f")
    result(capsys, "put", str(tmp_path / "g"), WEB)
    changes = [{"path": "/f", "change": "modified"}, {"path": "/g", "change": "added"}]
    assert result(capsys, "checkpoint", "diff", WEB, "v1") == changes
    assert run(capsys, "checkpoint", "diff", WEB, "v1")[1] == "M /f\nA /g\n"
    safety = result(capsys, "checkpoint", "restore", WEB, "v1")["safety"]
    assert [e["name"] for e in result(capsys, "ls", WEB)] == ["f"]
    result(capsys, "checkpoint", "restore", WEB, safety)
    assert [e["name"] for e in result(capsys, "ls", WEB)] == ["f", "g"]
    assert result(capsys, "checkpoint", "label", WEB, "v1", "ok=true")["labels"] == {"ok": True}
    assert result(capsys, "checkpoint", "clone", WEB, "v1", "old")["grid_path"] == "grid/default/shared/old"
    assert [e["name"] for e in result(capsys, "ls", "default/shared/old")] == ["f"]
    assert [c["id"] for c in result(capsys, "checkpoint", "list", WEB)] == ["v1"]
    assert len(result(capsys, "checkpoint", "list", "--all", WEB)) == 3
    assert result(capsys, "checkpoint", "delete", WEB, "v1") == {"deleted": "v1"}


def test_a_name_that_is_taken_gets_an_id_of_its_own(store: Path, capsys: Capture) -> None:
    result(capsys, "ns", "create", WEB)
    assert run(capsys, "checkpoint", "create", WEB, "v1")[1] == "v1\n"
    assert run(capsys, "checkpoint", "create", WEB, "v1")[1] == "v1~2\n"


def test_the_state_of_the_store(store: Path, capsys: Capture) -> None:
    found = result(capsys, "status")
    assert (found["root"], found["mounts"], found["failure"]) == (str(store), [], "")
    assert found["owner"] == {"pid": os.getpid(), "role": "artfs status"}
    assert "commits" in result(capsys, "stats")
    assert set(result(capsys, "version")) >= {"artfs", "format", "python", "kernel", "trio"}
    assert result(capsys, "fsck", "--data")["ok"] is True
    assert "state        well" in run(capsys, "status")[1]
    for name in ("status", "stats"):
        code, _, err = run(capsys, name, str(store.parent))
        assert code == 2 and f"{store.parent} is not inside a mount of artfs" in err


@pytest.mark.parametrize(
    ("provider", "variable", "root"),
    [("vfs-filesystem", "VFS_ROOT_PATH", "here"), ("sqlite", "ARTIFACT_SQLITE_PATH", "one.db")],
)
def test_the_store_where_the_python_api_has_it(
    provider: str, variable: str, root: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARTFS_ROOT", raising=False)
    monkeypatch.setenv("ARTIFACT_PROVIDER", provider)
    monkeypatch.setenv(variable, str(tmp_path / root))
    found = result(capsys, "init")
    made = ArtifactStore()
    assert found["root"] == made.root and Path(found["root"]).parent == tmp_path
    assert found["provider"] == (f"sqlite://{tmp_path}/one.db" if provider == "sqlite" else "")
    result(capsys, "ns", "create", WEB)
    assert [info.grid_path for info in made.list_namespaces()] == [f"grid/{WEB}"]
    anyio.run(made.close)
    monkeypatch.setenv("ARTFS_ROOT", str(tmp_path / "other"))
    assert result(capsys, "init")["root"] == str(tmp_path / "other")
    monkeypatch.delenv("ARTFS_ROOT")
    monkeypatch.setenv("ARTIFACT_PROVIDER", "tape")
    code, _, err = run(capsys, "ls")
    assert code == 2 and "Unknown storage provider 'tape'" in err


def test_a_store_in_one_file(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "one.db"
    file.write_bytes(b"no store")
    code, _, err = run(capsys, "--root", str(file), "ls")
    assert code == 2 and f"{file} is no directory, and no store's sqlite file" in err
    file.unlink()

    async def make() -> None:
        async with ArtifactStore(root=file) as store:
            made = await store.create_namespace("workspace", "sandbox", "web")
            await store.write_namespace(made.namespace_id, b"from Python", "/f")

    anyio.run(make)
    assert run(capsys, "--root", str(file), "cat", f"{WEB}/f") == (0, "from Python", "")
    assert result(capsys, "--root", str(file), "status")["root"] == f"{file}-artfs"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["checkpoint", "restore", WEB, "nix"], 3, "has no checkpoint 'nix'; `artfs checkpoint list` shows them"),
        (["checkpoint", "create", WEB, ".hidden"], 2, "cannot begin with a dot"),
        (["checkpoint", "create", WEB, "x" * 256], 2, "has 256 bytes, 255 are allowed"),
        (["checkpoint", "create", "default/shared/nix"], 3, "Namespace not found"),
        (["ns", "create", "default/shared/a/b"], 2, "no place for a namespace"),
        (["ns", "create", "default/shared/.artfs-x"], 2, "cannot begin with"),
        (["ns", "create", "default/sess-nix/a"], 3, "Invalid session"),
        (["ns", "create", "a b/shared/x"], 2, "sandbox id 'a b' is not valid"),
        (["session", "create", "--id", "../x"], 2, "is not valid"),
        (["session", "create", "--ttl", "0"], 2, "write 90s, 30m, 2h, 7d"),
        (["session", "create", "--meta", "x"], 2, "KEY=VALUE"),
        (["get", f"{WEB}/nix"], 3, "no such file"),
        (["get", WEB], 2, "use -r"),
        (["ls", "./nix"], 2, "is not inside a mount of artfs; give a grid path"),
        (["put", "/nonexistent", WEB], 3, "does not exist"),
        (["run", "--session", "s"], 2, "which program?"),
        (["ls", ""], 2, "a path cannot be empty"),
    ],
)  # fmt: skip
def test_bad_input(store: Path, capsys: Capture, words: list[str], code: int, said: str) -> None:
    main(["ns", "create", WEB, "-q"])
    capsys.readouterr()
    got, out, err = run(capsys, *words)
    assert (got, out) == (code, ""), err
    assert said in err and "Traceback" not in err
    got, out, _ = run(capsys, "--json", *words)
    assert got == code
    document = json.loads(out)
    assert document["code"] == code and said in document["error"]


def test_there_is_no_store(store_root: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, "ls")
    assert code == 3 and f"make one with `artfs init --root {store_root}`" in err


def test_a_store_of_a_newer_format(store: Path, capsys: Capture) -> None:
    file = store / "store.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 99'))
    code, _, err = run(capsys, "ls")
    assert code == 6 and "upgrade artfs" in err


def test_a_damaged_store(store: Path, capsys: Capture) -> None:
    (store / "store.json").write_text("{")
    code, _, err = run(capsys, "status")
    assert code == 6 and "fsck" in err


def test_put_refuses_what_it_cannot_make(store: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "pipe")
    result(capsys, "ns", "create", WEB)
    code, _, err = run(capsys, "put", "-r", str(tmp_path / "tree"), WEB)
    assert code == 2 and "pipe is neither file, directory nor symlink, which put cannot make; mount the grid" in err


def test_a_tree_with_symlinks_goes_in_and_comes_out(store: Path, capsys: Capture, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "f").write_text("bytes")
    links = {"relative": "sub/f", "sub/up": "..", "nowhere": "/no/such", "folder": "sub"}
    for name, target in links.items():
        (tree / name).symlink_to(target)
    result(capsys, "ns", "create", WEB)
    for back in ("first", "again"):  # where they are there already
        done = result(capsys, "put", "-r", tree, WEB)
        assert (done["files"], done["bytes"]) == (5, 5)
        result(capsys, "get", "-r", f"{WEB}/tree", tmp_path / back)
        assert {name: os.readlink(tmp_path / back / name) for name in links} == links
        assert (tmp_path / back / "folder" / "f").read_text() == "bytes"
    other = tmp_path / "other" / "tree"
    other.mkdir(parents=True)
    for name in ("relative", "sub"):
        (other / name).symlink_to("elsewhere")
    code, _, err = run(capsys, "put", "-r", other, WEB)
    assert code == 1 and "tree/sub: Is a directory" in err
    assert [e["target"] for e in result(capsys, "ls", f"{WEB}/tree") if e["name"] == "relative"] == ["elsewhere"]


def test_what_a_path_inside_a_namespace_holds(store: Path, capsys: Capture, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    for name in ("a", "deep/b", "deep/er/c"):
        (tree / name).write_bytes(bytes(100_000))
    (tree / "deep" / "link").symlink_to("b")
    result(capsys, "ns", "create", WEB)
    result(capsys, "put", "-r", tree, f"{WEB}/tree")
    result(capsys, "checkpoint", "create", WEB, "v1")
    whole = result(capsys, "du", WEB)
    inside = result(capsys, "du", f"{WEB}/tree")
    assert (inside["bytes"], inside["inodes"]) == (whole["bytes"], whole["inodes"] - 1) == (300_000, 7)
    deep = result(capsys, "du", f"{WEB}/tree/deep")
    assert deep["namespaces"] == [{"path": f"grid/{WEB}/tree/deep", "bytes": 200_000, "inodes": 5}]
    (tmp_path / "empty").touch()
    result(capsys, "put", tmp_path / "empty", f"{WEB}/tree/a")
    assert result(capsys, "du", f"{WEB}/tree")["bytes"] == 200_000
    assert result(capsys, "du", f"{WEB}/.checkpoints/v1")["bytes"] == 300_000
    assert result(capsys, "du", f"{WEB}/tree/a")["inodes"] == 1
    assert run(capsys, "du", f"{WEB}/nothing")[0] == 3


def test_the_description_of_a_namespace_can_be_read(store: Path, capsys: Capture, tmp_path: Path) -> None:
    made = result(capsys, "ns", "create", WEB, "--meta", "a=1")
    blob = result(capsys, "ns", "create", "default/shared/blob", "--type", "blob")
    for name in ("_meta.json", ".workspace"):
        code, out, _ = run(capsys, "cat", f"{WEB}/{name}")
        assert code == 0 and json.loads(out)["id"] == made["id"]
        result(capsys, "get", f"{WEB}/{name}", tmp_path / name)
        assert (tmp_path / name).read_text() == out
        (entry,) = result(capsys, "ls", f"{WEB}/{name}")
        assert (entry["name"], entry["type"], entry["size"]) == (name, "file", len(out))
    assert json.loads(run(capsys, "cat", "default/shared/blob/_meta.json")[1])["id"] == blob["id"]
    assert run(capsys, "cat", "default/shared/blob/.workspace")[0] == 3
    assert run(capsys, "cat", f"{WEB}/sub/_meta.json")[0] == 3
    assert [entry["name"] for entry in result(capsys, "ls", WEB)] == []


def test_a_reader_that_has_enough_is_no_error(store: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3 << 20))
    result(capsys, "ns", "create", WEB)
    result(capsys, "put", str(tmp_path / "f"), WEB)
    with subprocess.Popen(
        [*ARTFS, "cat", f"{WEB}/f"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.read(1)
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 141


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(capsys: Capture, shell: str) -> None:
    code, out, _ = run(capsys, "completion", shell)
    assert code == 0 and "checkpoint" in out


def test_bash_completes_commands_and_options() -> None:
    program = """eval "$(%s -m artfs completion bash)"
    ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _artfs; echo "${COMPREPLY[*]}"; }
    ask artfs che; ask artfs --json checkpoint res; ask artfs session create --u; ask artfs completion z
    """
    done = subprocess.run(
        ["bash", "-c", program % sys.executable],
        env=environment(), capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["checkpoint", "restore", "--user", "zsh"], done.stderr
