"""What the tests of saving and recovery share: a provider that counts and fails, a database that is saved, what is in
a database."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

import apsw

from artfs.errors import NotFoundError, UnavailableError
from artfs.meta import Batch
from artfs.meta.sqlite import SqliteEngine
from artfs.objects import Capabilities, Provider, marker
from artfs.objects.memory import MemoryProvider
from artfs.types import Epoch, Serial
from artfs.volume.packs import pack_name, sequence_of
from artfs.volume.saving import Saver

TABLES = ("meta", "head", "retired", "checkpoint", "record")
DIFFERENT = [("counter", "generation"), ("journal", "state")]
"""Records that recovery changes."""
Dump = dict[str, list[tuple[object, ...]]]


class Place(MemoryProvider):
    """Counts its calls; `fail` may raise before one is done, `lost` after a put, as a lost answer does."""

    url = "test://place"
    capabilities = Capabilities(adopts=False, durable=True)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []
        self.fail: Callable[[str, str], None] = lambda call, name: None
        self.lost = False

    def count(self, call: str) -> int:
        return sum(1 for name, _ in self.calls if name == call)

    def _call(self, call: str, name: str) -> None:
        self.calls.append((call, name))
        self.fail(call, name)

    async def put(self, name: str, source: Path | bytes) -> None:
        self._call("put", name)
        await super().put(name, source)
        if self.lost:
            raise UnavailableError("the answer was lost")

    async def get(self, name: str, offset: int, length: int) -> bytes:
        self._call("get", name)
        return await super().get(name, offset, length)

    async def delete(self, names: Sequence[str]) -> None:
        self._call("delete", " ".join(names))
        await super().delete(names)

    def packs(self) -> list[int]:
        return sorted(s for name in self._objects if (s := sequence_of(name)) is not None)

    def bytes_of(self, name: str) -> bytes:
        return self._objects[name][0]

    async def spoil(self, sequence: int, at: int, data: bytes | None = None) -> None:
        """Other bytes in a pack from `at` on; without `data` it ends there."""
        old = self.bytes_of(pack_name(sequence))
        at %= len(old)
        await MemoryProvider.put(self, pack_name(sequence), old[:at] + (data + old[at + len(data) :] if data else b""))

    async def forget(self, name: str) -> None:
        if name not in self._objects:
            raise NotFoundError(name)
        await MemoryProvider.delete(self, [name])


class Source:
    """A database in `root`, and its saver.  What is committed is committed at once, so nothing waits for a commit."""

    def __init__(
        self,
        root: Path,
        provider: Provider,
        generation: int = 0,
        id: str | None = None,
        encrypted: Provider | None = None,
    ) -> None:
        root.mkdir(exist_ok=True, parents=True)
        self.root = root
        self.engine = SqliteEngine(root / "meta.db")
        self.identity = {
            "format": 1,
            "uuid": id or str(uuid.uuid4()),
            "created": time.time_ns(),
            "block_size": 1 << 20,
        }
        self.pushed = 0
        self.on_push: Callable[[], Awaitable[None]] | None = None
        self.behind: frozenset[str] = frozenset()
        self.asked: Collection[str] | None = None
        self.saver = Saver(
            root / "meta.db",
            encrypted or provider,
            self.identity,
            generation=generation,
            interval=60.0,
            commit=self._nothing,
            push=self._push,
            idle=lambda: True,
            scratch=root,
            marked=provider,
        )
        self.provider = provider
        self.generation = generation

    async def _nothing(self) -> None:
        pass

    async def _push(self, needed: Collection[str] | None, patience: float) -> frozenset[str]:
        self.pushed += 1
        self.asked = needed
        if self.on_push is not None:
            await self.on_push()
        return self.behind

    async def claim(self) -> None:
        await marker.claim(self.provider, str(self.identity["uuid"]), self.generation)

    def write(self, rows: dict[int, bytes | None], records: dict[str, str | None] | None = None) -> None:
        batch = Batch(Serial(1), Epoch(1), {b"I" + number.to_bytes(8, "big"): value for number, value in rows.items()})
        self.engine.commit([batch], {("test", id): text for id, text in (records or {}).items()})

    def fill(self, count: int, size: int, seed: int = 0) -> None:
        chance = random.Random(seed)
        for start in range(0, count, 5000):
            self.write({number: chance.randbytes(size) for number in range(start, min(count, start + 5000))})

    def dump(self) -> Dump:
        return dump(self.root / "meta.db")

    def close(self) -> None:
        self.saver.close()
        self.engine.close()


def dump(path: Path) -> Dump:
    """Every row of every table, but what a recovery changes.  Through the engine's library: a second one within the
    process would not see its locks."""
    connection = apsw.Connection(str(path))
    try:
        found = {table: sorted(connection.execute(f"SELECT * FROM {table}")) for table in TABLES}
    finally:
        connection.close()
    found["record"] = [row for row in found["record"] if row[:2] not in DIFFERENT]
    return found


def files(top: Path) -> set[str]:
    return {os.path.relpath(os.path.join(folder, name), top) for folder, _, names in os.walk(top) for name in names}
