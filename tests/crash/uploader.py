"""A process that makes BLOBs through URLs for ever, and says which are done; and what each holds.

python -m tests.crash.uploader ROOT FIRST
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import anyio

from artfs.store.blobs import Blobs
from artfs.store.opening import open_store
from artfs.store.store import Store
from artfs.types import NamespaceType, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.waiting import run
from tests.http import fetch

PART = bytes(range(256)) * (5 << 12)
PIECE = 90_000


def content(number: int) -> bytes:
    """In parts, in one piece, or written in no order and then presigned: by `number`."""
    data = Random(number).randbytes(200_000 + number % 7 * 1_500_000)
    return PART + data if number % 3 == 0 else data


async def make(store: Store, blobs: Blobs, number: int) -> None:
    async def blob() -> Namespace:
        return await store.create_namespace("default", Scope.USER, "bob", f"n{number}", type=NamespaceType.BLOB)

    data = content(number)
    if number % 3 == 0:
        upload = await blobs.uploads.begin()
        tags = []
        for part, piece in enumerate((PART, data[len(PART) :]), 1):
            answer = await fetch(await blobs.uploads.sign_part(upload.id, part), "PUT", piece)
            tags.append((part, answer.headers["etag"]))
        await blobs.uploads.complete(upload.id, tags, blob)
    elif number % 3 == 1:
        upload = await blobs.uploads.presign()
        await fetch(upload.url, "PUT", data)
        await blobs.uploads.register(upload.id, blob, size=len(data))
    else:
        namespace = await blob()
        tree = store.volume(namespace).tree
        node = tree.lookup(tree.root(), b"_data")
        assert node is not None
        offsets = list(range(0, len(data), PIECE))
        for offset in Random(number).sample(offsets, len(offsets)):
            await run(tree.write, node, offset, data[offset : offset + PIECE])
        await blobs.presign(namespace)


async def main(root: Path, number: int) -> None:
    async with open_store(root, "test") as store:
        print("begun", flush=True)
        while True:
            await make(store, store.blobs, number)
            print(number, flush=True)
            number += 1


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]), backend="trio")
