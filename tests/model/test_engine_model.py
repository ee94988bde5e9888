"""Random histories of two namespaces, and of what is cloned from them, against a dict for each checkpoint.

The reference is the definition of correct: a namespace is a dict of versioned rows and one of plain rows,
and a checkpoint is a copy of the first.  After every step each view equals it, and `check` finds nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from artfs.meta import Batch, Change, Checkpoint, Engine
from artfs.meta.memory import MemoryEngine
from artfs.meta.sqlite import SqliteEngine
from artfs.types import Epoch, Serial

KEYS = st.sampled_from([b"A", b"B", b"Ba", b"C\xff", b"D", b"x", b"y"])
VALUES = st.one_of(st.none(), st.binary(max_size=2))
ROWS = st.dictionaries(KEYS, VALUES, max_size=4)
SOURCES = st.sampled_from([Serial(1), Serial(2)])


@dataclass
class Model:
    """One namespace; `epoch` is the one that is being written."""

    epoch: int = 1
    head: dict[bytes, bytes] = field(default_factory=dict)
    plain: dict[bytes, bytes] = field(default_factory=dict)
    saved: dict[int, dict[bytes, bytes]] = field(default_factory=dict)

    def apply(self, rows: dict[bytes, bytes | None]) -> None:
        for key, value in rows.items():
            into = self.head if key < b"\x60" else self.plain
            if value is None:
                into.pop(key, None)
            else:
                into[key] = value


def differences(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> list[Change]:
    keys = sorted(set(before) | set(after))
    return [Change(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.models = {Serial(1): Model(), Serial(2): Model()}
        self.records: dict[str, str] = {}
        self.last_serial = 2
        self.engine = self.open()

    def open(self) -> Engine:
        return MemoryEngine()

    def teardown(self) -> None:
        self.engine.close()

    def pin(self, epoch: int) -> Checkpoint:
        return Checkpoint(Epoch(epoch), f"i{epoch}", f"v{epoch}", epoch, Serial(1000 + epoch), (epoch, 1))

    @rule(serial=SOURCES, rows=ROWS)
    def write(self, serial: Serial, rows: dict[bytes, bytes | None]) -> None:
        model = self.models[serial]
        self.engine.commit([Batch(serial, Epoch(model.epoch), rows)])
        model.apply(rows)

    @rule(first=ROWS, second=ROWS, third=ROWS, name=st.sampled_from("ab"), text=st.none() | st.just("doc"))
    def write_several(
        self,
        first: dict[bytes, bytes | None],
        second: dict[bytes, bytes | None],
        third: dict[bytes, bytes | None],
        name: str,
        text: str | None,
    ) -> None:
        """Rows, a checkpoint, rows after it, and the other namespace's, in one transaction."""
        one, two = self.models[Serial(1)], self.models[Serial(2)]
        batches = [
            Batch(Serial(1), Epoch(one.epoch), first, self.pin(one.epoch)),
            Batch(Serial(2), Epoch(two.epoch), third),
            Batch(Serial(1), Epoch(one.epoch + 1), second),
        ]
        self.engine.commit(batches, {("kind", name): text})
        one.apply(first)
        one.saved[one.epoch] = dict(one.head)
        one.epoch += 1
        one.apply(second)
        two.apply(third)
        if text is None:
            self.records.pop(name, None)
        else:
            self.records[name] = text

    @rule(serial=SOURCES, rows=ROWS, skip=st.integers(0, 2))
    def checkpoint(self, serial: Serial, rows: dict[bytes, bytes | None], skip: int) -> None:
        model = self.models[serial]
        model.epoch += skip
        self.engine.commit([Batch(serial, Epoch(model.epoch), rows, self.pin(model.epoch))])
        model.apply(rows)
        model.saved[model.epoch] = dict(model.head)
        model.epoch += 1

    def pinned(self) -> list[tuple[Serial, int]]:
        return [(serial, epoch) for serial, model in sorted(self.models.items()) for epoch in sorted(model.saved)]

    @precondition(lambda self: self.pinned())
    @rule(data=st.data(), then=ROWS)
    def restore(self, data: st.DataObject, then: dict[bytes, bytes | None]) -> None:
        serial, at = data.draw(st.sampled_from(self.pinned()))
        model = self.models[serial]
        want = differences(model.head, model.saved[at])
        assert self.engine.changed_by_restore(serial, Epoch(at)) == want
        self.engine.restore(serial, Epoch(at), Epoch(model.epoch), then)
        model.head = dict(model.saved[at])
        model.apply(then)

    @precondition(lambda self: self.pinned())
    @rule(data=st.data())
    def delete_checkpoint(self, data: st.DataObject) -> None:
        serial, at = data.draw(st.sampled_from(self.pinned()))
        self.engine.delete_checkpoint(serial, Epoch(at))
        del self.models[serial].saved[at]

    @precondition(lambda self: self.pinned())
    @rule(data=st.data())
    def diff(self, data: st.DataObject) -> None:
        serial, a = data.draw(st.sampled_from(self.pinned()))
        model = self.models[serial]
        b = data.draw(st.sampled_from([None, *(epoch for epoch in sorted(model.saved) if epoch >= a)]))
        later = model.head if b is None else model.saved[b]
        found = self.engine.diff(serial, Epoch(a), None if b is None else Epoch(b))
        assert found == differences(model.saved[a], later)

    @rule(serial=SOURCES, data=st.data(), rows=ROWS)
    def clone(self, serial: Serial, data: st.DataObject, rows: dict[bytes, bytes | None]) -> None:
        """Onto the other namespace's place half of the time, so that clones are written to as well."""
        model = self.models[serial]
        at = data.draw(st.sampled_from([None, *sorted(model.saved)]))
        if data.draw(st.booleans()):
            target = Serial(3 - serial)
            self.engine.destroy([target])
        else:
            if self.last_serial > 2:  # one such clone at a time keeps the checks fast
                self.engine.destroy([Serial(self.last_serial)])
                del self.models[Serial(self.last_serial)]
            self.last_serial += 1
            target = Serial(self.last_serial)
        self.engine.clone(serial, None if at is None else Epoch(at), target, rows, {})
        self.models[target] = Model(head=dict(model.head if at is None else model.saved[at]))
        self.models[target].apply(rows)

    @rule(serial=SOURCES)
    def destroy(self, serial: Serial) -> None:
        self.engine.destroy([serial])
        self.models[serial] = Model()

    @invariant()
    def every_view_matches(self) -> None:
        for serial, model in self.models.items():
            want = {**model.head, **model.plain}
            assert self.engine.scan(serial, b"") == sorted(want.items())
            assert self.engine.get(serial, b"A") == want.get(b"A")
            assert [found.epoch for found in self.engine.checkpoints(serial)] == sorted(model.saved)
            for epoch, rows in model.saved.items():
                assert self.engine.scan(serial, b"", Epoch(epoch)) == sorted(rows.items())
                for key in (b"A", b"x"):
                    assert self.engine.get(serial, key, Epoch(epoch)) == rows.get(key)
        assert self.engine.records("kind") == self.records
        held = {serial for serial, model in self.models.items() if model.head or model.plain or model.saved}
        assert self.engine.serials() == held

    @invariant()
    def nothing_is_wrong_and_no_garbage_is_kept(self) -> None:
        assert self.engine.check() == []


class SqliteHistories(Histories):
    def open(self) -> Engine:
        if not hasattr(self, "scratch"):
            self.scratch = tempfile.TemporaryDirectory()
        return SqliteEngine(Path(self.scratch.name) / "meta.db")

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self.engine = self.open()

    def teardown(self) -> None:
        super().teardown()
        self.scratch.cleanup()


TestMemory = Histories.TestCase
TestMemory.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestSqlite = SqliteHistories.TestCase
TestSqlite.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
