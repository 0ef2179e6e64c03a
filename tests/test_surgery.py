"""Surgery equals masking, changes nothing in place, and leaves nothing over."""

from __future__ import annotations

import random
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    GATED,
    LIBRARY,
    draw,
    fingerprint,
    images_for,
    load_into,
    logits,
    removable,
    subsets,
    with_gates_at,
)
from torch import fx, nn

from gatepruner.errors import PlanError
from gatepruner.files.checkpoints import save
from gatepruner.models.fully_connected import HighwayBlock, ResidualBlock
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.surgery import fold_gates, follow, remove, remove_shortcuts

# ------------------------------------------------------------------- blocks, against masking

# The module whose output is multiplied by 0 in the library's own network to mask a block's
# branch, by what numbers the block in its module ("" where it is the only one).
BRANCHES = {
    "resnet14": {"": "bn2"},
    "resnet14-b": {"": "bn2"},
    "preresnet14": {"": "conv2"},
    "wrn-10-2": {"": "conv2"},
    "residual-fc6": {"": "branch"},
    "resnet18": {"": "bn2"},
    "resnext50_32x4d": {"": "bn3"},
    "regnet_y_400mf": {"": "f"},
    "mobilenet_v2": {"": "conv"},
    "mobilenet_v3_small": {"": "block"},
    "mnasnet0_5": {"": "layers"},
    "efficientnet_b0": {"": "block"},
    "efficientnet_v2_s": {"": "block"},
    "convnext_tiny": {"": "block"},
    "swin_t": {"1": "attn", "2": "mlp"},
    "swin_v2_t": {"1": "norm1", "2": "norm2"},
    "vit_b_32": {"1": "dropout", "2": "mlp"},
    "maxvit_t": {"": "layers", "1": "attn_layer", "2": "mlp_layer"},
}


def masked_logits(checkpoint: Checkpoint, whole: nn.Module, names, images):
    """What the library's own network computes with these branches multiplied by 0."""
    ends = BRANCHES[checkpoint.network.base.name]
    hooks = []
    for name in names:
        path, _, number = name.partition(":")
        branch = whole.get_submodule(f"{path}.{ends[number]}")
        hooks.append(branch.register_forward_hook(lambda module, args, output: output * 0))
    try:
        return logits(whole, images)
    finally:
        for hook in hooks:
            hook.remove()


def library_module(checkpoint: Checkpoint) -> nn.Module:
    return load_into(checkpoint.network.base.construct(), checkpoint.weights)


@pytest.mark.parametrize("name", [name for name in BRANCHES if name not in LIBRARY])
def test_rebuilt_without_any_subset_of_blocks_equals_the_whole_with_them_masked(name):
    checkpoint = draw(name)
    images, whole = images_for(checkpoint.network), library_module(checkpoint)
    untouched = logits(whole, images)
    for names in subsets(removable(checkpoint.network)):
        small = logits(remove(checkpoint, names).build(), images)
        assert torch.equal(small, masked_logits(checkpoint, whole, names, images)), names
        assert torch.equal(small, untouched) == (not names), names


def test_rebuilt_without_any_subset_of_highway_blocks_equals_transform_gates_shut():
    checkpoint = draw("highway-fc6")
    images, whole = images_for(checkpoint.network), library_module(checkpoint)
    for names in subsets(removable(checkpoint.network)):
        hooks = [
            whole.get_submodule(f"{name}.transform").register_forward_hook(
                lambda module, args, output: torch.full_like(output, -torch.inf)
            )
            for name in names
        ]
        expected = logits(whole, images)
        for hook in hooks:
            hook.remove()
        assert torch.equal(logits(remove(checkpoint, names).build(), images), expected), names


def test_torchvision_without_random_blocks_equals_torchvision_with_them_masked(library):
    images, whole = images_for(library.network, 1), library_module(library)
    names = removable(library.network)
    untouched = logits(whole, images)
    draws = random.Random(0)
    plans = [draws.sample(names, draws.randint(1, len(names))) for _ in range(2)]
    for plan in (*plans, names):
        small = remove(library, plan)
        found = logits(small.build(), images)
        expected = masked_logits(library, whole, plan, images)
        tolerance = 1e-6 if library.network.base.name == "maxvit_t" else 0.0
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        assert not torch.equal(found, untouched)
        assert_nothing_is_left_over(small, library)


