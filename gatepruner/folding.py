"""Where a gate can be folded: the affine layer that a branch ends in."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from gatepruner.edits import Edits, edited
from gatepruner.graph import OWNS_TENSORS, STOCHASTIC, Trace, kind, tensors_of

COMMUTES = {  # with a factor that is not negative, as every gate is
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.ReLU),
    *(nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d),
    *(operator.getitem, F.dropout, F.relu, F.pad, F.avg_pool2d, F.max_pool2d),
    *(torch.permute, torch.flatten, torch.reshape, torch.transpose, torch.roll, torch.relu),
    *("permute", "flatten", "reshape", "view", "transpose", "contiguous", "roll", "mean"),
    *("squeeze", "unsqueeze", "relu"),
}
AFFINE_MODULES: dict[type[nn.Module], str] = {  # and where in it the last affine layer is
    nn.modules.batchnorm._BatchNorm: "",
    nn.modules.conv._ConvNd: "",
    nn.Linear: "",
    nn.LayerNorm: "",
    nn.GroupNorm: "",
    nn.MultiheadAttention: "out_proj.",
}
AFFINE_FUNCTIONS: dict[str, dict[str, int]] = {  # and where its last weight and bias stand
    "linear": {"weight": 1, "bias": 2},
    "conv2d": {"weight": 1, "bias": 2},
    "layer_norm": {"weight": 2, "bias": 3},
    "group_norm": {"weight": 2, "bias": 3},
    "batch_norm": {"weight": 3, "bias": 4},
    "shifted_window_attention": {"proj_weight": 2, "proj_bias": 9},
}
RESHAPES = {"reshape", "view", "unsqueeze", "flatten", torch.reshape, torch.flatten}
MULTIPLICATIONS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}


def last_affine(traced: Trace, edits: Edits, name: str) -> tuple[str, ...]:
    """The weights to multiply so that the gated block's branch is multiplied, by their keys.

    Walks back from the gate through what commutes with a factor. Empty where the walk ends at
    something else, at a value that others use or at a weight that is used twice.
    """
    graph = edited(traced, edits).graph
    gate = traced.additions[name].gate
    node = next(node for node in graph.nodes if node.target == gate).args[0]
    used = Counter(str(node.target) for node in graph.nodes if node.op in OWNS_TENSORS)
    while isinstance(node, fx.Node) and "base" in node.meta and len(node.users) == 1:
        keys, owners = _affine_keys(traced.module, node)
        if keys:
            return keys if all(used[owner] == 1 for owner in owners) else ()
        stochastic = getattr(kind(traced.module, node), "__name__", "") in STOCHASTIC
        if not stochastic and kind(traced.module, node) not in COMMUTES:
            return ()
        node = node.args[0]
    return ()


def _affine_keys(module: nn.Module, node: fx.Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys of the weight and bias that a node applies last, and the targets that hold them."""
    what = kind(module, node)
    if node.op == "call_module":
        inner = next((at for base, at in AFFINE_MODULES.items() if issubclass(what, base)), None)
        stems = (
            () if inner is None else (f"{node.target}.{inner}weight", f"{node.target}.{inner}bias")
        )
        held = tensors_of(module, str(node.target))
        return tuple(key for key in stems if key in held), (str(node.target),)
    if what in MULTIPLICATIONS:
        found = [_parameter(value) for value in node.args]
        keys = [key for key in found if key]
    else:
        places = AFFINE_FUNCTIONS.get(getattr(what, "__name__", ""), {})
        given: dict[Any, Any] = dict(enumerate(node.args)) | dict(node.kwargs)
        values = [given.get(key, given.get(at)) for key, at in places.items()]
        keys = [_parameter(value) for value in values if value is not None]
    return (tuple(keys), tuple(keys)) if all(keys) else ((), ())


def _parameter(value: Any) -> str:
    """The key of a parameter that a graph reads, perhaps in another shape; else nothing."""
    while isinstance(value, fx.Node) and value.target in RESHAPES:
        value = value.args[0]
    read = isinstance(value, fx.Node) and value.op == "get_attr"
    return str(value.target) if read else ""
