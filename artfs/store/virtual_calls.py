"""The calls of the Python API on directories, metadata and many files at once: what `virtual_fs` is made of."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import partial
from stat import S_IFDIR
from typing import Any

from anyio.lowlevel import checkpoint

from artfs.errors import FsError, NotFoundError
from artfs.store.identity import Who
from artfs.store.session_calls import Info
from artfs.store.tree_calls import (
    MIME,
    Names,
    attribute_of,
    attributes_of,
    merged,
    metadata_of,
    unsealed,
)
from artfs.store.whole_calls import WholeCalls
from artfs.types import NamespaceType
from artfs.vfs import Files, copy
from artfs.vfs.files import LISTED, SLICE
from artfs.vfs.stat import TYPES
from artfs.vfs.walk import found, parts_of, walk
from artfs.volume.attributes import ATIME, ATIME_NOW, META, MTIME, MTIME_NOW
from artfs.volume.catalogue import Namespace
from artfs.volume.inodes import ROOT
from artfs.volume.node import Node
from artfs.volume.postings import OWN
from artfs.volume.tree import BLOB_DATA, Tree
from artfs.volume.waiting import MustWait, run


class VirtualCalls(WholeCalls):
    """Part of `Service`."""

    # looking
    def api_names(self, id: str, path: str = "/", who: Who = None, sandbox: str = "") -> list[str]:
        """What is in a directory, in order of names.  Errors: NotFoundError, PathError ENOTDIR."""
        namespace = self._for("api_names", id, who, sandbox)
        place = self._place(namespace, path)
        inside = self._within(place)

        def work(tree: Tree) -> list[str]:
            names = [os.fsdecode(name) for name, _ in tree.listing(found(tree, inside))]
            if not parts_of(place) and namespace.type is NamespaceType.WORKSPACE:
                names.append(LISTED.decode())
            return sorted(names)

        return self._looking(namespace, work, place)

    def api_look(self, id: str, path: str, who: Who = None, sandbox: str = "") -> Info | None:
        """What a path leads to, as `NodeInfo` wants it; None if there is nothing."""
        namespace = self._for("api_look", id, who, sandbox)
        place = self._place(namespace, path)
        inside = self._within(place)
        virtual = self._virtual_at(namespace, place)
        common: Info = {"created": namespace.created, "provider": self.provider_kind(namespace)}
        if virtual is not None:
            return {**_VIRTUAL_INFO, **common, "size": len(virtual)}

        def work(tree: Tree) -> Info | None:
            try:
                node = walk(tree, inside).node
            except FsError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    return None
                raise
            return None if node is None else {**_described(tree, node, namespace), **common}

        try:
            return self._looking(namespace, work, place)
        except NotFoundError:
            self.store.alive(namespace)
            return None

    async def api_find(
        self, id: str, pattern: str = "*", path: str = "/", recursive: bool = True, who: Who = None, sandbox: str = ""
    ) -> list[str]:
        """Paths of the files below a directory whose names match, in order."""
        namespace = self._for("api_find", id, who, sandbox)
        place = self._place(namespace, path)
        volume = self.store.volume(namespace)
        await self.store.settle(volume)
        with self._naming(namespace, place):
            tree, inside = await Files(volume, self.store.names_changed).version(place)
            top = await run(found, tree, inside)
            matched: list[str] = []
            todo = [("/" + os.fsdecode(b"/".join(parts_of(place))), top.ino)]
            while todo:
                where, ino = todo.pop()
                try:
                    listed = await run(lambda ino=ino: tree.listing(tree.node(ino)))  # type: ignore[misc]
                except FsError as error:
                    if error.errno not in (errno.ESTALE, errno.ENOTDIR) or ino == top.ino:
                        raise
                    continue
                for count, (name, entry) in enumerate(listed):
                    text = os.fsdecode(name)
                    if entry.type == S_IFDIR >> 12:
                        if recursive:
                            todo.append((f"{where.rstrip('/')}/{text}", entry.ino))
                    elif fnmatch(text, pattern):
                        matched.append(f"{where.rstrip('/')}/{text}")
                    if not (count + 1) % (SLICE * 8):
                        await checkpoint()
                await checkpoint()
        return sorted(matched)

    async def api_stats(self, id: str, who: Who = None, sandbox: str = "") -> Info:
        """Of the namespace; sizes are bytes."""
        namespace = self._for("api_stats", id, who, sandbox)
        volume = self.store.volume(namespace)
        await self.store.settle(volume)
        tree, folders, todo = volume.tree, 0, [ROOT]
        while todo:
            ino = todo.pop()
            try:
                listed = await run(lambda ino=ino: tree.listing(tree.node(ino)))  # type: ignore[misc]
            except FsError as error:  # removed meanwhile
                if error.errno != errno.ESTALE:
                    raise
                continue
            folders += 1
            todo += [entry.ino for _, entry in listed if entry.type == S_IFDIR >> 12]
            await checkpoint()
        files = max(tree.used_inodes - folders, 0)
        return {
            "provider": self.provider_kind(namespace),
            "total_size_bytes": tree.used_bytes,
            "file_count": files,
            "directory_count": folders,
            "total_nodes": files + folders,
        }

    async def api_url(
        self, id: str, path: str | None = None, expires: float = 3600, who: Who = None, sandbox: str = ""
    ) -> str | None:
        """A URL to a BLOB's bytes; other files have none."""
        namespace = self._for("api_url", id, who, sandbox)
        if namespace.type is not NamespaceType.BLOB or parts_of(self._place(namespace, path)) != [BLOB_DATA]:
            return None
        return await self.store.blobs.presign(namespace, expires)

    # changing
    def api_mkdir(
        self, id: str, path: str, metadata: Mapping[str, Any] | None = None, who: Who = None, sandbox: str = ""
    ) -> bool:
        """With the directories that it lacks; False: there is one already."""
        namespace = self._for("api_mkdir", id, who, sandbox)
        place = self._place(namespace, path)
        attributes = attributes_of(None, metadata)

        def work(tree: Tree, names: Names) -> bool:
            spot = self._spot(tree, namespace, place, names)
            if spot.node is not None and spot.node.kids is not None:
                return False
            if spot.node is not None:
                raise FsError(errno.EEXIST)
            self._folder(tree, namespace, place, names)
            for name, value in attributes.items():
                tree.setxattr(found(tree, place), name, value)
            self._trim(tree)
            return True

        return self._changing(namespace, work, place)

    def api_remove(
        self,
        id: str,
        path: str,
        recursive: bool = False,
        folder: bool = False,
        who: Who = None,
        sandbox: str = "",
    ) -> None:
        """A file, or an empty directory (`folder`: nothing else), or with `recursive` all that is below."""
        namespace = self._for("api_remove", id, who, sandbox)
        place = self._place(namespace, path)
        if recursive:
            files = Files(self.store.volume(namespace), self.store.names_changed)
            raise MustWait(partial(files.remove, place, recursive=True), final=True)
        self._changing(namespace, partial(remove, place, folder), place)

    def api_move(self, id: str, source: str, target: str, who: Who = None, sandbox: str = "") -> None:
        """rename(2), into `target` if that is a directory, with the directories that it lacks."""
        namespace = self._for("api_move", id, who, sandbox)
        here, there = self._place(namespace, source), self._place(namespace, target)

        def work(tree: Tree, names: Names) -> None:
            origin = walk(tree, here, follow=False)
            if origin.node is None:
                raise FsError(errno.ENOENT)
            spot = self._spot(tree, namespace, there, names, follow=False)
            folder, name = spot.folder, spot.name
            if spot.node is not None and spot.node.kids is not None and spot.node is not origin.node:
                folder, name = spot.node, origin.name
            if not origin.name or not name:
                raise FsError(errno.EBUSY)
            self._free(namespace, folder, name)
            with unsealed(tree):
                tree.rename(origin.folder, origin.name, folder, name)
            names.extend([(origin.folder, origin.name), (folder, name)])

        with self._naming(namespace, there):
            self._changeable(namespace, there)
        self._changing(namespace, work, here)

    async def api_copy(self, id: str, source: str, target: str, who: Who = None, sandbox: str = "") -> None:
        """A file or a tree, into `target` if that is a directory, with the directories that it lacks."""
        namespace = self._for("api_copy", id, who, sandbox)
        here, there = self._place(namespace, source), self._place(namespace, target)
        volume = self.store.volume(namespace)
        await self.store.settle(volume)
        files = Files(volume, self.store.names_changed)
        with self._naming(namespace, here):
            tree, inside = await files.version(here)
            await run(found, tree, inside)
        names: Names = []
        with self._naming(namespace, there):
            self._changeable(namespace, there)
            spot = await run(lambda: self._spot(volume.tree, namespace, there, names))
            if spot.node is not None and spot.node.kids is not None:
                self._free(namespace, spot.node, parts_of(here)[-1] if parts_of(here) else b"")
        await self.store.names_changed(names)
        await copy(files, here, files, there)

    def api_touch(
        self, id: str, path: str, metadata: Mapping[str, Any] | None = None, who: Who = None, sandbox: str = ""
    ) -> None:
        """Make an empty file, or set the times of what is there to now; merge metadata into those that it has."""
        namespace = self._for("api_touch", id, who, sandbox)
        place = self._place(namespace, path)
        attributes = attributes_of(None, metadata)

        def work(tree: Tree, names: Names) -> None:
            node = self._spot(tree, namespace, place, names).node
            if node is None:
                self._put(tree, namespace, place, b"", attributes, names)
            else:
                if metadata is not None:
                    tree.setxattr(node, META, merged(metadata_of(tree, node), metadata))
                tree.setattr(node, ATIME | ATIME_NOW | MTIME | MTIME_NOW, 0, 0, 0, 0, 0, 0, 0)

        self._changing(namespace, work, place)

    def api_set_metadata(
        self, id: str, path: str, metadata: Mapping[str, Any], who: Who = None, sandbox: str = ""
    ) -> None:
        """Merge custom metadata into those of a file or directory, key by key."""
        namespace = self._for("api_set_metadata", id, who, sandbox)
        place = self._place(namespace, path)
        attributes_of(None, metadata)

        def work(tree: Tree, names: Names) -> None:
            node = found(tree, place)
            tree.setxattr(node, META, merged(metadata_of(tree, node), metadata))

        self._changing(namespace, work, place)


