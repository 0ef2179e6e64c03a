"""Which weights can be used: finite numbers in dense tensors, cast to the network's types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gatepruner.errors import CheckpointError, listed

# What is asked of a tensor, in this order: how it is called if the answer is yes.
UNUSABLE: dict[str, Callable[[Any], bool]] = {
    "no tensor": lambda tensor: not isinstance(tensor, Tensor),
    "without a shape yet": nn.parameter.is_lazy,
    "meta (without values)": lambda tensor: tensor.is_meta,
    "nested": lambda tensor: tensor.is_nested,
    "sparse": lambda tensor: tensor.layout != torch.strided,
    "quantised": lambda tensor: tensor.is_quantized,
    "complex": lambda tensor: tensor.is_complex(),
    "of 8 bits": lambda tensor: tensor.is_floating_point() and tensor.element_size() == 1,
    "of an unknown class": lambda tensor: type(tensor) is not Tensor,
    "not finite": lambda tensor: not bool(tensor.isfinite().all()),
}


def refuse_unusable(state: Mapping[str, Any]) -> None:
    """Check that weights are finite numbers in dense tensors.

    Raises:
        CheckpointError: some are not; names all of them, and how they are.
    """
    problems: dict[str, list[str]] = {}
    for key, tensor in state.items():
        kind = next((name for name, is_one in UNUSABLE.items() if is_one(tensor)), None)
        if kind is not None:
            problems.setdefault(kind, []).append(key)
    if problems:
        kinds = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in problems.items())
        raise CheckpointError(
            f"weights are {kinds}; expected finite numbers of 16 to 64 bits in dense tensors: "
            "convert them, or take another checkpoint"
        )


def cast(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights in the types that a network computes with, and remarks on what was changed.

    Args:
        state: usable weights by key.
        expected: the network's state dict, with the same keys.
    """
    casts: dict[str, list[str]] = {}
    weights = {}
    for key, tensor in state.items():
        dtype = expected[key].dtype
        if tensor.dtype != dtype:
            how = f"{tensor.dtype} to {dtype}".replace("torch.", "")
            casts.setdefault(how, []).append(key)
        weights[key] = tensor.to(dtype)
    return weights, [f"{len(keys)} weights were cast from {how}" for how, keys in casts.items()]
