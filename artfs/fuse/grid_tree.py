"""The grid above the namespaces: sandboxes, scope directories, and `.artfs/` with the state of the store.

mkdir in a scope directory makes a workspace of that name, rmdir destroys an empty one, rename gives it another name.
What a principal may not enter is not there for it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NoReturn

from artfs.errors import ArtfsError, FsError, InvalidError, NotFoundError
from artfs.fuse.virtual import Numbers, VirtualTree, file, folder, later
from artfs.grid import NAME_MAX, check_id, parse_scope_dir, scope_dir
from artfs.store.store import Store
from artfs.types import Access, NamespaceType, Principal, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.node import Dentry, Node
from artfs.volume.tree import NOREPLACE

DIR, REG = 4, 8
INFO = b".artfs"
Place = tuple[str, ...]


class GridTree(VirtualTree):
    """`principal()` is who asks; `scope_uid(sandbox, scope, owner)` is the uid that a scope directory belongs to, in
    a checked mount; `status()` is what `.artfs/` tells of the mount."""

    read_only = False
    lasting = True

    def __init__(
        self,
        store: Store,
        numbers: Numbers,
        principal: Callable[[], Principal],
        scope_uid: Callable[[str, Scope, str | None], int] | None = None,
        status: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self.store = store
        self.numbers = numbers
        self.principal = principal
        self.scope_uid = scope_uid
        self.status = status or dict
        self._nodes: dict[Place, Node] = {}
        self._places: dict[int, Place] = {}

    # nodes
    def at(self, *place: str) -> Node:
        """The directory of a place: (), (sandbox,), (sandbox, scope directory)."""
        node = self._nodes.get(place)
        if node is None:
            number = self.numbers.of("/".join(("grid", *place)))
            mode, uid, gid = 0o755, os.getuid(), os.getgid()
            parsed = parse_scope_dir(place[1]) if len(place) == 2 else None
            if parsed is not None and parsed[0] is Scope.SANDBOX:
                if self.store.settings.shared_writable:
                    mode = 0o1777
            elif parsed is not None and self.scope_uid is not None:
                mode, uid = 0o700, self.scope_uid(place[0], *parsed)
            node = self._nodes[place] = folder(self, number, mode, uid, gid)
            self._places[number] = place
        return node

    def place(self, node: Node) -> Place:
        return self._places[node.ino]

    def node(self, ino: int) -> Node:
        place = self._places.get(ino)
        if place is None:
            raise FsError(errno.ESTALE)
        return self._nodes[place]

    # names
    def lookup(self, parent: Node, name: bytes) -> Node | None:
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        try:
            return self._lookup(self.place(parent), os.fsdecode(name))
        except (NotFoundError, InvalidError):
            return None
        except FsError:
            raise
        except ArtfsError as error:  # what cannot be read is there all the same
            raise FsError(error.errno) from error

    def _lookup(self, place: Place, name: str) -> Node | None:
        if not place:
            if name == ".artfs":
                return InfoTree(self).folder
            known = self.store.sandboxes() if self.scope_uid is not None else self._sandboxes()
            return self.at(name) if name in known else None
        if len(place) == 1:
            if name in (".artfs", "_meta.json"):
                return None
            parsed = parse_scope_dir(name)
            if parsed is None or self._is_hidden(place[0], *parsed):
                return None
            if parsed[0] is Scope.SESSION:
                assert parsed[1] is not None
                self.store.session(place[0], parsed[1])
            return self.at(place[0], name)
        namespace = self.store.namespace_at(place[0], place[1], name)
        if self._is_hidden(namespace.sandbox, namespace.scope, namespace.owner):
            return None
        return self.store.volume(namespace).tree.root()

    def _is_hidden(self, sandbox: str, scope: Scope, owner: str | None) -> bool:
        """In a checked mount no name is: a caller's ENOENT would drop the dentry of another, and what is mounted there.
        Modes keep callers out, and the guard."""
        return self.scope_uid is None and self._access(sandbox, scope, owner) is Access.NONE

    def _access(self, sandbox: str, scope: Scope, owner: str | None) -> Access:
        return self.store.access(self.principal(), sandbox, scope, owner)

    def _sandboxes(self) -> list[str]:
        known = sorted(self.store.sandboxes())
        return [name for name in known if self._access(name, Scope.SANDBOX, None) is not Access.NONE]

    def listing(self, parent: Node) -> list[tuple[bytes, Dentry]]:
        place = self.place(parent)
        if not place:
            nodes = {name: self.at(name).ino for name in self._sandboxes()}
        elif len(place) == 1:
            nodes = {}
            for scope, owner in self.store.folders(place[0]):
                if self._access(place[0], scope, owner) is not Access.NONE:
                    name = scope_dir(scope, owner)
                    nodes[name] = self.at(place[0], name).ino
        else:
            return self._namespaces(place)
        return [
            (os.fsencode(name), Dentry(ino, cookie, DIR)) for cookie, (name, ino) in enumerate(sorted(nodes.items()), 3)
        ]

    def _namespaces(self, place: Place) -> list[tuple[bytes, Dentry]]:
        listed = []
        for name, namespace in self.store.catalogue.entries(*place).items():
            try:
                root = self.store.volume(namespace).tree.root()
            except ArtfsError:
                continue
            number = root.num
            if number not in self._places:
                self._nodes["", str(number)] = root
                self._places[number] = ("", str(number))
            else:
                self._nodes["", str(number)] = root
            listed.append((os.fsencode(name), Dentry(number, namespace.serial + 2, DIR)))
        return sorted(listed, key=lambda item: item[1].cookie)

    # changes
    def mkdir(self, parent: Node, name: bytes, mode: int, uid: int, gid: int) -> Node:
        place = self.place(parent)
        text = _text(name)
        if len(place) == 1:
            return self._scope(place[0], text)
        if not place:
            raise FsError(errno.EPERM)
        parsed = parse_scope_dir(place[1])
        assert parsed is not None
        if self._access(place[0], *parsed) is not Access.WRITE:
            raise FsError(errno.EACCES)
        if text in self.store.catalogue.entries(*place):
            raise FsError(errno.EEXIST)

        async def work() -> Node:
            namespace = await _errno(self.store.create_namespace(place[0], *parsed, text, mode=mode, uid=uid, gid=gid))
            return self.store.volume(namespace).tree.root()

        later(work, parent)

    def _scope(self, sandbox: str, name: str) -> Node:
        parsed = parse_scope_dir(name)
        if parsed is None or parsed[0] is Scope.SESSION:
            raise FsError(errno.EPERM)
        if self._access(sandbox, *parsed) is not Access.WRITE:
            raise FsError(errno.EACCES)
        check_id("sandbox", sandbox)
        raise FsError(errno.EEXIST)

    def rmdir(self, parent: Node, name: bytes) -> Node:
        namespace = self._namespace(parent, name)
        tree = self.store.volume(namespace).tree
        root = tree.root()
        if namespace.type is NamespaceType.WORKSPACE and not tree.is_empty(root):
            raise FsError(errno.ENOTEMPTY)

        async def work() -> None:
            await _errno(self.store.destroy_namespace(namespace))

        later(work, parent, root)

    def unlink(self, parent: Node, name: bytes) -> NoReturn:
        raise FsError(errno.EISDIR)

    def rename(self, parent: Node, name: bytes, target: Node, new: bytes, flags: int = 0) -> None:
        if parent is not target:
            raise FsError(errno.EXDEV)
        if flags & ~NOREPLACE:
            raise FsError(errno.EINVAL)
        namespace = self._namespace(parent, name)
        text = _text(new)
        if text == namespace.entry:
            return
        other = self.store.catalogue.entries(*self.place(parent)).get(text)
        if other is not None:
            if flags & NOREPLACE:
                raise FsError(errno.EEXIST)
            if not self.store.volume(other).tree.is_empty(self.store.volume(other).tree.root()):
                raise FsError(errno.ENOTEMPTY)

        async def work() -> None:
            if other is not None:
                await _errno(self.store.destroy_namespace(other))
            await _errno(self.store.rename_namespace(namespace, text))

        later(work, parent)

    def _namespace(self, parent: Node, name: bytes) -> Namespace:
        place = self.place(parent)
        if len(place) < 2:
            raise FsError(errno.EPERM)
        try:
            namespace = self.store.namespace_at(place[0], place[1], _text(name))
        except ArtfsError as error:
            raise FsError(errno.ENOENT) from error
        if self._access(namespace.sandbox, namespace.scope, namespace.owner) is not Access.WRITE:
            raise FsError(errno.EACCES)
        return namespace

    def setattr(self, node: Node, *args: Any) -> NoReturn:
        raise FsError(errno.EPERM)

    def make(self, parent: Node, name: bytes, *args: Any, **kwargs: Any) -> NoReturn:
        raise FsError(errno.EPERM)


class InfoTree(VirtualTree):
    """`.artfs/`: the state of the store as JSON files, as they are when they are opened."""

    def __init__(self, grid: GridTree) -> None:
        self.grid = grid
        self.folder = folder(self, grid.numbers.of(".artfs"), 0o555)
        self._listed: dict[int, Node] = {}

    def _content(self, name: bytes) -> bytes | None:
        store = self.grid.store
        if name == b"status":
            document: dict[str, Any] = {"root": str(store.root), **asdict(store.shard.statistics())}
            document["waiting"] = asdict(store.shard.remote.waiting())
        elif name == b"stats":
            document = {
                **self.grid.status(),
                "waiting": asdict(store.shard.remote.waiting()),
                "cache": asdict(store.shard.remote.statistics()),
            }
        elif name == b"config":
            document = store.settings.model_dump(mode="json")
        else:
            return None
        return json.dumps(document, indent=2).encode() + b"\n"

    def lookup(self, parent: Node, name: bytes) -> Node | None:
        content = self._content(name)
        return None if content is None else file(VirtualTree(), self.grid.numbers.fresh(), content)

    def listing(self, parent: Node) -> list[tuple[bytes, Dentry]]:
        listed = []
        for cookie, name in enumerate((b"config", b"stats", b"status"), 3):
            node = self.lookup(parent, name)
            assert node is not None
            self._listed[node.ino] = node
            listed.append((name, Dentry(node.ino, cookie, REG)))
        return listed

    def node(self, ino: int) -> Node:
        try:
            return self._listed.pop(ino)
        except KeyError:
            raise FsError(errno.ESTALE) from None


def _text(name: bytes) -> str:
    if len(name) > NAME_MAX:
        raise FsError(errno.ENAMETOOLONG)
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise FsError(errno.EILSEQ) from None


async def _errno(work: Any) -> Any:
    """The result of a call of the store, its errors as errnos."""
    try:
        return await work
    except FsError:
        raise
    except ArtfsError as error:
        raise FsError(error.errno) from error
