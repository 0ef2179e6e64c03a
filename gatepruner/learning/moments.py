"""Moments: where a run is, as values; what a progress bar shows, and a history records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GateMoment:
    """Where the learning of gates is.

    Attributes:
        step: steps done.
        steps: steps in all.
        gone: blocks removed and recorded so far.
        blocks: blocks to remove in all.
        loss: mean since the last removal, without the penalty.
        seconds: since the run began, or was resumed.
        block: the block whose removal has just been recorded, if one has.
        gate: its gate when it was removed.
    """

    step: int
    steps: int
    gone: int
    blocks: int
    loss: float
    seconds: float
    block: str | None = None
    gate: float | None = None


@dataclass(frozen=True)
class Moment:
    """Where a training run is: at the end of an epoch also its record.

    Attributes:
        step: steps done.
        steps: steps in all.
        epoch: the epoch they belong to, from 1.
        loss: mean over the epoch so far, without the penalty.
        accuracy: on the training images of the epoch so far, as they were shown.
        gate: mean of all gates; `None` where there are none.
        learning_rate: of the weights.
        seconds: since the run began, or was resumed.
        validation: accuracy on held-out images at the end of an epoch, if there are any.
        ends_epoch: whether the epoch is over.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    accuracy: float
    gate: float | None
    learning_rate: float
    seconds: float
    validation: float | None = None
    ends_epoch: bool = False

    def record(self) -> dict[str, Any]:
        """What a history keeps of an epoch."""
        left_out = ("step", "steps", "ends_epoch")
        return {key: value for key, value in asdict(self).items() if key not in left_out}
