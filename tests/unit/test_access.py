"""Access: each kind of principal against each scope, against a table written out by hand."""

import itertools

import pytest

from artfs.access import RULES, Relation, access, relation
from artfs.errors import ExpiredError, InvalidError
from artfs.types import ADMIN, Access, Principal, Scope

SESSION, USER, SANDBOX = Scope.SESSION, Scope.USER, Scope.SANDBOX
OWNERS = {"s1": "ann", "s2": "ann", "s3": "bob", "s4": None}
"""Sessions of sandbox web."""

TARGETS: list[tuple[Scope, str | None]] = [
    (SESSION, "s1"), (SESSION, "sess-s2"), (SESSION, "s3"), (SESSION, "s4"), (USER, "ann"), (USER, "bob"),
    (SANDBOX, None),
]  # fmt: skip

# A letter per target, in that order: w(rite), r(ead), - (none).
TABLE: dict[Principal, str] = {
    ADMIN: "wwwwwww",
    Principal("web", admin=True): "wwwwwww",
    Principal("api", admin=True): "-------",
    Principal("web", session="s1"): "w---w-r",
    Principal("web", session="sess-s1"): "w---w-r",
    Principal("web", session="s3"): "--w--wr",
    Principal("web", session="s4"): "---w--r",
    Principal("web", user="ann"): "ww--w-r",
    Principal("web", user="bob"): "--w--wr",
    Principal("web", user="eve"): "------r",
    Principal("web", user="ann", session="s2"): "-w--w-r",
    Principal("web"): "------r",
    Principal("api", user="ann", session="s1"): "-------",
    Principal("api"): "-------",
    Principal(None, user="ann", session="s1"): "-------",
    Principal(): "-------",
}
LETTERS = {"w": Access.WRITE, "r": Access.READ, "-": Access.NONE}


@pytest.mark.parametrize("shared_writable", [False, True])
@pytest.mark.parametrize(("principal", "letters"), TABLE.items(), ids=str)
def test_table(principal: Principal, letters: str, shared_writable: bool) -> None:
    for (scope, owner), letter in zip(TARGETS, letters, strict=True):
        expected = LETTERS[letter]
        if shared_writable and scope is SANDBOX and expected is Access.READ:
            expected = Access.WRITE
        found = access(
            principal, "web", scope, owner, session_owner=OWNERS.__getitem__, shared_writable=shared_writable
        )
        assert found is expected, (scope, owner)


def test_the_table_reaches_every_rule() -> None:
    reached = {
        (scope, relation(principal, "web", scope, owner, session_owner=OWNERS.__getitem__))
        for principal, (scope, owner) in itertools.product(TABLE, TARGETS)
    }
    assert reached == {(scope, near) for scope, row in RULES.items() for near in row}
    assert all(row[Relation.STRANGER] is Access.NONE for row in RULES.values())


def test_another_sandbox_s_sessions_are_never_asked_about() -> None:
    def asked(key: str) -> str | None:
        raise AssertionError(key)

    for scope, owner in TARGETS:
        assert access(Principal("api", session="s1"), "web", scope, owner, session_owner=asked) is Access.NONE
        assert access(ADMIN, "web", scope, owner, session_owner=asked) is Access.WRITE


def test_a_session_that_has_ended_is_refused_by_the_one_who_knows() -> None:
    def ended(key: str) -> str | None:
        raise ExpiredError(key)

    with pytest.raises(ExpiredError):
        access(Principal("web", session="s1"), "web", USER, "ann", session_owner=ended)


def test_an_owner_is_required() -> None:
    with pytest.raises(InvalidError, match="user_id is required"):
        access(ADMIN, "web", USER, None, session_owner=OWNERS.__getitem__)
