"""What calls of the virtual file system answer and take: results of batches, descriptions of files, streams."""

from __future__ import annotations

import inspect
import posixpath
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any

Progress = Callable[[int, int | None], Awaitable[None] | None]
"""Called with (bytes done, bytes in all, if known); plain or async."""
OCTETS = "application/octet-stream"


@dataclass(slots=True)
class BatchResult:
    """How one operation of a batch went; `result` is what the call by itself would have returned."""

    success: bool
    operation: str
    result: Any = None
    error: str | None = None
    duration_ms: float = 0.0
    path: str = ""


@dataclass(slots=True)
class NodeInfo:
    """A file or directory.  Times are ISO 8601 in UTC; `permissions` octal; `sha256` None: nobody knows it;
    `provider`: as `get_provider_name` calls it."""

    name: str
    is_dir: bool
    parent_path: str = "/"
    size: int = 0
    mime_type: str = OCTETS
    created_at: str | None = None
    modified_at: str | None = None
    accessed_at: str | None = None
    permissions: str = "644"
    owner: str | None = None
    group: str | None = None
    sha256: str | None = None
    provider: str | None = None
    custom_meta: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.get_path()

    @property
    def is_file(self) -> bool:
        return not self.is_dir

    def get_path(self) -> str:
        return posixpath.join(self.parent_path, self.name) if self.name else "/"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


async def parts_of_stream(stream: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    if isinstance(stream, AsyncGenerator):
        async with aclosing(stream):
            async for part in stream:
                yield part
    elif isinstance(stream, AsyncIterable):
        async for part in stream:
            yield part
    elif isinstance(stream, bytes | bytearray | memoryview):
        yield bytes(stream)
    else:
        for part in stream:
            yield part


async def tell(callback: Progress | None, done: int, total: int | None) -> None:
    if callback is not None:
        told = callback(done, total)
        if inspect.isawaitable(told):
            await told
