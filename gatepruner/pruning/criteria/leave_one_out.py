"""The loss without each block, and the greedy order that repeats it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria.criterion import Evidence
from gatepruner.pruning.criteria.passes import images_of, losses
from gatepruner.pruning.curve import accuracies
from gatepruner.pruning.surgery import remove


def leave_one_out(
    checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence
) -> dict[str, float]:
    """The cross-entropy without each block, minus that of the whole network.

    All networks share one pass over the images, which computes common parts once.

    Source: Veit, Wilber, Belongie, 2016, https://arxiv.org/abs/1605.06431.

    Raises:
        DataError: the images have another number of classes.
    """
    # The whole network comes last, so that a block's input is freed after its last use.
    networks = [*(checkpoint.network.without([name]) for name in names), checkpoint.network]
    *without, whole = losses(checkpoint, networks, evidence)
    return {name: loss - whole for name, loss in zip(names, without, strict=True)}


def greedy(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """Leave-one-out repeated: remove the block without which the cross-entropy is lowest.

    Batch norm is recalibrated on the images in every network that is compared; all candidates of
    a removal share one pass. The score of a block is the cross-entropy without it and all blocks
    removed before it, minus that of the whole network. A block inside the branch of another is
    removed with it.

    Raises:
        DataError: the images have another number of classes, or there are fewer than two.
    """
    quiet = replace(evidence, track=iter)
    (whole,) = losses(checkpoint, [checkpoint.network], quiet)
    small, order = checkpoint, dict[str, float]()
    for _ in evidence.track(range(len(names))):
        left = [name for name in names if name not in order]
        if not left:
            break
        name, loss = _least_harmful(small, left, quiet)
        small = recalibrate(
            remove(small, [name]), images_of(evidence), whole=checkpoint, **_how(evidence)
        )
        order[name] = loss - whole
        inside = set(left) - {*small.network.removable, *order}
        order |= {inner: order[name] for inner in left if inner in inside}
    return order


def _least_harmful(
    checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence
) -> tuple[str, float]:
    """The block without which the loss is lowest, and that loss."""
    networks = [checkpoint.network.without([name]) for name in names]
    images = images_of(evidence)
    measured = accuracies(checkpoint, networks, images, statistics=images, **_how(evidence))
    without = [one.loss if math.isfinite(one.loss) else math.inf for one in measured]
    return names[without.index(min(without))], min(without)


def _how(evidence: Evidence) -> dict[str, Any]:
    return {
        "device": evidence.device,
        "batch_size": evidence.batch_size,
        "normalization": evidence.normalization,
    }
