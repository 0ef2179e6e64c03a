"""CKA: how much the features before the head change when a block is removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gatepruner import processes
from gatepruner.measuring.device import place
from gatepruner.measuring.merging import merged
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria.criterion import Evidence
from gatepruner.pruning.criteria.passes import batches, device_of, images_of


@torch.inference_mode()
def cka(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """1 minus the linear CKA of the features with and without each block.

    All networks share one pass over the images. The features of all images are kept in memory
    once per block; each of several processes computes a part of them, and gets those of the others.

    Source: Kornblith, Norouzi, Lee, Hinton, 2019, https://arxiv.org/abs/1905.00414; for layers
    Pons et al., 2024, https://arxiv.org/abs/2405.17081.
    """
    networks = [*(checkpoint.network.without([name]) for name in names), checkpoint.network]
    module = place(merged(checkpoint, networks, features=True), device_of(evidence)).eval()
    parts = [_features(module, images) for images, _ in batches(checkpoint, evidence)]
    if not parts:  # there are more processes than batches
        blank = torch.zeros(1, *images_of(evidence).shape, device=device_of(evidence))
        parts = [[features[:0] for features in _features(module, blank)]]
    *without, whole = (
        processes.together(torch.cat(part)).double() for part in zip(*parts, strict=True)
    )
    scores = torch.zeros(len(names), dtype=torch.float64)
    for index in processes.share(len(names)).mine.tolist():
        scores[index] = 1 - linear_cka(whole, without[index])
    return dict(zip(names, processes.add(scores).tolist(), strict=True))


def _features(module: nn.Module, images: Tensor) -> list[Tensor]:
    """The features of images `(N, ...)` in every network, each `(N, D)` on the CPU."""
    return [features.flatten(1).cpu() for features in module(images)]


def linear_cka(x: Tensor, y: Tensor) -> float:
    """The linear centred kernel alignment of features `(N, D)` and `(N, E)`, from 0 to 1."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross, own = (x.T @ y).norm().square(), (x.T @ x).norm() * (y.T @ y).norm()
    return float(cross / own)
