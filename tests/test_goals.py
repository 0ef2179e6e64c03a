"""Goals: what is asked for is read, reached with as few blocks as can be, or refused."""

from __future__ import annotations

import itertools
import random

import pytest
from conftest import draw, removable

from gatepruner.errors import PlanError
from gatepruner.measuring.accuracy import Accuracy
from gatepruner.measuring.cost import Cost, count
from gatepruner.measuring.latency import Latency
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning import meter as meter_module
from gatepruner.pruning.curve import Point
from gatepruner.pruning.goals import Goal, amount_text, blocks_for, most_needed
from gatepruner.pruning.meter import Meter, savings
from gatepruner.pruning.ranking import Ranking, rank

GOOD = [
    ("macs", "60%", Goal("macs", 0.6, True)),
    ("macs", " 62.5 % ", Goal("macs", 0.625, True)),
    ("macs", "100%", Goal("macs", 1.0, True)),
    ("macs", "5000", Goal("macs", 5000.0)),
    ("macs", "62.7M", Goal("macs", 62.7e6)),
    ("macs", "1e3K", Goal("macs", 1e6)),
    ("macs", "1.5e-1 G", Goal("macs", 1.5e8)),
    ("params", "400K", Goal("params", 4e5)),
    ("params", ".5M", Goal("params", 5e5)),
    ("latency", "8.5ms", Goal("latency", 8.5e-3)),
    ("latency", "8500 us", Goal("latency", 8.5e-3)),
    ("latency", "2s", Goal("latency", 2.0)),
    ("latency", "45%", Goal("latency", 0.45, True)),
    ("blocks", "10", Goal("blocks", 10.0)),
    ("blocks", "0", Goal("blocks", 0.0)),
    ("loss", "0.5", Goal("loss", 0.5)),
    ("loss", "0", Goal("loss", 0.0)),
]


@pytest.mark.parametrize(("kind", "text", "goal"), GOOD)
def test_a_goal_reads_as_it_is_written(kind, text, goal):
    read = Goal.parse(kind, text)
    assert read.amount == pytest.approx(goal.amount, rel=1e-12)
    assert (read.kind, read.relative) == (goal.kind, goal.relative)
    assert read.limit(2000.0) == pytest.approx(goal.amount * (2000 if goal.relative else 1))


BAD = {
    "macs": [
        *("", " ", "%", "M", "half", "60 percent", "60%%", "0", "0%", "0M", "-5M", "-60%", "nan"),
        *("inf", "1.2.3", ".", "62.7m", "62.7MM", "8.5ms", "5e", "60%M", "1,000", "+5M", "6 0%"),
    ],
    "params": ["8.5s", "4oo", "40k", "0x10"],
    "latency": ["8.5", "8.5M", "8.5 MS", "8.5min", "0ms", "ms", "-1ms"],
    "blocks": ["", "1.5", "-1", "50%", "3M", "ten"],
    "loss": ["", "-1", "1%", "1ms", "nan"],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind in BAD for text in BAD[kind]])
def test_what_does_not_read_as_a_goal_is_refused_with_an_example(kind, text):
    with pytest.raises(PlanError) as told:
        Goal.parse(kind, text)
    assert f"cannot read {text!r} as" in str(told.value)
    example = {"latency": "8.5ms", "blocks": "10", "loss": "0.5"}.get(kind, "62.7M")
    assert example in str(told.value)


@pytest.mark.parametrize(
    ("kind", "amount", "relative"),
    [
        *(("depth", 1, False), ("macs", 0, False), ("macs", float("nan"), False)),
        *(("macs", -1, True), ("latency", float("inf"), False), ("blocks", -1, False)),
        *(("blocks", 0.5, True), ("loss", 0.5, True)),
    ],
)
def test_what_is_no_goal_is_refused(kind, amount, relative):
    with pytest.raises(PlanError):
        Goal(kind, amount, relative)


