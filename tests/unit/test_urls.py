"""Signed URLs, and the ranges and conditions of a GET."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qsl, quote, urlencode

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from artfs.errors import ArtfsError, DeniedError, InvalidError, NotFoundError
from artfs.store.ranges import Unsatisfiable, bare, byte_range, matches, wanted_range
from artfs.store.urls import READ, WHOLE, WRITE, Signed, check_id, check_part, check_type, sign, verify

SECRET = b"s" * 32
URL = Signed(READ, "1-100000000", 1000, type="text/plain", name="a b.txt")

ids = st.text("abcXYZ019._@-", min_size=1, max_size=20).filter(lambda id: id not in (".", ".."))
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
signeds = st.one_of(
    st.builds(Signed, st.just(READ), ids, st.integers(0, 10**11), st.just(WHOLE), texts, texts),
    st.builds(Signed, st.just(WRITE), ids, st.integers(0, 10**11), st.integers(0, 10_000), texts, texts),
)


def _method(signed: Signed) -> str:
    return "GET" if signed.kind == READ else "PUT"


# what a URL says
@given(signeds, st.binary(min_size=32, max_size=32))
def test_what_was_signed_comes_back(signed: Signed, secret: bytes) -> None:
    assume(signed.expires > 0)
    target = sign(secret, signed)
    assert target.isascii() and target.isprintable() and " " not in target
    assert verify(secret, _method(signed), target, signed.expires - 1) == signed


@given(signeds, signeds)
def test_a_signature_fits_one_url_alone(signed: Signed, other: Signed) -> None:
    assume(signed != other and other.expires > 0 and signed.expires > 0)
    mine, theirs = sign(SECRET, signed), sign(SECRET, other)
    path, _, query = theirs.partition("?")
    stolen = dict(parse_qsl(query)) | {"signature": dict(parse_qsl(mine.partition("?")[2]))["signature"]}
    with pytest.raises(DeniedError, match="signature"):
        verify(SECRET, _method(other), f"{path}?{urlencode(stolen, quote_via=quote)}", 0)


@given(st.integers(0, 300), st.characters(min_codepoint=33, max_codepoint=126))
def test_a_changed_character_is_refused(at: int, character: str) -> None:
    target = sign(SECRET, URL)
    at %= len(target)
    changed = target[:at] + character + target[at + 1 :]
    assume(changed != target)
    try:
        found = verify(SECRET, "GET", changed, 0)
    except ArtfsError as error:
        assert error.http_status in (403, 404)
    else:
        assert found == URL  # another spelling of the same, such as %2f for %2F


def test_another_secret_fits_nothing() -> None:
    with pytest.raises(DeniedError, match="signature"):
        verify(b"t" * 32, "GET", sign(SECRET, URL), 0)


def test_time_is_over_exactly_then() -> None:
    target = sign(SECRET, URL)
    assert verify(SECRET, "GET", target, 999.999) == URL
    with pytest.raises(DeniedError, match="expired at 1970-01-01 00:16:40 UTC; ask for a new one"):
        verify(SECRET, "GET", target, 1000)


def test_a_forged_url_is_not_told_that_it_expired() -> None:
    target = sign(SECRET, URL).replace("expires=1000", "expires=999")
    with pytest.raises(DeniedError, match="signature"):
        verify(SECRET, "GET", target, 2000)


@pytest.mark.parametrize(
    ("kind", "method", "good"),
    [(READ, "GET", True), (READ, "HEAD", True), (READ, "PUT", False), (WRITE, "PUT", True), (WRITE, "GET", False)],
)
def test_a_url_is_for_its_method(kind: str, method: str, good: bool) -> None:
    target = sign(SECRET, Signed(kind, "x", 1000))
    if good:
        assert verify(SECRET, method, target, 0).kind == kind
    else:
        with pytest.raises(DeniedError, match="this URL is for"):
            verify(SECRET, method, target, 0)


@pytest.mark.parametrize(
    "path",
    ["/", "", "/get", "/get/", "/get/a/1", "/put/a/0", "/put/a/01", "/put/a/1/2", "/put/a/100000", "/put/../x",
     "/GET/a", "/get/a%2fb", "//get/a", "http://x/get/a"],
)  # fmt: skip
def test_no_path_of_ours(path: str) -> None:
    with pytest.raises(NotFoundError):
        verify(SECRET, "GET", path, 0)


@pytest.mark.parametrize("more", ["&expires=1000", "&x=1", "&name=", "&" + "a=1&" * 9])
def test_parameters_that_are_not_signed_are_refused(more: str) -> None:
    target = sign(SECRET, URL)
    if more == "&name=":
        target = target.replace("name=a%20b.txt", "name=c")
    with pytest.raises(DeniedError):
        verify(SECRET, "GET", target + more, 0)


@pytest.mark.parametrize("expires", ["", "-1", "1e3", "٣", "9" * 13])
def test_an_expiry_that_is_no_number(expires: str) -> None:
    with pytest.raises(DeniedError):
        verify(SECRET, "GET", f"/get/x?expires={quote(expires)}&signature=a", 0)


def test_numbers_of_parts() -> None:
    assert [check_part(1), check_part(10_000)] == [1, 10_000]
    for bad in (0, -1, 10_001, True, "1", 1.0):
        with pytest.raises(InvalidError, match="Part number must be between 1 and 10,000"):
            check_part(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a b", "ü", "a" * 129, "a\n"])
def test_no_id_of_an_upload(id: str) -> None:
    with pytest.raises(InvalidError):
        check_id(id)


def test_types() -> None:
    assert check_type(None) == ""
    assert check_type("text/plain; charset=utf-8") == "text/plain; charset=utf-8"
    for bad in ("text/plain\r\nSet-Cookie: x", " text/plain", "tëxt", "a" * 256):
        with pytest.raises(InvalidError):
            check_type(bad)


def test_parts_differ() -> None:
    one = Signed(WRITE, "x", 1000, part=1)
    assert sign(SECRET, one) != sign(SECRET, replace(one, part=2))


# ranges
@given(st.integers(0, 50), st.integers(0, 60), st.one_of(st.none(), st.integers(0, 60)))
def test_a_range_is_a_slice(size: int, first: int, last: int | None) -> None:
    data = bytes(range(size))
    header = f"bytes={first}-{'' if last is None else last}"
    if last is not None and last < first:
        assert byte_range(header, size) is None
    elif first >= size:
        with pytest.raises(Unsatisfiable):
            byte_range(header, size)
    else:
        found = byte_range(header, size)
        assert found is not None
        assert data[found[0] : found[1]] == data[first : size if last is None else last + 1]


@given(st.integers(0, 50), st.integers(0, 60))
def test_a_suffix_is_the_end(size: int, length: int) -> None:
    data = bytes(range(size))
    if not size or not length:
        with pytest.raises(Unsatisfiable):
            byte_range(f"bytes=-{length}", size)
    else:
        found = byte_range(f"bytes=-{length}", size)
        assert found is not None
        assert data[found[0] : found[1]] == data[-length:]


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes=", "bytes=-", "bytes=1-2,4-5", "items=1-2", "bytes=a-b", "bytes=1-2x", "bytes=٣-", "1-2"],
)
def test_what_is_no_single_range_means_all(header: str | None) -> None:
    assert byte_range(header, 10) is None


def test_conditions() -> None:
    assert matches('"a"', "a", weak=False)
    assert matches('W/"b", "a"', "a", weak=False)
    assert matches("*", "a", weak=False)
    assert matches('W/"a"', "a", weak=True)
    assert not matches('W/"a"', "a", weak=False)
    assert not matches("a", "a", weak=True)
    assert not matches(None, "a", weak=True)
    assert wanted_range("bytes=1-2", '"a"', "a", 10) == (1, 3)
    assert wanted_range("bytes=1-2", '"b"', "a", 10) is None
    assert wanted_range("bytes=1-2", "Sat, 21 Nov 2026 05:18:57 GMT", "a", 10) is None
    assert bare('"a"') == bare("a") == bare('W/"a"') == bare(' "a" ') == "a"
