"""What a criterion is: what it needs, and a function from a checkpoint to a score per block."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the names of the criteria are known without torch
    import torch

    from gatepruner.images.images import Images, Track
    from gatepruner.images.normalization import Normalization
    from gatepruner.networks.checkpoint import Checkpoint

    Scores = Callable[[Checkpoint, Sequence[str], "Evidence"], Mapping[str, float]]


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at besides the checkpoint.

    Attributes:
        images: training images; there whenever the criterion needs images.
        normalization: instead of the one that the checkpoint records.
        device: where to compute.
        batch_size: images in one pass.
        seed: of a random order.
        track: wraps the steps, to show progress.
    """

    images: Images | None = None
    normalization: Normalization | None = None
    device: str | torch.device = "auto"
    batch_size: int = 128
    seed: int = 0
    track: Track = iter


@dataclass(frozen=True)
class Criterion:
    """A way to score blocks.

    Attributes:
        scores: maps a checkpoint, the names of its removable blocks in the order of depth and
            the evidence to a score for each name; the lower the score, the sooner the block goes.
        needs: what the scores are computed from, apart from the network and its weights.
        source: where the criterion comes from, with author, year and link.
        ordered: whether the mapping is already in the order in which the blocks go.
        random: whether it depends on the seed.
    """

    scores: Scores
    needs: Literal["nothing", "gates", "images"]
    source: str
    ordered: bool = False
    random: bool = False


def late(place: str) -> Scores:
    """The function at `FILE.NAME` of this folder, imported when it is first called."""

    def scores(
        checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence
    ) -> Mapping[str, float]:
        file, _, name = place.partition(".")
        function: Scores = getattr(importlib.import_module(f"{__package__}.{file}"), name)
        return function(checkpoint, names, evidence)

    return scores
