"""Costs are counted from the graph; here they are counted on the module."""

from __future__ import annotations

import pytest
import torch
from conftest import GATED, draw, images_for, removable
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gatepruner.errors import DataError
from gatepruner.measuring.cost import count
from gatepruner.measuring.latency import latency
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import fold_gates, remove, remove_shortcuts


def counted(checkpoint: Checkpoint) -> tuple[int, int]:
    """Parameters and MACs of the built module, as torch counts them."""
    module = checkpoint.build()
    # PyTorch 2.6 does not count the CPU's own flash attention: so attention by matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        # With gradients, as attention in evaluation is one fused operation nobody counts.
        module(images_for(checkpoint.network, 1))
    params = sum(parameter.numel() for parameter in module.parameters())
    return params, flops.get_total_flops() // 2


def found(checkpoint: Checkpoint) -> tuple[int, int]:
    cost = count(checkpoint.network)
    return cost.params, cost.macs


@pytest.mark.parametrize("name", [*GATED, "resnet14-b", "plain-fc6", "wrn-10-1,dropout=0.3"])
def test_the_cost_of_an_own_network_is_that_of_its_module(name):
    whole = draw(name)
    names = removable(whole.network)
    smaller = [whole, remove(whole, names), remove(whole, names[1::2])]
    if names:
        smaller += [remove_shortcuts(whole, names), fold_gates(whole)]
    for checkpoint in smaller:
        assert found(checkpoint) == counted(checkpoint)
    costs = [count(checkpoint.network) for checkpoint in smaller[:2]]
    assert not names or (costs[1].params < costs[0].params and costs[1].macs < costs[0].macs)


def test_the_cost_of_a_torchvision_network_is_that_of_its_module(library):
    names = removable(library.network)
    for checkpoint in (library, remove(library, names[1::2])):
        assert found(checkpoint) == counted(checkpoint)


def test_the_cost_of_a_callers_network_is_that_of_its_module(callers):
    whole = Checkpoint.of(callers, (3, 16, 16))
    for checkpoint in (whole, remove(whole, ["blocks.1"])):
        assert found(checkpoint) == counted(checkpoint)


def test_work_is_counted_where_weights_are_computed_from_others(callers):
    plain = count(Checkpoint.of(callers, (3, 16, 16)))
    for layer in [layer for layer in callers.modules() if isinstance(layer, nn.Conv2d)]:
        nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh())
    assert count(Checkpoint.of(callers, (3, 16, 16))) == plain


# He et al., 2015, https://arxiv.org/abs/1512.03385, table 6.
@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_resnets_have_the_parameters_of_their_paper(depth, millions):
    params = count(Network.named(f"resnet{depth}")).params / 1e6
    assert abs(params - millions) <= (0.05 if millions > 1 else 0.005)


def test_macs_of_resnet20_are_those_counted_by_hand():
    stage = [3 * 16, *[16 * 16] * 6, 16 * 32, *[32 * 32] * 5, 32 * 64, *[64 * 64] * 5]
    sizes = [32] * 7 + [16] * 6 + [8] * 6
    convolutions = sum(9 * pairs * size**2 for pairs, size in zip(stage, sizes, strict=True))
    assert count(Network.named("resnet20")).macs == convolutions + 64 * 10


def test_a_gate_is_one_parameter_and_no_work():
    plain, gated = count(Network.named("resnet14")), count(Network.named("gated-resnet14"))
    assert gated.params == plain.params + 6
    assert gated.macs == plain.macs


def test_weights_that_two_layers_share_are_counted_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x):
            x = self.first(x.flatten(1))
            return x + self.second(x)

    module = Tied()
    expected = sum(parameter.numel() for parameter in module.parameters())
    checkpoint = Checkpoint.of(module, (1, 2, 3))
    assert count(checkpoint.network).params == expected
    assert sum(parameter.numel() for parameter in checkpoint.build().parameters()) == expected


class Calls(nn.Module):
    """Notes when it is called, and on what."""

    def __init__(self, name: str, calls: list) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x):
        self.calls.append((self.name, tuple(x.shape), torch.is_grad_enabled(), self.training))
        return x


def test_modules_are_measured_in_turns():
    calls: list = []
    modules = {name: Calls(name, calls) for name in ("whole", "small")}
    measured = latency(modules, (1, 2, 3), batch=4, runs=5)
    # Once when they are made ready, three times to warm up, and in five rounds.
    assert [name for name, *_ in calls] == ["whole", "small"] * (1 + 3 + 5)
    assert {rest for _, *rest in map(tuple, calls) for rest in [tuple(rest)]} == {
        ((4, 1, 2, 3), False, False)
    }
    assert list(measured) == ["whole", "small"]


def test_a_latency_says_how_it_was_measured():
    checkpoint = draw("resnet8")
    measured = latency({"it": checkpoint.build()}, (3, 32, 32), batch=2, runs=6)["it"]
    assert 0 < measured.low <= measured.median <= measured.high
    assert (measured.runs, measured.batch, measured.device) == (6, 2, "cpu")


def test_a_single_run_can_be_measured():
    measured = latency({"it": nn.Identity()}, (1, 1, 1), runs=1)["it"]
    assert measured.low == measured.median == measured.high > 0
    assert measured.runs == 1


def test_progress_is_shown_by_the_callers_own_means():
    seen = []

    def track(rounds):
        for turn in rounds:
            seen.append(turn)
            yield turn

    latency({"it": nn.Identity()}, (1, 1, 1), runs=4, track=track)
    assert seen == list(range(7))


def test_measuring_leaves_a_module_in_the_mode_it_was_in():
    module = nn.Dropout().train()
    latency({"it": module}, (1, 1, 1), runs=2)
    assert module.training


def test_a_checkpoint_is_counted_and_timed_as_its_network_is():
    checkpoint = draw("resnet8", input_shape=(3, 8, 8))
    assert count(checkpoint) == count(checkpoint.network)
    shapes: list[tuple[int, ...]] = []
    module = checkpoint.build()
    module.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    measured = latency({"module": module, "checkpoint": checkpoint}, batch=2, runs=1)
    assert measured.keys() == {"module", "checkpoint"}
    assert set(shapes) == {(2, 3, 8, 8)}
    with pytest.raises(DataError, match="cannot tell the shape of images from modules; pass input"):
        latency({"module": module})
