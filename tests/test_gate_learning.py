"""How gates are learned, against the same written plainly, which shares nothing with it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from conftest import bright_images, drawn
from torch import Tensor, nn

from gatepruner.images.images import Images
from gatepruner.learning.gates import GateRecipe, learn_gates
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.meter import savings

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
MEAN, STD = 0.5, 0.25
NOTES = {
    channels: {"normalize": {"mean": [MEAN] * channels, "std": [STD] * channels}}
    for channels in (1, 3)
}
STILL = GateRecipe(  # nothing moves, and every step is on the same images
    warmup=1,
    steps=1,
    batch_size=16,
    learning_rate=1e-30,
    norm_learning_rate=1e-30,
    labels=True,
    mirror=False,
)


def gated(name: str = "gated-resnet14") -> Checkpoint:
    """A small network whose gates, scales and shifts are all different."""
    channels = 1 if "-fc" in name else 3
    network = Network.named(name, num_classes=4, input_shape=(channels, 8, 8))
    weights = drawn(network.initial_weights(0))
    return Checkpoint(network, MappingProxyType(weights), NOTES[channels])


def learn(whole: Checkpoint, data: Images, recipe: GateRecipe) -> Checkpoint:
    return learn_gates(whole, data, recipe, device="cpu")


def records_of(learned: Checkpoint, field: str) -> list:
    return [record[field] for record in learned.path.records]


def with_gates(whole: Checkpoint, gates: Mapping[str, float]) -> Checkpoint:
    keys = {whole.network.gate_key(name): torch.tensor(gate) for name, gate in gates.items()}
    return replace(whole, weights=MappingProxyType({**whole.weights, **keys}))


def on_batch_statistics(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        layer.train(isinstance(layer, BATCH_NORM))
    return module


def normalised(pixels: Tensor) -> Tensor:
    return (pixels / 255 - MEAN) / STD


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()


def divergence(logits: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Kullback and Leibler's, of softened probabilities, times the temperature squared."""
    wanted, found = (known / temperature).softmax(1), (logits / temperature).softmax(1)
    return temperature**2 * (wanted * (wanted.log() - found.log())).sum(1).mean()


# ------------------------------------------------------------------------- all of it, step by step


class Plainly:
    """Every image in every step; a gate that is held at zero takes its block away."""

    def __init__(self, whole: Checkpoint, data: Images, recipe: GateRecipe) -> None:
        self.recipe, self.names = recipe, whole.network.edits.gated
        self.cost = dict.fromkeys(self.names, 1.0)
        if recipe.cost != "none":
            saved = savings(whole.network, recipe.cost)
            mean = sum(saved.values()) / len(saved)
            self.cost = {name: saved[name] / mean for name in self.names}
        self.images, self.labels = normalised(data.pixels), data.labels
        with torch.no_grad():
            self.known = whole.build().eval()(self.images)
        self.module = on_batch_statistics(whole.build())
        self.parameters = dict(self.module.named_parameters())
        self.gates = {name: self.parameters[whole.network.gate_key(name)] for name in self.names}
        self.norms = [
            parameter
            for layer in self.module.modules()
            if isinstance(layer, BATCH_NORM)
            for parameter in layer.parameters()
        ]
        self.moments: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self.steepness = dict.fromkeys(self.names, 0.0)
        self.gone: list[str] = []
        self.done = 0

    def adam(self, parameter: Tensor, slope: Tensor, rate: float) -> None:
        """Kingma and Ba's step, with decays of 0.9 and 0.99."""
        first, second = self.moments.get(parameter, (torch.zeros(()), torch.zeros(())))
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        self.moments[parameter] = (first, second)
        first, second = first / (1 - 0.9**self.done), second / (1 - 0.99**self.done)
        parameter.data -= rate * first / (second.sqrt() + 1e-8)

    def step(self) -> float:
        logits, recipe = self.module(self.images), self.recipe
        loss = (
            cross_entropy(logits, self.labels)
            if recipe.labels
            else divergence(logits, self.known, recipe.temperature)
        )
        left = [name for name in self.names if name not in self.gone]
        gates = [self.gates[name] for name in left]
        slopes = torch.autograd.grad(loss, [*gates, *self.norms])
        self.done += 1
        for name, gate, slope in zip(left, gates, slopes[: len(gates)], strict=True):
            self.steepness[name] += 0.05 * (slope.item() ** 2 - self.steepness[name])
            penalty = recipe.penalty * self.cost[name] if gate > 0 else 0.0
            self.adam(gate, slope + penalty, recipe.learning_rate)
        for norm, slope in zip(self.norms, slopes[len(gates) :], strict=True):
            share = len(self.gone) / len(self.names)
            self.adam(norm, slope, recipe.norm_learning_rate * share)
        return loss.item()

    def scores(self) -> dict[str, float]:
        return {
            name: max(gate.item(), 0.0) ** 2 * self.steepness[name] / self.cost[name]
            for name, gate in self.gates.items()
            if name not in self.gone
        }

    def remove(self) -> tuple[str, float]:
        scores = self.scores()
        name = min(scores, key=scores.__getitem__)
        self.gone.append(name)
        self.gates[name].data.zero_()
        return name, scores[name]


