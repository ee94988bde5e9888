"""Extents of a block against the simplest thing that is right: a list with one cell for each byte."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from artfs.blocks import Block, Chunk, Source, covered, cut, next_data, next_hole, pieces, put, runs

SIZE = 64
HOLE = (None, -1)
"""A byte that nothing covers; any other cell is (source, offset in it), and allocated zeros are (None, 0)."""
Cell = tuple[Source, int]
CHUNKS = [Chunk(n, n, 1000, bytes(16)) for n in range(3)]
SOURCES: list[Source] = [None, bytes(1000), bytes(range(200)) * 5, *CHUNKS]

RANGES = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).filter(lambda r: r[0] < r[1])
PUTS = st.tuples(RANGES, st.sampled_from(SOURCES), st.integers(0, 900))
CUTS = st.tuples(RANGES, st.just("cut"), st.just(0))
CHANGES = st.lists(st.one_of(PUTS, PUTS, PUTS, CUTS), max_size=30)
Change = tuple[tuple[int, int], Source | str, int]


def _cells(block: Block) -> list[Cell]:
    """What the extents say, byte by byte; sorted, not empty and without overlap, else it fails."""
    cells: list[Cell] = [HOLE] * SIZE
    last = 0
    for start, end, source, offset in block:
        assert last <= start < end <= SIZE, block
        last = end
        for i in range(start, end):
            cells[i] = (source, 0 if source is None else offset + i - start)
    return cells


def _build(changes: list[Change]) -> tuple[Block, list[Cell]]:
    """The block and its model after `changes`; each change is checked as it is made."""
    block: Block = []
    model: list[Cell] = [HOLE] * SIZE
    for (start, end), source, offset in changes:
        before = [cell != HOLE for cell in model[start:end]]
        if isinstance(source, str):
            assert cut(block, start, end) == sum(before)
            model[start:end] = [HOLE] * (end - start)
        else:
            assert put(block, start, end, source, offset) == before.count(False)
            model[start:end] = [(source, 0 if source is None else offset + i) for i in range(end - start)]
        assert _same(_cells(block), model)
    return block, model


def _same(a: list[Cell], b: list[Cell]) -> bool:
    """Sources are compared by identity: equal bytes from elsewhere would be a wrong answer."""
    return all(x[0] is y[0] and x[1] == y[1] for x, y in zip(a, b, strict=True))


@given(CHANGES)
def test_put_and_cut_do_what_they_say(changes: list[Change]) -> None:
    block, model = _build(changes)
    assert covered(block) == sum(cell != HOLE for cell in model)


@given(CHANGES, st.integers(0, SIZE + 7), st.integers(1, SIZE + 8))
def test_pieces_are_the_range_in_order(changes: list[Change], start: int, length: int) -> None:
    block, model = _build(changes)
    end = min(start + length, SIZE + 8)
    found: list[Cell] = []
    for count, source, offset in pieces(block, start, end):
        assert count > 0
        found += [(source, 0 if source is None else offset + i) for i in range(count)]
    wanted = [(None, 0) if cell == HOLE else cell for cell in (model + [HOLE] * 8)[start:end]]
    assert _same(found, wanted)


@given(CHANGES, st.integers(0, SIZE + 8))
def test_data_and_holes_are_found(changes: list[Change], start: int) -> None:
    block, model = _build(changes)
    holds = [source is not None for source, _ in model]
    assert next_data(block, start) == next((i for i in range(start, SIZE) if holds[i]), None)
    after = start
    while after < SIZE and holds[after]:
        after += 1
    assert next_hole(block, start) == after


@given(CHANGES)
def test_runs_touch_and_are_of_one_kind(changes: list[Change]) -> None:
    block, _ = _build(changes)
    groups = [list(group) for group in runs(block)]
    assert [extent for group in groups for extent in group] == block
    for group in groups:
        assert all(a[1] == b[0] for a, b in pairwise(group))
        assert len({extent[2] is None for extent in group}) == 1
    for left, right in pairwise(groups):  # none could have been longer
        assert left[-1][1] < right[0][0] or (left[-1][2] is None) != (right[0][2] is None)


def test_a_change_in_the_middle_leaves_both_ends_of_an_extent() -> None:
    source = bytes(100)
    block: Block = []
    put(block, 10, 50, source, 5)
    assert cut(block, 20, 30) == 10
    assert block == [(10, 20, source, 5), (30, 50, source, 25)]
    assert put(block, 15, 35, None) == 10
    assert block == [(10, 15, source, 5), (15, 35, None, 0), (35, 50, source, 30)]


def test_an_empty_block_is_one_hole() -> None:
    assert list(pieces([], 3, 9)) == [(6, None, 0)]
    assert cut([], 0, SIZE) == covered([]) == next_hole([], 0) == 0
    assert next_data([], 0) is None
    assert list(runs([])) == []
