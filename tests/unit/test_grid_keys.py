"""Grid keys: how artifacts spell their place, in every format, and what is none."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artfs.errors import InvalidError
from artfs.grid import (
    _ROOT,
    RESERVED,
    GridError,
    _validate_component,
    artifact_key,
    canonical_prefix,
    is_valid_grid_key,
    parse,
    validate_grid_key,
)
from artfs.models import GridKeyComponents
from artfs.types import Scope

SESSION, USER, SANDBOX = Scope.SESSION, Scope.USER, Scope.SANDBOX


def test_prefixes() -> None:
    assert _ROOT == "grid"
    assert canonical_prefix("web", "x") == "grid/web/sessions/x/"
    assert canonical_prefix("web", "sess-x") == "grid/web/sessions/sess-x/"
    assert canonical_prefix("web", "x", use_legacy_format=True) == "grid/web/x/"
    # A bare `user-…` would be read as a user's directory.
    assert canonical_prefix("web", "user-ann", use_legacy_format=True) == "grid/web/sessions/user-ann/"


def test_keys() -> None:
    assert artifact_key("web", "x", "a") == "grid/web/sessions/x/a"
    assert artifact_key("web", "x", "a", use_legacy_session_format=True) == "grid/web/x/a"
    assert artifact_key("web", "x", "a", scope="user", owner_id="ann") == "grid/web/users/ann/a"
    assert artifact_key("web", None, "a b.txt", USER, "ann") == "grid/web/users/ann/a b.txt"
    assert artifact_key("web", "x", "a", scope=SANDBOX) == "grid/web/shared/a"


@pytest.mark.parametrize(
    ("key", "scope", "owner", "subpath"),
    [
        ("grid/web/sessions/x/a", SESSION, "x", None),
        ("grid/web/x/a", SESSION, "x", None),
        ("grid/web/sess-x/a/", SESSION, "sess-x", None),
        ("grid/web/sessions/sess-x/a/b/c.txt", SESSION, "sess-x", "b/c.txt"),
        ("grid/web/sessions/user-ann/a", SESSION, "user-ann", None),
        ("grid/web/users/ann/a", USER, "ann", None),
        ("grid/web/user-ann/a", USER, "ann", None),
        ("grid/web/users/user-ann/a/b", USER, "user-ann", "b"),
        ("grid/web/shared/a", SANDBOX, "shared", None),
        ("grid/web/shared/a//b/", SANDBOX, "shared", "b"),
    ],
)
def test_every_spelling_is_read(key: str, scope: Scope, owner: str, subpath: str | None) -> None:
    expected = GridKeyComponents(sandbox_id="web", session_id=owner, artifact_id="a", subpath=subpath, scope=scope)
    assert parse(key) == validate_grid_key(key) == expected
    assert is_valid_grid_key(key)


BAD: list[Any] = [
    "", "grid", "grid/", "grid/web", "grid/web/x", "grid/web/x/", "grid/web/shared", "grid/web/shared/",
    "grid/web/users/ann", "grid/web/sessions/x/", "grid//x/a", "grid/web//a", "grid/web/sessions//a", "/grid/web/x/a",
    "web/x/a", "GRID/web/x/a", "grid/./web/x/a", "grid/web/./x/a", "grid/web/../a", "grid/web/x/..", "grid/../web/x/a",
    "grid/web/x/a/../b", "grid/a b/x/a", "grid/grid/x/a", "grid/shared/x/a", "grid/web/sess-/a", "grid/web/user-/a",
    "grid/web/x/.artfs", "grid/web/x/a\0", "grid/web/x/\udcff", "grid/web/" + "x" * 129 + "/a",
    "grid/web/x/" + "a" * 256, None, 5, b"grid/web/x/a", ["grid"], {}, 1.5,
]  # fmt: skip


@pytest.mark.parametrize("key", BAD)
def test_what_is_no_key(key: Any) -> None:
    assert parse(key) is None
    assert not is_valid_grid_key(key)
    with pytest.raises(GridError, match="Invalid grid key"):
        validate_grid_key(key)


@given(st.text(max_size=60))
def test_parsing_raises_nothing(text: str) -> None:
    for key in (text, f"grid/{text}", f"grid/web/{text}", f"grid/web/sessions/{text}", f"grid/web/x/{text}"):
        found = parse(key)
        assert found is None or "/" not in found.sandbox_id + found.session_id + found.artifact_id


IDS = st.from_regex(r"[A-Za-z0-9._@-]{1,128}", fullmatch=True).filter(
    lambda id: id.removeprefix("sess-") not in RESERVED | {".", "..", ""} and not id.startswith("sess-sess-")
)
ARTIFACTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda id: not id.startswith(".")
)


@given(IDS.filter(lambda id: id not in RESERVED), IDS, ARTIFACTS, st.booleans(), st.sampled_from(Scope))
def test_keys_are_read_as_they_were_made(sandbox: str, id: str, artifact: str, legacy: bool, scope: Scope) -> None:
    owner = id.removeprefix("sess-") if scope is USER else id
    key = artifact_key(sandbox, id, artifact, scope, owner, legacy)
    expected = {"session": id, "user": owner, "sandbox": "shared"}[scope]
    found = parse(key)
    assert found is not None
    assert (found.sandbox_id, found.session_id, found.artifact_id, found.scope) == (sandbox, expected, artifact, scope)


BAD_IDS: list[tuple[Any, str]] = [
    ("", "cannot be empty"),
    (None, "must be a string"),
    (5, "must be a string"),
    ([], "must be a string"),
    ("a/b", "cannot contain '/' characters"),
    (".", "cannot be"),
    ("..", "cannot be"),
    ("a\0", "cannot be"),
]


@pytest.mark.parametrize(("bad", "rule"), BAD_IDS)
def test_components(bad: Any, rule: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: _validate_component(bad, "sandbox_id"),
        lambda: canonical_prefix(bad, "x"),
        lambda: canonical_prefix("web", bad),
        lambda: artifact_key(bad, "x", "a"),
        lambda: artifact_key("web", bad, "a"),
        lambda: artifact_key("web", "x", bad),
    ]
    for call in calls:
        with pytest.raises(GridError, match=rule) as caught:
            call()
        assert isinstance(caught.value, ValueError)
    _validate_component("ok", "sandbox_id")


@pytest.mark.parametrize("bad", ["a b", "ä", "x" * 129, "grid", "shared", "sessions", "users"])
def test_ids(bad: str) -> None:
    with pytest.raises(GridError):
        canonical_prefix(bad, "x")
    with pytest.raises(GridError):
        canonical_prefix("web", bad)
    with pytest.raises(GridError):
        artifact_key("web", "x", "a", USER, bad)


def test_scopes() -> None:
    for bad in ("zz", "", None, 5, "USER"):
        with pytest.raises(GridError, match="Invalid scope"):
            artifact_key("web", "x", "a", scope=bad)  # type: ignore[arg-type]
    for owner in (None, ""):
        with pytest.raises(GridError, match=r"owner_id .*required"):
            artifact_key("web", "x", "a", scope="user", owner_id=owner)
    assert issubclass(GridError, InvalidError)