def assert_nothing_is_left_over(small: Checkpoint, whole: Checkpoint) -> None:
    module = small.build()
    assert module.state_dict().keys() == small.weights.keys() == small.network.state().keys()
    assert small.weights.keys() <= whole.weights.keys()
    targets = [node.target for node in module.graph.nodes if node.op in ("call_module", "get_attr")]
    owners = {str(target) for target in targets}
    for key in module.state_dict():
        assert any(key == owner or key.startswith(f"{owner}.") for owner in owners), key


@pytest.mark.parametrize("name", GATED)
def test_surgery_leaves_no_module_or_weight_that_is_not_used(name):
    whole = draw(name)
    names = removable(whole.network)
    for plan in (names, names[::2], names[1:]):
        assert_nothing_is_left_over(remove(whole, plan), whole)
        assert_nothing_is_left_over(remove_shortcuts(whole, plan), whole)
        folded = fold_gates(remove(whole, plan))
        assert folded.build().state_dict().keys() == folded.weights.keys()


@pytest.mark.parametrize("name", ["gated-resnet14-b", "gated-plain-fc6"])
def test_removal_in_steps_equals_removal_at_once(name):
    whole = draw(name)
    names = removable(whole.network)
    once = remove(whole, names[:3])
    for first, second in ((names[:1], names[1:3]), (names[1:3], names[:1])):
        steps = remove(remove(whole, first), second)
        assert steps.network == once.network
        assert steps.weights.keys() == once.weights.keys()
        assert all(steps.weights[key] is whole.weights[key] for key in steps.weights)
    assert remove(whole, []).network == whole.network
    assert remove(whole, []).weights == whole.weights


def test_a_pruned_network_is_pruned_again_to_the_end():
    checkpoint = draw("resnet14")
    images = images_for(checkpoint.network)
    whole, gone = library_module(checkpoint), []
    while removable(checkpoint.network):
        gone.append(removable(checkpoint.network)[-1])
        checkpoint = remove(checkpoint, gone[-1:])
        found = logits(checkpoint.build(), images)
        assert torch.equal(found, masked_logits(checkpoint, whole, gone, images))
    assert len(gone) == 6
    assert [entry["removed"] for entry in checkpoint.notes["history"]] == [[name] for name in gone]


# ---------------------------------------------------------------- shortcuts, against masking


class NoShortcut(nn.Module):
    """The own fully-connected blocks with their shortcut multiplied by 0, by hand."""

    def __init__(self, block: ResidualBlock | HighwayBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x):
        f = self.block.branch(x)
        if isinstance(self.block, HighwayBlock):
            f = self.block.transform(x).sigmoid() * (f - x)
        return F.relu(f + x * 0)


@pytest.mark.parametrize("name", ["residual-fc6", "highway-fc6"])
def test_fully_connected_networks_without_shortcuts_equal_ones_with_them_masked(name):
    checkpoint = draw(name)
    images = images_for(checkpoint.network)
    for names in subsets(removable(checkpoint.network)):
        whole = library_module(checkpoint)
        for block in names:
            at = int(block.removeprefix("blocks."))
            whole.blocks[at] = NoShortcut(whole.blocks[at])
        small = remove_shortcuts(checkpoint, names)
        assert torch.equal(logits(small.build(), images), logits(whole, images)), names


@pytest.mark.parametrize("name", ["resnet8", "resnet8-b"])
def test_resnets_without_shortcuts_equal_ones_with_them_masked(name):
    checkpoint = draw(name)
    images, whole = images_for(checkpoint.network), library_module(checkpoint)
    untouched = logits(whole, images)
    for names in subsets(removable(checkpoint.network)):
        hooks = [
            whole.get_submodule(f"{name}.shortcut").register_forward_hook(
                lambda module, args, output: output * 0
            )
            for name in names
        ]
        expected = logits(whole, images)
        for hook in hooks:
            hook.remove()
        found = logits(remove_shortcuts(checkpoint, names).build(), images)
        assert torch.equal(found, expected), names
        assert torch.equal(found, untouched) == (not names), names


