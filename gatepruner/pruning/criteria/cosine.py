"""Cosine similarity: how much a block changes the direction of its input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from gatepruner import processes
from gatepruner.measuring.device import place
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.criteria.criterion import Evidence
from gatepruner.pruning.criteria.passes import batches, device_of, images_of


@torch.inference_mode()
def cosine(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """1 minus the mean cosine similarity of each block's input and output.

    The input is the value of the shortcut, which would replace the block; the output is its sum
    with the gated branch. Both are flattened to one vector per image.

    Source: Men et al., 2024, https://arxiv.org/abs/2403.03853 (Block Influence).
    """
    module = fx.GraphModule(checkpoint.build(), _similarities(checkpoint.network, names))
    place(module, device_of(evidence)).eval()
    sums = torch.zeros(len(names), device=device_of(evidence))
    for images, _ in batches(checkpoint, evidence):
        sums += module(images)
    processes.add(sums)
    return dict(zip(names, (1 - sums / len(images_of(evidence))).tolist(), strict=True))


def _similarities(network: Network, names: Sequence[str]) -> fx.Graph:
    """A graph that returns the similarities of each block, summed over images, `(blocks,)`."""
    outputs = {network.joins[name][1]: name for name in names}
    graph, env, similarities = fx.Graph(), dict[str, fx.Node](), dict[str, fx.Node]()
    for node in network.graph().nodes:
        env[node.name] = graph.node_copy(node, lambda value: env[value.name])
        if name := outputs.get(node.name):
            ends = tuple(env[end] for end in network.joins[name])
            similarities[name] = graph.call_function(similarity, ends)
        if len(similarities) == len(names):
            break
    graph.output(graph.call_function(torch.stack, ([similarities[name] for name in names],)))
    return graph


def similarity(x: Tensor, y: Tensor) -> Tensor:
    """The cosine similarity of `(N, ...)` and `(N, ...)`, summed over images."""
    return F.cosine_similarity(x.flatten(1), y.flatten(1)).sum()
