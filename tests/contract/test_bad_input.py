"""What can never be right: each public call × each of its arguments × values that no caller should get away with.

Such a call raises what callers catch (an ArtifactStoreError, ValueError or TypeError), or answers that there is nothing
where that is its way of saying so; it never succeeds, and nothing in the store has changed.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import anyio
import pytest

from artfs import (
    ArtifactExpiredError,
    ArtifactNotFoundError,
    ArtifactStore,
    ArtifactStoreError,
    AsyncVirtualFileSystem,
    SessionError,
)
from artfs.sessions import SessionManager
from tests.contract.access_table import KINDS, ROWS, Target, a_world, drained, make
from tests.contract.access_table import World as AccessWorld
from tests.contract.api import a_store
from tests.contract.loops import BACKENDS, on_both_loops

CLEAN = (ArtifactStoreError, ValueError, TypeError)
NOTHING: tuple[Any, ...] = (False, None, [], {})
LONG = "x" * 10_000
WRONG_TYPES: list[Any] = [5, b"x", ["x"], {"x": 1}, 1.5]

IDS = ["", "..", ".", "../../etc/passwd", "/etc/passwd", "a/../b", "a\0b", LONG, "\ud800", *WRONG_TYPES]
OWNERS = [*IDS, "a/b", "grid", "shared", "users", "sessions", "a b", "ä", "x" * 129]
PATHS = ["a\0b", "/../x", "/a/../../x", "../../etc/passwd", "\ud800", "x" * 5000, *WRONG_TYPES]
NAMES = ["", "a/b", "..", ".", "a\0b", "x" * 256, "\ud800", *WRONG_TYPES]
FILENAMES = ["", "../x", "a/../../x", "/etc/passwd", "\\x", "a\\..\\x", "C:\\x", "a\0b", "a\nb", LONG, *WRONG_TYPES]
MIMES = ["", "text", "text/", "/x", "a/b\r\nX-Evil: 1", "a/b\0", "x/" + LONG, *WRONG_TYPES]
LIFETIMES = [0, -1, "5", float("nan"), float("inf"), True, [], b"5", 1e12]
COUNTS = [-1, "5", 1.5, True, [], float("nan")]
METADATA = [
    5,
    "text",
    ["a"],
    b"x",
    {1: 2},
    {"": 1},
    {"../x": 1},
    {"a\0": 1},
    {"a": object()},
    {"a": b"x"},
    {"a": float("nan")},
    {"artfs": {}},
    {"a": {1, 2}},
    {"a": "x" * (1 << 20)},
]
SESSION_METADATA = [5, "text", ["a"], {1: 2}, {"a": object()}, {"a": float("nan")}, {"a": "x" * (1 << 20)}]
FILE_METADATA = [5, "text", ["a"], {1: 2}, {"a": object()}, {"a": float("nan")}, {"a": "x" * (1 << 20)}]
FILE_VALUES = [object(), float("nan"), b"x", {1, 2}, "x" * (1 << 20)]
BYTES = ["text", 5, None, object(), ["x"], {"a": 1}]
CONTENT = [5, None, object(), ["x"], {"a": 1}, 1.5]
TEXTS = [*WRONG_TYPES, "x" * (70 << 10)]
CHOICES = ["nosuch", "", *WRONG_TYPES]
STREAMS = [5, None, object(), "text", b"bytes", ["text"], [b"x", 5], [None]]
CHUNKS = [0, -1, "5", None, 1.5]
CALLBACKS = ["text", 5]
REQUEST: list[Any] = [5, None, "text", [], {}]

HOSTILE: dict[str, list[Any]] = {
    "a": IDS,
    "additional_hours": [*LIFETIMES, None],
    "additional_seconds": [*LIFETIMES, None],
    "artifact_id": [*IDS, None],
    "b": IDS,
    "checkpoint_id": [*IDS, None],
    "chunk_size": CHUNKS,
    "content": CONTENT,
    "custom_metadata": SESSION_METADATA,
    "data": BYTES,
    "description": WRONG_TYPES,
    "destination": [*PATHS, None],
    "directory_prefix": FILENAMES[1:],
    "encoding": ["nosuch", 5, b"x"],
    "errors": [5, b"x"],
    "expires": [*LIFETIMES, None],
    "expires_in": [*LIFETIMES, None],
    "file_data": [5, None, "text", [b"x"], {"/a": 5}, {"/../a": b"x"}, {5: b"x"}, {"a\0": b"x"}],
    "file_specs": [5, None, "text", [{}], [5], [{"path": 5}], [{"path": "/../a"}], [{"path": "/a", "content": 5}]],
    "filename": FILENAMES,
    "items": [5, None, "text", {"data": b"x"}, [5], [{}], [{"data": "text"}]],
    "limit": COUNTS,
    "merge": [],
    "meta": METADATA,
    "meta_filter": [5, "text", ["a"]],
    "metadata": METADATA,
    "mime": MIMES,
    "mime_prefix": WRONG_TYPES,
    "mime_type": MIMES,
    "name": NAMES,
    "namespace_id": [*IDS, None],
    "new_filename": FILENAMES,
    "new_meta": METADATA,
    "new_session_id": OWNERS,
    "part_number": [0, -1, 10_001, "1", 1.5, True, None],
    "path": PATHS,
    "paths": [5, None, "text", [5], ["/../a"], ["a\0b"]],
    "pattern": WRONG_TYPES,
    "prefix": WRONG_TYPES,
    "progress_callback": CALLBACKS,
    "provider_config": [5, "text", ["a"], {"nosuch": 1}, {"secret_key": "x"}],
    "provider_type": CHOICES,
    "scope": CHOICES,
    "session_id": OWNERS,
    "source": [*PATHS, None],
    "stream": STREAMS,
    "summary": TEXTS,
    "target_session_id": OWNERS,
    "total": [],
    "ttl": LIFETIMES,
    "ttl_hours": LIFETIMES,
    "type": CHOICES,
    "upload_id": [*IDS, None],
    "user_id": OWNERS,
    "grid_key": [*IDS, "grid/a/b", None],
    "admin": [],
}
"""By the name of an argument; an empty list: whatever it is, it is taken as true or false, or only reported."""
SPECIAL: dict[tuple[str, str], list[Any]] = {
    ("write_namespace", "data"): CONTENT,
    ("update_file", "data"): BYTES[:2] + BYTES[3:],  # None: the content stays
    ("update_session_metadata", "metadata"): SESSION_METADATA,
    ("create_namespace", "metadata"): [m for m in METADATA if m not in ({"": 1}, {"../x": 1}, {"a\0": 1})],
    ("vfs.set_metadata", "metadata"): FILE_METADATA,
    ("vfs.write_binary", "content"): CONTENT,
    ("vfs.write_text", "content"): [*CONTENT, b"x"],
    ("vfs.write_text", "encoding"): ["nosuch", 5, b"x", "ascii"],
    ("write_file", "encoding"): ["nosuch", 5, b"x", "ascii"],
    ("search", "scope"): ["nosuch", *WRONG_TYPES],
    ("clone_namespace", "checkpoint_id"): IDS,  # None: now
    ("vfs.resolve_path", "path"): [*PATHS[:4], *WRONG_TYPES],  # of the rest the store knows
    ("vfs.stream_write", "stream"): [s for s in STREAMS if s != b"bytes"],  # which are one piece
    ("vfs.write_stream", "stream"): [s for s in STREAMS if s != b"bytes"],
}
WITHOUT = {"**others", "**options", "**metadata", "include_all_scopes", "as_text", "recursive"}
"""Arguments that are switches, or stand for more of the same."""


class World:
    """A store with one of each in it."""

    store: ArtifactStore
    files: AsyncVirtualFileSystem
    namespace: str
    artifact: str
    upload: str
    parts: str
    session: str

    async def fill(self, store: ArtifactStore) -> None:
        self.store = store
        self.session = await store.create_session("alice", custom_metadata={"k": 1})
        made = await store.create_namespace("workspace", session_id=self.session, metadata={"k": 1})
        self.namespace = made.namespace_id
        self.files = store.get_namespace_vfs(self.namespace)
        await self.files.write_file("/dir/f", "schön", kind="text")
        await self.files.write_file("/g", b"more")
        await store.checkpoint_namespace(self.namespace, "v1")
        await self.files.write_file("/h", b"later")
        self.artifact = await store.store(b"data", session_id=self.session, filename="dir/f", meta={"k": 1})
        _, self.upload = await store.presign_upload(self.session)
        begun = await store.initiate_multipart_upload({"filename": "f", "session_id": self.session})
        self.parts = begun.upload_id

    async def state(self) -> list[Any]:
        store = self.store
        tree = {
            path: (await self.files.read_file(path), await self.files.get_metadata(path))
            for path in await self.files.find()
        }
        return [
            tree,
            await self.files.get_storage_stats(),
            [info.model_dump() for info in store.list_namespaces()],
            [found.model_dump() for found in await store.search()],
            await store.list_checkpoints(self.namespace),
            await store.get_session_info(self.session),
            await store._call("api_artifact_sessions"),
            bool(await store.get_part_upload_url(self.parts, 1)),
        ]

    def valid(self) -> dict[str, dict[str, Any]]:
        """Arguments of each call that has any, with which it works."""
        namespace, artifact = {"namespace_id": self.namespace}, {"artifact_id": self.artifact}
        session = {"session_id": self.session}
        artifacts = dict.fromkeys(
            ("metadata", "exists", "retrieve", "delete", "presign_short", "presign_medium", "presign_long"), artifact
        )
        described = {"mime": "a/b", "summary": "s", "meta": {"a": 1}, "filename": "f", "ttl": 60}
        place = {**session, "scope": "session"}
        file = {"path": "/dir/f"}
        files = {
            f"vfs.{name}": file
            for name in (
                "cd",
                "exists",
                "generate_presigned_url",
                "get_metadata",
                "get_node_info",
                "is_dir",
                "is_file",
                "ls",
                "list_directory",
                "mkdir",
                "read_binary",
                "resolve_path",
                "rm",
                "rmdir",
                "touch",
            )
        }
        return {
            **{name: {} for name in ("cleanup_expired_sessions", "get_sandbox_info", "get_session_prefix_pattern")},
            **{name: {} for name in ("get_stats", "validate_configuration", "close", "vfs.cleanup", "vfs.close")},
            **{name: {} for name in ("vfs.get_provider_name", "vfs.get_storage_stats", "vfs.initialize", "vfs.pwd")},
            **artifacts,
            **files,
            "as_principal": {**session, "user_id": "alice"},
            "abort_multipart_upload": {"upload_id": self.parts},
            "checkpoint_namespace": {**namespace, "name": "v2", "description": "d"},
            "clone_namespace": {**namespace, "name": "branch", "checkpoint_id": "v1"},
            "complete_multipart_upload": {
                "request": {"upload_id": self.parts, "parts": [{"PartNumber": 1, "ETag": "e"}]}
            },
            "copy_file": {
                **artifact,
                "new_filename": "n",
                "target_session_id": self.session,
                "new_meta": {},
                "summary": "s",
            },
            "create_namespace": {
                "type": "blob",
                "scope": "session",
                "name": "n",
                "user_id": "alice",
                "ttl_hours": 1,
                "metadata": {},
                "provider_type": "memory",
                "provider_config": {},
                **session,
            },
            "create_session": {"user_id": "alice", "ttl_hours": 1, "custom_metadata": {}, "session_id": "new"},
            "delete_checkpoint": {**namespace, "checkpoint_id": "v1"},
            "delete_session": session,
            "destroy_namespace": namespace,
            "diff_namespace": {**namespace, "a": "v1"},
            "extend_session_ttl": {**session, "additional_hours": 1},
            "extend_ttl": {**artifact, "additional_seconds": 60},
            "generate_artifact_key": {**session, **artifact},
            "get_canonical_prefix": session,
            "get_directory_contents": {**session, "directory_prefix": "dir", "limit": 1},
            "get_namespace_info": namespace,
            "get_namespace_vfs": namespace,
            "get_part_upload_url": {"upload_id": self.parts, "part_number": 1, "expires": 60},
            "get_session_info": session,
            "initiate_multipart_upload": {
                "request": {**place, "filename": "f", "mime_type": "a/b", "meta": {}, "ttl": 60}
            },
            "list_by_session": {**session, "limit": 1},
            "list_checkpoints": namespace,
            "list_files": {**session, "prefix": "d", "limit": 1},
            "list_namespaces": {**session, "type": "blob", "scope": "session"},
            "move_file": {**artifact, "new_filename": "n", "new_session_id": self.session, "new_meta": {}},
            "parse_grid_key": {"grid_key": "grid/a/b/c"},
            "presign": {**artifact, "expires": 60},
            "presign_upload": {**place, "filename": "f", "mime_type": "a/b", "expires": 60, "ttl": 60},
            "presign_upload_and_register": {**place, **described, "expires": 60},
            "read_file": {**artifact, "encoding": "utf-8", "as_text": True},
            "read_namespace": {**namespace, **file},
            "register_uploaded_artifact": {"artifact_id": self.upload, **described},
            "restore_namespace": {**namespace, "checkpoint_id": "v1"},
            "search": {"scope": "session", **session, "mime_prefix": "a", "meta_filter": {"k": 1}, "limit": 1},
            "store": {"data": b"x", **described, **place},
            "store_batch": {"items": [{"data": b"x"}], **place, "ttl": 60},
            "stream_download": {"request": {**artifact, "chunk_size": 10}},
            "stream_upload": {
                "request": {"data_stream": [b"x"], **described, **place, "chunk_size": 10, "content_length": 1}
            },
            "update_file": {**artifact, "data": b"x", **described},
            "update_metadata": {**artifact, **described},
            "update_session_metadata": {**session, "custom_metadata": {"a": 1}},
            "validate_session": session,
            "write_file": {"content": "schön", **described, **place, "encoding": "utf-8"},
            "write_namespace": {**namespace, "data": b"x", **file, "mime": "a/b"},
            "vfs.batch_create_files": {"file_specs": [{"path": "/n", "content": b"x"}]},
            "vfs.batch_delete_paths": {"paths": ["/dir/f"]},
            "vfs.batch_read_files": {"paths": ["/dir/f"]},
            "vfs.batch_write_files": {"file_data": {"/n": b"x"}},
            "vfs.cp": {"source": "/dir/f", "destination": "/n"},
            "vfs.find": {"pattern": "*", "path": "/"},
            "vfs.mv": {"source": "/dir/f", "destination": "/n"},
            "vfs.read_file": {**file, "as_text": True, "encoding": "utf-8"},
            "vfs.read_stream": {**file, "chunk_size": 10},
            "vfs.read_text": {**file, "encoding": "utf-8", "errors": "strict"},
            "vfs.set_metadata": {**file, "metadata": {"a": 1}},
            "vfs.stream_read": {**file, "chunk_size": 10, "progress_callback": None},
            "vfs.stream_write": {"path": "/n", "stream": [b"x"], "chunk_size": 10, "progress_callback": None},
            "vfs.write_binary": {"path": "/n", "content": b"x"},
            "vfs.write_file": {"path": "/n", "content": b"x"},
            "vfs.write_stream": {"path": "/n", "stream": [b"x"]},
            "vfs.write_text": {"path": "/n", "content": "schön", "encoding": "utf-8"},
        }


EMPTY = {"register_uploaded_artifact", "vfs.generate_presigned_url", "list_namespaces", "search"} | {
    f"vfs.{name}" for name in ("cd", "ls", "list_directory", "is_dir", "mkdir", "rmdir")
}
"""Calls that find nothing to do with the valid arguments."""
GONE_IS_DONE = {"abort_multipart_upload"}
"""Calls that say True where nothing is there, because they say that nothing is."""


def calls() -> dict[str, list[str]]:
    """Public calls, and the names of their arguments."""
    found = {}
    for kind, _, _ in KINDS:
        for name, call in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_"):
                prefix = "vfs." if kind is AsyncVirtualFileSystem else ""
                arguments = list(inspect.signature(call).parameters.values())[1:]
                found[prefix + name] = [
                    f"**{one.name}" if one.kind is one.VAR_KEYWORD else one.name for one in arguments
                ]
    return found


CALLS = calls()
REQUESTS: dict[str, dict[str, list[Any]]] = {
    "complete_multipart_upload": {
        "upload_id": IDS,
        "parts": [
            [],
            5,
            None,
            ["x"],
            [{"PartNumber": 0, "ETag": "e"}],
            [{"PartNumber": 1, "ETag": ""}],
            [{"PartNumber": 1}],
        ],
        "summary": TEXTS,
    },
    "initiate_multipart_upload": {
        "filename": FILENAMES,
        "mime_type": MIMES,
        "meta": METADATA,
        "ttl": LIFETIMES,
        "scope": CHOICES,
        "session_id": OWNERS,
        "user_id": OWNERS,
        "upload_ttl": LIFETIMES,
        "nosuch": [1],
    },
    "stream_download": {"artifact_id": IDS, "chunk_size": CHUNKS, "progress_callback": CALLBACKS, "nosuch": [1]},
    "stream_upload": {
        "data_stream": STREAMS,
        "mime": MIMES,
        "summary": TEXTS,
        "filename": FILENAMES,
        "meta": METADATA,
        "ttl": LIFETIMES,
        "scope": CHOICES,
        "session_id": OWNERS,
        "user_id": OWNERS,
        "chunk_size": CHUNKS,
        "content_length": [-1, 0, 2, "x", 1.5],
        "progress_callback": CALLBACKS,
        "nosuch": [1],
    },
}
"""Fields of a request."""


def hostile(name: str, argument: str) -> list[Any]:
    return SPECIAL.get((name, argument), HOSTILE.get(argument, []))


def bad(name: str, valid: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is wrong, and the arguments of the call."""
    for argument in CALLS[name]:
        if argument == "request":
            for other in REQUEST:
                yield f"request={other!r}", {"request": other}
            for entry, values in REQUESTS[name].items():
                for value in values:
                    yield f"{entry}={value!r}"[:100], {"request": {**valid["request"], entry: value}}
            continue
        if argument == "**metadata":
            for value in FILE_VALUES:
                yield f"bad={value!r}"[:100], {**valid, "bad": value}
            continue
        for value in hostile(name, argument):
            yield f"{argument}={value!r}"[:100], {**valid, argument: value}


