"""Recipes: how a network learns, as values that check themselves.

The command line takes its options, their defaults and their help from these classes, so torch is
not imported here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, get_args, get_type_hints

from gatepruner.errors import TrainingError
from gatepruner.measuring.engines import ENGINES

COSTS = ("none", "params", "macs", "latency")
LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}  # of fresh weights
FINE_TUNING_RATES = {"sgd": 0.02, "adam": 1e-4, "adamw": 1e-4}
FINE_TUNING_BATCH = 64  # images per step, below which the rate of SGD falls with the batch
SCHEDULES = ("onecycle", "step", "cosine")
MATCHES = ("features", "logits", "both")
STATISTICS = ("batch", "kept")
UNITS = ("blocks", "channels", "both")
AMP = ("auto", "off", "bf16")

CHOICES = {
    "amp": AMP,
    "cost": COSTS,
    "engine": tuple(ENGINES),
    "match": MATCHES,
    "optimizer": tuple(LEARNING_RATES),
    "schedule": SCHEDULES,
    "statistics": STATISTICS,
    "units": UNITS,
}
LEAST = {"blocks": 1, "warmup": 0, "steps": 1, "epochs": 1, "latency_batch": 1, "threads": 1}
LEAST |= {"batch_size": 2, "micro_batch_size": 2}  # batch norm needs at least two images
FROM_0 = ("norm_learning_rate", "penalty", "weight_decay", "gate_learning_rate", "gate_penalty")
ABOVE_0 = ("learning_rate", "temperature", "initial_gate")  # a gate of 0 has no gradient
SHARES = ("distillation",)
MULTIPLES = range(1, 33)
KINDS = {  # of values, by the type of a field; integers of NumPy could not be saved as JSON
    int: ((int,), "an int"),
    float: ((float, int), "a float"),
    str: ((str,), "a str"),
    bool: ((bool,), "True or False"),
}
SEEDS = range(-(2**63), 2**63)  # that every generator takes
HOW = ("amp", "micro_batch_size")  # how to compute, not what: a resumed run may change it
EPOCHS, STEPS = 10, 400  # at least, where no number of epochs is given


class _Checked:
    """A recipe that checks its fields."""

    micro_batch_size: int | None

    def __post_init__(self) -> None:
        types = _types(type(self))
        problems = (
            _mistyped(name, value, types[name]) or _problem(name, value)
            for name, value in vars(self).items()
        )
        if text := "; ".join(filter(None, problems)):
            raise TrainingError(text)

    @property
    def lasting(self) -> dict[str, Any]:
        """The fields that must stay the same when a run is resumed, also on another machine."""
        return {name: value for name, value in vars(self).items() if name not in HOW}

    def at_once(self, usual: int) -> int:
        """How many images pass at once where so many are usual, with or without gradients."""
        return min(usual, self.micro_batch_size or usual)


def refuse_seed(seed: int) -> None:
    """Raise a `TrainingError` if a seed is beyond those that generators take."""
    if text := _problem("seed", seed):
        raise TrainingError(text)


def _types(recipe: type[_Checked]) -> Mapping[str, tuple[type, ...]]:
    """The types that the fields of a kind of recipe take."""
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(recipe).items()}


def _mistyped(name: str, value: Any, types: tuple[type, ...]) -> str | None:
    """What is wrong with the type of a field of a recipe, if anything."""
    if value is None and NoneType in types:
        return None
    kinds, words = KINDS[types[0]]
    if isinstance(value, kinds) and isinstance(value, bool) == (bool in kinds):
        return None
    return f"{name} is {value!r}: expected {words}"


def _problem(name: str, value: Any) -> str | None:
    """What is wrong with a field of a recipe, if anything; a value of `None` is a default."""
    if value is None:
        return None
    if name in CHOICES and value not in CHOICES[name]:
        return f"unknown {name} {value!r}: expected {', '.join(CHOICES[name])}"
    if name == "multiple" and value not in MULTIPLES:
        return f"multiple is {value}: expected a number of channels from 1 to 32"
    if name == "seed" and value not in SEEDS:
        return f"seed is {value}: expected a whole number from {SEEDS[0]} to {SEEDS[-1]}"
    if name in LEAST and value < LEAST[name]:
        return f"{name} is {value}: expected at least {LEAST[name]}"
    if name in FROM_0 and not 0 <= value < math.inf:
        return f"{name} is {value:g}: expected a number of at least 0"
    if name in ABOVE_0 and not 0 < value < math.inf:
        return f"{name} is {value:g}: expected a number above 0"
    if name in SHARES and not 0 <= value <= 1:
        return f"{name} is {value:g}: expected a number from 0 to 1"
    return None


@dataclass(frozen=True)
class GateRecipe(_Checked):
    """How gates are learned while the network's own weights stay frozen.

    Attributes:
        blocks: Blocks to remove along the path; by default all removable ones. With channels, as
            many removals of several units, each of which saves as much as a block does on average.
        units: What to remove: blocks, channels (slices of the inner widths of blocks) or both.
        multiple: Channels of a slice, since hardware likes multiples; 1 to 32.
        identity_only: Remove only blocks with an identity shortcut, and leave one in every stage,
            so that torchvision's own ResNet or timm's own class can load the result.
        warmup: Steps before the first removal.
        steps: Steps after each removal, for the other blocks to adapt.
        batch_size: Images per step.
        micro_batch_size: Images that pass through the network at once, in each process; their
            gradients are accumulated until the batch is complete. By default the whole batch.
        learning_rate: Learning rate of the gates (Adam).
        norm_learning_rate: Learning rate of the scales and shifts of normalisation layers, times
            the share of blocks removed so far; 0 freezes them.
        penalty: Weight of the sum of all open gates in the loss.
        cost: Cost of a block: none, params, macs or latency; weights the penalty and the order.
        latency_batch: Images per pass when latency is measured.
        engine: What runs the network when latency is measured.
        threads: CPU threads when latency is measured; by default as many as PyTorch uses.
        labels: Learn from labels instead of the whole network's answers.
        match: What to match of the whole network: features (of the last map), logits or both.
        temperature: Temperature that softens the logits for distillation.
        mirror: Mirror colour images at random.
        amp: Automatic mixed precision while learning: auto (bf16 where that is faster), off
            (float32) or bf16.
        seed: Seed of the order of images and of all other random numbers.
    """

    blocks: int | None = None
    units: str = "blocks"
    multiple: int = 8
    identity_only: bool = False
    warmup: int = 60
    steps: int = 50
    batch_size: int = 64
    micro_batch_size: int | None = None
    learning_rate: float = 0.02
    norm_learning_rate: float = 0.02
    penalty: float = 0.01
    cost: str = "none"
    latency_batch: int = 1
    engine: str = "eager"
    threads: int | None = None
    labels: bool = False
    match: str = "logits"
    temperature: float = 4.0
    mirror: bool = True
    amp: str = "auto"
    seed: int = 0

    @property
    def distillation(self) -> float:
        """The share of the distillation loss: all, unless gates are learned from labels."""
        return 0.0 if self.labels else 1.0


@dataclass(frozen=True)
class Recipe(_Checked):
    """How weights and gates are trained together.

    The one-cycle schedule is that of Smith and Topin, 2017, https://arxiv.org/abs/1708.07120; the
    cosine that of Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983. Gates have their
    own learning rate, since they hardly move at that of the weights. With a low initial gate, such
    as 0.1, a new network is close to the identity.

    Attributes:
        epochs: Passes over the training images; by default 10, or as many as take 400 steps if
            there are few images.
        batch_size: Images per step; an incomplete last batch of an epoch is dropped.
        micro_batch_size: Images that pass through the network at once, in each process; their
            gradients are accumulated until the batch is complete. By default the whole batch.
        optimizer: Optimizer: sgd (with Nesterov momentum of 0.9), adam or adamw.
        learning_rate: Peak learning rate of the weights; by default 0.1 for SGD and 0.001 for Adam,
            or 0.02 and 0.0001 in fine-tuning, where SGD's is proportional to batches below 64.
        schedule: Learning rate schedule: onecycle, step (divided by 10 after half and after three
            quarters of the steps) or cosine (from the peak to 0).
        statistics: Statistics of batch norm while learning: batch, or kept as they are.
        weight_decay: Weight decay of the weights; gates have none.
        gate_learning_rate: Peak learning rate of the gates.
        gate_penalty: Weight of the sum of all gates in the loss.
        augment: Shift images at random by up to an eighth of their width, and mirror colour ones.
        match: What to match of a teacher: features (of the last map), logits or both. Features
            need no labels.
        distillation: Share of the distillation loss if logits are matched; the rest is the
            cross-entropy with the labels.
        temperature: Temperature that softens the logits of network and teacher.
        initial_gate: Initial value k of every gate.
        amp: Automatic mixed precision while learning: auto (bf16 where that is faster), off
            (float32) or bf16.
        seed: Seed of initial weights, order of images, augmentation and dropout.
    """

    epochs: int | None = None
    batch_size: int = 128
    micro_batch_size: int | None = None
    optimizer: str = "sgd"
    learning_rate: float | None = None
    schedule: str = "onecycle"
    statistics: str = "batch"
    weight_decay: float = 5e-4
    gate_learning_rate: float = 0.05
    gate_penalty: float = 0.0
    augment: bool = True
    match: str = "features"
    distillation: float = 0.9
    temperature: float = 4.0
    initial_gate: float = 1.0
    amp: str = "auto"
    seed: int = 0

    def peak(self, *, fresh: bool) -> float:
        """The peak learning rate of the weights, fresh ones or ones to fine-tune.

        By default SGD's falls with batches that are smaller than usual in fine-tuning (Goyal et
        al., 2017, https://arxiv.org/abs/1706.02677).
        """
        if self.learning_rate is not None:
            return self.learning_rate
        if fresh:
            return LEARNING_RATES[self.optimizer]
        share = min(self.batch_size / FINE_TUNING_BATCH, 1.0) if self.optimizer == "sgd" else 1.0
        return FINE_TUNING_RATES[self.optimizer] * share

    @property
    def careful(self) -> Recipe:
        """The recipe for networks that SGD leads astray, such as large ones and transformers."""
        careful = replace(self, optimizer="adam", statistics="kept")
        return replace(careful, learning_rate=None, weight_decay=0.0)

    def passes(self, images: int) -> int:
        """The number of passes over this many training images."""
        return self.epochs or max(EPOCHS, math.ceil(STEPS / max(images // self.batch_size, 1)))


FINE_TUNING = Recipe(batch_size=FINE_TUNING_BATCH, schedule="cosine", gate_learning_rate=0.001)
"""The default recipe of `finetune` and of `compress`."""
