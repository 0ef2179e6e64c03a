"""Narrowing: what is left computes what the whole network does with those channels' gates at 0."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from conftest import draw, fingerprint, images_for, logits, random_images
from narrow_blocks import BLOCKS, READ, masked, network_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gatepruner.errors import CheckpointError, EngineError, PlanError
from gatepruner.files.checkpoints import load, save
from gatepruner.files.export import to_torchvision
from gatepruner.files.formats import export
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.cost import count
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.slices import Slice, slice_named
from gatepruner.pruning.groups import _drawn, widths_of
from gatepruner.pruning.surgery import add_gates, fold_gates, narrow, remove
from gatepruner.pruning.widths import closed, cut_out, sizes_left

KINDS = list(BLOCKS)
WITH_STATISTICS = ["basic", "grouped", "inverted"]
SOME = (1, 3)


def cut(kind: str, block: str, channels: tuple[int, ...]) -> str:
    return str(Slice(f"{block}.{READ[kind][0]}", channels))


def gated(kind: str) -> Checkpoint:
    """A network with gates, of which the second is not 1."""
    whole = add_gates(network_of(kind))
    key = whole.network.gate_key("blocks.1")
    return replace(whole, weights={**whole.weights, key: torch.tensor(0.7)})


def same(one: nn.Module, other: nn.Module, checkpoint: Checkpoint) -> bool:
    images = images_for(checkpoint.network)
    return torch.allclose(logits(one, images), logits(other, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_narrowed_equals_the_whole_network_whose_readers_have_zeros(kind):
    whole = network_of(kind)
    small = narrow(whole, [cut(kind, "blocks.0", SOME), cut(kind, "blocks.1", (0,))])
    expected = masked(whole, kind, {"blocks.0": SOME, "blocks.1": (0,)})
    assert same(small.build(), expected, whole)
    assert not same(small.build(), whole.build(), whole)
    assert count(small).params < count(whole).params


def test_narrowing_takes_the_name_of_one_slice_and_refuses_that_of_a_block():
    whole, name = network_of("basic"), cut("basic", "blocks.0", SOME)
    assert narrow(whole, name).network == narrow(whole, [name]).network
    with pytest.raises(
        PlanError, match=r"cannot cut blocks\.1 out: expected channels as in layer1"
    ):
        narrow(whole, [name, "blocks.1"])


@pytest.mark.parametrize("kind", KINDS)
def test_narrowing_twice_is_narrowing_once(kind):
    whole = network_of(kind)
    once = narrow(whole, [cut(kind, "blocks.0", (0, 1, 3))])
    twice = narrow(narrow(whole, [cut(kind, "blocks.0", (1,))]), [cut(kind, "blocks.0", (0, 2))])
    assert once.network == twice.network
    assert all(torch.equal(once.weights[key], twice.weights[key]) for key in once.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_with_removal_and_folding_does_not_matter(kind):
    whole = gated(kind)
    slices, block = [cut(kind, "blocks.1", SOME)], "blocks.0"
    first = fold_gates(remove(narrow(whole, slices), block))
    last = narrow(remove(fold_gates(whole), block), slices)
    together = fold_gates(remove(whole, [*slices, block]))
    assert first.network == last.network == together.network
    for key in first.weights:
        assert torch.equal(first.weights[key], together.weights[key])
        assert torch.allclose(first.weights[key], last.weights[key], atol=1e-6)


def recalibrated(checkpoint: Checkpoint) -> Checkpoint:
    images = random_images(24, checkpoint.network.base.input_shape, 5)
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    return recalibrate(checkpoint, images, normalization=normalization, augment=False, device="cpu")


def close(one: Checkpoint, other: Checkpoint) -> bool:
    assert one.network == other.network
    return all(
        torch.allclose(one.weights[key], tensor, rtol=1e-4, atol=1e-5)
        for key, tensor in other.weights.items()
    )


@pytest.mark.parametrize("kind", WITH_STATISTICS)
def test_statistics_are_those_of_the_whole_network_whose_readers_have_zeros(kind):
    whole, slices = network_of(kind), [cut(kind, "blocks.0", SOME)]
    gone = {f"blocks.0.{READ[kind][0]}": SOME}
    zeros = closed(whole.weights, widths_of(whole.network).found, gone)
    small = recalibrated(narrow(whole, slices))
    assert close(small, narrow(recalibrated(replace(whole, weights=zeros)), slices))
    assert not close(small, narrow(recalibrated(whole), slices))  # later layers see other values


@pytest.mark.parametrize("kind", WITH_STATISTICS)
def test_statistics_do_not_depend_on_the_order_of_removal_and_folding(kind):
    whole = gated(kind)
    slices, block = [cut(kind, "blocks.1", SOME)], "blocks.0"
    last = recalibrated(fold_gates(remove(narrow(whole, slices), block)))
    for other in (
        recalibrated(narrow(fold_gates(remove(recalibrated(whole), block)), slices)),
        recalibrated(remove(narrow(fold_gates(whole), slices), block)),
        recalibrated(narrow(recalibrated(remove(fold_gates(whole), block)), slices)),
        fold_gates(recalibrated(narrow(remove(whole, block), slices))),
    ):
        assert close(other, last)


def test_narrowing_a_block_that_is_removed_leaves_no_trace():
    whole = network_of("basic")
    plan = [cut("basic", "blocks.0", SOME), "blocks.0"]
    assert remove(whole, plan).network == remove(whole, "blocks.0").network
    assert remove(narrow(whole, plan[:1]), "blocks.0").network == remove(whole, plan).network


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "concatenated"])
def test_closing_all_of_a_width_leaves_a_constant_of_the_branch(kind):
    whole = network_of(kind)
    every = tuple(range(READ[kind][1]))
    block = masked(whole, kind, {"blocks.0": every})
    added = []
    trunk = {node.name: node for node in block.graph.nodes}
    shortcut, joined = whole.network.joins["blocks.0"]

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n.name in (shortcut, joined):
                added.append(value)
            return value

    assert {shortcut, joined} <= trunk.keys()
    Watch(block).run(images_for(whole.network, 3))
    branch = added[1] - added[0]
    constant = branch.mean((0, 2, 3), keepdim=True)
    assert torch.allclose(branch, constant.expand_as(branch), atol=1e-6)
    with pytest.raises(PlanError, match=r"all channels of blocks\.0.* remove the block"):
        narrow(whole, [cut(kind, "blocks.0", every)])


def test_groups_and_depthwise_convolutions_and_heads_stay_whole():
    small = narrow(network_of("grouped"), [cut("grouped", "blocks.0", SOME)]).build()
    layer = small.get_submodule("blocks.0.conv2")
    assert (layer.groups, layer.in_channels, layer.out_channels) == (4, 16, 8)
    inverted = narrow(network_of("inverted"), [cut("inverted", "blocks.0", SOME)]).build()
    layer = inverted.get_submodule("blocks.0.depthwise")
    assert layer.groups == layer.in_channels == layer.out_channels == 14
    doubled = narrow(network_of("multiplier"), [cut("multiplier", "blocks.0", SOME)]).build()
    layer = doubled.get_submodule("blocks.0.depthwise")
    assert (layer.groups, layer.in_channels, layer.out_channels) == (14, 14, 28)
    attention = narrow(network_of("attention"), [cut("attention", "blocks.0", SOME)])
    assert dict(attention.network.edits.narrowed)["blocks.0.attn"] == (2, 4)


@pytest.mark.parametrize("kind", ["grouped", "multiplier", "inverted"])
def test_the_last_group_of_a_convolution_stays_whole(kind, tmp_path):
    maker, size, *_ = READ[kind]
    small = narrow(network_of(kind), [cut(kind, "blocks.0", tuple(range(size - 1)))])
    middle = "conv2" if kind == "grouped" else "depthwise"
    assert small.build().get_submodule(f"blocks.0.{middle}").groups == 1
    file, module = save(small, tmp_path / "small.pt"), network_of(kind).network.base.construct()
    again = load(file, module=module)
    assert same(again.build(), small.build(), small)
    for layer in (maker, middle):
        with pytest.raises(PlanError, match=rf"blocks\.0\.{layer} \(.*only one group left\)"):
            narrow(again, [f"blocks.0.{layer}[0]"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_widths_are_those_that_the_blocks_were_written_with(kind):
    maker, size, readers, _ = READ[kind]
    widths = widths_of(network_of(kind).network)
    for block in ("blocks.0", "blocks.1"):
        width = widths.found[f"{block}.{maker}"]
        assert (width.home, width.size) == (block, size)
        assert {each.layer for each in width.readers} == {f"{block}.{name}" for name in readers}
    assert "stem" not in widths.found
    assert "stem" in widths.others


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_is_that_of_the_module(kind):
    small = narrow(network_of(kind), [cut(kind, "blocks.0", SOME)])
    module, images = small.build().to("meta"), images_for(small.network, 1).to("meta")
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        module(images)  # on the CPU, the attention of PyTorch would not be counted
    assert count(small).macs == flops.get_total_flops() // 2
    assert count(small).params == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", ["gated-resnet14", "gated-preresnet14", "gated-wrn-10-2"])
def test_the_formula_of_own_networks_is_what_pytorch_counts(name):
    whole = draw(name, input_shape=(3, 16, 16))
    names = list(widths_of(whole.network).found)
    small = narrow(whole, [f"{names[0]}[0-7]", f"{names[-1]}[2,5-9]"])
    with FlopCounterMode(display=False) as flops:
        small.build()(images_for(small.network, 1))
    assert count(small).macs == flops.get_total_flops() // 2


@pytest.mark.parametrize("kind", KINDS)
def test_narrowing_changes_nothing_else(kind):
    whole = network_of(kind)
    before = fingerprint(whole)
    small = narrow(whole, [cut(kind, "blocks.0", SOME)])
    assert fingerprint(whole) == before
    assert small.weights.keys() == whole.weights.keys()


@pytest.mark.parametrize(
    ("kind", "suffix"), [("basic", "safetensors"), *((k, "pt") for k in KINDS)]
)
def test_a_narrowed_network_needs_no_torch_pruning(kind, suffix, tmp_path, monkeypatch):
    whole = network_of(kind)
    small = narrow(add_gates(whole), [cut(kind, "blocks.0", SOME)])
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    file = save(small, tmp_path / f"small.{suffix}")
    read = load(file, module=network_of(kind).network.base.construct())
    assert read.network.edits == small.network.edits
    assert all(torch.equal(read.weights[key], small.weights[key]) for key in small.weights)
    assert count(read) == count(small)
    assert same(read.build(), small.build(), whole)
    assert same(fold_gates(read).build(), small.build(), whole)
    assert read.network.initial_weights().keys() == small.weights.keys()


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_a_narrowed_network_is_exported(suffix, tmp_path):
    whole = draw("resnet14", input_shape=(3, 8, 8))
    small = narrow(whole, ["layer1.0.conv1[0-7]"])
    assert export(small, tmp_path / f"small.{suffix}").difference < 1e-5


def test_a_class_of_torchvision_cannot_hold_a_narrowed_network():
    whole = draw("torchvision:resnet18", input_shape=(3, 32, 32))
    small = narrow(whole, ["layer1.0.conv1[0-7]"])
    with pytest.raises(PlanError, match=r"layer1\.0\.bn1, .* narrower than .*choose \.onnx"):
        to_torchvision(small)


@pytest.mark.parametrize(
    ("name", "shape"), [("torchvision:mobilenet_v3_small", 32), ("timm:vit_tiny_patch16_224", 32)]
)
def test_networks_of_libraries(name, shape):
    whole = draw(name, input_shape=(3, shape, shape))
    widths = widths_of(whole.network).found
    small = narrow(whole, [f"{name}[0]" for name, width in widths.items() if width.size > 1])
    module = whole.build()
    for width in (width for width in widths.values() if width.size > 1):
        for reader in width.readers:
            with torch.no_grad():
                module.get_parameter(f"{reader.layer}.weight")[:, : width.channels] = 0
    assert same(small.build(), module, whole)


WRONG = {
    "blocks.0.conv9[0]": r"there is no such layer.*2 inner widths",
    "blocks.0.conv2[0]": r"blocks\.0\.conv2 \(they are shared by layers outside",
    "blocks.0.conv1[16]": r"blocks\.0\.conv1 has 16",
    "blocks.0.conv1[3-1]": r"expected ascending channels",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_narrowed_is_refused(name):
    with pytest.raises(PlanError, match=WRONG[name]):
        narrow(network_of("basic"), [name])


def test_names_of_slices_are_read_as_they_are_written():
    for channels in [(0,), (0, 1, 2, 3), (1, 3, 4, 9), (7, 8)]:
        assert slice_named(str(Slice("a.b", channels))) == Slice("a.b", channels)
    assert str(Slice("a.b", (0, 1, 2, 5))) == "a.b[0-2,5]"
    assert slice_named("layer1.0") is None


def refusing(error: Exception):
    """A function that raises an error whatever it is asked."""

    def refuse(*_):
        raise error

    return refuse


def test_torch_pruning_is_asked_for_in_one_line(monkeypatch):
    from gatepruner.pruning import dependencies, groups

    network = draw("resnet14", input_shape=(3, 8, 8)).network
    monkeypatch.setattr(dependencies, "LEAST_VERSION", (99, 0))
    groups.widths_of.cache_clear()
    with pytest.raises(EngineError, match=r"needs torch-pruning 99\.0 .*pip install -U"):
        groups.widths_of(network)
    monkeypatch.setattr(dependencies.metadata, "version", refusing(PackageNotFoundError("it")))
    with pytest.raises(EngineError, match=r"found one of an unknown version: pip install -U"):
        groups.widths_of(network)
    monkeypatch.setattr(dependencies.metadata, "version", lambda name: "99.1")
    monkeypatch.setattr(dependencies.importlib, "import_module", refusing(OSError("no library")))
    with pytest.raises(EngineError, match=r"cannot import .* 99\.1 \(OSError: no library\): pip"):
        groups.widths_of(network)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(EngineError, match=r"torch_pruning: pip install 'gatepruner\[channels\]'"):
        groups.widths_of(network)
    monkeypatch.setattr(dependencies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"torch_pruning: pip install 'gatepruner\[channels\]'"):
        groups.widths_of(network)


def test_an_operation_that_torch_pruning_cannot_follow_is_named():
    network = Network.named("torchvision:swin_t", input_shape=(3, 32, 32))
    named = r"its groups of channels at CatBackward0 in front of features\.[246]\.norm \(TypeError"
    with pytest.raises(PlanError, match=rf"{named}.*its blocks can still be removed"):
        widths_of(network)


def test_a_layer_whose_group_cannot_be_found_is_no_width_and_the_others_are(monkeypatch):
    import torch_pruning

    network = draw("resnet8", input_shape=(3, 8, 8)).network
    every, find = widths_of(network), torch_pruning.DependencyGraph.get_pruning_group

    def fails(graph, layer, *how):
        if graph._module2name[layer] == "layer2.0.conv1":
            raise KeyError("unknown")
        return find(graph, layer, *how)

    monkeypatch.setattr(torch_pruning.DependencyGraph, "get_pruning_group", fails)
    widths_of.cache_clear()
    widths = widths_of(network)
    assert {*every.found} - {*widths.found} == {"layer2.0.conv1"}
    assert "cannot find their group (KeyError" in widths.others["layer2.0.conv1"]
    widths_of.cache_clear()


DAMAGED = {
    "conv9": ({"layer1.0.conv9": [8, 16, 3, 3]}, "no layer layer1.0.conv9"),
    "wider": ({"layer1.0.conv1": [17, 16, 3, 3]}, "cannot have the sizes"),
    "kernel": ({"layer1.0.conv1": [8, 16, 1, 3]}, "cannot have the sizes"),
    "axes": ({"layer1.0.conv1": [8]}, "cannot have the sizes"),
    "alone": ({"layer1.0.conv1": [8, 16, 3, 3]}, "do not fit"),
    "norm": ({"layer1.0.bn1": [8]}, "do not fit"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_sizes_that_do_not_fit_are_refused(case, tmp_path):
    whole = draw("resnet14", input_shape=(3, 8, 8))
    sizes, message = DAMAGED[case]
    narrowed = tuple((layer, tuple(each)) for layer, each in sizes.items())
    network = replace(whole.network, edits=replace(whole.network.edits, narrowed=narrowed))
    damaged = tmp_path / "damaged.pt"
    save(Checkpoint(network, whole.weights), damaged)
    with pytest.raises(CheckpointError, match=message):
        load(damaged)


@pytest.mark.parametrize("name", ["resnest14d", "seresnet18"])
def test_what_a_group_of_torch_pruning_does_not_say_whole_is_no_width(name):
    """ResNeSt splits what a grouped convolution makes; squeeze-and-excitation is whole."""
    pytest.importorskip("timm")
    network = Network.named(f"timm:{name}", input_shape=(3, 32, 32))
    widths = widths_of(network)
    split = [why for why in widths.others.values() if "exactly once" in why]
    assert bool(split) == (name == "resnest14d")
    weights, images = _drawn(network), torch.randn(2, 3, 32, 32)
    for one in (*widths.found,)[:3]:
        gone = {one: (1, 3)}
        small = network.narrowed_to(sizes_left(network, widths.found, gone))
        logits = small.build(cut_out(weights, widths.found, gone))(images)
        expected = network.build(closed(weights, widths.found, gone))(images)
        assert not torch.allclose(expected, network.build(weights)(images), rtol=1e-4)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_widths_are_tried_where_nothing_hides_them():
    """A head or a scale of a branch that is made as 0 would let every mistake pass."""
    pytest.importorskip("timm")
    network = Network.named("timm:mixer_s32_224")
    assert not network.initial_weights()["head.weight"].any()
    for tensor in _drawn(network).values():
        assert not tensor.is_floating_point() or tensor.numel() < 2 or tensor.std() > 0
