"""Random histories with the collection of garbage among them: at every moment of a run, and killed at any step of it.

The store is compared with the reference after every step, the open views of checkpoints too, and when nothing goes on
for three runs no object is left that no row names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from artfs.meta import Row
from artfs.meta.sqlite import SqliteEngine
from artfs.objects.local import LocalObjects
from artfs.sessions.memory import MemorySessions
from artfs.store.store import Store
from artfs.volume import compaction
from artfs.volume.journal import Journal
from artfs.volume.marks import BLOCKS, named_in
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree
from tests.contract.garbage import OneProvider, close_open
from tests.model.machine import OPERATIONS, Operation, Space, compare
from tests.model.test_tree_model import CHECKPOINTS, HISTORY, SETTINGS, SPACES, DurableHistories, Histories
from tests.reference import Reference

GRACE = {"gc_grace": 0.0}
MEANWHILE = st.lists(
    st.one_of(
        st.tuples(st.just("work"), st.lists(OPERATIONS, min_size=1, max_size=4)),
        st.tuples(st.sampled_from(["commit", "checkpoint", "restore", "clone", "delete", "close"]), st.none()),
    ),
    max_size=4,
)
Step = tuple[str, list[Operation] | None]


class _Killed(Exception):
    pass


class Collected(Histories):
    """`views`: open trees of checkpoints, with what they must hold."""

    def __init__(self) -> None:
        self.views: list[tuple[Tree, Space, str, Reference]] = []
        self.before = compaction.DEAD_BYTES
        compaction.DEAD_BYTES = 2000  # objects of a history have no hundreds of KiB of garbage
        super().__init__()

    async def open(self) -> Store:
        store = await super().open()
        store.settings = store.shard.settings = store.settings.model_copy(update=GRACE)
        return store

    def teardown(self) -> None:
        compaction.DEAD_BYTES = self.before
        super().teardown()

    @rule()
    def objects_take_no_more(self) -> None:
        close_open(self.store.shard.objects)

    @precondition(lambda self: any(space.saved for space in self.spaces))
    @rule(data=st.data())
    def open_view(self, data: st.DataObject) -> None:
        space = data.draw(st.sampled_from([space for space in self.spaces if space.saved]))
        id = data.draw(st.sampled_from(list(space.saved)))
        view = trio.run(space.volume.view, id)
        compare(view, space.saved[id])
        self.views.append((view, space, id, space.saved[id].copy()))

    @rule(steps=MEANWHILE, which=st.integers(0, 3), at=st.integers(0, 40))
    def collect(self, steps: list[Step], which: int, at: int) -> None:
        """With other work after that many rows of its first passes over them."""
        with self.while_rows_are_read(steps, which, at):
            trio.run(self.store.collector.collect)

    @rule()
    def collect_all(self) -> None:
        close_open(self.store.shard.objects)
        trio.run(self.store.shard.commit)
        for _ in range(3):
            trio.run(self.store.collector.collect)
        shard = self.store.shard
        trio.run(shard.commit)
        there = {number for serial in shard.objects.prefixes for number in trio.run(shard.remote.objects, serial)}
        named = {number for row in shard.engine.named(BLOCKS) for number, _, _ in named_in(row.value)}
        assert there == named - shard.objects.open_objects().keys()
        assert not shard.catalogue.doomed

    @contextmanager
    def while_rows_are_read(self, steps: list[Step], which: int, at: int) -> Iterator[None]:
        engine = self.store.shard.engine
        real = engine.named
        todo = list(steps)

        def named(*args: Any) -> Iterator[Row]:
            for count, row in enumerate(real(*args)):
                if count >= at and todo:  # in the thread that reads them; the loop waits for it
                    self.step(todo.pop(0), which)
                yield row

        engine.named = named  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            engine.named = real  # type: ignore[method-assign]

    def step(self, step: Step, which: int) -> None:
        kind, operations = step
        space = self.space(which)
        if kind == "work":
            self.work(which, operations or [])
        elif kind == "commit":
            trio.run(self.store.shard.commit)
        elif kind == "close":
            close_open(self.store.shard.objects)
        elif kind == "checkpoint" and len(space.saved) < CHECKPOINTS:
            made = trio.run(self.store.checkpoint, space.volume, "c")
            space.saved[made.id] = space.reference.copy()
        elif kind == "restore" and space.saved:
            self.go_back(space, next(iter(space.saved)))
        elif kind == "delete" and space.saved:
            id = next(iter(space.saved))
            trio.run(space.volume.delete_checkpoint, id)
            del space.saved[id]
        elif kind == "clone" and len(self.spaces) < SPACES:
            namespace = trio.run(self.store.clone, space.volume, f"n{next(self.names)}", None)
            self.spaces.append(Space(self.store.volume(namespace), space.reference.copy()))

    @invariant()
    def views_are_as_they_were(self) -> None:
        self.views = [held for held in self.views if held[1] in self.spaces and held[2] in held[1].saved]
        for view, space, _, saved in self.views:
            if view.serial == space.tree.serial:
                compare(view, saved)


class DurableCollected(Collected, DurableHistories):
    def reopen(self) -> None:
        self.views.clear()
        super().reopen()

    @rule(at=st.integers(0, 12))
    def killed_while_collecting(self, at: int) -> None:
        """At a step that changes something on the disk, before it is done."""
        shard = self.store.shard
        left = [at]

        def killing(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if not left[0]:
                    raise _Killed
                left[0] -= 1
                return real(*args, **kwargs)

            return call

        trio.run(shard.commit)
        targets: list[tuple[Any, str]] = [
            (shard.engine, "commit"),
            (shard.engine, "swap"),
            (shard.objects, "remove"),
            (shard.objects, "append_all"),
        ]
        for target, name in targets:
            setattr(target, name, killing(getattr(target, name)))
        try:
            for _ in range(3):
                trio.run(self.store.collector.collect)
        except _Killed:
            pass
        else:
            assert left[0] >= 0
        self.crash()


class BackedCollected(DurableCollected):
    """Of namespaces whose bytes a provider keeps."""

    async def open(self) -> Store:
        if not hasattr(self, "root"):
            self.root = Path(tempfile.mkdtemp(prefix="artfs-model-"))
            (self.root / "objects").mkdir()
        values = SETTINGS.model_copy(update={**GRACE, "provider": "test:", "cache_reserve": 0, "upload_delay": 3600.0})
        engine = SqliteEngine(self.root / "meta.db")
        journal = Journal(self.root / "journal", SETTINGS.journal_size)
        objects = LocalObjects(self.root / "objects")
        shard = Shard(engine, journal, objects, values, OneProvider(self.root / "provider"))
        store = Store(self.root, shard, MemorySessions(), values)
        await shard.recover()
        shard.remote.load()
        return store

    @rule()
    def push(self) -> None:
        async def work() -> None:
            remote = self.store.shard.remote
            async with trio.open_nursery() as tasks:
                tasks.start_soon(remote.run)
                await remote.push()
                tasks.cancel_scope.cancel()

        trio.run(work)

    @rule()
    def lose_the_cache(self) -> None:
        trio.run(self.store.shard.remote.drop)


TestMemory = Collected.TestCase
TestMemory.settings = HISTORY
TestSqlite = DurableCollected.TestCase
TestSqlite.settings = settings(HISTORY, stateful_step_count=30)
TestBacked = BackedCollected.TestCase
TestBacked.settings = TestSqlite.settings
