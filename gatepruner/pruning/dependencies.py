"""Torch-Pruning's dependency graph of a network, and where it cannot be made.

Fang, Ma, Song, Mi, Wang, 2023, https://arxiv.org/abs/2301.12900.
"""

from __future__ import annotations

import functools
import importlib
import math
import traceback
import warnings
from importlib import metadata
from typing import Any

import torch
from torch import nn

from gatepruner.errors import EngineError, PlanError, first_line
from gatepruner.measuring.engines import require
from gatepruner.networks.base import traced
from gatepruner.networks.network import Network

LEAST_VERSION = (1, 6)  # of Torch-Pruning


def require_torch_pruning() -> None:
    """Refuse to look for widths without Torch-Pruning.

    Raises:
        EngineError: it is missing, too old or broken; says how to install it.
    """
    require("narrowing", ("torch_pruning",), "channels")
    installed = _installed()
    numbers = tuple(int(part) for part in installed.split(".")[:2] if part.isdigit())
    wanted, remedy = ".".join(map(str, LEAST_VERSION)), "pip install -U 'gatepruner[channels]'"
    if numbers < LEAST_VERSION:
        raise EngineError(
            f"narrowing needs torch-pruning {wanted} or later, found {installed}: {remedy}"
        )
    try:
        importlib.import_module("torch_pruning")
    except Exception as error:  # a package may raise anything while it is imported
        raise EngineError(
            f"cannot import torch-pruning {installed} ({type(error).__name__}: "
            f"{first_line(error)}): {remedy}"
        ) from error


def _installed() -> str:
    """The version of Torch-Pruning that is installed."""
    try:
        return metadata.version("torch-pruning")
    except metadata.PackageNotFoundError:  # such as a folder of its code on the path
        return "one of an unknown version"


def dependency_graph(network: Network, module: nn.Module) -> Any:
    """The dependency graph of a network.

    Args:
        network: its description.
        module: the network, built.

    Raises:
        PlanError: Torch-Pruning cannot follow an operation; names it, where it can be told.
    """
    import torch_pruning

    example = torch.zeros(2, *network.base.input_shape)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph()
            return _bounded(
                graph.build_dependency(module, example, verbose=False), _most_numbers(network)
            )
    except Exception as error:  # it may raise anything on an operation that it does not know
        raise PlanError(
            f"cannot narrow {network}: Torch-Pruning cannot find its groups of channels"
            f"{_place(error, module)} ({type(error).__name__}: {first_line(error)}); its blocks "
            "can still be removed"
        ) from error


def _most_numbers(network: Network) -> int:
    """How many numbers of one image the largest value within a network has."""
    shapes = (node.meta.get("shape") for node in traced(network.base).module.graph.nodes)
    most: int = max(math.prod(shape[1:]) for shape in shapes if shape)
    return most


def _bounded(graph: Any, most: int) -> Any:
    """A graph in which a group that changes at each turn of a cycle ends in a `ValueError`.

    It grows where a layer's own channels are taken for those of its input, and moves where an
    operation passes on some channels as others, such as the greatest ones.
    """
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            mappings, turns = dependency.index_mapping, len(graph.module2node)
            dependency.index_mapping = _Mappings(mappings, most, turns)
    return graph


class _Mappings(list[Any]):
    """The mappings of a dependency, which are set anew for each group.

    Attributes:
        most: channels that a mapping makes at most.
        turns: how often a group passes the dependency at most.
    """

    def __init__(self, mappings: list[Any], most: int, turns: int) -> None:
        super().__init__(mappings)
        self.most, self.turns, self.passed = most, turns, 0

    def __setitem__(self, at: Any, mapping: Any) -> None:
        super().__setitem__(at, mapping and functools.partial(self._mapped, mapping))
        self.passed = 0

    def _mapped(self, mapping: Any, channels: list[Any]) -> list[Any]:
        made: list[Any] = mapping(channels)
        self.passed += 1
        if len(made) > self.most or self.passed > self.turns:
            raise ValueError("its channels multiply or move without end")
        return made


def _place(error: Exception, module: nn.Module) -> str:
    """The operation that Torch-Pruning was at, and the layer behind or in front of it."""
    from torch_pruning.dependency import Node

    frames = (frame.f_locals.copy() for frame, _ in traceback.walk_tb(error.__traceback__))
    nodes = (value for values in frames for value in values.values() if isinstance(value, Node))
    node = next(nodes, None)
    if node is None:
        return ""
    names = {one: name for name, one in module.named_modules()}
    if node.module in names:
        return f" at {names[node.module]} ({type(node.module).__name__})"
    operation = node.grad_fn.name() if node.grad_fn is not None else type(node.module).__name__
    for where, direction in (("in front of", "outputs"), ("behind", "inputs")):
        if layer := _nearest(node, direction, names):
            return f" at {operation} {where} {layer}"
    return f" at {operation}"


def _nearest(node: Any, direction: str, names: dict[nn.Module, str]) -> str:
    """The layer that is the fewest operations away; empty if there is none."""
    seen, front = {node}, [node]
    while front:
        for one in front:
            if one.module in names:
                return names[one.module]
        front = [each for one in front for each in getattr(one, direction) if each not in seen]
        seen.update(front)
    return ""
