"""Normalisation layers in a graph: their scales and shifts, and the statistics of batch norm."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from gatepruner.networks.folding import affine_keys
from gatepruner.networks.graph import Mode, kind

BATCH_NORM: Any = nn.modules.batchnorm._BatchNorm
NORMS = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm)
RUNNING = {1: "running_mean", 2: "running_var"}  # where `batch_norm` takes them
FUNCTIONS = ("batch_norm", "layer_norm", "group_norm")


def scales_and_shifts(module: fx.GraphModule) -> tuple[str, ...]:
    """Keys of the scales and shifts of every normalisation layer."""
    found = (affine_keys(module, node) for node in module.graph.nodes if _normalises(module, node))
    return tuple(dict.fromkeys(key for keys in found for key in keys))


def _normalises(module: fx.GraphModule, node: fx.Node) -> bool:
    what = kind(module, node)
    return issubclass(what, NORMS) if isinstance(what, type) else _named(what) in FUNCTIONS


def _named(what: Any) -> str:
    return getattr(what, "__name__", "")


def statistics(module: fx.GraphModule) -> dict[fx.Node, tuple[str, str]]:
    """Keys of the running mean and variance of every batch norm that has them, by its node."""
    found = ((node, _statistics_of(module, node)) for node in module.graph.nodes)
    return {node: keys for node, keys in found if keys is not None}


def _statistics_of(module: fx.GraphModule, node: fx.Node) -> tuple[str, str] | None:
    what = kind(module, node)
    if isinstance(what, type) and issubclass(what, BATCH_NORM):
        stem = str(node.target)
        there = module.get_submodule(stem).running_mean is not None
        return (f"{stem}.running_mean", f"{stem}.running_var") if there else None
    if _named(what) == "batch_norm":
        given: dict[Any, Any] = dict(enumerate(node.args)) | dict(node.kwargs)
        mean, var = (_read(given.get(at, given.get(key))) for at, key in RUNNING.items())
        return (mean, var) if mean and var else None
    return None


def _read(value: Any) -> str:
    """The key of a tensor that a graph reads; else nothing."""
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else ""


def use_batch_statistics(module: fx.GraphModule) -> None:
    """Normalise by the statistics of the batch, as in training; nothing is dropped at random."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, BATCH_NORM):
            layer.train()
    for node in module.graph.nodes:
        if _named(node.target) == "batch_norm":
            for used in node.all_input_nodes:
                if kind(module, used) is Mode:
                    module.get_submodule(str(used.target)).train()
