"""Sealing: what becomes a chunk, what stays, and that the bytes are the same before and after."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artfs.blocks import Block, Chunk, cut, pieces, put
from artfs.errors import DamagedError
from artfs.objects.held import HeldObjects
from artfs.objects.local import LocalObjects
from artfs.volume.rows import unpack_block
from artfs.volume.seal import INLINE_PIECES, MAX_PIECES, WRITE_SIZE, Sealed, seal

SERIAL = 7
SIZE = 1 << 20
KEY = b"B" + bytes(7) + b"\x05" + bytes(4)
OTHER = b"B" + bytes(7) + b"\x06" + bytes(4)


@pytest.fixture
def objects() -> Iterator[LocalObjects]:
    made = _objects()
    yield made
    made.close()


def _objects() -> LocalObjects:
    objects = HeldObjects()
    objects.register(SERIAL, "", 0)
    return objects


def _read(objects: LocalObjects, block: Block, end: int = SIZE) -> bytes:
    parts = []
    for length, source, offset in pieces(block, 0, end):
        if source is None:
            parts.append(bytes(length))
        else:
            data = objects.read(source) if isinstance(source, Chunk) else source
            parts.append(data[offset : offset + length])
    return b"".join(parts)


def _shape(block: Block) -> list[tuple[int, int, bool | None]]:
    """(start, end, whether it is a chunk; None: allocated zeros)."""
    return [(start, end, None if source is None else isinstance(source, Chunk)) for start, end, source, _ in block]


def _seal(objects: LocalObjects, block: Block, limit: int = 0, sealed: Sealed | None = None) -> Block:
    """The block after it; the row, as it is read back, says the same."""
    before = block.copy()
    rows, done = seal(objects, SERIAL, {KEY: block}, limit, sealed or Sealed())
    assert block == before  # a list in a closed batch is never changed
    value = rows[KEY]
    found = unpack_block(value) if value else []
    assert _shape(found) == _shape(done[KEY])
    assert _read(objects, found) == _read(objects, done[KEY]) == _read(objects, before)
    return done[KEY]


# what stays in the row
def test_few_bytes_stay_in_the_row(objects: LocalObjects) -> None:
    block: Block = []
    put(block, 10, 60, b"a" * 50)
    put(block, 100, 150, b"b" * 50)
    assert _shape(_seal(objects, block, 100)) == [(10, 60, False), (100, 150, False)]
    assert objects.sealing == {} == objects.unsynced  # nothing was written
    assert _shape(_seal(objects, block, 99)) == [(10, 60, True), (100, 150, True)]


def test_only_bytes_that_are_not_sealed_count_for_the_limit(objects: LocalObjects) -> None:
    block: Block = []
    put(block, 0, 5000, objects.append(SERIAL, b"c" * 5000))
    put(block, 100, 110, b"d" * 10)
    put(block, 6000, 7000, None)
    assert _shape(_seal(objects, block, 10)) == [
        (0, 100, True), (100, 110, False), (110, 5000, True), (6000, 7000, None),
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "inline"), [(INLINE_PIECES, True), (INLINE_PIECES + 1, False)])
def test_many_small_pieces_do_not_stay_in_the_row(objects: LocalObjects, count: int, inline: bool) -> None:
    block: Block = []
    for n in range(count):
        put(block, n * 10, n * 10 + 1, b"x")
    assert {chunk for _, _, chunk in _shape(_seal(objects, block, 1000))} == {not inline}


def test_an_empty_block_has_no_row(objects: LocalObjects) -> None:
    rows, done = seal(objects, SERIAL, {KEY: []}, 100, Sealed())
    assert rows == {KEY: None}
    assert done == {KEY: []}


def test_zeros_are_never_written(objects: LocalObjects) -> None:
    block: Block = []
    put(block, 0, SIZE, None)
    assert _seal(objects, block) == [(0, SIZE, None, 0)]
    assert objects.sealing == {}


# groups
def test_touching_bytes_become_one_chunk(objects: LocalObjects) -> None:
    block: Block = []
    put(block, 0, 4000, b"a" * 4000)
    put(block, 4000, 9000, b"b" * 5000)
    put(block, 9001, 9100, b"c" * 99)
    done = _seal(objects, block)
    assert _shape(done) == [(0, 9000, True), (9001, 9100, True)]
    first, second = done[0][2], done[1][2]
    assert isinstance(first, Chunk) and isinstance(second, Chunk)
    assert (first.object, first.length) == (second.object, 9000)
    assert second.offset == first.offset + 9000  # written together


def test_a_chunk_or_zeros_in_between_part_the_groups(objects: LocalObjects) -> None:
    chunk = objects.append(SERIAL, b"k" * 100)
    block: Block = []
    put(block, 0, 100, b"a" * 100)
    put(block, 100, 200, chunk)
    put(block, 200, 300, b"b" * 100)
    put(block, 300, 400, None)
    put(block, 400, 500, b"c" * 100)
    done = _seal(objects, block)
    assert _shape(done) == [(0, 100, True), (100, 200, True), (200, 300, True), (300, 400, None), (400, 500, True)]
    assert done[1][2] is chunk


def test_a_source_that_is_named_in_part_is_written_in_part(objects: LocalObjects) -> None:
    block: Block = []
    put(block, 0, 3000, bytes(range(250)) * 12)
    cut(block, 1000, 2000)
    done = _seal(objects, block)
    assert [chunk.length for _, _, chunk, _ in done if isinstance(chunk, Chunk)] == [1000, 1000]


def test_several_blocks_share_an_object_and_large_ones_several_writes(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    append_all = objects.append_all
    monkeypatch.setattr(
        objects,
        "append_all",
        lambda serial, datas: sizes.append(sum(map(len, datas))) or append_all(serial, datas),  # type: ignore[func-returns-value]
    )
    count = WRITE_SIZE // SIZE + 3
    blocks: dict[bytes, Block] = {KEY + bytes([n]): [(0, SIZE, bytes([n]) * SIZE, 0)] for n in range(count)}
    _, done = seal(objects, SERIAL, blocks, 0, Sealed())
    assert sizes == [WRITE_SIZE, 3 * SIZE]
    for n, block in enumerate(done.values()):
        assert _read(objects, block) == bytes([n]) * SIZE


# lists that come later
def test_later_lists_name_what_is_sealed(objects: LocalObjects) -> None:
    block: Block = []
    data = bytes(range(250)) * 20
    put(block, 0, 5000, data)
    put(block, 5000, 6000, b"e" * 1000)
    later = block.copy()
    put(later, 100, 200, b"new" * 40, 7)
    put(later, 9000, 9100, data, 300)  # shared by a copy
    wanted = _read(objects, later)
    sealed = Sealed()
    done = _seal(objects, block, sealed=sealed)
    sealed.swap(later)
    assert _shape(later) == [
        (0, 100, True), (100, 200, False), (200, 5000, True), (5000, 6000, True), (9000, 9100, True),
    ]  # fmt: skip
    assert {id(extent[2]) for extent in later if isinstance(extent[2], Chunk)} == {id(done[0][2])}
    assert _read(objects, later) == wanted
    written = dict(objects.sealing)
    sealed.swap(later)
    assert _read(objects, later) == wanted
    assert objects.sealing == written


def test_a_second_batch_in_one_commit_writes_nothing_twice(objects: LocalObjects) -> None:
    sealed = Sealed()
    block: Block = [(0, 5000, b"a" * 5000, 0)]
    later = [*block, (5000, 5010, b"b" * 10, 0)]
    first = _seal(objects, block, sealed=sealed)
    second = _seal(objects, later, sealed=sealed)
    assert second[0][2] is first[0][2]
    assert objects.size(first[0][2].object) == 5010  # type: ignore[union-attr]


def test_a_part_that_was_not_sealed_is_not_taken_for_sealed(objects: LocalObjects) -> None:
    """The middle of the source was overwritten before the seal; a later copy still holds all of it."""
    data = bytes(range(250)) * 12
    block: Block = []
    put(block, 0, 3000, data)
    put(block, 1000, 2000, b"z" * 1000)
    sealed = Sealed()
    _seal(objects, block, sealed=sealed)
    later: Block = [(0, 3000, data, 0), (4000, 4500, data, 2200), (5000, 5500, data, 900)]
    wanted = _read(objects, later)
    sealed.swap(later)
    assert _shape(later) == [(0, 3000, False), (4000, 4500, True), (5000, 5500, False)]
    assert _read(objects, later) == wanted


def test_equal_bytes_from_elsewhere_are_not_confused(objects: LocalObjects) -> None:
    one, two = bytes(bytearray(b"s" * 500)), bytes(bytearray(b"s" * 500))
    sealed = Sealed()
    _seal(objects, [(0, 500, one, 0)], sealed=sealed)
    later: Block = [(0, 500, two, 0)]
    sealed.swap(later)
    assert later == [(0, 500, two, 0)]


# rewriting
def _scattered(objects: LocalObjects, count: int) -> Block:
    block: Block = []
    for n in range(count):
        put(block, n * 10, n * 10 + 10, objects.append(SERIAL, bytes([n % 256]) * 10))
    return block


def test_a_block_of_many_pieces_is_written_as_one(objects: LocalObjects) -> None:
    block = _scattered(objects, MAX_PIECES + 2)
    put(block, 25, 35, b"n" * 10)
    assert _shape(_seal(objects, block)) == [(0, (MAX_PIECES + 2) * 10, True)]


def test_up_to_the_limit_chunks_stay_where_they_are(objects: LocalObjects) -> None:
    block = _scattered(objects, MAX_PIECES)
    put(block, 100_000, 100_010, b"n" * 10)
    done = _seal(objects, block)
    assert done[:-1] == block[:-1]


def test_holes_and_zeros_stay_when_a_block_is_rewritten(objects: LocalObjects) -> None:
    block = _scattered(objects, MAX_PIECES + 50)
    end = block[-1][1]
    cut(block, 100, 150)
    put(block, 500, 600, None)
    put(block, 600, 601, b"!")
    assert _shape(_seal(objects, block)) == [(0, 100, True), (150, 500, True), (500, 600, None), (600, end, True)]


def test_damage_is_found_before_it_is_written_again(objects: LocalObjects) -> None:
    block = _scattered(objects, MAX_PIECES + 1)
    start, end, chunk, offset = block[3]
    assert isinstance(chunk, Chunk)
    block[3] = (start, end, Chunk(chunk.object, chunk.offset, chunk.length, bytes(16)), offset)
    put(block, 100_000, 100_010, b"n" * 10)
    with pytest.raises(DamagedError):
        seal(objects, SERIAL, {KEY: block}, 0, Sealed())


@pytest.mark.parametrize("n", [0, MAX_PIECES])
def test_a_block_whose_copies_are_not_all_here_is_rewritten_later(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """A provider has them: a copy may be evicted at any moment, also while others are read."""
    objects.backed.add(SERIAL)
    block = _scattered(objects, MAX_PIECES + 1)
    read, evicted = objects.read, block[n][2]

    def reading(chunk: Chunk) -> bytes:
        if chunk is evicted:
            raise DamagedError("the object is missing")
        return read(chunk)

    put(block, 100_000, 100_010, b"n" * 10)
    monkeypatch.setattr(objects, "read", reading)
    _, done = seal(objects, SERIAL, {KEY: block}, 0, Sealed())
    assert done[KEY][:-1] == block[:-1] and isinstance(done[KEY][-1][2], Chunk)


# any history
WRITES = st.lists(
    st.tuples(
        st.integers(0, 3000),
        st.integers(1, 400),
        st.sampled_from(["bytes", "bytes", "bytes", "zeros", "hole", "chunk"]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60)
@given(st.lists(WRITES, min_size=1, max_size=4), st.sampled_from([0, 100, 2000]))
def test_batches_of_writes_keep_their_bytes(batches: list[list[tuple[int, int, str, int]]], limit: int) -> None:
    """As a tree does it: a closed list is sealed while a copy of it is written to, then the copy is swapped."""
    objects = _objects()
    try:
        open_list: Block = []
        model = bytearray(SIZE)
        for writes in batches:
            closed = open_list
            frozen = bytes(model)
            open_list = closed.copy()
            for start, length, kind, fill in writes:
                data = bytes([fill]) * length if kind in ("bytes", "chunk") else bytes(length)
                model[start : start + length] = data
                if kind == "hole":
                    cut(open_list, start, start + length)
                else:
                    chunk = objects.append(SERIAL, data) if kind == "chunk" else None
                    put(open_list, start, start + length, data if kind == "bytes" else chunk)
            sealed = Sealed()
            done = _seal(objects, closed, limit, sealed)
            assert _read(objects, done) == frozen
            sealed.swap(open_list)
            assert _read(objects, open_list) == bytes(model)
        assert _read(objects, _seal(objects, open_list, limit)) == bytes(model)
    finally:
        objects.close()
