"""Who may do what: each call × each caller, from the table of rules that the driver uses (`artfs.access.RULES`).

A caller reaches a call in two ways that must agree: by `session_id=` and `user_id=`, and through a view
(`as_principal`).  What a caller may not do must not be done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from artfs import AccessDeniedError, ArtifactNotFoundError, ArtifactStore, SessionError, StorageScope
from artfs.access import RULES, Relation
from artfs.store.identity import READS, WANTED, WRITES
from artfs.store.service import Service
from artfs.types import Access
from tests.contract.api import a_store
from tests.contract.loops import BACKENDS

SESSION, USER, SANDBOX = StorageScope.SESSION, StorageScope.USER, StorageScope.SANDBOX
DENIED = (AccessDeniedError, ArtifactNotFoundError, SessionError)


@dataclass
class World:
    """Namespaces of alice in each scope, and of nobody's session; who else there is."""

    store: ArtifactStore
    other: ArtifactStore
    session: str
    ownerless: str
    foreign: str
    expired: str
    ids: dict[str, str]


# Who calls: how the caller names itself, and how near it is to what belongs to alice's session, to alice, to the
# sandbox, and to a session that is nobody's.
Near = dict[str, Relation]
OWNER, MEMBER, STRANGER, ADMIN = Relation.OWNER, Relation.MEMBER, Relation.STRANGER, Relation.ADMIN


def near(session: Relation, user: Relation, ownerless: Relation, sandbox: Relation = MEMBER) -> Near:
    return {"session": session, "user": user, "sandbox": sandbox, "ownerless": ownerless}


CALLERS: dict[str, tuple[Callable[[World], dict[str, Any]], Near]] = {
    "owner by session": (lambda w: {"session_id": w.session}, near(OWNER, OWNER, MEMBER)),
    "owner by both": (lambda w: {"session_id": w.session, "user_id": "alice"}, near(OWNER, OWNER, MEMBER)),
    "owner by user id only": (lambda w: {"user_id": "alice"}, near(OWNER, OWNER, MEMBER)),
    "ownerless session": (lambda w: {"session_id": w.ownerless}, near(MEMBER, MEMBER, OWNER)),
    "other session": (lambda w: {"session_id": w.foreign}, near(MEMBER, MEMBER, MEMBER)),
    "other user": (lambda w: {"user_id": "bob"}, near(MEMBER, MEMBER, MEMBER)),
    "other user in the session": (
        lambda w: {"session_id": w.session, "user_id": "bob"},
        near(STRANGER, STRANGER, STRANGER, STRANGER),
    ),
    "expired": (lambda w: {"session_id": w.expired}, near(STRANGER, STRANGER, STRANGER, STRANGER)),
    "nobody's session": (lambda w: {"session_id": "unknown"}, near(STRANGER, STRANGER, STRANGER, STRANGER)),
    "admin": (lambda w: {"admin": True}, near(ADMIN, ADMIN, ADMIN, ADMIN)),
    "other sandbox": (lambda w: {"other": True}, near(STRANGER, STRANGER, STRANGER, STRANGER)),
}
SCOPES = {"session": SESSION, "user": USER, "sandbox": SANDBOX, "ownerless": SESSION}

Call = Callable[[ArtifactStore, str, dict[str, Any]], Awaitable[Any]]


async def info(store: ArtifactStore, id: str, who: dict[str, Any]) -> None:
    store.get_namespace_info(id, **who)


async def vfs_calls(store: ArtifactStore, id: str, who: dict[str, Any], name: str, *arguments: Any) -> None:
    found = getattr(store.get_namespace_vfs(id, **who), name)(*arguments)
    if isinstance(found, AsyncIterator):
        async for _ in found:
            pass
    else:
        assert await found not in (False, None, [], {})


def vfs(name: str, *arguments: Any) -> Call:
    return lambda store, id, who: vfs_calls(store, id, who, name, *arguments)


