"""Packs: what copies of the metadata look like in a provider.

The *image* of the database (see `artfs.meta.sqlite.pages`) is cut into *segments* of `SEGMENT` bytes.  Each save that
finds something changed puts one object, a *pack*, `meta/<sequence, 16 hex digits>`:

    segments, each a zstd frame | manifest, a zstd frame | TRAILER

The *manifest* says where every segment of the image is, in this pack or an older one, so that each pack with the older
ones that it names is a whole copy.  Unpacked it is one line of JSON, a newline, and three columns of numbers (PLACE,
big-endian: sequence of the pack, offset, length) and one of hashes, one entry for each segment.  Sequences grow for
ever and none is used twice, so a pack never changes.

Everything is checked: the trailer's hash covers the manifest and the trailer's numbers, among them the sequence; a
segment's is the XXH3-128 of its bytes before compression.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, pack, unpack_from
from struct import error as StructError
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import zstandard
from xxhash import xxh3_128_digest

from artfs import __version__
from artfs.errors import DamagedError, FormatError, NotFoundError
from artfs.objects import Provider

PREFIX = "meta/"
SEGMENT = 32 << 10
"""Half of it makes manifests twice as long; twice of it makes copies of scattered changes twice as long."""
FORMAT = 1
MAGIC = b"artfmeta"
TRAILER = Struct(">QQIH16s8s")
"""sequence, offset of the manifest, its length, format, hash, MAGIC"""
NUMBERS = Struct(">QQIH")
PLACE = "QQI"
HASH = 16
LEVEL = 3
TAIL = 256 << 10
"""Read at once from the end of a pack: mostly all of the manifest."""
IN_MEMORY = 8 << 20
"""A pack that grows beyond this is written to a file."""
MAX_PACKS = 32
"""Packs that one manifest names, at most."""
KEPT_PACKS = 16
"""To so many, besides the new one, they are brought down when they are too many."""
SLACK = 4 << 20
"""Bytes of packs that may be dead besides as many as are alive."""


class Place(NamedTuple):
    """Where a segment is, and the hash of its bytes."""

    pack: int
    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """One saved state.  `moment`: nanoseconds since 1970; everything that was acknowledged before it is in here.
    `identity`: what store.json says; `size`: bytes of the image; `behind`: URLs of providers that lack objects which
    rows of their namespaces name."""

    sequence: int
    moment: int
    identity: Mapping[str, Any]
    generation: int
    size: int
    places: Sequence[Place]
    behind: frozenset[str] = frozenset()

    @property
    def packs(self) -> set[int]:
        """Those that recovery needs."""
        return {place.pack for place in self.places} | {self.sequence}


def pack_name(sequence: int) -> str:
    return f"{PREFIX}{sequence:016x}"


def sequence_of(name: str) -> int | None:
    """None for the name of something else."""
    digits = name.removeprefix(PREFIX)
    if len(digits) != 16 or any(digit not in "0123456789abcdef" for digit in digits):
        return None
    return int(digits, 16)


def segments(size: int) -> int:
    return -(-size // SEGMENT)


class PackWriter:
    """A pack that grows, in memory or in the file `path`.  Errors: OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._buffer = bytearray()
        self._out: BinaryIO | None = None
        self._zstd = zstandard.ZstdCompressor(level=LEVEL)

    def add(self, data: bytes) -> tuple[int, int]:
        """A segment.  Returns its offset and length."""
        return self._append(self._zstd.compress(data))

    def _append(self, data: bytes) -> tuple[int, int]:
        offset = self.size
        self._buffer += data
        self.size += len(data)
        if len(self._buffer) >= IN_MEMORY:
            if self._out is None:
                self._out = self.path.open("wb")
            self._out.write(self._buffer)
            self._buffer.clear()
        return offset, len(data)

    def finish(self, manifest: Manifest) -> None:
        """Nothing can be added after this; `source` is whole."""
        body = self._zstd.compress(encode(manifest))
        offset, length = self._append(body)
        self._append(trailer(manifest.sequence, offset, length, body))
        if self._out is not None:
            self._out.write(self._buffer)
            self._buffer.clear()
            self._out.flush()

    @property
    def source(self) -> Path | bytes:
        return bytes(self._buffer) if self._out is None else self.path

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def trailer(sequence: int, offset: int, length: int, body: bytes) -> bytes:
    digest = xxh3_128_digest(NUMBERS.pack(sequence, offset, length, FORMAT) + body)
    return TRAILER.pack(sequence, offset, length, FORMAT, digest, MAGIC)


def encode(manifest: Manifest) -> bytes:
    head = {
        "sequence": manifest.sequence,
        "moment": manifest.moment,
        "store": dict(manifest.identity),
        "generation": manifest.generation,
        "size": manifest.size,
        "segment": SEGMENT,
        "behind": sorted(manifest.behind),
        "artfs": __version__,
    }
    columns = [[place[i] for place in manifest.places] for i in range(len(PLACE))]
    parts = [json.dumps(head).encode() + b"\n"]
    parts += [pack(f">{len(column)}{kind}", *column) for kind, column in zip(PLACE, columns, strict=True)]
    parts += [place.digest for place in manifest.places]
    return b"".join(parts)


