"""AsyncVirtualFileSystem: the files of one namespace by path, as a program without a mount uses them.

Relative paths begin at the current directory, which each object has for itself.  `..` of the root is refused.

What is not there is None, False or empty, as each method says; what goes wrong otherwise raises, as the calls of
`ArtifactStore` do.  True is said only of what has happened.  A write replaces a file at once: a reader sees the old
bytes or the new.  `.workspace` is listed in the root of a workspace and can be read; it is no file that can be changed.
"""

from __future__ import annotations

import errno
import mimetypes
import posixpath
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Iterable,
    Mapping,
)
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

from artfs.exceptions import ArtifactNotFoundError
from artfs.sessions.metadata import iso
from artfs.store.operations.transfer import PART, abandon, decoded, encoded, octets, read_all, write_all
from artfs.store.public_errors import AlreadyExistsError, FileOperationError, InvalidArgumentError
from artfs.store.virtual_batches import Batches
from artfs.store.virtual_values import OCTETS, NodeInfo, Progress, parts_of_stream, tell

if TYPE_CHECKING:
    from artfs.store.artifact_store import ArtifactStore

CHUNK = 65536
is_plain = re.compile(r"(/[^/\0.][^/\0]*)+").fullmatch
"""Paths that are as `resolve_path` would make them."""
IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR)


class AsyncVirtualFileSystem(Batches):
    """Made by `ArtifactStore.get_namespace_vfs`.  Every call is made as `session_id` or `user_id`, if one was given.

    Errors of all: InvalidArgumentError (a ValueError) for what is no path or no content; ArtifactNotFoundError,
    ArtifactExpiredError, AccessDeniedError for the namespace itself; ProviderError; ArtifactStoreError if the store is
    closed.  What is not there is no error but for `stream_read`.
    """

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
        """The current directory, absolute."""
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
        """The same as `ls`."""
        return await self.ls(path)

    async def mkdir(self, path: str, **metadata: Any) -> bool:
        """With the directories that it lacks; keyword arguments are custom metadata.  False if something is there
        already."""
        try:
            return bool(await self._call("api_mkdir", path=self.resolve_path(path), metadata=metadata or None))
        except (AlreadyExistsError, FileOperationError):
            return False

    async def rmdir(self, path: str) -> bool:
        """Of an empty directory."""
        return await self._done("api_remove", path=self.resolve_path(path), folder=True)

    async def is_dir(self, path: str) -> bool:
        """Whether a directory is there; a symlink is followed."""
        found = await self._look(path)
        return found is not None and found["type"] == "directory"

    async def is_file(self, path: str) -> bool:
        """Whether a regular file is there; a symlink is followed."""
        found = await self._look(path)
        return found is not None and found["type"] == "file"

    async def exists(self, path: str) -> bool:
        """Whether anything is there."""
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
        return await self._done("api_touch", path=self.resolve_path(path), metadata=metadata or None)

    async def write_file(self, path: str, content: bytes | str, **metadata: Any) -> bool:
        """All of `content` in the place of what is there, with the directories that it lacks; keyword arguments are
        custom metadata.  False if a directory is there, or a file where a directory is needed."""
        content = octets(content)
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
        return decoded(data, encoding) if as_text else data

    async def write_text(self, path: str, content: str, encoding: str = "utf-8", **metadata: Any) -> bool:
        """`write_file` of a text."""
        if not isinstance(content, str):
            raise InvalidArgumentError(f"a text is wanted, not {type(content).__name__}")
        return await self.write_file(path, encoded(content, encoding), **metadata)

    async def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str | None:
        """A file's text; None if there is no such file.  Errors: also UnicodeDecodeError."""
        data: bytes | None = await self.read_file(path)
        return None if data is None else decoded(data, encoding, errors)

    async def write_binary(self, path: str, content: bytes, **metadata: Any) -> bool:
        """`write_file` of bytes."""
        return await self.write_file(path, content, **metadata)

    async def read_binary(self, path: str) -> bytes | None:
        """A file's bytes; None if there is no such file."""
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
        """What is known of a file or directory; None if nothing is there.  The MIME type is the one that it was given,
        else what its name suggests.  `sha256`: of the bytes of an artifact, as `metadata` has it; of other files nobody
        keeps one."""
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
            sha256=found.get("sha256"),
            provider=found["provider"],
            custom_meta=found["metadata"],
        )

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
        The callback, plain or async, gets (bytes done, `total`).  What is written is cut as the stream cuts it;
        `chunk_size` says nothing here."""
        _check_chunk(chunk_size)
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
    ) -> AsyncGenerator[bytes, None]:
        """One version of the file, in parts of `chunk_size` bytes.  Errors: ArtifactNotFoundError."""
        _check_chunk(chunk_size)
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
        """The same as `stream_write`."""
        return await self.stream_write(path, stream, **options)

    def read_stream(self, path: str, chunk_size: int = CHUNK) -> AsyncGenerator[bytes, None]:
        """The same as `stream_read`."""
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


def _check_chunk(size: int) -> None:
    """Errors: InvalidArgumentError."""
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
        raise InvalidArgumentError(f"chunk_size must be a whole number of bytes above 0, not {size!r}")
