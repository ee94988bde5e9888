"""Postings: a term that one BLOB has alone, and what happens when others get it and lose it; documents that share."""

from __future__ import annotations

from dataclasses import replace

from artfs.types import NamespaceType, Scope, Serial
from artfs.volume.catalogue import Namespace, pack, unpack, unpack_all
from artfs.volume.postings import OWN, Postings

TERM = ("meta", "box", "key", "value")


def newest(postings: Postings) -> list[int]:
    return list(postings.get(TERM).newest_first())


def test_one_two_and_none() -> None:
    postings = Postings()
    assert newest(postings) == []
    for serial in (5, 9, 7):
        postings.move(Serial(serial), [], [TERM])
    assert newest(postings) == [9, 7, 5]
    for serial, left in ((9, [7, 5]), (5, [7]), (7, [])):
        postings.move(Serial(serial), [TERM], [])
        assert newest(postings) == left
    postings.move(Serial(3), [], [TERM])
    assert newest(postings) == [3]
    assert len(postings.get(TERM)) == 1
    assert Serial(3) in postings.get(TERM)
    postings.move(Serial(3), [TERM], [])
    assert postings._terms == {}


def test_an_older_one_comes_second() -> None:
    postings = Postings()
    postings.move(Serial(9), [], [TERM])
    postings.move(Serial(4), [], [TERM])
    assert newest(postings) == [9, 4]


def test_types_are_known_as_long_as_somebody_has_them() -> None:
    postings = Postings()
    one, two = ("mime", "box", "text/plain"), ("mime", "box", "text/html")
    postings.move(Serial(1), [], [one])
    postings.move(Serial(2), [], [one])
    postings.move(Serial(3), [], [two])
    assert postings.mimes("box", "text/") == [one, two]
    postings.move(Serial(1), [one], [])
    assert postings.mimes("box", "text/p") == [one]
    postings.move(Serial(2), [one], [two])
    assert postings.mimes("box", "") == [two]
    assert postings.mimes("other", "") == []


def test_documents_that_are_read_together_share_what_is_the_same() -> None:
    metadata = {"user": "x", OWN: {"mime": "text/plain", "session": "sess-1", "bytes": 3}}
    first = Namespace(
        Serial(1), "a", NamespaceType.BLOB, "box", Scope.SESSION, "1", None, 7, 1 << 20, "p", metadata=metadata
    )
    made = [replace(first, serial=Serial(number), id=f"a{number}") for number in range(2500)]
    documents = [pack(each) for each in made]
    found = list(unpack_all(documents))
    assert found == made == [unpack(document) for document in documents]
    assert found[0].sandbox is found[-1].sandbox
    assert found[0].metadata[OWN]["session"] is found[-1].metadata[OWN]["session"]
    short = (
        '{"serial": 1, "id": "a", "type": "blob", "sandbox": "box", "scope": "sandbox", "owner": null, "name": null, '
        '"created": 7, "block_size": 4096, "prefix": "p"}'
    )
    assert list(unpack_all([short])) == [unpack(short)]  # of before there were the other fields
