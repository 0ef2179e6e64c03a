"""An accuracy that a checkpoint records: it is of these weights, and says on which images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gatepruner.networks.checkpoint import MEASURED, Checkpoint


@dataclass(frozen=True)
class Recorded:
    """A measured accuracy.

    Attributes:
        accuracy: fraction of the images classified correctly.
        low: lower end of its 95 % interval.
        high: upper end.
        images: their number.
        source: where they are from.
    """

    accuracy: float
    low: float
    high: float
    images: int
    source: str

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.source}"

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> Recorded | None:
        """What the notes of a checkpoint record, if they do."""
        return cls(**notes[MEASURED]) if MEASURED in notes else None

    def noted(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with this in its notes, until a verb changes the network or weights."""
        return replace(checkpoint, notes={**checkpoint.notes, MEASURED: asdict(self)})
