"""Who may do what: each call × each caller × what belongs to whom, from the table of rules that the driver uses
(`artfs.access.RULES`) and the table of calls in `access_table`.

A caller reaches a call in two ways that must agree: by `session_id=` and `user_id=`, and through a view
(`as_principal`).  What a caller may not do must not be done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import AccessDeniedError, ArtifactExpiredError, ArtifactNotFoundError, ArtifactStore, SessionError
from artfs.access import RULES, Relation
from artfs.store.identity import READS, WANTED, WRITES
from artfs.store.service import Service
from artfs.types import Access
from tests.contract.access_table import (
    CALLERS,
    KINDS,
    ROWS,
    SCOPES,
    Row,
    Target,
    World,
    a_world,
    covered,
    make,
    public_names,
    state,
)
from tests.contract.loops import BACKENDS

DENIED = (AccessDeniedError, ArtifactNotFoundError, SessionError)
REFUSED: tuple[Any, ...] = (False, None, [])
"""How a call that does not raise says that there is nothing for the caller."""
NAMING = {"workspace", "artifact", "upload", "parts"}
"""What rows work on whose calls take `session_id=` and `user_id=` of their caller."""


def may(relation: Relation, whose: str, wanted: Access) -> bool:
    have = RULES[SCOPES[whose]].get(relation, Access.NONE)
    return have is Access.WRITE or have is wanted


# the table is whole
def test_every_call_has_a_row() -> None:
    for kind, rows, plain in KINDS:
        assert covered(rows) | plain == public_names(kind)
        assert not covered(rows) & plain
    assert not set(READS.split()) & set(WRITES.split())
    assert [method for method in WANTED if not hasattr(Service, method)] == []


def test_every_rule_has_a_row_that_wants_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()
    for name in ("_call", "_call_now"):
        call = getattr(ArtifactStore, name)

        def record(store: ArtifactStore, method: str, /, *, call: Any = call, **arguments: Any) -> Any:
            used.add(method)
            return call(store, method, **arguments)

        monkeypatch.setattr(ArtifactStore, name, record)

    async def main() -> None:
        known = set()
        for name, row in ROWS.items():
            async with a_world(tmp_path, "memory") as world:
                target = await make(world, row.on, "session")
                used.clear()
                await row.work(world.store, target, {})
                ruled = used & WANTED.keys()
                known |= ruled
                if row.on in NAMING - {"upload", "parts"}:
                    wanted = {WANTED[method] for method in ruled}
                    assert (Access.WRITE if Access.WRITE in wanted else Access.READ) is row.wanted, name
        assert known == WANTED.keys()

    anyio.run(main)


# the table is true
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.on not in ("all", "count", "admin")])
def test_each_call_of_each_caller(name: str, backend: str, tmp_path: Path) -> None:
    row = ROWS[name]
    targets = [
        whose for whose in SCOPES if row.on not in ("session", "of session") or whose in ("session", "ownerless")
    ]

    async def main() -> None:
        async with a_world(tmp_path, "memory") as world:
            for whose in targets:
                target = None
                for caller, (_, relations) in CALLERS.items():
                    for bound in (False, True) if row.on in NAMING else (True,):
                        if target is None:
                            target = await make(world, row.on, whose)
                        allowed = may(relations[whose], whose, row.wanted)
                        await check(world, row, target, caller, bound, allowed, f"{caller}, {whose}, {bound}")
                        if allowed and row.wanted is Access.WRITE:
                            target = None  # what was done to it is in the way of the next
                            if row.on == "session":
                                world.session = await world.store.create_session("alice")
                                world.ownerless = await world.store.create_session()

    anyio.run(main, backend=backend)


def seen_by(world: World, caller: str, bound: bool) -> tuple[ArtifactStore, dict[str, Any]]:
    """The store as a caller reaches it, and what its calls name."""
    who = dict(CALLERS[caller][0](world))
    if who.pop("other", False):
        return (world.other.as_principal(admin=True) if bound else world.other), {}
    if bound or who.get("admin"):
        return world.store.as_principal(**who), {}
    return world.store, who


async def check(world: World, row: Row, target: Target, caller: str, bound: bool, allowed: bool, what: str) -> None:
    store, who = seen_by(world, caller, bound)
    before = await state(world, row.on, target)
    try:
        result = await row.work(store, target, who)
    except DENIED as error:
        assert not allowed, f"{what}: {error}"
    else:
        # In another sandbox the id of a session is that of another, which an admin makes there, and an upload is none.
        elsewhere = row.on == "making" or row in (ROWS["create_session"], ROWS["abort_multipart_upload"])
        if caller != "other sandbox" or not elsewhere:
            assert allowed is (result not in REFUSED), f"{what}: {result!r}"
    if not allowed:
        assert await state(world, row.on, target) == before, what


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["memory", "client"])
def test_what_a_caller_sees(where: str, backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with a_world(tmp_path, where) as world:
            ids = {whose: (await make(world, "artifact", whose)).id for whose in SCOPES}
            for caller, (_, relations) in CALLERS.items():
                view, _ = seen_by(world, caller, True)
                expected = {ids[whose] for whose in SCOPES if may(relations[whose], whose, Access.READ)}
                for name in ("list_namespaces", "search", "get_stats", "get_sandbox_info"):
                    row = ROWS[name]
                    try:
                        found = await row.work(view, Target(), {})
                    except AccessDeniedError:  # names that do not belong together
                        found = 0 if row.on == "count" else []
                    if row.on == "count":
                        assert found == len(expected), (caller, name)
                    else:
                        assert set(found) == expected and len(found) == len(expected), (caller, name)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.on == "admin"])
def test_what_only_an_admin_does(name: str, backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with a_world(tmp_path, "memory") as world:
            for caller in CALLERS:
                view, _ = seen_by(world, caller, True)
                target = await make(world, "workspace", "sandbox")
                if caller in ("admin", "other sandbox"):  # which is an admin there
                    if caller == "other sandbox" and name.startswith("vfs."):
                        continue
                    assert await ROWS[name].work(view, target, {}) is not None
                    continue
                with pytest.raises(DENIED):
                    await ROWS[name].work(view, target, {})

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_rules_hold_through_another_process(backend: str, tmp_path: Path) -> None:
    """Calls of the socket carry who makes them."""
    names = ["read_namespace", "write_namespace", "retrieve", "delete", "store", "vfs.rm", "get_part_upload_url"]

    async def main() -> None:
        async with a_world(tmp_path, "client") as world:
            for name in names:
                row = ROWS[name]
                for caller in ("owner by session", "ownerless session", "other user", "expired", "other sandbox"):
                    for whose in SCOPES:
                        target = await make(world, row.on, whose)
                        allowed = may(CALLERS[caller][1][whose], whose, row.wanted)
                        await check(world, row, target, caller, True, allowed, f"{name}, {caller}, {whose}")

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_view_is_not_talked_into_more(backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with a_world(tmp_path, "memory") as world:
            id, shared = [(await make(world, "workspace", whose)).id for whose in ("user", "sandbox")]
            bob = world.store.as_principal(user_id="bob")
            for who in ({"user_id": "alice"}, {"session_id": world.session}, {"session_id": world.ownerless}):
                with pytest.raises(DENIED):
                    await bob.read_namespace(id, "/f", **who)
                with pytest.raises(DENIED):
                    bob.get_namespace_vfs(id, **who)
            alice = world.store.as_principal(user_id="alice")
            assert await alice.read_namespace(id, "/f", session_id=world.session) == b"data"
            inside = world.store.as_principal(session_id=world.session)
            assert await inside.read_namespace(id, "/f", user_id="alice") == b"data"
            with pytest.raises(DENIED):
                await inside.read_namespace(id, "/f", user_id="bob")
            nobody = world.store.as_principal()
            assert await nobody.read_namespace(shared, "/f") == b"data"
            with pytest.raises(AccessDeniedError):
                await nobody.read_namespace(id, "/f")
            assert not await bob.validate_session(world.session)
            assert await bob.get_session_info(world.session) is None
            assert not await bob.delete_session(world.session)
            with pytest.raises(AccessDeniedError):
                await bob.create_session("alice")
            with pytest.raises(AccessDeniedError):
                await bob.cleanup_expired_sessions()
            assert await world.store.validate_session(world.session)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_makes_something_of_the_sandbox(backend: str, tmp_path: Path) -> None:
    """A trusted call says with an identity who makes it; one of a view is as good as its view."""

    async def main() -> None:
        async with a_world(tmp_path, "memory") as world:
            store = world.store
            claims: list[dict[str, Any]] = [{"user_id": "alice"}, {"session_id": world.session}]
            for who in [*claims, {"session_id": world.ownerless}]:
                artifact = await store.store(b"x", scope="sandbox", **who)
                made = await store.create_namespace("blob", "sandbox", **who)
                for id in (artifact, made.namespace_id):
                    info = store.get_namespace_info(id)
                    assert info.scope == "sandbox"
                    assert "session_id" not in who or info.session_id == who["session_id"]
                    with pytest.raises(DENIED):
                        await store.write_namespace(id, b"y", **who)
                for view in (store.as_principal(**who), store.as_principal(session_id=world.foreign)):
                    with pytest.raises(DENIED):
                        await view.store(b"x", scope="sandbox")
                    with pytest.raises(DENIED):
                        await view.create_namespace("blob", "sandbox", **who)
            mixed: dict[str, Any] = {"session_id": world.session, "user_id": "bob"}
            for bad, error in (({"session_id": world.expired}, SessionError), (mixed, AccessDeniedError)):
                with pytest.raises(error):
                    await store.store(b"x", scope="sandbox", **bad)
                with pytest.raises(error):
                    await store.create_namespace("blob", "sandbox", **bad)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shared_scope_that_all_may_write(backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with ArtifactStore(root=tmp_path / "store", shared_writable=True) as store:
            made = await store.create_namespace("workspace", "sandbox", user_id="alice")
            await store.write_namespace(made.namespace_id, b"x", "/f", user_id="bob")
        async with ArtifactStore(root=tmp_path / "store") as store:
            with pytest.raises(AccessDeniedError):
                await store.write_namespace(made.namespace_id, b"y", "/f", user_id="bob")
            assert await store.read_namespace(made.namespace_id, "/f", user_id="bob") == b"x"

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_deleted_session_is_gone_at_once(backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with a_world(tmp_path, "memory") as world:
            view = world.store.as_principal(session_id=world.session)
            ids = {whose: (await make(world, "workspace", whose)).id for whose in SCOPES}
            assert await view.read_namespace(ids["user"], "/f") == b"data"
            await world.store.delete_session(world.session)
            for whose, id in ids.items():
                with pytest.raises(ArtifactExpiredError if whose == "session" else DENIED):
                    await view.read_namespace(id, "/f")
            assert view.list_namespaces() == []

    anyio.run(main, backend=backend)
