"""Histories that once went wrong, or that random ones seldom come by, against the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from artfs.errors import UnavailableError
from artfs.volume.journal import Journal, entries
from tests.model.machine import BLOCK, Operation
from tests.model.test_tree_model import DurableHistories, Histories


@pytest.fixture(params=[Histories, DurableHistories])
def history(request: pytest.FixtureRequest) -> Iterator[Histories]:
    found: Histories = request.param()
    yield found
    found.teardown()


@pytest.fixture
def durable() -> Iterator[DurableHistories]:
    found = DurableHistories()
    yield found
    found.teardown()


def do(history: Histories, *operations: Operation) -> None:
    history.work(0, list(operations))
    history.everything_is_as_in_the_reference()


def commit(history: Histories) -> None:
    trio.run(history.store.shard.commit)
    history.everything_is_as_in_the_reference()


def back(history: Histories, id: str) -> None:
    history.go_back(history.spaces[0], id)
    history.everything_is_as_in_the_reference()


def crash(history: Histories) -> None:
    if isinstance(history, DurableHistories):
        history.crash()
        history.everything_is_as_in_the_reference()


MAKERS: dict[str, Operation] = {
    "file": ("create", 0, "a", 0o644),
    "directory": ("mkdir", 0, "a", 0o755),
    "symlink": ("symlink", 0, "a", 9),
    "fifo": ("fifo", 0, "a"),
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("removed", [True, False])
def test_a_restore_of_what_is_held(history: Histories, maker: Operation, removed: bool) -> None:
    """A removed inode that a kernel holds has rows of its own kind; a restore gives it its name back."""
    do(history, maker, ("setxattr", 1, "user.a", 1, 0), ("write", 0, 0, 200_000, 3, 0))
    history.checkpoint(0)
    do(history, ("hold", 1), ("remove", 0, False) if removed else ("setattr", 1, 0o700, None, None, None))
    back(history, "c")
    do(history, ("setattr", 1, 0o711, None, None, None), ("create", 1, "x", 0o644))
    crash(history)
    do(history, ("remove", 0, False))
    crash(history)


@pytest.mark.parametrize("committed", [True, False])
def test_an_inode_without_a_name_gets_one_and_loses_it(history: Histories, committed: bool) -> None:
    do(history, ("unnamed", 0, 0o644), ("write", 0, 0, 3000, 1, 0), ("setxattr", 1, "user.a", 1, 0))
    if committed:
        commit(history)
    do(history, ("link", 1, 0, "a"))
    do(history, ("remove", 0, False))
    do(history, ("release", 0))
    crash(history)


def test_blocks_behind_the_end(history: Histories) -> None:
    """As many bytes as the file is long, but elsewhere."""
    do(history, ("create", 0, "a", 0o644), ("truncate", 0, 70_000, False))
    do(history, ("fallocate", 0, 1, 3 * BLOCK, 65536, False))
    commit(history)
    do(history, ("truncate", 0, 0, False))
    do(history, ("fallocate", 0, 1, 3 * BLOCK, 65536, False), ("remove", 0, True))
    crash(history)


def test_a_block_is_emptied_between_orphan_and_adoption(history: Histories) -> None:
    do(history, ("create", 0, "a", 0o644), ("write", 0, 0, 2 * BLOCK, 1, 0))
    commit(history)
    do(history, ("remove", 0, True), ("fallocate", 0, 3, 0, BLOCK, False), ("link", 1, 0, "b"))
    commit(history)
    crash(history)


def test_the_bytes_of_a_clone_outlive_its_source(history: Histories) -> None:
    do(history, ("create", 0, "a", 0o644), ("write", 0, 0, 200_000, 1, 0))
    space = history.spaces[0]
    namespace = trio.run(history.store.clone, space.volume, "clone", None)
    history.spaces.append(type(space)(history.store.volume(namespace), space.reference.copy()))
    trio.run(lambda: history.store.destroy_namespace(space.volume.namespace, for_good=True))
    history.spaces.remove(space)
    history.everything_is_as_in_the_reference()
    crash(history)


def test_the_trash_keeps_everything(history: Histories) -> None:
    do(history, ("create", 0, "a", 0o644), ("write", 0, 0, 200_000, 1, 0))
    do(history, ("create", 0, "held", 0o644), ("write", 0, 0, 200_000, 1, 0))
    history.checkpoint(0)
    do(history, ("remove", 1, True))
    space = history.spaces[0]
    assert trio.run(history.store.destroy_namespace, space.volume.namespace)
    crash_nothing_named(history)
    space.volume = history.store.volume(trio.run(history.store.undelete_namespace, space.volume.namespace.id))
    space.held = []
    history.everything_is_as_in_the_reference()
    crash(history)


def crash_nothing_named(history: Histories) -> None:
    """A commit while the namespace is in the trash, so that what is left of it is in the engine."""
    trio.run(history.store.shard.commit)


def test_a_failed_commit_does_not_move_the_journal(durable: DurableHistories) -> None:
    """Another transaction takes the catalogue's records along; the position is not one of them."""
    other = durable.spaces[0]
    trio.run(durable.new_space)
    do(durable, ("create", 0, "a", 0o644))

    def fail() -> None:
        raise UnavailableError("as asked")

    with pytest.raises(UnavailableError):
        durable.meanwhile(fail)
    gone = durable.spaces.pop(1)
    trio.run(lambda: durable.store.destroy_namespace(gone.volume.namespace, for_good=True))
    assert durable.spaces == [other]
    crash(durable)


def test_a_destroyed_namespace_takes_no_changes(history: Histories) -> None:
    trio.run(history.new_space)
    do(history, ("create", 0, "a", 0o644))
    space = history.spaces[0]
    tree = space.tree
    root = tree.root()
    trio.run(lambda: history.store.destroy_namespace(space.volume.namespace, for_good=True))
    history.spaces.remove(space)
    with pytest.raises(Exception, match=r"Read-only|Stale"):
        tree.create(root, b"late", 0o644, 0, 0)
    commit(history)
    assert tree.serial not in history.store.shard.engine.serials()


def test_a_write_is_one_record(durable: DurableHistories) -> None:
    """Its segments in two blocks, and what it makes of the inode: a process may die between two records."""
    do(durable, ("create", 0, "a", 0o644))
    log = durable.store.shard.log
    assert isinstance(log, Journal)
    before = log.state()
    do(durable, ("write", 0, BLOCK - 1000, 3000, 1, 0))
    copy = Journal(log.path, log.size)
    copy.seek(before)
    records = [body for _, body, _ in copy.replay()]
    copy.close()
    assert [[kind for kind, _, _ in entries(body)] for body in records] == [[b"W", b"W", b"R"]]
    crash(durable)
    do(durable, ("write", 0, BLOCK - 1000, 3000 + BLOCK, 2, 0), ("write", 0, 5, 2 * BLOCK, 3, 0))
    crash(durable)
