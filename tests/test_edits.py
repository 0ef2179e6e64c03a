"""What stands in the place of an addition, and what is tidied up around it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import GATED, draw, images_for, logits, removable, subsets, with_gates_at
from torch import fx, nn

from gatepruner.errors import ArchitectureError
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.edits import Gate, PlainGate, Scale
from gatepruner.pruning.surgery import add_gates, fold_gates, remove, remove_shortcuts

RELUS = (nn.ReLU, F.relu, torch.relu, "relu", "relu_")


@pytest.mark.parametrize(("k", "g"), [(0.7, 0.7), (0.0, 0.0), (-2.0, 0.0), (1.0, 1.0)])
def test_gates_multiply_by_what_is_positive_of_k(k, g):
    f, s = torch.randn(2, 5), torch.randn(2, 5)
    residual, plain = Gate(), PlainGate()
    for gate in (residual, plain):
        nn.init.constant_(gate.k, k)
    g = torch.tensor(g)
    assert torch.equal(residual(f), g * f)
    assert torch.equal(plain(f, s), g * f + (1 - g) * s)


def test_a_scale_is_a_constant_of_the_state_dict():
    scale = Scale()
    scale.load_state_dict({"c": torch.tensor(0.5)})
    assert scale(torch.tensor(3.0)) == 1.5
    assert list(scale.parameters()) == []


@pytest.mark.parametrize("name", GATED)
def test_removing_blocks_equals_closing_their_gates(name):
    checkpoint = draw(name)
    images, names = images_for(checkpoint.network), removable(checkpoint.network)
    whole, unclosed = checkpoint.build(), dict(checkpoint.weights)
    untouched = logits(whole, images)
    for subset in subsets(names):
        closed = with_gates_at(checkpoint, 0.0, subset).weights
        whole.load_state_dict(dict(closed))
        small = logits(remove(checkpoint, subset).build(), images)
        assert torch.equal(small, logits(whole, images)), subset
        assert torch.equal(small, untouched) == (not subset), subset
    whole.load_state_dict(unclosed)
    assert torch.equal(logits(whole, images), untouched)


def test_a_gate_below_zero_is_a_closed_one():
    checkpoint = draw("gated-resnet8")
    images = images_for(checkpoint.network)
    below = with_gates_at(checkpoint, -1.5, ["layer1.0"])
    small = remove(checkpoint, ["layer1.0"])
    assert torch.equal(logits(below.build(), images), logits(small.build(), images))


def activations_of_activations(module: fx.GraphModule) -> list[fx.Node]:
    def activates(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(module.get_submodule(node.target), RELUS[0])
        return node.target in RELUS

    return [
        node
        for node in module.graph.nodes
        if activates(node) and activates(node.all_input_nodes[0])
    ]


@pytest.mark.parametrize(
    "name", ["resnet14", "resnet14-b", "residual-fc6", "highway-fc6", "torchvision:resnet18"]
)
def test_no_activation_of_an_activation_stays(name):
    checkpoint = draw(name, input_shape=(3, 64, 64) if ":" in name else None)
    for names in (removable(checkpoint.network), removable(checkpoint.network)[1::2]):
        module = remove(checkpoint, names).build()
        assert activations_of_activations(module) == []


def test_one_relu_of_two_goes_with_the_block_between_them():
    def relus(checkpoint: Checkpoint) -> int:
        return sum(node.target is F.relu for node in checkpoint.build().graph.nodes)

    checkpoint = draw("resnet8")
    assert relus(checkpoint) == 1 + 2 * 3
    assert relus(remove(checkpoint, ["layer1.0"])) == 1 + 2 * 2
    assert relus(remove(checkpoint, removable(checkpoint.network))) == 1


def test_the_padding_between_two_relus_does_not_hide_that_they_are_one():
    small = remove(draw("resnet8"), ["layer2.0", "layer3.0"]).build()
    after = [node.target for node in small.graph.nodes if node.op == "call_function"]
    assert F.pad in after
    assert F.relu not in after[after.index(F.pad) :]


@pytest.mark.parametrize("name", ["resnet14-b", "highway-fc6", "gated-wrn-10-2"])
def test_what_nothing_uses_is_left_out(name):
    checkpoint = draw(name)
    for names in subsets(removable(checkpoint.network)[-3:]):
        module = remove(checkpoint, names).build()
        targets = {node.target for node in module.graph.nodes if node.op == "call_module"}
        leaves = {
            path for path, inner in module.named_modules() if path and not list(inner.children())
        }
        assert leaves == targets
        assert all(node.users or node.op == "output" for node in module.graph.nodes), (
            "a node whose value nothing uses"
        )


class Overwriting(nn.Module):
    """A block whose input is needed again after it, and an operation that overwrites."""

    def __init__(self, overwrite) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.f = nn.Linear(4, 4)
        self.act = nn.ReLU(inplace=True)
        self.overwrite = overwrite
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.overwrite(self, x + self.f(x))
        return self.head(y - x)


def scaled(self, y):
    y *= 2
    return y


def lowered(self, y):
    y -= 0.5
    return y


OVERWRITES = {
    "nn.ReLU(inplace=True)": lambda self, y: self.act(y),
    "F.relu(y, inplace=True)": lambda self, y: F.relu(y, inplace=True),
    "F.relu(y, True)": lambda self, y: F.relu(y, True),
    "F.relu_(y)": lambda self, y: F.relu_(y),
    "torch.relu_(y)": lambda self, y: torch.relu_(y),
    "y.relu_()": lambda self, y: y.relu_(),
    "y.mul_(2)": lambda self, y: y.mul_(2),
    "y.clamp_(0)": lambda self, y: y.clamp_(0),
    "y.sigmoid_()": lambda self, y: y.sigmoid_(),
    "F.hardswish(y, True)": lambda self, y: F.hardswish(y, True),
    "y *= 2": scaled,
    "y -= 0.5": lowered,
}


@pytest.mark.parametrize("how", OVERWRITES)
def test_what_overwrites_its_input_does_not_overwrite_a_shortcut(how):
    checkpoint = Checkpoint.of(Overwriting(OVERWRITES[how]), (1, 1, 4))
    images = images_for(checkpoint.network)
    masked = checkpoint.build()
    masked.f.register_forward_hook(lambda module, args, output: output * 0)
    small = remove(checkpoint, ["root"]).build()
    assert torch.equal(logits(small, images), logits(masked, images))


@pytest.mark.parametrize("how", OVERWRITES)
def test_what_overwrites_its_input_does_not_overwrite_what_a_shortcut_is_a_view_of(how):
    class Viewing(Overwriting):
        def forward(self, x):
            x = self.stem(x)
            view = x.view(-1, 1, 1, 4)
            return self.head(self.overwrite(self, self.f(x) + view) - x)

    checkpoint = Checkpoint.of(Viewing(OVERWRITES[how]), (1, 1, 4))
    images = images_for(checkpoint.network)
    masked = checkpoint.build()
    masked.f.register_forward_hook(lambda module, args, output: output * 0)
    small = remove(checkpoint, ["root"]).build()
    assert torch.equal(logits(small, images), logits(masked, images))


class Viewing(nn.Module):
    """Views a sum whose shortcut lies transposed in memory."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3 * 36, 5)

    def forward(self, x):
        turned = x.transpose(2, 3)
        return self.head((self.conv(x) + turned).view(-1, 3 * 36))


