"""Which session provider the environment asks for.

SESSION_PROVIDER: `memory` (also `mem`, `inmemory`; the default), `sqlite`, `redis` (also `redis_store`), in any case;
or the name of a module that has `factory()`.  redis: the URL is SESSION_REDIS_URL, else REDIS_URL, else a local server.
The environment is read when a function here is called.
"""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from artfs.errors import InvalidError
from artfs.exceptions import ProviderError
from artfs.sessions.provider import Provider, ProviderFactory


class NoSuchProviderError(ProviderError, ModuleNotFoundError):
    """SESSION_PROVIDER names nothing."""


class NoFactoryError(ProviderError, AttributeError):
    """SESSION_PROVIDER names a module that makes no providers."""


class ProviderType(StrEnum):
    """Ours, by the module that has it."""

    MEMORY = "memory"
    SQLITE = "sqlite"
    REDIS = "redis"


_NAMES = {
    "memory": ProviderType.MEMORY,
    "mem": ProviderType.MEMORY,
    "inmemory": ProviderType.MEMORY,
    "sqlite": ProviderType.SQLITE,
    "redis": ProviderType.REDIS,
    "redis_store": ProviderType.REDIS,
}
_PROVIDERS = "artfs.sessions.providers"


def check_provider(name: str) -> str:
    """`name` itself, if it is one of ours or that of a module, which is not imported here.  Errors: InvalidError."""
    if _NAMES.get(name.strip().lower()) is None:
        try:
            found = find_spec(name.strip())
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise InvalidError(f"Unknown session provider {name!r}: it is none of {', '.join(_NAMES)}, nor a module")
    return name


def names_memory() -> bool:
    """Whether SESSION_PROVIDER, or nothing, says that sessions live in this process."""
    return _NAMES.get((os.environ.get("SESSION_PROVIDER") or "memory").strip().lower()) is ProviderType.MEMORY


def factory_for_env(name: str | None = None) -> ProviderFactory:
    """A factory of what SESSION_PROVIDER names, or `name`.  Errors: ProviderError if there is no such provider or what
    it needs is not installed, InvalidError for a bad URL."""
    name = (name or os.environ.get("SESSION_PROVIDER") or "").strip() or ProviderType.MEMORY
    known = _NAMES.get(name.lower())
    if known is None:
        return _custom(name)
    module = import_module(f"{_PROVIDERS}.{known}")
    url = os.environ.get("SESSION_REDIS_URL") or os.environ.get("REDIS_URL")
    found: ProviderFactory = module.factory(url) if known is ProviderType.REDIS and url else module.factory()
    return found


def _custom(name: str) -> ProviderFactory:
    known = ", ".join(_NAMES)
    try:
        module: Any = import_module(name)
    except (ImportError, ValueError, TypeError) as error:  # also of what the module itself imports
        raise NoSuchProviderError(f"SESSION_PROVIDER: {name!r} is none of {known}, nor a module ({error})") from error
    factory = getattr(module, "factory", None)
    if not callable(factory):
        raise NoFactoryError(f"SESSION_PROVIDER: {name!r} is none of {known}, and lacks a factory() function")
    try:
        made: Any = factory()
    except TypeError:  # it makes contexts itself, and of more than it is given here
        made = factory
    found: ProviderFactory = factory if hasattr(made, "__aenter__") else made
    return found


def session() -> AbstractAsyncContextManager[Provider]:
    """The provider that the environment asks for, to be used in `async with`."""
    return factory_for_env()()


get_session = session
