"""A network is a value; what is built of it behaves as the base does in its own library."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import GATED, Callers, draw, images_for, load_into, logits, removable
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import get_model

from gatepruner.errors import ArchitectureError, PlanError
from gatepruner.files.checkpoints import load, save
from gatepruner.models.fully_connected import FullyConnected
from gatepruner.models.resnet import ResNet
from gatepruner.models.wide import WideResNet
from gatepruner.networks.base import Base, blank
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import fold_gates

# ------------------------------------------------------------- built, and in its own library

OWN = {
    "resnet14": lambda: ResNet(2, "A"),
    "resnet14-b": lambda: ResNet(2, "B"),
    "preresnet14": lambda: WideResNet(2),
    "wrn-10-2,dropout=0.3": lambda: WideResNet(1, 2, 0.3),
    "residual-fc6,width=20": lambda: FullyConnected(3, 20),
    "highway-fc6": lambda: FullyConnected(3, highway=True),
}


def assert_same_behaviour(built: nn.Module, original: nn.Module, images, tolerance=0.0):
    """In evaluation, in training with the same random numbers, and in what training leaves."""
    for training in (False, True):
        expected = logits(original.train(training), images)
        found = logits(built.train(training), images)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        assert expected.std() > 1e-3  # so that equality tells something
    left = original.state_dict()
    for key, value in built.state_dict().items():
        torch.testing.assert_close(value, left[key], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", OWN)
def test_a_built_own_network_behaves_as_its_class(name):
    checkpoint = draw(name)
    original = load_into(OWN[name](), checkpoint.weights)
    assert_same_behaviour(checkpoint.build(), original, images_for(checkpoint.network, 4))


def test_a_built_network_of_torchvision_behaves_as_torchvision_does(library):
    base = library.network.base
    sized = {"vit": {"image_size": 64}, "max": {"input_size": (224, 224)}}
    original = get_model(base.name, num_classes=10, **sized.get(base.name[:3], {}))
    load_into(original, library.weights)
    tolerance = 1e-6 if base.name == "maxvit_t" else 0.0
    assert_same_behaviour(library.build(), original, images_for(library.network), tolerance)


def test_a_built_module_of_a_caller_behaves_as_the_callers(callers):
    checkpoint = Checkpoint.of(callers, (3, 16, 16))
    assert_same_behaviour(checkpoint.build(), callers, images_for(checkpoint.network, 4))


def test_dropout_is_different_in_training(callers):
    checkpoint = Checkpoint.of(callers, (3, 16, 16))
    images, built = images_for(checkpoint.network, 4), checkpoint.build()
    for layer in built.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum, layer.training = 0.0, False
    evaluated = logits(built, images)
    built.train()
    for layer in built.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    assert not torch.equal(logits(built, images), evaluated)


def test_a_callers_module_is_left_as_it_is(callers):
    callers.train()
    before = {key: tensor.clone() for key, tensor in callers.state_dict().items()}
    attributes = set(vars(callers)) | set(dict(callers.named_modules()))
    checkpoint = Checkpoint.of(callers, (3, 16, 16))
    small = Checkpoint(checkpoint.network.without(["blocks.1"]), checkpoint.weights)
    nn.init.zeros_(checkpoint.build().head.weight)
    assert "blocks.1" not in {block.name for block in small.network.blocks}
    assert callers.training
    assert set(vars(callers)) | set(dict(callers.named_modules())) == attributes
    assert all(torch.equal(before[key], it) for key, it in callers.state_dict().items())


def test_a_networks_weights_are_those_of_its_library(library):
    base = library.network.base
    state, module = library.network.state(), library.build()
    assert state.keys() == library.weights.keys() == module.state_dict().keys()
    assert {key: it.shape for key, it in state.items()} == {
        key: it.shape for key, it in module.state_dict().items()
    }
    assert library.network.unused_keys() == set(blank(base).state_dict()) - set(state)


# ------------------------------------------------------------------------------- as a value


@pytest.mark.parametrize(
    "name", [*GATED, "wrn-10-1,dropout=0.3", "torchvision:mobilenet_v2", "resnet8"]
)
def test_a_network_survives_json(name):
    network = Network.named(name, num_classes=7)
    names = removable(network)
    for edited in (network, network.without(names[:2]), network.without_shortcuts(names[-1:])):
        text = json.dumps(edited.to_json())
        assert Network.from_json(json.loads(text)) == edited


def test_a_callers_network_survives_json_if_the_module_is_given_again(callers):
    network = Network.of(callers, (3, 16, 16)).without(["blocks.1"])
    data = json.loads(json.dumps(network.to_json()))
    again = Network.from_json(data, Callers())
    assert (again.edits, again.blocks) == (network.edits, network.blocks)
    with pytest.raises(ArchitectureError, match=r"code of the module Callers: .*module="):
        _ = Network.from_json(data).blocks


def test_networks_are_equal_if_their_base_and_edits_are():
    one, same, other = (Network.named(name) for name in ("resnet14", "resnet14", "resnet20"))
    assert one == same
    assert len({one, same, other}) == 2
    assert one != one.without(["layer1.0"])
    assert hash(one.without(["layer1.0"])) == hash(same.without(["layer1.0"]))
    assert Network.named("resnet14", num_classes=3) != Network.named("resnet14", num_classes=4)


def test_removal_is_a_set_of_blocks():
    network = Network.named("gated-resnet14")
    one, two = ["layer1.1", "layer3.0"], ["layer2.1", "layer1.0"]
    both = network.without([*one, *two])
    assert network.without([]) == network
    assert network.without(one).without(two) == both
    assert network.without(two).without(one) == both
    assert network.without([*two, *one][::-1]) == both
    shortcuts = network.without_shortcuts(one)
    assert network.without_shortcuts([]) == network
    assert shortcuts.without_shortcuts(two) == network.without_shortcuts([*two, *one])
    assert shortcuts.without(two) == network.without(two).without_shortcuts(one)


@pytest.mark.parametrize("name", ["resnet14", "resnet14-b", "preresnet14"])
def test_identity_blocks_vanish_and_those_that_change_shape_keep_their_shortcut(name):
    network = Network.named(name)
    left = network.without(removable(network)).blocks
    assert [block.name for block in left] == ["layer2.0", "layer3.0"]
    assert not any(block.branch or block.removable for block in left)
    assert all(block.shortcut for block in left)


def test_a_block_tells_what_is_left_of_it():
    network = Network.named("gated-resnet8").without(["layer2.0"]).without_shortcuts(["layer3.0"])
    told = {
        block.name: (block.stage, block.branch, block.shortcut, block.gated, block.removable)
        for block in network.blocks
    }
    assert told == {
        "layer1.0": ("layer1", True, True, True, True),
        "layer2.0": ("layer2", False, True, False, False),
        "layer3.0": ("layer3", True, False, True, False),
    }
    assert network.blocks[0].layers == ("Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d")


class Nested(nn.Module):
    """A block inside the branch of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.outer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = x.flatten(1)
        h = x + self.inner(x)
        return self.head(x + self.outer(h))