def test_a_view_holds_whatever_lies_in_an_additions_place():
    module, images = Viewing().eval(), torch.randn(2, 3, 6, 6)
    checkpoint = Checkpoint.of(module, (3, 6, 6))
    assert torch.equal(checkpoint.build()(images), module(images))
    alone = module.head(images.transpose(2, 3).reshape(2, -1))
    assert torch.equal(remove(checkpoint, "root").build()(images), alone)


class Weighted(nn.Module):
    """A block whose addition is written in some way, between a stem and a head."""

    def __init__(self, add) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.f = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 3)
        self.add = add
        self.whole = self.half = 1.0  # factors of the branch and of the shortcut

    def forward(self, x):
        x = self.stem(x)
        f, s = self.whole * self.f(x), x if self.half == 1 else self.half * x
        return self.head(self.add(s, f).relu()).mean((2, 3))


ADDITIONS = {
    "f + s": lambda s, f: f + s,
    "s + f": lambda s, f: s + f,
    "alpha of f": lambda s, f: torch.add(s, f, alpha=0.3),
    "alpha of s": lambda s, f: torch.add(f, s, alpha=0.3),
    "alpha of f, all by keyword": lambda s, f: torch.add(input=s, other=f, alpha=0.3),
    "alpha of s, by method": lambda s, f: f.add(s, alpha=0.3),
    "alpha of f, in place": lambda s, f: s.add_(f, alpha=0.3),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("how", ADDITIONS)
def test_an_addition_stays_as_it_is_written(how, layout):
    module = Weighted(ADDITIONS[how]).to(memory_format=layout).eval()
    checkpoint = Checkpoint.of(module, (3, 8, 8))
    images = images_for(checkpoint.network)
    expected = logits(module, images)
    assert torch.equal(logits(checkpoint.build(), images), expected)
    assert torch.equal(logits(add_gates(checkpoint).build(), images), expected)


@pytest.mark.parametrize("how", ["f + s", "s + f"])
def test_a_sum_lies_in_memory_as_its_author_meant_it(how):
    def add(s, f):
        return ADDITIONS[how](s, f.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))

    module = Weighted(add).eval()
    checkpoint, strides = Checkpoint.of(module, (3, 8, 8)), []
    images = images_for(checkpoint.network)
    for each in (module, checkpoint.build(), add_gates(checkpoint).build()):
        each.head.register_forward_pre_hook(lambda layer, args: strides.append(args[0].stride()))
        logits(each, images)
    assert len(strides) == 3
    assert len({*strides}) == 1


