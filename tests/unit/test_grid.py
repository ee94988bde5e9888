"""Grid paths: every spelling, what they round-trip to, and every rule about names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artfs.errors import InvalidError
from artfs.grid import (
    RESERVED,
    GridPath,
    check_checkpoint_name,
    check_id,
    check_namespace_name,
    owner_key,
    parse_path,
    parse_scope_dir,
    scope_dir,
    session_key,
)
from artfs.types import Scope

SESSION, USER, SANDBOX = Scope.SESSION, Scope.USER, Scope.SANDBOX


@pytest.mark.parametrize(
    ("text", "path", "canonical"),
    [
        # incomplete
        ("", GridPath(), "grid"),
        ("/", GridPath(), "grid"),
        ("grid", GridPath(), "grid"),
        ("/grid/", GridPath(), "grid"),
        ("grid/web", GridPath("web"), "grid/web"),
        ("web/", GridPath("web"), "grid/web"),
        ("web/shared", GridPath("web", SANDBOX), "grid/web/shared"),
        ("web/sessions", GridPath("web", SESSION), "grid/web/sessions"),
        ("web/users/", GridPath("web", USER), "grid/web/users"),
        # one scope, all its spellings
        ("grid/web/sess-x", GridPath("web", SESSION, "x"), "grid/web/sess-x"),
        ("web/x", GridPath("web", SESSION, "x"), "grid/web/sess-x"),
        ("web/sess-sess-x", GridPath("web", SESSION, "x"), "grid/web/sess-x"),
        ("web/sessions/x", GridPath("web", SESSION, "x"), "grid/web/sess-x"),
        ("web/sessions/sess-x", GridPath("web", SESSION, "x"), "grid/web/sess-x"),
        ("web/user-ann@a.org", GridPath("web", USER, "ann@a.org"), "grid/web/user-ann@a.org"),
        ("web/users/ann", GridPath("web", USER, "ann"), "grid/web/user-ann"),
        # ids that look like another scope's directory
        ("web/sessions/user-ann", GridPath("web", SESSION, "user-ann"), "grid/web/sess-user-ann"),
        ("web/sess-user-ann", GridPath("web", SESSION, "user-ann"), "grid/web/sess-user-ann"),
        ("web/users/user-ann", GridPath("web", USER, "user-ann"), "grid/web/user-user-ann"),
        ("web/users/sess-x", GridPath("web", USER, "sess-x"), "grid/web/user-sess-x"),
        ("web/user_7", GridPath("web", SESSION, "user_7"), "grid/web/sess-user_7"),
        # whole
        ("web/shared/tpl", GridPath("web", SANDBOX, None, "tpl"), "grid/web/shared/tpl"),
        ("/grid/web/x/ns/a/b", GridPath("web", SESSION, "x", "ns", "a/b"), "grid/web/sess-x/ns/a/b"),
        ("web//x/./ns/a//b/", GridPath("web", SESSION, "x", "ns", "a/b"), "grid/web/sess-x/ns/a/b"),
        (
            "web/users/ann/ns~2/grid",
            GridPath("web", USER, "ann", "ns~2", "grid"),
            "grid/web/user-ann/ns~2/grid",
        ),
        ("web/shared/ns/\udcff", GridPath("web", SANDBOX, None, "ns", "\udcff"), "grid/web/shared/ns/\udcff"),
        ("web/shared/Ä ö", GridPath("web", SANDBOX, None, "Ä ö"), "grid/web/shared/Ä ö"),
    ],
)
def test_spellings(text: str, path: GridPath, canonical: str) -> None:
    assert parse_path(text) == path
    assert str(path) == canonical
    assert parse_path(canonical) == path


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a b/shared", "sandbox id 'a b' is not valid"),
        ("../shared", "sandbox id '..' is not valid"),
        ("grid/grid", "reserved word"),
        ("shared/x", "sandbox id 'shared' is a reserved word"),
        (".artfs/status", "reserved word"),
        ("web/..", "session id"),
        ("web/user-", "user id cannot be empty"),
        ("web/sess-", "session id cannot be empty"),
        ("web/sess-shared", "reserved word"),
        ("web/users/shared", "reserved word"),
        ("web/sessions/" + "x" * 129, "1–128"),
        ("web/shared/..", "namespace name cannot be '..'"),
        ("web/shared/.artfs-x", "cannot begin with"),
        ("web/shared/.checkpoints", "cannot begin with"),
        ("web/shared/\udcff", "UTF-8"),
        ("web/shared/" + "ä" * 128, "256 bytes, 255 are allowed"),
        ("web/shared/ns/a/../b", "cannot contain '..'"),
        ("web/shared/ns/" + "x" * 256, "256 bytes, 255 are allowed"),
        ("web/shared/ns/\ud800", "lone surrogates"),
        ("web/shared/ns/a\0", "NUL"),
    ],
)
def test_refused_paths_name_the_rule(text: str, rule: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_path(text)
    assert rule in str(caught.value)


IDS = st.from_regex(r"[A-Za-z0-9._@-]{1,128}", fullmatch=True).filter(lambda id: id not in RESERVED | {".", ".."})
SESSIONS = IDS.filter(lambda id: not id.startswith("sess-"))
SCOPES = st.one_of(
    st.tuples(st.just(SANDBOX), st.none()),
    st.tuples(st.just(SESSION), SESSIONS),
    st.tuples(st.just(USER), IDS),
)
COMPONENTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
NAMES = COMPONENTS.filter(lambda name: not name.startswith("."))


@given(IDS, SCOPES, NAMES, st.lists(NAMES, max_size=4))
def test_every_path_round_trips(sandbox: str, scope: tuple[Scope, str | None], namespace: str, rest: list[str]) -> None:
    path = GridPath(sandbox, *scope, namespace, "/".join(rest))
    assert parse_path(str(path)) == path
    assert parse_path(str(path).removeprefix("grid/")) == path


@given(SCOPES, SCOPES)
def test_scope_directories_are_one_to_one(a: tuple[Scope, str | None], b: tuple[Scope, str | None]) -> None:
    assert parse_scope_dir(scope_dir(*a)) == a
    assert (scope_dir(*a) == scope_dir(*b)) == (a == b)


@pytest.mark.parametrize(
    "name",
    ["", "x", "sess-", "user-", "sess-sess-x", "sess-shared", "user-users", "sessions", "users", "grid",
     ".", "..", "Shared", "sess-a b", "user-..", "user-" + "x" * 129, "sess-x\n", ".artfs"],
)  # fmt: skip
def test_no_other_name_is_a_scope_directory(name: str) -> None:
    assert parse_scope_dir(name) is None


def test_owners_are_required_where_there_are_owners() -> None:
    with pytest.raises(InvalidError, match="user_id is required for USER scope"):
        owner_key(USER, None)
    with pytest.raises(InvalidError, match="session_id is required for SESSION scope"):
        scope_dir(SESSION, None)
    with pytest.raises(InvalidError, match="no owner"):
        scope_dir(SANDBOX, "ann")
    assert scope_dir(SESSION, "sess-x") == scope_dir(SESSION, "x") == "sess-x"
    assert owner_key(USER, "sess-x") == "sess-x"


@pytest.mark.parametrize("id", ["a", "A.b_c@d-e", "x" * 128, "-", "...", ".x"])
def test_good_ids(id: str) -> None:
    assert check_id("user", id) == id
    assert session_key(f"sess-{id}") == session_key(id) == id


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a b", "ä", "a\n", "x" * 129, *sorted(RESERVED)])
def test_bad_ids(id: str) -> None:
    with pytest.raises(InvalidError, match="user id"):
        check_id("user", id)
    with pytest.raises(InvalidError, match="session id"):
        session_key(f"sess-{id}")


@pytest.mark.parametrize("name", ["v1", "a:b c", "~restore-1", "x" * 255, "ä" * 127, "-"])
def test_good_checkpoint_names(name: str) -> None:
    assert check_checkpoint_name(name) == check_namespace_name(name) == name


@pytest.mark.parametrize("name", ["", ".", ".x", "a/b", "a\0", "x" * 256, "ä" * 128, "\udcff"])
def test_bad_checkpoint_names(name: str) -> None:
    with pytest.raises(InvalidError, match="checkpoint name"):
        check_checkpoint_name(name)


def test_hidden_namespaces_are_allowed_but_for_ours() -> None:
    assert check_namespace_name(".config") == ".config"
    for name in (".artfs", ".artfsx", ".checkpoints", ".checkpoints.old", ".", ".."):
        with pytest.raises(InvalidError):
            check_namespace_name(name)
