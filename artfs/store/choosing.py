"""Where a store of the Python API is: from arguments and the environment to a root and a home for new namespaces.

Pure: nothing is opened or made here.  An argument comes before the environment.  A root is a directory, or for sqlite
one file: what works on that file keeps its journal and its lock in the directory `<file>-artfs` beside it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from artfs.errors import InvalidError
from artfs.objects.opening import for_type, parse_url
from artfs.root import BESIDE
from artfs.types import ARGUMENTS, DEFAULT_BUCKET, Scope, StorageProvider

REMOTE = ("s3", "ibm_cos")
IN_MEMORY = ("memory", "vfs")
"""Without a root."""
LASTING = ("filesystem", "sqlite", *REMOTE)
"""The first of them that a scope has gives the root, where nothing else does."""
SUFFIXES = (".db", ".sqlite", ".sqlite3")
BESIDE_ARGUMENTS = frozenset(
    [
        "AWS_ACCESS_KEY_ID",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "IBM_COS_ENDPOINT",
        "S3_ENDPOINT_URL",
        "SESSION_REDIS_URL",
    ]
)
"""What `artfs.config` sets, too, and whoever opens a provider reads for itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """`root` None: in memory.  `kind`: what callers call its provider, without `vfs-`.  `home`: URL of what keeps the
    bytes of new namespaces; None: as the store's settings say, which are those of `config` where it is made new."""

    root: Path | None
    kind: str
    home: str | None = None
    config: str = ""


def plain_kind(name: str) -> str:
    """`vfs-x` and `x` are one.  Errors: InvalidError."""
    kind = str(name).lower()
    if kind not in {str(known) for known in StorageProvider}:
        raise InvalidError(f"Unknown storage provider {name!r}: it is one of {', '.join(StorageProvider)}")
    return kind.removeprefix("vfs-")


def arguments_of(variables: Mapping[str, str], env: Mapping[str, str]) -> dict[str, str]:
    """Environment variables as arguments of a store, by name.  Errors: TypeError for other names; InvalidError for a
    value that would have no effect, as the environment has another."""
    for name, value in variables.items():
        if name not in ARGUMENTS and name not in BESIDE_ARGUMENTS:
            raise TypeError(f"ArtifactStore() got an unexpected keyword argument {name!r}")
        if name not in ARGUMENTS and env.get(name) != value:
            raise InvalidError(f"{name} is read from the environment, which says otherwise: set it there")
    return {ARGUMENTS[name]: value for name, value in variables.items() if name in ARGUMENTS}


def choose(
    root: str | os.PathLike[str] | None,
    storage_provider: str | None,
    bucket: str | None,
    env: Mapping[str, str],
    options: Mapping[str, str] = MappingProxyType({}),
    scopes: Mapping[Scope, str] = MappingProxyType({}),
) -> Place:
    """`options`: of a provider that is reached over a network; `scopes`: as `scope_homes` gives them.  A store that
    would be in memory, but for a scope, is where that scope's provider has it; what else is made there is in memory.
    Errors: InvalidError."""
    place = _chosen(root, storage_provider, bucket, env, options)
    kind = next((kind for kind in LASTING if kind in scopes.values()), None)
    if place.root is not None or kind is None:
        return place
    config, base = _remote(kind, bucket, options), env.get("ARTFS_ROOT")
    of_scope = _at(_path(base), kind, True, config, env) if base else by_provider(kind, config, env)
    return replace(of_scope, kind="memory", home="memory:")


def _chosen(
    root: str | os.PathLike[str] | None,
    storage_provider: str | None,
    bucket: str | None,
    env: Mapping[str, str],
    options: Mapping[str, str],
) -> Place:
    named = storage_provider or env.get("ARTIFACT_PROVIDER") or None
    kind = plain_kind(named) if named else "vfs"
    memory = kind == "memory" and storage_provider is not None and root is None
    given = None if memory else (root if root is not None else env.get("ARTFS_ROOT") or None)
    if given is not None and not os.fspath(given):
        raise InvalidError("a store's root cannot be empty")
    if given is not None and kind == "memory" and storage_provider is None:
        named, kind = None, "vfs"  # a root that is named is meant to last
    if given is not None:
        return _at(_path(given), kind, named is not None, _remote(kind, bucket, options), env)
    if kind in IN_MEMORY:
        return Place(None, "memory")
    return by_provider(kind, _remote(kind, bucket, options), env)


def _remote(kind: str, bucket: str | None, options: Mapping[str, str]) -> dict[str, str]:
    if kind not in REMOTE:
        return {}
    return {**options, "bucket": bucket} if bucket else dict(options)


def _at(root: Path, kind: str, chosen: bool, config: Mapping[str, str], env: Mapping[str, str]) -> Place:
    if kind == "sqlite" or (root.suffix in SUFFIXES and not root.is_dir()):
        return _file(root)
    if not chosen or kind in ("vfs", "filesystem"):
        return Place(root, "filesystem", "" if kind == "filesystem" else None)
    url = for_type(kind, config, env)
    return Place(root, kind, url, "" if kind == "memory" else url)


def _file(path: Path) -> Place:
    url = for_type("sqlite", {"path": str(path)})
    return Place(path.with_name(path.name + BESIDE), "sqlite", None, url)


def by_provider(kind: str, config: Mapping[str, Any], env: Mapping[str, str]) -> Place:
    """The store that a provider gives where no root is named.  REQUIRES: not memory."""
    url = for_type(kind, config, env)
    parsed = parse_url(url)
    if kind == "filesystem":
        return Place(parsed.path, "filesystem", "")
    if kind == "sqlite":
        return _file(parsed.path)
    name = parsed.place.bucket or DEFAULT_BUCKET
    return Place(_path("~/.local/share/artfs") / name, kind, url, url)


def scope_homes(given: Mapping[Any, str] | None, env: Mapping[str, str]) -> dict[Scope, str]:
    """The provider of each scope that has one of its own.  Errors: InvalidError."""
    found = {}
    for scope in Scope:
        name = env.get(f"ARTIFACT_PROVIDER_{scope.upper()}")
        if name:
            found[scope] = plain_kind(name)
    if not isinstance(given, Mapping | None):
        raise InvalidError(f"providers is a mapping of scopes, not {given!r}")
    for key, name in (given or {}).items():
        try:
            found[Scope(key)] = plain_kind(name)
        except ValueError as error:
            raise InvalidError(f"providers: {error}") from None
    return found


def _path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if "\0" in text:
        raise InvalidError(f"{text!r} is no path: it has NUL")
    return Path(os.path.abspath(os.path.expanduser(text)))