def test_a_block_inside_another_ones_branch_goes_with_it():
    plain = Network.of(Nested(), (2, 2, 2))
    assert [block.name for block in plain.blocks] == ["root:1", "root:2"]
    network = plain.with_gates()
    small = network.without(["root:2"])
    assert small.blocks == ()
    assert set(small.state()) == {"head.weight", "head.bias"}
    weights = network.initial_weights()
    checkpoint = Checkpoint(small, {key: weights[key] for key in small.state()})
    assert checkpoint.gates == {}
    assert network.without(["root:1"]).without(["root:2"]).blocks == ()


def test_plain_networks_are_residual_ones_without_shortcuts():
    plain = Network.named("plain-fc6")
    assert not any(block.shortcut for block in plain.blocks)
    assert plain.state().keys() == Network.named("residual-fc6").state().keys()
    gated = Network.named("gated-plain-fc6")
    assert gated.edits.gate == "plain"
    assert all(block.removable and block.gated for block in gated.blocks)


def test_a_network_is_told_by_the_name_it_was_asked_for():
    for name in ("resnet8", "gated-resnet8", "torchvision:resnet18", "gated-highway-fc6"):
        assert str(Network.named(name)) == name


def test_gates_are_in_every_block_and_begin_open():
    network = Network.named("gated-resnet14")
    weights = network.initial_weights(3)
    gates = [network.gate_key(block.name) for block in network.blocks]
    assert gates == [f"layer{stage}.{index}.gate.k" for stage in (1, 2, 3) for index in (0, 1)]
    assert all(weights[key] == 1 for key in gates)
    plain = Network.named("resnet14").initial_weights(3)
    assert weights.keys() - plain.keys() == set(gates)
    assert all(torch.equal(weights[key], plain[key]) for key in plain)


