"""Sessions: who works in a sandbox, until when.

Two ways in: a `SessionStore` (`rules`; in memory, in sqlite) is where a store of namespaces keeps its own, and what it
reaps by; a `SessionManager` is the Python API, over a *provider* (memory, sqlite, redis, or a caller's own) or over a
store.  Both obey the rules in `artfs.sessions.rules`.

The manager and what belongs to it are loaded at their first use; no provider's library is, before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from artfs.sessions.rules import METADATA_MAX, NS, REMEMBERED, Clock, Session, SessionStore, Status

if TYPE_CHECKING:
    from artfs.sessions.exceptions import ProviderError, SessionError
    from artfs.sessions.provider_factory import ProviderType, factory_for_env, get_session, session
    from artfs.sessions.session_manager import SessionManager, SessionMetadata, SessionStatus

__all__ = [
    "METADATA_MAX",
    "NS",
    "REMEMBERED",
    "Clock",
    "ProviderError",
    "ProviderType",
    "Session",
    "SessionError",
    "SessionManager",
    "SessionMetadata",
    "SessionStatus",
    "SessionStore",
    "Status",
    "factory_for_env",
    "get_session",
    "session",
]

_HOMES = {
    "exceptions": ("ProviderError", "SessionError"),
    "provider_factory": ("ProviderType", "factory_for_env", "get_session", "session"),
    "session_manager": ("SessionManager", "SessionMetadata", "SessionStatus"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
