"""Which weights can be used: finite numbers in dense tensors, cast to the network's types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gatepruner.errors import CheckpointError, listed
from gatepruner.networks.deferred import Deferred, changed, in_memory


class Unusable(Tensor):
    """Stands for a tensor with which no network computes: it has a shape and no values.

    Attributes:
        kind: what it was, such as `sparse`.
    """

    kind: str

    @classmethod
    def of(cls, kind: str, shape: tuple[int, ...]) -> Unusable:
        """The stand-in of a tensor of a shape."""
        made = torch.empty(shape, device="meta").as_subclass(cls)
        made.kind = kind
        return made


# What is asked of a tensor, in this order: how it is called if the answer is yes.
ODD: dict[str, Callable[[Any], bool]] = {
    "no tensor": lambda tensor: not isinstance(tensor, Tensor),
    "without a shape yet": nn.parameter.is_lazy,
    "meta (without values)": lambda tensor: tensor.is_meta,
    "nested": lambda tensor: tensor.is_nested,
    "sparse": lambda tensor: tensor.layout != torch.strided,
    "quantised": lambda tensor: tensor.is_quantized,
    "complex": lambda tensor: tensor.is_complex(),
    "of 8 bits": lambda tensor: tensor.is_floating_point() and tensor.element_size() == 1,
    "of an unknown class": lambda tensor: type(tensor) is not Tensor,
}
# What is asked of its values.
NOT_FINITE: dict[str, Callable[[Tensor], bool]] = {
    "nan": lambda values: bool(values.isnan().any()),
    "infinite": lambda values: not bool(values.isfinite().all()),
}
PART = 2**16  # values that are asked at once, since the answer takes memory for each


def refuse_unusable(state: Mapping[str, Any]) -> None:
    """Check that weights are finite numbers in dense tensors.

    Raises:
        CheckpointError: some are not; names all of them, and how they are.
    """
    _refuse({key: _oddity(tensor) or _not_finite(tensor) for key, tensor in state.items()})


def refuse_odd(state: Mapping[str, Any]) -> None:
    """Check that weights are numbers in dense tensors, which may not be finite.

    Raises:
        CheckpointError: some are not; names all of them, and how they are.
    """
    _refuse({key: _oddity(tensor) for key, tensor in state.items()})


def _oddity(tensor: Any) -> str:
    """The first of the kinds of odd tensors that a tensor is of; empty if it is of none."""
    if isinstance(tensor, Unusable):
        return tensor.kind
    if isinstance(tensor, Deferred):
        tensor = torch.empty(0, dtype=tensor.dtype)  # it is dense
    return next((name for name, is_one in ODD.items() if is_one(tensor)), "")


def _not_finite(tensor: Tensor) -> str:
    """What the values of a tensor are that are not finite; empty if all are."""
    parts = in_memory(tensor).detach().reshape(-1).split(PART)
    return next((name for name, is_one in NOT_FINITE.items() if any(map(is_one, parts))), "")


def cast(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights in the types that a network computes with, and remarks on what was changed.

    Args:
        state: usable weights by key.
        expected: the network's state dict, with the same keys.

    Raises:
        CheckpointError: weights are whole numbers where the network has real ones.
    """
    other = {key: tensor for key, tensor in state.items() if tensor.dtype != expected[key].dtype}
    whole = {
        key: f"of {_name(tensor.dtype)}"
        for key, tensor in other.items()
        if expected[key].is_floating_point() and not tensor.is_floating_point()
    }
    _refuse(whole)
    casts = Counter((tensor.dtype, expected[key].dtype) for key, tensor in other.items())
    converted = {key: _to(tensor, expected[key].dtype) for key, tensor in other.items()}
    return {**state, **converted}, [
        f"{count} weights were cast from {_name(old)} to {_name(new)}"
        for (old, new), count in casts.items()
    ]


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return changed(tensor, lambda values: values.to(dtype), dtype=dtype)


def _refuse(kinds: Mapping[str, str]) -> None:
    """Raise a `CheckpointError` that names the weights of every kind that is not empty."""
    problems: dict[str, list[str]] = {}
    for key, kind in kinds.items():
        if kind:
            problems.setdefault(kind, []).append(key)
    if problems:
        named = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in problems.items())
        raise CheckpointError(
            f"weights are {named}; expected finite numbers of 16 to 64 bits in dense tensors: "
            "convert them, or take another checkpoint"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
