"""Many files of a namespace at once: each by itself, in order, in as few calls of the store as hold them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from artfs.exceptions import ArtifactStoreError
from artfs.store.batch_calls import HEADER, TOO_LARGE
from artfs.store.operations.transfer import octets, read_all
from artfs.store.public_errors import InvalidArgumentError
from artfs.store.virtual_values import BatchResult

if TYPE_CHECKING:
    from artfs.store.artifact_store import ArtifactStore

BATCH = 256
"""Files of one call, at most."""
BATCH_BYTES = 4 << 20


class Batches(ABC):
    """Part of `AsyncVirtualFileSystem`, which has what these calls stand on.  Errors: as there, of what concerns all;
    one file's are in its result."""

    _store: ArtifactStore
    _as: dict[str, str | None]
    namespace_id: str

    @abstractmethod
    async def _call(self, method: str, /, **arguments: Any) -> Any: ...

    @abstractmethod
    def resolve_path(self, path: str) -> str: ...

    @abstractmethod
    async def write_file(self, path: str, content: bytes | str, **metadata: Any) -> bool: ...

    async def batch_create_files(self, file_specs: Sequence[Mapping[str, Any]]) -> list[BatchResult]:
        """Files from {"path", "content", "metadata"}; each by itself, in order."""
        items = []
        for spec in file_specs:
            if not isinstance(spec, Mapping) or "path" not in spec:
                raise InvalidArgumentError(f"a file of a batch is a mapping with at least 'path', not {spec!r}")
            content = spec.get("content", spec.get("data", b""))
            items.append((spec["path"], content, spec.get("metadata"), spec.get("mime_type")))
        return await self._batch_write("create", items)

    async def batch_write_files(self, file_data: Mapping[str, bytes | str]) -> list[BatchResult]:
        """Files from {path: content}; each by itself, in order."""
        if not isinstance(file_data, Mapping):
            raise InvalidArgumentError(f"a mapping of paths to contents is wanted, not {type(file_data).__name__}")
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
            try:
                data, where = octets(content), self.resolve_path(path)
            except InvalidArgumentError as error:
                await flush()
                results.append(BatchResult(False, operation, False, str(error), 0.0, str(path)))
                continue
            if len(data) > BATCH_BYTES:
                await flush()
                results.append(await self._one(operation, path, data, metadata))
                continue
            if size + len(data) > BATCH_BYTES or len(pack) >= BATCH:
                await flush()
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
        wanted = _several(paths)
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
        wanted = _several(paths)
        results: list[BatchResult] = []
        for at in range(0, len(wanted), BATCH):
            some = wanted[at : at + BATCH]
            done = await self._call("api_batch_remove", paths=[self.resolve_path(path) for path in some])
            results.extend(
                BatchResult(error is None, "delete", error is None, error, ms, path)
                for path, (error, ms) in zip(some, done, strict=True)
            )
        return results


def _several(paths: Iterable[str]) -> list[str]:
    """Errors: InvalidArgumentError for one path alone, whose letters would be taken for paths."""
    if isinstance(paths, str | bytes) or not isinstance(paths, Iterable):
        raise InvalidArgumentError(f"several paths are wanted, not {paths!r}")
    return list(paths)
