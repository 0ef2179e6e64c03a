"""A ranking puts the blocks into the order in which they are to go."""

from __future__ import annotations

import math
import random
import re

import pytest
import torch
from conftest import draw, removable, with_gates_at

from gatepruner.errors import CheckpointError, PlanError
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria import CRITERIA
from gatepruner.pruning.criteria.criterion import Criterion
from gatepruner.pruning.ranking import Ranking, rank
from gatepruner.pruning.surgery import fold_gates, remove, remove_shortcuts

BLOCKS = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in (0, 1)]


def gated(*gates: float) -> Checkpoint:
    """A ResNet of six blocks with these gates."""
    checkpoint = draw("gated-resnet14")
    for name, k in zip(BLOCKS, gates, strict=True):
        checkpoint = with_gates_at(checkpoint, k, [name])
    return checkpoint


def test_the_lowest_gate_goes_first():
    ranking = rank(gated(0.5, 1.5, 0.25, 0.75, 2.0, 0.125))
    assert ranking.names == tuple(BLOCKS[at] for at in (5, 2, 0, 3, 1, 4))
    assert [score for _, score in ranking.scores] == [0.125, 0.25, 0.5, 0.75, 1.5, 2.0]
    assert (ranking.criterion, ranking.subject) == ("gate", "gated-resnet14")


def test_reversed_the_highest_gate_goes_first_and_no_path_is_followed():
    checkpoint = gated(0.5, 1.5, 0.25, 0.75, 2.0, 0.125)
    ranking = rank(checkpoint).reversed()
    assert ranking.names == rank(checkpoint).names[::-1]
    assert [score for _, score in ranking.scores] == [-2.0, -1.5, -0.75, -0.5, -0.25, -0.125]
    assert ranking.criterion == "reversed gate"
    assert ranking.reversed().names == rank(checkpoint).names


def test_a_gate_below_zero_counts_as_closed_and_ties_go_by_depth():
    ranking = rank(gated(1.0, -3.0, 0.0, 1.0, -0.1, 0.5))
    assert ranking.names == tuple(BLOCKS[at] for at in (1, 2, 4, 5, 0, 3))
    assert ranking.up_to(0.0) == tuple(BLOCKS[at] for at in (1, 2, 4))


def test_a_gates_size_is_compared_as_it_is_stored():
    close = torch.tensor(0.1), torch.nextafter(torch.tensor(0.1), torch.tensor(1.0))
    checkpoint = gated(1, 1, 1, 1, 1, 1)
    for name, k in zip(BLOCKS[:2], reversed(close), strict=True):
        checkpoint = with_gates_at(checkpoint, float(k), [name])
    assert rank(checkpoint).names[:2] == (BLOCKS[1], BLOCKS[0])


def test_a_threshold_takes_what_is_at_most_as_high():
    ranking = Ranking("gate", (("a", 0.1), ("b", 0.2), ("c", 0.3)))
    assert [ranking.up_to(at) for at in (0.0, 0.1, 0.2, 0.25, 1.0)] == [
        (),
        ("a",),
        ("a", "b"),
        ("a", "b"),
        ("a", "b", "c"),
    ]


def test_a_threshold_that_is_no_number_is_refused():
    with pytest.raises(PlanError, match="the threshold is nan: expected a number"):
        rank(gated(1.0, 0.9, 0.8, 0.7, 0.6, 0.5)).up_to(math.nan)


def test_where_scores_go_up_and_down_a_threshold_takes_all_up_to_the_last_that_is_as_low():
    ranking = Ranking("greedy", (("a", 0.2), ("b", 0.1), ("c", 0.3), ("d", 0.15), ("e", 0.4)))
    assert [len(ranking.up_to(at)) for at in (0.0, 0.1, 0.15, 0.3, 0.4)] == [0, 2, 4, 4, 5]
    assert ranking.up_to(0.1) == ("a", "b")


@pytest.mark.parametrize("ordered", [False, True])
def test_scores_are_sorted_unless_they_are_an_order(monkeypatch, ordered):
    given = dict(zip(BLOCKS[::-1], (0.5, 0.1, 0.5, 0.1, 0.0, 0.5), strict=True))
    criterion = Criterion(lambda *_: given, "nothing", "made up", ordered)
    monkeypatch.setitem(CRITERIA, "made-up", criterion)
    ranking = rank(draw("resnet14"), "made-up")
    expected = BLOCKS[::-1] if ordered else [BLOCKS[at] for at in (1, 2, 4, 0, 3, 5)]
    assert ranking.names == tuple(expected)
    assert dict(ranking.scores) == given
    saved = dict(zip(BLOCKS, (10.0, 1.0, 0.0, 1.0, 1.0, 2.0), strict=True))
    divided = rank(draw("resnet14"), "made-up", saved=saved)
    if ordered:
        assert divided == ranking
    else:
        assert divided.names == tuple(BLOCKS[at] for at in (1, 0, 4, 5, 3, 2))
        assert dict(divided.scores)[BLOCKS[0]] == pytest.approx(0.05)


