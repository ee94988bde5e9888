"""Signed URLs: pure rules of what a URL of the endpoint says, and who may have made it.

    <base>/get/<pin>?expires=…[&name=…][&type=…]&signature=…          reads (GET, HEAD)
    <base>/put/<upload>[/<part>]?expires=…[&type=…]&signature=…       writes (PUT)

The signature is HMAC-SHA256, under the store's secret, over the method, the path and every parameter; so none of them
can be changed, and a URL for reading is none for writing.  `expires` is in seconds since 1970.  The host is not signed:
a URL goes on working behind a proxy.  What the path names is looked up elsewhere; here nothing does I/O.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass, fields
from hashlib import sha256
from time import gmtime, strftime
from urllib.parse import parse_qsl, quote, unquote, urlencode

from artfs.errors import DeniedError, InvalidError, NotFoundError

PARTS_MAX = 10_000
READ, WRITE = "get", "put"
METHODS = {READ: ("GET", "HEAD"), WRITE: ("PUT",)}
WHOLE = 0
"""The part number of an upload in one piece."""
FOREVER = 253402300799
"""The last second of the year 9999."""

_VERSION = "artfs-url-1"
_ID = re.compile(r"[A-Za-z0-9._@-]{1,128}")
_MIME = re.compile(r"[!#-~][ -~]{0,254}")


@dataclass(frozen=True, slots=True)
class Signed:
    """What a URL allows.  `kind` is `READ` or `WRITE`; `id` names a pin or an upload, `part` a part of that (`WHOLE`:
    it has none); `type` is the Content-Type that an answer has, or that a writer must send; `name` is the file name
    that an answer suggests."""

    kind: str
    id: str
    expires: int
    part: int = WHOLE
    type: str = ""
    name: str = ""

    @property
    def path(self) -> str:
        return f"/{self.kind}/{self.id}" + (f"/{self.part}" if self.part else "")


def check_part(number: int) -> int:
    """`number` itself.  Errors: InvalidError."""
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= PARTS_MAX:
        raise InvalidError(f"Part number must be between 1 and 10,000, not {number!r}")
    return number


def check_id(id: str) -> str:
    """`id` itself, if an upload may be called so.  Errors: InvalidError."""
    if not _ID.fullmatch(id) or id in (".", ".."):
        raise InvalidError(f"no upload can be called {id!r}: 1–128 of the characters A–Z a–z 0–9 . _ @ -")
    return id


def check_type(mime: str | None) -> str:
    """`mime`, as a header may hold it; empty for None.  Errors: InvalidError."""
    if mime and not _MIME.fullmatch(mime):
        raise InvalidError(f"{mime!r} is no Content-Type: 1–255 printable ASCII characters, such as image/png")
    return mime or ""


def sign(secret: bytes, signed: Signed) -> str:
    """The target of a request: path and query."""
    query = [(name, str(value)) for name, value in _parameters(signed) if value]
    query.append(("signature", _signature(secret, signed)))
    return f"{quote(signed.path, safe='/@')}?{urlencode(query, quote_via=quote)}"


def verify(secret: bytes, method: str, target: str, now: float) -> Signed:
    """What the request's target allows, if this store signed it and its time is not over; `now` in seconds since 1970.
    Errors: NotFoundError (no path of ours), DeniedError (forged, changed, expired, or for another method)."""
    path, _, query = target.partition("?")
    kind, id, part = _split(unquote(path))
    try:
        parameters = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=8)
    except ValueError:
        raise _forged() from None
    given = dict(parameters)
    if len(given) != len(parameters) or not given.keys() <= {"expires", "name", "type", "signature"}:
        raise _forged()
    expires = given.get("expires", "")
    if not (expires.isascii() and expires.isdigit()) or len(expires) > 12:
        raise _forged()
    signed = Signed(kind, id, int(expires), part, given.get("type", ""), given.get("name", ""))
    if not hmac.compare_digest(_signature(secret, signed).encode(), given.get("signature", "").encode()):
        raise _forged()
    if method not in METHODS[kind]:
        raise DeniedError(f"this URL is for {METHODS[kind][0]}, not for {method}; ask for one that is")
    if now >= signed.expires:
        when = strftime("%Y-%m-%d %H:%M:%S UTC", gmtime(min(signed.expires, FOREVER)))
        raise DeniedError(f"this URL expired at {when}; ask for a new one")
    return signed


def _split(path: str) -> tuple[str, str, int]:
    """(kind, id, part).  Errors: NotFoundError."""
    parts = path.split("/")
    if len(parts) in (3, 4) and not parts[0] and parts[1] in METHODS and _ID.fullmatch(parts[2]):
        if len(parts) == 3:
            return parts[1], parts[2], WHOLE
        number = parts[3]
        if parts[1] == WRITE and number.isascii() and number.isdigit() and number[0] != "0" and len(number) <= 5:
            return parts[1], parts[2], int(number)
    raise NotFoundError("there is nothing here; use the whole URL as it was given")


def _parameters(signed: Signed) -> list[tuple[str, int | str]]:
    return [(f.name, getattr(signed, f.name)) for f in fields(signed) if f.name in ("expires", "name", "type")]


def _signature(secret: bytes, signed: Signed) -> str:
    lines = [_VERSION, METHODS[signed.kind][0], signed.path]
    lines += [f"{name}={quote(str(value), safe='')}" for name, value in _parameters(signed)]
    digest = hmac.digest(secret, "\n".join(lines).encode(), sha256)
    return urlsafe_b64encode(digest).decode().rstrip("=")


def _forged() -> DeniedError:
    return DeniedError("the signature does not fit this URL; use the whole URL as it was given, or ask for a new one")
