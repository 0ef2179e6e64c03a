"""Normalisation layers of a graph: their scales and shifts, and batch-norm statistics."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from gatepruner.networks.folding import affine_keys
from gatepruner.networks.nodes import argument, function_name, kind, read_key, tensors_of

BATCH_NORM: Any = nn.modules.batchnorm._BatchNorm
NORMS = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm)
RUNNING = {"running_mean": 1, "running_var": 2}  # and their positions in a call of `batch_norm`
FUNCTIONS = ("batch_norm", "layer_norm", "group_norm")


def scales_and_shifts(module: fx.GraphModule) -> tuple[str, ...]:
    """Keys of the scales and shifts of every normalisation layer."""
    norms = (node for node in module.graph.nodes if _normalises(module, node))
    return tuple(dict.fromkeys(key for node in norms for key in _scale_and_shift(module, node)))


def _scale_and_shift(module: fx.GraphModule, node: fx.Node) -> tuple[str, ...]:
    if node.op != "call_module":
        return affine_keys(module, node)
    own = tensors_of(module, str(node.target))
    return tuple(key for key in (f"{node.target}.weight", f"{node.target}.bias") if key in own)


def _normalises(module: fx.GraphModule, node: fx.Node) -> bool:
    operation = kind(module, node)
    if isinstance(operation, type):
        return issubclass(operation, NORMS)
    return function_name(operation) in FUNCTIONS


def statistics(module: fx.GraphModule) -> dict[fx.Node, tuple[str, str]]:
    """Keys of the running mean and variance of every batch norm that has them, by its node."""
    keys = ((node, _statistics_of(module, node)) for node in module.graph.nodes)
    return {node: pair for node, pair in keys if pair is not None}


def shares_statistics(module: fx.GraphModule) -> bool:
    """Whether a batch norm is used several times."""
    keys = list(statistics(module).values())
    return len({*keys}) < len(keys)


def _statistics_of(module: fx.GraphModule, node: fx.Node) -> tuple[str, str] | None:
    operation = kind(module, node)
    if isinstance(operation, type) and issubclass(operation, BATCH_NORM):
        stem = str(node.target)
        tracked = module.get_submodule(stem).running_mean is not None
        return (f"{stem}.running_mean", f"{stem}.running_var") if tracked else None
    if function_name(operation) == "batch_norm":
        mean, var = (read_key(argument(node, at, name)) for name, at in RUNNING.items())
        return (mean, var) if mean and var else None
    return None


def use_batch_statistics(module: fx.GraphModule) -> None:
    """Make batch norm use the statistics of the batch, as in training; dropout stays off."""
    module.eval()
    _set_batch_norm(module, training=True)


def keep_statistics(module: fx.GraphModule) -> None:
    """Make batch norm use the statistics it has, as in evaluation; dropout stays as it is."""
    _set_batch_norm(module, training=False)


def _set_batch_norm(module: fx.GraphModule, *, training: bool) -> None:
    for layer in module.modules():
        if isinstance(layer, BATCH_NORM):
            layer.train(training)
    for node in module.graph.nodes:
        if function_name(node.target) == "batch_norm":
            for value in node.all_input_nodes:
                if value.op == "call_module" and not value.all_input_nodes:  # it reads the mode
                    module.get_submodule(str(value.target)).train(training)
