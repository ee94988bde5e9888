"""Registration: an upload's bytes become the content of a new BLOB.

Their hashes are computed first, while nobody sees anything; then the BLOB is made, and the record names it before it
gets its content; with that, one commit says that the upload is done.  Whatever fails in between takes the BLOB back.

Bytes that came to the endpoint are not copied: the file becomes the BLOB's object, under a second name until the upload
is deleted.  Those in a provider are copied within it, on the condition that their ETag is still what it was when they
were looked at: the URL that they came through goes on working.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import anyio
from anyio import to_thread

from artfs.errors import ArtfsError, BusyError, InvalidError, NotFoundError
from artfs.objects import Info
from artfs.store.exact import Digests, chunks_of, digest_file, fill
from artfs.store.spool import Part
from artfs.store.upload_records import (
    DONE,
    OPEN,
    REGISTERING,
    Record,
    Records,
    SigningProvider,
    check_parts,
    check_whole,
    disk_errors,
)
from artfs.store.urls import WHOLE
from artfs.together import all_at_once
from artfs.types import NamespaceType
from artfs.volume.catalogue import Namespace
from artfs.volume.volume import Volume
from artfs.volume.waiting import run

log = logging.getLogger(__name__)

PIECE = 8 << 20
"""Of what is read from a provider at once, and"""
PIECES = 4
"""how many of those."""

Make = Callable[[], Awaitable[Namespace]]
"""Makes the BLOB, empty, in the home that the upload was begun for."""
Ready = Callable[[Namespace], None] | None
"""Called when the BLOB has its content; what it does is committed with that."""


class Registering(Records):
    async def register(
        self, id: str, make: Make, *, size: int | None = None, etag: str | None = None, ready: Ready = None
    ) -> Namespace:
        """What was uploaded becomes the content of the BLOB that `make` makes; `size` and `etag` are what the caller
        expects of it.  On failure there is no BLOB, and the upload is as it was.
        Errors: NotFoundError (nothing was uploaded), ExpiredError, InvalidError (another size, another etag, another
        home), BusyError; as `make`; as the provider."""
        record = await self.find(id)
        if record.parts:
            raise InvalidError(f"upload {id} has parts: complete it")
        with self.claim(record):
            provider = self.provider(record)
            if provider is not None:
                info = await self._come(provider, record)
                check_whole(id, (info.size, info.etag), size, etag)
                return await self._from_provider(provider, record, info, make, ready)
            part = self.spool.parts(id).get(WHOLE)
            if part is None:
                raise _nothing(record)
            check_whole(id, (part.size, part.etag), size, etag)
            return await self._from_spool(record, part, make, ready)

    async def complete(self, id: str, parts: Sequence[tuple[int, str]], make: Make, ready: Ready = None) -> Namespace:
        """The parts, (number, etag) each, become one BLOB, in the order of their numbers; those that are not given are
        left out.  All but the last have 5 MiB or more.
        Errors: InvalidError (a part that has not come, another etag, too small), and as `register`."""
        record = await self.find(id)
        if not record.parts:
            raise InvalidError(f"upload {id} has no parts: register it")
        with self.claim(record):
            provider = self.provider(record)
            if provider is None:
                wanted = check_parts(parts, await self.parts(id))
                return await self._from_spool(record, await self._joined(record, wanted), make, ready)
            if record.remote:
                wanted = check_parts(parts, await self.parts(id))
                with anyio.CancelScope(shield=True):
                    await provider.complete_parts(record.name, record.remote, wanted)
                    record = replace(record, remote="")
                    await self.set(record)
            return await self._from_provider(provider, record, await self._come(provider, record), make, ready)

    async def _joined(self, record: Record, wanted: Sequence[tuple[int, str]]) -> Part:
        found = self.spool.parts(record.id)
        chosen = [found[number] for number, _ in wanted]
        with disk_errors():
            return chosen[0] if len(chosen) == 1 else await self.spool.join(record.id, chosen)

    # from the endpoint
    async def _from_spool(self, record: Record, part: Part, make: Make, ready: Ready) -> Namespace:
        with disk_errors():
            fd = part.open()
            try:
                digests = await digest_file(fd, part.size, self.store.settings.block_size)
                namespace = await make()
                async with self._or_nothing(record, namespace):
                    number = self._number(namespace)
                    with self.making.keep(number):
                        if part.size:
                            source = part.path if part.path is not None else fd
                            await to_thread.run_sync(self.store.shard.objects.adopt, number, source, part.size)
                        await self._content(record, namespace, number, digests, ready)
            finally:
                os.close(fd)
        await self._done(record)
        return namespace

    def _number(self, namespace: Namespace) -> int:
        """Of the object that its content will be."""
        return self.store.shard.objects.allocate(Volume(self.store.shard, namespace).tree.serial)

    # from a provider
    async def _come(self, provider: SigningProvider, record: Record) -> Info:
        try:
            return await provider.head(record.name)
        except NotFoundError as error:
            raise _nothing(record) from error

    async def _from_provider(
        self, provider: SigningProvider, record: Record, info: Info, make: Make, ready: Ready
    ) -> Namespace:
        digests = await self._digests(provider, record, info.size)
        namespace = await make()
        async with self._or_nothing(record, namespace):
            number = self._number(namespace)
            with self.making.keep(number):
                if info.size:
                    name = self.store.shard.remote.name(number)
                    await provider.copy(record.name, name, etag=info.etag)
                    if (await provider.head(name)).size != info.size:
                        raise BusyError(f"upload {record.id} changed while it was registered; register it again")
                await self._content(record, namespace, number, digests, ready)
        await self._done(record)
        return namespace

    async def _digests(self, provider: SigningProvider, record: Record, size: int) -> list[tuple[int, bytes]]:
        digests = Digests(self.store.settings.block_size)
        for start in range(0, size, PIECE * PIECES):
            offsets = range(start, min(start + PIECE * PIECES, size), PIECE)
            found: dict[int, bytes] = {}

            async def fetch(offset: int, found: dict[int, bytes]) -> None:
                found[offset] = await provider.get(record.name, offset, min(PIECE, size - offset))

            await all_at_once([partial(fetch, offset, found) for offset in offsets])
            for offset in offsets:
                await to_thread.run_sync(digests.add, found[offset])
        return digests.finish()

    # both
    async def _content(
        self, record: Record, namespace: Namespace, number: int, digests: Sequence[tuple[int, bytes]], ready: Ready
    ) -> None:
        with anyio.CancelScope(shield=True):
            volume = Volume(self.store.shard, namespace)  # nobody closes its tree meanwhile
            await fill(volume.tree, chunks_of(number, digests))
            if ready is not None:
                await run(ready, namespace)
            await self.set(replace(record, state=DONE))

    @asynccontextmanager
    async def _or_nothing(self, record: Record, namespace: Namespace) -> AsyncIterator[None]:
        """The upload and its BLOB, which has just been made; on any failure it goes.  Errors: InvalidError."""
        try:
            if namespace.type is not NamespaceType.BLOB:
                raise InvalidError("an upload becomes a BLOB; make one")
            if record.provider and (namespace.provider, namespace.codec) != (record.provider, ""):
                raise InvalidError(f"upload {record.id} is in {record.provider}: its BLOB must live there, too")
            if namespace.block_size != self.store.settings.block_size:
                raise InvalidError("the BLOB's blocks have another size than the store's")
            await self.set(replace(record, state=REGISTERING, namespace=namespace.id))
            yield
        except BaseException:
            await self.take_back(record, namespace)
            raise

    async def take_back(self, record: Record, namespace: Namespace) -> None:
        """The upload is open again, and nothing came of it."""
        with anyio.CancelScope(shield=True):
            try:
                await self.store.destroy_namespace(namespace, for_good=True)
            except NotFoundError:
                pass
            except (ArtfsError, OSError) as error:
                log.error("%s, of an upload that failed, cannot be deleted: %s", namespace.grid_path, error)
                return  # the record names it still: the next process tries again
            try:
                await self.set(replace(record, state=OPEN, namespace=""))
            except (ArtfsError, OSError) as error:
                log.error("upload %s: its record cannot be written: %s", record.id, error)

    async def _done(self, record: Record) -> None:
        """Delete the bytes that the upload does not need any more; what stays goes at the end of its window."""
        with anyio.CancelScope(shield=True):
            try:
                await self.delete(replace(record, remote=""))
            except (ArtfsError, OSError) as error:
                log.warning("upload %s cannot be deleted yet: %s", record.id, error)


def _nothing(record: Record) -> NotFoundError:
    return NotFoundError(f"upload {record.id}: nothing was uploaded; PUT the bytes to its URL, then register it")
