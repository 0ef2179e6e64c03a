"""Magnitude: the size of each branch's weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.criteria.criterion import Evidence


def magnitude(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """The mean absolute weight of the convolutions and matrices that are removed with each block.

    A weight counts if at least two of its axes are longer than 1, which leaves out biases, gates,
    scales and shifts.

    Source: Li, Kadav, Durdanovic, Samet, Graf, 2017, https://arxiv.org/abs/1608.08710, for blocks
    instead of filters.
    """
    return {name: _mean(checkpoint, name) for name in names}


def _mean(checkpoint: Checkpoint, name: str) -> float:
    removed = _matrices(checkpoint.network) - _matrices(checkpoint.network.without([name]))
    weights = [checkpoint.weights[key] for key in sorted(removed)]
    total = sum(float(weight.detach().double().abs().sum()) for weight in weights)
    return total / sum(weight.numel() for weight in weights) if weights else math.nan


def _matrices(network: Network) -> set[str]:
    """Keys of the weights of convolutions and matrices."""
    return {key for key, tensor in network.state().items() if _is_matrix(tensor)}


def _is_matrix(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and sum(side > 1 for side in tensor.shape) > 1
