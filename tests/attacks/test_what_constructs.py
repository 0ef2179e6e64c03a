"""No name, argument or size from outside makes a constructor open, fetch or run something."""

from __future__ import annotations

import json
import re
import socket

import pytest
import torch
from conftest import draw

from gatepruner import Network, save
from gatepruner.errors import ArchitectureError


@pytest.fixture
def sealed(monkeypatch):
    """A process without network, in which unpickling and opening by timm are noticed."""

    def refused(*args, **options):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refused)


def forged(tmp_path, **base):
    """A file of our own format whose header has another base."""
    save(draw("gated-resnet8"), tmp_path / "a.pt")
    file = torch.load(tmp_path / "a.pt", weights_only=True)
    header = json.loads(file["gatepruner"])
    header["network"]["base"].update(base)
    torch.save({**file, "gatepruner": json.dumps(header)}, tmp_path / "forged.pt")
    return tmp_path / "forged.pt"


ARGUMENTS = [
    ("timm", "resnet18", {"checkpoint_path": "weights.bin"}),
    ("timm", "resnet18", {"pretrained": True}),
    ("timm", "resnet18", {"pretrained_cfg": "resnet18.a1_in1k"}),
    ("timm", "resnet18", {"pretrained_cfg_overlay": {"file": "weights.bin"}}),
    ("timm", "resnet18", {"cache_dir": "/tmp"}),
    ("timm", "resnet18", {"norm_layer": "os.system"}),
    ("timm", "resnet18", {"num_classes": 2_000_000}),
    ("timm", "resnet18", {"drop_rate": float("nan")}),
    ("timm", "resnet18", {"global_pool": "__import__"}),
    ("torchvision", "resnet18", {"weights": "DEFAULT"}),
    ("torchvision", "resnet18", {"norm_layer": "x"}),
    ("torchvision", "resnet18", {"num_classes": "__import__('os').system('true')"}),
    ("torchvision", "resnet18", {"replace_stride_with_dilation": [False, "x", False]}),
    ("torchvision", "resnet18", {"num_classes": True}),
    ("gatepruner", "resnet8", {"num_classes": -1}),
    ("gatepruner", "wrn-10-1", {"dropout": 2}),
]
NAMES = [
    ("timm", "hf-hub:x/y"),
    ("timm", "local-dir:/tmp"),
    ("timm", "../x"),
    ("timm", "/etc/passwd"),
    ("torchvision", "fcn_resnet50"),
    ("torchvision", "fasterrcnn_resnet50_fpn"),
    ("torchvision", "deeplabv3_resnet50"),
    ("torchvision", "ssd300_vgg16"),
    ("torchvision", "os.system"),
    ("gatepruner", "resnet999998"),
    ("gatepruner", "wrn-16-100000"),
    ("gatepruner", "residual-fc10000000"),
    ("gatepruner", "resnet8\n"),
]
SHAPES = [
    *([3, 8000, 8000], [3, -8, 8], [3, "8", 8], [3, 8], [3, 0, 8], [3, 8.0, 8], [True, 8, 8]),
    *([10**9, 8, 8],),
]


@pytest.mark.parametrize(("source", "name", "arguments"), ARGUMENTS, ids=repr)
def test_an_argument(sealed, tmp_path, run, source, name, arguments):
    done = run("inspect", forged(tmp_path, source=source, name=name, arguments=arguments))
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert next(iter(arguments)) in done.err


@pytest.mark.parametrize(("source", "name"), NAMES)
def test_a_name(sealed, tmp_path, run, source, name):
    done = run("inspect", forged(tmp_path, source=source, name=name, arguments={}))
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert name.strip() in done.err


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_a_size(sealed, tmp_path, run, shape):
    done = run("inspect", forged(tmp_path, input_shape=shape))
    assert done.code == 1
    assert done.err.startswith("error: ")


@pytest.mark.parametrize(
    "text",
    [
        *("timm:hf-hub:x/y", "timm:local-dir:/tmp", "torchvision:fcn_resnet50", "resnet999998"),
        *("timm:resnet18,checkpoint_path=a.bin", "torchvision:resnet18,weights=DEFAULT"),
        *("timm:resnet18,pretrained=true", "torchvision:resnet18,progress=x", "caller:x"),
    ],
)
def test_a_name_on_the_command_line(sealed, tmp_path, run, text):
    torch.save(dict(draw("resnet8").weights), tmp_path / "a.pt")
    done = run("inspect", tmp_path / "a.pt", "--arch", text)
    assert done.code == 1
    assert done.err.startswith("error: ")


def test_what_a_limit_refuses_is_there_for_a_caller_who_raises_it(monkeypatch):
    with pytest.raises(ArchitectureError):
        Network.named("resnet8", num_classes=2_000_000)
    monkeypatch.setattr("gatepruner.networks.arguments.MOST_CLASSES", 3_000_000)
    assert Network.named("resnet8", num_classes=2_000_000).base.arguments


@pytest.mark.parametrize(
    "text",
    [
        *("torchvision:resnet50,width_per_group=32", "torchvision:mobilenet_v2,width_mult=0.25"),
        *("timm:resnet18,drop_path_rate=0.1", "timm:vit_tiny_patch16_224,global_pool=avg"),
        *("wrn-10-1,dropout=0.3", "residual-fc6,width=1000"),
    ],
)
def test_what_builds_layers_is_passed_on(text):
    assert Network.named(text).blocks


@pytest.mark.parametrize(
    ("arch", "size", "said"),
    [
        ("torchvision:vit_b_32", 50, "cannot take images|indivisible"),
        ("torchvision:maxvit_t", 100, "torchvision:maxvit_t"),
        ("timm:swin_tiny_patch4_window7_224", 2, "cannot take images of 3x2x2"),
        ("timm:resnet18,output_stride=3", 64, "timm:resnet18: "),
    ],
)
def test_a_network_that_refuses_its_images_says_why_in_one_line(tmp_path, run, arch, size, said):
    torch.save(dict(draw("resnet8").weights), tmp_path / "a.pt")
    done = run("inspect", tmp_path / "a.pt", "--arch", arch, "--input-size", f"3x{size}x{size}")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert re.search(said, done.err)
