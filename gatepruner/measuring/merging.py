"""Merging several networks into one module that computes their common parts once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx

from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.edits import settle_in_place
from gatepruner.networks.head import features_graph
from gatepruner.networks.network import Network
from gatepruner.networks.nodes import attribute
from gatepruner.networks.norms import statistics


def merged(
    checkpoint: Checkpoint, networks: Sequence[Network], *, features: bool = False
) -> fx.GraphModule:
    """One module with the logits of several networks, whose common parts it computes once.

    Args:
        checkpoint: the whole network with its weights.
        networks: the whole network after some removals.
        features: whether to return the features before the head instead of the logits.

    Returns:
        A module that maps images to a tuple of logits, one per network, equal bit for bit to those
        of the networks built one by one.
    """
    graph, copies, heads = fx.Graph(), {}, []
    for network in networks:
        env: dict[fx.Node, fx.Node] = {}
        for node in (features_graph(network) if features else network.graph()).nodes:
            if node.op == "output":
                heads.append(env[node.args[0]])
                continue
            inputs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            key = (node.op, node.target, repr(inputs))  # the repr of a node is its name
            if key not in copies:
                copies[key] = graph.node_copy(node, env.__getitem__)
            env[node] = copies[key]
    graph.output(tuple(heads))
    module = fx.GraphModule(checkpoint.build(), graph)
    settle_in_place(module)
    return module


def with_own_statistics(module: fx.GraphModule) -> fx.GraphModule:
    """Give every batch norm of a merged module its own copy of the statistics.

    The networks share the layer, but its inputs, and thus its statistics, differ between them.
    """
    for index, (node, keys) in enumerate(statistics(module).items()):
        if node.op == "call_module":
            layer = copy.copy(module.get_submodule(str(node.target)))  # the same weights
            layer._buffers = dict(layer._buffers)
            for key in keys:
                layer._buffers[key.rpartition(".")[2]] = attribute(module, key).clone()
            node.target = f"statistics_{index}"
            module.add_submodule(node.target, layer)
            continue
        for key, name in zip(keys, ("mean", "variance"), strict=True):
            own = f"statistics_{index}_{name}"
            module.register_buffer(own, attribute(module, key).clone())
            with module.graph.inserting_before(node):
                read = module.graph.get_attr(own)
            shared = next(value for value in node.all_input_nodes if value.target == key)
            node.replace_input_with(shared, read)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
