"""Several networks in one module: what they have in common is computed once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx

from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.edits import settle_in_place
from gatepruner.networks.graph import attribute
from gatepruner.networks.head import features_graph
from gatepruner.networks.network import Network
from gatepruner.networks.norms import statistics


def merged(
    checkpoint: Checkpoint, networks: Sequence[Network], *, features: bool = False
) -> fx.GraphModule:
    """One module with the logits of several networks, equal parts of them computed once.

    Args:
        checkpoint: the whole network with its weights.
        networks: what is left of it after some removals.
        features: whether to compute what the head of each network takes instead of its logits.

    Returns:
        A module that maps images to a tuple of logits, one for each network, bit for bit those
        of the networks built one by one.
    """
    graph, known, heads = fx.Graph(), {}, []
    for network in networks:
        env: dict[fx.Node, fx.Node] = {}
        for node in (features_graph(network) if features else network.graph()).nodes:
            if node.op == "output":
                heads.append(env[node.args[0]])
                continue
            inputs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            same = (node.op, node.target, repr(inputs))  # nodes print as their names
            if same not in known:
                known[same] = graph.node_copy(node, env.__getitem__)
            env[node] = known[same]
    graph.output(tuple(heads))
    module = fx.GraphModule(checkpoint.build(), graph)
    settle_in_place(module)
    return module


def with_own_statistics(module: fx.GraphModule) -> fx.GraphModule:
    """Give every batch norm of a merged module statistics of its own, equal at first.

    Networks share the layer; after a removal each sees other inputs, so their statistics part.
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
            shared = next(used for used in node.all_input_nodes if used.target == key)
            node.replace_input_with(shared, read)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
