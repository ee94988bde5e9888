"""The calls of the Python API on many files at once, each by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from struct import Struct
from time import perf_counter
from typing import Any

from artfs.errors import ArtfsError, FsError
from artfs.store.identity import Who
from artfs.store.tree_calls import Names, attributes_of, file_at
from artfs.store.virtual_calls import VirtualCalls, remove
from artfs.store.whole_calls import WHOLE_MAX
from artfs.volume.catalogue import Namespace
from artfs.volume.tree import Tree
from artfs.volume.waiting import MustWait, run

HEADER = Struct(">I")
MISSING, TOO_LARGE = -1, -2
"""Sizes, in the answer of a batch of reads, of what has none."""
Step = Callable[[Tree, Names], None]


class BatchCalls(VirtualCalls):
    """Part of `Service`."""

    def api_batch_write(
        self, id: str, items: Sequence[Mapping[str, Any]], data: bytes, who: Who = None, sandbox: str = ""
    ) -> list[list[Any]]:
        """Put files: {"path", "size", "mime", "metadata"}, their bytes one behind the other in `data`.  For each [None
        or what went wrong, milliseconds]."""
        namespace = self._for("api_batch_write", id, who, sandbox)
        view = memoryview(data)
        steps: list[tuple[bytes, Step]] = []
        at = 0
        for item in items:
            part = view[at : at + item["size"]]
            at += item["size"]
            place = self._place(namespace, item["path"])
            attributes = attributes_of(item.get("mime"), item.get("metadata"))
            steps.append((place, partial(self._put_one, namespace, place, part, attributes)))
        return self._each(namespace, steps)

    def _put_one(
        self,
        namespace: Namespace,
        path: bytes,
        part: memoryview,
        attributes: Mapping[bytes, bytes],
        tree: Tree,
        names: Names,
    ) -> None:
        self._put(tree, namespace, path, bytes(part), attributes, names)

    def api_batch_remove(self, id: str, paths: Sequence[str], who: Who = None, sandbox: str = "") -> list[list[Any]]:
        """Files and empty directories.  Returns as `api_batch_write`."""
        namespace = self._for("api_batch_remove", id, who, sandbox)
        places = [self._place(namespace, path) for path in paths]
        return self._each(namespace, [(place, partial(remove, place, False)) for place in places])

    def _each(self, namespace: Namespace, steps: Sequence[tuple[bytes, Step]]) -> list[list[Any]]:
        """Each step by itself; one that fails stops no other."""
        tree = self.store.shard.glance(namespace)
        done: list[list[Any]] = []
        if self.store.surfaces or tree.backed:
            raise MustWait(partial(self._go_on, namespace, steps, done), final=True)
        names: Names = []
        with tree.together():
            begun = perf_counter()
            for path, work in steps:
                try:
                    self._changeable(namespace, path)
                    work(tree, names)
                except MustWait:
                    raise MustWait(partial(self._go_on, namespace, steps, done), final=True) from None
                except FsError as error:
                    done.append([str(self._named(namespace, path, error)), 0.0])
                else:
                    done.append([None, 0.0])
                now = perf_counter()
                done[-1][1] = (now - begun) * 1000
                begun = now
        return done

    async def _go_on(
        self,
        namespace: Namespace,
        steps: Sequence[tuple[bytes, Step]],
        done: list[list[Any]],
    ) -> list[list[Any]]:
        """Go on where a step has to wait."""
        for path, work in steps[len(done) :]:
            begun = perf_counter()
            try:
                await run(self._changing, namespace, work, path, True)
            except ArtfsError as error:
                done.append([str(error), (perf_counter() - begun) * 1000])
            else:
                done.append([None, (perf_counter() - begun) * 1000])
        return done

    def api_batch_read(self, id: str, paths: Sequence[str], who: Who = None, sandbox: str = "") -> bytes:
        """As many of the files as go into one answer: u32 length, JSON list of sizes (or `MISSING`, `TOO_LARGE`), then
        their bytes."""
        namespace = self._for("api_batch_read", id, who, sandbox)
        places = [self._place(namespace, path) for path in paths]

        def work(tree: Tree) -> bytes:
            sizes: list[int] = []
            parts: list[bytes] = []
            room = WHOLE_MAX - (1 << 20)
            for place in places:
                try:
                    node = file_at(tree, place)
                except FsError:
                    sizes.append(MISSING)
                    continue
                if node.size > room:
                    if parts:
                        break
                    sizes.append(TOO_LARGE)
                    continue
                parts.append(tree.read_bytes(node, 0, node.size))
                sizes.append(len(parts[-1]))
                room -= len(parts[-1])
            head = json.dumps(sizes).encode()
            return b"".join([HEADER.pack(len(head)), head, *parts])

        return self._looking(namespace, work)
