"""A provider whose objects are compressed or encrypted in another one, frame by frame (`artfs.objects.frames`).

Callers see plain bytes and plain sizes; etags and times are the inner provider's.  A range costs one request for its
frames, and one before for where they are (the *layout*), which is remembered for the objects used last.  Objects are
encoded in memory if they are small, else into a file without a name, so that a crash leaves nothing; memory does not
grow with their size.

An object is bound to its name: `copy` reads, decodes and encodes again.  Somebody else may replace an object whose
layout is remembered: what then fails its check is read once more, layout first.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, BinaryIO

from anyio import Event, to_thread

from artfs.errors import BusyError, DamagedError, NoSpaceError, UnavailableError
from artfs.objects import Capabilities, Info, Provider, check_name
from artfs.objects.frames import FRAME, Encoder, Form, Layout

BATCH = 16
"""Frames that are encoded at once, in one thread."""

IN_MEMORY = 8 << 20
"""Bytes of an object up to which no file is needed."""

LAYOUTS = 8 << 20
"""Bytes of layouts that are remembered."""

Plain = Callable[[int, int], Awaitable[bytes]]
"""The plain bytes from the first number up to the second one; it is asked for all, in order."""


class FramedProvider:
    """See `artfs.objects.Provider`; besides, DamagedError for what fails its check, DeniedError for another key, both
    with the object's name.  `scratch`: where files without a name are made, else beside the source.

    Errors of the constructor: InvalidError."""

    def __init__(self, inner: Provider, codec: str, key: bytes | None, scratch: Path | None = None) -> None:
        self.inner = inner
        self.form = Form(codec, key)
        self.url = inner.url
        self.capabilities = Capabilities(adopts=False, durable=inner.capabilities.durable)
        self.scratch = scratch
        self._layouts: OrderedDict[str, tuple[Layout, str | None]] = OrderedDict()
        self._weight = 0
        self._fetching: dict[str, Event] = {}

    async def check(self) -> None:
        await self.inner.check()

    # writing
    async def put(self, name: str, source: Path | bytes) -> None:
        check_name(name)
        if isinstance(source, bytes):
            await self._put_bytes(name, source, self.inner.put)
            return
        file = await to_thread.run_sync(_open_source, name, source)
        try:
            size = os.fstat(file.fileno()).st_size

            async def plain(start: int, end: int) -> bytes:
                return await to_thread.run_sync(_read_source, name, file, end - start)

            await self._put_stream(name, size, plain, self.scratch or source.parent)
        finally:
            file.close()

    async def create(self, name: str, data: bytes) -> None:
        await self._put_bytes(check_name(name), data, self.inner.create)

    async def copy(self, source: str, target: str, etag: str | None = None) -> None:
        check_name(target)
        info = await self.head(source)
        if etag is not None and info.etag != etag:
            raise BusyError(f"object {source} has changed: its etag is {info.etag}, no longer {etag}")
        if source == target:
            return

        async def plain(start: int, end: int) -> bytes:
            data = await self.get(source, start, end - start)
            if end == info.size and (await self.inner.head(source)).etag != info.etag:
                raise BusyError(f"object {source} has changed while it was copied")
            return data

        await self._put_stream(target, info.size, plain, self.scratch)

    async def _put_bytes(self, name: str, data: bytes, put: Callable[[str, bytes], Awaitable[None]]) -> None:
        encoder = Encoder(self.form, name, len(data))

        def encode() -> bytes:
            frames = [encoder.add(frame) for frame in _frames(data)]
            return b"".join((encoder.opening(), *frames))

        encoded = await to_thread.run_sync(encode)
        self._forget(name)
        await put(name, encoded)
        self._remember(name, encoder.layout(), None)

    async def _put_stream(self, name: str, size: int, plain: Plain, scratch: Path | None) -> None:
        """Errors: also those of `plain`, and NoSpaceError, UnavailableError for what is in `scratch`."""
        encoder = Encoder(self.form, name, size)

        def begin() -> IO[bytes]:
            with _scratch_errors(name, scratch):
                file = BytesIO() if size <= IN_MEMORY else TemporaryFile(dir=scratch)  # noqa: SIM115 (closed below)
                file.seek(encoder.start)
                return file

        def add(data: bytes) -> None:
            with _scratch_errors(name, scratch):
                file.writelines(encoder.add(frame) for frame in _frames(data))

        def end() -> Path | bytes:
            with _scratch_errors(name, scratch):
                file.seek(0)
                file.write(encoder.opening())
                file.flush()
                return file.getvalue() if isinstance(file, BytesIO) else Path(f"/proc/self/fd/{file.fileno()}")

        file = await to_thread.run_sync(begin)
        try:
            for start in range(0, size, BATCH * FRAME):
                await to_thread.run_sync(add, await plain(start, min(start + BATCH * FRAME, size)))
            encoded = await to_thread.run_sync(end)
            self._forget(name)
            await self.inner.put(name, encoded)
        finally:
            file.close()
        self._remember(name, encoder.layout(), None)

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self._forget(name)
        await self.inner.delete(names)

    # reading
    async def get(self, name: str, offset: int, length: int) -> bytes:
        known = check_name(name) in self._layouts
        try:
            return await self._get(name, offset, length)
        except (DamagedError, _PastEnd):
            if not known:
                raise
        self._forget(name)
        return await self._get(name, offset, length)

    async def _get(self, name: str, offset: int, length: int) -> bytes:
        layout = await self._layout(name)
        end = offset + length
        if end > layout.size:
            raise _PastEnd(f"object {name} ends before {end}")
        frames = layout.frames_of(offset, length)
        if not frames:
            return b""
        start = layout.start(frames.start)
        stored = await self._stored(name, start, layout.start(frames.stop) - start)

        def decode() -> bytes:
            plain = layout.open(frames, stored)
            plain[-1] = plain[-1][: end - (frames.stop - 1) * layout.frame]
            plain[0] = plain[0][offset - frames.start * layout.frame :]
            return b"".join(plain)

        return await to_thread.run_sync(decode)

    async def _stored(self, name: str, offset: int, length: int) -> bytes:
        """Errors: DamagedError if the object is too short for that."""
        try:
            return await self.inner.get(name, offset, length)
        except UnavailableError as error:
            if (await self.inner.head(name)).size < offset + length:
                raise DamagedError(f"object {name} is damaged: it ends before {offset + length}") from error
            raise

    async def _layout(self, name: str) -> Layout:
        """The remembered one, or fetched; by one task at a time."""
        while (found := self._layouts.get(name)) is None:
            fetching = self._fetching.get(name)
            if fetching is not None:
                await fetching.wait()
                continue
            done = self._fetching[name] = Event()
            try:
                layout = await self._fetched(name)
                self._remember(name, layout, None)
                return layout
            finally:
                del self._fetching[name]
                done.set()
        self._layouts.move_to_end(name)
        return found[0]

    async def _fetched(self, name: str) -> Layout:
        first = self.form.opening_size(0)
        data = await self._stored(name, 0, first)
        needed = Layout.needs(self.form, name, data)
        if needed > first:
            if (await self.inner.head(name)).size < needed:
                raise DamagedError(f"object {name} is damaged: it ends before {needed}")
            data += await self._stored(name, first, needed - first)
        return await to_thread.run_sync(Layout.read, self.form, name, data)

    async def head(self, name: str) -> Info:
        info = await self.inner.head(name)
        while True:
            layout, etag = self._layouts.get(name, (None, None))
            if layout is None or etag != info.etag:
                self._forget(name)
                layout = await self._layout(name)
            now = info if etag == info.etag else await self.inner.head(name)
            if now == info:
                break
            info = now
        if layout.stored != info.size:
            raise DamagedError(f"object {name} is damaged: it has {info.size} bytes, not {layout.stored}")
        self._remember(name, layout, info.etag)
        return Info(layout.size, info.etag, info.modified)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """The sizes are plain ones unless objects are compressed; then, what they take in the inner provider."""
        async for name, size in self.inner.list(prefix):
            yield name, size if self.form.compresses else self.form.plain_size(size)

    async def tidy(self, before: float) -> int:
        return await self.inner.tidy(before)

    async def close(self) -> None:
        await self.inner.close()

    # layouts
    def _remember(self, name: str, layout: Layout, etag: str | None) -> None:
        """`etag`: of the object that certainly has it, if that is known."""
        self._forget(name)
        self._layouts[name] = (layout, etag)
        self._weight += layout.weight
        while self._weight > LAYOUTS:
            self._forget(next(iter(self._layouts)))

    def _forget(self, name: str) -> None:
        if (found := self._layouts.pop(name, None)) is not None:
            self._weight -= found[0].weight


class _PastEnd(UnavailableError):
    """Of the object as it was when its layout was read."""


def _frames(data: bytes) -> Iterator[bytes]:
    return (data[at : at + FRAME] for at in range(0, len(data), FRAME))


def _open_source(name: str, source: Path) -> BinaryIO:
    try:
        return source.open("rb", buffering=0)
    except OSError as error:
        raise UnavailableError(f"object {name} cannot be read from {source}: {error.strerror}") from error


def _read_source(name: str, file: BinaryIO, length: int) -> bytes:
    data = b""
    try:
        while len(data) < length and (more := file.read(length - len(data))):
            data += more
    except OSError as error:
        raise UnavailableError(f"object {name} cannot be read: {error.strerror}") from error
    if len(data) < length:
        raise UnavailableError(f"object {name} became shorter while it was read")
    return data


@contextmanager
def _scratch_errors(name: str, scratch: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{scratch or gettempdir()}: object {name} cannot be encoded there"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"{where}, the disk is full; free some space") from error
        raise UnavailableError(f"{where}: {error.strerror}") from error
