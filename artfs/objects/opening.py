"""URLs of providers: what they may say, their one spelling, what they open, and where they come from.

    s3://BUCKET[/PREFIX][?endpoint_url=…&region=…&addressing=path|virtual&sse=AES256|aws:kms&kms_key=…&ca=FILE&flavor=ibm]
    file:///DIRECTORY     sqlite:///FILE     memory:

The empty URL is the store's own directory, which nobody opens here.  A URL is an identity and holds no secret:
credentials are where the provider's own tools look for them, in the environment first.  Reading a URL does no I/O;
paths in it are absolute afterwards, `~` and the working directory are those of the reader.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from artfs.errors import InvalidError
from artfs.objects import Provider, check_name
from artfs.objects.s3_client import Place

BUCKET = "artifacts"
"""Of s3 and ibm_cos where nothing names one."""

_SHAPE = "a provider is s3://BUCKET[/PREFIX][?OPTIONS], file:///DIRECTORY, sqlite:///FILE or memory:"
_OPTIONS = tuple(f.name for f in fields(Place) if f.name not in ("bucket", "prefix"))
_CHOICES = {
    "addressing": ("auto", "path", "virtual"),
    "sse": ("AES256", "aws:kms"),
    "flavor": ("ibm",),
}
_KEYS = ("key", "secret", "token", "password")
"""A name with such a word in it, which no option has, is a secret in the wrong place."""


SQLITE_PATHS = "ARTIFACT_SQLITE_PATH", "SQLITE_DB_PATH"
SQLITE_FILE = "artifacts.db"
"""Where a store in one file is that nobody named a place for."""


class Limits(Protocol):
    """What `artfs.settings.Settings` says about providers."""

    @property
    def provider_timeout(self) -> float: ...
    @property
    def part_size(self) -> int: ...
    @property
    def uploads(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Parsed:
    """`kind`: "s3", "file", "sqlite", "memory", or "" for the store's own directory."""

    kind: str
    path: Path = field(default_factory=Path)
    place: Place = field(default_factory=lambda: Place(""))

    @property
    def url(self) -> str:
        """The one spelling."""
        if self.kind == "s3":
            return _s3_url(self.place)
        if self.kind in ("file", "sqlite"):
            return f"{self.kind}://{quote(str(self.path))}"
        return "memory:" if self.kind else ""


def parse_url(url: str) -> Parsed:
    """Errors: InvalidError, which does not repeat what could be a secret."""
    if not url:
        return Parsed("")
    kind, colon, rest = url.partition(":")
    if not colon or not (kind == "memory" or rest.startswith("//")):
        raise InvalidError(f"{_shown(url)}: {_SHAPE}")
    if kind == "memory":
        if rest.strip("/"):
            raise InvalidError(f"{_shown(url)}: memory: takes no name")
        return Parsed("memory")
    if kind in ("file", "sqlite"):
        path = unquote(rest[2:])
        if "?" in rest or "#" in rest or "\0" in path or path.strip("/") == "":
            raise InvalidError(f"{_shown(url)}: {_SHAPE}; a ? or # in a path is written %3F or %23")
        return Parsed(kind, _absolute(path))
    if kind == "s3":
        return Parsed("s3", place=_place(url))
    raise InvalidError(f"{_shown(url)}: {_SHAPE}")


def canonical_url(url: str) -> str:
    """The one spelling of it.  Errors: InvalidError."""
    return parse_url(url).url


def open_provider(url: str, limits: Limits) -> Provider:
    """Not checked: `check` of what is returned does that.  Errors: InvalidError."""
    parsed = parse_url(url)
    if parsed.kind == "s3":
        from artfs.objects.s3 import S3Provider

        place = with_environment(parsed.place, os.environ)
        return S3Provider(parsed.url, place, limits.provider_timeout, limits.part_size, limits.uploads)
    if parsed.kind == "file":
        from artfs.objects.disk import DiskProvider

        return DiskProvider(parsed.path)
    if parsed.kind == "sqlite":
        from artfs.objects.sqlite import SqliteProvider

        return SqliteProvider(parsed.path)
    if parsed.kind == "memory":
        from artfs.objects.memory import MemoryProvider

        return MemoryProvider()
    raise InvalidError("the store's own directory is no provider that could be opened")


