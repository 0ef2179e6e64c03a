"""The head of a network: its last layer, which maps features to logits."""

from __future__ import annotations

import functools

from torch import fx, nn

from gatepruner.networks.base import Base, traced
from gatepruner.networks.network import Network
from gatepruner.networks.nodes import tensors_of


def features_graph(network: Network) -> fx.Graph:
    """The network's graph without its head: its output is the features.

    If the base has no head (because its last layer with parameters lies within a branch, for
    example), the output is the logits.
    """
    head = head_of(network.base)
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in network.graph().nodes:
        if node.op == "output" or node.meta.get("base", "") == head:
            graph.output(env[values_of(node)[0]])
            break
        env[node] = graph.node_copy(node, env.__getitem__)
    return graph


@functools.lru_cache(maxsize=32)
def head_of(base: Base) -> str | None:
    """The name of the base's head: its last node with parameters.

    Walks back from the output through nodes with one input each; `None` if the walk meets a node
    with several inputs first.
    """
    module = traced(base).module
    (node,) = (node for node in module.graph.nodes if node.op == "output")
    while len(values := values_of(node)) == 1:
        if _has_parameters(module, node):
            return str(node.name)
        (node,) = values
    return None


def values_of(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node, without the module's tensors."""
    return [value for value in node.all_input_nodes if value.op != "get_attr"]


def _has_parameters(module: fx.GraphModule, node: fx.Node) -> bool:
    owners = [value for value in node.all_input_nodes if value.op == "get_attr"]
    owners += [node] if node.op == "call_module" else []
    return any(
        isinstance(tensor, nn.Parameter)
        for owner in owners
        for tensor in tensors_of(module, str(owner.target)).values()
    )