@pytest.mark.parametrize(
    ("goal", "name"),
    [
        (Goal("blocks", 10), "drop10"),
        (Goal("macs", 0.475, True), "macs47.5"),
        (Goal("latency", 0.0085), "latency8.5ms"),
        (Goal("loss", 0.5), "loss0.5"),
        (Goal("params", 4e5), "params400K"),
        (Goal("macs", 6.27e7), "macs62.7M"),
    ],
)
def test_a_goal_is_part_of_a_files_name(goal, name):
    assert str(goal) == name


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


def test_a_goal_tells_an_amount_with_its_share():
    assert Goal("macs", 0.5, True).text(25_000, 100_000) == "25 K MACs (25.0%)"


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


def never() -> list[Point]:
    raise AssertionError("no curve is asked for")


def needed(goal: Goal, network: Network, ranking: Ranking, meter: Meter) -> int:
    return blocks_for(goal, network, ranking, meter, never).removed


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_the_fewest_blocks_go_that_reach_a_cost(network, kind):
    """Against trying every number of them, at and around every cost that can be reached."""
    meter = Meter(network)
    for ranking in rankings(network):
        costs = [cost_of(network, kind, ranking.first(number)) for number in range(7)]
        assert costs == sorted(costs, reverse=True)
        for limit in sorted(
            {*costs, *(it + 1 for it in costs[1:]), *(it - 1 for it in costs[:-1])}
        ):
            reach = blocks_for(Goal(kind, float(limit)), network, ranking, meter, never)
            expected = next(number for number, it in enumerate(costs) if it <= limit)
            assert reach.removed == expected
            assert (reach.whole, reach.least) == (costs[0], costs[-1])
            assert reach.reached == costs[expected]


def test_a_share_is_of_the_whole_network(network):
    ranking, meter = rankings(network)[0], Meter(network)
    whole = count(network).macs
    for percent in (100, 90, 75, 60, 50):
        number = needed(Goal.parse("macs", f"{percent}%"), network, ranking, meter)
        assert cost_of(network, "macs", ranking.first(number)) <= whole * percent / 100
        if number:
            assert cost_of(network, "macs", ranking.first(number - 1)) > whole * percent / 100


def test_a_goal_of_blocks_is_their_number(network):
    ranking = rankings(network)[0]
    for number in range(7):
        assert needed(Goal("blocks", number), network, ranking, Meter(network)) == number
    with pytest.raises(PlanError, match="cannot remove 7 blocks"):
        needed(Goal("blocks", 7), network, ranking, Meter(network))


def drifting(monkeypatch) -> list[list[str]]:
    """A clock that tells a network by its parameters and gets slower with every measurement."""
    asked: list[list[str]] = []
    scale = itertools.count(1)

    def latency(modules, shape, *, batch=1, device="cpu", runs=30, **others):
        asked.append(list(modules))
        slower = next(scale)
        return {
            name: Latency(*(slower * sum(p.numel() for p in module.parameters()),) * 3, 1, 1, "cpu")
            for name, module in modules.items()
        }

    monkeypatch.setattr(meter_module, "latency", latency)
    return asked


def test_each_latency_is_measured_once_and_beside_the_whole_network(network, monkeypatch):
    asked, meter = drifting(monkeypatch), Meter(network)
    ranking = rankings(network)[2]
    costs = [cost_of(network, "params", ranking.first(number)) for number in range(7)]
    scale = meter.cost("latency", network) / costs[0]
    for number in range(1, 7):
        goal = Goal("latency", costs[number] / costs[0] + 1e-9, True)
        reach = blocks_for(goal, network, ranking, meter, never)
        assert reach.removed == number
        assert reach.reached == pytest.approx(scale * costs[number])
    whole = asked[0][0]
    assert all(whole in names for names in asked)
    small = [name for names in asked for name in names if name != whole]
    assert len(small) == len(set(small))
    before = len(asked)
    saved = meter.savings("latency")
    first = costs[0] - cost_of(network, "params", [network.removable[0]])
    assert saved[network.removable[0]] == pytest.approx(scale * first)
    assert meter.savings("latency") == saved
    assert len(asked) == before


