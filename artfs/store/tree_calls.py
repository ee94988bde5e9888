"""What the calls of the Python API on files stand on: paths, trees under mounts, and one step of each kind.

Paths are absolute within the namespace, as `os.fsdecode` puts their bytes; `path` None is a BLOB's own file.  Through
these calls a BLOB takes other files beside `_data`, too.  What has a name of `VIRTUAL` in the root of a namespace can
be read, and nothing else: nothing of that name is made there, by whatever path.  See `namespace_calls` for plain
functions, `who` and `sandbox`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from stat import S_IFREG
from typing import Any, TypeVar

from artfs.errors import ArtfsError, FsError, InvalidError
from artfs.store.artifact_rules import check_mime
from artfs.store.namespace_calls import NamespaceCalls
from artfs.types import NamespaceType
from artfs.vfs import Files, Writing
from artfs.vfs.files import CHECKPOINTS, LISTED, META_FILE, VIRTUAL
from artfs.vfs.stat import path_error
from artfs.vfs.walk import Spot, found, parts_of, walk
from artfs.volume.attributes import META
from artfs.volume.catalogue import Namespace
from artfs.volume.inodes import ROOT
from artfs.volume.node import Node
from artfs.volume.tree import BLOB_DATA, Tree
from artfs.volume.waiting import MustWait, run

T = TypeVar("T")
Names = list[tuple[Node, bytes]]
MIME = b"user.mime_type"
METADATA_MAX = 65536
"""Bytes of a file's custom metadata as JSON."""


@contextmanager
def unsealed(tree: Tree) -> Iterator[None]:
    """The root of a BLOB takes other names meanwhile.  REQUIRES: no await inside."""
    blob, tree.blob = tree.blob, False
    try:
        yield
    finally:
        tree.blob = blob


