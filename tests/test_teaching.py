"""A teacher's answers that are kept are those that it would give again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import bright_images, drawn, signal_in_step

from gatepruner.learning import teaching
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import GateRecipe
from gatepruner.measuring import agreement
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

SHAPE, IMAGES = (3, 8, 8), 45
RECIPE = GateRecipe(warmup=5, steps=5, batch_size=8, blocks=3)  # 160 views of 45 images


@pytest.fixture
def whole() -> Checkpoint:
    network = Network.named("gated-resnet14", num_classes=4, input_shape=SHAPE)
    notes = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    return Checkpoint(network, drawn(network.initial_weights()), notes)


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """The images of every pass of the teacher."""
    counts: list[int] = []

    def counting(module, images, *rest, **options):
        if not torch.is_grad_enabled():
            counts.append(len(images))
        return agreement.answers(module, images, *rest, **options)

    monkeypatch.setattr("gatepruner.learning.learner.answers", counting)
    return counts


def learned(whole: Checkpoint, recipe: GateRecipe = RECIPE, shape=SHAPE, **options) -> Checkpoint:
    images = bright_images(IMAGES, shape)
    return learn_gates(whole, images, recipe, device="cpu", **options)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.path.records == other.path.records
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("match", ["logits", "features", "both"])
def test_gates_are_learned_as_if_the_teacher_were_asked_in_every_step(
    whole, passes, monkeypatch, match, mirror
):
    recipe = replace(RECIPE, match=match, mirror=mirror)
    found = learned(whole, recipe)
    assert sum(passes) == IMAGES * (1 + mirror) < 20 * 8
    monkeypatch.setattr(teaching, "MEMORY", 0)
    passes.clear()
    asked = learned(whole, recipe)
    assert passes == [8] * 20
    assert found.path.blocks == asked.path.blocks
    for key, tensor in asked.path.tensors.items():
        torch.testing.assert_close(found.path.tensors[key], tensor, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(whole, tmp_path, monkeypatch):
    uninterrupted = learned(whole)
    with monkeypatch.context() as patch:
        signal_in_step(patch, torch.optim.Adam, 13)
        with pytest.raises(KeyboardInterrupt):
            learned(whole, state=tmp_path / "it.state")
    assert_same(learned(whole, state=tmp_path / "it.state", resume=True), uninterrupted)


@pytest.mark.parametrize(
    ("case", "images"),
    [("views", 200), ("memory", IMAGES)],
)
def test_answers_are_not_kept_if_that_costs_more(whole, passes, monkeypatch, case, images):
    if case == "memory":
        monkeypatch.setattr(teaching, "MEMORY", 2 * IMAGES * 4 * 4 - 1)
    learn_gates(whole, bright_images(images, SHAPE), RECIPE, device="cpu")
    assert passes == [8] * 20


@pytest.mark.parametrize(
    ("least", "kept"), [((10, 1, 11, 4, None), True), ((10, 2, 20, 4, None), False)]
)
def test_answers_are_kept_if_fewer_are_computed_than_asked_for(least, kept):
    assert teaching.worth_keeping(*least) == kept
