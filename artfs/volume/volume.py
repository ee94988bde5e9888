"""A namespace opened for I/O, with its versions: checkpoint, restore, clone, difference, destruction.

A checkpoint is a record in the journal: O(1), as durable as any acknowledged change.  The other calls hold changes of
the namespace up (`gate`), commit what is pending, and are one engine transaction each; what they change in memory
follows without an await, so that nobody sees a state in between.
"""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from stat import S_IFMT, S_IFREG
from time import gmtime, strftime, time_ns
from typing import Any
from weakref import WeakSet

import anyio
from anyio import to_thread

from artfs.errors import FsError, InvalidError, NotFoundError
from artfs.grid import check_checkpoint_name
from artfs.meta import Checkpoint
from artfs.types import Epoch, Serial
from artfs.volume.catalogue import Namespace
from artfs.volume.dead import void
from artfs.volume.difference import Difference, difference
from artfs.volume.journal import CHECKPOINT
from artfs.volume.node import Node
from artfs.volume.rows import HEAD_KEY, INODE, KID_AT, U32, U64, Head
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree
from artfs.volume.waiting import run

SAFETY = "~restore-"
SAFETY_KEPT = 3
LABELS_MAX = 64 << 10


@dataclass(slots=True)
class Restored:
    """What a restore did to inodes in memory, so that a mount can tell its kernel: nodes whose number is void, names
    that lead elsewhere, directories whose attributes changed."""

    safety: Checkpoint
    stale: list[Node] = field(default_factory=list)
    names: list[tuple[Node, bytes]] = field(default_factory=list)
    folders: list[Node] = field(default_factory=list)


