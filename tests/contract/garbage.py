"""A store that can be opened again and again, its collector, and what is left of its objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio

from artfs.meta.memory import MemoryEngine
from artfs.meta.sqlite import SqliteEngine
from artfs.objects import Home
from artfs.objects.disk import DiskProvider
from artfs.objects.held import HeldObjects
from artfs.objects.local import LocalObjects
from artfs.sessions.memory import MemorySessions
from artfs.settings import Settings
from artfs.store.store import Store
from artfs.types import NamespaceType, Scope
from artfs.volume.gc import Collector, Gc
from artfs.volume.journal import Journal, NoJournal
from artfs.volume.marks import named_in
from artfs.volume.node import Node
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree
from artfs.volume.volume import Volume
from artfs.volume.waiting import run as waiting

KINDS = "local", "memory", "backed"
URL = "test:"


class OneProvider:
    """Gives the same provider for every home."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.provider = DiskProvider(root)

    def canonical(self, url: str) -> str:
        return url

    def get(self, home: Home) -> Any:
        return self.provider

    def key_id(self) -> str:
        return ""

    async def close(self) -> None:
        pass


class World:
    """`kind`: objects in the store's directory, in memory, or in a provider.  `saves` counts; `pins` are pinned."""

    def __init__(self, root: Path, kind: str, **changes: object) -> None:
        self.root = root
        self.kind = kind
        settings: dict[str, Any] = {"journal_size": 8 << 20, "gc_grace": 0.0, "umask": 0, "uid": 0, "gid": 0}
        if kind == "backed":
            settings["provider"] = URL
            settings["cache_reserve"] = 0
        self.settings = Settings(**{**settings, **changes})
        self.recovered = False
        self.saves = 0
        self.save_fails: Exception | None = None
        self.save_behind: set[str] = set()
        self.pins: set[int] = set()
        self.views: list[Tree] = []
        self.engine: Any = None
        self.assemble()

    def assemble(self) -> None:
        if self.kind == "memory":
            self.engine = MemoryEngine()
            self.shard = Shard(self.engine, NoJournal(), HeldObjects(), self.settings)
        else:
            (self.root / "objects").mkdir(exist_ok=True)
            self.engine = SqliteEngine(self.root / "meta.db")
            journal = Journal(self.root / "journal", self.settings.journal_size)
            objects = LocalObjects(self.root / "objects")
            self.providers = OneProvider(self.root / "provider")
            self.shard = Shard(self.engine, journal, objects, self.settings, self.providers)
        root = None if self.kind == "memory" else self.root
        self.store = Store(root, self.shard, MemorySessions(), self.settings)
        self.collector = Collector(self.shard, pinned=lambda: self.pins, views=lambda: self.views, save=self.save)

    async def save(self) -> set[str]:
        self.saves += 1
        if self.save_fails is not None:
            raise self.save_fails
        return self.save_behind

    async def reopen(self, crash: bool = False) -> None:
        """As a new process; objects of the old one take no more chunks.  In memory they are only closed."""
        if self.kind == "memory":
            await self.shard.commit()
            close_open(self.shard.objects)
            return
        if crash:
            self.shard.abandon()
        else:
            await self.shard.close()
        self.views.clear()
        self.assemble()
        await self.shard.recover()
        self.shard.remote.load()

    async def settle(self) -> None:
        """Everything is committed, closed, and where it belongs."""
        await self.shard.commit()
        close_open(self.shard.objects)
        if self.kind == "backed":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.shard.remote.run)
                await self.shard.remote.push()
                tasks.cancel_scope.cancel()

    async def close(self) -> None:
        await self.shard.close()

    async def make(self, name: str = "ws", type: NamespaceType = NamespaceType.WORKSPACE) -> Volume:
        if not self.recovered:
            await self.shard.recover()
            self.recovered = True
        namespace = await self.store.create_namespace("box", Scope.SANDBOX, None, name, mode=0o755, type=type)
        return self.store.volume(namespace)

    def volume(self, name: str = "ws") -> Volume:
        return self.store.volume(self.store.namespace_at("box", "shared", name))

    async def objects(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for serial in list(self.shard.objects.prefixes):
            found |= await self.shard.remote.objects(serial)
        return found

    def named(self) -> set[int]:
        return {number for row in self.engine.named((b"B", b"b")) for number, _, _ in named_in(row.value)}

    async def collect(self, times: int = 1) -> Gc:
        for _ in range(times - 1):
            await self.collector.collect()
        return await self.collector.collect()

    async def exactly_what_is_named(self) -> None:
        await self.shard.commit()
        assert (await self.objects()).keys() == self.named() - self.shard.objects.open_objects().keys()


def close_open(objects: LocalObjects) -> None:
    """Those that grow take no more chunks, as at the end of a process."""
    with objects._lock:
        for key, (_, number, size) in list(objects._open.items()):
            del objects._open[key]
            objects._close(number, size)


async def put(volume: Volume, name: bytes, data: bytes) -> Node:
    """A file with these bytes, made or overwritten."""
    tree = volume.tree
    node = tree.lookup(tree.root(), name)
    if node is None:
        node = await waiting(tree.create, tree.root(), name, 0o644, 0, 0)
    for at in range(0, len(data), 1 << 20):
        await waiting(tree.write, node, at, data[at : at + (1 << 20)])
    return node


async def read(tree: Tree, name: bytes) -> bytes:
    node = tree.lookup(tree.root(), name)
    assert node is not None
    return await read_node(tree, node)


async def read_node(tree: Tree, node: Node) -> bytes:
    parts = [await waiting(tree.read_bytes, node, at, 1 << 20) for at in range(0, node.size, 1 << 20)]
    return b"".join(parts)
