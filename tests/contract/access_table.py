"""Every public call of the API, and what it needs of its caller: the rows that `test_identity` walks.

A row says on what a call works (`on`), what it needs there (`wanted`), and how it is made: `work(store, target, who)`,
where `store` is a store or a view of it, `who` the identity that the call itself names, and `target` what it is about.
What a caller may do then follows from `artfs.access.RULES`, which the driver uses, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import anyio

from artfs import ArtifactStore, AsyncVirtualFileSystem
from artfs.access import Relation
from artfs.types import Access, Scope
from tests.contract.api import a_store
from tests.http import fetch

READ, WRITE = Access.READ, Access.WRITE
OWNER, MEMBER, STRANGER, ADMIN = Relation.OWNER, Relation.MEMBER, Relation.STRANGER, Relation.ADMIN
LARGE = b"l" * (3 << 20)
"""More than one call takes."""

SCOPES = {"session": Scope.SESSION, "user": Scope.USER, "sandbox": Scope.SANDBOX, "ownerless": Scope.SESSION}
"""Whose a target is: alice's session's, alice's, everybody's, a session's that is nobody's."""


@dataclass
class World:
    """A store, the same in another sandbox, and sessions: alice's, nobody's, bob's, and one that has ended."""

    store: ArtifactStore
    other: ArtifactStore
    session: str
    ownerless: str
    foreign: str
    expired: str

    def options(self, whose: str) -> dict[str, Any]:
        """Arguments of what makes something for a target's owner."""
        return {
            "session": {"session_id": self.session},
            "user": {"scope": "user", "user_id": "alice"},
            "sandbox": {"scope": "sandbox"},
            "ownerless": {"session_id": self.ownerless},
        }[whose]


@dataclass
class Target:
    """`id`: of a namespace, an artifact, an upload or a session; `options`: of what is to be made."""

    id: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def a_world(tmp_path: Path, where: str) -> AsyncIterator[World]:
    name = token_hex(4)  # the memory is one for all stores of this process
    async with (
        a_store(where, tmp_path, sandbox_id=f"ours-{name}") as store,
        ArtifactStore(root=store.root, sandbox_id=f"theirs-{name}") as other,
    ):
        session = await store.create_session("alice")
        ownerless = await store.create_session()
        foreign = await store.create_session("bob")
        expired = await store.create_session("alice", ttl_hours=0.001 / 3600)
        await anyio.sleep(0.002)
        yield World(store, other, session, ownerless, foreign, expired)


# callers
Near = dict[str, Relation]


def near(session: Relation, user: Relation, ownerless: Relation, sandbox: Relation = MEMBER) -> Near:
    return {"session": session, "user": user, "sandbox": sandbox, "ownerless": ownerless}


NOBODY = near(STRANGER, STRANGER, STRANGER, STRANGER)
CALLERS: dict[str, tuple[Callable[[World], dict[str, Any]], Near]] = {
    "owner by session": (lambda w: {"session_id": w.session}, near(OWNER, OWNER, MEMBER)),
    "owner by both": (lambda w: {"session_id": w.session, "user_id": "alice"}, near(OWNER, OWNER, MEMBER)),
    "owner by user id only": (lambda w: {"user_id": "alice"}, near(OWNER, OWNER, MEMBER)),
    "ownerless session": (lambda w: {"session_id": w.ownerless}, near(MEMBER, MEMBER, OWNER)),
    "other session": (lambda w: {"session_id": w.foreign}, near(MEMBER, MEMBER, MEMBER)),
    "other user": (lambda w: {"user_id": "bob"}, near(MEMBER, MEMBER, MEMBER)),
    "other user in the session": (lambda w: {"session_id": w.session, "user_id": "bob"}, NOBODY),
    "expired": (lambda w: {"session_id": w.expired}, NOBODY),
    "nobody's session": (lambda w: {"session_id": "unknown"}, NOBODY),
    "admin": (lambda w: {"admin": True}, near(ADMIN, ADMIN, ADMIN, ADMIN)),
    "other sandbox": (lambda w: {"other": True}, NOBODY),
}


