"""How a compression is carried out, as a value; torch is not imported here."""

from __future__ import annotations

from dataclasses import dataclass, field

from gatepruner.learning.recipes import FINE_TUNING, GateRecipe, Recipe


@dataclass(frozen=True)
class CompressionRecipe:
    """How a network is compressed.

    Attributes:
        gating: how gates are learned; the goal decides how many blocks, and what they cost.
        tuning: how the smaller network is fine-tuned; `None` leaves that out.
        gate_images: training images to learn gates from, at most.
        recalibrate: training images to estimate statistics of batch norm from; 0 leaves that out.
    """

    gating: GateRecipe = field(default_factory=GateRecipe)
    tuning: Recipe | None = FINE_TUNING
    gate_images: int = 10_000
    recalibrate: int = 2000
