"""Variants of torchvision's ResNets that its constructors do not offer.

Their weights have the same names, so a file does not tell them apart:

- `v1=true`: a bottleneck block has its stride in the first convolution (He, Zhang, Ren, Sun, 2015,
  https://arxiv.org/abs/1512.03385), where torchvision has it in the second (v1.5).
- `stem=small`: for images of about 32 pixels: a 3x3 convolution of stride 1, without max-pool.
"""

from __future__ import annotations

from typing import Any

from torch import nn

STEMS = ("usual", "small")
VARIANTS = ("stem", "v1")


def vary(module: nn.Module, channels: int, stem: str = "usual", v1: bool = False) -> nn.Module:
    """A torchvision ResNet with another stem or other strides.

    Args:
        module: the network as torchvision constructs it; it is changed.
        channels: of the images.
        stem: one of `STEMS`.
        v1: whether bottleneck blocks have their stride in the first convolution.

    Raises:
        ValueError: there is no such stem, or the network has no such layer.
    """
    if stem not in STEMS:
        raise ValueError(f"stem is {stem!r}: expected {' or '.join(STEMS)}")
    first = getattr(module, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not hasattr(module, "maxpool"):
        raise ValueError("only its ResNets have variants and take images of other channels")
    if stem == "small":
        module.add_module("conv1", _stem(channels, first, kernel_size=3, stride=1, padding=1))
        module.add_module("maxpool", nn.Identity())
    elif channels != first.in_channels:
        module.add_module("conv1", _stem(channels, first, kernel_size=7, stride=2, padding=3))
    if v1:
        _move_strides(module)
    return module


def _move_strides(module: nn.Module) -> None:
    """Exchange the strides of the first two convolutions of every bottleneck block."""
    moved = 0
    for block in module.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
            moved += hasattr(block, "conv3")
            first.stride, second.stride = second.stride, first.stride
    if not moved:
        raise ValueError("only bottleneck blocks have a variant v1")


def _stem(channels: int, first: nn.Conv2d, **shape: Any) -> nn.Conv2d:
    conv = nn.Conv2d(channels, first.out_channels, bias=False, **shape)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