def test_only_blocks_that_can_give_something_up_are_ranked():
    checkpoint = remove(gated(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), ["layer1.0", "layer2.0"])
    checkpoint = remove_shortcuts(checkpoint, ["layer3.1"])
    for by in ("gate", "depth", "random"):
        assert sorted(rank(checkpoint, by).names) == ["layer1.1", "layer2.1", "layer3.0"]


def test_by_depth_the_last_block_goes_first():
    ranking = rank(draw("resnet14"), "depth")
    assert ranking.names == tuple(BLOCKS[::-1])
    assert [score for _, score in ranking.scores] == [0, 1, 2, 3, 4, 5]


def test_a_random_order_follows_its_seed_and_nothing_else():
    checkpoint = draw("resnet14")
    state = random.getstate()
    orders = [rank(checkpoint, "random", seed=seed).names for seed in range(20)]
    assert random.getstate() == state
    random.seed(5)
    assert [rank(checkpoint, "random", seed=seed).names for seed in range(20)] == orders
    assert all(sorted(order) == BLOCKS for order in orders)
    assert len({order[0] for order in orders}) == 6  # each block is the first one some time
    assert rank(checkpoint, "random").names == orders[0]
    positions = list(range(6))  # as every release has drawn them
    random.Random(3).shuffle(positions)
    assert [orders[3].index(name) for name in BLOCKS] == positions


def test_the_seed_does_not_touch_the_other_criteria():
    checkpoint = gated(0.5, 1.5, 0.25, 0.75, 2.0, 0.125)
    for by in ("gate", "depth"):
        assert rank(checkpoint, by, seed=1) == rank(checkpoint, by, seed=2)


def test_plans_are_taken_from_both_ends():
    ranking = rank(draw("resnet14"), "depth")
    assert ranking.first(0) == ranking.last(0) == ()
    assert ranking.first(2) == ("layer3.1", "layer3.0")
    assert ranking.last(2) == ("layer1.0", "layer1.1")
    assert ranking.first(6) == ranking.last(6)[::-1] == ranking.names


@pytest.mark.parametrize("end", ["first", "last"])
@pytest.mark.parametrize("count", [7, -1, 100])
def test_more_blocks_than_there_are_cannot_be_asked_for(end, count):
    message = rf"cannot remove {count} blocks: gated-resnet14 has only 6 removable ones \(.*"
    with pytest.raises(PlanError, match=message + ", ".join(map(re.escape, BLOCKS))):
        getattr(rank(gated(1, 2, 3, 4, 5, 6)), end)(count)


def test_many_blocks_are_named_by_their_ends():
    with pytest.raises(PlanError, match=r"27 removable ones \(layer3\.8, .*, …, .*layer1\.0\)$"):
        rank(Checkpoint(draw("resnet56").network, {}), "depth").first(28)


def test_without_gates_there_is_no_ranking_by_gate():
    message = r"cannot rank by gate: resnet14 has no gate in layer1\.0, .*; learn gates first, or "
    with pytest.raises(PlanError, match=message + "rank by magnitude or .*random or depth$"):
        rank(draw("resnet14"))


def test_folded_gates_still_rank_their_blocks():
    checkpoint = gated(0.5, 1.5, -0.25, 0.75, 2.0, 0.125)
    assert rank(fold_gates(checkpoint)).scores == rank(checkpoint).scores
    fewer = remove(fold_gates(checkpoint), ["layer2.0"])
    assert rank(fewer).scores == rank(remove(checkpoint, ["layer2.0"])).scores


@pytest.mark.parametrize("k", [float("nan"), float("inf"), float("-inf")])
def test_a_gate_that_is_no_finite_number_is_refused_by_name(k):
    with pytest.raises(
        CheckpointError, match=r"not finite: .*layer1\.1 \(k = (nan|-?inf)\); learn them again"
    ):
        rank(gated(1.0, k, 1.0, 1.0, 1.0, 1.0))


def test_an_unknown_criterion_is_refused():
    with pytest.raises(
        PlanError, match=f"unknown criterion 'taste': expected {', '.join(CRITERIA)}$"
    ):
        rank(draw("resnet8"), "taste")


def test_ranking_takes_and_gives_names_of_the_network():
    checkpoint = draw("gated-torchvision:mobilenet_v2", input_shape=(3, 64, 64))
    assert sorted(rank(checkpoint).names) == sorted(removable(checkpoint.network))
