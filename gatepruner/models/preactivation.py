"""Pre-activation blocks, and the four-stage ResNets for small images that are made of them.

He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks*, 2016,
https://arxiv.org/abs/1603.05027: batch norm and ReLU come before each convolution, and nothing
lies between one addition and the next.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gatepruner.models.resnet import EXPANSION

PROJECTIONS = ("shared", "raw")
LAYERS = {  # blocks per stage by depth
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
SHALLOW = (18, 34)  # without bottlenecks


class PreActivationBlock(nn.Module):
    """`f(x) + s(x)`; `f` is two 3x3 convolutions, or a bottleneck: 1x1, 3x3 and 1x1.

    Args:
        channels: of the input.
        width: channels in the branch; the result of a bottleneck has four times as many.
        stride: of the first 3x3 convolution.
        bottleneck: whether the branch is a bottleneck.
        dropout: probability of dropout before the last convolution.
        projection: whether a projection takes what the first ReLU of `f` gives (`"shared"`), or `x`
            (`"raw"`).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        bottleneck: bool = False,
        dropout: float = 0.0,
        projection: str = "shared",
    ) -> None:
        super().__init__()
        self.shared = projection == "shared"
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = _conv(channels, width, 1) if bottleneck else _conv(channels, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = _conv(width, width, 3, stride if bottleneck else 1)
        self.bn3 = nn.BatchNorm2d(width) if bottleneck else None
        wide = EXPANSION * width if bottleneck else width
        self.conv3 = _conv(width, wide, 1) if bottleneck else None
        self.shortcut = _conv(channels, wide, 1, stride) if channels != wide else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x
        if self.shortcut is not None:
            shortcut = self.shortcut(out if self.shared else x)
        out, last = F.relu(self.bn2(self.conv1(out))), self.conv2
        if self.bn3 is not None and self.conv3 is not None:
            out, last = F.relu(self.bn3(self.conv2(out))), self.conv3
        result: Tensor = last(self.dropout(out)) + shortcut
        return result


class PreActivationResNet(nn.Module):
    """ResNet with the four stages of those for large images, `(N, 3, H, W)` to `(N, num_classes)`.

    As in https://github.com/kuangliu/pytorch-cifar, neither batch norm nor ReLU follows the last
    block.

    Args:
        depth: one of `LAYERS`.
        num_classes: number of logits.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 3)
        bottleneck = depth not in SHALLOW
        channels = 64
        for index, blocks in enumerate(LAYERS[depth]):
            width = 64 * 2**index
            layer = stage(blocks, channels, width, 2 if index else 1, bottleneck=bottleneck)
            self.add_module(f"layer{index + 1}", layer)
            channels = EXPANSION * width if bottleneck else width
        self.linear = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for index in range(4):
            x = self.get_submodule(f"layer{index + 1}")(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def stage(
    blocks: int, channels: int, width: int, stride: int, *, bottleneck: bool = False, **how: Any
) -> nn.Sequential:
    """Pre-activation blocks, of which the first one takes other channels and has the stride.

    Args:
        blocks: how many.
        channels: of the input.
        width: channels in the branches.
        stride: of the first block.
        bottleneck: whether the branches are bottlenecks.
        how: further arguments of every block.
    """
    wide = EXPANSION * width if bottleneck else width
    first = PreActivationBlock(channels, width, stride, bottleneck, **how)
    rest = (PreActivationBlock(wide, width, 1, bottleneck, **how) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def initialise(module: nn.Module) -> None:
    """Draw the weights of all convolutions (He et al., 2015, https://arxiv.org/abs/1502.01852)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")


def _conv(channels: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, size, stride, size // 2, bias=False)
