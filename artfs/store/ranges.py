"""Conditions and ranges of a GET, pure (RFC 9110, sections 13 and 14).

An entity tag here is strong, and given without quotes.
"""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*", re.IGNORECASE)
_TAG = re.compile(r'[ \t]*(W/)?"([^"]*)"[ \t]*')


class Unsatisfiable(Exception):
    """The range begins behind the end: 416."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(start, end) of the bytes wanted out of `size`, end excluded; None: all of them, as for a header that is no
    single range of bytes.  Errors: Unsatisfiable."""
    found = _RANGE.fullmatch(header or "")
    if found is None:
        return None
    first, last = found[1], found[2]
    if not first and not last:
        return None
    if not first:
        length = int(last)
        if not length or not size:
            raise Unsatisfiable
        return max(size - length, 0), size
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise Unsatisfiable
    return start, min(int(last) + 1, size) if last else size


def etags(header: str) -> list[tuple[str, bool]]:
    """(tag, weak) of each in a list; what cannot be read is left out."""
    return [(found[2], found[1] is not None) for found in _TAG.finditer(header)]


def matches(header: str | None, etag: str, *, weak: bool) -> bool:
    """Whether a list of tags, or `*`, names `etag`; `weak`: a weak tag counts (If-None-Match), else it does not."""
    if header is None:
        return False
    return header.strip() == "*" or any(tag == etag and (weak or not is_weak) for tag, is_weak in etags(header))


def wanted_range(ranged: str | None, if_range: str | None, etag: str, size: int) -> tuple[int, int] | None:
    """As `byte_range`, if the condition holds; a date never does, as nothing here has one.  Errors: Unsatisfiable."""
    if if_range is not None and not matches(if_range, etag, weak=False):
        return None
    return byte_range(ranged, size)


def bare(etag: str) -> str:
    """A tag as clients send it back, with or without quotes."""
    return etag.strip().removeprefix("W/").strip('"')
