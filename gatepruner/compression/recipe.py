"""The recipe of a compression, as a value; torch is not imported here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gatepruner.learning.recipes import FINE_TUNING, GateRecipe, Recipe

BATCHES = 6  # at least, of all training images
LEAST_BATCH = 16  # images: batch norm needs some


@dataclass(frozen=True)
class CompressionRecipe:
    """How a network is compressed.

    Attributes:
        gating: how gates are learned; the goal replaces the number of blocks and their cost.
        tuning: how the smaller network is fine-tuned; `None` skips fine-tuning.
        gate_images: greatest number of training images to learn gates from.
        recalibrate: training images to recalibrate batch norm on; 0 skips recalibration.
        hold_out: greatest number of training images to hold out if none are given, at most a fifth
            of them; with 0, nothing is chosen and the last state is kept.
        trial: steps for which `tuning` and `tuning.careful` are both tried before the better one on
            the held-out images is carried out; 0 skips the trial.
    """

    gating: GateRecipe = field(default_factory=GateRecipe)
    tuning: Recipe | None = FINE_TUNING
    gate_images: int = 10_000
    recalibrate: int = 2000
    hold_out: int = 1000
    trial: int = 50

    @property
    def most_images(self) -> int:
        """The most images in a batch."""
        return max(self.gating.batch_size, self.tuning.batch_size if self.tuning else 0)

    def at_once(self, usual: int) -> int:
        """How many images pass at once where so many are usual, in every step.

        Recalibration keeps within its memory by itself.
        """
        stages = [self.gating, *([self.tuning] if self.tuning else [])]
        return min(stage.at_once(usual) for stage in stages)

    def held_out_of(self, images: int) -> int:
        """The number of images to hold out of this many training images if none are given."""
        return min(self.hold_out, images // 5)

    def fitted(self, images: int) -> CompressionRecipe:
        """The recipe with batches small enough for this many training images."""
        most = max(images // BATCHES, LEAST_BATCH)
        gating = replace(self.gating, batch_size=min(self.gating.batch_size, most))
        if self.tuning is None:
            return replace(self, gating=gating)
        tuning = replace(self.tuning, batch_size=min(self.tuning.batch_size, most))
        return replace(self, gating=gating, tuning=tuning)
