"""Hand a pruned network over to software that knows nothing of this project."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gatepruner.errors import PlanError, listed
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.surgery import fold_gates

GROUPS: dict[str, dict[str, int]] = {  # what torchvision's constructors pass on to ResNet
    "resnext50_32x4d": {"groups": 32, "width_per_group": 4},
    "resnext101_32x8d": {"groups": 32, "width_per_group": 8},
    "resnext101_64x4d": {"groups": 64, "width_per_group": 4},
    "wide_resnet50_2": {"width_per_group": 128},
    "wide_resnet101_2": {"width_per_group": 128},
}
STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class StockResNet:
    """A network as `torchvision.models.ResNet(block, layers, **arguments)` takes it.

    Attributes:
        block: `"BasicBlock"` or `"Bottleneck"`.
        layers: blocks in each of the four stages.
        arguments: what else the constructor is given.
        state: its state dict.
    """

    block: str
    layers: tuple[int, ...]
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]

    def build(self) -> nn.Module:
        """The stock module with the weights, loaded strictly, in evaluation mode."""
        from torchvision.models import ResNet
        from torchvision.models.resnet import BasicBlock, Bottleneck

        kind = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[self.block]
        module: nn.Module = ResNet(kind, list(self.layers), **self.arguments)
        module.load_state_dict(dict(self.state), strict=True)
        return module.eval()

    def recipe(self, path: str) -> str:
        """Python that loads a file of the state dict with torchvision alone."""
        given = "".join(f", {key}={value}" for key, value in self.arguments.items())
        read, load = "import torch", f"torch.load({path!r}, weights_only=True)"
        if path.endswith(".safetensors"):
            read, load = "from safetensors.torch import load_file", f"load_file({path!r})"
        return (
            f"{read}\n"
            "from torchvision.models.resnet import ResNet, "
            f"{self.block}\n"
            f"model = ResNet({self.block}, {list(self.layers)}{given})\n"
            f"model.load_state_dict({load})"
        )


def to_torchvision(checkpoint: Checkpoint) -> StockResNet:
    """A pruned ResNet for torchvision's own class: gates folded, gaps in its stages closed up.

    Args:
        checkpoint: a network of torchvision's ResNet family with whole blocks removed.

    Raises:
        PlanError: it is no such network, or a shortcut or a single branch is missing.
    """
    network = checkpoint.network
    if network.edits.gated:
        checkpoint = fold_gates(checkpoint)
        network = checkpoint.network
    base, edits = network.base, network.edits
    family = re.fullmatch(r"(wide_)?(resnet|resnext)\d+\w*", base.name)
    if base.source != "torchvision" or not family:
        raise PlanError(
            f"cannot export {network} to torchvision's ResNet: a network of its ResNet family "
            "was expected; write a .safetensors file instead"
        )
    halves = [block.name for block in network.blocks if not block.removable]
    odd = [*halves, *edits.scaled_branches, *edits.scaled_shortcuts]
    if odd:
        raise PlanError(
            f"cannot export {network} to torchvision's ResNet: {listed(odd)} lacks its branch or "
            "its shortcut, and torchvision's blocks have both; keep the blocks that change shape"
        )
    kept = {stage: [b.name for b in network.blocks if b.stage == stage] for stage in STAGES}
    empty = [stage for stage, names in kept.items() if not names]
    if empty:
        raise PlanError(
            f"cannot export {network} to torchvision's ResNet: {listed(empty)} has no block left, "
            "and torchvision builds at least one; keep one"
        )
    renamed = {
        name: f"{stage}.{index}"
        for stage, names in kept.items()
        for index, name in enumerate(names)
    }
    layers = tuple(len(names) for names in kept.values())
    block = "BasicBlock" if base.name in ("resnet18", "resnet34") else "Bottleneck"
    arguments = {**GROUPS.get(base.name, {}), **dict(base.arguments)}
    state = {_renamed(key, renamed): tensor for key, tensor in checkpoint.weights.items()}
    return StockResNet(block, layers, arguments, state)


def _renamed(key: str, renamed: Mapping[str, str]) -> str:
    """A key with the name of the block it begins with changed."""
    name = ".".join(key.split(".")[:2])
    return renamed[name] + key[len(name) :] if name in renamed else key
