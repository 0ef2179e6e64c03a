"""The project's own networks, each constructed from a name and a few numbers.

resnet56        CIFAR ResNet of depth 6n + 2, shortcut option A (zero padding)
resnet56-b      the same with shortcut option B (projection)
preresnet110    pre-activation ResNet of depth 6n + 2
wrn-28-10       wide ResNet of depth 6n + 4 and width 10; takes `dropout` and `stem`
residual-fc100  fully-connected, 100 layers as 50 two-layer blocks; takes `width`
highway-fc100   the same as a highway network; takes `transform_bias`, too
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
from gatepruner.models.resnet import ResNet
from gatepruner.models.wide import WideResNet

Shape = tuple[int, int, int]
CIFAR: Shape = (3, 32, 32)
MNIST: Shape = (1, 28, 28)


@dataclass(frozen=True)
class Family:
    """Networks that share a class: how their names read and what the name stands for."""

    example: str
    module: Callable[..., nn.Module]
    depth: tuple[int, int]  # a depth is the first number times the blocks, plus the second
    input_shape: Shape
    fixed: Mapping[str, Any]


FAMILIES: dict[str, Family] = {
    r"resnet(?P<depth>\d+)": Family("resnet56", ResNet, (6, 2), CIFAR, {"shortcut": "A"}),
    r"resnet(?P<depth>\d+)-b": Family("resnet56-b", ResNet, (6, 2), CIFAR, {"shortcut": "B"}),
    r"preresnet(?P<depth>\d+)": Family("preresnet110", WideResNet, (6, 2), CIFAR, {}),
    r"wrn-(?P<depth>\d+)-(?P<width>\d+)": Family("wrn-28-10", WideResNet, (6, 4), CIFAR, {}),
    r"residual-fc(?P<depth>\d+)": Family("residual-fc100", FullyConnected, (2, 0), MNIST, {}),
    r"highway-fc(?P<depth>\d+)": Family(
        "highway-fc100", FullyConnected, (2, 0), MNIST, {"highway": True}
    ),
}
EXAMPLES = tuple(family.example for family in FAMILIES.values())


def family_of(name: str) -> tuple[Family, dict[str, int]]:
    """The family that `name` belongs to and the numbers in the name.

    Raises:
        ArchitectureError: no family has such names, or the depth is none of this family's.
    """
    for pattern, family in FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            numbers = {key: int(value) for key, value in match.groupdict().items()}
            factor, rest = family.depth
            blocks, odd = divmod(numbers.pop("depth") - rest, factor)
            if odd or blocks < 1 or numbers.get("width") == 0:
                raise ArchitectureError(
                    f"{name}: a depth of {factor}n + {rest} with n >= 1"
                    f"{' and a width >= 1' if numbers else ''} was expected, "
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
        ArchitectureError: the name is unknown or an argument does not fit.
    """
    family, numbers = family_of(name)
    if family.module is FullyConnected:
        arguments["features"] = math.prod(input_shape)
    try:
        return family.module(**numbers, **family.fixed, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArchitectureError(f"{name}: {error}") from None
