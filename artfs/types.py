"""The words that every layer shares: who, where, and the numbers that name things.

A *principal* is who acts; a *scope* says who may enter a namespace; a *namespace* is one versioned file tree.
Numbers: `Serial` names a namespace (or the view of a checkpoint) and is never used again; `Ino` names an inode
within a namespace; `Epoch` counts a namespace's checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

Serial = NewType("Serial", int)
Ino = NewType("Ino", int)
Epoch = NewType("Epoch", int)

NEVER = 2**63 - 1
"""The epoch at which a row that is still valid dies."""


class Scope(StrEnum):
    """Whose a namespace is: one session's, one user's, or the whole sandbox's."""

    SESSION = "session"
    USER = "user"
    SANDBOX = "sandbox"


class NamespaceType(StrEnum):
    """A BLOB is one file's bytes, a WORKSPACE a tree of files."""

    BLOB = "blob"
    WORKSPACE = "workspace"


class Access(StrEnum):
    """What a principal may do in a namespace."""

    NONE = "none"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts.  An admin may enter everything; `sandbox=None` is every sandbox, for an admin alone."""

    sandbox: str | None = None
    user: str | None = None
    session: str | None = None
    admin: bool = False


ADMIN = Principal(admin=True)
