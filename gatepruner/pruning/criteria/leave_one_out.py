"""The loss without a block: of each block alone, and of one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria.criterion import Evidence
from gatepruner.pruning.criteria.passes import images_of, losses
from gatepruner.pruning.surgery import remove


def leave_one_out(
    checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence
) -> dict[str, float]:
    """The cross-entropy without each block alone, minus that of the whole network.

    All networks share one pass over the images; what they have in common is computed once.

    Source: Veit, Wilber, Belongie, 2016, https://arxiv.org/abs/1605.06431.

    Raises:
        DataError: the images are of other classes.
    """
    # The whole network comes last: the input of a block is then freed once it is left out.
    networks = [*(checkpoint.network.without([name]) for name in names), checkpoint.network]
    *without, whole = losses(checkpoint, networks, evidence)
    return {name: loss - whole for name, loss in zip(names, without, strict=True)}


def greedy(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """Leave-one-out repeated: the block goes without which the cross-entropy is lowest.

    After each removal the statistics of batch norm are estimated anew on the images. The score
    of a block is the cross-entropy without it and all before it, minus that of the whole
    network. A block that lies in the branch of another one goes with it.

    Raises:
        DataError: the images are of other classes, or there are fewer than two.
    """
    quiet = replace(evidence, track=iter)
    (whole,) = losses(checkpoint, [checkpoint.network], quiet)
    small, order = checkpoint, dict[str, float]()
    for _ in evidence.track(range(len(names))):
        left = [name for name in names if name not in order]
        if not left:
            break
        name, loss = _least_harmful(small, left, quiet)
        small = _recalibrated(remove(small, [name]), evidence)
        order[name] = loss - whole
        gone = set(left) - {*small.network.removable, *order}
        order |= {inner: order[name] for inner in left if inner in gone}
    return order


def _least_harmful(
    checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence
) -> tuple[str, float]:
    """The block without which the loss is lowest, and that loss."""
    networks = [checkpoint.network.without([name]) for name in names]
    found = losses(checkpoint, networks, evidence)
    found = [loss if math.isfinite(loss) else math.inf for loss in found]
    return names[found.index(min(found))], min(found)


def _recalibrated(checkpoint: Checkpoint, evidence: Evidence) -> Checkpoint:
    return recalibrate(
        checkpoint,
        images_of(evidence),
        device=evidence.device,
        batch_size=evidence.batch_size,
        normalization=evidence.normalization,
    )
