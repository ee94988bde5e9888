"""The contract of `SessionStore`, over each store; time is a number that the test moves."""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from artfs.errors import (
    BusyError,
    DamagedError,
    ExistsError,
    ExpiredError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from artfs.meta.sqlite import SqliteEngine
from artfs.sessions import NS, REMEMBERED, SessionStore, Status
from artfs.sessions.memory import MemorySessions
from artfs.sessions.sqlite import SqliteSessions

START = 1_700_000_000 * NS + 5


class Clock:
    def __init__(self) -> None:
        self.ns = START

    def __call__(self) -> int:
        return self.ns

    def forward(self, seconds: float) -> None:
        self.ns += round(seconds * NS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    SqliteEngine(tmp_path / "meta.db").close()
    return tmp_path / "meta.db"


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, clock: Clock) -> Iterator[SessionStore]:
    made: SessionStore = (
        MemorySessions(now=clock)
        if request.param == "memory"
        else SqliteSessions(request.getfixturevalue("database"), now=clock)
    )
    yield made
    made.close()


def gone(store: SessionStore, error: type[Exception], sandbox: str, id: str) -> None:
    """Every call on one session answers with exactly this error."""
    calls: list[Callable[[], object]] = [
        lambda: store.get(sandbox, id),
        lambda: store.validate(sandbox, id),
        lambda: store.extend(sandbox, id, 10),
        lambda: store.update(sandbox, id, {"a": 1}),
        lambda: store.delete(sandbox, id),
    ]
    for call in calls:
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        assert "Invalid session" in str(caught.value)


def test_create_and_get(store: SessionStore) -> None:
    made = store.create("web", "ann", ttl_seconds=1.5, metadata={"a": [1, {"b": None}]})
    assert (made.sandbox, made.user, made.status) == ("web", "ann", Status.ACTIVE)
    assert (made.created_ns, made.last_accessed_ns, made.expires_ns) == (START, START, START + 1_500_000_000)
    assert store.get("web", made.id) == made
    assert store.list("web") == store.list() == [made]
    assert store.list("api") == []


def test_made_up_ids(store: SessionStore) -> None:
    for user, short in [("ann", "ann-"), ("b.o-b_123456789@x", "bob12345-"), ("@", ""), (None, "")]:
        id = store.create("web", user, ttl_seconds=1).id
        assert re.fullmatch(rf"sess-{short}1700000000-[0-9a-f]{{32}}", id)


@pytest.mark.parametrize("made", ["x", "sess-x"])
def test_the_spellings_of_an_id_are_one_session(store: SessionStore, made: str) -> None:
    session = store.create("web", ttl_seconds=10, id=made)
    assert (session.id, session.key) == (made, "x")
    assert store.get("web", "x") == store.get("web", "sess-x") == session
    for id in ("x", "sess-x"):
        with pytest.raises(ExistsError, match="exists already"):
            store.create("web", ttl_seconds=10, id=id)
    other = store.create("api", "bob", ttl_seconds=10, id=made)
    assert store.get("web", "x") == session != other


def test_sandboxes_do_not_see_each_other(store: SessionStore) -> None:
    store.create("web", ttl_seconds=10, id="x")
    gone(store, NotFoundError, "api", "x")
    gone(store, NotFoundError, "web", "y")


@pytest.mark.parametrize(
    "arguments",
    [
        {"sandbox": "grid"},
        {"user": "a b"},
        {"id": "sess-shared"},
        {"id": "a/b"},
        {"ttl_seconds": 0},
        {"ttl_seconds": -1},
        {"ttl_seconds": float("nan")},
        {"ttl_seconds": float("inf")},
        {"ttl_seconds": 1e10},
        {"ttl_seconds": 1e-10},
        {"metadata": {1: 2}},
        {"metadata": {"a": object()}},
        {"metadata": {"a": float("nan")}},
        {"metadata": {"a": "x" * (1 << 20)}},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_cannot_be_is_refused(store: SessionStore, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        store.create(**{"sandbox": "web", "ttl_seconds": 1, **arguments})
    assert store.list() == []
    assert store.next_expiry() is None


def test_expiry_is_exact_at_reading(store: SessionStore, clock: Clock) -> None:
    made = store.create("web", ttl_seconds=10, id="x")
    clock.ns = made.expires_ns - 1
    assert store.get("web", "x") == made
    clock.ns += 1
    assert store.list() == []
    gone(store, ExpiredError, "web", "x")
    gone(store, NotFoundError, "api", "x")


def test_validate_touches_and_keeps_the_expiry(store: SessionStore, clock: Clock) -> None:
    made = store.create("web", ttl_seconds=10, id="x")
    clock.forward(3)
    assert store.get("web", "x") == made
    touched = store.validate("web", "sess-x")
    assert touched == replace(made, last_accessed_ns=clock.ns)
    assert store.get("web", "x") == touched


def test_extend_adds_to_the_expiry(store: SessionStore, clock: Clock) -> None:
    made = store.create("web", ttl_seconds=10, id="x")
    clock.forward(9)
    extended = store.extend("web", "x", 0.5)
    assert extended == replace(made, expires_ns=made.expires_ns + NS // 2)
    assert store.next_expiry() == extended.expires_ns
    clock.forward(1.4)
    assert store.get("web", "x") == extended
    for seconds in (0, -5, float("inf")):
        with pytest.raises(InvalidError, match="time to live"):
            store.extend("web", "x", seconds)
    assert store.get("web", "x") == extended


def test_update_merges(store: SessionStore) -> None:
    own = {"a": {"b": 1}, "c": 2}
    store.create("web", ttl_seconds=10, id="x", metadata=own)
    own["c"] = 3
    assert store.update("web", "x", {"a": 5, "d": [1]}).metadata == {"a": 5, "c": 2, "d": [1]}
    assert store.get("web", "x").metadata == {"a": 5, "c": 2, "d": [1]}
    for bad in ({}, {"e": float("inf")}, {"f": "x" * (1 << 20)}):
        with pytest.raises(InvalidError):
            store.update("web", "x", bad)
    assert store.get("web", "x").metadata == {"a": 5, "c": 2, "d": [1]}
    assert store.update("web", "x", {"g": 1}, merge=False).metadata == {"g": 1}
    assert store.update("web", "x", {}, merge=False) == store.get("web", "x")
    assert store.get("web", "x").metadata == {}


def test_deleted_is_gone_at_once(store: SessionStore) -> None:
    made = store.create("web", ttl_seconds=10, id="x")
    deleted = store.delete("web", "sess-x")
    assert deleted == replace(made, status=Status.DELETED)
    gone(store, NotFoundError, "web", "x")
    assert (store.list(), store.next_expiry()) == ([], None)
    # Its data may be there still: the id is not free, and the reaper hears of it until it is done.
    with pytest.raises(ExistsError, match="cannot be used again yet"):
        store.create("web", ttl_seconds=10, id="x")
    assert store.expire_due() == store.expire_due() == [deleted]
    store.reaped("web", "x")
    assert store.expire_due() == []
    gone(store, NotFoundError, "web", "x")
    assert store.create("web", "bob", ttl_seconds=10, id="x").user == "bob"


def test_the_reaper_hears_of_what_expired_until_it_is_done(store: SessionStore, clock: Clock) -> None:
    first = store.create("web", ttl_seconds=10, id="a")
    second = store.create("api", ttl_seconds=10, id="b")
    last = store.create("web", ttl_seconds=20, id="c")
    assert (store.expire_due(), store.next_expiry()) == ([], first.expires_ns)
    clock.forward(10)
    ended = [replace(session, status=Status.EXPIRED) for session in (second, first)]
    assert store.expire_due() == ended == store.expire_due()
    assert store.next_expiry() == last.expires_ns
    store.reaped("api", "b")
    store.reaped("api", "b")
    assert store.expire_due() == ended[1:]
    with pytest.raises(BusyError):
        store.reaped("web", "c")
    store.reaped("web", "nobody")
    assert store.list() == [last]


def test_an_id_stays_expired_for_a_day_after_reaping(store: SessionStore, clock: Clock) -> None:
    store.create("web", ttl_seconds=10, id="x")
    clock.forward(5000)
    store.reaped("web", "x")
    clock.ns += REMEMBERED - 1
    assert store.expire_due() == []
    gone(store, ExpiredError, "web", "x")
    with pytest.raises(ExistsError):
        store.create("web", ttl_seconds=10, id="x")
    clock.ns += 1
    assert store.expire_due() == []
    gone(store, NotFoundError, "web", "x")
    store.create("web", ttl_seconds=10, id="x")


def test_a_clock_that_goes_back_revives_nobody(store: SessionStore, clock: Clock) -> None:
    store.create("web", ttl_seconds=10, id="x")
    clock.forward(10)
    store.expire_due()
    clock.ns = START
    gone(store, ExpiredError, "web", "x")
    assert (store.list(), store.next_expiry()) == ([], None)


def test_lists_are_in_order_of_creation(store: SessionStore, clock: Clock) -> None:
    for id in ("c", "a", "b"):
        store.create("web", ttl_seconds=10, id=id)
        clock.forward(1)
    store.validate("web", "c")
    assert [session.id for session in store.list()] == ["c", "a", "b"]


def test_one_of_many_makers_wins_and_no_update_is_lost(store: SessionStore) -> None:
    made: list[int] = []
    failed: list[Exception] = []

    def work(number: int) -> None:
        try:
            try:
                store.create("web", ttl_seconds=10, id="x")
                made.append(number)
            except ExistsError:
                pass
            store.update("web", "x", {str(number): number})
            store.get("web", "x")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), failed) == (1, [])
    assert store.get("web", "x").metadata == {str(number): number for number in range(8)}


# sqlite
def test_two_processes_connections_agree(database: Path, clock: Clock) -> None:
    a, b = SqliteSessions(database, now=clock), SqliteSessions(database, now=clock)
    made = a.create("web", "ann", ttl_seconds=10, metadata={"ä": "\udcff"})
    assert b.get("web", made.id) == made
    b.delete("web", made.id)
    gone(a, NotFoundError, "web", made.id)
    a.close()
    b.close()
    again = SqliteSessions(database, now=clock)
    assert [session.id for session in again.expire_due()] == [made.id]
    again.close()


def test_the_engine_s_transactions_are_waited_for(database: Path, clock: Clock) -> None:
    store = SqliteSessions(database, now=clock, busy_ms=0)
    made = store.create("web", ttl_seconds=10)
    engine = apsw.Connection(str(database))
    engine.execute("BEGIN IMMEDIATE")
    assert store.get("web", made.id) == made
    assert (store.list(), store.expire_due(), store.next_expiry()) == ([made], [], made.expires_ns)
    calls: list[Callable[[], object]] = [
        lambda: store.validate("web", made.id),
        lambda: store.create("web", ttl_seconds=1),
    ]
    for call in calls:
        with pytest.raises(UnavailableError, match="locked"):
            call()
    engine.execute("ROLLBACK")
    engine.close()
    clock.forward(1)
    assert store.validate("web", made.id).last_accessed_ns == clock.ns
    store.close()


def test_the_engine_stays_sound(database: Path) -> None:
    store = SqliteSessions(database)
    store.create("web", ttl_seconds=10)
    engine = SqliteEngine(database)
    assert engine.check() == []
    engine.close()
    store.close()


def test_no_database_and_a_damaged_one(tmp_path: Path, database: Path) -> None:
    with pytest.raises(NotFoundError, match="artfs init"):
        SqliteSessions(tmp_path / "none.db")
    store = SqliteSessions(database)
    id = store.create("web", ttl_seconds=10).id
    with apsw.Connection(str(database)) as connection:
        connection.execute("UPDATE session SET metadata = '{'")
    with pytest.raises(DamagedError, match="artfs fsck"):
        store.get("web", id)
    store.close()
    (tmp_path / "bad.db").write_bytes(b"x" * 8192)
    with pytest.raises(DamagedError, match="artfs fsck"):
        SqliteSessions(tmp_path / "bad.db")
