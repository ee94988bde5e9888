"""What may be said of an artifact, and how its document changes: pure rules.

`Own` is what `artfs.store.artifact_calls` keeps under the namespace's reserved key.
"""

from __future__ import annotations

import json
import math
import mimetypes
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from artfs.errors import InvalidError
from artfs.grid import canonical_prefix
from artfs.sessions import NS, Session
from artfs.sessions.metadata import iso
from artfs.types import DEFAULT_TTL, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.postings import OWN

Own = dict[str, Any]
MIME = "application/octet-stream"
META_MAX = 512 << 10
"""Bytes of an artifact's metadata as JSON."""
FEW = 64
SHORT = 1024
"""Characters of a string that needs no closer look."""
PLAIN = frozenset([int, bool, type(None)])
TEXT_MAX = 64 << 10
FILENAME_MAX = 1024
NOTHING = "At least one update parameter must be provided"

_mime = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!-~][ -~]*").fullmatch
_split = re.compile(r"[\\/]").split
_drive = re.compile(r"[A-Za-z]:")


# what callers say
def check_filename(filename: str | None) -> str | None:
    """A relative path, which stays below where it is put.  Errors: InvalidError."""
    if filename is None:
        return None
    if not isinstance(filename, str):
        raise InvalidError(f"filename must be a string, not {type(filename).__name__}")
    if not filename:
        raise InvalidError("filename cannot be empty; leave it out")
    if filename[0] in "/\\" or _drive.match(filename):
        raise InvalidError(f"filename {filename!r} is absolute: give one that begins with a name")
    if ".." in filename and ".." in _split(filename):
        raise InvalidError(f"filename {filename!r} leads out of its directory: leave '..' out")
    if len(filename) > FILENAME_MAX or not filename.isprintable():
        raise InvalidError(f"a filename has at most {FILENAME_MAX} printable characters")
    return filename


def check_mime(mime: str | None, filename: str | None) -> str:
    """`mime`, else what the filename suggests.  Errors: InvalidError."""
    if mime is None:
        return (mimetypes.guess_type(filename)[0] if filename else None) or MIME
    if not isinstance(mime, str) or len(mime) > 255 or not _mime(mime):
        raise InvalidError(f"{mime!r} is no MIME type: write it as text/plain")
    return mime


def check_text(name: str, text: str) -> str:
    """Errors: InvalidError."""
    if not isinstance(text, str):
        raise InvalidError(f"{name} must be a string, not {type(text).__name__}")
    if len(text) > TEXT_MAX:
        raise InvalidError(f"{name} has {len(text)} characters, {TEXT_MAX} are allowed")
    return text


def check_meta(meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy that shares nothing with the caller's.  Errors: InvalidError if it is no JSON object, or too large."""
    if not meta:
        if meta is None or isinstance(meta, Mapping):
            return {}
        raise InvalidError(f"meta must be a mapping, not {type(meta).__name__}")
    if not isinstance(meta, Mapping):
        raise InvalidError(f"meta must be a mapping, not {type(meta).__name__}")
    for key in meta:
        if not isinstance(key, str):
            raise InvalidError(f"meta: the key {key!r} must be a string")
        if not key or len(key) > SHORT or not key.isprintable() or ".." in _split(key):
            raise InvalidError(f"meta: {key[:SHORT]!r} cannot be a key")
    if OWN in meta:
        raise InvalidError(f"meta: the key {OWN!r} is reserved")
    if len(meta) <= FEW and all(
        value.__class__ in PLAIN or (value.__class__ is str and len(value) <= SHORT) for value in meta.values()
    ):
        return dict(meta)
    try:
        text = json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(f"meta must be JSON: {error}") from None
    if len(text) > META_MAX:
        raise InvalidError(f"meta has {len(text)} bytes as JSON, {META_MAX} are allowed")
    copy: dict[str, Any] = json.loads(text)
    return copy


def check_ttl(ttl: float | None) -> float | None:
    """Seconds.  Errors: InvalidError unless above zero."""
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not math.isfinite(ttl) or not 0 < ttl < 10**9:
        raise InvalidError(f"ttl must be a number of seconds above 0, not {ttl!r}; None is no expiry")
    return ttl


def default_ttl(scope: Scope) -> float | None:
    """Of what is made without saying."""
    return DEFAULT_TTL if scope is Scope.SESSION else None


# documents
def own_of(own: Mapping[str, Any], session: Session | None, owner: str | None, ttl: float | None) -> Own:
    found: Own = {name: value for name, value in own.items() if value is not None}
    if session is not None:
        found["session"] = session.id
        owner = owner if owner is not None else session.user
    if owner is not None:
        found["owner"] = owner
    if ttl is not None:
        found["ttl"] = whole(ttl)
    return found


def new_id() -> str:
    """Of an artifact: 32 hexadecimal digits."""
    if not _spare:
        drawn = os.urandom(16 * 256)  # one call costs as much as the rest of making an artifact
        _spare.extend(drawn[at : at + 16].hex() for at in range(0, len(drawn), 16))
    return _spare.pop()


_spare: list[str] = []
os.register_at_fork(after_in_child=_spare.clear)


def whole(ttl: float) -> int:
    return max(round(ttl), 1)


def changed(namespace: Namespace, changes: Mapping[str, Any], content: tuple[int, int] | None, now: int) -> Namespace:
    """The namespace with an updated document; `content`: (size, mtime) of new bytes; `now`: nanoseconds since 1970."""
    own: Own = dict(namespace.metadata.get(OWN) or {})
    meta = {key: value for key, value in namespace.metadata.items() if key != OWN}
    for name in ("mime", "summary", "filename"):
        if changes.get(name) is not None:
            own[name] = changes[name]
    if content is not None:
        own["bytes"], own["mtime"] = content
        own.pop("incomplete", None)
        own.pop("sha256", None)
        if changes.get("sha256"):
            own["sha256"] = changes["sha256"]
    if changes.get("meta") is not None:
        meta = {**meta, **changes["meta"]} if changes.get("merge", True) else dict(changes["meta"])
    expires = namespace.expires
    ttl, more = changes.get("ttl"), changes.get("more_ttl")
    if ttl is not None:
        own["ttl"] = whole(ttl)
        expires = now + round(ttl * NS)
    elif more is not None and expires is not None:
        own["ttl"] = whole(own.get("ttl", (expires - namespace.created) / NS) + more)
        expires += round(more * NS)
    own["updated"] = iso(now)
    return replace(namespace, metadata={**meta, OWN: own}, expires=expires)


def key_of(namespace: Namespace, session: str) -> str:
    """Its grid path, as `ArtifactMetadata.key` spells it."""
    if namespace.scope is Scope.SANDBOX:
        return f"grid/{namespace.sandbox}/shared/{namespace.entry}"
    if namespace.scope is Scope.USER:
        return f"grid/{namespace.sandbox}/users/{namespace.owner}/{namespace.entry}"
    return canonical_prefix(namespace.sandbox, session, use_legacy_format=True) + namespace.entry
