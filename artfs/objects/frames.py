"""The framed form of an object: its bytes in frames of fixed size, each compressed and encrypted by itself, so that a
range is read from the frames that it lies in.  docs/format.md has the layout; here are only functions of bytes.

    HEADER | opening | frame 0 | frame 1 | …

The *opening* is the sealed index: stored lengths of the frames, empty where all are known from the size.  To *seal* is
to encrypt and authenticate (AES-256-GCM) or, without a key, to append a checksum (XXH3-128): `TAG` bytes more.

Why it is safe: each object has a key of its own, derived from the master key and 256 random bits that no other object
has, so counters are nonces; opening and frames are bound to the header (with the size), to their number and to the
object's name, so none can be left out, exchanged, or moved to another object.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from itertools import accumulate
from struct import Struct

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from artfs.errors import DamagedError, FormatError, InvalidError, NoAccessError
from artfs.objects.keys import KEY_SIZE, key_id

MAGIC = b"artfsobj"
FORMAT = 1
HEADER = Struct(">8sBBHIQ32s8sQ")
"""magic, format, codec, 0, bytes of a frame, bytes of the object, salt, id of the key or zeros, check: the XXH3-64 of
all before it."""

ENTRY = Struct(">I")
"""Of the index: bytes of the frame without its tag; the highest bit: as they are, not compressed."""

BOUND = Struct(">QB")
"""What a frame is bound to, behind header and name: its number, whether it is compressed."""

FRAME = 256 << 10
TAG = 16
ENTRIES = 256
"""The index has room for so many at least: one read of a known length finds it."""

RAW = 1 << 31
OPENING = (1 << 64) - 1
COMPRESSED, ENCRYPTED = 1, 2
CODECS = {"zstd": COMPRESSED, "aes": ENCRYPTED, "zstd+aes": COMPRESSED | ENCRYPTED}
LEVEL = 3
PURPOSE = b"artfs object 1"


class _Wrong(Exception):
    """A tag does not fit."""


class _Seal:
    """What an object's opening and frames are sealed with.  `context`: what all of them are bound to."""

    def __init__(self, key: bytes | None, salt: bytes, context: bytes) -> None:
        self.context = context
        self.cipher = None
        if key is not None:
            self.cipher = AESGCM(HKDF(algorithm=SHA256(), length=32, salt=salt, info=PURPOSE).derive(key))

    def close(self, number: int, compressed: bool, data: bytes) -> bytes:
        bound = self.context + BOUND.pack(number, compressed)
        if self.cipher is not None:
            return self.cipher.encrypt(number.to_bytes(12, "big"), data, bound)
        return data + _checksum(bound, data)

    def open(self, number: int, compressed: bool, stored: memoryview) -> bytes:
        bound = self.context + BOUND.pack(number, compressed)
        if self.cipher is not None:
            try:
                return self.cipher.decrypt(number.to_bytes(12, "big"), stored, bound)
            except InvalidTag as error:
                raise _Wrong from error
        data = stored[:-TAG]
        if len(stored) < TAG or _checksum(bound, data) != stored[-TAG:]:
            raise _Wrong
        return bytes(data)


def _checksum(bound: bytes, data: bytes | memoryview) -> bytes:
    return xxh3_128_digest(data, seed=xxh3_64_intdigest(bound))


@dataclass(frozen=True, slots=True)
class Form:
    """`codec`: a key of `CODECS`; `key`: the master key, 32 bytes, if it encrypts."""

    codec: str
    key: bytes | None

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise InvalidError(f"codec {self.codec!r}: there are {', '.join(CODECS)}")
        if self.encrypts and (self.key is None or len(self.key) != KEY_SIZE):
            raise InvalidError(f"codec {self.codec} needs a key of {KEY_SIZE} bytes: set encryption_key")

    @property
    def compresses(self) -> bool:
        return bool(CODECS[self.codec] & COMPRESSED)

    @property
    def encrypts(self) -> bool:
        return bool(CODECS[self.codec] & ENCRYPTED)

    @property
    def key_id(self) -> bytes:
        return bytes.fromhex(key_id(self.key)) if self.encrypts and self.key is not None else bytes(8)

    def seal(self, salt: bytes, header: bytes, name: str) -> _Seal:
        return _Seal(self.key if self.encrypts else None, salt, header + name.encode(errors="surrogateescape"))

    def opening_size(self, frames: int) -> int:
        """Bytes of header and opening."""
        return HEADER.size + (ENTRY.size * max(frames, ENTRIES) if self.compresses else 0) + TAG

    def plain_size(self, stored: int) -> int:
        """Bytes of an object that takes `stored`; REQUIRES: not `compresses`."""
        rest = stored - self.opening_size(0)
        return max(rest - TAG * frame_count(rest, FRAME + TAG), 0)


