"""A store: namespaces with scopes, sessions and checkpoints over one shard, opened by its owner.

    <root>/store.json    what the store is, fixed when it is made     <root>/journal    see artfs.volume.journal
    <root>/config.toml   settings                                     <root>/objects/   objects by name
    <root>/meta.db       rows, catalogue, sessions (sqlite)           <root>/lock, owner.sock    the owner's

A call that changes something and tells surfaces is not cancelled in between: what a surface was not told it would show
for ever.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from stat import S_ISGID
from time import time_ns
from typing import Any
from uuid import uuid4

import anyio
from anyio import to_thread

from artfs.errors import ArtfsError, InvalidError, NotFoundError
from artfs.grid import check_id, check_namespace_name, owner_key, scope_dir
from artfs.meta import Checkpoint
from artfs.objects.remote import Progress, Waiting
from artfs.sessions import Session, SessionStore
from artfs.settings import Settings
from artfs.store.blobs import Blobs
from artfs.store.homes import Homes
from artfs.store.noting import note
from artfs.store.reaper import NS_PER_S, REAPED_AT_ONCE, Reaper
from artfs.store.scopes import Scopes
from artfs.store.surface import Surfaces
from artfs.types import NamespaceType, Scope, Serial
from artfs.volume.catalogue import MAKING, Namespace
from artfs.volume.gc import Collector
from artfs.volume.inodes import now as coarse_now
from artfs.volume.node import Node
from artfs.volume.saving import Saver
from artfs.volume.shard import Shard
from artfs.volume.tree import Tree
from artfs.volume.volume import Volume, destroy_all
from artfs.volume.waiting import MustWait, run

log = logging.getLogger(__name__)

DRAIN_RETRY = 1.0
"""Seconds between attempts of a drain."""


class Store(Homes, Scopes):
    """REQUIRES: all calls on the loop that opened it.  What it knows of its providers is in `Homes`, of who and what is
    alive in `Scopes`.

    `on_asked`: somebody else wants the store; whether it will be let go.  `connections`: how many clients there are."""

    def __init__(self, root: Path | None, shard: Shard, sessions: SessionStore, settings: Settings) -> None:
        Homes.__init__(self, root, shard, settings)
        Scopes.__init__(self, shard, sessions, settings)
        self.surfaces = Surfaces()
        self.on_asked: Callable[[], bool] = lambda: False
        self.connections: Callable[[], int] = lambda: 0
        self.volumes: dict[Serial, Volume] = {}
        self.recovered = 0
        self.saver: Saver | None = None
        self.blobs = Blobs(self)
        self.collector = Collector(shard, pinned=self.blobs.pinned, views=lambda: shard.views, save=None)
        self.reaper = Reaper(self)
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
        await self.surfaces.grid_changed(namespace)
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

    async def rename_namespace(self, namespace: Namespace, name: str, replacing: bool = False) -> Namespace:
        """Within its scope.  Errors: InvalidError, ExistsError."""
        check_namespace_name(name)
        async with self._naming:
            renamed = replace(self.alive(namespace), name=name)
            with anyio.CancelScope(shield=True):
                self.catalogue.put(renamed)
                await self.shard.commit()
        with anyio.CancelScope(shield=True):
            await self.surfaces.grid_changed(namespace)
            await self.surfaces.grid_changed(renamed)
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
        await self.surfaces.gone(namespace, nodes)
        self.collector.kick()

    async def _destroy(self, namespace: Namespace, for_good: bool) -> bool:
        volume = Volume(self.shard, namespace)
        tree = volume.tree
        if tree.checkpoints and not for_good and namespace.trashed is None:
            trashed = replace(namespace, trashed=time_ns())
            nodes = await volume.shelve(trashed)
            self.volumes.pop(tree.serial, None)
            await self.surfaces.gone(namespace, nodes)
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
                    await self.surfaces.grid_changed(back)
                    return back
        raise NotFoundError(f"nothing in the trash is called {id!r}; `artfs ns list --trash` shows what is")

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
            await self.surfaces.grid_changed(target)
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
            await self.surfaces.checkpoint_changed(volume.namespace, checkpoint)
        return checkpoint

    async def restore(self, volume: Volume, name: str) -> Checkpoint:
        """Returns the safety checkpoint that was taken first."""
        volume.find(name)
        await self.settle(volume)
        with anyio.CancelScope(shield=True):
            restored = await volume.restore(name)
            note(self, volume.tree)
            await self.surfaces.restored(volume, restored)
        return restored.safety

    async def delete_checkpoint(self, volume: Volume, name: str) -> Checkpoint:
        with anyio.CancelScope(shield=True):
            checkpoint = await volume.delete_checkpoint(name)
            await self.surfaces.checkpoint_changed(volume.namespace, checkpoint)
        return checkpoint

    async def settle(self, volume: Volume) -> None:
        """What was written through mounts before this call is in the tree, sizes and times too."""
        await self.surfaces.settle(volume)

    async def names_changed(self, names: list[tuple[Node, bytes]]) -> None:
        """See `Surface`: called by whoever changes names of a tree other than for a surface."""
        await self.surfaces.names_changed(names)

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
            await self.saver.save(None if wanted is None else [wanted.provider])

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
                        if self.saver is not None:
                            with suppress(ArtfsError, OSError):
                                await self.saver.save_most()
                        await anyio.sleep(DRAIN_RETRY)
        finally:
            if not done and self.saver is not None:
                self.saver.give_up(f"it was not done within {limit:g} s, or told to end")
        return self.shard.remote.waiting()

    # sessions
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
        await self.surfaces.scope_changed(sandbox, scope_dir(Scope.SESSION, session.id))
        return session

    async def delete_session(self, sandbox: str, id: str) -> None:
        """It is gone at once; its namespaces follow.  Errors: NotFoundError."""
        await self.reaper.reap_session(await to_thread.run_sync(self.sessions.delete, sandbox, id))


def _first(*values: int | None) -> int:
    for value in values:
        if value is not None:
            return value
    raise AssertionError
