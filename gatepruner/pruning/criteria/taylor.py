"""Taylor: the first-order estimate of how the loss changes when a gate closes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from gatepruner import processes
from gatepruner.measuring.device import place
from gatepruner.measuring.inputs import check_fit
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria.criterion import Evidence
from gatepruner.pruning.criteria.passes import batches, device_of, images_of


@torch.enable_grad()
def taylor(checkpoint: Checkpoint, names: Sequence[str], evidence: Evidence) -> dict[str, float]:
    """|k dL/dk| for the gate k of each block and the mean loss L of a batch.

    Blocks without a gate get one of 1, which does not change the logits. The network is in
    evaluation mode and its weights are frozen. Scores are means over the batches, weighted by
    their numbers of images.

    Source: Molchanov, Tyree, Karras, Aila, Kautz, 2017, https://arxiv.org/abs/1611.06440, for
    gates instead of feature maps.

    Raises:
        DataError: the images have another number of classes.
    """
    data = images_of(evidence)
    check_fit(checkpoint, data)
    module, keys = _gated(checkpoint)
    place(module, device_of(evidence)).requires_grad_(False)
    gates = [module.get_parameter(keys[name]).requires_grad_() for name in names]
    sums = torch.zeros(len(names), device=gates[0].device)
    for images, labels in batches(checkpoint, evidence):
        loss = data.task.loss(module(images), labels)
        slopes = torch.stack(torch.autograd.grad(loss, gates))
        sums += len(labels) * (torch.stack(gates).detach() * slopes).abs()
    processes.add(sums)
    return dict(zip(names, (sums / len(data)).tolist(), strict=True))


def _gated(checkpoint: Checkpoint) -> tuple[fx.GraphModule, dict[str, str]]:
    """The network with a gate in every removable block, and the keys of the gates."""
    network = checkpoint.network.with_gates(checkpoint.network.edits.gate or "residual")
    keys = {name: network.gate_key(name) for name in network.edits.gated}
    ones = {key: torch.ones(()) for key in keys.values()}
    gated = replace(checkpoint, network=network, weights={**ones, **checkpoint.weights})
    return gated.build(), keys
