"""A gate is folded into the affine layer that its branch ends in, where there is one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import draw, drawn, images_for, logits
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils import prune

from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import fold_gates

# Where the branches of these networks end: the layer that torchvision's code applies last.
ENDS = {
    "resnet18": "{path}.bn2",
    "mobilenet_v2": "{path}.conv.",
    "mnasnet0_5": "{path}.layers.7",
    "convnext_tiny": "{path}.layer_scale",
    "swin_t": "{path}.",
    "swin_v2_t": "{path}.norm",
    "vit_b_32": "{path}.",
    "resnext50_32x4d": "{path}.bn3",
    "mobilenet_v3_small": "{path}.block.",
}


@pytest.mark.parametrize("name", ENDS)
def test_every_gate_has_a_layer_to_be_folded_into(name):
    text = f"gated-torchvision:{name}"
    network = Network.named(text, num_classes=10, input_shape=(3, 64, 64))
    for block in network.blocks:
        keys, path = network.fold_targets()[block.name], block.name.partition(":")[0]
        assert keys, block.name
        assert all(key.startswith(ENDS[name].format(path=path)) for key in keys)
        assert set(keys) <= network.state().keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gated-resnet8", ("layer2.0.bn2.weight", "layer2.0.bn2.bias")),
        ("gated-wrn-10-1,dropout=0.3", ("layer2.0.conv2.weight",)),
        ("gated-torchvision:mobilenet_v2", ("features.3.conv.3.weight", "features.3.conv.3.bias")),
        (
            "gated-torchvision:vit_b_32",
            tuple(
                f"encoder.layers.encoder_layer_0.self_attention.out_proj.{which}"
                for which in ("weight", "bias")
            ),
        ),
        (
            "gated-torchvision:swin_t",
            ("features.1.0.attn.proj.weight", "features.1.0.attn.proj.bias"),
        ),
        ("gated-torchvision:convnext_tiny", ("features.1.0.layer_scale",)),
    ],
)
def test_the_last_affine_layer_is_the_one_of_the_architecture(name, expected):
    network = Network.named(name)
    first = [block.name for block in network.blocks if block.name.startswith(expected[0][:8])]
    assert network.fold_targets()[first[0]] == expected


@pytest.mark.parametrize(
    "name", ["gated-torchvision:efficientnet_v2_s", "gated-torchvision:efficientnet_b0"]
)
def test_only_what_ends_in_an_activation_has_no_such_layer(name):
    network = Network.named(name, num_classes=10, input_shape=(3, 64, 64))
    without = [block.name for block in network.blocks if not network.fold_targets()[block.name]]
    # Fused blocks that do not expand are one convolution, batch norm and SiLU.
    assert without == (["features.1.0", "features.1.1"] if "v2" in name else [])


class Ending(nn.Module):
    """A residual block between a stem and a head; its branch ends as it is told."""

    def __init__(self, end, **modules) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.f = nn.Linear(6, 6)
        self.w, self.v = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))
        self.register_buffer("saved", torch.rand(6))
        self.register_buffer("unsaved", torch.rand(6), persistent=False)
        self.end = end
        self.head = nn.Linear(6, 3)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        return self.head(x + self.end(self, self.f(x)))


def gated(module: nn.Module, k: float = 0.6) -> Checkpoint:
    """A checkpoint of the module with a gate in its block."""
    plain = Checkpoint.of(module, (1, 2, 3))
    network = plain.network.with_gates()
    weights = {**plain.weights, network.gate_key("root"): torch.tensor(k)}
    return Checkpoint(network, drawn(weights))


# How a branch ends, and the weights that take the gate up; none where nothing can.
TAKEN_UP = {
    "linear": (lambda self, f: f, ["f.weight", "f.bias"]),
    "relu": (lambda self, f: f.relu(), ["f.weight", "f.bias"]),
    "relu by keyword": (lambda self, f: F.relu(input=f), ["f.weight", "f.bias"]),
    "dropout": (lambda self, f: F.dropout(f, 0.2, self.training), ["f.weight", "f.bias"]),
    "dropout by keyword": (
        lambda self, f: F.dropout(input=f, p=0.2, training=self.training),
        ["f.weight", "f.bias"],
    ),
    "reshaped": (lambda self, f: f.view(-1, 2, 3).flatten(1), ["f.weight", "f.bias"]),
    "padded with zeros": (lambda self, f: F.pad(f[:, 1:], (1, 0)), ["f.weight", "f.bias"]),
    "padded with ones": (lambda self, f: F.pad(f[:, 1:], (1, 0), value=1.0), []),
    "a parameter": (lambda self, f: f * self.w, ["w"]),
    "a saved buffer": (lambda self, f: self.saved * f, ["saved"]),
    "an unsaved buffer": (lambda self, f: self.unsaved * f, []),
    "a number": (lambda self, f: f * 0.17, ["f.weight", "f.bias"]),
    "a number before it": (lambda self, f: 0.17 * f, ["f.weight", "f.bias"]),
    "leaky relu": (lambda self, f: F.leaky_relu(f, 0.3), ["f.weight", "f.bias"]),
    "layer norm": (lambda self, f: F.layer_norm(f, (6,), self.w, self.v), ["v", "w"]),
    "layer norm without weights": (lambda self, f: F.layer_norm(f, (6,)), []),
    "F.linear": (lambda self, f: F.linear(f, self.f.weight.t(), self.w), []),
    "tanh": (lambda self, f: f.tanh(), []),
    "gelu": (lambda self, f: F.gelu(f), []),
    "a sum": (lambda self, f: f + 1, []),
    "used again": (lambda self, f: f * f.sigmoid(), []),
    "applied twice": (lambda self, f: self.f(f), []),
}


@pytest.mark.parametrize("end", TAKEN_UP)
def test_a_gate_goes_where_its_branch_ends_or_leaves_a_constant(end):
    how, keys = TAKEN_UP[end]
    checkpoint = gated(Ending(how))
    assert sorted(checkpoint.network.fold_targets()["root"]) == sorted(keys)
    folded = fold_gates(checkpoint)
    assert folded.network.edits.scaled_branches == (() if keys else ("root",))
    images = images_for(checkpoint.network)
    torch.testing.assert_close(
        logits(folded.build(), images), logits(checkpoint.build(), images), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("layer", "taken"),
    [
        (nn.BatchNorm1d(6), ["last.weight", "last.bias"]),
        (nn.LayerNorm(6), ["last.weight", "last.bias"]),
        (nn.GroupNorm(2, 6), ["last.weight", "last.bias"]),
        (nn.Linear(6, 6, bias=False), ["last.weight"]),
        (nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1)), ["last.0.weight", "last.0.bias"]),
        (nn.BatchNorm1d(6, affine=False), []),
        (nn.LayerNorm(6, elementwise_affine=False), []),
        (nn.PReLU(), []),
        (nn.LeakyReLU(), ["f.weight", "f.bias"]),
        (nn.SiLU(), []),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, nn.Module) else "",
)
def test_a_branch_that_ends_in_a_layer_gives_it_the_gate(layer, taken):
    checkpoint = gated(Ending(lambda self, f: self.last(f), last=layer))
    assert sorted(checkpoint.network.fold_targets()["root"]) == sorted(taken)
    images = images_for(checkpoint.network)
    folded = fold_gates(checkpoint).build()
    torch.testing.assert_close(
        logits(folded, images), logits(checkpoint.build(), images), rtol=1e-5, atol=1e-6
    )


class Shifted(nn.Linear):
    """A layer of a caller's that adds something to what a linear layer computes."""

    def forward(self, x):
        return super().forward(x) + 1