class Masking(fx.Interpreter):
    """Runs a library's network with the shortcuts of some of its additions multiplied by 0."""

    def __init__(self, module: nn.Module, side: int, additions: set[int]) -> None:
        super().__init__(fx.symbolic_trace(module))
        self.side = side  # of the additions at which the library writes the shortcut
        found = [node for node in self.module.graph.nodes if "add" in node.name]
        self.masked = {node for at, node in enumerate(found) if at in additions}
        self.found = len(found)

    def run_node(self, n: fx.Node):
        if n not in self.masked:
            return super().run_node(n)
        operands = [self.env[value] for value in n.args]
        operands[self.side] = operands[self.side] * 0
        return operands[0] + operands[1]


@pytest.mark.parametrize(("name", "side"), [("resnet18", 1), ("mobilenet_v2", 0)])
def test_torchvision_without_shortcuts_equals_torchvision_with_them_masked(name, side):
    checkpoint = draw(f"torchvision:{name}", input_shape=(3, 64, 64))
    images, names = images_for(checkpoint.network, 1), removable(checkpoint.network)
    whole = library_module(checkpoint)
    for plan in ({0}, {1, 4, 5}, set(range(len(names)))):
        masking = Masking(whole, side, plan)
        assert masking.found == len(names)
        with torch.no_grad():
            expected = masking.run(images)
        small = remove_shortcuts(checkpoint, [names[at] for at in sorted(plan)])
        assert torch.equal(logits(small.build(), images), expected)
        assert_nothing_is_left_over(small, checkpoint)


def test_branches_and_shortcuts_of_different_blocks_go_together():
    checkpoint = draw("gated-resnet14")
    one = remove_shortcuts(remove(checkpoint, ["layer1.1"]), ["layer3.1"])
    other = remove(remove_shortcuts(checkpoint, ["layer3.1"]), ["layer1.1"])
    images = images_for(checkpoint.network)
    assert one.network == other.network
    assert torch.equal(logits(one.build(), images), logits(other.build(), images))
    with pytest.raises(PlanError, match=r"layer3\.1: only its branch is left"):
        remove(one, ["layer3.1"])


# ----------------------------------------------------------------------------------- folding


def assert_folded(folded: Checkpoint, gated: Checkpoint, images) -> None:
    expected = logits(gated.build(), images)
    difference = (logits(folded.build(), images) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()
    assert folded.network.edits.gated == ()
    assert not [key for key in folded.weights if key.endswith(".k")]
    assert folded.weights.keys() == folded.network.state().keys()


@pytest.mark.parametrize("name", [*GATED, "gated-wrn-10-1,dropout=0.3"])
def test_folding_keeps_the_logits_and_leaves_no_gate(name):
    checkpoint = draw(name)
    images, names = images_for(checkpoint.network), removable(checkpoint.network)
    for gated in (
        checkpoint,
        remove(checkpoint, names[1:2]),
        remove_shortcuts(checkpoint, names[-1:]),
        with_gates_at(checkpoint, 0.0, names[:1]),
        with_gates_at(checkpoint, -0.3, names[-1:]),
    ):
        assert_folded(fold_gates(gated), gated, images)


def test_folding_keeps_the_logits_of_torchvision_and_leaves_no_gate(library):
    network = library.network.with_gates()
    names = network.edits.gated
    generator = torch.Generator().manual_seed(3)
    gates = {network.gate_key(name): 0.5 + torch.rand((), generator=generator) for name in names}
    gated = Checkpoint(network, {**library.weights, **gates})
    folded = fold_gates(gated)
    assert_folded(folded, gated, images_for(network, 1))
    constants = ("features.1.0", "features.1.1") if "v2_s" in network.base.name else ()
    assert folded.network.edits.scaled_branches == constants
    assert folded.weights.keys() - library.weights.keys() == {
        network.scale_key(name, "branch") for name in constants
    }


@pytest.mark.parametrize("name", GATED)
def test_folding_and_removing_may_change_places(name):
    checkpoint = draw(name)
    images, plan = images_for(checkpoint.network), removable(checkpoint.network)[1:3]
    one = logits(fold_gates(remove(checkpoint, plan)).build(), images)
    other = logits(remove(fold_gates(checkpoint), plan).build(), images)
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["gated-resnet8", "gated-highway-fc4", "gated-plain-fc4"])
def test_a_folded_network_can_have_gates_again(name):
    folded = fold_gates(draw(name))
    images = images_for(folded.network)
    again = folded.network.with_gates()
    ones = {again.gate_key(block): torch.ones(()) for block in again.edits.gated}
    gated = Checkpoint(again, {**folded.weights, **ones})
    assert torch.equal(logits(gated.build(), images), logits(folded.build(), images))
    halves = with_gates_at(gated, 0.5, again.edits.gated)
    assert_folded(fold_gates(halves), halves, images)