CALLS: dict[str, tuple[str, Call]] = {
    "get_namespace_info": ("api_info", info),
    "read_namespace": ("api_read", lambda s, id, who: s.read_namespace(id, "/f", **who)),
    "write_namespace": ("api_write", lambda s, id, who: s.write_namespace(id, b"w", "/f", **who)),
    "list_checkpoints": ("api_checkpoints", lambda s, id, who: s.list_checkpoints(id, **who)),
    "diff_namespace": ("api_diff", lambda s, id, who: s.diff_namespace(id, "v1", **who)),
    "checkpoint_namespace": ("api_checkpoint", lambda s, id, who: s.checkpoint_namespace(id, "v2", **who)),
    "restore_namespace": ("api_restore", lambda s, id, who: s.restore_namespace(id, "v1", **who)),
    "clone_namespace": ("api_clone", lambda s, id, who: s.clone_namespace(id, "branch", **who)),
    "delete_checkpoint": ("api_checkpoint_delete", lambda s, id, who: s.delete_checkpoint(id, "v1", **who)),
    "destroy_namespace": ("api_destroy", lambda s, id, who: s.destroy_namespace(id, **who)),
    "vfs.ls": ("api_names", vfs("ls", "/")),
    "vfs.exists": ("api_look", vfs("exists", "/f")),
    "vfs.read_file": ("api_read", vfs("read_file", "/f")),
    "vfs.stream_read": ("api_read_begin", vfs("stream_read", "/f")),
    "vfs.find": ("api_find", vfs("find", "*")),
    "vfs.get_metadata": ("api_look", vfs("get_metadata", "/f")),
    "vfs.batch_read_files": ("api_batch_read", vfs("batch_read_files", ["/f"])),
    "vfs.get_storage_stats": ("api_stats", vfs("get_storage_stats")),
    "vfs.write_file": ("api_write", vfs("write_file", "/f", b"w")),
    "vfs.stream_write": ("api_write_begin", vfs("stream_write", "/f", [b"w"])),
    "vfs.mkdir": ("api_mkdir", vfs("mkdir", "/new")),
    "vfs.rm": ("api_remove", vfs("rm", "/f")),
    "vfs.mv": ("api_move", vfs("mv", "/f", "/g")),
    "vfs.cp": ("api_copy", vfs("cp", "/f", "/g")),
    "vfs.touch": ("api_touch", vfs("touch", "/g")),
    "vfs.set_metadata": ("api_set_metadata", vfs("set_metadata", "/f", {"a": 1})),
    "vfs.batch_write_files": ("api_batch_write", vfs("batch_write_files", {"/f": b"w"})),
    "vfs.batch_delete_paths": ("api_batch_remove", vfs("batch_delete_paths", ["/f"])),
}


@asynccontextmanager
async def a_world(tmp_path: Path, where: str) -> AsyncIterator[World]:
    async with (
        a_store(where, tmp_path, sandbox_id="ours") as store,
        ArtifactStore(root=store.root, sandbox_id="theirs") as other,
    ):
        session = await store.create_session("alice")
        ownerless = await store.create_session()
        foreign = await store.create_session("bob")
        expired = await store.create_session("alice", ttl_hours=0.001 / 3600)
        await anyio.sleep(0.002)
        ids = {}
        for name, options in {
            "session": {"scope": SESSION, "session_id": session},
            "user": {"scope": USER, "user_id": "alice"},
            "sandbox": {"scope": SANDBOX},
            "ownerless": {"scope": SESSION, "session_id": ownerless},
        }.items():
            made = await store.create_namespace("workspace", **options)  # type: ignore[arg-type]
            ids[name] = made.namespace_id
            await store.write_namespace(made.namespace_id, b"f", "/f")
            await store.checkpoint_namespace(made.namespace_id, "v1")
            await store.write_namespace(made.namespace_id, b"data", "/f")
        yield World(store, other, session, ownerless, foreign, expired, ids)


