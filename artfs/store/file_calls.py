"""The calls on files, by grid path, above namespaces and in them.

Above namespaces there are only directories: sandboxes, scopes, namespaces.  As in a mount, to make a
directory in a scope makes a workspace, and to remove one destroys it.  A BLOB's own path means its one file
wherever a file is meant. Below `.checkpoints/NAME` of a namespace is what that checkpoint saw.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from stat import S_IFREG
from typing import Any, cast

from artfs.errors import ExistsError, InvalidError, NotFoundError, PathError
from artfs.grid import GridPath, parse_path, scope_dir
from artfs.store.describing import describe
from artfs.store.store import Store
from artfs.types import NamespaceType, Scope
from artfs.vfs import PART, Files, Stat, Writing, copy
from artfs.vfs.files import LISTED, META_FILE, VIRTUAL
from artfs.vfs.usage import usage
from artfs.vfs.walk import parts_of
from artfs.volume.catalogue import MAKING, Namespace
from artfs.volume.tree import BLOB_DATA

READ_MAX = WRITE_MAX = 16 << 20
WRITES_MAX = 1000
Entry = dict[str, Any]


class FileCalls:
    """`fs_write_begin` gives a handle, which is good for this object alone."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._writes: dict[int, Writing] = {}
        self._handle = 0

    async def aclose(self) -> None:
        """Abort what was begun."""
        for writing in self._writes.values():
            writing.abort()
        self._writes.clear()

    # looking
    async def fs_list(self, path: str = "grid") -> list[Entry]:
        """The entries of a directory, in order of names; of a file itself.  A symlink is shown as itself."""
        place = parse_path(path)
        if place.namespace is None:
            return [_directory(name) for name in self._above(place)]
        if (virtual := self._virtual_entry(place)) is not None:
            return [virtual]
        files = await self._files(place)
        listed = await files.entries(self._inside(place))
        return sorted((_entry(stat) for stat in listed), key=lambda entry: str(entry["name"]))

    async def fs_stat(self, path: str, follow: bool = True) -> Entry:
        """One entry; with `follow`, of what a symlink leads to."""
        place = parse_path(path)
        if place.namespace is None:
            self._above(place)
            return _directory(str(place).rpartition("/")[2])
        if (virtual := self._virtual_entry(place)) is not None:
            return virtual
        files = await self._files(place)
        entry = _entry(await files.stat(os.fsencode(place.path), follow))
        return entry if place.path else {**entry, "name": place.namespace}

    async def fs_read(self, path: str, offset: int = 0, length: int = PART) -> bytes:
        """Fewer bytes than `length` mean the end.  At most 16 MiB at once.  `_meta.json` and `.workspace` in the root
        of a namespace are its description."""
        if offset < 0 or not 0 <= length <= READ_MAX:
            raise InvalidError(f"a read takes an offset from 0 and a length up to {READ_MAX}")
        place = self._file_place(path)
        virtual = self._virtual_at(self._at(place), self._inside(place))
        if virtual is not None:
            return virtual[offset : offset + length]
        files = await self._files(place, settle=offset == 0)
        return await files.read(self._inside(place), offset, length)

    # changing
    async def fs_write_begin(self, path: str, parents: bool = False) -> int:
        """Begin to replace a file, or to make one; nothing shows until `fs_write_end`.  Returns a handle."""
        if len(self._writes) >= WRITES_MAX:
            raise InvalidError(f"{WRITES_MAX} files are being written by this caller; end or abort some")
        place = self._file_place(path)
        files = await self._files(place, settle=False)
        writing = await files.begin(self._inside(place), parents=parents)
        self._handle += 1
        self._writes[self._handle] = writing
        return self._handle

    async def fs_write_part(self, handle: int, data: bytes) -> int:
        """The next bytes, at most 16 MiB; returns how many there are by now."""
        if len(data) > WRITE_MAX:
            raise InvalidError(f"a part of a file has at most {WRITE_MAX} bytes; write more parts")
        writing = self._writing(handle)
        self._alive(writing)
        return await writing.write(data)

    async def fs_write_end(self, handle: int) -> Entry:
        """The file is there, whole, and survives power loss.  If this fails nothing has changed."""
        writing = self._writing(handle)
        del self._writes[handle]
        try:
            self._alive(writing)
            entry = _entry(await writing.finish())
        finally:
            writing.abort()
        await self.store.shard.sync()
        return entry

    async def fs_write_abort(self, handle: int) -> None:
        self._writing(handle).abort()
        del self._writes[handle]

    def _writing(self, handle: int) -> Writing:
        try:
            return self._writes[handle]
        except KeyError:
            raise NotFoundError(f"there is no write {handle}: it was ended or aborted") from None

    def _alive(self, writing: Writing) -> None:
        try:
            self.store.alive(writing.files.namespace)
        except NotFoundError:
            writing.abort()
            raise

    async def fs_mkdir(self, path: str, parents: bool = False) -> None:
        """With `parents` those that are missing are made, and what is there already is no error."""
        place = parse_path(path)
        if place.namespace is None:
            self._above(place)
            if not parents:
                raise ExistsError(f"{place} exists already")
            return
        try:
            namespace = self._at(place)
        except NotFoundError:
            if place.sandbox is None or place.scope is None or (place.path and not parents):
                raise
            namespace = await self.store.create_namespace(place.sandbox, place.scope, place.owner, place.namespace)
            if not place.path:
                return
        if not place.path:
            if not parents:
                raise ExistsError(f"{namespace.grid_path} exists already")
            return
        await self._of(namespace).mkdir(os.fsencode(place.path), parents=parents)

    async def fs_symlink(self, path: str, target: str) -> None:
        """A symlink in place of anything but a directory; it survives power loss."""
        place = self._file_place(path)
        await self._of(self._at(place)).symlink(self._inside(place), os.fsencode(target))
        await self.store.shard.sync()

    async def fs_usage(self, path: str) -> dict[str, Any]:
        """Bytes and inodes of a file or directory in a namespace, or of a checkpoint, with all that is below."""
        place = parse_path(path)
        size, inodes = await usage(await self._files(place), self._inside(place))
        return {"path": str(place), "bytes": size, "inodes": inodes}

    async def fs_remove(self, path: str, recursive: bool = False) -> None:
        """A file, an empty directory, or with `recursive` all that is below."""
        place = parse_path(path)
        if place.namespace is None:
            raise InvalidError(f"{place} is no file; delete its namespaces, or the session")
        namespace = self._at(place)
        if place.path:
            await self._of(namespace).remove(os.fsencode(place.path), recursive=recursive)
            return
        tree = self.store.volume(namespace).tree
        if namespace.type is NamespaceType.WORKSPACE and not recursive and not tree.is_empty(tree.root()):
            raise PathError(errno.ENOTEMPTY, namespace.grid_path)
        await self.store.destroy_namespace(namespace)

    async def fs_copy(self, source: str, target: str) -> None:
        """A file or a tree, into `target` if that is a directory.  Within a namespace it shares the bytes.
        Modes, times and user attributes come along; a symlink is copied as itself, except `source`.  If it
        fails, or is cancelled, nothing is left of it.  A file that is there is replaced at once, a directory
        never."""
        here, there = self._file_place(source), self._file_place(target)
        origin = await self._files(here)
        files = await self._files(there)
        await copy(origin, self._inside(here), files, self._inside(there))
        await self.store.shard.sync()

    # finding
    async def _files(self, place: GridPath, settle: bool = True) -> Files:
        namespace = self._at(place)
        if settle:
            await self.store.settle(self.store.volume(namespace))
        return self._of(namespace)

    def _of(self, namespace: Namespace) -> Files:
        return Files(self.store.volume(namespace), self.store.names_changed)

    def _virtual_at(self, namespace: Namespace, path: bytes) -> bytes | None:
        """What a virtual file holds; None: the path names none."""
        if LISTED in path or META_FILE in path:
            parts = parts_of(path)
            if len(parts) == 1 and parts[0] in VIRTUAL[namespace.type]:
                return json.dumps(describe(self.store, namespace), indent=2).encode() + b"\n"
        return None

    def _virtual_entry(self, place: GridPath) -> Entry | None:
        """Of a virtual file; None: the path names none."""
        content = self._virtual_at(self._at(place), self._inside(place))
        if content is None:
            return None
        file = {"type": "file", "mode": S_IFREG | 0o444, "nlink": 1, "size": len(content)}
        return {**_directory(place.path.strip("/")), **file}

    def _at(self, place: GridPath) -> Namespace:
        if place.sandbox is None or place.scope is None or place.namespace is None:
            raise InvalidError(f"{place} is no namespace, nor in one; use SANDBOX/SCOPE/NAME")
        return self.store.namespace_at(place.sandbox, scope_dir(place.scope, place.owner), place.namespace)

    def _inside(self, place: GridPath) -> bytes:
        return os.fsencode(place.path)

    def _file_place(self, text: str) -> GridPath:
        """Where a file is meant: a BLOB's path is that of its bytes."""
        place = parse_path(text)
        if place.path:
            return place
        if self._at(place).type is not NamespaceType.BLOB:
            return place
        return GridPath(place.sandbox, place.scope, place.owner, place.namespace, BLOB_DATA.decode())

    def _namespace(self, text: str, exact: bool = False, trash: bool = False) -> Namespace:
        """By id or path.  `exact`: not by the path of something in it.  `trash`: one in the trash too.
        Errors: InvalidError, NotFoundError, ExpiredError."""
        namespace = self.store.catalogue.by_id.get(text)
        if namespace is not None:
            return namespace if trash and namespace.trashed else self.store.alive(namespace)
        place = parse_path(text)
        if exact and place.path:
            raise InvalidError(f"{text!r} is inside a namespace; use {self._whole(place)} to mean all of it")
        return self._at(place)

    def _whole(self, place: GridPath) -> str:
        return str(GridPath(place.sandbox, place.scope, place.owner, place.namespace))

    def _below(self, place: GridPath, trash: bool = False) -> Iterator[Namespace]:
        """The live namespaces below a place, or those in the trash.  Errors: NotFoundError if `place` names
        one that is not there."""
        if place.namespace is not None and not trash:
            yield self._at(place)
            return
        for namespace in list(self.store.catalogue.by_serial.values()):
            if bool(namespace.trashed) is not trash or namespace.trashed == MAKING:
                continue
            if place.sandbox not in (None, namespace.sandbox) or place.scope not in (None, namespace.scope):
                continue
            if place.owner not in (None, namespace.owner) or place.namespace not in (None, namespace.entry):
                continue
            if trash or self._is_alive(namespace):
                yield namespace

    def _is_alive(self, namespace: Namespace) -> bool:
        try:
            self.store.alive(namespace)
        except NotFoundError:
            return False
        return True

    def _above(self, place: GridPath) -> list[str]:
        """The names in a directory above namespaces.  Errors: NotFoundError, ExpiredError."""
        store = self.store
        if place.sandbox is None:
            return sorted(store.sandboxes())
        if place.sandbox not in store.sandboxes():
            raise NotFoundError(f"there is no sandbox {place.sandbox!r}; `artfs ls grid` shows what there is")
        if place.scope is None or (place.owner is None and place.scope is not Scope.SANDBOX):
            folders = store.folders(place.sandbox)
            return sorted(scope_dir(*folder) for folder in folders if place.scope in (None, folder[0]))
        if place.scope is Scope.SESSION:
            store.session(place.sandbox, cast(str, place.owner))
        entries = store.catalogue.entries(place.sandbox, scope_dir(place.scope, place.owner))
        return sorted(name for name, namespace in entries.items() if self._is_alive(namespace))


def _directory(name: str) -> Entry:
    """A directory above namespaces, as a mount shows it."""
    return {
        "name": name,
        "type": "directory",
        "mode": 0o040755,
        "uid": 0,
        "gid": 0,
        "nlink": 2,
        "size": 0,
        "allocated": 0,
        "mtime": None,
        "target": None,
    }


def _entry(stat: Stat) -> Entry:
    """`mode` has the type bits too; `target` is a symlink's, else None."""
    return {
        "name": os.fsdecode(stat.name),
        "type": stat.type,
        "mode": stat.mode,
        "uid": stat.uid,
        "gid": stat.gid,
        "nlink": stat.nlink,
        "size": stat.size,
        "allocated": stat.allocated,
        "mtime": stat.mtime,
        "target": os.fsdecode(stat.target) if stat.type == "symlink" else None,
    }
