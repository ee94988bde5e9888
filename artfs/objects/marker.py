"""Whose a provider's place is: the object `artfs-store.json` at its root.

It names the store (`uuid`) and its *generation*: 0 for the store that `artfs init` made; each recovery onto another
machine takes a higher one, by a random step, so that two recoveries at once never take the same.  The higher generation
owns the place: a host that finds a higher one than its own stops writing there, one that finds a lower one puts its
own.  So the host that was given up, should it come back, overwrites nothing of the one that took over.

The object is JSON with blanks at its end, always `SIZE` bytes, so that one request reads it.  It is never compressed
or encrypted: it is to be read before anything is known.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from shlex import quote
from typing import cast

from artfs.errors import BusyError, DamagedError, ExistsError, FormatError, InvalidError, NotFoundError
from artfs.objects import Provider

NAME = "artfs-store.json"
FORMAT = 1
SIZE = 512
STEP = 1 << 20
PREFIXES = ("grid/", "meta/", "upload/")
"""Where a store keeps objects; a place without a marker that has some belongs to somebody unknown."""


@dataclass(frozen=True, slots=True)
class Marker:
    """`created`: nanoseconds since 1970, of this object."""

    uuid: str
    generation: int
    created: int
    format: int = FORMAT

    def pack(self) -> bytes:
        return json.dumps(asdict(self)).encode().ljust(SIZE)


def parse(data: bytes, url: str) -> Marker:
    """Errors: DamagedError, FormatError."""
    try:
        fields = json.loads(data)
        if int(fields["format"]) > FORMAT:
            raise FormatError(f"{url} was written by a newer artfs (format {fields['format']}): upgrade artfs")
        return Marker(str(fields["uuid"]), int(fields["generation"]), int(fields["created"]), int(fields["format"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"{NAME} in {url} cannot be read ({error}): if no store uses this place any more, delete that object"
        ) from None


async def read(provider: Provider) -> Marker | None:
    """None: there is none.  Errors: DamagedError, FormatError, UnavailableError."""
    try:
        size = (await provider.head(NAME)).size
        return parse(await provider.get(NAME, 0, min(size, 1 << 16)), provider.url)
    except NotFoundError:
        return None


async def claim(provider: Provider, uuid: str, generation: int, *, known: bool = False) -> None:
    """Make the place this store's, or see that it is; `known`: it has been before.  Errors: InvalidError if it is
    somebody else's, or is not what it was, BusyError if the store was recovered elsewhere, FormatError, DamagedError,
    and what the provider says."""
    found = await read(provider)
    if found is None:
        name = await _any_object(provider)
        if name is not None:
            raise InvalidError(
                f"{provider.url} holds objects of a store that cannot be told ({name}, but no {NAME}): choose "
                f"another prefix, or bring that store back with `artfs recover {quote(provider.url)}`"
            )
        if known:
            raise InvalidError(
                f"{provider.url} is empty, but this store keeps objects there: see that it is the right place, and that"
                f" its disk is mounted; nothing is written there"
            )
        try:
            await provider.create(NAME, Marker(uuid, generation, time.time_ns()).pack())
            return
        except ExistsError:  # somebody else just now; or this store, by an attempt whose answer was lost
            found = await read(provider)
    await _judge(provider, found, uuid, generation)


async def _any_object(provider: Provider) -> str | None:
    for prefix in PREFIXES:
        async with aclosing(cast(AsyncGenerator[tuple[str, int], None], provider.list(prefix))) as listing:
            async for name, _ in listing:
                return name
    return None


async def check(provider: Provider, uuid: str, generation: int) -> None:
    """That the place is still this store's: one request.  Errors: as `claim`."""
    try:
        found = parse(await provider.get(NAME, 0, SIZE), provider.url)
    except NotFoundError:
        found = None
    await _judge(provider, found, uuid, generation)


async def take_over(provider: Provider, uuid: str, generation: int) -> int:
    """A recovery makes the place its own.  `generation`: the highest that it knows of; returns its own, higher one."""
    found = await read(provider)
    if found is not None:
        if found.uuid != uuid:
            raise DamagedError(f"{provider.url} belongs to store {found.uuid}, but its metadata to store {uuid}")
        generation = max(generation, found.generation)
    generation += 1 + secrets.randbelow(STEP)
    await provider.put(NAME, Marker(uuid, generation, time.time_ns()).pack())
    return generation


async def _judge(provider: Provider, found: Marker | None, uuid: str, generation: int) -> None:
    if found is None:
        raise InvalidError(
            f"{NAME} has gone from {provider.url}: something else empties this place; nothing more is written there "
            f"until the store is opened anew, at a place of its own"
        )
    if found.uuid != uuid:
        raise InvalidError(
            f"{provider.url} belongs to another store ({found.uuid}, this one is {uuid}): choose another prefix, or "
            f"bring that store to this machine with `artfs recover {quote(provider.url)}`"
        )
    if found.generation > generation:
        raise BusyError(
            f"the store was recovered elsewhere from {provider.url} (generation {found.generation}, here it is "
            f"{generation}): use it there, or recover it again into an empty root with "
            f"`artfs recover {quote(provider.url)}`; this copy writes nothing there any more"
        )
    if found.generation < generation:
        await provider.put(NAME, Marker(uuid, generation, time.time_ns()).pack())
