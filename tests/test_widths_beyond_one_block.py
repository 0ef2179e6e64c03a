"""Widths that a block within a branch shares with the branch, and those of a network's head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import images_for, random_images
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gatepruner.learning.recipes import Recipe
from gatepruner.learning.training import finetune
from gatepruner.measuring.agreement import agreement
from gatepruner.measuring.cost import count
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.features import features_of
from gatepruner.pruning.groups import reduced, widths_of
from gatepruner.pruning.surgery import narrow, remove

SHAPE = (3, 8, 8)


class Inner(nn.Module):
    """A block whose shortcut is the identity, or changes shape and makes channels, too."""

    def __init__(self, channels: int, made: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, made, 3, padding=1)
        self.norm = nn.BatchNorm2d(made)
        self.shortcut = nn.Identity() if channels == made else nn.Conv2d(channels, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x))) + self.shortcut(x)


class Outer(nn.Module):
    def __init__(self, *, projected: bool) -> None:
        super().__init__()
        self.first = nn.Identity() if projected else nn.Conv2d(8, 16, 1)
        self.inner = Inner(8 if projected else 16, 16)
        self.last = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(torch.sigmoid(self.inner(self.first(x))))


class Nested(nn.Module):
    def __init__(self, *, projected: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.outer = Outer(projected=projected)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.outer(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("projected", [False, True])
def test_a_block_within_a_branch_and_channels_of_that_branch_go_in_any_order(projected):
    author = Nested(projected=projected).eval()
    whole = Checkpoint.of(author, SHAPE)
    (width,) = widths_of(whole.network).found.values()
    assert width.home == "outer"
    units = (f"{width.name}[0-3]", "outer.inner")
    one, other = remove(narrow(whole, units[0]), units[1]), remove(whole, units)
    assert one.network == other.network == reduced(whole.network, units)
    author.outer.inner.norm.register_forward_hook(lambda *_: -torch.ones(()))  # so that relu is 0
    author.outer.last.register_forward_pre_hook(
        lambda _, given: given[0].index_fill(1, torch.arange(4), 0.0)
    )
    images = images_for(whole.network)
    with torch.no_grad():
        expected = author(images)
        for small in (one, other):
            torch.testing.assert_close(small.build()(images), expected, rtol=1e-4, atol=1e-5)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        one.build()(images[:1])
    assert count(one).macs == flops.get_total_flops() // 2


class WithHead(nn.Module):
    """A network whose last feature map lies within its head, which has a width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), Inner(8, 8)
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), *pool, nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)))


def test_a_network_whose_features_are_narrowed_is_compared_by_its_logits():
    whole, images = Checkpoint.of(WithHead().eval(), SHAPE), random_images(16, SHAPE, 4)
    assert features_of(whole.network).shape == (16, 8, 8)
    small = narrow(whole, "head.0[0-3]")
    assert features_of(small.network) is None
    for pair in ((small, whole), (whole, small)):
        found = agreement(*pair, images, device="cpu")
        assert found.distance is None
        assert found.gap == found.divergence > 0
    recipe = Recipe(epochs=1, batch_size=8, match="features")
    tuned = finetune(small, images, recipe, teacher=whole, device="cpu")
    assert tuned.network == small.network
