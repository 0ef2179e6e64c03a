"""gatepruner's own networks, each constructed from a name.

resnet56                CIFAR ResNet of depth 6n + 2, shortcut option A (zero padding)
resnet56-b              the same with shortcut option B (projection)
resnet164-bottleneck    the same of bottlenecks, of depth 9n + 2
preresnet110            pre-activation ResNet of depth 6n + 2; takes `projection`
preresnet164-bottleneck the same of bottlenecks, of depth 9n + 2
preactresnet18          pre-activation ResNet of four stages: depth 18, 34, 50, 101 or 152
wrn-28-10               wide ResNet of depth 6n + 4 and width 10; takes `dropout` and `stem`
residual-fc100          fully-connected, 100 layers in 50 two-layer blocks; takes `width`
highway-fc100           the same as a highway network; also takes `transform_bias`
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from gatepruner.errors import ArchitectureError
from gatepruner.models.fully_connected import FullyConnected
from gatepruner.models.preactivation import PreActivationResNet
from gatepruner.models.resnet import ResNet
from gatepruner.models.wide import WideResNet

Shape = tuple[int, int, int]
CIFAR: Shape = (3, 32, 32)
MNIST: Shape = (1, 28, 28)
MOST_BLOCKS, MOST_WIDTH = 500, 128  # blocks of a stage


@dataclass(frozen=True)
class Family:
    """Networks that share a class.

    Attributes:
        example: the name of one of them.
        module: the class.
        depth: `(a, b)` where n blocks make a depth of a * n + b; `None` if the class takes the
            depth itself.
        input_shape: usual `(C, H, W)` of one image.
        fixed: arguments of the class that the name implies.
    """

    example: str
    module: Callable[..., nn.Module]
    depth: tuple[int, int] | None
    input_shape: Shape
    fixed: Mapping[str, Any]


FAMILIES: dict[str, Family] = {
    r"resnet(?P<depth>\d+)": Family("resnet56", ResNet, (6, 2), CIFAR, {"shortcut": "A"}),
    r"resnet(?P<depth>\d+)-b": Family("resnet56-b", ResNet, (6, 2), CIFAR, {"shortcut": "B"}),
    r"resnet(?P<depth>\d+)-bottleneck": Family(
        "resnet164-bottleneck", ResNet, (9, 2), CIFAR, {"shortcut": "B", "bottleneck": True}
    ),
    r"preresnet(?P<depth>\d+)": Family("preresnet110", WideResNet, (6, 2), CIFAR, {}),
    r"preresnet(?P<depth>\d+)-bottleneck": Family(
        "preresnet164-bottleneck", WideResNet, (9, 2), CIFAR, {"bottleneck": True}
    ),
    r"preactresnet(?P<depth>18|34|50|101|152)": Family(
        "preactresnet18", PreActivationResNet, None, CIFAR, {}
    ),
    r"wrn-(?P<depth>\d+)-(?P<width>\d+)": Family("wrn-28-10", WideResNet, (6, 4), CIFAR, {}),
    r"residual-fc(?P<depth>\d+)": Family("residual-fc100", FullyConnected, (2, 0), MNIST, {}),
    r"highway-fc(?P<depth>\d+)": Family(
        "highway-fc100", FullyConnected, (2, 0), MNIST, {"highway": True}
    ),
}
EXAMPLES = tuple(family.example for family in FAMILIES.values())


def family_of(name: str) -> tuple[Family, dict[str, int]]:
    """The family that `name` belongs to, and the blocks and width, or depth, that the name gives.

    Raises:
        ArchitectureError: no family matches the name, or the family has no network of that depth.
    """
    for pattern, family in FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            numbers = {key: int(value) for key, value in match.groupdict().items()}
            if family.depth is None:
                return family, numbers
            per_block, other_layers = family.depth
            blocks, remainder = divmod(numbers.pop("depth") - other_layers, per_block)
            if blocks > MOST_BLOCKS or numbers.get("width", 0) > MOST_WIDTH:
                raise ArchitectureError(
                    f"{name} is too large: expected at most {MOST_BLOCKS:,} blocks and a width of "
                    f"at most {MOST_WIDTH}"
                )
            if remainder or blocks < 1 or numbers.get("width") == 0:
                raise ArchitectureError(
                    f"unknown architecture {name}: expected a depth of {per_block}n + "
                    f"{other_layers} with n >= 1{' and a width >= 1' if numbers else ''}, "
                    f"as in {family.example}"
                )
            return family, {"blocks": blocks, **numbers}
    raise ArchitectureError(
        f"unknown architecture {name!r}: expected a name like {', '.join(EXAMPLES)}, "
        "or torchvision:NAME or timm:NAME"
    )


def construct(name: str, input_shape: Shape, **arguments: Any) -> nn.Module:
    """The named network with fresh weights, `(N, *input_shape)` to `(N, num_classes)`.

    Raises:
        ArchitectureError: the name is unknown or an argument is invalid.
    """
    family, numbers = family_of(name)
    if family.module is FullyConnected:
        arguments["features"] = math.prod(input_shape)
    try:
        return family.module(**numbers, **family.fixed, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArchitectureError(f"{name}: {error}") from None
