"""Baselines: orders that depend neither on weights nor on images."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria.criterion import Evidence


def at_random(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """A random order that depends only on the seed; the score of a block is its position."""
    positions = list(range(len(names)))
    random.Random(evidence.seed).shuffle(positions)
    order = sorted(zip(positions, names, strict=True))
    return {name: float(position) for position, name in order}


def by_depth(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """The deepest block first; the score of a block is its position."""
    return {name: float(position) for position, name in enumerate(reversed(names))}
