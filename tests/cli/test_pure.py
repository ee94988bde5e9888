"""Values, mount options, the mount table and the parser, without any store."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from artfs.cli.app import cause, message
from artfs.cli.completion import SHELLS, bash, fish, tree, words, zsh
from artfs.cli.mount_helper import as_mount_command, mount_options
from artfs.cli.mounttable import at, holding, read_mounts, source
from artfs.cli.parsing import UsageError, build_parser
from artfs.cli.running import view_of
from artfs.cli.unmounting import left
from artfs.cli.values import duration, moment, pairs, printable, size, table
from artfs.errors import BusyError, InvalidError, NotFoundError

MOUNTS = r"""22 28 0:21 / / rw,relatime - ext4 /dev/sda rw
40 22 0:50 / /mnt/grid rw,relatime shared:1 - fuse.artfs /srv/my\040store rw,user_id=0
41 22 0:51 /src /mnt/web rw - fuse.artfs /srv/store#grid/default/shared/web rw
42 22 0:52 / /mnt/old rw - fuse.artfs artfs rw
43 40 0:53 / /mnt/grid rw - tmpfs none rw
"""


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5D", 129600), ("1w", 604800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0h", "-1", "2y", "h", "1h30m", "inf", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="no duration"):
        duration(text)


def test_pairs_take_json_values_and_texts() -> None:
    assert pairs(["a=1", "b=x", "c=[1]", "d=", "e=a=b"]) == {"a": 1, "b": "x", "c": [1], "d": "", "e": "a=b"}
    for bad in ("a", "=1", ""):
        with pytest.raises(InvalidError, match="KEY=VALUE"):
            pairs([bad])


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (1 << 50, "1.0 PiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_a_moment_far_away_is_shown_all_the_same() -> None:
    assert moment(None) == "-"
    assert moment(2**63 - 1).startswith("2262-04-1")


def test_names_cannot_move_the_cursor_or_break_a_table() -> None:
    assert printable("a\x1b[2J\nb") == "a\\x1b[2J\\x0ab"
    assert printable("caf\udce9") == "caf?"


def test_tables_are_aligned() -> None:
    assert table(("NAME", "SIZE"), [("a", "10 B"), ("long", "1 B")], right=(1,)) == [
        "NAME  SIZE",
        "a     10 B",
        "long   1 B",
    ]


# mount(8)
def test_standard_options_of_fstab_are_no_error_and_later_ones_win() -> None:
    standard = "defaults,_netdev,nofail,noauto,user,x-systemd.automount,relatime,rw,dev,suid,exec,async,noatime"
    found = mount_options([standard, "ro,allow_other", "nosuid"])
    assert found.passed == ["dev", "suid", "exec", "async", "noatime", "ro", "nosuid"]
    assert found.allow_other
    assert mount_options(["ro", "rw"]).passed == []


def test_own_options() -> None:
    found = mount_options(["path=default/shared/web,as=session:s,sandbox=x", "checked"])
    assert (found.path, found.who, found.sandbox, found.checked) == ("default/shared/web", "session:s", "x", True)


def test_what_mount_8_repeats_to_remount() -> None:
    found = mount_options(["rw,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount,ro"])
    assert found.remount and found.all_named and found.passed == ["ro"]
    assert not mount_options(["remount,ro"]).all_named


@pytest.mark.parametrize("option", ["bogus", "path", "uid=1", "as", "user_id=0"])
def test_unknown_options_are_named(option: str) -> None:
    with pytest.raises(InvalidError, match=f"no mount option '{option}'"):
        mount_options(["ro," + option])


def test_a_call_by_mount_8_is_a_mount() -> None:
    expected = ["--root", "/srv/store", "--quiet", "mount", "--no-init", "/mnt/grid", "-o", "rw,dev"]
    assert as_mount_command(["/srv/store", "/mnt/grid", "-o", "rw,dev"]) == expected
    assert as_mount_command(["artfs#/srv/store", "/mnt/grid", "-o", "rw,dev"]) == expected


@pytest.mark.parametrize(
    "line", ["mount /mnt", "ls default/shared", "--root /srv/store mount /mnt", "ls", "", "/srv/store", "-v ls"]
)
def test_other_calls_are_not(line: str) -> None:
    assert as_mount_command(line.split()) is None


# the table of mounts
def test_a_mount_tells_its_store_and_part() -> None:
    mounts = read_mounts(MOUNTS)
    assert mounts[1].store == (Path("/srv/my store"), "grid")
    assert mounts[2].store == (Path("/srv/store"), "grid/default/shared/web/src")
    assert mounts[3].ours and mounts[3].store is None
    assert mounts[0].store is None


def test_the_uppermost_mount_at_or_above_a_path() -> None:
    mounts = read_mounts(MOUNTS)
    assert at("/mnt/grid", mounts) == mounts[4]
    assert at("/mnt", mounts) is None
    assert holding("/mnt/web/a", mounts) == mounts[2]
    assert holding("/mnt/website", mounts) == mounts[0]
    assert holding("/mnt/grid", mounts) == mounts[4]


def test_a_source_is_quoted_for_libfuse() -> None:
    assert source(Path("/a,b\\c"), "grid") == "/a\\,b\\\\c"
    assert source(Path("/a"), "grid/x/shared") == "/a#grid/x/shared"


# the parser
@pytest.mark.parametrize("line", ["--root /x --json ls", "ls --root /x --json", "--root /y ls --root /x --json"])
def test_global_options_before_and_after_the_command(line: str) -> None:
    args = build_parser().parse(line.split())
    assert (args.root, args.json, args.quiet) == ("/x", True, False)


@pytest.mark.parametrize(
    "line",
    ["", "nosuch", "ls --nosuch", "session", "mount", "mount --checked --as admin /x", "ns create", "get a b -r c"],
)
def test_wrong_use(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_parser().parse(line.split())
    assert caught.value.usage.startswith("usage: artfs")


def test_options_between_arguments() -> None:
    args = build_parser().parse(["checkpoint", "create", ".", "-d", "text", "v1", "--json"])
    assert (args.path, args.name, args.description, args.json) == (".", "v1", "text", True)
    args = build_parser().parse(["get", "a", "-r", "b"])
    assert (args.source, args.target, args.recursive) == ("a", "b", True)
    args = build_parser().parse(["ls", "-l"])
    assert (args.path, args.long) == ("grid", True)


def test_the_program_of_run_is_taken_as_it_is() -> None:
    args = build_parser().parse(["--root", "/x", "run", "--session", "s", "--", "sh", "--json", "--", "-c"])
    assert args.program == ["sh", "--json", "--", "-c"]
    assert not args.json
    assert build_parser().parse(["cat", "--", "-x"]).path == ["-x"]


def test_every_command_has_help_examples_and_exit_codes() -> None:
    names = []
    for path, parser in tree(build_parser()):
        text = parser.format_help()
        assert "examples:\n" in text, path
        assert "5 busy or locked" in text, path
        names.append(" ".join(path))
    assert {"mount", "session create", "ns undelete", "checkpoint label", "completion", "fsck"} <= set(names)
    assert {"sync", "gc", "warmup", "cache status", "cache drop", "recover", "export", "import"} <= set(names)
    assert "top" not in names


def test_completion_knows_every_command_and_option() -> None:
    parser = build_parser()
    scripts = {shell: make(parser) for shell, make in zip(SHELLS, (bash, zsh, fish), strict=True)}
    for path, child in tree(parser):
        for word in words(child):
            for shell, script in scripts.items():
                assert word.lstrip("-") in script, (shell, path, word)


# errors
def test_the_first_error_of_ours_in_a_group_is_the_one_to_tell() -> None:
    error = ExceptionGroup("a", [OSError(5, "x"), ExceptionGroup("b", [BusyError("held"), ValueError("y")])])
    assert isinstance(cause(error), BusyError)
    assert str(cause(ExceptionGroup("a", [ValueError("y")]))) == "y"


def test_messages_are_one_line() -> None:
    assert message(NotFoundError("a\nb")) == "a b"
    assert message(OSError(2, "No such file", "/x")) == "/x: No such file"
    assert message(ValueError()) == "ValueError"


# run
def test_a_view_has_the_scopes_of_the_session() -> None:
    session = {"id": "sess-a", "sandbox": "x", "user": "u"}
    assert view_of(session, False).writable == ("x/sess-a", "x/user-u")
    assert view_of(session, False).readable == ("x/shared",)
    assert view_of({**session, "user": None}, True).writable == ("x/sess-a", "x/shared")


def test_what_is_left_at_the_end() -> None:
    def found(journal: int, waits: int, saved: dict[str, object] | None, error: str = "") -> dict[str, object]:
        waiting = {"bytes": waits, "objects": 1, "oldest": None, "error": error, "retry_at": None}
        return {"statistics": {"journal_used": journal}, "waiting": waiting, "saved": saved}

    copied: dict[str, object] = {"moment": 1, "sequence": 1, "trouble": ""}
    assert left(found(2048, 4096, copied)) == "to commit: 2.0 KiB"
    assert left(found(0, 4096, copied)) == "to upload: 4.0 KiB in 1 object"
    assert left(found(0, 4096, copied, "away")) == "to upload: 4.0 KiB in 1 object; the last upload failed: away"
    assert left(found(0, 0, copied)) == "to save: the metadata"
    assert left(found(0, 0, {**copied, "trouble": "away"})) == "to save: the metadata; the last attempt failed: away"
    assert left(found(0, 0, None)) == "ending"
