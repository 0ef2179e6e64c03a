"""Pre-activation and wide ResNets for small images.

He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks*, 2016,
https://arxiv.org/abs/1603.05027: batch norm and ReLU come before each convolution, and nothing
lies between one addition and the next. Zagoruyko and Komodakis, *Wide Residual Networks*, 2016,
https://arxiv.org/abs/1605.07146: the same blocks with k times the channels, and dropout between
the two convolutions.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

PROJECTIONS = ("shared", "raw")


class PreActivationBlock(nn.Module):
    """`f(x) + s(x)`; a shared projection takes what the first batch norm and ReLU of `f` give."""

    def __init__(
        self, channels: int, width: int, stride: int, dropout: float, projection: str
    ) -> None:
        super().__init__()
        self.shared = projection == "shared"
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels, width, 1, stride, bias=False) if channels != width else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x
        if self.shortcut is not None:
            shortcut = self.shortcut(out if self.shared else x)
        out = self.dropout(F.relu(self.bn2(self.conv1(out))))
        result: Tensor = self.conv2(out) + shortcut
        return result


class WideResNet(nn.Module):
    """Pre-activation ResNet, `(N, 3, H, W)` to logits `(N, num_classes)`.

    Args:
        blocks: residual blocks per stage: `(d - 4) / 6` for WRN-d-k, `(d - 2) / 6` and `width=1`
            for a pre-activation ResNet of depth d.
        width: factor k on the 16, 32 and 64 channels of the stages.
        dropout: probability of dropout between the two convolutions of a block.
        num_classes: number of logits.
        stem: channels after the stem; if equal to those of the first stage, the first block has
            an identity shortcut.
        projection: whether the shortcuts that change shape take what the first ReLU of their
            block gives (`"shared"`), as in the papers, or the block's input (`"raw"`).
    """

    def __init__(
        self,
        blocks: int,
        width: int = 1,
        dropout: float = 0.0,
        num_classes: int = 10,
        stem: int = 16,
        projection: str = "shared",
    ) -> None:
        super().__init__()
        if projection not in PROJECTIONS:
            raise ValueError(f"projection is {projection!r}: expected {' or '.join(PROJECTIONS)}")
        how = (dropout, projection)
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.layer1 = _stage(blocks, stem, 16 * width, 1, *how)
        self.layer2 = _stage(blocks, 16 * width, 32 * width, 2, *how)
        self.layer3 = _stage(blocks, 32 * width, 64 * width, 2, *how)
        self.bn = nn.BatchNorm2d(64 * width)
        self.linear = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(F.relu(self.bn(x)).mean((2, 3)))
        return logits


def _stage(blocks: int, channels: int, width: int, stride: int, *how: Any) -> nn.Sequential:
    first = PreActivationBlock(channels, width, stride, *how)
    rest = (PreActivationBlock(width, width, 1, *how) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
