"""A search for cycles stops everything for as long as it takes to look at all objects: half a second where a mount
knows 100 000 files.  Nearly all that it looks at is what it has looked at before, and is there to stay.

So what has outlived a full search is *kept*: the next ones pass over it.  What ends all the same goes without a search,
unless it is in a cycle; for those, everything is looked at again when twice as much is kept as the last time.  For
processes that are all ours: a library must leave this to its program.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

FULL = 2
"""The generation of a full search."""
FEW = 100_000
"""Objects that are looked at each time."""


class Keeper:
    """What the interpreter calls before and behind each search.  `looked_at`: objects that were kept after the last
    search that looked at all."""

    def __init__(self) -> None:
        self.looked_at = 0

    def __call__(self, phase: str, info: Mapping[str, Any]) -> None:
        if info["generation"] != FULL:
            return
        if phase == "start":
            if gc.get_freeze_count() > 2 * max(self.looked_at, FEW):
                gc.unfreeze()
                self.looked_at = 0
        else:
            gc.freeze()
            self.looked_at = self.looked_at or gc.get_freeze_count()


def keep() -> None:
    """From now on; what is there already is kept."""
    gc.callbacks.append(Keeper())
    gc.collect()
