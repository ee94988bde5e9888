"""Uploads through signed URLs, which become BLOBs when they are registered (`artfs.store.registering`).

An upload is begun, and gets its bytes by PUT, all in one or in parts.  They go straight to the provider, as object
`upload/<id>`, where that signs URLs and keeps bytes as they are; else to the endpoint, which puts them into the
`Spool`.  A PUT counts when it is whole and on the disk; the last of a part counts.

What nobody registered within its window is deleted.  A URL of a provider cannot be revoked: what comes through it after
the upload has ended is deleted at the end of the window.
"""

from __future__ import annotations

import logging
from base64 import b64decode
from binascii import Error as BinasciiError
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from math import isfinite
from time import time_ns
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
from anyio import to_thread

from artfs.durable import sync_directory
from artfs.errors import ArtfsError, BusyError, DeniedError, ExistsError, InvalidError, NotFoundError
from artfs.objects import Home
from artfs.store.connection import Reply, Request, problem
from artfs.store.exact import Making
from artfs.store.registering import Registering
from artfs.store.spool import Incoming
from artfs.store.upload_records import (
    ABORTED,
    KIND,
    NS,
    OPEN,
    PURPOSE,
    REGISTERING,
    Record,
    disk_errors,
    signing,
)
from artfs.store.urls import WHOLE, WRITE, Signed, check_id, check_part, check_type

if TYPE_CHECKING:
    from artfs.store.store import Store

log = logging.getLogger(__name__)

TTL = 24 * 3600.0
"""Seconds that an upload is kept for."""
PART_LIMIT = 5 << 30
SIZE_LIMIT = 5 << 40
BUFFER = 1 << 20

