"""The result of a compression, and the record of every step."""

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
    """The network after a step of a compression, in numbers.

    Attributes:
        name: of the step.
        accuracy: fraction of the test images classified correctly.
        low: lower end of the accuracy's 95 % interval.
        high: upper end of the interval.
        images: number of test images.
        blocks: number of blocks with a branch.
        params: number of parameters.
        macs: multiply-accumulates for one image.
        seconds: time of the step, without its evaluation.
        latency: median, in seconds; measured at the end, for all networks in turns.
        latency_low: first quartile.
        latency_high: third quartile.
        latency_rounds: number of measured rounds.
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
        """The record of a step that resulted in a network."""
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
    """The result of a compression.

    Attributes:
        checkpoint: the smaller network.
        steps: a record of every step.
        removed: names of the removed blocks.
        configuration: what the numbers depend on, as plain JSON: goal, images, settings, device.
    """

    checkpoint: Checkpoint
    steps: tuple[StepRecord, ...]
    removed: tuple[str, ...]
    configuration: Mapping[str, Any]
