"""The providers of a store: each opened when it is first needed, once, and wrapped in the codec that a home wants."""

from __future__ import annotations

from pathlib import Path

from artfs.errors import InvalidError
from artfs.objects import Home, Provider
from artfs.settings import Settings


class OpenProviders:
    """See `artfs.objects.Providers`.  `scratch`: a directory for encoded objects on their way."""

    def __init__(self, settings: Settings, scratch: Path) -> None:
        self.settings = settings
        self.scratch = scratch
        self._open: dict[Home, Provider] = {}
        self._key: bytes | None = None

    def canonical(self, url: str) -> str:
        """Errors: InvalidError."""
        from artfs.objects.opening import canonical_url

        return canonical_url(url)

    def get(self, home: Home) -> Provider:
        """Errors: InvalidError for a URL or a key that cannot be used."""
        provider = self._open.get(home)
        if provider is None:
            provider = self._open[home] = self._opened(home)
        return provider

    def _opened(self, home: Home) -> Provider:
        if home.codec:
            from artfs.objects.framed import FramedProvider

            key = self.key() if "aes" in home.codec else None
            return FramedProvider(self.get(Home(home.provider)), home.codec, key, self.scratch)
        from artfs.objects.opening import open_provider

        return open_provider(home.provider, self.settings)

    def key(self) -> bytes:
        """The one that setting `encryption_key` leads to.  Errors: InvalidError, NotFoundError, DeniedError."""
        if self._key is None:
            if not self.settings.encryption_key:
                raise InvalidError("objects of this store are encrypted: set encryption_key to where their key is")
            from artfs.objects.keys import load_key

            self._key = load_key(self.settings.encryption_key)
        return self._key

    def key_id(self) -> str:
        """Errors: as `key`."""
        from artfs.objects.keys import key_id

        return key_id(self.key())

    async def close(self) -> None:
        for home, provider in self._open.items():
            if not home.codec:
                await provider.close()
        self._open.clear()
