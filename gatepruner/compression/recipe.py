"""The recipe of a compression, as a value; torch is not imported here."""

from __future__ import annotations

from dataclasses import dataclass, field

from gatepruner.learning.recipes import FINE_TUNING, GateRecipe, Recipe


@dataclass(frozen=True)
class CompressionRecipe:
    """How a network is compressed.

    Attributes:
        gating: how gates are learned; the goal replaces the number of blocks and their cost.
        tuning: how the smaller network is fine-tuned; `None` skips fine-tuning.
        gate_images: most training images to learn gates from.
        recalibrate: training images to recalibrate batch norm on; 0 skips recalibration.
    """

    gating: GateRecipe = field(default_factory=GateRecipe)
    tuning: Recipe | None = FINE_TUNING
    gate_images: int = 10_000
    recalibrate: int = 2000
