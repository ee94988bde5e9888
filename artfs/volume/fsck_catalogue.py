"""The catalogue's documents and the journal, as they lie in a store that nobody has open.

What can be put right comes back as records to write: a document that is lost or unreadable is made again from the place
of the namespace's objects (its `prefix` record, which names sandbox, scope and id); a place that two claim goes to the
older one; the serial counter moves past every serial; what says that objects are to be deleted which must not be is
taken back.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from struct import error as StructError
from time import time_ns
from typing import Any

from pydantic import TypeAdapter, ValidationError

from artfs.errors import ArtfsError
from artfs.grid import check_id, check_namespace_name, owner_key, parse_scope_dir
from artfs.meta import Engine
from artfs.objects import CODECS, Home
from artfs.types import NamespaceType, Serial
from artfs.volume.catalogue import KIND, Namespace
from artfs.volume.fsck_view import Finding
from artfs.volume.journal import STORE, Journal, entries
from artfs.volume.rows import INODE

Records = dict[tuple[str, str], str | None]

_ROOT_KEY = b"I" + (1).to_bytes(8, "big")
_FIELDS = {item.name for item in fields(Namespace)}
_NAMESPACE = TypeAdapter(Namespace)


@dataclass(slots=True)
class Catalogued:
    """The namespaces that have a document, by serial; every known prefix and home of objects; `doomed`: namespaces
    whose objects are to be deleted; `condemned`: objects that are, if they stay unnamed; what is wrong, and the records
    that make it right."""

    namespaces: dict[Serial, Namespace] = field(default_factory=dict)
    prefixes: dict[int, str] = field(default_factory=dict)
    homes: dict[int, Home] = field(default_factory=dict)
    doomed: set[int] = field(default_factory=set)
    condemned: set[int] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    fixes: Records = field(default_factory=dict)

    def wrong(self, where: str, what: str) -> None:
        self.findings.append(Finding("catalogue", where, what))


def read_catalogue(engine: Engine, block_size: int) -> Catalogued:
    """Errors: as Engine."""
    found = Catalogued()
    for text, prefix in engine.records("prefix").items():
        if text.isdecimal():
            found.prefixes[int(text)] = prefix
        else:
            found.wrong(f"record prefix {text}", "it belongs to no serial")
    _homes(engine, found)
    for kind in ("lent", "importing"):
        for text in engine.records(kind):
            if not text.isdecimal():
                found.wrong(f"record {kind} {text}", "it belongs to no serial")
    unreadable = {}
    for id, document in sorted(engine.records(KIND).items()):
        try:
            namespace = parse_namespace(id, document)
        except (ValueError, TypeError) as error:
            unreadable[id] = f"its document cannot be read: {_first_line(error)}"
            continue
        if namespace.serial in found.namespaces:
            found.wrong(f"namespace {id}", f"its serial {namespace.serial} is another's, too")
        else:
            found.namespaces[namespace.serial] = namespace
    _rebuild(engine, found, unreadable, block_size)
    _places(found)
    _prefixes(found)
    _garbage(engine, found)
    _counter(engine, found)
    return found


def _homes(engine: Engine, found: Catalogued) -> None:
    for text, document in engine.records("home").items():
        if not text.isdecimal():
            found.wrong(f"record home {text}", "it belongs to no serial")
            continue
        try:
            home = Home(**json.loads(document))
            if not isinstance(home.provider, str) or not home.provider or home.codec not in CODECS:
                raise ValueError
        except (ValueError, TypeError):
            # The document of its namespace, if there is one, says it again.
            found.wrong(f"record home {text}", "where the objects of this serial are cannot be read")
            continue
        found.homes[int(text)] = home


def _garbage(engine: Engine, found: Catalogued) -> None:
    """What is to be deleted: nothing that is still there."""
    lent = engine.records("lent")
    for text in engine.records("doomed"):
        serial = int(text) if text.isdecimal() else -1
        trouble = ""
        if serial < 0:
            trouble = "it belongs to no serial"
        elif serial in found.namespaces:
            trouble = f"{found.namespaces[Serial(serial)].grid_path} is there, its objects must not be deleted"
        elif text in lent:
            trouble = "clones name objects of this serial, they must not be deleted"
        elif serial not in found.prefixes:
            trouble = "where the objects of this serial are is not known"
        if trouble:
            found.wrong(f"record doomed {text}", trouble)
            found.fixes["doomed", text] = None
        else:
            found.doomed.add(serial)
    for text, document in engine.records("condemned").items():
        try:
            number = int(text, 16)
        except ValueError:
            number = -1
        if number < 0 or f"{number:x}" != text or not document.isdecimal():
            found.wrong(f"record condemned {text}", "it names no object, or no time")
            found.fixes["condemned", text] = None
        else:
            found.condemned.add(number)


def parse_namespace(id: str, document: str) -> Namespace:
    """Errors: ValueError (also pydantic's, InvalidError), TypeError."""
    values: dict[str, Any] = json.loads(document)
    if not isinstance(values, dict) or values.keys() - _FIELDS:
        raise ValueError("it is no JSON object, or has unknown fields")
    namespace = _NAMESPACE.validate_python(values)
    if any(value != values[name] for name, value in asdict(namespace).items() if name in values):
        raise ValueError("a field has the wrong type")
    if namespace.id != id:
        raise ValueError(f"it calls itself {namespace.id!r}")
    check_id("sandbox", namespace.sandbox)
    owner_key(namespace.scope, namespace.owner)
    if namespace.name is not None:
        check_namespace_name(namespace.name)
    if not namespace.prefix.startswith("grid/") or ".." in namespace.prefix.split("/"):
        raise ValueError(f"no objects lie below {namespace.prefix!r}")
    if namespace.codec not in CODECS or (namespace.codec and not namespace.provider):
        raise ValueError(f"objects cannot be kept as {namespace.codec!r} in {namespace.provider!r}")
    if namespace.block_size.bit_count() != 1:
        raise ValueError(f"{namespace.block_size} is no block size")
    return namespace


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).split("\n")[0]


