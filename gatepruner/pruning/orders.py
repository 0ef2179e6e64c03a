"""Orders of removal side by side: one curve for each criterion, with what it took to find it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gatepruner.images.images import Images, Track
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.accuracy import mcnemar
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria import CRITERIA
from gatepruner.pruning.curve import Point, sweep
from gatepruner.pruning.ranking import Ranking, rank

NOISE = 0.05  # differences at least as probable as this between equals are within noise


@dataclass(frozen=True)
class Order:
    """The order of a criterion and its removal curve, for one seed or several.

    Attributes:
        rankings: the blocks, least important first, for each seed.
        runs: the points of each, all at the same numbers of blocks.
        seconds: that a ranking took to find; what was learned before is not in it.
        statistics: training images that every network was recalibrated on; 0 if none was.
    """

    rankings: tuple[Ranking, ...]
    runs: tuple[tuple[Point, ...], ...]
    seconds: float = 0.0
    statistics: int = 0

    @property
    def criterion(self) -> str:
        """By what the blocks are ranked."""
        return self.rankings[0].criterion

    @property
    def points(self) -> tuple[Point, ...]:
        """The points of the first seed."""
        return self.runs[0]

    @property
    def label(self) -> str:
        """The criterion, and how its networks were treated, as a legend tells it."""
        learned = "along the learned path" if self.rankings[0].learned else ""
        seeds = f"mean and range of {len(self.runs)} orders" if len(self.runs) > 1 else ""
        images = f"recalibrated on {self.statistics:,} images" if self.statistics else ""
        return ", ".join(part for part in (self.criterion, learned, seeds, images) if part)

    def accuracies(self, index: int) -> list[float]:
        """Accuracy at one point of every run, as fractions of 1."""
        return [points[index].accuracy.accuracy for points in self.runs]

    def within_noise(self, other: Order, index: int) -> bool:
        """Whether no run differs from another order's first by more than chance may explain.

        By McNemar's test on the same images.
        """
        theirs = other.points[index].accuracy
        return all(mcnemar(points[index].accuracy, theirs) >= NOISE for points in self.runs)

    def to_json(self) -> dict[str, Any]:
        """The order as plain JSON; accuracies are fractions of 1."""
        return {
            "criterion": self.criterion,
            "label": self.label,
            "learned": self.rankings[0].learned,
            "seconds": self.seconds,
            "statistics": self.statistics,
            "rankings": [[list(pair) for pair in ranking.scores] for ranking in self.rankings],
            "runs": [[point.to_json() for point in points] for points in self.runs],
        }


def compare(
    checkpoint: Checkpoint,
    data: Images,
    by: Sequence[str],
    *,
    training: Images | None = None,
    statistics: Images | None = None,
    counts: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    device: str | torch.device = "auto",
    batch_size: int = 128,
    normalization: Normalization | None = None,
    track: Callable[[str], Track] = lambda description: iter,
) -> Iterator[Order]:
    """Rank by every criterion, and measure accuracy against blocks removed in its order.

    Args:
        checkpoint: a network with its weights.
        data: labelled images to measure on; nothing is learned from them.
        by: names of criteria.
        training: images that criteria learn from, where they need some.
        statistics: images that every network is recalibrated on, as for `sweep`.
        counts: numbers of blocks to remove; from none to all by default.
        seeds: of the random order; other criteria have one order alone.
        device: where to compute.
        batch_size: images at a time.
        normalization: instead of the one that the checkpoint records.
        track: makes, from a description, a wrapper of an iterable that shows progress.

    Yields:
        An order for each criterion, as soon as it is measured.

    Raises:
        PlanError: a criterion is unknown, or lacks what it needs.
        DataError: images do not fit the network.
    """
    how: Any = {"device": device, "batch_size": batch_size, "normalization": normalization}
    for criterion in by:
        start = time.monotonic()
        chosen = seeds if criterion in CRITERIA and CRITERIA[criterion].random else seeds[:1]
        shown = track(f"rank by {criterion}")
        rankings = [
            rank(checkpoint, criterion, training, seed=seed, track=shown, **how) for seed in chosen
        ]
        seconds = (time.monotonic() - start) / len(rankings)
        measure: Any = {**how, "counts": counts, "statistics": statistics}
        runs = tuple(
            tuple(
                sweep(checkpoint, data, ranking, track=track(f"remove by {criterion}"), **measure)
            )
            for ranking in rankings
        )
        used = len(statistics) if statistics is not None else 0
        yield Order(tuple(rankings), runs, seconds, used)
