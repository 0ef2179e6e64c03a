"""What is exported is loaded by torchvision alone, strictly, and gives the same logits."""

from __future__ import annotations

import pytest
import torch
from conftest import draw, fingerprint, images_for, logits, removable
from torchvision.models import ResNet, get_model

from gatepruner.errors import PlanError
from gatepruner.files.export import to_torchvision
from gatepruner.files.storage import write_tensors
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.surgery import remove, remove_shortcuts


def made(name: str) -> Checkpoint:
    return draw(f"torchvision:{name}", input_shape=(3, 64, 64))


def gated(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a gate of its own in every block that can have one."""
    network = checkpoint.network.with_gates()
    values = {
        network.gate_key(name): torch.tensor(0.5 + 0.1 * index)
        for index, name in enumerate(network.edits.gated)
    }
    return Checkpoint(network, {**checkpoint.weights, **values})


def assert_stock_gives_the_same(checkpoint: Checkpoint, layers: tuple[int, ...]) -> ResNet:
    stock = to_torchvision(checkpoint)
    module = stock.build()
    assert type(module) is ResNet
    assert stock.layers == layers
    assert [len(getattr(module, f"layer{stage}")) for stage in (1, 2, 3, 4)] == list(layers)
    assert not module.training
    images = images_for(checkpoint.network)
    expected = logits(checkpoint.build(), images)
    assert expected.std() > 1e-3
    difference = (logits(module, images) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()
    return module


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_a_whole_network_is_torchvisions_own(name):
    checkpoint = made(name)
    layers = (2, 2, 2, 2) if name == "resnet18" else (3, 4, 6, 3)
    module = assert_stock_gives_the_same(checkpoint, layers)
    assert str(module) == str(get_model(name, num_classes=10))


@pytest.mark.parametrize(
    ("name", "plan", "layers"),
    [
        ("resnet18", ["layer1.0"], (1, 2, 2, 2)),
        ("resnet18", ["layer1.1", "layer2.1", "layer3.1", "layer4.1"], (1, 1, 1, 1)),
        ("resnet50", ["layer2.1", "layer3.3", "layer3.2"], (3, 3, 4, 3)),
        ("resnext50_32x4d", ["layer1.2", "layer3.1"], (2, 4, 5, 3)),
        ("wide_resnet50_2", ["layer4.1"], (3, 4, 6, 2)),
    ],
)
def test_a_network_without_whole_blocks_closes_up(name, plan, layers):
    assert_stock_gives_the_same(remove(made(name), plan), layers)


@pytest.mark.parametrize("plan", [[], ["layer3.1"]])
def test_gates_are_folded(plan):
    checkpoint = remove(gated(made("resnet18")), plan)
    before = fingerprint(checkpoint)
    assert_stock_gives_the_same(checkpoint, (2, 2, 1 if plan else 2, 2))
    assert not [key for key in to_torchvision(checkpoint).state if "gate" in key]
    assert fingerprint(checkpoint) == before


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_the_recipe_loads_the_file_with_torchvision_alone(tmp_path, name, suffix):
    checkpoint = remove(made(name), ["layer2.1"])
    stock, path = to_torchvision(checkpoint), tmp_path / f"it.{suffix}"
    write_tensors(stock.state, path)
    recipe = stock.recipe(str(path))
    assert "gatepruner" not in recipe.replace(str(path), "")
    found: dict = {}
    exec(recipe, found)
    images = images_for(checkpoint.network)
    expected = logits(stock.build(), images)
    assert torch.equal(logits(found["model"].eval(), images), expected)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "torchvision:regnet_y_400mf"])
def test_another_family_of_torchvision_is_refused(name):
    checkpoint = draw(name, input_shape=(3, 64, 64))
    with pytest.raises(PlanError, match=f"cannot export {name} .*ResNet family"):
        to_torchvision(checkpoint)


def test_an_own_resnet_is_refused():
    with pytest.raises(PlanError, match=r"cannot export (gated-)?resnet8 to torchvision"):
        to_torchvision(draw("gated-resnet8"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda it: remove(it, ["layer2.0", "layer3.0"]),
            r"layer2\.0, layer3\.0 lacks its branch.*gate --identity",
        ),
        (lambda it: remove_shortcuts(it, ["layer1.1"]), r"layer1\.1 lacks its branch or"),
        (lambda it: remove(it, ["layer1.0", "layer1.1"]), "layer1 has no block left"),
    ],
)
def test_what_torchvision_cannot_hold_is_refused(change, message):
    checkpoint = change(made("resnet18"))
    with pytest.raises(PlanError, match=message):
        to_torchvision(checkpoint)


def test_a_network_without_any_removable_block_is_refused():
    checkpoint = made("resnet18")
    with pytest.raises(PlanError, match="lacks its branch"):
        to_torchvision(remove(checkpoint, removable(checkpoint.network)))
