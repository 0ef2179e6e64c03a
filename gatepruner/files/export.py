"""Exporting pruned networks to torchvision's own classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gatepruner.errors import PlanError, listed
from gatepruner.files.stages import BEFORE, check_widths
from gatepruner.models.variants import VARIANTS
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.surgery import fold_gates

GROUPS: dict[str, dict[str, int]] = {  # arguments that torchvision's constructors pass to ResNet
    "resnext50_32x4d": {"groups": 32, "width_per_group": 4},
    "resnext101_32x8d": {"groups": 32, "width_per_group": 8},
    "resnext101_64x4d": {"groups": 64, "width_per_group": 4},
    "wide_resnet50_2": {"width_per_group": 128},
    "wide_resnet101_2": {"width_per_group": 128},
}
STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class StockResNet:
    """A network that `torchvision.models.ResNet(block, layers, **arguments)` constructs.

    Attributes:
        block: `"BasicBlock"` or `"Bottleneck"`.
        layers: number of blocks in each of the four stages.
        arguments: other arguments of the constructor.
        state: its state dict.
    """

    block: str
    layers: tuple[int, ...]
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]

    def build(self) -> nn.Module:
        """The torchvision module with these weights, in evaluation mode."""
        from torchvision.models import ResNet
        from torchvision.models.resnet import BasicBlock, Bottleneck

        kind = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[self.block]
        module: nn.Module = ResNet(kind, list(self.layers), **self.arguments)
        module.load_state_dict(dict(self.state), strict=True)
        return module.eval()

    def recipe(self, path: str) -> str:
        """Python code that loads the state dict from a file with torchvision alone."""
        arguments = "".join(f", {key}={value!r}" for key, value in self.arguments.items())
        read, load = "import torch", f"torch.load({path!r}, weights_only=True)"
        if path.endswith(".safetensors"):
            read, load = "from safetensors.torch import load_file", f"load_file({path!r})"
        return (
            f"{read}\n"
            "from torchvision.models.resnet import ResNet, "
            f"{self.block}\n"
            f"model = ResNet({self.block}, {list(self.layers)}{arguments})\n"
            f"model.load_state_dict({load})"
        )


def to_torchvision(checkpoint: Checkpoint) -> StockResNet:
    """Convert a pruned ResNet to torchvision's own class: fold gates and renumber blocks.

    Args:
        checkpoint: a network of torchvision's ResNet family with whole blocks removed.

    Returns:
        The arguments of `torchvision.models.ResNet` and the state dict that it loads strictly.

    Raises:
        PlanError: the network is of another family, a remaining block lacks its branch or its
            shortcut or has a constant factor, a layer is narrowed, or a stage has no block left.
    """
    network = checkpoint.network
    if network.edits.gated:
        checkpoint = fold_gates(checkpoint)
        network = checkpoint.network
    base, edits = network.base, network.edits
    family = re.fullmatch(r"(wide_)?(resnet|resnext)\d+\w*", base.name)
    if base.source != "torchvision" or not family:
        raise PlanError(
            f"cannot export {network} to torchvision's ResNet: expected a network of its ResNet "
            "family; write a .safetensors file instead"
        )
    varied = [key for key, _ in base.arguments if key in VARIANTS]
    if varied or base.input_shape[0] != 3:
        raise PlanError(
            f"cannot export {network} to torchvision's ResNet: its "
            f"{listed(varied or ['channels'])} differ from those of torchvision's class; write a "
            ".safetensors file instead"
        )
    check_widths(network, "torchvision's ResNet")
    halves = [block.name for block in network.blocks if not block.removable]
    unfit = [*halves, *edits.scaled_branches, *edits.scaled_shortcuts]
    if unfit:
        raise PlanError(
            f"cannot export {network} to torchvision's ResNet: {listed(unfit)} lacks its branch or "
            "its shortcut, and torchvision's blocks have both; keep the blocks that change "
            f"shape: {BEFORE}"
        )
    kept = {
        stage: [block.name for block in network.blocks if block.stage == stage] for stage in STAGES
    }
    empty = [stage for stage, names in kept.items() if not names]
    if empty:
        raise PlanError(
            f"cannot export {network} to torchvision's ResNet: {listed(empty)} has no block left, "
            "and torchvision needs at least one per stage; keep one: "
            f"{BEFORE}"
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
    """A state-dict key with its block renamed."""
    name = ".".join(key.split(".")[:2])
    return renamed[name] + key[len(name) :] if name in renamed else key
