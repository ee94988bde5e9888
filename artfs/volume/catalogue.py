"""The catalogue: which namespaces there are.

Documents of kind `namespace` in the engine, one for each, all of them in memory here, found by serial, by id and by
place (sandbox, scope directory, entry).  Changes are put into `records`, which the next commit of the store takes: a
caller that needs them durable awaits one.  A new namespace is in the journal, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from artfs.errors import ExistsError, NotFoundError
from artfs.grid import scope_dir
from artfs.meta import Engine
from artfs.objects import Home
from artfs.types import NamespaceType, Scope, Serial

KIND = "namespace"


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
        self.serial = int(engine.record("counter", "serial") or 1)
        for document in engine.records(KIND).values():
            self._index(unpack(document))
        self.lent = {int(id) for id in engine.records("lent")}
        self.doomed = {int(id) for id in engine.records("doomed")}

    def _index(self, namespace: Namespace) -> None:
        self.by_serial[namespace.serial] = namespace
        self.by_id[namespace.id] = namespace
        if namespace.trashed is None:
            self.places.setdefault(namespace.place, {})[namespace.entry] = namespace

    def _unindex(self, namespace: Namespace) -> None:
        del self.by_serial[namespace.serial]
        del self.by_id[namespace.id]
        if namespace.trashed is None:
            entries = self.places[namespace.place]
            del entries[namespace.entry]
            if not entries:
                del self.places[namespace.place]

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

    def put(self, namespace: Namespace) -> None:
        """Add it, or replace the one with its serial.  Errors: ExistsError if its place is taken by another."""
        old = self.by_serial.get(namespace.serial)
        holder = self.places.get(namespace.place, {}).get(namespace.entry)
        if namespace.trashed is None and holder is not None and holder.serial != namespace.serial:
            raise ExistsError(f"{namespace.grid_path} exists already; choose another name")
        if old is not None:
            self._unindex(old)
        self._index(namespace)
        if namespace.serial in self.doomed:
            self.doomed.discard(namespace.serial)
            self.records["doomed", str(namespace.serial)] = None
        self.records[KIND, namespace.id] = pack(namespace)

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
        return (namespace for namespace in self.by_serial.values() if namespace.trashed is not None)


def pack(namespace: Namespace) -> str:
    return json.dumps(asdict(namespace))


def unpack(document: str | bytes) -> Namespace:
    fields = json.loads(document)
    fields["type"] = NamespaceType(fields["type"])
    fields["scope"] = Scope(fields["scope"])
    return Namespace(**fields)


def renamed(namespace: Namespace, name: str) -> Namespace:
    return replace(namespace, name=name)