class TreeCalls(NamespaceCalls):
    """Part of `Service`."""

    def _place(self, namespace: Namespace, path: str | None) -> bytes:
        """Errors: InvalidError."""
        if path is None:
            if namespace.type is not NamespaceType.BLOB:
                raise InvalidError("path required for workspace namespaces")
            return BLOB_DATA
        if not isinstance(path, str):
            raise InvalidError(f"a path is a string, not {path!r}")
        if "\0" in path or (".." in path and ".." in path.split("/")):
            raise InvalidError(f"{path!r}: a path has no NUL, and no '..'")
        try:
            return os.fsencode(path)
        except UnicodeEncodeError:
            raise InvalidError(f"{path!r} is no path: it has lone surrogates") from None

    @contextmanager
    def _naming(self, namespace: Namespace, path: bytes) -> Iterator[None]:
        """Errors of the rules become errors about the path."""
        try:
            yield
        except FsError as error:
            raise self._named(namespace, path, error) from error

    def _named(self, namespace: Namespace, path: bytes, error: FsError) -> ArtfsError:
        where = os.fsdecode(b"/".join(parts_of(path)))
        return path_error(error, f"{namespace.grid_path}/{where}")

    def _looking(self, namespace: Namespace, work: Callable[[Tree], T], path: bytes = b"") -> T:
        """`work` on the tree as it is after mounts have handed over what they hold."""
        if self.store.surfaces or parts_of(path)[:1] == [CHECKPOINTS]:
            raise MustWait(partial(self._look_later, namespace, work, path), final=True)
        tree = self.store.shard.glance(namespace)
        if tree.backed:
            raise MustWait(partial(self._look_later, namespace, work, path), final=True)
        try:
            return work(tree)
        except FsError as error:
            raise self._named(namespace, path, error) from error

    async def _look_later(self, namespace: Namespace, work: Callable[[Tree], T], path: bytes) -> T:
        volume = self.store.volume(namespace)
        await self.store.settle(volume)
        with self._naming(namespace, path):
            tree, _ = await Files(volume, self.store.names_changed).version(path)
            return await run(work, tree)

    def _changing(self, namespace: Namespace, work: Callable[[Tree, Names], T], path: bytes, large: bool = False) -> T:
        """`work`, which puts the names that it changes into a list; mounts are told of them."""
        try:
            self._changeable(namespace, path)
        except FsError as error:
            raise self._named(namespace, path, error) from error
        tree = self.store.shard.glance(namespace)
        if self.store.surfaces or (tree.backed and large):
            raise MustWait(partial(self._change_later, namespace, work, path), final=True)
        try:
            return work(tree, [])
        except FsError as error:
            raise self._named(namespace, path, error) from error

    def _changeable(self, namespace: Namespace, path: bytes) -> None:
        """Errors: FsError EROFS, EPERM for what belongs to checkpoints, or is virtual."""
        if CHECKPOINTS in path or LISTED in path or META_FILE in path:
            parts = parts_of(path)
            if parts[:1] == [CHECKPOINTS]:
                raise FsError(errno.EROFS if parts[1:] else errno.EPERM)
            if parts[0] in VIRTUAL[namespace.type]:
                raise FsError(errno.EPERM)

    def _free(self, namespace: Namespace, folder: Node, name: bytes) -> None:
        """Errors: FsError EPERM if a symlink, or a move into a directory, led to the name of a virtual file."""
        if folder.ino == ROOT and name in VIRTUAL[namespace.type]:
            raise FsError(errno.EPERM)

    async def _change_later(self, namespace: Namespace, work: Callable[[Tree, Names], T], path: bytes) -> T:
        names: Names = []
        volume = self.store.volume(namespace)
        with self._naming(namespace, path):
            try:
                return await run(work, volume.tree, names)
            finally:
                await self.store.names_changed(names)

    def _within(self, path: bytes) -> bytes:
        """Where in its version of the tree a path leads."""
        parts = parts_of(path)
        return b"/".join(parts[2:]) if parts[:1] == [CHECKPOINTS] else path

    def _spot(self, tree: Tree, namespace: Namespace, path: bytes, names: Names, follow: bool = True) -> Spot:
        """Where a path ends, with the directories that it lacks made."""
        try:
            spot = walk(tree, path, follow)
        except FsError as error:
            if error.errno != errno.ENOENT:
                raise
            parts = parts_of(path)
            for count in range(1, len(parts)):
                self._folder(tree, namespace, b"/".join(parts[:count]), names)
            spot = walk(tree, path, follow)
        self._free(namespace, spot.folder, spot.name)
        return spot

    def _folder(self, tree: Tree, namespace: Namespace, path: bytes, names: Names) -> None:
        """The directory, made if there is none."""
        spot = walk(tree, path)
        if spot.node is None:
            self._free(namespace, spot.folder, spot.name)
            with unsealed(tree):
                mode = 0o777 & ~namespace.umask
                tree.mkdir(spot.folder, spot.name, mode, namespace.uid, namespace.gid)
            names.append((spot.folder, spot.name))
        elif spot.node.kids is None:
            raise FsError(errno.ENOTDIR)

    def _trim(self, tree: Tree) -> None:
        if len(tree.idle) > tree.owner.node_cache:
            tree.rest(tree.root())

    def _put(
        self,
        tree: Tree,
        namespace: Namespace,
        path: bytes,
        data: bytes | memoryview,
        attributes: Mapping[bytes, bytes],
        names: Names,
    ) -> None:
        folder, name, old = self._spot(tree, namespace, path, names)
        if not name:
            raise FsError(errno.EISDIR)
        if META in attributes and old is not None and old.xattrs:
            attributes = {**attributes, META: merged(metadata_of(tree, old), json.loads(attributes[META]))}
        if old is None:
            mode, uid, gid = 0o666 & ~namespace.umask, namespace.uid, namespace.gid
        else:
            mode, uid, gid = old.mode & 0o777, old.uid, old.gid
        tree.put_file(folder, name, mode, uid, gid, data, attributes)
        names.append((folder, name))
        self._trim(tree)


def begun(files: Files, folder: Node, name: bytes, old: Node | None) -> Writing:
    """`Files.begin_at`, for any name in a BLOB."""
    with unsealed(files.tree):
        return files.begin_at(folder, name, 0o666, old)


def file_at(tree: Tree, path: bytes) -> Node:
    node = found(tree, path)
    if node.mode & 0o170000 != S_IFREG:
        raise FsError(errno.EISDIR if node.kids is not None else errno.EINVAL)
    return node


def attributes_of(mime: str | None, metadata: Mapping[str, Any] | None) -> dict[bytes, bytes]:
    """As extended attributes.  Errors: InvalidError."""
    attributes = {}
    if mime is not None:
        attributes[MIME] = check_mime(mime, None).encode()
    if metadata is not None:
        attributes[META] = merged({}, metadata)
    return attributes


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> bytes:
    """Errors: InvalidError."""
    if not isinstance(new, Mapping) or not all(isinstance(key, str) for key in new):
        raise InvalidError("metadata is a mapping with strings as keys")
    try:
        text = json.dumps({**old, **new}, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(f"metadata must be JSON: {error}") from None
    if len(text) > METADATA_MAX:
        raise InvalidError(f"the metadata of a file may have {METADATA_MAX} bytes of JSON, not {len(text)}; shorten it")
    return text


def metadata_of(tree: Tree, node: Node) -> dict[str, Any]:
    value = attribute_of(tree, node, META)
    return {} if value is None else dict(json.loads(value))


def attribute_of(tree: Tree, node: Node, name: bytes) -> bytes | None:
    try:
        return tree.getxattr(node, name) if node.xattrs else None
    except FsError as error:
        if error.errno != errno.ENODATA:
            raise
        return None
