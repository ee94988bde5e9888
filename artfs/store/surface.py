"""What shows a store to somebody who caches: a mount.  It is asked to hand over what it holds before a checkpoint, and
told what has become void."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from artfs.meta import Checkpoint
from artfs.volume.catalogue import Namespace
from artfs.volume.node import Node
from artfs.volume.volume import Restored, Volume


class Surface(Protocol):
    """Something that shows the store, at `point`, and caches what it shows."""

    @property
    def point(self) -> Path: ...

    def statistics(self) -> dict[str, Any]:
        """Its counters, as JSON."""

    async def settle(self, volume: Volume) -> None:
        """Hand over every byte that was written to the namespace before this call."""

    async def restored(self, volume: Volume, restored: Restored) -> None: ...

    async def gone(self, namespace: Namespace, nodes: list[Node]) -> None: ...

    async def grid_changed(self, namespace: Namespace) -> None:
        """Its place in the grid appeared, or is taken by another."""

    async def checkpoint_changed(self, namespace: Namespace, checkpoint: Checkpoint) -> None:
        """It was made, or deleted."""

    async def scope_changed(self, sandbox: str, folder: str) -> None:
        """A session has begun or is over: its directory appears, or is no more."""

    async def names_changed(self, names: list[tuple[Node, bytes]]) -> None:
        """These names of directories in memory lead elsewhere."""


class Surfaces(list[Surface]):
    """All that show one store, as one: each is asked, or told, in turn."""

    async def settle(self, volume: Volume) -> None:
        for surface in self:
            await surface.settle(volume)

    async def restored(self, volume: Volume, restored: Restored) -> None:
        for surface in self:
            await surface.restored(volume, restored)

    async def gone(self, namespace: Namespace, nodes: list[Node]) -> None:
        for surface in self:
            await surface.gone(namespace, nodes)
        await self.grid_changed(namespace)

    async def grid_changed(self, namespace: Namespace) -> None:
        for surface in self:
            await surface.grid_changed(namespace)

    async def checkpoint_changed(self, namespace: Namespace, checkpoint: Checkpoint) -> None:
        for surface in self:
            await surface.checkpoint_changed(namespace, checkpoint)

    async def scope_changed(self, sandbox: str, folder: str) -> None:
        for surface in self:
            await surface.scope_changed(sandbox, folder)

    async def names_changed(self, names: list[tuple[Node, bytes]]) -> None:
        for surface in self:
            await surface.names_changed(names)
