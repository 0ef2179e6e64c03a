"""A network in an ONNX file: it can be measured beside checkpoints, and not be changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gatepruner.networks.base import Base
from gatepruner.networks.checkpoint import Checkpoint


@dataclass(frozen=True)
class OnnxNetwork:
    """What is known of a network in an ONNX file.

    Attributes:
        name: of the file, for messages.
        base: holds the shape of the images; nothing can be constructed from it.
        num_classes: number of logits.
    """

    name: str
    base: Base
    num_classes: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class OnnxFile:
    """A network in an ONNX file.

    Attributes:
        network: its name, images and classes.
        model: the content of the file.
        notes: plain JSON as of a checkpoint: `normalize`, `scaling` and `classes`, as far as the
            file records them.
        rounding: greatest difference of a logit that its 8-bit integers make, relative to the
            greatest logit; 0 for a file in float32.
    """

    network: OnnxNetwork
    model: bytes = field(repr=False)
    notes: Mapping[str, Any] = field(default_factory=dict)
    rounding: float = 0.0

    @property
    def fingerprint(self) -> str:
        """A hash of the file."""
        return hashlib.sha256(self.model).hexdigest()


Subject = Checkpoint | OnnxFile
"""What can be measured."""
