"""AsyncVirtualFileSystem: the files of one namespace by path, as a program without a mount uses them.

Relative paths begin at the current directory, which each object has for itself.  `..` of the root is refused.

What is not there is None, False or empty, as each method says; what goes wrong otherwise raises, as the calls of
`ArtifactStore` do.  True is said only of what has happened.  A write replaces a file at once: a reader sees the old
bytes or the new.  `.workspace` is listed in the root of a workspace and can be read; it is no file that can be changed.
"""

from __future__ import annotations

import errno
import json
import mimetypes
import posixpath
import re
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from struct import Struct
from typing import TYPE_CHECKING, Any, Self

from artfs.exceptions import ArtifactNotFoundError, ArtifactStoreError
from artfs.sessions.metadata import iso
from artfs.store.operations.transfer import PART, abandon, read_all, write_all
from artfs.store.public_errors import AlreadyExistsError, FileOperationError, InvalidArgumentError
from artfs.store.virtual_values import OCTETS, BatchResult, NodeInfo, Progress, parts_of_stream, tell

if TYPE_CHECKING:
    from artfs.store.artifact_store import ArtifactStore

BATCH = 256
"""Files of one call, at most."""
BATCH_BYTES = 4 << 20
CHUNK = 65536
HEADER = Struct(">I")
MISSING, TOO_LARGE = -1, -2
is_plain = re.compile(r"(/[^/\0.][^/\0]*)+").fullmatch
"""Paths that are as `resolve_path` would make them."""
IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR)


