"""A learned path: which part of it a plan takes, and what it says about gates."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import draw, removable

from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.path import NO_PATH, Path, Removal
from gatepruner.pruning.surgery import fold_gates, follow, remove

ORDER = ("layer2.1", "layer1.0", "layer3.1")


@pytest.fixture
def gated() -> Checkpoint:
    """A network with a path of three blocks: after each removal the gates left are another."""
    whole = draw("gated-resnet14", input_shape=(3, 8, 8))
    removals = []
    for index, block in enumerate(ORDER):
        left = whole.network.without(ORDER[: index + 1])
        weights = {left.gate_key(name): torch.tensor(1.5 + index) for name in left.edits.gated}
        removals.append(Removal(block, 0.25 * index, 2.0 - index, 0.5, 10 * index, weights))
    return replace(whole, path=Path(tuple(removals)))


def test_a_plan_takes_the_longest_beginning_of_the_path_that_it_holds(gated):
    blocks = removable(gated.network)
    for size in range(len(blocks) + 1):
        for plan in itertools.permutations(blocks, size):
            followed = [removal.block for removal in gated.path.followed(plan)]
            count = len(followed)
            assert followed == list(ORDER[:count])
            assert set(followed) <= set(plan)
            assert count == len(ORDER) or ORDER[count] not in plan
        if size == 3:
            break


def test_what_was_learned_is_that_of_the_last_removal_followed(gated):
    small = follow(gated, [ORDER[1], ORDER[0], "layer3.0"])
    assert set(small.gates.values()) == {2.5}
    assert follow(gated, ORDER[1:]).gates == remove(gated, ORDER[1:]).gates


def test_gates_are_those_at_removal_or_those_that_the_path_left(gated):
    known = gated.known_gates
    assert [known[block] for block in ORDER] == [0.0, 0.25, 0.5]
    assert {known[block] for block in known if block not in ORDER} == {3.5}
    small = fold_gates(follow(gated, ORDER[:2]))
    assert [small.known_gates[block] for block in ORDER] == [0.0, 0.25, 2.5]
    assert draw("gated-resnet14").known_gates == draw("gated-resnet14").gates


def test_records_and_tensors_make_the_path_again(gated):
    again = Path.of(gated.path.records, gated.path.tensors)
    assert again.records == gated.path.records
    assert again.tensors.keys() == gated.path.tensors.keys()
    assert all(again.tensors[key] is tensor for key, tensor in gated.path.tensors.items())
    assert Path.of([], {}) == NO_PATH


@pytest.mark.parametrize(
    ("records", "tensors", "error"),
    [
        ([], {"0/k": torch.ones(())}, ValueError),
        ([{"block": "a"}], {}, KeyError),
        ([3], {}, TypeError),
        ([{"block": "a", "gate": "x", "score": 0, "loss": 0, "step": 0}], {}, ValueError),
    ],
)
def test_what_is_no_path_is_refused(records, tensors, error):
    with pytest.raises(error):
        Path.of(records, tensors)
