"""The api rows of the benchmark: each is measured by one work, against peers that the work visits."""

from __future__ import annotations

import pytest

from tests.bench.api import MANY, works
from tests.bench.api_alone import Alone
from tests.bench.api_rows import PEERS, PLAIN, ApiSizes, api_bars, api_rows
from tests.bench.api_worker import Worker
from tests.bench.report import SUBJECT, Row

SIZES = ApiSizes.at(1)


def test_every_row_and_bar_is_measured_once() -> None:
    named = [row.name for row in api_rows(SIZES)] + [bar.name for bar in api_bars(SIZES)]
    measured = [name for rows, *_ in works(SIZES) for name in rows] + list(MANY)
    assert sorted(named) == sorted(measured)


@pytest.mark.parametrize("row", api_rows(SIZES), ids=lambda row: row.name)
def test_floors_are_about_peers_that_are_visited(row: Row) -> None:
    (visited,) = (who for rows, _, _, who in works(SIZES) if row.name in rows)
    for floor in row.floors:
        assert floor.peer in PEERS
        assert floor.peer in visited or (floor.peer == PLAIN and visited == {SUBJECT: "alone"})
    assert SUBJECT in visited


def test_the_works_are_the_workers() -> None:
    for _, work, _, who in works(SIZES):
        assert hasattr(Alone if who[SUBJECT] == "alone" else Worker, work)


def test_sizes_shrink_and_never_vanish() -> None:
    small = ApiSizes.at(0.001)
    assert small.files == small.tree == 20
    assert SIZES.tree == 10_000
