"""URLs of BLOBs: for reading, and through uploads for writing; and the endpoint that serves those that are ours.

`Blobs.presign` makes the bytes of a BLOB one object (`artfs.store.exact`), and gives a URL to that: the provider's own,
where it signs and has the plain bytes, else one of the endpoint.  The URL goes on giving these bytes when the BLOB is
written, ends with the BLOB, its session and its own time, and until then its object is *pinned*: garbage collection
asks `pinned`.  A pin is a record (kind `url`, id `<serial>-<object>`, hex) with what reading needs.

The endpoint starts when the first URL needs it, or at once if an earlier process gave such a URL; then also at the
same port, if it is still free.  URLs are signed with <root>/urls.key, which stays.
"""

from __future__ import annotations

import json
import logging
import os
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, replace
from struct import Struct
from time import time_ns
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from artfs.blocks import Chunk
from artfs.errors import ArtfsError, DamagedError, InvalidError, UnavailableError
from artfs.settings import parse_address
from artfs.store.endpoint import Endpoint
from artfs.store.exact import Exact, Making, data_node, described, find, rewrite
from artfs.store.secret import load_key
from artfs.store.site import BlobSite
from artfs.store.upload_records import NS, PATIENCE, signing
from artfs.store.uploads import Uploads, positive
from artfs.store.urls import READ, Signed, check_type, sign
from artfs.types import NamespaceType, Scope, Serial
from artfs.volume.catalogue import Namespace
from artfs.volume.tree import Tree
from artfs.volume.waiting import run

if TYPE_CHECKING:
    from artfs.store.store import Store

log = logging.getLogger(__name__)

KIND = "url"
EXPIRES_MAX = 7 * 24 * 3600
"""Seconds that a URL may be valid; providers allow no more."""
ROUND = 900 * NS
"""A pin lasts this much longer than its URL needs, so that the next URL may need no new one."""
REAP_INTERVAL = 10.0
CHUNK = Struct(">I16s")
"""length, hash: a chunk of a pinned object, one behind the other."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Object `object` is what a URL of namespace `serial` gives; `expires` in nanoseconds since 1970; `chunks`: what
    `CHUNK` packs of each, base64."""

    serial: int
    object: int
    size: int
    etag: str
    expires: int
    chunks: str = ""

    @property
    def id(self) -> str:
        return f"{self.serial:x}-{self.object:x}"


