"""CIFAR ResNets of depth 6n + 2 (He, Zhang, Ren, Sun, 2015, https://arxiv.org/abs/1512.03385).

Three stages of n two-layer blocks with 16, 32 and 64 channels. The first shortcut of stages 2
and 3 changes shape: option A subsamples and pads with zeros, option B projects.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
EXPANSION = 4  # channels after a bottleneck, of those in it


class ZeroPadding(nn.Module):
    """Shortcut option A: every second pixel, and zeros in the added channels."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """`relu(f(x) + s(x))`; `f` is two 3x3 convolutions, each followed by batch norm."""

    def __init__(self, channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if channels != width and shortcut == "A":
            self.shortcut = ZeroPadding(width - channels)
        elif channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """`relu(f(x) + s(x))`; `f` is a 1x1, a 3x3 and a 1x1 convolution, each with batch norm."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.shortcut: nn.Module = nn.Identity()
        if channels != wide:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet for small images, `(N, 3, H, W)` to logits `(N, num_classes)`.

    Args:
        blocks: residual blocks per stage; the depth is `6 * blocks + 2`, or `9 * blocks + 2`.
        shortcut: `"A"` (zero padding) or `"B"` (projection) where the shape changes.
        num_classes: number of logits.
        bottleneck: whether the branches are bottlenecks; their shortcuts are projections.
    """

    def __init__(
        self, blocks: int, shortcut: str = "A", num_classes: int = 10, bottleneck: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        first, second, third = WIDTHS
        wide = EXPANSION if bottleneck else 1
        how = "bottleneck" if bottleneck else shortcut
        self.layer1 = _stage(blocks, first, first, 1, how)
        self.layer2 = _stage(blocks, wide * first, second, 2, how)
        self.layer3 = _stage(blocks, wide * second, third, 2, how)
        self.linear = nn.Linear(wide * third, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(blocks: int, channels: int, width: int, stride: int, how: str) -> nn.Sequential:
    """Blocks with `width` channels in their branches; the first has the stride."""
    if how == "bottleneck":
        first: nn.Module = BottleneckBlock(channels, width, stride)
        rest = [BottleneckBlock(EXPANSION * width, width, 1) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)
    first = BasicBlock(channels, width, stride, how)
    return nn.Sequential(first, *(BasicBlock(width, width, 1, "") for _ in range(blocks - 1)))
