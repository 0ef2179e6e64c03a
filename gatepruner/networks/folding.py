"""Where a gate can be folded: the affine layer at the end of its branch."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from gatepruner.networks.graph import Trace
from gatepruner.networks.nodes import (
    argument,
    attribute,
    function_name,
    kind,
    pads_with_zeros,
    read_key,
    tensors_of,
)
from gatepruner.networks.tracer import STOCHASTIC

COMMUTES = {  # with a non-negative factor, such as a gate
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.ReLU, nn.LeakyReLU),
    *(nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d),
    *(operator.getitem, F.dropout, F.relu, F.leaky_relu, F.avg_pool2d, F.max_pool2d),
    *(torch.permute, torch.flatten, torch.reshape, torch.transpose, torch.roll, torch.relu),
    *("permute", "flatten", "reshape", "view", "transpose", "contiguous", "roll", "mean"),
    *("squeeze", "unsqueeze", "relu"),
}
# Layers that end in an affine map, and the prefix of its weight and bias. Subclasses that keep
# `forward` count as well, other ones may compute anything.
AFFINE_MODULES: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), ""),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear), ""),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), ""),
    **dict.fromkeys((nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), ""),
    nn.MultiheadAttention: "out_proj.",
}
AFFINE_FORWARDS = {layer.forward: prefix for layer, prefix in AFFINE_MODULES.items()}
# timm's layers that apply their parts, a dropout and an activation, after the affine map.
WITH_ACTIVATION = {"BatchNormAct2d", "GroupNormAct", "LayerNormAct", "LayerNormAct2d"}
AFFINE_FUNCTIONS: dict[str, dict[str, int]] = {  # and the positions of its last weight and bias
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
    """State-dict keys of the weights into which the gate of every gated block can be folded.

    Multiplying them multiplies the branch. They are found by walking back from the gate through
    operations that commute with a factor. There are none if the walk meets any other operation,
    a value with several users, or a weight that is used twice or computed from other tensors.
    """
    uses = _uses(traced.module, graph)
    gates = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    targets = {}
    for name in gated:
        branch = gates[traced.additions[name].gate].args[0]
        keys = _last_affine(traced.module, branch)
        used_once = all(uses[id(attribute(traced.module, key))] == 1 for key in keys)
        targets[name] = keys if used_once and traced.keys.issuperset(keys) else ()
    return targets


def _uses(module: nn.Module, graph: fx.Graph) -> Counter[int]:
    """How often each tensor is used, by identity, since a tensor may have several keys."""
    uses: Counter[int] = Counter()

    def read(node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            uses[id(attribute(module, str(node.target)))] += 1
        return node

    for node in graph.nodes:
        fx.node.map_arg((node.args, node.kwargs), read)
        if node.op == "call_module" and "base" in node.meta:
            uses.update(map(id, tensors_of(module, str(node.target)).values()))
    return uses


def _last_affine(module: nn.Module, node: Any) -> tuple[str, ...]:
    while isinstance(node, fx.Node) and "base" in node.meta and len(node.users) == 1:
        if keys := affine_keys(module, node):
            return keys
        node = _scaled_by(module, node)
    return ()


def _scaled_by(module: nn.Module, node: fx.Node) -> Any:
    """What a factor of a node's input is a factor of its value for; `None` if it is not."""
    operation = kind(module, node)
    if operation in MULTIPLICATIONS:
        numbers = [value for value in node.args if isinstance(value, (int, float))]
        return node.all_input_nodes[0] if len(numbers) == 1 else None
    if operation is F.pad:
        return node.args[0] if pads_with_zeros(node) else None
    commutes = operation in COMMUTES or function_name(operation) in STOCHASTIC
    return node.args[0] if commutes else None


def affine_keys(module: nn.Module, node: fx.Node) -> tuple[str, ...]:
    """Keys of the weight and bias that a node applies last."""
    operation = kind(module, node)
    if node.op == "call_module":
        return _affine_keys_of(module.get_submodule(str(node.target)), str(node.target))
    if operation in MULTIPLICATIONS:
        keys = [key for key in map(_parameter, node.args) if key]
    else:
        positions = AFFINE_FUNCTIONS.get(function_name(operation), {})
        values = [argument(node, index, name) for name, index in positions.items()]
        keys = [_parameter(value) for value in values if value is not None]
    return tuple(keys) if all(keys) else ()


def _affine_keys_of(layer: nn.Module, path: str) -> tuple[str, ...]:
    """Keys of the weight and bias that a layer applies last; none if it may compute otherwise."""
    prefix = AFFINE_FORWARDS.get(type(layer).forward)
    if type(layer).__name__ in WITH_ACTIVATION and all(
        type(part) in COMMUTES for part in layer.children()
    ):
        prefix = ""
    changed = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
    if prefix is None or changed:
        return ()
    owner = layer.get_submodule(prefix.rstrip("."))
    used = [name for name in ("weight", "bias") if getattr(owner, name, None) is not None]
    plain = "weight" in used and owner._parameters.keys() >= {*used}  # not computed from others
    return tuple(f"{path}.{prefix}{name}" for name in used) if plain else ()


def _parameter(value: Any) -> str:
    """The key of a tensor that a graph reads, perhaps reshaped; empty for any other value."""
    while isinstance(value, fx.Node) and value.target in RESHAPES and len(value.users) == 1:
        value = value.args[0]
    return read_key(value)