def _rebuild(engine: Engine, found: Catalogued, unreadable: dict[str, str], block_size: int) -> None:
    """Namespaces that have rows, and no document that can be read."""
    for serial in sorted(engine.serials() - found.namespaces.keys()):
        prefix = found.prefixes.get(serial, "")
        parts = prefix.split("/")
        place = parse_scope_dir(parts[2]) if len(parts) == 4 else None
        if place is None:
            found.wrong(f"namespace {serial}", "it has rows and no document, and where it belongs is not known")
            continue
        _, sandbox, _, id = parts
        found.wrong(f"namespace {id}", unreadable.pop(id, "it has rows and no document"))
        root = engine.get(serial, _ROOT_KEY)
        attributes = INODE.unpack_from(root) if root and len(root) >= INODE.size else None
        uid, gid = attributes[2:4] if attributes else (os.getuid(), os.getgid())
        scope, owner = place
        home = found.homes.get(serial, Home(""))
        namespace = Namespace(
            serial, id, NamespaceType.WORKSPACE, sandbox, scope, owner, None, time_ns(), block_size, prefix,
            uid=uid, gid=gid, provider=home.provider, codec=home.codec,
        )  # fmt: skip
        found.namespaces[serial] = namespace
        _put(found, namespace)
    for id, what in unreadable.items():
        # Nothing belongs to it, and no store opens with it.
        found.wrong(f"namespace {id}", what)
        found.fixes[KIND, id] = None


def _put(found: Catalogued, namespace: Namespace) -> None:
    found.namespaces[namespace.serial] = namespace
    found.fixes[KIND, namespace.id] = json.dumps(asdict(namespace))


def _places(found: Catalogued) -> None:
    taken: set[tuple[tuple[str, str], str]] = set()
    for namespace in sorted(found.namespaces.values(), key=lambda n: (n.created, n.serial)):
        if namespace.trashed is not None:
            continue
        place, entry = namespace.place, namespace.entry
        count = 1
        while (place, entry) in taken:
            count += 1
            entry = f"{namespace.entry}~{count}"
        if entry != namespace.entry:
            found.wrong(f"namespace {namespace.id}", f"{namespace.grid_path} is another's place, too")
            _put(found, replace(namespace, name=entry))
        taken.add((place, entry))


def _prefixes(found: Catalogued) -> None:
    for serial, namespace in found.namespaces.items():
        if found.prefixes.get(serial) != namespace.prefix:
            found.wrong(f"namespace {namespace.id}", "no prefix record says where its objects are, or another place")
            found.prefixes[serial] = namespace.prefix
            found.fixes["prefix", str(serial)] = namespace.prefix
        if found.homes.get(serial) != namespace.home:
            found.wrong(f"namespace {namespace.id}", "no home record says which provider has its objects, or another")
            if namespace.home is None:
                del found.homes[serial]
                found.fixes["home", str(serial)] = None
            else:
                found.homes[serial] = namespace.home
                found.fixes["home", str(serial)] = json.dumps(asdict(namespace.home))


def _counter(engine: Engine, found: Catalogued) -> None:
    text = engine.record("counter", "serial")
    if text is None and not found.namespaces:
        return
    greatest = max([*found.namespaces, *found.prefixes], default=0)
    for serial in found.namespaces:
        greatest = max([greatest, *(checkpoint.serial for checkpoint in engine.checkpoints(serial))])
    if text is None or not text.isdecimal() or int(text) <= greatest:
        found.wrong("record counter serial", f"the next serial is {text}, and {greatest} is in use")
        found.fixes["counter", "serial"] = str(greatest + 1)


@dataclass(slots=True)
class Logged:
    """`records` that wait for recovery, and the `objects` that they name."""

    records: int = 0
    objects: set[int] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    fixes: Records = field(default_factory=dict)

    def wrong(self, path: Path, what: str) -> None:
        self.findings.append(Finding("journal", str(path), what))


def read_journal(engine: Engine, path: Path) -> Logged:
    """What the journal holds beyond the engine; nothing is changed.  Errors: OSError."""
    found = Logged()
    state = engine.record("journal", "state")
    if state is None:
        return found
    parts = state.split()
    if len(parts) != 3 or not all(map(str.isdecimal, parts)) or int(parts[1]) >= 1 << 64 or not int(parts[2]):
        found.wrong(path, "where it goes on is not known: changes that were not committed yet are lost")
        found.fixes["journal", "state"] = None
        return found
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = 0
    if not size:
        found.wrong(path, "it is missing or empty: changes that were not committed yet are lost")
        return found
    if size < int(parts[2]):
        found.wrong(path, f"it has {size} bytes, not {parts[2]}: changes that were not committed yet may be lost")
        return found
    journal = Journal(path, size)
    try:
        journal.seek(state)
        for _, body, _ in journal.replay():
            found.records += 1
            for kind, start, _ in entries(body):
                if kind == b"B":
                    found.objects.add(STORE.unpack_from(body, start)[4])
    except (ArtfsError, StructError) as error:
        found.wrong(path, f"record {found.records} of those to be recovered is damaged: {error}")
    finally:
        journal.close()
    return found
