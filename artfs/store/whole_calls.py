"""The calls of the Python API on whole files and on their parts.

A handle is good for the connection that it was made on; what is written or read through it is one version of the file.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import partial
from secrets import randbits
from typing import Any, TypeVar

from artfs.errors import FsError, InvalidError, UnavailableError
from artfs.store.identity import Who
from artfs.store.session_calls import Info
from artfs.store.store import Store
from artfs.store.tree_calls import Names, TreeCalls, attributes_of, begun, file_at
from artfs.vfs import Files, Reading, Writing
from artfs.vfs.walk import Spot, walk
from artfs.volume.catalogue import Namespace
from artfs.volume.data import DIRECT
from artfs.volume.inodes import ROOT
from artfs.volume.node import Node
from artfs.volume.tree import BLOB_DATA, Tree
from artfs.volume.waiting import MustWait, run

T = TypeVar("T")
WHOLE_MAX = 16 << 20
"""Bytes that one call gives or takes."""
AT_ONCE = 1 << 20
"""Bytes of a file that are written in one step."""
OPEN_MAX = 1000


class WholeCalls(TreeCalls):
    """Part of `Service`."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._readings: dict[int, tuple[Namespace, Reading]] = {}
        self._writings: dict[int, tuple[Namespace, Writing, bytes, dict[bytes, bytes]]] = {}

    async def aclose(self) -> None:
        await super().aclose()
        for _, reading in self._readings.values():
            reading.release()
        for _, writing, _, _ in self._writings.values():
            writing.abort()
        self._readings.clear()
        self._writings.clear()

    def pending(self) -> int:
        """Files that are open."""
        return len(self._readings) + len(self._writings) + len(self._writes)

    # whole files
    def api_write(
        self,
        id: str,
        path: str | None,
        data: bytes,
        mime: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> None:
        """Put a file, and the directories that it lacks, at once in place of one that is there."""
        namespace = self._for("api_write", id, who, sandbox)
        place = self._place(namespace, path)
        attributes = attributes_of(mime, metadata)
        if len(data) > AT_ONCE:
            raise MustWait(partial(self._write_large, namespace, place, data, attributes), final=True)

        def work(tree: Tree, names: Names) -> None:
            self._put(tree, namespace, place, data, attributes, names)

        self._changing(namespace, work, place, len(data) >= DIRECT)

    async def _write_large(
        self, namespace: Namespace, path: bytes, data: bytes, attributes: Mapping[bytes, bytes]
    ) -> None:
        writing = await self._begin(namespace, path)
        try:
            with self._naming(namespace, path):
                await writing.write(data)
                await self._end_writing(namespace, writing, path, attributes)
        finally:
            writing.abort()

    async def _begin(self, namespace: Namespace, path: bytes) -> Writing:
        """Nothing shows of it; the directories that it lacks are made at its end."""
        files = Files(self.store.volume(namespace), self.store.names_changed)

        def begin() -> Writing:
            try:
                folder, name, old = walk(files.tree, path)
            except FsError as error:
                if error.errno != errno.ENOENT:
                    raise
                folder, name, old = files.tree.root(), BLOB_DATA, None
            else:
                self._replaceable(namespace, Spot(folder, name, old))
            return begun(files, folder, name, old)

        with self._naming(namespace, path):
            self._changeable(namespace, path)
            return await run(begin)

    def _replaceable(self, namespace: Namespace, spot: Spot) -> None:
        """Errors: FsError EISDIR, EPERM where no file can be put."""
        if not spot.name or (spot.node is not None and not spot.node.is_file):
            raise FsError(errno.EISDIR if spot.node is None or spot.node.kids is not None else errno.EPERM)
        self._free(namespace, spot.folder, spot.name)

    async def _end_writing(
        self, namespace: Namespace, writing: Writing, path: bytes, attributes: Mapping[bytes, bytes]
    ) -> None:
        tree = writing.tree
        for name, value in attributes.items():
            await run(lambda name=name, value=value: tree.setxattr(writing.node(), name, value))  # type: ignore[misc]
        names: Names = []

        def place() -> tuple[Node, bytes]:
            spot = self._spot(tree, namespace, path, names)
            self._replaceable(namespace, spot)
            if tree.blob and spot.node is None and spot.name != BLOB_DATA and spot.folder.ino == ROOT:
                # A name that is there can be taken over: see `Tree.replace`.
                tree.put_file(spot.folder, spot.name, 0o666 & ~namespace.umask, namespace.uid, namespace.gid, b"")
            return spot.folder, spot.name

        try:
            await writing.finish(place)
        finally:
            await self.store.names_changed(names)

    def api_read(self, id: str, path: str | None = None, who: Who = None, sandbox: str = "") -> bytes | Info:
        """A file's bytes; of one that is larger than `WHOLE_MAX` {"handle", "size"}."""
        namespace = self._for("api_read", id, who, sandbox)
        place = self._place(namespace, path)
        virtual = self._virtual_at(namespace, place)
        if virtual is not None:
            return virtual
        inside = self._within(place)

        def work(tree: Tree) -> bytes | Info:
            node = file_at(tree, inside)
            if node.size > WHOLE_MAX:
                return self._opened(namespace, tree, node)
            return tree.read_bytes(node, 0, node.size)

        return self._looking(namespace, work, place)

    # parts of files
    def api_read_begin(self, id: str, path: str | None = None, who: Who = None, sandbox: str = "") -> Info:
        """{"handle", "size"}: this version of the file, for `api_read_part`, until `api_read_end`."""
        namespace = self._for("api_read_begin", id, who, sandbox)
        place = self._place(namespace, path)
        inside = self._within(place)
        return self._looking(namespace, lambda tree: self._opened(namespace, tree, file_at(tree, inside)), place)

    def _opened(self, namespace: Namespace, tree: Tree, node: Node) -> Info:
        if len(self._readings) >= OPEN_MAX:
            raise InvalidError(f"{OPEN_MAX} files are open for this caller; end some")
        handle = randbits(48)
        self._readings[handle] = namespace, Reading(tree, node)
        return {"handle": handle, "size": node.size}

    async def api_read_part(self, handle: int, offset: int, length: int, who: Who = None, sandbox: str = "") -> bytes:
        namespace, reading = _known(self._readings, handle)
        if offset < 0 or not 0 <= length <= WHOLE_MAX:
            raise InvalidError(f"a read takes an offset from 0 and a length up to {WHOLE_MAX}")
        self.store.alive(namespace)
        return await reading.read(offset, length)

    async def api_read_end(self, handle: int, who: Who = None, sandbox: str = "") -> None:
        found = self._readings.pop(handle, None)
        if found is not None:
            found[1].release()

    async def api_write_begin(
        self,
        id: str,
        path: str | None = None,
        mime: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        who: Who = None,
        sandbox: str = "",
    ) -> int:
        """Begin to write a file; nothing shows until `api_write_end`.  Returns a handle."""
        namespace = self._for("api_write_begin", id, who, sandbox)
        if len(self._writings) >= OPEN_MAX:
            raise InvalidError(f"{OPEN_MAX} files are being written by this caller; end or abort some")
        attributes = attributes_of(mime, metadata)
        place = self._place(namespace, path)
        writing = await self._begin(namespace, place)
        handle = randbits(48)
        self._writings[handle] = namespace, writing, place, attributes
        return handle

    async def api_write_part(self, handle: int, data: bytes, who: Who = None, sandbox: str = "") -> int:
        """The next bytes; returns how many there are by now."""
        namespace, writing, _, _ = _known(self._writings, handle)
        self.store.alive(namespace)
        return await writing.write(data)

    async def api_write_end(self, handle: int, who: Who = None, sandbox: str = "") -> None:
        """The file is there, whole; if this fails nothing has changed."""
        namespace, writing, place, attributes = _known(self._writings, handle)
        del self._writings[handle]
        try:
            self.store.alive(namespace)
            with self._naming(namespace, place):
                await self._end_writing(namespace, writing, place, attributes)
        finally:
            writing.abort()

    async def api_write_abort(self, handle: int, who: Who = None, sandbox: str = "") -> None:
        found = self._writings.pop(handle, None)
        if found is not None:
            found[1].abort()


def _known(handles: Mapping[int, T], handle: int) -> T:
    try:
        return handles[handle]
    except KeyError:
        raise UnavailableError(f"there is no open file {handle}: it was ended, or its owner has gone") from None