MakeUrl = Callable[[Signed], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Upload:
    """`url`: where its bytes go by PUT; empty if it has parts.  `expires`: when it is deleted, in nanoseconds since
    1970."""

    id: str
    url: str
    expires: int


class Uploads(Registering):
    """Calls wait until `recover` has ended.  REQUIRES: all on the store's loop."""

    def __init__(self, store: Store, making: Making, url: MakeUrl) -> None:
        super().__init__(store, making)
        self._url = url
        self.arrived: Callable[[str], Awaitable[None]] | None = None
        """Called when the endpoint has all bytes of an upload without parts."""

    async def recover(self) -> None:
        """Take back what an earlier process did not finish."""
        alive = {id for id, record in self.records.items() if record.state in (OPEN, REGISTERING)}
        await to_thread.run_sync(self.spool.load, alive)
        for record in [record for record in self.records.values() if record.state == REGISTERING]:
            namespace = self.store.catalogue.by_id.get(record.namespace)
            if namespace is not None:
                await self.take_back(record, namespace)
            else:
                await self.set(replace(record, state=OPEN, namespace=""))
        self.recovered.set()

    def served(self) -> bool:
        """Whether somebody may come to the endpoint with a URL of an upload."""
        return any(not r.provider and r.state == OPEN and r.until > time_ns() for r in self.records.values())

    # beginning
    async def presign(
        self,
        *,
        expires: float = 3600,
        mime: str | None = None,
        home: Home | None = None,
        ttl: float = TTL,
        id: str | None = None,
    ) -> Upload:
        """A URL that takes the bytes of one BLOB by PUT for `expires` seconds (at most for `ttl`); with `mime` the
        client must send that Content-Type.  `home`: that of the BLOB to be.
        Errors: InvalidError, ExistsError (the id); as the provider."""
        positive(expires)
        record = await self._begin(False, mime, home, ttl, id)
        return Upload(record.id, await self._put_url(record, WHOLE, expires), record.until)

    async def begin(
        self, *, mime: str | None = None, home: Home | None = None, ttl: float = TTL, id: str | None = None
    ) -> Upload:
        """An upload in parts, each of which has a URL of its own (`sign_part`).  Errors: as `presign`."""
        record = await self._begin(True, mime, home, ttl, id)
        return Upload(record.id, "", record.until)

    async def _begin(self, parts: bool, mime: str | None, home: Home | None, ttl: float, id: str | None) -> Record:
        id = check_id(id if id is not None else f"up-{uuid4().hex}")
        await self.wait_recovered()
        if id in self.records:
            raise ExistsError(f"upload {id} exists already; choose another id")
        now = time_ns()
        record = Record(id, now, now + int(positive(ttl) * NS), parts, mime=check_type(mime))
        with self.claim(record):
            provider = None
            if home is not None:
                await self.store.use_provider(home)
                provider = signing(self.store, home)
            if home is None or provider is None:
                await self.set(record)
                return record
            # What it began there must be known here, or nobody would ever end it.
            with anyio.CancelScope(shield=True):
                remote = await provider.begin_parts(record.name, mime=mime) if parts else ""
                record = replace(record, provider=home.provider, remote=remote)
                try:
                    await self.set(record)
                except BaseException:
                    await self.delete(record)
                    raise
        return record

    async def sign_part(self, id: str, number: int, *, expires: float = 3600) -> str:
        """Where part `number` (1 to 10 000) goes by PUT.  Errors: InvalidError, NotFoundError, ExpiredError."""
        check_part(number)
        positive(expires)
        record = await self.find(id)
        if not record.parts:
            raise InvalidError(f"upload {id} has no parts; PUT all of it to its URL")
        return await self._put_url(record, number, expires)

    async def _put_url(self, record: Record, number: int, expires: float) -> str:
        last = min(time_ns() + int(expires * NS), record.until)
        provider = self.provider(record)
        if provider is None:
            return await self._url(Signed(WRITE, record.id, last // NS, number, "" if number else record.mime))
        seconds = max((last - time_ns()) // NS, 1)
        if number:
            return await provider.sign_part(record.name, record.remote, number, seconds)
        return await provider.sign_put(record.name, seconds, mime=record.mime or None)

    # the endpoint
    async def receive(self, signed: Signed, request: Request) -> Reply:
        """A PUT.  Errors: NotFoundError, ExpiredError, BusyError, DeniedError, InvalidError, NoSpaceError, Aborted."""
        record = self._taking(signed)
        if signed.type and request.headers.get("content-type", "") != signed.type:
            raise DeniedError(f"this URL takes Content-Type {signed.type} only; send that")
        if "content-range" in request.headers:
            raise InvalidError("a PUT is the whole; leave Content-Range out")
        limit = PART_LIMIT if signed.part else SIZE_LIMIT
        if (request.length or 0) > limit:
            return problem(413, f"at most {limit} bytes can be uploaded here")
        with disk_errors():
            incoming = await to_thread.run_sync(self.spool.begin, record.id)
            try:
                await _take(incoming, request, limit)
                self._taking(signed)
                part = self.spool.keep(record.id, signed.part, incoming)
            except BaseException:
                incoming.discard()
                raise
            if part.path is not None:
                await to_thread.run_sync(sync_directory, part.path.parent)
        if self.arrived is not None and not record.parts:
            await self.arrived(record.id)
        return Reply(200, {"ETag": f'"{part.etag}"'})

    def _taking(self, signed: Signed) -> Record:
        record = self.live(signed.id)
        if record.provider or record.parts != bool(signed.part):
            raise NotFoundError("there is nothing here; use the whole URL as it was given")
        if record.id in self.busy:
            raise BusyError(f"upload {record.id} is being registered: it takes no more bytes")
        return record

    # ends
    async def abort(self, id: str) -> None:
        """Nothing of it is left, and its URLs are dead.  Errors: NotFoundError, ExpiredError, BusyError."""
        record = await self.find(id)
        with self.claim(record), anyio.CancelScope(shield=True):
            await self.delete(record)
            await self.set(replace(record, state=ABORTED))

    async def reap(self) -> int:
        """Delete the uploads whose window is over; returns how many.  What fails is tried the next time."""
        count = 0
        if not self.recovered.is_set():
            return count
        for record in [record for record in self.records.values() if record.until <= time_ns()]:
            if record.id in self.busy:
                continue
            with self.claim(record), anyio.CancelScope(shield=True):
                try:
                    await self.delete(record)
                except (ArtfsError, OSError) as error:
                    log.warning("upload %s cannot be deleted yet: %s", record.id, error)
                    continue
                del self.records[record.id]
                self.store.catalogue.records[KIND, record.id] = None
                self.store.catalogue.records[PURPOSE, record.id] = None
                count += 1
        return count


async def _take(incoming: Incoming, request: Request, limit: int) -> None:
    """All of the request's body, on the disk.  Errors: Aborted, InvalidError, OSError."""
    buffer = bytearray()
    size = 0
    async for data in request.body():
        buffer += data
        size += len(data)
        if size > limit:
            raise InvalidError(f"at most {limit} bytes can be uploaded here")
        if len(buffer) >= BUFFER:
            await to_thread.run_sync(incoming.write, buffer)
            buffer = bytearray()
    await to_thread.run_sync(incoming.write, buffer)
    wanted = request.headers.get("content-md5")
    if wanted is not None:
        try:
            same = b64decode(wanted, validate=True) == incoming.digest
        except (BinasciiError, ValueError):
            same = False
        if not same:
            raise InvalidError("Content-MD5 is not that of the bytes that came; send them again")
    await to_thread.run_sync(incoming.sync)


def positive(seconds: float) -> float:
    """Errors: InvalidError."""
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not isfinite(seconds)
        or not 0 < seconds < 10**9
    ):
        raise InvalidError(f"{seconds!r} seconds are no time for which something may be valid; give more than 0")
    return seconds