class Volume:
    """REQUIRES: the calls come from the shard's loop."""

    def __init__(self, shard: Shard, namespace: Namespace) -> None:
        self.shard = shard
        self.namespace = namespace
        self.tree: Tree = shard.tree(namespace)
        self.tree.volumes = WeakSet([*self.tree.volumes, self])

    # checkpoints
    def checkpoints(self, all: bool = False) -> list[Checkpoint]:
        """The oldest first; those that restores took for safety only if `all`."""
        return [c for c in self.tree.checkpoints if all or not c.name.startswith(SAFETY)]

    def find(self, name: str) -> Checkpoint:
        """By id, else the latest of that name.  Errors: NotFoundError."""
        for checkpoint in self.tree.checkpoints:
            if checkpoint.id == name:
                return checkpoint
        for checkpoint in reversed(self.tree.checkpoints):
            if checkpoint.name == name:
                return checkpoint
        raise NotFoundError(
            f"{self.namespace.grid_path} has no checkpoint {name!r}; `artfs checkpoint list` shows them"
        )

    async def checkpoint(
        self, name: str | None = None, description: str = "", labels: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """Pin what the namespace holds now.  Without a name it gets one from the time.
        Errors: InvalidError (name, description, labels), FsError EROFS, ENOSPC."""
        if name is None:
            name = strftime("%Y%m%dT%H%M%S", gmtime()) + f".{time_ns() // 1000 % 1_000_000:06d}Z"
        check_checkpoint_name(name)
        return await run(self._checkpoint, name, description, dict(labels or {}))

    def _checkpoint(self, name: str, description: str, labels: dict[str, Any]) -> Checkpoint:
        _check_length("labels", labels)
        _check_length("description", description)
        self.tree.begin(frees=True)
        return self._pin(name, description, labels)

    def _pin(self, name: str, description: str, labels: dict[str, Any]) -> Checkpoint:
        tree = self.tree
        taken = {checkpoint.id for checkpoint in tree.checkpoints}
        id = name
        count = 1
        while id in taken:
            count += 1
            id = f"{name}~{count}"
        checkpoint = Checkpoint(
            epoch=Epoch(tree.epoch),
            id=id,
            name=name,
            created=time_ns(),
            serial=self.shard.catalogue.next_serial(),
            usage=(tree.used_bytes, tree.used_inodes),
            description=description,
            labels=labels,
        )
        document = json.dumps(asdict(checkpoint)).encode()
        tree.log(CHECKPOINT.pack(b"K", len(document)) + document)
        tree.apply_checkpoint(checkpoint)
        return checkpoint

    async def label(self, name: str, labels: Mapping[str, Any]) -> Checkpoint:
        """Replace a checkpoint's labels.  Errors: NotFoundError, InvalidError."""
        _check_length("labels", dict(labels))
        await self.shard.commit()
        old = self.find(name)
        new = replace(old, labels=dict(labels))
        async with self.shard.committing():
            await to_thread.run_sync(self.shard.engine.update_checkpoint, self.tree.serial, new)
        self.tree.checkpoints[self.tree.checkpoints.index(old)] = new
        return new

    async def view(self, name: str) -> Tree:
        """The read-only tree of a checkpoint.  Errors: NotFoundError."""
        checkpoint = self.find(name)
        if any(batch.checkpoint for batch in self.tree.closed_batches):
            await self.shard.commit()
        return self.shard.view(self.namespace, checkpoint.epoch, checkpoint.serial)

    async def delete_checkpoint(self, name: str) -> Checkpoint:
        """Errors: NotFoundError, FsError EROFS."""
        checkpoint = self.find(name)
        await self._delete(checkpoint)
        return checkpoint

    async def _delete(self, checkpoint: Checkpoint) -> None:
        async with self.exclusive():
            if checkpoint not in self.tree.checkpoints:
                raise NotFoundError(f"checkpoint {checkpoint.id!r} has just been deleted")
            await self._engine(self.shard.engine.delete_checkpoint, self.tree.serial, checkpoint.epoch)
            self.tree.checkpoints.remove(checkpoint)

    # restore
    async def restore(self, name: str) -> Restored:
        """Make the tree what the checkpoint saw.  A safety checkpoint is taken first; the last three are kept.
        Errors: NotFoundError, FsError EROFS."""
        wanted = self.find(name)
        tree = self.tree
        async with self.exclusive() as settle:
            if wanted not in tree.checkpoints:
                raise NotFoundError(f"checkpoint {wanted.id!r} has just been deleted")
            stamp = strftime("%Y%m%dT%H%M%S", gmtime()) + f".{time_ns() // 1000 % 1_000_000:06d}Z"
            safety = self._pin(f"{SAFETY}{stamp}", f"before the restore of {wanted.id}", {})
            await settle()
            changes = await self._engine(self.shard.engine.changed_by_restore, tree.serial, wanted.epoch)
            after = {change.key: change.after for change in changes}
            numbers = tree.numbers
            rows: dict[bytes, bytes | None] = {}
            touched: dict[int, bytes | None] = {}
            replaced = set()
            for ino in sorted({U64.unpack_from(key, 1)[0] for key in after if key[:1] != b"D"}):
                key = b"I" + U64.pack(ino)
                value = after[key] if key in after else tree.get(key)
                # The kernel takes nothing that is removed for alive again, a directory neither.
                if value is not None and (_is_file(value) or ino in tree.orphans):
                    value = rows[key] = value[:KID_AT] + U32.pack(numbers) + value[KID_AT + 4 :]
                    numbers += 1
                    replaced.add(ino)
                elif value is None:
                    replaced.add(ino)
                touched[ino] = value
            for ino in tree.orphans:
                if touched.get(ino) is not None:  # it has its name again, and rows that are versioned
                    rows.update(dict.fromkeys(tree.orphan_keys(tree.nodes[ino])))
            head = Head(tree.epoch, numbers, tree.cookies, tree.counters().objects, *wanted.usage)
            rows[HEAD_KEY] = head.pack()
            tree.moving = tree.gate
            try:
                await self._engine(self.shard.engine.restore, tree.serial, wanted.epoch, Epoch(tree.epoch), rows)
                tree.numbers = numbers
                tree.used_bytes, tree.used_inodes = wanted.usage
                restored = Restored(safety)
                self._forget(restored, touched, replaced, [key for key in after if key[:1] == b"D"])
            finally:
                tree.moving = None
        old = [c for c in tree.checkpoints if c.name.startswith(SAFETY)][:-SAFETY_KEPT]
        for checkpoint in old:
            if checkpoint != wanted:
                await self._delete(checkpoint)
        return restored

    def _forget(
        self,
        restored: Restored,
        touched: Mapping[int, bytes | None],
        replaced: set[int],
        dentries: list[bytes],
    ) -> None:
        """Bring the nodes in memory in line with the rows."""
        tree = self.tree
        for folder in [node for node in tree.nodes.values() if node.kids]:
            restored.names += [(folder, name) for name, entry in (folder.kids or {}).items() if entry.ino in replaced]
        for key in dentries:
            parent = tree.nodes.get(U64.unpack_from(key, 1)[0])
            if parent is not None and parent.kids is not None:
                restored.names.append((parent, key[9:]))
                parent.kids = {}
                parent.complete = False
                parent.order = None
        for ino, value in touched.items():
            node = tree.nodes.get(ino)
            if node is None:
                continue
            tree.orphans.pop(ino, None)
            if ino in replaced:
                del tree.nodes[ino]
                tree.idle.pop(ino, None)
                restored.stale.append(node)
            else:
                assert value is not None
                node.unpack(value)
                restored.folders.append(node)
        void(restored.stale)

    # branches
    async def clone(self, namespace: Namespace, name: str | None = None) -> Volume:
        """Fill `namespace`, which the catalogue does not know yet, with what a checkpoint or the head holds.
        Errors: NotFoundError, ExistsError."""
        at = self.find(name) if name is not None else None
        tree = self.tree
        async with self.exclusive():
            usage = at.usage if at else (tree.used_bytes, tree.used_inodes)
            head = Head(1, tree.numbers, tree.cookies, 0, *usage)
            catalogue = self.shard.catalogue
            async with self.shard.committing():
                catalogue.lend(self.namespace)
                catalogue.put(namespace)
                catalogue.put_place(namespace)
                self.shard.remote.settle(namespace.serial, namespace.home)
                records = catalogue.records
                catalogue.records = {}
                try:
                    await _thread(
                        self.shard.engine.clone,
                        tree.serial,
                        at.epoch if at else None,
                        namespace.serial,
                        {HEAD_KEY: head.pack()},
                        records,
                    )
                except BaseException:
                    catalogue.records = records | catalogue.records
                    catalogue.remove(namespace)
                    raise
        return Volume(self.shard, namespace)

    async def diff(self, a: str, b: str | None = None) -> list[Difference]:
        """What changed from checkpoint `a` to checkpoint `b` (None: now), in order of paths.  Errors: NotFoundError."""
        first = self.find(a)
        second = self.find(b) if b is not None else None
        await self.shard.commit()
        engine = self.shard.engine
        if second is not None and second.epoch < first.epoch:
            found = await self._engine(difference, engine, self.tree.serial, second.epoch, first.epoch)
            return [item.reversed() for item in found]
        return await self._engine(  # type: ignore[no-any-return]
            difference, engine, self.tree.serial, first.epoch, second.epoch if second else None
        )

    async def destroy(self) -> list[Node]:
        """Delete the namespace with all its versions.  Returns the nodes that were in memory: they are void."""
        return (await destroy_all(self.shard, [self.namespace]))[self.namespace.serial]

    async def shelve(self, trashed: Namespace) -> list[Node]:
        """Put the namespace into the trash: nobody reaches it there.  Returns the nodes that were in memory."""
        async with self.exclusive():
            self.shard.catalogue.put(trashed)
            await self.shard.commit()
            return self._close()

    def _close(self) -> list[Node]:
        return _closed(self.shard, self.tree)

    # the way in
    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[Any]:
        """Hold changes of the namespace up, with nothing pending.  Yields a call that commits what is pending then."""
        tree = self.tree
        while tree.gate is not None:
            await tree.gate()
        await run(tree.begin, frees=True)
        opened = anyio.Event()
        tree.gate = opened.wait
        self.shard.lock(tree)

        async def settle() -> None:
            while tree.open_batch or tree.closed_batches:
                await self.shard.commit()

        try:
            await settle()
            with anyio.CancelScope(shield=True):
                yield settle
        finally:
            tree.gate = None
            self.shard.lock(tree)
            opened.set()

    async def _engine(self, call: Any, *args: Any) -> Any:
        async with self.shard.committing():
            return await _thread(call, *args)


def _check_length(what: str, value: Any) -> None:
    """A checkpoint is one record of the journal, whose length has a bound."""
    if len(json.dumps(value)) > LABELS_MAX:
        raise InvalidError(f"the {what} of a checkpoint may have {LABELS_MAX} bytes of JSON; shorten it")


async def destroy_all(shard: Shard, namespaces: Sequence[Namespace]) -> dict[Serial, list[Node]]:
    """Delete namespaces with all their versions, in one transaction.  Returns the nodes of each that were in memory:
    they are void.  Errors: FsError EROFS, ENOSPC, EIO; as the engine; nothing has changed then."""
    held: set[Serial] = set()
    serials = {namespace.serial for namespace in namespaces}
    async with AsyncExitStack() as stack:
        while True:
            if serials & shard.fresh.keys():
                await shard.commit()
            for namespace in namespaces:
                if namespace.serial in shard.trees and namespace.serial not in held:
                    await stack.enter_async_context(Volume(shard, namespace).exclusive())
                    held.add(namespace.serial)
            async with shard.committing():
                if serials & shard.trees.keys() <= held and not serials & shard.fresh.keys():
                    return await _destroy(shard, namespaces)


async def _destroy(shard: Shard, namespaces: Sequence[Namespace]) -> dict[Serial, list[Node]]:
    """REQUIRES: no commit runs, and nothing of them is pending."""
    if shard.failure is not None:
        raise FsError(errno.EROFS)
    catalogue = shard.catalogue
    for namespace in namespaces:
        catalogue.remove(namespace)
    records = catalogue.records
    catalogue.records = {}
    try:
        await _thread(shard.engine.destroy, [namespace.serial for namespace in namespaces], records)
    except BaseException:
        catalogue.records = records | catalogue.records
        for namespace in namespaces:
            catalogue.put(namespace)
        raise
    trees = {namespace.serial: shard.trees.get(namespace.serial) for namespace in namespaces}
    return {serial: [] if tree is None else _closed(shard, tree) for serial, tree in trees.items()}


def _closed(shard: Shard, tree: Tree) -> list[Node]:
    """The tree is out of use; the nodes that it had in memory."""
    tree.read_only = True
    nodes = list(tree.nodes.values())
    tree.nodes.clear()
    void(nodes)
    shard.close_tree(tree.serial)
    return nodes


async def _thread(call: Any, *args: Any) -> Any:
    with anyio.CancelScope(shield=True):
        return await to_thread.run_sync(call, *args)


def _is_file(value: bytes) -> bool:
    return S_IFMT(INODE.unpack_from(value)[0]) == S_IFREG
