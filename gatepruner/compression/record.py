"""What a compression has done: a record of every step, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gatepruner.measuring.accuracy import Accuracy
from gatepruner.measuring.cost import count
from gatepruner.measuring.latency import Latency
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network


@dataclass(frozen=True)
class StepRecord:
    """What a step of a compression left.

    Attributes:
        name: of the step.
        accuracy: fraction of the test images that are right.
        low: lower end of its 95 % interval.
        high: upper end.
        images: test images.
        blocks: blocks that have their branch.
        params: parameters.
        macs: multiply-accumulates for one image.
        seconds: that the step took, its evaluation left out.
        latency: median, in seconds; measured at the end, all networks in turns.
        latency_low: first quartile.
        latency_high: third quartile.
        latency_rounds: rounds that it is the median of.
        shown: whether figures show the step.
    """

    name: str
    accuracy: float
    low: float
    high: float
    images: int
    blocks: int
    params: int
    macs: int
    seconds: float
    latency: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None
    latency_rounds: int | None = None
    shown: bool = True

    @classmethod
    def of(
        cls, name: str, network: Network, accuracy: Accuracy, seconds: float, *, shown: bool
    ) -> StepRecord:
        """The record of a step that made a network."""
        cost, (low, high) = count(network), accuracy.interval
        return cls(
            name=name,
            accuracy=accuracy.accuracy,
            low=low,
            high=high,
            images=accuracy.images,
            blocks=network.depth,
            params=cost.params,
            macs=cost.macs,
            seconds=seconds,
            shown=shown,
        )

    def timed(self, latency: Latency) -> StepRecord:
        """The record with a measured latency."""
        return replace(
            self,
            latency=latency.median,
            latency_low=latency.low,
            latency_high=latency.high,
            latency_rounds=latency.runs,
        )


@dataclass(frozen=True)
class Compressed:
    """What a compression made.

    Attributes:
        checkpoint: the smaller network.
        steps: a record of every step.
        removed: names of the blocks that were removed.
        configuration: what the numbers depend on, as plain JSON: goal, images, settings, device.
    """

    checkpoint: Checkpoint
    steps: tuple[StepRecord, ...]
    removed: tuple[str, ...]
    configuration: Mapping[str, Any]