@pytest.mark.parametrize("gate", ["residual", "plain"])
@pytest.mark.parametrize("how", ADDITIONS)
def test_what_is_left_of_an_addition_keeps_its_factor(how, gate):
    module = Weighted(ADDITIONS[how]).eval()
    plain = Checkpoint.of(module, (3, 8, 8))
    network = plain.network.with_gates(gate)
    checkpoint = Checkpoint(network, {**plain.weights, network.gate_key("root"): torch.tensor(0.4)})
    images = images_for(network)

    def author(branch, shortcut):
        module.whole, module.half = branch, shortcut
        return logits(module, images)

    small = remove(checkpoint, ["root"])
    assert torch.equal(logits(small.build(), images), author(0.0, 1.0))
    left = 1.0 if gate == "residual" else 0.6
    for found, expected in (
        (remove_shortcuts(plain, ["root"]), author(1.0, 0.0)),
        (checkpoint, author(0.4, left)),
        (remove_shortcuts(checkpoint, ["root"]), author(0.4, 0.0)),
        (fold_gates(checkpoint), author(0.4, left)),
    ):
        torch.testing.assert_close(logits(found.build(), images), expected, rtol=1e-5, atol=1e-6)
    assert network.blocks[0].identity == ("alpha of s" not in how)


@torch.no_grad()
def test_a_branch_that_is_repeated_is_so_without_its_shortcut():
    module = Weighted(lambda s, f: s + f.mean((2, 3), keepdim=True)).eval()
    checkpoint = Checkpoint.of(module, (3, 8, 8))
    images = images_for(checkpoint.network)
    for small, factors in (
        (remove(checkpoint, "root"), (0.0, 1.0)),
        (remove_shortcuts(checkpoint, "root"), (1.0, 0.0)),
        (remove_shortcuts(add_gates(checkpoint), "root"), (1.0, 0.0)),
    ):
        module.whole, module.half = factors
        assert torch.equal(logits(small.build(), images), logits(module, images))


def test_a_shortcut_that_would_have_to_be_repeated_makes_no_block():
    module = Weighted(lambda s, f: s.mean((2, 3), keepdim=True) + f).eval()
    with pytest.raises(ArchitectureError, match="no residual addition"):
        Checkpoint.of(module, (3, 8, 8))


def test_two_modules_built_of_one_network_share_nothing():
    checkpoint = draw("gated-resnet8")
    images = images_for(checkpoint.network)
    first, second = checkpoint.build(), checkpoint.build()
    before = logits(second, images)
    nn.init.zeros_(first.linear.weight)
    first.layer1.get_submodule("0").bn1.momentum = 0.9
    first.layer1.get_submodule("0").conv1.register_forward_hook(lambda *_: None or 1 / 0)
    third = checkpoint.build()
    assert torch.equal(logits(second, images), before)
    assert torch.equal(logits(third, images), before)
    assert third.layer1.get_submodule("0").bn1.momentum == 0.1


def test_gates_without_a_shortcut_still_multiply_their_branch():
    checkpoint = draw("gated-residual-fc4")
    names = removable(checkpoint.network)
    lone = remove_shortcuts(checkpoint, names[:1])
    half = with_gates_at(lone, 0.0, names[:1])
    images = images_for(lone.network)
    first, second = logits(half.build(), images)
    assert torch.allclose(first, second)  # nothing of an image passes a closed gate alone
    first, second = logits(lone.build(), images)
    assert not torch.allclose(first, second)