async def made(world: World, name: str, arguments: dict[str, Any]) -> Any:
    owner: Any = world.files if name.startswith("vfs.") else world.store
    found = getattr(owner, name.removeprefix("vfs."))(**arguments)
    if inspect.isawaitable(found):
        found = await found
    if isinstance(found, AsyncIterator) or hasattr(found, "__anext__"):
        found = await drained(found)
    if isinstance(found, list) and found and (found[0] is None or hasattr(found[0], "success")):
        return any(one is not None and getattr(one, "success", True) for one in found)
    return found


def test_every_call_and_every_argument_is_in_the_table() -> None:
    with_arguments = World()
    for attribute in ("namespace", "artifact", "upload", "parts", "session"):
        setattr(with_arguments, attribute, "x")
    valid = with_arguments.valid()
    assert set(valid) == set(CALLS)
    for name, arguments in CALLS.items():
        assert set(valid[name]) <= set(arguments), name
        known = HOSTILE.keys() | WITHOUT | ({"request"} if name in REQUESTS else set())
        assert set(arguments) <= known, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name, arguments in CALLS.items() if arguments])
def test_bad_arguments(name: str, backend: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong: list[str] = []

    async def main() -> None:
        async with a_store("memory", tmp_path, sandbox_id=f"bad-{token_hex(4)}") as store:
            world = World()
            await world.fill(store)
            before = await world.state()
            for what, arguments in bad(name, world.valid()[name]):
                try:
                    answer = await made(world, name, arguments)
                except CLEAN:
                    pass
                except Exception as error:
                    wrong.append(f"{what}: {type(error).__name__}: {error}")
                else:
                    if answer not in NOTHING and name not in GONE_IS_DONE:
                        wrong.append(f"{what}: it answered {answer!r:.80}")
                if await world.state() != before:
                    wrong.append(f"{what}: something has changed")
                    before = await world.state()
            if name not in EMPTY:  # what it was tried with is right but for the one argument
                assert (await made(world, name, world.valid()[name])) not in (False, [], {}), name

    anyio.run(main, backend=backend)
    caplog.clear()
    assert wrong == []


# what stores and managers are made of
CONSTRUCTION: dict[str, list[Any]] = {
    "bucket": WRONG_TYPES,
    "max_retries": [-1, "3", 1.5, None, True],
    "providers": [5, "text", ["a"], {"nosuch": "memory"}, {"session": "nosuch"}, {"session": 5}],
    "root": ["", 5, ["x"], "a\0b"],
    "sandbox_id": OWNERS,
    "session_provider": [choice for choice in CHOICES if choice],
    "session_ttl_hours": LIFETIMES,
    "shared_writable": ["no", 5, None],
    "storage_provider": [choice for choice in CHOICES if choice],
}


def test_what_no_store_is_made_of() -> None:
    arguments = inspect.signature(ArtifactStore.__init__).parameters.keys()
    assert arguments - {"self", "variables"} == CONSTRUCTION.keys()
    for name, values in CONSTRUCTION.items():
        for value in values:
            with pytest.raises(CLEAN):
                pytest.fail(f"{name}={value!r}: {ArtifactStore(**{name: value})}")


MANAGER: dict[str, dict[str, list[Any]]] = {
    "allocate_session": {"session_id": OWNERS, "user_id": OWNERS, "ttl_hours": LIFETIMES}
    | {"custom_metadata": SESSION_METADATA},
    "validate_session": {"session_id": OWNERS},
    "get_session_info": {"session_id": OWNERS},
    "get_session_metadata": {"session_id": OWNERS},
    "update_session_metadata": {"session_id": OWNERS, "custom_metadata": SESSION_METADATA, "merge": []},
    "extend_session_ttl": {"session_id": OWNERS, "additional_hours": LIFETIMES},
    "delete_session": {"session_id": OWNERS},
    "get_canonical_prefix": {"session_id": OWNERS},
    "generate_artifact_key": {"session_id": OWNERS, "artifact_id": IDS},
    "parse_grid_key": {"grid_key": HOSTILE["grid_key"]},
    **{name: {} for name in ("cleanup_expired_sessions", "get_cache_stats", "get_session_prefix_pattern")},
}


@on_both_loops
async def test_what_no_session_manager_does() -> None:
    for name, values in {"sandbox_id": OWNERS, "session_factory": [5, "x"], "default_ttl_hours": LIFETIMES}.items():
        for value in values:
            with pytest.raises(CLEAN):
                pytest.fail(f"{name}={value!r}: {SessionManager(**{name: value})}")
    calls = dict(inspect.getmembers(SessionManager, inspect.isfunction))
    assert {name for name in calls if not name.startswith("_")} == MANAGER.keys()
    manager = SessionManager(f"bad-{token_hex(4)}")
    await manager.allocate_session("s", user_id="alice", custom_metadata={"a": 1})
    before = await manager.get_session_info("s")
    right = {
        "session_id": "s",
        "user_id": "alice",
        "additional_hours": 1,
        "custom_metadata": {"a": 1},
        "artifact_id": "a",
    }
    for name, arguments in MANAGER.items():
        assert set(arguments) == inspect.signature(calls[name]).parameters.keys() - {"self"}, name
        for argument, values in arguments.items():
            for value in values:
                given = {**{one: right[one] for one in arguments if one in right}, argument: value}
                try:
                    answer = getattr(manager, name)(**given)
                    answer = await answer if inspect.isawaitable(answer) else answer
                    assert answer in NOTHING, (name, argument, value)
                except CLEAN:
                    pass
    after = await manager.get_session_info("s")
    assert before is not None and after == {**before, "last_accessed": (after or {}).get("last_accessed")}


# what is no more, or never was
TARGETS = {"workspace", "artifact", "upload", "parts", "session"}
GONE = ("never was", "deleted", "expired", "of another sandbox")


async def gone(world: AccessWorld, on: str, how: str) -> Target:
    """A target that is no more."""
    store = world.store
    if how == "never was":
        return Target({"workspace": "ns-" + 12 * "0", "parts": "upload-" + 32 * "0"}.get(on, 32 * "0"))
    if how == "of another sandbox":
        session = await world.other.create_session("alice")
        there = AccessWorld(world.other, store, session, session, session, session)
        return await make(there, on, "session")
    if how == "expired":
        for seconds in (0.05, 0.5, 5):  # in which it can be made
            session = await store.create_session("alice", ttl_hours=seconds / 3600)
            with suppress(SessionError, ArtifactExpiredError):
                target = await make(AccessWorld(store, world.other, session, session, session, session), on, "session")
                await anyio.sleep(seconds + 0.01)
                return target
        raise TimeoutError(on)
    target = await make(world, on, "session")
    if on == "workspace":
        await store.destroy_namespace(target.id)
    elif on == "artifact":
        assert await store.delete(target.id)
    elif on == "session":
        world.session = await store.create_session("alice")
        await store.delete_session(target.id)
    elif on == "parts":
        await store.abort_multipart_upload(target.id)
    else:  # an upload is at its end once it is registered
        await store.register_uploaded_artifact(target.id)
    return target


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.on in TARGETS])
def test_what_is_not_there(name: str, backend: str, tmp_path: Path) -> None:
    row = ROWS[name]

    async def main() -> None:
        async with a_world(tmp_path, "memory") as world:
            for how in GONE:
                target = await gone(world, row.on, how)
                before = store_state(world.store), await world.store.search()
                if name == "create_session" and how != "expired":
                    continue  # which makes one
                try:
                    answer = await row.work(world.store, target, {})
                    assert answer in NOTHING or name in GONE_IS_DONE, how
                except (ArtifactNotFoundError, ArtifactExpiredError, SessionError) as error:
                    expired = isinstance(error, ArtifactExpiredError) or "has expired" in str(error)
                    assert expired is (how == "expired") or row.on == "session", (how, error)
                assert (store_state(world.store), await world.store.search()) == before, how

    anyio.run(main, backend=backend)