def provider_from_env(provider_type: str, env: Mapping[str, str] | None = None) -> str:
    """The URL of a type of provider, of which the environment says the rest: ARTIFACT_FS_ROOT or VFS_ROOT_PATH;
    ARTIFACT_SQLITE_PATH or SQLITE_DB_PATH; ARTIFACT_BUCKET or AWS_S3_BUCKET, AWS_REGION or AWS_DEFAULT_REGION,
    S3_ENDPOINT_URL or IBM_COS_ENDPOINT, S3_SSE_ALGORITHM.  Errors: InvalidError."""
    return for_type(provider_type, None, env)


def for_type(
    provider_type: str, config: Mapping[str, object] | None = None, env: Mapping[str, str] | None = None
) -> str:
    """The same; `config` comes before the environment: `root_path`; `db_path`; `bucket`, `prefix` and the options of an
    s3 URL.  Types: memory, filesystem, sqlite, s3 and those with `vfs-` before; ibm_cos; vfs: the store's own.
    Errors: InvalidError."""
    env = os.environ if env is None else env
    given = {str(name): str(value) for name, value in (config or {}).items() if value is not None}
    kind = provider_type.lower().removeprefix("vfs-")
    match kind:
        case "vfs" | "":
            url, known = "", frozenset[str]()
        case "memory":
            url, known = "memory:", frozenset[str]()
        case "filesystem" | "file" | "disk":
            path = _first(given, "root_path", "path") or _first(env, "ARTIFACT_FS_ROOT", "VFS_ROOT_PATH") or "artifacts"
            url, known = Parsed("file", _absolute(path)).url, frozenset({"root_path", "path"})
        case "sqlite":
            path = _first(given, "db_path", "path") or _first(env, *SQLITE_PATHS)
            url, known = Parsed("sqlite", _absolute(path or SQLITE_FILE)).url, frozenset({"db_path", "path"})
        case "s3" | "ibm_cos":
            names = {"bucket_name": "bucket", "region_name": "region"}
            given = {names.get(name, name): value for name, value in given.items()}
            url, known = _s3_from(given, env, kind == "ibm_cos"), frozenset({"bucket", "prefix", *_OPTIONS})
        case _:
            types = "memory, filesystem, sqlite, s3, ibm_cos, vfs"
            raise InvalidError(f"there is no provider of type {provider_type!r}: choose among {types}")
    for name in given.keys() - known:
        if any(word in name.lower() for word in _KEYS):
            raise InvalidError(f"{provider_type}: {name} is no option: set credentials in the environment")
        raise InvalidError(f"{provider_type}: there is no option {name}; it has: {', '.join(sorted(known)) or 'none'}")
    return canonical_url(url)


def with_environment(place: Place, env: Mapping[str, str]) -> Place:
    """With what its URL leaves to the environment of whoever opens it.  Errors: InvalidError."""
    place = with_endpoint(place, env)
    if not place.endpoint_url and (url := _first(env, "S3_ENDPOINT_URL")):
        place = _replaced(place, endpoint_url=_endpoint(url, "S3_ENDPOINT_URL"))
    return _checked("S3_SSE_ALGORITHM", _replaced(place, sse=place.sse or _first(env, "S3_SSE_ALGORITHM")))


def with_endpoint(place: Place, env: Mapping[str, str]) -> Place:
    """IBM's buckets are not where AWS's are: IBM_COS_ENDPOINT, else that of the region."""
    if place.flavor != "ibm" or place.endpoint_url:
        return place
    region = place.region or _first(env, "AWS_REGION") or "us-south"
    endpoint = _first(env, "IBM_COS_ENDPOINT") or f"https://s3.{region}.cloud-object-storage.appdomain.cloud"
    return _replaced(place, endpoint_url=_endpoint(endpoint, "IBM_COS_ENDPOINT"))