def test_gates_of_another_kind_are_refused():
    network = Network.named("gated-resnet8")
    assert network.with_gates() == network
    with pytest.raises(PlanError, match="gated-resnet8 already has residual gates"):
        network.with_gates("plain")
    with pytest.raises(PlanError, match="unknown gate 'soft': expected residual or plain"):
        network.with_gates("soft")


def test_initial_weights_follow_their_seed_and_nothing_else():
    network = Network.named("resnet8")
    with torch.random.fork_rng(devices=[]):
        before = torch.random.get_rng_state()
        one, same, other = (network.initial_weights(seed) for seed in (1, 1, 2))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_gates_start_where_they_are_asked_to_and_nothing_else_does():
    network = Network.named("gated-resnet8")
    usual, low = network.initial_weights(1), network.initial_weights(1, gate=0.1)
    gates = {network.gate_key(name) for name in network.edits.gated}
    assert {float(usual[key]) for key in gates} == {1.0}
    assert {float(low[key]) for key in gates} == {float(torch.tensor(0.1))}
    assert all(torch.equal(usual[key], low[key]) for key in usual.keys() - gates)


@pytest.mark.parametrize(("name", "classes"), [("resnet8", 10), ("residual-fc4", 3)])
def test_a_network_knows_its_number_of_classes(name, classes):
    network = Network.named(name, num_classes=classes)
    assert network.num_classes == network.without(removable(network)).num_classes == classes


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnt20", r"unknown architecture 'resnt20': expected a name like resnet56"),
        ("resnet21", r"resnet21: expected a depth of 6n \+ 2 with n >= 1, as in resnet56"),
        ("jax:resnet50", r"unknown source 'jax' in 'jax:resnet50': expected torchvision:NAME"),
        ("caller:Net", r"unknown source 'caller'"),
        ("resnet20,dropout", r"'dropout' in 'resnet20,dropout': expected argument=value"),
        ("resnet20,dropout=0.3", r"resnet20: .*dropout"),
        ("wrn-10-1,dropout=3", "wrn-10-1 cannot .* dropout=3"),
        ("torchvision:resnet19", r"no classification model 'resnet19' \(did you mean .*resnet18"),
        ("torchvision:resnet18,depth=3", "resnet18 takes no argument 'depth'"),
        ("torchvision:vgg11", r"torchvision:vgg11 has no residual addition"),
        ("timm:resnet19", r"timm:resnet19: .*did you mean "),
    ],
)
def test_a_name_that_stands_for_no_network_is_refused(text, message):
    with pytest.raises(ArchitectureError, match=message):
        _ = Network.named(text).blocks


@pytest.mark.parametrize("text", ["resnet20,dropout=0.3", "torchvision:resnet19", "timm:resnet19"])
def test_a_wrong_name_is_refused_at_once(text):
    with pytest.raises(ArchitectureError):
        Network.named(text)


