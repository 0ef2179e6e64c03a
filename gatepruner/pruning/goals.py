"""Targets: how many blocks must go for a network to cost less, or may for it to be as good."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gatepruner.errors import PlanError
from gatepruner.measuring.cost import count
from gatepruner.measuring.latency import latency
from gatepruner.networks.network import Network
from gatepruner.pruning.curve import Point
from gatepruner.pruning.ranking import Ranking

COSTS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
COUNTED = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
UNITS = {
    "macs": COUNTED,
    "params": COUNTED,
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
}


@dataclass(frozen=True)
class Target:
    """The most that a network may cost.

    Attributes:
        cost: `"macs"`, `"params"` or `"latency"`.
        amount: in MACs, parameters or seconds, or as a share of what the whole network costs.
        relative: whether it is a share.
    """

    cost: str
    amount: float
    relative: bool

    @classmethod
    def parse(cls, cost: str, text: str) -> Target:
        """A target as in `60%`, `62.7M` (also K, G) or `8.5ms` (also s, us).

        Raises:
            PlanError: it does not read as one.
        """
        units = UNITS[cost]
        example = "8.5ms" if cost == "latency" else "62.7M"
        found = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z]*|%)", text.strip())
        try:
            number = float(found[1]) if found else 0.0
        except ValueError:
            number = 0.0
        unit = found[2] if found else ""
        if not number or unit not in (*units, "%"):
            raise PlanError(
                f"cannot read the target {text!r} of {COSTS[cost]}: expected a share as in 60%, "
                f"or an amount as in {example}"
            )
        share = unit == "%"
        return cls(cost, number / 100 if share else number * units[unit], share)

    def limit(self, whole: float) -> float:
        """The most it may be, where the whole network costs so much."""
        return self.amount * whole if self.relative else self.amount

    def text(self, amount: float, whole: float) -> str:
        """An amount for a reader, with its share of the whole network's."""
        return f"{amount_text(self.cost, amount)} ({amount / whole:.1%})"


def amount_text(cost: str, amount: float) -> str:
    """`62.7 M MACs`, `8.52 ms`."""
    if cost == "latency":
        return f"{1e3 * amount:.2f} ms"
    scale, unit = next(
        (it for it in ((1e9, "G "), (1e6, "M "), (1e3, "K ")) if amount >= it[0]), (1.0, "")
    )
    return f"{amount / scale:.4g} {unit}{COSTS[cost]}"


@dataclass(frozen=True)
class Measure:
    """How a cost is found out: counted, or measured beside the whole network's.

    Attributes:
        cost: `"macs"`, `"params"` or `"latency"`.
        device: where latency is measured.
        batch: images in one pass when it is.
        seconds: how long to measure, about; short passes are repeated more often.
    """

    cost: str
    device: str = "cpu"
    batch: int = 1
    seconds: float = 2.0

    def __call__(self, networks: Sequence[Network]) -> list[float]:
        """The cost of every network; latencies are measured in turns."""
        if self.cost != "latency":
            return [float(getattr(count(network), self.cost)) for network in networks]
        modules = {str(index): _random(network) for index, network in enumerate(networks)}
        shape = networks[0].base.input_shape
        how: Any = {"batch": self.batch, "device": self.device}
        first = latency(modules, shape, runs=1, **how)
        rounds = self.seconds / max(sum(one.median for one in first.values()), 1e-9)
        found = latency(modules, shape, runs=min(max(int(rounds), 10), 300), **how)
        return [found[str(index)].median for index in range(len(networks))]


def _random(network: Network) -> nn.Module:
    return network.build(network.initial_weights())


@dataclass(frozen=True)
class Reach:
    """What can be reached, from nothing removed to every block of a ranking.

    Attributes:
        target: what is asked for.
        whole: cost of the whole network.
        least: cost with every block of the ranking removed.
    """

    target: Target
    whole: float
    least: float

    def __str__(self) -> str:
        low, high = (self.target.text(it, self.whole) for it in (self.least, self.whole))
        return f"{COSTS[self.target.cost]} from {low} to {high}"


def reach(network: Network, ranking: Ranking, target: Target, measure: Measure) -> Reach:
    """The range of costs that removals along a ranking can reach.

    Raises:
        PlanError: the target is outside it.
    """
    whole, least = measure([network, network.without(ranking.names)])
    found = Reach(target, whole, least)
    limit = target.limit(whole)
    if not least <= limit <= whole:
        raise PlanError(
            f"cannot reach {target.text(limit, whole)}: {network} reaches {found}; choose a "
            "target within this range"
        )
    return found


def fewest(network: Network, ranking: Ranking, found: Reach, measure: Measure) -> int:
    """The smallest number of blocks, least important first, that have to go for a target.

    A cost falls with every block, so it is bisected: latency is measured for few networks, each
    beside the whole one.
    """
    low = 1 if found.target.limit(found.whole) < found.whole else 0
    high = len(ranking.names)
    while low < high:
        middle = (low + high) // 2
        whole, small = measure([network, network.without(ranking.first(middle))])
        if small <= found.target.limit(whole):
            high = middle
        else:
            low = middle + 1
    return low


def most_needed(whole: float, limit: float, saved: Mapping[str, float]) -> int:
    """How many blocks have to go at most, in whatever order they do."""
    left, needed = whole, 0
    for one in sorted(saved.values()):
        if left <= limit:
            break
        left, needed = left - max(one, 0.0), needed + 1
    return needed


def most_within(points: Sequence[Point], loss: float) -> int:
    """The most blocks that can go with an accuracy at most `loss` below that of the first point.

    Args:
        points: a removal curve from none removed on.
        loss: in points, hundredths of accuracy.
    """
    floor = points[0].accuracy.accuracy - loss / 100
    return max(point.removed for point in points if point.accuracy.accuracy >= floor - 1e-9)