def _s3_from(given: Mapping[str, str], env: Mapping[str, str], ibm: bool) -> str:
    options = {name: given[name] for name in _OPTIONS if name in given}
    bucket = given.get("bucket") or _first(env, "ARTIFACT_BUCKET", "AWS_S3_BUCKET") or BUCKET
    defaults = {
        "region": _first(env, "AWS_REGION", "AWS_DEFAULT_REGION"),
        "sse": _first(env, "S3_SSE_ALGORITHM"),
        "endpoint_url": "" if ibm else _first(env, "S3_ENDPOINT_URL"),
        "flavor": "ibm" if ibm else "",
    }
    place = _checked(f"s3://{bucket}", Place(bucket, given.get("prefix", "").strip("/"), **{**defaults, **options}))
    return _s3_url(with_endpoint(place, env))


def _place(url: str) -> Place:
    try:
        parts = urlsplit(url)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise InvalidError(f"{_shown(url)}: {_SHAPE}") from error
    if "@" in parts.netloc or parts.fragment:
        raise InvalidError(f"{_shown(url)}: a provider's URL holds no credentials: set them in the environment")
    for name, _ in options:
        if name not in _OPTIONS:
            secret = any(word in name.lower() for word in _KEYS)
            hint = "set credentials in the environment" if secret else f"it has: {', '.join(_OPTIONS)}"
            raise InvalidError(f"{_shown(url)}: there is no option {name}; {hint}")
    if len(dict(options)) != len(options):
        raise InvalidError(f"{_shown(url)}: an option is there twice")
    prefix = unquote(parts.path).strip("/")
    return _checked(_shown(url), Place(parts.netloc, prefix, **dict(options)))


def _checked(what: str, place: Place) -> Place:
    """With its values as they are written in a URL."""
    if not (3 <= len(place.bucket) <= 255) or not all(
        c.isascii() and (c.isalnum() or c in ".-_") for c in place.bucket
    ):
        raise InvalidError(f"{what}: {place.bucket!r} is no name of a bucket")
    if place.prefix:
        check_name(place.prefix)
    for name, choices in _CHOICES.items():
        value = getattr(place, name)
        if value and value not in choices:
            raise InvalidError(f"{what}: {name} is one of {', '.join(choices)}, not {value!r}")
    if place.retries and not (place.retries.isascii() and place.retries.isdecimal() and int(place.retries) <= 20):
        raise InvalidError(f"{what}: retries is a number from 0 to 20, not {place.retries!r}")
    if place.kms_key and place.sse != "aws:kms":
        raise InvalidError(f"{what}: kms_key is for sse=aws:kms")
    return _replaced(
        place,
        endpoint_url=_endpoint(place.endpoint_url) if place.endpoint_url else "",
        addressing=place.addressing or "auto",
        ca=str(_absolute(place.ca)) if place.ca else "",
    )


def _endpoint(url: str, name: str = "an endpoint_url") -> str:
    shape = f"{name} is http://HOST[:PORT] or https://HOST[:PORT][/PATH]"
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        port = parts.port
    except ValueError as error:
        raise InvalidError(shape) from error
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
    ):
        raise InvalidError(f"{shape}, without credentials or options")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}{parts.path.rstrip('/')}"


def _s3_url(place: Place) -> str:
    options = {
        name: value for name in _OPTIONS if (value := getattr(place, name)) and (name, value) != ("addressing", "auto")
    }
    path = f"/{quote(place.prefix)}" if place.prefix else ""
    return f"s3://{place.bucket}{path}{'?' if options else ''}{urlencode(options, safe=':/')}"


def _replaced(place: Place, **values: str) -> Place:
    return Place(**{f.name: values.get(f.name, getattr(place, f.name)) for f in fields(Place)})


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _first(values: Mapping[str, str], *names: str) -> str:
    return next((values[name] for name in names if values.get(name)), "")


def _shown(url: str) -> str:
    """Without what could be a secret: options, and what comes before an @."""
    kind, slashes, rest = url.partition("?")[0].partition("#")[0].partition("://")
    return f"{kind}{slashes}{rest.rpartition('@')[2]}"
