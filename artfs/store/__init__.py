"""Stores: opened by their owner (`opening`), called from any process of this host (`service`), and held by Python
programs (`artifact_store`).  Names of the Python API are loaded at their first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from artfs.types import DEFAULT_TTL as _DEFAULT_TTL

if TYPE_CHECKING:
    from artfs.store.artifact_store import ArtifactStore

__all__ = ["_DEFAULT_TTL", "ArtifactStore"]


def __getattr__(name: str) -> Any:
    if name != "ArtifactStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("artfs.store.artifact_store").ArtifactStore
