"""The catalogue: which namespaces there are.

Documents of kind `namespace` in the engine, one for each, all of them in memory here, found by serial, by id and by
place (sandbox, scope directory, entry); BLOBs by `postings`, too.  Changes are put into `records`, which the next
commit of the store takes: a caller that needs them durable awaits one.  A new namespace is in the journal, too, and so
is an update by `Shard.update`.

`due` is a heap of (expiry, serial), in which a serial stays until its time although it may expire later, or be gone.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from heapq import heappop, heappush
from itertools import islice
from operator import attrgetter
from typing import Any

from artfs.errors import ExistsError, NotFoundError
from artfs.grid import scope_dir
from artfs.meta import Engine
from artfs.objects import Home
from artfs.types import NamespaceType, Scope, Serial
from artfs.volume.postings import OWN, Postings, Term, terms

KIND = "namespace"
MAKING = 0
"""`Namespace.trashed` of what is not made yet: nobody sees it, and when its maker has gone it is reaped."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """One namespace.  Times are nanoseconds since 1970; `prefix` is where its objects lie, for ever; `trashed` is when
    it was put into the trash; `uid`, `gid`, `umask` are those of what the API makes in it; `provider` and `codec` are
    its home (see `artfs.objects`)."""

    serial: Serial
    id: str
    type: NamespaceType
    sandbox: str
    scope: Scope
    owner: str | None
    name: str | None
    created: int
    block_size: int
    prefix: str
    expires: int | None = None
    trashed: int | None = None
    uid: int = 0
    gid: int = 0
    umask: int = 0o022
    metadata: dict[str, Any] = field(default_factory=dict)
    provider: str = ""
    codec: str = ""

    @property
    def home(self) -> Home | None:
        """Where its bytes live; None: in the store's own directory."""
        return Home(self.provider, self.codec) if self.provider else None

    @property
    def entry(self) -> str:
        """The name under which it shows up in its scope's directory."""
        return self.name or self.id

    @property
    def place(self) -> tuple[str, str]:
        return self.sandbox, scope_dir(self.scope, self.owner)

    @property
    def grid_path(self) -> str:
        return "/".join(("grid", *self.place, self.entry))


