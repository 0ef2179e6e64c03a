"""Pre-activation and wide ResNets for small images, in three stages.

Zagoruyko and Komodakis, *Wide Residual Networks*, 2016, https://arxiv.org/abs/1605.07146: the
blocks of pre-activation ResNets with k times the channels, and dropout between the two
convolutions.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gatepruner.models.preactivation import PROJECTIONS, initialise, stage
from gatepruner.models.resnet import EXPANSION


class WideResNet(nn.Module):
    """Pre-activation ResNet, `(N, 3, H, W)` to logits `(N, num_classes)`.

    Args:
        blocks: residual blocks per stage: `(d - 4) / 6` for WRN-d-k, `(d - 2) / 6` and `width=1`
            for a pre-activation ResNet of depth d, `(d - 2) / 9` for one of bottlenecks.
        width: factor k on the 16, 32 and 64 channels of the stages.
        dropout: probability of dropout before the last convolution of a block.
        num_classes: number of logits.
        stem: channels after the stem; if equal to those of the first stage, the first block has
            an identity shortcut.
        projection: whether the shortcuts that change shape take what the first ReLU of their
            block gives (`"shared"`), as in the papers, or the block's input (`"raw"`).
        bottleneck: whether the branches are bottlenecks.
    """

    def __init__(
        self,
        blocks: int,
        width: int = 1,
        dropout: float = 0.0,
        num_classes: int = 10,
        stem: int = 16,
        projection: str = "shared",
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        if projection not in PROJECTIONS:
            raise ValueError(f"projection is {projection!r}: expected {' or '.join(PROJECTIONS)}")
        how: dict[str, Any] = {"dropout": dropout, "projection": projection}
        how["bottleneck"] = bottleneck
        wide = EXPANSION * width if bottleneck else width
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.layer1 = stage(blocks, stem, 16 * width, 1, **how)
        self.layer2 = stage(blocks, 16 * wide, 32 * width, 2, **how)
        self.layer3 = stage(blocks, 32 * wide, 64 * width, 2, **how)
        self.bn = nn.BatchNorm2d(64 * wide)
        self.linear = nn.Linear(64 * wide, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(F.relu(self.bn(x)).mean((2, 3)))
        return logits
