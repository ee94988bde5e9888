"""fsck: every rule of docs/format.md, held against a store that nobody has open.

Kinds of problems: `store` (store.json, config.toml), `database` (sqlite, and the engine's invariants),
`journal`, `catalogue`, `provider`, `session`, `counters` (of a namespace), `checkpoint`, and in a view: `row`, `root`,
`inode`, `name`, `type`, `cookie`, `number`, `parent`, `links`, `size`, `blocks`, `xattrs`, `unreachable`, `data`.

Invariants:
1. without `repair` nothing that a store holds is changed; the journal is read, not replayed;
2. with `repair` the store is recovered first, as opening it does; a problem counts as repaired when a second look does
   not find it any more, never because something was tried;
3. a damaged database is not written to; checkpoints are only read; unreadable bytes stay unreadable.

Concurrency: the owner's lock is held throughout.  Plain functions; not to be called on a thread that runs a loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from struct import error as StructError
from typing import Any

import anyio

from artfs.blocks import Chunk
from artfs.errors import ArtfsError, DamagedError, InvalidError, NotFoundError
from artfs.grid import check_id, session_key
from artfs.meta import Batch, Checkpoint
from artfs.meta.schema import CHECKS
from artfs.meta.sqlite import SqliteEngine
from artfs.objects import Providers
from artfs.objects.local import LocalObjects
from artfs.objects.providers import OpenProviders
from artfs.objects.remote import NoProviders
from artfs.sessions import Session
from artfs.sessions.sqlite import ORDER, SELECT, SqliteSessions
from artfs.settings import MIB, Settings, load_settings, read_store
from artfs.types import Epoch, Scope
from artfs.volume.catalogue import Namespace
from artfs.volume.fsck_catalogue import Catalogued, Logged, Records, read_catalogue, read_journal
from artfs.volume.fsck_objects import Objects, damaged_inodes
from artfs.volume.fsck_provider import Kept, kept
from artfs.volume.fsck_repair import plan
from artfs.volume.fsck_view import END_COOKIE, FIRST_COOKIE, Finding, View, problems, read_view
from artfs.volume.journal import Journal
from artfs.volume.lock import Lock
from artfs.volume.rows import HEAD, HEAD_KEY, Head
from artfs.volume.shard import Shard

Progress = Callable[[str, int, int], None]
ROUNDS = 3
"""A repair may bring to light what it makes possible to see; it does so once, in practice."""


@dataclass(frozen=True, slots=True)
class Problem:
    kind: str
    where: str
    what: str
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """`notes` are no problems: what waits for recovery, or for the collection of garbage."""

    problems: list[Problem]
    notes: list[str]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing is wrong any more."""
        return all(problem.repaired for problem in self.problems)


def check(
    root: Path,
    *,
    repair: bool = False,
    data: bool = False,
    progress: Progress | None = None,
    providers: Providers | None = None,
) -> Report:
    """Look at the store at `root`, and put right what can be.  `data`: read all bytes, those in providers too, and
    compare their hashes.  `progress` is told (what, done, total).  `providers`, which are closed at the end, are those
    that the settings lead to if none are given.
    Errors: NotFoundError (no store), BusyError (it is in use), FormatError, UnavailableError, NoSpaceError."""
    found: list[Finding] = []
    settings: Settings | None = None
    try:
        read_store(root)
        settings = load_settings(root)
    except (DamagedError, InvalidError) as error:
        found.append(Finding("store", str(root), str(error)))
    with closing(Lock(root, "fsck")):
        if not any((root / name).exists() for name in ("meta.db", "journal", "objects")):
            return Report(_marked(found, found), ["nothing has been stored here yet"], {})
        try:
            engine = SqliteEngine(root / "meta.db", create=False)
        except (DamagedError, NotFoundError) as error:
            found.append(Finding("database", str(root / "meta.db"), str(error)))
            return Report(_marked(found, found), [], {})
        try:
            with kept(providers or _providers(root, settings)) as keeping:
                run = _Run(root, engine, settings, keeping, data, progress or (lambda what, done, total: None))
                return run.repair(found) if repair else run.look(found)
        finally:
            engine.close()


