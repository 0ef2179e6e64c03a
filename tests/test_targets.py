"""Targets: what is asked for is read, reached with as few blocks as can be, or refused."""

from __future__ import annotations

import itertools
import random

import pytest
from conftest import draw, removable

from gatepruner.errors import PlanError
from gatepruner.measuring.accuracy import Accuracy
from gatepruner.measuring.cost import Cost, count
from gatepruner.pruning.meter import savings
from gatepruner.networks.network import Network
from gatepruner.pruning.curve import Point
from gatepruner.pruning.goals import (
    Measure,
    Target,
    amount_text,
    fewest,
    most_needed,
    most_within,
    reach,
)
from gatepruner.pruning.ranking import Ranking, rank

GOOD = [
    ("macs", "60%", Target("macs", 0.6, True)),
    ("macs", " 62.5 % ", Target("macs", 0.625, True)),
    ("macs", "100%", Target("macs", 1.0, True)),
    ("macs", "5000", Target("macs", 5000.0, False)),
    ("macs", "62.7M", Target("macs", 62.7e6, False)),
    ("macs", "1e3K", Target("macs", 1e6, False)),
    ("macs", "1.5e-1 G", Target("macs", 1.5e8, False)),
    ("params", "400K", Target("params", 4e5, False)),
    ("params", ".5M", Target("params", 5e5, False)),
    ("latency", "8.5ms", Target("latency", 8.5e-3, False)),
    ("latency", "8500 us", Target("latency", 8.5e-3, False)),
    ("latency", "2s", Target("latency", 2.0, False)),
    ("latency", "45%", Target("latency", 0.45, True)),
]


@pytest.mark.parametrize(("cost", "text", "target"), GOOD)
def test_a_target_reads_as_it_is_written(cost, text, target):
    found = Target.parse(cost, text)
    assert found.amount == pytest.approx(target.amount, rel=1e-12)
    assert (found.cost, found.relative) == (target.cost, target.relative)
    assert found.limit(2000.0) == pytest.approx(target.amount * (2000 if target.relative else 1))


BAD = {
    "macs": [
        *("", " ", "%", "M", "half", "60 percent", "60%%", "0", "0%", "0M", "-5M", "-60%", "nan"),
        *("inf", "1.2.3", ".", "62.7m", "62.7MM", "8.5ms", "5e", "60%M", "1,000", "+5M", "6 0%"),
    ],
    "params": ["8.5s", "4oo", "40k", "0x10"],
    "latency": ["8.5", "8.5M", "8.5 MS", "8.5min", "0ms", "ms", "-1ms"],
}


@pytest.mark.parametrize(("cost", "text"), [(cost, it) for cost in BAD for it in BAD[cost]])
def test_what_reads_as_no_target_is_refused_with_an_example(cost, text):
    with pytest.raises(PlanError) as told:
        Target.parse(cost, text)
    assert f"cannot read the target {text!r}" in str(told.value)
    assert "60%" in str(told.value)
    assert ("8.5ms" if cost == "latency" else "62.7M") in str(told.value)


@pytest.mark.parametrize(
    ("cost", "amount", "text"),
    [
        ("macs", 62_700_000, "62.7 M MACs"),
        ("macs", 4.0e9, "4 G MACs"),
        ("macs", 1000, "1 K MACs"),
        ("macs", 999, "999 MACs"),
        ("params", 853_018, "853 K parameters"),
        ("params", 12, "12 parameters"),
        ("latency", 0.0085234, "8.52 ms"),
        ("latency", 1.5, "1500.00 ms"),
    ],
)
def test_an_amount_is_told_with_its_unit(cost, amount, text):
    assert amount_text(cost, amount) == text


def test_a_target_tells_an_amount_with_its_share():
    assert Target("macs", 0.5, True).text(25_000, 100_000) == "25 K MACs (25.0%)"


# ------------------------------------------------------------------------------ reach and fewest


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.named("gated-resnet14", num_classes=4, input_shape=(3, 8, 8))


def rankings(network: Network, count: int = 5) -> list[Ranking]:
    names = removable(network)
    orders = [names, names[::-1]]
    generator = random.Random(7)
    orders += [generator.sample(names, len(names)) for _ in range(count - 2)]
    return [Ranking("made up", tuple((name, 0.0) for name in order)) for order in orders]


def cost_of(network: Network, cost: str, gone) -> int:
    return getattr(count(network.without(list(gone))), cost)


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_the_fewest_blocks_go_that_reach_a_target(network, cost):
    """Against trying every number of them, at and around every cost that can be reached."""
    measure = Measure(cost)
    for ranking in rankings(network):
        costs = [cost_of(network, cost, ranking.first(it)) for it in range(7)]
        assert costs == sorted(costs, reverse=True)
        for limit in sorted(
            {*costs, *(it + 1 for it in costs[1:]), *(it - 1 for it in costs[:-1])}
        ):
            target = Target(cost, float(limit), False)
            found = reach(network, ranking, target, measure)
            expected = next(number for number, it in enumerate(costs) if it <= limit)
            assert fewest(network, ranking, found, measure) == expected


