"""The learned gate of each block."""

from __future__ import annotations

from collections.abc import Sequence

from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria.criterion import Evidence


def gate(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """Each gate g = relu(k), including folded gates.

    Source: Savarese, Mazza, Figueiredo, 2016, https://arxiv.org/abs/1611.01260.
    """
    gates = checkpoint.known_gates
    return {name: gates[name] for name in names}
