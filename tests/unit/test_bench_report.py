"""The pure parts of the benchmark: what floors mean, how medians and ratios are taken, what is printed."""

from __future__ import annotations

import json

import pytest

from tests.bench.own import shares
from tests.bench.report import (
    PEERS,
    Bar,
    Floor,
    Results,
    Row,
    Unit,
    chosen,
    document,
    medians,
    missed,
    own_table,
    ratios,
    table,
    turns,
    verdicts,
)
from tests.bench.rows import Sizes, bars, rows
from tests.bench.works import WORKS

SPEED = Row("create", "create", Unit.PER_OPERATION, 1000, (Floor("null", 1.5), Floor("bindfs", 1.0)))
TIME = Row("untar", "untar", Unit.SECONDS, 1, (Floor("bindfs", 0.8, is_time=True),))


def results(**peers: list[float]) -> Results:
    return Results(samples={"create": dict(peers), "untar": dict(peers)})


@pytest.mark.parametrize(
    ("floor", "subject", "peer", "held"),
    [
        (Floor("null", 1.5), 1.0, 1.5, True),
        (Floor("null", 1.5), 1.0, 1.49, False),
        (Floor("native", 0.5), 2.0, 1.0, True),
        (Floor("native", 0.5), 2.1, 1.0, False),
        (Floor("bindfs", 0.8, is_time=True), 0.79, 1.0, True),
        (Floor("bindfs", 0.8, is_time=True), 0.81, 1.0, False),
        (Floor("bindfs", 1.5, is_time=True), 1.49, 1.0, True),
        (Floor("bindfs", 1.5, is_time=True), 1.51, 1.0, False),
    ],
)
def test_floor(floor: Floor, subject: float, peer: float, held: bool) -> None:
    assert floor.held(subject, peer) is held


def test_floor_is_printed_as_it_was_set() -> None:
    assert str(Floor("null", 1.5)) == "1.5 × null"
    assert str(Floor("bindfs", 0.8, is_time=True)) == "time ≤ 0.8 × bindfs"


def test_one_slow_round_does_not_move_a_median() -> None:
    found = results(artfs=[1.0, 1.0, 50.0], null=[2.0, 90.0, 2.0])
    assert medians(found.samples, "create") == {"artfs": 1.0, "null": 2.0}
    assert ratios(found.samples, "create") == {"null": 2.0}


def test_verdict_counts_the_rounds_in_which_the_floor_held() -> None:
    found = results(artfs=[1.0, 1.0, 1.0], null=[2.0, 1.0, 1.6], bindfs=[0.9, 0.9, 0.9])
    null, bindfs = verdicts(found.samples, SPEED)
    assert (null.met, null.ratio, null.rounds_held, null.rounds) == (True, 1.6, 2, 3)
    assert (bindfs.met, bindfs.rounds_held) == (False, 0)
    assert missed(found, [SPEED], []) == [f"create: {bindfs}"]


@pytest.mark.parametrize("found", [results(artfs=[1.0]), results(null=[1.0], bindfs=[1.0]), Results()])
def test_what_was_not_measured_is_neither_met_nor_missed(found: Results) -> None:
    assert [v.met for v in verdicts(found.samples, SPEED)] == [None, None]
    assert missed(found, [SPEED], []) == []


def test_peers_take_turns_and_each_goes_first() -> None:
    order = turns(PEERS, 8)
    assert all(sorted(one) == sorted(PEERS) for one in order)
    for place in range(len(PEERS)):
        assert sorted(one[place] for one in order) == sorted(PEERS * 2)


def test_only() -> None:
    names = ["stat_cold", "stat_warm", "rename"]
    assert chosen(names, []) == set(names)
    assert chosen(names, ["stat_*"]) == {"stat_cold", "stat_warm"}
    with pytest.raises(ValueError, match=r"'renam'.*rows: stat_cold stat_warm rename"):
        chosen(names, ["rename", "renam"])


@pytest.mark.parametrize(
    ("unit", "seconds", "amount", "text"),
    [
        (Unit.PER_OPERATION, 0.5, 2000, "250.0 µs"),
        (Unit.RATE, 0.5, 1024, "2048 MiB/s"),
        (Unit.PER_SECOND, 0.5, 300, "600 /s"),
        (Unit.SECONDS, 0.5, 1, "0.500 s"),
    ],
)
def test_units(unit: Unit, seconds: float, amount: float, text: str) -> None:
    assert unit.show(seconds, amount) == text