def test_every_call_is_in_the_table() -> None:
    known = {method for method, _ in CALLS.values()}
    missing = set(WANTED) - known
    assert missing <= {"api_create", "api_url"} | {m for m in WANTED if "artifact" in m}
    assert not set(READS.split()) & set(WRITES.split())
    assert [method for method in WANTED if not hasattr(Service, method)] == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", CALLS)
def test_each_call_of_each_caller(call: str, backend: str, tmp_path: Path) -> None:
    method, work = CALLS[call]

    async def main() -> None:
        cases = [(caller, target, bound) for caller in CALLERS for target in SCOPES for bound in (False, True)]
        while cases:
            async with a_world(tmp_path, "memory") as world:
                while cases:
                    caller, target, bound = cases.pop()
                    name, relations = CALLERS[caller]
                    have = RULES[SCOPES[target]].get(relations[target], Access.NONE)
                    allowed = have is Access.WRITE or (have is Access.READ and WANTED[method] is Access.READ)
                    await check(world, name(world), target, bound, work, allowed, f"{caller}, {target}, {bound}")
                    if allowed and WANTED[method] is Access.WRITE:
                        break  # what it has changed is in the way of the next
                for id in world.ids.values():
                    await leave(world.store, id)

    anyio.run(main, backend=backend)


async def leave(store: ArtifactStore, id: str) -> None:
    try:
        await store.destroy_namespace(id)
    except ArtifactNotFoundError:
        return


async def check(
    world: World, name: dict[str, Any], target: str, bound: bool, work: Call, allowed: bool, what: str
) -> None:
    store, who = world.store, dict(name)
    if who.pop("other", False):
        store = world.other.as_principal(admin=True) if bound else world.other
    elif bound or who.get("admin"):
        store, who = store.as_principal(**who), {}
    id = world.ids[target]
    try:
        await work(store, id, who)
    except DENIED as error:
        assert not allowed, f"{what}: {error}"
        assert await world.store.read_namespace(id, "/f") == b"data", what
        assert [c.name for c in await world.store.list_checkpoints(id)] == ["v1"], what
    else:
        assert allowed, f"{what}: it was done"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["memory", "client"])
def test_what_a_caller_sees_and_makes(where: str, backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with a_world(tmp_path, where) as world:
            for caller, (name, relations) in CALLERS.items():
                who = name(world)
                if who.get("other"):
                    assert world.other.list_namespaces() == []
                    continue
                view = world.store.as_principal(**who)
                seen = set()
                with suppress(AccessDeniedError):  # names that do not belong together
                    seen = {info.namespace_id for info in view.list_namespaces()}
                may = {
                    world.ids[target]
                    for target, scope in SCOPES.items()
                    if RULES[scope].get(relations[target], Access.NONE) is not Access.NONE
                }
                assert seen & set(world.ids.values()) == may, caller
                for target, options in {
                    "session": {"scope": SESSION, "session_id": world.session},
                    "user": {"scope": USER, "user_id": "alice"},
                    "sandbox": {"scope": SANDBOX},
                    "ownerless": {"scope": SESSION, "session_id": world.ownerless},
                }.items():
                    allowed = RULES[SCOPES[target]].get(relations[target], Access.NONE) is Access.WRITE
                    if target == "session" and caller.startswith("owner by user"):
                        allowed = True  # it names a session of its own
                    try:
                        await view.create_namespace("blob", **options)  # type: ignore[arg-type]
                    except DENIED as error:
                        assert not allowed, f"{caller}, {target}: {error}"
                    else:
                        assert allowed, f"{caller}, {target}: it was made"

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_view_is_not_talked_into_more(backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with a_world(tmp_path, "memory") as world:
            id = world.ids["user"]
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
            assert await nobody.read_namespace(world.ids["sandbox"], "/f") == b"data"
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
            assert await view.read_namespace(world.ids["user"], "/f") == b"data"
            await world.store.delete_session(world.session)
            for target in world.ids.values():
                with pytest.raises(DENIED):
                    await view.read_namespace(target, "/f")
            assert view.list_namespaces() == []

    anyio.run(main, backend=backend)
