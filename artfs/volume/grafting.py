"""Recovery of namespaces for whose provider the newest copy of the metadata is not complete: they are as the newest has
them that is complete for it, so that all that it names is there.

What is taken from there: their rows, checkpoints and metadata.  Where they are, how they are called and how long they
live is as in the newest copy, and so is what is gone there.  One that the older copy does not know stays as it is in
the newest: some of its bytes may be nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from artfs.meta import Batch
from artfs.meta.sqlite import SqliteEngine
from artfs.meta.sqlite.pages import transplant
from artfs.types import Epoch
from artfs.volume.catalogue import Catalogue
from artfs.volume.rows import HEAD_KEY, Head


@dataclass(frozen=True, slots=True)
class Copy:
    """A database that is complete for these providers, of the moment; without `path`: what is behind, of which there is
    none until a later one says so."""

    path: Path | None
    moment: int
    providers: frozenset[str]


def graft(newest: Path, copies: Iterable[Copy]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Take the namespaces of providers that are behind in the database `newest` from the copies.  Returns grid paths:
    with their moments those that come from one, and those that come from none.  Nobody has the databases open.
    Errors: as the engine."""
    older: dict[str, int] = {}
    partial: set[str] = set()
    for copy in copies:
        late = _graft(newest, copy)
        partial |= late.keys()
        known = {path for path, found in late.items() if found}
        older |= dict.fromkeys(known, copy.moment)
        partial -= known
    return older, tuple(sorted(partial))


def _graft(newest: Path, copy: Copy) -> dict[str, bool]:
    """Grid path of each namespace of the copy's providers → whether it was taken from it."""
    ours = SqliteEngine(newest, create=False)
    try:
        catalogue = Catalogue(ours)
        late = {serial: each for serial, each in catalogue.by_serial.items() if each.provider in copy.providers}
        if copy.path is None or not late:
            return {each.grid_path: False for each in late.values()}
        theirs = SqliteEngine(copy.path, create=False)
        try:
            known = {serial: each for serial, each in Catalogue(theirs).by_serial.items() if serial in late}
        finally:
            theirs.close()
        counts = {}
        for serial, before in known.items():
            catalogue.put(replace(late[serial], metadata=before.metadata))
            value = ours.get(serial, HEAD_KEY)
            counts[serial] = Head.unpack(value).objects if value is not None else 0
        transplant(newest, copy.path, known)
        batches = []
        for serial, count in counts.items():  # objects of later numbers may be in the provider
            value = ours.get(serial, HEAD_KEY)
            if value is not None:
                head = Head.unpack(value)
                row = head._replace(objects=max(head.objects, count)).pack()
                batches.append(Batch(serial, Epoch(head.epoch), {HEAD_KEY: row}))
        ours.commit(batches, catalogue.records)
        return {each.grid_path: serial in known for serial, each in late.items()}
    finally:
        ours.close()
