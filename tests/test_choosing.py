"""What a compression chooses on held-out images: the weights and the recipe of recovery."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Callers, bright_images, drawn, random_images, same
from test_agreement import SHAPE, made
from torch import Tensor, nn

from gatepruner.compression import steps
from gatepruner.compression.compress import compress
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.compression.record import Choice
from gatepruner.files.checkpoints import load
from gatepruner.learning.recipes import FINE_TUNING, GateRecipe
from gatepruner.learning.training import finetune
from gatepruner.measuring.agreement import agreement
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.norms import statistics
from gatepruner.pruning.goals import Goal
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import fold_gates, follow, remove

RECIPE = CompressionRecipe(
    GateRecipe(warmup=2, steps=2), replace(FINE_TUNING, epochs=2), trial=2
).fitted(40)


def compressed(folder: Path, recipe: CompressionRecipe = RECIPE, **options):
    train, held_out = bright_images(50, SHAPE).held_out(10, 0)
    chosen: dict[str, Choice] = {}

    def watch(event) -> None:
        if isinstance(event, Choice):
            chosen[event.what] = event

    given = {"test": held_out, "held_out": held_out, "device": "cpu", "watch": watch, **options}
    result = compress(made(), train, Goal("blocks", 2), recipe, folder=folder, **given)
    return result, chosen


def test_recovery_begins_with_the_state_nearest_to_the_whole_network(tmp_path):
    result, chosen = compressed(tmp_path)
    train, held_out = bright_images(50, SHAPE).held_out(10, 0)
    whole, gated = made(), load(tmp_path / "gated.pt")
    plan = rank(gated).first(2)
    learned, plain = fold_gates(follow(gated, plan)), remove(whole, plan)
    states = {
        "learned along the path": learned,
        "learned along the path, recalibrated": recalibrate(
            learned, train, device="cpu", whole=whole
        ),
        "the network's own": plain,
        "the network's own, recalibrated": recalibrate(plain, train, device="cpu", whole=whole),
    }
    found = {
        name: agreement(state, whole, held_out, device="cpu").distance
        for name, state in states.items()
    }
    assert chosen["weights"].gaps == pytest.approx(found)
    assert len(set(found.values())) == 4
    best = min(found, key=found.__getitem__)
    assert same(load(tmp_path / "chosen.pt"), states[best])
    assert result.configuration["chosen weights"] == best
    assert "recalibration" not in result.configuration  # the network has batch norm


@pytest.mark.parametrize(("rate", "optimizer"), [(1e6, "adam"), (0.02, "sgd")])
def test_the_recipe_is_the_better_one_of_two_trials(tmp_path, rate, optimizer):
    recipe = replace(RECIPE, tuning=replace(RECIPE.tuning, learning_rate=rate), trial=6)
    result, chosen = compressed(tmp_path, recipe)
    assert chosen["recipe"].best.startswith(optimizer)
    assert result.checkpoint.notes["recipe"]["optimizer"] == optimizer
    assert result.configuration["fine-tuning, optimizer"] == optimizer
    assert result.configuration["fine-tuning, learning rate"] == (
        1e-4 if optimizer == "adam" else rate
    )


def test_a_resumed_compression_does_not_try_again(tmp_path, monkeypatch):
    result, _ = compressed(tmp_path)
    steps_file = tmp_path / "steps.json"
    document = json.loads(steps_file.read_text())
    assert document["steps"].pop()["name"] == "fine-tuned"
    steps_file.write_text(json.dumps(document))
    monkeypatch.setattr(steps, "_tried", None)  # an error if it is called
    again, chosen = compressed(tmp_path, resume=True)
    assert not chosen
    assert same(again.checkpoint, result.checkpoint)


class Functional(Callers):
    """Batch norm as a function that reads `training`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        x = F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training
        )
        return super().forward(x)


def tuned(checkpoint: Checkpoint, which: str) -> Checkpoint:
    recipe = replace(FINE_TUNING, epochs=2, batch_size=16, statistics=which)
    return finetune(checkpoint, bright_images(50, SHAPE), recipe, teacher=made(), device="cpu")


def test_statistics_are_kept_while_weights_learn():
    start = remove(made(), made().network.removable[:2])
    keys = [key for pair in statistics(start.build()).values() for key in pair]
    kept, batch = tuned(start, "kept"), tuned(start, "batch")
    assert keys
    assert all(torch.equal(kept.weights[key], start.weights[key]) for key in keys)
    assert not any(torch.equal(batch.weights[key], start.weights[key]) for key in keys)
    others = [key for key in start.weights if key.endswith("conv1.weight")]
    assert all(not torch.equal(kept.weights[key], start.weights[key]) for key in others)


def test_statistics_of_a_function_are_kept_too():
    module = Functional()
    module.load_state_dict(drawn(module.state_dict()))
    start = Checkpoint.of(module.eval(), (3, 8, 8))
    recipe = replace(FINE_TUNING, epochs=1, batch_size=16, statistics="kept", match="logits")
    images = random_images(32, (3, 8, 8), start.network.num_classes, 4)
    kept = finetune(start, images, recipe, device="cpu")
    batch = finetune(start, images, replace(recipe, statistics="batch"), device="cpu")
    for key in ("norm.running_mean", "norm.running_var"):
        assert torch.equal(kept.weights[key], start.weights[key])
        assert not torch.equal(batch.weights[key], start.weights[key])