def frame_count(size: int, frame: int) -> int:
    return -(-size // frame)


class Encoder:
    """One object of `size` bytes: first its frames in order, then what comes before them.

    The place of the first frame is `start`; it is known before the index is."""

    def __init__(self, form: Form, name: str, size: int) -> None:
        self.size = size
        self.frames = frame_count(size, FRAME)
        self.start = form.opening_size(self.frames)
        salt = os.urandom(32)
        head = HEADER.pack(MAGIC, FORMAT, CODECS[form.codec], 0, FRAME, size, salt, form.key_id, 0)[:-8]
        self._header = head + xxh3_64_intdigest(head).to_bytes(8, "big")
        self._form = form
        self._name = name
        self._seal = form.seal(salt, self._header, name)
        self._compressor = zstandard.ZstdCompressor(level=LEVEL) if form.compresses else None
        self._index = array("I")

    def add(self, plain: bytes) -> bytes:
        """The next frame as it is stored.  REQUIRES: all but the last have FRAME bytes."""
        data = plain
        if self._compressor is not None:
            packed = self._compressor.compress(plain)
            data = packed if len(packed) < len(plain) else plain
        compressed = data is not plain
        stored = self._seal.close(len(self._index), compressed, data)
        self._index.append(len(data) | (0 if compressed else RAW))
        return stored

    def opening(self) -> bytes:
        """Header and opening.  REQUIRES: all frames were added."""
        assert len(self._index) == self.frames
        index = b""
        if self._form.compresses:
            index = b"".join(map(ENTRY.pack, self._index)).ljust(ENTRY.size * ENTRIES, b"\0")
        return self._header + self._seal.close(OPENING, False, index)

    def layout(self) -> Layout:
        """REQUIRES: all frames were added."""
        return Layout.read(self._form, self._name, self.opening())


class Layout:
    """Where the frames of an object are, and how to open them.  `size`: of the object; `stored`: of what holds it."""

    def __init__(self, name: str, size: int, frame: int, seal: _Seal, starts: array[int], raw: bytes) -> None:
        self.name = name
        self.size = size
        self.frame = frame
        self.frames = frame_count(size, frame)
        self._seal = seal
        self._starts = starts
        self._raw = raw

    @staticmethod
    def needs(form: Form, name: str, head: bytes) -> int:
        """How many bytes `read` needs, by the first HEADER.size ones.  Errors: see `read`."""
        size, frame, _ = _parse(form, name, head)
        return form.opening_size(frame_count(size, frame))

    @classmethod
    def read(cls, form: Form, name: str, data: bytes) -> Layout:
        """Errors: DamagedError, FormatError, DeniedError (another key)."""
        size, frame, salt = _parse(form, name, data)
        seal = form.seal(salt, data[: HEADER.size], name)
        frames = frame_count(size, frame)
        start = form.opening_size(frames)
        try:
            index = seal.open(OPENING, False, memoryview(data)[HEADER.size : start])
        except _Wrong as error:
            raise _damaged(name, "its index fails its check") from error
        if not form.compresses:
            return cls(name, size, frame, seal, array("Q", [start]), b"")
        lengths = [entry for (entry,) in ENTRY.iter_unpack(index[: ENTRY.size * frames])]
        starts = array("Q", accumulate(((entry & ~RAW) + TAG for entry in lengths), initial=start))
        return cls(name, size, frame, seal, starts, bytes(entry >= RAW for entry in lengths))

    @property
    def stored(self) -> int:
        return self.start(self.frames)

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        return 1024 + 9 * len(self._starts)

    def start(self, number: int) -> int:
        """Where frame `number` is stored, or what comes behind the last one."""
        if self._raw or len(self._starts) > 1:
            return self._starts[number]
        return self._starts[0] + min(number * self.frame, self.size) + number * TAG

    def frames_of(self, offset: int, length: int) -> range:
        """The frames that hold `length` bytes from `offset` on."""
        return range(offset // self.frame, frame_count(offset + length, self.frame) if length else offset // self.frame)

    def open(self, frames: range, stored: bytes) -> list[memoryview]:
        """The bytes of each of `frames`, which are stored as `stored`.  Errors: DamagedError."""
        base = self.start(frames.start)
        view = memoryview(stored)
        decompressor = zstandard.ZstdDecompressor() if self._raw else None
        found = []
        for number in frames:
            expected = min(self.frame, self.size - number * self.frame)
            compressed = decompressor is not None and not self._raw[number]
            try:
                data = self._seal.open(
                    number, compressed, view[self.start(number) - base : self.start(number + 1) - base]
                )
                if decompressor is not None and compressed:
                    # A frame says how long it is; one that lies could ask for any memory.
                    if zstandard.frame_content_size(data) != expected:
                        raise _Wrong
                    data = decompressor.decompress(data)
            except (_Wrong, zstandard.ZstdError) as error:
                raise _damaged(self.name, f"frame {number} fails its check") from error
            if len(data) != expected:
                raise _damaged(self.name, f"frame {number} has {len(data)} bytes, not {expected}")
            found.append(memoryview(data))
        return found


def _parse(form: Form, name: str, data: bytes) -> tuple[int, int, bytes]:
    """(size, bytes of a frame, salt)."""
    if len(data) < HEADER.size:
        raise _damaged(name, "it has no header")
    magic, format, codec, zero, frame, size, salt, key, check = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise _damaged(name, "it does not begin like one that artfs has compressed or encrypted")
    if check != xxh3_64_intdigest(data[: HEADER.size - 8]):
        raise _damaged(name, "its header fails its check")
    if format > FORMAT:
        raise FormatError(f"object {name} has format {format}, this artfs reads up to {FORMAT}: upgrade artfs")
    if codec != CODECS[form.codec]:
        found = next((codec_name for codec_name, number in CODECS.items() if number == codec), str(codec))
        raise _damaged(name, f"its codec is {found}, its namespace's is {form.codec}")
    if zero or not 4096 <= frame <= 16 << 20:
        raise _damaged(name, "its header cannot be")
    if key != form.key_id:
        raise NoAccessError(
            f"object {name} is encrypted with the key {key.hex()}, but encryption_key leads to {form.key_id.hex()}"
        )
    return size, frame, salt


def _damaged(name: str, what: str) -> DamagedError:
    return DamagedError(f"object {name} is damaged: {what}")
