"""The features of a network: the last feature map, which its head pools and classifies.

A map has more than one position, as `(C, H, W)` or `(tokens, C)` do. Every path from the images
to the logits passes through it, so no removal of blocks can go around it, and no block lies behind
it, so every removal changes it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from gatepruner.networks.base import Base, traced
from gatepruner.networks.dry_run import DryRun
from gatepruner.networks.head import head_of, values_of
from gatepruner.networks.network import Network


@dataclass(frozen=True)
class Features:
    """Where a network has its features.

    Attributes:
        node: name of the base's node whose value they are.
        reader: name of the base's node that takes them, for messages.
        shape: of the features of one image.
    """

    node: str
    reader: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"what {self.reader} takes ({'x'.join(map(str, self.shape))})"


@functools.lru_cache(maxsize=32)
def features_of(network: Network) -> Features | None:
    """The last feature map of a network, or else what its head takes; `None` if there is neither.

    Nor are there any if the network is narrowed there, as in its head: they could not be compared
    with those of the whole network.
    """
    found = _features_of(network.base)
    if found is None or not network.edits.narrowed:
        return found
    shape = tuple(_results(network)[found.node].shape[1:])
    return found if shape == found.shape else None


@functools.lru_cache(maxsize=32)
def _features_of(base: Base) -> Features | None:
    """The features of a base."""
    results = _results(Network(base))
    head = head_of(base)
    taken = None
    blocks = {addition.node for addition in traced(base).additions.values()}
    for value in _passages(traced(base).module.graph, blocks):
        reader = next(
            (user for user in value.users if _holds_tensors(results.get(user.name))), None
        )
        result = results.get(value.name)
        if reader is None or not isinstance(result, Tensor):  # such as the chunks of a tensor
            continue
        found = Features(value.name, reader.name, tuple(result.shape[1:]))
        if sum(side > 1 for side in found.shape) > 1:
            return found
        taken = found if reader.name == head else taken
    return taken


def _passages(graph: fx.Graph, blocks: Set[str]) -> Iterator[fx.Node]:
    """The values that every path from the images to the logits passes, from the last to the first.

    Without the images and the logits, and without those before the last of the blocks' additions.
    """
    (output,) = (node for node in graph.nodes if node.op == "output")
    logits, taken = values_of(output), set(values_of(output))  # by the nodes after this one
    for node in reversed(graph.nodes):
        if node in taken:
            if len(taken) == 1 and node.op != "placeholder" and node not in logits:
                yield node
            if node.name in blocks:
                return
            taken = taken - {node} | set(values_of(node))


def with_features(network: Network, features: Features) -> fx.Graph:
    """The network's graph with two outputs: the logits and the features."""
    graph = fx.Graph()
    env: dict[str, fx.Node] = {}
    for node in network.graph().nodes:
        if node.op == "output":
            graph.output((env[node.args[0].name], env[network.values[features.node]]))
        else:
            env[node.name] = graph.node_copy(node, lambda value: env[value.name])
    return graph


def _results(network: Network) -> dict[str, Any]:
    """What a network computes in place of the base's nodes for two images, by their names."""
    module = network.build_blank()
    run = DryRun(module.to("meta"), module.graph, 2, network.base.input_shape)
    run.value(next(iter(reversed(module.graph.nodes))))
    results = {node.name: value for node, value in run.values.items()}
    return {name: results[value] for name, value in network.values.items()}


def _holds_tensors(result: Any) -> bool:
    """Whether a value is a tensor or several, and no size or type, for example."""
    several = isinstance(result, (tuple, list)) and not isinstance(result, torch.Size)
    return isinstance(result, (Tensor, dict)) or several
