"""The part of a store that knows its providers: where new namespaces live, and whether what they live with is there.

A provider is *used* when this process has seen that it answers, that we may do there what we must, and that its place
is this store's (see `artfs.objects.marker`).  One that was not there at the start is *missing*: it is looked for again,
and until it is found reads come from the cache and uploads are tried as if it were there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import anyio

from artfs.errors import ArtfsError, DeniedError, InvalidError, UnavailableError
from artfs.objects import CODECS, Home
from artfs.settings import Identity, Settings
from artfs.types import NamespaceType, Scope
from artfs.volume.shard import Shard

log = logging.getLogger(__name__)

LOOK_AGAIN = 60.0
"""Seconds between looks at providers that were missing at the start."""


class Homes:
    """`root` None: a store in memory.  `missing`: why a home cannot be used."""

    def __init__(self, root: Path | None, shard: Shard, settings: Settings) -> None:
        self.root = root
        self.shard = shard
        self.catalogue = shard.catalogue
        self.settings = settings
        self.identity: Identity | None = None
        self.generation = int(shard.engine.record("counter", "generation") or 0)
        self.missing: dict[Home, ArtfsError] = {}
        self._used: set[Home] = set()

    def home_for(self, scope: Scope, type: NamespaceType, provider: str | None, compression: str | None) -> Home | None:
        """Of a new namespace; None: the store's own directory.  Errors: InvalidError."""
        settings = self.settings
        url = settings.providers.get(scope, settings.provider) if provider is None else provider
        if not url:
            return None
        if self.root is None:
            raise InvalidError(f"a store in memory keeps its bytes there; open one with a root to use {url}")
        compression = settings.compression if compression is None else compression
        if type is NamespaceType.BLOB:
            compression = ""
        codec = "+".join(filter(None, (compression, "aes" if settings.encryption_key else "")))
        if codec not in CODECS:
            raise InvalidError(f"there is no compression {compression!r}; use zstd, or leave it out")
        return Home(self.shard.remote.providers.canonical(url), codec)

    async def use_provider(self, home: Home) -> None:
        """See that the provider is there, that it is ours, and that we may use it; once.  Errors: `Provider.check`,
        InvalidError and BusyError if its place belongs to another store."""
        if home in self._used:
            return
        plain = self.shard.remote.providers.get(Home(home.provider))
        if "aes" in home.codec:
            self._know_key()
        if Home(home.provider) not in self._used:
            await plain.check()
            if self.identity is not None and plain.capabilities.durable:
                from artfs.objects.marker import claim

                known = any(found.provider == home.provider for found in self._homes())
                await claim(plain, self.identity.uuid, self.generation, known=known)
            self._used.add(Home(home.provider))
        self._used.add(home)
        self.missing.pop(home, None)

    def _know_key(self) -> None:
        """Errors: DeniedError if `encryption_key` leads to another key than before; as `load_key`."""
        found = self.shard.remote.providers.key_id()
        known = self.shard.engine.record("key", "id")
        if known is None:
            self.catalogue.records["key", "id"] = found
        elif known != found:
            raise DeniedError(
                f"objects of this store are encrypted with key {known}, but encryption_key leads to {found}: "
                "set it to where the right one is"
            )

    def outlives(self, home: Home) -> bool:
        """Whether what is kept there outlives a process."""
        return home not in self._used or self.shard.remote.providers.get(home).capabilities.durable

    def _chosen(self) -> set[Home]:
        """Where the settings have new namespaces live."""
        try:
            found = {self.home_for(scope, NamespaceType.BLOB, None, None) for scope in Scope}
        except InvalidError as error:
            raise InvalidError(f"the setting provider, or providers: {error}") from error
        return {home for home in found if home is not None}

    def _homes(self) -> set[Home]:
        return {namespace.home for namespace in self.catalogue.by_serial.values() if namespace.home is not None}

    async def look_at_all(self) -> None:
        """At every provider that settings or namespaces name.  Errors: as `use_provider`, of those that the settings
        name.  One that does not answer is only missing, unless the store is empty: it would have nothing to show, and
        its settings are new, so that they are as likely to be wrong.  InvalidError if the key of what is encrypted here
        is not set: the metadata would not be encrypted any more."""
        chosen = self._chosen()
        if not self.settings.encryption_key and any("aes" in home.codec for home in self._homes()):
            self._know_key()
        await self._look_at(chosen | self._homes())
        for home, error in self.missing.items():
            if home in chosen and not (self.catalogue.by_serial and isinstance(error, UnavailableError)):
                raise error
            log.warning("%s; going on without it", error)

    async def look_again(self) -> None:
        """Until all that are missing have been found."""
        while self.missing:
            await anyio.sleep(LOOK_AGAIN)
            needed = self._chosen() | self._homes()
            self.missing = {home: error for home, error in self.missing.items() if home in needed}
            await self._look_at(list(self.missing))

    async def _look_at(self, homes: Iterable[Home]) -> None:
        """Each provider at the same time as the others."""

        async def look(some: list[Home]) -> None:
            for index, home in enumerate(some):
                try:
                    await self.use_provider(home)
                except ArtfsError as error:
                    self.missing[home] = error
                    if isinstance(error, UnavailableError):  # its other forms would wait as long
                        self.missing |= dict.fromkeys(some[index:], error)
                        return

        ordered = sorted(homes, key=lambda home: (home.provider, home.codec))
        async with anyio.create_task_group() as tasks:
            for _, some in groupby(ordered, key=lambda home: home.provider):
                tasks.start_soon(look, list(some))