class Blobs:
    """REQUIRES: `run` is running; all calls on the store's loop."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.making = Making()
        self.uploads = Uploads(store, self.making, self._url)
        self.endpoint: Endpoint | None = None
        self.pins: dict[str, Pin] = {}
        self._key: bytes | None = None
        self._keying = anyio.Lock()
        self._whole: set[int] = set()
        self._locks: dict[Serial, anyio.Lock] = {}
        self._wanted = anyio.Event()
        self._tried = anyio.Event()
        self._failure: ArtfsError | None = None
        for id, document in store.shard.engine.records(KIND).items():
            self.pins[id] = replace(Pin(**json.loads(document)), chunks="")

    # one object with exactly the bytes
    async def exact(self, namespace: Namespace) -> Exact:
        """The BLOB's bytes as they are now, as one object.
        Errors: InvalidError (a WORKSPACE), NotFoundError, ExpiredError, BusyError (it is being written), FsError,
        UnavailableError, DamagedError."""
        volume = self.store.volume(namespace)
        if volume.namespace.type is not NamespaceType.BLOB:
            raise InvalidError(f"{namespace.grid_path} is a WORKSPACE; only a BLOB has a URL")
        await self.store.settle(volume)
        serial = volume.namespace.serial
        async with self._locks.setdefault(serial, anyio.Lock()):
            found = await find(volume.tree)
            if found is not None and await self._is_whole(found):
                return found
            return await run(self._empty, volume.tree) or await rewrite(
                volume.tree, self.making, self.store.shard.commit
            )

    def _empty(self, tree: Tree) -> Exact | None:
        """No row names the object of a BLOB without bytes: the one that a pin keeps will do."""
        if data_node(tree).size:
            return None
        for pin in self.pins.values():
            if pin.serial == tree.serial and not pin.size and pin.object >> 32 == tree.serial:
                return described(pin.object, [])
        return None

    async def _is_whole(self, found: Exact) -> bool:
        """Whether the object has nothing but these bytes."""
        number = found.number
        shard = self.store.shard
        if number in self._whole:
            return True
        if number >> 32 not in shard.remote.homes:
            return shard.objects.size(number) == found.size
        shard.objects.close_objects({number >> 32})
        try:
            size = (await to_thread.run_sync(os.stat, shard.objects.path(number))).st_size
        except FileNotFoundError:  # it is not only here
            size = (await shard.remote.provider(number >> 32).head(shard.remote.name(number))).size
        if size == found.size:
            self._whole.add(number)
        return size == found.size

    # URLs
    async def presign(
        self, namespace: Namespace, expires: float = 3600, *, mime: str | None = None, filename: str | None = None
    ) -> str:
        """A URL that gives what the BLOB holds now to anybody, for `expires` seconds, at most as long as the BLOB and
        its session live.  `mime` and `filename` are what the answer says of itself.
        Errors: as `exact`; InvalidError; as the provider."""
        if positive(expires) > EXPIRES_MAX:
            raise InvalidError(f"a URL is valid for at most {EXPIRES_MAX} seconds (7 days), not {expires}")
        kind = check_type(mime)
        if filename is not None and (len(filename) > 255 or not filename.isprintable()):
            raise InvalidError("a file name in a URL has at most 255 printable characters")
        exact = await self.exact(namespace)
        until = min(time_ns() + int(expires * NS), self._end(namespace))
        pin = await self._pin(namespace, exact, until)
        number = exact.number
        remote = self.store.shard.remote
        home = remote.home(number >> 32)
        provider = signing(self.store, home) if home is not None else None
        if provider is None:
            return await self._url(Signed(READ, pin.id, until // NS, type=kind, name=filename or ""))
        await remote.push({number >> 32})
        seconds = (until - time_ns()) // NS
        self.store.alive(namespace)
        return await provider.sign_get(remote.name(number), max(seconds, 1), mime=mime, filename=filename)

    def _end(self, namespace: Namespace) -> int:
        """When it expires.  Errors: NotFoundError, ExpiredError."""
        namespace = self.store.alive(namespace)
        end = namespace.expires if namespace.expires is not None else 2**63
        if namespace.scope is Scope.SESSION and namespace.owner is not None:
            end = min(end, self.store.session(namespace.sandbox, namespace.owner).expires_ns)
        return end

    async def _pin(self, namespace: Namespace, exact: Exact, until: int) -> Pin:
        """Durable when this returns."""
        packed = b"".join(CHUNK.pack(chunk.length, chunk.hash) for chunk in exact.chunks)
        chunks = b64encode(packed).decode()
        pin = Pin(int(namespace.serial), exact.number, exact.size, exact.etag, until + ROUND, chunks)
        old = self.pins.get(pin.id)
        if old is not None and old.expires >= until:
            return old
        with self.making.keep(exact.number):
            self.store.catalogue.records[KIND, pin.id] = json.dumps(asdict(pin))
            await self.store.shard.commit()
            self.pins[pin.id] = replace(pin, chunks="")
        return pin

    async def _url(self, signed: Signed) -> str:
        endpoint = await self.ensure()
        return endpoint.base_url + sign(await self.key(), signed)

    async def key(self) -> bytes:
        """What URLs are signed with; made when there is none.  Errors: DamagedError, NoSpaceError, UnavailableError."""
        async with self._keying:  # one for all who ask first
            if self._key is None:
                self._key = await to_thread.run_sync(load_key, self.store.root)
        return self._key

    def pinned(self) -> set[int]:
        """Numbers of the objects that a URL may give, or that are being made: nobody may delete them."""
        now = time_ns()
        serials = self.store.catalogue.by_serial
        live = {pin.object for pin in self.pins.values() if pin.expires > now and Serial(pin.serial) in serials}
        return live | self.making.numbers.keys()

    def chunks(self, pin: Pin) -> list[Chunk]:
        """What a pinned object consists of.  Errors: DamagedError."""
        document = self.store.catalogue.records.get((KIND, pin.id)) or self.store.shard.engine.record(KIND, pin.id)
        if document is None:
            raise DamagedError(f"the record of URL {pin.id} is gone; ask for a new one")
        found = []
        offset = 0
        for length, digest in CHUNK.iter_unpack(b64decode(json.loads(document)["chunks"])):
            found.append(Chunk(pin.object, offset, length, digest))
            offset += length
        if offset != pin.size:
            raise DamagedError(f"the record of URL {pin.id} is damaged; ask for a new one")
        return found

    # the background
    async def ensure(self) -> Endpoint:
        """The endpoint, serving.  Errors: UnavailableError, InvalidError (the setting)."""
        tried = self._tried
        if self.endpoint is None:
            self._wanted.set()
            with anyio.move_on_after(PATIENCE):
                await tried.wait()
        if self.endpoint is None:
            raise self._failure or UnavailableError("the endpoint did not start; the store is about to close")
        return self.endpoint

    async def run(self) -> None:
        """Serve URLs once there are any, and reap, until cancelled."""
        try:
            await self._recover()
            if self.uploads.served() or self._served():
                self._wanted.set()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._serve)
                while True:
                    try:
                        await self.reap()
                    except Exception:
                        log.exception("URLs and uploads that are over could not be deleted; it is tried again")
                    await anyio.sleep(REAP_INTERVAL)
        finally:
            self.uploads.spool.close()

    async def _recover(self) -> None:
        """No upload is served before."""
        while True:
            try:
                await self.uploads.recover()
                return
            except (ArtfsError, OSError) as error:
                log.error("uploads of an earlier process cannot be looked at, it is tried again: %s", error)
                await anyio.sleep(REAP_INTERVAL)

    def _served(self) -> bool:
        now = time_ns()
        return any(pin.expires > now and not self._signed_by_provider(pin) for pin in self.pins.values())

    def _signed_by_provider(self, pin: Pin) -> bool:
        home = self.store.shard.remote.home(pin.object >> 32)
        try:
            return home is not None and signing(self.store, home) is not None
        except ArtfsError:  # no key, no such provider any more
            return False

    async def reap(self) -> None:
        """Forget what has expired, or is gone; what fails is tried again."""
        now = time_ns()
        gone = [pin.id for pin in self.pins.values() if pin.expires <= now or not self._has(pin)]
        for id in gone:
            del self.pins[id]
            self.store.catalogue.records[KIND, id] = None
        for serial in [s for s, lock in self._locks.items() if not lock.statistics().locked]:
            del self._locks[serial]
        await self.uploads.reap()

    def _has(self, pin: Pin) -> bool:
        return Serial(pin.serial) in self.store.catalogue.by_serial

    async def _serve(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            endpoint = Endpoint(BlobSite(self))
            try:
                await self._open(endpoint)
            except ArtfsError as error:
                self._failure = error
                log.warning("%s", self._failure)
            else:
                self.endpoint = endpoint
            tried, self._tried = self._tried, anyio.Event()
            tried.set()
            if self.endpoint is not None:
                try:
                    await endpoint.run()
                except Exception:
                    log.exception("the endpoint ended; the next URL starts it again")
                finally:
                    self.endpoint = None

    async def _open(self, endpoint: Endpoint) -> None:
        """At the port of an earlier process, if any will do, so that its URLs work."""
        host, port = parse_address(self.store.settings.endpoint)
        shard = self.store.shard
        last = int(shard.engine.record("endpoint", "port") or 0)
        if not port and last:
            try:
                await endpoint.open(host, last)
                return
            except UnavailableError as error:
                log.warning("URLs that were given before work no more: %s", error)
        await endpoint.open(host, port)
        if not port:
            shard.catalogue.records["endpoint", "port"] = str(endpoint.port)