def test_table() -> None:
    found = results(artfs=[0.1], null=[0.2], bindfs=[0.05])
    head, create, untar = table(found, [SPEED, TIME], ["null", "bindfs", "artfs"])
    assert head.split() == ["work", "null", "bindfs", "artfs", "÷", "null", "÷", "bindfs", "floors"]
    assert create.split()[:9] == ["create", "200.0", "µs", "50.0", "µs", "100.0", "µs", "2.00", "0.50"]
    assert create.endswith("1.5 × null: met (1/1 rounds); 1 × bindfs: MISSED (0/1 rounds)")
    assert untar.endswith("time ≤ 0.8 × bindfs: MISSED (0/1 rounds)")


def test_table_without_artfs_judges_nothing() -> None:
    head, create = table(results(native=[1.0], null=[2.0]), [SPEED], ["native", "null"])
    assert "÷" not in head
    assert "met" not in create and "MISSED" not in create


def test_bars() -> None:
    found = Results(own={"fast": [1.0, 2.0, 9.0], "slow": [10.0], "shown": [3.0]})
    all_bars = [Bar("fast", "fast", "ms", 10), Bar("slow", "slow", "ms", 10), Bar("shown", "shown", "µs")]
    _, fast, slow, shown = own_table(found, all_bars)
    assert fast.split() == ["fast", "2", "ms", "1-9", "<", "10", "ms:", "met"]
    assert slow.endswith("MISSED")
    assert shown.split() == ["shown", "3", "µs"]
    assert missed(found, [], all_bars) == ["slow: 10 ms, limit 10 ms"]


def test_document_holds_every_sample() -> None:
    found = results(artfs=[1.0, 2.0], null=[3.0, 4.0])
    found.add_own("clone", 0.5)
    found.failures["trees @ artfs"] = "OSError"
    doc = document(found, [SPEED], [Bar("clone", "clone", "s", 1)], ["artfs", "null"], {"scale": 1})
    doc = json.loads(json.dumps(doc))
    assert doc["work"]["create"]["samples"] == {"artfs": [1.0, 2.0], "null": [3.0, 4.0]}
    assert [f["met"] for f in doc["work"]["create"]["floors"]] == [True, None]
    assert doc["own"]["clone"]["met"] is True
    assert doc["failures"] == {"trees @ artfs": "OSError"}
    assert doc["about"] == {"scale": 1}


def test_every_row_has_floors_and_exactly_one_workload() -> None:
    sizes = Sizes.at(1)
    names = [row.name for row in rows(sizes)]
    measured = [row for made in WORKS.values() for row in made]
    assert sorted(names) == sorted(measured)
    assert all(row.floors and all(f.peer in PEERS for f in row.floors) for row in rows(sizes))
    both = [*names, *(bar.name for bar in bars(sizes))]
    assert len(set(both)) == len(both)


def test_sizes() -> None:
    full, small = Sizes.at(1), Sizes.at(0.001)
    assert (full.files, full.stream_mib, full.random_mib) == (2000, 1024, 512)
    assert (full.tree_files, full.repository_files, full.many, full.changes) == (2000, 1000, 100_000, 100)
    assert small.changes <= small.many


def test_shares_of_a_request() -> None:
    before = {"requests": {"1": 10, "35": 5}, "ns_python": 1_000, "ns_journal": 500}
    after = {"requests": {"1": 20, "35": 25}, "ns_python": 151_000, "ns_journal": 60_500}
    assert shares(before, after, seconds=0.0012, operations=10) == {
        "split_requests": 3.0,
        "split_kernel": 35.0,
        "split_function": 3.0,
        "split_journal": 2.0,
    }


@pytest.mark.parametrize(
    ("after", "left"),
    [
        ({}, set()),
        ({"requests": 0, "ns_python": 5}, set()),
        ({"requests": 5}, {"split_requests"}),
        ({"requests": 5, "ns_python": 0}, {"split_requests"}),
        ({"requests": 5, "ns_python": 100}, {"split_requests", "split_kernel"}),
    ],
)
def test_shares_without_counters_are_left_out(after: dict[str, int], left: set[str]) -> None:
    assert set(shares({}, after, seconds=0.1, operations=5)) == left