def decode(data: bytes, name: str) -> Manifest:
    """Errors: DamagedError."""
    try:
        line, _, _ = data.partition(b"\n")
        head = json.loads(line)
        count = segments(head["size"])
        if head["segment"] != SEGMENT:
            raise ValueError(f"segments of {head['segment']} bytes")
        at = len(line) + 1
        columns: list[tuple[int, ...]] = []
        for kind in PLACE:
            columns.append(unpack_from(f">{count}{kind}", data, at))
            at += Struct(f">{count}{kind}").size
        if len(data) != at + count * HASH:
            raise ValueError("it has another length than its size says")
        digests = [data[start : start + HASH] for start in range(at, len(data), HASH)]
        places = [Place(*fields) for fields in zip(*columns, digests, strict=True)]
        behind = frozenset(map(str, head.get("behind", ())))
        numbers = head["sequence"], head["moment"], dict(head["store"]), head["generation"], head["size"]
        return Manifest(*numbers, places, behind)
    except (ValueError, KeyError, TypeError, StructError) as error:
        raise DamagedError(f"{name} cannot be read: {error}") from None


def open_segment(data: bytes, place: Place, name: str) -> bytes:
    """The bytes of a segment.  Errors: DamagedError."""
    try:
        found = zstandard.ZstdDecompressor().decompress(data, max_output_size=SEGMENT)
    except zstandard.ZstdError as error:
        raise DamagedError(f"{name} is damaged at {place.offset}: {error}") from None
    if xxh3_128_digest(found) != place.digest:
        raise DamagedError(f"{name} is damaged at {place.offset}: the hash is wrong")
    return found


async def list_packs(provider: Provider) -> dict[int, int]:
    """Sequence → bytes of every pack, the oldest first."""
    found: dict[int, int] = {}
    async for name, size in provider.list(PREFIX):
        sequence = sequence_of(name)
        if sequence is not None:
            found[sequence] = size
    return dict(sorted(found.items()))


async def read_manifest(provider: Provider, sequence: int) -> Manifest:
    """Errors: DamagedError (torn or altered, or gone), FormatError, UnavailableError."""
    name = pack_name(sequence)
    try:
        size = (await provider.head(name)).size
        if size < TRAILER.size:
            raise DamagedError(f"{name} is cut short: {size} bytes")
        tail = await provider.get(name, max(0, size - TAIL), min(size, TAIL))
        numbers = TRAILER.unpack_from(tail, len(tail) - TRAILER.size)
        found, offset, length, format, digest, magic = numbers
        if magic != MAGIC:
            raise DamagedError(f"{name} is torn, or no copy of metadata, or encrypted: then encryption_key must be set")
        if format > FORMAT:
            raise FormatError(f"{name} was written by a newer artfs (format {format}): upgrade artfs")
        if found != sequence or offset + length + TRAILER.size != size:
            raise DamagedError(f"{name} is torn, or another pack under this name")
        if length + TRAILER.size <= len(tail):
            body = tail[len(tail) - TRAILER.size - length : len(tail) - TRAILER.size]
        else:
            body = await provider.get(name, offset, length)
    except NotFoundError as error:
        raise DamagedError(f"{name} is gone") from error
    if xxh3_128_digest(NUMBERS.pack(found, offset, length, format) + body) != digest:
        raise DamagedError(f"{name} is damaged: the manifest's hash is wrong")
    try:
        manifest = decode(zstandard.ZstdDecompressor().decompress(body), name)
    except zstandard.ZstdError as error:
        raise DamagedError(f"{name} cannot be read: {error}") from None
    return manifest


def folded(live: Mapping[int, int], stored: Mapping[int, int]) -> set[int]:
    """Of packs with so many living bytes, of so many in all: those to be emptied, so that there are at most MAX_PACKS
    and not more than half of their bytes, and SLACK, are dead."""
    found: set[int] = set()
    if len(live) >= MAX_PACKS:
        by_size = sorted(live, key=lambda sequence: live[sequence])
        found.update(by_size[: len(live) - KEPT_PACKS])
    left = {sequence: max(stored.get(sequence, 0), live[sequence]) for sequence in live if sequence not in found}
    total = sum(live.values())
    dead = sum(size - live[sequence] for sequence, size in left.items())
    for sequence in sorted(left, key=lambda sequence: live[sequence] / left[sequence]):
        if dead <= total + SLACK:
            break
        found.add(sequence)
        dead -= left[sequence] - live[sequence]
    return found


def stand_ins(newest: Manifest, older: Iterable[Manifest]) -> list[tuple[Manifest, frozenset[str]]]:
    """Of older copies, the newest first: those that say what it does not of the providers that are behind in it, each
    with those for which it does."""
    found = []
    missing = newest.behind
    for manifest in older:
        if missing - manifest.behind:
            found.append((manifest, missing - manifest.behind))
            missing &= manifest.behind
    return found
