"""Bringing what providers have to the cache before it is read."""

from __future__ import annotations

import os

from artfs.blocks import Chunk
from artfs.errors import NotFoundError
from artfs.objects.remote import Progress
from artfs.volume.volume import Volume
from artfs.volume.waiting import run


async def warm_up(volume: Volume, path: bytes = b"", progress: Progress | None = None) -> tuple[int, int]:
    """Have the chunks of a file, or of all below a directory, in the cache.  Returns (files, bytes) that it has.
    Errors: FsError, NotFoundError, UnavailableError, DamagedError."""
    tree, remote = volume.tree, volume.shard.remote
    node = tree.root()
    for part in filter(None, path.split(b"/")):
        found = await run(tree.lookup, node, part)
        if found is None:
            raise NotFoundError(f"{os.fsdecode(path)} is not in {volume.namespace.grid_path}")
        node = found
    files = size = 0
    todo = [node.ino]
    while todo:
        node = tree.node(todo.pop())
        if node.kids is not None:
            todo += [entry.ino for _, entry in await run(tree.listing, node)]
        elif node.is_file:
            files += 1
            size += node.size
            for index in tree.indexes(node):
                chunks = [source for _, _, source, _ in tree.block(node, index) if isinstance(source, Chunk)]
                chunks = [chunk for chunk in chunks if chunk.object >> 32 in remote.homes]
                if chunks:
                    await remote.bring_all(chunks)
            if progress is not None:
                progress(files, size)
    return files, size
