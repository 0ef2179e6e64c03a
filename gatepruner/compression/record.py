"""The result of a compression, and the record of every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gatepruner.measuring.accuracy import Accuracy
from gatepruner.measuring.agreement import Agreement
from gatepruner.measuring.cost import count
from gatepruner.measuring.latency import Latency
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.goals import Goal, Remeasured


@dataclass(frozen=True)
class StepRecord:
    """The network after a step of a compression, in numbers.

    Attributes:
        name: name of the step.
        accuracy: fraction of the test images classified correctly; `None` without labels.
        agreement: fraction of the test images, or of some of them, that the whole network assigns
            to the same class.
        distance: distance of the features from the whole network's, see `Agreement`.
        low: lower end of the 95 % interval of the accuracy, or of the agreement without labels.
        high: upper end of the interval.
        images: number of test images that the interval is for.
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
    accuracy: float | None
    agreement: float
    distance: float | None
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
        cls,
        name: str,
        network: Network,
        accuracy: Accuracy | None,
        agreement: Agreement,
        seconds: float,
        *,
        shown: bool,
    ) -> StepRecord:
        """The record of a step that resulted in a network."""
        cost, (low, high) = count(network), (accuracy or agreement).interval
        return cls(
            name=name,
            accuracy=accuracy.accuracy if accuracy else None,
            agreement=agreement.agreement,
            distance=agreement.distance,
            low=low,
            high=high,
            images=(accuracy or agreement).images,
            blocks=network.depth,
            params=cost.params,
            macs=cost.macs,
            seconds=seconds,
            shown=shown,
        )

    @property
    def measure(self) -> str:
        """The measure of how good the network is: `"accuracy"`, or `"agreement"` without labels."""
        return "agreement" if self.accuracy is None else "accuracy"

    @property
    def share(self) -> float:
        """The accuracy, or the agreement without labels."""
        return self.agreement if self.accuracy is None else self.accuracy

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
class Trial:
    """A trial of a recipe that begins.

    Attributes:
        recipe: in words.
        steps: about how many.
    """

    recipe: str
    steps: int


@dataclass(frozen=True)
class Choice:
    """What was chosen on held-out images.

    Attributes:
        what: was chosen.
        gaps: from the whole network on held-out images with each that was tried, by
            `Agreement.gap`.
    """

    what: str
    gaps: Mapping[str, float]

    @property
    def best(self) -> str:
        """The one with the least gap."""
        return min(self.gaps, key=self.gaps.__getitem__)


@dataclass(frozen=True)
class Compressed:
    """The result of a compression.

    Attributes:
        checkpoint: the smaller network.
        steps: a record of every step.
        removed: names of the removed blocks.
        configuration: what the numbers depend on, as plain JSON: goal, images, settings, device.
        goal: what it was to reach.
        target: for a goal of latency, what was measured again at the end.
    """

    checkpoint: Checkpoint
    steps: tuple[StepRecord, ...]
    removed: tuple[str, ...]
    configuration: Mapping[str, Any]
    goal: Goal | None = None
    target: Remeasured | None = None