@pytest.mark.parametrize("verb", ["without", "without_shortcuts"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["layer1.9"],
            r"cannot remove layer1\.9 \(did you mean .*layer1\.\d.*resnet14 has no such",
        ),
        (
            ["nothing", "layer1.0", "nobody"],
            r"cannot remove nothing, nobody: .* its 5 blocks are layer1",
        ),
        (["layer1.0", "layer1.1", "layer1.0"], r"cannot remove layer1\.0 twice"),
        (["layer2.0"], r"of layer2\.0: only its shortcut is left"),
        (["layer3.1"], r"of layer3\.1: only its branch is left"),
        (["layer1.1", "layer2.1"], r"layer2\.1"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(verb, names, message):
    network = Network.named("gated-resnet14").without(["layer2.0", "layer2.1"])
    network = network.without_shortcuts(["layer3.1"])
    with pytest.raises(PlanError, match=message):
        getattr(network, verb)(names)


def test_a_halved_block_is_refused_with_what_each_has_left():
    network = Network.named("resnet14").without(["layer2.0"]).without_shortcuts(["layer3.1"])
    with pytest.raises(PlanError) as caught:
        network.without(["layer2.0", "layer3.1"])
    message = str(caught.value)
    assert "layer2.0" in message
    assert "layer3.1" in message
    assert "shortcut" in message
    assert "branch is left" in message


# ------------------------------------------------------------ what others do with the module


@pytest.fixture
def small() -> Checkpoint:
    """A gated network without one block of each kind."""
    whole = draw("gated-resnet14,num_classes=10")
    network = whole.network.without(["layer1.1", "layer2.0"])
    return Checkpoint(network, {key: whole.weights[key] for key in network.state()})


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_a_copy_of_a_built_module_computes_the_same_and_shares_nothing(small, copied):
    module, images = small.build(), images_for(small.network)
    twin = copied(module)
    expected = logits(module, images)
    assert torch.equal(logits(twin, images), expected)
    nn.init.zeros_(twin.linear.weight)
    assert torch.equal(logits(module, images), expected)


def test_a_copy_of_a_callers_built_module_keeps_its_modes(callers):
    module = Checkpoint.of(callers, (3, 16, 16)).build()
    twin = copy.deepcopy(module)
    images = images_for(Network.of(callers, (3, 16, 16)), 4)
    for training in (True, False):
        expected = logits(module.train(training), images)
        assert torch.equal(logits(twin.train(training), images), expected)


class Attending(nn.Module):
    """A block with a dropout whose rate, not whose flag, depends on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x)[:, 0]
        q = self.f(x)[:, None]
        rate = 0.5 if self.training else 0.0
        f = F.scaled_dot_product_attention(q, q, q, dropout_p=rate)[:, 0]
        return self.head((x + f).mean(1))


def drop_path(x, rate, training):
    """Stochastic depth as a function, as many networks have it."""
    if not training or rate == 0:
        return x
    return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - rate) / (1 - rate)


class Switching(nn.Module):
    """Computes different things, and passes different words, in training and in evaluation."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

    def forward(self, x):
        x = x + drop_path(self.conv(x), 0.5, self.training)
        mode = "nearest" if self.training else "bicubic"
        return self.head(F.interpolate(x, 20, mode=mode).mean((2, 3)))


WITHOUT_GATEPRUNER = """
import sys, torch
sys.modules["gatepruner"] = None  # importing it fails
torch.set_num_threads(1)  # as in the tests: sums are the same to the bit
for path in sys.argv[1:]:
    module, images, evaluated, trained = torch.load(path, weights_only=False)
    for training, expected in ((False, evaluated), (True, trained)):
        torch.manual_seed(7)
        with torch.no_grad():
            assert torch.equal(module.train(training)(images), expected), (path, training)
    torch.save(module, path)
    torch.load(path, weights_only=False)
"""


def test_a_built_module_is_unpickled_without_gatepruner(callers, tmp_path):
    checkpoints = {
        "functional dropout": Checkpoint.of(callers, (3, 16, 16)),
        "attention": Checkpoint.of(Attending(), (1, 8, 16)),
        "modes": Checkpoint.of(Switching(), (3, 16, 16)),
        "gates": draw("gated-resnet8"),
        "plain gates": draw("gated-plain-fc6"),
        "constants": fold_gates(draw("gated-plain-fc6")),
        "torchvision": draw("torchvision:mobilenet_v3_small,dropout=0.5", input_shape=(3, 32, 32)),
    }
    for name, checkpoint in checkpoints.items():
        module, images = checkpoint.build(), images_for(checkpoint.network, 3)
        modes = [logits(module.train(training), images) for training in (False, True)]
        torch.save((checkpoint.build(), images, *modes), tmp_path / f"{name}.pt")
    files = [str(path) for path in tmp_path.iterdir()]
    subprocess.run([sys.executable, "-c", WITHOUT_GATEPRUNER, *files], check=True)


@pytest.mark.filterwarnings("ignore:.*jit.trace.*")
def test_a_built_module_is_exported_and_traced(callers):
    brought = (Checkpoint.of(module, (3, 16, 16)) for module in (callers, Switching()))
    for checkpoint in (*brought, draw("gated-resnet8")):
        module, images = checkpoint.build(), images_for(checkpoint.network)
        expected = logits(module, images)
        for other in (
            torch.export.export(module, (images,)).module(),
            torch.jit.trace(module, images, check_trace=False),
        ):
            assert torch.equal(logits(other, images), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_built_module_compiles(small, backend):
    module, images = small.build(), images_for(small.network)
    compiled = torch.compile(small.build(), backend=backend)
    torch.testing.assert_close(logits(compiled, images), logits(module, images))


def test_a_built_module_trains(small):
    images = images_for(small.network, 16)
    labels = torch.arange(16) % 10
    module = small.build().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_built_module_trains_under_distributed_data_parallel(small, tmp_path):
    images = images_for(small.network, 4)
    module, twin = small.build().train(), small.build().train()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(module)
        wrapped(images).square().sum().backward()
        twin(images).square().sum().backward()
        for (key, found), expected in zip(
            module.named_parameters(), twin.parameters(), strict=True
        ):
            torch.testing.assert_close(found.grad, expected.grad, msg=key)
    finally:
        torch.distributed.destroy_process_group()


class Hesitant(nn.Module):
    """Asks for the value of its input, which no tracer can follow."""

    def forward(self, x):
        return x.relu() if x.sum() > 0 else x


def test_what_cannot_be_followed_is_kept_whole(tmp_path):
    module = Callers().eval()
    module.blocks.append(Hesitant())
    checkpoint = Checkpoint.of(module, (3, 8, 8))
    images = images_for(checkpoint.network)
    assert torch.equal(logits(checkpoint.build(), images), logits(module, images))
    path = save(checkpoint, tmp_path / "it.pt")
    again = load(path, module=module)
    assert torch.equal(logits(again.build(), images), logits(module, images))


class Allocated(TorchDispatchMode):
    """Adds up the bytes of new tensors in memory."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format and not result.is_meta:
            self.count += result.nbytes
        return result


def test_naming_a_regnet_allocates_no_weights():
    base = Base("torchvision", "regnet_y_400mf", (3, 64, 64))
    with Allocated() as allocated:
        module = blank(base)
    known = base.construct().state_dict()
    assert allocated.count < sum(tensor.nbytes for tensor in known.values()) / 100
    blanks = module.state_dict()
    assert all(tensor.is_meta for tensor in blanks.values())
    assert {key: value.shape for key, value in blanks.items()} == {
        key: value.shape for key, value in known.items()
    }
