"""Channels removed by Torch-Pruning, for `against_torch_pruning.py`.

Its criteria are `norm` (group norm), `taylor` (gradients taken anew before each step) and `bn`
(batch-norm scales). As in its own script for CIFAR it prunes globally, in many small steps towards
a ratio of 1, without the last layer and without rounding channels (`round_to` takes 8 channels
where one is weak; a layer of ResNet-56 has 16). Its penalties during further training are left
out: they cost epochs that the others do not get.

What it can prune in a ResNet-56: the channels within all 27 blocks. Those of the stream not as the
network is: it takes the zero padding of the two shortcuts that change shape for an elementwise
operation, so that all three stages lose the same numbers among the first 16 channels, while the
padding moves channel i to i + 8 and i + 16: the result runs, but adds up channels that do not
belong together. For `-stream` the padding is therefore written as the 1x1 convolution that it is
(same function, its weights 0 and 1, trained on like all others); then every stage loses channels of
its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import gatepruner
from gatepruner.measuring.inputs import normalization_of
from gatepruner.models.resnet import BasicBlock, ZeroPadding

CRITERIA = ("norm", "taylor", "bn")
METHODS = tuple(f"tp-{name}{where}" for where in ("", "-stream") for name in CRITERIA)
TAYLOR_IMAGES = 256  # training images for the gradients before each step


def history(
    whole: gatepruner.Checkpoint,
    train: gatepruner.Images,
    method: str,
    *,
    steps: int,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Which channels go, in Torch-Pruning's own notation, and how many entries each step has."""
    module = plain_module(whole, method).to(device)
    example = torch.zeros(1, *whole.network.base.input_shape, device=device)
    pruner = channel_pruner(module, example, method, steps)
    normalization = normalization_of(whole, train)
    generator, ends = torch.Generator().manual_seed(seed), [0]
    for _ in range(steps):
        if "taylor" in method:
            module.zero_grad()
            drawn = torch.randperm(len(train), generator=generator)[:TAYLOR_IMAGES]
            images = train.take(drawn).to(torch.device(device))
            for pixels, labels in images.batches(torch.arange(len(images)), 128):
                logits = module(normalization(pixels))
                torch.autograd.backward(F.cross_entropy(logits, labels, reduction="sum"))
        pruner.step()
        ends.append(len(pruner.pruning_history()))
    entries = [[name, out, list(map(int, gone))] for name, out, gone in pruner.pruning_history()]
    return {"history": entries, "ends": ends}


def channel_pruner(module: nn.Module, example: torch.Tensor, method: str, steps: int) -> Any:
    import torch_pruning as tp

    kind, importance = {
        "norm": (tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance(p=2)),
        "taylor": (tp.pruner.BasePruner, tp.importance.GroupTaylorImportance()),
        "bn": (tp.pruner.BNScalePruner, tp.importance.BNScaleImportance()),
    }[method.split("-")[1]]
    named = dict(module.named_modules())
    stream = [named[name] for name in named if name == "conv1" or name.endswith(".conv2")]
    kept = [named["linear"], *([] if method.endswith("-stream") else stream)]
    how: dict[str, Any] = {"global_pruning": True, "pruning_ratio": 1.0, "iterative_steps": steps}
    return kind(module, example, importance=importance, ignored_layers=kept, **how)


def narrowed(
    whole: gatepruner.Checkpoint, method: str, entries: list[Any]
) -> gatepruner.Checkpoint:
    """The network without the channels that these entries of a history name."""
    import torch_pruning as tp

    shape = whole.network.base.input_shape
    module = plain_module(whole, method)
    graph = tp.DependencyGraph().build_dependency(module, torch.zeros(1, *shape))
    graph.load_pruning_history(entries)
    return gatepruner.Checkpoint.of(module, shape, notes=whole.notes)


def plain_module(whole: gatepruner.Checkpoint, method: str) -> nn.Module:
    """The network as its author wrote it; for the stream, padding as a convolution."""
    module = whole.network.base.construct()
    module.load_state_dict(dict(whole.weights))
    for block in list(module.modules()) if method.endswith("-stream") else ():
        if isinstance(block, BasicBlock) and isinstance(block.shortcut, ZeroPadding):
            block.shortcut = as_convolution(block.shortcut, block.conv1.in_channels)
    return module.eval()


def as_convolution(padding: ZeroPadding, channels: int) -> nn.Conv2d:
    width = padding.before + channels + padding.after
    convolution = nn.Conv2d(channels, width, 1, stride=2, bias=False)
    weight = torch.zeros(width, channels, 1, 1)
    weight[padding.before : padding.before + channels, :, 0, 0] = torch.eye(channels)
    convolution.weight.data = weight
    return convolution
