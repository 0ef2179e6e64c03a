"""Recognising the architecture of a state dict from its keys and shapes.

Covers gatepruner's own networks and torchvision's ResNet family. The state dict is compared with
those of all candidates; if several fit, the caller has to choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from gatepruner.errors import ArchitectureError, listed
from gatepruner.models import Shape
from gatepruner.networks.network import Network

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
FEATURES: dict[int, Shape] = {784: (1, 28, 28), 3072: (3, 32, 32)}
HEAD = re.compile(r"(^|\.)(linear|head|fc|classifier(\.\d+)?)\.weight$")
COUNTER = "num_batches_tracked"  # of batch norm; missing in files of PyTorch before 0.4.1
GATE_KEY = re.compile(r"(^|\.)gate\d*\.k$")


def recognise(
    state: Mapping[str, Tensor],
    name: str,
    arch: str | None = None,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
) -> Network:
    """The network to which a state dict belongs.

    Args:
        state: tensors by key.
        name: of the file, for error messages.
        arch: the architecture; by default recognised.
        num_classes: number of logits; by default that of the state dict.
        input_shape: `(C, H, W)` of one image; by default the architecture's usual one.

    Raises:
        ArchitectureError: no architecture fits, or several do.
    """
    classes = num_classes or _classes(state)
    if arch is not None:
        return Network.named(arch, num_classes=classes, input_shape=input_shape)
    shapes = _shapes(state)
    fits, tried = [], []
    for candidate in _candidates(shapes):
        shape = input_shape or _image_shape(shapes)
        network = Network.named(candidate, num_classes=classes, input_shape=shape)
        tried.append(candidate)
        if _shapes(network.state()) == shapes:
            fits.append((candidate, network))
    if len(fits) == 1:
        return fits[0][1]
    if fits:
        raise ArchitectureError(
            f"{name} fits {' and '.join(candidate for candidate, _ in fits)}: choose one",
            arch=fits[0][0],
        )
    near = f"; {listed(tried)} comes closest, but has other weights" if tried else ""
    raise ArchitectureError(
        f"cannot recognise the architecture of {name} from its {len(shapes)} weights "
        f"({listed(shapes, 4)}){near}: name it, as in torchvision:vit_b_16",
        arch="NAME",
    )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by key, without the counters that may be missing in old files."""
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not key.endswith(COUNTER)}


def _classes(state: Mapping[str, Tensor]) -> int | None:
    """The number of rows of the last matrix that has the name of a head."""
    heads = [tensor for key, tensor in state.items() if HEAD.search(key) and tensor.ndim == 2]
    return heads[-1].shape[0] if heads else None


def _image_shape(shapes: Mapping[str, tuple[int, ...]]) -> Shape | None:
    if "stem.weight" not in shapes:
        return None
    features = shapes["stem.weight"][-1]
    return FEATURES.get(features, (1, 1, features))


def _candidates(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Names of the networks to which a state dict may belong, gated if it has gates."""
    gated = any(GATE_KEY.search(key) for key in shapes)
    for name in _plain_candidates(shapes):
        yield f"gated-{name}" if gated else name


def _plain_candidates(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    def blocks(stem: str) -> int:
        matches = (re.match(rf"{re.escape(stem)}\.(\d+)\.", key) for key in shapes)
        return len({match[1] for match in matches if match})  # bounded by the number of weights

    first = shapes.get("layer1.0.conv1.weight")
    if len(shapes.get("stem.weight", ())) == 2 and min(shapes["stem.weight"]) and blocks("blocks"):
        depth, width = 2 * blocks("blocks"), shapes["stem.weight"][0]
        highway = any("transform" in key for key in shapes)
        for kind in ("highway",) if highway else ("residual", "plain"):
            yield f"{kind}-fc{depth},width={width}"
    elif first and "linear.weight" in shapes and "bn.weight" in shapes:
        width, count = first[0] // 16, blocks("layer1")
        yield f"wrn-{6 * count + 4}-{width}" if width > 1 else f"preresnet{6 * count + 2}"
    elif first and "linear.weight" in shapes:
        projects = any(".shortcut." in key for key in shapes)
        yield f"resnet{6 * blocks('layer1') + 2}{'-b' if projects else ''}"
    elif first and "fc.weight" in shapes:
        counts = tuple(blocks(f"layer{stage}") for stage in (1, 2, 3, 4))
        second = shapes.get("layer1.0.conv2.weight", ())[:2]
        bottleneck = "layer1.0.conv3.weight" in shapes
        for name, (layers, conv2) in TORCHVISION_RESNETS.items():
            basic = name in ("resnet18", "resnet34")
            if (layers, conv2, basic) == (counts, second, not bottleneck):
                yield f"torchvision:{name}"