def store_state(store: ArtifactStore) -> list[dict[str, Any]]:
    return [info.model_dump() for info in store.list_namespaces()]


# sources that fail
class Broken(Exception):
    pass


class Source:
    """Pieces, and then a failure, whichever way it is read; whether it was closed."""

    def __init__(self, pieces: int, size: int) -> None:
        self.pieces, self.size, self.closed = pieces, size, False

    def plain(self) -> Iterator[bytes]:
        try:
            for _ in range(self.pieces):
                yield b"x" * self.size
            raise Broken
        finally:
            self.closed = True

    async def waiting(self) -> AsyncIterator[bytes]:
        try:
            for _ in range(self.pieces):
                await anyio.sleep(0)
                yield b"x" * self.size
            raise Broken
        finally:
            self.closed = True


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["memory", "root"])
@pytest.mark.parametrize("name", ["stream_upload", "vfs.stream_write", "vfs.write_stream"])
def test_nothing_is_left_of_a_source_that_fails(name: str, where: str, backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with a_store(where, tmp_path, sandbox_id=f"bad-{token_hex(4)}") as store:
            world = World()
            await world.fill(store)
            before = await world.state()
            for pieces, size in ((0, 1), (1, 10), (3, 70_000), (3, 5 << 20), (2, 17 << 20)):
                for way in (Source.plain, Source.waiting):
                    for path in ("/new/deep/file", "/dir/f"):
                        source = Source(pieces, size)
                        valid = world.valid()[name]
                        stream: Any = way(source)
                        with pytest.raises(Broken):
                            if name == "stream_upload":
                                request = {**valid["request"], "data_stream": stream, "content_length": None}
                                await store.stream_upload(request)
                            else:
                                await made(world, name, {**valid, "path": path, "stream": stream})
                        assert source.closed
                        assert await world.state() == before, (pieces, size, path)

    anyio.run(main, backend=backend)
