"""Orders that look at neither weights nor images, to compare criteria with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria.criterion import Evidence


def at_random(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """A random order that depends on the seed alone; scores are the positions in it."""
    positions = list(range(len(names)))
    random.Random(evidence.seed).shuffle(positions)
    order = sorted(zip(positions, names, strict=True))
    return {name: float(position) for position, name in order}


def by_depth(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """The last block first; scores are the positions in this order."""
    return {name: float(position) for position, name in enumerate(reversed(names))}
