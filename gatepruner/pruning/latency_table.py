"""What blocks take at several of their widths: a table of latencies that is measured once.

Time does not fall in proportion to a width but in stairs: many engines compute 8, 16 or 32 channels
at once, so a width in between takes as long as the next one that they fill.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from gatepruner.measuring.cost import alike
from gatepruner.measuring.latency import Latency
from gatepruner.networks.network import Network
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.unit_costs import Table, UnitCosts
from gatepruner.pruning.widths import Width, sizes_left

WIDTHS = 8  # of a block that are measured at most, its own among them
# The standard error of a median of normal times is this times the distance of the quartiles over
# the root of the number of runs.
ERROR = 0.93


def latency_table(meter: Meter, widths: Mapping[str, Width], multiple: int) -> Table:
    """What each block, and each module apart with an inner width, takes at several widths.

    Blocks that do the same work are measured together, as in `Meter.savings`.

    Args:
        meter: measures the whole network.
        widths: its inner widths, by name.
        multiple: channels of a slice; only whole numbers of slices are measured.

    Returns:
        By block or module, in rising order: the share of its MACs that is left, and its seconds.
    """
    network, saved = meter.whole, meter.savings("latency")
    costs = UnitCosts(network, widths, "macs")
    apart = dict.fromkeys(width.home for width in widths.values() if width.home not in saved)
    table: dict[str, list[tuple[float, float]]] = {}
    for group in (*alike(network), *((home,) for home in apart)):
        smaller = dict(_narrower(costs, group, multiple))
        whole, *times = meter.latencies([network, *smaller.values()])
        less = [_surely_saved(whole, time) / len(group) for time in times]
        # The time of a module apart is unknown, and does not matter: it stays.
        least, most = next(iter(zip(smaller, less, strict=True)), (0.0, 0.0))
        own = max(saved.get(group[0], most / (1 - least)), 0.0)
        seconds = [*(max(own - each, 0.0) for each in less), own]
        rising = [*itertools.accumulate(reversed(seconds), min)][::-1]  # noise aside
        curve = [(0.0, 0.0), *zip([*smaller, 1.0], rising, strict=True)]
        table |= dict.fromkeys(group, curve)
    return table


def _surely_saved(before: Latency, after: Latency) -> float:
    """The seconds by which two medians differ, less twice the standard error of the difference.

    Without that, noise would make slices that save no time look as if they saved some.
    """
    errors = (ERROR * (each.high - each.low) / math.sqrt(each.runs) for each in (before, after))
    return max(before.median - after.median - 2 * math.hypot(*errors), 0.0)


def _narrower(
    costs: UnitCosts, homes: Sequence[str], multiple: int
) -> Iterable[tuple[float, Network]]:
    """The network with some homes at several widths, and the shares of their MACs, rising."""
    inner = {name: width for name, width in costs.widths.items() if width.home in homes}
    steps = {name: width.step(multiple) for name, width in inner.items()}
    slices = {name: -(-width.size // steps[name]) for name, width in inner.items()}
    points = min(max(slices.values(), default=1), WIDTHS)
    for point in range(1, points):
        costs.left = {
            name: min(max(1, round(count * point / points)) * steps[name], inner[name].size)
            for name, count in slices.items()
        }
        share = sum(map(costs.cost, homes)) / max(sum(costs.whole[home] for home in homes), 1)
        gone = {name: range(count, inner[name].size) for name, count in costs.left.items()}
        gone = {name: channels for name, channels in gone.items() if channels}
        if 0 < share < 1:
            sizes = sizes_left(costs.network, costs.widths, gone)
            yield share, costs.network.narrowed_to(sizes)
