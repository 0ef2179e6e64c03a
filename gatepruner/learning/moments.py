"""Moments: the progress of a run as a value, for progress bars and histories."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GateMoment:
    """The progress of learning gates.

    Attributes:
        step: steps done.
        steps: steps in total.
        gone: blocks removed and recorded.
        blocks: blocks to remove in total.
        loss: mean since the last removal, without the penalty.
        seconds: since the run was started or resumed.
        block: the block whose removal has just been recorded, if any.
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
    """The progress of a training run.

    Attributes:
        step: steps done.
        steps: steps in total.
        epoch: the current epoch, from 1.
        loss: mean over the epoch so far, without the penalty.
        accuracy: on the augmented training images of the epoch so far; `None` without labels.
        gate: mean of all gates; `None` without gates.
        learning_rate: of the weights.
        seconds: since the run was started or resumed.
        validation: accuracy on held-out images at the end of an epoch, if there are any.
        agreement: with the teacher on held-out images, if there is one.
        divergence: from the teacher on held-out images, in nats.
        distance: of the features from the teacher's on held-out images, if they are matched.
        ends_epoch: whether the step is the last of its epoch.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    accuracy: float | None
    gate: float | None
    learning_rate: float
    seconds: float
    validation: float | None = None
    agreement: float | None = None
    divergence: float | None = None
    distance: float | None = None
    ends_epoch: bool = False

    def record(self) -> dict[str, Any]:
        """The moment as an entry of a history."""
        left_out = ("step", "steps", "ends_epoch")
        return {key: value for key, value in asdict(self).items() if key not in left_out}