def test_a_meter_goes_on_from_what_another_one_knows(network, monkeypatch):
    asked, meter = drifting(monkeypatch), Meter(network)
    small = network.without(network.removable[:2])
    known = meter.latencies([network, small])
    again = Meter(network, known=dict(meter.known))
    before = len(asked)
    assert again.latencies([network, small]) == known
    assert len(asked) == before
    other = network.without(network.removable[:3])
    share = again.cost("latency", other) / again.cost("latency", network)
    assert share == pytest.approx(count(other).params / count(network).params)


def test_networks_with_and_without_gates_are_measured_as_they_are(network):
    meter = Meter(Network.named("resnet14", num_classes=4, input_shape=(3, 8, 8)), seconds=0.01)
    folded = network.without_gates()
    latencies = meter.latencies([network, folded, folded.without(network.removable)])
    assert all(latency.median > 0 for latency in latencies)
    assert latencies[2].median < latencies[1].median


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("text", ["0.1%", "101%", "12", "900G"])
def test_a_cost_out_of_reach_is_refused_with_the_range(network, cost, text):
    ranking = rankings(network)[0]
    costs = [cost_of(network, cost, ranking.first(number)) for number in (0, 6)]
    goal = Goal.parse(cost, text)
    with pytest.raises(PlanError) as told:
        needed(goal, network, ranking, Meter(network))
    low, high = (goal.text(it, costs[0]) for it in (costs[1], costs[0]))
    assert f"{low} to {high}" in str(told.value)
    assert "cannot reach" in str(told.value)
    assert "choose a target within this range" in str(told.value)
    assert str(network) in str(told.value)


def test_costs_and_savings_that_are_not_known_are_refused(network):
    with pytest.raises(PlanError, match="unknown cost 'height': expected macs, params, latency"):
        Meter(network).savings("height")
    first, *others = network.removable
    weights = network.initial_weights()
    with pytest.raises(PlanError, match=f"nothing is given for {first};"):
        rank(Checkpoint(network, weights), saved=dict.fromkeys(others, 1.0))


def test_the_ends_of_the_range_can_be_reached(network):
    ranking, meter = rankings(network)[1], Meter(network)
    for number in (0, 6):
        limit = float(cost_of(network, "params", ranking.first(number)))
        assert needed(Goal("params", limit), network, ranking, meter) == number


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


def within(points: list[Point], loss: float) -> int:
    network = Network.named("resnet14")
    goal = Goal("loss", loss)
    return blocks_for(goal, network, Ranking("", ()), Meter(network), lambda: points).removed


@pytest.mark.parametrize(
    ("loss", "blocks"), [(0, 1), (0.9, 1), (1, 3), (1.5, 3), (2, 3), (5, 4), (100, 5), (49.9, 4)]
)
def test_as_many_blocks_go_as_the_loss_allows(loss, blocks):
    assert within(curve(900, 900, 880, 890, 850, 300), loss) == blocks


def test_a_loss_is_reckoned_from_the_first_point_and_to_the_last_digit():
    for first, second in itertools.product((700, 917, 1000), (3, 7, 10)):
        assert within(curve(first, first - second), second / 10) == 1
        assert within(curve(first, first - second - 1), second / 10) == 0


def test_gates_are_compared_for_what_is_saved_by_them():
    whole = draw("gated-resnet14", input_shape=(3, 8, 8))
    saved = savings(whole.network, "params")
    ranking = rank(whole, saved=saved)
    expected = sorted(whole.gates, key=lambda name: whole.gates[name] / saved[name])
    assert list(ranking.names) == expected
    assert rank(whole, "depth", saved=saved) == rank(whole, "depth")
