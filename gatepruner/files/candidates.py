"""Networks to which a state dict may belong, told from its keys and shapes.

Covers gatepruner's own networks, torchvision's ResNet family, and EfficientNets as lukemelas names
them. Each network comes with what the weights do not tell, and is therefore assumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from gatepruner.models import CIFAR, Shape
from gatepruner.models.preactivation import LAYERS, SHALLOW

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Candidate:
    """A network to which a state dict may belong.

    Attributes:
        name: as `Network.named` reads it.
        assumed: what the weights do not tell.
        input_shape: `(C, H, W)` of one image; `None` for the network's usual one.
    """

    name: str
    assumed: str
    input_shape: Shape | None = None


# Blocks per stage, and the first two sides of the second convolution of the first block.
TORCHVISION_RESNETS: dict[str, tuple[tuple[int, ...], tuple[int, int]]] = {
    "resnet18": ((2, 2, 2, 2), (64, 64)),
    "resnet34": ((3, 4, 6, 3), (64, 64)),
    "resnet50": ((3, 4, 6, 3), (64, 64)),
    "resnet101": ((3, 4, 23, 3), (64, 64)),
    "resnet152": ((3, 8, 36, 3), (64, 64)),
    "resnext50_32x4d": ((3, 4, 6, 3), (128, 4)),
    "resnext101_32x8d": ((3, 4, 23, 3), (256, 8)),
    "resnext101_64x4d": ((3, 4, 23, 3), (256, 4)),
    "wide_resnet50_2": ((3, 4, 6, 3), (128, 128)),
    "wide_resnet101_2": ((3, 4, 23, 3), (128, 128)),
}
# Blocks, whether they have squeeze and excitation, and the side of the images.
EFFICIENTNETS: dict[str, tuple[int, bool, int]] = {
    "tf_efficientnet_b0": (16, True, 224),
    "tf_efficientnet_b1": (23, True, 240),
    "tf_efficientnet_b2": (23, True, 260),
    "tf_efficientnet_b3": (26, True, 300),
    "tf_efficientnet_b4": (32, True, 380),
    "tf_efficientnet_b5": (39, True, 456),
    "tf_efficientnet_b6": (45, True, 528),
    "tf_efficientnet_b7": (55, True, 600),
    "tf_efficientnet_lite0": (16, False, 224),
    "tf_efficientnet_lite1": (21, False, 240),
    "tf_efficientnet_lite2": (21, False, 260),
    "tf_efficientnet_lite3": (24, False, 300),
    "tf_efficientnet_lite4": (30, False, 380),
}
FEATURES: dict[int, Shape] = {784: (1, 28, 28), 3072: (3, 32, 32)}
GATE_KEY = re.compile(r"(^|\.)gate\d*\.k$")
PADDED = "ReLU, and shortcuts padded with zeros, half before and half after the channels"
PROJECTED = "ReLU"
SHARED = "ReLU, and projections that take what the first ReLU of their block gives"
UNNORMED = f"{SHARED}, and neither batch norm nor ReLU before the head"
RAW = "ReLU, and projections that take the block's input as it is"
STEM = "ReLU and a 3x3 max-pool of stride 2 after the stem"
SMALL_STEM = "ReLU, and a stem of stride 1 without max-pool"
V15 = ", and the stride in the 3x3 convolution (v1.5; else name torchvision:NAME,v1=true)"
TENSORFLOW = "padding and batch norm as in TensorFlow"


def candidates(shapes: Shapes, arguments: str = "") -> Iterator[Candidate]:
    """The networks to which a state dict may belong, gated if it has gates.

    Args:
        shapes: by key, in the network's own names.
        arguments: of networks before activation whose projections take the block's input.
    """
    gated = "gated-" if any(GATE_KEY.search(key) for key in shapes) else ""
    for kind in (_fully_connected, _for_small_images, _torchvision, _efficientnets):
        for found in kind(shapes):
            if not arguments:
                yield replace(found, name=f"{gated}{found.name}")
            elif found.assumed == SHARED:
                yield replace(found, name=f"{gated}{found.name}{arguments}", assumed=RAW)


def _blocks(shapes: Shapes, stem: str) -> int:
    """The number of blocks in a stage, which the number of weights limits."""
    matches = (re.match(rf"{re.escape(stem)}\.(\d+)\.", key) for key in shapes)
    return len({match[1] for match in matches if match})


def _fully_connected(shapes: Shapes) -> Iterator[Candidate]:
    stem = shapes.get("stem.weight", ())
    if len(stem) != 2 or not min(stem) or not _blocks(shapes, "blocks"):
        return
    highway = any("transform" in key for key in shapes)
    shape = FEATURES.get(stem[1], (1, 1, stem[1]))
    for kind in ("highway",) if highway else ("residual", "plain"):
        name = f"{kind}-fc{2 * _blocks(shapes, 'blocks')},width={stem[0]}"
        yield Candidate(name, "ReLU", shape)


def _for_small_images(shapes: Shapes) -> Iterator[Candidate]:
    first = shapes.get("layer1.0.conv1.weight")
    if not first or "linear.weight" not in shapes:
        return
    width, count = first[0] // 16, _blocks(shapes, "layer1")
    if any(key.startswith("layer4.") for key in shapes):
        yield from _before_activation(shapes)
    elif "bn.weight" in shapes and "layer1.0.conv3.weight" in shapes:
        yield Candidate(f"preresnet{9 * count + 2}-bottleneck", SHARED)
    elif "bn.weight" in shapes and width > 1:
        yield Candidate(f"wrn-{6 * count + 4}-{width}", SHARED)
    elif "bn.weight" in shapes:
        yield Candidate(f"preresnet{6 * count + 2}", SHARED)
    elif "layer1.0.conv3.weight" in shapes:
        yield Candidate(f"resnet{9 * count + 2}-bottleneck", PROJECTED)
    elif any(".shortcut." in key for key in shapes):
        yield Candidate(f"resnet{6 * count + 2}-b", PROJECTED)
    else:
        yield Candidate(f"resnet{6 * count + 2}", PADDED)


def _before_activation(shapes: Shapes) -> Iterator[Candidate]:
    """Pre-activation ResNets of four stages."""
    counts = tuple(_blocks(shapes, f"layer{stage}") for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in shapes
    for depth, layers in LAYERS.items():
        if (layers, depth not in SHALLOW) == (counts, bottleneck):
            yield Candidate(f"preactresnet{depth}", UNNORMED)


def _torchvision(shapes: Shapes) -> Iterator[Candidate]:
    stem = shapes.get("conv1.weight", ())
    if len(stem) != 4 or "fc.weight" not in shapes:
        return
    counts = tuple(_blocks(shapes, f"layer{stage}") for stage in (1, 2, 3, 4))
    second = shapes.get("layer1.0.conv2.weight", ())[:2]
    bottleneck = "layer1.0.conv3.weight" in shapes
    small = stem[2:] == (3, 3)
    size = CIFAR[1] if small else 224
    for name, (layers, conv2) in TORCHVISION_RESNETS.items():
        basic = name in ("resnet18", "resnet34")
        if (layers, conv2, basic) == (counts, second, not bottleneck):
            assumed = (SMALL_STEM if small else STEM) + (V15 if bottleneck else "")
            full = f"torchvision:{name}{',stem=small' if small else ''}"
            yield Candidate(full, assumed, (stem[1], size, size))


def _efficientnets(shapes: Shapes) -> Iterator[Candidate]:
    if "blocks.0._depthwise_conv.weight" not in shapes:
        return
    known = (_blocks(shapes, "blocks"), any("._se_" in key for key in shapes))
    for name, (blocks, squeeze, size) in EFFICIENTNETS.items():
        if (blocks, squeeze) == known:
            yield Candidate(f"timm:{name}", TENSORFLOW, (3, size, size))
