"""Criteria as values: what a criterion needs, and a function that scores blocks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # listing the criteria does not import torch
    import torch

    from gatepruner.images.examples import Examples, Track
    from gatepruner.images.normalization import Normalization
    from gatepruner.networks.checkpoint import Checkpoint

    Scores = Callable[[Checkpoint, Sequence[str], "Evidence"], Mapping[str, float]]


@dataclass(frozen=True)
class Evidence:
    """What a criterion may use besides the checkpoint.

    Attributes:
        images: training images; not `None` if the criterion needs images.
        normalization: replaces the one that the checkpoint records.
        device: where to compute.
        batch_size: images per batch.
        seed: seed of a random order.
        track: wraps the steps, to show progress.
    """

    images: Examples | None = None
    normalization: Normalization | None = None
    device: str | torch.device = "auto"
    batch_size: int = 128
    seed: int = 0
    track: Track = iter


@dataclass(frozen=True)
class Criterion:
    """A way to score blocks.

    Attributes:
        scores: maps a checkpoint, names of blocks in the order of depth, and the evidence to a
            score for each name; blocks with low scores are removed first.
        needs: what the scores depend on besides the network and its weights.
        source: author, year and link of the source.
        ordered: whether the scores are already in the order of removal.
        random: whether the scores depend on the seed.
        passes: maps a number of blocks to about how often every image passes through the network.
        labels: whether the images need labels.
    """

    scores: Scores
    needs: Literal["nothing", "gates", "images"]
    source: str
    ordered: bool = False
    random: bool = False
    passes: Callable[[int], float] = lambda blocks: 0.0
    labels: bool = False


def late(place: str) -> Scores:
    """The function `FILE.NAME` of this folder, imported when it is first called."""

    def scores(
        checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence
    ) -> Mapping[str, float]:
        file, _, name = place.partition(".")
        function: Scores = getattr(importlib.import_module(f"{__package__}.{file}"), name)
        return function(checkpoint, names, evidence)

    return scores
