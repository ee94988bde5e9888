"""A store: namespaces with scopes, sessions and checkpoints over one shard, opened by its owner.

    <root>/store.json    what the store is, fixed when it is made     <root>/journal    see artfs.volume.journal
    <root>/config.toml   settings                                     <root>/objects/   objects by name
    <root>/meta.db       rows, catalogue, sessions (sqlite)           <root>/lock, owner.sock    the owner's

A `Surface` is what shows the store to somebody who caches (a mount): it is asked to hand over what it holds before a
checkpoint, and told what has become void.

A call that changes something and tells surfaces is not cancelled in between: what a surface was not told it would show
for ever.

Expiry is exact where a name is resolved (`alive`), and a reaper deletes what has expired soon after its moment.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from stat import S_ISGID
from time import time_ns
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
from anyio import to_thread

from artfs import access as rules
from artfs.blocks import Chunk
from artfs.errors import ArtfsError, DeniedError, ExpiredError, InvalidError, NotFoundError
from artfs.grid import check_id, check_namespace_name, owner_key, parse_scope_dir, scope_dir, session_key
from artfs.meta import Checkpoint
from artfs.objects.remote import Progress, Waiting
from artfs.sessions import Session, SessionStore
from artfs.settings import Settings
from artfs.store.blobs import Blobs
from artfs.store.homes import Homes
from artfs.store.noting import note
from artfs.store.surface import Surface
from artfs.types import Access, NamespaceType, Principal, Scope, Serial
from artfs.volume.catalogue import MAKING, Namespace
from artfs.volume.gc import Collector, Gc
from artfs.volume.inodes import now as coarse_now
from artfs.volume.node import Node
from artfs.volume.postings import OWN
from artfs.volume.rows import HEAD_KEY, Head
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree
from artfs.volume.volume import Volume, destroy_all
from artfs.volume.waiting import MustWait, run

if TYPE_CHECKING:
    from artfs.volume.postings import OWN
from artfs.volume.saving import Saver

log = logging.getLogger(__name__)

TRASH_KEPT = 24 * 3600 * 10**9
"""Nanoseconds for which a destroyed namespace that had checkpoints can be brought back."""
EXPIRED = "expired"
"""The kind of records of ids whose namespaces have expired and are gone: id → until when (nanoseconds since 1970) they
are known as expired."""
EXPIRED_KEPT = 24 * 3600 * 10**9
REAP_INTERVAL = 1.0
"""Seconds between looks at what expires, at most; nearer expiries are waited for exactly."""
REAP_PAUSE = 0.01
"""Seconds between two of them at least, so that what expires shortly one after another goes together."""
REAPED_AT_ONCE = 256
"""Namespaces of one transaction."""
DRAIN_RETRY = 1.0
"""Seconds between attempts of a drain."""
NS_PER_S = 10**9


class Store(Homes):
    """REQUIRES: all calls on the loop that opened it.

    `on_asked`: somebody else wants the store; whether it will be let go.  `connections`: how many clients there are."""

    def __init__(self, root: Path | None, shard: Shard, sessions: SessionStore, settings: Settings) -> None:
        super().__init__(root, shard, settings)
        self.sessions = sessions
        self.surfaces: list[Surface] = []
        self.on_asked: Callable[[], bool] = lambda: False
        self.connections: Callable[[], int] = lambda: 0
        self.volumes: dict[Serial, Volume] = {}
        self.recovered = 0
        self.saver: Saver | None = None
        self.blobs = Blobs(self)
        self.collector = Collector(shard, pinned=self.blobs.pinned, views=lambda: shard.views, save=None)
        shard.remote.keep_numbers = self.collector.keep_numbers
        expired = [(int(until), id) for id, until in shard.engine.records(EXPIRED).items()]
        self.expired_ids = {id: until for until, id in sorted(expired)}  # the first to be forgotten comes first
        self.unfinished: set[Serial] = set()
        self._ids = os.getuid(), os.getgid()
        shard.on_commit = shard.on_close = partial(note, self)
        self._naming = anyio.Lock()  # renames and deletions of namespaces come one after another

    # namespaces
    async def create_namespace(
        self,
        sandbox: str,
        scope: Scope,
        owner: str | None,
        name: str | None = None,
        **options: Any,
    ) -> Namespace:
        """`new_namespace`, told to those who cache."""
        namespace = await run(self.new_namespace, sandbox, scope, owner, name, **options)
        await self._tell_grid(namespace)
        return namespace

    def new_namespace(
        self,
        sandbox: str,
        scope: Scope,
        owner: str | None,
        name: str | None = None,
        *,
        id: str | None = None,
        type: NamespaceType = NamespaceType.WORKSPACE,
        ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        mode: int = 0o777,
        uid: int | None = None,
        gid: int | None = None,
        provider: str | None = None,
        compression: str | None = None,
        created: int | None = None,
        data: bytes = b"",
        making: bool = False,
        live: bool = False,
    ) -> Namespace:
        """A new namespace, as durable as any change; a BLOB with `data`, else empty.  A name that is taken is an error;
        without a name its id is its entry.  `ttl` in seconds.  `provider`: a URL, "" for the store's own directory;
        `compression`: "" or "zstd"; None: as the settings say.
        `live`: the caller has just seen the session.  `making`: nobody sees it until it is `made`; it goes
        with this process.
        Errors: InvalidError, ExistsError, ExpiredError and NotFoundError (the session); FsError (`data`); as
        `Provider.check`; MustWait.
        """
        check_id("sandbox", sandbox)
        owner = owner_key(scope, owner)
        if name is not None:
            check_namespace_name(name)
        if ttl is not None and ttl <= 0:
            raise InvalidError(f"a time to live must be more than 0 seconds, not {ttl}; leave it out for none")
        if scope is Scope.SESSION:
            assert owner is not None
            if not live:
                self.session(sandbox, owner)
        settings = self.settings
        home = self.home_for(scope, type, provider, compression)
        if home is not None and home not in self._used:
            raise MustWait(partial(self.use_provider, home))
        id = id or f"ns-{uuid4().hex[:12]}"
        now = coarse_now() if created is None else created  # the clock of what is written later
        serial = self.catalogue.next_serial()
        namespace = Namespace(
            serial=serial,
            id=id,
            type=type,
            sandbox=sandbox,
            scope=scope,
            owner=owner,
            name=name,
            created=now,
            block_size=settings.block_size,
            prefix=f"grid/{sandbox}/{scope_dir(scope, owner)}/{id}",
            expires=time_ns() + int(ttl * NS_PER_S) if ttl is not None else None,
            trashed=MAKING if making else None,
            uid=_first(uid, settings.uid, self._ids[0]),
            gid=_first(gid, settings.gid, self._ids[1]),
            umask=settings.umask,
            metadata=dict(metadata or {}),
            provider=home.provider if home is not None else "",
            codec=home.codec if home is not None else "",
        )
        mode &= ~settings.umask
        if self.shard.is_small(namespace, data) and not making and not mode & S_ISGID:
            self.shard.create_blob(namespace, mode, data)
        else:
            self.shard.create(namespace, mode, data)
        if making:
            self.unfinished.add(serial)
        return namespace

    def made(self, namespace: Namespace) -> None:
        """What was begun by `making` is there, as this says.  Errors: as `alive_session`; ExistsError; FsError EROFS;
        MustWait."""
        self.alive_session(namespace)
        self.shard.update(replace(namespace, trashed=None))
        self.unfinished.discard(namespace.serial)

    async def attach(self) -> None:
        """Look at the providers that this store uses, at its start.  One that does not answer is `missing`, and looked
        for again: what is cached can be read, and what is written waits.  Namespaces of a provider that has not
        outlived the last process are gone.  Errors: as `use_provider`, of the providers that the settings name; others
        are only missed by their own namespaces."""
        await self.look_at_all()
        namespaces = self.catalogue.by_serial.values()
        await self.reap_all([each for each in namespaces if each.home is not None and not self.outlives(each.home)])

    def volume(self, namespace: Namespace) -> Volume:
        """Errors: NotFoundError, ExpiredError."""
        namespace = self.alive(namespace)
        volume = self.volumes.get(namespace.serial)
        if volume is None:
            volume = self.volumes[namespace.serial] = Volume(self.shard, namespace)
        volume.namespace = namespace
        return volume

    def volume_of(self, tree: Tree) -> Volume:
        namespace = self.catalogue.by_serial.get(tree.serial)
        if namespace is None:
            raise NotFoundError("Namespace not found: it has just been destroyed")
        return self.volume(namespace)

    def find(self, id: str, sandbox: str | None = None) -> Namespace:
        """By id, alive.  Errors: NotFoundError; ExpiredError, also for a day after it has gone."""
        namespace = self.catalogue.by_id.get(id)
        if namespace is None or (sandbox is not None and namespace.sandbox != sandbox):
            if self.expired_ids.get(expired_key(sandbox, id), 0) > time_ns():
                raise ExpiredError(f"{id} has expired")
            raise NotFoundError(f"Namespace not found: {id}")
        return self.alive(namespace)

    def alive(self, namespace: Namespace) -> Namespace:
        """The namespace as it is now.  Errors: NotFoundError, ExpiredError."""
        current = self.catalogue.by_serial.get(namespace.serial)
        if current is None or current.trashed is not None:
            raise NotFoundError(f"Namespace not found: {namespace.grid_path}")
        if current.expires is not None and current.expires <= time_ns():
            raise ExpiredError(f"{namespace.grid_path} has expired")
        if current.scope is Scope.SESSION:
            assert current.owner is not None
            try:
                self.session(current.sandbox, current.owner)
            except NotFoundError as error:
                raise ExpiredError(f"{namespace.grid_path} has expired with its session: {error}") from error
        return current

    def namespace_at(self, sandbox: str, folder: str, entry: str) -> Namespace:
        """Errors: NotFoundError, ExpiredError."""
        return self.alive(self.catalogue.at(sandbox, folder, entry))

    async def rename_namespace(self, namespace: Namespace, name: str, replacing: bool = False) -> Namespace:
        """Within its scope.  Errors: InvalidError, ExistsError."""
        check_namespace_name(name)
        async with self._naming:
            renamed = replace(self.alive(namespace), name=name)
            with anyio.CancelScope(shield=True):
                self.catalogue.put(renamed)
                await self.shard.commit()
        with anyio.CancelScope(shield=True):
            await self._tell_grid(namespace)
            await self._tell_grid(renamed)
        return renamed

    async def destroy_namespace(self, namespace: Namespace, *, for_good: bool = False) -> bool:
        """Delete it; with checkpoints it goes to the trash for a day.  Returns whether it did.
        Errors: NotFoundError if that was done already."""
        async with self._naming:
            current = self.catalogue.by_serial.get(namespace.serial)
            if current is None or (current.trashed is not None and not for_good):
                raise NotFoundError(f"Namespace not found: {namespace.grid_path}; it has just been deleted")
            with anyio.CancelScope(shield=True):
                trashed = await self._destroy(current, for_good)
        return trashed

    async def reap_all(self, namespaces: Iterable[Namespace]) -> None:
        """Delete those of them that are still there for good, many at a time.  Errors: FsError; as the engine."""
        left = list({namespace.serial: namespace for namespace in namespaces}.values())
        for at in range(0, len(left), REAPED_AT_ONCE):
            async with self._naming:
                found = (self.catalogue.by_serial.get(namespace.serial) for namespace in left[at : at + REAPED_AT_ONCE])
                here = [namespace for namespace in found if namespace is not None]
                with anyio.CancelScope(shield=True):
                    gone = await destroy_all(self.shard, here)
                    for namespace in here:
                        await self._gone(namespace, gone[namespace.serial])

    async def _gone(self, namespace: Namespace, nodes: list[Node]) -> None:
        self.volumes.pop(namespace.serial, None)
        self.unfinished.discard(namespace.serial)
        await self._tell_gone(namespace, nodes)
        self.collector.kick()

    async def _destroy(self, namespace: Namespace, for_good: bool) -> bool:
        volume = Volume(self.shard, namespace)
        tree = volume.tree
        if tree.checkpoints and not for_good and namespace.trashed is None:
            trashed = replace(namespace, trashed=time_ns())
            nodes = await volume.shelve(trashed)
            self.volumes.pop(tree.serial, None)
            await self._tell_gone(namespace, nodes)
            return True
        await self._gone(namespace, await volume.destroy())
        return False

    async def undelete_namespace(self, id: str) -> Namespace:
        """Bring a namespace back from the trash, under its name or the next free one.  Errors: NotFoundError."""
        async with self._naming:
            for trashed in self.catalogue.trash():
                if id in (trashed.id, trashed.grid_path):
                    entry = self.catalogue.free_entry(trashed.place, trashed.entry)
                    back = replace(trashed, trashed=None, name=None if entry == trashed.id else entry)
                    self.alive_session(back)
                    self.catalogue.put(back)
                    await self.shard.commit()
                    await self._tell_grid(back)
                    return back
        raise NotFoundError(f"nothing in the trash is called {id!r}; `artfs ns list --trash` shows what is")

    def alive_session(self, namespace: Namespace) -> None:
        if namespace.scope is Scope.SESSION:
            assert namespace.owner is not None
            self.session(namespace.sandbox, namespace.owner)

    async def clone(self, volume: Volume, name: str, at: str | None = None) -> Namespace:
        """Branch it, or one of its checkpoints, in the same scope.  Errors: InvalidError, ExistsError,
        NotFoundError."""
        check_namespace_name(name)
        source = self.alive(volume.namespace)
        if at is None:
            await self.settle(volume)
        else:
            volume.find(at)
        id = f"ns-{uuid4().hex[:12]}"
        place = f"grid/{source.sandbox}/{scope_dir(source.scope, source.owner)}/{id}"
        target = replace(
            source,
            serial=self.catalogue.next_serial(),
            id=id,
            name=name,
            created=time_ns(),
            prefix=place,
        )
        with anyio.CancelScope(shield=True):
            self.volumes[target.serial] = await volume.clone(target, at)
            await self._tell_grid(target)
        return target

    # checkpoints
    async def checkpoint(
        self,
        volume: Volume,
        name: str | None = None,
        description: str = "",
        labels: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Of everything that was written before this call, through whatever door."""
        await self.settle(volume)
        with anyio.CancelScope(shield=True):
            checkpoint = await volume.checkpoint(name, description, labels)
            await self._tell_checkpoint(volume.namespace, checkpoint)
        return checkpoint

    async def restore(self, volume: Volume, name: str) -> Checkpoint:
        """Returns the safety checkpoint that was taken first."""
        volume.find(name)
        await self.settle(volume)
        with anyio.CancelScope(shield=True):
            restored = await volume.restore(name)
            note(self, volume.tree)
            for surface in self.surfaces:
                await surface.restored(volume, restored)
        return restored.safety

    async def delete_checkpoint(self, volume: Volume, name: str) -> Checkpoint:
        with anyio.CancelScope(shield=True):
            checkpoint = await volume.delete_checkpoint(name)
            await self._tell_checkpoint(volume.namespace, checkpoint)
        return checkpoint

    async def settle(self, volume: Volume) -> None:
        """What was written through mounts before this call is in the tree, sizes and times too."""
        for surface in self.surfaces:
            await surface.settle(volume)

    async def names_changed(self, names: list[tuple[Node, bytes]]) -> None:
        """See `Surface`: called by whoever changes names of a tree other than for a surface."""
        for surface in self.surfaces:
            await surface.names_changed(names)

    # providers
    async def sync(
        self, namespace: Namespace | None = None, progress: Progress | None = None, *, settle: bool = True
    ) -> None:
        """Everything that was written before this call (to that namespace) is in its provider, and so is the metadata:
        it survives the loss of this host.  Without `settle` a mount's kernel is not asked for what it still holds.
        Errors: UnavailableError, or what the provider said; uploads go on then."""
        remote = self.shard.remote
        wanted = None if namespace is None else self.alive(namespace).home
        volumes = list(self.volumes.values()) if namespace is None else [self.volume(namespace)]
        for volume in volumes if settle else ():
            await self.settle(volume)
        await self.shard.commit()
        if namespace is None:
            await remote.push(None, progress)
        elif wanted is not None:
            serials = {serial for serial, home in remote.homes.items() if home.provider == wanted.provider}
            await remote.push(serials, progress)
        if self.saver is not None and (namespace is None or wanted is not None):
            await self.saver.save()

    async def gc(self, dry_run: bool = False) -> Gc:
        """Delete what nothing names, as far as that is due.  Errors: as `Collector.collect`."""
        return await self.collector.collect(dry_run=dry_run)

    async def drain(self, progress: Progress | None = None) -> Waiting:
        """`sync` for as long as `drain_limit`; returns what is left, which the next owner uploads."""
        limit = self.settings.drain_limit
        done = False
        try:
            with anyio.move_on_after(limit):
                while not done:
                    try:
                        await self.sync(progress=progress)
                        done = True
                    except (ArtfsError, OSError) as error:
                        log.warning("%s", error)
                        await anyio.sleep(DRAIN_RETRY)
        finally:
            if not done and self.saver is not None:
                self.saver.give_up(f"it was not done within {limit:g} s, or told to end")
        return self.shard.remote.waiting()

    async def warm_up(
        self, namespace: Namespace, path: bytes = b"", progress: Progress | None = None
    ) -> tuple[int, int]:
        """Have the chunks of a file, or of all below a directory, in the cache.  Returns (files, bytes) that it has.
        Errors: FsError, NotFoundError, UnavailableError, DamagedError."""
        tree = self.volume(namespace).tree
        node = tree.root()
        for part in filter(None, path.split(b"/")):
            found = await run(tree.lookup, node, part)
            if found is None:
                raise NotFoundError(f"{os.fsdecode(path)} is not in {namespace.grid_path}")
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
                    chunks = [chunk for chunk in chunks if chunk.object >> 32 in self.shard.remote.homes]
                    if chunks:
                        await self.shard.remote.bring_all(chunks)
                if progress is not None:
                    progress(files, size)
        return files, size

    # sessions
    def session(self, sandbox: str, id: str) -> Session:
        """A live session.  Errors: NotFoundError, ExpiredError."""
        return self.sessions.get(sandbox, id)

    async def create_session(
        self,
        sandbox: str,
        user: str | None = None,
        *,
        ttl: float,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Session:
        """A new live session; `ttl` in seconds.  Errors: InvalidError, ExistsError."""
        create = partial(self.sessions.create, sandbox, user, ttl_seconds=ttl, id=id, metadata=metadata)
        session = await to_thread.run_sync(create)
        for surface in self.surfaces:
            await surface.scope_changed(sandbox, scope_dir(Scope.SESSION, session.id))
        return session

    async def delete_session(self, sandbox: str, id: str) -> None:
        """It is gone at once; its namespaces follow.  Errors: NotFoundError."""
        await self._reap_session(await to_thread.run_sync(self.sessions.delete, sandbox, id))

    async def _reap_session(self, session: Session) -> None:
        folder = scope_dir(Scope.SESSION, session.id)
        namespaces = list(self.catalogue.entries(session.sandbox, folder).values())
        for namespace in namespaces:
            self._remember_expired(namespace)
        thrown = [namespace for namespace in self.catalogue.trash() if namespace.place == (session.sandbox, folder)]
        await self.reap_all([*namespaces, *thrown])
        await to_thread.run_sync(self.sessions.reaped, session.sandbox, session.id)
        for surface in self.surfaces:
            await surface.scope_changed(session.sandbox, folder)

    def session_owner(self, sandbox: str, id: str) -> str | None:
        """The user of a live session.  Errors: NotFoundError, ExpiredError."""
        return self.sessions.get(sandbox, session_key(id)).user

    # access
    def access(self, principal: Principal, sandbox: str, scope: Scope, owner: str | None) -> Access:
        """What the principal may do in a scope; nothing, if a session that matters has ended."""
        try:
            if principal.session is not None and principal.sandbox is not None:
                self.sessions.get(principal.sandbox, principal.session)
            return rules.access(
                principal,
                sandbox,
                scope,
                owner,
                session_owner=lambda key: self.session_owner(sandbox, key),
                shared_writable=self.settings.shared_writable,
            )
        except NotFoundError:
            return Access.NONE

    def require(self, principal: Principal, namespace: Namespace, wanted: Access) -> None:
        """Errors: DeniedError."""
        have = self.access(principal, namespace.sandbox, namespace.scope, namespace.owner)
        if have is Access.NONE or (wanted is Access.WRITE and have is not Access.WRITE):
            raise DeniedError(f"{namespace.grid_path}: access denied; act as its owner, or as an admin")

    def sandboxes(self) -> set[str]:
        return {
            self.settings.sandbox,
            *self.catalogue.sandboxes(),
            *(session.sandbox for session in self.sessions.list()),
        }

    def folders(self, sandbox: str) -> set[tuple[Scope, str | None]]:
        """The scopes of a sandbox that hold something, and its live sessions."""
        found: set[tuple[Scope, str | None]] = {(Scope.SANDBOX, None)}
        for folder in self.catalogue.folders(sandbox):
            place = parse_scope_dir(folder)
            if place is not None and place[0] is not Scope.SESSION:
                found.add(place)
        found.update((Scope.SESSION, session_key(session.id)) for session in self.sessions.list(sandbox))
        return found

    # the background
    async def reap(self) -> int:
        """Delete what has expired by now; returns how many namespaces and sessions."""
        now = time_ns()
        count = 0
        for session in await to_thread.run_sync(self.sessions.expire_due):
            await self._reap_session(session)
            count += 1
        while expired := self.catalogue.expired(now, REAPED_AT_ONCE):
            try:
                for namespace in expired:
                    if namespace.trashed is None:
                        self._remember_expired(namespace)
                await self.reap_all(expired)
            except BaseException:
                for namespace in expired:
                    self.catalogue.remind(namespace)
                raise
            count += len(expired)
        old = [namespace for namespace in self.catalogue.trash() if (namespace.trashed or 0) + TRASH_KEPT <= now]
        unmade = [namespace for namespace in self.catalogue.making() if namespace.serial not in self.unfinished]
        await self.reap_all([*old, *unmade])
        for key in list(takewhile(lambda key: self.expired_ids[key] <= now, self.expired_ids)):
            del self.expired_ids[key]
            self.catalogue.records[EXPIRED, key] = None
        return count + len(old)

    def _remember_expired(self, namespace: Namespace) -> None:
        key = expired_key(namespace.sandbox, namespace.id)
        self.expired_ids.pop(key, None)
        until = self.expired_ids[key] = time_ns() + EXPIRED_KEPT
        self.catalogue.records[EXPIRED, key] = str(until)

    async def run(self) -> None:
        """Commit and reap in the background, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.shard.run)
            tasks.start_soon(self.shard.remote.run)
            tasks.start_soon(self.collector.run)
            tasks.start_soon(self.blobs.run)
            tasks.start_soon(self.look_again)
            if self.saver is not None:
                tasks.start_soon(self.saver.run)
            while True:
                try:
                    await self.reap()
                except Exception:
                    log.exception("what has expired could not be deleted; it is tried again")
                await self._next_expiry()

    async def _next_expiry(self) -> None:
        due = [moment for moment, _ in self.catalogue.due[:1]]
        session = self.sessions.next_expiry()
        if session is not None:
            due.append(session)
        wait = (min(due) - time_ns()) / NS_PER_S if due else REAP_INTERVAL
        await anyio.sleep(min(max(wait, REAP_PAUSE), REAP_INTERVAL))

    async def _tell_grid(self, namespace: Namespace) -> None:
        for surface in self.surfaces:
            await surface.grid_changed(namespace)

    async def _tell_checkpoint(self, namespace: Namespace, checkpoint: Checkpoint) -> None:
        for surface in self.surfaces:
            await surface.checkpoint_changed(namespace, checkpoint)

    async def _tell_gone(self, namespace: Namespace, nodes: list[Node]) -> None:
        for surface in self.surfaces:
            await surface.gone(namespace, nodes)
        await self._tell_grid(namespace)

    def usage(self, namespace: Namespace) -> tuple[int, int]:
        """(bytes, inodes) of what it holds now, in O(1), and without opening it."""
        tree = self.shard.trees.get(namespace.serial)
        if tree is not None:
            return tree.used_bytes, tree.used_inodes
        rows = self.shard.on_the_way(namespace.serial)
        value = rows[HEAD_KEY] if rows else self.shard.engine.get(namespace.serial, HEAD_KEY)
        head = Head.unpack(value) if value is not None else None
        return (head.used_bytes, head.used_inodes) if head else (0, 0)

    def describe(self, namespace: Namespace) -> dict[str, Any]:
        """The namespace as JSON, as `artfs ns info` and the mount show it.  `about`: what the Python API
        knows of it."""
        tree = self.shard.glance(namespace)
        return {
            "id": namespace.id,
            "type": str(namespace.type),
            "grid_path": namespace.grid_path,
            "sandbox": namespace.sandbox,
            "scope": str(namespace.scope),
            "owner": namespace.owner,
            "name": namespace.name,
            "created": namespace.created,
            "expires": namespace.expires,
            "bytes": tree.used_bytes,
            "inodes": tree.used_inodes,
            "checkpoints": len([c for c in tree.checkpoints if not c.name.startswith("~")]),
            "block_size": namespace.block_size,
            "metadata": {key: value for key, value in namespace.metadata.items() if key != OWN},
            "about": namespace.metadata.get(OWN, {}),
            "provider": namespace.provider,
            "codec": namespace.codec,
            "root": str(self.root) if self.root else None,
        }


def expired_key(sandbox: str | None, id: str) -> str:
    return f"{sandbox}/{id}"


def _first(*values: int | None) -> int:
    for value in values:
        if value is not None:
            return value
    raise AssertionError


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[Store]:
    """The store with its background work; closed, and everything committed, at the end.  An error of the body comes out
    as it is, not in a group."""
    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.run)
            try:
                yield store
            except Exception as error:
                failure = error
            finally:
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            if store.saver is not None:
                store.saver.close()
            await store.shard.close()
            await store.shard.remote.providers.close()
    if failure is not None:
        raise failure
