"""The state of uploads: records, and what every step of one checks first.

    open → registering → done          after a crash or a failure while it is registering: open again, the BLOB is gone
    open → aborted

A record (kind `upload`) outlives the bytes until the window ends, so that a URL that is late is told so.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import time_ns
from typing import TYPE_CHECKING, Protocol, cast

import anyio
from anyio import to_thread

from artfs.errors import (
    ArtfsError,
    BusyError,
    ExpiredError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from artfs.objects import Home, Provider, Signer
from artfs.store.exact import Making
from artfs.store.ranges import bare
from artfs.store.spool import Spool
from artfs.store.urls import check_part

if TYPE_CHECKING:
    from artfs.store.store import Store

log = logging.getLogger(__name__)

KIND = "upload"
PURPOSE = "artifact-upload"
"""The kind of records of what uploads are to become: see `artfs.store.artifact_transfers`."""
PART_MIN = 5 << 20
NS = 10**9
PATIENCE = 10.0
"""Seconds that a call waits for what must run before it."""
OPEN, REGISTERING, DONE, ABORTED = "open", "registering", "done", "aborted"


class SigningProvider(Provider, Signer, Protocol):
    """One with `Capabilities.signs`."""


@dataclass(frozen=True, slots=True)
class Record:
    """`parts`: it comes in parts; `provider`: where they go, empty for the endpoint; `remote`: what the provider calls
    an upload in parts, empty once they are one object; `namespace`: what it becomes, while it is registered.  Times are
    nanoseconds since 1970."""

    id: str
    created: int
    until: int
    parts: bool
    provider: str = ""
    remote: str = ""
    mime: str = ""
    state: str = OPEN
    namespace: str = ""

    @property
    def name(self) -> str:
        """Of its object in the provider."""
        return f"upload/{self.id}"


class Records:
    def __init__(self, store: Store, making: Making) -> None:
        self.store = store
        self.spool = Spool(store.root / "uploads" if store.root is not None else None)
        self.records: dict[str, Record] = {}
        self.making = making
        self.busy: set[str] = set()
        self.recovered = anyio.Event()
        for id, document in store.shard.engine.records(KIND).items():
            self.records[id] = Record(**json.loads(document))

    async def find(self, id: str) -> Record:
        """As `live`.  Errors: also UnavailableError."""
        await self.wait_recovered()
        return self.live(id)

    async def wait_recovered(self) -> None:
        """What an earlier process left is known, so that it cannot be taken for ours.  Errors: UnavailableError."""
        with anyio.move_on_after(PATIENCE):
            await self.recovered.wait()
            return
        raise UnavailableError("uploads of an earlier process are still being looked at; try again later")

    def live(self, id: str) -> Record:
        """Errors: NotFoundError, ExpiredError."""
        record = self.records.get(id)
        if record is None:
            raise NotFoundError(f"there is no upload {id!r}; begin another")
        if record.state in (DONE, ABORTED):
            raise ExpiredError(f"upload {id} was {self.ended(id)} already")
        if record.until <= time_ns():
            raise ExpiredError(f"upload {id} has expired; begin another")
        return record

    def ended(self, id: str) -> str:
        """What became of an upload: `registered`, `aborted`; empty as long as nothing has, and when it is forgotten."""
        record = self.records.get(id)
        return {DONE: "registered", ABORTED: "aborted"}.get(record.state, "") if record is not None else ""

    @contextmanager
    def claim(self, record: Record) -> Iterator[None]:
        """Nobody else changes it meanwhile.  Errors: BusyError."""
        if record.id in self.busy:
            raise BusyError(f"upload {record.id} is being registered, or ended; try again later")
        self.busy.add(record.id)
        try:
            yield
        finally:
            self.busy.discard(record.id)

    async def set(self, record: Record) -> None:
        """Durable when this returns."""
        old = self.records.get(record.id)
        self.records[record.id] = record
        self.store.catalogue.records[KIND, record.id] = json.dumps(asdict(record))
        try:
            await self.store.shard.commit()
        except BaseException:
            if old is None:
                del self.records[record.id]
                self.store.catalogue.records[KIND, record.id] = None
            raise

    def provider(self, record: Record) -> SigningProvider | None:
        """Where its bytes go; None: to the endpoint."""
        return signing(self.store, Home(record.provider)) if record.provider else None

    async def parts(self, id: str) -> list[tuple[int, str, int]]:
        """(number, etag, size) of the parts that have come.  Errors: NotFoundError, ExpiredError."""
        record = await self.find(id)
        provider = self.provider(record)
        if provider is not None:
            return await provider.list_parts(record.name, record.remote) if record.remote else []
        return [(part.number, part.etag, part.size) for part in self.spool.parts(id).values() if part.number]

    async def delete(self, record: Record) -> None:
        """Its bytes.  Errors: as the provider."""
        provider = self.provider(record)
        if provider is None:
            await to_thread.run_sync(self.spool.drop, record.id)
            return
        if record.remote:
            try:
                await provider.abort_parts(record.name, record.remote)
            except NotFoundError:
                pass
        await provider.delete([record.name])


def signing(store: Store, home: Home) -> SigningProvider | None:
    """The provider of that home, if its URLs give the plain bytes.  Errors: as `Providers.get`."""
    if home.codec:
        return None
    provider = store.shard.remote.providers.get(home)
    return cast(SigningProvider, provider) if provider.capabilities.signs else None


def check_whole(id: str, have: tuple[int, str], size: int | None, etag: str | None) -> None:
    """Errors: InvalidError if what was uploaded, (size, etag), is not what is expected."""
    if size is not None and size != have[0]:
        raise InvalidError(f"upload {id} has {have[0]} bytes, not {size}; upload it again")
    if etag is not None and bare(etag) != have[1]:
        raise InvalidError(f'upload {id} has the ETag "{have[1]}", not "{bare(etag)}"; upload it again')


def check_parts(given: Sequence[tuple[int, str]], come: Sequence[tuple[int, str, int]]) -> list[tuple[int, str]]:
    """(number, etag) of each, in order.  Errors: InvalidError."""
    have = {number: (bare(etag), size) for number, etag, size in come}
    wanted = sorted((check_part(number), bare(etag)) for number, etag in given)
    if not wanted:
        raise InvalidError("an upload has one part at least; give the parts, each with its number and ETag")
    for at, (number, etag) in enumerate(wanted):
        if at and wanted[at - 1][0] == number:
            raise InvalidError(f"part {number} is given twice")
        if number not in have:
            raise InvalidError(f"part {number} has not come; PUT it to its URL, then complete again")
        if have[number][0] != etag:
            raise InvalidError(f'part {number} has the ETag "{have[number][0]}", not "{etag}"')
        if have[number][1] < PART_MIN and at < len(wanted) - 1:
            raise InvalidError(f"part {number} has {have[number][1]} bytes: all but the last need {PART_MIN} (5 MiB)")
    return wanted


@contextmanager
def disk_errors() -> Iterator[None]:
    """Errors of the disk become ours."""
    try:
        yield
    except ArtfsError:
        raise
    except OSError as error:
        raise _disk_error(error) from error


def _disk_error(error: OSError) -> ArtfsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError("the store's disk is full; free some space")
    return UnavailableError(f"the store's disk fails: {error}")
