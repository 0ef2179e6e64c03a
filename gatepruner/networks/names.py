"""Names of networks, such as `gated-resnet56` or `torchvision:vit_b_32`."""

from __future__ import annotations

import contextlib
from typing import Any

from gatepruner import models
from gatepruner.errors import ArchitectureError
from gatepruner.models import Shape
from gatepruner.networks.base import SOURCES, Base, published_shape


def parse(
    text: str, *, num_classes: int | None = None, input_shape: Shape | None = None
) -> tuple[Base, str, bool]:
    """Read a name: its base, the kind of its gates (`""` for none), and whether it has shortcuts.

    Args:
        text: `[gated-][SOURCE:]NAME[,argument=value...]`; `gatepruner.models` lists gatepruner's
            own names, and `plain-fc100` is `residual-fc100` without shortcuts.
        num_classes: number of logits; by default the source's.
        input_shape: `(C, H, W)` of one image; by default the network's usual one.

    Raises:
        ArchitectureError: the source is unknown, or an argument has no value.
    """
    name, *pairs = text.split(",")
    gated = name.startswith("gated-")
    source, _, name = name.removeprefix("gated-").rpartition(":")
    source = source or "gatepruner"
    if source not in SOURCES or source == "caller":
        raise ArchitectureError(
            f"unknown source {source!r} in {text!r}: expected torchvision:NAME, timm:NAME, "
            f"transformers:TYPE or a name like {', '.join(models.EXAMPLES)}"
        )
    plain = source == "gatepruner" and name.startswith("plain-fc")
    if plain:
        name = "residual-fc" + name.removeprefix("plain-fc")
    arguments = dict(_argument(pair, text) for pair in pairs)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    shape = input_shape or _usual_shape(source, name)
    base = Base(source, name, shape, tuple(sorted(arguments.items())))
    gate = ("plain" if plain else "residual") if gated else ""
    return base, gate, not plain


def _argument(pair: str, text: str) -> tuple[str, Any]:
    """Read `key=value`; numbers and truth values are converted."""
    key, equals, value = pair.partition("=")
    if not equals:
        raise ArchitectureError(f"cannot read {pair!r} in {text!r}: expected argument=value")
    for convert in (int, float):
        with contextlib.suppress(ValueError):
            return key, convert(value)
    return key, {"true": True, "false": False}.get(value.lower(), value)


def _usual_shape(source: str, name: str) -> Shape:
    """The usual `(C, H, W)`: that of the family, as timm publishes it, or else 224 x 224."""
    if source == "gatepruner":
        return models.family_of(name)[0].input_shape
    return published_shape(name) if source == "timm" else (3, 224, 224)