class Renamed(nn.Linear):
    """A layer of a caller's that computes what a linear layer does."""


def with_hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda layer, args, output: output.tanh())
    return layer


def masked(layer: nn.Module, name: str) -> nn.Module:
    return prune.random_unstructured(layer, name, 0.5)


CHANGED = {
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
    "weight_norm, old": lambda: nn.utils.weight_norm(nn.Linear(6, 6)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
    "spectral_norm, old": lambda: nn.utils.spectral_norm(nn.Linear(6, 6)),
    "a mask": lambda: masked(nn.Linear(6, 6), "weight"),
    "a mask of the bias": lambda: masked(nn.Linear(6, 6), "bias"),
    "a hook": lambda: with_hook(nn.Linear(6, 6)),
    "a subclass": lambda: Shifted(6, 6),
    "a norm and its activation": lambda: BatchNormAct2d(6, act_layer=nn.SiLU),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("how", CHANGED)
def test_a_layer_that_computes_otherwise_keeps_its_weights(how):
    last = CHANGED[how]()

    def end(self, f):
        return self.last(f[:, :, None, None])[:, :, 0, 0] if "norm and" in how else self.last(f)

    plain = Checkpoint.of(Ending(end, last=last), (1, 2, 3), leaves=(type(last),))
    network = plain.network.with_gates()
    gated = Checkpoint(network, {**plain.weights, network.gate_key("root"): torch.tensor(0.6)})
    folded = fold_gates(gated)
    assert folded.network.edits.scaled_branches == ("root",)
    images = images_for(network)
    torch.testing.assert_close(
        logits(folded.build(), images), logits(gated.build(), images), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("last", "taken"),
    [
        (Renamed(6, 6), ["last.weight", "last.bias"]),
        (BatchNormAct2d(6, act_layer=nn.LeakyReLU), ["last.weight", "last.bias"]),
        (BatchNormAct2d(6, apply_act=False), ["last.weight", "last.bias"]),
    ],
    ids=["a subclass with the same forward", "a norm and leaky relu", "a norm and no activation"],
)
def test_a_layer_that_computes_the_same_takes_the_gate_up(last, taken):
    def end(self, f):
        return f if isinstance(last, nn.Linear) else f[:, :, None, None]

    module = Ending(lambda self, f: self.last(end(self, f)).flatten(1), last=last)
    plain = Checkpoint.of(module, (1, 2, 3), leaves=(type(last),))
    network = plain.network.with_gates()
    gated = Checkpoint(network, {**plain.weights, network.gate_key("root"): torch.tensor(0.6)})
    assert sorted(network.fold_targets()["root"]) == sorted(taken)
    images = images_for(network)
    torch.testing.assert_close(
        logits(fold_gates(gated).build(), images),
        logits(gated.build(), images),
        rtol=1e-5,
        atol=1e-6,
    )


class Elsewhere(Ending):
    """What the branch ends in is used in another place as well."""

    def forward(self, x):
        x = super().forward(x)
        return x * self.w[:3] + F.linear(self.f.weight.sum(1), self.head.weight)


class Tied(Ending):
    """The branch's last layer has the weights of another one."""

    def __init__(self, end) -> None:
        super().__init__(end)
        self.stem.weight, self.stem.bias = self.f.weight, self.f.bias


@pytest.mark.parametrize("kind", [Elsewhere, Tied])
@pytest.mark.parametrize("end", ["linear", "a parameter", "twice in one", "both"])
def test_weights_that_are_used_twice_keep_their_values(kind, end):
    ends = {
        "linear": lambda self, f: f,
        "a parameter": lambda self, f: f * self.w,
        "twice in one": lambda self, f: F.layer_norm(f, (6,), self.w, self.w),
        "both": lambda self, f: self.f(f * self.w) * self.w,
    }
    checkpoint = gated(kind(ends[end]))
    folded = fold_gates(checkpoint)
    images = images_for(checkpoint.network)
    torch.testing.assert_close(
        logits(folded.build(), images), logits(checkpoint.build(), images), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["gated-highway-fc6", "gated-plain-fc6"])
def test_constants_stay_where_no_layer_can_take_a_gate_up(name):
    checkpoint = draw(name)
    names = checkpoint.network.edits.gated
    edits = fold_gates(checkpoint).network.edits
    highway = "highway" in name
    assert edits.scaled_branches == (names if highway else ())
    assert edits.scaled_shortcuts == (() if highway else names)
