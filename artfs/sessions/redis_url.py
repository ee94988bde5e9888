"""The forms of a redis URL: which servers, which kind of client, whose credentials.  Pure.

    redis://[user:password@]host[:port][/db]                      a server
    redis://[user:password@]s1[:port],s2[:port]/service[?db=2]    sentinels that know where `service` is
    redis://[user:password@]n1[:port],n2[:port]                   nodes of a cluster
    unix:///path[?db=2]                                           a server, by its socket

`rediss://` is TLS, in every form.  One host with a path that is no number is a sentinel.  Credentials may stand before
the list or in each of its hosts, percent-encoded; they are the data nodes'.  The sentinels' own, if they have any, are
`?sentinel_username=…&sentinel_password=…`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import parse_qsl, unquote, urlsplit

from artfs.errors import InvalidError

PORT, SENTINEL_PORT = 6379, 26379
SCHEMES = ("redis", "rediss", "unix")
OPTIONS = frozenset({"db", "sentinel_username", "sentinel_password"})


class Kind(StrEnum):
    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Address:
    """Where redis is.  Hashable: one client is shared by all that have the same."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    service: str | None = None
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    tls: bool = False
    insecure: bool = False
    """With TLS: whether certificates are not checked."""
    socket: str | None = None

    def __str__(self) -> str:
        """For messages: without credentials."""
        if self.socket:
            return f"unix://{self.socket}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{'rediss' if self.tls else 'redis'}://{hosts}" + (f"/{self.service}" if self.service else "")


def parse_url(url: str, *, insecure: bool = False) -> Address:
    """Errors: InvalidError, which never shows a password."""
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not separator or scheme not in SCHEMES:
        raise InvalidError("a redis URL begins with redis://, rediss:// or unix://")
    rest, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(options.keys() - OPTIONS)
    if unknown:
        raise InvalidError(f"a redis URL has no option {unknown[0]!r}: {', '.join(sorted(OPTIONS))} are known")
    extra = {name: value for name, value in options.items() if name != "db"}
    if scheme == "unix":
        split = urlsplit(f"unix://{rest}")
        user, password = (unquote(part) if part else None for part in (split.username, split.password))
        if not split.path.strip("/"):
            raise InvalidError("unix:// wants the path of redis's socket")
        return Address(Kind.SERVER, (), None, _db(options.get("db")), user, password, socket=unquote(split.path))
    authority, _, path = rest.partition("/")
    hosts, user, password = _hosts(authority)
    path = unquote(path.rstrip("/"))
    kind = Kind.SENTINEL if path and not path.isdigit() else Kind.CLUSTER if len(hosts) > 1 else Kind.SERVER
    db = _db(options.get("db") or (path if kind is not Kind.SENTINEL else None))
    if kind is Kind.CLUSTER and db:
        raise InvalidError("a redis cluster has no database but 0")
    port = SENTINEL_PORT if kind is Kind.SENTINEL else PORT
    if extra and kind is not Kind.SENTINEL:
        raise InvalidError(f"{min(extra)} is for a URL that names a sentinel's service")
    return Address(
        kind,
        tuple((host, given or port) for host, given in hosts),
        path if kind is Kind.SENTINEL else None,
        db,
        user,
        password,
        tls=scheme == "rediss",
        insecure=insecure and scheme == "rediss",
        **extra,
    )


def _hosts(authority: str) -> tuple[list[tuple[str, int | None]], str | None, str | None]:
    parts = authority.split(",")
    if all("@" in part for part in parts):  # each with its own: they are one user's
        credentials = parts[0].rpartition("@")[0]
        parts = [part.rpartition("@")[2] for part in parts]
    else:
        credentials, _, hosts = authority.rpartition("@")
        parts = hosts.split(",")
    user, _, password = credentials.partition(":")
    return [_host(part) for part in parts], unquote(user) or None, unquote(password) or None


def _host(text: str) -> tuple[str, int | None]:
    try:
        split = urlsplit(f"//{text}")
        host, port = split.hostname, split.port
    except ValueError as error:
        raise InvalidError(f"{text!r} is no host of a redis URL: {error}") from None
    if not host:
        raise InvalidError("a redis URL names a host")
    return host, port


def _db(text: str | None) -> int:
    if not text:
        return 0
    if not text.isdigit():
        raise InvalidError(f"a redis database is a number, not {text!r}")
    return int(text)