def remove(path: bytes, folder: bool, tree: Tree, names: Names) -> None:
    spot = walk(tree, path, follow=False)
    if spot.node is None:
        raise FsError(errno.ENOENT)
    if not spot.name:
        raise FsError(errno.EBUSY)
    if spot.node.kids is not None:
        tree.rmdir(spot.folder, spot.name)
    elif folder:
        raise FsError(errno.ENOTDIR)
    else:
        tree.unlink(spot.folder, spot.name)
    names.append((spot.folder, spot.name))


def _described(tree: Tree, node: Node, namespace: Namespace) -> Info:
    own = namespace.metadata.get(OWN) or {} if node.is_file and tree.blob else {}
    mime = attribute_of(tree, node, MIME)
    return {
        "type": TYPES[node.mode & 0o170000],
        "size": node.size,
        "mode": node.mode & 0o7777,
        "uid": node.uid,
        "gid": node.gid,
        "nlink": node.nlink,
        "mtime": node.mtime,
        "ctime": node.ctime,
        "atime": node.atime,
        "mime": None if mime is None else mime.decode(errors="replace"),
        "metadata": metadata_of(tree, node),
        "sha256": own.get("sha256") if (own.get("bytes"), own.get("mtime")) == (node.size, node.mtime) else None,
    }


_VIRTUAL_INFO: Info = {
    "type": "file",
    "size": 0,
    "mode": 0o444,
    "uid": 0,
    "gid": 0,
    "nlink": 1,
    "mtime": None,
    "ctime": None,
    "atime": None,
    "mime": "application/json",
    "metadata": {},
}
