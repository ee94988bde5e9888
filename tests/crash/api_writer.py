"""A program of the Python API that writes until it is killed, and keeps elsewhere what it knows to be there.

    python -m tests.crash.api_writer ROOT RECORD SEED BACKEND

RECORD gets a line for each call, a JSON list [moment, kind, key, value]: "begun" before it, then "done" when it has
returned, or "unknown" when the store's owner died meanwhile.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import anyio

from artfs import ArtifactStore, ProviderError

FILES = 8
LARGE = 200_000
"""Bytes of a value that goes into an object of its own."""
KINDS = ["write"] * 6 + ["store"] * 3 + ["update", "remove", "session", "checkpoint", "stream"]


def content(value: str) -> bytes:
    """What a value is stored as: some small, some large."""
    chance = random.Random(value)
    return value.encode() + b"\n" + chance.randbytes(LARGE if chance.random() < 0.1 else chance.randrange(2000))


class Writer:
    def __init__(self, store: ArtifactStore, record: Path, seed: str) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.seed = seed
        self.out = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.count = 0
        self.workspace = ""
        self.mine: list[str] = []

    def note(self, *line: Any) -> None:
        os.write(self.out, json.dumps(line).encode() + b"\n")

    async def step(self) -> None:
        self.count += 1
        kind = self.chance.choice(KINDS) if self.workspace else "workspace"
        if kind in ("update", "remove") and not self.mine:
            kind = "store"
        value = f"{self.seed}-{self.count}"
        key = value
        if kind in ("write", "stream"):
            key = f"/{self.chance.randrange(FILES)}"
        elif kind in ("update", "remove"):
            key = self.chance.choice(self.mine)
        self.note("begun", kind, key, value)
        try:
            key = await getattr(self, f"do_{kind}")(key, value) or key
        except ProviderError as error:
            self.note("unknown", kind, key, value, str(error))
        else:
            self.note("done", kind, key, value)

    async def do_workspace(self, name: str, _: str) -> str:
        self.workspace = (await self.store.create_namespace("workspace", "sandbox", name)).namespace_id
        return self.workspace

    async def do_write(self, key: str, value: str) -> None:
        await self.store.write_namespace(self.workspace, content(value), key)

    async def do_stream(self, key: str, value: str) -> None:
        data = content(value)
        if not await self.store.get_namespace_vfs(self.workspace).stream_write(key, [data[:100], data[100:]]):
            raise ProviderError("it was not written")

    async def do_store(self, _: str, value: str) -> str:
        id = await self.store.store(content(value), mime="text/plain", summary=value, scope="sandbox")
        self.mine.append(id)
        return id

    async def do_update(self, key: str, value: str) -> None:
        await self.store.update_file(key, data=content(value))

    async def do_remove(self, key: str, _: str) -> None:
        self.mine.remove(key)
        await self.store.delete(key)

    async def do_session(self, _: str, value: str) -> str:
        return await self.store.create_session(user_id=value)

    async def do_checkpoint(self, key: str, _: str) -> None:
        await self.store.checkpoint_namespace(self.workspace, key)


class Known:
    """What may be there, from a record.  `files`, `artifacts`: path or id → the values that it may have, None for
    absent; `sessions`, `checkpoints`: which must be there."""

    def __init__(self, record: Path) -> None:
        self.workspace = ""
        self.files: defaultdict[str, list[str | None]] = defaultdict(lambda: [None])
        self.artifacts: dict[str, list[str | None]] = {}
        self.sessions: list[str] = []
        self.checkpoints: list[str] = []
        self.done = 0
        self.unknown: list[str] = []
        for line in record.read_text().splitlines():
            self._take(*json.loads(line))

    def _take(self, moment: str, kind: str, key: str, value: str, error: str = "") -> None:
        self.done += moment == "done"
        if moment == "unknown":
            self.unknown.append(error)
            return
        after = None if kind == "remove" else value
        if kind in ("write", "stream", "update", "remove"):
            values = self.files[key] if key.startswith("/") else self.artifacts[key]
            values[:] = [after] if moment == "done" else [*values, after]
        elif moment == "done" and kind == "store":
            self.artifacts[key] = [value]
        elif moment == "done" and kind == "workspace":
            self.workspace = key
        elif moment == "done":
            (self.sessions if kind == "session" else self.checkpoints).append(key)


async def missing(store: ArtifactStore, known: Known) -> list[str]:
    """What is not as it must be."""
    wrong: list[str] = []

    def compare(what: str, data: bytes | None, values: list[str | None]) -> None:
        if not any(data is None if value is None else data == content(value) for value in values):
            wrong.append(f"{what} is {data[:40] if data is not None else None!r}, not of {values}")

    vfs = store.get_namespace_vfs(known.workspace)
    for path, values in known.files.items():
        compare(path, await vfs.read_file(path), values)
    for id, values in known.artifacts.items():
        compare(id, await store.retrieve(id) if await store.exists(id) else None, values)
    wrong += [session for session in known.sessions if not await store.validate_session(session)]
    there = {checkpoint.name for checkpoint in await store.list_checkpoints(known.workspace)}
    return wrong + [name for name in known.checkpoints if name not in there]


async def main(root: str, record: str, seed: str) -> None:
    async with ArtifactStore(root=root) as store:
        writer = Writer(store, Path(record), seed)
        while True:
            await writer.step()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], backend=sys.argv[4])
