"""The head of a network: its last layer, which makes logits of features."""

from __future__ import annotations

import functools

from torch import fx, nn

from gatepruner.networks.base import Base, traced
from gatepruner.networks.graph import tensors_of
from gatepruner.networks.network import Network


def features_graph(network: Network) -> fx.Graph:
    """The network's graph up to the features that its head takes, which are its output.

    Where the base has no head (its last layer with parameters is within a branch, say), the
    output is the logits.
    """
    head = head_of(network.base)
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in network.graph().nodes:
        if node.op == "output" or node.meta.get("base", "") == head:
            graph.output(env[_values(node)[0]])
            break
        env[node] = graph.node_copy(node, env.__getitem__)
    return graph


@functools.lru_cache(maxsize=32)
def head_of(base: Base) -> str | None:
    """The name of the base's last node with parameters, through which all that it computes goes.

    Walks back from the output through nodes that take one value each; `None` where the walk ends
    at a node that takes several.
    """
    module = traced(base).module
    (node,) = (node for node in module.graph.nodes if node.op == "output")
    while len(values := _values(node)) == 1:
        if _has_parameters(module, node):
            return str(node.name)
        (node,) = values
    return None


def _values(node: fx.Node) -> list[fx.Node]:
    """What a node takes, tensors of the module left out."""
    return [value for value in node.all_input_nodes if value.op != "get_attr"]


def _has_parameters(module: fx.GraphModule, node: fx.Node) -> bool:
    read = [value for value in node.all_input_nodes if value.op == "get_attr"]
    owners = [node, *read] if node.op == "call_module" else read
    tensors = (it for one in owners for it in tensors_of(module, str(one.target)).values())
    return any(isinstance(tensor, nn.Parameter) for tensor in tensors)
