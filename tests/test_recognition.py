"""The architecture of a state dict, told from its keys and shapes alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from gatepruner import models
from gatepruner.errors import ArchitectureError, CheckpointError
from gatepruner.files.candidates import PADDED
from gatepruner.files.checkpoints import load
from gatepruner.files.recognition import recognise
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import remove

REAL = Path(__file__).parents[2] / "shared" / "data" / "checkpoints"

OWN = (
    *("resnet8", "resnet20", "resnet56", "resnet110", "resnet8-b", "resnet20-b", "resnet110-b"),
    *("preresnet8", "preresnet20", "preresnet110"),
    *("resnet11-bottleneck", "preresnet164-bottleneck", "preactresnet34", "preactresnet101"),
    *("wrn-10-2", "wrn-16-2", "wrn-16-4", "wrn-28-10", "wrn-40-2"),
    *("highway-fc2", "highway-fc10"),
)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("name", OWN)
def test_own_network_is_told_from_keys_and_shapes(name, classes):
    shape = models.family_of(name)[0].input_shape
    with torch.device("meta"):
        state = models.construct(name, shape, num_classes=classes).state_dict()
    found = recognise(state, "net.pt")
    assert (found.base.source, found.base.name) == ("gatepruner", name)
    assert dict(found.base.arguments)["num_classes"] == classes
    assert found.base.input_shape == shape
    assert not found.edits.gated
    assert {k: v.shape for k, v in found.state().items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet20-b", "preresnet20", "wrn-16-2", "highway-fc4", "resnet110"]
)
def test_gated_own_network_is_told_with_all_its_gates(name):
    network = Network.named(f"gated-{name}")
    found = recognise(network.state(), "net.pt")
    assert found.base.name == name
    assert found.edits == network.edits
    assert found.edits.gated == tuple(block.name for block in network.blocks)


@pytest.mark.parametrize("width", [3, 50, 128])
@pytest.mark.parametrize(
    ("features", "shape"), [(784, (1, 28, 28)), (3072, (3, 32, 32)), (60, (1, 1, 60))]
)
def test_fully_connected_network_tells_width_and_image_shape(width, features, shape):
    state = models.construct("highway-fc4", (1, 1, features), width=width).state_dict()
    found = recognise(state, "net.pt")
    assert found.base.input_shape == shape
    assert dict(found.base.arguments) == {"num_classes": 10, "width": width}


TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2")


@pytest.mark.parametrize("classes", [7, 1000])
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_resnet_is_told_whatever_its_classes(name, classes):
    with torch.device("meta"):
        state = get_model(name, num_classes=classes).state_dict()
    found = recognise(state, "net.pt")
    assert (found.base.source, found.base.name) == ("torchvision", name)
    assert dict(found.base.arguments)["num_classes"] == classes
    assert found.base.input_shape == (3, 224, 224)


@pytest.mark.parametrize(
    "name", ["resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2"]
)
def test_large_torchvision_resnet_is_told(name):
    with torch.device("meta"):
        state = get_model(name, num_classes=12).state_dict()
    assert str(recognise(state, "net.pt")) == f"torchvision:{name}"


def test_gated_torchvision_resnet_is_told():
    network = Network.named("gated-torchvision:resnet18", num_classes=5)
    found = recognise(network.state(), "net.pt")
    assert found == network


def test_random_weights_of_a_torchvision_resnet_load_as_they_are(tmp_path):
    module = get_model("resnet18", num_classes=3).eval()
    torch.save(module.state_dict(), tmp_path / "net.pth")
    checkpoint = load(tmp_path / "net.pth")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(checkpoint.build()(image), module(image))


def test_files_of_old_pytorch_without_batch_counters_are_told():
    state = Network.named("wrn-16-2").state()
    old = {key: it for key, it in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    assert recognise(old, "net.pt").base.name == "wrn-16-2"


@pytest.mark.parametrize("gated", ["", "gated-"])
@pytest.mark.parametrize("kind", ["residual", "plain"])
def test_residual_and_plain_cannot_be_told_apart_so_both_are_offered(gated, kind):
    state = Network.named(f"{gated}{kind}-fc6,width=9").state()
    with pytest.raises(ArchitectureError) as caught:
        recognise(state, "deep.pt")
    message = str(caught.value)
    for candidate in (f"{gated}residual-fc6,width=9", f"{gated}plain-fc6,width=9"):
        assert candidate in message
    assert "deep.pt" in message
    assert "pass arch=" in message
    assert "\n" not in message


@pytest.mark.parametrize("arch", ["residual-fc6,width=9", "plain-fc6,width=9"])
def test_the_callers_word_decides_where_several_fit(arch):
    state = Network.named("residual-fc6,width=9", num_classes=4).state()
    assert recognise(state, "deep.pt", arch) == Network.named(arch, num_classes=4)


def test_the_callers_word_is_checked_against_the_weights():
    state = Network.named("resnet20").state()
    with pytest.raises(CheckpointError, match=r"net\.pt does not fit wrn-16-2: missing: bn\.bias"):
        recognise(state, "net.pt", "wrn-16-2")
    with pytest.raises(CheckpointError, match=r"linear\.weight is \(10, 64\), not \(3, 64\)"):
        recognise(state, "net.pt", "resnet20", num_classes=3)


def test_image_shape_can_be_said():
    state = Network.named("highway-fc4,width=5").state()
    assert recognise(state, "net.pt", input_shape=(1, 14, 56)).base.input_shape == (1, 14, 56)


def without(state, key):
    return {name: tensor for name, tensor in state.items() if name != key}


def meta(*shape):
    return torch.empty(shape, device="meta")


def pruned_resnet20():
    network = Network.named("resnet20")
    return remove(Checkpoint(network, network.state()), ["layer2.1"]).network.state()


UNKNOWN = {
    "one foreign weight": lambda: {"encoder.weight": meta(3, 3)},
    "another torchvision network": lambda: Network.named("torchvision:mobilenet_v2").state(),
    "a weight is missing": lambda: without(Network.named("resnet20").state(), "bn1.weight"),
    "a weight too many": lambda: {**Network.named("resnet20").state(), "extra": meta(1)},
    "a weight of another shape": lambda: {
        **Network.named("resnet20").state(),
        "layer1.0.conv1.weight": meta(16, 16, 5, 5),
    },
    "half of the gates": lambda: without(
        Network.named("gated-resnet20").state(), "layer1.0.gate.k"
    ),
    "a block is gone": pruned_resnet20,
    "a head without a shape": lambda: {"fc.weight": meta()},
    "a stem without a shape": lambda: {
        "stem.weight": meta(),
        "blocks.0.weight": meta(),
    },
    "a convolution without a shape": lambda: {
        "layer1.0.conv1.weight": meta(),
        "bn.weight": meta(1),
        "linear.weight": meta(1, 1),
    },
    "a width of zero": lambda: {"stem.weight": meta(0, 784), "blocks.0.weight": meta(1)},
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_is_not_known_is_said_to_be_unknown(make):
    state = make()
    with pytest.raises(ArchitectureError) as caught:
        recognise(state, "strange.pt")
    message = str(caught.value)
    assert message.startswith("cannot recognise the architecture of strange.pt")
    assert next(iter(state)) in message
    assert "pass arch=" in message
    assert "\n" not in message


def test_near_misses_name_the_network_they_nearly_are():
    state = without(Network.named("resnet20").state(), "bn1.weight")
    with pytest.raises(ArchitectureError, match=r"resnet20 comes closest, but has other weights"):
        recognise(state, "net.pt")


@pytest.mark.parametrize(
    "state",
    [
        {"stem.weight": meta(4, 784), "blocks.99999999.weight": meta(1)},
        {
            "layer1.0.conv1.weight": meta(16, 3),
            "layer1.99999999.x": meta(1),
            "linear.weight": meta(1),
        },
    ],
    ids=["fully-connected", "convolutional"],
)
def test_a_large_number_in_a_key_does_not_make_a_large_network(state, monkeypatch):
    built = []

    def named(text, **_):
        built.append(text)
        raise ArchitectureError("cannot recognise the architecture: not constructed in this test")

    monkeypatch.setattr(Network, "named", named)
    with pytest.raises(ArchitectureError):
        recognise(state, "net.pt")
    assert not [text for text in built if re.search(r"\d{6}", text)]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"trained networks are missing: no folder {REAL}")
@pytest.mark.parametrize(
    ("file", "name", "blocks"),
    [
        ("resnet20-12fca82f.th", "resnet20", 9),
        ("resnet56-4bfd9763.th", "resnet56", 27),
        ("resnet56-split.pt", "resnet56", 27),
    ],
)
def test_trained_networks_of_others_load_without_saying_what_they_are(file, name, blocks):
    checkpoint = load(REAL / file)
    assert str(checkpoint.network) == name
    assert len(checkpoint.network.blocks) == blocks
    assert checkpoint.network.num_classes == 10
    assert checkpoint.notes["source"] == file
    assert checkpoint.notes["remarks"] == [f"recognised as {name}, assuming {PADDED}"]
    content = torch.load(REAL / file, map_location="cpu", weights_only=True)
    theirs = content.get("state_dict", content)
    ours = {key.removeprefix("module."): tensor for key, tensor in theirs.items()}
    assert all(torch.equal(tensor, checkpoint.weights[key]) for key, tensor in ours.items())
    with torch.no_grad():
        assert checkpoint.build()(torch.zeros(2, 3, 32, 32)).isfinite().all()