def _providers(root: Path, settings: Settings | None) -> Providers:
    return NoProviders() if settings is None else OpenProviders(settings, root / "cache" / "scratch")


def _marked(all: list[Finding], left: list[Finding]) -> list[Problem]:
    """Each finding once; repaired if it is not among those that are left."""
    remaining = set(left)
    return [Problem(*finding, finding not in remaining) for finding in dict.fromkeys(all)]


@dataclass(slots=True)
class _Look:
    """What one pass over the store found; `batches` and `records` would put it right."""

    findings: list[Finding]
    notes: list[str]
    counts: Counter[str]
    batches: list[Batch]
    records: Records


class _Run:
    def __init__(
        self,
        root: Path,
        engine: SqliteEngine,
        settings: Settings | None,
        keeping: Kept,
        data: bool,
        progress: Progress,
    ) -> None:
        self.root = root
        self.engine = engine
        self.settings = settings
        self.data = data
        self.progress = progress
        self.kept = keeping
        self.objects = Objects(root / "objects", keeping, data)
        self.recovered = 0

    def look(self, found: list[Finding]) -> Report:
        look = self._pass(repair=False, sweep=False)
        found = found + look.findings
        return Report(_marked(found, found), look.notes, dict(look.counts))

    def repair(self, found: list[Finding]) -> Report:
        """See the module."""
        if self.settings is None or any(_of_the_file(line) for line in self.engine.check()):
            return self.look(found)
        journal = read_journal(self.engine, self.root / "journal")
        if journal.fixes:
            self.engine.commit([], journal.fixes)
        trouble = self._recover()
        all = found + journal.findings
        look = self._pass(repair=True, sweep=not trouble)
        for _ in range(ROUNDS):
            all += look.findings
            if not look.batches and not look.records:
                break
            self.engine.commit(look.batches, look.records)
            if trouble:
                trouble = self._recover()
            look = self._pass(repair=True, sweep=not trouble)
        left = found + look.findings
        if trouble:
            left.append(Finding("journal", str(self.root / "journal"), f"it cannot be recovered: {trouble}"))
        notes = look.notes
        if self.recovered:
            notes = [f"{self.recovered} records of the journal were recovered", *notes]
        return Report(_marked(all + left, left), notes, dict(look.counts))

    def _recover(self) -> str:
        """Replay the journal; what keeps it from that, or an empty string."""
        settings = self.settings
        assert settings is not None

        async def work() -> None:
            (self.root / "objects").mkdir(mode=0o700, exist_ok=True)
            journal = Journal(self.root / "journal", settings.journal_size)
            objects = LocalObjects(self.root / "objects")
            try:
                self.recovered = await Shard(self.engine, journal, objects, settings).recover()
            finally:
                objects.close()
                journal.close()

        self.progress("recovery", 0, 1)
        try:
            anyio.run(work)
        except (ArtfsError, StructError, ValueError, KeyError, TypeError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        self.progress("recovery", 1, 1)
        return ""

    # one pass
    def _pass(self, *, repair: bool, sweep: bool) -> _Look:
        look = _Look([], [], Counter(), [], {})
        self.progress("database", 0, 1)
        where = str(self.root / "meta.db")
        look.findings += [Finding("database", where, line) for line in self.engine.check()]
        self.progress("database", 1, 1)
        try:
            self._look_at_rows(look, repair, sweep)
        except DamagedError as error:
            look.findings.append(Finding("database", where, str(error)))
        return look

    def _look_at_rows(self, look: _Look, repair: bool, sweep: bool) -> None:
        catalogue = read_catalogue(self.engine, self.settings.block_size if self.settings else MIB)
        look.findings += catalogue.findings
        look.records |= catalogue.fixes
        self.objects.prefixes, self.objects.homes = catalogue.prefixes, catalogue.homes
        self.objects.ends.clear()
        self.objects.chunks.clear()
        journal = read_journal(self.engine, self.root / "journal")
        look.findings += journal.findings
        look.counts["journal_records"] = journal.records
        if journal.records:
            look.notes.append(f"{journal.records} records of the journal wait for recovery, at the next opening")
        total = len(catalogue.namespaces)
        for done, namespace in enumerate(catalogue.namespaces.values()):
            self.progress(namespace.grid_path, done, total)
            self._namespace(look, namespace, repair, sweep)
        if not self.objects.verify(lambda done, size: self.progress("data", done, size)):
            self._name_damage(look, catalogue)
        self._garbage(look, journal, catalogue)
        self._copies(look, repair)
        look.findings += self.kept.findings()
        self._sessions(look, catalogue)
        look.counts["namespaces"] = total
        look.counts["objects"] = len(self.objects.ends)
        look.counts["chunks_verified"] = len(self.objects.verified)

    def _namespace(self, look: _Look, namespace: Namespace, repair: bool, sweep: bool) -> None:
        serial = namespace.serial
        checkpoints = self.engine.checkpoints(serial)
        number, cookie = 0, FIRST_COOKIE - 1
        for checkpoint in checkpoints:
            view = self._view(namespace, checkpoint)
            look.findings += problems(view)
            if view.used() != checkpoint.usage:
                what = f"it counts {_usage(checkpoint.usage)} and holds {_usage(view.used())}"
                look.findings.append(Finding("checkpoint", view.label, what))
            number, cookie = _both(max, (number, cookie), view.limits())
            look.counts["checkpoints"] += 1
        view = self._view(namespace, None)
        number, cookie = _both(max, (number, cookie), view.limits())
        value = self.engine.get(serial, HEAD_KEY)
        newest = checkpoints[-1].epoch if checkpoints else 0
        wrong, head = _counters(value, number, cookie, newest, view.used())
        look.findings += [*problems(view), *(Finding("counters", view.label, what) for what in wrong)]
        look.counts.update(inodes=len(view.inodes), blocks=view.blocks, bytes=view.used()[0])
        look.counts["names"] += sum(map(len, view.names.values()))
        orphans = sum(key[:1] == b"i" for key in view.orphans)
        if view.orphans:
            look.counts["orphans"] += orphans
            look.notes.append(f"{view.label}: {orphans} files without a name wait to be cleaned up")
        if repair and (rows := plan(view, head, value, lambda key: self.engine.scan(serial, key), sweep)):
            look.batches.append(Batch(serial, Epoch(head.epoch), rows))

    def _view(
        self,
        namespace: Namespace,
        checkpoint: Checkpoint | None,
        named: list[tuple[int, Chunk]] | None = None,
    ) -> View:
        """`named` takes each (inode, chunk); without it, the chunks are noted as those to be verified."""

        def on_chunk(ino: int, chunk: Chunk) -> None:
            if named is None:
                self.objects.note(chunk)
            else:
                named.append((ino, chunk))

        label = namespace.grid_path + (f"@{checkpoint.id}" if checkpoint else "")
        return read_view(self.engine, namespace, label, checkpoint.epoch if checkpoint else None, on_chunk)

    def _name_damage(self, look: _Look, catalogue: Catalogued) -> None:
        """Bytes are missing or wrong: whose?"""
        for namespace in catalogue.namespaces.values():
            for checkpoint in (*self.engine.checkpoints(namespace.serial), None):
                named: list[tuple[int, Chunk]] = []
                view = self._view(namespace, checkpoint, named)
                look.findings += damaged_inodes(self.objects, named, view.place)

    def _garbage(self, look: _Look, journal: Logged, catalogue: Catalogued) -> None:
        sizes = [size for _, size in self.objects.unnamed(journal.objects, catalogue.doomed)]
        look.counts["garbage_objects"], look.counts["garbage_bytes"] = len(sizes), sum(sizes)
        if sizes:
            look.notes.append(f"{len(sizes)} objects ({sum(sizes)} bytes) are named by nothing")
        if catalogue.doomed:
            look.notes.append(f"objects of {len(catalogue.doomed)} deleted namespaces wait to be deleted")
        for number in sorted(catalogue.condemned & (self.objects.ends.keys() | journal.objects)):
            where = f"record condemned {number:x}"
            look.findings.append(Finding("catalogue", where, "the object is named, it must not be deleted"))
            look.records["condemned", f"{number:x}"] = None

    def _copies(self, look: _Look, repair: bool) -> None:
        """Wrong bytes in the cache harm nobody: they are fetched again."""
        if not self.objects.stale:
            return
        what = "objects in the cache are not what they should be"
        if repair:
            for path in self.objects.stale:
                path.unlink(missing_ok=True)
            what = "copies of objects in the cache were not what they should be, and were deleted"
        look.notes.append(f"{len(self.objects.stale)} {what}")

    def _sessions(self, look: _Look, catalogue: Catalogued) -> None:
        known = set()
        sessions = _Sessions(self.root / "meta.db")
        try:
            for row in sessions.rows():
                look.counts["sessions"] += 1
                try:
                    session = sessions.parsed(row)
                    known.add((session.sandbox, session.key))
                except (DamagedError, InvalidError, ValueError) as error:
                    look.findings.append(Finding("session", f"session {row[0]!r}", str(error)))
        finally:
            sessions.close()
        for namespace in catalogue.namespaces.values():
            if namespace.scope is Scope.SESSION and (namespace.sandbox, namespace.owner) not in known:
                look.notes.append(f"{namespace.grid_path} belongs to a session that is not there")


class _Sessions(SqliteSessions):
    """Every row, those of ended sessions too."""

    def rows(self) -> list[tuple[Any, ...]]:
        return list(self._read(SELECT + ORDER))

    def parsed(self, row: tuple[Any, ...]) -> Session:
        """Errors: DamagedError, InvalidError, ValueError."""
        session = self._session(row)
        check_id("sandbox", session.sandbox)
        session_key(session.id)
        if session.user is not None:
            check_id("user", session.user)
        if not isinstance(session.metadata, dict):
            raise ValueError("its metadata is no JSON object")
        if not all(isinstance(time, int) for time in (session.created_ns, session.expires_ns)):
            raise ValueError("its times are no numbers")
        return session


def _of_the_file(line: str) -> bool:
    """Whether a line of `Engine.check` is about the database itself, not about rows."""
    return not line.startswith(tuple(CHECKS))


def _both(call: Callable[[int, int], int], one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return call(one[0], other[0]), call(one[1], other[1])


def _usage(usage: tuple[int, int]) -> str:
    return f"{usage[0]} bytes in {usage[1]} inodes"


def _counters(
    value: bytes | None, number: int, cookie: int, newest: int, used: tuple[int, int]
) -> tuple[list[str], Head]:
    """What is wrong with the counters, and counters that can be used: above `number`, not below `cookie`."""
    if value is None or len(value) != HEAD.size:
        return ["its counters are missing or cannot be read"], Head(newest + 1, number + 1, cookie, 0, *used)
    head = Head.unpack(value)
    wrong = []
    right = head
    if not number < head.numbers <= 1 << 32:
        wrong.append(f"the next inode number is {head.numbers}, and {number} is in use")
        right = right._replace(numbers=number + 1)
    if not cookie <= head.cookies < END_COOKIE:
        wrong.append(f"the last cookie is {head.cookies}, and {cookie} is in use")
        right = right._replace(cookies=cookie)
    if not newest < head.epoch < 1 << 62:
        wrong.append(f"its epoch is {head.epoch}, and its newest checkpoint has {newest}")
        right = right._replace(epoch=newest + 1)
    if (head.used_bytes, head.used_inodes) != used:
        wrong.append(f"it counts {_usage((head.used_bytes, head.used_inodes))} and holds {_usage(used)}")
    return wrong, right
