"""CKA: how much the features before the head change when a block is removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatepruner.measuring.device import place
from gatepruner.measuring.merging import merged
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria.criterion import Evidence
from gatepruner.pruning.criteria.passes import batches, device_of


@torch.inference_mode()
def cka(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """1 minus the linear CKA of the features with and without each block.

    All networks share one pass over the images. The features of all images are kept in memory
    once per block; of several processes, in each.

    Source: Kornblith, Norouzi, Lee, Hinton, 2019, https://arxiv.org/abs/1905.00414; for layers
    Pons et al., 2024, https://arxiv.org/abs/2405.17081.
    """
    networks = [*(checkpoint.network.without([name]) for name in names), checkpoint.network]
    module = place(merged(checkpoint, networks, features=True), device_of(evidence)).eval()
    parts = [
        [features.flatten(1).cpu() for features in module(images)]
        for images, _ in batches(checkpoint, evidence, shared=False)
    ]
    *without, whole = (torch.cat(part).double() for part in zip(*parts, strict=True))
    return {name: 1 - linear_cka(whole, small) for name, small in zip(names, without, strict=True)}


def linear_cka(x: Tensor, y: Tensor) -> float:
    """The linear centred kernel alignment of features `(N, D)` and `(N, E)`, from 0 to 1."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross, own = (x.T @ y).norm().square(), (x.T @ x).norm() * (y.T @ y).norm()
    return float(cross / own)
