"""Where a gate can be folded: the affine layer that a branch ends in."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from gatepruner.networks.graph import (
    STOCHASTIC,
    Trace,
    attribute,
    kind,
    pads_with_zeros,
    tensors_of,
)

COMMUTES = {  # with a factor that is not negative, as every gate is
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.ReLU),
    *(nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d),
    *(operator.getitem, F.dropout, F.relu, F.avg_pool2d, F.max_pool2d),
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


def fold_targets(
    traced: Trace, graph: fx.Graph, gated: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """For every gated block the weights that take up its gate, by their state-dict keys.

    To multiply them is to multiply the branch. Walks back from the gate through what commutes
    with a factor; empty where the walk ends at something else, at a value that others use or at
    a weight that is used twice.
    """
    uses = _uses(traced.module, graph)
    gates = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    found = {}
    for name in gated:
        branch = gates[traced.additions[name].gate].args[0]
        keys = _last_affine(traced.module, branch)
        tensors = [attribute(traced.module, key) for key in keys]
        sound = all(uses[id(it)] == 1 for it in tensors) and traced.keys.issuperset(keys)
        found[name] = keys if sound else ()
    return found


def _uses(module: nn.Module, graph: fx.Graph) -> Counter[int]:
    """How often each tensor is used, by identity, since one may have several names."""
    uses: Counter[int] = Counter()

    def read(node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            uses[id(attribute(module, str(node.target)))] += 1
        return node

    for node in graph.nodes:
        fx.node.map_arg((node.args, node.kwargs), read)
        if node.op == "call_module" and "base" in node.meta:
            uses.update(id(it) for it in tensors_of(module, str(node.target)).values())
    return uses


def _last_affine(module: nn.Module, node: Any) -> tuple[str, ...]:
    while isinstance(node, fx.Node) and "base" in node.meta and len(node.users) == 1:
        if keys := affine_keys(module, node):
            return keys
        if not _commutes(module, node):
            return ()
        node = node.args[0]
    return ()


def _commutes(module: nn.Module, node: fx.Node) -> bool:
    what = kind(module, node)
    if what is F.pad:
        return pads_with_zeros(node)
    return what in COMMUTES or getattr(what, "__name__", "") in STOCHASTIC


def affine_keys(module: nn.Module, node: fx.Node) -> tuple[str, ...]:
    """Keys of the weight and bias that a node applies last."""
    what = kind(module, node)
    if node.op == "call_module":
        inner = next((at for base, at in AFFINE_MODULES.items() if issubclass(what, base)), None)
        held = tensors_of(module, str(node.target)) if inner is not None else {}
        stems = (f"{node.target}.{inner}{part}" for part in ("weight", "bias"))
        return tuple(key for key in stems if key in held)
    if what in MULTIPLICATIONS:
        keys = [key for key in map(_parameter, node.args) if key]
    else:
        places = AFFINE_FUNCTIONS.get(getattr(what, "__name__", ""), {})
        given: dict[Any, Any] = dict(enumerate(node.args)) | dict(node.kwargs)
        values = [given.get(key, given.get(at)) for key, at in places.items()]
        keys = [_parameter(value) for value in values if value is not None]
    return tuple(keys) if all(keys) else ()


def _parameter(value: Any) -> str:
    """The key of a tensor that a graph reads, perhaps in another shape; else nothing."""
    while isinstance(value, fx.Node) and value.target in RESHAPES and len(value.users) == 1:
        value = value.args[0]
    read = isinstance(value, fx.Node) and value.op == "get_attr"
    return str(value.target) if read else ""