@pytest.mark.parametrize("gate", ["residual", "plain"])
def test_gates_that_come_after_folding_leave_its_constants_in_place(gate):
    folded = fold_gates(draw("gated-plain-fc4"))
    again = folded.network.with_gates(gate)
    assert folded.weights.keys() <= again.state().keys()


# ------------------------------------------------------------------- nothing changes in place


@pytest.mark.parametrize("name", ["gated-resnet14-b", "gated-plain-fc6", "gated-highway-fc6"])
def test_no_verb_changes_its_input(name, tmp_path):
    checkpoint = draw(name)
    checkpoint = Checkpoint(checkpoint.network, checkpoint.weights, {"history": [{"drawn": 0}]})
    before, names = fingerprint(checkpoint), removable(checkpoint.network)
    for changed in (
        remove(checkpoint, names[:2]),
        remove_shortcuts(checkpoint, names[-1:]),
        fold_gates(checkpoint),
    ):
        assert fingerprint(changed) != before
        assert fingerprint(checkpoint) == before
    module = checkpoint.build().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(images_for(checkpoint.network, 4)).square().sum().backward()
    optimizer.step()
    state = module.state_dict()
    assert any(not torch.equal(state[key], it) for key, it in checkpoint.weights.items())
    assert fingerprint(checkpoint) == before
    save(checkpoint, tmp_path / "it.pt")
    save(checkpoint, tmp_path / "it.safetensors")
    assert fingerprint(checkpoint) == before


@pytest.mark.parametrize("verb", [remove, remove_shortcuts])
def test_a_refused_plan_leaves_everything_as_it_was(verb):
    checkpoint = draw("gated-resnet8")
    before = fingerprint(checkpoint)
    with pytest.raises(PlanError, match="no such block"):
        verb(checkpoint, ["layer1.0", "layer9.9"])
    assert fingerprint(checkpoint) == before


@pytest.mark.parametrize(
    "verb", [lambda it: remove(it, []), lambda it: remove_shortcuts(it, []), fold_gates]
)
def test_the_weights_of_a_new_checkpoint_are_read_only(verb):
    assert isinstance(verb(draw("gated-resnet8")).weights, MappingProxyType)


def test_what_was_done_is_noted_oldest_first():
    checkpoint = draw("gated-residual-fc6")
    done = fold_gates(remove_shortcuts(remove(checkpoint, ["blocks.0"]), ["blocks.2"]))
    assert done.notes["history"] == [
        {"removed": ["blocks.0"]},
        {"shortcuts_removed": ["blocks.2"]},
        {"folded": ["blocks.1", "blocks.2"], "constants": []},
    ]


def test_a_single_name_is_one_block():
    whole = draw("gated-resnet14", input_shape=(3, 8, 8))
    for verb in (remove, follow, remove_shortcuts):
        alone, listed = verb(whole, "layer2.1"), verb(whole, ["layer2.1"])
        assert fingerprint(alone) == fingerprint(listed)
    with pytest.raises(PlanError, match=r"cannot remove layer9\.1 "):
        remove(whole, "layer9.1")
