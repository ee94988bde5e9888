"""Random histories of namespaces against the reference: operations, commits, checkpoints, restores, clones, crashes.

After every step each tree, each checkpoint and every row key is compared. Operations also run while a commit is under
way, as they do in a mount: between the sealing of its batches and the engine's transaction, and between that and the
moment when the tree learns of it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from artfs.errors import FsError, UnavailableError
from artfs.meta.memory import MemoryEngine
from artfs.meta.sqlite import SqliteEngine
from artfs.objects.held import HeldObjects
from artfs.objects.local import LocalObjects
from artfs.sessions.memory import MemorySessions
from artfs.settings import Settings
from artfs.store.store import Store
from artfs.types import Scope
from artfs.volume.journal import Journal, NoJournal
from artfs.volume.shard import Shard
from artfs.volume.volume import SAFETY, SAFETY_KEPT
from tests.model.machine import BLOCK, OPERATIONS, Operation, Space
from tests.reference import Reference

SETTINGS = Settings(block_size=BLOCK, journal_size=8 << 20, umask=0, uid=0, gid=0)
SEVERAL = st.lists(OPERATIONS, min_size=1, max_size=6)
WHICH = st.integers(0, 3)
SPACES = 3
START: list[Operation] = [
    ("mkdir", 0, "d", 0o755),
    ("create", 1, "f", 0o4755),
    ("write", 0, 100, 200_000, 1, 0),
    ("setxattr", 2, "user.a", 1, 0),
    ("mkdir", 1, "e", 0o2755),
    ("create", 0, "g", 0o644),
    ("write", 1, 0, 3000, 2, 0),
]
CHECKPOINTS = 4


class Histories(RuleBasedStateMachine):
    """A store in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names = count()
        self.spaces: list[Space] = []
        self.store = trio.run(self.open)
        trio.run(self.new_space)

    async def open(self) -> Store:
        shard = Shard(MemoryEngine(), NoJournal(), HeldObjects(), SETTINGS)
        return Store(None, shard, MemorySessions(), SETTINGS)

    async def new_space(self) -> None:
        name = f"n{next(self.names)}"
        namespace = await self.store.create_namespace("box", Scope.SANDBOX, None, name, mode=0o755)
        self.spaces.append(Space(self.store.volume(namespace), Reference()))

    @initialize()
    def populate(self) -> None:
        for operation in START:
            self.spaces[0].apply(operation)

    def space(self, which: int) -> Space:
        return self.spaces[which % len(self.spaces)]

    @rule(which=WHICH, operations=SEVERAL)
    def work(self, which: int, operations: list[Operation]) -> None:
        for operation in operations:
            self.space(which).apply(operation)

    @rule(which=WHICH, operations=SEVERAL)
    def work_more(self, which: int, operations: list[Operation]) -> None:
        self.work(which, operations)

    # commits
    @rule(before=st.lists(OPERATIONS, max_size=3), after=st.lists(OPERATIONS, max_size=3), fails=st.booleans())
    def commit(self, before: list[Operation], after: list[Operation], fails: bool) -> None:
        """With operations while it is under way; one that fails is tried again by the next."""

        def fail() -> None:
            self.work(0, before)
            raise UnavailableError("as asked")

        if fails:
            with pytest.raises(UnavailableError):
                self.meanwhile(fail)
        else:
            self.meanwhile(lambda: self.work(0, before), lambda: self.work(0, after))

    def meanwhile(self, before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
        """Commit, and call these before and after the engine's transaction, while the tree waits for it."""
        engine = self.store.shard.engine
        real = engine.commit
        self.store.shard.catalogue.records["model", "x"] = ""  # a commit of nothing is none

        def commit(*args: Any, **kwargs: Any) -> None:
            engine.commit = real  # type: ignore[method-assign]
            before()
            real(*args, **kwargs)
            after()

        engine.commit = commit  # type: ignore[method-assign]
        try:
            trio.run(self.store.shard.commit)
        finally:
            engine.commit = real  # type: ignore[method-assign]

    # versions
    @rule(which=WHICH)
    def checkpoint(self, which: int) -> None:
        space = self.space(which)
        if len(space.saved) < CHECKPOINTS:
            made = trio.run(self.store.checkpoint, space.volume, "c")
            space.saved[made.id] = space.reference.copy()

    @precondition(lambda self: any(space.saved for space in self.spaces))
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        space = data.draw(st.sampled_from([space for space in self.spaces if space.saved]))
        self.go_back(space, data.draw(st.sampled_from(list(space.saved))))

    def go_back(self, space: Space, id: str) -> None:
        before = space.reference
        restored = trio.run(space.volume.restore, id)
        space.reference = space.saved[id].copy()
        space.saved[restored.safety.id] = before.copy()
        safeties = [name for name in space.saved if name.startswith(SAFETY)]
        for old in safeties[:-SAFETY_KEPT]:
            if old != id:
                del space.saved[old]
        self.follow(space, before, restored.stale)

    def follow(self, space: Space, before: Reference, stale: list[Any]) -> None:
        """Held inodes after a restore: void if it changed them, else those of the restored tree."""
        named = {file.ident: file for _, file in space.reference.walk()}
        kept = []
        for held in space.held:
            same = named.get(held.file.ident)
            if held.node in stale:
                with pytest.raises(FsError):
                    held.node.tree.setattr(held.node, 0, 0, 0, 0, 0, 0, 0, 0)
                held.node.looks -= 1
                if not held.node.looks:
                    held.node.tree.rest(held.node)
                continue
            if same is None:
                assert held.file.nlink == 0
            else:
                held.file = same
            kept.append(held)
        space.held = kept

    @precondition(lambda self: any(space.saved for space in self.spaces))
    @rule(data=st.data())
    def delete_checkpoint(self, data: st.DataObject) -> None:
        space = data.draw(st.sampled_from([space for space in self.spaces if space.saved]))
        id = data.draw(st.sampled_from(list(space.saved)))
        trio.run(space.volume.delete_checkpoint, id)
        del space.saved[id]

    # namespaces
    @precondition(lambda self: len(self.spaces) < SPACES)
    @rule(data=st.data())
    def clone(self, data: st.DataObject) -> None:
        space = data.draw(st.sampled_from(self.spaces))
        id = data.draw(st.sampled_from([None, *space.saved]))
        namespace = trio.run(self.store.clone, space.volume, f"n{next(self.names)}", id)
        source = space.reference if id is None else space.saved[id]
        self.spaces.append(Space(self.store.volume(namespace), source.copy()))

    @precondition(lambda self: len(self.spaces) > 1)
    @rule(which=WHICH)
    def destroy(self, which: int) -> None:
        space = self.space(which)
        trio.run(lambda: self.store.destroy_namespace(space.volume.namespace, for_good=True))
        self.spaces.remove(space)
        assert self.store.shard.engine.serials() == {other.tree.serial for other in self.spaces}

    @precondition(lambda self: any(space.saved for space in self.spaces))
    @rule(data=st.data())
    def trash_and_undelete(self, data: st.DataObject) -> None:
        space = data.draw(st.sampled_from([space for space in self.spaces if space.saved]))
        namespace = space.volume.namespace
        assert trio.run(self.store.destroy_namespace, namespace)
        back = trio.run(self.store.undelete_namespace, namespace.id)
        space.volume = self.store.volume(back)
        space.held = []

    @invariant()
    def everything_is_as_in_the_reference(self) -> None:
        assert self.store.shard.failure is None
        for space in self.spaces:
            space.check()
            if not any(batch.checkpoint for batch in space.tree.closed_batches):
                space.check_views()

    def teardown(self) -> None:
        trio.run(self.store.shard.close)


class DurableHistories(Histories):
    """A store on disk, which crashes: only what the files hold comes back."""

    async def open(self) -> Store:
        if not hasattr(self, "root"):
            self.root = Path(tempfile.mkdtemp(prefix="artfs-model-"))
            (self.root / "objects").mkdir()
        engine = SqliteEngine(self.root / "meta.db")
        journal = Journal(self.root / "journal", SETTINGS.journal_size)
        shard = Shard(engine, journal, LocalObjects(self.root / "objects"), SETTINGS)
        store = Store(self.root, shard, MemorySessions(), SETTINGS)
        await shard.recover()
        return store

    def reopen(self) -> None:
        places = [space.volume.namespace.place for space in self.spaces]
        names = [space.volume.namespace.entry for space in self.spaces]
        self.store = trio.run(self.open)
        for space, place, name in zip(self.spaces, places, names, strict=True):
            space.volume = self.store.volume(self.store.namespace_at(*place, name))
            space.held = []

    @rule()
    def crash(self) -> None:
        self.store.shard.abandon()
        self.reopen()

    @rule(operations=SEVERAL, committed=st.booleans())
    def crash_in_a_commit(self, operations: list[Operation], committed: bool) -> None:
        """Before the engine has the batches, or when it has them and the journal is not freed."""

        def die() -> None:
            self.work(0, operations)
            raise UnavailableError("the process ends here")

        with pytest.raises(UnavailableError):
            self.meanwhile(*((lambda: None, die) if committed else (die, lambda: None)))
        self.crash()

    @rule()
    def close_and_open(self) -> None:
        trio.run(self.store.shard.close)
        self.reopen()

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.root)


EXAMPLES = int(os.environ.get("ARTFS_TEST_EXAMPLES", "60"))
HISTORY = settings(
    max_examples=EXAMPLES, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMemory = Histories.TestCase
TestMemory.settings = HISTORY
TestSqlite = DurableHistories.TestCase
TestSqlite.settings = HISTORY
