"""What comes from a provider, into the copy of its object: pieces, chunks, and bytes that come twice."""

from __future__ import annotations

import errno
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from artfs.blocks import Chunk
from artfs.objects import writing
from artfs.objects.incoming import Incoming, write_chunk

PIECE = 1000
COPY = 7
SIZE = 10 * PIECE + 123
DATA = random.Random(1).randbytes(SIZE)


def chunk(offset: int, length: int, data: bytes = DATA) -> Chunk:
    return Chunk(1, offset, length, xxh3_128_digest(data[offset : offset + length]), 0)


def receive(
    path: Path, chunks: list[Chunk], steps: list[int], start: int = 0, skipped: frozenset[int] = frozenset()
) -> tuple[Incoming, list[int]]:
    """All from `start` on, in steps of these lengths; and how often it was told that chunks came."""
    told: list[int] = []
    taking = Incoming(path, SIZE, start, PIECE, skipped, chunks, COPY, lambda: told.append(taking.end))
    at = 0
    for step in steps:
        taking(at, DATA[start + at : start + at + step])
        at += step
    taking(at, DATA[start + at :])
    return taking, told


@given(
    cuts=st.lists(st.integers(1, SIZE - 1), max_size=20),
    steps=st.lists(st.integers(1, 3000), max_size=20),
    skipped=st.frozensets(st.integers(0, 10), max_size=3),
)
def test_chunks_are_verified_whatever_the_steps(
    cuts: list[int], steps: list[int], skipped: frozenset[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("copy") / "prefix" / "object"
    ends = sorted({0, SIZE, *cuts})
    chunks = [chunk(low, high - low) for low, high in pairwise(ends)]
    taking, told = receive(path, chunks, steps, skipped=skipped)
    assert taking.close() > 0 or len(skipped) == 11
    assert taking.error is None and taking.end == SIZE
    written = path.read_bytes()
    for one in chunks:
        pieces = set(range(one.offset // PIECE, (one.offset + one.length - 1) // PIECE + 1))
        assert one.verified == (0 if pieces & skipped else COPY)
        if one.verified:
            assert written[one.offset : one.offset + one.length] == DATA[one.offset : one.offset + one.length]
    for piece in range(11):
        here = written[piece * PIECE : (piece + 1) * PIECE]
        assert here == (bytes(len(here)) if piece in skipped else DATA[piece * PIECE : (piece + 1) * PIECE])
    assert bool(told) == any(one.verified for one in chunks)


def test_a_chunk_can_be_read_before_the_rest_has_come(tmp_path: Path) -> None:
    chunks = [chunk(0, 300), chunk(300, 300)]
    taking = Incoming(tmp_path / "o", SIZE, 0, PIECE, frozenset(), chunks, COPY, lambda: None)
    taking(0, DATA[:450])
    assert [one.verified for one in chunks] == [COPY, 0]
    assert (tmp_path / "o").read_bytes()[:300] == DATA[:300]
    taking(450, DATA[450:700])
    assert [one.verified for one in chunks] == [COPY, COPY]
    taking.close()


def test_chunks_that_become_known_meanwhile(tmp_path: Path) -> None:
    """Those of which bytes have gone by are not judged, those to come are."""
    chunks = [chunk(0, 100)]
    taking = Incoming(tmp_path / "o", SIZE, 0, PIECE, frozenset(), chunks, COPY, lambda: None)
    taking(0, DATA[:500])
    gone, torn, coming = chunk(200, 100), chunk(450, 100), chunk(500, 200)
    chunks += [gone, torn, coming, coming]
    taking(500, DATA[500:])
    taking.close()
    assert [one.verified for one in (gone, torn, coming)] == [0, 0, COPY]


def test_what_comes_again_after_a_broken_connection_changes_nothing(tmp_path: Path) -> None:
    """Nobody has verified it: it is not even written."""
    chunks = [chunk(0, 400), chunk(400, 400)]
    taking = Incoming(tmp_path / "o", SIZE, 0, PIECE, frozenset(), chunks, COPY, lambda: None)
    taking(0, DATA[:600])
    taking(0, b"x" * 500)
    taking(500, b"x" * 100 + DATA[600:900])
    taking.close()
    assert (tmp_path / "o").read_bytes()[:900] == DATA[:900]
    assert [one.verified for one in chunks] == [COPY, COPY]


def test_wrong_bytes_are_not_believed(tmp_path: Path) -> None:
    chunks = [chunk(0, 400, bytes(SIZE)), chunk(400, 400), chunk(800, 50, bytes(SIZE))]
    taking, told = receive(tmp_path / "o", chunks, [399, 401])
    taking.close()
    assert [one.verified for one in chunks] == [0, COPY, 0]
    assert told == [800]


def test_a_full_disk_ends_it_but_for_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 2

    def write_all(fd: int, datas: tuple[memoryview, ...], at: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        writing.write_all(fd, datas, at)

    monkeypatch.setattr("artfs.objects.incoming.write_all", write_all)
    chunks = [chunk(0, 100), chunk(100, 100), chunk(200, 100), chunk(300, 100)]
    taking, told = receive(tmp_path / "o", chunks, [100, 100, 100])
    assert taking.error is not None and taking.error.errno == errno.ENOSPC
    assert (taking.end, told) == (200, [100, 200])
    assert [one.verified for one in chunks] == [COPY, COPY, 0, 0]
    taking.close()


def test_a_copy_gets_the_size_of_its_object(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "o"
    assert write_chunk(path, SIZE, 500, DATA[500:600]) > 0
    assert path.stat().st_size == SIZE
    path.write_bytes(bytes(2 * SIZE))
    write_chunk(path, SIZE, 0, DATA[:10])
    assert path.stat().st_size == SIZE and path.read_bytes()[:10] == DATA[:10]
