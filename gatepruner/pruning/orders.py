"""Comparing criteria: the removal curve of each, and the time its ranking took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gatepruner.errors import PlanError
from gatepruner.images.examples import Examples, Track
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.accuracy import mcnemar
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria import CRITERIA
from gatepruner.pruning.curve import Point, sweep
from gatepruner.pruning.ranking import Ranking, rank

NOISE = 0.05  # differences with at least this p-value are within noise


@dataclass(frozen=True)
class Order:
    """The removal order and curve of a criterion, for one or several seeds.

    Attributes:
        rankings: one for each seed.
        runs: the points of each ranking, all at the same numbers of blocks.
        seconds: time to compute one ranking, without learning gates.
        statistics: number of training images that networks were recalibrated on; 0 without
            recalibration.
    """

    rankings: tuple[Ranking, ...]
    runs: tuple[tuple[Point, ...], ...]
    seconds: float = 0.0
    statistics: int = 0

    @property
    def criterion(self) -> str:
        """The name of the criterion."""
        return self.rankings[0].criterion

    @property
    def points(self) -> tuple[Point, ...]:
        """The points of the first seed."""
        return self.runs[0]

    @property
    def label(self) -> str:
        """The criterion and how its networks were treated, for legends."""
        learned = "along the learned path" if self.rankings[0].learned else ""
        seeds = f"mean and range of {len(self.runs)} orders" if len(self.runs) > 1 else ""
        images = f"recalibrated on {self.statistics:,} images" if self.statistics else ""
        return ", ".join(part for part in (self.criterion, learned, seeds, images) if part)

    def accuracies(self, index: int) -> list[float]:
        """The accuracy of every run at the point `index`, as fractions of 1."""
        return [points[index].accuracy.accuracy for points in self.runs]

    def within_noise(self, other: Order, index: int) -> bool:
        """Whether every run is within noise of another order at the point `index`.

        By McNemar's test on the same images, against the other order's first run.
        """
        reference = other.points[index].accuracy
        return all(mcnemar(points[index].accuracy, reference) >= NOISE for points in self.runs)

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


def noun_of(orders: Sequence[Order]) -> str:
    """What is removed: blocks, or units if some of them are slices of inner widths."""
    return "unit" if any(order.rankings[0].noun == "unit" for order in orders) else "block"


def compare(
    checkpoint: Checkpoint,
    data: Examples,
    by: str | Sequence[str],
    *,
    training: Examples | None = None,
    statistics: Examples | None = None,
    counts: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    device: str | torch.device = "auto",
    batch_size: int = 128,
    normalization: Normalization | None = None,
    track: Callable[[str], Track] = lambda description: iter,
) -> Iterator[Order]:
    """Rank by several criteria and measure the removal curve of each.

    Several processes share the images, as in `rank` and `sweep`.

    Args:
        checkpoint: a network with its weights.
        data: labelled images to measure accuracy on; no criterion sees them.
        by: names of criteria, or one of them.
        training: training images, for the criteria that need them.
        statistics: training images to recalibrate every network on; see `sweep`.
        counts: numbers of blocks to remove; by default from none to all.
        seeds: for random criteria; the others use only the first.
        device: where to compute.
        batch_size: images per batch.
        normalization: replaces the one that the checkpoint records.
        track: maps a description to a wrapper of an iterable that shows progress.

    Yields:
        An order for each criterion, as soon as it is measured.

    Raises:
        PlanError: a criterion is unknown, or the gates it needs are missing.
        DataError: training images are missing, or images do not fit the network.
        ProcessError: the processes do different things.
    """
    how: Any = {"device": device, "batch_size": batch_size, "normalization": normalization}
    measure: Any = {**how, "counts": counts, "statistics": statistics}
    if not seeds:
        raise PlanError("no seed to compare orders with: expected at least one")
    for criterion in (by,) if isinstance(by, str) else by:
        start, progress = time.monotonic(), track(f"rank by {criterion}")
        random = criterion in CRITERIA and CRITERIA[criterion].random
        rankings = [
            rank(checkpoint, criterion, training, seed=seed, track=progress, **how)
            for seed in (seeds if random else seeds[:1])
        ]
        seconds = (time.monotonic() - start) / len(rankings)
        progress = track(f"remove by {criterion}")
        runs = [
            tuple(sweep(checkpoint, data, ranking, track=progress, **measure))
            for ranking in rankings
        ]
        images = len(statistics) if statistics is not None else 0
        yield Order(tuple(rankings), tuple(runs), seconds, images)