# rows
Work = Callable[[ArtifactStore, Target, dict[str, Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Row:
    """`on`: a workspace, artifact, upload, upload in parts ("parts") or session; "making": where something is made;
    "of session": a session whose artifacts are listed; "all", "count": what the caller may see; "admin": the store."""

    on: str
    wanted: Access
    work: Work


async def told(result: Any) -> Any:
    """A plain function's answer, as a coroutine gives it."""
    return result


async def drained(parts: AsyncIterable[bytes]) -> bytes:
    return b"".join([part async for part in parts])


def plain(name: str, *arguments: Any) -> Work:
    async def work(store: ArtifactStore, target: Target, who: dict[str, Any]) -> Any:
        return getattr(store, name)(target.id, *arguments, **who)

    return work


def call(name: str, *arguments: Any, **options: Any) -> Work:
    async def work(store: ArtifactStore, target: Target, who: dict[str, Any]) -> Any:
        return await getattr(store, name)(target.id, *arguments, **options, **who)

    return work


def vfs(name: str, *arguments: Any, **options: Any) -> Work:
    async def work(store: ArtifactStore, target: Target, who: dict[str, Any]) -> Any:
        files = store.get_namespace_vfs(target.id, **who)
        found = getattr(files, name)(*arguments, **options)
        found = await (drained(found) if hasattr(found, "__aiter__") else found)
        if isinstance(found, list) and found and hasattr(found[0], "success"):
            return all(result.success for result in found)
        return found

    return work


def making(name: str, *arguments: Any, request: bool = False, **options: Any) -> Work:
    async def work(store: ArtifactStore, target: Target, who: dict[str, Any]) -> Any:
        if request:
            return await getattr(store, name)({**options, **target.options})
        return await getattr(store, name)(*arguments, **options, **target.options)

    return work


def written(data: bytes) -> Work:
    async def work(store: ArtifactStore, target: Target, who: dict[str, Any]) -> bool:
        await store.write_namespace(target.id, data, "/f", **who)
        return True

    return work


async def downloaded(store: ArtifactStore, target: Target, who: dict[str, Any]) -> bytes:
    return await drained(store.stream_download({"artifact_id": target.id, **who}))


async def completed(store: ArtifactStore, target: Target, who: dict[str, Any]) -> str:
    request = {"upload_id": target.id, "parts": [{"PartNumber": 1, "ETag": "never came"}]}
    return await store.complete_multipart_upload(request, **who)


async def listed(store: ArtifactStore, target: Target, who: dict[str, Any]) -> list[str]:
    return [info.namespace_id for info in store.list_namespaces()]


async def searched(store: ArtifactStore, target: Target, who: dict[str, Any]) -> list[str]:
    return [found.artifact_id for found in await store.search()]


def counted(name: str) -> Work:
    async def work(store: ArtifactStore, target: Target, who: dict[str, Any]) -> int | None:
        found: int | None = (await getattr(store, name)()).storage_stats.total_artifacts
        return found

    return work


def of_session(name: str, *arguments: Any) -> Work:
    async def work(store: ArtifactStore, target: Target, who: dict[str, Any]) -> list[str]:
        return [found.artifact_id for found in await getattr(store, name)(target.options["session_id"], *arguments)]

    return work


STORE: dict[str, Row] = {
    # namespaces
    "get_namespace_info": Row("workspace", READ, plain("get_namespace_info")),
    "get_namespace_vfs": Row("workspace", READ, plain("get_namespace_vfs")),
    "read_namespace": Row("workspace", READ, call("read_namespace", "/f")),
    "write_namespace": Row("workspace", WRITE, written(b"w")),
    "write_namespace, large": Row("workspace", WRITE, written(bytes(17 << 20))),
    "list_checkpoints": Row("workspace", READ, call("list_checkpoints")),
    "diff_namespace": Row("workspace", READ, call("diff_namespace", "v1")),
    "checkpoint_namespace": Row("workspace", WRITE, call("checkpoint_namespace", "v2")),
    "restore_namespace": Row("workspace", WRITE, call("restore_namespace", "v1")),
    "clone_namespace": Row("workspace", WRITE, call("clone_namespace", "branch")),
    "delete_checkpoint": Row("workspace", WRITE, call("delete_checkpoint", "v1")),
    "destroy_namespace": Row("workspace", WRITE, call("destroy_namespace")),
    "create_namespace": Row("making", WRITE, making("create_namespace", "blob")),
    "list_namespaces": Row("all", READ, listed),
    # artifacts
    "metadata": Row("artifact", READ, call("metadata")),
    "exists": Row("artifact", READ, call("exists")),
    "retrieve": Row("artifact", READ, call("retrieve")),
    "read_file": Row("artifact", READ, call("read_file", as_text=True)),
    "stream_download": Row("artifact", READ, downloaded),
    "presign": Row("artifact", READ, call("presign")),
    "presign_short": Row("artifact", READ, call("presign_short")),
    "presign_medium": Row("artifact", READ, call("presign_medium")),
    "presign_long": Row("artifact", READ, call("presign_long")),
    "update_file": Row("artifact", WRITE, call("update_file", b"new")),
    "update_file, large": Row("artifact", WRITE, call("update_file", LARGE)),
    "update_metadata": Row("artifact", WRITE, call("update_metadata", summary="new")),
    "extend_ttl": Row("artifact", WRITE, call("extend_ttl", 60)),
    "copy_file": Row("artifact", WRITE, call("copy_file", new_filename="new")),
    "move_file": Row("artifact", WRITE, call("move_file", new_filename="new")),
    "delete": Row("artifact", WRITE, call("delete")),
    "store": Row("making", WRITE, making("store", b"x")),
    "store, large": Row("making", WRITE, making("store", LARGE)),
    "write_file": Row("making", WRITE, making("write_file", "x", filename="f")),
    "store_batch": Row("making", WRITE, making("store_batch", [{"data": b"x"}])),
    "stream_upload": Row("making", WRITE, making("stream_upload", request=True, data_stream=[b"x"])),
    "search": Row("all", READ, searched),
    "list_by_session": Row("of session", READ, of_session("list_by_session")),
    "list_files": Row("of session", READ, of_session("list_files", "dir/")),
    "get_directory_contents": Row("of session", READ, of_session("get_directory_contents", "dir")),
    # uploads
    "presign_upload": Row("making", WRITE, making("presign_upload")),
    "presign_upload_and_register": Row("making", WRITE, making("presign_upload_and_register")),
    "initiate_multipart_upload": Row("making", WRITE, making("initiate_multipart_upload", request=True, filename="f")),
    "register_uploaded_artifact": Row("upload", WRITE, call("register_uploaded_artifact", summary="new")),
    "get_part_upload_url": Row("parts", WRITE, call("get_part_upload_url", 1)),
    "complete_multipart_upload": Row("parts", WRITE, completed),
    "abort_multipart_upload": Row("parts", WRITE, call("abort_multipart_upload")),
    # sessions
    "create_session": Row("session", WRITE, lambda s, t, who: s.create_session(session_id=t.id)),
    "validate_session": Row("session", READ, call("validate_session")),
    "get_session_info": Row("session", READ, call("get_session_info")),
    "update_session_metadata": Row("session", WRITE, call("update_session_metadata", {"new": 1})),
    "extend_session_ttl": Row("session", WRITE, call("extend_session_ttl", 1)),
    "delete_session": Row("session", WRITE, call("delete_session")),
    # the store
    "get_stats": Row("count", READ, counted("get_stats")),
    "get_sandbox_info": Row("count", READ, counted("get_sandbox_info")),
    "cleanup_expired_sessions": Row("admin", WRITE, lambda s, t, who: s.cleanup_expired_sessions()),
}
STORE_PLAIN = {
    # of the store itself
    "as_principal", "close", "closed", "namespace", "root", "validate_configuration",
    # pure
    "generate_artifact_key", "get_canonical_prefix", "get_session_prefix_pattern", "parse_grid_key",
}  # fmt: skip
"""Calls that tell nothing of what is in the store, and change nothing in it."""

FILES: dict[str, Row] = {
    "ls": Row("workspace", READ, vfs("ls", "/")),
    "list_directory": Row("workspace", READ, vfs("list_directory", "/")),
    "cd": Row("workspace", READ, vfs("cd", "/dir")),
    "exists": Row("workspace", READ, vfs("exists", "/f")),
    "is_file": Row("workspace", READ, vfs("is_file", "/f")),
    "is_dir": Row("workspace", READ, vfs("is_dir", "/dir")),
    "find": Row("workspace", READ, vfs("find", "*")),
    "read_file": Row("workspace", READ, vfs("read_file", "/f")),
    "read_text": Row("workspace", READ, vfs("read_text", "/f")),
    "read_binary": Row("workspace", READ, vfs("read_binary", "/f")),
    "stream_read": Row("workspace", READ, vfs("stream_read", "/f")),
    "read_stream": Row("workspace", READ, vfs("read_stream", "/f")),
    "get_metadata": Row("workspace", READ, vfs("get_metadata", "/f")),
    "get_node_info": Row("workspace", READ, vfs("get_node_info", "/f")),
    "batch_read_files": Row("workspace", READ, vfs("batch_read_files", ["/f"])),
    "get_storage_stats": Row("workspace", READ, vfs("get_storage_stats")),
    "get_provider_name": Row("workspace", READ, vfs("get_provider_name")),
    "generate_presigned_url": Row("artifact", READ, vfs("generate_presigned_url")),
    "write_file": Row("workspace", WRITE, vfs("write_file", "/f", b"w")),
    "write_file, large": Row("workspace", WRITE, vfs("write_file", "/f", bytes(17 << 20))),
    "write_text": Row("workspace", WRITE, vfs("write_text", "/f", "w")),
    "write_binary": Row("workspace", WRITE, vfs("write_binary", "/f", b"w")),
    "stream_write": Row("workspace", WRITE, vfs("stream_write", "/f", [b"w"])),
    "write_stream": Row("workspace", WRITE, vfs("write_stream", "/f", [b"w"])),
    "touch": Row("workspace", WRITE, vfs("touch", "/f")),
    "mkdir": Row("workspace", WRITE, vfs("mkdir", "/new")),
    "rmdir": Row("workspace", WRITE, vfs("rmdir", "/dir")),
    "rm": Row("workspace", WRITE, vfs("rm", "/f")),
    "rm, recursive": Row("workspace", WRITE, vfs("rm", "/dir", recursive=True)),
    "mv": Row("workspace", WRITE, vfs("mv", "/f", "/g")),
    "cp": Row("workspace", WRITE, vfs("cp", "/f", "/g")),
    "set_metadata": Row("workspace", WRITE, vfs("set_metadata", "/f", {"a": 1})),
    "batch_create_files": Row("workspace", WRITE, vfs("batch_create_files", [{"path": "/f", "content": b"w"}])),
    "batch_write_files": Row("workspace", WRITE, vfs("batch_write_files", {"/f": b"w"})),
    "batch_delete_paths": Row("workspace", WRITE, vfs("batch_delete_paths", ["/f"])),
    "cleanup": Row("admin", WRITE, vfs("cleanup")),
}
FILES_PLAIN = {"close", "initialize", "pwd", "resolve_path"}
ROWS = {**STORE, **{f"vfs.{name}": row for name, row in FILES.items()}}


def public_names(kind: type[Any]) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def covered(rows: dict[str, Row]) -> set[str]:
    return {name.partition(",")[0] for name in rows}


KINDS: list[tuple[type[Any], dict[str, Row], set[str]]] = [
    (ArtifactStore, STORE, STORE_PLAIN),
    (AsyncVirtualFileSystem, FILES, FILES_PLAIN),
]


# targets
async def make(world: World, on: str, whose: str) -> Target:
    """What a row works on, made by the process's owner."""
    store, options = world.store, world.options(whose)
    if on in ("workspace", "admin"):
        made = await store.create_namespace("workspace", **options)
        files = store.get_namespace_vfs(made.namespace_id)
        await files.write_file("/f", b"f")
        await files.mkdir("/dir")
        await store.checkpoint_namespace(made.namespace_id, "v1")
        await files.write_file("/f", b"data")
        return Target(made.namespace_id)
    if on in ("artifact", "of session"):
        return Target(await store.store(b"data", filename="dir/f", **options), options)
    if on == "upload":
        url, id = await store.presign_upload(**options)
        assert (await fetch(url, "PUT", b"data")).status == 200
        return Target(id)
    if on == "parts":
        return Target((await store.initiate_multipart_upload({"filename": "f", **options})).upload_id)
    if on == "session":
        return Target(options["session_id"])
    return Target(options=options)


async def state(world: World, on: str, target: Target) -> Any:
    """All that a call could have changed, as the process's owner sees it."""
    store = world.store
    if on == "workspace":
        files = store.get_namespace_vfs(target.id)
        names = [c.checkpoint_id for c in await store.list_checkpoints(target.id)]
        stats = await files.get_storage_stats()
        return names, stats, await files.find("*"), await files.read_file("/f"), await files.get_metadata("/f")
    if on == "artifact":
        return await store.metadata(target.id), await store.retrieve(target.id)
    if on == "upload":
        return await store.exists(target.id)
    if on == "parts":
        return bool(await store.get_part_upload_url(target.id, 1))
    if on == "session":
        return await store.get_session_info(target.id)
    return [info.namespace_id for info in store.list_namespaces()]
