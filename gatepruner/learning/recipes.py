"""Recipes: how gates are learned and networks trained, as values without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gatepruner.errors import TrainingError

COSTS = ("none", "params", "macs", "latency")


LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
NOT_NEGATIVE = (
    "learning_rate",
    "weight_decay",
    "gate_learning_rate",
    "gate_penalty",
    "distillation",
    "temperature",
    "initial_gate",
)
SCHEDULES = ("onecycle", "step", "cosine")


@dataclass(frozen=True)
class GateRecipe:
    """How gates are learned.

    Attributes:
        blocks: how many are to go; all that can by default.
        identity_only: whether only blocks with an identity shortcut may go: they vanish whole, and
            torchvision's stock ResNet can load what is left.
        warmup: steps before the first one goes.
        steps: steps in which the others adapt after each.
        batch_size: images in one step.
        learning_rate: of the gates (Adam).
        norm_learning_rate: of the scales and shifts of normalisation layers, times the share of
            the blocks that are gone; 0 leaves them.
        penalty: of every open gate, in the loss.
        cost: what a block costs, `"macs"`, `"params"`, `"latency"` or `"none"`: penalty and order
            are weighted by it.
        latency_batch: images in one pass when latency is measured.
        labels: whether to learn from labels; else from the whole network's own logits, so that
            images without labels will do.
        temperature: that logits are divided by when they are compared.
        mirror: whether images in colour are mirrored at random.
        seed: of all that is random.
    """

    blocks: int | None = None
    identity_only: bool = False
    warmup: int = 60
    steps: int = 50
    batch_size: int = 128
    learning_rate: float = 0.02
    norm_learning_rate: float = 0.02
    penalty: float = 0.01
    cost: str = "none"
    latency_batch: int = 1
    labels: bool = False
    temperature: float = 4.0
    mirror: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise TrainingError(f"unknown cost {self.cost!r}: expected {', '.join(COSTS)}")
        least = {"blocks": 1, "warmup": 0, "steps": 1, "batch_size": 2, "latency_batch": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise TrainingError(f"{name} is {value}: expected at least {low}")
        for name in ("learning_rate", "norm_learning_rate", "penalty", "temperature"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise TrainingError(f"{name} is {value}: expected a number from 0 up")
        for name in ("learning_rate", "temperature"):
            if getattr(self, name) == 0:
                raise TrainingError(f"{name} is 0: expected a number above 0")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the images.
        batch_size: images in one step; what is left at the end of an epoch is left out.
        optimizer: `"sgd"` (Nesterov momentum 0.9), `"adam"` or `"adamw"`.
        learning_rate: of the weights, at its peak; 0.1 for SGD, 0.001 for Adam by default.
        schedule: `"onecycle"` (Smith and Topin, 2017, https://arxiv.org/abs/1708.07120), or
            `"step"`: a tenth after half and again after three quarters of the steps, or
            `"cosine"`: from the peak to 0 (Loshchilov and Hutter, 2017,
            https://arxiv.org/abs/1608.03983).
        weight_decay: of the weights; gates are exempt.
        gate_learning_rate: of the gates, at its peak; at the weights' rate they hardly move.
        gate_penalty: weight of the sum of all gates in the loss.
        augment: shift by up to an eighth of the width, and mirror if in colour.
        distillation: share of the loss that a teacher gives, if there is one; labels give the
            rest.
        temperature: that both logits are divided by for it.
        initial_gate: k of fresh gates; at 0.1, say, a new network is near the identity.
        seed: of initial weights, order, augmentation and dropout.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float | None = None
    schedule: str = "onecycle"
    weight_decay: float = 5e-4
    gate_learning_rate: float = 0.05
    gate_penalty: float = 0.0
    augment: bool = True
    distillation: float = 0.9
    temperature: float = 4.0
    initial_gate: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in LEARNING_RATES:
            raise TrainingError(
                f"unknown optimizer {self.optimizer!r}: expected {', '.join(LEARNING_RATES)}"
            )
        if self.schedule not in SCHEDULES:
            raise TrainingError(
                f"unknown schedule {self.schedule!r}: expected {', '.join(SCHEDULES)}"
            )
        for name, least in (("epochs", 1), ("batch_size", 2)):  # batch norm needs two images
            if getattr(self, name) < least:
                raise TrainingError(f"{name} is {getattr(self, name)}: expected at least {least}")
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise TrainingError(f"{name} is {value}: expected a number from 0 up")
        for name in ("learning_rate", "temperature", "initial_gate"):  # 0 stays 0: see Gate
            if getattr(self, name) == 0:
                raise TrainingError(f"{name} is 0: expected a number above 0")
        if self.distillation > 1:
            raise TrainingError(f"distillation is {self.distillation}: expected at most 1")

    @property
    def peak(self) -> float:
        """The learning rate of the weights at its peak."""
        return self.learning_rate or LEARNING_RATES[self.optimizer]


FINE_TUNING = Recipe(schedule="cosine", learning_rate=0.02, gate_learning_rate=0.001)
