"""Searches for cycles in processes that are all ours, in one that is all the test's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST = """
import gc, sys, weakref
from artfs.cli.pauses import FEW, keep

class Ring:
    def __init__(self):
        self.me = self

keep()
gc.disable()  # searches are those of this test
kept = gc.get_freeze_count()
assert kept > 1000
lost = Ring()
ended = weakref.ref(lost)
gc.collect()
assert gc.get_freeze_count() > kept
assert not gc.is_tracked(1) and len(gc.get_objects()) < 1000

del lost
gc.collect()
assert ended() is not None, "what is kept is passed over"

new = weakref.ref(Ring())
gc.collect(1)
gc.collect()
assert new() is None, "what is new is not"

many = [[] for _ in range(2 * FEW)]
gc.collect()
assert ended() is not None
gc.collect()
assert ended() is None, "there is twice as much, and all is looked at"
assert gc.get_freeze_count() > 2 * FEW
more = [[] for _ in range(2 * FEW)]
lost = Ring()
ended = weakref.ref(lost)
gc.collect()
del lost
gc.collect()
assert ended() is not None, "there is not twice as much"
many.clear()
del many, more
gc.collect()
assert gc.get_freeze_count() < FEW, "what ends without a cycle goes at once"
print("done")
"""


def test_what_is_kept_is_passed_over_until_there_is_twice_as_much() -> None:
    ran = subprocess.run([sys.executable, "-c", TEST], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "done"


def test_the_library_leaves_it_to_its_program() -> None:
    text = "import gc, artfs; artfs.ArtifactStore; assert not gc.callbacks and not gc.get_freeze_count()"
    subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True)
