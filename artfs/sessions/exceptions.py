"""Errors of sessions, under the name of their home here; `artfs.exceptions` has their tree."""

from artfs.exceptions import ProviderError, SessionError, SessionProviderError

__all__ = ["ProviderError", "SessionError", "SessionProviderError"]