class AsyncVirtualFileSystem:
    """Made by `ArtifactStore.get_namespace_vfs`.  Every call is made as `session_id` or `user_id`, if one was given."""

    def __init__(
        self, store: ArtifactStore, namespace_id: str, *, session_id: str | None = None, user_id: str | None = None
    ) -> None:
        self._store = store
        self.namespace_id = namespace_id
        self._as = {"session_id": session_id, "user_id": user_id}
        self._directory = "/"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    async def initialize(self) -> None:
        """Nothing is left to do: the store opens at its first use."""

    async def cleanup(self) -> dict[str, Any]:
        """Delete what has expired by now; how many sessions and namespaces that were."""
        return {"cleaned_up": int(await self._store._call("api_cleanup", **self._as))}

    async def close(self) -> None:
        """The store stays open for others."""

    async def _call(self, method: str, /, **arguments: Any) -> Any:
        return await self._store._call(method, id=self.namespace_id, **self._as, **arguments)

    def resolve_path(self, path: str) -> str:
        """Absolute, without `.` and `..`.  Errors: InvalidError for what leads out of the namespace."""
        if isinstance(path, str) and is_plain(path):
            return path
        if not isinstance(path, str):
            raise InvalidArgumentError(f"a path is a string, not {path!r}")
        if "\0" in path:
            raise InvalidArgumentError("a path cannot contain NUL")
        parts: list[str] = []
        for part in posixpath.join(self._directory, path).split("/"):
            if part == "..":
                if not parts:
                    raise InvalidArgumentError(f"{path!r} leads out of the namespace")
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return "/" + "/".join(parts)

    # directories
    def pwd(self) -> str:
        return self._directory

    async def cd(self, path: str) -> bool:
        """Whether it is a directory, and now the current one."""
        if path in ("..", "../") and self._directory == "/":
            return True
        there = self.resolve_path(path)
        if not await self.is_dir(there):
            return False
        self._directory = there
        return True

    async def ls(self, path: str | None = None) -> list[str]:
        """Names in a directory, in order; [] if there is none."""
        try:
            names: list[str] = await self._call("api_names", path=self.resolve_path(path or "."))
        except (ArtifactNotFoundError, FileOperationError):
            await self._alive()
            return []
        return names

    async def list_directory(self, path: str | None = None) -> list[str]:
        return await self.ls(path)

    async def mkdir(self, path: str) -> bool:
        """With the directories that it lacks; False if something is there already."""
        try:
            return bool(await self._call("api_mkdir", path=self.resolve_path(path)))
        except (AlreadyExistsError, FileOperationError):
            return False

    async def rmdir(self, path: str) -> bool:
        """Of an empty directory."""
        return await self._done("api_remove", path=self.resolve_path(path), folder=True)

    async def is_dir(self, path: str) -> bool:
        found = await self._look(path)
        return found is not None and found["type"] == "directory"

    async def is_file(self, path: str) -> bool:
        found = await self._look(path)
        return found is not None and found["type"] == "file"

    async def exists(self, path: str) -> bool:
        return await self._look(path) is not None

    async def _look(self, path: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._call("api_look", path=self.resolve_path(path))
        return found

    async def _alive(self) -> None:
        """Errors: those about the namespace itself, which are not those about a path."""
        await self._call("api_info")

    async def _done(self, method: str, **arguments: Any) -> bool:
        """False for what is not there, or what the rules of files do not allow."""
        try:
            await self._call(method, **arguments)
        except (ArtifactNotFoundError, AlreadyExistsError, FileOperationError):
            await self._alive()
            return False
        return True

    # files
    async def touch(self, path: str, **metadata: Any) -> bool:
        """Make an empty file, or set the times of what is there to now."""
        done = await self._done("api_touch", path=self.resolve_path(path))
        return await self.set_metadata(path, metadata) if done and metadata else done

    async def write_file(self, path: str, content: bytes | str, **metadata: Any) -> bool:
        """All of `content` in the place of what is there, with the directories that it lacks; keyword arguments are
        custom metadata.  False if a directory is there, or a file where a directory is needed."""
        if isinstance(content, str):
            content = content.encode()
        elif not isinstance(content, bytes):
            content = bytes(memoryview(content))
        where = self.resolve_path(path)
        try:
            if len(content) <= PART:
                await self._call("api_write", path=where, data=content, metadata=metadata or None)
            else:
                await write_all(self._store, self.namespace_id, where, content, metadata=metadata or None, **self._as)
        except FileOperationError as error:
            if error.errno in IN_THE_WAY:
                return False
            raise
        return True

    async def read_file(self, path: str, as_text: bool = False, encoding: str = "utf-8") -> Any:
        """Its bytes, or str with `as_text`; None if there is no such file."""
        try:
            data = await read_all(self._store, self.namespace_id, self.resolve_path(path), **self._as)
        except (ArtifactNotFoundError, FileOperationError):
            await self._alive()
            return None
        return data.decode(encoding) if as_text else data

    async def write_text(self, path: str, text: str, encoding: str = "utf-8", **metadata: Any) -> bool:
        return await self.write_file(path, text.encode(encoding), **metadata)

    async def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str | None:
        data: bytes | None = await self.read_file(path)
        return None if data is None else data.decode(encoding, errors)

    async def write_binary(self, path: str, data: bytes, **metadata: Any) -> bool:
        return await self.write_file(path, data, **metadata)

    async def read_binary(self, path: str) -> bytes | None:
        data: bytes | None = await self.read_file(path)
        return data

    async def rm(self, path: str, recursive: bool = False) -> bool:
        """A file or an empty directory; with `recursive` all that is below."""
        return await self._done("api_remove", path=self.resolve_path(path), recursive=recursive)

    async def cp(self, source: str, destination: str) -> bool:
        """A file or a tree, into `destination` if that is a directory; a file that is there is replaced at once."""
        return await self._done("api_copy", source=self.resolve_path(source), target=self.resolve_path(destination))

    async def mv(self, source: str, destination: str) -> bool:
        """Into `destination` if that is a directory; a file that is there is replaced at once."""
        return await self._done("api_move", source=self.resolve_path(source), target=self.resolve_path(destination))

    async def find(self, pattern: str = "*", path: str = "/", recursive: bool = True) -> list[str]:
        """Absolute paths of the files whose names match, in order; [] if `path` is no directory."""
        try:
            matched: list[str] = await self._call(
                "api_find", pattern=pattern, path=self.resolve_path(path), recursive=recursive
            )
        except (ArtifactNotFoundError, FileOperationError):
            await self._alive()
            return []
        return matched

    # metadata
    async def set_metadata(self, path: str, metadata: Mapping[str, Any]) -> bool:
        """Merge custom metadata, JSON, into those that are there; False if nothing is there."""
        return await self._done("api_set_metadata", path=self.resolve_path(path), metadata=dict(metadata))

    async def get_metadata(self, path: str) -> dict[str, Any]:
        """What is known of it, with the custom metadata at top level and under `custom_meta`; {} if nothing is
        there."""
        info = await self.get_node_info(path)
        return {} if info is None else {**info.to_dict(), "path": info.path, **info.custom_meta}

    async def get_node_info(self, path: str) -> NodeInfo | None:
        where = self.resolve_path(path)
        found = await self._look(where)
        if found is None:
            return None
        parent, name = posixpath.split(where)
        is_dir = found["type"] == "directory"
        guessed = "inode/directory" if is_dir else mimetypes.guess_type(name)[0] or OCTETS
        return NodeInfo(
            name=name,
            is_dir=is_dir,
            parent_path=parent,
            size=found["size"],
            mime_type=found["mime"] or guessed,
            created_at=iso(found["ctime"] or found["created"]),
            modified_at=iso(found["mtime"] or found["created"]),
            accessed_at=iso(found["atime"] or found["created"]),
            permissions=f"{found['mode']:o}",
            owner=str(found["uid"]),
            group=str(found["gid"]),
            custom_meta=found["metadata"],
        )

    # many at once
    async def batch_create_files(self, file_specs: Sequence[Mapping[str, Any]]) -> list[BatchResult]:
        """Files from {"path", "content", "metadata"}; each by itself, in order."""
        items = []
        for spec in file_specs:
            content = spec.get("content", spec.get("data", b""))
            items.append((spec["path"], content, spec.get("metadata"), spec.get("mime_type")))
        return await self._batch_write("create", items)

    async def batch_write_files(self, file_data: Mapping[str, bytes | str]) -> list[BatchResult]:
        return await self._batch_write("write", [(path, data, None, None) for path, data in file_data.items()])

    async def _batch_write(
        self, operation: str, items: Sequence[tuple[str, Any, Mapping[str, Any] | None, str | None]]
    ) -> list[BatchResult]:
        results: list[BatchResult] = []
        pack: list[dict[str, Any]] = []
        parts: list[bytes] = []
        size = 0

        async def flush() -> None:
            nonlocal size
            if pack:
                done = await self._call("api_batch_write", items=pack, data=b"".join(parts))
                results.extend(
                    BatchResult(error is None, operation, error is None, error, ms, item["given"])
                    for item, (error, ms) in zip(pack, done, strict=True)
                )
            pack.clear()
            parts.clear()
            size = 0

        for path, content, metadata, mime in items:
            data = content.encode() if isinstance(content, str) else bytes(content)
            if len(data) > BATCH_BYTES:
                await flush()
                results.append(await self._one(operation, path, data, metadata))
                continue
            if size + len(data) > BATCH_BYTES or len(pack) >= BATCH:
                await flush()
            try:
                where = self.resolve_path(path)
            except InvalidArgumentError as error:
                await flush()
                results.append(BatchResult(False, operation, False, str(error), 0.0, str(path)))
                continue
            pack.append({"path": where, "given": path, "size": len(data), "mime": mime, "metadata": metadata})
            parts.append(data)
            size += len(data)
        await flush()
        return results

    async def _one(self, operation: str, path: str, data: bytes, metadata: Mapping[str, Any] | None) -> BatchResult:
        try:
            done = await self.write_file(path, data, **(metadata or {}))
        except ArtifactStoreError as error:
            return BatchResult(False, operation, False, str(error), 0.0, path)
        return BatchResult(done, operation, done, None if done else f"{path}: a directory is in the way", 0.0, path)

    async def batch_read_files(self, paths: Iterable[str]) -> dict[str, bytes]:
        """By path as it was given; what is not there is left out."""
        wanted = list(paths)
        found: dict[str, bytes] = {}
        at = 0
        while at < len(wanted):
            some = wanted[at : at + BATCH]
            packed = await self._call("api_batch_read", paths=[self.resolve_path(path) for path in some])
            (length,) = HEADER.unpack_from(packed)
            sizes = json.loads(packed[HEADER.size : HEADER.size + length])
            place = HEADER.size + length
            for path, size in zip(some, sizes, strict=False):
                if size >= 0:
                    found[path] = packed[place : place + size]
                    place += size
                elif size == TOO_LARGE:
                    found[path] = await read_all(self._store, self.namespace_id, self.resolve_path(path), **self._as)
            at += len(sizes)
        return found

    async def batch_delete_paths(self, paths: Iterable[str]) -> list[BatchResult]:
        """Files and empty directories, in order."""
        wanted = list(paths)
        results: list[BatchResult] = []
        for at in range(0, len(wanted), BATCH):
            some = wanted[at : at + BATCH]
            done = await self._call("api_batch_remove", paths=[self.resolve_path(path) for path in some])
            results.extend(
                BatchResult(error is None, "delete", error is None, error, ms, path)
                for path, (error, ms) in zip(some, done, strict=True)
            )
        return results

    # streams
    async def stream_write(
        self,
        path: str,
        stream: AsyncIterable[bytes] | Iterable[bytes],
        chunk_size: int = CHUNK,
        progress_callback: Progress | None = None,
        total: int | None = None,
        **metadata: Any,
    ) -> bool:
        """All that `stream` gives as a file, which shows up when it is whole; if the stream fails nothing is left.
        The callback, plain or async, gets (bytes done, `total`)."""
        handle = await self._call("api_write_begin", path=self.resolve_path(path), metadata=metadata or None)
        try:
            done = 0
            async with aclosing(parts_of_stream(stream)) as parts:
                async for part in parts:
                    view = memoryview(part)
                    for at in range(0, len(view), PART):
                        some = part if len(view) <= PART and isinstance(part, bytes) else bytes(view[at : at + PART])
                        await self._store._call("api_write_part", handle=handle, data=some, **self._as)
                    done += len(part)
                    await tell(progress_callback, done, total)
            await self._store._call("api_write_end", handle=handle, **self._as)
        except BaseException:
            await abandon(self._store, "api_write_abort", handle)
            raise
        if progress_callback is not None and total is None:
            await tell(progress_callback, done, done)
        return True

    async def stream_read(
        self, path: str, chunk_size: int = CHUNK, progress_callback: Progress | None = None
    ) -> AsyncIterator[bytes]:
        """One version of the file, in parts of `chunk_size` bytes.  Errors: ArtifactNotFoundError."""
        if chunk_size <= 0:
            raise InvalidArgumentError(f"chunk_size must be above 0, not {chunk_size}")
        found = await self._call("api_read_begin", path=self.resolve_path(path))
        handle, size = found["handle"], found["size"]
        step = max(min(PART, max(chunk_size, 1 << 20)) // chunk_size * chunk_size, min(chunk_size, PART))
        try:
            at = 0
            while at < size:
                part = await self._store._call(
                    "api_read_part", handle=handle, offset=at, length=min(step, size - at), **self._as
                )
                if not part:
                    return
                for start in range(0, len(part), chunk_size):
                    piece = part[start : start + chunk_size]
                    at += len(piece)
                    yield piece
                    await tell(progress_callback, at, size)
        finally:
            await abandon(self._store, "api_read_end", handle)

    async def write_stream(self, path: str, stream: AsyncIterable[bytes] | Iterable[bytes], **options: Any) -> bool:
        return await self.stream_write(path, stream, **options)

    def read_stream(self, path: str, chunk_size: int = CHUNK) -> AsyncIterator[bytes]:
        return self.stream_read(path, chunk_size)

    # what keeps it
    async def get_storage_stats(self) -> dict[str, Any]:
        """Of the namespace: `total_size_bytes`, `file_count`, `directory_count` (its root included), `total_nodes`."""
        found: dict[str, Any] = await self._call("api_stats")
        return found

    async def get_provider_name(self) -> str:
        """`memory`, `filesystem`, `sqlite`, `s3` …"""
        info = await self._call("api_info")
        return str(info["provider_type"]).removeprefix("vfs-")

    async def generate_presigned_url(self, path: str = "/_data", expires_in: int = 3600) -> str | None:
        """A URL that gives a BLOB's bytes to anybody, for so many seconds; other files have none."""
        found: str | None = await self._call("api_url", path=self.resolve_path(path), expires=expires_in)
        return found