RECIPES = {
    "gates alone": GateRecipe(norm_learning_rate=0.0, labels=True),
    "labels": GateRecipe(labels=True),
    "logits": GateRecipe(),
    "logits, cold": GateRecipe(temperature=1.0),
    "cost": GateRecipe(labels=True, cost="params", penalty=0.5),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_the_path_is_that_of_the_plain_way(recipe):
    recipe = replace(recipe, warmup=3, steps=3, batch_size=16, blocks=4, mirror=False)
    whole, data = gated(), bright_images(16, (3, 8, 8))
    learned = learn(whole, data, recipe)
    plainly = Plainly(whole, data, recipe)
    for _ in range(recipe.warmup):
        plainly.step()
    for record, state in zip(learned.path.records, learned.path.removals, strict=True):
        name, score = plainly.remove()
        losses = [plainly.step() for _ in range(recipe.steps)]
        assert record["block"] == state.block == name
        assert record["score"] == pytest.approx(score, rel=1e-2)
        assert record["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)
        for key in state.weights.keys() & plainly.parameters.keys():
            found, wanted = state.weights[key], plainly.parameters[key].detach()
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4, msg=key)


# ------------------------------------------------------------------- one by one, nothing moving


def test_the_order_goes_by_the_square_of_a_gate():
    """A gate of 0.1 at a steep place, others of 1: without the square another block would go."""
    whole, data = gated(), bright_images(16, (3, 8, 8))
    gates = {**dict.fromkeys(whole.network.edits.gated, 1.0), "layer2.1": 0.1}
    whole = with_gates(whole, gates)
    plainly = Plainly(whole, data, STILL)
    plainly.step()
    squared = plainly.scores()
    power_one = {name: score / gates[name] for name, score in squared.items()}
    power_none = {name: score / gates[name] ** 2 for name, score in squared.items()}
    first, *others = (min(it, key=it.__getitem__) for it in (squared, power_one, power_none))
    assert first not in others
    learned = learn(whole, data, replace(STILL, blocks=1))
    assert records_of(learned, "block") == [first]
    assert records_of(learned, "score") == pytest.approx([squared[first]], rel=1e-3)


@pytest.mark.parametrize(("name", "blocks"), [("gated-resnet8", 3), ("gated-resnet14", 6)])
def test_norms_move_at_the_share_of_their_rate_that_is_the_share_of_blocks_gone(name, blocks):
    """Adam's first step is as long as the rate, however steep the loss is."""
    whole, data = gated(name), bright_images(16, (3, 8, 8))
    recipe = replace(STILL, warmup=0, blocks=1, norm_learning_rate=0.06)
    state = learn(whole, data, recipe).path.removals[0].weights
    norms = [key for key in state if key.endswith((".weight", ".bias"))]
    moved = torch.cat([(state[key] - whole.weights[key]).abs() for key in norms])
    assert len(moved) > 100
    assert moved.max().item() == pytest.approx(0.06 / blocks, rel=1e-3)
    assert moved.median().item() == pytest.approx(0.06 / blocks, rel=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_logits_are_compared_at_the_temperature_of_the_recipe(temperature):
    whole, data = gated(), bright_images(16, (3, 8, 8))
    recipe = replace(STILL, labels=False, temperature=temperature)
    learned = learn(whole, data, recipe)
    plainly = Plainly(whole, data, recipe)
    plainly.step()
    for record in learned.path.records:
        plainly.remove()
        assert record["loss"] == pytest.approx(plainly.step(), rel=1e-3)


def ways_to_mirror(data: Images) -> list[Images]:
    """The images with none, some or all of them mirrored."""
    ways = []
    for flags in itertools.product([False, True], repeat=len(data)):
        flipped = torch.tensor(flags).view(-1, 1, 1, 1)
        ways.append(replace(data, pixels=torch.where(flipped, data.pixels.flip(3), data.pixels)))
    return ways


@pytest.mark.parametrize(
    ("name", "mirror"),
    [("gated-resnet14", True), ("gated-resnet14", False), ("gated-residual-fc8", True)],
)
def test_images_in_colour_are_mirrored_one_by_one_at_random_where_that_is_asked_for(name, mirror):
    """Each recorded loss is that of one of the sixteen ways to mirror four images."""
    whole = gated(name)
    data = bright_images(4, whole.network.base.input_shape)
    learned = learn(whole, data, replace(STILL, batch_size=4, mirror=mirror))
    found = records_of(learned, "loss")
    taken = []
    for count, loss in enumerate(found, start=1):
        gone = dict.fromkeys(records_of(learned, "block")[:count], 0.0)
        module = on_batch_statistics(with_gates(whole, gone).build())
        losses = [
            cross_entropy(module(normalised(it.pixels)), it.labels).item()
            for it in ways_to_mirror(data)
        ]
        apart = [abs(it - loss) for it in losses]
        assert min(apart) < 1e-4 * loss
        taken.append(apart.index(min(apart)))
    if mirror and len(data.pixels[0]) == 3:
        assert len(set(taken)) > 2
        assert set(taken) - {0, 15}  # neither none nor all
    else:
        assert set(taken) == {0}
