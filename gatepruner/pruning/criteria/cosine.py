"""How little a block turns what goes through it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from gatepruner.measuring.device import place
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.criteria.criterion import Evidence
from gatepruner.pruning.criteria.passes import batches, device_of, images_of


@torch.inference_mode()
def cosine(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """1 minus the mean cosine similarity of what enters and what leaves each block.

    What enters is the value of the shortcut, which would stand in the block's place; what leaves
    is its sum with the branch, gate included. Both are flattened, one vector for each image.

    Source: Men et al., 2024, https://arxiv.org/abs/2403.03853 (Block Influence).
    """
    module = fx.GraphModule(checkpoint.build(), _similarities(checkpoint.network, names))
    place(module, device_of(evidence)).eval()
    sums = torch.zeros(len(names), device=device_of(evidence))
    for images, _ in batches(checkpoint, evidence):
        sums += module(images)
    return dict(zip(names, (1 - sums / len(images_of(evidence))).tolist(), strict=True))


def _similarities(network: Network, names: Sequence[str]) -> fx.Graph:
    """A graph whose output is the sum of the similarities of each block `(blocks,)`."""
    joins = {network.joins[name][1]: name for name in names}
    graph, env, found = fx.Graph(), dict[str, fx.Node](), dict[str, fx.Node]()
    for node in network.graph().nodes:
        env[node.name] = graph.node_copy(node, lambda used: env[used.name])
        if name := joins.get(node.name):
            pair = tuple(env[at] for at in network.joins[name])
            found[name] = graph.call_function(similarity, pair)
        if len(found) == len(names):
            break
    graph.output(graph.call_function(torch.stack, ([found[name] for name in names],)))
    return graph


def similarity(one: Tensor, other: Tensor) -> Tensor:
    """The cosine similarity of the images' vectors, summed over the images."""
    return F.cosine_similarity(one.flatten(1), other.flatten(1)).sum()
