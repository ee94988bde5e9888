"""What BLOBs are found by, besides their ids: in memory, kept by the catalogue, the newest first.

A *posting* is the set of the BLOBs that have one term.  Terms are tuples, each of one sandbox:

    ("all", sandbox)                   ("mime", sandbox, type)          ("owner", sandbox, user)
    ("place", sandbox, directory)      ("meta", sandbox, key, value)

A value that cannot be hashed is there as its JSON.  So a posting of metadata may hold a little more than what was
asked for (1, 1.0 and True are one term): who looks something up compares what it finds.

Serials grow with time, so a posting's order of insertion is that of making; where something old gets a term late,
the posting is put in order when it is next read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from artfs.types import Serial

OWN = "artfs"
"""The key of a namespace's metadata under which the API keeps what it knows of it.  No key of a user's."""
Term = tuple[Any, ...]


class Posting:
    __slots__ = ("last", "ordered", "serials")

    def __init__(self) -> None:
        self.serials: dict[Serial, None] = {}
        self.last = 0
        self.ordered = True

    def __len__(self) -> int:
        return len(self.serials)

    def __contains__(self, serial: object) -> bool:
        return serial in self.serials

    def add(self, serial: Serial) -> None:
        if serial < self.last:
            self.ordered = False
        else:
            self.last = serial
        self.serials[serial] = None

    def newest_first(self) -> Iterator[Serial]:
        """REQUIRES: nothing is added or removed meanwhile."""
        if not self.ordered:
            self.serials = dict.fromkeys(sorted(self.serials))
            self.ordered = True
        return reversed(self.serials)


class Postings:
    """Most terms of metadata have one BLOB alone: such a one stands for its posting."""

    def __init__(self) -> None:
        self._terms: dict[Term, Posting | Serial] = {}

    def get(self, term: Term) -> Posting:
        """REQUIRES: it is not changed."""
        found = self._terms.get(term)
        if isinstance(found, Posting):
            return found
        posting = Posting()
        if found is not None:
            posting.add(found)
        return posting

    def mimes(self, sandbox: str, prefix: str) -> list[Term]:
        """The terms of all types that begin with `prefix`."""
        found = self.get(("mimes", sandbox)).serials
        return [("mime", sandbox, mime) for mime in found if str(mime).startswith(prefix)]

    def move(self, serial: Serial, old: Collection[Term], new: Collection[Term]) -> None:
        """It had the terms `old`, and has the terms `new`."""
        for term in old:
            if term not in new:
                self._remove(serial, term)
        for term in new:
            if term not in old:
                self._add(serial, term)

    def _add(self, serial: Serial, term: Term) -> None:
        terms = self._terms
        found = terms.get(term)
        if found is None:
            terms[term] = serial
            if term[0] == "mime":
                mimes = terms.setdefault(("mimes", term[1]), Posting())
                assert isinstance(mimes, Posting)
                mimes.serials[term[2]] = None
            return
        if not isinstance(found, Posting):
            first, found = found, Posting()
            found.add(first)
            terms[term] = found
        found.add(serial)

    def _remove(self, serial: Serial, term: Term) -> None:
        terms = self._terms
        found = terms[term]
        if isinstance(found, Posting):
            del found.serials[serial]
            if found.serials:
                return
        del terms[term]
        if term[0] == "mime":
            mimes = terms["mimes", term[1]]
            assert isinstance(mimes, Posting)
            del mimes.serials[term[2]]


def terms(sandbox: str, folder: str, metadata: Mapping[str, Any]) -> list[Term]:
    """Of a BLOB in that scope directory, with that document."""
    found: list[Term] = [("all", sandbox), ("place", sandbox, folder)]
    record = metadata.get(OWN)
    if isinstance(record, dict):
        found.append(("mime", sandbox, str(record.get("mime"))))
        if record.get("owner") is not None:
            found.append(("owner", sandbox, str(record["owner"])))
    found += [("meta", sandbox, key, hashable(value)) for key, value in metadata.items() if key != OWN]
    return found


def hashable(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def rarest(postings: Iterable[Posting]) -> list[Posting]:
    """The shortest first."""
    return sorted(postings, key=len)
