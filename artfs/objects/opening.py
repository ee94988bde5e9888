"""Providers by URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from artfs.errors import InvalidError
from artfs.objects import Provider
from artfs.settings import Settings


def canonical_url(url: str) -> str:
    """The one spelling of a provider's URL.  Errors: InvalidError."""
    parts = urlsplit(url)
    if parts.scheme in ("file", "sqlite"):
        return f"{parts.scheme}://{quote(str(Path(unquote(parts.path)).absolute()))}"
    if parts.scheme == "memory":
        return "memory:"
    if parts.scheme == "s3" and parts.netloc:
        return url
    raise InvalidError(f"{url!r} is no provider: use s3://bucket/prefix, file:///dir, sqlite:///file.db or memory:")


def open_provider(url: str, settings: Settings) -> Provider:
    """Errors: InvalidError."""
    parts = urlsplit(canonical_url(url))
    path = Path(unquote(parts.path))
    if parts.scheme == "file":
        from artfs.objects.disk import DiskProvider

        return DiskProvider(path)
    if parts.scheme == "sqlite":
        from artfs.objects.sqlite import SqliteProvider

        return SqliteProvider(path)
    if parts.scheme == "memory":
        from artfs.objects.memory import MemoryProvider

        return MemoryProvider()
    raise InvalidError(f"{url!r} cannot be used by this build")