def test_a_share_is_of_the_whole_network(network):
    ranking, measure = rankings(network)[0], Measure("macs")
    whole = count(network).macs
    for percent in (100, 90, 75, 60, 50):
        target = Target.parse("macs", f"{percent}%")
        number = fewest(network, ranking, reach(network, ranking, target, measure), measure)
        assert cost_of(network, "macs", ranking.first(number)) <= whole * percent / 100
        if number:
            assert cost_of(network, "macs", ranking.first(number - 1)) > whole * percent / 100


def test_latency_is_bisected_beside_the_whole_network(network, monkeypatch):
    """With a measure whose scale drifts: only what is measured together can be compared."""
    ranking, drift, asked = rankings(network)[2], iter(range(1, 100)), []

    class Drifting(Measure):
        def __call__(self, networks):
            scale = next(drift)
            asked.append(len(networks))
            return [scale * (10.0 - len(it.edits.removed)) for it in networks]

    measure = Drifting("latency")
    for needed in range(1, 7):
        target = Target("latency", (10 - needed) / 10 + 0.001, True)
        found = reach(network, ranking, target, measure)
        assert fewest(network, ranking, found, measure) == needed
    assert set(asked) == {2}


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("text", ["0.1%", "101%", "12", "900G"])
def test_a_target_out_of_reach_is_refused_with_the_range(network, cost, text):
    ranking = rankings(network)[0]
    costs = [cost_of(network, cost, ranking.first(number)) for number in (0, 6)]
    target = Target.parse(cost, text)
    with pytest.raises(PlanError) as told:
        reach(network, ranking, target, Measure(cost))
    low, high = (target.text(it, costs[0]) for it in (costs[1], costs[0]))
    assert f"from {low} to {high}" in str(told.value)
    assert "cannot reach" in str(told.value)
    assert "choose a target within this range" in str(told.value)
    assert str(network) in str(told.value)


def test_the_ends_of_the_range_can_be_reached(network):
    ranking, measure = rankings(network)[1], Measure("params")
    for number in (0, 6):
        limit = float(cost_of(network, "params", ranking.first(number)))
        found = reach(network, ranking, Target("params", limit, False), measure)
        assert fewest(network, ranking, found, measure) == number


def test_measured_latencies_are_positive_and_one_for_each_network(network):
    found = Measure("latency", seconds=0.01)([network, network.without(removable(network))])
    assert len(found) == 2
    assert 0 < found[1] < found[0]


# ----------------------------------------------------------------------- most_needed, most_within


@pytest.mark.parametrize("name", ["resnet14", "resnet20-b", "torchvision:mobilenet_v2"])
@pytest.mark.parametrize("cost", ["macs", "params"])
def test_no_order_needs_more_blocks_than_most_needed(name, cost):
    shape = (3, 64, 64) if ":" in name else (3, 8, 8)
    network = Network.named(name, num_classes=4, input_shape=shape)
    saved, whole = savings(network, cost), getattr(count(network), cost)
    names, generator = list(saved), random.Random(1)
    worst = sorted(names, key=saved.__getitem__)
    for percent in (95, 80, 60):
        limit = whole * percent / 100
        bound = most_needed(whole, limit, saved)
        for order in [worst, *(generator.sample(names, len(names)) for _ in range(4))]:
            costs = (cost_of(network, cost, order[:number]) for number in range(len(order) + 1))
            needed = next((at for at, it in enumerate(costs) if it <= limit), len(order))
            assert needed <= bound
            if order is worst:
                assert needed == bound


def test_nothing_is_needed_for_what_is_there_and_all_for_what_cannot_be():
    saved = {"a": 3.0, "b": 1.0, "c": -2.0}
    assert most_needed(10, 10, saved) == 0
    assert most_needed(10, 9.5, saved) == 2  # what costs more when it is gone saves nothing
    assert most_needed(10, 6, saved) == 3
    assert most_needed(10, 0, saved) == 3


def curve(*correct: int) -> list[Point]:
    return [
        Point(removed, 9 - removed, Accuracy(it, 1000, 0.0), Cost(1, 1))
        for removed, it in enumerate(correct)
    ]


@pytest.mark.parametrize(
    ("loss", "blocks"), [(0, 1), (0.9, 1), (1, 3), (1.5, 3), (2, 3), (5, 4), (100, 5), (49.9, 4)]
)
def test_as_many_blocks_go_as_the_loss_allows(loss, blocks):
    assert most_within(curve(900, 900, 880, 890, 850, 300), loss) == blocks


def test_a_loss_is_reckoned_from_the_first_point_and_to_the_last_digit():
    for first, second in itertools.product((700, 917, 1000), (3, 7, 10)):
        assert most_within(curve(first, first - second), second / 10) == 1
        assert most_within(curve(first, first - second - 1), second / 10) == 0


def test_gates_are_compared_for_what_is_saved_by_them():
    whole = draw("gated-resnet14", input_shape=(3, 8, 8))
    saved = savings(whole.network, "params")
    ranking = rank(whole, saved=saved)
    expected = sorted(whole.gates, key=lambda name: whole.gates[name] / saved[name])
    assert list(ranking.names) == expected
    assert rank(whole, "depth", saved=saved) == rank(whole, "depth")
