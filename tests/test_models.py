"""The own networks are those of their papers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gatepruner import models
from gatepruner.errors import ArchitectureError
from gatepruner.models.fully_connected import HighwayBlock
from gatepruner.models.resnet import BasicBlock, ZeroPadding


def layers_of(module: nn.Module) -> list[str]:
    """Layers with weights that are on the way of the branches."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and "shortcut" not in name
    ]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet20", 20),
        ("resnet56-b", 56),
        ("resnet29-bottleneck", 29),
        ("preresnet20", 20),
        ("preresnet29-bottleneck", 29),
        ("preactresnet18", 18),
        ("preactresnet50", 50),
        ("wrn-16-2", 14),  # its name counts the three projections, too, and not the head
        ("residual-fc10", 12),  # stem and head are not counted in its name
    ],
)
def test_the_depth_in_a_name_counts_the_layers_with_weights(name, layers):
    assert len(layers_of(models.construct(name, models.family_of(name)[0].input_shape))) == layers


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("wrn-28-10", 36.5),
        ("wrn-40-4", 8.9),
        ("wrn-16-8", 11.0),
        ("preresnet110", 1.7),
        ("preresnet164-bottleneck", 1.7),
    ],
)
def test_parameters_are_those_of_the_papers(name, millions):
    with torch.device("meta"):
        module = models.construct(name, models.CIFAR)
    size = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    assert round(size, 1) == millions


@pytest.mark.parametrize("name", models.EXAMPLES)
def test_every_example_gives_logits_of_the_classes_asked_for(name):
    shape = models.family_of(name)[0].input_shape
    with torch.device("meta"):
        module = models.construct(name, shape, num_classes=7)
        assert module(torch.empty(2, *shape)).shape == (2, 7)


def test_option_a_takes_every_second_pixel_and_pads_both_sides_with_zeros():
    x = torch.randn(2, 4, 6, 6)
    padded = ZeroPadding(4)(x)
    assert padded.shape == (2, 8, 3, 3)
    assert torch.equal(padded[:, 2:6], x[:, :, ::2, ::2])
    assert not padded[:, :2].any()
    assert not padded[:, 6:].any()


@pytest.mark.parametrize(("shortcut", "weights"), [("A", 0), ("B", 16 * 32 + 2 * 32)])
def test_only_option_b_learns_its_shortcut(shortcut, weights):
    block = BasicBlock(16, 32, 2, shortcut)
    assert sum(parameter.numel() for parameter in block.shortcut.parameters()) == weights


def test_a_highway_block_mixes_branch_and_input_by_its_transform_gate():
    block = HighwayBlock(8).eval()
    x = torch.rand(3, 8)
    with torch.no_grad():
        t = torch.sigmoid(x @ block.transform.weight.T + block.transform.bias)
        expected = F.relu(t * block.branch(x) + (1 - t) * x)
        torch.testing.assert_close(block(x), expected)


def test_a_new_highway_block_carries_rather_than_transforms():
    block = HighwayBlock(8)
    assert torch.sigmoid(block.transform.bias).max() < 0.2


def test_a_highway_network_starts_with_the_transform_bias_asked_for():
    network = models.construct("highway-fc6", models.MNIST, transform_bias=-4.0)
    biases = [block.transform.bias.detach() for block in network.blocks]
    assert set(torch.cat(biases).tolist()) == {-4.0}
    assert set(HighwayBlock(3).transform.bias.tolist()) == {-2.0}


def test_a_narrow_stem_gives_the_first_block_a_shortcut_that_raises_the_dimension():
    narrow, usual = (
        models.construct("wrn-28-1", models.CIFAR, **arguments) for arguments in ({"stem": 8}, {})
    )
    assert narrow.conv1.weight.shape == (8, 3, 3, 3)
    assert narrow.layer1[0].shortcut.weight.shape == (16, 8, 1, 1)
    assert usual.layer1[0].shortcut is None
    assert narrow(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_dropout_stands_in_every_block_of_a_wide_resnet_or_in_none():
    rates = [
        layer.p
        for layer in models.construct("wrn-10-1", models.CIFAR, dropout=0.3).modules()
        if isinstance(layer, nn.Dropout)
    ]
    assert rates == [0.3] * 3
    without = models.construct("wrn-10-1", models.CIFAR).modules()
    assert not any(isinstance(layer, nn.Dropout) for layer in without)


@pytest.mark.parametrize(
    "name", ["resnet21", "resnet28-bottleneck", "preresnet7", "wrn-11-2", "residual-fc5"]
)
def test_a_depth_that_no_network_of_the_family_has_is_refused(name):
    with pytest.raises(ArchitectureError, match=rf"{name}: expected a depth of \dn \+ \d .*as in "):
        models.family_of(name)


def test_a_width_of_zero_is_refused():
    with pytest.raises(ArchitectureError, match="width >= 1"):
        models.family_of("wrn-10-0")


@pytest.mark.parametrize("name", ["", "resnet", "resnet20-c", "densenet121", "Resnet20"])
def test_an_unknown_name_is_answered_with_examples_of_known_ones(name):
    with pytest.raises(ArchitectureError, match=r"unknown architecture .*resnet56, resnet56-b"):
        models.family_of(name)


def test_an_unknown_argument_is_refused_by_name():
    with pytest.raises(ArchitectureError, match=r"resnet20: .*dropout"):
        models.construct("resnet20", models.CIFAR, dropout=0.3)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("wrn-10-1", {"dropout": 2.0}),
        ("wrn-10-1", {"dropout": "half"}),
        ("resnet8", {"num_classes": -1}),
        ("resnet8", {"num_classes": "ten"}),
        ("residual-fc4", {"width": -5}),
    ],
)
def test_an_argument_of_a_wrong_value_is_refused_by_the_name_of_the_network(name, arguments):
    with pytest.raises(ArchitectureError, match=f"^{name}: "):
        models.construct(name, models.family_of(name)[0].input_shape, **arguments)
