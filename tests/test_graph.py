"""Tracing finds the residual additions, all of them and nothing else."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from conftest import LIBRARY
from torch import nn

from gatepruner.errors import ArchitectureError
from gatepruner.networks.graph import trace
from gatepruner.networks.network import Network


class Applied(nn.Module):
    """A branch `f` of one layer, and whatever is done with it and its input `x`."""

    def __init__(self, done, **modules):
        super().__init__()
        self.f = nn.Linear(4, 4)
        self.done = done
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.done(self, x)


def additions(module: nn.Module):
    return list(trace(module, type(module).__name__, (4,)).additions.values())


def in_place(self, x):
    out = self.f(x)
    out += x
    return out


# Residual additions of torchvision's networks, counted in their papers' tables or code.
FOUND = {
    "resnet18": 8,
    "resnext50_32x4d": 16,
    "regnet_y_400mf": 16,
    "mobilenet_v2": 10,
    "mobilenet_v3_small": 6,
    "mnasnet0_5": 10,
    "efficientnet_b0": 9,
    "efficientnet_v2_s": 35,
    "convnext_tiny": 18,
    "swin_t": 24,
    "swin_v2_t": 24,
    "vit_b_32": 24,
    "maxvit_t": 55,  # of 11 MBConv blocks, and two in each of 22 partition attentions
}


@pytest.mark.parametrize("name", FOUND)
def test_the_residual_additions_of_torchvision_are_found(name):
    network = Network.named(f"torchvision:{name}", num_classes=10, input_shape=LIBRARY[name])
    assert len(network.blocks) == FOUND[name]


@pytest.mark.parametrize(
    "done",
    [
        lambda self, x: self.f(x) + x,
        lambda self, x: x + self.f(x),
        lambda self, x: torch.add(x, self.f(x)),
        lambda self, x: torch.add(input=x, other=self.f(x)),
        lambda self, x: torch.add(x, other=self.f(x), alpha=0.2),
        lambda self, x: self.f(x).add(x),
        lambda self, x: x.add(other=self.f(x)),
        lambda self, x: self.f(x).add_(x),
        lambda self, x: operator.iadd(self.f(x), x),
        in_place,
    ],
    ids=[
        *("f + x", "x + f", "torch.add", "torch.add by keyword", "torch.add with alpha"),
        *("add", "add by keyword", "add_", "iadd", "+="),
    ],
)
def test_an_addition_is_found_however_it_is_written(done):
    module = Applied(done)
    (found,) = additions(module)
    assert (found.identity, found.layers) == (True, ("Linear",))


@pytest.mark.parametrize(
    "done",
    [
        lambda self, x: self.f(x) + self.f.bias,
        lambda self, x: self.f(x) + 1,
        lambda self, x: self.f(x) * x,
        lambda self, x: self.f(x) - x,
        lambda self, x: self.f(x) + self.f.bias.expand(x.shape[0], 4),
        lambda self, x: self.f(x) + self.f.bias[: x.size(1)],
        lambda self, x: self.f(x) + self.f.bias.to(x.dtype),
        lambda self, x: self.f(x) + self.f.bias.to(x),
        lambda self, x: self.f(x) + self.f.bias.expand_as(x),
        lambda self, x: self.f(x) + torch.zeros_like(x),
        lambda self, x: F.linear(x, self.f.weight, self.f.bias) + self.f.bias,
        lambda self, x: F.pad(self.f(x), (0, x.size(1) + -x.size(1) % 8)),
        lambda self, x: self.f(x) + (self.f.weight + self.f.weight.relu()).sum(0),
        lambda self, x: x + x,
    ],
    ids=[
        *("a bias", "a number", "a product", "a difference", "its shape", "its size", "its dtype"),
        *("its dtype and device", "its shape by another", "zeros", "a bias again", "sizes"),
        *("a sum of weights", "itself"),
    ],
)
def test_what_is_no_residual_addition_is_left_alone(done):
    with pytest.raises(ArchitectureError, match="Applied has no residual addition"):
        additions(Applied(done))


def test_a_class_token_that_begins_as_a_parameter_has_a_block():
    def classified(self, x):
        token = self.f.bias.expand(x.size(0), -1)
        return token + self.f(x * token)

    (found,) = additions(Applied(classified))
    assert (found.identity, found.layers) == (True, ("Linear",))


def test_modules_named_as_an_operation_are_modules():
    class Adds(nn.Module):
        def forward(self, x, y):
            return x * y

    module = Applied(lambda self, x: x + self.size(self.add(x, self.f(x))))
    module.add_module("add", Adds())
    module.add_module("size", nn.Linear(4, 4))
    (found,) = trace(module, "it", (4,), leaf_modules=[Adds]).additions.values()
    assert found.layers == ("Linear", "Adds", "Linear")


def test_the_operand_with_more_weights_is_the_branch():
    small = nn.Linear(4, 4, bias=False)
    for done in (
        lambda self, x: self.small(x) + self.f(x),
        lambda self, x: self.f(x) + self.small(x),
    ):
        (found,) = additions(Applied(done, small=small))
        assert not found.identity
        traced = trace(Applied(done, small=small), "Applied", (4,))
        node = next(node for node in traced.module.graph.nodes if node.name == found.node)
        assert node.args[found.branch].target == "f"


@pytest.mark.parametrize("name", ["resnet14", "resnet14-b", "preresnet14"])
def test_shortcuts_that_change_shape_are_not_the_identity(name):
    changing = [block.name for block in Network.named(name).blocks if not block.identity]
    assert changing == ["layer2.0", "layer3.0"]


def test_blocks_are_named_by_the_module_they_live_in_and_come_in_the_order_of_depth():
    names = [block.name for block in Network.named("torchvision:resnet18").blocks]
    assert names == [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]


def test_blocks_that_share_a_module_are_numbered():
    layers = [block.name for block in Network.named("torchvision:vit_b_32").blocks]
    assert layers[:3] == [
        "encoder.layers.encoder_layer_0:1",
        "encoder.layers.encoder_layer_0:2",
        "encoder.layers.encoder_layer_1:1",
    ]


def test_additions_outside_of_any_submodule_live_in_the_root():
    def twice(self, x):
        x = x + self.f(x)
        return x + self.g(x)

    names = [found.name for found in additions(Applied(twice, g=nn.Linear(4, 4)))]
    assert names == ["root:1", "root:2"]
    assert additions(Applied(lambda self, x: x + self.f(x)))[0].name == "root"


def test_a_gate_gets_a_name_that_the_module_does_not_have():
    (found,) = additions(Applied(lambda self, x: x + self.gate(self.f(x)), gate=nn.Linear(4, 4)))
    assert found.gate == "gate_"


def test_a_network_that_asks_for_its_values_is_refused_with_the_reason():
    def branching(self, x):
        return x + self.f(x) if x.sum() > 0 else x

    with pytest.raises(
        ArchitectureError,
        match=r"Applied cannot be traced: its control flow depends on the values of a tensor "
        r"\(test_graph.py:\d+\); move what does so into a submodule of its own",
    ):
        additions(Applied(branching))


def test_layers_that_only_one_mode_uses_are_refused():
    def moody(self, x):
        return x + (self.f(x) if self.training else x)

    with pytest.raises(ArchitectureError, match=r"Applied cannot be traced: .* in training only"):
        additions(Applied(moody))


def test_a_declared_leaf_is_kept_whole():
    class Plain(nn.Module):
        def forward(self, x):
            return x.relu().exp()

    module = Applied(lambda self, x: x + self.plain(self.f(x)), plain=Plain())
    (found,) = additions(module)
    assert found.layers == ("Linear",)
    (found,) = trace(module, "it", (4,), leaf_modules=[Plain]).additions.values()
    assert found.layers == ("Linear", "Plain")


def test_functional_dropout_sees_the_mode_it_runs_in():
    def dropping(self, x):
        return x + F.dropout(self.f(x), 1.0, training=self.training)

    module = Applied(dropping)
    graph = trace(module, "it", (4,)).module
    x = torch.randn(3, 4)
    assert torch.equal(graph.train()(x), x)
    assert torch.equal(graph.eval()(x), x + module.f(x))
