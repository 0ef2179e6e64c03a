"""Networks of timm by name are what timm itself constructs, for images of the size it publishes."""

from __future__ import annotations

import pytest
import torch
from conftest import drawn, load_into, logits

from gatepruner import Network, load
from gatepruner.networks.names import parse

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("vit_base_patch32_384", 384),
        ("swin_base_patch4_window12_384.ms_in22k", 384),
        ("vit_small_patch14_dinov2", 518),
        ("tf_efficientnet_b1", 240),
        ("nf_regnet_b0", 192),
        ("resnet18", 224),
        ("no_such_network", 224),
    ],
)
def test_size_of_a_name_is_the_published_one(name, side):
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is None or cfg.input_size == (3, side, side)
    assert parse(f"timm:{name}")[0].input_shape == (3, side, side)
    assert parse(f"timm:{name}", input_shape=(1, 30, 40))[0].input_shape == (1, 30, 40)


def test_weights_of_a_larger_size_need_no_size(run, tmp_path):
    module = timm.create_model("vit_tiny_patch16_384", num_classes=5)
    module = load_into(module, drawn(module.state_dict()))
    torch.save(module.state_dict(), tmp_path / "it.pth")
    document = run(
        "inspect", tmp_path / "it.pth", "--arch", "timm:vit_tiny_patch16_384", "--json"
    ).document
    assert document["network"]["base"]["input_shape"] == [3, 384, 384]
    found, images = (
        load(tmp_path / "it.pth", arch="timm:vit_tiny_patch16_384"),
        torch.randn(1, 3, 384, 384),
    )
    assert torch.equal(logits(found.build(), images), logits(module, images))


def test_a_size_that_differs_from_the_published_one_is_passed_on():
    network = Network.named("timm:vit_tiny_patch16_384", input_shape=(3, 224, 224), num_classes=5)
    module = timm.create_model("vit_tiny_patch16_384", num_classes=5, img_size=224)
    module = load_into(module, drawn(module.state_dict()))
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(logits(network.build(module.state_dict()), images), logits(module, images))


def test_scaled_standardized_convolutions_are_followed():
    """`nf_resnet26` standardises its weights in every pass."""
    network = Network.named("timm:nf_resnet26", num_classes=5, input_shape=(3, 64, 64))
    module = timm.create_model("nf_resnet26", num_classes=5)
    module = load_into(module, drawn(module.state_dict()))
    images = torch.randn(2, 3, 64, 64)
    assert len(network.blocks) == 8
    assert torch.equal(logits(network.build(module.state_dict()), images), logits(module, images))