class Catalogue:
    def __init__(self, engine: Engine) -> None:
        self.records: dict[tuple[str, str], str | None] = {}
        self.by_serial: dict[Serial, Namespace] = {}
        self.by_id: dict[str, Namespace] = {}
        self.places: dict[tuple[str, str], dict[str, Namespace]] = {}
        self.postings = Postings()
        self.due: list[tuple[int, Serial]] = []
        self.thrown: dict[Serial, None] = {}
        self.serial = int(engine.record("counter", "serial") or 1)
        with uncollected():
            for namespace in sorted(unpack_all(engine.records(KIND).values()), key=attrgetter("serial")):
                self._index(namespace)
        self.lent = {int(id) for id in engine.records("lent")}
        self.doomed = {int(id) for id in engine.records("doomed")}

    def _index(self, namespace: Namespace) -> None:
        self.by_serial[namespace.serial] = namespace
        self.by_id[namespace.id] = namespace
        if namespace.expires is not None:
            heappush(self.due, (namespace.expires, namespace.serial))
        if namespace.trashed is not None:
            self.thrown[namespace.serial] = None
            return
        self.places.setdefault(namespace.place, {})[namespace.entry] = namespace
        self.postings.move(namespace.serial, (), _terms(namespace))

    def _unindex(self, namespace: Namespace) -> None:
        del self.by_serial[namespace.serial]
        del self.by_id[namespace.id]
        if namespace.trashed is not None:
            del self.thrown[namespace.serial]
            return
        entries = self.places[namespace.place]
        del entries[namespace.entry]
        if not entries:
            del self.places[namespace.place]
        self.postings.move(namespace.serial, _terms(namespace), ())

    def _update(self, old: Namespace, new: Namespace) -> None:
        """The same as `_unindex` and `_index`, where the place stays: in the order of making it stays, too."""
        self.by_serial[new.serial] = new
        self.by_id[new.id] = new
        self.places[new.place][new.entry] = new
        if new.expires is not None and new.expires != old.expires:
            heappush(self.due, (new.expires, new.serial))
        if new.metadata is not old.metadata:
            self.postings.move(new.serial, _terms(old), _terms(new))

    def next_serial(self) -> Serial:
        """A number that no namespace or view has had, or will have."""
        serial = self.serial
        self.serial += 1
        self.records["counter", "serial"] = str(self.serial)
        return Serial(serial)

    def saw_serial(self, serial: int) -> None:
        """A journal names this one: the counter must be past it."""
        if serial >= self.serial:
            self.serial = serial + 1
            self.records["counter", "serial"] = str(self.serial)

    def put(self, namespace: Namespace, document: str | None = None) -> None:
        """Add it, or replace the one with its serial; `document`: `pack` of it.
        Errors: ExistsError if its place is taken by another."""
        old = self.by_serial.get(namespace.serial)
        holder = self.places.get(namespace.place, {}).get(namespace.entry)
        if namespace.trashed is None and holder is not None and holder.serial != namespace.serial:
            raise ExistsError(f"{namespace.grid_path} exists already; choose another name")
        if old is not None and old.trashed is namespace.trashed is None and holder is old and old.id == namespace.id:
            self._update(old, namespace)
        else:
            if old is not None:
                self._unindex(old)
            self._index(namespace)
        if namespace.serial in self.doomed:
            self.doomed.discard(namespace.serial)
            self.records["doomed", str(namespace.serial)] = None
        self.records[KIND, namespace.id] = document or pack(namespace)

    def put_place(self, namespace: Namespace) -> None:
        """Where its objects are, which is known for longer than it."""
        self.records["prefix", str(namespace.serial)] = namespace.prefix
        if namespace.home is not None:
            self.records["home", str(namespace.serial)] = json.dumps(asdict(namespace.home))

    def remove(self, namespace: Namespace) -> None:
        """If nothing of it was lent its objects are to be deleted, which is written down with it."""
        self._unindex(namespace)
        self.records[KIND, namespace.id] = None
        if namespace.serial not in self.lent:
            self.doomed.add(namespace.serial)
            self.records["doomed", str(namespace.serial)] = ""

    def buried(self, serial: int) -> None:
        """Nothing of a doomed namespace is left."""
        self.doomed.discard(serial)
        for kind in ("doomed", "prefix", "home"):
            self.records[kind, str(serial)] = None

    def lend(self, namespace: Namespace) -> None:
        """Chunks of its objects are about to be named by a clone: its objects outlive it."""
        self.lent.add(namespace.serial)
        self.records["lent", str(namespace.serial)] = ""

    def at(self, sandbox: str, folder: str, entry: str) -> Namespace:
        """Errors: NotFoundError."""
        try:
            return self.places[sandbox, folder][entry]
        except KeyError:
            raise NotFoundError(
                f"Namespace not found: grid/{sandbox}/{folder}/{entry}; `artfs ns list` shows what there is"
            ) from None

    def get(self, id: str) -> Namespace:
        """Errors: NotFoundError."""
        try:
            return self.by_id[id]
        except KeyError:
            raise NotFoundError(f"Namespace not found: {id}; `artfs ns list` shows what there is") from None

    def free_entry(self, place: tuple[str, str], name: str) -> str:
        """`name`, or the first of name~2, name~3 … that is not taken."""
        taken = self.places.get(place, {})
        candidate = name
        count = 1
        while candidate in taken:
            count += 1
            candidate = f"{name}~{count}"
        return candidate

    def sandboxes(self) -> set[str]:
        return {sandbox for sandbox, _ in self.places}

    def folders(self, sandbox: str) -> set[str]:
        return {folder for name, folder in self.places if name == sandbox}

    def entries(self, sandbox: str, folder: str) -> dict[str, Namespace]:
        return self.places.get((sandbox, folder), {})

    def trash(self) -> Iterator[Namespace]:
        """What can be brought back."""
        return (namespace for namespace in self._thrown() if namespace.trashed)

    def making(self) -> Iterator[Namespace]:
        """What is not made yet, or never will be."""
        return (namespace for namespace in self._thrown() if namespace.trashed == MAKING)

    def _thrown(self) -> Iterator[Namespace]:
        return (self.by_serial[serial] for serial in list(self.thrown))

    def expired(self, now: int, limit: int) -> list[Namespace]:
        """What has expired by then, and is still there, up to about so many: each once, until `remind` brings it
        back."""
        found: list[Namespace] = []
        while self.due and self.due[0][0] <= now and len(found) < limit:
            namespace = self.by_serial.get(heappop(self.due)[1])
            if namespace is not None and namespace.expires is not None and namespace.expires <= now:
                found.append(namespace)
        return list({namespace.serial: namespace for namespace in found}.values())

    def remind(self, namespace: Namespace) -> None:
        """It has expired, and could not be deleted."""
        if namespace.serial in self.by_serial and namespace.expires is not None:
            heappush(self.due, (namespace.expires, namespace.serial))


def _terms(namespace: Namespace) -> list[Term]:
    if namespace.type is not NamespaceType.BLOB:
        return []
    return terms(namespace.sandbox, scope_dir(namespace.scope, namespace.owner), namespace.metadata)


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for cycles meanwhile: where much is made that stays, it takes as long as the work."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


TOGETHER = 1000
"""Documents that are read in one piece."""
SHARED = frozenset(("sandbox", "owner", "provider", "codec"))
SHARED_OWN = frozenset(("mime", "provider", "session", "owner"))
FIELDS = tuple(each.name for each in fields(Namespace))
_values = attrgetter(*FIELDS)
_encode = json.JSONEncoder(check_circular=False).encode


def pack(namespace: Namespace) -> str:
    return _encode(dict(zip(FIELDS, _values(namespace), strict=True)))  # asdict copies, which takes longer


def unpack(document: str | bytes) -> Namespace:
    return _namespace(json.loads(document), {})


def unpack_all(documents: Iterable[str]) -> Iterator[Namespace]:
    """Many, which share what is the same in them: all keys, and what `SHARED` and `SHARED_OWN` name."""
    same: dict[Any, Any] = {}
    left = iter(documents)
    while some := list(islice(left, TOGETHER)):
        for values in json.loads(f"[{','.join(some)}]"):
            yield _namespace(values, same)


def _namespace(values: dict[str, Any], same: dict[Any, Any]) -> Namespace:
    share = same.setdefault
    for key in SHARED & values.keys():
        values[key] = share(values[key], values[key])
    own = values["metadata"].get(OWN) if "metadata" in values else None
    if own.__class__ is dict:
        for key in SHARED_OWN & own.keys():
            own[key] = share(own[key], own[key])
    values["type"] = NamespaceType(values["type"])
    values["scope"] = Scope(values["scope"])
    return Namespace(**values)
