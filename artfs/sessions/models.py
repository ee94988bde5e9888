"""Models of sessions, under the name of their home in the packages that this one replaces."""

from artfs.sessions.metadata import SessionMetadata, SessionStatus

__all__ = ["SessionMetadata", "SessionStatus"]
