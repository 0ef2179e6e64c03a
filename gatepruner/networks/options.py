"""The options of a configuration of transformers that may reach a constructor.

They come from files, so each is a number, a truth value, a word, or a list of these, within limits
that keep a small file from building a network that takes all time or memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from gatepruner.errors import ArchitectureError

MOST_UNITS = 65_536  # of a layer
MOST_LAYERS = 256  # and whatever else is counted
MOST_WINDOW = 64  # pixels or patches of a side; tables of positions grow with its fourth power
MOST_FACTOR = 64.0
MOST_ITEMS, DEEPEST = 64, 5  # of a list, and lists in lists

OPTION = re.compile(r"(vision_config\.)?_?[a-z][a-z0-9_]*")
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")  # no path, no address
WINDOW = re.compile(r"window|patch_|kernel|pool_|stride")
UNITS = re.compile(r"size|dim|channels|width|embd|units|expand|vocab|mid_|stem_")
FACTOR = re.compile(r"coefficient|multiplier|ratio|factor|scale$")


def is_option(key: str) -> bool:
    """Whether this may be the name of an option."""
    return OPTION.fullmatch(key) is not None


def limit(key: str) -> int:
    """The largest whole number that an option takes."""
    if "image_size" in key:
        return 4096
    if WINDOW.search(key) and "channels" not in key:
        return MOST_WINDOW
    return MOST_UNITS if UNITS.search(key) else MOST_LAYERS


def check_option(name: str, key: str, value: Any) -> None:
    """Check the value of an option.

    Args:
        name: of the network, for error messages.
        key: the option.
        value: its value, where lists are tuples.

    Raises:
        ArchitectureError: it is none of the kinds above, or beyond their limits.
    """
    if not _fits(key, value, 0):
        raise ArchitectureError(
            f"{name} cannot be constructed with {key}={value!r:.40}: expected words and numbers, "
            f"whole ones up to {limit(key):,}"
        )


def _fits(key: str, value: Any, depth: int) -> bool:
    if isinstance(value, tuple):
        items = len(value) <= MOST_ITEMS and depth < DEEPEST
        return items and all(_fits(key, item, depth + 1) for item in value)
    return any(fits(key, value) for fits in KINDS)


KINDS: tuple[Callable[[str, Any], bool], ...] = (
    lambda key, value: value is None or isinstance(value, bool),
    lambda key, value: isinstance(value, str) and WORD.fullmatch(value) is not None,
    lambda key, value: type(value) is int and -1 <= value <= limit(key),
    lambda key, value: (
        type(value) is float
        and math.isfinite(value)
        and abs(value) <= (MOST_FACTOR if FACTOR.search(key) else 1e6)
    ),
)
