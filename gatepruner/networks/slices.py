"""Names of slices: some channels of the inner width of a branch, as `layer1.0.conv1[0-3,6]`.

A plan is a list of names: those of blocks, and of slices. A slice is named after the layer that
makes its channels, and lists them; the heads of an attention and the groups of a grouped
convolution stay whole and count as one each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gatepruner.errors import PlanError

FORM = re.compile(r"(?P<width>.+)\[(?P<channels>\d{1,8}(-\d{1,8})?(,\d{1,8}(-\d{1,8})?)*)\]")
EXAMPLE = "layer1.0.conv1[0-3,6]"
MOST = 2**20  # channels of a layer


@dataclass(frozen=True)
class Slice:
    """Channels of a width.

    Attributes:
        width: path of the layer that makes them.
        channels: their numbers, in ascending order.
    """

    width: str
    channels: tuple[int, ...]

    def __str__(self) -> str:
        starts = [0, *(at for at, (a, b) in enumerate(pairwise(self.channels), 1) if b != a + 1)]
        runs = [
            self.channels[start:end]
            for start, end in zip(starts, [*starts[1:], len(self.channels)], strict=True)
        ]
        text = ",".join(f"{run[0]}-{run[-1]}" if run[1:] else f"{run[0]}" for run in runs)
        return f"{self.width}[{text}]"


def slice_named(name: str) -> Slice | None:
    """The slice of that name; `None` if it is the name of a block.

    Raises:
        PlanError: it lists no channels, a range runs backwards, or there are too many.
    """
    match = FORM.fullmatch(name)
    if match is None:
        if "[" in name:
            raise PlanError(f"cannot read {name!r}: expected channels as in {EXAMPLE}")
        return None
    ranges = _ranges(match["channels"])
    if any(not one for one in ranges):
        raise PlanError(f"cannot read {name!r}: expected ascending channels as in {EXAMPLE}")
    if sum(map(len, ranges)) > MOST:
        raise PlanError(f"cannot read {name!r}: expected at most {MOST:,} channels")
    return Slice(match["width"], tuple(sorted({at for one in ranges for at in one})))


def extent(name: str) -> tuple[str, int, int] | None:
    """What the name of a slice says, without making the slice.

    Returns:
        The path of the layer, the number of its highest channel, and how many are listed; `None`
        if it is the name of a block.
    """
    match = FORM.fullmatch(name)
    if match is None:
        return None
    ranges = _ranges(match["channels"])
    return match["width"], max(one.stop for one in ranges) - 1, sum(map(len, ranges))


def _ranges(text: str) -> list[range]:
    """The ranges in a list such as `0-3,6`; one that runs backwards is empty."""
    bounds = [part.partition("-") for part in text.split(",")]
    return [range(int(first), int(last or first) + 1) for first, _, last in bounds]


def sorted_out(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[Slice, ...]]:
    """The names of blocks, and the slices, in a plan."""
    slices = [(name, slice_named(name)) for name in names]
    blocks = tuple(name for name, one in slices if one is None)
    return blocks, tuple(one for _, one in slices if one is not None)


def united(slices: Sequence[Slice]) -> dict[str, tuple[int, ...]]:
    """The channels that slices have together, by their width."""
    channels: dict[str, set[int]] = {}
    for one in slices:
        channels.setdefault(one.width, set()).update(one.channels)
    return {width: tuple(sorted(numbers)) for width, numbers in channels.items()}
