"""The arguments, names and sizes with which a network may be constructed.

They come from files and command lines, so only what is known to build layers gets to a
constructor: no paths, no addresses, no code. The limits keep a name of a few letters from taking
all memory; each can be raised by assigning to it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gatepruner.errors import ArchitectureError, listed, nearest
from gatepruner.networks.options import check_option, is_option

MOST_CLASSES = 1_000_000
MOST_CHANNELS = 4096
MOST_PIXELS = 4096  # of a side
NAME = re.compile(r"\w[\w.-]*")


def _whole(low: int, high: Callable[[], float]) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high()


def _real(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _word(*words: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in words


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _truths(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_truth, value)) and len(value) <= 8


CLASSES = {"num_classes": _whole(1, lambda: MOST_CLASSES)}
RATE, SIZE = _real(0, 1), _whole(1, lambda: MOST_CHANNELS)
ALLOWED: dict[str, Mapping[str, Callable[[Any], bool]]] = {
    "gatepruner": {
        **CLASSES,
        **dict.fromkeys(("stem", "width"), SIZE),
        "dropout": RATE,
        "projection": _word("shared", "raw"),
        "transform_bias": _real(-100, 100),
    },
    "torchvision": {
        **CLASSES,
        **dict.fromkeys(
            ("dropout", "attention_dropout", "stochastic_depth_prob", "init_values"), RATE
        ),
        **dict.fromkeys(("groups", "width_per_group", "group_width", "round_nearest"), SIZE),
        "width_mult": _real(0, 16),
        **dict.fromkeys(("zero_init_residual", "v1"), _truth),
        "stem": _word("usual", "small"),
        "replace_stride_with_dilation": _truths,
    },
    "timm": {
        **CLASSES,
        **dict.fromkeys(
            (
                *("drop_rate", "drop_path_rate", "drop_block_rate", "proj_drop_rate"),
                *("attn_drop_rate", "patch_drop_rate", "pos_drop_rate", "init_values"),
            ),
            RATE,
        ),
        **dict.fromkeys(("patch_size", "window_size", "output_stride", "depth"), SIZE),
        "global_pool": _word("", "avg", "max", "avgmax", "catavgmax", "fast", "token", "map"),
        "dynamic_img_size": _truth,
    },
    "transformers": {**CLASSES, "architecture": lambda value: _is_name(value)},
    "caller": {},
}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def check_name(source: str, name: Any) -> None:
    """Raise an `ArchitectureError` unless a name is one word, and no path or address."""
    if not _is_name(name):
        raise ArchitectureError(
            f"{name!r} is no name of a network of {source}: expected letters, digits, '.', '_', '-'"
        )


def check_arguments(source: str, name: str, arguments: Iterable[tuple[str, Any]]) -> None:
    """Raise an `ArchitectureError` unless all arguments are known and of their kind."""
    allowed = ALLOWED[source]
    for key, value in arguments:
        if source == "transformers" and key not in allowed and is_option(key):
            check_option(name, key, value)
            continue
        if key not in allowed:
            raise ArchitectureError(
                f"{name} takes no argument {key!r}{nearest(str(key), sorted(allowed))}: expected "
                f"{listed(sorted(allowed), 20) or 'none'}; for others, construct the module "
                "yourself, Checkpoint.of(module, input_shape)"
            )
        if not allowed[key](value) or (isinstance(value, float) and not math.isfinite(value)):
            raise ArchitectureError(f"{name} cannot be constructed with {key}={value!r:.40}")


def check_shape(source: str, name: str, shape: Any) -> None:
    """Raise an `ArchitectureError` unless a shape is whole numbers within the limits.

    It is `(C, H, W)`; a caller's module may also take videos or vectors, for example.
    """
    sized = isinstance(shape, tuple) and (len(shape) == 3 or (source == "caller" and shape))
    limits = itertools.chain([MOST_CHANNELS], itertools.repeat(MOST_PIXELS))
    pairs = zip(shape if sized else (), limits, strict=False)
    if not sized or not all(type(side) is int and 1 <= side <= most for side, most in pairs):
        raise ArchitectureError(
            f"{name} cannot take images of {shape!r:.60}: expected channels, height and width of 1 "
            f"to {MOST_CHANNELS:,} and {MOST_PIXELS:,}"
        )
