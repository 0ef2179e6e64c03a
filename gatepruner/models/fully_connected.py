"""The source paper's deep fully-connected networks for MNIST, and its highway baseline.

Savarese, Mazza, Figueiredo, *Learning Identity Mappings with Residual Gates*, 2016,
https://arxiv.org/abs/1611.01260. Srivastava, Greff, Schmidhuber, *Highway Networks*, 2015,
https://arxiv.org/abs/1505.00387.

The plain network of the paper is the residual one with its shortcuts removed, and the gated
networks are the same with gates added: edits, not classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Branch(nn.Sequential):
    """The branch `f(x)`: two linear layers, each followed by batch norm, with a ReLU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.relu = nn.ReLU()
        self.linear2 = nn.Linear(width, width, bias=False)
        self.bn2 = nn.BatchNorm1d(width)


class ResidualBlock(nn.Module):
    """`relu(f(x) + x)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = Branch(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + x)


class HighwayBlock(nn.Module):
    """`relu(T(x) f(x) + (1 - T(x)) x)` with the transform gate `T(x) = sigmoid(W_T x + b_T)`.

    Computed as the equal `T(x) (f(x) - x) + x`, whose shortcut is the identity. `b_T` starts
    below 0, so that a new network carries rather than transforms.
    """

    def __init__(self, width: int, transform_bias: float = -2.0) -> None:
        super().__init__()
        self.branch = Branch(width)
        self.transform = nn.Linear(width, width)
        nn.init.constant_(self.transform.bias, transform_bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.transform(x).sigmoid() * (self.branch(x) - x) + x)


class FullyConnected(nn.Module):
    """Fully-connected network, images `(N, C, H, W)` to logits `(N, num_classes)`.

    Args:
        blocks: number of two-layer blocks; the depth is `2 * blocks`, not counting stem and head.
        width: units per layer.
        features: values per image, `C * H * W`.
        num_classes: number of logits.
        highway: whether to use highway blocks instead of residual ones.
        transform_bias: initial bias of the transform gates of highway blocks.
    """

    def __init__(
        self,
        blocks: int,
        width: int = 50,
        features: int = 784,
        num_classes: int = 10,
        highway: bool = False,
        transform_bias: float = -2.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(features, width, bias=False)
        self.bn = nn.BatchNorm1d(width)
        self.blocks = nn.Sequential(
            *(
                HighwayBlock(width, transform_bias) if highway else ResidualBlock(width)
                for _ in range(blocks)
            )
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x.flatten(1))))
        logits: Tensor = self.head(self.blocks(x))
        return logits
